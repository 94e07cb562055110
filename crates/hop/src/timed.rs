//! A connection with limits of time that cost a request nothing: one clock reading per read or
//! write that moves bytes, one timer per connection, armed only while nothing moves.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How long an exchange may go on without a byte, either way.
pub const SILENCE: Duration = Duration::from_secs(600);
/// How long a client's connection may wait for its next request. Longer than clients keep theirs,
/// so that it is they who close.
const REST: Duration = Duration::from_secs(620);
/// How long the head of a request may take from its first byte to its last.
const HEAD: Duration = Duration::from_secs(20);

/// What goes on on a server's connection, told by whoever serves it.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Requests under way.
    busy: AtomicU32,
    /// Several requests share the connection (HTTP/2), so that bytes need not be a head.
    shared: AtomicBool,
}

impl Pace {
    /// Notes that a request has come in, until what is returned is dropped.
    pub(crate) fn request(self: &Arc<Self>, shared: bool) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        if shared {
            self.shared.store(true, Ordering::Relaxed);
        }
        Busy(Arc::clone(self))
    }

    /// Notes that the connection no longer speaks HTTP: how long it may be silent is for whoever
    /// has it now to say.
    pub(crate) fn switched(&self) {
        self.busy.fetch_add(1, Ordering::Relaxed);
    }
}

/// A request under way.
pub(crate) struct Busy(Arc<Pace>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Resting,
    Head,
    Exchange,
}

/// A connection that errs when nothing has moved on it for too long.
pub(crate) struct Timed<I> {
    io: I,
    /// None on a client's side, where a request is always under way.
    pace: Option<Arc<Pace>>,
    phase: Phase,
    since: Instant,
    /// Bytes have moved, and the clock was not read yet.
    moved: bool,
    timer: Option<Timer>,
}

/// Wakes the task when a limit may have been reached.
struct Timer {
    sleep: Pin<Box<Sleep>>,
    /// Who will be woken.
    known: Waker,
}

impl<I> Timed<I> {
    /// A connection that we dialled.
    pub(crate) fn dialled(io: I) -> Self {
        Self::new(io, None, Phase::Exchange)
    }

    /// A connection that we accepted.
    pub(crate) fn accepted(io: I, pace: Arc<Pace>) -> Self {
        // The first head is awaited as if it had begun: whoever connects has something to ask.
        Self::new(io, Some(pace), Phase::Head)
    }

    fn new(io: I, pace: Option<Arc<Pace>>, phase: Phase) -> Self {
        Self { io, pace, phase, since: Instant::now(), moved: false, timer: None }
    }

    /// The connection, with no limits.
    pub(crate) fn into_inner(self) -> I {
        self.io
    }

    fn moved(&mut self) {
        let was = self.phase;
        self.phase = self.current(true);
        // A head's time counts from its first byte.
        self.moved |= !(was == Phase::Head && self.phase == Phase::Head);
    }

    fn current(&self, moved: bool) -> Phase {
        let Some(pace) = &self.pace else { return Phase::Exchange };
        if pace.busy.load(Ordering::Relaxed) > 0 {
            return Phase::Exchange;
        }
        let begun = moved || self.phase == Phase::Head;
        if begun && !pace.shared.load(Ordering::Relaxed) { Phase::Head } else { Phase::Resting }
    }

    /// Errs when the connection has been silent for longer than its phase allows; else sees to
    /// it that the task is woken when it will have been.
    fn check(&mut self, cx: &mut Context<'_>, writing: bool) -> Poll<io::Error> {
        let phase = self.current(false);
        // While an answer is being made there is nothing to read from its client.
        if phase == Phase::Exchange && self.pace.is_some() && !writing {
            self.moved |= phase != self.phase;
            self.phase = phase;
            return Poll::Pending;
        }
        if phase != self.phase || self.moved {
            (self.phase, self.moved) = (phase, false);
            self.since = Instant::now();
        }
        let deadline = self.since
            + match phase {
                Phase::Resting => REST,
                Phase::Head => HEAD,
                Phase::Exchange => SILENCE,
            };
        let timer = self.timer.get_or_insert_with(|| Timer {
            sleep: Box::pin(tokio::time::sleep_until(deadline)),
            known: Waker::noop().clone(),
        });
        timer.poll(cx, deadline).map(|()| io::ErrorKind::TimedOut.into())
    }
}

impl Timer {
    fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let early = self.sleep.deadline() <= deadline;
        if early && !self.sleep.is_elapsed() && self.known.will_wake(cx.waker()) {
            return Poll::Pending;
        }
        self.known = cx.waker().clone();
        // Armed too early it is armed anew when it rings, which is cheaper than at each byte.
        if !early {
            self.sleep.as_mut().reset(deadline);
        }
        loop {
            std::task::ready!(self.sleep.as_mut().poll(cx));
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(deadline);
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Timed<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.io).poll_read(cx, buf) {
            Poll::Ready(read) => {
                self.moved();
                Poll::Ready(read)
            }
            Poll::Pending => self.check(cx, false).map(Err),
        }
    }
}

impl<I: AsyncWrite + Unpin> Timed<I> {
    fn written(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(written) => {
                if self.current(false) == Phase::Exchange {
                    self.moved();
                }
                Poll::Ready(written)
            }
            Poll::Pending => self.check(cx, true).map(Err),
        }
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Timed<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.written(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's task ends with its runtime")]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Reads until an error or the end; tells after how many seconds.
    async fn lasts(mut io: Timed<tokio::io::DuplexStream>) -> u64 {
        let started = Instant::now();
        let mut all = Vec::new();
        let _ = io.read_to_end(&mut all).await;
        started.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_trickles_in_has_its_time_from_the_first_byte() {
        let (mut client, server) = tokio::io::duplex(64);
        let io = Timed::accepted(server, Arc::default());
        let (took, ()) = tokio::join!(lasts(io), async {
            for _ in 0..60 {
                let _ = client.write_all(b"x").await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        assert_eq!(took, HEAD.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_dialled_connection_may_be_silent_for_ten_minutes_after_each_byte() {
        let (mut client, server) = tokio::io::duplex(64);
        let io = Timed::dialled(server);
        let (took, _client) = tokio::join!(lasts(io), async {
            tokio::time::sleep(Duration::from_secs(500)).await;
            client.write_all(b"x").await.unwrap();
            client
        });
        assert_eq!(took, 500 + SILENCE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_waits_for_its_answer_as_long_as_it_takes_and_then_may_rest() {
        let (client, server) = tokio::io::duplex(64);
        let pace: Arc<Pace> = Arc::default();
        let busy = pace.request(false);
        let io = Timed::accepted(server, Arc::clone(&pace));
        let reading = tokio::spawn(lasts(io));
        tokio::time::sleep(Duration::from_secs(5000)).await;
        assert!(!reading.is_finished());
        drop((busy, client));
        reading.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_cut_off() {
        let (_client, server) = tokio::io::duplex(8);
        let pace: Arc<Pace> = Arc::default();
        let _busy = pace.request(false);
        let mut io = Timed::accepted(server, Arc::clone(&pace));
        let started = Instant::now();
        // As a server does: it looks whether its client is still there whenever it writes.
        let error = std::future::poll_fn(|cx| {
            let mut byte = [0];
            assert!(Pin::new(&mut io).poll_read(cx, &mut ReadBuf::new(&mut byte)).is_pending());
            loop {
                match std::task::ready!(Pin::new(&mut io).poll_write(cx, &[0; 100])) {
                    Ok(_) => {}
                    Err(error) => return Poll::Ready(error),
                }
            }
        });
        assert_eq!(error.await.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed(), SILENCE);
    }
}
