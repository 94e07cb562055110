//! Container images of tests: layers from lists of files, a configuration, and a manifest.

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Media types of OCI's documents.
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Programs of busybox that [`Tree::busybox`] links.
const APPLETS: &[&str] = &[
    "sh",
    "[",
    "awk",
    "cat",
    "chmod",
    "chown",
    "cp",
    "cut",
    "date",
    "dd",
    "df",
    "echo",
    "env",
    "false",
    "find",
    "grep",
    "head",
    "hostname",
    "httpd",
    "id",
    "kill",
    "ln",
    "ls",
    "mkdir",
    "mount",
    "mv",
    "nc",
    "pidof",
    "printf",
    "ps",
    "pwd",
    "readlink",
    "rm",
    "rmdir",
    "sed",
    "seq",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "sync",
    "tar",
    "test",
    "touch",
    "tr",
    "true",
    "wc",
    "wget",
    "which",
];

/// Returns the path of Debian's static busybox, which `./test` unpacks.
///
/// # Panics
/// When it is missing.
#[must_use]
pub fn busybox() -> PathBuf {
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest-packages");
    let mut places = ["bin/busybox", "usr/bin/busybox"].map(|path| packages.join(path)).into_iter();
    places.find(|path| path.exists()).expect("busybox-static is missing: run ./test")
}

/// Returns a `sha256:` digest.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hash(bytes))
}

/// Returns a SHA-256 in hexadecimal digits, such as the name of uploaded files.
#[must_use]
pub fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compresses bytes by gzip.
///
/// # Panics
/// Never, since memory takes all bytes.
#[must_use]
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// Files of a tar archive.
#[derive(Debug, Clone, Default)]
pub struct Tree(Vec<u8>);

impl Tree {
    /// Makes an archive without files.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file of root's.
    #[must_use]
    pub fn file(self, path: &str, mode: u32, contents: impl AsRef<[u8]>) -> Self {
        self.member(path, (b'0', mode), (0, 0), "", contents.as_ref())
    }

    /// Adds a file with an owner and a group.
    #[must_use]
    pub fn owned(self, path: &str, mode: u32, ids: (u32, u32), contents: &str) -> Self {
        self.member(path, (b'0', mode), ids, "", contents.as_bytes())
    }

    /// Adds a folder.
    #[must_use]
    pub fn folder(self, path: &str, mode: u32) -> Self {
        self.member(&format!("{path}/"), (b'5', mode), (0, 0), "", b"")
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn link(self, path: &str, target: &str) -> Self {
        self.member(path, (b'2', 0o777), (0, 0), target, b"")
    }

    /// Adds busybox as `/bin/busybox`, with links of its programs' names.
    ///
    /// # Panics
    /// When busybox is missing.
    #[must_use]
    pub fn busybox(self) -> Self {
        let with = self.file("bin/busybox", 0o755, std::fs::read(busybox()).unwrap());
        let link = |tree: Self, name| tree.link(&format!("bin/{name}"), "busybox");
        APPLETS.iter().copied().fold(with, link)
    }

    /// Returns the archive.
    #[must_use]
    pub fn archive(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }

    /// Adds a member of a kind, with its mode and its owner and group.
    fn member(
        mut self,
        path: &str,
        (kind, mode): (u8, u32),
        (uid, gid): (u32, u32),
        target: &str,
        contents: &[u8],
    ) -> Self {
        let mut header = [0_u8; 512];
        assert!(path.len() <= 100 && target.len() <= 100, "{path} is too long for this writer");
        let mut put = |at: usize, text: &str| {
            header[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        put(0, path);
        put(100, &format!("{mode:07o}"));
        put(108, &format!("{uid:07o}"));
        put(116, &format!("{gid:07o}"));
        put(124, &format!("{:011o}", contents.len()));
        put(136, &format!("{:011o}", 1_700_000_000));
        put(148, "        ");
        put(157, target);
        put(257, "ustar\x0000");
        header[156] = kind;
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0.extend(header);
        self.0.extend(contents);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }
}

/// An image for amd64, unless the test says otherwise.
#[derive(Debug, Clone)]
pub struct Image {
    /// Plain archives, lowest first.
    layers: Vec<Vec<u8>>,
    config: Value,
    architecture: &'static str,
}

impl Image {
    /// Makes an image of one layer.
    #[must_use]
    pub fn of(layer: Tree) -> Self {
        Self { layers: vec![layer.archive()], config: json!({}), architecture: "amd64" }
    }

    /// Makes an image of busybox, with a shell, two users and a PATH.
    #[must_use]
    pub fn busybox() -> Self {
        let users = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n";
        let groups = "root:x:0:\napp:x:1000:\nstaff:x:50:app\n";
        let tree = Tree::new().busybox().folder("tmp", 0o1777).folder("root", 0o700);
        let tree = tree.file("etc/passwd", 0o644, users).file("etc/group", 0o644, groups);
        let path = "PATH=/usr/local/bin:/usr/bin:/bin";
        Self::of(tree.folder("home/app", 0o755)).config("Env", json!([path]))
    }

    /// Adds a layer.
    #[must_use]
    pub fn layer(mut self, layer: Tree) -> Self {
        self.layers.push(layer.archive());
        self
    }

    /// Sets a field of the configuration, such as `Env` or `User`.
    #[must_use]
    pub fn config(mut self, name: &str, value: Value) -> Self {
        self.config[name] = value;
        self
    }

    /// Sets the architecture.
    #[must_use]
    pub fn on(mut self, architecture: &'static str) -> Self {
        self.architecture = architecture;
        self
    }

    /// Returns the architecture.
    #[must_use]
    pub fn architecture(&self) -> &'static str {
        self.architecture
    }

    /// Returns the manifest, and all blobs that it names.
    #[must_use]
    pub fn documents(&self) -> (Vec<u8>, Vec<Vec<u8>>) {
        let ids: Vec<String> = self.layers.iter().map(|layer| digest(layer)).collect();
        let config = json!({
            "architecture": self.architecture, "os": "linux", "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": ids },
        });
        let mut blobs: Vec<Vec<u8>> = self.layers.iter().map(|layer| gzip(layer)).collect();
        let layers: Vec<Value> = blobs.iter().map(|blob| named(LAYER, blob)).collect();
        blobs.push(config.to_string().into_bytes());
        let config = named(CONFIG, &blobs[blobs.len() - 1]);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
        });
        (manifest.to_string().into_bytes(), blobs)
    }

    /// Returns an archive in the form of an OCI layout.
    #[must_use]
    pub fn layout(&self) -> Vec<u8> {
        let (manifest, mut blobs) = self.documents();
        let index = json!({ "schemaVersion": 2, "manifests": [named(MANIFEST, &manifest)] });
        blobs.push(manifest);
        let tree = Tree::new().file("oci-layout", 0o644, r#"{"imageLayoutVersion":"1.0.0"}"#);
        let tree = tree.file("index.json", 0o644, index.to_string());
        let blob = |tree: Tree, blob: &Vec<u8>| {
            tree.file(&format!("blobs/sha256/{}", hash(blob)), 0o644, blob)
        };
        blobs.iter().fold(tree, blob).archive()
    }
}

/// Returns a descriptor of a document.
pub(crate) fn named(kind: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": digest(bytes), "size": bytes.len() })
}
