//! What comes before each attempt on Pingora's way, and whether there is another one: see [`crate::http1`] for the same there.

use std::time::{Duration, Instant};

use outrigger_identity::clock::seconds;
use outrigger_rules::sections::faults::Effect;
use pingora::proxy::Session;
use pingora::{BError, Error, ErrorType};

use crate::engine::exchange::{Destination, Exchange};
use crate::engine::rejection::{Failure, Rejection};
use crate::engine::retries;
use crate::engine::stages;
use crate::engine::stages::admit::NoTurn;
use crate::engine::stages::{admit, faults, hold};
use crate::general::Gateway;
use crate::general::heads::{has_endless_body, is_unanswered, may_repeat, view, write_replay};
use crate::mechanism::affinity::replay;
use crate::mechanism::breakers::{self, End};
use crate::mechanism::peers::hop;

/// Why an attempt is not made.
#[derive(Clone, Copy)]
pub(super) enum Stop {
    Refused(Rejection),
    AppAway,
    /// A fault on purpose: the app seems to have closed its connection.
    Reset,
}

impl From<NoTurn> for Stop {
    fn from(no_turn: NoTurn) -> Self {
        match no_turn {
            NoTurn::Refused(rejection) => Self::Refused(rejection),
            NoTurn::AppAway => Self::AppAway,
        }
    }
}

impl Gateway {
    /// Waits for its turn where that is needed.
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
                // The app went away while it waited: it may wait for that, too.
                None if admit::wait_deadline(&self.state, exchange) > now => {}
                Some(None) | None => return Err(admit::no_turn(&self.state, exchange, now)),
            }
        }
    }

    /// A peer has not taken it. Whose session's home that was, it has a new one here; the others wait for their turn.
    pub(super) async fn take_back(&self, session: &mut Session, exchange: &mut Exchange) -> Result<(), NoTurn> {
        let has_endless_body = has_endless_body(session);
        let request = view(session.req_header(), has_endless_body);
        let was_home = matches!(exchange.destination, Destination::Peer(_, hop::Kind::Session));
        (exchange.destination, exchange.turn_began) = (Destination::App, Instant::now());
        exchange.has_lost_home |= was_home;
        let decide = if was_home { stages::decide } else { stages::take_turn };
        decide(&self.state, &request, exchange).map_err(NoTurn::Refused)?;
        self.wait_for_turn(exchange).await
    }

    /// Asks the edge to send the request to its session's home.
    pub(super) async fn replay(&self, session: &mut Session, exchange: &mut Exchange, home: &str) {
        let rules = std::sync::Arc::clone(&exchange.rules);
        let (Some(this), Some(affinity)) = (&rules.config.this, &rules.config.affinity) else { return };
        let field = replay::field(this, home, affinity.replay_timeout, seconds());
        self.keep_after_answer(session);
        exchange.status = http::StatusCode::TEMPORARY_REDIRECT.as_u16();
        if let Err(e) = write_replay(session, exchange, &field).await {
            tracing::debug!(request_id = %exchange.request_id, "the replay could not be asked for: {e}");
        }
    }

    /// Everything that comes before an attempt: the wait for an app that is away, a pause, the breaker, a fault on purpose.
    pub(super) async fn before_attempt(&self, exchange: &mut Exchange) -> Result<(), Stop> {
        if let Some(pause) = exchange.next.pause.take() {
            tokio::time::sleep(pause).await;
        }
        if std::mem::take(&mut exchange.next.rejoins) {
            exchange.upload.give_back();
            hold::rejoin(&self.state, exchange).map_err(Stop::Refused)?;
            self.wait_for_turn(exchange).await?;
        }
        breakers::enter(&self.state, exchange, Instant::now()).map_err(Stop::Refused)?;
        let fault = if exchange.faults.is_empty() { None } else { faults::next(exchange) };
        let Some((delay, effect)) = fault else { return Ok(()) };
        self.state.metrics.faults.inc();
        let left = exchange.deadline.saturating_duration_since(Instant::now());
        tokio::time::sleep(delay.min(left)).await;
        match effect {
            _ if delay >= left => Err(Stop::Refused(Rejection::Expired)),
            Effect::Pass => Ok(()),
            Effect::Abort(status) => Err(Stop::Refused(Rejection::FaultInjected { status })),
            Effect::Reset => Err(Stop::Reset),
        }
    }

    /// No attempt is made now: is one made later?
    pub(super) fn stopped(&self, session: &Session, exchange: &mut Exchange, stop: Stop) -> BError {
        let (kind, again) = match stop {
            Stop::Refused(Rejection::FaultInjected { status }) => {
                exchange.attempts += 1;
                let again = self.tries_again(session, exchange, status.as_u16(), None);
                if again {
                    breakers::ended(&self.state, exchange, End::Answered(status.as_u16(), Instant::now()));
                } else {
                    exchange.rejection = Some(Rejection::FaultInjected { status });
                }
                (ErrorType::HTTPStatus(status.as_u16()), again)
            }
            Stop::Reset => {
                exchange.attempts += 1;
                let again = may_repeat(session) && self.pays_for_another(exchange, None);
                if again {
                    breakers::ended(&self.state, exchange, End::Failed);
                } else {
                    exchange.failure = Some(Failure::Closed);
                }
                (ErrorType::ConnectionClosed, again)
            }
            Stop::Refused(rejection) => {
                exchange.rejection = Some(rejection);
                (ErrorType::HTTPStatus(rejection.problem().status.as_u16()), false)
            }
            Stop::AppAway => {
                exchange.failure = Some(Failure::Unreachable);
                (ErrorType::ConnectRefused, false)
            }
        };
        let mut error = Error::explain(kind, "no attempt is made").into_up();
        error.set_retry(again);
        error
    }

    /// Whether this answer is not passed on but tried again; then it is paid for, and the pause is set.
    pub(super) fn tries_again(
        &self,
        session: &Session,
        exchange: &mut Exchange,
        status: u16,
        asked_for: Option<Duration>,
    ) -> bool {
        retries::is_wanted(exchange, status)
            && is_unanswered(session)
            && may_repeat(session)
            && self.pays_for_another(exchange, asked_for)
    }

    pub(super) fn pays_for_another(&self, exchange: &mut Exchange, asked_for: Option<Duration>) -> bool {
        let now = Instant::now();
        let pause = retries::pause(exchange, now, asked_for).filter(|_| retries::pay(&self.state, exchange, now));
        exchange.next.pause = pause;
        pause.is_some()
    }
}
