//! What a retry takes: a pause that ends before the deadline, and a token of the budget.
//!
//! [`crate::engine::attempts`] decides whether one is made:
//!
//! | the attempt ended | which requests are retried | cost |
//! |---|---|---|
//! | a kept connection was closed before a byte of the response came | repeatable | none: the app has not seen it |
//! | the app refused the connection | all | a wait for the app, see [`crate::hold`]; no attempt, no budget |
//! | no connection within `connect_timeout` | all: the app has not seen it | an attempt, budget |
//! | a new connection was closed before the response | repeatable | an attempt, budget |
//! | a response with a status that the route retries | repeatable | an attempt, budget |
//! | the deadline passed, or the response was not HTTP | none | |
//!
//! A request is repeatable if it is idempotent (RFC 9110 section 9.2.2), no byte of a response has been passed on, and its
//! body is kept: Pingora keeps the first 64 KiB.

use std::time::{Duration, Instant, SystemTime};

use outrigger_policy::flags::Mode;
use outrigger_policy::retry;

use crate::breakers::dice;
use crate::exchange::Exchange;
use crate::state::State;

/// The longest `Retry-After` that is looked at.
const LONGEST_SECONDS: u64 = 86_400;

/// A request has come: it pays into the budget.
pub fn pay_in(state: &State, exchange: &Exchange) {
    if exchange.resilience == Mode::Enforce && exchange.route().attempts > 1 {
        state.retry_budget().pay_in(exchange.rules.config.retry.budget);
    }
}

/// The pause before another attempt, or `None` if it would not end before the deadline.
pub fn pause(exchange: &Exchange, now: Instant, asked_for: Option<Duration>) -> Option<Duration> {
    let rules = &exchange.rules.config.retry;
    let jittered = || retry::pause(exchange.attempts.made(), rules.backoff, rules.max_backoff, dice());
    // Zero is what a date that has passed says: as soon as any other retry.
    let pause = asked_for.filter(|pause| !pause.is_zero()).unwrap_or_else(jittered);
    (now + pause < exchange.deadline).then_some(pause)
}

/// Whether an answer with this status is tried again.
pub fn is_wanted(exchange: &Exchange, status: u16) -> bool {
    exchange.resilience == Mode::Enforce && exchange.route().retry_statuses.contains(&status)
}

/// One more attempt is made: false if the budget has nothing left for it.
pub fn pay(state: &State, exchange: &Exchange, now: Instant) -> bool {
    let is_paid = state.retry_budget().pay(state.nanoseconds(now), exchange.rules.config.retry.budget);
    if is_paid {
        state.metrics.retries.inc();
    } else {
        state.metrics.retries_denied.inc();
    }
    is_paid
}

/// The pause that a `Retry-After` asks for, in either of its forms (RFC 9110 section 10.2.3): seconds, or a date in one of the three
/// formats of section 5.6.7. At most a day; zero for a date that has passed. `None` if it is neither.
pub fn asked_for(value: &[u8]) -> Option<Duration> {
    asked_for_at(value, SystemTime::now)
}

fn asked_for_at(value: &[u8], now: impl FnOnce() -> SystemTime) -> Option<Duration> {
    const LONGEST: Duration = Duration::from_secs(LONGEST_SECONDS);
    let text = std::str::from_utf8(value).ok()?.trim_matches([' ', '\t']);
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number has room for are a very long time.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)).min(LONGEST));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now()).unwrap_or_default().min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110.
    const EXAMPLE: u64 = 784_111_777;

    fn at(seconds: u64, text: &str) -> Option<u64> {
        asked_for_at(text.as_bytes(), || SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).map(|d| d.as_secs())
    }

    #[test]
    fn seconds_and_dates_in_every_form_are_read() {
        for (text, asked) in [("0", 0), ("30", 30), (" 7\t", 7), ("007", 7), ("999999", LONGEST_SECONDS)] {
            assert_eq!(at(EXAMPLE, text), Some(asked), "{text}");
        }
        assert_eq!(at(EXAMPLE, &"9".repeat(40)), Some(LONGEST_SECONDS), "it overflows");
        for form in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert_eq!(at(EXAMPLE - 30, form), Some(30), "{form}");
            assert_eq!(at(EXAMPLE, form), Some(0), "{form}");
            assert_eq!(at(EXAMPLE + 100_000_000, form), Some(0), "it has passed: {form}");
            assert_eq!(at(0, form), Some(LONGEST_SECONDS), "{form}");
        }
        assert_eq!(at(EXAMPLE, "Fri, 31 Dec 9999 23:59:59 GMT"), Some(LONGEST_SECONDS));
        let nothing =
            ["", " ", "-1", "+1", "1.5", "1s", "soon", "0x10", "Sun, 06 Nov 1994", "Sun, 99 Nov 1994 08:49:37 GMT"];
        for text in nothing {
            assert_eq!(at(EXAMPLE, text), None, "{text:?}");
        }
        assert_eq!(asked_for(b"\xff"), None);
    }

    proptest! {
        #[test]
        fn every_date_is_as_far_away_as_it_is(seconds in 0..4_000_000_000_u64, now in 0..4_000_000_000_u64) {
            let text = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            prop_assert_eq!(at(now, &text), Some(seconds.saturating_sub(now).min(LONGEST_SECONDS)));
        }

        #[test]
        fn nothing_that_is_sent_is_an_error(value in prop::collection::vec(any::<u8>(), 0..60)) {
            let asked = asked_for(&value);
            prop_assert!(asked.is_none_or(|asked| asked <= Duration::from_secs(LONGEST_SECONDS)));
        }
    }
}
