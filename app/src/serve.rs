//! Accepts connections and drains them on shutdown.
//!
//! Replaces `axum::serve`, which lacks three things: a timeout for a request's header section that leaves idle
//! connections open (the proxy pools them), a bound on the drain, and a common drain for both listeners.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

/// Maximum time until a request's header section is complete. Also applies to idle connections, well above the 75 s
/// for which proxies usually keep theirs.
const HEAD_TIMEOUT: Duration = Duration::from_secs(300);
/// Pause after a failed accept, such as too many open files: a busy loop would make it worse.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Failed to listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on {address}")]
    Tcp { address: std::net::SocketAddr, source: io::Error },
    #[error("cannot listen on socket {}", path.display())]
    Unix { path: PathBuf, source: io::Error },
}

/// The open listeners.
#[derive(Debug)]
pub struct Listeners {
    tcp: TcpListener,
    unix: Option<UnixListener>,
}

impl Listeners {
    /// Opens both listeners. Replaces a stale socket file; any other file at its path is an error.
    ///
    /// # Errors
    /// The listener that cannot be opened, and why.
    pub async fn open(address: std::net::SocketAddr, socket: Option<&Path>) -> Result<Self, ListenError> {
        let tcp = TcpListener::bind(address).await.map_err(|source| ListenError::Tcp { address, source })?;
        let unix = socket
            .map(|path| bind_unix(path).map_err(|source| ListenError::Unix { path: path.to_owned(), source }))
            .transpose()?;
        Ok(Self { tcp, unix })
    }

    /// Serves until `stop` is set, then waits for requests in flight, for at most `drain`. Returns the number of
    /// connections still open.
    pub async fn serve(self, router: Router, mut stop: watch::Receiver<bool>, drain: Duration) -> usize {
        let connections = GracefulShutdown::new();
        let unix = self.unix;
        loop {
            tokio::select! {
                accepted = self.tcp.accept() => match accepted {
                    Ok((stream, _)) => {
                        if let Err(error) = stream.set_nodelay(true) {
                            tracing::debug!(error = %error, "TCP_NODELAY cannot be set on a connection: {error}");
                        }
                        serve_one(stream, router.clone(), &connections);
                    }
                    Err(error) => pause(&error).await,
                },
                accepted = accept_unix(unix.as_ref()) => match accepted {
                    Ok(stream) => serve_one(stream, router.clone(), &connections),
                    Err(error) => pause(&error).await,
                },
                () = stopped(&mut stop) => break,
            }
        }
        drop((self.tcp, unix));
        let mut left = connections.count();
        tracing::info!(connections = left, "no longer accepting; {left} connections are open");
        let all_closed = connections.shutdown();
        tokio::pin!(all_closed);
        if tokio::time::timeout(drain, &mut all_closed).await.is_ok() {
            left = 0;
        }
        left
    }
}

/// The next connection on the Unix socket; waits for ever if there is none.
async fn accept_unix(listener: Option<&UnixListener>) -> io::Result<tokio::net::UnixStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

/// Returns once `stop` is set or its sender is dropped.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn serve_one<S>(stream: S, router: Router, connections: &GracefulShutdown)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let connection = connections.watch(connection);
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = crate::postgres::describe(&error), "a connection ended: {error}");
        }
    });
}

async fn pause(error: &io::Error) {
    tracing::warn!(error = %error, "a connection could not be accepted: {error}");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// Binds next to the path and renames, so that the path always has a socket with the right mode.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            let problem = "there is something else at this path; remove it or choose another APP_SOCKET";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, problem));
        }
        Ok(_) | Err(_) => {}
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(beside);
    let _ = std::fs::remove_file(&beside);
    let listener = UnixListener::bind(&beside)?;
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o660))
        .and_then(|()| std::fs::rename(&beside, path))
        .inspect_err(|_| drop(std::fs::remove_file(&beside)))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("outrigger-app-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced() {
        let path = scratch("stale.sock");
        drop(bind_unix(&path).unwrap());
        let listener = bind_unix(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let (client, server) = tokio::join!(tokio::net::UnixStream::connect(&path), listener.accept());
        assert!(client.is_ok() && server.is_ok());
        std::fs::remove_file(&path).unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let path = scratch("precious.txt");
        std::fs::write(&path, "keep me").unwrap();
        assert!(bind_unix(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "keep me");
        std::fs::remove_file(&path).unwrap();
    }
}
