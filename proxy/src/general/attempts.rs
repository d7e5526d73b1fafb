//! The driver of [`crate::engine::attempts`] on Pingora's hooks: waits, pauses and asks the circuit breaker before Pingora
//! connects, and tells Pingora whether the request continues.

use std::time::{Duration, Instant};

use pingora::proxy::Session;
use pingora::{BError, Error, ErrorType, Result};

use crate::engine::attempts::{Event, Next};
use crate::engine::exchange::{Destination, Exchange};
use crate::engine::rejection::Failure;
use crate::engine::stages::admit::NoTurn;
use crate::engine::stages::{self, admit, hold};
use crate::engine::steps;
use crate::general::Gateway;
use crate::general::context::Context;
use crate::general::heads::{has_endless_body, is_unanswered, may_repeat, view};
use crate::mechanism::peers::hop;

impl Gateway {
    /// Waits until the request has a permit, where it needs one.
    pub(super) async fn wait_for_turn(&self, exchange: &mut Exchange) -> Result<(), NoTurn> {
        let Some(mut waiting) = exchange.waiting.take() else { return Ok(()) };
        loop {
            let deadline = admit::wait_deadline(&self.state, exchange);
            let turn = waiting.turn(deadline).await;
            let now = Instant::now();
            match turn {
                Some(Some(permit)) => {
                    exchange.permit = Some(permit);
                    self.state.metrics.waited(exchange, now);
                    return Ok(());
                }
                // The app went down meanwhile, so the request may wait longer.
                None if admit::wait_deadline(&self.state, exchange) > now => {}
                Some(None) | None => return Err(admit::no_turn(&self.state, exchange, now)),
            }
        }
    }

    /// Waits for a permit before an attempt; returns the next step.
    pub(super) async fn take_turn(&self, session: &Session, exchange: &mut Exchange) -> Next {
        match self.wait_for_turn(exchange).await {
            Ok(()) => steps::admitted(&self.state, exchange, session.req_header().method.is_idempotent()),
            Err(no_turn) => steps::not_admitted(&self.state, exchange, no_turn),
        }
    }

    /// A peer has declined the request. If the peer was the session's home, the session gets a new home here.
    async fn take_back(&self, session: &mut Session, exchange: &mut Exchange) -> Next {
        let has_endless_body = has_endless_body(session);
        let request = view(session.req_header(), has_endless_body);
        let was_home = matches!(exchange.destination, Destination::Peer(_, hop::Kind::Session));
        (exchange.destination, exchange.turn_began) = (Destination::App, Instant::now());
        exchange.has_lost_home |= was_home;
        let decide = if was_home { stages::decide } else { stages::take_turn };
        if let Err(rejection) = decide(&self.state, &request, exchange) {
            return steps::happened(&self.state, exchange, Event::NotAdmitted { rejection, peer: false });
        }
        if matches!(exchange.destination, Destination::Peer(..)) {
            return self.sent_to_peer(session, exchange);
        }
        self.take_turn(session, exchange).await
    }

    /// A stage has sent the request to a peer.
    pub(super) fn sent_to_peer(&self, session: &Session, exchange: &mut Exchange) -> Next {
        let is_idempotent = session.req_header().method.is_idempotent();
        steps::happened(&self.state, exchange, Event::SentToPeer { is_idempotent })
    }

    /// Waits in the queue until the app is back.
    async fn wait_for_app(&self, session: &Session, context: &mut Context) -> Next {
        context.upload.give_back();
        if let Err(rejection) = hold::rejoin(&self.state, &mut context.exchange) {
            return steps::not_admitted(&self.state, &mut context.exchange, NoTurn::Refused(rejection));
        }
        match self.take_turn(session, &mut context.exchange).await {
            Next::Ask { .. } if Instant::now() >= context.exchange.deadline => {
                steps::happened(&self.state, &mut context.exchange, Event::Expired)
            }
            next => next,
        }
    }

    /// Takes all steps before the next connection.
    ///
    /// # Errors
    /// Pingora's, if the request ends without another connection.
    pub(super) async fn before_connection(&self, session: &mut Session, context: &mut Context) -> Result<()> {
        let mut next = context.next.take().unwrap_or(Next::Nothing);
        loop {
            if let Next::Ask { pause } | Next::Probe { pause } = next
                && !pause.is_zero()
            {
                tokio::time::sleep(pause).await;
            }
            next = match next {
                Next::Ask { .. } => match self.enter(session, &mut context.exchange).await {
                    None => return Ok(()),
                    Some(next) => next,
                },
                Next::Wait => self.wait_for_app(session, context).await,
                Next::ComeBack => self.take_back(session, &mut context.exchange).await,
                Next::AskPeer if context.exchange.deadline <= Instant::now() => {
                    steps::happened(&self.state, &mut context.exchange, Event::Expired)
                }
                Next::Probe { .. } | Next::AskPeer => return Ok(()),
                next => return Err(self.instead(context, next)),
            };
        }
    }

    /// Asks the circuit breaker and injects a fault. `None`: the attempt continues.
    pub(super) async fn enter(&self, session: &mut Session, exchange: &mut Exchange) -> Option<Next> {
        let now = Instant::now();
        if exchange.attempts.made() > 1
            && let Some(permit) = &mut exchange.permit
        {
            permit.sent(now);
        }
        let fault = match steps::enter(&self.state, exchange, now) {
            Ok(fault) => fault?,
            Err(next) => return Some(next),
        };
        tokio::time::sleep(fault.delay).await;
        let event = fault.event(exchange, || is_unanswered(session) && may_repeat(session))?;
        Some(steps::happened(&self.state, exchange, event))
    }

    /// An error that makes Pingora end this attempt, so that `next` follows.
    pub(super) fn instead(&self, context: &mut Context, next: Next) -> BError {
        let kind = match next {
            Next::Reject(rejection) => ErrorType::HTTPStatus(rejection.problem().status.as_u16()),
            Next::Fail(Failure::Unreachable) => ErrorType::ConnectRefused,
            Next::Fail(_) => ErrorType::ConnectionClosed,
            _ => ErrorType::InternalError,
        };
        self.follow(context, next, Error::explain(kind, "no attempt is made").into_up())
    }

    /// Makes Pingora call `upstream_peer` again if the request continues; otherwise records how it ended.
    pub(super) fn follow(&self, context: &mut Context, next: Next, mut error: BError) -> BError {
        let goes_on = match next {
            Next::Reject(rejection) => {
                context.exchange.rejection = Some(rejection);
                false
            }
            Next::Fail(failure) => {
                context.exchange.failure = Some(failure);
                false
            }
            Next::Relay | Next::Leave | Next::Nothing => false,
            Next::Ask { .. } | Next::Probe { .. } | Next::Replace | Next::Wait | Next::AskPeer | Next::ComeBack => true,
        };
        context.next = goes_on.then_some(next);
        error.set_retry(goes_on);
        error
    }

    /// The response's head is complete. `None`: it is passed on.
    pub(super) fn answered(
        &self,
        session: &Session,
        exchange: &mut Exchange,
        status: u16,
        retry_after: Option<Duration>,
    ) -> Option<Next> {
        let may_repeat = || is_unanswered(session) && may_repeat(session);
        match steps::answered(&self.state, exchange, status, retry_after, may_repeat) {
            Next::Relay => None,
            next => Some(next),
        }
    }
}
