//! The app behind the proxy: documents in PostgreSQL, their embeddings in ChromaDB.
//!
//! Read in this order: [`config`] (the settings), [`router`] (every route and layer), [`documents`] and [`search`] (the
//! endpoints), [`records`] and [`chroma`] (what they ask of the two databases), [`outbox`] (how those two stay in
//! step), [`postgres`] and [`pool`] (connections and deadlines), [`health`], [`serve`] (listening and leaving).

pub mod auth;
pub mod body;
pub mod chroma;
pub mod config;
pub mod cursor;
pub mod deadline;
pub mod documents;
pub mod error;
pub mod exchange;
pub mod health;
pub mod jwt_ring;
pub mod metrics;
pub mod migrate;
pub mod outbox;
pub mod pool;
pub mod postgres;
pub mod records;
pub mod search;
pub mod serve;
pub mod tls;
pub mod validate;

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::header;
use outrigger_policy::flags::{Feature, Flag, Mode, Subject};
use tower_http::catch_panic::CatchPanicLayer;

use crate::auth::Authenticator;
use crate::chroma::Chroma;
use crate::config::{ConfigError, Settings};
use crate::error::ApiError;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::outbox::Outbox;
use crate::pool::PoolSettings;
use crate::postgres::Postgres;
use crate::validate::Limits;

/// How often the event loop's lag is measured.
const LAG_PERIOD: Duration = Duration::from_millis(100);

/// Everything that requests share. Cloning is cheap and shares it.
#[derive(Clone, Debug)]
pub struct App(Arc<Parts>);

/// See [`App`].
#[derive(Debug)]
pub struct Parts {
    pub auth: Authenticator,
    pub chroma: Arc<Chroma>,
    /// Name of the variable and what it is set to, for the health report.
    pub flags: Vec<(String, String)>,
    pub health: Health,
    pub limits: Limits,
    pub metrics: Metrics,
    pub outbox: Arc<Outbox>,
    pub postgres: Arc<Postgres>,
    pub request_timeout: Duration,
    pub started: Instant,
    draining: AtomicBool,
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl App {
    /// Starts pools, migrations and the outbox worker. The databases may be away; they are found when they come.
    ///
    /// # Errors
    /// A setting that cannot work, with a hint.
    pub fn start(settings: &Settings, flags: &[(Feature, Flag)]) -> Result<Self, ConfigError> {
        settings.check()?;
        let auth = Authenticator::new(&settings.auth)?;
        let metrics = Metrics::new().map_err(|e| ConfigError::setting("APP", e.to_string(), "this is a bug"))?;
        let limits = Limits {
            dimension: settings.vector_dimension as usize,
            content_bytes: settings.max_document_bytes as usize,
        };
        let db = &settings.database;
        let pool = PoolSettings {
            min: db.db_pool_min,
            max: db.db_pool_max,
            acquire_timeout: db.db_pool_acquire_timeout.get(),
            max_lifetime: db.db_pool_max_lifetime.get(),
            idle_timeout: db.db_pool_idle_timeout.get(),
            leak_after: db.db_pool_leak_after.get(),
            open_timeout: db.db_connect_timeout.get(),
            enhanced: pooling_mode(flags),
        };
        let postgres = Arc::new(Postgres::start(db, pool, metrics.clone())?);
        let chroma = Arc::new(Chroma::start(&settings.chroma, settings.vector_dimension, pool, metrics.clone())?);
        let outbox = Outbox::new(
            Arc::clone(&postgres),
            Arc::clone(&chroma),
            metrics.clone(),
            settings.outbox_max,
            settings.chroma.chroma_timeout.get(),
            limits.content_bytes,
        );
        tokio::spawn(migrate::until_done(Arc::clone(&postgres)));
        tokio::spawn(Arc::clone(&outbox).work());
        tokio::spawn(watch_the_loop(metrics.clone()));
        Ok(Self(Arc::new(Parts {
            auth,
            health: Health::new(Arc::clone(&postgres), Arc::clone(&chroma), metrics.clone()),
            chroma,
            flags: flags.iter().map(|(f, flag)| (f.variable().to_owned(), flag.switch.to_string())).collect(),
            limits,
            metrics,
            outbox,
            postgres,
            request_timeout: settings.request_timeout.get(),
            started: Instant::now(),
            draining: AtomicBool::new(false),
        })))
    }

    /// Fails readiness and asks for connections to be closed, from now on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.metrics.draining.set(1);
    }

    /// Whether [`Self::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// Every route and every layer, outermost last.
pub fn router(app: &App) -> Router {
    let documents = Router::new()
        .route("/api/v1/documents", post(documents::create).get(documents::list))
        .route("/api/v1/documents/search", post(search::search))
        .route("/api/v1/documents/{id}", get(documents::read).delete(documents::delete))
        .layer(from_fn_with_state(app.clone(), auth::require))
        .layer(from_fn(exchange::bounded));
    let open = Router::new()
        .route("/health", get(health::summary))
        .route("/health/detailed", get(health::detailed))
        .route("/health/ready", get(health::ready))
        .route("/health/live", get(health::live))
        .route("/metrics", get(scrape));
    let panicking = app.clone();
    documents
        .merge(open)
        .fallback(|| async { ApiError::NotFound("no such path; the documents are at /api/v1/documents".to_owned()) })
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        .layer(CatchPanicLayer::custom(move |payload: Box<dyn std::any::Any + Send>| {
            exchange::panicked(&panicking, payload.as_ref())
        }))
        .layer(from_fn_with_state(app.clone(), exchange::layer))
        .with_state(app.clone())
}

/// `GET /metrics`. Checks the databases first, if nobody did within the last second.
async fn scrape(State(app): State<App>) -> Response {
    app.health.report().await;
    app.postgres.pool().publish();
    app.chroma.pool().publish();
    match app.metrics.render() {
        Ok((text, kind)) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        Err(error) => ApiError::Internal(format!("the metrics cannot be written: {error}")).into_response(),
    }
}

/// The pools belong to the process, so a percentage picks Machines.
fn pooling_mode(flags: &[(Feature, Flag)]) -> Mode {
    let machine = std::env::var("FLY_MACHINE_ID").or_else(|_| std::env::var("HOSTNAME")).unwrap_or_default();
    let subject = Subject { id: &machine, user: None, address: std::net::IpAddr::from([127, 0, 0, 1]) };
    let flag = flags.iter().find(|(feature, _)| *feature == Feature::EnhancedPooling);
    flag.map_or(Mode::Enforce, |(feature, flag)| flag.mode_for(*feature, subject))
}

/// Measures how late timers fire: a loop that is blocked shows here before it shows anywhere else.
async fn watch_the_loop(metrics: Metrics) {
    loop {
        let asked = Instant::now() + LAG_PERIOD;
        tokio::time::sleep_until(asked.into()).await;
        let lag = asked.elapsed().as_secs_f64();
        metrics.loop_lag.set(lag);
        metrics.loop_lag_seen.observe(lag);
    }
}
