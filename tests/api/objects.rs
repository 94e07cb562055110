//! Folders in a store on a disk and on a real S3 server. A folder comes back unchanged, or with an
//! error.

use rand::RngCore;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use store::{Error, Store};
use tests::S3;

fn made(dir: &Path) {
    let mut random = vec![0; 5_000_000];
    rand::rng().fill_bytes(&mut random);
    fs::write(dir.join("random"), &random).unwrap();
    fs::write(dir.join("empty"), b"").unwrap();
    fs::write(dir.join("small"), b"wrenn").unwrap();
    let sparse = File::create(dir.join("sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    sparse.write_all_at(b"middle", 700_000_000).unwrap();
    sparse.write_all_at(b"end", (1 << 30) - 3).unwrap();
}

fn same(one: &Path, other: &Path) {
    let mut names: Vec<_> = fs::read_dir(one).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    for name in &names {
        let (a, b) = (File::open(one.join(name)).unwrap(), File::open(other.join(name)).unwrap());
        assert_eq!(a.metadata().unwrap().len(), b.metadata().unwrap().len(), "{name:?}");
        assert!(b.metadata().unwrap().blocks() * 512 < 20 << 20, "{name:?} is not sparse");
        let mut at = 0;
        while at < a.metadata().unwrap().len() {
            let (mut x, mut y) = (vec![0; 1 << 20], vec![0; 1 << 20]);
            let read = a.read_at(&mut x, at).unwrap();
            b.read_at(&mut y, at).unwrap();
            assert!(x == y, "{name:?} at {at}");
            at += read as u64;
        }
    }
    assert_eq!(names.len(), fs::read_dir(other).unwrap().count());
}

async fn keeps(store: &Store) {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    made(from.path());
    store.probe().await.unwrap();
    assert!(matches!(store.get("team", "a/b/1", to.path()).await, Err(Error::Missing(_))));
    let sent = store.put("team", "a/b/1", from.path()).await.unwrap();
    assert!((5_000_000..5_200_000).contains(&sent), "{sent}");
    // Chunks in the store are not sent again, and changed ones are.
    let again = store.put("team", "a/b/2", from.path()).await.unwrap();
    assert!(again < 5000, "{again}");
    assert!(store.has("team", "a/b/2").await.unwrap());
    assert!(!store.has("team", "a/c").await.unwrap() && !store.has("x", "a/b/2").await.unwrap());
    store.get("team", "a/b/2", to.path()).await.unwrap();
    same(from.path(), to.path());
    let mut names = store.names("team", "a/b").await.unwrap();
    names.sort();
    assert_eq!(names, ["a/b/1", "a/b/2"]);
    store.remove("team", "a/b/1").await.unwrap();
    store.remove("team", "a/b/1").await.unwrap();
    assert_eq!(store.names("team", "a").await.unwrap(), ["a/b/2"]);
    // Young chunks stay, whether or not a manifest names them.
    assert_eq!(store.sweep().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn folder_and_s3_stores_behave_alike() {
    for key in [None, Some([9; 32])] {
        let folder = tempfile::tempdir().unwrap();
        keeps(&Store::open(folder.path().to_str().unwrap(), key, std::iter::empty()).unwrap())
            .await;
    }
    let s3 = S3::start().await;
    let vars = s3.vars().into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    let url = s3.url();
    keeps(&Store::open(url, Some([9; 32]), vars).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn corrupt_chunk_or_manifest_is_an_error() {
    for key in [None, Some([9; 32])] {
        let (folder, from) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(from.path().join("file"), vec![7; 100_000]).unwrap();
        let store = Store::open(folder.path().to_str().unwrap(), key, std::iter::empty()).unwrap();
        store.put("team", "one", from.path()).await.unwrap();
        let manifest = folder.path().join("team/trees/one");
        let chunks = folder.path().join("team/pieces");
        let below = fs::read_dir(chunks).unwrap().next().unwrap().unwrap().path();
        let chunk = fs::read_dir(below).unwrap().next().unwrap().unwrap().path();
        for file in [&manifest, &chunk] {
            let whole = fs::read(file).unwrap();
            let mut bad = whole.clone();
            let at = bad.len() / 2;
            bad[at] ^= 1;
            for damage in [Some(bad), Some(whole[..whole.len() - 1].to_vec()), Some(vec![]), None] {
                match &damage {
                    Some(bytes) => fs::write(file, bytes).unwrap(),
                    None => fs::remove_file(file).unwrap(),
                }
                let to = tempfile::tempdir().unwrap();
                let got = store.get("team", "one", to.path()).await;
                let missing = damage.is_none() && file == &manifest;
                match got {
                    Err(Error::Missing(_)) => assert!(missing),
                    Err(Error::Damaged(_)) => assert!(!missing),
                    other => panic!("{other:?}"),
                }
            }
            fs::write(file, whole).unwrap();
        }
        let to = tempfile::tempdir().unwrap();
        store.get("team", "one", to.path()).await.unwrap();
        // Old chunks go when no manifest names them. All others stay.
        fs::write(from.path().join("file"), vec![8; 100_000]).unwrap();
        store.put("team", "two", from.path()).await.unwrap();
        store.remove("team", "one").await.unwrap();
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(25 * 3600);
        for entry in fs::read_dir(folder.path().join("team/pieces")).unwrap() {
            for chunk in fs::read_dir(entry.unwrap().path()).unwrap() {
                let file = File::options().write(true).open(chunk.unwrap().path()).unwrap();
                file.set_modified(old).unwrap();
            }
        }
        assert_eq!(store.sweep().await.unwrap(), 1);
        let to = tempfile::tempdir().unwrap();
        store.get("team", "two", to.path()).await.unwrap();
    }
}
