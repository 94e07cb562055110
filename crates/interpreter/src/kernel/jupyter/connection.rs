//! Files and sockets of a kernel: where they are, and how they are opened.

use super::{Facts, InterruptMode};
use crate::kernel::message::{Incoming, Signer};
use crate::kernel::zmtp::{self, Address, Kind, Receiver, Sender};
use crate::kernel::{Exit, Status};
use crate::process::User;
use serde_json::json;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Time from the start of a process to its first answer.
const START_TIME: Duration = Duration::from_secs(60);
/// Time between two attempts to connect.
const CONNECT_PAUSE: Duration = Duration::from_millis(15);
/// Time after which an unanswered question is asked again, which doubles up to a limit. A publisher
/// drops what it publishes before our subscription has arrived.
const ASK_AGAIN: Duration = Duration::from_millis(200);
const ASK_AGAIN_MAX: Duration = Duration::from_secs(2);
/// Longest path of a socket, in bytes (`sun_path`).
const SOCKET_MAX: usize = 107;
/// Name of a kernel's sockets in its folder.
const SOCKETS: &str = "s";
/// Name of the connection file in a kernel's folder.
const CONNECTION: &str = "connection.json";

/// Transport of a kernel's sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Transport {
    Ipc,
    Tcp,
}

/// A connection file's content.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Connection {
    transport: Transport,
    /// Address or, with `ipc`, the prefix of the sockets' paths.
    ip: String,
    shell_port: u16,
    iopub_port: u16,
    stdin_port: u16,
    control_port: u16,
    hb_port: u16,
    signature_scheme: String,
    /// Key of the signatures. Sockets in a private folder need none.
    pub key: String,
    kernel_name: String,
}

/// The private folder of one kernel.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Files {
    folder: PathBuf,
}

/// Removes a kernel's files at its drop, unless the kernel has started.
pub(crate) struct Unused<'a>(Option<&'a Files>);

impl Unused<'_> {
    /// Leaves the files to the kernel.
    pub(crate) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Unused<'_> {
    fn drop(&mut self) {
        if let Some(files) = self.0 {
            files.remove();
        }
    }
}

/// Open sockets of a kernel.
pub(super) struct Sockets {
    pub shell: (Receiver, Sender),
    /// Its sending half stays open, since the peer takes the end of one half for the end of both.
    pub iopub: (Receiver, Sender),
    pub control: Option<(Receiver, Sender)>,
    pub signer: Signer,
}

impl Files {
    /// Makes the folder of a kernel of a context, still root's.
    ///
    /// # Errors
    /// Returns an error if the folder cannot be made, or if a socket's path would be too long.
    pub(crate) fn make(run: &Path, context: &str) -> io::Result<Self> {
        let number = uuid::Uuid::new_v4().simple().to_string();
        let folder = run.join(format!("{context}.{}", number.get(..8).unwrap_or_default()));
        if folder.as_os_str().len() + SOCKETS.len() + "/-5".len() > SOCKET_MAX {
            let why = format!("folder '{}' is too long for sockets", folder.display());
            return Err(io::Error::new(ErrorKind::InvalidInput, why));
        }
        DirBuilder::new().recursive(true).mode(0o711).create(run)?;
        DirBuilder::new().mode(0o700).create(&folder)?;
        Ok(Self { folder })
    }

    /// Returns a name that no other kernel has.
    pub(crate) fn id(&self) -> String {
        self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Returns the path of the connection file.
    pub(crate) fn connection_file(&self) -> PathBuf {
        self.folder.join(CONNECTION)
    }

    /// Makes a connection, writes its file, and gives the folder to the user.
    pub(crate) fn connect(&self, transport: Transport, user: &User) -> io::Result<Connection> {
        let connection = match transport {
            Transport::Ipc => Connection::ipc(&self.folder.join(SOCKETS)),
            Transport::Tcp => Connection::tcp()?,
        };
        let path = self.connection_file();
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(&serde_json::to_vec(&connection)?)?;
        chown(&path, Some(user.uid), Some(user.gid))?;
        chown(&self.folder, Some(user.uid), Some(user.gid))?;
        Ok(connection)
    }

    /// Returns a guard that removes the files of a start that fails or is given up.
    pub(crate) fn unused(&self) -> Unused<'_> {
        Unused(Some(self))
    }

    /// Removes the files that a kernel has, and the folder if nothing else is in it.
    pub(crate) fn remove(&self) {
        let _ = fs::remove_file(self.connection_file());
        for port in 1..=5 {
            let _ = fs::remove_file(self.folder.join(format!("{SOCKETS}-{port}")));
        }
        let _ = fs::remove_dir(&self.folder);
    }
}

impl Connection {
    /// Makes a connection by Unix sockets, whose paths begin with `prefix`.
    fn ipc(prefix: &Path) -> Self {
        Self::new(Transport::Ipc, prefix.display().to_string(), [1, 2, 3, 4, 5], String::new())
    }

    /// Makes a connection by free ports of the loopback interface, with a random key.
    fn tcp() -> io::Result<Self> {
        let listen = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let listeners: Vec<_> = (0..5).map(listen).collect::<io::Result<_>>()?;
        let mut ports = [0; 5];
        for (port, listener) in ports.iter_mut().zip(&listeners) {
            *port = listener.local_addr()?.port();
        }
        let key = uuid::Uuid::new_v4().to_string();
        Ok(Self::new(Transport::Tcp, Ipv4Addr::LOCALHOST.to_string(), ports, key))
    }

    fn new(transport: Transport, ip: String, ports: [u16; 5], key: String) -> Self {
        let [shell_port, iopub_port, stdin_port, control_port, hb_port] = ports;
        Self {
            transport,
            ip,
            shell_port,
            iopub_port,
            stdin_port,
            control_port,
            hb_port,
            signature_scheme: "hmac-sha256".to_owned(),
            key,
            kernel_name: String::new(),
        }
    }

    fn address(&self, port: u16) -> Address {
        match self.transport {
            Transport::Ipc => Address::Unix(format!("{}-{port}", self.ip).into()),
            Transport::Tcp => Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        }
    }
}

/// Connects to the sockets of a kernel that is starting, and waits until it answers.
///
/// # Errors
/// Returns an error if the process ends first, or if it does not answer within a minute.
pub(super) async fn open(facts: &Facts, end: impl Future<Output = Exit>) -> io::Result<Sockets> {
    let deadline = Instant::now() + START_TIME;
    let late = |_| io::Error::new(ErrorKind::TimedOut, "it did not answer within 60 seconds");
    let opened = async {
        let mut sockets = connect(facts, true).await?;
        await_answer(&mut sockets).await?;
        io::Result::Ok(sockets)
    };
    tokio::select! {
        opened = timeout_at(deadline, opened) => opened.map_err(late)?,
        exit = end => {
            let why = format!("its process ended ({})", describe(exit));
            Err(io::Error::new(ErrorKind::UnexpectedEof, why))
        }
    }
}

/// Connects to the sockets of a kernel that runs already.
pub(super) async fn reopen(facts: &Facts) -> io::Result<Sockets> {
    connect(facts, false).await
}

fn describe(exit: Exit) -> String {
    match exit.status {
        Status::Code(code) => format!("exit status {code}"),
        Status::Signal(signal) => format!("signal {signal}"),
        Status::Unknown => "status unknown".to_owned(),
    }
}

/// Connects to every socket. With `patient`, waits until they exist.
async fn connect(facts: &Facts, patient: bool) -> io::Result<Sockets> {
    let connection = &facts.connection;
    let signer = Signer::new(&connection.key);
    let dealer = Kind::Dealer { identity: signer.session() };
    let address = |port| connection.address(port);
    let shell = connect_to(&address(connection.shell_port), dealer, patient).await?;
    let iopub = connect_to(&address(connection.iopub_port), Kind::Subscriber, patient).await?;
    let control = match facts.interrupt {
        InterruptMode::Signal => None,
        InterruptMode::Message => {
            Some(connect_to(&address(connection.control_port), dealer, patient).await?)
        }
    };
    Ok(Sockets { shell, iopub, control, signer })
}

async fn connect_to(
    address: &Address,
    kind: Kind<'_>,
    patient: bool,
) -> io::Result<(Receiver, Sender)> {
    loop {
        match zmtp::connect(address, kind).await {
            Err(error) if patient && is_early(&error) => sleep(CONNECT_PAUSE).await,
            other => return other,
        }
    }
}

/// Reports whether an error may be that of a kernel that does not listen yet.
fn is_early(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::TimedOut)
}

/// Asks for the kernel's facts until it has answered, and its publisher has been heard.
async fn await_answer(sockets: &mut Sockets) -> io::Result<()> {
    let (mut answered, mut heard) = (false, false);
    let id = format!("{}:0:i", sockets.signer.session());
    let mut patience = ASK_AGAIN;
    loop {
        let request = sockets.signer.request(&id, "kernel_info_request", &json!({}));
        sockets.shell.1.send(&request).await?;
        let hear = async {
            while !(answered && heard) {
                tokio::select! {
                    frames = sockets.shell.0.receive() => {
                        let reply = message(&sockets.signer, frames?)?;
                        answered |= reply.is_some_and(|reply| reply.kind == "kernel_info_reply");
                    }
                    frames = sockets.iopub.0.receive() => {
                        heard |= message(&sockets.signer, frames?)?.is_some();
                    }
                }
            }
            io::Result::Ok(())
        };
        if let Ok(heard_all) = timeout(patience, hear).await {
            return heard_all;
        }
        patience = ASK_AGAIN_MAX.min(patience * 2);
    }
}

/// Reads a message. The end of a stream is an error.
fn message(signer: &Signer, frames: Option<Vec<bytes::Bytes>>) -> io::Result<Option<Incoming>> {
    let closed = || io::Error::new(ErrorKind::UnexpectedEof, "it closed its sockets");
    Ok(signer.read(&frames.ok_or_else(closed)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_holds_a_connection_file_and_is_removed() {
        let run = tempfile::tempdir().unwrap();
        let files = Files::make(&run.path().join("run"), "context").unwrap();
        let other = Files::make(&run.path().join("run"), "context").unwrap();
        assert_ne!(files.id(), other.id());
        let made = files.connect(Transport::Ipc, &User::current()).unwrap();
        let text = fs::read_to_string(files.connection_file()).unwrap();
        assert_eq!(serde_json::from_str::<Connection>(&text).unwrap(), made);
        assert!(made.key.is_empty() && text.contains("\"transport\":\"ipc\""), "{text}");
        let path = files.folder.join("s-1");
        assert_eq!(made.address(made.shell_port), Address::Unix(path.clone()));
        fs::write(path, "").unwrap();
        files.remove();
        assert!(!files.folder.exists() && other.folder.exists());
    }

    #[test]
    fn tcp_connection_has_a_key_and_five_ports() {
        let made = Connection::tcp().unwrap();
        assert!(made.key.len() >= 32);
        let mut ports =
            [made.shell_port, made.iopub_port, made.stdin_port, made.control_port, made.hb_port];
        ports.sort_unstable();
        assert!(ports.windows(2).all(|pair| pair[0] < pair[1]), "{ports:?}");
    }

    #[test]
    fn path_that_is_too_long_for_a_socket_is_refused() {
        let error = Files::make(Path::new(&format!("/tmp/{}", "x".repeat(90))), "c").unwrap_err();
        assert!(error.to_string().contains("too long for sockets"), "{error}");
    }
}
