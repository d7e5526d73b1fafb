//! JSON Web Tokens as both programs know them: one pinned algorithm, one kind of key, and claims that count only if all
//! of it is right.
//!
//! A token never chooses how it is verified. [`Rules`] name the algorithm, and a [`Key`] is made for one algorithm: `none`,
//! another algorithm, or a public key used as a secret have no code to reach. Time is an argument, so that whoever keeps
//! a verified token asks again at each use whether it still holds.

mod key;
#[cfg(any(test, feature = "mint"))]
pub mod mint;
mod ring_provider;

use jsonwebtoken::Validation;
use jsonwebtoken::errors::Error as TokenError;
use serde_json::{Map, Value};

pub use key::{Algorithm, Key, KeyError};
pub use ring_provider::install;

/// What a token must say, and by which algorithm.
#[derive(Clone, Debug)]
pub struct Rules {
    algorithm: Algorithm,
    validation: Validation,
    leeway_s: u64,
}

impl Rules {
    /// Tokens signed by `algorithm`. With an issuer or audience, a token must name it; without an audience, any will do.
    /// `leeway_s` is by how many seconds the clocks of issuer and verifier may differ.
    pub fn new(algorithm: Algorithm, issuer: Option<&str>, audience: Option<&str>, leeway_s: u64) -> Self {
        let mut validation = Validation::new(algorithm.of_library());
        // Times are checked here, with the caller's clock.
        (validation.validate_exp, validation.validate_nbf) = (false, false);
        validation.set_required_spec_claims(&["exp"]);
        match audience {
            Some(audience) => {
                validation.set_audience(&[audience]);
                validation.required_spec_claims.insert("aud".to_owned());
            }
            None => validation.validate_aud = false,
        }
        if let Some(issuer) = issuer {
            validation.set_issuer(&[issuer]);
            validation.required_spec_claims.insert("iss".to_owned());
        }
        Self { algorithm, validation, leeway_s }
    }

    /// The algorithm that is pinned.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Checks everything but the time: signature, algorithm, issuer, audience, and that the times are there. What it
    /// gives counts only while [`Lifetime::check`] says so.
    ///
    /// # Errors
    /// [`Refused::Invalid`].
    pub fn verify_signature(&self, token: &[u8], key: &Key) -> Result<Claims, Refused> {
        if key.algorithm() != self.algorithm {
            return Err(Refused::Invalid("the key is for another algorithm".to_owned()));
        }
        let invalid = |e: TokenError| Refused::Invalid(e.to_string());
        let token =
            jsonwebtoken::decode::<Map<String, Value>>(token, key.of_library(), &self.validation).map_err(invalid)?;
        // RFC 7515, 4.1.11: extensions that must be understood, and none is.
        if token.header.crit.is_some() {
            return Err(Refused::Invalid("the token asks for extensions".to_owned()));
        }
        let expires = seconds(token.claims.get("exp")).map_err(|()| Refused::Invalid("`exp` is no time".to_owned()))?;
        let begins = seconds(token.claims.get("nbf")).map_err(|()| Refused::Invalid("`nbf` is no time".to_owned()))?;
        let Some(expires) = expires else { return Err(Refused::Invalid("`exp` is missing".to_owned())) };
        let lifetime = Lifetime { begins: begins.unwrap_or(0), expires, leeway_s: self.leeway_s };
        Ok(Claims { all: token.claims, lifetime })
    }
}

/// A time in seconds since 1970: absent, or a number that is one.
fn seconds(claim: Option<&Value>) -> Result<Option<u64>, ()> {
    match claim {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match (value.as_u64(), value.as_f64()) {
            (Some(whole), _) => Ok(Some(whole)),
            (None, Some(number)) if (0.0..1e15).contains(&number) => Ok(Some(number.round() as u64)),
            _ => Err(()),
        },
    }
}

/// [`Rules`] and the one key that they go with.
#[derive(Clone, Debug)]
pub struct Verifier {
    rules: Rules,
    key: Key,
}

impl Verifier {
    /// Tokens signed with `key`; see [`Rules::new`].
    pub fn new(key: Key, issuer: Option<&str>, audience: Option<&str>, leeway_s: u64) -> Self {
        Self { rules: Rules::new(key.algorithm(), issuer, audience, leeway_s), key }
    }

    /// The claims of a token that is good at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// Why it does not count.
    pub fn verify(&self, token: &[u8], now: u64) -> Result<Claims, Refused> {
        let claims = self.rules.verify_signature(token, &self.key)?;
        claims.lifetime.check(now)?;
        Ok(claims)
    }
}

/// What a verified token says.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    all: Map<String, Value>,
    /// When it may be believed.
    pub lifetime: Lifetime,
}

impl Claims {
    /// The claim of this name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.all.get(name)
    }

    /// The claim of this name, if it is text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Value::as_str)
    }
}

/// From when to when a token may be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    begins: u64,
    expires: u64,
    leeway_s: u64,
}

impl Lifetime {
    /// Whether it may be believed at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// [`Refused::Expired`] or [`Refused::Early`].
    pub fn check(&self, now: u64) -> Result<(), Refused> {
        if now > self.expires.saturating_add(self.leeway_s) {
            return Err(Refused::Expired);
        }
        if now.saturating_add(self.leeway_s) < self.begins {
            return Err(Refused::Early);
        }
        Ok(())
    }
}

/// Why a token does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No token, or not one of ours: signature, algorithm, issuer, audience, or a claim that must be there.
    #[error("{0}")]
    Invalid(String),
    /// It was good once.
    #[error("ExpiredSignature")]
    Expired,
    /// It will be good one day.
    #[error("ImmatureSignature")]
    Early,
}

/// The key id that a token's head names, of a token that nobody has verified.
///
/// # Errors
/// The text is no token.
pub fn unverified_key_id(token: &[u8]) -> Result<Option<String>, Refused> {
    let header = jsonwebtoken::decode_header(token).map_err(|e| Refused::Invalid(e.to_string()))?;
    Ok(header.kid)
}

#[cfg(test)]
mod tests;
