//! PostgreSQL, as the proxy uses it for the audit log: at most two connections, one to ship and one for retention, opened
//! when they are needed. No request waits for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bb8::{ErrorSink, ManageConnection, PooledConnection, RunError};
use outrigger_trail::store::StoreError;
use outrigger_trail::store::address::{Address, AddressError, describe};
use outrigger_trail::store::schema::{self, SchemaError};
use tokio::sync::{Notify, OnceCell};
use tokio::task::AbortHandle;
use tokio::time::error::Elapsed;
use tokio_postgres::Client;
use tokio_postgres_rustls::MakeRustlsConnect;

/// The most connections.
const CONNECTIONS: u32 = 2;
/// The timeout for a connection, and for a batch.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// The timeout for making the tables. Another Machine may be doing it.
const TABLES_TIMEOUT: Duration = Duration::from_secs(300);
/// Idle connections are closed after this time.
const IDLE: Duration = Duration::from_secs(300);
/// The server ends a transaction whose proxy vanished: it may hold locks.
const AT_FIRST: &str = "SET idle_in_transaction_session_timeout = '60s'";

/// Why entries stay on this disk.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// There is no connection.
    #[error("PostgreSQL cannot be reached: {0}; is audit.database right (OUTRIGGER_AUDIT_DATABASE_URL)?")]
    Connect(String),
    /// The tables do not exist.
    #[error("its tables cannot be made in PostgreSQL: {0}; the user of audit.database needs to own them")]
    Tables(String),
    /// PostgreSQL returned an error.
    #[error("{}", describe(.0))]
    Store(#[from] StoreError),
    /// Timeout.
    #[error("PostgreSQL did not respond in time")]
    Late,
    /// The spool cannot be read.
    #[error("the spool cannot be read: {0}")]
    Spool(std::io::Error),
    /// A deletion could not be logged.
    #[error("the audit log cannot be written")]
    Unwritable,
}

impl ShipError {
    /// Whether batches of other classes would most likely fail, too.
    pub(super) fn is_away(&self) -> bool {
        match self {
            Self::Store(StoreError::Database(error)) => error.code().is_none(),
            Self::Store(_) | Self::Spool(_) | Self::Unwritable => false,
            Self::Connect(_) | Self::Tables(_) | Self::Late => true,
        }
    }
}

/// PostgreSQL.
#[derive(Debug)]
pub struct Database {
    pool: bb8::Pool<Opener>,
    failures: Arc<Failures>,
    has_tables: OnceCell<()>,
}

impl Database {
    /// Does not connect yet.
    pub fn new(address: Address) -> Self {
        let failures = Arc::<Failures>::default();
        let pool = bb8::Pool::builder()
            .max_size(CONNECTIONS)
            .connection_timeout(CONNECT_TIMEOUT)
            .idle_timeout(IDLE)
            // The task that needs a connection tries again.
            .retry_connection(false)
            .error_sink(Box::new(Arc::clone(&failures)))
            .build_unchecked(Opener { address, tls: OnceCell::new() });
        Self { pool, failures, has_tables: OnceCell::new() }
    }

    /// Lends a connection to a database with the tables, which it makes if they are missing.
    ///
    /// # Errors
    /// [`ShipError`].
    pub(super) async fn lend(&self) -> Result<Lent<'_>, ShipError> {
        let mut lent = self.connect().await?;
        if self.has_tables.initialized() {
            return Ok(lent);
        }
        match tokio::time::timeout(TABLES_TIMEOUT, make_tables(lent.client())).await {
            Ok(Ok(applied)) => {
                if self.has_tables.set(()).is_ok() && applied > 0 {
                    tracing::info!(applied, "the audit log has made its tables in PostgreSQL");
                }
                Ok(lent)
            }
            failed => {
                // The connection may have the lock.
                lent.close();
                Err(failed.map_or(ShipError::Late, |failed| {
                    ShipError::Tables(failed.map_or_else(|e| describe(&e), |_| String::new()))
                }))
            }
        }
    }

    async fn connect(&self) -> Result<Lent<'_>, ShipError> {
        // bb8 does not tell who waits for a connection that it cannot be opened.
        let failed = self.failures.news.notified();
        tokio::select! {
            biased;
            lent = self.pool.get() => match lent {
                Ok(session) => Ok(Lent(session)),
                Err(RunError::User(e)) => Err(ShipError::Connect(e.to_string())),
                Err(RunError::TimedOut) => {
                    Err(ShipError::Connect(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs())))
                }
            },
            () = failed => Err(ShipError::Connect(self.failures.last())),
        }
    }
}

async fn make_tables(client: &mut Client) -> Result<usize, SchemaError> {
    schema::lock(client).await?;
    let applied = schema::migrate(client).await?;
    schema::unlock(client).await?;
    Ok(applied)
}

/// A connection of the pool.
pub(super) struct Lent<'d>(PooledConnection<'d, Opener>);

impl Lent<'_> {
    pub(super) fn client(&mut self) -> &mut Client {
        &mut self.0.client
    }

    /// Returns the connection, unless it is unusable, and the outcome.
    ///
    /// # Errors
    /// [`ShipError`].
    pub(super) fn settle<T>(self, outcome: Result<Result<T, StoreError>, Elapsed>) -> Result<T, ShipError> {
        match outcome {
            Ok(outcome) => Ok(outcome?),
            Err(_) => {
                self.close();
                Err(ShipError::Late)
            }
        }
    }

    /// Ends what the connection does, and closes it.
    pub(super) fn close(mut self) {
        self.0.is_given_up = true;
        let (cancel, tls, task) = (self.0.client.cancel_token(), self.0.tls.clone(), self.0.task.clone());
        tokio::spawn(async move {
            // A server that hangs does not accept this either; the socket is closed anyway.
            let _ = tokio::time::timeout(Duration::from_secs(1), cancel.cancel_query(tls)).await;
            task.abort();
        });
    }
}

/// A connection, and the task that drives it.
pub(super) struct Session {
    client: Client,
    task: AbortHandle,
    tls: MakeRustlsConnect,
    is_given_up: bool,
}

/// Why bb8 has no connection.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("{0}")]
    Address(#[from] AddressError),
    #[error("{}", describe(.0))]
    Failed(tokio_postgres::Error),
    #[error("no connection within {} s", CONNECT_TIMEOUT.as_secs())]
    Late,
    /// A connection that was idle has ended; bb8 takes another one.
    #[error("the connection has ended")]
    Stale,
}

/// Opens connections.
struct Opener {
    address: Address,
    tls: OnceCell<MakeRustlsConnect>,
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Opener").field(&self.address).finish()
    }
}

impl ManageConnection for Opener {
    type Connection = Session;
    type Error = OpenError;

    async fn connect(&self) -> Result<Session, OpenError> {
        let tls = self.tls.get_or_try_init(async || self.address.tls()).await?.clone();
        // Per address of the host: a silent one leaves time for the others.
        let config = self.address.config("outrigger", CONNECT_TIMEOUT / 3);
        let open = async {
            let (client, connection) = config.connect(tls.clone()).await?;
            let task = tokio::spawn(async move {
                if let Err(e) = connection.await {
                    tracing::debug!("the audit log's connection to PostgreSQL ended: {}", describe(&e));
                }
            });
            let session = Session { client, task: task.abort_handle(), tls, is_given_up: false };
            session.client.batch_execute(AT_FIRST).await?;
            Ok(session)
        };
        tokio::time::timeout(CONNECT_TIMEOUT, open).await.map_err(|_| OpenError::Late)?.map_err(OpenError::Failed)
    }

    async fn is_valid(&self, session: &mut Session) -> Result<(), OpenError> {
        let asked = tokio::time::timeout(CONNECT_TIMEOUT / 3, session.client.simple_query("")).await;
        asked.is_ok_and(|asked| asked.is_ok()).then_some(()).ok_or(OpenError::Stale)
    }

    fn has_broken(&self, session: &mut Session) -> bool {
        session.is_given_up || session.client.is_closed()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.is_given_up {
            // Otherwise a server that hangs keeps the task.
            self.task.abort();
        }
    }
}

/// The last reason why a connection could not be opened.
#[derive(Debug, Default)]
struct Failures {
    last: Mutex<String>,
    news: Notify,
}

impl Failures {
    fn last(&self) -> String {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ErrorSink<OpenError> for Arc<Failures> {
    fn sink(&self, error: OpenError) {
        if !matches!(error, OpenError::Stale) {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = error.to_string();
            self.news.notify_waiters();
        }
    }

    fn boxed_clone(&self) -> Box<dyn ErrorSink<OpenError>> {
        Box::new(Arc::clone(self))
    }
}
