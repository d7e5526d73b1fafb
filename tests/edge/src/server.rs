//! The public port: HTTP/1.1 connections of clients.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};

use crate::exchange;
use crate::shared::Shared;

/// Takes connections until the edge ends.
pub(crate) async fn listen(shared: Arc<Shared>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(shared.settings.limits.max_connections));
    let seed = AtomicU64::new(shared.settings.seed);
    loop {
        // Who finds no room waits in the kernel's queue. The semaphore is never closed.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let random = fastrand::Rng::with_seed(seed.fetch_add(1, Ordering::Relaxed));
                let connection = serve(Arc::clone(&shared), stream, peer.ip(), random);
                shared.spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            // No file descriptors, most likely; a moment later there may be some.
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn serve(shared: Arc<Shared>, stream: TcpStream, peer: std::net::IpAddr, random: fastrand::Rng) {
    // Refused by old kernels only; the connection works all the same.
    let _ = stream.set_nodelay(true);
    let settings = Arc::clone(&shared.settings);
    let (stream, activity) = Watched::new(stream);
    let random = Arc::new(Mutex::new(random));
    let service = service_fn(move |request| {
        let (shared, random) = (Arc::clone(&shared), Arc::clone(&random));
        async move {
            let chance = random.lock().unwrap_or_else(PoisonError::into_inner).u128(..);
            Ok::<_, Infallible>(exchange::serve(&shared, peer, request, chance).await)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .max_header_size(settings.limits.max_head)
        .max_buf_size(settings.limits.max_head.max(8192))
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    // How it ends is the client's business: it has its answer, or has left.
    match settings.limits.idle_timeout.map(|limit| settings.scaled(limit)) {
        None => drop(connection.await),
        Some(limit) => tokio::select! {
            _ = connection => {}
            () = activity.is_over(limit) => {}
        },
    }
}

/// A stream that remembers when it last moved.
struct Watched {
    stream: TcpStream,
    activity: Activity,
}

#[derive(Clone)]
struct Activity(Arc<Mutex<Instant>>);

impl Activity {
    fn now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Waits until nothing has moved for so long.
    async fn is_over(&self, limit: Duration) {
        loop {
            let end = *self.0.lock().unwrap_or_else(PoisonError::into_inner) + limit;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }
}

impl Watched {
    fn new(stream: TcpStream) -> (Self, Activity) {
        let activity = Activity(Arc::new(Mutex::new(Instant::now())));
        (Self { stream, activity: activity.clone() }, activity)
    }

    /// Notes that something moved, if it did.
    fn note<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if matches!(result, Poll::Ready(Ok(_))) {
            self.activity.now();
        }
        result
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(cx, into);
        self.note(result)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.note(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
