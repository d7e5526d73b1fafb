//! The app behind the proxy: documents in PostgreSQL, their embeddings in ChromaDB.
//!
//! Read in this order: [`config`] (the settings), [`router`] (every route and layer), [`documents`] and [`search`]
//! (the endpoints), [`records`] and [`chroma`] (queries to the two databases), [`outbox`] and [`worker`] (how these
//! two are kept in sync), [`postgres`], [`pool`] and [`keeper`] (connections and deadlines), [`breaker`] (the
//! databases' circuit breakers), [`audit`] (the audit log), [`health`], [`serve`] (listening and draining).

pub mod audit;
pub mod auth;
pub mod body;
pub mod breaker;
pub mod chroma;
pub mod chroma_http;
pub mod config;
pub mod cursor;
pub mod deadline;
pub mod documents;
pub mod error;
pub mod exchange;
pub mod health;
pub mod keeper;
pub mod metrics;
pub mod migrate;
pub mod outbox;
pub mod pool;
pub mod pool_state;
pub mod postgres;
pub mod records;
pub mod search;
pub mod serve;
pub mod tls;
pub mod units;
pub mod validate;
pub mod worker;

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
use outrigger_metrics::TEXT_FORMAT;
use outrigger_policy::flags::{Feature, Flag, Mode, Subject};
use tower_http::catch_panic::CatchPanicLayer;

use crate::audit::Audit;
use crate::auth::Authenticator;
use crate::breaker::BreakerSettings;
use crate::chroma::Chroma;
use crate::config::{ConfigError, Settings};
use crate::error::ApiError;
use crate::health::Health;
use crate::metrics::{LoopMetrics, Metrics};
use crate::outbox::Outbox;
use crate::pool::PoolSettings;
use crate::postgres::Postgres;
use crate::validate::Limits;

/// How often the event loop's lag is measured.
const LAG_PERIOD: Duration = Duration::from_millis(100);

/// State that all requests share. Clones are cheap and refer to the same state.
#[derive(Clone, Debug)]
pub struct App(Arc<Parts>);

/// See [`App`].
#[derive(Debug)]
pub struct Parts {
    pub audit: Audit,
    pub auth: Authenticator,
    pub chroma: Arc<Chroma>,
    /// Variable and value of each feature flag, for the health report.
    pub flags: Vec<(String, String)>,
    pub health: Arc<Health>,
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
    /// Starts pools, migrations and the outbox worker. The databases may be down; the app connects once they are up.
    ///
    /// # Errors
    /// An invalid setting, with a hint.
    pub fn start(settings: &Settings, flags: &[(Feature, Flag)]) -> Result<Self, ConfigError> {
        settings.check()?;
        let auth = Authenticator::new(&settings.auth)?;
        let audit = Audit::new(&settings.audit, flag(Feature::AuditTrail, flags), machine())?;
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
            enhanced: mode_here(Feature::EnhancedPooling, flags),
            breaker: BreakerSettings {
                failures: settings.breaker.circuit_breaker_failure_threshold,
                open_for: settings.breaker.circuit_breaker_timeout.get(),
                mode: mode_here(Feature::CircuitBreaker, flags),
            },
        };
        let postgres = Arc::new(Postgres::start(db, pool, metrics.clone())?);
        let chroma = Arc::new(Chroma::start(&settings.chroma, settings.vector_dimension, pool, metrics.clone())?);
        let outbox = Outbox::new(
            Arc::clone(&postgres),
            Arc::clone(&chroma),
            metrics.outbox.clone(),
            settings.outbox_max,
            settings.chroma.chroma_timeout.get(),
            limits.content_bytes,
        );
        tokio::spawn(migrate::until_done(Arc::clone(&postgres)));
        tokio::spawn(Arc::clone(&outbox).work());
        tokio::spawn(watch_the_loop(metrics.event_loop.clone()));
        let health = Arc::new(Health::new(Arc::clone(&postgres), Arc::clone(&chroma), metrics.health.clone()));
        tokio::spawn(Arc::clone(&health).see_to_breakers());
        let app = Self(Arc::new(Parts {
            audit,
            auth,
            health,
            chroma,
            flags: flags.iter().map(|(f, flag)| (f.variable().to_owned(), flag.switch.to_string())).collect(),
            limits,
            metrics,
            outbox,
            postgres,
            request_timeout: settings.request_timeout.get(),
            started: Instant::now(),
            draining: AtomicBool::new(false),
        }));
        tokio::spawn(audit::upkeep::go_on(app.clone()));
        Ok(app)
    }

    /// From now on, readiness fails and responses ask for connections to be closed.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.metrics.draining.set(1);
    }

    /// Whether [`Self::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// Every route. Also adds the layers of the documents API, outermost last; [`wrap`] adds those of all routes.
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
    wrap(app, documents.merge(open))
}

/// Adds the layers around every route, outermost last, and the fallback responses.
fn wrap(app: &App, routes: Router<App>) -> Router {
    let panicking = app.clone();
    routes
        .fallback(|| async { no_such_path() })
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        .layer(CatchPanicLayer::custom(move |payload: Box<dyn std::any::Any + Send>| {
            exchange::panicked(&panicking, payload.as_ref())
        }))
        .layer(from_fn_with_state(app.clone(), exchange::layer))
        .with_state(app.clone())
}

/// The response for unknown paths.
fn no_such_path() -> ApiError {
    ApiError::NotFound("no such path; the documents are at /api/v1/documents".to_owned())
}

/// `GET /metrics`. Checks the databases first, unless the last check is less than a second old.
async fn scrape(State(app): State<App>) -> Response {
    app.health.report().await;
    app.postgres.pool().publish();
    app.chroma.pool().publish();
    match app.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(error) => ApiError::Internal(format!("the metrics cannot be written: {error}")).into_response(),
    }
}

/// The mode of a feature in this process. Pools and circuit breakers are not per client, so a percentage selects
/// Machines.
fn mode_here(feature: Feature, flags: &[(Feature, Flag)]) -> Mode {
    let machine = machine();
    let subject = Subject { id: &machine, user: None, address: std::net::IpAddr::from([127, 0, 0, 1]) };
    flag(feature, flags).mode_for(feature, subject)
}

fn flag(feature: Feature, flags: &[(Feature, Flag)]) -> Flag {
    flags.iter().find(|(of, _)| *of == feature).map_or_else(Flag::default, |(_, flag)| flag.clone())
}

/// The Machine's name; `local` if it has none.
fn machine() -> String {
    let named = |variable| std::env::var(variable).ok().filter(|name| !name.is_empty());
    named("FLY_MACHINE_ID").or_else(|| named("HOSTNAME")).unwrap_or_else(|| "local".to_owned())
}

/// Measures how late timers fire, the first sign of a blocked event loop.
async fn watch_the_loop(metrics: LoopMetrics) {
    loop {
        let asked = Instant::now() + LAG_PERIOD;
        tokio::time::sleep_until(asked.into()).await;
        let lag = asked.elapsed().as_secs_f64();
        metrics.lag.set(lag);
        metrics.lag_seen.observe(lag);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use http::{Request, StatusCode};
    use serde_json::Value;
    use tower::ServiceExt as _;

    /// An app whose databases are down: port 1 refuses connections.
    fn app(arguments: &[&str]) -> App {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let away =
            ["outrigger-app", "--database-url=postgres://app@127.0.0.1:1/app", "--chroma-url=http://127.0.0.1:1"];
        let arguments = [&away, arguments].concat();
        App::start(&Settings::read(arguments.into_iter().map(Into::into)).unwrap(), &[]).unwrap()
    }

    async fn ask(router: &Router, request: Request<Body>) -> (StatusCode, http::HeaderMap, Value) {
        let (parts, body) = router.clone().oneshot(request).await.unwrap().into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        (parts.status, parts.headers, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    fn get_request(path: &str) -> Request<Body> {
        Request::get(path).header("x-request-id", "r1").body(Body::empty()).unwrap()
    }

    #[tokio::test]
    async fn reports_both_databases_as_down() {
        let router = router(&app(&["--auth=off"]));
        let (status, _, body) = ask(&router, get_request("/health/live")).await;
        assert_eq!((status, &body["ok"]), (StatusCode::OK, &Value::Bool(true)));
        let (status, _, body) = ask(&router, get_request("/health")).await;
        assert_eq!((status, &body["data"]["status"]), (StatusCode::OK, &"degraded".into()));
        let (status, _, body) = ask(&router, get_request("/health/ready")).await;
        assert_eq!((status, &body["ok"]), (StatusCode::SERVICE_UNAVAILABLE, &Value::Bool(false)));
        let (status, _, body) = ask(&router, get_request("/health/detailed")).await;
        assert_eq!((status, &body["data"]["status"]), (StatusCode::SERVICE_UNAVAILABLE, &"unhealthy".into()));
        assert_eq!(body["data"]["services"]["chromadb"]["status"], "unhealthy");
        assert_eq!(body["data"]["services"]["postgresql"]["metrics"]["max"], 20);
        assert_eq!(body["data"]["circuitBreakers"]["database"]["state"], "CLOSED");
        let (status, headers, body) = ask(&router, get_request("/api/v1/documents")).await;
        assert_eq!((status, &body["request_id"]), (StatusCode::SERVICE_UNAVAILABLE, &"r1".into()));
        assert!(headers.contains_key(header::RETRY_AFTER));
    }

    #[tokio::test]
    async fn only_health_and_metrics_are_open() {
        let router = router(&app(&["--jwt-secret=0123456789abcdef0123456789abcdef"]));
        for path in ["/api/v1/documents", "/api/v1/documents/x"] {
            let (status, headers, body) = ask(&router, get_request(path)).await;
            assert_eq!((status, &body["status"]), (StatusCode::UNAUTHORIZED, &401.into()));
            assert!(headers.contains_key(header::WWW_AUTHENTICATE));
            assert_eq!(headers[header::CONTENT_TYPE], "application/problem+json");
        }
        assert_eq!(ask(&router, get_request("/metrics")).await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn an_unknown_path_is_a_problem_response() {
        let router = router(&app(&["--auth=off"]));
        let (status, headers, body) = ask(&router, get_request("/nope")).await;
        assert_eq!((status, &body["request_id"]), (StatusCode::NOT_FOUND, &"r1".into()));
        assert_eq!(headers["x-request-id"], "r1");
        let request = Request::put("/api/v1/documents").body(Body::empty()).unwrap();
        let (status, headers, _) = ask(&router, request).await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
        assert!(headers[header::ALLOW].to_str().unwrap().contains("POST"));
    }

    #[tokio::test]
    async fn a_full_outbox_rejects_writes() {
        let router = router(&app(&["--auth=off", "--outbox-max=0", "--vector-dimension=1"]));
        let request = Request::post("/api/v1/documents").header(header::CONTENT_TYPE, "application/json");
        let request = request.body(Body::from(r#"{"content":"x","embedding":[1]}"#)).unwrap();
        let (status, headers, body) = ask(&router, request).await;
        assert_eq!(
            (status, &body["type"]),
            (StatusCode::SERVICE_UNAVAILABLE, &"urn:outrigger:problem:outbox-full".into())
        );
        assert!(headers.contains_key(header::RETRY_AFTER));
    }

    #[tokio::test]
    async fn draining_fails_readiness_and_closes_connections() {
        let app = app(&["--auth=off"]);
        let router = router(&app);
        app.drain();
        let (status, headers, body) = ask(&router, get_request("/health/ready")).await;
        assert_eq!((status, &body["data"]["status"]), (StatusCode::SERVICE_UNAVAILABLE, &"draining".into()));
        assert_eq!(headers[header::CONNECTION], "close");
        assert_eq!(ask(&router, get_request("/health/live")).await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn a_handler_that_panics_or_hangs_gets_an_error_response() {
        let app = app(&["--auth=off", "--request-timeout=50ms"]);
        let hang = get(std::future::pending::<()>).layer(from_fn(exchange::bounded));
        let routes = Router::new().route("/hang", hang).route("/panic", get(|| async { panic!("on purpose") as () }));
        let router = wrap(&app, routes);
        let (status, _, body) = ask(&router, get_request("/panic")).await;
        assert_eq!((status, &body["request_id"]), (StatusCode::INTERNAL_SERVER_ERROR, &"r1".into()));
        assert_eq!(app.metrics.requests.panics.get(), 1);
        let (status, _, _) = ask(&router, get_request("/hang")).await;
        assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
    }
}
