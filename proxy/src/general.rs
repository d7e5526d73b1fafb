//! The general path: Pingora's hooks, in the order in which it calls them. It takes every request that the fast lane
//! ([`crate::http1`]) does not.
//!
//! [`stages::STAGES`] decides about a request; [`record`] reports how it ended. Permits and counts live in the [`Context`], which
//! returns them in `Drop`: Pingora can skip a hook, but not a drop.

mod attempts;
mod context;
mod errors;
pub mod h2;
mod heads;
mod line;
mod replies;
mod request;
mod response;
mod upload;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::{StatusCode, Version, header};
use outrigger_wire::names::X_OUTRIGGER_REFUSED;
use outrigger_wire::random::random;
use outrigger_wire::request::Kind;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::prelude::HttpPeer;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpUpstreamRequestPolicy;
use pingora::{BError, Error, ErrorSource, ErrorType, Result};

use crate::engine::attempts::{Event, Next};
use crate::engine::exchange::{Destination, Listener};
use crate::engine::metrics::StreamKind;
use crate::engine::rejection::Rejection;
use crate::engine::stages::breakers::End;
use crate::engine::stages::{self, breakers};
use crate::engine::state::State;
use crate::engine::{record, retries, steps};
use crate::general::context::Context;
use crate::general::errors::Verdict;
use crate::general::heads::{check_h2, edit_response, has_endless_body, is_unanswered, may_repeat, retry_after, view};
use crate::general::line::Line;
use crate::general::upload::Upload;
use crate::mechanism::peers::metrics::SentOn;

/// The limit that Pingora is given: more attempts than any route allows, including those that wait for an app that is down.
/// Outrigger itself decides when to stop.
pub const MOST_ATTEMPTS: usize = 64;

/// The address that Pingora gets; [`Line`] opens the real connection.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
/// How long Pingora keeps a connection that no other request can find. (Zero makes its timer overflow.)
const NOT_KEPT: Duration = Duration::from_millis(1);

/// Implements Pingora's hooks.
#[derive(Debug)]
pub struct Gateway {
    state: Arc<State>,
    listener: Listener,
}

impl Gateway {
    /// Each worker has one for each listener.
    pub fn new(state: Arc<State>, listener: Listener) -> Self {
        Self { state, listener }
    }
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Context;

    fn new_ctx(&self) -> Context {
        Context::new(self.state.rules.load_full())
    }

    /// Adds no module: Pingora's default has one for compression, which costs an allocation per request.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, context: &mut Context) -> Result<bool> {
        let exchange = &mut context.exchange;
        self.prepare(session, exchange);
        let has_endless_body = has_endless_body(session);
        let request = view(session.req_header(), has_endless_body);
        let mut verdict = stages::check(&self.state, &request, exchange);
        if verdict.is_ok() && session.req_header().version == Version::HTTP_2 {
            verdict = check_h2(session.req_header()).map_err(Rejection::Malformed);
        }
        if exchange.kind != Kind::Upgrade {
            // Without `Connection: upgrade` the header has no meaning (RFC 9110 section 7.8).
            session.req_header_mut().remove_header(&header::UPGRADE);
        }
        let is_kept = matches!(exchange.destination, Destination::App | Destination::Peer(..));
        if verdict.is_ok() && is_kept && !session.as_mut().is_body_done() {
            verdict = self.take_body(session, context).await?;
        }
        let exchange = &mut context.exchange;
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
            // A peer's probe is simple enough for the fast lane.
            (Ok(()), Destination::Probe) => Next::Reject(Rejection::NotAPeer),
            (Err(rejection), _) => Next::Reject(rejection),
        };
        match next {
            Next::Reject(rejection) => {
                self.reject(session, exchange, rejection).await;
                Ok(true)
            }
            Next::Fail(failure) => {
                let seen = "it was down for longer than `hold`";
                record::failed(&self.state, exchange, failure, &seen).await;
                self.answer(session, exchange, &failure.problem()).await;
                Ok(true)
            }
            next => {
                context.next = Some(next);
                retries::pay_in(&self.state, exchange);
                if exchange.kind == Kind::Upgrade {
                    session.set_read_timeout(Some(exchange.rules.config.app.stream_timeout));
                }
                Ok(false)
            }
        }
    }

    async fn upstream_peer(&self, session: &mut Session, context: &mut Context) -> Result<Box<HttpPeer>> {
        context.line = None;
        self.before_connection(session, context).await?;
        context.body_bytes = 0;
        context.interim = 0;
        let exchange = &context.exchange;
        let app = &exchange.rules.config.app;
        let (target, connect_timeout) = match &exchange.destination {
            Destination::Peer(peer, _) => (
                Some(peer.target.clone()),
                self.state.peers.as_ref().map_or(app.connect_timeout, |peers| peers.rules.timeout),
            ),
            _ => (None, app.connect_timeout),
        };
        // The opener knows the real address.
        let mut peer = HttpPeer::new(NOWHERE, false, String::new());
        // Each attempt has its own connection, which is not reused: the app may close a reused one just as Outrigger writes
        // to it, and then it is unknown whether the app read the request. Pingora looks up connections by this key, which is
        // unique.
        peer.group_key = random() | 1;
        peer.options.idle_timeout = Some(NOT_KEPT);
        // `write_head` removes what Pingora would remove, by the same table as the fast lane.
        peer.options.http_upstream_request_policy = HttpUpstreamRequestPolicy::preserve();
        let left = exchange.deadline.saturating_duration_since(Instant::now());
        let (line, opener) = Line::new(&self.state, target, connect_timeout.min(left));
        peer.options.custom_l4 = Some(opener);
        context.line = Some(line);
        // `Line` limits how long the app may send nothing. How long it may read nothing is fixed for the attempt.
        peer.options.read_timeout = None;
        peer.options.write_timeout = Some(match exchange.kind {
            Kind::Plain | Kind::Stream => exchange.route().timeout,
            Kind::Upgrade => app.stream_timeout,
        });
        Ok(Box::new(peer))
    }

    /// Any request may be tried again, as nothing of it has been sent.
    fn fail_to_connect(&self, _: &mut Session, _: &HttpPeer, context: &mut Context, mut error: BError) -> BError {
        match self.not_connected(context, error.etype()) {
            Some(next) => self.follow(context, next, error),
            None => {
                error.set_retry(false);
                error
            }
        }
    }

    async fn connected_to_upstream(
        &self,
        session: &mut Session,
        _: bool,
        _: &HttpPeer,
        _: std::os::fd::RawFd,
        _: Option<&pingora::protocols::Digest>,
        context: &mut Context,
    ) -> Result<()> {
        if matches!(context.exchange.destination, Destination::App) {
            self.state.metrics.attempts.new.inc();
            if context.exchange.attempts.is_probing() {
                let instead = match steps::happened(&self.state, &mut context.exchange, Event::Connected) {
                    Next::Ask { .. } => self.enter(session, &mut context.exchange).await,
                    next => Some(next),
                };
                if let Some(next) = instead {
                    return Err(self.instead(context, next));
                }
            }
        }
        self.begin_upload(context);
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut Context,
    ) -> Result<()> {
        let status = response.status;
        let is_interim = status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS;
        if let Destination::Peer(_, kind) = context.exchange.destination {
            let is_given_back = response.headers.contains_key(&X_OUTRIGGER_REFUSED);
            if is_given_back && !session.as_ref().retry_buffer_truncated() {
                self.state.metrics.peers.sent(kind, SentOn::Refused);
                let next = steps::happened(&self.state, &mut context.exchange, Event::PeerDeclined);
                return Err(self.instead(context, next));
            }
            if !is_interim {
                self.state.metrics.peers.sent(kind, SentOn::Answered);
            }
            return Ok(());
        }
        if is_interim {
            return Ok(());
        }
        match self.answered(session, &mut context.exchange, status.as_u16(), retry_after(response)) {
            None => Ok(()),
            Some(next) => Err(self.instead(context, next)),
        }
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        context: &mut Context,
    ) -> Result<()> {
        self.write_head(session, request, &mut context.exchange)
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        is_end: bool,
        context: &mut Context,
    ) -> Result<()> {
        // The bytes of a tunnel are not a body.
        if session.was_upgraded() {
            return Ok(());
        }
        let bytes = body.as_ref().map_or(0, |bytes| bytes.len() as u64);
        context.body_bytes += bytes;
        if context.body_bytes > context.exchange.route().max_body_bytes {
            context.exchange.rejection = Some(Rejection::BodyTooLarge);
            return Error::e_explain(ErrorType::HTTPStatus(413), "the body is larger than the route allows");
        }
        if context.upload.is_streamed() {
            self.pass_on(session, context, bytes, is_end).await?;
        }
        if is_end
            && context.exchange.head_at.is_none()
            && let Some(line) = &context.line
        {
            line.head_until(context.exchange.deadline);
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut Context,
    ) -> Result<()> {
        response::check(response, context)?;
        let is_upgrade = response.status == StatusCode::SWITCHING_PROTOCOLS;
        let is_final = is_upgrade || !response.status.is_informational();
        let exchange = &mut context.exchange;
        exchange.status = response.status.as_u16();
        if is_final && matches!(exchange.destination, Destination::Peer(..)) {
            steps::happened(&self.state, exchange, Event::PeerAnswered);
        }
        exchange.answered_by_app = is_final;
        if !is_final || is_upgrade {
            edit_response(response, false, None);
        }
        if is_upgrade {
            response.insert_header(header::CONNECTION, "Upgrade")?;
            exchange.stream = Some(StreamKind::Upgrade);
            let pause = exchange.rules.config.app.stream_timeout;
            self.head_has_come(context, true, pause);
            return self.entered(&mut context.exchange).await;
        }
        if !is_final {
            return Ok(());
        }
        self.relay_head(session, response, context)?;
        self.entered(&mut context.exchange).await
    }

    fn response_body_filter(
        &self,
        _: &mut Session,
        _: &mut Option<Bytes>,
        is_end: bool,
        context: &mut Context,
    ) -> Result<Option<Duration>> {
        if is_end {
            // The app is done; the client may still read.
            context.exchange.permit = None;
            context.lingering = None;
            if context.exchange.head_at.is_some() {
                let end = End::Answered(context.exchange.status, Instant::now());
                breakers::ended(&self.state, &mut context.exchange, end);
            }
        }
        Ok(None)
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        mut error: BError,
        context: &mut Context,
        _: bool,
    ) -> BError {
        let unanswered = is_unanswered(session);
        if context.next.is_some() {
            // The next step is known; the error only ended the attempt.
            error.set_retry(unanswered);
            return error;
        }
        let event = self.broke(context, &error, unanswered && may_repeat(session));
        let next = steps::happened(&self.state, &mut context.exchange, event);
        self.follow(context, next, error)
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, context: &mut Context) -> FailToProxy {
        let problem = match self.classify(error, context) {
            // The end of a tunnel is no failed request, and its client no longer reads HTTP.
            _ if session.was_upgraded() => None,
            Verdict::Rejected(rejection) => {
                context.exchange.rejection = Some(rejection);
                Some(rejection.problem())
            }
            Verdict::Failed(failure) => {
                record::failed(&self.state, &mut context.exchange, failure, error).await;
                Some(failure.problem())
            }
            Verdict::ClientLeft => None,
        };
        let unanswered = is_unanswered(session);
        // Pingora closes the connection after an error, so the response announces it.
        session.set_keepalive(None);
        let mut error_code = 0;
        if let (Some(problem), true) = (problem, unanswered) {
            self.answer(session, &mut context.exchange, &problem).await;
            error_code = context.exchange.status;
        }
        FailToProxy { error_code, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, context: &mut Context) {
        let client_left = error.is_some_and(|e| *e.esource() == ErrorSource::Downstream);
        let ending = record::Ending {
            failed: error.is_some() && !session.was_upgraded(),
            client_left: client_left && !session.was_upgraded(),
            body_bytes: session.body_bytes_sent() as u64,
        };
        let request = session.req_header();
        record::exchange(&self.state, &mut context.exchange, &ending, &request.method, request.uri.path());
        context.exchange.in_flight = None;
        context.exchange.permit = None;
        context.lingering = None;
        context.line = None;
        context.upload = Upload::default();
    }

    fn suppress_error_log(&self, _: &Session, _: &Context, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Context, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }
}
