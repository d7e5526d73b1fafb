//! The public port: HTTP/1.1 connections of clients.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;

use crate::exchange;
use crate::idle::Watched;
use crate::shared::Shared;

/// Accepts connections until the edge ends.
pub(crate) async fn listen(shared: Arc<Shared>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(shared.settings.limits.max_connections));
    let seed = AtomicU64::new(shared.settings.seed);
    loop {
        // Excess connections wait in the kernel's queue. The semaphore is never closed.
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
            // Out of file descriptors, most likely; there may be some a moment later.
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn serve(shared: Arc<Shared>, stream: TcpStream, peer: std::net::IpAddr, random: fastrand::Rng) {
    // Only old kernels fail here; the connection works anyway.
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
    tokio::select! {
        // The result does not matter: the client has its response, or has disconnected.
        _ = connection => {}
        () = activity.is_over(settings.idle_timeout()) => {}
    }
}
