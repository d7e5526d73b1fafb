//! The configured rate limits.
//!
//! A request must be admitted by every rate limit of its route. The limits are charged one after the other; if one
//! rejects the request, the charges to the earlier ones are undone.
//!
//! [`table`] holds the state of limits that each Machine enforces alone, [`shared`] the state of shared rate limits.

pub mod headers;
pub mod metrics;
pub mod names;
pub mod settling;
pub mod shared;
pub mod table;

use std::time::Duration;

use outrigger_identity::client::Client;
use outrigger_metrics::IntCounter;
use outrigger_policy::flags::Mode;
use outrigger_policy::limiter::{Exceeded, Quota, Standing};
use outrigger_rules::sections::limits::{Count, Limit, Limits, MOST_LIMITS};
use outrigger_wire::retry_after::seconds;

use crate::limits::shared::{Cells, Law, Shared};
use crate::limits::table::{Refused, Table};

/// The state of one rate limit, as shown in a response.
#[derive(Clone, Copy, Debug, Default)]
pub struct Left {
    /// The index of the limit.
    pub limit: u16,
    /// The remaining quota.
    pub remaining: u32,
    /// Seconds until the quota is full again.
    pub full_in_s: u32,
}

impl Left {
    fn new(limit: u16, standing: Standing) -> Self {
        let full_in_s = u32::try_from(seconds(standing.full_in)).unwrap_or(u32::MAX);
        Self { limit, remaining: standing.remaining, full_in_s }
    }
}

/// The rate limits shown in a response.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shown {
    items: [Left; MOST_LIMITS],
    len: u8,
}

impl Shown {
    fn push(&mut self, number: u16, standing: Standing) {
        if let Some(item) = self.items.get_mut(usize::from(self.len)) {
            *item = Left::new(number, standing);
            self.len += 1;
        }
    }

    /// Updates the limits to their current state.
    fn restate(&mut self, standing: impl Fn(u16) -> Option<Standing>) {
        for left in &mut self.items[..usize::from(self.len)] {
            *left = standing(left.limit).map_or(*left, |standing| Left::new(left.limit, standing));
        }
    }

    /// Shows the limit that rejected the request, even if responses do not show it otherwise. Less than `cost` remains,
    /// and the quota is not full before `retry_after`.
    fn refused(&mut self, number: u16, standing: Option<Standing>, cost: u32, retry_after: Duration) {
        if !self.iter().any(|left| left.limit == number) {
            self.push(number, standing.unwrap_or(Standing { remaining: 0, full_in: retry_after }));
        }
        let retry_after_s = u32::try_from(seconds(retry_after)).unwrap_or(u32::MAX);
        for left in self.items[..usize::from(self.len)].iter_mut().filter(|left| left.limit == number) {
            left.remaining = left.remaining.min(cost.saturating_sub(1));
            left.full_in_s = left.full_in_s.max(retry_after_s);
        }
    }

    /// Iterates over the limits.
    pub fn iter(&self) -> impl Iterator<Item = Left> {
        self.items[..usize::from(self.len)].iter().copied()
    }
}

/// A request, as rate limits see it.
#[derive(Clone, Copy, Debug)]
pub struct LimitedRequest<'r> {
    /// All configured rate limits.
    pub limits: &'r Limits,
    /// The index of its route.
    pub route: usize,
    /// A hash of the route's name.
    pub route_tag: u64,
    /// The cost of a request on this route.
    pub cost: u32,
    /// Its client.
    pub client: &'r Client,
    /// The mode of all limits for this client.
    pub admission: Mode,
}

impl LimitedRequest<'_> {
    /// The client's key under a limit.
    fn tag(&self, limit: &Limit) -> u64 {
        limit.tag(self.client, self.route_tag)
    }

    /// The keys that share a cell with this one if the table has no room for them.
    fn origin(&self, limit: &Limit) -> u64 {
        limit.origin(self.client, self.route_tag)
    }
}

/// The result of [`Books::take_all`].
#[derive(Clone, Copy, Debug)]
#[must_use = "the request may have to be rejected"]
pub struct Verdict {
    /// The rate limits that the response shows.
    pub shown: Shown,
    /// The enforced limit that rejects the request for the longest time, and that time. No limit was charged.
    pub refused: Option<(u16, Duration)>,
    /// A monitored limit that would have rejected the request. No monitored limit was charged.
    pub monitored: Option<u16>,
}

/// Where what was taken is kept, as it is at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Books<'s> {
    table: &'s Table,
    /// Counts keys that find no cell of their own.
    overflow: &'s IntCounter,
    shared: Option<&'s Cells>,
    law: Law,
    now: u64,
}

/// A charge to a rate limit, which can be undone.
#[derive(Clone, Copy, Debug)]
enum Charge<'s> {
    /// To a limit that this Machine enforces alone.
    Own(table::Charge<'s>),
    /// To a shared rate limit.
    Shared(shared::Charge<'s>),
}

impl<'s> Books<'s> {
    /// The state of all rate limits at `now`. `overflow` counts keys that find no cell of their own.
    pub fn open(table: &'s Table, shared: &'s Shared, overflow: &'s IntCounter, limits: &Limits, now: u64) -> Self {
        let law = shared.law(now);
        let shared = limits.sharing.as_ref().and_then(|_| shared.cells());
        Self { table, overflow, shared, law, now }
    }

    /// Charges the cost of the request to all of its rate limits, or leaves all of them unchanged. `name` returns the name of
    /// the request's key in Redis.
    pub fn take_all(self, request: LimitedRequest<'_>, name: impl Fn(&Limit) -> Option<[u64; 2]>) -> Verdict {
        let LimitedRequest { limits, route, cost, client, admission, .. } = request;
        let tier = client.tier as usize;
        // Prefetch all cells at once: they are far apart in memory.
        let mut tags = [0; MOST_LIMITS];
        for (tag, (_, limit)) in tags.iter_mut().zip(limits.of(route)) {
            *tag = request.tag(limit);
            self.warm(limit, *tag);
        }
        let mut charges: [Option<(Charge<'_>, bool)>; MOST_LIMITS] = [None; MOST_LIMITS];
        let mut taken = charges.iter_mut();
        let mut shown = Shown::default();
        // The enforced limit with the longest wait, and a monitored limit that would have rejected the request.
        let (mut refused, mut monitored): (Option<(u16, Duration)>, Option<u16>) = (None, None);
        for ((number, limit), tag) in limits.of(route).zip(tags) {
            let Some(quota) = limit.quotas[tier] else { continue };
            let is_monitored = limit.is_monitored(admission);
            // After a rejection the other enforced limits are not charged, only checked for a longer wait.
            let only_looks = limit.count == Count::Failures || (refused.is_some() && !is_monitored);
            let verdict = if only_looks {
                self.look(limit, tag, quota, if limit.count == Count::Failures { 1 } else { cost }).map(|()| None)
            } else {
                self.take(limit, tag, quota, &request, || name(limit)).map(|(charge, standing)| {
                    if let Some(slot) = taken.next() {
                        *slot = Some((charge, is_monitored));
                    }
                    Some(standing)
                })
            };
            if limit.is_shown() && !is_monitored {
                // Without a charge, the state is unchanged.
                let standing = verdict.ok().flatten().unwrap_or_else(|| self.standing(limit, tag, quota));
                shown.push(number, standing);
            }
            match verdict {
                Ok(_) => {}
                Err(_) if is_monitored => monitored = Some(number),
                Err(Exceeded { retry_after }) if refused.is_none_or(|(_, before)| retry_after > before) => {
                    refused = Some((number, retry_after));
                }
                Err(_) => {}
            }
        }
        // If a monitored limit would have rejected the request, the other monitored limits would not have been charged.
        if refused.is_some() || monitored.is_some() {
            let is_given_back = |is_monitored: bool| refused.is_some() || is_monitored;
            charges.into_iter().flatten().filter(|(_, m)| is_given_back(*m)).for_each(|(charge, _)| charge.take_back());
        }
        if let Some((number, retry_after)) = refused {
            self.show_refusal(&mut shown, &request, number, retry_after);
        }
        Verdict { shown, refused, monitored }
    }

    /// Shows the limits after all charges were undone, and the one that rejected the request.
    fn show_refusal(self, shown: &mut Shown, request: &LimitedRequest<'_>, number: u16, retry_after: Duration) {
        let limit_of = |number: u16| request.limits.all.get(usize::from(number));
        let standing = |number: u16| {
            let limit = limit_of(number)?;
            limit.quotas[request.client.tier as usize].map(|quota| self.standing(limit, request.tag(limit), quota))
        };
        shown.restate(standing);
        let is_failures = limit_of(number).is_some_and(|limit| limit.count == Count::Failures);
        shown.refused(number, standing(number), if is_failures { 1 } else { request.cost }, retry_after);
    }

    /// Undoes the charges of a request that was rejected for a reason unrelated to its client. `is_beyond_monitored`: no
    /// monitored limit was charged.
    pub fn give_back_all(self, request: LimitedRequest<'_>, is_beyond_monitored: bool) {
        let limits = request.limits.of(request.route);
        for (_, limit) in limits.filter(|(_, limit)| limit.count == Count::Requests) {
            if is_beyond_monitored && limit.is_monitored(request.admission) {
                continue;
            }
            if let Some(quota) = limit.quotas[request.client.tier as usize] {
                self.give_back(limit, request.tag(limit), quota, request.cost);
            }
        }
    }

    /// Charges the limits that count failures, when a response turns out to be one.
    pub fn charge_failure(self, request: LimitedRequest<'_>, name: impl Fn(&Limit) -> Option<[u64; 2]>) {
        let limits = request.limits.of(request.route);
        for (_, limit) in limits.filter(|(_, limit)| limit.count == Count::Failures) {
            if let Some(quota) = limit.quotas[request.client.tier as usize] {
                self.charge(limit, quota, &request, || name(limit));
            }
        }
    }

    /// Prefetches the cell of a key.
    fn warm(self, limit: &Limit, tag: u64) {
        match self.shared.filter(|_| limit.is_shared) {
            Some(cells) => cells.warm(tag),
            None => self.table.warm(tag),
        }
    }

    /// Returns the quota of a key in this Machine's table: for a limit that should be shared, only this Machine's
    /// share.
    fn own(self, limit: &Limit, quota: Quota, cost: u32) -> Quota {
        if limit.is_shared { self.law.share(quota, cost) } else { quota }
    }

    fn take(
        self,
        limit: &Limit,
        tag: u64,
        quota: Quota,
        request: &LimitedRequest<'_>,
        name: impl FnOnce() -> Option<[u64; 2]>,
    ) -> Result<(Charge<'s>, Standing), Exceeded> {
        let cost = request.cost;
        let mut is_full = false;
        if let Some(cells) = self.shared.filter(|_| limit.is_shared) {
            match cells.find_or_claim(tag, name) {
                Ok(index) => {
                    let charge = cells.spend(index, quota, cost, self.law)?;
                    return Ok((Charge::Shared(charge), charge.standing()));
                }
                Err(shared::NoCell::Full) => is_full = true,
                Err(shared::NoCell::Nameless) => {}
            }
        }
        let own = self.own(limit, quota, cost);
        let taken = self.table.take(tag, own, self.now, cost, || request.origin(limit));
        let (Ok(table::Charge { overflowed, .. }) | Err(Refused { overflowed, .. })) = taken;
        if is_full || overflowed {
            self.overflow.inc();
        }
        let charge = taken.map_err(|refused| refused.exceeded)?;
        Ok((Charge::Own(charge), own.standing(charge.tat, self.now)))
    }

    /// Charges one unit for a failure that has already happened, unless the quota is used up: requests that were in
    /// flight at the same time may exceed it.
    fn charge(
        self,
        limit: &Limit,
        quota: Quota,
        request: &LimitedRequest<'_>,
        name: impl FnOnce() -> Option<[u64; 2]>,
    ) {
        let tag = request.tag(limit);
        if let Some(cells) = self.shared.filter(|_| limit.is_shared)
            && let Ok(index) = cells.find_or_claim(tag, name)
        {
            return cells.charge(index, quota, self.law);
        }
        let own = self.own(limit, quota, 1);
        let _ = self.table.take(tag, own, self.now, 1, || request.origin(limit));
    }

    /// Checks whether `cost` could be charged, without charging it.
    fn look(self, limit: &Limit, tag: u64, quota: Quota, cost: u32) -> Result<(), Exceeded> {
        match self.cell(limit, tag) {
            Some((cells, index)) => cells.look(index, quota, cost, self.law),
            None => self.own(limit, quota, cost).take(self.table.look(tag), self.now, cost).map(drop),
        }
    }

    fn standing(self, limit: &Limit, tag: u64, quota: Quota) -> Standing {
        match self.cell(limit, tag) {
            Some((cells, index)) => cells.standing_of(index, quota, self.law),
            None => self.own(limit, quota, 1).standing(self.table.look(tag), self.now),
        }
    }

    fn give_back(self, limit: &Limit, tag: u64, quota: Quota, cost: u32) {
        match self.cell(limit, tag) {
            Some((cells, index)) => cells.give_back_to(index, quota, cost, self.law),
            None => self.table.give_back(tag, self.own(limit, quota, cost).charge_ns(cost)),
        }
    }

    fn cell(self, limit: &Limit, tag: u64) -> Option<(&'s Cells, usize)> {
        let cells = self.shared.filter(|_| limit.is_shared)?;
        cells.find(tag).map(|index| (cells, index))
    }
}

impl Charge<'_> {
    /// Undoes the charge.
    fn take_back(self) {
        match self {
            Self::Own(charge) => charge.take_back(),
            Self::Shared(charge) => charge.take_back(),
        }
    }
}
