//! A flood of strangers is to fill neither disk nor database: so many refusals in a second are entered one by one, and what is beyond
//! is entered as one with a count, for each type, route and reason.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use outrigger_policy::audit::{Class, EventType, Time};

use super::event::Item;
use crate::state::Snapshot;

/// Refusals that are entered one by one in a second.
const REFUSALS_A_SECOND: u32 = 1000;

/// Refusals of this second.
#[derive(Debug, Default)]
pub struct Refusals {
    second: i64,
    entered: u32,
    beyond: BTreeMap<Refusal, Beyond>,
}

/// What refusals have in common that are entered as one: type, route and reason.
pub type Refusal = (EventType, usize, &'static str);

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
        self.entered += 1;
        if self.entered <= REFUSALS_A_SECOND {
            return false;
        }
        let beyond =
            self.beyond.entry((event.event, event.route, event.reason.unwrap_or("none"))).or_insert_with(|| Beyond {
                count: 0,
                status: event.status,
                from: time(event.ended),
                rules: Arc::clone(rules),
            });
        beyond.count += 1;
        true
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
