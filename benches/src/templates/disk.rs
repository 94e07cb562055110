//! The disk of ten templates that each add 10 MiB to one image, without saved machines.

use super::{body, run, timed};
use crate::stats::Row;
use serde_json::json;
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tests::{Image, Platform, Tree, Workshop};

const TEMPLATES: usize = 10;
/// MiB that each template adds.
const OWN: usize = 10;
/// Bytes that the image has beside busybox.
const IMAGE: usize = 50 << 20;
/// Folders of the host that hold images, layers and versions.
const FOLDERS: [&str; 3] = ["images/store", "images/templates", "layers"];

/// Measures the growth of the host's folders from before the image on.
pub(super) async fn measure(workshop: &Workshop) -> Vec<Row> {
    let client = &workshop.client;
    let fill = Tree::new().file("filled", 0o644, super::upload::noise(IMAGE, 3));
    workshop.registry.push("large:1", &Image::busybox().layer(fill));
    let build = |name: &str, steps: &serde_json::Value| {
        let mut body = body(workshop, name, steps);
        body["from"] = json!({ "image": workshop.registry.reference("large:1") });
        body
    };
    let empty = used(&workshop.platform);
    timed(client, &build("of", &json!([]))).await;
    let base = used(&workshop.platform) - empty;
    assert!(base >= IMAGE as u64, "the image is not among the files");
    for n in 0..TEMPLATES {
        let fill = format!("dd if=/dev/urandom of=/own-{n} bs=1M count={OWN} 2>/dev/null");
        timed(client, &build(&format!("of-{n}"), &json!([run(&fill)]))).await;
    }
    let all = used(&workshop.platform) - empty;
    let own = (TEMPLATES * OWN) as u64 * (1 << 20);
    assert!(all >= base + own, "the templates' files are not among the files");
    let grown = (all - base) as f64 / own as f64;
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let what = "disk of ten templates, without their image ÷ their own bytes";
    vec![
        Row::new(what, &mib(all - base), &mib(own), &format!("{grown:.2}"), "≤ 1.1"),
        Row::new(
            "disk of the image and the templates ÷ their bytes",
            &mib(all),
            &mib(base + own),
            &format!("{:.2}", all as f64 / (base + own) as f64),
            "",
        ),
    ]
}

/// Returns the bytes on the disk of the host's images, layers and versions, each file once.
fn used(platform: &Platform) -> u64 {
    let (dir, mut seen) = (platform.dir(), BTreeSet::new());
    FOLDERS.iter().map(|folder| blocks(&dir.join(folder), &mut seen)).sum()
}

/// Sums the bytes on the disk of all files below a folder that were not seen yet.
fn blocks(dir: &Path, seen: &mut BTreeSet<u64>) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let each = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => blocks(&entry.path(), seen),
        Ok(found) if seen.insert(found.ino()) => found.blocks() * 512,
        Ok(_) | Err(_) => 0,
    });
    each.sum()
}
