//! Serves one request of HTTP/1 or HTTP/2, from its head to its response.
//!
//! The head is rewritten from one buffer into another, and both bodies go from socket to socket, in one task: there is no copy
//! of the head in a map, no channel and no dynamically dispatched filter. [`crate::engine`] decides about the request.
//!
//! In this order: [`request`] runs the stages, [`upload`] and [`pump`] read and stream the request's body, [`attempts`] asks the
//! app, [`relay`] passes on the response, [`client`] sends it; [`tunnel`] follows a 101. [`side`] is the client's connection or
//! HTTP/2 stream. [`elsewhere`] has replays, peers and probes, [`hedge`] the alarms of an attempt that takes long.

mod attempts;
mod body;
mod buffers;
mod client;
mod elsewhere;
mod hedge;
mod pump;
mod relay;
mod request;
mod side;
mod streaming;
mod tunnel;
mod upload;

use std::borrow::Cow;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http::{Method, Version};
use outrigger_identity::client::Client;
use outrigger_wire::request::Kind;
use outrigger_wire::rewrite::AnswerHead;
use outrigger_wire::scan::{Framing, Head};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::time::Instant;

use crate::engine::attempts::Next as Following;
use crate::engine::bounds::MOST_INTERIM;
use crate::engine::exchange::{Destination, Exchange, Listener};
use crate::engine::record;
use crate::engine::rejection::{Failure, Rejection};
use crate::engine::state::{Phase, State};
use crate::http1::buffers::{FIRST_READ_BYTES, recycle};
use crate::http1::hedge::Alarms;
use crate::http1::request::{Earlier, Prepared, Received, path_of, prepare};
pub use crate::http1::side::ClientSide;
use crate::http1::upload::Upload;
use crate::mechanism::peers::hop;
use crate::transport::app_pool::AppStream;
use crate::transport::timer::Timer;

/// How long a client that has closed its side of the connection is taken to wait for the response.
const HALF_CLOSED: Duration = Duration::from_secs(2);

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
    /// The attempt took too long, and this follows.
    Overdue(Following),
    /// The client has disconnected.
    ClientLeft,
}

/// The event that ended a wait for a response.
enum Heard {
    /// Bytes of it.
    Bytes,
    /// The end of the connection.
    End(io::Result<()>),
    /// The time of an alarm.
    Alarm,
    /// The result of the request to a peer.
    Peer(Option<(AppStream, BytesMut)>),
    /// The end of the wait.
    Broken(Broken),
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

/// Serves the request whose head is at the start of what `stream` has read.
pub async fn serve(
    state: &Arc<State>,
    mut stream: ClientSide<'_>,
    head: &Head,
    timer: &mut Timer,
    origin: Origin,
) -> Next {
    let mut upload = None;
    let mut bytes = BytesMut::new();
    let mut arrived = Ok(());
    if head.framing == Framing::Length(0) {
        bytes = stream.take_head(head);
    } else {
        let upload = upload.insert(Upload::new(head, &mut stream));
        arrived = poll_fn(|cx| Poll::Ready(upload.read_arrived(cx, &mut stream))).await;
    }
    let local = if head.is_http10 { stream.addresses().map(|(local, _)| local) } else { None };
    let version = stream.version(head);
    let received = Received { head, version, origin, body: upload.as_ref(), local };
    let read = upload.as_ref().map_or(&*bytes, |upload| &upload.buffer[..head.len]);
    let Some(mut prepared) = prepare(state, read, received, None) else { return Next::Close };
    if let Some(upload) = &mut upload {
        if matches!(prepared.exchange.destination, Destination::Peer(_, hop::Kind::Session)) {
            bytes = BytesMut::from(&upload.buffer[..head.len]);
        }
        upload.drop_head(head.len);
        if prepared.refused.is_some() {
            upload.buffer = BytesMut::new();
        } else if !upload.is_whole {
            let Exchange { client, rules, .. } = &prepared.exchange;
            let share = || state.body_memory.share(Client::hash_of(client.address));
            stream.account(share, rules.config.client.body_memory);
        }
    }
    let mut lane = Lane {
        state,
        stream,
        timer,
        is_head: prepared.method == Method::HEAD,
        is_safe: prepared.method.is_safe() && prepared.exchange.kind != Kind::Upgrade,
        is_idempotent: prepared.method.is_idempotent() && prepared.exchange.kind != Kind::Upgrade,
        must_close: head.closes || head.is_http10,
        closes: false,
        is_http10: head.is_http10,
        takes_chunks: version == Version::HTTP_11,
        ended_at: None,
        has_heard: false,
        end: Ok(()),
        shares_connections: false,
        alarms: Alarms::default(),
        sent: 0,
        received: 0,
        upload,
    };
    let result = match arrived {
        Ok(()) => lane.serve_received(bytes, head, origin, &mut prepared).await,
        Err(broken) => Err(broken),
    };
    recycle(std::mem::take(&mut prepared.head));
    let exchange = &mut prepared.exchange;
    let (ending, next) = lane.end(exchange, result).await;
    let path = path_of(&prepared.target);
    record::exchange(state, exchange, &ending, &prepared.method, path);
    next
}

/// Serves one request on a client's connection.
struct Lane<'a> {
    state: &'a Arc<State>,
    stream: ClientSide<'a>,
    timer: &'a mut Timer,
    is_head: bool,
    /// The request's method is idempotent (RFC 9110 section 9.2.2), and it does not ask to switch protocols.
    is_idempotent: bool,
    /// Its method is even safe (RFC 9110 section 9.2.1).
    is_safe: bool,
    /// The client's connection must close after this response.
    must_close: bool,
    /// The client's connection closes after this response, which says so.
    closes: bool,
    /// The client speaks HTTP/1.0: it gets no interim responses.
    is_http10: bool,
    /// The client takes a body in chunks; HTTP/1.0 and HTTP/2 have none.
    takes_chunks: bool,
    /// When the client was found to have closed its side of the connection.
    ended_at: Option<Instant>,
    /// The app has sent bytes of a response in this attempt.
    has_heard: bool,
    /// The result of the last read from the app, if the connection broke off: its end, or an error.
    end: Result<(), io::ErrorKind>,
    /// The request may use kept connections, and leaves its connection behind.
    shares_connections: bool,
    /// The alarms of the current attempt.
    alarms: Alarms,
    /// Bytes of the response body sent.
    sent: u64,
    /// Bytes that the client has sent after its head, without those that `upload` counts.
    received: u64,
    /// The request's body, if it has one.
    upload: Option<Upload>,
}

impl Lane<'_> {
    /// Reads what is buffered of the body, then serves the request. `bytes` are its head, where that may be needed again.
    async fn serve_received(
        &mut self,
        bytes: BytesMut,
        head: &Head,
        origin: Origin,
        prepared: &mut Prepared,
    ) -> Result<(), Broken> {
        if self.upload.is_some() && prepared.refused.is_none() {
            self.receive_and_take_turn(prepared).await?;
        }
        let Destination::Peer(peer, hop::Kind::Session) = &prepared.exchange.destination else {
            drop(bytes);
            return self.serve_prepared(prepared).await;
        };
        let peer = Arc::clone(peer);
        if let Some(result) = self.ask_peer(prepared, &peer, hop::Kind::Session).await {
            return result;
        }
        // The session's home declined it: the stages decide again, as the request is served here now.
        let Exchange { started, request_id, .. } = prepared.exchange;
        let traced = std::mem::take(&mut prepared.exchange.traced);
        let clients_time = self.upload.as_ref().map_or(Duration::ZERO, |upload| upload.clients_time);
        let earlier = Earlier { started, request_id, clients_time, traced };
        let local = self.stream.addresses().map(|(local, _)| local);
        let version = self.stream.version(head);
        let received = Received { head, version, origin, body: self.upload.as_ref(), local };
        let Some(again) = prepare(self.state, &bytes, received, Some(earlier)) else { return Err(Broken::ClientLeft) };
        *prepared = again;
        if self.upload.is_some() && prepared.refused.is_none() {
            self.receive_and_take_turn(prepared).await?;
        }
        self.serve_prepared(prepared).await
    }

    /// Whether the client's connection closes after the response of the app.
    fn must_close(&self) -> bool {
        self.must_close || self.state.drain.phase() != Phase::Serving || !self.stream.is_between_requests()
    }
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
        (self.has_heard, self.end) = (false, Ok(()));
        self.shares_connections = self.may_share(app, head.len());
        app.begin();
        if self.upload.is_some() {
            return self.ask_with_body(app, head, input, exchange).await;
        }
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
            let heard = poll_fn(|cx| {
                let mut read = pin!(app.read_buf(input));
                match read.as_mut().poll(cx) {
                    Poll::Ready(Ok(0)) => Poll::Ready(Heard::End(Ok(()))),
                    Poll::Ready(Err(error)) => Poll::Ready(Heard::End(Err(error))),
                    Poll::Ready(Ok(_)) => Poll::Ready(Heard::Bytes),
                    Poll::Pending if self.poll_gone(cx).is_ready() => Poll::Ready(Heard::Broken(Broken::ClientLeft)),
                    Poll::Pending => self.poll_other(cx, deadline),
                }
            });
            match heard.await {
                Heard::Bytes => self.alarms.clear(),
                Heard::End(end) => return Err(self.broke_off(end)),
                Heard::Broken(broken) => return Err(broken),
                Heard::Alarm => {
                    self.alarm(exchange, head)?;
                    continue;
                }
                Heard::Peer(heard) => match self.hedge_heard(heard, app, input, exchange)? {
                    Some(answer) => {
                        input.advance(answer.len);
                        return Ok(answer);
                    }
                    None => continue,
                },
            }
            self.has_heard = true;
            while let Some(answer) = self.rewrite(input, exchange)? {
                input.advance(answer.len);
                if answer.is_final() {
                    return Ok(answer);
                }
                // An interim response, such as 103, is passed on at once.
                interim += 1;
                if interim > MOST_INTERIM {
                    return Err(Broken::App(Failure::Invalid, "there are too many interim responses".into()));
                }
                self.pass_interim(exchange).await?;
            }
        }
    }

    /// The app closed the connection before the response's head was complete.
    #[cold]
    fn broke_off(&mut self, end: io::Result<()>) -> Broken {
        self.end = end.map_err(|error| error.kind());
        closed("the head is incomplete")
    }

    /// Passes on an interim response, which HTTP/1.0 lacks.
    async fn pass_interim(&mut self, exchange: &mut Exchange) -> Result<(), Broken> {
        if self.is_http10 {
            self.stream.output().clear();
            return Ok(());
        }
        self.send_gathered(exchange).await
    }

    /// Ready when the client has disconnected: it reset the connection, or closed its side [`HALF_CLOSED`] ago. Until then it
    /// may have closed only the direction in which it sends, and still read the response (RFC 9112 section 9.6).
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match ready!(self.stream.poll_gone(cx)) {
            Ok(()) => {
                let since = *self.ended_at.get_or_insert_with(Instant::now);
                self.timer.poll(cx, since + HALF_CLOSED)
            }
            Err(_) => Poll::Ready(()),
        }
    }

    /// Waits for all but the app: the request at a peer, an alarm, the deadline.
    fn poll_other(&mut self, cx: &mut Context<'_>, deadline: tokio::time::Instant) -> Poll<Heard> {
        if let Poll::Ready(heard) = self.poll_hedge(cx) {
            return Poll::Ready(Heard::Peer(heard));
        }
        self.poll_time(cx, deadline)
    }

    /// Waits for an alarm or the deadline.
    fn poll_time(&mut self, cx: &mut Context<'_>, deadline: tokio::time::Instant) -> Poll<Heard> {
        let until = self.alarms.before(deadline);
        ready!(self.timer.poll(cx, until));
        if until < deadline {
            return Poll::Ready(Heard::Alarm);
        }
        Poll::Ready(Heard::Broken(late()))
    }

    fn poll_deadline<T>(&mut self, cx: &mut Context<'_>, deadline: tokio::time::Instant) -> Poll<Result<T, Broken>> {
        self.timer.poll(cx, deadline).map(|()| Err(late()))
    }
}

fn late() -> Broken {
    Broken::App(Failure::Timeout, "the deadline passed".into())
}

fn closed(seen: &'static str) -> Broken {
    Broken::App(Failure::Closed, seen.into())
}

#[cfg(test)]
mod tests;
