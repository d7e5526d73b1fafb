//! Opens, checks and judges a pool's connections.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bb8::ManageConnection;
use outrigger_policy::flags::Mode;

use crate::breaker::Breaker;
use crate::error::Dependency;
use crate::pool::PoolSettings;

/// A connection that worked this recently is used without a check.
const TRUSTED_FOR: Duration = Duration::from_secs(1);
/// Maximum time for the check of a connection that was idle longer.
pub const CHECK_TIMEOUT: Duration = Duration::from_millis(500);

/// A database, as the pool needs it.
pub trait Backend: Send + Sync + 'static {
    /// A connection.
    type Client: Send + Sync + 'static;
    /// Names the pool.
    const DEPENDENCY: Dependency;

    /// Opens a connection that is ready for use. The pool limits the time.
    fn open(&self) -> impl Future<Output = Result<Self::Client, ConnectionError>> + Send;
    /// Checks whether the database still responds. The pool limits the time.
    fn check(&self, client: &Self::Client) -> impl Future<Output = Result<(), ConnectionError>> + Send;
    /// Whether the connection is known to be closed.
    fn is_closed(&self, client: &Self::Client) -> bool;
    /// Stops the connection's current operation; it is closed right after.
    fn interrupt(&self, client: &Self::Client);
}

/// Why a connection is unusable.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error("{0}")]
    Failed(String),
    /// The database responds, but has reached its connection limit.
    #[error("{0}")]
    Full(String),
    #[error("no response within {0:?}")]
    TimedOut(Duration),
    #[error("the connection was closed")]
    Closed,
    /// The connection reached its maximum age; not a failure.
    #[error("the connection reached its maximum age")]
    Expired,
}

/// A connection, and the state that decides whether it is still usable.
#[derive(Debug)]
pub struct Member<C> {
    pub client: C,
    expires_at: Option<Instant>,
    pub worked_at: Instant,
    pub interrupted: bool,
}

/// Opens, checks and judges connections for bb8.
#[derive(Debug)]
pub struct Keeper<B> {
    pub backend: Arc<B>,
    pub breaker: Arc<Breaker>,
    pub settings: PoolSettings,
    pub jitter: RandomState,
}

impl<B: Backend> Keeper<B> {
    /// Expiry after 80 to 100 % of the maximum lifetime, or `None` if only bb8's own limit applies.
    pub fn expiry(&self, now: Instant) -> Option<Instant> {
        (self.settings.enhanced == Mode::Enforce).then(|| {
            let percent = 80 + self.jitter.hash_one(now) % 20;
            now + self.settings.max_lifetime.mul_f64(percent as f64 / 100.0)
        })
    }
}

impl<B: Backend> ManageConnection for Keeper<B> {
    type Connection = Member<B::Client>;
    type Error = ConnectionError;

    async fn connect(&self) -> Result<Self::Connection, ConnectionError> {
        // bb8 refills the pool by itself: without this, it would try to connect to a database that is down all the
        // time.
        let _turn = self.breaker.turn_to_connect().await;
        let limit = self.settings.open_timeout;
        let opened = tokio::time::timeout(limit, self.backend.open()).await;
        let client = opened.map_err(|_| ConnectionError::TimedOut(limit))??;
        let now = Instant::now();
        Ok(Member { client, expires_at: self.expiry(now), worked_at: now, interrupted: false })
    }

    async fn is_valid(&self, member: &mut Self::Connection) -> Result<(), ConnectionError> {
        if member.expires_at.is_some_and(|at| at <= Instant::now()) {
            return Err(ConnectionError::Expired);
        }
        if self.backend.is_closed(&member.client) {
            return Err(ConnectionError::Closed);
        }
        if member.worked_at.elapsed() < TRUSTED_FOR {
            return Ok(());
        }
        let checked = tokio::time::timeout(CHECK_TIMEOUT, self.backend.check(&member.client)).await;
        checked.map_err(|_| ConnectionError::TimedOut(CHECK_TIMEOUT))??;
        member.worked_at = Instant::now();
        Ok(())
    }

    fn has_broken(&self, member: &mut Self::Connection) -> bool {
        member.interrupted
            || self.backend.is_closed(&member.client)
            || member.expires_at.is_some_and(|at| at <= Instant::now())
    }
}
