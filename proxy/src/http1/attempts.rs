//! How often the app is asked, and what comes before each time: a turn, a pause, the breaker, a connection.

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use outrigger_rules::sections::faults::Effect;
use outrigger_wire::rewrite;

use crate::engine::exchange::Exchange;
use crate::engine::rejection::{Failure, Rejection};
use crate::engine::retries;
use crate::engine::stages::admit::NoTurn;
use crate::engine::stages::{admit, failover, faults, hold};
use crate::http1::{Answered, Broken, Lane, closed, scratch};
use crate::mechanism::breakers::{self, End};
use crate::transport::app_pool::{self, AppStream};
use crate::transport::upstream::{self, ConnectError};

impl Lane<'_> {
    /// Waits for a slot where that is needed, then asks the app until there is an answer that counts.
    pub(super) async fn forward_in_turn(&mut self, exchange: &mut Exchange, head: &mut BytesMut) -> Result<(), Broken> {
        let mut now = exchange.turn_began;
        if exchange.waiting.is_some() {
            now = match self.wait_for_turn(exchange, head).await {
                // Its turn has not come; a peer may have a slot to spare.
                Err(Broken::Refused(Rejection::Overloaded)) if failover::spares_a_slot(self.state, exchange) => {
                    return Err(Broken::Moved);
                }
                turn => turn?,
            };
        }
        retries::pay_in(self.state, exchange);
        let mut input = scratch();
        // What the last attempt failed with, where that may be because the app is gone: the next connection tells.
        let mut owed = None;
        loop {
            let attempt = match owed.take() {
                None => self.attempt(exchange, head, &mut input, now).await,
                Some(broken) => self.attempt_again(exchange, head, &mut input, broken).await,
            };
            match attempt {
                Ok((app, answer)) => {
                    exchange.says_when = answer.retry_after.is_some();
                    let Some(pause) = self.pause_after(exchange, answer.status, answer.retry_after) else {
                        return self.relay(app, input, answer, exchange).await;
                    };
                    // The rest of that answer goes with its connection.
                    drop(app);
                    breakers::ended(self.state, exchange, End::Answered(answer.status, Instant::now()));
                    self.pause(pause).await?;
                }
                Err(Broken::Refused(Rejection::FaultInjected { status })) => {
                    let Some(pause) = self.pause_after(exchange, status.as_u16(), None) else {
                        return Err(Broken::Refused(Rejection::FaultInjected { status }));
                    };
                    breakers::ended(self.state, exchange, End::Answered(status.as_u16(), Instant::now()));
                    self.pause(pause).await?;
                }
                Err(Broken::App(Failure::Unreachable, detail)) => {
                    let waits = hold::refused(self.state, exchange);
                    // Nothing was sent: a peer takes it, or it waits for the app like those that come now.
                    if failover::takes(self.state, exchange) {
                        return Err(Broken::Moved);
                    }
                    if !waits {
                        return Err(Broken::App(Failure::Unreachable, detail));
                    }
                    breakers::ended(self.state, exchange, End::Unknown);
                    hold::rejoin(self.state, exchange).map_err(Broken::Refused)?;
                    let turn = self.wait_for_turn(exchange, head).await?;
                    if turn >= exchange.deadline {
                        return Err(Broken::Refused(Rejection::Expired));
                    }
                    // Others have something to do, should the app go away as fast as it comes back.
                    tokio::task::yield_now().await;
                }
                Err(Broken::App(Failure::ConnectTimeout, detail)) => {
                    let now = Instant::now();
                    let pause = retries::pause(exchange, now, None).filter(|_| retries::pay(self.state, exchange, now));
                    let Some(pause) = pause else { return Err(Broken::App(Failure::ConnectTimeout, detail)) };
                    breakers::ended(self.state, exchange, End::NotConnected);
                    self.pause(pause).await?;
                }
                Err(Broken::App(Failure::Closed, detail)) => {
                    let Some(pause) = retries::pause(exchange, Instant::now(), None) else {
                        return Err(Broken::App(Failure::Closed, detail));
                    };
                    owed = Some(Broken::App(Failure::Closed, detail));
                    self.pause(pause).await?;
                }
                Err(Broken::Refused(Rejection::BreakerOpen { .. })) if failover::takes(self.state, exchange) => {
                    return Err(Broken::Moved);
                }
                Err(broken) => return Err(broken),
            }
            input.clear();
            self.stream.output().clear();
            now = Instant::now();
            if let Some(permit) = &mut exchange.permit {
                permit.sent(now);
            }
            rewrite::set_timeout(head, exchange.deadline.saturating_duration_since(now));
        }
    }

    /// One attempt, on a kept connection if there is one. A kept connection that turns out to be dead is replaced by a new one
    /// at no cost: the app has not been asked.
    async fn attempt(
        &mut self,
        exchange: &mut Exchange,
        head: &[u8],
        input: &mut BytesMut,
        now: Instant,
    ) -> Result<Answered, Broken> {
        breakers::enter(self.state, exchange, now).map_err(Broken::Refused)?;
        exchange.attempts += 1;
        if !exchange.faults.is_empty() {
            self.befall(exchange).await?;
        }
        // Where the app is now: the request may have waited, and `app.address` have changed meanwhile.
        let kept = {
            let rules = self.state.rules.load();
            app_pool::take(|target| rules.upstreams.app.has(target))
        };
        if let Some(mut kept) = kept {
            self.state.metrics.attempts_reused.inc();
            match self.ask(&mut kept, head, input, exchange).await {
                Err(Broken::App(Failure::Closed, _)) if input.is_empty() => {}
                asked => return asked.map(|answer| (kept, answer)),
            }
            exchange.attempts += 1;
            self.state.metrics.reconnects.inc();
        }
        let mut fresh = self.connect(exchange).await?;
        let answer = self.ask(&mut fresh, head, input, exchange).await?;
        Ok((fresh, answer))
    }

    /// One more attempt after one that `broken` ended, if the app is there and the budget has something left.
    async fn attempt_again(
        &mut self,
        exchange: &mut Exchange,
        head: &[u8],
        input: &mut BytesMut,
        broken: Broken,
    ) -> Result<Answered, Broken> {
        let mut fresh = self.connect(exchange).await?;
        let now = Instant::now();
        if !retries::pay(self.state, exchange, now) {
            exchange.is_last_attempt = true;
            return Err(broken);
        }
        breakers::ended(self.state, exchange, End::Failed);
        breakers::enter(self.state, exchange, now).map_err(Broken::Refused)?;
        exchange.attempts += 1;
        if !exchange.faults.is_empty() {
            self.befall(exchange).await?;
        }
        let answer = self.ask(&mut fresh, head, input, exchange).await?;
        Ok((fresh, answer))
    }

    /// A new connection to the app.
    async fn connect(&mut self, exchange: &Exchange) -> Result<AppStream, Broken> {
        self.state.metrics.attempts_new.inc();
        let left = exchange.deadline.saturating_duration_since(Instant::now());
        let patience = exchange.rules.config.app.connect_timeout.min(left);
        match tokio::time::timeout(patience, upstream::connect(self.state)).await {
            Ok(connected) => connected.map_err(|error| not_connected(&error)),
            Err(_) => Err(Broken::App(Failure::ConnectTimeout, "connect_timeout is over".into())),
        }
    }

    /// The pause before another attempt, if an answer with this status is tried again; paid for.
    fn pause_after(&self, exchange: &Exchange, status: u16, asked_for: Option<Duration>) -> Option<Duration> {
        if !retries::is_wanted(exchange, status) {
            return None;
        }
        let now = Instant::now();
        retries::pause(exchange, now, asked_for).filter(|_| retries::pay(self.state, exchange, now))
    }

    /// Waits, unless the client leaves.
    async fn pause(&mut self, pause: Duration) -> Result<(), Broken> {
        let until = tokio::time::Instant::now() + pause;
        poll_fn(|cx| {
            if self.stream.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(Broken::ClientLeft));
            }
            self.timer.poll(cx, until).map(Ok)
        })
        .await
    }

    /// Waits for the exchange's turn, and tells the app what is left of its time. Gives the time when its turn came.
    async fn wait_for_turn(&mut self, exchange: &mut Exchange, head: &mut BytesMut) -> Result<Instant, Broken> {
        if let Some(mut waiting) = exchange.waiting.take() {
            loop {
                let deadline = tokio::time::Instant::from_std(admit::wait_deadline(self.state, exchange));
                let turn = poll_fn(|cx| match waiting.poll_turn(cx) {
                    Poll::Ready(turn) => Poll::Ready(Ok(Some(turn))),
                    Poll::Pending if self.stream.poll_gone(cx).is_ready() => Poll::Ready(Err(Broken::ClientLeft)),
                    Poll::Pending => self.timer.poll(cx, deadline).map(|()| Ok(None)),
                });
                let now = Instant::now();
                match turn.await? {
                    Some(Some(permit)) => {
                        exchange.permit = Some(permit);
                        break;
                    }
                    // The app went away while it waited: it may wait for that, too.
                    None if admit::wait_deadline(self.state, exchange) > now => {}
                    Some(None) | None => return Err(self.no_turn(exchange, Instant::now())),
                }
            }
        }
        let now = Instant::now();
        self.state.metrics.waited(exchange, now);
        rewrite::set_timeout(head, exchange.deadline.saturating_duration_since(now));
        Ok(now)
    }

    fn no_turn(&self, exchange: &Exchange, now: Instant) -> Broken {
        match admit::no_turn(self.state, exchange, now) {
            NoTurn::Refused(rejection) => Broken::Refused(rejection),
            NoTurn::AppAway => Broken::App(Failure::Unreachable, "it did not come back within `hold`".into()),
        }
    }

    /// A fault on purpose.
    async fn befall(&mut self, exchange: &mut Exchange) -> Result<(), Broken> {
        let Some((delay, effect)) = faults::next(exchange) else { return Ok(()) };
        self.state.metrics.faults.inc();
        let left = exchange.deadline.saturating_duration_since(Instant::now());
        self.pause(delay.min(left)).await?;
        match effect {
            _ if delay >= left => Err(Broken::App(Failure::Timeout, "a fault on purpose took all of the time".into())),
            Effect::Pass => Ok(()),
            Effect::Abort(status) => Err(Broken::Refused(Rejection::FaultInjected { status })),
            Effect::Reset => Err(closed("a fault on purpose")),
        }
    }
}

/// What a request becomes that has no connection.
pub(super) fn not_connected(error: &ConnectError) -> Broken {
    let failure = match error {
        ConnectError::Exhausted { .. } => return Broken::Refused(Rejection::OutOfResources),
        ConnectError::Loop { .. } => return Broken::Refused(Rejection::Loop),
        ConnectError::Busy => Failure::ConnectTimeout,
        ConnectError::Refused(_) | ConnectError::Unknown(_) => Failure::Unreachable,
    };
    Broken::App(failure, error.to_string().into())
}
