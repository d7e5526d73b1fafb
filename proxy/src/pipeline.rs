//! The life of a request: every phase, in order. To change what the proxy does, change this file's lists.
//!
//! Pingora calls the hooks; [`STAGES`] decide; [`crate::record`] tells how it ended. Whatever must be given back when a
//! request ends lives in the [`Exchange`] and lets go in `Drop`: a hook can be skipped, a drop cannot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderName, StatusCode, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::prelude::HttpPeer;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::{BError, Error, ErrorSource, ErrorType, Result};

use crate::config::Target;
use crate::exchange::{Exchange, Fields, Kind, Request};
use crate::forwarding::{self, Added, X_REQUEST_ID};
use crate::health;
use crate::rejection::{Failure, Problem, Rejection, seconds};
use crate::request_id::random;
use crate::state::{Phase, State};
use crate::wire::Malformed;
use crate::{abuse, admit, identify, limits, record, route};

/// One check of a request: lets it pass, or says why not.
pub type Stage = fn(&State, &Request<'_>, &mut Exchange) -> Result<(), Rejection>;

/// Every check a request passes, in order; the first that refuses answers.
///
/// Affinity takes its place after [`route::choose`], the breaker at the end.
pub const STAGES: [Stage; 7] =
    [identify::client, route::choose, admit::while_leaving, admit::body, abuse::check, limits::check, admit::slot];

/// Attempts at the app for one request, the first included.
pub const MOST_ATTEMPTS: usize = 3;

/// How long the rest of a refused request is read, to keep the connection.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// And how much of it at the most.
const DRAIN_BYTES: u64 = 64 << 10;
/// How long Pingora keeps a connection that no other request can find. (Zero makes its timer overflow.)
const NOT_KEPT: Duration = Duration::from_millis(1);

/// An answer of more than this is a transfer, whose pace is the client's: it holds its slot no longer than to its head.
const LARGE_BODY_BYTES: u64 = 1 << 20;

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// The proxy's decisions, as Pingora asks for them.
#[derive(Debug)]
pub struct Gateway {
    state: Arc<State>,
}

impl Gateway {
    /// One for each worker.
    pub fn new(state: Arc<State>) -> Self {
        Self { state }
    }

    /// Time limits of the client's side, and who is connected.
    fn prepare(&self, session: &mut Session, exchange: &mut Exchange) {
        let limits = exchange.rules.config.client;
        let connected = session.client_addr().and_then(|address| address.as_inet()).map(std::net::SocketAddr::ip);
        if let Some(address) = connected {
            exchange.connected = address.to_canonical();
        }
        exchange.in_flight = Some(self.state.enter());
        session.set_read_timeout(Some(limits.body_timeout));
        session.set_write_timeout(Some(limits.write_timeout));
        session.set_total_drain_timeout(Some(DRAIN_TIMEOUT));
    }

    /// Waits for a slot where that is needed.
    async fn wait_for_slot(&self, exchange: &mut Exchange) -> Result<(), Rejection> {
        let Some(waiting) = exchange.waiting.take() else { return Ok(()) };
        exchange.permit = waiting.turn(admit::wait_deadline(exchange)).await;
        if exchange.permit.is_none() {
            return Err(Rejection::Overloaded);
        }
        self.state.metrics.queue_wait.observe(exchange.started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Answers a refusal; the connection stays open where the protocol allows it.
    async fn reject(&self, session: &mut Session, exchange: &mut Exchange, rejection: Rejection) {
        exchange.rejection = Some(rejection);
        let unread = content_length(session.req_header());
        let waits_for_us = session.req_header().headers.contains_key(header::EXPECT);
        if unread.is_some_and(|bytes| bytes <= DRAIN_BYTES)
            && !waits_for_us
            && let pingora::protocols::http::ServerSession::H1(h1) = session.as_mut()
        {
            h1.set_close_on_response_before_downstream_finish(false);
        }
        if self.state.drain.phase() != Phase::Serving {
            session.set_keepalive(None);
        }
        self.answer(session, exchange, &rejection.problem()).await;
    }

    async fn answer(&self, session: &mut Session, exchange: &mut Exchange, problem: &Problem) {
        let route = exchange.route();
        let (status, content_type, body) = if route.is_health {
            let body = health::unhealthy(self.state.started.elapsed(), problem.label);
            (StatusCode::SERVICE_UNAVAILABLE, "application/json", body)
        } else {
            (
                problem.status,
                "application/problem+json",
                problem.body(exchange.request_id.as_str(), exchange.violated_policy()),
            )
        };
        exchange.status = status.as_u16();
        let written = write_answer(session, exchange, status, content_type, body, problem.retry_after).await;
        if let Err(e) = written {
            tracing::debug!(request_id = %exchange.request_id, "the answer could not be sent: {e}");
        }
    }

    /// What an error means, and what the client is told.
    fn classify(&self, error: &Error, exchange: &Exchange) -> Verdict {
        if let Some(rejection) = exchange.rejection {
            return Verdict::Rejected(rejection);
        }
        match (error.esource(), error.etype()) {
            (ErrorSource::Downstream, ErrorType::ReadTimedout) => Verdict::Rejected(Rejection::BodyTooSlow),
            (ErrorSource::Downstream, ErrorType::ReadError) if is_invalid_data(error) => {
                Verdict::Rejected(Rejection::Malformed(Malformed::Chunk))
            }
            (ErrorSource::Downstream, ErrorType::InvalidHTTPHeader) => {
                Verdict::Rejected(Rejection::Malformed(Malformed::Field))
            }
            (ErrorSource::Downstream, _) => Verdict::ClientLeft,
            (ErrorSource::Upstream, ErrorType::ReadTimedout | ErrorType::WriteTimedout) => {
                Verdict::Failed(Failure::Timeout)
            }
            (ErrorSource::Upstream, ErrorType::ConnectTimedout) => Verdict::Failed(Failure::ConnectTimeout),
            (
                ErrorSource::Upstream,
                ErrorType::ConnectRefused
                | ErrorType::ConnectNoRoute
                | ErrorType::ConnectError
                | ErrorType::SocketError,
            ) => Verdict::Failed(Failure::Unreachable),
            (ErrorSource::Upstream, ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed) => {
                Verdict::Failed(Failure::Closed)
            }
            (ErrorSource::Upstream, _) => Verdict::Failed(Failure::Invalid),
            (ErrorSource::Internal | ErrorSource::Unset, _) => Verdict::Failed(Failure::Internal),
        }
    }
}

enum Verdict {
    Rejected(Rejection),
    Failed(Failure),
    ClientLeft,
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Exchange;

    fn new_ctx(&self) -> Exchange {
        Exchange::new(self.state.rules.load_full())
    }

    /// None: Pingora's default adds a compression module that costs every request an allocation.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, exchange: &mut Exchange) -> Result<bool> {
        self.prepare(session, exchange);
        let request = view(session.req_header());
        let verdict = STAGES.iter().try_for_each(|stage| stage(&self.state, &request, exchange));
        let verdict = match verdict {
            Ok(()) => self.wait_for_slot(exchange).await,
            refused => refused,
        };
        match verdict {
            Ok(()) => {
                if exchange.kind == Kind::Upgrade {
                    session.set_read_timeout(Some(exchange.rules.config.app.stream_timeout));
                }
                Ok(false)
            }
            Err(rejection) => {
                self.reject(session, exchange, rejection).await;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(&self, session: &mut Session, exchange: &mut Exchange) -> Result<Box<HttpPeer>> {
        exchange.attempts += 1;
        exchange.body_bytes = 0;
        if exchange.attempts > 1 {
            self.state.metrics.retries.inc();
        }
        let app = &exchange.rules.config.app;
        let mut peer = match &app.target {
            Target::Tcp(address) => HttpPeer::new(*address, false, String::new()),
            Target::Unix(path) => {
                let path = path.to_str().unwrap_or_default();
                HttpPeer::new_uds(path, false, String::new())?
            }
        };
        // A kept connection may be closed by the app at the moment we write. What was sent on it may then have been
        // read or not, and only what is idempotent may be sent again: anything else gets a connection of its own.
        let may_repeat = session.req_header().method.is_idempotent();
        if exchange.needs_fresh_connection || !may_repeat {
            // Pingora finds kept connections by this key: a key that nobody has again makes it open a new one.
            peer.group_key = random() | 1;
            peer.options.idle_timeout = Some(NOT_KEPT);
        } else {
            peer.options.idle_timeout = Some(app.idle_timeout);
        }
        peer.options.connection_timeout = Some(app.connect_timeout);
        let patience = match exchange.kind {
            Kind::Plain => exchange.route().timeout,
            Kind::Stream | Kind::Upgrade => app.stream_timeout,
        };
        peer.options.read_timeout = Some(patience);
        peer.options.write_timeout = Some(patience);
        Ok(Box::new(peer))
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        reused: bool,
        _: &HttpPeer,
        _: std::os::fd::RawFd,
        _: Option<&pingora::protocols::Digest>,
        _: &mut Exchange,
    ) -> Result<()> {
        let metrics = &self.state.metrics;
        if reused { &metrics.attempts_reused } else { &metrics.attempts_new }.inc();
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        exchange: &mut Exchange,
    ) -> Result<()> {
        if shed_edge_fields(request, exchange.client.is_trusted) {
            self.state.metrics.forged_fields.inc();
        }
        let mut added = Added::default();
        added.fill(&view(session.req_header()), exchange);
        for (name, value) in added.iter() {
            request.insert_header(name, value)?;
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        _: bool,
        exchange: &mut Exchange,
    ) -> Result<()> {
        let Some(bytes) = body else { return Ok(()) };
        exchange.body_bytes += bytes.len() as u64;
        // An upgraded connection carries no body, however much it carries.
        if exchange.kind != Kind::Upgrade && exchange.body_bytes > exchange.route().max_body_bytes {
            exchange.rejection = Some(Rejection::BodyTooLarge);
            return Error::e_explain(ErrorType::HTTPStatus(413), "the body is larger than the route allows");
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        exchange: &mut Exchange,
    ) -> Result<()> {
        if !has_one_length(response) {
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, "its length can be read in two ways").into_up());
        }
        if response.status == StatusCode::SWITCHING_PROTOCOLS && exchange.kind != Kind::Upgrade {
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, "it switches protocols unasked").into_up());
        }
        exchange.status = response.status.as_u16();
        exchange.answered_by_app =
            !response.status.is_informational() || response.status == StatusCode::SWITCHING_PROTOCOLS;
        if response.status != StatusCode::SWITCHING_PROTOCOLS {
            remove_hop_by_hop(response);
        }
        if response.status == StatusCode::SWITCHING_PROTOCOLS {
            record::head(&self.state, exchange, true);
        }
        if response.status.is_informational() {
            return Ok(());
        }
        if session.req_header().version == Version::HTTP_10 {
            // Pingora frames a body of unknown length in chunks, which HTTP/1.0 does not know: the end of the
            // connection ends it instead.
            response.remove_header(&header::TRANSFER_ENCODING);
        }
        if self.state.drain.phase() != Phase::Serving {
            session.set_keepalive(None);
        }
        if exchange.rules.config.headers.request_id {
            response.insert_header(&X_REQUEST_ID, exchange.request_id.as_bytes())?;
        }
        add_limits(response, exchange)?;
        let is_event_stream = response
            .headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
        let length = response_length(response);
        let is_large = length.is_some_and(|bytes| bytes > LARGE_BODY_BYTES);
        record::head(&self.state, exchange, exchange.kind != Kind::Plain || is_event_stream || is_large);
        if length.is_none() {
            admit::let_go_later(exchange);
        }
        Ok(())
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        mut error: BError,
        exchange: &mut Exchange,
        reused: bool,
    ) -> BError {
        let broke_off =
            matches!(error.etype(), ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed);
        let is_app = *error.esource() == ErrorSource::Upstream;
        let may_repeat = session.req_header().method.is_idempotent() && !session.as_ref().retry_buffer_truncated();
        let unanswered = session.response_written().is_none_or(|head| head.status.is_informational());
        error.set_retry(
            reused && is_app && broke_off && may_repeat && unanswered && (exchange.attempts as usize) < MOST_ATTEMPTS,
        );
        exchange.needs_fresh_connection = true;
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, exchange: &mut Exchange) -> FailToProxy {
        let problem = match self.classify(error, exchange) {
            Verdict::Rejected(rejection) => {
                exchange.rejection = Some(rejection);
                Some(rejection.problem())
            }
            Verdict::Failed(failure) => {
                exchange.failure = Some(failure);
                if let (Some(permit), Failure::Timeout) = (&mut exchange.permit, failure) {
                    permit.timed_out(Instant::now());
                }
                record::log_failure(exchange, failure, error);
                Some(failure.problem())
            }
            Verdict::ClientLeft => None,
        };
        let unanswered = session.response_written().is_none_or(|head| head.status.is_informational());
        // Pingora ends the connection after an error, so the answer says so.
        session.set_keepalive(None);
        let mut error_code = 0;
        if let (Some(problem), true) = (problem, unanswered) {
            self.answer(session, exchange, &problem).await;
            error_code = exchange.status;
        }
        FailToProxy { error_code, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, exchange: &mut Exchange) {
        let client_left = error.is_some_and(|e| *e.esource() == ErrorSource::Downstream);
        let ending = record::Ending {
            failed: error.is_some() && !session.was_upgraded(),
            client_left: client_left && !session.was_upgraded(),
            body_bytes: session.body_bytes_sent() as u64,
        };
        let request = session.req_header();
        record::exchange(&self.state, exchange, &ending, &request.method, request.uri.path());
        exchange.in_flight = None;
        exchange.permit = None;
        exchange.lingering = None;
    }

    fn suppress_error_log(&self, _: &Session, _: &Exchange, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Exchange, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }
}

/// What the stages may look at.
fn view(head: &RequestHeader) -> Request<'_> {
    let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    Request {
        method: &head.method,
        path: head.uri.path(),
        host: host.or_else(|| head.uri.authority().map(http::uri::Authority::as_str)).unwrap_or_default(),
        fields: Fields::Map(&head.headers),
        is_http10: head.version == Version::HTTP_10,
    }
}

fn content_length(head: &RequestHeader) -> Option<u64> {
    head.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn response_length(head: &ResponseHeader) -> Option<u64> {
    head.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn is_invalid_data(error: &Error) -> bool {
    error.root_cause().downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::InvalidData)
}

/// Removes what only an edge may say, if the sender is none. True if anything was there.
fn shed_edge_fields(request: &mut RequestHeader, is_trusted: bool) -> bool {
    let is_forged = |name: &&HeaderName| !forwarding::may_pass(name.as_str(), is_trusted);
    let mut any = false;
    // One at a time: nearly every request has none.
    while let Some(name) = request.headers.keys().find(is_forged).cloned() {
        any |= name != X_REQUEST_ID;
        request.remove_header(&name);
    }
    any
}

/// Whether an answer says at most once how long it is, and in a way that everybody reads alike: Pingora passes on every
/// `Transfer-Encoding` and every repeated `Content-Length`. The fast lane refuses the same in [`crate::head`].
fn has_one_length(response: &ResponseHeader) -> bool {
    let lengths = response.headers.get_all(header::CONTENT_LENGTH).iter().count();
    let mut encodings = response.headers.get_all(header::TRANSFER_ENCODING).iter();
    let is_chunked = encodings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    lengths <= 1 && is_chunked && encodings.next().is_none()
}

/// Removes the fields that speak of the app's connection, not of the client's (RFC 9110 section 7.6.1).
fn remove_hop_by_hop(response: &mut ResponseHeader) {
    if let Some(named) = response.headers.get(header::CONNECTION)
        && !matches!(named.as_bytes(), b"keep-alive" | b"close")
    {
        let nominated: Vec<HeaderName> = response
            .headers
            .get_all(header::CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|b| *b == b','))
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            // Framing and routing are not for an app to nominate away.
            .filter(|name| !matches!(*name, header::TRANSFER_ENCODING | header::CONTENT_LENGTH | header::CONNECTION))
            .collect();
        for name in nominated {
            response.remove_header(&name);
        }
    }
    let keeps_upgrade = response.status == StatusCode::UPGRADE_REQUIRED;
    let is_hop = |name: &&HeaderName| {
        **name == KEEP_ALIVE
            || **name == PROXY_CONNECTION
            || **name == header::TE
            || **name == header::TRAILER
            || **name == header::PROXY_AUTHENTICATE
            || (**name == header::UPGRADE && !keeps_upgrade)
    };
    while let Some(name) = response.headers.keys().find(is_hop).cloned() {
        response.remove_header(&name);
    }
}

/// Tells what is left of the client's limits.
fn add_limits(response: &mut ResponseHeader, exchange: &Exchange) -> Result<()> {
    let mut result = Ok(());
    limits::headers::each(exchange, |name, value| {
        if let Err(e) = response.insert_header(name, value) {
            result = Err(e);
        }
    });
    result
}

async fn write_answer(
    session: &mut Session,
    exchange: &Exchange,
    status: StatusCode,
    content_type: &'static str,
    body: String,
    retry_after: Option<Duration>,
) -> Result<()> {
    let mut head = ResponseHeader::build(status, Some(6))?;
    head.insert_header(header::CONTENT_TYPE, content_type)?;
    head.insert_header(header::CONTENT_LENGTH, body.len())?;
    head.insert_header(header::CACHE_CONTROL, "no-store")?;
    if let Some(after) = retry_after {
        head.insert_header(header::RETRY_AFTER, seconds(after))?;
    }
    if exchange.rules.config.headers.request_id {
        head.insert_header(&X_REQUEST_ID, exchange.request_id.as_bytes())?;
    }
    add_limits(&mut head, exchange)?;
    let is_head = session.req_header().method == http::Method::HEAD;
    session.write_response_header(Box::new(head), is_head).await?;
    if !is_head {
        session.write_response_body(Some(Bytes::from(body)), true).await?;
    }
    Ok(())
}
