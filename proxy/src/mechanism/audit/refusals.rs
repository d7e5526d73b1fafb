//! A flood of refusals must fill neither disk nor database: so many in a second are entered one by one, of each client and of all
//! together, and the rest is entered as one with a count, for each type, route, reason and limit.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use outrigger_policy::audit::{Class, EventType, Time};

use crate::engine::state::Snapshot;
use crate::mechanism::audit::event::{Item, Who};

/// Refusals that are entered one by one in a second.
const REFUSALS_A_SECOND: u32 = 1000;
/// The same of one client, so that one that floods leaves room for the others'.
const REFUSALS_OF_A_CLIENT: u32 = 50;
/// Clients that are told apart in a second: no more of them could have an entry each.
const MOST_CLIENTS: usize = REFUSALS_A_SECOND as usize;

/// Refusals of this second.
#[derive(Debug, Default)]
pub struct Refusals {
    second: i64,
    entered: u32,
    /// What each client has had of them, by user, key or address.
    by_client: HashMap<u64, u32>,
    hasher: RandomState,
    beyond: BTreeMap<Refusal, Beyond>,
}

/// What refusals have in common that are entered as one: type, route, reason, and the number of the limit that refused.
pub type Refusal = (EventType, usize, &'static str, Option<u16>);

/// Refusals that are entered as one.
#[derive(Debug)]
pub struct Beyond {
    /// How many.
    pub count: u64,
    /// The status of the first.
    pub status: u16,
    /// When that was.
    pub from: Time,
    /// The rules that it was refused by.
    pub rules: Arc<Snapshot>,
}

impl Refusals {
    /// Whether a refusal is one too many to be entered by itself; then it is counted.
    pub fn is_beyond(&mut self, item: &Item, rules: &Arc<Snapshot>, time: impl FnOnce(Instant) -> Time) -> bool {
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

    /// What could not be entered is entered later.
    pub fn take_back(&mut self, beyond: Vec<(Refusal, Beyond)>) {
        for (refusal, earlier) in beyond {
            let (count, from) = (earlier.count, earlier.from);
            let kept = self.beyond.entry(refusal).or_insert(Beyond { count: 0, ..earlier });
            kept.count += count;
            kept.from = kept.from.min(from);
        }
    }

    /// What is to be entered of the second before.
    pub fn due(&mut self, now: Time) -> Vec<(Refusal, Beyond)> {
        let second = now.0 / 1_000_000;
        if second == self.second {
            return Vec::new();
        }
        (self.second, self.entered) = (second, 0);
        self.by_client.clear();
        self.take()
    }

    /// What was counted so far.
    pub fn take(&mut self) -> Vec<(Refusal, Beyond)> {
        std::mem::take(&mut self.beyond).into_iter().collect()
    }

    /// Nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.beyond.is_empty()
    }
}
