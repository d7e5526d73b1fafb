//! The upstream connection of one attempt on the general path, with time limits that change as the exchange proceeds.
//!
//! Pingora's own read timeout is fixed when the connection opens, restarts with each read, and runs while the client still
//! sends its body. An app that sends its head byte by byte would never trigger it, a slow client would trigger it for the app,
//! and it cannot be extended for an event stream. So Pingora's timeout is off, and this module limits the time of reads.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use outrigger_rules::target::Target;
use outrigger_wire::response_scan::{ResponseFault, ResponseScan};
use pingora::connectors::l4::Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora::{Error, ErrorType, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::engine::connect;
use crate::engine::rejection::Rejection;
use crate::engine::state::State;
use crate::transport::app_pool::AppStream;
use crate::transport::timer::Timer;
use crate::transport::upstream::ConnectError;

/// The side whose time was over when the connection was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The app: the response's head was late, or its body paused for too long.
    App,
    /// The client: the request body paused for too long.
    Client,
}

/// The time limit while Outrigger reads from the app.
#[derive(Clone, Copy, Debug, Default)]
enum Limit {
    /// No limit.
    #[default]
    None,
    /// The client sends the body: a deadline for its next bytes, and the pause allowed after a write that the app delayed.
    Client(Instant, Duration),
    /// The deadline for the complete head of the response.
    Head(Instant),
    /// The time within which more of the response must arrive.
    More(Duration),
}

#[derive(Debug, Default)]
struct Clock {
    limit: Limit,
    /// When the pending read from the app began.
    reading_since: Option<Instant>,
    /// A write is pending: the app does not read.
    is_writing: bool,
    cut: Option<Cut>,
    /// Why the header section of the response is rejected.
    fault: Option<ResponseFault>,
    /// Why Outrigger itself opened no connection.
    refused: Option<Rejection>,
    /// Woken when the limit changes.
    reader: Option<Waker>,
}

/// Shared by the hooks, which set the limits, and the stream, which applies them.
#[derive(Clone, Debug, Default)]
pub struct Watch(Arc<Mutex<Clock>>);

impl Watch {
    fn lock(&self) -> MutexGuard<'_, Clock> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, limit: Limit) {
        let mut clock = self.lock();
        clock.limit = limit;
        if let Some(reader) = clock.reader.take() {
            drop(clock);
            reader.wake();
        }
    }

    /// Whether Outrigger now waits for bytes from the app, and not for the client.
    pub fn waits_for_app(&self) -> bool {
        self.lock().reading_since.is_some()
    }

    /// Whether a write to the app is blocked now.
    pub fn app_takes_nothing(&self) -> bool {
        self.lock().is_writing
    }
}

/// The connection of one attempt, on the side of the hooks.
#[derive(Debug)]
pub struct Line {
    watch: Watch,
}

impl Line {
    /// Creates the line, and the opener that Pingora calls to connect to the app or the peer.
    pub fn new(state: &Arc<State>, peer: Option<Target>, connect_timeout: Duration) -> (Self, Arc<Opener>) {
        let watch = Watch::default();
        let opener = Opener { state: Arc::clone(state), peer, connect_timeout, watch: watch.clone() };
        (Self { watch }, Arc::new(opener))
    }

    /// Why Outrigger itself opened no connection, if so.
    pub fn refused(&self) -> Option<Rejection> {
        self.watch.lock().refused
    }

    /// A handle for tasks that observe the connection.
    pub fn watch(&self) -> Watch {
        self.watch.clone()
    }

    /// Cuts the connection if the response's head is not complete at `deadline`.
    pub fn head_until(&self, deadline: Instant) {
        self.watch.set(Limit::Head(deadline));
    }

    /// Cuts the connection if the client sends nothing of its body for `pause` from now on. Time in which the app does not
    /// read is not counted.
    pub fn body_within(&self, pause: Duration) {
        self.watch.set(Limit::Client(Instant::now() + pause, pause));
    }

    /// Cuts the connection if the app sends nothing for `pause` while Outrigger reads from it and writes nothing.
    pub fn more_within(&self, pause: Duration) {
        self.watch.set(Limit::More(pause));
    }

    /// Removes the time limit.
    pub fn unlimited(&self) {
        self.watch.set(Limit::None);
    }

    /// Why the header section of the response was rejected, if it was.
    pub fn fault(&self) -> Option<ResponseFault> {
        self.watch.lock().fault
    }

    /// Which side's time was over, if the connection was cut.
    pub fn cut(&self) -> Option<Cut> {
        self.watch.lock().cut
    }
}

/// Opens the connection.
#[derive(Debug)]
pub struct Opener {
    state: Arc<State>,
    /// `None`: the app, at its address when the connection opens.
    peer: Option<Target>,
    connect_timeout: Duration,
    watch: Watch,
}

impl Opener {
    async fn open(&self) -> std::result::Result<AppStream, ConnectError> {
        let open = || async {
            match &self.peer {
                Some(target) => AppStream::connect_to_peer(target).await,
                None => connect::connect_once(&self.state).await,
            }
        };
        connect::with_room(&self.state, open).await
    }
}

#[async_trait]
impl Connect for Opener {
    async fn connect(&self, _: &SocketAddr) -> Result<Stream> {
        match tokio::time::timeout(self.connect_timeout, self.open()).await {
            Ok(Ok(stream)) => {
                let limited = Limited::new(stream, self.watch.clone());
                Ok(VirtualSocketStream::new(Box::new(limited)).into())
            }
            Ok(Err(e)) => {
                let (kind, refused) = match &e {
                    ConnectError::Busy => (ErrorType::ConnectTimedout, None),
                    ConnectError::Refused(_) | ConnectError::Unknown(_) => (ErrorType::ConnectRefused, None),
                    ConnectError::Loop { .. } => (ErrorType::ConnectError, Some(Rejection::Loop)),
                    ConnectError::Exhausted { .. } => (ErrorType::ConnectError, Some(Rejection::OutOfResources)),
                };
                self.watch.lock().refused = refused;
                Err(Error::because(kind, "no connection", e).into_up())
            }
            Err(_) => Err(Error::explain(ErrorType::ConnectTimedout, "connect_timeout is over").into_up()),
        }
    }
}

/// The connection, on Pingora's side.
#[derive(Debug)]
struct Limited {
    stream: AppStream,
    watch: Watch,
    timer: Timer,
    scan: ResponseScan,
}

impl Limited {
    fn new(stream: AppStream, watch: Watch) -> Self {
        Self { stream, watch, timer: Timer::new(), scan: ResponseScan::default() }
    }
}

fn deadline_passed() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "its deadline passed")
}

impl AsyncRead for Limited {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        let scanned = this.scan.feed(buf.filled().get(before..).unwrap_or_default());
        let mut clock = this.watch.lock();
        if clock.cut.is_some() {
            return Poll::Ready(Err(deadline_passed()));
        }
        if read.is_ready() {
            clock.reading_since = None;
            // Bytes of a slow head do not extend the deadline.
            if matches!(clock.limit, Limit::Head(deadline) if Instant::now() >= deadline) {
                clock.cut = Some(Cut::App);
                return Poll::Ready(Err(deadline_passed()));
            }
            if let Err(fault) = scanned {
                clock.fault = Some(fault);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "the response is invalid")));
            }
            return read;
        }
        if clock.is_writing {
            // Pingora reads during a pending write only after it gave up the write: the app read nothing within the write
            // timeout.
            clock.cut = Some(Cut::App);
            return Poll::Ready(Err(deadline_passed()));
        }
        let since = *clock.reading_since.get_or_insert_with(Instant::now);
        if !clock.reader.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            clock.reader = Some(cx.waker().clone());
        }
        let (deadline, whose) = match clock.limit {
            Limit::None => return Poll::Pending,
            Limit::Client(deadline, _) => (deadline, Cut::Client),
            Limit::Head(deadline) => (deadline, Cut::App),
            Limit::More(pause) => (since + pause, Cut::App),
        };
        drop(clock);
        ready!(this.timer.poll(cx, deadline.into()));
        this.watch.lock().cut = Some(whose);
        Poll::Ready(Err(deadline_passed()))
    }
}

impl AsyncWrite for Limited {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        let mut clock = this.watch.lock();
        let was_blocked = std::mem::replace(&mut clock.is_writing, written.is_pending());
        if written.is_pending() {
            return written;
        }
        match clock.limit {
            // Until now the body waited for the app.
            Limit::Client(_, pause) if was_blocked => clock.limit = Limit::Client(Instant::now() + pause, pause),
            // Bytes from the client count as activity in a tunnel.
            Limit::More(_) if clock.reading_since.is_some() => clock.reading_since = Some(Instant::now()),
            _ => {}
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl VirtualSocket for Limited {
    /// Does nothing: [`AppStream::connect`] sets the options.
    fn set_socket_option(&self, _: VirtualSockOpt) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    fn limited() -> (Limited, Line, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        let watch = Watch::default();
        let line = Line { watch: watch.clone() };
        (Limited::new(AppStream::of_unix(near), watch), line, far)
    }

    const SHORT: Duration = Duration::from_millis(30);

    #[tokio::test]
    async fn a_slow_head_is_cut_off_at_its_deadline() {
        let (mut near, line, mut far) = limited();
        line.head_until(Instant::now() + SHORT);
        let drip = tokio::spawn(async move {
            while far.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        let mut byte = [0];
        let end = loop {
            if let Err(e) = near.read_exact(&mut byte).await {
                break e;
            }
        };
        assert_eq!((end.kind(), line.cut()), (io::ErrorKind::TimedOut, Some(Cut::App)));
        drop(near);
        drip.await.unwrap();
    }

    #[tokio::test]
    async fn a_limit_that_is_set_while_a_read_is_pending_counts() {
        let (mut near, line, _far) = limited();
        let read = tokio::spawn(async move { near.read_u8().await });
        while !line.watch().waits_for_app() {
            tokio::task::yield_now().await;
        }
        line.body_within(SHORT);
        assert!(read.await.unwrap().is_err());
        assert_eq!(line.cut(), Some(Cut::Client));
    }

    #[tokio::test]
    async fn the_allowed_pause_restarts_with_each_read() {
        let (mut near, line, mut far) = limited();
        line.more_within(SHORT * 10);
        for _ in 0..3 {
            far.write_all(b"x").await.unwrap();
            near.read_u8().await.unwrap();
            // No read is pending, as when the client reads nothing: the app's time does not run.
            tokio::time::sleep(SHORT).await;
        }
        assert_eq!(line.cut(), None);
        assert!(near.read_u8().await.is_err());
        assert_eq!(line.cut(), Some(Cut::App));
    }

    #[tokio::test]
    async fn a_tunnel_in_which_the_client_talks_is_not_silent() {
        let (near, line, _far) = limited();
        line.more_within(SHORT * 30);
        let (mut reader, mut writer) = tokio::io::split(near);
        let read = tokio::spawn(async move { reader.read_u8().await });
        for _ in 0..12 {
            writer.write_all(b"x").await.unwrap();
            tokio::time::sleep(SHORT * 3).await;
        }
        assert!(!read.is_finished());
        assert!(read.await.unwrap().is_err());
        assert_eq!(line.cut(), Some(Cut::App));
    }

    #[tokio::test]
    async fn an_app_that_reads_nothing_does_not_count_as_a_slow_client() {
        let (mut near, line, mut far) = limited();
        line.body_within(SHORT);
        let piece = vec![0; 4 << 20];
        let write = tokio::spawn(async move {
            near.write_all(&piece).await.unwrap();
            near
        });
        while !line.watch().app_takes_nothing() {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(SHORT * 2).await;
        let mut sink = vec![0; 4 << 20];
        far.read_exact(&mut sink).await.unwrap();
        let mut near = write.await.unwrap();
        far.write_all(b"x").await.unwrap();
        assert_eq!(near.read_u8().await.unwrap(), b'x');
        assert_eq!(line.cut(), None);
    }
}
