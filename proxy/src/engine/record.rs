//! Reports how a request ended to metrics and logs.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use outrigger_identity::clock;
use outrigger_policy::abuse::Offence;
use outrigger_wire::date::date;
use outrigger_wire::request_id::RequestId;

use crate::engine::answer;
use crate::engine::exchange::{Destination, Exchange, Listener};
use crate::engine::metrics::{MethodLabel, StatusClass};
use crate::engine::pages;
use crate::engine::receipts;
use crate::engine::rejection::{Failure, Rejection};
use crate::engine::stages::breakers::{self, End};
use crate::engine::stages::{abuse, audit, hold, limits};
use crate::engine::state::State;
use crate::engine::tally;
use crate::engine::traces;
use crate::engine::traffic;
use crate::mechanism::access_log::Line;
use crate::mechanism::outcome::Outcome;

/// The longest part of a path that a log line shows, in bytes.
const SHOWN_PATH_BYTES: usize = 1024;
/// The status in logs of a request whose client disconnected, as in NGINX.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// How the protocol saw the end of a request.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    /// The exchange failed.
    pub failed: bool,
    /// It failed because the client disconnected.
    pub client_left: bool,
    /// Bytes of the request's body that were read, and of what a client sent through a tunnel.
    pub request_bytes: u64,
    /// Bytes of the response's body that were sent.
    pub body_bytes: u64,
}

/// Reports the head of the app's response to the concurrency limit and to limits that count failures, before the client sees
/// it.
pub fn head(state: &State, exchange: &mut Exchange, is_stream: bool) {
    let now = clock::now();
    exchange.head_at = Some(now);
    if let (Some(peers), Destination::App) = (&state.peers, &exchange.destination) {
        peers.local.answered();
    }
    exchange.unanswered = None;
    if let Some(permit) = &mut exchange.permit {
        permit.answered(now);
        if is_stream {
            exchange.permit = None;
        }
    }
    // A stream may last for hours, and its end says nothing about how the app responds.
    if is_stream || breakers::is_failure(exchange, exchange.status) {
        breakers::ended(state, exchange, End::Answered(exchange.status, now));
    }
    match exchange.status {
        401 | 403 => abuse::offend(state, exchange, Offence::LoginFailures),
        404 => abuse::offend(state, exchange, Offence::NotFound),
        _ => return,
    }
    limits::failed(state, exchange);
}

/// Reports that the head of the app's response is sent now: all that had to be waited for is done.
pub fn first_byte(exchange: &mut Exchange) {
    // Only an audit event that must be on disk first takes time in between.
    let at = if exchange.audit.is_entered { Some(clock::now()) } else { exchange.head_at };
    exchange.first_byte_at = at;
    if let Some(at) = at {
        let route = &exchange.rules.route_metrics[exchange.route];
        route.first_byte(at.saturating_duration_since(exchange.started));
    }
}

/// Reports a complete response of the app to its circuit breaker, before the client sees the response's end: the client's next
/// request may arrive before this one's end is recorded.
pub fn response_ended(state: &State, exchange: &mut Exchange) {
    if let Some(at) = exchange.head_at {
        breakers::ended(state, exchange, End::Answered(exchange.status, at));
    }
}

/// Reports a failure of the app to its circuit breaker, before the client sees it, and to the log. A connection that closed
/// because the app went down does not count for the circuit breaker: requests in flight end with the app, and the next ones
/// wait until it is back.
pub async fn failed(
    state: &Arc<State>,
    exchange: &mut Exchange,
    failure: Failure,
    error: &(dyn std::fmt::Display + Sync),
) {
    exchange.failure = Some(failure);
    if failure == Failure::Closed && exchange.attempt.is_some() && hold::is_gone(state, exchange).await {
        breakers::ended(state, exchange, End::Unknown);
    }
    let is_late = matches!(failure, Failure::Timeout | Failure::ConnectTimeout);
    let is_impatient = is_late && breakers::had_less_time(exchange);
    if let (Some(permit), Failure::Timeout, false) = (&mut exchange.permit, failure, is_impatient) {
        permit.timed_out(clock::now());
    }
    // Otherwise any client could open the circuit breaker by asking for responses within a millisecond.
    breakers::ended(state, exchange, if is_impatient { End::Unknown } else { end_of(failure) });
    log_failure(state, exchange, failure, error);
}

const fn end_of(failure: Failure) -> End {
    match failure {
        Failure::Internal => End::Unknown,
        Failure::Unreachable => End::Unreached,
        Failure::ConnectTimeout => End::NotConnected,
        Failure::Timeout | Failure::Closed | Failure::Invalid => End::Failed,
    }
}

/// Records the end of a request, once.
pub fn exchange(state: &State, exchange: &mut Exchange, ending: &Ending, method: &Method, path: &str) {
    if matches!(exchange.destination, Destination::Probe) {
        // Peers probe every second; these are not requests of a client.
        return;
    }
    breakers::ended(state, exchange, end(exchange, ending));
    let ended = clock::now();
    let duration = ended.saturating_duration_since(exchange.started);
    let outcome = outcome(exchange, ending);
    let route = &exchange.rules.route_metrics[exchange.route];
    route.record(outcome, duration, exchange.stream);
    route.responded(MethodLabel::of(method), StatusClass::of(exchange.status), ending.request_bytes, ending.body_bytes);
    exchange.unanswered = None;
    tally::ended(state, exchange, (outcome, duration));
    if let Some(rejection) = exchange.rejection {
        state.metrics.rejections.rejected(rejection);
        state.metrics.rejections.refusals.enforced(rejection, exchange.route().priority, exchange.client.tier);
        match rejection {
            Rejection::QuotaExceeded { limit, .. } => {
                limits::rejected(state, exchange, limit, ended);
                abuse::offend(state, exchange, Offence::Refusals);
            }
            Rejection::Overloaded
            | Rejection::AppRestarting
            | Rejection::Paused { .. }
            | Rejection::BreakerOpen { .. }
            | Rejection::Expired
            | Rejection::OutOfResources => {
                limits::give_back(state, exchange);
            }
            _ => {}
        }
    }
    if let Some(failure) = exchange.failure {
        state.metrics.rejections.failed(failure);
    }
    // A failure whose response had begun was not answered.
    receipts::note_evidence(state, exchange);
    audit::ended(state, exchange, audit::End { outcome, client_left: ending.client_left, at: ended });
    let status = if outcome == Outcome::ClientClosed { CLIENT_CLOSED_REQUEST } else { exchange.status };
    receipts::record(state, exchange, &receipts::Ended { outcome, duration, status, method, path });
    let reason = exchange.rejection.map(|r| r.problem().label).or_else(|| exchange.failure.map(|f| f.problem().label));
    if exchange.rules.config.log.access {
        state.access_log.write(Line {
            time: clock::wall(),
            request_id: exchange.request_id,
            client: exchange.client.address,
            method: method.clone(),
            path: shown_path(path),
            route: exchange.route().name.clone(),
            status,
            outcome,
            reason,
            limit: exchange.violated_policy().map(str::to_owned),
            duration,
            queued: exchange.queued,
            app: time_of_app(exchange, ended),
            first_byte: exchange.first_byte_at.map(|at| at.saturating_duration_since(exchange.started)),
            attempts: exchange.attempts.made(),
            request_bytes: ending.request_bytes,
            body_bytes: ending.body_bytes,
            trace_id: exchange.traced.trace_id(),
            span_id: exchange.traced.peek().map(|recording| recording.span_id),
        });
    }
    let service = if exchange.rules.traffic.is_some() { time_of_app(exchange, ended) } else { None };
    let (client_left, request_bytes) = (ending.client_left, ending.request_bytes);
    traffic::ended(
        state,
        exchange,
        &traffic::Ended { duration, service, reason, client_left, request_bytes, method, path },
    );
    let bytes = (ending.request_bytes, ending.body_bytes);
    traces::ended(state, exchange, &traces::Ended { at: ended, outcome, method, path, reason, bytes });
}

/// Counts a rejection of what never became a request; returns the whole response.
pub fn rejected_early(
    state: &State,
    rejection: Rejection,
    (client, listener): (IpAddr, Listener),
    unread: &[u8],
) -> Vec<u8> {
    let id = RequestId::generate();
    rejected_unparsed(state, rejection, id, client, unread);
    let problem = rejection.problem();
    let is_page = listener == Listener::Public && pages::is_wanted(unread);
    let page = is_page.then(|| pages::page(&state.rules.load().config, &problem, id.as_str())).flatten();
    answer::early(&problem, page, id, listener, &date(clock::now()))
}

/// Counts and logs a request that was rejected before it was parsed, or a connection without a request.
pub fn rejected_unparsed(state: &State, rejection: Rejection, request_id: RequestId, client: IpAddr, unread: &[u8]) {
    let rules = state.rules.load();
    state.metrics.rejections.rejected(rejection);
    tally::rejected_unparsed(state, rules.version, client);
    // No route was chosen: count it for the last one, which takes all requests that no other route matches.
    let (Some(metrics), Some(route)) = (rules.route_metrics.last(), rules.config.routes.all().last()) else { return };
    metrics.record(Outcome::Rejected, Duration::ZERO, None);
    let problem = rejection.problem();
    metrics.responded(MethodLabel::Other, StatusClass::of(problem.status.as_u16()), 0, 0);
    let (method, path) = request_line(unread);
    receipts::record_unparsed(state, &rules, rejection, (request_id, client), (&method, path));
    if !rules.config.log.access {
        tracing::debug!(%request_id, reason = problem.label, "a request was rejected before it was parsed");
    } else {
        state.access_log.write(Line {
            time: clock::wall(),
            request_id,
            client,
            method,
            path: shown_path(path),
            route: route.name.clone(),
            status: problem.status.as_u16(),
            outcome: Outcome::Rejected,
            reason: Some(problem.label),
            limit: None,
            duration: Duration::ZERO,
            queued: Duration::ZERO,
            app: None,
            first_byte: None,
            attempts: 0,
            request_bytes: 0,
            body_bytes: 0,
            trace_id: None,
            span_id: None,
        });
    }
}

/// The method and the path of a request line at the start of `unread`; `-` if there is no request line.
fn request_line(unread: &[u8]) -> (Method, &str) {
    let line = unread.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let method = words.next().and_then(|word| Method::from_bytes(word).ok());
    let target = words.next().and_then(|word| std::str::from_utf8(word).ok()).filter(|word| word.starts_with('/'));
    match (method, target) {
        (Some(method), Some(target)) => (method, target.split(['?', '#']).next().unwrap_or_default()),
        _ => (Method::from_bytes(b"-").unwrap_or_default(), "-"),
    }
}

fn shown_path(path: &str) -> String {
    path[..path.floor_char_boundary(SHOWN_PATH_BYTES)].to_owned()
}

/// How long the app or the peer took for the head of its response, or until its attempt failed; `None` if it was not asked, or
/// could not be reached.
fn time_of_app(exchange: &Exchange, ended: Instant) -> Option<Duration> {
    let failed_at = exchange.failure.and_then(|failure| match failure {
        Failure::ConnectTimeout | Failure::Timeout | Failure::Closed | Failure::Invalid => Some(ended),
        Failure::Unreachable | Failure::Internal => None,
    });
    let at = exchange.head_at.or(failed_at)?;
    Some(at.saturating_duration_since(exchange.asked_at))
}

/// The result of the last attempt, as far as the end of the request shows it.
fn end(exchange: &Exchange, ending: &Ending) -> End {
    if ending.client_left {
        return End::Unknown;
    }
    match (exchange.rejection, exchange.failure, exchange.head_at) {
        (Some(_), ..) => End::Unknown,
        (_, Some(failure), _) => end_of(failure),
        (_, None, Some(at)) if exchange.answered_by_app && !ending.failed => End::Answered(exchange.status, at),
        (_, None, Some(_)) => End::Failed,
        (_, None, None) => End::Unknown,
    }
}

fn outcome(exchange: &Exchange, ending: &Ending) -> Outcome {
    if exchange.rejection.is_some() {
        return Outcome::Rejected;
    }
    if ending.client_left {
        return Outcome::ClientClosed;
    }
    if exchange.answered_by_app && ending.failed {
        return Outcome::Truncated;
    }
    if let Some(failure) = exchange.failure {
        return match failure {
            _ if exchange.status == 503 => Outcome::Unavailable,
            Failure::Unreachable | Failure::Closed | Failure::Invalid => Outcome::BadGateway,
            Failure::ConnectTimeout | Failure::Timeout => Outcome::GatewayTimeout,
            Failure::Internal => Outcome::Internal,
        };
    }
    match exchange.status {
        100..300 => Outcome::Success,
        300..400 => Outcome::Redirect,
        400..500 => Outcome::ClientError,
        _ => Outcome::ServerError,
    }
}

/// Logs a request that the app failed.
fn log_failure(state: &State, exchange: &Exchange, failure: Failure, error: &dyn std::fmt::Display) {
    if let Destination::Peer(peer, kind) = &exchange.destination {
        tracing::warn!(
            request_id = %exchange.request_id,
            peer = %peer.name,
            kind = kind.name(),
            reason = failure.problem().label,
            "peer {} failed a request: {error}",
            peer.name
        );
        return;
    }
    tracing::warn!(
        request_id = %exchange.request_id,
        route = %exchange.route().name,
        app = %state.rules.load().config.app.address,
        reason = failure.problem().label,
        attempts = exchange.attempts.made(),
        duration_ms = u64::try_from(clock::since(exchange.started).as_millis()).unwrap_or(u64::MAX),
        "the app failed a request: {error}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::metrics::Metrics;
    use crate::engine::state::Snapshot;
    use crate::mechanism::breakers::Registry;
    use crate::transport::upstream::Upstreams;
    use crate::transport::upstream::checked::Checked;
    use outrigger_rules::config::Config;
    use std::path::Path;

    fn fresh() -> Exchange {
        let config = Config::parse(Path::new("test"), "", &|_| None).unwrap();
        let upstreams = Upstreams::new(&config.app);
        let checked = Checked { config, upstreams };
        Exchange::new(Arc::new(Snapshot::new(checked, 1, &Metrics::new().unwrap(), &Registry::default())))
    }

    const FINE: Ending = Ending { failed: false, client_left: false, request_bytes: 0, body_bytes: 0 };

    #[test]
    fn distinguishes_502_503_504_and_499() {
        let failed = |failure, status| {
            let mut e = fresh();
            e.failure = Some(failure);
            e.status = status;
            outcome(&e, &Ending { failed: true, ..FINE })
        };
        assert_eq!(failed(Failure::Unreachable, 502), Outcome::BadGateway);
        assert_eq!(failed(Failure::Unreachable, 503), Outcome::Unavailable);
        assert_eq!(failed(Failure::Timeout, 504), Outcome::GatewayTimeout);
        assert_eq!(outcome(&fresh(), &Ending { failed: true, client_left: true, ..FINE }), Outcome::ClientClosed);
    }

    #[test]
    fn the_request_line_is_shown_as_far_as_there_is_one() {
        let shown = |unread: &str| {
            let (method, path) = request_line(unread.as_bytes());
            format!("{method} {path}")
        };
        assert_eq!(shown("GET /lost?token=secret HTTP/1.1\r\n\r\n"), "GET /lost");
        assert_eq!(shown("POST /a"), "POST /a");
        for none in ["", "HELLO\r\n\r\n", "\0 /a HTTP/1.1", "GET http://a:secret@b/ HTTP/1.1", "PRI * HTTP/2.0"] {
            assert_eq!(shown(none), "- -", "{none:?}");
        }
        assert_eq!(request_line(b"GET /\xff HTTP/1.1").1, "-");
        assert_eq!(shown_path(&"\u{e4}".repeat(1000)).len(), 1024);
    }

    #[test]
    fn an_incomplete_response_is_not_a_success() {
        let mut e = fresh();
        e.answered_by_app = true;
        e.status = 200;
        assert_eq!(outcome(&e, &FINE), Outcome::Success);
        assert_eq!(outcome(&e, &Ending { failed: true, ..FINE }), Outcome::Truncated);
        e.rejection = Some(Rejection::BodyTooLarge);
        assert_eq!(outcome(&e, &Ending { failed: true, ..FINE }), Outcome::Rejected);
    }
}
