//! Bytes to the client, and Outrigger's own responses.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BufMut;
use outrigger_wire::date::date;

use crate::engine::answer::OwnResponse;
use crate::engine::exchange::Exchange;
use crate::engine::record::{self, Ending};
use crate::engine::rejection::{Problem, Rejection};
use crate::engine::reply;
use crate::engine::state::Phase;
use crate::http1::{Broken, Lane, Next};

impl Lane<'_> {
    pub(super) async fn send_gathered(&mut self, exchange: &mut Exchange) -> Result<(), Broken> {
        let patience = exchange.rules.config.client.write_timeout;
        let mut stalled_since = None;
        poll_fn(|cx| match self.stream.poll_send(cx) {
            Poll::Ready(sent) => Poll::Ready(sent.map_err(|_| Broken::ClientLeft)),
            Poll::Pending => {
                // From here on the time is the client's, not the app's.
                exchange.permit = None;
                self.poll_stalled(cx, &mut stalled_since, patience)
            }
        })
        .await
    }

    pub(super) async fn send(&mut self, mut bytes: &[u8], exchange: &mut Exchange) -> Result<(), Broken> {
        let patience = exchange.rules.config.client.write_timeout;
        while !bytes.is_empty() {
            let mut stalled_since = None;
            let sent = poll_fn(|cx| match self.stream.poll_send_directly(cx, bytes) {
                Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(Err(Broken::ClientLeft)),
                Poll::Ready(Ok(sent)) => Poll::Ready(Ok(sent)),
                Poll::Pending => {
                    exchange.permit = None;
                    self.poll_stalled(cx, &mut stalled_since, patience).map(|r| r.map(|()| 0))
                }
            });
            bytes = &bytes[sent.await?..];
        }
        Ok(())
    }

    /// Waits for a client that reads nothing, for at most `patience`.
    fn poll_stalled(
        &mut self,
        cx: &mut Context<'_>,
        since: &mut Option<tokio::time::Instant>,
        patience: Duration,
    ) -> Poll<Result<(), Broken>> {
        let since = *since.get_or_insert_with(tokio::time::Instant::now);
        self.timer.poll(cx, since + patience).map(|()| Err(Broken::ClientLeft))
    }

    /// Sends a problem; the connection stays open.
    pub(super) async fn answer(&mut self, exchange: &mut Exchange, problem: &Problem) -> Result<(), Broken> {
        self.stop_reading();
        let reply = reply::entered(self.state, exchange, problem).await;
        self.put_own(&OwnResponse::reply(exchange, &reply), exchange.started, reply.body.as_bytes());
        self.send_gathered(exchange).await?;
        self.stream.complete();
        Ok(())
    }

    /// Puts a response of our own into the client's output.
    pub(super) fn put_own(&mut self, response: &OwnResponse<'_>, now: Instant, body: &[u8]) {
        self.closes = self.must_close || self.state.drain.phase() != Phase::Serving || !self.may_drain();
        let out = self.stream.output();
        out.clear();
        response.write(out, &date(now), self.closes);
        if !self.is_head {
            out.put_slice(body);
            self.sent = body.len() as u64;
        }
    }

    /// After the head, only closing the connection shows the client that the response is incomplete: in HTTP/1.0, where that may
    /// be the end of a complete one, only a reset does.
    fn break_off(&mut self, exchange: &Exchange) {
        if exchange.answered_by_app && !self.takes_chunks {
            self.stream.reset();
        }
    }

    /// Sends a problem where the client can still get one, and returns how the request ended.
    pub(super) async fn end(mut self, exchange: &mut Exchange, result: Result<(), Broken>) -> (Ending, Next) {
        let mut ending = Ending { failed: result.is_err(), client_left: false, request_bytes: 0, body_bytes: 0 };
        if let Err(Broken::App(failure, detail)) = &result {
            record::failed(self.state, exchange, *failure, detail).await;
        }
        exchange.permit = None;
        let mut next = Next::Close;
        match result {
            Ok(()) => {
                self.stream.complete();
                next = if self.closes { Next::Close } else { Next::Request };
            }
            // `serve_prepared` handles `Moved`, so it does not arrive here.
            Err(Broken::ClientLeft | Broken::Moved | Broken::Overdue(_)) => {
                ending.client_left = true;
                self.break_off(exchange);
            }
            Err(Broken::Refused(rejection)) => {
                exchange.rejection = Some(rejection);
                // The rest of the body may never arrive.
                self.must_close |= matches!(rejection, Rejection::BodyTooSlow | Rejection::TooManyUploads);
                match self.answer(exchange, &rejection.problem()).await {
                    Ok(()) => next = if self.closes { Next::Close } else { Next::Request },
                    Err(_) => ending.client_left = true,
                }
            }
            Err(Broken::App(failure, _)) => {
                if !exchange.answered_by_app {
                    match self.answer(exchange, &failure.problem()).await {
                        Ok(()) => next = if self.closes { Next::Close } else { Next::Request },
                        Err(_) => ending.client_left = true,
                    }
                } else {
                    self.break_off(exchange);
                }
            }
        }
        if next == Next::Request {
            if !self.stream.needs_drain() || self.stream.is_between_requests() || self.drain().await {
                self.stream.finish_request();
            } else {
                // Without `finish_request`, the connection lingers, so that the client gets the response.
                next = Next::Close;
            }
        }
        ending.request_bytes = self.received + self.upload.as_ref().map_or(0, |upload| upload.received);
        ending.body_bytes = self.sent;
        (ending, next)
    }
}
