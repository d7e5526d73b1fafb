//! Idle connections to the app and to peers: one list per worker thread, newest first.
//!
//! Using the newest keeps few connections warm and lets the rest age. A sweep closes those idle for longer than
//! `app.idle_timeout`, before the app's own timeout does.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use outrigger_rules::target::Target;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::upstream::connect_error::ConnectError;

/// A connection to the app, with its target.
#[derive(Debug)]
pub struct AppStream {
    io: Io,
    target: Target,
}

#[derive(Debug)]
enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AppStream {
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
            Ok(io) => Ok(Self { io, target: target.clone() }),
            Err(e) => Err(ConnectError::new(e, target)),
        }
    }

    /// Opens a connection to a peer, which fails when the peer vanishes without closing it.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect_to_peer(target: &Target) -> Result<Self, ConnectError> {
        let stream = Self::connect(target).await?;
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

    /// Whether the connection's end proves that the app has read nothing of a request, of which `written` bytes were written, in
    /// one piece. `error` came before any byte of a response.
    ///
    /// A Unix socket refuses a write when the other end has closed, and reports a reset when the other end closed with unread
    /// bytes; servers read at least [`ONE_PIECE_BYTES`] at once. TCP proves neither: an aborted connection (`SO_LINGER` 0) looks
    /// the same.
    pub fn proves_unread(&self, error: &io::Error, written: usize) -> bool {
        matches!(self.io, Io::Unix(_))
            && match error.kind() {
                io::ErrorKind::BrokenPipe => written == 0,
                io::ErrorKind::ConnectionReset => written <= ONE_PIECE_BYTES,
                _ => false,
            }
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
        Self { io: Io::Unix(stream), target: Target::Unix(std::path::Path::new("pair").into()) }
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
        match &mut self.get_mut().io {
            Io::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Io::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Io::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
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

/// The newest usable connection to a target that `is_wanted`.
pub fn take(is_wanted: impl Fn(&Target) -> bool) -> Option<AppStream> {
    KEPT.with_borrow_mut(|kept| {
        // Nearly always the newest: few connections lead to peers or, until the sweep, to an old address of the app.
        while let Some(at) = kept.iter().rposition(|kept| is_wanted(&kept.stream.target)) {
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
        kept.retain(|kept| kept.since.elapsed() < idle_timeout && is_wanted(&kept.stream.target));
    });
}
