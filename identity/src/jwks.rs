//! The keys that an issuer of tokens publishes (JSON Web Key Set, RFC 7517): fetched in the background, off the hot path.
//!
//! ```text
//!   fetched ── refresh interval ──► fetch ── good ──► replaces the set
//!      │                              │
//!      └─ a token names an unknown    └─ failed ──► the last good set stays, tried again after 1 s, 2 s, … 30 s
//!         key, 30 s after the last fetch at the earliest
//! ```

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use outrigger_tokens::{Algorithm, Key};
use reqwest::Url;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cache::Generations;
use crate::clock;
use crate::hash::{client_hash, kind};
use crate::http_client::{self, ClientError, describe};

/// Minimum time between a fetch and one that an unknown key triggers.
const FLOOR: Duration = Duration::from_secs(30);

/// The pause after the first failed fetch; it doubles up to [`FLOOR`].
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// Maximum bytes of a set.
const MOST_BYTES: usize = 1 << 20;

/// For how many seconds the same unknown key does not trigger another fetch.
const UNKNOWN_FOR_S: u64 = 300;

/// Unknown keys remembered per generation.
const UNKNOWN_KEYS: usize = 500;

/// Timeout for a whole fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// A URL at which keys are published, and the keys from there.
pub struct Source {
    url: Url,
    algorithm: Algorithm,
    client: reqwest::Client,
    keys: ArcSwap<KeySet>,
    /// Milliseconds.
    refresh_every: AtomicU64,
    floor: Duration,
    fetched_at: AtomicU64,
    asked: Notify,
    refresh_changed: Notify,
    /// Unknown keys, and when they triggered a fetch.
    unknown: Mutex<Generations<u64>>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("url", &self.url.as_str()).field("keys", &self.keys.load().len()).finish()
    }
}

/// Keys that were published together.
#[derive(Debug, Default)]
pub struct KeySet {
    by_id: HashMap<String, Key>,
    /// The key of a set with only one: a token need not name it.
    only: Option<Key>,
    version: u64,
}

impl KeySet {
    /// Returns all keys of `document` that verify `algorithm`.
    fn parse(document: &[u8], algorithm: Algorithm) -> Result<Self, FetchError> {
        let document: Value = serde_json::from_slice(document).map_err(|_| FetchError::NoKeySet)?;
        let published = document["keys"].as_array().ok_or(FetchError::NoKeySet)?;
        let mut reason = None;
        let mut usable: Vec<(Option<String>, Key)> = Vec::new();
        for jwk in published {
            match Key::jwk(algorithm, jwk) {
                Ok(key) => usable.push(key),
                Err(e) => reason = Some(e.to_string()),
            }
        }
        let only = if let [(_, key)] = usable.as_slice() { Some(key.clone()) } else { None };
        let mut by_id = HashMap::new();
        for (id, key) in usable {
            if let Some(id) = id {
                by_id.entry(id).or_insert(key);
            }
        }
        if by_id.is_empty() && only.is_none() {
            let reason = reason.unwrap_or_else(|| "a key needs a kid when there are several".to_owned());
            return Err(FetchError::NoUsableKey { published: published.len(), reason });
        }
        Ok(Self { by_id, only, version: 0 })
    }

    /// The key with this id; for a token without an id, the only key of the set.
    pub fn find(&self, id: Option<&str>) -> Option<&Key> {
        match id {
            Some(id) => self.by_id.get(id),
            None => self.only.as_ref(),
        }
    }

    /// Increases with every changed set; 0 before the first.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.by_id.len().max(usize::from(self.only.is_some()))
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn is_same(&self, other: &Self) -> bool {
        let same_only = match (&self.only, &other.only) {
            (Some(a), Some(b)) => a.is(b),
            (a, b) => a.is_none() && b.is_none(),
        };
        let has_same = |(id, key): (&String, &Key)| other.by_id.get(id).is_some_and(|found| found.is(key));
        same_only && self.by_id.len() == other.by_id.len() && self.by_id.iter().all(has_same)
    }
}

/// A successful fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Number of usable keys.
    pub keys: usize,
    /// Whether they differ from the previous ones.
    pub has_changed: bool,
}

/// Why a fetch failed. The previous keys stay.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// No connection or response, or a timeout.
    #[error("{0}")]
    Http(String),
    /// A response other than 200. Redirects are not followed.
    #[error("the response has status {0} instead of 200")]
    Status(u16),
    /// The response is larger than any key set.
    #[error("the response is larger than {} KiB", MOST_BYTES >> 10)]
    TooLarge,
    /// The response is not a key set.
    #[error("the response is not a JSON Web Key Set")]
    NoKeySet,
    /// None of the keys verifies the configured algorithm.
    #[error("none of its {published} keys can be used: {reason}")]
    NoUsableKey {
        /// Number of published keys.
        published: usize,
        /// The error of the last one.
        reason: String,
    },
}

impl Source {
    /// Keys for `algorithm` at `url`, which is `http` or `https`. Does not fetch yet.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn new(url: Url, algorithm: Algorithm, refresh_every: Duration) -> Result<Self, ClientError> {
        let client = http_client::client(url.scheme() == "https", FETCH_TIMEOUT)?;
        Ok(Self {
            url,
            algorithm,
            client,
            keys: ArcSwap::default(),
            refresh_every: AtomicU64::new(milliseconds(refresh_every)),
            floor: FLOOR,
            fetched_at: AtomicU64::new(0),
            asked: Notify::new(),
            refresh_changed: Notify::new(),
            unknown: Mutex::new(Generations::new(UNKNOWN_KEYS)),
        })
    }

    /// Sets another floor, so that tests need not wait.
    #[cfg(test)]
    pub fn with_floor(mut self, floor: Duration) -> Self {
        self.floor = floor;
        self
    }

    /// The current keys.
    pub fn keys(&self) -> Guard<Arc<KeySet>> {
        self.keys.load()
    }

    /// When keys were last fetched, in seconds since 1970; `None` before.
    pub fn fetched_at(&self) -> Option<u64> {
        Some(self.fetched_at.load(Ordering::Relaxed)).filter(|at| *at > 0)
    }

    /// Requests a fetch for an unknown key, as soon as the floor allows, unless the same key requested one recently.
    pub fn ask_for(&self, id: &str, now: u64) {
        let hash = client_hash(kind::UNKNOWN_KEY, id.as_bytes()).into();
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        let asked_lately = |at: u64| (at..at.saturating_add(UNKNOWN_FOR_S)).contains(&now);
        if !unknown.get(hash).is_some_and(asked_lately) {
            unknown.put(hash, now);
            drop(unknown);
            self.asked.notify_one();
        }
    }

    /// Whether `other` has the same URL and algorithm.
    pub fn is_like(&self, other: &Self) -> bool {
        self.url == other.url && self.algorithm == other.algorithm
    }

    /// The time between two fetches.
    pub fn refresh_every(&self) -> Duration {
        Duration::from_millis(self.refresh_every.load(Ordering::Relaxed))
    }

    /// Changes it, also for a wait in progress.
    pub fn set_refresh(&self, every: Duration) {
        self.refresh_every.store(milliseconds(every), Ordering::Relaxed);
        self.refresh_changed.notify_one();
    }

    /// Fetches the keys now and replaces the old ones.
    ///
    /// # Errors
    /// The fetch failed; the old keys stay.
    pub async fn refresh(&self) -> Result<Fetched, FetchError> {
        let mut fetched = KeySet::parse(&self.fetch().await?, self.algorithm)?;
        let before = self.keys.load_full();
        let has_changed = before.version == 0 || !fetched.is_same(&before);
        let keys = fetched.len();
        if has_changed {
            fetched.version = before.version + 1;
            self.keys.store(Arc::new(fetched));
        }
        let now = clock::unix_now();
        self.fetched_at.store(now, Ordering::Relaxed);
        Ok(Fetched { keys, has_changed })
    }

    async fn fetch(&self) -> Result<Vec<u8>, FetchError> {
        let failed = |e: reqwest::Error| FetchError::Http(describe(&e.without_url()));
        let mut answer = self.client.get(self.url.clone()).send().await.map_err(failed)?;
        if answer.status() != http::StatusCode::OK {
            return Err(FetchError::Status(answer.status().as_u16()));
        }
        let mut document = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if document.len() + chunk.len() > MOST_BYTES {
                return Err(FetchError::TooLarge);
            }
            document.extend_from_slice(&chunk);
        }
        Ok(document)
    }

    /// Fetches forever.
    pub(crate) async fn keep(&self, observe: &impl Fn(&Result<Fetched, FetchError>)) {
        let mut failures = 0_u32;
        loop {
            let outcome = self.refresh().await;
            observe(&outcome);
            let retry = match outcome {
                Ok(fetched) => {
                    if fetched.has_changed || failures > 0 {
                        tracing::info!(keys = fetched.keys, "the issuer's keys were fetched from {}", self.url);
                    }
                    failures = 0;
                    None
                }
                Err(e) => {
                    let wait = (FIRST_RETRY * (1 << failures.min(10))).min(self.floor);
                    failures = failures.saturating_add(1);
                    let keys = self.keys.load().len();
                    tracing::warn!(
                        keys,
                        failures,
                        retry_ms = wait.as_millis() as u64,
                        "the issuer's keys cannot be fetched from {}, the previous ones stay: {e}",
                        self.url
                    );
                    Some(wait)
                }
            };
            self.wait(Instant::now(), retry).await;
        }
    }

    async fn wait(&self, since: Instant, retry: Option<Duration>) {
        let asked = async {
            tokio::time::sleep_until(since + self.floor).await;
            self.asked.notified().await;
        };
        tokio::pin!(asked);
        loop {
            let due = since + retry.unwrap_or(Duration::MAX).min(self.refresh_every());
            tokio::select! {
                () = tokio::time::sleep_until(due) => return,
                () = &mut asked => return,
                () = self.refresh_changed.notified() => {}
            }
        }
    }
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
