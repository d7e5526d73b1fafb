//! Counts failures by client: exact for few clients, bounded memory for many.

use super::{Caller, Failure};

/// The maximum number of clients counted separately. The one with the lowest count makes room for another.
const MOST_KNOWN: usize = 16;

/// Counts by client or place.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    known: Vec<(u64, u32)>,
    /// The sum of those that made room.
    others: u32,
}

impl Counts {
    pub(super) fn clear(&mut self) {
        self.known.clear();
        self.others = 0;
    }

    pub(super) fn add(&mut self, who: u64) {
        self.add_many(who, 1);
        if self.known.len() > MOST_KNOWN
            && let Some(least) = (0..self.known.len()).min_by_key(|index| self.known[*index].1)
        {
            self.others = self.others.saturating_add(self.known.swap_remove(least).1);
        }
    }

    /// Adds the counts of `more`.
    pub(super) fn merge(&mut self, more: &Self) {
        for (who, count) in &more.known {
            self.add_many(*who, *count);
        }
        self.others = self.others.saturating_add(more.others);
    }

    fn add_many(&mut self, who: u64, more: u32) {
        match self.known.iter_mut().find(|(known, _)| *known == who) {
            Some((_, count)) => *count = count.saturating_add(more),
            None => self.known.push((who, more)),
        }
    }

    /// Returns the total, where each of the `least - 1` busiest clients counts for at most one more than all clients
    /// besides these together. With `least` = 2, three failures of one client and two of another count as five; a thousand
    /// and one count as three.
    pub(super) fn independent(&self, least: u32) -> u32 {
        let mut counts: Vec<u32> = self.known.iter().map(|(_, count)| *count).collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let (busiest, others) = counts.split_at((least.max(1) as usize - 1).min(counts.len()));
        let rest = others.iter().fold(self.others, |sum, count| sum.saturating_add(*count));
        busiest.iter().fold(rest, |sum, count| sum.saturating_add((*count).min(rest.saturating_add(1))))
    }
}

/// A run of failures without a success.
#[derive(Clone, Debug, Default)]
pub(super) struct Run {
    clients: Counts,
    places: Counts,
    /// All failures.
    pub(super) total: u32,
    /// [`Failure::Away`].
    pub(super) away: u32,
    /// [`Failure::Reported`].
    pub(super) reported: u32,
}

impl Run {
    pub(super) fn clear(&mut self) {
        if self.total > 0 {
            self.clients.clear();
            self.places.clear();
            (self.total, self.away, self.reported) = (0, 0, 0);
        }
    }

    pub(super) fn add(&mut self, caller: Caller, failure: Failure) {
        self.total = self.total.saturating_add(1);
        match failure {
            Failure::Away => {
                self.away = self.away.saturating_add(1);
                return;
            }
            Failure::Reported => self.reported = self.reported.saturating_add(1),
            Failure::Silent | Failure::Answered => {}
        }
        self.clients.add(caller.client);
        self.places.add(caller.place);
    }

    /// Returns the number of failures, limited by client; if places share the breaker, limited by place as well.
    pub(super) fn counted(&self, min_clients: u32, is_shared: bool) -> u32 {
        let by_client = self.clients.independent(min_clients);
        let by_place = if is_shared { self.places.independent(2) } else { u32::MAX };
        self.away.saturating_add(by_client.min(by_place))
    }
}

/// The clients that were served last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Served {
    last: u64,
    at: Option<u64>,
    /// When a client other than `last` was served.
    other_at: Option<u64>,
}

impl Served {
    pub(super) fn add(&mut self, key: u64, now: u64) {
        if self.last != key {
            self.other_at = self.at;
            self.last = key;
        }
        self.at = Some(now);
    }

    /// Returns whether a client other than `key` was served at or after `since`.
    pub(super) fn has_other(&self, key: u64, since: u64) -> bool {
        let at = if self.last == key { self.other_at } else { self.at };
        at.is_some_and(|at| at >= since)
    }
}
