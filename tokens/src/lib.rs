//! Verification of JSON Web Tokens, for the proxy and the demo app: one pinned algorithm and a key for that algorithm.
//!
//! A token never chooses how it is verified: [`Rules`] pin the algorithm, and a [`Key`] belongs to one algorithm. Tokens
//! with `none` or another algorithm, or signed with a public key as a secret, are rejected. Time is an argument, so a
//! caller that caches a verified token checks its [`Lifetime`] at each use.

mod key;
#[cfg(any(test, feature = "mint"))]
pub mod mint;
mod ring_provider;

use jsonwebtoken::Validation;
use jsonwebtoken::errors::Error as TokenError;
use serde_json::{Map, Value};

pub use key::{Algorithm, Key, KeyError};
pub use ring_provider::install;

/// The requirements for a token: algorithm, issuer, audience and clock leeway.
#[derive(Clone, Debug)]
pub struct Rules {
    algorithm: Algorithm,
    validation: Validation,
    leeway_s: u64,
}

impl Rules {
    /// Accepts tokens signed with `algorithm`. If an issuer or audience is given, a token must name it (`iss`, `aud`);
    /// otherwise any is accepted. `leeway_s` is the allowed clock difference between issuer and verifier, in seconds.
    pub fn new(algorithm: Algorithm, issuer: Option<&str>, audience: Option<&str>, leeway_s: u64) -> Self {
        let mut validation = Validation::new(algorithm.of_library());
        // `Lifetime::check` checks the times, with the caller's clock.
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

    /// Returns the pinned algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Verifies everything except the current time: signature, algorithm, issuer, audience, and that `exp` and `nbf` are
    /// valid times (`exp` is required). The claims may only be used while [`Lifetime::check`] succeeds.
    ///
    /// # Errors
    /// [`Refused::Invalid`] if any of it does not match, or if the token has `crit` extensions.
    pub fn verify_signature(&self, token: &[u8], key: &Key) -> Result<Claims, Refused> {
        if key.algorithm() != self.algorithm {
            return Err(Refused::Invalid("the key is for another algorithm".to_owned()));
        }
        let invalid = |e: TokenError| Refused::Invalid(e.to_string());
        let token =
            jsonwebtoken::decode::<Map<String, Value>>(token, key.of_library(), &self.validation).map_err(invalid)?;
        // RFC 7515, 4.1.11: extensions that must be understood. Outrigger supports no extensions.
        if token.header.crit.is_some() {
            return Err(Refused::Invalid("the token requires extensions".to_owned()));
        }
        let expires =
            seconds(token.claims.get("exp")).map_err(|()| Refused::Invalid("`exp` is not a time".to_owned()))?;
        let begins =
            seconds(token.claims.get("nbf")).map_err(|()| Refused::Invalid("`nbf` is not a time".to_owned()))?;
        let Some(expires) = expires else { return Err(Refused::Invalid("`exp` is missing".to_owned())) };
        let lifetime = Lifetime { begins: begins.unwrap_or(0), expires, leeway_s: self.leeway_s };
        Ok(Claims { all: token.claims, lifetime })
    }
}

/// Parses a time in seconds since 1970, rounded to whole seconds; `None` if it is absent or null.
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

/// [`Rules`] with a fixed key.
#[derive(Clone, Debug)]
pub struct Verifier {
    rules: Rules,
    key: Key,
}

impl Verifier {
    /// Accepts tokens signed with `key`; see [`Rules::new`].
    pub fn new(key: Key, issuer: Option<&str>, audience: Option<&str>, leeway_s: u64) -> Self {
        Self { rules: Rules::new(key.algorithm(), issuer, audience, leeway_s), key }
    }

    /// Verifies a token at `now`, in seconds since 1970, and returns its claims.
    ///
    /// # Errors
    /// [`Refused`], with the reason.
    pub fn verify(&self, token: &[u8], now: u64) -> Result<Claims, Refused> {
        let claims = self.rules.verify_signature(token, &self.key)?;
        claims.lifetime.check(now)?;
        Ok(claims)
    }
}

/// The claims of a verified token.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    all: Map<String, Value>,
    /// When the token is valid.
    pub lifetime: Lifetime,
}

impl Claims {
    /// Returns the claim with this name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.all.get(name)
    }

    /// Returns the claim with this name if it is a string.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Value::as_str)
    }
}

/// The time in which a token is valid: from `nbf` (else 0) to `exp`, each extended by the leeway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    begins: u64,
    expires: u64,
    leeway_s: u64,
}

impl Lifetime {
    /// Checks that the token is valid at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// [`Refused::Expired`] after `exp` + leeway, [`Refused::Early`] before `nbf` − leeway.
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

/// Why a token is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not a token, or wrong signature, algorithm, issuer or audience, or a required claim is missing.
    #[error("{0}")]
    Invalid(String),
    /// The token has expired.
    #[error("ExpiredSignature")]
    Expired,
    /// The token is not valid yet.
    #[error("ImmatureSignature")]
    Early,
}

/// Returns the key id (`kid`) from the header of a token, without verifying the token.
///
/// # Errors
/// [`Refused::Invalid`] if the text is not a token.
pub fn unverified_key_id(token: &[u8]) -> Result<Option<String>, Refused> {
    let header = jsonwebtoken::decode_header(token).map_err(|e| Refused::Invalid(e.to_string()))?;
    Ok(header.kid)
}

#[cfg(test)]
mod tests;
