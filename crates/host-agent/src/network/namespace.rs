//! A capsule's network namespace as this process holds it: the descriptor, and the agent's sockets
//! and tasks inside.
//!
//! The kernel removes a namespace when no process holds it any more, and an open socket holds it.
//! So everything that the agent opens inside goes through a [`Namespace`]. [`Namespace::close`],
//! which `network.rs` calls, ends all of it before the namespace is removed. This module does not
//! know which services run inside.

use crate::sys;
use daemon::{OwnTasks, Signal, Tasks, blocking, lock};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::task::TaskTracker;

/// Longest time that closing may take. Tasks inside wait for nothing else, so only an overloaded
/// machine reaches this limit.
const CLOSE: Duration = Duration::from_secs(2);

/// A network namespace. All clones share it.
#[derive(Clone)]
pub(crate) struct Namespace(Arc<Inner>);

struct Inner {
    /// The descriptor; `None` once the namespace is closed.
    file: Mutex<Option<Arc<File>>>,
    closed: Signal,
    /// Connections that are open inside.
    streams: Mutex<Streams>,
    /// Services that run inside.
    tasks: OwnTasks,
    /// Work on threads that are inside, and connections that are being opened.
    opening: TaskTracker,
}

#[derive(Default)]
struct Streams {
    open: HashMap<u64, Shared>,
    next: u64,
    closed: bool,
}

/// A connection that its user and the namespace share, so that either can close it.
type Shared = Arc<Mutex<Connection>>;

struct Connection {
    /// The connection; `None` once it is closed.
    stream: Option<TcpStream>,
    /// Tasks that wait to read and to write. Closing a socket wakes no task by itself.
    waiting: [Option<Waker>; 2],
}

/// A direction of a connection, as an index into `Connection::waiting`.
const READ: usize = 0;
const WRITE: usize = 1;

impl Connection {
    fn share(stream: TcpStream) -> Shared {
        Arc::new(Mutex::new(Self { stream: Some(stream), waiting: [None, None] }))
    }
}

fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

impl Namespace {
    /// Takes over an open namespace.
    pub(super) fn new(file: File) -> Self {
        Self(Arc::new(Inner {
            file: Mutex::new(Some(Arc::new(file))),
            closed: Signal::default(),
            streams: Mutex::default(),
            tasks: OwnTasks::default(),
            opening: TaskTracker::new(),
        }))
    }

    /// Returns the tasks that serve inside. Closing the namespace ends them.
    pub(crate) fn tasks(&self) -> &Tasks {
        &self.0.tasks
    }

    /// Duplicates the descriptor, for a process that is to live inside.
    ///
    /// # Errors
    /// Fails when the namespace is closed.
    pub(crate) fn try_clone(&self) -> io::Result<File> {
        self.file()?.try_clone()
    }

    fn file(&self) -> io::Result<Arc<File>> {
        lock(&self.0.file).clone().ok_or_else(reset)
    }

    /// Runs blocking work inside, on a thread of its own.
    ///
    /// # Errors
    /// Fails when the work fails, or when the namespace is closed.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let _opening = self.0.opening.token();
        let file = self.file()?;
        sys::in_namespace(&file, work)
    }

    /// Runs blocking work inside as [`Self::run`] does, without blocking the caller.
    pub(crate) async fn run_async<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let this = self.clone();
        blocking(move || this.run(work)).await
    }

    /// Connects from inside.
    ///
    /// # Errors
    /// Fails when nothing answers there, or when the namespace is closed.
    pub(crate) async fn connect(&self, to: SocketAddr) -> io::Result<NamespaceStream> {
        let _opening = self.0.opening.token();
        let connecting = async {
            let socket = self.run_async(TcpSocket::new_v4).await?;
            let stream = socket.connect(to).await?;
            stream.set_nodelay(true)?;
            Ok::<_, io::Error>(stream)
        };
        tokio::select! {
            biased;
            () = self.0.closed.wait() => Err(reset()),
            stream = connecting => self.hold(stream?),
        }
    }

    /// Ties a connection that was accepted inside to the namespace's life.
    ///
    /// # Errors
    /// Fails when the namespace is closed.
    pub(crate) fn hold(&self, stream: TcpStream) -> io::Result<NamespaceStream> {
        let shared = Connection::share(stream);
        let mut streams = lock(&self.0.streams);
        if streams.closed {
            return Err(reset());
        }
        let id = streams.next;
        streams.next += 1;
        streams.open.insert(id, Arc::clone(&shared));
        Ok(NamespaceStream { shared, of: Some((Arc::clone(&self.0), id)) })
    }

    /// Ends everything that this process has inside, and waits for the end. Connections are reset,
    /// since a guest that is gone acknowledges no goodbye. The kernel would keep the socket, and
    /// the namespace with it, for minutes.
    pub(super) async fn close(&self) {
        lock(&self.0.file).take();
        self.0.closed.trigger();
        let open = {
            let mut streams = lock(&self.0.streams);
            streams.closed = true;
            std::mem::take(&mut streams.open)
        };
        for stream in open.into_values() {
            abort(&stream);
        }
        self.0.opening.close();
        let ended = async {
            self.0.tasks.end().await;
            self.0.opening.wait().await;
        };
        if tokio::time::timeout(CLOSE, ended).await.is_err() {
            tracing::warn!(
                "connections are still open in a network namespace that is being removed"
            );
        }
    }
}

/// Closes a connection at once, without a goodbye.
fn abort(connection: &Shared) {
    let (stream, waiting) = {
        let mut connection = lock(connection);
        (connection.stream.take(), std::mem::take(&mut connection.waiting))
    };
    if let Some(stream) = stream {
        let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
    }
    waiting.into_iter().flatten().for_each(Waker::wake);
}

/// A connection inside a namespace, or on this machine if the capsule has no namespace. Closing the
/// namespace resets the connection, even while a task waits for it.
pub(crate) struct NamespaceStream {
    shared: Shared,
    of: Option<(Arc<Inner>, u64)>,
}

impl NamespaceStream {
    /// Wraps a connection that is in no capsule's namespace.
    pub(crate) fn outside(stream: TcpStream) -> Self {
        Self { shared: Connection::share(stream), of: None }
    }

    /// Closes the connection at once, without a goodbye.
    pub(crate) fn abort(&self) {
        abort(&self.shared);
    }

    fn with<T>(
        &self,
        direction: usize,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let mut connection = lock(&self.shared);
        let Some(stream) = &mut connection.stream else { return Poll::Ready(Err(reset())) };
        let polled = poll(Pin::new(stream), cx);
        let waiting = &mut connection.waiting[direction];
        if polled.is_pending() && !waiting.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waiting = Some(cx.waker().clone());
        }
        polled
    }
}

impl Drop for NamespaceStream {
    fn drop(&mut self) {
        // Dropping the connection here closes its descriptor now, while the namespace still shares
        // it.
        let _stream = lock(&self.shared).stream.take();
        if let Some((namespace, id)) = &self.of {
            lock(&namespace.streams).open.remove(id);
        }
    }
}

impl AsyncRead for NamespaceStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.with(READ, cx, |stream, cx| stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for NamespaceStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.with(WRITE, cx, |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.with(WRITE, cx, |stream, cx| stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(WRITE, cx, AsyncWrite::poll_flush)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(WRITE, cx, AsyncWrite::poll_shutdown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    fn own() -> Namespace {
        Namespace::new(File::open("/proc/self/ns/net").unwrap())
    }

    /// Counts this process's descriptors of network namespaces.
    fn namespaces() -> usize {
        let entries = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let links = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("net:")).count()
    }

    #[tokio::test]
    async fn namespace_close_ends_connections_tasks_and_descriptor() {
        let before = namespaces();
        let namespace = own();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (held, peer) = tokio::join!(
            async { namespace.hold(TcpStream::connect(address).await.unwrap()).unwrap() },
            listener.accept()
        );
        let mut peer = peer.unwrap().0;
        let (served, other) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), namespace.clone());
        let at = served.local_addr().unwrap();
        namespace.tasks().spawn(async move {
            let _served = served;
            std::future::pending::<()>().await;
        });
        namespace.close().await;
        // The other end gets the reset although no task polls the connection.
        let heard = peer.read(&mut [0]).await.unwrap_err();
        assert_eq!(heard.kind(), io::ErrorKind::ConnectionReset);
        assert!(TcpStream::connect(at).await.is_err(), "a task still listens");
        assert_eq!(namespaces(), before, "the descriptor is still open");
        let mut held = held;
        assert!(held.write_all(b"x").await.is_err());
        assert!(other.run(|| Ok(())).is_err() && other.connect(address).await.is_err());
        assert!(other.hold(TcpStream::connect(address).await.unwrap()).is_err());
    }

    #[tokio::test]
    async fn namespace_close_wakes_pending_read() {
        let namespace = own();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut held = namespace.hold(stream).unwrap();
        let (tell, told) = tokio::sync::oneshot::channel();
        let tasks = Tasks::default();
        tasks.spawn(async move {
            let _ = tell.send(held.read(&mut [0]).await);
        });
        while lock(&namespace.0.streams).open.values().all(|c| lock(c).waiting[READ].is_none()) {
            tokio::task::yield_now().await;
        }
        namespace.close().await;
        let read = tokio::time::timeout(Duration::from_secs(60), told).await.unwrap().unwrap();
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn ended_connection_is_removed_from_namespace() {
        let namespace = own();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        for _ in 0..10 {
            let stream = TcpStream::connect(address).await.unwrap();
            drop(namespace.hold(stream).unwrap());
        }
        assert!(lock(&namespace.0.streams).open.is_empty());
    }
}
