//! Uploads of the files of COPY steps, against a write of the same bytes to the same disk.

use crate::stats::Row;
use reqwest::Method;
use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};
use tests::{Tree, Workshop, hash};

const ROUNDS: u8 = 5;
const BYTES: usize = 100_000_000;

/// Measures uploads by the API. The platform syncs each archive before it answers.
pub(super) async fn measure(workshop: &Workshop) -> Vec<Row> {
    let client = &workshop.client;
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let archive = Tree::new().file("data", 0o644, noise(BYTES, round)).archive();
        floor.push(written(workshop, &archive));
        let path = format!("/v1/builds/files/{}", hash(&archive));
        let put = client.request(Method::PUT, &path).body(archive);
        let since = Instant::now();
        client.send(put).await.expect(200);
        ours.push(since.elapsed());
    }
    let what = "upload of 100 MB for COPY, throughput ÷ write and sync of a file";
    vec![Row::throughput(what, BYTES, &ours, &floor, "")]
}

/// Writes a file in the platform's folder and syncs it.
fn written(workshop: &Workshop, bytes: &[u8]) -> Duration {
    let path = workshop.platform.dir().join("written");
    let since = Instant::now();
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
    let took = since.elapsed();
    fs::remove_file(path).unwrap();
    took
}

/// Returns bytes without long repetitions. Each seed has others.
pub(super) fn noise(length: usize, seed: u8) -> Vec<u8> {
    let mut state = u64::from(seed) + 88_172_645_463_325_252;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}
