//! Streams the rest of a request body while the app has the request, and its response in the other direction.
//!
//! Both directions are polled by one task: the client's bytes go to the app as fast as it takes them, and the app may respond
//! before it has got all of them. While the body streams, its permit is given back if the client sends little; Outrigger asks
//! for another one after a large part, and before it passes on the end, when the app can begin to work.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use outrigger_wire::rewrite::AnswerHead;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use crate::engine::bounds::MOST_INTERIM;
use crate::engine::exchange::Exchange;
use crate::engine::record;
use crate::engine::rejection::{Failure, Rejection};
use crate::engine::stages::admit::{self, NoTurn};
use crate::http1::body::BodyEnd;
use crate::http1::buffers::{FIRST_READ_BYTES, READ_BYTES};
use crate::http1::streaming::{BUSY, BUSY_BYTES, Streaming};
use crate::http1::upload::KEPT_BYTES;
use crate::http1::{Broken, Heard, Lane, closed};
use crate::transport::app_pool::AppStream;

/// The time between two requests for a permit at the end of a body.
const AGAIN: Duration = Duration::from_millis(100);

/// How far an upload has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pumped {
    /// The app has all of it, or takes no more.
    All,
    /// It needs a permit before it goes on.
    NeedsPermit {
        /// All that is left is the end.
        is_end: bool,
    },
}

/// The reason why a poll is over.
enum Did {
    NeedsPermit { is_end: bool },
    Alarm,
    Read,
}

impl Lane<'_> {
    /// Whether the client still sends the body of the request that the app has answered.
    pub(super) fn is_streaming(&self) -> bool {
        self.upload.as_ref().is_some_and(|upload| upload.streaming.is_some())
    }

    /// Whether the connection may serve another request: the app has got all of this one. A request that needs a new
    /// connection for itself does not leave one more behind.
    pub(super) fn may_keep(&self) -> bool {
        let is_sent = self.upload.as_ref().is_none_or(|upload| upload.streaming.is_none() && !upload.is_cut);
        is_sent && self.shares_connections
    }

    /// Sends the request with its body, as it arrives, and waits for the head of the response, which is then in the client's
    /// output, rewritten.
    pub(super) async fn ask_with_body(
        &mut self,
        app: &mut AppStream,
        head: &[u8],
        input: &mut BytesMut,
        exchange: &mut Exchange,
    ) -> Result<AnswerHead, Broken> {
        if let Some(upload) = &mut self.upload {
            upload.begin(exchange);
        }
        let mut interim = 0;
        loop {
            if input.capacity() - input.len() < FIRST_READ_BYTES / 4 {
                input.reserve(FIRST_READ_BYTES);
            }
            match poll_fn(|cx| self.poll_asking(cx, app, head, input, exchange))
                .await
                .inspect_err(|_| self.credit(exchange))?
            {
                Did::NeedsPermit { is_end } => {
                    self.ask_for_permit(exchange, is_end).await?;
                    continue;
                }
                Did::Alarm => {
                    self.alarm(exchange, head)?;
                    continue;
                }
                Did::Read => {
                    self.alarms.clear();
                    self.has_heard = true;
                }
            }
            while let Some(answer) = self.rewrite(input, exchange)? {
                input.advance(answer.len);
                if answer.is_final() {
                    self.has_answered(head.len());
                    return Ok(answer);
                }
                interim += 1;
                if interim > MOST_INTERIM {
                    return Err(Broken::App(Failure::Invalid, "there is no end of interim answers".into()));
                }
                self.pass_interim(exchange).await?;
            }
        }
    }

    /// The time in which the client sent the body is not the app's: it does not count for what follows a failed attempt.
    #[cold]
    fn credit(&mut self, exchange: &mut Exchange) {
        if let Some(upload) = &mut self.upload
            && let Some(streaming) = &mut upload.streaming
        {
            let now = Instant::now();
            exchange.deadline += now - streaming.since;
            streaming.since = now;
        }
    }

    fn poll_asking(
        &mut self,
        cx: &mut Context<'_>,
        app: &mut AppStream,
        head: &[u8],
        input: &mut BytesMut,
        exchange: &mut Exchange,
    ) -> Poll<Result<Did, Broken>> {
        let pumped = self.poll_pump(cx, app, head, exchange, false);
        match pumped {
            Poll::Ready(Ok(Pumped::NeedsPermit { is_end })) => return Poll::Ready(Ok(Did::NeedsPermit { is_end })),
            Poll::Ready(Err(broken)) => return Poll::Ready(Err(broken)),
            Poll::Ready(Ok(Pumped::All)) | Poll::Pending => {}
        }
        let is_unsent = self.upload.as_ref().is_some_and(|upload| upload.is_cut && upload.head_sent == 0);
        let end = match pin!(app.read_buf(input)).as_mut().poll(cx) {
            // Bytes that the app sent before it got any of the request are no response to it.
            _ if is_unsent => Some(Ok(())),
            Poll::Ready(Ok(0)) => Some(Ok(())),
            Poll::Ready(Err(error)) => Some(Err(error)),
            Poll::Ready(Ok(_)) => return Poll::Ready(Ok(Did::Read)),
            Poll::Pending => None,
        };
        if let Some(end) = end {
            return Poll::Ready(Err(self.broke_off(end)));
        }
        if self.is_streaming() {
            return self.poll_limit(cx, exchange).map(Err);
        }
        if self.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(Broken::ClientLeft));
        }
        match ready!(self.poll_time(cx, Instant::from_std(exchange.deadline))) {
            Heard::Broken(broken) => Poll::Ready(Err(broken)),
            _ => Poll::Ready(Ok(Did::Alarm)),
        }
    }

    /// The final response's head has come.
    fn has_answered(&mut self, head_bytes: usize) {
        let Some(upload) = &mut self.upload else { return };
        // An app that has not taken the whole head responds to something else.
        upload.is_cut |= upload.head_sent < head_bytes;
        if !upload.is_cut && upload.sent < upload.buffer.len() {
            // It may read the rest while it responds.
            upload.streaming.get_or_insert_with(|| Streaming::new(Instant::now()));
        }
    }

    /// The response is passed on: the request is not sent again, and its body holds no permit.
    pub(super) fn is_relayed(&mut self, exchange: &mut Exchange) {
        let Some(upload) = &mut self.upload else { return };
        if let Some(streaming) = &mut upload.streaming {
            streaming.needs_permit = false;
            // Without a latency sample, as part of the time was the client's.
            exchange.permit = None;
        }
        upload.release();
        if upload.is_cut {
            self.stop_reading();
        }
    }

    /// The app switches protocols before it has the whole body: passes on the rest, which is still part of the request.
    pub(super) async fn finish_upload(&mut self, app: &mut AppStream, exchange: &mut Exchange) -> Result<(), Broken> {
        self.is_relayed(exchange);
        let pumped = poll_fn(|cx| match self.poll_pump(cx, app, &[], exchange, true) {
            Poll::Ready(pumped) => Poll::Ready(pumped.map(drop)),
            Poll::Pending => self.poll_limit(cx, exchange).map(Err),
        });
        pumped.await?;
        match self.upload.take() {
            Some(upload) if upload.is_cut => {
                Err(Broken::App(Failure::Invalid, "it switches protocols without the whole request".into()))
            }
            upload => {
                self.received += upload.map_or(0, |upload| upload.received);
                Ok(())
            }
        }
    }

    /// Passes on bytes of the body as long as the client sends some and the app takes them.
    fn poll_pump(
        &mut self,
        cx: &mut Context<'_>,
        app: &mut AppStream,
        head: &[u8],
        exchange: &mut Exchange,
        is_answered: bool,
    ) -> Poll<Result<Pumped, Broken>> {
        let Some(upload) = &mut self.upload else { return Poll::Ready(Ok(Pumped::All)) };
        let body_memory = exchange.rules.config.client.body_memory;
        loop {
            if let Some(is_end) = upload.wants_permit(exchange.permit.is_some()) {
                return Poll::Ready(Ok(Pumped::NeedsPermit { is_end }));
            }
            if upload.poll_write(cx, app, head).is_pending() {
                upload.blocked();
                return self.stream.poll_reset(cx).map(|()| Err(Broken::ClientLeft));
            }
            upload.unblocked();
            if upload.is_whole || upload.is_cut {
                upload.end(exchange, is_answered);
                upload.rest();
                if upload.is_cut && is_answered {
                    self.stop_reading();
                }
                return Poll::Ready(Ok(Pumped::All));
            }
            if upload.is_kept && upload.received >= KEPT_BYTES {
                upload.stop_keeping();
            }
            upload.make_room(self.state, exchange.client.address, body_memory);
            let Poll::Ready(read) = upload.poll_piece(cx, &mut self.stream) else {
                upload.rest();
                return Poll::Pending;
            };
            upload.count(read?, exchange.permit.is_some());
            if upload.is_longer_than(exchange.route().max_body_bytes) {
                return Poll::Ready(Err(Broken::Refused(Rejection::BodyTooLarge)));
            }
            if upload.is_kept && !upload.account(self.state, exchange.client.address, body_memory) {
                upload.stop_keeping();
            }
        }
    }

    /// Ready when the client or the app has taken too long over the body. Gives the permit back when the client sends little.
    fn poll_limit(&mut self, cx: &mut Context<'_>, exchange: &mut Exchange) -> Poll<Broken> {
        loop {
            let Some(streaming) = self.upload.as_mut().and_then(|upload| upload.streaming.as_mut()) else {
                return Poll::Pending;
            };
            let (limit, is_app) = match streaming.blocked_since {
                Some(since) => (since + exchange.route().timeout, true),
                None => (streaming.heard_at + exchange.rules.config.client.body_timeout, false),
            };
            let is_lent = exchange.permit.is_some() && !is_app;
            let wake_at = if is_lent { limit.min(streaming.window_began + BUSY) } else { limit };
            ready!(self.timer.poll(cx, wake_at));
            if wake_at == limit {
                return Poll::Ready(if is_app {
                    Broken::App(Failure::Timeout, "it does not take the request".into())
                } else {
                    Broken::Refused(Rejection::BodyTooSlow)
                });
            }
            if streaming.window_bytes < BUSY_BYTES {
                exchange.permit = None;
            }
            (streaming.window_began, streaming.window_bytes) = (Instant::now(), 0);
        }
    }

    /// Asks for a permit again. In the middle of a body, a rejection is ignored after the wait, as passing on pieces is
    /// little work. At the end, Outrigger asks until the deadline, because the client would have to send the whole body
    /// again.
    async fn ask_for_permit(&mut self, exchange: &mut Exchange, is_end: bool) -> Result<(), Broken> {
        let began = Instant::now();
        let Some(streaming) = self.upload.as_mut().and_then(|upload| upload.streaming.as_mut()) else { return Ok(()) };
        streaming.unpermitted = 0;
        exchange.deadline += began - streaming.since;
        streaming.since = began;
        let turn = loop {
            exchange.turn_began = Instant::now().into_std();
            let turn = match admit::permit(self.state, exchange) {
                Ok(()) => self.wait_for_permit(exchange).await?,
                Err(rejection) => Err(NoTurn::Refused(rejection)),
            };
            match turn {
                Err(NoTurn::Refused(Rejection::Overloaded)) if !is_end => break Ok(()),
                Err(NoTurn::Refused(Rejection::Overloaded))
                    if (Instant::now() + AGAIN).into_std() < exchange.deadline =>
                {
                    self.pause(exchange, AGAIN).await?;
                }
                turn => break turn,
            }
        };
        let now = Instant::now();
        if let Some(streaming) = self.upload.as_mut().and_then(|upload| upload.streaming.as_mut()) {
            streaming.restart_window(now);
            // Without a limit on permits, there is nothing to ask for.
            streaming.needs_permit &= exchange.permit.is_some() || !is_end;
            if is_end {
                // The wait counted as the app's time.
                streaming.since = now;
            }
        }
        turn.map_err(|no_turn| match no_turn {
            NoTurn::Refused(rejection) => Broken::Refused(rejection),
            NoTurn::AppDown => Broken::Refused(Rejection::AppRestarting),
        })
    }

    /// Ends an upload that its client does not go on with, or that the app does not take, after the response has begun. The response
    /// goes on; the client's connection closes after it.
    fn cut_upload(&mut self) {
        if let Some(upload) = &mut self.upload {
            upload.is_cut = true;
            self.stop_reading();
        }
    }

    /// Relays the body of a response while the client still sends the request.
    pub(super) async fn relay_both(
        &mut self,
        app: &mut AppStream,
        input: &mut BytesMut,
        body: &mut BodyEnd,
        patience: Duration,
        exchange: &mut Exchange,
    ) -> Result<(), Broken> {
        let mut idle_since = Instant::now();
        let mut stalled_since = None;
        let write_timeout = exchange.rules.config.client.write_timeout;
        poll_fn(|cx| {
            loop {
                let is_uploading = self.is_streaming();
                if is_uploading && let Poll::Ready(Err(_)) = self.poll_pump(cx, app, &[], exchange, true) {
                    self.cut_upload();
                    continue;
                }
                if !self.stream.output().is_empty() {
                    match self.stream.poll_send(cx) {
                        Poll::Ready(Ok(())) => (stalled_since, idle_since) = (None, Instant::now()),
                        Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::ClientLeft)),
                        Poll::Pending => {
                            // From here on the time is the client's, not the app's.
                            exchange.permit = None;
                            if body.is_done() && self.is_streaming() {
                                self.cut_upload();
                            }
                            let since = *stalled_since.get_or_insert_with(Instant::now);
                            return self.timer.poll(cx, since + write_timeout).map(|()| Err(Broken::ClientLeft));
                        }
                    }
                }
                if body.is_done() {
                    return Poll::Ready(Ok(()));
                }
                admit::let_go_of_long_answer(self.state, exchange, idle_since.into_std());
                input.clear();
                input.reserve(READ_BYTES);
                match pin!(app.read_buf(input)).as_mut().poll(cx) {
                    Poll::Ready(Ok(0)) if body.ends_with_connection() => {
                        return Poll::Ready(Ok(()));
                    }
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(closed("the body broke off"))),
                    Poll::Ready(Ok(_)) if is_uploading => idle_since = Instant::now(),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending if self.is_streaming() => {
                        if self.poll_limit(cx, exchange).is_ready() {
                            self.cut_upload();
                            continue;
                        }
                        return self.poll_deadline(cx, idle_since + patience);
                    }
                    Poll::Pending if is_uploading => idle_since = Instant::now(),
                    Poll::Pending if self.poll_gone(cx).is_ready() => {
                        return Poll::Ready(Err(Broken::ClientLeft));
                    }
                    Poll::Pending => return self.poll_deadline(cx, idle_since + patience),
                }
                self.ended_at = None;
                let (taken, payload) = body.take(input, !self.takes_chunks)?;
                if body.is_done() {
                    record::response_ended(self.state, exchange);
                }
                self.put_body(body, &input[..payload]);
                input.advance(taken);
            }
        })
        .await
    }
}
