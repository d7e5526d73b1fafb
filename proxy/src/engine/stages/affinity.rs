//! Sticky sessions: the stage that sends a request to the home of its session.

use std::time::Duration;

use outrigger_identity::clock::seconds;
use outrigger_identity::this::This;
use outrigger_policy::affinity::{Home, Mark, Sight, Way, way};
use outrigger_policy::flags::Mode;
use outrigger_rules::sections::affinity::AffinityRules;
use outrigger_wire::names::FLY_REQUEST_ID;
use outrigger_wire::random::random;
use outrigger_wire::request::{Kind, Request};

use crate::engine::exchange::{Destination, Exchange};
use crate::engine::receipts::steps::Step;
use crate::engine::rejection::Rejection;
use crate::engine::state::{Phase, State};
use crate::mechanism::affinity::cookie::{self, Found};
use crate::mechanism::affinity::metrics::Event as Counted;
use crate::mechanism::affinity::replay::{self, Marks};
use crate::mechanism::affinity::{Cookie, Keeper, Sticky};
use crate::mechanism::peers::hop;

/// Larger bodies are not replayed by the edge.
const REPLAYABLE_BYTES: u64 = 1_000_000;

/// Stage: finds the session, and routes the request to its home if that is another Machine.
///
/// # Errors
/// Never fails: an invalid cookie counts as a missing one.
pub fn choose(state: &State, request: &Request<'_>, exchange: &mut Exchange) -> Result<(), Rejection> {
    exchange.sticky.mode = match (exchange.sticky.mode, exchange.rules.config.affinity.map(|rules| rules.mode)) {
        (Mode::Off, _) | (_, None | Some(Mode::Off)) => Mode::Off,
        (Mode::Monitor, _) | (_, Some(Mode::Monitor)) => Mode::Monitor,
        (Mode::Enforce, Some(Mode::Enforce)) => Mode::Enforce,
    };
    if exchange.sticky.mode == Mode::Off || exchange.route().is_health {
        return Ok(());
    }
    let rules = std::sync::Arc::clone(&exchange.rules);
    let (Some(affinity), Some(this)) = (&rules.config.affinity, &rules.config.this) else { return Ok(()) };
    if let Some(hop) = &exchange.hop {
        // The Machine that sent the request has read the cookie, and sets it.
        exchange.sticky.at = match hop.kind {
            hop::Kind::Failover => Keeper::Other(hop.from.clone()),
            hop::Kind::Session | hop::Kind::Probe => Keeper::This,
        };
        return Ok(());
    }
    let counted = decide(state, request, exchange, *affinity, this);
    state.metrics.affinity.count(counted);
    // Where the others went is in the receipt that such a request may have.
    if exchange.sticky.mode == Mode::Enforce
        && matches!(counted, Counted::Rehomed | Counted::Visiting | Counted::Forged)
    {
        exchange.steps.add(exchange.started, Step::Session(counted));
    }
    if exchange.sticky.mode == Mode::Monitor {
        exchange.sticky = Sticky { mode: Mode::Monitor, ..Sticky::default() };
        exchange.destination = Destination::App;
    }
    Ok(())
}

fn decide(state: &State, request: &Request<'_>, exchange: &mut Exchange, rules: AffinityRules, this: &This) -> Counted {
    let now = seconds();
    // From other senders these headers are removed, and counted with other removed headers.
    let marks =
        if exchange.client.sender.is_by_fly() { replay::marks(&this.keys, request.fields, now) } else { Marks::NONE };
    if marks.mark == Mark::Unsigned {
        state.metrics.affinity.count(Counted::Forged);
        exchange.audit.forged = Some("replay_mark");
    }
    let is_leaving = state.drain.phase() != Phase::Serving;
    let mut buffer = cookie::Buffer::default();
    let found = cookie::find(&this.keys, &rules.lifetime, request.fields, now, &mut buffer);
    let (session, is_due) = match found {
        Found::Session(session, is_due) => (session, is_due),
        Found::Nothing | Found::Over | Found::Forged => {
            // A draining Machine begins no session, because it could not keep it.
            exchange.sticky.cookie = match (is_leaving, found) {
                (false, _) => Cookie::Write { id: random(), born: now },
                (true, Found::Nothing) => Cookie::Keep,
                (true, _) => Cookie::Clear,
            };
            exchange.sticky.at = if is_leaving { Keeper::Nobody } else { Keeper::This };
            exchange.sticky.is_new = true;
            if matches!(found, Found::Forged) {
                exchange.audit.forged = Some("session_cookie");
            }
            return match found {
                Found::Over => Counted::Expired,
                Found::Forged => Counted::Forged,
                _ => Counted::New,
            };
        }
    };
    let is_here = session.home == this.name.as_bytes();
    let home = match &state.peers {
        _ if is_here => Home::Here,
        Some(peers) => {
            match peers.home(session.home, Duration::from_secs(now.saturating_sub(session.written).into())) {
                // The home did not take the request a moment ago. Only a refused connection or several failed probes mean
                // that it is gone.
                Home::Alive | Home::Silent | Home::Unknown if exchange.has_lost_home => Home::Unready,
                Home::Lost if exchange.has_lost_home => Home::Gone,
                home => home,
            }
        }
        None => Home::Unknown,
    };
    let came_by_edge = exchange.client.sender.is_by_fly() && request.fields.has(&FLY_REQUEST_ID);
    let sight = Sight {
        via: rules.via,
        home,
        mark: marks.mark,
        was_refused: marks.was_refused,
        can_be_replayed: came_by_edge && request.has_body_up_to(REPLAYABLE_BYTES),
        is_upgrade: exchange.kind == Kind::Upgrade,
    };
    let write = Cookie::Write { id: session.id, born: session.born };
    let other = || Keeper::Other(String::from_utf8_lossy(session.home).into());
    let refreshed = if is_due { write } else { Cookie::Keep };
    let (at, cookie, destination, counted) = match way(sight) {
        Way::Here if is_here && is_leaving => (Keeper::This, Cookie::Clear, Destination::App, Counted::Pinned),
        Way::Here if is_here => (Keeper::This, refreshed, Destination::App, Counted::Pinned),
        Way::Here => (other(), refreshed, Destination::App, Counted::Visiting),
        Way::Rehome if is_leaving => (Keeper::Nobody, Cookie::Clear, Destination::App, Counted::Rehomed),
        Way::Rehome => (Keeper::This, write, Destination::App, Counted::Rehomed),
        Way::Replay => {
            let to = String::from_utf8_lossy(session.home).into();
            (other(), Cookie::Keep, Destination::Replay(to), Counted::Replayed)
        }
        Way::Forward => match state.peers.as_ref().and_then(|peers| peers.named(session.home)) {
            Some(peer) => (other(), refreshed, Destination::Peer(peer, hop::Kind::Session), Counted::Forwarded),
            // It has gone between two lookups.
            None => (Keeper::This, write, Destination::App, Counted::Rehomed),
        },
    };
    exchange.sticky = Sticky { mode: exchange.sticky.mode, at, cookie, is_new: false };
    exchange.destination = destination;
    counted
}

/// Calls `write` with the `Set-Cookie` header of a response, if it has one.
pub fn set_cookie(exchange: &Exchange, write: impl FnOnce(&'static str, &[u8])) {
    if exchange.sticky.cookie == Cookie::Keep || !exchange.sticky.is_enforced() {
        return;
    }
    let config = &exchange.rules.config;
    let (Some(rules), Some(this)) = (&config.affinity, &config.this) else { return };
    cookie::with_line(&exchange.sticky, rules, this, |line| write("Set-Cookie", line));
}
