//! Which user or key a request is from: only what could be verified, and why the rest was ignored.
//!
//! A forged, stale or unknown credential is never an error to the client: the request is then its address's, and the app
//! decides what it thinks of it. The credentials themselves are passed on unchanged.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use http::header::AUTHORIZATION;
use outrigger_wire::request::Fields;

use crate::hash::{client_hash, kind};
use crate::jwks::{FetchError, Fetched, Source};
use crate::jwt::Users;
use crate::keys::KeyTable;
use crate::verified::{Ignored, Verified};

/// How often it is looked whether the configuration names another place.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The longest key that is looked at. What is longer is unknown.
const KEY_BYTES: usize = 1024;

/// Whom a request counts for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Who {
    /// Its address: nothing was presented, or nothing that counts.
    #[default]
    Address,
    /// A key that nobody knows, by its hash (`unknown_keys = "count"`). Its tier is anonymous.
    UnknownKey(u64),
    /// Somebody.
    Verified(Arc<Verified>),
}

/// What came of a request's credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identified {
    /// Whom it counts for.
    pub who: Who,
    /// Why its token was ignored, if one was presented and was.
    pub token: Option<Ignored>,
    /// The same of its key.
    pub key: Option<Ignored>,
}

impl Identified {
    /// Each credential that was presented and ignored.
    pub fn ignored(&self) -> impl Iterator<Item = Ignored> {
        self.token.into_iter().chain(self.key)
    }
}

/// Every credential that counts; built when the configuration is loaded, and shared by all workers.
#[derive(Default)]
pub struct Credentials {
    /// The header for API keys, also when no key means anything.
    key_field: Option<HeaderName>,
    keys: Option<Keys>,
    users: Option<Users>,
}

/// How keys are presented and what they mean.
#[derive(Debug)]
pub struct Keys {
    /// The field that carries them.
    pub field: HeaderName,
    /// Those that are known.
    pub table: KeyTable,
    /// Whether an unknown key is a client of its own.
    pub counts_unknown: bool,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("keys", &self.keys).field("users", &self.users).finish()
    }
}

impl Credentials {
    /// Keys and tokens as configured. Keys that can mean nothing are not looked for.
    pub fn new(keys: Keys, users: Option<Users>) -> Self {
        let key_field = Some(keys.field.clone());
        let keys = (!keys.table.is_empty() || keys.counts_unknown).then_some(keys);
        Self { key_field, keys, users }
    }

    /// The header that keys come in, if any key means something.
    pub fn key_field(&self) -> Option<&HeaderName> {
        self.keys.as_ref().map(|keys| &keys.field)
    }

    /// Whether a request carries a credential twice, in two headers or as a list in one: two readers may take different
    /// ones, so it could be one client here and another one to the app.
    pub fn are_repeated(&self, fields: Fields<'_>) -> bool {
        let authorization = match one(fields, &AUTHORIZATION) {
            Presented::Nothing => false,
            Presented::Once(value) => is_list_of_tokens(value),
            Presented::Often => true,
        };
        let is_key_list = |key: &[u8]| {
            let known = self.keys.as_ref().map(|keys| keys.table.find(key).is_some());
            known == Some(false) && memchr::memchr(b',', key).is_some()
        };
        authorization
            || self.key_field.as_ref().is_some_and(|field| match one(fields, field) {
                Presented::Nothing => false,
                Presented::Once(key) => is_key_list(key),
                Presented::Often => true,
            })
    }

    /// Whether every request is its address's, whatever it presents.
    pub fn is_empty(&self) -> bool {
        self.keys.is_none() && self.users.is_none()
    }

    /// Whom a request counts for. A verified user counts before a key. `now` gives seconds since 1970, and is asked only
    /// when there is a token.
    pub fn identify(&self, fields: Fields<'_>, now: impl FnOnce() -> u64) -> Identified {
        let mut found = Identified::default();
        if let Some(users) = &self.users {
            let outcome = match one(fields, &AUTHORIZATION) {
                Presented::Nothing => None,
                Presented::Once(value) => bearer(value).map(|token| users.identify(token, now())),
                // The app may believe the other one.
                Presented::Often => Some(Err(Ignored::BadToken)),
            };
            match outcome {
                Some(Ok(user)) => {
                    found.who = Who::Verified(user);
                    return found;
                }
                Some(Err(why)) => found.token = Some(why),
                None => {}
            }
        }
        if let Some(keys) = &self.keys {
            match one(fields, &keys.field) {
                Presented::Nothing | Presented::Once(b"") => {}
                Presented::Once(key) if key.len() <= KEY_BYTES => match keys.table.find(key) {
                    Some(known) => found.who = Who::Verified(Arc::clone(known)),
                    None => {
                        found.key = (!keys.table.is_empty()).then_some(Ignored::UnknownKey);
                        if keys.counts_unknown {
                            found.who = Who::UnknownKey(client_hash(kind::UNKNOWN_KEY, key));
                        }
                    }
                },
                Presented::Once(_) | Presented::Often => found.key = Some(Ignored::UnknownKey),
            }
        }
        found
    }

    /// The API key that a request presents, known or not.
    pub fn presented_key<'a>(&self, fields: Fields<'a>) -> Option<&'a [u8]> {
        match one(fields, &self.keys.as_ref()?.field) {
            Presented::Once(key) if key.len() <= KEY_BYTES => Some(key),
            _ => None,
        }
    }

    /// Where the keys of tokens are fetched, if they are.
    pub fn jwks(&self) -> Option<&Arc<Source>> {
        self.users.as_ref().and_then(Users::jwks)
    }

    /// Takes over the keys that `before` has fetched, and their fetching, when both name the same place. Called on a
    /// reload, before anybody uses these.
    pub fn adopt(&mut self, before: &Self) {
        if let (Some(users), Some(source)) = (&mut self.users, before.jwks()) {
            users.adopt(source);
        }
    }

    /// Tokens that are remembered, good and bad.
    pub fn cached_tokens(&self) -> usize {
        self.users.as_ref().map_or(0, Users::cached)
    }
}

/// Keeps the keys of whatever configuration is in force fresh, for the life of the process; `current` gives its
/// credentials, `observe` counts how fetches end. When another configuration names another place, fetching from the
/// one before stops, also in the middle.
pub async fn keep_fresh(current: impl Fn() -> Arc<Credentials>, observe: impl Fn(&Result<Fetched, FetchError>)) {
    loop {
        let source = current().jwks().cloned();
        let replaced = async {
            let same = |now: Option<&Arc<Source>>| match (now, &source) {
                (Some(now), Some(before)) => Arc::ptr_eq(now, before),
                (now, before) => now.is_none() && before.is_none(),
            };
            while same(current().jwks()) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        match &source {
            Some(source) => tokio::select! {
                () = source.keep(&observe) => {}
                () = replaced => {}
            },
            None => replaced.await,
        }
    }
}

enum Presented<'a> {
    Nothing,
    Once(&'a [u8]),
    Often,
}

fn one<'a>(fields: Fields<'a>, name: &HeaderName) -> Presented<'a> {
    fn first_and_more<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> Presented<'a> {
        match (values.next(), values.next()) {
            (None, _) => Presented::Nothing,
            (Some(value), None) => Presented::Once(value),
            (Some(_), Some(_)) => Presented::Often,
        }
    }
    match fields {
        Fields::Map(map) => first_and_more(map.get_all(name).iter().map(http::HeaderValue::as_bytes)),
        Fields::Wire(fields) => {
            let name = name.as_str();
            let is_named =
                |field: &&httparse::Header<'_>| field.name.len() == name.len() && field.name.eq_ignore_ascii_case(name);
            let of_name = fields.iter().filter(is_named);
            first_and_more(of_name.map(|field| field.value))
        }
    }
}

/// Whether an `Authorization` of a scheme whose credentials have no commas (token68, RFC 9110 section 11.2) has one.
fn is_list_of_tokens(value: &[u8]) -> bool {
    let scheme = value.split(|byte| *byte == b' ').next().unwrap_or_default();
    [&b"bearer"[..], b"basic"].iter().any(|known| scheme.eq_ignore_ascii_case(known))
        && memchr::memchr(b',', value).is_some()
}

/// The token of `Bearer TOKEN`; nothing for other schemes, which are the app's.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests;
