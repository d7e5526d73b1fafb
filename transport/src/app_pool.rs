//! Idle connections to the app and to peers: one list per worker thread, newest first.
//!
//! Using the newest keeps few connections warm and lets the rest age. A sweep closes those idle for longer than
//! `app.idle_timeout`, before the app's own timeout does.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use outrigger_identity::clock;
use outrigger_rules::target::Target;
use pingora_core::protocols::l4::ext::get_tcp_info;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::upstream::connect_error::ConnectError;
use crate::witness::{self, Cookie, Watch};

/// A connection to the app, with its target.
#[derive(Debug)]
pub struct AppStream {
    io: Io,
    target: Target,
    peer: Peer,
    /// Bytes of all earlier requests.
    before: u64,
    /// Bytes of this request, and in how many pieces they were written.
    written: usize,
    pieces: u32,
    /// The last error of a write.
    write_error: Option<io::ErrorKind>,
}

#[derive(Debug)]
enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The knowledge of the app's socket of a TCP connection.
#[derive(Debug)]
enum Peer {
    /// It is on another host, or not asked for.
    Remote,
    /// It is on this host.
    Local,
    /// The kernel will tell of its end.
    Watched(Watch),
}

impl AppStream {
    fn new(io: Io, target: Target, peer: Peer) -> Self {
        Self { io, target, peer, before: 0, written: 0, pieces: 0, write_error: None }
    }

    /// Opens a new connection.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(target: &Target) -> Result<Self, ConnectError> {
        let connected = async {
            match target {
                Target::Tcp(address) => {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    Ok(Io::Tcp(stream))
                }
                Target::Unix(path) => UnixStream::connect(path).await.map(Io::Unix),
            }
        };
        match connected.await {
            Ok(io) => {
                let peer = if is_on_this_host(&io, target) { Peer::Local } else { Peer::Remote };
                Ok(Self::new(io, target.clone(), peer))
            }
            Err(e) => Err(ConnectError::new(e, target)),
        }
    }

    /// Opens a connection to a peer, which fails when the peer vanishes without closing it.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect_to_peer(target: &Target) -> Result<Self, ConnectError> {
        let mut stream = Self::connect(target).await?;
        // A request to a peer that may not be repeated gets a connection of its own.
        stream.peer = Peer::Remote;
        if let Io::Tcp(tcp) = &stream.io {
            end_with_peer(tcp).map_err(|e| ConnectError::new(e, target))?;
        }
        Ok(stream)
    }

    /// The local address; `None` for a Unix socket.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match &self.io {
            Io::Tcp(stream) => stream.local_addr().ok(),
            Io::Unix(_) => None,
        }
    }

    /// The target of the connection.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Makes closing the connection reset it. A Unix socket has no reset.
    pub fn reset(&self) {
        if let Io::Tcp(stream) = &self.io {
            // Without it, the connection ends in order.
            let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// One end of a socket pair, for tests.
    pub fn of_unix(stream: UnixStream) -> Self {
        Self::new(Io::Unix(stream), Target::Unix(std::path::Path::new("pair").into()), Peer::Remote)
    }

    /// Whether the app has neither closed the connection nor sent anything. Makes a system call only if the runtime was
    /// notified of an event.
    fn is_quiet(&self) -> bool {
        let mut byte = [0];
        let read = match &self.io {
            Io::Tcp(stream) => stream.try_read(&mut byte),
            Io::Unix(stream) => stream.try_read(&mut byte),
        };
        matches!(read, Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }
}

/// The end of a connection, and what it proves.
impl AppStream {
    /// A request begins.
    pub fn begin(&mut self) {
        self.before += self.written as u64;
        (self.written, self.pieces, self.write_error) = (0, 0, None);
    }

    /// Whether the end of this connection can prove whether the app has read a request of this size; see [`Self::is_unread`].
    pub const fn may_prove(&self, head: usize, body: usize) -> bool {
        match self.io {
            Io::Unix(_) => body == 0 || head + body <= ONE_PIECE_BYTES,
            Io::Tcp(_) => !matches!(self.peer, Peer::Remote),
        }
    }

    /// Whether it will prove it. Asks the kernel, once for each TCP connection.
    pub fn will_prove(&mut self) -> bool {
        if matches!(self.peer, Peer::Local) && self.find().is_none() {
            self.peer = Peer::Remote;
        }
        matches!(self.io, Io::Unix(_)) || !matches!(self.peer, Peer::Remote)
    }

    /// Waits until the app has accepted the connection, if the kernel tells, but not for long. The app cannot read a request
    /// before; and a connection that it never accepts ends with the request unsent. False: its socket is gone.
    ///
    /// An app that accepts only when it is done with another request would lose the time between its accept and the request's
    /// arrival, so after a while the request goes into its queue.
    pub async fn accepted(&mut self) -> bool {
        const PATIENCE: Duration = Duration::from_secs(1);
        /// After so many waits in a row that were in vain, requests do not wait for a while.
        const MOST_IN_VAIN: u32 = 3;
        const LATE: Duration = Duration::from_secs(1);
        thread_local! {
            static LATE_UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };
            static IN_VAIN: Cell<u32> = const { Cell::new(0) };
        }
        /// Most apps accept within this many turns.
        const AT_ONCE: u32 = 16;
        let began = clock::now();
        let is_late = LATE_UNTIL.get().is_some_and(|until| began < until);
        let mut turns = 0;
        loop {
            match self.find() {
                Some(found) if found.is_queued && !is_late && clock::since(began) < PATIENCE => {}
                Some(found) => {
                    if !is_late {
                        IN_VAIN.set(if found.is_queued { IN_VAIN.get() + 1 } else { 0 });
                        if IN_VAIN.get() >= MOST_IN_VAIN {
                            LATE_UNTIL.set(Some(clock::now() + LATE));
                        }
                    }
                    self.watch(found.cookie);
                    return true;
                }
                None if turns > 0 => return false,
                // It is not in this network namespace, or its reset is still on the way.
                None if matches!(self.peer, Peer::Local) => {
                    tokio::time::sleep(LOOK).await;
                    self.peer = Peer::Remote;
                    return true;
                }
                None => return true,
            }
            turns += 1;
            if turns <= AT_ONCE {
                tokio::task::yield_now().await;
            } else {
                // The later the app accepts, the less a look more or less delays it.
                tokio::time::sleep((clock::since(began) / 32).max(LOOK)).await;
            }
        }
    }

    /// Whether the connection proves that the app has read nothing of this request; `read` is what the last read returned, before
    /// any byte of a response. Waits until the kernel tells: the caller limits how long.
    ///
    /// - Nothing was written: proof.
    /// - A Unix socket is reset if the other end closes with unread bytes. If the request has no body, its head was incomplete;
    ///   with a body, servers read at least [`ONE_PIECE_BYTES`] at once.
    /// - A TCP connection that ends with a FIN acknowledges all that the app's kernel had received before.
    /// - After a reset, the kernel tells how much of it the app had read. Some apps send a FIN before.
    pub async fn is_unread(&self, read: Result<(), io::ErrorKind>, has_body: bool) -> bool {
        if self.written == 0 {
            return true;
        }
        match (&self.io, self.write_error.map_or(read, Err)) {
            (Io::Unix(stream), _) => {
                let is_one_piece = self.pieces == 1 && self.written <= ONE_PIECE_BYTES;
                let is_reset = match read {
                    Ok(()) => ends_with_reset(stream).await,
                    Err(error) => error == io::ErrorKind::ConnectionReset,
                };
                is_reset && (is_one_piece || !has_body)
            }
            // A write fails with `EPIPE` after a FIN, and with `ECONNRESET` after a reset alone.
            (Io::Tcp(stream), Ok(()) | Err(io::ErrorKind::BrokenPipe)) => {
                // The kernel counts the SYN as well.
                get_tcp_info(stream.as_raw_fd()).is_ok_and(|info| info.tcpi_bytes_acked <= self.before + 1)
                    || self.is_closed_unread(stream).await
            }
            (Io::Tcp(_), Err(io::ErrorKind::ConnectionReset)) => self.is_read_before().await,
            (Io::Tcp(_), Err(_)) => false,
        }
    }

    /// The app's socket is reset: whether the app had read no more than the requests before.
    async fn is_read_before(&self) -> bool {
        match &self.peer {
            Peer::Watched(socket) => {
                let read = tokio::time::timeout(DESTROYED, socket.bytes_read()).await;
                read.is_ok_and(|read| read.is_some_and(|read| read <= self.before))
            }
            Peer::Local | Peer::Remote => false,
        }
    }

    /// The app has closed its sending side. Waits until it closes the connection; returns whether the request was unread then.
    async fn is_closed_unread(&self, stream: &TcpStream) -> bool {
        let (Target::Tcp(app), Peer::Watched(socket)) = (&self.target, &self.peer) else { return false };
        let until = clock::now() + HALF_CLOSED;
        let received = || get_tcp_info(stream.as_raw_fd()).map_or(0, |info| info.tcpi_bytes_acked.saturating_sub(1));
        let find = || witness::find(*app, stream.local_addr().ok()?).filter(|found| socket.is_of(found.cookie));
        loop {
            let received = received();
            let Some(found) = find() else { break };
            let has_read = received.saturating_sub(found.unread.into()) > self.before;
            if has_read || found.is_closed || clock::now() > until {
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
        self.is_read_before().await
    }

    fn find(&mut self) -> Option<witness::Found> {
        let (Io::Tcp(stream), Target::Tcp(app), Peer::Local) = (&self.io, &self.target, &self.peer) else {
            return None;
        };
        let found = witness::find(*app, stream.local_addr().ok()?)?;
        if !found.is_queued {
            self.watch(found.cookie);
        }
        Some(found)
    }

    fn watch(&mut self, socket: Cookie) {
        if !matches!(self.peer, Peer::Watched(_)) {
            self.peer = Peer::Watched(Watch::new(socket));
        }
    }

    fn count(&mut self, written: &Poll<io::Result<usize>>) {
        match written {
            Poll::Ready(Ok(bytes)) => {
                self.written += bytes;
                self.pieces += 1;
            }
            Poll::Ready(Err(error)) => self.write_error = Some(error.kind()),
            Poll::Pending => {}
        }
    }
}

/// The app has closed its sending side. Waits until it closes the connection; returns whether that resets it.
async fn ends_with_reset(stream: &UnixStream) -> bool {
    let until = clock::now() + HALF_CLOSED;
    loop {
        // Writing nothing fails once the other end is closed. The read waits for that close to be complete.
        let nothing = rustix::net::send(stream, &[], SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        let read = rustix::net::recv(stream, &mut [0; 1], RecvFlags::DONTWAIT);
        if read == Err(Errno::CONNRESET) {
            return true;
        }
        if nothing.is_err() || clock::now() > until {
            return false;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether the target of a connection is on this host, as far as the addresses show.
fn is_on_this_host(io: &Io, target: &Target) -> bool {
    match (io, target) {
        (Io::Tcp(stream), Target::Tcp(app)) => {
            app.ip().is_loopback() || stream.local_addr().is_ok_and(|own| own.ip() == app.ip())
        }
        _ => false,
    }
}

impl AsyncRead for AppStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Io::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for AppStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match &mut this.io {
            Io::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Io::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        this.count(&written);
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match &mut this.io {
            Io::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Io::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        };
        this.count(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A request up to this size is read by the app in one piece, or not at all.
pub const ONE_PIECE_BYTES: usize = 4 << 10;

/// How long an app may take from the end of its sending side to the end of the connection, for that to prove anything.
/// A busy host may take long between the two. Over TCP, the kernel tells earlier if the app goes on reading.
const HALF_CLOSED: Duration = Duration::from_secs(5);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(1);
/// How long the kernel may take to tell that a socket was destroyed. It does so from a work queue, which a busy host delays by
/// seconds. The request's deadline may be earlier.
const DESTROYED: Duration = Duration::from_secs(15);

/// How long a peer may leave a connection unacknowledged, at the TCP level, before it ends.
const PEER_SILENCE: Duration = Duration::from_secs(3);

/// Ends a connection whose peer vanishes without closing it: sent data and the kernel's keepalive probes must be
/// acknowledged. Without this, a request to that peer would wait until its deadline.
///
/// # Errors
/// The system's error.
pub fn end_with_peer(stream: &TcpStream) -> io::Result<()> {
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(PEER_SILENCE))?;
    let question = Duration::from_secs(1);
    socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(question).with_interval(question).with_retries(2))
}

#[derive(Debug)]
struct Kept {
    stream: AppStream,
    since: Instant,
}

thread_local! {
    /// Oldest first.
    static KEPT: RefCell<VecDeque<Kept>> = const { RefCell::new(VecDeque::new()) };
}

/// The newest usable connection that `is_wanted`.
pub fn take(is_wanted: impl Fn(&AppStream) -> bool) -> Option<AppStream> {
    KEPT.with_borrow_mut(|kept| {
        // Nearly always the newest: few connections lead to peers or, until the sweep, to an old address of the app.
        while let Some(at) = kept.iter().rposition(|kept| is_wanted(&kept.stream)) {
            if let Some(newest) = kept.remove(at).filter(|newest| newest.stream.is_quiet()) {
                return Some(newest.stream);
            }
        }
        None
    })
}

/// Keeps a connection for the next request; beyond `most`, the oldest is closed.
pub fn keep(stream: AppStream, most: usize, now: Instant) {
    KEPT.with_borrow_mut(|kept| {
        if kept.len() >= most {
            kept.pop_front();
        }
        kept.push_back(Kept { stream, since: now });
    });
}

/// Closes connections idle for longer than `idle_timeout`, and those to targets that are no longer wanted.
pub fn sweep(idle_timeout: Duration, is_wanted: impl Fn(&Target) -> bool) {
    KEPT.with_borrow_mut(|kept| {
        kept.retain(|kept| clock::since(kept.since) < idle_timeout && is_wanted(&kept.stream.target));
    });
}

#[cfg(test)]
mod tests;
