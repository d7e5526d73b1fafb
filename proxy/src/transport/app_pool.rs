//! The fast lane's kept connections to the app, and to peers: one list for each worker thread, newest first.
//!
//! Newest first keeps few connections warm and lets the rest grow old; what is older than `app.idle_timeout` is closed by
//! a sweep, so that the app's own timeout is not what ends it.

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

use crate::transport::upstream::ConnectError;

/// A connection to the app, and where it leads.
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
    /// Opens a new one.
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

    /// Opens one to a peer, which ends when the peer has gone without a word.
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

    /// The address that it was opened from; `None` for a Unix socket.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match &self.io {
            Io::Tcp(stream) => stream.local_addr().ok(),
            Io::Unix(_) => None,
        }
    }

    /// Where it leads.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// One end of a pair.
    #[cfg(test)]
    pub fn of_unix(stream: UnixStream) -> Self {
        Self { io: Io::Unix(stream), target: Target::Unix(std::path::Path::new("pair").into()) }
    }

    /// Whether the app has neither closed it nor said anything on it. Asks the kernel only if the runtime was told that
    /// there is something.
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

/// How long a peer may be silent on a connection, on the level of TCP, before the connection ends.
const PEER_SILENCE: Duration = Duration::from_secs(3);

/// A host that vanishes says nothing, and without this a request that waits for it would wait to its deadline: what was sent has
/// to be acknowledged, and so do the kernel's own questions meanwhile.
///
/// # Errors
/// The system's.
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

/// The newest connection that is still usable and leads where `is_wanted`.
pub fn take(is_wanted: impl Fn(&Target) -> bool) -> Option<AppStream> {
    KEPT.with_borrow_mut(|kept| {
        // Nearly always the newest: few lead to peers, and to an app whose address has changed until they are swept away.
        while let Some(at) = kept.iter().rposition(|kept| is_wanted(&kept.stream.target)) {
            if let Some(newest) = kept.remove(at).filter(|newest| newest.stream.is_quiet()) {
                return Some(newest.stream);
            }
        }
        None
    })
}

/// Keeps a connection for the next request; beyond `most`, the oldest goes.
pub fn keep(stream: AppStream, most: usize, now: Instant) {
    KEPT.with_borrow_mut(|kept| {
        if kept.len() >= most {
            kept.pop_front();
        }
        kept.push_back(Kept { stream, since: now });
    });
}

/// Closes what has been kept for longer than `idle_timeout`, and what leads where nothing goes any more.
pub fn sweep(idle_timeout: Duration, is_wanted: impl Fn(&Target) -> bool) {
    KEPT.with_borrow_mut(|kept| {
        kept.retain(|kept| kept.since.elapsed() < idle_timeout && is_wanted(&kept.stream.target));
    });
}
