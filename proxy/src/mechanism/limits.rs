//! How often each client may ask: the stage that applies the limits of the rules.
//!
//! A request needs the leave of every limit of its route. They are taken from one after the other; when one refuses, what
//! was taken from those before it is given back.
//!
//! What is taken is kept in one of two places: [`table`] has the keys that are this Machine's alone, [`shared`] those that all
//! Machines count together.

pub mod headers;
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

/// What an answer tells of one limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Left {
    /// The limit's number.
    pub limit: u16,
    /// So many may come now.
    pub remaining: u32,
    /// Nothing is taken any more after so many seconds.
    pub full_in_s: u32,
}

impl Left {
    fn new(limit: u16, standing: Standing) -> Self {
        let full_in_s = u32::try_from(seconds(standing.full_in)).unwrap_or(u32::MAX);
        Self { limit, remaining: standing.remaining, full_in_s }
    }
}

/// What an answer tells of the limits.
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

    /// What is left by now.
    fn restate(&mut self, standing: impl Fn(u16) -> Option<Standing>) {
        for left in &mut self.items[..usize::from(self.len)] {
            *left = standing(left.limit).map_or(*left, |standing| Left::new(left.limit, standing));
        }
    }

    /// Shows the limit that has refused, also one of which responses do not tell otherwise: less than `cost` is left of it, and
    /// it is not full before the client may come back.
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

    /// Limit by limit.
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

/// What was taken from a limit, so that it can be taken back.
#[derive(Clone, Copy, Debug)]
enum Charge<'s> {
    /// On this Machine.
    Own(table::Charge<'s>),
    /// From what all Machines share.
    Shared(shared::Charge<'s>),
}

impl<'s> Books<'s> {
    fn open(state: &'s State, limits: &Limits, now: u64) -> Self {
        let shared = limits.sharing.as_ref().and_then(|_| state.shared.cells());
        Self { state, shared, law: state.shared.law(now), now }
    }

    /// Asks the processor for a key that will be needed.
    fn warm(self, limit: &Limit, tag: u64) {
        match self.shared.filter(|_| limit.is_shared) {
            Some(cells) => cells.warm(tag),
            None => self.state.limits.warm(tag),
        }
    }

    /// The quota of a key that is counted here: where it should be shared and cannot, only this Machine's part of it.
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
            self.state.metrics.limit_overflow.inc();
        }
        let charge = taken.map_err(|refused| refused.exceeded)?;
        Ok((Charge::Own(charge), own.standing(charge.tat, self.now)))
    }

    /// Takes one for what has happened already, unless the quota is exhausted: the requests before it were under way together.
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

    /// Whether `cost` could be taken.
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
    /// As if the request had never come.
    fn take_back(self) {
        match self {
            Self::Own(charge) => charge.take_back(),
            Self::Shared(charge) => charge.take_back(),
        }
    }
}

/// Takes what the request costs from all of its limits, or from none. The stage.
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
    // All at once, so that the processor fetches them together: they are far from each other and from everything else.
    let mut tags = [0; MOST_LIMITS];
    for (tag, (_, limit)) in tags.iter_mut().zip(limits.of(exchange.route)) {
        *tag = tag_of(limit, exchange);
        books.warm(limit, *tag);
    }
    let mut charges: [Option<(Charge<'_>, bool)>; MOST_LIMITS] = [None; MOST_LIMITS];
    let mut taken = charges.iter_mut();
    let mut shown = Shown::default();
    // The limit that makes the client wait longest, and whether it counts.
    let (mut refused, mut monitored): (Option<(u16, Exceeded)>, Option<u16>) = (None, None);
    for ((number, limit), tag) in limits.of(exchange.route).zip(tags) {
        let Some(quota) = limit.quotas[tier] else { continue };
        let is_monitored = limit.is_monitored(exchange.admission);
        // Once one has refused, nothing is taken any more: the others only say how long they would have the client wait.
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
            // Where nothing was taken, nothing has changed.
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
    // What a monitored limit would have refused would not have been taken from the other monitored ones either.
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
            state.metrics.refusals.monitored(
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

/// Gives back what a request took from its limits: it was refused for a reason that is none of the client's.
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

/// Takes from the limits that count failures, once an answer turns out to be one.
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
        let (queue, _) = LogQueue::start(LogFormat::Json, metrics.log_dropped.clone()).unwrap();
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
    fn what_is_given_back_for_want_of_slots_is_given_back_once() {
        let state = state(
            "rate_limits.medium = \"2/1h\"\n[[rate_limits.rules]]\nname = \"watched\"\nrate = \"1/1h\"\nmode = \"monitor\"\n",
        );
        let monitored = || state.rules.load().limit_metrics.iter().map(|limit| limit.monitored.get()).sum::<u64>();
        let (first, verdict) = asked(&state);
        assert_eq!((verdict, monitored()), (Ok(()), 0));
        // Nothing was taken from the monitored limit, so nothing comes back.
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
        // By default it takes the last route; the first is another one.
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
        // The second's name for the whole Machine, and the third's for all but the route, are the first's.
        assert_eq!(count - all.len(), 3 + 6);
    }
}
