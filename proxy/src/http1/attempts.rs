//! The driver of [`crate::engine::attempts`]: it waits, pauses, connects and asks, and reports what happened.

use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use outrigger_identity::clock;
use outrigger_wire::rewrite;

use crate::engine::attempts::{Event, Next};
use crate::engine::connect;
use crate::engine::exchange::{Destination, Exchange};
use crate::engine::receipts::LONG_WAIT;
use crate::engine::receipts::steps::Step;
use crate::engine::rejection::{Failure, Rejection};
use crate::engine::retries;
use crate::engine::stages::admit::NoTurn;
use crate::engine::stages::{admit, hold};
use crate::engine::steps::{self, Fault};
use crate::engine::traces;
use crate::http1::buffers::{recycle, scratch};
use crate::http1::upload::Upload;
use crate::http1::{Answered, Broken, Lane};
use crate::mechanism::gate::Waiting;
use crate::transport::app_pool::{self, AppStream};
use crate::transport::upstream::ConnectError;

/// While the app does not accept a connection: how often to ask whether it answers other requests.
const LOOK_FOR_SILENCE: Duration = Duration::from_millis(50);

/// State that the attempts of a request share.
struct Attempt<'h> {
    /// The request's head, for the app.
    head: &'h mut BytesMut,
    /// Bytes of the app's response.
    input: BytesMut,
    /// An open connection that has not been used.
    open: Option<AppStream>,
    /// The time when the attempt begins.
    now: Instant,
    /// A text for the log about the last failure.
    detail: Cow<'static, str>,
}

/// The meaning of a connection's end for the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Nothing.
    Unknown,
    /// The connection was a kept one, and no byte of a response came.
    Stale,
    /// The app has read nothing of it.
    Unread { is_kept: bool },
    /// The client disconnected meanwhile.
    Left,
}

/// The result of an attempt.
enum Went {
    /// The response's head has arrived.
    Answered(Answered),
    /// The head of a peer's response has arrived first.
    Hedged(Answered),
    /// The next step.
    Next(Next),
}

impl Lane<'_> {
    /// Waits for a permit where that is needed, then makes attempts until the request has its outcome.
    pub(super) async fn forward_in_turn(&mut self, exchange: &mut Exchange, head: &mut BytesMut) -> Result<(), Broken> {
        let now = exchange.turn_began;
        exchange.asked_at = now;
        let mut attempt = Attempt { head, input: scratch(), open: None, now, detail: "".into() };
        let mut next = if exchange.waiting.is_some() {
            self.wait_for_turn(exchange, &mut attempt).await?
        } else {
            steps::admitted(self.state, exchange, self.is_idempotent)
        };
        if matches!(next, Next::Ask { .. }) {
            retries::pay_in(self.state, exchange);
        }
        let mut is_first = true;
        loop {
            if let Next::Ask { pause } | Next::Probe { pause } = next
                && !std::mem::take(&mut is_first)
            {
                self.begin_again(exchange, &mut attempt, pause).await?;
            }
            let went = match next {
                Next::Ask { .. } => self.ask_app(exchange, &mut attempt).await,
                Next::Replace => {
                    traces::attempt_begins(exchange, attempt.head, None);
                    self.ask_on_new_connection(exchange, &mut attempt).await
                }
                Next::Probe { .. } => self.probe(exchange, &mut attempt).await,
                Next::Wait => Went::Next(self.wait_for_app(exchange, &mut attempt).await?),
                Next::AskPeer => return Err(Broken::Moved),
                Next::Reject(rejection) => return Err(Broken::Refused(rejection)),
                Next::Fail(failure) => return Err(Broken::App(failure, attempt.detail)),
                Next::GoOn | Next::ComeBack | Next::Relay | Next::Leave | Next::Nothing => {
                    return Err(Broken::ClientLeft);
                }
            };
            next = match went {
                Went::Next(next) => next,
                Went::Hedged((peer, answer)) => {
                    recycle(std::mem::take(attempt.head));
                    return self.relay(peer, attempt.input, answer, exchange).await;
                }
                Went::Answered((app, answer)) => {
                    match steps::answered(self.state, exchange, answer.status, answer.retry_after, || self.may_repeat())
                    {
                        Next::Relay => {
                            recycle(std::mem::take(attempt.head));
                            return self.relay(app, attempt.input, answer, exchange).await;
                        }
                        // The rest of that response is dropped with its connection.
                        next => next,
                    }
                }
            };
        }
    }

    /// One attempt, on an open or kept connection if there is one.
    async fn ask_app(&mut self, exchange: &mut Exchange, attempt: &mut Attempt<'_>) -> Went {
        let entered = steps::enter(self.state, exchange, attempt.now);
        if entered.is_ok() {
            traces::attempt_begins(exchange, attempt.head, None);
        }
        match entered {
            Ok(None) => {}
            Ok(Some(fault)) => {
                if let Some(next) = self.inject(exchange, attempt, fault).await {
                    return Went::Next(next);
                }
            }
            Err(next) => return Went::Next(next),
        }
        self.set_alarms(exchange, attempt.now);
        if let Some(app) = attempt.open.take() {
            return self.ask_on(exchange, attempt, app, false).await;
        }
        if let Some(app) = self.take_kept(attempt.head.len()) {
            self.state.metrics.attempts.reused.inc();
            return self.ask_on(exchange, attempt, app, true).await;
        }
        self.ask_on_new_connection(exchange, attempt).await
    }

    async fn ask_on_new_connection(&mut self, exchange: &mut Exchange, attempt: &mut Attempt<'_>) -> Went {
        match self.connect(exchange).await {
            Ok(app) => self.ask_on(exchange, attempt, app, false).await,
            Err(broken) => Went::Next(self.broke(exchange, attempt, broken, End::Unknown)),
        }
    }

    async fn ask_on(
        &mut self,
        exchange: &mut Exchange,
        attempt: &mut Attempt<'_>,
        mut app: AppStream,
        is_kept: bool,
    ) -> Went {
        if !is_kept
            && !self.is_idempotent
            && self.may_share(&app, attempt.head.len())
            && let Err(next) = Box::pin(self.wait_until_accepted(&mut app, exchange)).await
        {
            attempt.detail = "it does not accept the connection".into();
            return Went::Next(next);
        }
        match self.ask(&mut app, attempt.head, &mut attempt.input, exchange).await {
            Ok(answer) if matches!(exchange.destination, Destination::App) => Went::Answered((app, answer)),
            Ok(answer) => Went::Hedged((app, answer)),
            Err(Broken::Overdue(next)) => Went::Next(next),
            Err(broken) => {
                let end = if matches!(broken, Broken::App(Failure::Closed, _)) && !self.has_heard {
                    Box::pin(self.look_into_end(&app, exchange, is_kept)).await
                } else {
                    End::Unknown
                };
                Went::Next(self.broke(exchange, attempt, broken, end))
            }
        }
    }

    /// Only connects: see [`Next::Probe`].
    async fn probe(&mut self, exchange: &mut Exchange, attempt: &mut Attempt<'_>) -> Went {
        match self.connect(exchange).await {
            Ok(app) => {
                attempt.open = Some(app);
                Went::Next(steps::happened(self.state, exchange, Event::Connected))
            }
            Err(broken) => Went::Next(self.broke(exchange, attempt, broken, End::Unknown)),
        }
    }

    /// Reports what broke an attempt. Out of line: a request that meets no failure does not come here.
    #[cold]
    fn broke(&mut self, exchange: &mut Exchange, attempt: &mut Attempt<'_>, broken: Broken, end: End) -> Next {
        let event = match broken {
            Broken::App(failure, detail) => {
                attempt.detail = detail;
                match failure {
                    Failure::Unreachable => return steps::refused(self.state, exchange),
                    Failure::ConnectTimeout => Event::ConnectTimedOut,
                    Failure::Timeout => Event::TimedOut,
                    Failure::Closed => {
                        let is_stale = end == End::Stale;
                        if is_stale || end == (End::Unread { is_kept: true }) {
                            self.state.metrics.attempts.reconnects.inc();
                        }
                        match end {
                            End::Unread { is_kept } => Event::Unread { is_kept },
                            End::Left => Event::ClientLeft,
                            End::Stale | End::Unknown => Event::Closed { is_stale, may_repeat: self.may_repeat() },
                        }
                    }
                    Failure::Invalid | Failure::Internal => Event::Invalid,
                }
            }
            Broken::Refused(rejection) => Event::NoConnection(rejection),
            Broken::Moved | Broken::Overdue(_) | Broken::ClientLeft => Event::ClientLeft,
        };
        steps::happened(self.state, exchange, event)
    }

    /// A new connection to the app.
    async fn connect(&mut self, exchange: &Exchange) -> Result<AppStream, Broken> {
        self.state.metrics.attempts.new.inc();
        let left = exchange.deadline.saturating_duration_since(clock::now());
        let patience = exchange.rules.config.app.connect_timeout.min(left);
        match tokio::time::timeout(patience, connect::connect(self.state)).await {
            Ok(connected) => connected.map_err(|error| not_connected(&error)),
            Err(_) => Err(Broken::App(Failure::ConnectTimeout, "connect_timeout is over".into())),
        }
    }

    /// Pauses, then clears what the last attempt left, and tells the app the time that is left.
    async fn begin_again(
        &mut self,
        exchange: &mut Exchange,
        attempt: &mut Attempt<'_>,
        pause: Duration,
    ) -> Result<(), Broken> {
        if !pause.is_zero() {
            self.pause(exchange, pause).await?;
        }
        attempt.input.clear();
        self.stream.output().clear();
        attempt.now = clock::now();
        exchange.asked_at = attempt.now;
        if let Some(permit) = &mut exchange.permit {
            permit.sent(attempt.now);
        }
        rewrite::set_timeout(attempt.head, exchange.deadline.saturating_duration_since(attempt.now));
        Ok(())
    }

    /// Whether the request may use this connection if it is a kept one, which the app may be closing just now: the request can be
    /// repeated, or the end of the connection proves whether the app has read it. `head` is the size of its head.
    pub(super) fn may_share(&self, app: &AppStream, head: usize) -> bool {
        let body = self.upload.as_ref().map_or(Some(0), Upload::whole_bytes);
        body.is_some_and(|body| self.is_idempotent || app.may_prove(head, body))
    }

    /// A kept connection to the app that the request may use.
    fn take_kept(&self, head: usize) -> Option<AppStream> {
        // The app's current address: the request may have waited, and `app.address` may have changed meanwhile.
        let rules = self.state.rules.load();
        let mut kept = app_pool::take(|kept| rules.upstreams.app.has(kept.target()) && self.may_share(kept, head))?;
        if self.is_idempotent || kept.will_prove() {
            return Some(kept);
        }
        app_pool::keep(kept, rules.config.app.max_idle, clock::now());
        None
    }

    /// A request that may not be repeated is sent once the app has accepted its connection: while that is in the queue, the app
    /// may stop, or be found silent.
    async fn wait_until_accepted(&mut self, app: &mut AppStream, exchange: &mut Exchange) -> Result<(), Next> {
        let mut accepted = pin!(app.accepted());
        loop {
            let mut is_accepted = None;
            let wait = async {
                tokio::select! {
                    biased;
                    accepted = &mut accepted => is_accepted = Some(accepted),
                    () = tokio::time::sleep(LOOK_FOR_SILENCE), if self.state.peers.is_some() => {}
                }
                true
            };
            let event = match (self.unless_late(wait, exchange).await, is_accepted) {
                (Some(true), Some(true)) => return Ok(()),
                (Some(true), Some(false)) => Event::Unread { is_kept: false },
                (Some(true), None) => match steps::not_accepted(self.state, exchange) {
                    Some(next) => return Err(next),
                    None => continue,
                },
                (Some(false), _) => Event::TimedOut,
                (None, _) => Event::ClientLeft,
            };
            return Err(steps::happened(self.state, exchange, event));
        }
    }

    /// The app closed the connection before any byte of a response.
    #[cold]
    async fn look_into_end(&mut self, app: &AppStream, exchange: &Exchange, is_kept: bool) -> End {
        let ended = if is_kept { End::Stale } else { End::Unknown };
        if self.is_idempotent || !self.may_repeat() {
            return ended;
        }
        let is_unread = app.is_unread(self.end, self.upload.is_some());
        match self.unless_late(is_unread, exchange).await {
            Some(true) => End::Unread { is_kept },
            Some(false) => ended,
            None => End::Left,
        }
    }

    /// The result of `wait`, or false once the request's deadline has passed; `None` if the client disconnects.
    async fn unless_late(&mut self, wait: impl Future<Output = bool>, exchange: &Exchange) -> Option<bool> {
        let deadline = tokio::time::Instant::from_std(exchange.deadline);
        let mut wait = pin!(wait);
        poll_fn(|cx| {
            if let Poll::Ready(is_true) = wait.as_mut().poll(cx) {
                return Poll::Ready(Some(is_true));
            }
            if self.poll_gone(cx).is_ready() {
                return Poll::Ready(None);
            }
            self.timer.poll(cx, deadline).map(|()| Some(false))
        })
        .await
    }

    /// Waits, unless the client disconnects.
    pub(super) async fn pause(&mut self, exchange: &mut Exchange, pause: Duration) -> Result<(), Broken> {
        let until = tokio::time::Instant::now() + pause;
        let paused = poll_fn(|cx| {
            if self.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(Broken::ClientLeft));
            }
            self.timer.poll(cx, until).map(Ok)
        });
        paused.await.inspect_err(|_| self.left(exchange))
    }

    fn left(&self, exchange: &mut Exchange) {
        steps::happened(self.state, exchange, Event::ClientLeft);
    }

    /// Waits in the queue until the request has a permit, if it is in the queue.
    pub(super) async fn wait_for_permit(&mut self, exchange: &mut Exchange) -> Result<Result<(), NoTurn>, Broken> {
        let Some(waiting) = exchange.waiting.take() else { return Ok(Ok(())) };
        let began = clock::now();
        let turn = self.wait_in_queue(waiting, exchange).await;
        exchange.queued += clock::since(began);
        traces::waited(exchange, began);
        turn
    }

    async fn wait_in_queue(
        &mut self,
        mut waiting: Waiting,
        exchange: &mut Exchange,
    ) -> Result<Result<(), NoTurn>, Broken> {
        loop {
            let deadline = tokio::time::Instant::from_std(admit::wait_deadline(self.state, exchange));
            let turn = poll_fn(|cx| match waiting.poll_turn(cx) {
                Poll::Ready(turn) => Poll::Ready(Ok(Some(turn))),
                Poll::Pending if self.stream.poll_gone(cx).is_ready() => Poll::Ready(Err(Broken::ClientLeft)),
                Poll::Pending => self.timer.poll(cx, deadline).map(|()| Ok(None)),
            });
            let turn = turn.await.inspect_err(|_| self.left(exchange))?;
            let now = clock::now();
            match turn {
                Some(Some(permit)) => {
                    exchange.permit = Some(permit);
                    let waited = now.saturating_duration_since(exchange.turn_began);
                    if exchange.paused_until.is_some() {
                        exchange.steps.add(exchange.started, Step::Paused(waited));
                    } else if waited >= LONG_WAIT {
                        exchange.steps.add(exchange.started, Step::Waited(waited));
                    }
                    return Ok(Ok(()));
                }
                // The app went down meanwhile, so the request may wait longer.
                None if admit::wait_deadline(self.state, exchange) > now => {}
                Some(None) | None => return Ok(Err(admit::no_turn(self.state, exchange, now))),
            }
        }
    }

    /// Waits until the request has a permit, and tells the app the time that is left.
    async fn wait_for_turn(&mut self, exchange: &mut Exchange, attempt: &mut Attempt<'_>) -> Result<Next, Broken> {
        if let Err(no_turn) = self.wait_for_permit(exchange).await? {
            if no_turn == NoTurn::AppDown {
                attempt.detail = "it was down for longer than `hold`".into();
            }
            return Ok(steps::not_admitted(self.state, exchange, no_turn));
        }
        attempt.now = clock::now();
        exchange.asked_at = attempt.now;
        self.state.metrics.waited(exchange, attempt.now);
        rewrite::set_timeout(attempt.head, exchange.deadline.saturating_duration_since(attempt.now));
        Ok(steps::admitted(self.state, exchange, self.is_idempotent))
    }

    /// Waits in the queue until the app is back.
    async fn wait_for_app(&mut self, exchange: &mut Exchange, attempt: &mut Attempt<'_>) -> Result<Next, Broken> {
        if let Err(rejection) = hold::rejoin(self.state, exchange) {
            return Ok(steps::not_admitted(self.state, exchange, NoTurn::Refused(rejection)));
        }
        let next = self.wait_for_turn(exchange, attempt).await?;
        if matches!(next, Next::Ask { .. }) && attempt.now >= exchange.deadline {
            return Ok(steps::happened(self.state, exchange, Event::Expired));
        }
        // Lets other requests run, in case the app goes down as fast as it comes back.
        tokio::task::yield_now().await;
        Ok(next)
    }

    /// Injects a fault. `None`: the attempt continues.
    async fn inject(&mut self, exchange: &mut Exchange, attempt: &mut Attempt<'_>, fault: Fault) -> Option<Next> {
        if self.pause(exchange, fault.delay).await.is_err() {
            return Some(Next::Leave);
        }
        let event = fault.event(exchange, || self.may_repeat())?;
        attempt.detail = "an injected fault".into();
        Some(steps::happened(self.state, exchange, event))
    }
}

/// The result of a request that gets no connection.
pub(super) fn not_connected(error: &ConnectError) -> Broken {
    let failure = match error {
        ConnectError::Exhausted { .. } => return Broken::Refused(Rejection::OutOfResources),
        ConnectError::Loop { .. } => return Broken::Refused(Rejection::Loop),
        ConnectError::Busy => Failure::ConnectTimeout,
        ConnectError::Refused(_) | ConnectError::Unknown(_) => Failure::Unreachable,
    };
    Broken::App(failure, error.to_string().into())
}
