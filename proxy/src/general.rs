//! The general path: every request that the fast lane does not take, through Pingora's hooks in the order in which they are called.
//!
//! [`stages::STAGES`] decide; [`crate::engine::record`] tells how it ended. Whatever must be given back when a
//! request ends lives in the [`Exchange`] and lets go in `Drop`: a hook can be skipped, a drop cannot.

mod attempts;
mod heads;
pub mod line;
pub mod upload;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::{StatusCode, Version, header};
use outrigger_identity::clock::seconds;
use outrigger_wire::forwarding::Added;
use outrigger_wire::malformed::Malformed;
use outrigger_wire::names::{X_OUTRIGGER_HOP, X_OUTRIGGER_REFUSED, X_REQUEST_ID};
use outrigger_wire::random::random;
use outrigger_wire::request::Kind;
use outrigger_wire::retry_after;
use outrigger_wire::rewrite::is_event_stream_type;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::prelude::HttpPeer;
use pingora::protocols::http::ServerSession;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::{BError, Error, ErrorSource, ErrorType, Result};

use crate::accept;
use crate::engine::answer::OwnResponse;
use crate::engine::attempts::{Event, Next};
use crate::engine::bounds::{ANSWER_HEAD_BYTES, MOST_INTERIM};
use crate::engine::exchange::{Destination, Exchange, Listener};
use crate::engine::metrics::StreamKind;
use crate::engine::rejection::{Failure, Problem, Rejection};
use crate::engine::reply;
use crate::engine::stages;
use crate::engine::stages::admit;
use crate::engine::state::{Phase, State};
use crate::engine::{record, retries, steps};
use crate::mechanism::breakers::{self, End};
use crate::mechanism::peers::hop::Hop;
use crate::mechanism::peers::metrics::SentOn;
use crate::mechanism::{audit, claims};

use crate::general::heads::{
    add_limits, add_session, content_length, has_endless_body, has_one_length, head_bytes, hide_session,
    is_invalid_data, is_unanswered, may_repeat, own_head, remove_hop_by_hop, response_length, sift, view, write_own,
};
use crate::general::line::{Cut, Line};
use crate::general::upload::Upload;

/// More attempts than any route allows, the waits for an app that flaps included: how often is decided here, not by Pingora.
pub const MOST_ATTEMPTS: usize = 64;

/// How long the rest of a refused request is read, to keep the connection.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// And how much of it at the most.
const DRAIN_BYTES: u64 = 1 << 20;
/// What Pingora is told instead of an address.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
/// How long Pingora keeps a connection that no other request can find. (Zero makes its timer overflow.)
const NOT_KEPT: Duration = Duration::from_millis(1);

/// A response of more than this is a transfer, whose pace is the client's: what the circuit breaker learns of it is its head.
const LARGE_BODY_BYTES: u64 = 1 << 20;

/// The proxy's decisions, as Pingora asks for them.
#[derive(Debug)]
pub struct Gateway {
    state: Arc<State>,
    listener: Listener,
}

impl Gateway {
    /// One for each worker and listener.
    pub fn new(state: Arc<State>, listener: Listener) -> Self {
        Self { state, listener }
    }

    /// Time limits of the client's side, and who is connected.
    fn prepare(&self, session: &mut Session, exchange: &mut Exchange) {
        let limits = exchange.rules.config.client;
        let connected = session.client_addr().and_then(|address| address.as_inet()).map(std::net::SocketAddr::ip);
        if let Some(address) = connected {
            exchange.connected = address.to_canonical();
        }
        let mut in_flight = self.state.enter();
        if let ServerSession::H2(h2) = session.as_ref()
            && let Some(connection) = h2.digest().and_then(|digest| digest.socket_digest.as_ref())
            && let Some(connection) = accept::h2_connection(connection)
        {
            in_flight.on(connection);
        }
        exchange.in_flight = Some(in_flight);
        exchange.listener = self.listener;
        session.set_read_timeout(Some(limits.body_timeout));
        session.set_write_timeout(Some(limits.write_timeout));
        session.set_total_drain_timeout(Some(DRAIN_TIMEOUT));
    }

    /// Answers a refusal; the connection stays open where the protocol allows it.
    async fn reject(&self, session: &mut Session, exchange: &mut Exchange, rejection: Rejection) {
        exchange.rejection = Some(rejection);
        if matches!(rejection, Rejection::BodyTooSlow | Rejection::TooManyUploads) {
            // The rest of the body may never come, and is not waited for.
            session.set_keepalive(None);
        } else {
            self.keep_after_answer(session);
        }
        self.answer(session, exchange, &rejection.problem()).await;
    }

    /// Has the connection stay after an answer of ours, where what is left of the request is short.
    fn keep_after_answer(&self, session: &mut Session) {
        let unread = content_length(session.req_header());
        let waits_for_us = session.req_header().headers.contains_key(header::EXPECT);
        if unread.is_some_and(|bytes| bytes <= DRAIN_BYTES)
            && !waits_for_us
            && let ServerSession::H1(h1) = session.as_mut()
        {
            h1.set_close_on_response_before_downstream_finish(false);
        }
        if self.state.drain.phase() != Phase::Serving {
            session.set_keepalive(None);
        }
    }

    async fn answer(&self, session: &mut Session, exchange: &mut Exchange, problem: &Problem) {
        let reply = reply::entered(&self.state, exchange, problem).await;
        let written = match own_head(&OwnResponse::reply(exchange, &reply)) {
            Ok(head) => write_own(session, head, Bytes::from(reply.body)).await,
            Err(e) => Err(e),
        };
        if let Err(e) = written {
            tracing::debug!(request_id = %exchange.request_id, "the answer could not be sent: {e}");
        }
    }

    /// Waits until the answer's entry in the audit trail is on disk, where its class says so.
    async fn entered(&self, exchange: &mut Exchange) -> Result<()> {
        let Err(rejection) = audit::before_response(&self.state, exchange).await else { return Ok(()) };
        exchange.rejection = Some(rejection);
        let status = rejection.problem().status.as_u16();
        Err(Error::explain(ErrorType::HTTPStatus(status), "it cannot be entered into the audit trail"))
    }

    /// What an error means, and what the client is told.
    fn classify(&self, error: &Error, exchange: &Exchange) -> Verdict {
        if let Some(rejection) = exchange.rejection {
            return Verdict::Rejected(rejection);
        }
        if let Some(failure) = exchange.failure {
            return Verdict::Failed(failure);
        }
        match exchange.line.as_ref().and_then(Line::cut) {
            Some(Cut::App) => return Verdict::Failed(Failure::Timeout),
            Some(Cut::Client) => return Verdict::Rejected(Rejection::BodyTooSlow),
            None => {}
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
            (ErrorSource::Upstream, etype) => Verdict::Failed(failure_of(etype)),
            (ErrorSource::Internal | ErrorSource::Unset, _) => Verdict::Failed(Failure::Internal),
        }
    }
}

/// How the app, or a peer, failed, if Pingora's error is on its side.
fn failure_of(etype: &ErrorType) -> Failure {
    match etype {
        ErrorType::ReadTimedout | ErrorType::WriteTimedout => Failure::Timeout,
        ErrorType::ConnectTimedout => Failure::ConnectTimeout,
        ErrorType::ConnectRefused | ErrorType::ConnectNoRoute | ErrorType::ConnectError | ErrorType::SocketError => {
            Failure::Unreachable
        }
        ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed => Failure::Closed,
        _ => Failure::Invalid,
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
        let has_endless_body = has_endless_body(session);
        let request = view(session.req_header(), has_endless_body);
        let mut verdict = stages::check(&self.state, &request, exchange);
        if exchange.kind != Kind::Upgrade {
            // Without `Connection: upgrade` it means nothing (RFC 9110 section 7.8).
            session.req_header_mut().remove_header(&header::UPGRADE);
        }
        let is_kept = matches!(exchange.destination, Destination::App | Destination::Peer(..));
        if verdict.is_ok() && is_kept && !session.as_mut().is_body_done() {
            verdict = self.take_body(session, exchange).await?;
        }
        let request = view(session.req_header(), has_endless_body);
        if verdict.is_ok() && matches!(exchange.destination, Destination::App) {
            verdict = stages::take_turn(&self.state, &request, exchange);
        }
        let next = match (verdict, exchange.destination.clone()) {
            (Ok(()), Destination::App) => self.take_turn(session, exchange).await,
            (Ok(()), Destination::Peer(..)) => self.sent_to_peer(session, exchange),
            (Ok(()), Destination::Replay(home)) => {
                self.replay(session, exchange, &home).await;
                return Ok(true);
            }
            // Peers ask in a simpler way.
            (Ok(()), Destination::Probe) => Next::Reject(Rejection::NotAPeer),
            (Err(rejection), _) => Next::Reject(rejection),
        };
        match next {
            Next::Reject(rejection) => {
                self.reject(session, exchange, rejection).await;
                Ok(true)
            }
            Next::Fail(failure) => {
                let seen = "it did not come back within `hold`";
                record::failed(&self.state, exchange, failure, &seen).await;
                self.answer(session, exchange, &failure.problem()).await;
                Ok(true)
            }
            next => {
                exchange.next = Some(next);
                retries::pay_in(&self.state, exchange);
                if exchange.kind == Kind::Upgrade {
                    session.set_read_timeout(Some(exchange.rules.config.app.stream_timeout));
                }
                Ok(false)
            }
        }
    }

    async fn upstream_peer(&self, session: &mut Session, exchange: &mut Exchange) -> Result<Box<HttpPeer>> {
        exchange.line = None;
        self.before_connection(session, exchange).await?;
        exchange.body_bytes = 0;
        exchange.interim = 0;
        let app = &exchange.rules.config.app;
        let (target, connect_timeout) = match &exchange.destination {
            Destination::Peer(peer, _) => (
                Some(peer.target.clone()),
                self.state.peers.as_ref().map_or(app.connect_timeout, |peers| peers.rules.timeout),
            ),
            _ => (None, app.connect_timeout),
        };
        // Where it leads is the opener's affair: Pingora is told what it cannot use.
        let mut peer = HttpPeer::new(NOWHERE, false, String::new());
        // Each attempt has a connection of its own, which is not kept. The app may close a kept one at the moment we write, and
        // nobody can know whether it has read what was sent. Pingora finds kept connections by this key: nobody has it again.
        peer.group_key = random() | 1;
        peer.options.idle_timeout = Some(NOT_KEPT);
        let left = exchange.deadline.saturating_duration_since(Instant::now());
        let (line, opener) = Line::new(&self.state, target, connect_timeout.min(left));
        peer.options.custom_l4 = Some(opener);
        exchange.line = Some(line);
        // How long the app may send nothing is the line's affair; how long it may take nothing is the same from here on.
        peer.options.read_timeout = None;
        peer.options.write_timeout = Some(match exchange.kind {
            Kind::Plain | Kind::Stream => exchange.route().timeout,
            Kind::Upgrade => app.stream_timeout,
        });
        Ok(Box::new(peer))
    }

    /// Nothing has been sent, so any request may be tried again.
    fn fail_to_connect(&self, _: &mut Session, _: &HttpPeer, exchange: &mut Exchange, mut error: BError) -> BError {
        let refused = exchange.line.as_ref().and_then(Line::refused);
        let next = match (&exchange.destination, error.etype()) {
            (Destination::Peer(peer, kind), etype) => {
                // A packet may have been lost: only a refusal says something about the next request.
                if *etype == ErrorType::ConnectRefused {
                    peer.not_reached();
                }
                self.state.metrics.peers.sent(*kind, SentOn::Unreachable);
                steps::happened(&self.state, exchange, Event::PeerDeclined)
            }
            (_, etype) => match (refused, etype) {
                (Some(rejection), _) => steps::happened(&self.state, exchange, Event::NoConnection(rejection)),
                (None, ErrorType::ConnectRefused) => steps::refused(&self.state, exchange),
                (None, ErrorType::ConnectTimedout) => steps::happened(&self.state, exchange, Event::ConnectTimedOut),
                (None, _) => {
                    error.set_retry(false);
                    return error;
                }
            },
        };
        self.follow(exchange, next, error)
    }

    async fn connected_to_upstream(
        &self,
        session: &mut Session,
        _: bool,
        _: &HttpPeer,
        _: std::os::fd::RawFd,
        _: Option<&pingora::protocols::Digest>,
        exchange: &mut Exchange,
    ) -> Result<()> {
        if matches!(exchange.destination, Destination::App) {
            self.state.metrics.attempts.new.inc();
            if exchange.attempts.is_probing() {
                let instead = match steps::happened(&self.state, exchange, Event::Connected) {
                    Next::Ask { .. } => self.enter(session, exchange).await,
                    next => Some(next),
                };
                if let Some(next) = instead {
                    return Err(self.instead(exchange, next));
                }
            }
        }
        self.begin_upload(exchange);
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        exchange: &mut Exchange,
    ) -> Result<()> {
        let status = response.status;
        let is_interim = status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS;
        if let Destination::Peer(_, kind) = exchange.destination {
            let is_given_back = response.headers.contains_key(&X_OUTRIGGER_REFUSED);
            if is_given_back && !session.as_ref().retry_buffer_truncated() {
                self.state.metrics.peers.sent(kind, SentOn::Refused);
                let next = steps::happened(&self.state, exchange, Event::PeerDeclined);
                return Err(self.instead(exchange, next));
            }
            if !is_interim {
                self.state.metrics.peers.sent(kind, SentOn::Answered);
            }
            return Ok(());
        }
        if is_interim {
            return Ok(());
        }
        let retry_after =
            response.headers.get(header::RETRY_AFTER).and_then(|value| retry_after::asked_for(value.as_bytes()));
        match self.answered(session, exchange, status.as_u16(), retry_after) {
            None => Ok(()),
            Some(next) => Err(self.instead(exchange, next)),
        }
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        exchange: &mut Exchange,
    ) -> Result<()> {
        let removed = sift(request, exchange.sieve());
        claims::removed(&self.state, exchange, &removed);
        if exchange.sticky.is_enforced() {
            hide_session(request)?;
        }
        let mut added = Added::default();
        let received = session.req_header().version;
        let forwarding = exchange.forwarding(received, &self.state.pseudonym, Instant::now());
        added.fill(&view(session.req_header(), false), &forwarding);
        for (name, value) in added.iter() {
            request.insert_header(name, value)?;
        }
        if let Destination::Peer(peer, kind) = &exchange.destination
            && let Some(peers) = &self.state.peers
        {
            // Pingora has taken out how the body is framed, and writes it anew after this hook, by the same rule.
            if !session.as_mut().is_body_empty()
                && !request.headers.contains_key(header::CONTENT_LENGTH)
                && !request.headers.contains_key(header::TRANSFER_ENCODING)
            {
                request.insert_header(header::TRANSFER_ENCODING, "chunked")?;
            }
            // Last: all that is sent is signed.
            let from = peers.this.name.as_ref().into();
            let hop = Hop { kind: *kind, client: exchange.client.address, nonce: peers.nonces.next(), from };
            let sealed = hop.seal(&peers.this.keys, &view(request, false), peer.receiver(), seconds());
            request.insert_header(&X_OUTRIGGER_HOP, sealed)?;
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        is_end: bool,
        exchange: &mut Exchange,
    ) -> Result<()> {
        // A tunnel carries no body, however much it carries.
        if session.was_upgraded() {
            return Ok(());
        }
        let bytes = body.as_ref().map_or(0, |bytes| bytes.len() as u64);
        exchange.body_bytes += bytes;
        if exchange.body_bytes > exchange.route().max_body_bytes {
            exchange.rejection = Some(Rejection::BodyTooLarge);
            return Error::e_explain(ErrorType::HTTPStatus(413), "the body is larger than the route allows");
        }
        if exchange.upload.is_streamed() {
            self.pass_on(session, exchange, bytes, is_end).await?;
        }
        if is_end
            && exchange.head_at.is_none()
            && let Some(line) = &exchange.line
        {
            line.head_until(exchange.deadline);
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
        if head_bytes(response) > ANSWER_HEAD_BYTES {
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, "its head is larger than 64 KiB").into_up());
        }
        if response.status.is_informational() && response.status != StatusCode::SWITCHING_PROTOCOLS {
            exchange.interim += 1;
            if exchange.interim > MOST_INTERIM {
                let text = "there is no end of interim answers";
                return Err(Error::explain(ErrorType::InvalidHTTPHeader, text).into_up());
            }
        }
        exchange.status = response.status.as_u16();
        let is_final = !response.status.is_informational() || response.status == StatusCode::SWITCHING_PROTOCOLS;
        if is_final && matches!(exchange.destination, Destination::Peer(..)) {
            steps::happened(&self.state, exchange, Event::PeerAnswered);
        }
        exchange.answered_by_app = is_final;
        response.remove_header(&X_OUTRIGGER_REFUSED);
        if response.status != StatusCode::SWITCHING_PROTOCOLS {
            remove_hop_by_hop(response);
        }
        if response.status == StatusCode::SWITCHING_PROTOCOLS {
            exchange.stream = Some(StreamKind::Upgrade);
            self.head_has_come(exchange, true, exchange.rules.config.app.stream_timeout);
            self.entered(exchange).await?;
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
        add_session(response, exchange)?;
        let is_event_stream =
            response.headers.get(header::CONTENT_TYPE).is_some_and(|value| is_event_stream_type(value.as_bytes()));
        exchange.stream = is_event_stream.then_some(StreamKind::EventStream);
        let length = response_length(response);
        let is_large = length.is_some_and(|bytes| bytes > LARGE_BODY_BYTES);
        let app = &exchange.rules.config.app;
        let pause = if is_event_stream { app.stream_timeout } else { exchange.route().timeout };
        self.head_has_come(exchange, is_event_stream || is_large, pause);
        admit::let_go_at_head(exchange, length);
        if length.is_none() {
            // Nobody knows for how long it goes on, and a probe is not to be held by it.
            breakers::ended(&self.state, exchange, End::Answered(exchange.status, Instant::now()));
        }
        admit::let_go_later(exchange);
        self.entered(exchange).await
    }

    fn response_body_filter(
        &self,
        _: &mut Session,
        _: &mut Option<Bytes>,
        is_end: bool,
        exchange: &mut Exchange,
    ) -> Result<Option<Duration>> {
        if is_end {
            // The app has done its part. How long the client takes to read it is its own affair.
            exchange.permit = None;
            exchange.lingering = None;
            if exchange.head_at.is_some() {
                breakers::ended(&self.state, exchange, End::Answered(exchange.status, Instant::now()));
            }
        }
        Ok(None)
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        mut error: BError,
        exchange: &mut Exchange,
        _: bool,
    ) -> BError {
        let unanswered = is_unanswered(session);
        if exchange.next.is_some() {
            // It is known what follows, and the error only ended the attempt.
            error.set_retry(unanswered);
            return error;
        }
        let cut = exchange.line.as_ref().and_then(Line::cut);
        let is_app = *error.esource() == ErrorSource::Upstream && cut != Some(Cut::Client);
        let may_repeat = unanswered && may_repeat(session);
        let event = match (&exchange.destination, error.etype()) {
            _ if !is_app => Event::ClientLeft,
            (Destination::Peer(_, kind), etype) => {
                self.state.metrics.peers.sent(*kind, if cut.is_some() { SentOn::Late } else { SentOn::Broken });
                match failure_of(etype) {
                    _ if cut.is_some() => Event::PeerTimedOut,
                    failure => Event::PeerBroke { failure, may_repeat },
                }
            }
            (_, etype) => match failure_of(etype) {
                Failure::Timeout => Event::TimedOut,
                _ if cut.is_some() => Event::TimedOut,
                Failure::Closed => Event::Closed { is_stale: false, may_repeat },
                _ => Event::Invalid,
            },
        };
        let next = steps::happened(&self.state, exchange, event);
        self.follow(exchange, next, error)
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, exchange: &mut Exchange) -> FailToProxy {
        let problem = match self.classify(error, exchange) {
            // A tunnel ends as it ends: that is no failed request, and there is nobody left who reads HTTP.
            _ if session.was_upgraded() => None,
            Verdict::Rejected(rejection) => {
                exchange.rejection = Some(rejection);
                Some(rejection.problem())
            }
            Verdict::Failed(failure) => {
                record::failed(&self.state, exchange, failure, error).await;
                Some(failure.problem())
            }
            Verdict::ClientLeft => None,
        };
        let unanswered = is_unanswered(session);
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
        exchange.line = None;
        exchange.upload = Upload::default();
    }

    fn suppress_error_log(&self, _: &Session, _: &Exchange, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Exchange, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }
}
