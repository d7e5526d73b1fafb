//! Identifies the user or key of a request: only verified credentials count, and the reasons for ignoring others are kept.
//!
//! A forged, stale or unknown credential is never an error to the client: the request then counts for its address, and the
//! app decides about the credential. Credentials are forwarded unchanged.

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

/// How often to check whether the configuration names another JWKS URL.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Maximum length of an API key in bytes. Longer ones are unknown.
const KEY_BYTES: usize = 1024;

/// The identity that a request counts for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Who {
    /// Its address: no accepted credential was presented.
    #[default]
    Address,
    /// An unknown key, by its hash (`unknown_keys = "count"`). Its tier is anonymous.
    UnknownKey(u64),
    /// A verified user or key.
    Verified(Arc<Verified>),
}

/// The result of checking a request's credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identified {
    /// The identity that it counts for.
    pub who: Who,
    /// Why its token was ignored, if it was.
    pub token: Option<Ignored>,
    /// Why its key was ignored, if it was.
    pub key: Option<Ignored>,
}

impl Identified {
    /// Each credential that was presented and ignored.
    pub fn ignored(&self) -> impl Iterator<Item = Ignored> {
        self.token.into_iter().chain(self.key)
    }
}

/// All accepted credentials; built when the configuration is loaded, and shared by all workers.
#[derive(Default)]
pub struct Credentials {
    /// The header for API keys, even if no key is accepted.
    key_field: Option<HeaderName>,
    keys: Option<Keys>,
    users: Option<Users>,
}

/// How keys are presented and interpreted.
#[derive(Debug)]
pub struct Keys {
    /// The header that carries them.
    pub field: HeaderName,
    /// The known keys.
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
    /// Keys and tokens as configured. Skips the lookup of keys if none can be accepted.
    pub fn new(keys: Keys, users: Option<Users>) -> Self {
        let key_field = Some(keys.field.clone());
        let keys = (!keys.table.is_empty() || keys.counts_unknown).then_some(keys);
        Self { key_field, keys, users }
    }

    /// The header that carries keys, if any key can be accepted.
    pub fn key_field(&self) -> Option<&HeaderName> {
        self.keys.as_ref().map(|keys| &keys.field)
    }

    /// Whether a request carries a credential twice, in two headers or as a list in one: Outrigger and the app may read
    /// different ones, and so identify different clients.
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

    /// Whether every request counts for its address, regardless of its credentials.
    pub fn is_empty(&self) -> bool {
        self.keys.is_none() && self.users.is_none()
    }

    /// Identifies a request. A verified user takes precedence over a key. `now` returns seconds since 1970, and is called
    /// only if there is a token.
    pub fn identify(&self, fields: Fields<'_>, now: impl FnOnce() -> u64) -> Identified {
        let mut found = Identified::default();
        if let Some(users) = &self.users {
            let outcome = match one(fields, &AUTHORIZATION) {
                Presented::Nothing => None,
                Presented::Once(value) => bearer(value).map(|token| users.identify(token, now())),
                // The app may use the other one.
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

    /// The source of the tokens' keys, if they are fetched.
    pub fn jwks(&self) -> Option<&Arc<Source>> {
        self.users.as_ref().and_then(Users::jwks)
    }

    /// Takes over the keys that `before` has fetched, and its source, if both have the same URL. Called on a reload, before
    /// these credentials are used.
    pub fn adopt(&mut self, before: &Self) {
        if let (Some(users), Some(source)) = (&mut self.users, before.jwks()) {
            users.adopt(source);
        }
    }

    /// Fetches keys as often as this configuration says, if its source was in use by another one meanwhile.
    pub fn refresh_as_configured(&self) {
        if let Some(users) = &self.users {
            users.refresh_as_configured();
        }
    }

    /// Number of cached tokens, good and bad.
    pub fn cached_tokens(&self) -> usize {
        self.users.as_ref().map_or(0, Users::cached)
    }
}

/// Keeps the keys of the current configuration fresh, for the life of the process; `current` returns its credentials,
/// `observe` counts the results of fetches. If a new configuration names another URL, fetching from the old one stops, even
/// in progress.
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

/// Whether an `Authorization` contains a comma, for a scheme whose credentials have none (token68, RFC 9110 section 11.2).
fn is_list_of_tokens(value: &[u8]) -> bool {
    let scheme = value.split(|byte| *byte == b' ').next().unwrap_or_default();
    [&b"bearer"[..], b"basic"].iter().any(|known| scheme.eq_ignore_ascii_case(known))
        && memchr::memchr(b',', value).is_some()
}

/// The token of `Bearer TOKEN`; `None` for other schemes, which are for the app.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests;
