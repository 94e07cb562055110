//! Pauses of a capsule with much data: the data stays, and a pause writes what has changed.
//! `tests/long` raises pauses and data (`WRENN_PAUSES`, `WRENN_FRAME_MB`).

use super::{create, value};
use std::os::unix::fs::MetadataExt;
use tests::{Client, Platform};

/// Most bytes that the pause after a short execution writes.
const WRITTEN_MAX: u64 = 16 << 20;
/// Expression with the hash of all data.
const HASH: &str = "hashlib.blake2b(numpy.ascontiguousarray(frame.n)).hexdigest()";

/// Returns the bytes of memory that a pause of a capsule has written. A layer with several links
/// existed before.
fn written(platform: &Platform, id: &str, pause: usize) -> u64 {
    let kept = platform.dir().join(format!("capsules/{id}/kept/{pause}"));
    let files = std::fs::read_dir(kept).unwrap().flatten();
    let layers = files.filter(|file| file.file_name().to_string_lossy().ends_with(".pages"));
    let found = layers.map(|layer| layer.metadata().unwrap());
    found.filter(|layer| layer.nlink() == 1).map(|layer| layer.len()).sum()
}

/// Pauses and resumes a capsule with a DataFrame again and again.
pub(super) async fn data_stays_over_pauses(client: &Client, platform: &Platform) {
    let id = create(client).await;
    let megabytes = tests::rounds("WRENN_FRAME_MB", 50);
    let code = format!(
        "import hashlib, numpy, pandas\n\
        frame = pandas.DataFrame({{'n': numpy.random.rand({megabytes} * 125_000)}})\n{HASH}"
    );
    let hash = value(client, &id, &code).await;
    let pauses = tests::rounds("WRENN_PAUSES", 2);
    for pause in 1..=pauses {
        client.pause(&id).await;
        let bytes = written(platform, &id, pause);
        if pause == 1 {
            let all = u64::try_from(megabytes).unwrap() * 1_000_000;
            assert!(bytes > all, "{bytes} bytes are less than the data");
        } else {
            assert!(bytes <= WRITTEN_MAX, "pause {pause} wrote {bytes} bytes");
        }
        client.resume(&id).await;
        if pause == pauses {
            break;
        }
        assert_eq!(value(client, &id, "1 + 1").await, "2");
    }
    assert_eq!(value(client, &id, HASH).await, hash);
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
}
