//! `[identity]`: as written, and the credentials built from it.

mod build;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use outrigger_policy::flags::Network;
use outrigger_policy::tier::Tier;
use outrigger_tokens::Algorithm;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::build::build;
use crate::sections::edge::EdgeName;
use crate::units::{FieldName, JwksUrl, Span, Text};

/// How clients are identified: the proxies, keys and tokens to trust.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Identity {
    /// Which header names the client: `"auto"` is `"fly"` on Fly (FLY_APP_NAME is set), else `X-Forwarded-For`; `"fly"` is
    /// `Fly-Client-IP`; `"none"` is the connection; or the name of a header. It is trusted from `trusted` networks only, and
    /// all other headers that name a client are removed. Environment: OUTRIGGER_EDGE.
    pub edge: Text<EdgeName>,
    /// Networks of the proxy in front, which may name the client. Empty: on Fly the addresses of its edge, elsewhere no
    /// network. Environment: OUTRIGGER_TRUSTED, comma-separated.
    pub trusted: Vec<Text<Network>>,
    /// The header that carries an API key.
    pub key_field: Text<FieldName>,
    /// How unknown keys are treated.
    pub unknown_keys: UnknownKeys,
    /// A file of keys, one per line: `name:sha256=HEX:tier` or `name:hmac_sha256=HEX:tier`; `#` starts a comment. Read when
    /// the configuration is loaded: after a change, send SIGHUP or save this file.
    pub keys_file: Option<PathBuf>,
    /// Known keys.
    #[schemars(extend("x-secret" = "value"))]
    pub keys: Vec<ApiKey>,
    /// Accepted tokens. Without a key to verify them with, tokens are ignored.
    pub jwt: Jwt,
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            edge: Text(EdgeName::Auto),
            trusted: Vec::new(),
            key_field: Text(FieldName(HeaderName::from_static("x-api-key"))),
            unknown_keys: UnknownKeys::Ignore,
            keys_file: None,
            keys: Vec::new(),
            jwt: Jwt::default(),
        }
    }
}

/// How unknown keys are treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UnknownKeys {
    /// The key is ignored: the client is its address.
    #[default]
    Ignore,
    /// The key identifies an anonymous client. A sender that invents a new key for each request gets new limits for each.
    Count,
}

/// A known key: a name, one digest, a tier.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-secret" = "table"))]
pub struct ApiKey {
    /// The owner's name, as in logs: 1 to 64 of letters, digits, `-`, `.`, `_` and `@`.
    pub name: String,
    /// SHA-256 of the key, in hex: for keys that are long and random. Use `printf %s KEY | sha256sum`.
    #[serde(default)]
    #[schemars(regex(pattern = r"^[0-9A-Fa-f]{64}$"), extend("x-secret" = "value"))]
    pub sha256: Option<String>,
    /// HMAC-SHA-256 of the key, in hex, keyed with the environment's OUTRIGGER_KEY_SECRET.
    #[serde(default)]
    #[schemars(regex(pattern = r"^[0-9A-Fa-f]{64}$"), extend("x-secret" = "value"))]
    pub hmac_sha256: Option<String>,
    /// The key's tier: `"anonymous"`, `"free"`, `"pro"`, `"enterprise"` or `"internal"`.
    #[serde(default = "free")]
    pub tier: Text<Tier>,
}

const fn free() -> Text<Tier> {
    Text(Tier::Free)
}

/// The signature algorithm of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum JwtAlgorithm {
    /// HMAC with a shared secret.
    #[default]
    #[serde(rename = "HS256")]
    Hs256,
    /// RSA, PKCS#1 v1.5.
    #[serde(rename = "RS256")]
    Rs256,
    /// ECDSA on P-256.
    #[serde(rename = "ES256")]
    Es256,
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl From<JwtAlgorithm> for Algorithm {
    fn from(algorithm: JwtAlgorithm) -> Self {
        match algorithm {
            JwtAlgorithm::Hs256 => Self::Hs256,
            JwtAlgorithm::Rs256 => Self::Rs256,
            JwtAlgorithm::Es256 => Self::Es256,
            JwtAlgorithm::EdDsa => Self::EdDsa,
        }
    }
}

/// Accepted tokens (`Authorization: Bearer`).
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("x-secret" = "table"))]
pub struct Jwt {
    /// The only algorithm that is accepted, regardless of the token's own header.
    pub algorithm: JwtAlgorithm,
    /// A file with the secret for HS256, at least 32 bytes; a line break at its end is ignored. Environment, with the secret
    /// itself: OUTRIGGER_JWT_SECRET.
    pub secret_file: Option<PathBuf>,
    /// A file with the public key (PEM) for the other algorithms.
    pub key_file: Option<PathBuf>,
    /// The URL at which the issuer publishes its keys: `https`, or `http` inside a private network.
    #[schemars(extend("x-secret" = "value"))]
    pub jwks_url: Option<Text<JwksUrl>>,
    /// How often they are fetched, at least every second; an unknown key also triggers a fetch, at most every 30 s.
    pub jwks_refresh: Text<Span>,
    /// The `aud` that a token must have. Unset: any.
    pub audience: Option<String>,
    /// The `iss` that a token must have. Unset: any.
    pub issuer: Option<String>,
    /// Tolerance for the issuer's clock, at most an hour.
    pub leeway: Text<Span>,
    /// The claim that names the user.
    pub user_claim: String,
    /// The claim that names the tier; if absent or no known tier: `"free"`.
    pub tier_claim: String,
    /// Number of verified tokens that are cached, and as many rejected ones.
    #[schemars(range(min = 100, max = 1_000_000))]
    pub cache: NonZeroU32,
}

impl Default for Jwt {
    fn default() -> Self {
        Self {
            algorithm: JwtAlgorithm::Hs256,
            secret_file: None,
            key_file: None,
            jwks_url: None,
            jwks_refresh: Text(Span(Duration::from_secs(600))),
            audience: None,
            issuer: None,
            leeway: Text(Span(Duration::from_secs(30))),
            user_claim: "sub".to_owned(),
            tier_claim: "tier".to_owned(),
            cache: NonZeroU32::new(10_000).unwrap_or(NonZeroU32::MIN),
        }
    }
}

#[cfg(test)]
mod tests;
