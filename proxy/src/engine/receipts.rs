//! Receipts: why a request was not simply sent to the app and answered, for `outrigger why ID`.
//!
//! A request that was rejected, failed, retried, held, sent elsewhere, or that a rule in `monitor` would have rejected leaves a
//! [`Receipt`] in memory when it ends; so does a sample of ordinary ones. An ordinary request costs one branch, and a random number
//! for the sample.
//!
//! Memory is bounded by `receipts.max`. At the bound, the oldest receipt of the fullest of [`SHARDS`] goes (McKenney, "Stochastic
//! fairness queueing", 1990): clients are spread over the shards by a seeded hash, so one client that is refused all the time pushes
//! out its own receipts, and those of the few clients that share its shard.

pub mod evidence;
pub mod steps;
pub mod story;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use http::Method;
use outrigger_identity::client::Client;
use outrigger_identity::clock;
use outrigger_policy::flags::Mode;
use outrigger_policy::priority::Priority;
use outrigger_wire::random::dice;
use outrigger_wire::request_id::RequestId;

use crate::engine::exchange::{Destination, Exchange};
use crate::engine::receipts::evidence::Case;
use crate::engine::receipts::steps::{Step, Steps};
use crate::engine::rejection::{Failure, Rejection};
use crate::engine::state::{Snapshot, State};
use crate::mechanism::affinity::metrics::Event as Session;
use crate::mechanism::evidence::Evidence;
use crate::mechanism::outcome::Outcome;
use crate::mechanism::peers::hop;

/// The number of shards.
const SHARDS: usize = 64;
/// The longest part of a path that a receipt keeps, in bytes.
const PATH_BYTES: usize = 256;
/// The longest method that a receipt keeps, in bytes.
const LONGEST_METHOD: usize = 32;
/// A wait in the queue from here on is unusual.
pub const LONG_WAIT: Duration = Duration::from_millis(100);
/// Receipts of ordinary requests are at most this share of all: one in eight.
const ORDINARY: usize = 8;

/// Why Outrigger responded, or the app failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Outrigger rejected the request.
    Rejected(Rejection),
    /// The app failed it.
    Failed(Failure),
}

impl Cause {
    /// The label, as in metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Rejected(rejection) => rejection.problem().label,
            Self::Failed(failure) => failure.problem().label,
        }
    }

    /// A short summary.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Rejected(rejection) => rejection.problem().title,
            Self::Failed(failure) => failure.problem().title,
        }
    }
}

/// The receipt of a request that has ended.
#[derive(Debug)]
pub struct Receipt {
    /// When it ended.
    pub ended: SystemTime,
    /// The request id.
    pub request_id: RequestId,
    /// The version of the configuration that decided.
    pub config_version: u64,
    /// The method.
    pub method: Method,
    /// The path, shortened; shown only to operators.
    pub path: Box<str>,
    /// The name of the route; `None` if there was none yet.
    pub route: Option<Arc<str>>,
    /// The priority of the route.
    pub priority: Priority,
    /// The client.
    pub client: Client,
    /// The mode of rate limits, bans and the concurrency limit for it.
    pub admission: Mode,
    /// The mode of circuit breakers, retries and `app.hold` for it.
    pub resilience: Mode,
    /// The status of the response.
    pub status: u16,
    /// How it ended.
    pub outcome: Outcome,
    /// The time since its head.
    pub duration: Duration,
    /// The number of attempts at the app or a peer.
    pub attempts: u32,
    /// Why it was rejected or failed, and the rule behind that.
    pub cause: Option<(Cause, Evidence)>,
    /// Its unusual steps.
    pub steps: Steps,
}

/// All receipts in memory.
#[derive(Debug, Default)]
pub struct Receipts {
    unusual: Store,
    ordinary: Store,
}

impl Receipts {
    /// The newest receipts, the newest first. Looks at all of them.
    pub fn recent(&self, most: usize, keep: Duration, wanted: impl Fn(&Receipt) -> bool) -> Vec<Arc<Receipt>> {
        let mut all = self.unusual.find(keep, &wanted);
        all.extend(self.ordinary.find(keep, &wanted));
        all.sort_by_key(|receipt| std::cmp::Reverse(receipt.ended));
        all.truncate(most);
        all
    }

    /// The receipts of a request: several if it came more than once, for example by way of a peer.
    pub fn of(&self, request_id: &str, keep: Duration) -> Vec<Arc<Receipt>> {
        /// An edge that repeats an id gets no longer answer.
        const MOST: usize = 16;
        self.recent(MOST, keep, |receipt| receipt.request_id.as_str() == request_id)
    }

    /// The number of receipts.
    pub fn len(&self) -> usize {
        self.unusual.total.load(Ordering::Relaxed) + self.ordinary.total.load(Ordering::Relaxed)
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes receipts that are older than `keep`.
    pub fn expire(&self, keep: Duration) {
        let before = clock::wall().checked_sub(keep).unwrap_or(SystemTime::UNIX_EPOCH);
        self.unusual.expire(before);
        self.ordinary.expire(before);
    }

    fn add(&self, receipt: Receipt, is_unusual: bool, max: usize) {
        // The id is a hash with a seed that differs in every process.
        let shard = receipt.client.id as usize % SHARDS;
        let ordinary = max / ORDINARY;
        let (store, max) = if is_unusual { (&self.unusual, max - ordinary) } else { (&self.ordinary, ordinary) };
        store.add(Arc::new(receipt), shard, max);
    }
}

#[derive(Debug, Default)]
struct Shard {
    receipts: Mutex<VecDeque<Arc<Receipt>>>,
    len: AtomicUsize,
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Receipt>>> {
        self.receipts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Store {
    shards: [Shard; SHARDS],
    total: AtomicUsize,
}

impl Default for Store {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Shard::default()), total: AtomicUsize::new(0) }
    }
}

impl Store {
    fn add(&self, receipt: Arc<Receipt>, shard: usize, max: usize) {
        if max == 0 {
            return;
        }
        let total = self.total.fetch_add(1, Ordering::Relaxed) + 1;
        // After `max` was lowered, each new receipt takes two old ones with it.
        for _ in 0..total.saturating_sub(max).min(2) {
            self.drop_oldest_of_fullest();
        }
        let shard = &self.shards[shard];
        let mut receipts = shard.lock();
        receipts.push_back(receipt);
        shard.len.store(receipts.len(), Ordering::Relaxed);
    }

    fn drop_oldest_of_fullest(&self) {
        let Some(shard) = self.shards.iter().max_by_key(|shard| shard.len.load(Ordering::Relaxed)) else { return };
        let mut receipts = shard.lock();
        let oldest = receipts.pop_front();
        shard.len.store(receipts.len(), Ordering::Relaxed);
        drop(receipts);
        if oldest.is_some() {
            self.total.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn find(&self, keep: Duration, wanted: impl Fn(&Receipt) -> bool) -> Vec<Arc<Receipt>> {
        let since = clock::wall().checked_sub(keep).unwrap_or(SystemTime::UNIX_EPOCH);
        let is_wanted = |receipt: &&Arc<Receipt>| receipt.ended >= since && wanted(receipt);
        let mut found = Vec::new();
        for shard in &self.shards {
            found.extend(shard.lock().iter().filter(is_wanted).cloned());
        }
        found
    }

    fn expire(&self, before: SystemTime) {
        for shard in &self.shards {
            let mut receipts = shard.lock();
            let had = receipts.len();
            while receipts.front().is_some_and(|receipt| receipt.ended < before) {
                receipts.pop_front();
            }
            let len = receipts.len();
            if len < receipts.capacity() / 4 {
                receipts.shrink_to(len * 2);
            }
            shard.len.store(len, Ordering::Relaxed);
            drop(receipts);
            self.total.fetch_sub(had - len, Ordering::Relaxed);
        }
    }
}

/// The end of a request, as far as the exchange does not know it.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'e> {
    /// How it ended.
    pub outcome: Outcome,
    /// The time since its head.
    pub duration: Duration,
    /// The status for logs.
    pub status: u16,
    /// The method.
    pub method: &'e Method,
    /// The path.
    pub path: &'e str,
}

/// Records a request that ends, if it is unusual or in the sample.
#[inline]
pub fn record(state: &State, exchange: &mut Exchange, ended: &Ended<'_>) {
    let rules = &exchange.rules.config.receipts;
    let is_plain =
        matches!(ended.outcome, Outcome::Success | Outcome::Redirect | Outcome::ClientError | Outcome::ServerError);
    let is_unusual = !is_plain || exchange.failure.is_some() || !exchange.steps.is_empty();
    if is_unusual || (rules.sample > 0.0 && dice() < rules.sample) {
        keep(state, exchange, ended, is_unusual);
    }
}

#[cold]
fn keep(state: &State, exchange: &mut Exchange, ended: &Ended<'_>, is_unusual: bool) {
    let max = exchange.rules.config.receipts.max;
    if max == 0 {
        return;
    }
    let evidence = exchange.evidence.take().map(|evidence| *evidence);
    let cause = match (exchange.rejection, exchange.failure) {
        (Some(rejection), _) => Some(Cause::Rejected(rejection)),
        (None, failure) => failure.map(Cause::Failed),
    };
    match &exchange.destination {
        Destination::Peer(peer, kind @ hop::Kind::Session) => {
            let step = Step::SentToPeer(Arc::clone(&peer.name), *kind);
            exchange.steps.add(exchange.started, step);
        }
        Destination::Replay(_) => exchange.steps.add(exchange.started, Step::Session(Session::Replayed)),
        _ => {}
    }
    if let Some(hop) = &exchange.hop {
        exchange.steps.add(exchange.started, Step::CameFromPeer(hop.from.clone().into(), hop.kind));
    }
    let receipt = Receipt {
        ended: clock::wall(),
        request_id: exchange.request_id,
        config_version: exchange.rules.version,
        method: kept_method(ended.method),
        path: ended.path[..ended.path.floor_char_boundary(PATH_BYTES)].into(),
        route: Some(Arc::clone(&exchange.route().name)),
        priority: exchange.route().priority,
        client: identified(&exchange.client),
        admission: exchange.admission,
        resilience: exchange.resilience,
        status: ended.status,
        outcome: ended.outcome,
        duration: ended.duration,
        attempts: exchange.attempts.made(),
        cause: cause.zip(evidence),
        steps: std::mem::take(&mut exchange.steps),
    };
    state.receipts.add(receipt, is_unusual, max);
}

/// Keeps the numbers of a rejection or failure as they are now, if anybody asks for them later: after the response is written, the
/// queue may be empty again.
pub fn note_evidence(state: &State, exchange: &mut Exchange) {
    if (state.trail.is_some() || exchange.rules.config.receipts.max > 0) && exchange.evidence.is_none() {
        exchange.evidence = evidence(state, exchange).map(Box::new);
    }
}

/// The evidence for how a request was rejected or failed.
fn evidence(state: &State, exchange: &Exchange) -> Option<Evidence> {
    let case = Case::of(state, exchange);
    match (exchange.rejection, exchange.failure) {
        (Some(rejection), _) => Some(case.rejection(rejection)),
        (None, failure) => failure.map(|failure| case.failure(failure)),
    }
}

/// Records what was rejected before it was a request.
pub fn record_unparsed(
    state: &State,
    rules: &Snapshot,
    rejection: Rejection,
    (request_id, client): (RequestId, IpAddr),
    (method, path): (&Method, &str),
) {
    let max = rules.config.receipts.max;
    if max == 0 {
        return;
    }
    let case = Case { state, rules, exchange: None, now: clock::now() };
    let id = Client::hash_of(client);
    let receipt = Receipt {
        ended: clock::wall(),
        request_id,
        config_version: rules.version,
        method: kept_method(method),
        path: path[..path.floor_char_boundary(PATH_BYTES)].into(),
        route: None,
        priority: Priority::default(),
        client: Client { address: client, id, address_id: id, ..Client::UNKNOWN },
        admission: Mode::Enforce,
        resilience: Mode::Enforce,
        status: rejection.problem().status.as_u16(),
        outcome: Outcome::Rejected,
        duration: Duration::ZERO,
        attempts: 0,
        cause: Some((Cause::Rejected(rejection), case.rejection(rejection))),
        steps: Steps::default(),
    };
    state.receipts.add(receipt, true, max);
}

/// Removes receipts whose time is over, for the life of the process.
pub async fn keep_expiring(state: Arc<State>) {
    const EVERY: Duration = Duration::from_secs(30);
    loop {
        tokio::time::sleep(EVERY).await;
        state.receipts.expire(state.rules.load().config.receipts.keep);
    }
}

/// The client, by its address if it was not identified.
fn identified(client: &Client) -> Client {
    let id = if client.id == 0 { Client::hash_of(client.address) } else { client.id };
    Client { id, ..client.clone() }
}

/// The method; `-` for a long one, which any client may invent.
fn kept_method(method: &Method) -> Method {
    if method.as_str().len() <= LONGEST_METHOD { method.clone() } else { Method::from_bytes(b"-").unwrap_or_default() }
}

#[cfg(test)]
mod tests;
