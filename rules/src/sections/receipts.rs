//! `[receipts]`: how many receipts of requests are kept in memory, and for how long.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::complaints::Builder;
use crate::units::{OptionalShare, OrOff, Share, Span, Text};

/// Receipts: why a request was refused, retried or sent elsewhere, for `outrigger why ID`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Receipts {
    /// The most receipts in memory, of about 1 KiB each; 0: none.
    #[schemars(range(max = 1_000_000))]
    pub max: u32,
    /// For how long they are kept.
    pub keep: Text<Span>,
    /// The share of requests without anything unusual that get one as well, or "off".
    pub sample: Text<OptionalShare>,
}

impl Default for Receipts {
    fn default() -> Self {
        Self { max: 8192, keep: Text(Span(Duration::from_secs(900))), sample: Text(OrOff(Some(Share(0.01)))) }
    }
}

/// Receipts, checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReceiptRules {
    /// The most in memory.
    pub max: usize,
    /// For how long.
    pub keep: Duration,
    /// The share of ordinary requests.
    pub sample: f64,
}

impl Builder<'_> {
    /// Checks the bounds.
    pub fn receipts(&mut self, written: &Receipts) -> ReceiptRules {
        use crate::tree::Step;
        if written.max > 1_000_000 {
            self.complain(
                &[Step::Key("receipts"), Step::Key("max")],
                format!("`max` is at most 1000000, got {}", written.max),
                "each takes about 1 KiB of memory",
            );
        }
        let sample = if written.max == 0 { 0.0 } else { written.sample.0.0.map_or(0.0, |share| share.0) };
        ReceiptRules { max: written.max as usize, keep: written.keep.0.0, sample }
    }
}
