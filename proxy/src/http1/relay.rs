//! The response of the app or a peer, from its socket to the client's.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use bytes::{Buf, BufMut, BytesMut};
use outrigger_identity::clock;
use outrigger_wire::date::date;
use outrigger_wire::request::Kind;
use outrigger_wire::rewrite::{self, AnswerHead, Frame};
use tokio::io::AsyncReadExt;

use crate::engine::bounds::ANSWER_HEAD_BYTES;
use crate::engine::exchange::Exchange;
use crate::engine::metrics::StreamKind;
use crate::engine::record;
use crate::engine::rejection::Failure;
use crate::engine::stages::{admit, affinity, audit, limits};
use crate::http1::body::BodyEnd;
use crate::http1::buffers::{READ_BYTES, recycle};
use crate::http1::upload::put_chunk;
use crate::http1::{Broken, Lane, closed};
use crate::mechanism::limits::headers::Told;
use crate::transport::app_pool::{self, AppStream};

impl Lane<'_> {
    /// Writes the head at the start of `input`, rewritten, to the client's output. `None`: it is incomplete.
    pub(super) fn rewrite(&mut self, input: &[u8], exchange: &Exchange) -> Result<Option<AnswerHead>, Broken> {
        if input.is_empty() {
            return Ok(None);
        }
        thread_local! {
            static SESSION: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        self.closes = self.must_close();
        let relayed = SESSION.with_borrow_mut(|session| {
            session.clear();
            affinity::set_cookie(exchange, |name, value| put_line(session, name, value));
            let told = limits::told(exchange);
            let frame = Frame {
                is_head_request: self.is_head,
                is_upgrade: exchange.kind == Kind::Upgrade,
                request_id: exchange.rules.config.headers.request_id.then(|| exchange.request_id.as_bytes()),
                date: &date(exchange.started),
                limits: told.as_ref().map(Told::own),
                session,
                closes: self.closes,
                takes_chunks: self.takes_chunks,
            };
            rewrite::relay_answer(input, self.stream.output(), frame)
        });
        match relayed {
            Ok(None) if input.len() > ANSWER_HEAD_BYTES => {
                Err(Broken::App(Failure::Invalid, "the head is larger than 64 KiB".into()))
            }
            Ok(answer) => Ok(answer),
            Err(_) => Err(Broken::App(Failure::Invalid, "the head is not valid HTTP".into())),
        }
    }

    /// Records the head of the response, which is sent next.
    async fn begin_response(
        &mut self,
        answer: &AnswerHead,
        body: &BodyEnd,
        exchange: &mut Exchange,
    ) -> Result<(), Broken> {
        self.is_relayed(exchange);
        exchange.status = answer.status;
        exchange.answered_by_app = true;
        exchange.stream = answer.is_event_stream.then_some(StreamKind::EventStream);
        record::head(self.state, exchange, answer.is_event_stream);
        admit::let_go_at_head(exchange, body.left());
        audit::before_response(self.state, exchange).await.map_err(Broken::Refused)?;
        record::first_byte(exchange);
        if body.is_done() {
            record::response_ended(self.state, exchange);
        }
        Ok(())
    }

    /// Sends the head, then the body as it arrives.
    pub(super) async fn relay(
        &mut self,
        mut app: AppStream,
        mut input: BytesMut,
        answer: AnswerHead,
        exchange: &mut Exchange,
    ) -> Result<(), Broken> {
        if answer.status == 101 {
            // On the heap, so that connections without a tunnel hold no memory for it.
            return Box::pin(self.switch_protocols(app, input, exchange)).await;
        }
        let is_stream = answer.is_event_stream;
        let patience = if is_stream { exchange.rules.config.app.stream_timeout } else { exchange.route().timeout };
        let mut body = BodyEnd::new(answer.body);
        let (taken, payload) = body.take(&mut input, !self.takes_chunks)?;
        // Until here no byte has been sent, and the client could still get a problem.
        self.begin_response(&answer, &body, exchange).await?;
        self.put_body(&body, &input[..payload]);
        input.advance(taken);
        let mut has_ended = false;
        if self.is_streaming() || !self.takes_chunks {
            has_ended = true;
            self.relay_both(&mut app, &mut input, &mut body, patience, exchange).await?;
        } else {
            self.send_gathered(exchange).await?;
        }
        while !body.is_done() && !has_ended {
            // The buffer's content has been sent.
            input.clear();
            input.reserve(READ_BYTES);
            let idle_since = tokio::time::Instant::now();
            admit::let_go_of_long_answer(self.state, exchange, idle_since.into_std());
            let read = poll_fn(|cx| {
                let mut read = pin!(app.read_buf(&mut input));
                match read.as_mut().poll(cx) {
                    Poll::Ready(Ok(read)) => Poll::Ready(Ok(read)),
                    Poll::Ready(Err(_)) => Poll::Ready(Err(closed("the body ended early"))),
                    Poll::Pending if self.poll_gone(cx).is_ready() => Poll::Ready(Err(Broken::ClientLeft)),
                    Poll::Pending => self.poll_deadline(cx, idle_since + patience),
                }
            });
            if read.await? == 0 {
                if body.ends_with_connection() {
                    break;
                }
                return Err(closed("the body ended early"));
            }
            self.ended_at = None;
            let (taken, payload) = body.take(&mut input, false)?;
            if body.is_done() {
                record::response_ended(self.state, exchange);
            }
            if body.ends_with_connection() {
                self.put_body(&body, &input[..payload]);
                self.send_gathered(exchange).await?;
            } else {
                self.send(&input[..payload], exchange).await?;
                self.sent += payload as u64;
            }
            input.advance(taken);
        }
        if body.ends_with_connection() {
            record::response_ended(self.state, exchange);
            if self.takes_chunks {
                self.stream.output().put_slice(b"0\r\n\r\n");
            }
            self.send_gathered(exchange).await?;
        } else if answer.keeps_connection && input.is_empty() && self.may_keep() {
            let most = exchange.rules.config.app.max_idle;
            app_pool::keep(app, most, exchange.head_at.unwrap_or_else(clock::now));
        }
        recycle(input);
        Ok(())
    }

    /// Puts a part of a response's body into the client's output: in chunks, if its end would be the connection's.
    pub(super) fn put_body(&mut self, body: &BodyEnd, payload: &[u8]) {
        if body.ends_with_connection() && self.takes_chunks {
            put_chunk(self.stream.output(), payload);
        } else {
            self.stream.output().put_slice(payload);
        }
        self.sent += payload.len() as u64;
    }
}

fn put_line(out: &mut impl BufMut, name: &str, value: &[u8]) {
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}
