//! PostgreSQL: how to reach it, and one way to ask it anything.
//!
//! Nearly every question is a single statement, so there is never a transaction left open, and it ends by the request's
//! deadline: past it, the query is cancelled and its connection closed. `statement_timeout` is the server's own
//! limit, should the app die in between. What needs more than one statement borrows a connection ([`Postgres::lend`]) and
//! gives it back with its outcome ([`Lent::settle`]); forgotten on the way, it is closed, and its transaction with it.

use std::time::{Duration, Instant};

use tokio::task::AbortHandle;
use tokio_postgres::config::{Host, SslMode};
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
use crate::tls::{self, Trust};

/// How long a cancel request may take; it has a connection of its own to open.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(1);

/// A value and its type, so that a statement needs one round trip and no preparation.
pub type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// PostgreSQL, as the rest of the app sees it.
#[derive(Debug)]
pub struct Postgres {
    pool: Pool<PgBackend>,
    connector: Connector,
    open_timeout: Duration,
    schema: tokio::sync::watch::Sender<Schema>,
}

/// Whether the tables are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schema {
    /// Not checked yet, or the last try failed: why.
    Pending(String),
    Ready,
}

impl Postgres {
    /// Checks the address and starts the pool. The server may be away.
    ///
    /// # Errors
    /// `DATABASE_URL` cannot be used, with a hint.
    pub fn start(settings: &DatabaseSettings, pool: PoolSettings, metrics: Metrics) -> Result<Self, ConfigError> {
        let connector = Connector::new(settings)?;
        let schema = tokio::sync::watch::Sender::new(Schema::Pending("migrations have not run yet".to_owned()));
        let open_timeout = pool.open_timeout;
        Ok(Self { pool: Pool::start(PgBackend(connector.clone()), pool, metrics), connector, open_timeout, schema })
    }

    /// Runs one statement. `what` names it in the log.
    ///
    /// # Errors
    /// [`ApiError::DeadlineExceeded`] when it took too long (a write may or may not have happened),
    /// [`ApiError::BreakerOpen`], [`ApiError::PoolExhausted`] or [`ApiError::Unavailable`] when it could not be asked
    /// (nothing happened, or the connection broke on the way), [`ApiError::Internal`] when PostgreSQL refuses the statement.
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

    /// A connection for more than one statement. `what` names it in the log.
    ///
    /// # Errors
    /// As [`Self::query`], when it could not be asked.
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

    /// Waits until the tables are there.
    pub async fn until_ready(&self) {
        // The sender lives as long as we do, so there is always somebody to wait for.
        let _ = self.schema.subscribe().wait_for(|schema| *schema == Schema::Ready).await;
    }

    /// Whether PostgreSQL takes new connections and answers on them, within `limit`. Never takes a pool's place, so that
    /// a pool that is exhausted does not read as a database that is down.
    ///
    /// # Errors
    /// Why not, for the health report.
    pub async fn probe(&self, limit: Duration) -> Result<(), String> {
        let answer = tokio::time::timeout(limit, self.connector.hello()).await;
        let outcome = match answer {
            Err(_) => Err(format!("a new connection got no answer within {} ms", limit.as_millis())),
            Ok(Ok(())) => Ok(()),
            // The server answers, it only has no place left: busy, not down.
            Ok(Err(error)) if error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS) => Ok(()),
            Ok(Err(error)) => Err(describe(&error)),
        };
        self.pool.probed(&outcome);
        outcome
    }

    /// A connection outside the pool, for what takes longer than a request may.
    ///
    /// # Errors
    /// The tables are not there yet, or as [`Self::dedicated`].
    pub async fn for_long_work(&self) -> Result<Client, ApiError> {
        self.is_ready()?;
        self.dedicated().await
    }

    /// A connection outside the pool, for migrations.
    ///
    /// # Errors
    /// [`ApiError::BreakerOpen`] at once, [`ApiError::Unavailable`] when PostgreSQL cannot be reached.
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

    /// The pool, for its numbers.
    pub fn pool(&self) -> &Pool<PgBackend> {
        &self.pool
    }

    /// Whether the tables are there.
    pub fn schema(&self) -> Schema {
        self.schema.borrow().clone()
    }

    /// Says whether the tables are there; queries are refused until they are.
    pub fn set_schema(&self, schema: Schema) {
        self.schema.send_replace(schema);
    }
}

/// A connection for more than one statement. Dropped before [`Self::settle`], its work is cancelled and it is closed.
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

    /// What it was lent for.
    pub const fn what(&self) -> &'static str {
        self.what
    }

    /// Gives it back with what came of it.
    ///
    /// # Errors
    /// What the error means for the request, as [`Postgres::query`] says.
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
                    session.fail(&format!("{what} got no answer within {ms} ms"));
                }
                return Err(expired.into());
            }
        };
        let verdict = judge(what, &error);
        match (&verdict, silent()) {
            (ApiError::DeadlineExceeded, Some(ms)) => session.fail(&format!("{what} was cancelled after {ms} ms")),
            (ApiError::Unavailable { reason, .. }, _) if !is_short_of_something(&error) => session.fail(reason),
            // PostgreSQL answered, so the connection is fine.
            _ => session.release(),
        }
        Err(verdict)
    }
}

fn unavailable(reason: String) -> ApiError {
    ApiError::Unavailable { dependency: Dependency::Postgres, reason }
}

/// What an error of PostgreSQL or of the connection means for the request.
pub fn judge(what: &'static str, error: &tokio_postgres::Error) -> ApiError {
    let Some(code) = error.code() else { return unavailable(describe(error)) };
    if *code == SqlState::QUERY_CANCELED {
        return ApiError::DeadlineExceeded;
    }
    // Connection exceptions, insufficient resources, operator intervention, system errors: not the statement's fault.
    let class = code.code().get(..2).unwrap_or_default();
    if matches!(class, "08" | "53" | "57" | "58") {
        return unavailable(describe(error));
    }
    ApiError::Internal(format!("{what}: {}", describe(error)))
}

/// PostgreSQL answers, and lacks memory, disk or places: its reads may go on, so nothing is gained by not asking it.
fn is_short_of_something(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| code.code().starts_with("53"))
}

/// The error and its causes in one line; tokio-postgres alone says only "db error".
pub fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Opens connections, with our limits on them.
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
        const HINT: &str =
            "write postgres://USER:PASSWORD@HOST:PORT/DATABASE, with ?sslmode=disable for a server without TLS";
        let bad = |problem: String| ConfigError::setting("DATABASE_URL", problem, HINT);
        // We always verify, so libpq's stricter names mean what `require` means here.
        let url = settings.database_url.expose();
        let url = url.replace("sslmode=verify-full", "sslmode=require").replace("sslmode=verify-ca", "sslmode=require");
        let mut config: Config = url.parse().map_err(|e: tokio_postgres::Error| bad(describe(&e)))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(bad("names no host".to_owned()));
        }
        if config.get_user().is_none() {
            return Err(bad("names no user".to_owned()));
        }
        if config.get_ssl_mode() == SslMode::Prefer && config.get_hosts().iter().all(is_local) {
            config.ssl_mode(SslMode::Disable);
        }
        let trust = if config.get_ssl_mode() == SslMode::Disable { Trust::Nobody } else { Trust::System };
        let tls = tls::client_config(trust).map_err(|e| bad(e.to_string()))?;
        let limit = settings.db_statement_timeout.get();
        if !limit.is_zero() {
            let options = config.get_options().unwrap_or_default();
            let options = format!("{options} -c statement_timeout={}", limit.as_millis());
            config.options(options.trim());
        }
        config
            .application_name("outrigger-app")
            // For each address of the name; all of them have `db_connect_timeout`, so one that is silent leaves time for others.
            .connect_timeout(settings.db_connect_timeout.get() / 3)
            .keepalives(true)
            .keepalives_idle(Duration::from_secs(15))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            .tcp_user_timeout(Duration::from_secs(10));
        Ok(Self { config, tls: MakeRustlsConnect::new(tls) })
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
        // Also when we are dropped while waiting: a hung server would keep the connection for as long as it hangs.
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

fn is_local(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
    }
}

/// A connection to PostgreSQL and the task that moves its bytes.
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

/// What the pool needs to know of PostgreSQL.
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
            // A server that hangs does not even take a cancel; its socket is closed all the same.
            if let Ok(Err(error)) = tokio::time::timeout(CANCEL_TIMEOUT, cancel.cancel_query(tls)).await {
                tracing::debug!(error = describe(&error), "a cancel request did not reach PostgreSQL: {error}");
            }
            task.abort();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn connector(url: &str) -> Result<Connector, ConfigError> {
        // Whichever test comes first installs it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let settings = crate::config::Settings::try_parse_from(["outrigger-app", "--database-url", url]).unwrap();
        Connector::new(&settings.database)
    }

    #[test]
    fn a_local_server_is_reached_without_tls_unless_it_is_required() {
        let mode = |url| connector(url).unwrap().config.get_ssl_mode();
        assert_eq!(mode("postgres://app@127.0.0.1:5432/app"), SslMode::Disable);
        assert_eq!(mode("postgres://app@localhost/app"), SslMode::Disable);
        assert_eq!(mode("postgres://app@db.example/app?sslmode=disable"), SslMode::Disable);
    }

    #[test]
    fn the_strict_names_of_libpq_are_understood() {
        // Without any CA on the machine the answer is an error that says so; with some, TLS is required.
        match connector("postgres://app@db.example/app?sslmode=verify-full") {
            Ok(connector) => assert_eq!(connector.config.get_ssl_mode(), SslMode::Require),
            Err(error) => assert!(error.to_string().contains("CA certificates"), "{error}"),
        }
    }

    #[test]
    fn an_address_that_cannot_work_is_refused_without_its_password() {
        for url in ["not a url", "postgres://", "postgres://app:hunter2@h:x/app", "postgres://app@h/app?sslmode=maybe"]
        {
            let error = connector(url).unwrap_err().to_string();
            assert!(error.starts_with("DATABASE_URL: "), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
