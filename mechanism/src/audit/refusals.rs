//! Protects disk and database from a flood of rejections. In each second a number of them is logged one by one, for
//! each client and in total; the rest is logged as one event with a count for each type, route, reason and limit.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use outrigger_policy::audit::{Class, EventType, Time};

use crate::audit::basis::AuditBasis;
use crate::audit::event::{Item, Who};

/// The number of rejections per second that are logged one by one.
const REFUSALS_A_SECOND: u32 = 1000;
/// The same for one client, so that a flood from it leaves room for others.
const REFUSALS_OF_A_CLIENT: u32 = 50;
/// The maximum number of clients counted in a second: no more of them could have an event each.
const MOST_CLIENTS: usize = REFUSALS_A_SECOND as usize;

/// The rejections of the current second.
#[derive(Debug, Default)]
pub struct Refusals {
    second: i64,
    entered: u32,
    /// The rejections of each client, by user, key or address.
    by_client: HashMap<u64, u32>,
    hasher: RandomState,
    beyond: BTreeMap<Refusal, Beyond>,
}

/// The common properties of rejections in one event: type, route, reason, and the index of the limit that rejected
/// them.
pub type Refusal = (EventType, usize, &'static str, Option<u16>);

/// Rejections that are logged as one event.
#[derive(Debug)]
pub struct Beyond {
    /// The number of rejections.
    pub count: u64,
    /// The status of the first response.
    pub status: u16,
    /// The time of the first rejection.
    pub from: Time,
    /// The configuration for the first rejection.
    pub rules: Arc<AuditBasis>,
}

impl Refusals {
    /// Returns whether a rejection is one too many to be logged by itself; then it is counted.
    pub fn is_beyond(&mut self, item: &Item, rules: &Arc<AuditBasis>, time: impl FnOnce(Instant) -> Time) -> bool {
        let Item::Request(event) = item else { return false };
        if event.event.class() != Class::Security || event.done.is_some() {
            return false;
        }
        if self.entered < REFUSALS_A_SECOND && !self.has_had_enough(&event.who) {
            self.entered += 1;
            return false;
        }
        let beyond =
            self.beyond.entry((event.event, event.route, event.reason.unwrap_or("none"), event.limit)).or_insert_with(
                || Beyond { count: 0, status: event.status, from: time(event.ended), rules: Arc::clone(rules) },
            );
        beyond.count += 1;
        true
    }

    fn has_had_enough(&mut self, who: &Who) -> bool {
        let client = match &who.verified {
            Some(verified) => self.hasher.hash_one(verified.shown()),
            None => self.hasher.hash_one(who.address),
        };
        if self.by_client.len() >= MOST_CLIENTS && !self.by_client.contains_key(&client) {
            return false;
        }
        let entered = self.by_client.entry(client).or_insert(0);
        *entered += 1;
        *entered > REFUSALS_OF_A_CLIENT
    }

    /// Takes back counts that could not be written, for a later event.
    pub fn take_back(&mut self, beyond: Vec<(Refusal, Beyond)>) {
        for (refusal, earlier) in beyond {
            let (count, from) = (earlier.count, earlier.from);
            let kept = self.beyond.entry(refusal).or_insert(Beyond { count: 0, ..earlier });
            kept.count += count;
            kept.from = kept.from.min(from);
        }
    }

    /// Returns the counts of the previous second, when it is over.
    pub fn due(&mut self, now: Time) -> Vec<(Refusal, Beyond)> {
        let second = now.0 / 1_000_000;
        if second == self.second {
            return Vec::new();
        }
        (self.second, self.entered) = (second, 0);
        self.by_client.clear();
        self.take()
    }

    /// Returns the counts so far.
    pub fn take(&mut self) -> Vec<(Refusal, Beyond)> {
        std::mem::take(&mut self.beyond).into_iter().collect()
    }

    /// Returns whether there are no counts.
    pub fn is_empty(&self) -> bool {
        self.beyond.is_empty()
    }
}
