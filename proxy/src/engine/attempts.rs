//! The attempts of one request: a state machine without sockets, clock, locks or randomness.
//!
//! [`crate::http1`] drives it: it reports an [`Event`] and does what the machine returns, through [`super::steps`]. A request
//! that meets no failure takes two calls: [`Event::Admitted`] and [`Event::Answered`]. `proxy/src/engine/LIFECYCLE.md` has the
//! picture and the table.

mod event;

use std::time::Duration;

use http::StatusCode;

pub use self::event::Event;
use crate::engine::rejection::{Failure, Rejection};

/// The result of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A retry is wanted: find out whether there is time and budget for it, and report [`Event::Bought`].
    Buy(Price),
    /// First report to the circuit breaker how the attempt ended, if it is over and the outcome does not report it; then go on.
    Go(Option<Report>, Next),
}

/// The cost of a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Price {
    /// A pause that ends before the deadline. The budget is asked once the app accepts a connection.
    Pause,
    /// One token of the retry budget, without a pause.
    Budget,
    /// Both. The pause is the app's `Retry-After` if there is one.
    PauseAndBudget(Option<Duration>),
}

/// How an attempt ended, for the circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// With a response of this status, which is not passed on.
    Answered(u16),
    /// Without a usable response.
    Failed,
    /// Without a connection in time.
    NotConnected,
    /// Because the app went down: not counted.
    Unknown,
}

/// The driver's next action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Pause, then make an attempt: ask the circuit breaker, inject a fault, send the request, and read the response's head.
    Ask {
        /// Zero for the first attempt.
        pause: Duration,
    },
    /// Pause, then only connect. The last attempt's connection broke off; whether the app is down or only that attempt failed
    /// shows in whether it accepts a new one.
    Probe {
        /// The pause before.
        pause: Duration,
    },
    /// Go on waiting for the response of this attempt.
    GoOn,
    /// Continue the attempt on a new connection: the kept one was dead.
    Replace,
    /// Give the permit back and wait in the queue until the app is back.
    Wait,
    /// Send it to the peer that is its destination.
    AskPeer,
    /// Serve it here after all: the peer has not served it.
    ComeBack,
    /// Forward the response. Like all that follow, it is an outcome, and final.
    Relay,
    /// Reject it.
    Reject(Rejection),
    /// Respond that the app failed.
    Fail(Failure),
    /// Stop: the client has disconnected.
    Leave,
    /// No action: the request has ended already.
    Nothing,
}

/// Where a request is between two events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// It waits for a permit, or has not asked for one yet.
    #[default]
    Queued,
    /// An attempt is being made.
    Asking,
    /// The last attempt broke off, and a connection is being made to find out why.
    Probing,
    /// A peer has it.
    AtPeer,
    /// A retry is being paid for.
    Buying(Purchase),
    /// It has its outcome.
    Ended,
}

/// Why a retry is wanted; determines what happens without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purchase {
    ConnectTimeout,
    Close,
    Overdue,
    Probe,
    Response(u16),
    Fault(StatusCode),
    Peer(Failure),
}

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attempts {
    stage: Stage,
    made: u32,
    most: u32,
    is_idempotent: bool,
    /// This attempt has replaced a dead connection.
    has_replaced: bool,
    /// An attempt has ended because it took too long, which happens once.
    was_overdue: bool,
}

impl Attempts {
    /// The attempts at the app so far, except connections that the app refused while the request may wait or goes to a peer,
    /// and attempts never sent because of the circuit breaker, the deadline or the budget.
    pub const fn made(&self) -> u32 {
        self.made
    }

    /// Whether no attempt is being made.
    pub fn is_queued(&self) -> bool {
        self.stage == Stage::Queued
    }

    /// Whether the next connection shows why the last attempt broke off.
    pub fn is_probing(&self) -> bool {
        self.stage == Stage::Probing
    }

    /// Whether an upstream may be asked while the app has the request: its method is idempotent, and there is an attempt left.
    pub fn may_leave(&self) -> bool {
        self.is_idempotent && self.made < self.most
    }

    /// Whether no attempt has been found to take too long.
    pub fn was_in_time(&self) -> bool {
        !self.was_overdue
    }

    /// Whether the request has its outcome.
    #[cfg(test)]
    fn has_ended(&self) -> bool {
        self.stage == Stage::Ended
    }

    /// Takes an event, and returns what follows.
    #[inline]
    pub fn on(&mut self, event: Event) -> Step {
        match (self.stage, event) {
            // A request that meets no failure.
            (Stage::Queued, Event::Admitted { most, is_idempotent }) => {
                (self.most, self.is_idempotent) = (most, is_idempotent);
                self.ask(None, Duration::ZERO)
            }
            (Stage::Asking, Event::Answered { wants_retry: false, .. }) => self.end(Next::Relay),
            _ => self.on_failure(event),
        }
    }

    fn on_failure(&mut self, event: Event) -> Step {
        match (self.stage, event) {
            (Stage::Ended, _) => Step::Go(None, Next::Nothing),
            (_, Event::ClientLeft) => self.end(Next::Leave),
            (Stage::Buying(purchase), Event::Bought(pause)) => self.bought(purchase, pause),

            // Before an attempt. An upload whose permit was given back asks for another one while its attempt goes on.
            (Stage::Queued, Event::NotAdmitted { peer: true, .. }) => self.ask_peer(),
            (Stage::Queued | Stage::Asking, Event::NotAdmitted { rejection, .. }) => self.end(Next::Reject(rejection)),
            (Stage::Queued | Stage::Asking, Event::HoldOver) => self.end(Next::Fail(Failure::Unreachable)),
            (Stage::Queued | Stage::AtPeer, Event::Expired) => self.end(Next::Reject(Rejection::Expired)),
            (Stage::Asking, Event::Expired) => {
                self.made -= 1;
                self.end(Next::Reject(Rejection::Expired))
            }
            (Stage::Asking, Event::BreakerOpen { retry_after, peer }) => {
                self.made -= 1;
                if peer { self.ask_peer() } else { self.end(Next::Reject(Rejection::BreakerOpen { retry_after })) }
            }
            (Stage::Asking, Event::FaultStatus { status, wants_retry }) => {
                let price = Price::PauseAndBudget(None);
                self.buy_repeat(wants_retry, price, Purchase::Fault(status))
            }

            // Without a connection, the app has not seen the request.
            (Stage::Asking | Stage::Probing, Event::Refused { peer: true, .. }) => {
                self.made -= 1;
                self.ask_peer()
            }
            (Stage::Asking | Stage::Probing, Event::Refused { waits: true, .. }) => {
                self.made -= 1;
                self.stage = Stage::Queued;
                Step::Go(Some(Report::Unknown), Next::Wait)
            }
            (Stage::Asking | Stage::Probing, Event::Refused { .. }) => self.end(Next::Fail(Failure::Unreachable)),
            (Stage::Asking | Stage::Probing, Event::ConnectTimedOut) => {
                self.buy_if(true, Price::PauseAndBudget(None), Purchase::ConnectTimeout)
            }
            (Stage::Asking | Stage::Probing, Event::NoConnection(rejection)) => self.end(Next::Reject(rejection)),
            // The app is not down, so the last attempt failed: this one is a retry, and costs budget.
            (Stage::Probing, Event::Connected) => self.buy(Price::Budget, Purchase::Probe),

            // The app may have seen the request.
            (Stage::Asking, Event::Closed { is_stale: true, may_repeat: true })
                if self.is_idempotent && !self.has_replaced =>
            {
                self.replace()
            }
            (Stage::Asking, Event::Unread { is_kept: true }) if !self.has_replaced => self.replace(),
            // The app is going down, unless it accepts the next connection.
            (Stage::Asking, Event::Unread { .. }) => self.buy_if(true, Price::Pause, Purchase::Close),
            (Stage::Asking, Event::Closed { may_repeat, .. }) => {
                self.buy_repeat(may_repeat, Price::Pause, Purchase::Close)
            }
            (Stage::Asking, Event::Answered { status, wants_retry, retry_after }) => {
                let price = Price::PauseAndBudget(retry_after);
                self.buy_repeat(wants_retry, price, Purchase::Response(status))
            }
            (Stage::Asking, Event::Overdue { may_repeat, peer }) if !peer || self.may_leave() => {
                self.overdue(may_repeat, peer)
            }
            (Stage::Asking, Event::HedgeWon) if self.may_leave() => self.end(Next::Relay),
            (Stage::Asking, Event::TimedOut) => self.end(Next::Fail(Failure::Timeout)),
            (Stage::Asking, Event::Invalid) => self.end(Next::Fail(Failure::Invalid)),

            (Stage::Queued | Stage::AtPeer, Event::SentToPeer { is_idempotent }) => {
                self.is_idempotent = is_idempotent;
                self.ask_peer()
            }
            (Stage::AtPeer, _) => self.at_peer(event),

            // A driver that reports an event out of order has lost track of the request.
            _ => self.end(Next::Fail(Failure::Internal)),
        }
    }

    fn at_peer(&mut self, event: Event) -> Step {
        match event {
            Event::PeerDeclined => self.come_back(),
            Event::PeerBroke { failure, may_repeat: true } if self.is_idempotent => {
                self.buy(Price::Budget, Purchase::Peer(failure))
            }
            Event::PeerBroke { failure, .. } => self.end(Next::Fail(failure)),
            Event::PeerTimedOut => self.end(Next::Fail(Failure::Timeout)),
            Event::PeerAnswered => self.end(Next::Relay),
            _ => self.end(Next::Fail(Failure::Internal)),
        }
    }

    /// A request that is slow everywhere is not begun again and again.
    fn overdue(&mut self, may_repeat: bool, peer: bool) -> Step {
        if peer {
            self.was_overdue = true;
            return self.ask_peer();
        }
        let may = may_repeat && !self.was_overdue;
        self.buy_repeat(may, Price::PauseAndBudget(None), Purchase::Overdue)
    }

    /// The app has closed a kept connection: the attempt goes on on a new one, once.
    fn replace(&mut self) -> Step {
        self.has_replaced = true;
        Step::Go(None, Next::Replace)
    }

    fn bought(&mut self, purchase: Purchase, pause: Option<Duration>) -> Step {
        match (purchase, pause) {
            (Purchase::ConnectTimeout, Some(pause)) => self.ask(Some(Report::NotConnected), pause),
            (Purchase::ConnectTimeout, None) => self.end(Next::Fail(Failure::ConnectTimeout)),
            (Purchase::Close, Some(pause)) => {
                self.made += 1;
                self.stage = Stage::Probing;
                Step::Go(None, Next::Probe { pause })
            }
            (Purchase::Overdue, Some(pause)) => {
                self.was_overdue = true;
                self.ask(Some(Report::Unknown), pause)
            }
            (Purchase::Overdue, None) => {
                self.stage = Stage::Asking;
                Step::Go(None, Next::GoOn)
            }
            (Purchase::Close, None) => self.end(Next::Fail(Failure::Closed)),
            // Counted when it began to connect.
            (Purchase::Probe, Some(pause)) => {
                (self.stage, self.has_replaced) = (Stage::Asking, false);
                Step::Go(Some(Report::Failed), Next::Ask { pause })
            }
            (Purchase::Probe, None) => {
                self.made -= 1;
                self.stage = Stage::Ended;
                Step::Go(Some(Report::Failed), Next::Fail(Failure::Closed))
            }
            (Purchase::Response(status), Some(pause)) => self.ask(Some(Report::Answered(status)), pause),
            (Purchase::Response(_), None) => self.end(Next::Relay),
            (Purchase::Fault(status), Some(pause)) => self.ask(Some(Report::Answered(status.as_u16())), pause),
            (Purchase::Fault(status), None) => {
                self.stage = Stage::Ended;
                Step::Go(Some(Report::Answered(status.as_u16())), Next::Reject(Rejection::FaultInjected { status }))
            }
            (Purchase::Peer(_), Some(_)) => self.come_back(),
            (Purchase::Peer(failure), None) => self.end(Next::Fail(failure)),
        }
    }

    fn ask(&mut self, report: Option<Report>, pause: Duration) -> Step {
        self.made += 1;
        (self.stage, self.has_replaced) = (Stage::Asking, false);
        Step::Go(report, Next::Ask { pause })
    }

    /// A retry of an attempt that the app may have seen, if the request is repeatable.
    fn buy_repeat(&mut self, is_wanted: bool, price: Price, purchase: Purchase) -> Step {
        self.buy_if(is_wanted && self.is_idempotent, price, purchase)
    }

    /// A retry, if it is allowed and the route has attempts left; else what follows without it.
    fn buy_if(&mut self, is_allowed: bool, price: Price, purchase: Purchase) -> Step {
        if is_allowed && self.made < self.most { self.buy(price, purchase) } else { self.bought(purchase, None) }
    }

    fn buy(&mut self, price: Price, purchase: Purchase) -> Step {
        self.stage = Stage::Buying(purchase);
        Step::Buy(price)
    }

    fn ask_peer(&mut self) -> Step {
        self.stage = Stage::AtPeer;
        Step::Go(None, Next::AskPeer)
    }

    fn come_back(&mut self) -> Step {
        self.stage = Stage::Queued;
        Step::Go(None, Next::ComeBack)
    }

    fn end(&mut self, outcome: Next) -> Step {
        self.stage = Stage::Ended;
        Step::Go(None, outcome)
    }
}

#[cfg(test)]
mod tests;
