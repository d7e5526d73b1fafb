//! The fast lane: an HTTP/1.1 proxy without Pingora, for nearly all requests.
//!
//! It takes requests without a body that are idempotent and need nothing special of the connection
//! ([`outrigger_wire::scan::Head::is_simple`]). They need none of the costly parts of a general proxy: no copy of the head in
//! a map, no channels between tasks, no dynamically dispatched filters. The head is rewritten from one buffer into another,
//! and the response on its way from the app's socket to the client's. Stages, rejections, metrics and logs are the same as in
//! [`crate::general`], which takes all other requests.

mod attempts;
mod body;
mod buffers;
mod client;
mod elsewhere;
mod relay;
mod request;

use std::borrow::Cow;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use http::Method;
use outrigger_wire::rewrite::AnswerHead;
use tokio::io::{AsyncReadExt, AsyncWrite};

use crate::engine::bounds::MOST_INTERIM;
use crate::engine::exchange::{Destination, Exchange, Listener};
use crate::engine::record;
use crate::engine::rejection::{Failure, Rejection};
use crate::engine::state::State;
use crate::http1::buffers::{FIRST_READ_BYTES, recycle};
use crate::http1::request::{Earlier, path_of, prepare};
use crate::mechanism::peers::hop;
use crate::transport::app_pool::AppStream;
use crate::transport::client_stream::ClientStream;
use crate::transport::timer::Timer;

/// The client's connection after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It stays open for another request.
    Request,
    /// It closes.
    Close,
}

/// Why there is no complete response from the app.
#[derive(Debug)]
enum Broken {
    /// The app failed; with a text for the log.
    App(Failure, Cow<'static, str>),
    /// Outrigger rejects the request.
    Refused(Rejection),
    /// A peer takes the request: its destination has changed.
    Moved,
    /// The client has disconnected.
    ClientLeft,
}

/// An attempt that got a response: the connection and the head.
type Answered = (AppStream, AnswerHead);

/// The origin of a request.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The remote address of its connection.
    pub client: IpAddr,
    /// The listener that accepted it.
    pub listener: Listener,
}

/// Serves the request whose head is `head`.
pub async fn serve(
    state: &Arc<State>,
    stream: &mut ClientStream,
    head: BytesMut,
    timer: &mut Timer,
    origin: Origin,
) -> Next {
    let Some(mut prepared) = prepare(state, &head, origin, None) else { return Next::Close };
    let mut lane = Lane { state, stream, timer, is_head: prepared.method == Method::HEAD, closes: false, sent: 0 };
    let result = if let Destination::Peer(peer, hop::Kind::Session) = &prepared.exchange.destination {
        let peer = Arc::clone(peer);
        match lane.ask_peer(&mut prepared, &peer, hop::Kind::Session).await {
            Some(result) => result,
            None => {
                // The session's home declined it: the stages decide again, as the request is served here now.
                let earlier = Earlier { started: prepared.exchange.started, request_id: prepared.exchange.request_id };
                let Some(again) = prepare(state, &head, origin, Some(earlier)) else { return Next::Close };
                prepared = again;
                lane.serve_prepared(&mut prepared).await
            }
        }
    } else {
        drop(head);
        lane.serve_prepared(&mut prepared).await
    };
    recycle(prepared.head);
    let exchange = &mut prepared.exchange;
    let (ending, next) = lane.end(exchange, result).await;
    let path = path_of(&prepared.target);
    record::exchange(state, exchange, &ending, &prepared.method, path);
    next
}

/// Serves one request on a client's connection.
struct Lane<'a> {
    state: &'a Arc<State>,
    stream: &'a mut ClientStream,
    timer: &'a mut Timer,
    is_head: bool,
    /// The client's connection closes after this response.
    closes: bool,
    /// Bytes of the response body sent.
    sent: u64,
}

impl Lane<'_> {
    /// Sends the request and waits for the head of the response, which is then in the client's output, rewritten.
    async fn ask(
        &mut self,
        app: &mut AppStream,
        head: &[u8],
        input: &mut BytesMut,
        exchange: &mut Exchange,
    ) -> Result<AnswerHead, Broken> {
        let deadline = tokio::time::Instant::from_std(exchange.deadline);
        let mut interim = 0;
        let mut unsent = head;
        poll_fn(|cx| {
            while !unsent.is_empty() {
                match Pin::new(&mut *app).poll_write(cx, unsent) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(closed("the request could not be sent"))),
                    Poll::Ready(Ok(sent)) => unsent = &unsent[sent..],
                    Poll::Pending => return self.poll_deadline(cx, deadline),
                }
            }
            Poll::Ready(Ok(()))
        })
        .await?;
        loop {
            if input.capacity() - input.len() < FIRST_READ_BYTES / 4 {
                input.reserve(FIRST_READ_BYTES);
            }
            let read = poll_fn(|cx| {
                let mut read = pin!(app.read_buf(input));
                match read.as_mut().poll(cx) {
                    Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(Err(closed("the head is incomplete"))),
                    Poll::Ready(Ok(_)) => Poll::Ready(Ok(())),
                    Poll::Pending if self.stream.poll_gone(cx).is_ready() => Poll::Ready(Err(Broken::ClientLeft)),
                    Poll::Pending => self.poll_deadline(cx, deadline),
                }
            });
            read.await?;
            while let Some(answer) = self.rewrite(input, exchange)? {
                input.advance(answer.len);
                if answer.status >= 200 {
                    return Ok(answer);
                }
                // An interim response, such as 103, is passed on at once.
                interim += 1;
                if interim > MOST_INTERIM {
                    return Err(Broken::App(Failure::Invalid, "there are too many interim responses".into()));
                }
                self.send_gathered(exchange).await?;
            }
        }
    }

    fn poll_deadline<T>(&mut self, cx: &mut Context<'_>, deadline: tokio::time::Instant) -> Poll<Result<T, Broken>> {
        self.timer.poll(cx, deadline).map(|()| Err(Broken::App(Failure::Timeout, "the deadline passed".into())))
    }
}

fn closed(seen: &'static str) -> Broken {
    Broken::App(Failure::Closed, seen.into())
}
