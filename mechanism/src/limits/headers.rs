//! Collects the rate limits that responses show; [`outrigger_wire::ratelimit`] writes them.

use outrigger_policy::limiter::Quota;
use outrigger_policy::tier::Tier;
use outrigger_rules::sections::limits::{Limits, MOST_LIMITS};
use outrigger_wire::ratelimit::{Item, Own, Upstream, merged};

use crate::limits::Shown;

/// The limits that a response tells of.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    items: [Item<'a>; MOST_LIMITS],
    len: usize,
    headers: bool,
    legacy_headers: bool,
}

impl<'a> Told<'a> {
    /// The limits `shown` to a client of `tier`; `None` if the response shows none.
    pub fn of(limits: &'a Limits, tier: Tier, shown: &Shown) -> Option<Self> {
        let (headers, legacy_headers) = (limits.headers, limits.legacy_headers);
        if !headers && !legacy_headers {
            return None;
        }
        let tier = tier as usize;
        let mut told = Self { items: [Item::default(); MOST_LIMITS], len: 0, headers, legacy_headers };
        for left in shown.iter() {
            let Some(limit) = limits.all.get(usize::from(left.limit)) else { continue };
            // As many as are shown at most, which is as many as there is room for.
            let Some(item) = told.items.get_mut(told.len) else { break };
            *item = Item {
                name: &limit.name,
                policy: &limit.policies[tier],
                burst: limit.quotas[tier].map_or(0, Quota::burst),
                remaining: left.remaining,
                full_in_s: left.full_in_s,
            };
            told.len += 1;
        }
        (told.len > 0).then_some(told)
    }

    /// The same, for what writes them.
    pub fn own(&self) -> Own<'_> {
        let Self { headers, legacy_headers, .. } = *self;
        Own { items: &self.items[..self.len], headers, legacy_headers }
    }

    /// Calls `field` with the name and value of each header that a response of our own gets.
    pub fn each(&self, field: impl FnMut(&'static str, &[u8])) {
        merged(self.own(), &Upstream::default(), field);
    }
}
