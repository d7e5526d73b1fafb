//! Alarms while the app has a request: a peer is asked as well (a hedged request), and the attempt is overdue.
//!
//! Only requests that may be sent again have alarms, and only GET, HEAD and OPTIONS are hedged: of two PUTs at the same time, one
//! could take effect after a later request. The request to the peer does not touch the client; the first response wins, and the other
//! request is cancelled with its connection.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use outrigger_identity::clock;
use outrigger_policy::flags::Mode;
use outrigger_rules::units::AutoSpan;
use outrigger_wire::rewrite::{self, AnswerHead};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use crate::engine::attempts::Next;
use crate::engine::bounds::ANSWER_HEAD_BYTES;
use crate::engine::connect;
use crate::engine::exchange::Exchange;
use crate::engine::retries;
use crate::engine::stages::failover;
use crate::engine::state::State;
use crate::engine::steps;
use crate::http1::{Broken, Lane};
use crate::mechanism::peers::Peer;
use crate::mechanism::peers::hop::Kind;
use crate::mechanism::peers::metrics::SentOn;
use crate::transport::app_pool::{self, AppStream};

/// When an overdue attempt that goes on, or the one after it, is looked at: the app may be silent by then. Then twice as late each time, so that
/// thousands of slow requests cost little.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A request of a route without an attempt timeout is looked at first after this fraction of its time.
const WATCHED_FROM: u32 = 4;

/// Bytes of a peer, up to the end of the response's head at least, and its connection. `None`: it could not be asked, or broke off.
type Heard = Option<(AppStream, BytesMut)>;

/// A request at a peer, beside the one at the app.
struct Hedge {
    peer: Arc<Peer>,
    asking: Pin<Box<dyn Future<Output = Heard> + Send>>,
}

/// The alarms of an attempt.
#[derive(Default)]
pub(super) struct Alarms {
    /// The earliest of those below.
    next: Option<Instant>,
    /// When a peer is asked as well.
    hedge_at: Option<Instant>,
    /// When the attempt is overdue.
    overdue_at: Option<Instant>,
    /// When the attempt is looked at: other requests may have found the app silent.
    look_at: Option<Instant>,
    /// After how long it was looked at last.
    look_again: Duration,
    hedge: Option<Box<Hedge>>,
}

impl Alarms {
    /// The earlier of `deadline` and the next alarm.
    pub(super) fn before(&self, deadline: Instant) -> Instant {
        self.next.map_or(deadline, |next| next.min(deadline))
    }

    fn set_next(&mut self) {
        self.next = [self.hedge_at, self.overdue_at, self.look_at].into_iter().flatten().min();
    }

    /// Ends them: the app responds, or has failed.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Lane<'_> {
    /// Sets the alarms of an attempt that begins now.
    pub(super) fn set_alarms(&mut self, exchange: &Exchange, now: std::time::Instant) {
        self.alarms = Alarms::default();
        // The time in which a client still sends is not the app's.
        let is_whole = self.upload.as_ref().is_none_or(|upload| upload.is_whole);
        if !self.is_idempotent || !is_whole || exchange.resilience != Mode::Enforce || exchange.hop.is_some() {
            return;
        }
        let (hedge, mut overdue) = exchange.rules.attempt_times[exchange.route].get();
        // A worker that hangs could apply the first PUT after a later one: operators decide that, not a measured time.
        if !self.is_safe && exchange.rules.config.retry.attempt_timeout == AutoSpan::Auto {
            overdue = Duration::ZERO;
        }
        let at = |time: Duration| (!time.is_zero()).then(|| Instant::from_std(now + time));
        self.alarms.overdue_at = at(overdue);
        if self.is_safe && self.state.peers.is_some() {
            let is_early = |hedge: &Instant| self.alarms.overdue_at.is_none_or(|overdue| *hedge < overdue);
            self.alarms.hedge_at = at(hedge).filter(|hedge| self.upload.is_none() && is_early(hedge));
            // Without a time of its own, or after an attempt that was overdue, others may find the app silent before this one is overdue.
            let first_look = match exchange.rules.config.retry.attempt_timeout {
                AutoSpan::Off => Duration::ZERO,
                _ if overdue.is_zero() => exchange.deadline.saturating_duration_since(now) / WATCHED_FROM,
                _ if exchange.attempts.was_in_time() => Duration::ZERO,
                _ => LOOK_AGAIN,
            };
            self.alarms.look_at = at(first_look);
        }
        self.alarms.set_next();
    }

    /// The time of the next alarm has come. `Err`: this attempt ends.
    #[cold]
    pub(super) fn alarm(&mut self, exchange: &mut Exchange, head: &[u8]) -> Result<(), Broken> {
        let now = Instant::now();
        let has_come = |at: &mut Option<Instant>| at.take_if(|at| *at <= now).is_some();
        if has_come(&mut self.alarms.hedge_at) {
            self.alarms.set_next();
            self.alarms.hedge = self.hedge(exchange, head);
            return Ok(());
        }
        let is_news = has_come(&mut self.alarms.overdue_at);
        self.alarms.look_again = (self.alarms.look_again * 2).max(LOOK_AGAIN);
        // Without peers, nothing can change.
        self.alarms.look_at = self.state.peers.is_some().then(|| now + self.alarms.look_again);
        self.alarms.set_next();
        // The peer that has the request may respond as well.
        let may_repeat = self.alarms.hedge.is_none() && self.may_repeat();
        match steps::overdue(self.state, exchange, may_repeat, is_news) {
            Next::GoOn => Ok(()),
            next => Err(Broken::Overdue(next)),
        }
    }

    /// Asks a peer as well, if there is one, and budget for it.
    fn hedge(&self, exchange: &mut Exchange, head: &[u8]) -> Option<Box<Hedge>> {
        if !exchange.attempts.may_leave() {
            return None;
        }
        let peer = failover::second(self.state, exchange)?;
        if !retries::pay_hedge(self.state, exchange, clock::now()) {
            return None;
        }
        let mut head = BytesMut::from(head);
        let left = exchange.deadline.saturating_duration_since(clock::now());
        rewrite::set_timeout(&mut head, left);
        // It signs the head as it is sent.
        let hop = self.hop(exchange, &head, &peer, Kind::Failover)?;
        let head = rewrite::with_hop(&head, &hop);
        self.state.metrics.attempts.hedges.inc();
        let (state, at) = (Arc::clone(self.state), Arc::clone(&peer));
        let asking = Box::pin(async move { ask(&state, &at, &head).await });
        Some(Box::new(Hedge { peer, asking }))
    }

    /// Ready when the peer that was asked as well has responded or failed.
    #[inline]
    pub(super) fn poll_hedge(&mut self, cx: &mut Context<'_>) -> Poll<Heard> {
        match &mut self.alarms.hedge {
            None => Poll::Pending,
            Some(hedge) => hedge.asking.as_mut().poll(cx),
        }
    }

    /// Uses the response of the peer, if it is one that counts: then `app` and `input` are the peer's from now on.
    #[cold]
    pub(super) fn hedge_heard(
        &mut self,
        heard: Heard,
        app: &mut AppStream,
        input: &mut BytesMut,
        exchange: &mut Exchange,
    ) -> Result<Option<AnswerHead>, Broken> {
        let Some(hedge) = self.alarms.hedge.take() else { return Ok(None) };
        let Some((stream, bytes)) = heard else {
            self.state.metrics.peers.sent(Kind::Failover, SentOn::Broken);
            return Ok(None);
        };
        match self.rewrite(&bytes, exchange) {
            Ok(Some(answer)) if answer.is_final() && !answer.is_given_back && !is_failure(exchange, answer.status) => {
                steps::hedge_won(self.state, exchange, hedge.peer);
                (*app, *input) = (stream, bytes);
                self.has_heard = true;
                Ok(Some(answer))
            }
            // Declined, failed, or not usable: the app's response is waited for.
            _ => {
                self.state.metrics.peers.sent(Kind::Failover, SentOn::Refused);
                self.stream.output().clear();
                Ok(None)
            }
        }
    }
}

/// Whether the app here may still do better than this response of a peer.
fn is_failure(exchange: &Exchange, status: u16) -> bool {
    status >= 500 || retries::is_wanted(exchange, status)
}

/// Sends a request without a body to a peer, and reads until the head of the response is complete.
async fn ask(state: &Arc<State>, peer: &Peer, head: &[u8]) -> Heard {
    let kept = app_pool::take(|kept| *kept.target() == peer.target);
    let mut stream = match kept {
        Some(kept) => kept,
        None => {
            let patience = state.peers.as_ref().map_or_else(Default::default, |peers| peers.rules.timeout);
            let connecting = connect::with_room(state, || AppStream::connect_to_peer(&peer.target));
            tokio::time::timeout(patience, connecting).await.ok()?.ok()?
        }
    };
    stream.begin();
    stream.write_all(head).await.ok()?;
    let mut input = BytesMut::with_capacity(1024);
    while !input.windows(4).any(|end| end == b"\r\n\r\n") {
        if input.len() > ANSWER_HEAD_BYTES || stream.read_buf(&mut input).await.ok()? == 0 {
            return None;
        }
    }
    Some((stream, input))
}
