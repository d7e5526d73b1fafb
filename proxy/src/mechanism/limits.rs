//! The stage that applies the configured rate limits.
//!
//! A request must be admitted by every rate limit of its route. The limits are charged one after the other; if one
//! rejects the request, the charges to the earlier ones are undone.
//!
//! [`table`] holds the state of limits that each Machine enforces alone, [`shared`] the state of shared rate limits.

pub mod headers;
pub mod metrics;
mod names;
pub mod settling;
pub mod shared;
pub mod table;

use std::time::Duration;

use outrigger_policy::flags::Mode;
use outrigger_policy::limiter::{Exceeded, Quota, Standing};
use outrigger_rules::sections::limits::{Count, Limit, Limits, MOST_LIMITS};
use outrigger_wire::request::Request;
use outrigger_wire::retry_after::seconds;

use crate::engine::exchange::Exchange;
use crate::engine::rejection::Rejection;
use crate::engine::state::State;
use crate::mechanism::limits::shared::{Cells, Law};
use crate::mechanism::limits::table::Refused;

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

/// The key of an exchange's client under a limit.
fn tag_of(limit: &Limit, exchange: &Exchange) -> u64 {
    limit.tag(&exchange.client, exchange.rules.route_tags[exchange.route])
}

/// Whose keys share a cell with that one where the table has no room for them.
fn origin_of(limit: &Limit, exchange: &Exchange) -> u64 {
    limit.origin(&exchange.client, exchange.rules.route_tags[exchange.route])
}

/// Where what was taken is kept, as it is at one moment.
#[derive(Clone, Copy, Debug)]
struct Books<'s> {
    state: &'s State,
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
    fn open(state: &'s State, limits: &Limits, now: u64) -> Self {
        let shared = limits.sharing.as_ref().and_then(|_| state.shared.cells());
        Self { state, shared, law: state.shared.law(now), now }
    }

    /// Prefetches the cell of a key.
    fn warm(self, limit: &Limit, tag: u64) {
        match self.shared.filter(|_| limit.is_shared) {
            Some(cells) => cells.warm(tag),
            None => self.state.limits.warm(tag),
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
        cost: u32,
        exchange: &Exchange,
        name: impl FnOnce() -> Option<[u64; 2]>,
    ) -> Result<(Charge<'s>, Standing), Exceeded> {
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
        let taken = self.state.limits.take(tag, own, self.now, cost, || origin_of(limit, exchange));
        let (Ok(table::Charge { overflowed, .. }) | Err(Refused { overflowed, .. })) = taken;
        if is_full || overflowed {
            self.state.metrics.limits.overflow.inc();
        }
        let charge = taken.map_err(|refused| refused.exceeded)?;
        Ok((Charge::Own(charge), own.standing(charge.tat, self.now)))
    }

    /// Charges one unit for a failure that has already happened, unless the quota is used up: requests that were in
    /// flight at the same time may exceed it.
    fn charge(
        self,
        limit: &Limit,
        tag: u64,
        quota: Quota,
        exchange: &Exchange,
        name: impl FnOnce() -> Option<[u64; 2]>,
    ) {
        if let Some(cells) = self.shared.filter(|_| limit.is_shared)
            && let Ok(index) = cells.find_or_claim(tag, name)
        {
            return cells.charge(index, quota, self.law);
        }
        let own = self.own(limit, quota, 1);
        let _ = self.state.limits.take(tag, own, self.now, 1, || origin_of(limit, exchange));
    }

    /// Checks whether `cost` could be charged, without charging it.
    fn look(self, limit: &Limit, tag: u64, quota: Quota, cost: u32) -> Result<(), Exceeded> {
        match self.cell(limit, tag) {
            Some((cells, index)) => cells.look(index, quota, cost, self.law),
            None => self.own(limit, quota, cost).take(self.state.limits.look(tag), self.now, cost).map(drop),
        }
    }

    fn standing(self, limit: &Limit, tag: u64, quota: Quota) -> Standing {
        match self.cell(limit, tag) {
            Some((cells, index)) => cells.standing_of(index, quota, self.law),
            None => self.own(limit, quota, 1).standing(self.state.limits.look(tag), self.now),
        }
    }

    fn give_back(self, limit: &Limit, tag: u64, quota: Quota, cost: u32) {
        match self.cell(limit, tag) {
            Some((cells, index)) => cells.give_back_to(index, quota, cost, self.law),
            None => self.state.limits.give_back(tag, self.own(limit, quota, cost).charge_ns(cost)),
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

/// Stage: charges the cost of the request to all of its rate limits, or leaves all of them unchanged.
///
/// # Errors
/// [`Rejection::QuotaExceeded`]
pub fn check(state: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    if exchange.admission == Mode::Off || !exchange.is_counted_here() {
        return Ok(());
    }
    let rules = &exchange.rules;
    let limits = &rules.config.limits;
    let now = state.nanoseconds(exchange.started);
    let books = Books::open(state, limits, now);
    let cost = rules.config.routes.all()[exchange.route].cost;
    let tier = exchange.client.tier as usize;
    // Prefetch all cells at once: they are far apart in memory.
    let mut tags = [0; MOST_LIMITS];
    for (tag, (_, limit)) in tags.iter_mut().zip(limits.of(exchange.route)) {
        *tag = tag_of(limit, exchange);
        books.warm(limit, *tag);
    }
    let mut charges: [Option<(Charge<'_>, bool)>; MOST_LIMITS] = [None; MOST_LIMITS];
    let mut taken = charges.iter_mut();
    let mut shown = Shown::default();
    // The enforced limit with the longest wait, and a monitored limit that would have rejected the request.
    let (mut refused, mut monitored): (Option<(u16, Exceeded)>, Option<u16>) = (None, None);
    for ((number, limit), tag) in limits.of(exchange.route).zip(tags) {
        let Some(quota) = limit.quotas[tier] else { continue };
        let is_monitored = limit.is_monitored(exchange.admission);
        // After a rejection the other enforced limits are not charged, only checked for a longer wait.
        let only_looks = limit.count == Count::Failures || (refused.is_some() && !is_monitored);
        let verdict = if only_looks {
            books.look(limit, tag, quota, if limit.count == Count::Failures { 1 } else { cost }).map(|()| None)
        } else {
            let name = || names::of(limit, exchange, Some(request));
            books.take(limit, tag, quota, cost, exchange, name).map(|(charge, standing)| {
                if let Some(slot) = taken.next() {
                    *slot = Some((charge, is_monitored));
                }
                Some(standing)
            })
        };
        if limit.is_shown() && !is_monitored {
            // Without a charge, the state is unchanged.
            let standing = verdict.ok().flatten().unwrap_or_else(|| books.standing(limit, tag, quota));
            shown.push(number, standing);
        }
        match verdict {
            Ok(_) => {}
            Err(_) if is_monitored => monitored = Some(number),
            Err(exceeded) if refused.is_none_or(|(_, before)| exceeded.retry_after > before.retry_after) => {
                refused = Some((number, exceeded));
            }
            Err(_) => {}
        }
    }
    // If a monitored limit would have rejected the request, the other monitored limits would not have been charged.
    if refused.is_some() || monitored.is_some() {
        let is_given_back = |is_monitored: bool| refused.is_some() || is_monitored;
        charges.into_iter().flatten().filter(|(_, m)| is_given_back(*m)).for_each(|(charge, _)| charge.take_back());
        if let Some((number, Exceeded { retry_after })) = refused {
            let standing = |number: u16| {
                let limit = limits.all.get(usize::from(number))?;
                limit.quotas[tier].map(|quota| books.standing(limit, tag_of(limit, exchange), quota))
            };
            shown.restate(standing);
            let is_failures = limits.all.get(usize::from(number)).is_some_and(|limit| limit.count == Count::Failures);
            shown.refused(number, standing(number), if is_failures { 1 } else { cost }, retry_after);
        }
    }
    if let Some(number) = monitored {
        rules.limit_metrics[usize::from(number)].monitored.inc();
        if refused.is_none() {
            state.metrics.rejections.refusals.monitored(
                Rejection::QUOTA_EXCEEDED,
                rules.config.routes.all()[exchange.route].priority,
                exchange.client.tier,
            );
        }
    }
    exchange.is_beyond_monitored = monitored.is_some();
    exchange.shown_limits = shown;
    match refused {
        None => Ok(()),
        Some((number, Exceeded { retry_after })) => {
            rules.limit_metrics[usize::from(number)].enforced.inc();
            Err(Rejection::QuotaExceeded { limit: number, retry_after })
        }
    }
}

/// Undoes the charges of a request that was rejected for a reason unrelated to its client.
pub fn give_back(state: &State, exchange: &Exchange) {
    if exchange.admission == Mode::Off || !exchange.is_counted_here() {
        return;
    }
    let limits = &exchange.rules.config.limits;
    let cost = exchange.route().cost;
    let books = Books::open(state, limits, state.nanoseconds(exchange.started));
    for (_, limit) in limits.of(exchange.route).filter(|(_, limit)| limit.count == Count::Requests) {
        if exchange.is_beyond_monitored && limit.is_monitored(exchange.admission) {
            continue;
        }
        if let Some(quota) = limit.quotas[exchange.client.tier as usize] {
            books.give_back(limit, tag_of(limit, exchange), quota, cost);
        }
    }
}

/// Charges the limits that count failures, when a response turns out to be one.
pub fn failed(state: &State, exchange: &Exchange) {
    if !exchange.is_counted_here() {
        return;
    }
    let limits = &exchange.rules.config.limits;
    let books = Books::open(state, limits, state.nanoseconds(exchange.head_at.unwrap_or(exchange.started)));
    for (_, limit) in limits.of(exchange.route).filter(|(_, limit)| limit.count == Count::Failures) {
        if let Some(quota) = limit.quotas[exchange.client.tier as usize] {
            books.charge(limit, tag_of(limit, exchange), quota, exchange, || names::of(limit, exchange, None));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::metrics::Metrics;
    use crate::mechanism::access_log::AccessLog;
    use crate::mechanism::log::LogQueue;
    use http::{HeaderMap, Method};
    use outrigger_rules::config::Config;
    use outrigger_rules::sections::log::LogFormat;
    use outrigger_wire::request::Fields;
    use std::path::Path;

    fn state(rules: &str) -> State {
        let config = Config::parse(Path::new("test"), rules, &|_| None).unwrap();
        let metrics = Metrics::new().unwrap();
        let (queue, _) = LogQueue::start(LogFormat::Json, metrics.log.dropped.clone()).unwrap();
        State::new(config, metrics, AccessLog::new(queue))
    }

    fn asked(state: &State) -> (Exchange, Result<(), Rejection>) {
        let (fields, method) = (HeaderMap::new(), Method::GET);
        let fields = Fields::Map(&fields);
        let request = Request {
            method: &method,
            path: "/",
            host: "a",
            fields,
            is_http10: false,
            target: "/",
            has_endless_body: false,
        };
        let mut exchange = Exchange::new(state.rules.load_full());
        exchange.admission = Mode::Enforce;
        let verdict = check(state, &request, &mut exchange);
        (exchange, verdict)
    }

    #[test]
    fn tokens_of_a_request_without_a_permit_are_returned_once() {
        let state = state(
            "rate_limits.medium = \"2/1h\"\n[[rate_limits.rules]]\nname = \"watched\"\nrate = \"1/1h\"\nmode = \"monitor\"\n",
        );
        let monitored = || state.rules.load().limit_metrics.iter().map(|limit| limit.monitored.get()).sum::<u64>();
        let (first, verdict) = asked(&state);
        assert_eq!((verdict, monitored()), (Ok(()), 0));
        // The monitored limit was not charged, so there is no charge to undo.
        let (second, verdict) = asked(&state);
        assert_eq!((verdict, monitored()), (Ok(()), 1));
        give_back(&state, &second);
        let (_, verdict) = asked(&state);
        assert_eq!((verdict, monitored()), (Ok(()), 2));
        assert!(asked(&state).1.is_err(), "the enforced limit has had its two");
        give_back(&state, &first);
        assert_eq!(asked(&state).1, Ok(()));
    }

    #[test]
    fn all_machines_call_a_key_the_same_and_different_keys_differently() {
        let rules = "rate_limits.shared = \"redis\"\nrate_limits.redis.url = \"redis://localhost\"\n\
                     [[rate_limits.rules]]\nname = \"a\"\nrate = \"1/1h\"\nby = \"client-and-route\"\n\
                     [[rate_limits.rules]]\nname = \"b\"\nrate = \"1/1h\"\nby = \"address\"\n\
                     [[rate_limits.rules]]\nname = \"c\"\nrate = \"1/1h\"\nby = \"machine\"\n";
        // An exchange has the last route by default; the first is another one.
        let names = |address: &str, is_elsewhere: bool| {
            let state = state(rules);
            let mut exchange = Exchange::new(state.rules.load_full());
            exchange.client.address = address.parse().unwrap();
            exchange.route = if is_elsewhere { 0 } else { exchange.route };
            let limits = &exchange.rules.config.limits.all;
            assert_eq!(limits.iter().filter(|limit| limit.is_shared).count(), limits.len() - 1, "not the Machine's");
            limits.iter().map(|limit| names::of(limit, &exchange, None).unwrap()).collect::<Vec<_>>()
        };
        let (one, again) = (names("192.0.2.1", false), names("::ffff:192.0.2.1", false));
        assert_eq!(one, again);
        let mut all = [one, names("192.0.2.2", false), names("192.0.2.1", true), names("2001:db8::1", false)].concat();
        assert_eq!(names("2001:db8::1", false), names("2001:db8::2", false), "a /64 is one client");
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        // Limit `c` has one name for all four; the third call differs from the first only in names with the route.
        assert_eq!(count - all.len(), 3 + 6);
    }
}
