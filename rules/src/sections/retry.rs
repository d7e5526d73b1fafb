//! `[retry]`: retries of requests.

use std::time::Duration;

use outrigger_policy::retry;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::complaints::Builder;
use crate::sections::routes::Route;
use crate::tree::Step;
use crate::units::{AutoSpan, Share, Span, Text};

/// Retries of requests.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// Maximum attempts per request, the first included; 1: no retries. A route may override it.
    #[schemars(range(min = 1, max = 10))]
    pub attempts: u8,
    /// Response statuses that are retried, such as [502, 503, 504]. A route may override them.
    pub statuses: Vec<u16>,
    /// The pause before the first retry is random, up to this; the bound doubles with each retry.
    pub backoff: Text<Span>,
    /// Maximum of that bound.
    pub max_backoff: Text<Span>,
    /// Retry budget: retries as a share of requests, over all routes.
    pub budget: Text<Share>,
    /// Retries per second that are always allowed.
    #[schemars(range(max = 1000))]
    pub budget_min: u32,
    /// How long an attempt may take until the head of the response arrives, for a request that may be sent again; "auto": for GET,
    /// HEAD and OPTIONS, four times the 99th percentile of the route, at least `attempt_timeout_min` and at most half of its timeout, and none
    /// if that is less than one and a half times the percentile;
    /// or "off".
    pub attempt_timeout: Text<AutoSpan>,
    /// The shortest time that "auto" gives an attempt. More than the pauses of the app, such as those of a garbage collection.
    pub attempt_timeout_min: Text<Span>,
    /// After this time without a response to a GET, HEAD or OPTIONS, a peer is asked as well, and the first response is used; "auto":
    /// the 99th percentile of its route, at least 25 ms; or "off". Needs `[peers]`.
    pub hedge: Text<AutoSpan>,
    /// Budget of such second requests: a share of requests, over all routes. `budget_min` of them per second are always allowed.
    pub hedge_budget: Text<Share>,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 3,
            statuses: Vec::new(),
            backoff: Text(Span(Duration::from_millis(25))),
            max_backoff: Text(Span(Duration::from_millis(250))),
            budget: Text(Share(0.2)),
            budget_min: 3,
            attempt_timeout: Text(AutoSpan::Auto),
            attempt_timeout_min: Text(Span(Duration::from_millis(250))),
            hedge: Text(AutoSpan::Auto),
            hedge_budget: Text(Share(0.05)),
        }
    }
}

/// Retries, checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryRules {
    /// Bound of the first pause.
    pub backoff: Duration,
    /// Maximum bound.
    pub max_backoff: Duration,
    /// The retry budget.
    pub budget: retry::Settings,
    /// How long an attempt may take.
    pub attempt_timeout: AutoSpan,
    /// The minimum of a measured time.
    pub attempt_timeout_min: Duration,
    /// After how long a peer is asked as well.
    pub hedge: AutoSpan,
    /// The budget for that.
    pub hedge_budget: retry::Settings,
}

impl Builder<'_> {
    /// Checks pauses and budget.
    pub fn retry(&mut self, written: &Retry) -> RetryRules {
        self.check_statuses(&written.statuses, &[Step::Key("retry"), Step::Key("statuses")]);
        RetryRules {
            backoff: written.backoff.0.0,
            max_backoff: written.max_backoff.0.0,
            budget: retry::Settings { share: written.budget.0.0, free_per_second: written.budget_min },
            attempt_timeout: written.attempt_timeout.0,
            attempt_timeout_min: written.attempt_timeout_min.0.0,
            hedge: written.hedge.0,
            hedge_budget: retry::Settings { share: written.hedge_budget.0.0, free_per_second: written.budget_min },
        }
    }

    /// A route's retry settings: attempts, and the response statuses that are retried.
    pub fn route_retry(&mut self, retry: &Retry, route: &Route, index: usize) -> (u32, Box<[u16]>) {
        let attempts = route.attempts.unwrap_or(retry.attempts);
        let statuses = route.retry_statuses.as_ref().unwrap_or(&retry.statuses);
        if route.retry_statuses.is_some() {
            let path = [Step::Key("routes"), Step::Index(index), Step::Key("retry_statuses")];
            self.check_statuses(statuses, &path);
        }
        (attempts.into(), statuses.clone().into())
    }

    fn check_statuses(&mut self, statuses: &[u16], path: &[Step<'_>]) {
        for (index, status) in statuses.iter().enumerate() {
            if *status != 429 && !(500..600).contains(status) {
                let path: Vec<Step<'_>> = path.iter().copied().chain([Step::Index(index)]).collect();
                let message = format!("another attempt would not change status {status}");
                self.complain(&path, message, "use 429, or statuses from 500 to 599");
            }
        }
    }
}
