//! Metrics of credentials.

use outrigger_identity::verified::Ignored;
use outrigger_metrics::{Declare, IntCounterVec, IntGauge, Result};

/// Results of fetching keys.
const FETCHES: [&str; 2] = ["fetched", "failed"];

/// Metrics of credentials.
#[derive(Debug)]
pub struct IdentityMetrics {
    refused: IntCounterVec,
    key_fetches: IntCounterVec,
    /// Tokens in the cache.
    pub tokens: IntGauge,
}

impl IdentityMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        let area = declare.area("Clients and credentials");
        Ok(Self {
            refused: area
                .when("A user counts as anonymous: why was the credential not accepted?")
                .of("reason", Ignored::ALL.map(Ignored::label))
                .counters(
                    "outrigger_credentials_refused_total",
                    "API keys and tokens that did not verify; their requests are handled as if without \
                     a credential.",
                )?,
            key_fetches: area
                .when("Valid tokens are rejected after a rotation of keys: do fetches fail?")
                .of("result", FETCHES)
                .counters(
                    "outrigger_jwks_fetches_total",
                    "Fetches of the keys that verify tokens, by result; after a failure the previous \
                     keys stay in use.",
                )?,
            tokens: area
                .when("Near `identity.jwt.cache`: tokens are verified again and again.")
                .gauge("outrigger_cached_tokens", "Tokens in the cache, verified or not.")?,
        })
    }

    /// Counts a fetch of the keys that verify tokens.
    pub fn keys_fetched(&self, is_ok: bool) {
        let [fetched, failed] = FETCHES;
        self.key_fetches.with_label_values(&[if is_ok { fetched } else { failed }]).inc();
    }

    /// Counts a key or token that did not verify.
    pub fn credential_refused(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
    }
}
