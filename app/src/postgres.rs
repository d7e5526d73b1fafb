//! PostgreSQL: connecting to it, and running statements.
//!
//! Nearly every query is a single statement, so no transaction stays open. It ends by the request's deadline: after
//! that, the query is cancelled and its connection closed. The server's `statement_timeout` applies if the app dies
//! meanwhile. Work with several statements borrows a connection ([`Postgres::lend`]) and returns it with the result
//! ([`Lent::settle`]); if it is dropped instead, the connection is closed, which rolls back its transaction.

use std::time::{Duration, Instant};

use outrigger_trail::store::address::{self, Address, AddressError};
use tokio::task::AbortHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::{ConfigError, DatabaseSettings};
use crate::deadline::{Deadline, Expired};
use crate::error::{ApiError, Dependency};
use crate::keeper::{Backend, ConnectionError};
use crate::metrics::Metrics;
use crate::pool::{Checkout, Pool, PoolSettings};

/// Maximum time for a cancel request, which opens its own connection.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(1);

pub use outrigger_trail::store::address::describe;

/// A value and its type, so that a statement needs one round trip and no preparation.
pub type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// Client for PostgreSQL.
#[derive(Debug)]
pub struct Postgres {
    pool: Pool<PgBackend>,
    connector: Connector,
    open_timeout: Duration,
    schema: tokio::sync::watch::Sender<Schema>,
}

/// State of the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schema {
    /// Not checked yet, or the last attempt failed for this reason.
    Pending(String),
    Ready,
}

impl Postgres {
    /// Checks the address and starts the pool. The server may be down.
    ///
    /// # Errors
    /// `DATABASE_URL` cannot be used; the error contains a hint.
    pub fn start(settings: &DatabaseSettings, pool: PoolSettings, metrics: Metrics) -> Result<Self, ConfigError> {
        let connector = Connector::new(settings)?;
        let schema = tokio::sync::watch::Sender::new(Schema::Pending("migrations have not run yet".to_owned()));
        let open_timeout = pool.open_timeout;
        Ok(Self { pool: Pool::start(PgBackend(connector.clone()), pool, metrics), connector, open_timeout, schema })
    }

    /// Runs one statement. `what` names it in the log.
    ///
    /// # Errors
    /// [`ApiError::DeadlineExceeded`] if it took too long (a write may or may not have happened),
    /// [`ApiError::BreakerOpen`], [`ApiError::PoolExhausted`] or [`ApiError::Unavailable`] if it could not be sent
    /// (nothing happened, or the connection broke meanwhile), [`ApiError::Internal`] if PostgreSQL rejected the
    /// statement.
    pub async fn query(
        &self,
        what: &'static str,
        deadline: Deadline,
        statement: &str,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, ApiError> {
        let mut lent = self.lend(what, deadline).await?;
        let answer = deadline.run(lent.client().query_typed(statement, params)).await;
        lent.settle(answer)
    }

    /// Borrows a connection for several statements. `what` names them in the log.
    ///
    /// # Errors
    /// As [`Self::query`], if no connection is available.
    pub async fn lend(&self, what: &'static str, deadline: Deadline) -> Result<Lent<'_>, ApiError> {
        self.is_ready()?;
        let session = self.pool.checkout(what, deadline).await?;
        Ok(Lent { pool: &self.pool, session, what, started: Instant::now() })
    }

    fn is_ready(&self) -> Result<(), ApiError> {
        match &*self.schema.borrow() {
            Schema::Pending(why) => Err(unavailable(why.clone())),
            Schema::Ready => Ok(()),
        }
    }

    /// Waits until the tables exist.
    pub async fn until_ready(&self) {
        // `self` owns the sender, so the channel cannot be closed.
        let _ = self.schema.subscribe().wait_for(|schema| *schema == Schema::Ready).await;
    }

    /// Checks within `limit` that PostgreSQL accepts a new connection and responds. Does not use the pool, so an
    /// exhausted pool is not reported as a database that is down.
    ///
    /// # Errors
    /// The reason, for the health report.
    pub async fn probe(&self, limit: Duration) -> Result<(), String> {
        let answer = tokio::time::timeout(limit, self.connector.hello()).await;
        let outcome = match answer {
            Err(_) => Err(format!("a new connection got no response within {} ms", limit.as_millis())),
            Ok(Ok(())) => Ok(()),
            // The server responds but has reached its connection limit: busy, not down.
            Ok(Err(error)) if error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS) => Ok(()),
            Ok(Err(error)) => Err(describe(&error)),
        };
        self.pool.probed(&outcome);
        outcome
    }

    /// A connection outside the pool, for migrations.
    ///
    /// # Errors
    /// [`ApiError::BreakerOpen`] immediately, [`ApiError::Unavailable`] if PostgreSQL is unreachable.
    pub async fn dedicated(&self) -> Result<Client, ApiError> {
        let call = self.pool.breaker().ask()?;
        let reason = match tokio::time::timeout(self.open_timeout, self.connector.connect()).await {
            Ok(Ok(session)) => {
                call.succeeded();
                return Ok(session.client);
            }
            Ok(Err(error)) => describe(&error),
            Err(_) => format!("no connection within {} ms", self.open_timeout.as_millis()),
        };
        call.failed(&reason);
        Err(unavailable(reason))
    }

    /// The pool, for its statistics.
    pub fn pool(&self) -> &Pool<PgBackend> {
        &self.pool
    }

    /// State of the tables.
    pub fn schema(&self) -> Schema {
        self.schema.borrow().clone()
    }

    /// Sets the state of the tables; queries are rejected until it is [`Schema::Ready`].
    pub fn set_schema(&self, schema: Schema) {
        self.schema.send_replace(schema);
    }
}

/// A borrowed connection for several statements. If dropped before [`Self::settle`], its query is cancelled and the
/// connection closed.
#[must_use = "a connection that is not settled is closed"]
#[derive(Debug)]
pub struct Lent<'p> {
    pool: &'p Pool<PgBackend>,
    session: Checkout<PgBackend>,
    what: &'static str,
    started: Instant,
}

impl Lent<'_> {
    /// The connection.
    pub fn client(&mut self) -> &mut Client {
        &mut self.session.client_mut().client
    }

    /// Returns the connection to the pool, judging it by the result.
    ///
    /// # Errors
    /// The result's error, as in [`Postgres::query`].
    pub fn settle<T>(self, answer: Result<Result<T, tokio_postgres::Error>, Expired>) -> Result<T, ApiError> {
        let Self { pool, session, what, started } = self;
        let silent = || (started.elapsed() >= pool.silence()).then(|| started.elapsed().as_millis());
        let error = match answer {
            Ok(Ok(rows)) => {
                session.release();
                return Ok(rows);
            }
            Ok(Err(error)) => error,
            Err(expired) => {
                // Not released in either case: the query is cancelled and the connection closed.
                if let Some(ms) = silent() {
                    session.fail(&format!("{what} got no response within {ms} ms"));
                }
                return Err(expired.into());
            }
        };
        let verdict = judge(what, &error);
        match (&verdict, silent()) {
            (ApiError::DeadlineExceeded, Some(ms)) => session.fail(&format!("{what} was cancelled after {ms} ms")),
            (ApiError::Unavailable { reason, .. }, _) if !is_short_of_something(&error) => session.fail(reason),
            // PostgreSQL responded, so the connection is usable.
            _ => session.release(),
        }
        Err(verdict)
    }
}

fn unavailable(reason: String) -> ApiError {
    ApiError::Unavailable { dependency: Dependency::Postgres, reason }
}

/// Maps an error of PostgreSQL or of the connection to the request's error.
pub fn judge(what: &'static str, error: &tokio_postgres::Error) -> ApiError {
    let Some(code) = error.code() else { return unavailable(describe(error)) };
    if *code == SqlState::QUERY_CANCELED {
        return ApiError::DeadlineExceeded;
    }
    // Connection exception, insufficient resources, operator intervention, system error: not caused by the statement.
    let class = code.code().get(..2).unwrap_or_default();
    if matches!(class, "08" | "53" | "57" | "58") {
        return unavailable(describe(error));
    }
    ApiError::Internal(format!("{what}: {}", describe(error)))
}

/// PostgreSQL responds, but lacks memory, disk or connections. Not counted by the circuit breaker: reads may still
/// work.
fn is_short_of_something(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| code.code().starts_with("53"))
}

/// Opens connections with the configured timeouts.
#[derive(Clone)]
struct Connector {
    config: Config,
    tls: MakeRustlsConnect,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("hosts", &self.config.get_hosts()).finish_non_exhaustive()
    }
}

impl Connector {
    fn new(settings: &DatabaseSettings) -> Result<Self, ConfigError> {
        let bad = |problem: AddressError| ConfigError::setting("DATABASE_URL", problem.to_string(), address::HINT);
        let address = Address::parse(settings.database_url.expose()).map_err(bad)?;
        // Per address of the host. All together have `db_connect_timeout`, so a silent address leaves time for the
        // others.
        let mut config = address.config("outrigger-app", settings.db_connect_timeout.get() / 3);
        let limit = settings.db_statement_timeout.get();
        if !limit.is_zero() {
            let options = config.get_options().unwrap_or_default();
            let options = format!("{options} -c statement_timeout={}", limit.as_millis());
            config.options(options.trim());
        }
        Ok(Self { config, tls: address.tls().map_err(bad)? })
    }

    async fn connect(&self) -> Result<Session, tokio_postgres::Error> {
        let (client, connection) = self.config.connect(self.tls.clone()).await?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = describe(&error), "a connection to PostgreSQL ended: {error}");
            }
        });
        Ok(Session { client, task: task.abort_handle(), tls: self.tls.clone() })
    }

    async fn hello(&self) -> Result<(), tokio_postgres::Error> {
        let session = self.connect().await?;
        // Also if this future is dropped: otherwise a hung server would keep the connection.
        let _closed_at_the_end = AbortOnDrop(session.task.clone());
        session.client.simple_query("SELECT 1").await?;
        Ok(())
    }
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A connection to PostgreSQL, and the task that drives it.
pub struct Session {
    client: Client,
    task: AbortHandle,
    tls: MakeRustlsConnect,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("closed", &self.client.is_closed()).finish_non_exhaustive()
    }
}

/// PostgreSQL's side of the pool.
#[derive(Debug)]
pub struct PgBackend(Connector);

impl Backend for PgBackend {
    type Client = Session;
    const DEPENDENCY: Dependency = Dependency::Postgres;

    async fn open(&self) -> Result<Session, ConnectionError> {
        self.0.connect().await.map_err(|e| match e.code() {
            Some(&SqlState::TOO_MANY_CONNECTIONS) => ConnectionError::Full(describe(&e)),
            _ => ConnectionError::Failed(describe(&e)),
        })
    }

    async fn check(&self, session: &Session) -> Result<(), ConnectionError> {
        let answer = session.client.simple_query("").await;
        answer.map(drop).map_err(|e| ConnectionError::Failed(describe(&e)))
    }

    fn is_closed(&self, session: &Session) -> bool {
        session.client.is_closed()
    }

    fn interrupt(&self, session: &Session) {
        let (cancel, task, tls) = (session.client.cancel_token(), session.task.clone(), session.tls.clone());
        tokio::spawn(async move {
            // A hung server does not accept a cancel request either; the socket is closed anyway.
            if let Ok(Err(error)) = tokio::time::timeout(CANCEL_TIMEOUT, cancel.cancel_query(tls)).await {
                tracing::debug!(error = describe(&error), "a cancel request did not reach PostgreSQL: {error}");
            }
            task.abort();
        });
    }
}
