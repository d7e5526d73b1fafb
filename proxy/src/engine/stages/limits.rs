//! The stage that applies the configured rate limits, and what undoes or adds charges later.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use outrigger_policy::flags::Mode;
use outrigger_rules::sections::limits::Limit;
use outrigger_wire::request::Request;

use crate::engine::exchange::Exchange;
use crate::engine::receipts::steps::Step;
use crate::engine::rejection::Rejection;
use crate::engine::state::State;
use crate::mechanism::limits::headers::Told;
use crate::mechanism::limits::{Books, LimitedRequest, names};

/// The state of all rate limits at `at`, under the exchange's configuration.
fn books<'s>(state: &'s State, exchange: &Exchange, at: Instant) -> Books<'s> {
    let limits = &exchange.rules.config.limits;
    Books::open(&state.limits, &state.shared, &state.metrics.limits.overflow, limits, state.nanoseconds(at))
}

/// The exchange, as rate limits see it.
fn limited(exchange: &Exchange) -> LimitedRequest<'_> {
    LimitedRequest {
        limits: &exchange.rules.config.limits,
        route: exchange.route,
        route_tag: exchange.rules.route_tags[exchange.route],
        cost: exchange.route().cost,
        client: &exchange.client,
        admission: exchange.admission,
    }
}

/// The name in Redis of the key that `exchange` has under `limit`. `None` if the client presented an unknown API key and
/// `request` is `None`: only the request contains that key.
fn name(limit: &Limit, exchange: &Exchange, request: Option<&Request<'_>>) -> Option<[u64; 2]> {
    let config = &exchange.rules.config;
    let naming = &config.limits.sharing.as_ref()?.naming;
    let presented_key = || config.credentials.presented_key(request?.fields);
    names::of(limit, naming, &exchange.client, &exchange.route().name, presented_key)
}

/// Stage: charges the cost of the request to all of its rate limits, or leaves all of them unchanged.
///
/// # Errors
/// [`Rejection::QuotaExceeded`]
pub fn check(state: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    if exchange.admission == Mode::Off || !exchange.is_counted_here() {
        return Ok(());
    }
    let books = books(state, exchange, exchange.started);
    let verdict = books.take_all(limited(exchange), |limit| name(limit, exchange, Some(request)));
    if let Some(number) = verdict.monitored {
        exchange.rules.limit_metrics[usize::from(number)].monitored.inc();
        if verdict.refused.is_none() {
            let (priority, tier) = (exchange.route().priority, exchange.client.tier);
            state.metrics.rejections.refusals.monitored(Rejection::QUOTA_EXCEEDED, priority, tier);
            let would_reject = Rejection::QuotaExceeded { limit: number, retry_after: Duration::ZERO };
            exchange.steps.add(exchange.started, Step::Monitored(would_reject));
        }
    }
    exchange.is_beyond_monitored = verdict.monitored.is_some();
    exchange.shown_limits = verdict.shown;
    match verdict.refused {
        None => Ok(()),
        Some((number, retry_after)) => {
            exchange.rules.limit_metrics[usize::from(number)].enforced.inc();
            Err(Rejection::QuotaExceeded { limit: number, retry_after })
        }
    }
}

/// Undoes the charges of a request that was rejected for a reason unrelated to its client.
pub fn give_back(state: &State, exchange: &Exchange) {
    if exchange.admission == Mode::Off || !exchange.is_counted_here() {
        return;
    }
    books(state, exchange, exchange.started).give_back_all(limited(exchange), exchange.is_beyond_monitored);
}

/// Charges the limits that count failures, when a response turns out to be one.
pub fn failed(state: &State, exchange: &Exchange) {
    if !exchange.is_counted_here() {
        return;
    }
    let books = books(state, exchange, exchange.head_at.unwrap_or(exchange.started));
    books.charge_failure(limited(exchange), |limit| name(limit, exchange, None));
}

/// The rate limits that the response shows; `None` if there are none.
pub fn told(exchange: &Exchange) -> Option<Told<'_>> {
    Told::of(&exchange.rules.config.limits, exchange.client.tier, &exchange.shown_limits)
}

/// Counts a client that a limit has rejected, for operators.
pub fn rejected(state: &State, exchange: &Exchange, limit: u16, now: Instant) {
    if let Some(hitters) = exchange.rules.limited.get(usize::from(limit)) {
        // Each count is one number.
        let mut hitters = hitters.lock().unwrap_or_else(PoisonError::into_inner);
        hitters.add(exchange.client.id, state.nanoseconds(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::metrics::Metrics;
    use crate::mechanism::log::{AccessLog, LogQueue};
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
}
