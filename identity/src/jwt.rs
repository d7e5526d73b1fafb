//! Identifies users by their tokens: verified once, then cached; validity times are checked at each use.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outrigger_policy::tier::Tier;
use outrigger_tokens::{Claims, Key, Lifetime, Refused, Rules, unverified_key_id};
use serde_json::Value;

use crate::cache::Generations;
use crate::jwks::Source;
use crate::verified::{Ignored, Verified, VerifiedKind};

/// Maximum length of a token in bytes.
const TOKEN_BYTES: usize = 8 << 10;

/// Maximum length of a user's name in bytes.
const NAME_BYTES: usize = 256;

/// For how many seconds an invalid token is rejected from the cache.
const BAD_FOR_S: u64 = 60;

/// With fewer cached tokens than this, shards would be too small.
const SHARDED_FROM: usize = 1024;

const SHARDS: usize = 16;

/// The keys that verify tokens.
#[derive(Debug)]
pub enum Signers {
    /// One key, for the life of the configuration.
    Fixed(Key),
    /// The keys that the issuer publishes.
    Fetched(Arc<Source>),
}

/// The claims that are used.
#[derive(Clone, Debug)]
pub struct ClaimNames {
    /// The claim with the user's name.
    pub user: String,
    /// The claim with the tier.
    pub tier: String,
}

/// Identifies users by their tokens.
#[derive(Debug)]
pub struct Users {
    rules: Rules,
    signers: Signers,
    names: ClaimNames,
    shards: Box<[Mutex<Remembered>]>,
    /// How often keys are fetched by this configuration.
    refresh: Option<Duration>,
}

#[derive(Debug)]
struct Remembered {
    good: Generations<Arc<Good>>,
    bad: Generations<Bad>,
}

/// A token with valid signature, issuer and audience.
#[derive(Debug)]
struct Good {
    user: Arc<Verified>,
    lifetime: Lifetime,
    /// The version of the key set that verified it: under another version it is verified again.
    keys_version: u64,
}

#[derive(Clone, Copy, Debug)]
struct Bad {
    why: Ignored,
    since: u64,
    keys_version: u64,
}

impl Users {
    /// Caches at most `remembered` good tokens and as many bad ones.
    pub fn new(rules: Rules, signers: Signers, names: ClaimNames, remembered: usize) -> Self {
        let shards = if remembered < SHARDED_FROM { 1 } else { SHARDS };
        let most_each = remembered / (2 * shards);
        let shard = || Mutex::new(Remembered { good: Generations::new(most_each), bad: Generations::new(most_each) });
        let refresh = match &signers {
            Signers::Fixed(_) => None,
            Signers::Fetched(source) => Some(source.refresh_every()),
        };
        Self { rules, signers, names, shards: std::iter::repeat_with(shard).take(shards).collect(), refresh }
    }

    /// Identifies the user of a token at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// Why the token is ignored.
    pub fn identify(&self, token: &[u8], now: u64) -> Result<Arc<Verified>, Ignored> {
        if token.len() > TOKEN_BYTES {
            return Err(Ignored::LongToken);
        }
        let id = token_id(token);
        let keys_version = self.keys_version();
        if let Some(known) = self.recall(id, keys_version, now) {
            return known;
        }
        match self.verify(token, now) {
            Ok((claims, keys_version)) => {
                let lifetime = claims.lifetime;
                let Some(user) = self.user(&claims) else {
                    self.remember_bad(id, Bad { why: Ignored::NamelessToken, since: now, keys_version });
                    return Err(Ignored::NamelessToken);
                };
                let good = Good { user: Arc::new(user), lifetime, keys_version };
                let outcome = good.at(now);
                self.shard(id).good.put(id, Arc::new(good));
                outcome
            }
            Err(why) => {
                // Such a token may become valid as soon as keys arrive, and checking it is cheap.
                if !matches!(why, Ignored::UnknownSigner | Ignored::NoSigners) {
                    self.remember_bad(id, Bad { why, since: now, keys_version });
                }
                Err(why)
            }
        }
    }

    fn recall(&self, id: u128, keys_version: u64, now: u64) -> Option<Result<Arc<Verified>, Ignored>> {
        let mut shard = self.shard(id);
        if let Some(good) = shard.good.get(id) {
            drop(shard);
            return (good.keys_version == keys_version).then(|| good.at(now));
        }
        let bad = shard.bad.get(id)?;
        // Setting the clock back does not extend their time.
        let is_fresh = (bad.since..bad.since.saturating_add(BAD_FOR_S)).contains(&now);
        (is_fresh && bad.keys_version == keys_version).then_some(Err(bad.why))
    }

    fn remember_bad(&self, id: u128, bad: Bad) {
        self.shard(id).bad.put(id, bad);
    }

    fn verify(&self, token: &[u8], now: u64) -> Result<(Claims, u64), Ignored> {
        let refused = |why: Refused| {
            tracing::debug!(error = %why, "a token is ignored: {why}");
            Ignored::BadToken
        };
        match &self.signers {
            Signers::Fixed(key) => Ok((self.rules.verify_signature(token, key).map_err(refused)?, 0)),
            Signers::Fetched(source) => {
                let keys = source.keys();
                let id = unverified_key_id(token).map_err(refused)?;
                let Some(key) = keys.find(id.as_deref()) else {
                    if keys.version() == 0 {
                        return Err(Ignored::NoSigners);
                    }
                    source.ask_for(id.as_deref().unwrap_or_default(), now);
                    return Err(Ignored::UnknownSigner);
                };
                Ok((self.rules.verify_signature(token, key).map_err(refused)?, keys.version()))
            }
        }
    }

    fn user(&self, claims: &Claims) -> Option<Verified> {
        let number;
        let name = match claims.get(&self.names.user)? {
            Value::String(text) => text.as_str(),
            Value::Number(n) if !n.is_f64() => {
                number = n.to_string();
                number.as_str()
            }
            _ => return None,
        };
        if name.is_empty() || name.len() > NAME_BYTES || name.contains(char::is_control) {
            return None;
        }
        let tier = claims.text(&self.names.tier).and_then(|tier| tier.parse().ok()).unwrap_or(Tier::Free);
        Some(Verified::new(VerifiedKind::User, name, tier))
    }

    fn shard(&self, id: u128) -> MutexGuard<'_, Remembered> {
        // The highest bits: the maps inside use the lowest.
        let index = (id >> 64) as usize % self.shards.len();
        // A panic under the lock lost at most one token.
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keys_version(&self) -> u64 {
        match &self.signers {
            Signers::Fixed(_) => 0,
            Signers::Fetched(source) => source.keys().version(),
        }
    }

    /// The source of keys, if they are fetched.
    pub fn jwks(&self) -> Option<&Arc<Source>> {
        match &self.signers {
            Signers::Fixed(_) => None,
            Signers::Fetched(source) => Some(source),
        }
    }

    /// As [`crate::credentials::Credentials::refresh_as_configured`].
    pub fn refresh_as_configured(&self) {
        if let (Some(source), Some(refresh)) = (self.jwks(), self.refresh) {
            source.set_refresh(refresh);
        }
    }

    /// Reuses `before` if it fetches from the same URL.
    pub fn adopt(&mut self, before: &Arc<Source>) {
        if let Signers::Fetched(source) = &mut self.signers
            && source.is_like(before)
        {
            before.set_refresh(source.refresh_every());
            *source = Arc::clone(before);
        }
    }

    /// Number of cached tokens, good and bad.
    pub fn cached(&self) -> usize {
        let shards = self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner));
        shards.map(|shard| shard.good.len() + shard.bad.len()).sum()
    }
}

impl Good {
    fn at(&self, now: u64) -> Result<Arc<Verified>, Ignored> {
        match self.lifetime.check(now) {
            Ok(()) => Ok(Arc::clone(&self.user)),
            Err(Refused::Expired) => Err(Ignored::ExpiredToken),
            Err(Refused::Early) => Err(Ignored::EarlyToken),
            Err(Refused::Invalid(_)) => Err(Ignored::BadToken),
        }
    }
}

/// The cache key of a token: 128 bits keyed with two secrets of this process, so that a client cannot find a second token
/// with the same key.
fn token_id(token: &[u8]) -> u128 {
    static SEEDS: LazyLock<[RandomState; 2]> = LazyLock::new(|| [RandomState::new(), RandomState::new()]);
    let [high, low] = SEEDS.each_ref().map(|seed| {
        let mut hasher = seed.build_hasher();
        hasher.write(token);
        hasher.finish()
    });
    u128::from(high) << 64 | u128::from(low)
}
