//! Imports of whole images, with this test program as the conversion child.

use super::folder::Folders;
use super::*;
use axum::http::{Method, StatusCode, header};
use serde_json::json;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Instant;

/// Returns this program with arguments that run one ignored test alone.
fn this_program(test: &str) -> Program {
    let test = format!("images::tests::{test}");
    let args = [&test, "--exact", "--ignored", "--nocapture", "--test-threads=1"];
    Program { path: std::env::current_exe().unwrap(), args: args.map(OsString::from).to_vec() }
}

/// Stands in for `wrenn convert-image`. The test harness has written a line to the image before,
/// which the converter removes.
#[test]
#[ignore = "runs as the child of other tests"]
fn conversion_child() {
    std::process::exit(i32::from(run_conversion_child() != std::process::ExitCode::SUCCESS));
}

/// Tries to leave the jail, and reports the attempts that succeeded on standard error.
#[test]
#[ignore = "runs as the child of other tests"]
fn jail_probe() {
    let own = rustix::process::getpid();
    crate::sys::jail::enter(1 << 20).unwrap();
    let mut done = Vec::new();
    let mut note = |what: &str, succeeded: bool| {
        if succeeded {
            done.push(what.to_owned());
        }
    };
    for path in ["/", ".", "/etc/passwd", "/proc/self/status", "/dev/null", "/tmp"] {
        note(path, fs::File::open(path).is_ok() || fs::read_dir(path).is_ok());
        note(path, fs::metadata(path).is_ok());
    }
    note("create", fs::write("/tmp/wrenn-jail-probe", b"x").is_ok());
    note("tcp", std::net::TcpListener::bind("127.0.0.1:0").is_ok());
    note("udp", std::net::UdpSocket::bind("127.0.0.1:0").is_ok());
    note("unix", std::os::unix::net::UnixStream::pair().is_ok());
    note("exec", Command::new("/bin/true").spawn().is_ok());
    note("thread", std::thread::Builder::new().spawn(|| ()).is_ok());
    note("signal", rustix::process::kill_process(own, rustix::process::Signal::CONT).is_ok());
    note("mount", rustix::mount::unmount("/", rustix::mount::UnmountFlags::DETACH).is_ok());
    note("root", rustix::thread::set_thread_uid(rustix::thread::Uid::ROOT).is_ok());
    let text = format!("PROBE {done:?} END");
    std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes()).unwrap();
    std::process::exit(0);
}

#[test]
fn jailed_process_reaches_no_path_socket_or_program() {
    let probe = this_program("jail_probe");
    let out = Command::new(&probe.path).args(&probe.args).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("PROBE [] END"), "{said} {}", String::from_utf8_lossy(&out.stdout));
}

fn member(path: &str, flag: u8, contents: &[u8]) -> Vec<u8> {
    let mut head = [0u8; 512];
    head[..path.len()].copy_from_slice(path.as_bytes());
    head[100..107].copy_from_slice(b"0000755");
    head[108..115].copy_from_slice(b"0000000");
    head[116..123].copy_from_slice(b"0000000");
    head[124..135].copy_from_slice(format!("{:011o}", contents.len()).as_bytes());
    head[136..147].copy_from_slice(b"00000000000");
    head[148..156].copy_from_slice(b"        ");
    head[156] = flag;
    head[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
    head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut out = [&head[..], contents].concat();
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out: Vec<u8> =
        members.iter().flat_map(|(path, bytes)| member(path, b'0', bytes)).collect();
    out.extend([0; 1024]);
    out
}

/// An image with one layer.
struct Sample {
    layer: Vec<u8>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

impl Sample {
    fn of(layer: Vec<u8>) -> Self {
        let architecture = registry::Platform::current().architecture;
        let config = json!({
            "architecture": architecture, "os": "linux", "config": { "Env": ["A=b"] },
            "rootfs": { "type": "layers", "diff_ids": [Digest::sha256(&layer)] },
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::sha256(&config), "size": config.len() },
            "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": Digest::sha256(&layer), "size": layer.len() }],
        });
        Self { layer, config, manifest: manifest.to_string().into_bytes() }
    }

    fn hello() -> Self {
        Self::of(tar(&[("bin/hello", b"hello"), ("etc/passwd", b"root")]))
    }

    fn digest(&self) -> Digest {
        Digest::sha256(&self.manifest)
    }

    /// Writes an OCI layout, with these bytes in the layer's place.
    fn write(&self, path: &Path, layer: &[u8]) {
        let index = json!({ "schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": self.digest(), "size": self.manifest.len() }] });
        let index = index.to_string().into_bytes();
        let name = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::sha256(bytes).digits());
        let (manifest, config, own) = (name(&self.manifest), name(&self.config), name(&self.layer));
        let members: [(&str, &[u8]); 4] = [
            ("index.json", &index),
            (&manifest, &self.manifest),
            (&config, &self.config),
            (&own, layer),
        ];
        fs::write(path, tar(&members)).unwrap();
    }
}

struct Host {
    dir: tempfile::TempDir,
    store: ImageStore,
}

impl Host {
    fn new() -> Self {
        Self::with(this_program("conversion_child"), Registries::default())
    }

    fn with(program: Program, registries: Registries) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::new(dir.path(), registries, program);
        Self { dir, store }
    }

    /// Imports an archive with these bytes in the layer's place.
    async fn import(&self, sample: &Sample, layer: &[u8], team: &str) -> Result<KeptImage, Error> {
        let path = self.dir.path().join(format!("{team}.tar"));
        sample.write(&path, layer);
        let request = ImageRequest {
            source: ImageSource::Archive { path, name: None },
            pull: Pull::Always,
            team: team.to_owned(),
            limits: Limits::default(),
        };
        self.store.prepare(request, |_| {}, &CancellationToken::new()).await
    }

    /// Counts the folders below `images/`.
    fn count(&self, name: &str) -> usize {
        fs::read_dir(self.dir.path().join("images").join(name)).into_iter().flatten().count()
    }
}

#[tokio::test]
async fn image_of_an_archive_is_converted_kept_and_linked() {
    let (host, sample) = (Host::new(), Sample::hello());
    let kept = host.import(&sample, &sample.layer, "one").await.unwrap();
    assert_eq!((&kept.digest, &kept.asked_digest), (&sample.digest(), &sample.digest()));
    assert_eq!(kept.config.env["A"], "b");
    let bytes = fs::read(&kept.path).unwrap();
    assert_eq!(
        (bytes.len() as u64, &bytes[1024..1028]),
        (kept.bytes, &[0xe2, 0xe1, 0xf5, 0xe0][..])
    );
    assert_eq!(fs::metadata(&kept.path).unwrap().permissions().mode() & 0o777, 0o444);
    assert_eq!(host.store.find(&kept.digest), Some(kept.clone()));
    let link = host.dir.path().join("rootfs.erofs");
    host.store.link(&kept.digest, &link).unwrap();
    host.store.link(&kept.digest, &link).unwrap();
    assert_eq!(host.store.sizes()[0].links, 1);
    assert!(host.store.link(&Digest::sha256(b"other"), &link).is_err());
    host.store.publish(&kept.digest, "mine").unwrap();
    host.store.publish(&kept.digest, "mine").unwrap();
    assert!(host.dir.path().join("images/templates/mine/rootfs.erofs").exists());
    assert_eq!((host.count("staging"), host.count("store")), (0, 1));
    // A second host makes equal bytes.
    let other = Host::new();
    let again = other.import(&sample, &sample.layer, "two").await.unwrap();
    assert!(fs::read(&again.path).unwrap() == bytes);
}

#[tokio::test]
async fn manifest_without_its_layers_gives_no_kept_image() {
    let (host, sample) = (Host::new(), Sample::hello());
    host.import(&sample, &sample.layer, "one").await.unwrap();
    let wrong = vec![b'x'; sample.layer.len()];
    assert!(host.import(&sample, &wrong, "two").await.is_err());
    // The team that showed all layers may use the image again.
    host.import(&sample, &wrong, "one").await.unwrap();
    host.import(&sample, &sample.layer, "two").await.unwrap();
    assert_eq!((host.count("staging"), host.count("store")), (0, 1));
}

#[tokio::test]
async fn layers_that_make_no_image_leave_nothing() {
    let host = Host::new();
    let bad = Sample::of(vec![b'x'; 2048]);
    let error = host.import(&bad, &bad.layer, "one").await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert!(error.to_string().contains("layer 1"), "{error}");
    assert_eq!((host.count("staging"), host.count("store")), (0, 0));
}

#[tokio::test]
async fn image_over_its_limit_is_refused_in_e2bs_words() {
    let (host, sample) = (Host::new(), Sample::of(tar(&[("a", &[7; 1 << 20])])));
    let path = host.dir.path().join("a.tar");
    sample.write(&path, &sample.layer);
    let request = ImageRequest {
        source: ImageSource::Archive { path, name: None },
        pull: Pull::Always,
        team: "one".to_owned(),
        limits: Limits { bytes: 512 << 10, ..Limits::default() },
    };
    let error = host.store.prepare(request, |_| {}, &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    assert!(error.to_string().starts_with("the uncompressed Docker image size ("), "{error}");
}

#[tokio::test]
async fn child_that_dies_or_lies_fails_the_import_alone() {
    let sample = Sample::hello();
    let lie = json!({ "done": { "bytes": 4096, "inodes": 1, "layers": [
        { "diff_id": Digest::sha256(&sample.layer).digits(), "bytes": 1, "entries": 1 }] } });
    for script in [
        "exit 1".to_owned(),
        "kill -9 $$".to_owned(),
        "cat >/dev/null".to_owned(),
        "cat >/dev/null; echo words >&2; exit 3".to_owned(),
        format!("cat >/dev/null; echo -n '{lie}' >&2"),
    ] {
        let args = ["-c".into(), OsString::from(&script)].to_vec();
        let host = Host::with(Program { path: "/bin/sh".into(), args }, Registries::default());
        let error = host.import(&sample, &sample.layer, "one").await.unwrap_err();
        assert!(matches!(error, Error::Conversion { .. }), "{script}: {error}");
        assert_eq!((host.count("staging"), host.count("store")), (0, 0), "{script}");
    }
}

#[tokio::test]
async fn cancelled_import_ends_at_once_and_leaves_nothing() {
    let sample = Sample::hello();
    let program = Program { path: "/bin/sleep".into(), args: vec!["60".into()] };
    let host = Host::with(program, Registries::default());
    let path = host.dir.path().join("a.tar");
    sample.write(&path, &sample.layer);
    let request = ImageRequest {
        source: ImageSource::Archive { path, name: None },
        pull: Pull::Always,
        team: "one".to_owned(),
        limits: Limits::default(),
    };
    let (cancel, begun) = (CancellationToken::new(), Instant::now());
    let cancelling = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        cancel.cancel();
    };
    let (done, ()) = tokio::join!(host.store.prepare(request, |_| {}, &cancel), cancelling);
    assert!(matches!(done, Err(Error::Cancelled)));
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!((host.count("staging"), host.count("store")), (0, 0));
}

#[tokio::test]
async fn unused_image_without_links_is_removed_after_a_week() {
    let (host, sample) = (Host::new(), Sample::hello());
    let kept = host.import(&sample, &sample.layer, "one").await.unwrap();
    let folders = Folders::new(host.dir.path().join("images"));
    let week = 7 * 24 * 3600;
    assert_eq!(folders.remove_unused(now() + week - 60).unwrap(), 0);
    let link = host.dir.path().join("link");
    host.store.link(&kept.digest, &link).unwrap();
    assert_eq!(folders.remove_unused(now() + week + 60).unwrap(), 0);
    fs::remove_file(link).unwrap();
    assert_eq!(folders.remove_unused(now() + week + 60).unwrap(), 1);
    assert_eq!((host.store.find(&kept.digest), host.count("staging")), (None, 0));
}

#[test]
fn sweep_removes_what_dead_processes_left_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let folders = Folders::new(dir.path().to_owned());
    fs::create_dir_all(dir.path().join("staging/dead")).unwrap();
    let live = folders.stage().unwrap();
    live.create_image().unwrap();
    folders.sweep().unwrap();
    assert_eq!(fs::read_dir(dir.path().join("staging")).unwrap().count(), 1);
    live.sync().unwrap();
}

/// A registry with one image, which records its requests.
#[derive(Clone)]
struct Served {
    seen: Arc<Mutex<Vec<String>>>,
    host: String,
}

impl Served {
    /// Serves an image. With `password`, the registry asks for `Basic dTpw` (`u:p`).
    #[allow(clippy::disallowed_methods, reason = "the server ends with the test's runtime")]
    async fn start(sample: &Sample, password: bool) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let this = Self { seen: Arc::default(), host };
        let blobs: HashMap<String, Vec<u8>> = [&sample.layer, &sample.config, &sample.manifest]
            .into_iter()
            .map(|bytes| (Digest::sha256(bytes).to_string(), bytes.clone()))
            .collect();
        let (seen, digest) = (Arc::clone(&this.seen), sample.digest().to_string());
        let handle = move |request: axum::extract::Request| {
            lock(&seen).push(format!("{} {}", request.method(), request.uri().path()));
            let may = !password
                || request.headers().get(header::AUTHORIZATION).is_some_and(|v| v == "Basic dTpw");
            let name = request.uri().path().rsplit('/').next().unwrap_or("").to_owned();
            let name = if name == "latest" { digest.clone() } else { name };
            let body = blobs.get(&name).cloned().filter(|_| may);
            let mut response =
                axum::http::Response::builder().header("docker-content-digest", name);
            if request.uri().path().contains("/manifests/") {
                let kind = "application/vnd.oci.image.manifest.v1+json";
                response = response.header(header::CONTENT_TYPE, kind);
            }
            let response = match body {
                Some(_) if *request.method() == Method::HEAD => {
                    response.body(axum::body::Body::empty())
                }
                Some(body) => response.body(body.into()),
                None if may => response.status(404).body(axum::body::Body::empty()),
                None => response
                    .status(StatusCode::UNAUTHORIZED)
                    .header(header::WWW_AUTHENTICATE, "Basic realm=\"r\"")
                    .body(axum::body::Body::empty()),
            };
            std::future::ready(response.unwrap())
        };
        let app = axum::Router::new().fallback(handle);
        tokio::spawn(async move { axum::serve(listener, app).await });
        this
    }

    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.seen))
    }

    fn request(&self, team: &str, pull: Pull, login: Option<&str>) -> ImageRequest {
        let reference = format!("{}/app", self.host).parse().unwrap();
        let login = login.map(|password| Login::Password {
            username: "u".to_owned(),
            password: password.into(),
        });
        let source = ImageSource::Reference { reference, login };
        ImageRequest { source, pull, team: team.to_owned(), limits: Limits::default() }
    }

    fn host(&self) -> Host {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!("registries.\"{}\" = {{ http = true, private = true }}", self.host);
        fs::write(file.path(), text).unwrap();
        let registries = Registries::read(file.path()).unwrap();
        Host::with(this_program("conversion_child"), registries)
    }
}

impl Host {
    async fn prepare(&self, request: ImageRequest) -> Result<KeptImage, Error> {
        self.store.prepare(request, |_| {}, &CancellationToken::new()).await
    }
}

#[tokio::test]
async fn same_digest_again_is_one_head() {
    let sample = Sample::hello();
    let served = Served::start(&sample, false).await;
    let host = served.host();
    let first = host.prepare(served.request("one", Pull::Always, None)).await.unwrap();
    assert_eq!(first.from.as_deref(), Some(served.host.as_str()));
    served.requests();
    let begun = Instant::now();
    let again = host.prepare(served.request("two", Pull::Always, None)).await.unwrap();
    assert_eq!(again, first);
    assert!(begun.elapsed() < Duration::from_millis(300), "{:?}", begun.elapsed());
    assert_eq!(served.requests(), ["HEAD /v2/app/manifests/latest"]);
    host.prepare(served.request("three", Pull::Missing, None)).await.unwrap();
    assert_eq!(served.requests(), Vec::<String>::new());
}

#[tokio::test]
async fn two_imports_of_one_digest_read_its_layers_once() {
    let sample = Sample::hello();
    let served = Served::start(&sample, false).await;
    let host = served.host();
    let request = || served.request("one", Pull::Always, None);
    let (one, two) = tokio::join!(host.prepare(request()), host.prepare(request()));
    assert_eq!(one.unwrap(), two.unwrap());
    let layer = format!("GET /v2/app/blobs/{}", Digest::sha256(&sample.layer));
    assert_eq!(served.requests().iter().filter(|seen| **seen == layer).count(), 1);
}

#[tokio::test]
async fn private_image_is_given_only_to_who_proves_access_now() {
    let sample = Sample::hello();
    let served = Served::start(&sample, true).await;
    let host = served.host();
    host.prepare(served.request("one", Pull::Always, Some("p"))).await.unwrap();
    for pull in [Pull::Always, Pull::Missing] {
        let error = host.prepare(served.request("two", pull, None)).await.unwrap_err();
        assert!(error.to_string().starts_with("access denied to '"), "{error}");
        let wrong = host.prepare(served.request("two", pull, Some("wrong"))).await;
        assert!(wrong.unwrap_err().to_string().starts_with("access denied to '"));
    }
    served.requests();
    host.prepare(served.request("one", Pull::Missing, None)).await.unwrap();
    assert_eq!(served.requests(), Vec::<String>::new());
    host.prepare(served.request("two", Pull::Always, Some("p"))).await.unwrap();
    // Another registry names the digest of the private image, and has no layer of it.
    let poor = Sample { layer: Vec::new(), ..Sample::hello() };
    let evil = Served::start(&poor, false).await;
    let registries = evil.host();
    let store = ImageStore {
        inner: Arc::new(Inner {
            folders: host.store.inner.folders.clone(),
            registries: registries.store.inner.registries.clone(),
            client: OnceLock::new(),
            program: this_program("conversion_child"),
            room: Room::new(host.dir.path(), false),
            uses: Mutex::default(),
            turns: Mutex::default(),
        }),
    };
    let request = evil.request("three", Pull::Always, None);
    assert!(store.prepare(request, |_| {}, &CancellationToken::new()).await.is_err());
}
