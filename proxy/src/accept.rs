//! Accepts client connections: limits their number, enforces deadline and size of a request's head, and closes idle ones.
//!
//! This module does everything before a request's head is complete: the connection limit, the
//! deadline and the size limit of a head, the rejection of malformed heads, and idle connections, which cost a task and a
//! socket but no buffer.

pub mod resting;

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Buf;
use outrigger_wire::chunks::Chunks;
use outrigger_wire::client_address::Sender;
use outrigger_wire::http2::PREFACE;
use outrigger_wire::malformed::Malformed;
use outrigger_wire::scan;
use outrigger_wire::scan::{Framing, Head, HeadScanner, Limits, Refused};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::accept::resting::Resting;
use crate::engine::exchange::Listener;
use crate::engine::record;
use crate::engine::rejection::Rejection;
use crate::engine::state::{OpenConnection, Phase, State};
use crate::engine::tally;
use crate::http1;
use crate::http1::{ClientSide, Origin};
use crate::http2;
use crate::mechanism::connections::{FREE_HEAD_BYTES, RESTED};
use crate::transport::client_stream::ClientStream;
use crate::transport::timer::Timer;
use crate::transport::upstream::Resource;

/// How long handshakes that are in progress when the listener stops accepting may take to complete.
const LAST_HANDSHAKES: Duration = Duration::from_millis(50);

/// Extra bytes and headers allowed in a head from a peer, for the headers that the first Machine adds.
const PEER_FIELDS_BYTES: usize = 4096;
const PEER_FIELDS: usize = 16;

/// The parts with which one worker thread serves connections.
#[derive(Clone)]
pub struct Worker {
    /// Shared by all workers.
    pub state: Arc<State>,
    /// The listener that it serves, which decides who may connect.
    pub listener: Listener,
    /// Becomes true when clients should reconnect elsewhere.
    pub leaving: watch::Receiver<bool>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Worker")
    }
}

/// The protocol of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.0 and HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS, with prior knowledge.
    H2c,
}

/// Accepts connections until `closing`, then serves those that have connected already and stops listening.
pub async fn listen(listener: TcpListener, protocol: Protocol, worker: Worker, mut closing: watch::Receiver<bool>) {
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            _ = closing.wait_for(|closing| *closing) => break,
        };
        match accepted {
            Ok((socket, client)) => take(socket, client, protocol, &worker),
            Err(e) => accept_failed(&e, &worker.state).await,
        }
    }
    // From here on the kernel accepts no new connections. Handshakes in progress get a moment to complete, and are served.
    refuse_new(&listener);
    let last = async {
        while let Ok((socket, client)) = listener.accept().await {
            take(socket, client, protocol, &worker);
        }
    };
    let _ = tokio::time::timeout(LAST_HANDSHAKES, last).await;
    // Finally, accept without the runtime, which knows only of the connections that it was notified of so far.
    let Ok(listener) = listener.into_std() else { return };
    loop {
        match listener.accept() {
            Ok((socket, client)) => match socket.set_nonblocking(true).and_then(|()| TcpStream::from_std(socket)) {
                Ok(socket) => take(socket, client, protocol, &worker),
                Err(e) => tracing::error!("a connection cannot be accepted: {e}"),
            },
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(_) => return,
        }
    }
}

/// Drops the first packet (SYN without ACK) of every new connection to the listening socket; handshakes in progress
/// continue. A client that connects now retransmits its SYN, and is refused once the listener has closed. Closing it at once
/// would reset connections whose final ACK is still in flight, which a client notices only after it has sent its request.
fn refuse_new(listener: &TcpListener) {
    use socket2::SockFilter;
    // Classic BPF; the packet begins with the TCP header, whose byte 13 has the flags: SYN is 0x02, ACK 0x10.
    let only_what_has_begun = [
        SockFilter::new(0x30, 0, 0, 13),
        SockFilter::new(0x54, 0, 0, 0x12),
        SockFilter::new(0x15, 0, 1, 0x02),
        SockFilter::new(0x06, 0, 0, 0),
        SockFilter::new(0x06, 0, 0, u32::MAX),
    ];
    if let Err(e) = socket2::SockRef::from(listener).attach_filter(&only_what_has_begun) {
        tracing::debug!("the listener takes no filter: {e}");
    }
}

async fn accept_failed(error: &std::io::Error, state: &State) {
    // The client disconnected before its connection was accepted; not a problem of this process.
    if error.kind() == std::io::ErrorKind::ConnectionAborted {
        return;
    }
    let made_room = match Resource::of_process_by(error) {
        Some(resource) => state.note_exhaustion(resource),
        None => {
            tracing::error!("no connection can be accepted: {error}");
            false
        }
    };
    // Connections that were asked to close do so within a moment. Any other cause lasts: without a pause, this loop would
    // take the CPU time that could resolve it.
    tokio::time::sleep(Duration::from_millis(if made_room { 1 } else { 100 })).await;
}

fn take(socket: TcpStream, client: SocketAddr, protocol: Protocol, worker: &Worker) {
    let state = &worker.state;
    state.metrics.connections.accepted.inc();
    let address = client.ip().to_canonical();
    if worker.listener == Listener::Public && !may_connect(state, address) {
        state.metrics.connections.denied.inc();
        tally::rejected_unparsed(state, state.rules.load().version, address);
        return;
    }
    // The last descriptors are reserved for the requests of these clients: connections to the app, the audit log, the log.
    if state.exhaustion.is_nearly_out_of_files(&socket) && !state.note_exhaustion(Resource::OpenFiles) {
        return reject_connection(&socket, address, worker);
    }
    let Some(open) = state.open_connection(worker.listener, address) else {
        return reject_connection(&socket, address, worker);
    };
    // Responses are written whole, so Nagle's algorithm would only delay them.
    if let Err(e) = socket.set_nodelay(true) {
        tracing::debug!("a new connection was closed already: {e}");
        return;
    }
    let stream = Box::new(ClientStream::new(socket));
    let worker = worker.clone();
    match protocol {
        Protocol::Http1 => {
            let origin = Origin { client: client.ip().to_canonical(), listener: worker.listener };
            tokio::spawn(Connection::new(stream, origin, worker, open).serve());
        }
        Protocol::H2c => {
            tokio::spawn(serve_h2(stream, client.ip().to_canonical(), worker, open));
        }
    }
}

/// Whether `server.allow` and `server.deny` let this address connect. A trusted proxy connects for its clients, whose requests are
/// checked one by one (`stages/addresses.rs`).
fn may_connect(state: &State, address: IpAddr) -> bool {
    let rules = state.rules.load();
    let list = rules.config.server.addresses.as_ref();
    list.is_none_or(|list| list.allows(address) || rules.config.edge.sender(address) != Sender::Stranger)
}

/// Responds with 503 and keeps no state for the connection, as the limit leaves no room for any.
fn reject_connection(socket: &TcpStream, client: IpAddr, worker: &Worker) {
    let mut sink = [0; 4096];
    // Read what has arrived, so that closing does not reset the connection before the client has read the response. Neither
    // call can be retried.
    let unread = socket.try_read(&mut sink).unwrap_or_default();
    let response = rejected(worker, Rejection::TooManyConnections, client, &sink[..unread]);
    let _ = socket.try_write(&response);
}

/// Counts a rejection of what never became a request; returns the response.
fn rejected(worker: &Worker, rejection: Rejection, client: IpAddr, unread: &[u8]) -> Vec<u8> {
    record::rejected_early(&worker.state, rejection, (client, worker.listener), unread)
}

/// A client's connection, which carries one request at a time.
struct Connection {
    stream: Box<ClientStream>,
    worker: Worker,
    rest: Resting,
    timer: Timer,
    origin: Origin,
    requests: u64,
    open: OpenConnection,
}

/// The result of waiting for a head.
enum Arrival {
    Head(Head),
    /// The client closed the connection, or it failed.
    Gone,
    /// The process is shutting down, and this connection is idle.
    Closing,
    /// No byte arrived within the time allowed, or the connection makes room for another one.
    Idle,
    Refused(Rejection),
}

impl Connection {
    fn new(stream: Box<ClientStream>, origin: Origin, worker: Worker, open: OpenConnection) -> Self {
        Self { stream, worker, rest: Resting::register(), timer: Timer::new(), origin, requests: 0, open }
    }

    async fn serve(mut self) {
        loop {
            let head = match self.next_head().await {
                Arrival::Head(head) => head,
                // On the heap: otherwise every idle connection would contain the state that only a rejection needs.
                Arrival::Refused(rejection) => return Box::pin(self.refuse(rejection)).await,
                Arrival::Gone | Arrival::Closing | Arrival::Idle => return,
            };
            if !self.open.entry.begin() {
                return;
            }
            self.requests += 1;
            let head = self.stream.drop_origin(head);
            let client = ClientSide::Http1(&mut self.stream);
            // On the heap: otherwise every idle connection would contain the state of a request.
            let request = http1::serve(&self.worker.state, client, &head, &mut self.timer, self.origin);
            match Box::pin(request).await {
                http1::Next::Request => self.open.entry.end(),
                http1::Next::Close => return,
            }
        }
    }

    async fn next_head(&mut self) -> Arrival {
        let mut limits = self.worker.state.rules.load().config.client;
        if self.origin.listener == Listener::Peers {
            // The head that the first Machine accepted, plus the headers that it added.
            limits.max_head_bytes += PEER_FIELDS_BYTES;
            limits.max_fields += PEER_FIELDS;
        }
        let mut scanner = HeadScanner::default();
        let began = Instant::now();
        // A new connection must send its first byte soon; one that has been served may be idle for longer.
        let first_byte_by = began + if self.requests == 0 { limits.head_timeout } else { limits.idle_timeout };
        let mut head_by = None;
        let mut held = 0;
        loop {
            self.stream.skip_empty_lines();
            let pending = self.stream.pending();
            if !pending.is_empty() {
                let head = complete(&mut scanner, pending, limits.max_head_bytes, limits.max_fields);
                if held > 0 && !matches!(head, Ok(None)) {
                    self.open.release_head();
                }
                match head {
                    Ok(Some(head)) => return Arrival::Head(head),
                    Ok(None) => {}
                    Err(rejection) => return Arrival::Refused(rejection),
                }
                if !self.open.entry.begin_head() {
                    return Arrival::Idle;
                }
                let holds = self.stream.pending_capacity();
                if holds > FREE_HEAD_BYTES && holds != held {
                    held = holds;
                    if !self.open.hold_head(holds) {
                        return Arrival::Refused(Rejection::TooManyHeads);
                    }
                }
                head_by.get_or_insert_with(|| Instant::now() + limits.head_timeout);
            } else {
                self.stream.rest();
            }
            let filled = poll_fn(|cx| self.poll_arrival(cx, began, head_by, first_byte_by)).await;
            match filled {
                Waited::Read(Ok(0) | Err(_)) => return Arrival::Gone,
                Waited::Read(Ok(_)) => {}
                Waited::TooLong if head_by.is_some() => return Arrival::Refused(Rejection::HeadTooSlow),
                Waited::TooLong | Waited::MakesRoom => return Arrival::Idle,
                Waited::Closing => return Arrival::Closing,
            }
        }
    }

    fn poll_arrival(
        &mut self,
        cx: &mut Context<'_>,
        began: Instant,
        head_by: Option<Instant>,
        first_byte_by: Instant,
    ) -> Poll<Waited> {
        if let Poll::Ready(read) = self.stream.poll_fill(cx) {
            return Poll::Ready(Waited::Read(read));
        }
        if self.open.entry.poll_told(cx).is_ready() {
            return Poll::Ready(Waited::MakesRoom);
        }
        let mut deadline = head_by.unwrap_or(first_byte_by);
        if head_by.is_none() {
            self.rest.wake_me(cx.waker());
            if self.worker.state.drain.phase() == Phase::Closing {
                if began.elapsed() >= RESTED {
                    return Poll::Ready(Waited::Closing);
                }
                deadline = deadline.min(began + RESTED);
            }
        }
        ready!(self.timer.poll(cx, deadline));
        if self.worker.state.drain.phase() == Phase::Closing && head_by.is_none() {
            return Poll::Ready(Waited::Closing);
        }
        Poll::Ready(Waited::TooLong)
    }

    async fn refuse(self, rejection: Rejection) {
        let response = rejected(&self.worker, rejection, self.origin.client, self.stream.pending());
        self.stream.answer_and_close(&response).await;
    }
}

enum Waited {
    Read(std::io::Result<usize>),
    TooLong,
    /// For another connection.
    MakesRoom,
    Closing,
}

/// The head at the start of `pending`; `None` if it is incomplete.
fn complete(
    scanner: &mut HeadScanner,
    pending: &[u8],
    max_bytes: usize,
    max_fields: usize,
) -> Result<Option<Head>, Rejection> {
    let len = match scanner.scan(pending).map_err(Rejection::Malformed)? {
        Some(len) if len <= max_bytes => len,
        None if pending.len() < max_bytes => return Ok(None),
        Some(_) | None => return Err(Rejection::HeadTooLarge),
    };
    let head = scan::inspect(&pending[..len], Limits { max_bytes, max_fields }).map_err(|refused| match refused {
        Refused::Malformed(malformed) => Rejection::Malformed(malformed),
        Refused::TooLarge => Rejection::HeadTooLarge,
    })?;
    if head.framing == Framing::Chunked {
        // Check the part of the body that has arrived: the app should not see a request that is already broken.
        Chunks::default().feed(&pending[len..]).map_err(Rejection::Malformed)?;
    }
    Ok(Some(head))
}

async fn serve_h2(mut stream: Box<ClientStream>, client: IpAddr, worker: Worker, open: OpenConnection) {
    let patience = worker.state.rules.load().config.client.head_timeout;
    let preface = tokio::time::timeout(patience, async {
        while stream.pending().len() < PREFACE.len() && PREFACE.starts_with(stream.pending()) {
            let filled = poll_fn(|cx| match open.entry.poll_told(cx) {
                Poll::Ready(_) => Poll::Ready(Ok(0)),
                Poll::Pending => stream.poll_fill(cx),
            });
            match filled.await {
                Ok(0) | Err(_) => return false,
                Ok(_) => {}
            }
        }
        true
    });
    match preface.await {
        Ok(true) if stream.pending().starts_with(PREFACE) => {
            stream.input().advance(PREFACE.len());
            let origin = Origin { client, listener: worker.listener };
            let Worker { state, leaving, .. } = worker;
            http2::serve(http2::Connection { stream, state, origin, open: Arc::new(open), leaving }).await;
            return;
        }
        Ok(true) => {
            let rejection = Rejection::Malformed(Malformed::Version);
            let response = rejected(&worker, rejection, client, stream.pending());
            stream.answer_and_close(&response).await;
        }
        Ok(false) | Err(_) => {}
    }
    drop(open);
}
