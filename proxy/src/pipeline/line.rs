//! A connection to the app for one attempt of Pingora's, which can be cut when its time is over.
//!
//! Pingora's time limits count for each read, so an app that drips its head, or sends interim answers without end, would never
//! reach one. So the connection is opened here, and a second handle on its socket kept until the head of the answer has come:
//! at the deadline the socket is shut down, and Pingora sees it end.

use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora::connectors::l4::Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::{Error, ErrorType, Result};
use tokio::net::{TcpStream, UnixStream};

use crate::app_pool::end_with_peer;
use crate::config::Target;

/// The second handle.
#[derive(Debug)]
enum Handle {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Handle {
    fn cut(&self) {
        // An error means that it has ended already.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

#[derive(Debug, Default)]
struct Shared {
    handle: Mutex<Option<Handle>>,
    is_cut: AtomicBool,
}

impl Shared {
    fn take(&self) -> Option<Handle> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The connection of one attempt, from the exchange's side. Dropped, it cuts nothing any more.
#[derive(Debug)]
pub struct Line {
    shared: Arc<Shared>,
    cutter: Option<tokio::task::JoinHandle<()>>,
}

impl Line {
    /// One that opens a connection to `target`, and what Pingora calls to open it.
    pub fn new(target: &Target, connect_timeout: Duration, is_to_peer: bool) -> (Self, Arc<Opener>) {
        let shared = Arc::new(Shared::default());
        let opener = Opener { target: target.clone(), connect_timeout, is_to_peer, shared: Arc::clone(&shared) };
        (Self { shared, cutter: None }, Arc::new(opener))
    }

    /// Cuts the connection at `deadline`.
    pub fn cut_at(&mut self, deadline: Instant) {
        let shared = Arc::clone(&self.shared);
        let cutter = tokio::spawn(async move {
            tokio::time::sleep_until(deadline.into()).await;
            if let Some(handle) = shared.take() {
                shared.is_cut.store(true, Ordering::Release);
                handle.cut();
            }
        });
        if let Some(earlier) = self.cutter.replace(cutter) {
            earlier.abort();
        }
    }

    /// Whether its time was over.
    pub fn is_cut(&self) -> bool {
        self.shared.is_cut.load(Ordering::Acquire)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(cutter) = self.cutter.take() {
            cutter.abort();
        }
        // Else the socket would stay open for as long as this handle does.
        drop(self.shared.take());
    }
}

/// Opens the connection.
#[derive(Debug)]
pub struct Opener {
    target: Target,
    connect_timeout: Duration,
    is_to_peer: bool,
    shared: Arc<Shared>,
}

#[async_trait]
impl Connect for Opener {
    async fn connect(&self, _: &SocketAddr) -> Result<Stream> {
        let opened = tokio::time::timeout(self.connect_timeout, open(&self.target, self.is_to_peer)).await;
        match opened {
            Ok(Ok((stream, handle))) => {
                *self.shared.handle.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
                Ok(stream)
            }
            // The socket's queue is full: it is there, and too slow to take more.
            Ok(Err(e)) if e.kind() == std::io::ErrorKind::WouldBlock => {
                Err(Error::because(ErrorType::ConnectTimedout, "the app's queue is full", e).into_up())
            }
            Ok(Err(e)) => Err(Error::because(ErrorType::ConnectRefused, "the app takes no connection", e).into_up()),
            Err(_) => Err(Error::explain(ErrorType::ConnectTimedout, "connect_timeout is over").into_up()),
        }
    }
}

async fn open(target: &Target, is_to_peer: bool) -> std::io::Result<(Stream, Handle)> {
    match target {
        Target::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            if is_to_peer {
                end_with_peer(&stream)?;
            }
            let stream = stream.into_std()?;
            let handle = Handle::Tcp(stream.try_clone()?);
            Ok((TcpStream::from_std(stream)?.into(), handle))
        }
        Target::Unix(path) => {
            let stream = UnixStream::connect(path).await?.into_std()?;
            let handle = Handle::Unix(stream.try_clone()?);
            Ok((UnixStream::from_std(stream)?.into(), handle))
        }
    }
}
