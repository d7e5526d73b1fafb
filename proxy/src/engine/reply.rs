//! Outrigger's own responses: a problem, as JSON or as a page, health in the app's format, or the route's fallback.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use outrigger_identity::clock;
use outrigger_policy::flags::Mode;

use crate::engine::exchange::{Exchange, Listener};
use crate::engine::health;
use crate::engine::pages;
use crate::engine::receipts;
use crate::engine::rejection::{Failure, Problem, Rejection};
use crate::engine::stages::audit;
use crate::engine::state::State;

/// A response of Outrigger's own, without the headers that every response has.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The content type.
    pub content_type: Arc<str>,
    /// The body.
    pub body: String,
    /// When the client may retry.
    pub retry_after: Option<Duration>,
    /// The `Content-Security-Policy` of a page.
    pub policy: Option<Arc<str>>,
}

/// The response to this exchange for this problem.
pub fn to(state: &State, exchange: &Exchange, problem: &Problem) -> Reply {
    let route = exchange.route();
    if route.is_health {
        let held = state.reach.is_away().then(|| state.gate.standing().waiting.iter().sum());
        return Reply {
            status: StatusCode::SERVICE_UNAVAILABLE,
            content_type: "application/json".into(),
            body: health::unhealthy(clock::since(state.started), problem.label, held),
            retry_after: problem.retry_after,
            policy: None,
        };
    }
    if let (Some(fallback), true) = (&route.fallback, is_for_want_of_the_app(exchange)) {
        state.metrics.fallbacks.inc();
        return Reply {
            status: fallback.status,
            content_type: Arc::clone(&fallback.content_type),
            body: fallback.body.to_string(),
            retry_after: None,
            policy: None,
        };
    }
    // A peer reads the responses on its listener, unless it passes them on.
    let is_for_a_client = exchange.listener == Listener::Public || exchange.hop.is_some();
    if exchange.prefers_html
        && is_for_a_client
        && let Some(page) = pages::page(&exchange.rules.config, problem, exchange.request_id.as_str())
    {
        return Reply {
            status: problem.status,
            content_type: pages::CONTENT_TYPE.into(),
            body: page.body,
            retry_after: problem.retry_after,
            policy: Some(page.policy),
        };
    }
    Reply {
        status: problem.status,
        content_type: "application/problem+json".into(),
        body: problem.body(exchange.request_id.as_str(), exchange.violated_policy()),
        retry_after: problem.retry_after,
        policy: None,
    }
}

/// The response to a health check of a healthy app that has no such endpoint.
pub fn healthy(state: &State) -> Reply {
    Reply {
        status: StatusCode::OK,
        content_type: "application/json".into(),
        body: health::healthy(clock::since(state.started), &health::Orders::of(state)),
        retry_after: None,
        policy: None,
    }
}

/// Like [`to`], after the audit event is on disk if its class requires that. If that fails, responds with that problem
/// instead.
pub async fn entered(state: &State, exchange: &mut Exchange, problem: &Problem) -> Reply {
    receipts::note_evidence(state, exchange);
    let mut reply = to(state, exchange, problem);
    exchange.status = reply.status.as_u16();
    if let Err(rejection) = audit::before_response(state, exchange).await {
        exchange.rejection = Some(rejection);
        exchange.evidence = None;
        receipts::note_evidence(state, exchange);
        reply = to(state, exchange, &rejection.problem());
        exchange.status = reply.status.as_u16();
    }
    reply
}

/// Whether the app was not asked because its circuit breaker is open, because it is down, or in a pause.
fn is_for_want_of_the_app(exchange: &Exchange) -> bool {
    let reason = exchange.rejection;
    matches!(reason, Some(Rejection::BreakerOpen { .. } | Rejection::AppRestarting | Rejection::Paused { .. }))
        || (exchange.resilience == Mode::Enforce && exchange.failure == Some(Failure::Unreachable))
}
