//! `[abuse]`: bans of clients.

use std::num::NonZeroU32;

use outrigger_policy::abuse::{Offence, Settings};
use outrigger_policy::flags::{Mode, Network};
use outrigger_policy::limiter::Quota;
use outrigger_policy::tier::Multiplier;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::acting::Acting;
use crate::complaints::Builder;
use crate::tree::Step;
use crate::units::{OptionalRate, Span, Text, non_zero, per_minute, span};

/// Bans of clients.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Abuse {
    /// Whether bans are enforced. Look at the counters in "monitor" first.
    pub mode: Acting,
    /// More rejections by rate limits (429) than this lead to a ban.
    pub refusals: Text<OptionalRate>,
    /// More responses 401 and 403 than this lead to a ban.
    pub login_failures: Text<OptionalRate>,
    /// More responses 404 than this lead to a ban.
    pub not_found: Text<OptionalRate>,
    /// Length of the first ban; each further one is twice as long.
    pub ban: Text<Span>,
    /// Maximum length of a ban. After the same time without a ban, a client starts again with the first one.
    pub max_ban: Text<Span>,
    /// Addresses and networks that are never banned.
    pub allow: Vec<Text<Network>>,
    /// Maximum number of bans kept. Beyond, the bans that end first are dropped.
    pub max_bans: NonZeroU32,
}

impl Default for Abuse {
    fn default() -> Self {
        Self {
            mode: Acting::Monitor,
            refusals: per_minute(300),
            login_failures: per_minute(20),
            not_found: per_minute(60),
            ban: span(60),
            max_ban: span(86_400),
            allow: Vec::new(),
            max_bans: non_zero(10_000),
        }
    }
}

/// Bans, checked.
#[derive(Clone, Debug)]
pub struct BanRules {
    /// Whether bans are enforced.
    pub mode: Mode,
    /// The quota of each offence.
    pub quotas: [Option<Quota>; Offence::ALL.len()],
    /// Lengths of bans.
    pub bans: Settings,
    /// Addresses that are never banned.
    pub allow: Vec<Network>,
    /// Maximum number of bans kept.
    pub max_bans: usize,
}

impl Builder<'_> {
    /// Checks the section.
    pub fn abuse(&mut self, written: &Abuse) -> BanRules {
        let (first, longest) = (written.ban.0.0, written.max_ban.0.0);
        let at = |key| [Step::Key("abuse"), Step::Key(key)];
        if first.is_zero() {
            self.complain(&at("ban"), "`ban` must be longer than zero", "write \"1m\", for example");
        }
        if longest < first {
            self.complain(&at("max_ban"), "`max_ban` is shorter than `ban`", "bans double from `ban` up to `max_ban`");
        }
        let quota =
            |rate: &Text<OptionalRate>| rate.0.0.and_then(|rate| Quota::new(rate, rate.count(), Multiplier::ONE));
        BanRules {
            mode: written.mode.into(),
            // In the order of `Offence::ALL`; bans by operators have no quota.
            quotas: [quota(&written.refusals), quota(&written.login_failures), quota(&written.not_found), None],
            bans: Settings { first, longest },
            allow: written.allow.iter().map(|network| network.0).collect(),
            max_bans: usize::try_from(written.max_bans.get()).unwrap_or(usize::MAX),
        }
    }
}
