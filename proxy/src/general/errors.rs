//! Pingora's errors, translated into events of [`crate::engine::attempts`], failures and rejections.

use outrigger_wire::malformed::Malformed;
use pingora::{Error, ErrorSource, ErrorType};

use crate::engine::attempts::{Event, Next};
use crate::engine::exchange::Destination;
use crate::engine::rejection::{Failure, Rejection};
use crate::engine::steps;
use crate::general::Gateway;
use crate::general::context::Context;
use crate::general::heads::is_invalid_data;
use crate::general::line::{Cut, Line};
use crate::mechanism::peers::metrics::SentOn;

/// How a request ended.
pub(super) enum Verdict {
    Rejected(Rejection),
    Failed(Failure),
    ClientLeft,
}

impl Gateway {
    /// Reports that an attempt got no connection. `None`: the request fails with Pingora's error.
    pub(super) fn not_connected(&self, context: &mut Context, etype: &ErrorType) -> Option<Next> {
        let refused = context.line.as_ref().and_then(Line::refused);
        let exchange = &mut context.exchange;
        let event = match (&exchange.destination, refused, etype) {
            (Destination::Peer(peer, kind), ..) => {
                // Only a refused connection says something about the next request: after a timeout, a packet may have been lost.
                if *etype == ErrorType::ConnectRefused {
                    peer.not_reached();
                }
                self.state.metrics.peers.sent(*kind, SentOn::Unreachable);
                Event::PeerDeclined
            }
            (_, Some(rejection), _) => Event::NoConnection(rejection),
            (_, None, ErrorType::ConnectRefused) => return Some(steps::refused(&self.state, exchange)),
            (_, None, ErrorType::ConnectTimedout) => Event::ConnectTimedOut,
            (_, None, _) => return None,
        };
        Some(steps::happened(&self.state, exchange, event))
    }

    /// The event for an error of an attempt that had a connection.
    pub(super) fn broke(&self, context: &Context, error: &Error, may_repeat: bool) -> Event {
        let cut = context.line.as_ref().and_then(Line::cut);
        if *error.esource() != ErrorSource::Upstream || cut == Some(Cut::Client) {
            return Event::ClientLeft;
        }
        let is_invalid = context.line.as_ref().is_some_and(|line| line.fault().is_some());
        let failure = if is_invalid { Failure::Invalid } else { failure_of(error.etype()) };
        match (&context.exchange.destination, failure) {
            (Destination::Peer(_, kind), failure) => {
                self.state.metrics.peers.sent(*kind, if cut.is_some() { SentOn::Late } else { SentOn::Broken });
                if cut.is_some() { Event::PeerTimedOut } else { Event::PeerBroke { failure, may_repeat } }
            }
            (_, Failure::Timeout) => Event::TimedOut,
            (_, _) if cut.is_some() => Event::TimedOut,
            (_, Failure::Closed) => Event::Closed { is_stale: false, may_repeat },
            (_, _) => Event::Invalid,
        }
    }

    /// Translates an error that ends the request.
    pub(super) fn classify(&self, error: &Error, context: &Context) -> Verdict {
        if let Some(rejection) = context.exchange.rejection {
            return Verdict::Rejected(rejection);
        }
        if let Some(failure) = context.exchange.failure {
            return Verdict::Failed(failure);
        }
        match context.line.as_ref().and_then(Line::cut) {
            Some(Cut::App) => return Verdict::Failed(Failure::Timeout),
            Some(Cut::Client) => return Verdict::Rejected(Rejection::BodyTooSlow),
            None if context.line.as_ref().is_some_and(|line| line.fault().is_some()) => {
                return Verdict::Failed(Failure::Invalid);
            }
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

/// The failure for an error on the side of the app or a peer.
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
