//! The app: few workers, a short queue, and a database that may be slow. The same program runs behind every side.
//!
//! A request in the queue or with a worker is processed to its end even if the client disconnects, as with threads. The app
//! rejects a request with 503 if the queue is full. On SIGTERM it accepts no new connections and completes the requests that it
//! has begun.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use xtask::Result;
use xtask::error::While;

use crate::script::Kind;

/// Command line arguments.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    #[arg(long)]
    pub listen: SocketAddr,
    /// Milliseconds before it listens.
    #[arg(long)]
    pub start_after: u64,
    /// Milliseconds that it may take to end.
    #[arg(long)]
    pub grace: u64,
    #[arg(long)]
    pub workers: u32,
    #[arg(long)]
    pub queue: u32,
    /// Duration of database work, in percent of normal.
    #[arg(long)]
    pub database: u64,
}

struct App {
    workers: Semaphore,
    /// Workers and queue together.
    places: Arc<Semaphore>,
    database_percent: AtomicU64,
    /// The time that workers have been busy, in microseconds.
    busy: AtomicU64,
}

/// Serves until SIGTERM.
pub fn run(arguments: &Arguments) -> Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build().while_("starting a runtime")?;
    runtime.block_on(serve(arguments))
}

async fn serve(arguments: &Arguments) -> Result<()> {
    let mut ends = signal(SignalKind::terminate()).while_("waiting for signals")?;
    sleep(Duration::from_millis(arguments.start_after)).await;
    let listener =
        TcpListener::bind(arguments.listen).await.while_(format_args!("listening on {}", arguments.listen))?;
    let app = Arc::new(App {
        workers: Semaphore::new(arguments.workers as usize),
        places: Arc::new(Semaphore::new((arguments.workers + arguments.queue) as usize)),
        database_percent: AtomicU64::new(arguments.database),
        busy: AtomicU64::new(0),
    });
    let graceful = GracefulShutdown::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted.while_("accepting")?.0,
            _ = ends.recv() => break,
        };
        let _ = stream.set_nodelay(true);
        let app = Arc::clone(&app);
        let service = service_fn(move |request| answer(Arc::clone(&app), request));
        let connection = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
        let watched = graceful.watch(connection);
        tokio::spawn(async move {
            // A client that disconnects is no error.
            let _ = watched.await;
        });
    }
    drop(listener);
    let _ = timeout(Duration::from_millis(arguments.grace), graceful.shutdown()).await;
    Ok(())
}

async fn answer(app: Arc<App>, request: Request<Incoming>) -> std::result::Result<Response<Full<Bytes>>, hyper::Error> {
    let kind = match (request.method(), request.uri().path()) {
        (_, "/health" | "/health/ready") => return Ok(say(StatusCode::OK, "fine")),
        (&Method::GET, "/busy") => return Ok(say(StatusCode::OK, app.busy.load(Ordering::Relaxed).to_string())),
        (&Method::PUT, "/database") => {
            let percent = request.uri().query().and_then(|query| query.parse().ok()).unwrap_or(100);
            app.database_percent.store(percent, Ordering::Relaxed);
            return Ok(say(StatusCode::OK, "noted"));
        }
        (&Method::POST, "/checkout") => Kind::Checkout,
        (&Method::POST, path) if path.starts_with("/items/") => Kind::Write,
        (&Method::GET, path) if path.starts_with("/items/") => Kind::Read,
        (&Method::GET, "/search") => Kind::Search,
        _ => return Ok(say(StatusCode::NOT_FOUND, "no such thing")),
    };
    request.into_body().collect().await?;
    let Ok(place) = Arc::clone(&app.places).try_acquire_owned() else {
        return Ok(say(StatusCode::SERVICE_UNAVAILABLE, "busy"));
    };
    let work = tokio::spawn(async move {
        let worker = app.workers.acquire().await;
        let time = time(kind, app.database_percent.load(Ordering::Relaxed), fastrand::f64());
        sleep(time).await;
        app.busy.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
        drop((worker, place));
    });
    match work.await {
        Ok(()) => Ok(say(StatusCode::OK, "done")),
        Err(_) => Ok(say(StatusCode::INTERNAL_SERVER_ERROR, "the work broke off")),
    }
}

/// From half of the mean to one and a half times the mean.
fn time(kind: Kind, database_percent: u64, chance: f64) -> Duration {
    let (all, database) = kind.work();
    (all - database + database.mul_f64(database_percent as f64 / 100.0)).mul_f64(0.5 + chance)
}

fn say(status: StatusCode, words: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(words.into()));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_databases_part_gets_slower() {
        let (all, database) = Kind::Read.work();
        assert_eq!(time(Kind::Read, 100, 0.5), all);
        assert_eq!(time(Kind::Read, 300, 0.5), all + 2 * database);
        assert_eq!(time(Kind::Read, 100, 0.0), all / 2);
    }
}
