//! HTTP/2 connections: moves bytes between the socket and the [`Session`], and serves each request in a task of its own by
//! [`crate::http1`].

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use outrigger_wire::malformed::Malformed;
use outrigger_wire::request_id::RequestId;
use outrigger_wire::scan::{self, Limits, Refused};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::engine::record;
use crate::engine::rejection::Rejection;
use crate::engine::state::{OpenConnection, State};
use crate::http1::{self, ClientSide, Origin};
use crate::mechanism::connections::{FREE_HEAD_BYTES, NoStream, Told};
use crate::transport::client_stream::ClientStream;
use crate::transport::http2::{self, Fault, Http2Stream, New, Received, Session};
use crate::transport::timer::Timer;

/// After the first `GOAWAY`, how long the client may take to notice it.
const NOTICE: Duration = Duration::from_secs(1);
/// How much is read at once.
const READ_BYTES: usize = 16 << 10;

/// A connection that has sent the preface.
#[expect(missing_debug_implementations, reason = "it holds a watch and a socket")]
pub struct Connection {
    /// Its socket. Nothing but frames follows in it.
    pub stream: Box<ClientStream>,
    /// Shared by all workers.
    pub state: Arc<State>,
    /// The origin of its requests.
    pub origin: Origin,
    /// Its entry among the connections, which stays until its last request has ended, too.
    pub open: Arc<OpenConnection>,
    /// Becomes true when clients should reconnect elsewhere.
    pub leaving: watch::Receiver<bool>,
}

/// Why a connection closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The client has closed it.
    Gone,
    /// A `GOAWAY` is in the output.
    Told,
}

/// How far the end of a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    No,
    /// The client was asked to open no more streams, and may take until then to notice.
    Announced(Instant),
    /// Streams that the client opens now are not served.
    Closed,
}

struct Driver {
    connection: Connection,
    session: Session,
    timer: Timer,
    leaving: Leaving,
    /// Since when it has no request.
    idle_since: Option<Instant>,
    /// The number of bytes that the client does not take, and since when.
    blocked: Option<(usize, Instant)>,
    /// Since when a header block is incomplete.
    block_since: Option<Instant>,
    held: usize,
    has_served: bool,
    /// It accepts no header blocks any more, so that others have memory for theirs.
    has_ended_blocks: bool,
    /// There may be frames in the input that were not handled, because the client does not read.
    is_stalled: bool,
    new: Vec<New>,
}

/// Serves a connection until it closes.
pub async fn serve(connection: Connection) {
    let session = Session::new(limits(&connection));
    let mut driver = Driver {
        connection,
        session,
        timer: Timer::new(),
        leaving: Leaving::No,
        idle_since: Some(Instant::now()),
        blocked: None,
        block_since: None,
        held: 0,
        has_served: false,
        has_ended_blocks: false,
        // Frames may have come with the preface.
        is_stalled: true,
        new: Vec::new(),
    };
    let end = {
        let mut announced = driver.connection.leaving.clone();
        let mut leaves = std::pin::pin!(async move { announced.wait_for(|leaving| *leaving).await.is_ok() });
        let mut is_told = false;
        poll_fn(|cx| {
            if !is_told && leaves.as_mut().poll(cx).is_ready() {
                is_told = true;
                driver.announce_leaving();
            }
            driver.poll(cx)
        })
        .await
    };
    let Driver { connection, session, held, .. } = driver;
    session.end();
    if held > 0 {
        connection.open.release_head();
    }
    if end == End::Told {
        let Connection { mut stream, open, .. } = connection;
        let mut last = BytesMut::new();
        session.take_output(&mut last);
        let mut rest = std::mem::take(stream.output());
        rest.unsplit(last);
        stream.answer_and_close(&rest).await;
        drop(open);
    }
}

fn limits(connection: &Connection) -> http2::Limits {
    let rules = connection.state.rules.load();
    let (client, server) = (rules.config.client, &rules.config.server);
    let has_bound = connection.open.entry.has_address();
    let max_streams = if has_bound { server.max_address_connections } else { http2::MOST_STREAMS };
    http2::Limits { max_head_bytes: client.max_head_bytes, max_fields: client.max_fields, max_streams }
}

impl Driver {
    fn announce_leaving(&mut self) {
        if self.leaving == Leaving::Closed {
            return;
        }
        self.session.announce_leaving();
        self.leaving = Leaving::Announced(Instant::now() + NOTICE);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.session.listen(cx.waker());
        loop {
            let is_blocked = match self.poll_flush(cx) {
                Ok(is_blocked) => is_blocked,
                Err(_) => return Poll::Ready(End::Gone),
            };
            if self.is_stalled && !is_blocked {
                if self.receive().is_none() {
                    return Poll::Ready(End::Told);
                }
                continue;
            }
            if !self.is_stalled {
                match self.connection.stream.poll_fill_by(cx, READ_BYTES) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(End::Gone),
                    Poll::Ready(Ok(_)) => {
                        if self.receive().is_none() {
                            return Poll::Ready(End::Told);
                        }
                        continue;
                    }
                    Poll::Pending => {}
                }
            }
            return match self.poll_end(cx) {
                Poll::Ready(None) => continue,
                Poll::Ready(Some(end)) => Poll::Ready(end),
                Poll::Pending => Poll::Pending,
            };
        }
    }

    /// Sends what there is to send; returns whether the client does not take it.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> std::io::Result<bool> {
        loop {
            let output = self.connection.stream.output();
            if output.is_empty() {
                self.session.take_output(output);
                if output.is_empty() {
                    self.blocked = None;
                    return Ok(false);
                }
            }
            match self.connection.stream.poll_send(cx) {
                Poll::Ready(sent) => sent?,
                Poll::Pending => {
                    let left = self.connection.stream.output().len();
                    if self.blocked.is_none_or(|(before, _)| before != left) {
                        self.blocked = Some((left, Instant::now()));
                    }
                    return Ok(true);
                }
            }
        }
    }

    fn receive(&mut self) -> Option<()> {
        let mut new = std::mem::take(&mut self.new);
        let received = self.session.receive(self.connection.stream.input(), &mut new);
        for new in new.drain(..) {
            self.begin(new);
        }
        self.new = new;
        self.is_stalled = received == Received::Part;
        if received == Received::Error { None } else { self.account() }
    }

    /// An unfinished header block counts as an unfinished head.
    fn account(&mut self) -> Option<()> {
        if self.has_ended_blocks {
            return Some(());
        }
        let holds = self.session.unfinished();
        match holds {
            Some(_) => {
                self.block_since.get_or_insert_with(Instant::now);
                if !self.connection.open.entry.begin_block() {
                    self.session.leave();
                    return None;
                }
            }
            None if self.block_since.take().is_some() => self.connection.open.entry.end_block(),
            None => {}
        }
        let holds = holds.filter(|bytes| *bytes > FREE_HEAD_BYTES).unwrap_or(0);
        if holds != self.held {
            let had = std::mem::replace(&mut self.held, holds);
            if had > 0 {
                self.connection.open.release_head();
            }
            if holds > 0 && !self.connection.open.hold_head(holds) {
                self.record(Rejection::TooManyHeads);
                self.end_blocks();
            }
        }
        Some(())
    }

    /// Others need the memory of the unfinished header block. Requests in flight are served to their end.
    fn end_blocks(&mut self) {
        self.session.end_blocks();
        (self.has_ended_blocks, self.leaving) = (true, Leaving::Closed);
        (self.held, self.block_since) = (0, None);
        self.connection.open.release_head();
    }

    fn begin(&mut self, new: New) {
        let metrics = &self.connection.state.metrics.connections;
        let (stream, is_too_large) = match new {
            New::Request(stream) => (stream, false),
            New::TooLarge(stream) => (stream, true),
            New::Refused => return metrics.refused_stream(false),
            New::Fault(fault) => return self.count(fault),
        };
        let open = Arc::clone(&self.connection.open);
        let most = self.connection.state.rules.load().config.server.max_address_connections;
        if let Err(reason) = open.entry.begin_stream(most) {
            if reason == NoStream::TooMany {
                metrics.refused_stream(true);
            }
            return stream.refuse();
        }
        self.has_served = true;
        self.idle_since = None;
        let Connection { state, origin, stream: socket, .. } = &self.connection;
        let (state, origin, addresses) = (Arc::clone(state), *origin, socket.addresses());
        let busy = Busy(open);
        tokio::spawn(async move {
            // The client may have cancelled it already.
            if !stream.is_gone() {
                serve_stream(&state, stream, is_too_large, origin, addresses).await;
            }
            drop(busy);
        });
    }

    /// Counts what the client did wrong like a malformed request of HTTP/1. One that is served is recorded when it ends.
    fn count(&self, fault: Fault) {
        match fault {
            Fault::Request => self.record(Rejection::Malformed(Malformed::Stream)),
            Fault::Connection => self.record(Rejection::Malformed(Malformed::Frame)),
            Fault::Stream => {
                self.connection.state.metrics.rejections.rejected(Rejection::Malformed(Malformed::Stream));
            }
        }
    }

    /// Counts and logs a rejection of what never became a request, and gets no response.
    fn record(&self, rejection: Rejection) {
        let Connection { state, origin, .. } = &self.connection;
        record::rejected_unparsed(state, rejection, RequestId::generate(), origin.client, b"");
    }

    /// Ready when the connection closes, or with `None` when there is something to send.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Option<End>> {
        let client = self.connection.state.rules.load().config.client;
        let has_requests = self.session.active() > 0;
        let is_idle = !has_requests && self.blocked.is_none();
        let told = self.connection.open.entry.poll_told(cx);
        if told == Poll::Ready(Told::Close) || (is_idle && self.session.is_left()) {
            self.session.leave();
            return Poll::Ready(Some(End::Told));
        }
        if told == Poll::Ready(Told::EndBlocks) && !self.has_ended_blocks {
            self.end_blocks();
            return Poll::Ready(None);
        }
        if let Leaving::Announced(by) = self.leaving
            && (self.session.has_acknowledged() || self.timer.poll(cx, by).is_ready())
        {
            self.session.leave();
            self.leaving = Leaving::Closed;
            return Poll::Ready(None);
        }
        if is_idle && self.leaving == Leaving::Closed {
            return Poll::Ready(Some(End::Told));
        }
        if !is_idle {
            self.idle_since = None;
        }
        let block_by = self.block_since.map(|since| since + client.head_timeout);
        let idle_by = is_idle.then(|| {
            let patience = if self.has_served { client.idle_timeout } else { client.head_timeout };
            *self.idle_since.get_or_insert_with(Instant::now) + patience
        });
        if is_idle {
            self.session.rest();
            self.connection.stream.rest();
        }
        if let Some((_, since)) = self.blocked.filter(|_| !has_requests)
            && self.timer.poll(cx, since + client.write_timeout).is_ready()
        {
            return Poll::Ready(Some(End::Gone));
        }
        match block_by.into_iter().chain(idle_by).min() {
            Some(by) if self.timer.poll(cx, by).is_ready() => {
                self.session.leave();
                Poll::Ready(Some(End::Told))
            }
            _ => Poll::Pending,
        }
    }
}

/// A request of the connection. Dropping this ends it.
struct Busy(Arc<OpenConnection>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.entry.end_stream();
    }
}

/// Serves one request.
async fn serve_stream(
    state: &Arc<State>,
    mut stream: Http2Stream,
    is_too_large: bool,
    origin: Origin,
    addresses: Option<(SocketAddr, SocketAddr)>,
) {
    let head = if is_too_large {
        Err(Rejection::HeadTooLarge)
    } else {
        let client = state.rules.load().config.client;
        let limits = Limits { max_bytes: client.max_head_bytes, max_fields: client.max_fields };
        scan::inspect(stream.head(), limits).map_err(|refused| match refused {
            Refused::Malformed(malformed) => Rejection::Malformed(malformed),
            Refused::TooLarge => Rejection::HeadTooLarge,
        })
    };
    match head {
        Ok(head) => {
            let side = ClientSide::Http2 { stream: &mut stream, addresses };
            http1::serve(state, side, &head, &mut Timer::new(), origin).await;
        }
        Err(rejection) => {
            let response = record::rejected_early(state, rejection, (origin.client, origin.listener), stream.head());
            reject(&mut stream, &response).await;
        }
    }
}

/// Sends a whole response of Outrigger's own.
async fn reject(stream: &mut Http2Stream, response: &[u8]) {
    stream.stop_reading();
    stream.output().extend_from_slice(response);
    if poll_fn(|cx| stream.poll_send(cx)).await.is_ok() {
        stream.complete();
    }
}
