//! The fast lane: nearly every request, without a detour.
//!
//! A request that has no body, may be repeated and asks nothing special of the connection ([`outrigger_wire::scan::Head::is_simple`])
//! needs none of what makes a general proxy expensive: no copy of its head in a map, no channels between two tasks, no
//! filters behind pointers. Its head is rewritten from one buffer into another and its answer from the app's socket to the
//! client's. The stages, the table of refusals, and what is counted and logged are the same as in [`crate::general`],
//! where every other request goes.

mod attempts;
mod body;
mod elsewhere;

use std::borrow::Cow;
use std::cell::RefCell;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, BytesMut};
use http::{Method, Version};
use outrigger_wire::date::date;
use outrigger_wire::forwarding::Added;
use outrigger_wire::request::{Fields, Request};
use outrigger_wire::request_id::RequestId;
use outrigger_wire::rewrite::{self, AnswerHead, Frame, Sifting};
use outrigger_wire::scan::MOST_FIELDS;
use tokio::io::{AsyncReadExt, AsyncWrite};

use crate::engine::answer::OwnResponse;
use crate::engine::bounds::{ANSWER_HEAD_BYTES, MOST_INTERIM};
use crate::engine::exchange::{Destination, Exchange, Listener};
use crate::engine::metrics::StreamKind;
use crate::engine::record::{self, Ending};
use crate::engine::rejection::{Failure, Problem, Rejection};
use crate::engine::reply;
use crate::engine::stages;
use crate::engine::stages::admit;
use crate::engine::state::{Phase, State};
use crate::mechanism::peers::hop;
use crate::mechanism::{affinity, audit, claims, limits};
use crate::transport::app_pool::{self, AppStream};
use crate::transport::client_stream::ClientStream;
use crate::transport::timer::Timer;

use crate::http1::body::{BodyEnd, put_chunk};

/// How much of an answer's body is read at once.
const READ_BYTES: usize = 16 << 10;
/// What an answer begins to be read into: the head and body of most.
const FIRST_READ_BYTES: usize = 4 << 10;

/// What becomes of the client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It may bring another request.
    Request,
    /// It ends.
    Close,
}

/// A request, ready to be sent.
struct Prepared {
    exchange: Exchange,
    method: Method,
    target: String,
    host: String,
    /// The head for the app.
    head: BytesMut,
    /// A stage has refused it.
    refused: Option<Problem>,
}

/// Why there is no whole answer from the app.
#[derive(Debug)]
enum Broken {
    /// The app's fault, and what was seen of it.
    App(Failure, Cow<'static, str>),
    /// We refuse it, although it was on its way.
    Refused(Rejection),
    /// A peer takes it: its destination has changed.
    Moved,
    /// The client has gone.
    ClientLeft,
}

/// An attempt that came to an answer: the connection, what was read beyond the head, and the head.
type Answered = (AppStream, AnswerHead);

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The address at the other end of its connection.
    pub client: IpAddr,
    /// The listener that it came by.
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
                // Its home has not taken it: it is looked at again, for it is served here now.
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

/// What stays of a request that its session's home has not taken.
#[derive(Clone, Copy, Debug)]
struct Earlier {
    started: Instant,
    request_id: RequestId,
}

/// Everything that needs no waiting. On the stack of one call, so that a connection at rest carries none of it.
fn prepare(state: &State, head: &[u8], origin: Origin, earlier: Option<Earlier>) -> Option<Prepared> {
    thread_local! {
        static ADDED: RefCell<Added> = RefCell::default();
    }
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut parsed = httparse::Request::new(&mut fields);
    // It was parsed before with the same bound; should that ever not hold, the connection ends.
    parsed.parse(head).ok()?;
    let method = Method::from_bytes(parsed.method?.as_bytes()).ok()?;
    let target = parsed.path?;
    let path = path_of(target);
    let host = parsed.headers.iter().find(|field| field.name.len() == 4 && field.name.eq_ignore_ascii_case("host"));
    let host = host.and_then(|host| std::str::from_utf8(host.value).ok()).unwrap_or_default();
    let request = Request {
        method: &method,
        path,
        host,
        fields: Fields::Wire(parsed.headers),
        is_http10: false,
        target,
        has_endless_body: false,
    };

    let mut exchange = Exchange::new(state.rules.load_full());
    exchange.connected = origin.client;
    exchange.listener = origin.listener;
    if let Some(earlier) = earlier {
        exchange.has_lost_home = true;
        exchange.started = earlier.started;
    }
    exchange.in_flight = Some(state.enter());
    let verdict = stages::decide(state, &request, &mut exchange);
    if let Some(earlier) = earlier {
        exchange.request_id = earlier.request_id;
    }
    let mut out = scratch();
    if verdict.is_ok() && matches!(exchange.destination, Destination::App | Destination::Peer(..)) {
        let removed = ADDED.with_borrow_mut(|added| {
            let now = if earlier.is_some() { exchange.turn_began } else { exchange.started };
            added.fill(&request, &exchange.forwarding(Version::HTTP_11, &state.pseudonym, now));
            let hides_session = exchange.sticky.is_enforced();
            rewrite::write_request(&mut out, &parsed, added, Sifting { sieve: exchange.sieve(), hides_session })
        });
        claims::removed(state, &mut exchange, &removed);
    }
    exchange.rejection = verdict.err();
    let refused = exchange.rejection.map(crate::engine::rejection::Rejection::problem);
    // Only the access log needs the path when the head is gone, and peers, which it is signed for.
    let keeps_target = exchange.rules.config.log.access || state.peers.is_some();
    let target = if keeps_target { target.to_owned() } else { String::new() };
    let host = if state.peers.is_some() { host.to_owned() } else { String::new() };
    Some(Prepared { exchange, method, target, host, head: out, refused })
}

/// The target without the query.
fn path_of(target: &str) -> &str {
    &target[..memchr::memchr2(b'?', b'#', target.as_bytes()).unwrap_or(target.len())]
}

struct Lane<'a> {
    state: &'a Arc<State>,
    stream: &'a mut ClientStream,
    timer: &'a mut Timer,
    is_head: bool,
    /// The client's connection ends with this answer.
    closes: bool,
    /// Bytes of the answer's body.
    sent: u64,
}

impl Lane<'_> {
    /// Sends the request and waits for the head of its answer, which is then in the client's output, rewritten.
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
                    Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(Err(closed("no whole head came"))),
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
                // An interim answer, such as 103: the client gets it now.
                interim += 1;
                if interim > MOST_INTERIM {
                    return Err(Broken::App(Failure::Invalid, "there is no end of interim answers".into()));
                }
                self.send_gathered(exchange).await?;
            }
        }
    }

    fn poll_deadline<T>(&mut self, cx: &mut Context<'_>, deadline: tokio::time::Instant) -> Poll<Result<T, Broken>> {
        self.timer.poll(cx, deadline).map(|()| Err(Broken::App(Failure::Timeout, "the time is over".into())))
    }

    fn rewrite(&mut self, input: &[u8], exchange: &Exchange) -> Result<Option<AnswerHead>, Broken> {
        if input.is_empty() {
            return Ok(None);
        }
        thread_local! {
            static SESSION: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        self.closes = self.state.drain.phase() != Phase::Serving;
        let relayed = SESSION.with_borrow_mut(|session| {
            session.clear();
            affinity::set_cookie(exchange, |name, value| put_line(session, name, value));
            let told = limits::headers::Told::of(exchange);
            let frame = Frame {
                is_head_request: self.is_head,
                request_id: exchange.rules.config.headers.request_id.then(|| exchange.request_id.as_bytes()),
                date: &date(exchange.started),
                limits: told.as_ref().map(limits::headers::Told::own),
                session,
                closes: self.closes,
            };
            rewrite::relay_answer(input, self.stream.output(), frame)
        });
        match relayed {
            Ok(None) if input.len() > ANSWER_HEAD_BYTES => {
                Err(Broken::App(Failure::Invalid, "the head is larger than 64 KiB".into()))
            }
            Ok(answer) => Ok(answer),
            Err(_) => Err(Broken::App(Failure::Invalid, "the head is no HTTP, or contradicts itself".into())),
        }
    }

    /// Sends the head and then the body, as it comes.
    async fn relay(
        &mut self,
        mut app: AppStream,
        mut input: BytesMut,
        answer: AnswerHead,
        exchange: &mut Exchange,
    ) -> Result<(), Broken> {
        let is_stream = answer.is_event_stream;
        let patience = if is_stream { exchange.rules.config.app.stream_timeout } else { exchange.route().timeout };
        let mut body = BodyEnd::new(answer.body);
        let taken = body.take(&input)?;
        // Until here nothing of it was sent, and a failure could still be told.
        exchange.status = answer.status;
        exchange.answered_by_app = true;
        exchange.stream = answer.is_event_stream.then_some(StreamKind::EventStream);
        record::head(self.state, exchange, is_stream);
        admit::let_go_at_head(exchange, body.left());
        audit::before_response(self.state, exchange).await.map_err(Broken::Refused)?;
        if body.ends_with_connection() {
            put_chunk(self.stream.output(), &input[..taken]);
        } else {
            self.stream.output().put_slice(&input[..taken]);
        }
        self.sent += taken as u64;
        input.advance(taken);
        self.send_gathered(exchange).await?;
        while !body.is_done() {
            // From here on the buffer is this body's own: what it held has been sent.
            input.clear();
            input.reserve(READ_BYTES);
            let idle_since = tokio::time::Instant::now();
            admit::let_go_of_long_answer(self.state, exchange, idle_since.into_std());
            let read = poll_fn(|cx| {
                let mut read = pin!(app.read_buf(&mut input));
                match read.as_mut().poll(cx) {
                    Poll::Ready(Ok(read)) => Poll::Ready(Ok(read)),
                    Poll::Ready(Err(_)) => Poll::Ready(Err(closed("the body broke off"))),
                    Poll::Pending if self.stream.poll_gone(cx).is_ready() => Poll::Ready(Err(Broken::ClientLeft)),
                    Poll::Pending => self.poll_deadline(cx, idle_since + patience),
                }
            });
            if read.await? == 0 {
                if body.ends_with_connection() {
                    break;
                }
                return Err(closed("the body broke off"));
            }
            let taken = body.take(&input)?;
            if body.ends_with_connection() {
                put_chunk(self.stream.output(), &input[..taken]);
                self.send_gathered(exchange).await?;
            } else {
                self.send(&input[..taken], exchange).await?;
            }
            self.sent += taken as u64;
            input.advance(taken);
        }
        if body.ends_with_connection() {
            self.stream.output().put_slice(b"0\r\n\r\n");
            self.send_gathered(exchange).await?;
        } else if answer.keeps_connection && input.is_empty() {
            let most = exchange.rules.config.app.max_idle;
            app_pool::keep(app, most, exchange.head_at.unwrap_or_else(Instant::now));
        }
        recycle(input);
        Ok(())
    }

    async fn send_gathered(&mut self, exchange: &mut Exchange) -> Result<(), Broken> {
        let patience = exchange.rules.config.client.write_timeout;
        let mut stalled_since = None;
        poll_fn(|cx| match self.stream.poll_send(cx) {
            Poll::Ready(sent) => Poll::Ready(sent.map_err(|_| Broken::ClientLeft)),
            Poll::Pending => {
                // It is the client who takes its time now, not the app.
                exchange.permit = None;
                self.poll_stalled(cx, &mut stalled_since, patience)
            }
        })
        .await
    }

    async fn send(&mut self, mut bytes: &[u8], exchange: &mut Exchange) -> Result<(), Broken> {
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

    /// The client takes nothing: it may do so for `patience`.
    fn poll_stalled(
        &mut self,
        cx: &mut Context<'_>,
        since: &mut Option<tokio::time::Instant>,
        patience: Duration,
    ) -> Poll<Result<(), Broken>> {
        let since = *since.get_or_insert_with(tokio::time::Instant::now);
        self.timer.poll(cx, since + patience).map(|()| Err(Broken::ClientLeft))
    }

    /// Sends a problem; the connection stays.
    async fn answer(&mut self, exchange: &mut Exchange, problem: &Problem) -> Result<(), Broken> {
        let reply = reply::entered(self.state, exchange, problem).await;
        self.put_own(&OwnResponse::reply(exchange, &reply), exchange.started, reply.body.as_bytes());
        self.send_gathered(exchange).await
    }

    /// Puts a response of our own into the client's output.
    fn put_own(&mut self, response: &OwnResponse<'_>, now: Instant, body: &[u8]) {
        self.closes = self.state.drain.phase() != Phase::Serving;
        let out = self.stream.output();
        out.clear();
        response.write(out, &date(now), self.closes);
        if !self.is_head {
            out.put_slice(body);
            self.sent = body.len() as u64;
        }
    }

    /// Answers what can still be answered, and says how it ended.
    async fn end(mut self, exchange: &mut Exchange, result: Result<(), Broken>) -> (Ending, Next) {
        let mut ending = Ending { failed: result.is_err(), client_left: false, body_bytes: 0 };
        if let Err(Broken::App(failure, detail)) = &result {
            record::failed(self.state, exchange, *failure, detail).await;
        }
        exchange.permit = None;
        let mut next = Next::Close;
        match result {
            Ok(()) => next = if self.closes { Next::Close } else { Next::Request },
            // Whoever says that it has moved has also sent it there.
            Err(Broken::ClientLeft | Broken::Moved) => ending.client_left = true,
            Err(Broken::Refused(rejection)) => {
                exchange.rejection = Some(rejection);
                match self.answer(exchange, &rejection.problem()).await {
                    Ok(()) => next = if self.closes { Next::Close } else { Next::Request },
                    Err(_) => ending.client_left = true,
                }
            }
            Err(Broken::App(failure, _)) => {
                // Once its head is out, all that is left is to end the connection, so that the client sees that the
                // answer is not whole.
                if !exchange.answered_by_app {
                    match self.answer(exchange, &failure.problem()).await {
                        Ok(()) => next = if self.closes { Next::Close } else { Next::Request },
                        Err(_) => ending.client_left = true,
                    }
                }
            }
        }
        ending.body_bytes = self.sent;
        (ending, next)
    }
}

fn put_line(out: &mut impl BufMut, name: &str, value: &[u8]) {
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

fn closed(seen: &'static str) -> Broken {
    Broken::App(Failure::Closed, seen.into())
}

/// Buffers that are used again by the next request of this thread.
const MOST_SCRATCH: usize = 16;

thread_local! {
    static SCRATCH: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

fn scratch() -> BytesMut {
    SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_else(|| BytesMut::with_capacity(FIRST_READ_BYTES))
}

fn recycle(mut buffer: BytesMut) {
    buffer.clear();
    // One that has grown for a large answer is given back to the allocator.
    if (FIRST_READ_BYTES..=READ_BYTES * 2).contains(&buffer.capacity()) {
        SCRATCH.with_borrow_mut(|kept| {
            if kept.len() < MOST_SCRATCH {
                kept.push(buffer);
            }
        });
    }
}
