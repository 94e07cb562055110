//! The guest's facts about itself from the metadata service (MMDS version 2): its capsule and its
//! template.
//!
//! Each epoch begins with new facts, since a restored guest may be another capsule. The host tells
//! them when it begins the epoch. Without them, as from a host of an earlier version, the service
//! is asked. Every process gets the facts as variables, and files below `/run/wrenn` hold them. A
//! process that starts before they are known waits for them, for a limited time.

use crate::console::console;
use crate::jobs::Pool;
use crate::lock::lock;
use anyhow::Context;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use std::fs::File;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Address of the service, the same in every capsule.
const SERVICE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), 80);
/// Lifetime of a requested token, in seconds.
const TTL: &str = "60";
/// Time of an attempt.
const TRY: Duration = Duration::from_secs(2);
/// Time between two attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// Attempts in an epoch.
const TRIES: u32 = 600;
/// Time that a process waits for the answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Largest answer that is read, in bytes.
const ANSWER_MAX: usize = 64 * 1024;
const FOLDER: &str = "/run/wrenn";

/// Facts as the host and the service tell them.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
pub(crate) struct About {
    #[serde(rename = "instanceID")]
    capsule: String,
    #[serde(rename = "envID")]
    template: String,
}

impl About {
    fn vars(&self) -> [(&'static str, &str); 2] {
        [("WRENN_SANDBOX_ID", &self.capsule), ("WRENN_TEMPLATE_ID", &self.template)]
    }
}

/// The guest's facts about itself.
pub(crate) struct Metadata {
    /// The facts, or `None` until they are known.
    known: watch::Sender<Option<Arc<About>>>,
    /// Task that learns the facts, or writes them to files.
    learning: Mutex<Option<AbortHandle>>,
    /// Number of times that the facts were dropped.
    dropped: AtomicU64,
    /// Lock of the thread that writes files.
    writing: Mutex<()>,
}

impl Default for Metadata {
    /// Starts without facts and without a question under way.
    fn default() -> Self {
        Self {
            known: watch::Sender::new(Some(Arc::default())),
            learning: Mutex::default(),
            dropped: AtomicU64::new(0),
            writing: Mutex::default(),
        }
    }
}

impl Metadata {
    /// Drops the known facts and asks anew. A job of `looks` writes the answer to files.
    pub(crate) fn ask(self: &Arc<Self>, looks: &Pool) {
        self.begin(learn(Arc::clone(self), looks.clone()));
    }

    /// Replaces the known facts by those that the host tells. A job of `looks` first writes them to
    /// files.
    pub(crate) fn tell(self: &Arc<Self>, about: About, looks: &Pool) {
        self.begin(publish(Arc::clone(self), looks.clone(), about, Path::new(FOLDER)));
    }

    /// Drops the known facts, and runs `work` in place of earlier such work.
    fn begin(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.known.send_replace(None);
        self.dropped.fetch_add(1, Ordering::Relaxed);
        let task = tokio::spawn(work);
        if let Some(earlier) = lock(&self.learning).replace(task.abort_handle()) {
            earlier.abort();
        }
    }

    /// Writes facts to files, unless they were dropped after the given number of drops. The thread
    /// of an earlier epoch may come this far only in the next one.
    fn write_since(&self, drops: u64, folder: &Path, about: &About) -> io::Result<()> {
        let _turn = lock(&self.writing);
        match self.dropped.load(Ordering::Relaxed) == drops {
            true => write(folder, about),
            false => Ok(()),
        }
    }

    /// Returns the variables for a process that starts now.
    pub(crate) async fn vars(&self) -> Vec<(&'static str, String)> {
        let mut known = self.known.subscribe();
        let answered = tokio::time::timeout(PATIENCE, known.wait_for(Option::is_some)).await;
        let about = match answered {
            Ok(Ok(about)) => about.clone().unwrap_or_default(),
            _ => Arc::default(),
        };
        let vars = about.vars().map(|(name, value)| (name, value.to_owned()));
        let told = vars.into_iter().filter(|(_, value)| !value.is_empty());
        told.collect()
    }
}

async fn learn(metadata: Arc<Metadata>, looks: Pool) {
    for _ in 0..TRIES {
        let asked = tokio::time::timeout(TRY, fetch()).await;
        if let Ok(Ok(about)) = asked {
            return publish(metadata, looks, about, Path::new(FOLDER)).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
    metadata.known.send_replace(Some(Arc::default()));
}

/// Writes the facts to files in a folder, then gives them to processes.
async fn publish(metadata: Arc<Metadata>, looks: Pool, about: About, folder: &'static Path) {
    let (about, drops) = (Arc::new(about), metadata.dropped.load(Ordering::Relaxed));
    let (writer, told) = (Arc::clone(&metadata), Arc::clone(&about));
    let write = move || {
        if let Err(error) = writer.write_since(drops, folder, &told) {
            console(&format!("envd: cannot write below {}: {error}", folder.display()));
        }
        Ok(())
    };
    // A mount over the folder may hang, and must not hold up a program.
    let _ = looks.run(TRY, write).await;
    metadata.known.send_replace(Some(about));
}

async fn fetch() -> anyhow::Result<About> {
    let stream = TcpStream::connect(SERVICE).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let asked = async {
        let mut send = async |request: http::request::Builder| -> anyhow::Result<Bytes> {
            let request = request.header(header::HOST, SERVICE.ip().to_string());
            let answer = sender.send_request(request.body(Full::<Bytes>::default())?).await?;
            anyhow::ensure!(
                answer.status().is_success(),
                "the metadata service answered {}",
                answer.status()
            );
            let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
            Ok(body.map_err(|e| anyhow::anyhow!(e))?.to_bytes())
        };
        let token = Request::put("/latest/api/token").header("X-metadata-token-ttl-seconds", TTL);
        let token = send(token).await?;
        let all = Request::get("/").header("X-metadata-token", token.as_ref());
        let all = send(all.header(header::ACCEPT, "application/json")).await?;
        serde_json::from_slice(&all).context("cannot parse the answer of the metadata service")
    };
    tokio::select! {
        about = asked => about,
        ended = connection => Err(anyhow::anyhow!("the connection to the service ended: {ended:?}")),
    }
}

/// Writes each value to a file, which is replaced as a whole.
fn write(dir: &Path, about: &About) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    for (name, value) in about.vars() {
        let (staged, file) = (dir.join(format!(".{name}.new")), dir.join(format!(".{name}")));
        // Root in the guest may have put a named pipe there. A write would wait for its reader.
        let _ = std::fs::remove_file(&staged);
        File::create_new(&staged)?.write_all(value.as_bytes())?;
        std::fs::rename(staged, file)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_at_metadata_paths_are_replaced_without_blocking() {
        let dir = tempfile::tempdir().unwrap();
        let about = About { capsule: "cl-1".to_owned(), template: "base".to_owned() };
        for name in [".WRENN_SANDBOX_ID", ".WRENN_SANDBOX_ID.new", ".WRENN_TEMPLATE_ID.new"] {
            let path = dir.path().join(name);
            rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::RWXU).unwrap();
        }
        write(dir.path(), &about).unwrap();
        let read = std::fs::read_to_string(dir.path().join(".WRENN_SANDBOX_ID")).unwrap();
        assert_eq!(read, "cl-1");
    }

    #[tokio::test]
    async fn late_write_of_an_earlier_epoch_replaces_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let metadata = Metadata::default();
        let about = |capsule: &str| About { capsule: capsule.to_owned(), ..About::default() };
        metadata.begin(std::future::pending());
        metadata.write_since(1, dir.path(), &about("cl-2")).unwrap();
        metadata.write_since(0, dir.path(), &about("cl-1")).unwrap();
        let read = std::fs::read_to_string(dir.path().join(".WRENN_SANDBOX_ID")).unwrap();
        assert_eq!(read, "cl-2");
    }

    #[tokio::test]
    async fn facts_from_the_host_replace_a_question_under_way() {
        let metadata = Arc::new(Metadata::default());
        let looks = crate::jobs::Jobs::default().looks;
        // This question gets no answer.
        metadata.begin(std::future::pending());
        // No file can be written below a file, which holds up nobody.
        let nowhere = Path::new("/dev/null/wrenn");
        for capsule in ["cl-1", "cl-2"] {
            let about = About { capsule: capsule.to_owned(), template: String::new() };
            metadata.begin(publish(Arc::clone(&metadata), looks.clone(), about, nowhere));
            let vars = metadata.vars().await;
            assert_eq!(vars, [("WRENN_SANDBOX_ID", capsule.to_owned())]);
        }
    }

    #[tokio::test]
    async fn process_variables_wait_for_requested_metadata() {
        let metadata = Metadata::default();
        assert_eq!(metadata.vars().await, []);
        metadata.known.send_replace(None);
        let about = About { capsule: "cl-1".to_owned(), template: "base".to_owned() };
        let (vars, ()) = tokio::join!(metadata.vars(), async {
            tokio::task::yield_now().await;
            metadata.known.send_replace(Some(Arc::new(about.clone())));
        });
        let told = [("WRENN_SANDBOX_ID", "cl-1"), ("WRENN_TEMPLATE_ID", "base")];
        assert_eq!(vars, told.map(|(name, value)| (name, value.to_owned())));
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &about).unwrap();
        write(dir.path(), &About { capsule: "cl-2".to_owned(), ..about }).unwrap();
        let read = |name| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(
            (read(".WRENN_SANDBOX_ID"), read(".WRENN_TEMPLATE_ID")),
            ("cl-2".into(), "base".into())
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
