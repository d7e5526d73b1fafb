//! The server's side of an HTTP/2 connection (RFC 9113): a [`Session`] that takes bytes and gives bytes, and the
//! [`Http2Stream`]s on which requests arrive. The connection's task moves the bytes; see [`Session::receive`].
//!
//! ```text
//! socket --> receive --> New::Request --> a task with an Http2Stream, which reads the body and writes the response
//!    ^                                                            |
//!    +------------------------ output <---------------------------+
//! ```
//!
//! # Bounds per connection
//! [`MOST_STREAMS`] requests at a time, and twice as many tasks: that of a reset stream ends a little later.
//! 64 KiB of the body of each that no task has read, and never so much of all that a stream waits for others; they are accounted
//! for in `crate::body_memory` ([`Http2Stream::account`]). About
//! [`OUTPUT_HIGH`] bytes that the client has not read; beyond it, streams wait and nothing is read from the client. One
//! unfinished header block of at most [`Limits::max_block_bytes`]. A client that resets streams, sends malformed requests or
//! empty frames over and over is disconnected with `ENHANCE_YOUR_CALM`: see [`calm`].

mod calm;
mod receive;
mod stream;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::{BufMut, BytesMut};
use outrigger_wire::http2::hpack::Decoder;
use outrigger_wire::http2::request::RequestHead;
use outrigger_wire::http2::{FrameHead, INITIAL_WINDOW, Reason, kind};

use self::calm::Calm;
pub use self::stream::Http2Stream;
use crate::body_memory::BodyShare;

/// The most requests of a connection at a time.
pub const MOST_STREAMS: usize = 100;
/// The most tasks of a connection: those of streams that were reset end a little later.
const MOST_TASKS: usize = 2 * MOST_STREAMS;
/// How many bytes of bodies a connection may send before they are read: as many as all streams together, so that the uploads of
/// one client, which nobody reads, do not keep the others of a connection waiting.
pub const CONNECTION_WINDOW: i64 = MOST_STREAMS as i64 * INITIAL_WINDOW + UNREPORTED;
/// Bytes that were read and may stay out of a `WINDOW_UPDATE` of the connection, until there are more.
const UNREPORTED: i64 = 512 << 10;
/// Beyond so many bytes to send, streams wait.
pub const OUTPUT_HIGH: usize = 64 << 10;
/// Streams that were reset here: frames that were on their way are ignored for so many of them. All may be at about the same
/// time, when their bodies are rejected.
const RESETS_KEPT: usize = MOST_TASKS;

/// Limits on header sections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of a request's HTTP/1.1 head.
    pub max_head_bytes: usize,
    /// Of its headers.
    pub max_fields: usize,
    /// Of the requests at a time that the client is told. More are accepted up to [`MOST_STREAMS`].
    pub max_streams: usize,
}

impl Limits {
    /// The most bytes of a compressed header block. A larger one than the head may be gets a response.
    pub fn max_block_bytes(&self) -> usize {
        self.max_head_bytes + (64 << 10)
    }
}

/// Work for a connection's task.
#[derive(Debug)]
pub enum New {
    /// Serve a request: its HTTP/1.1 head is at the start of the stream.
    Request(Http2Stream),
    /// The header section is larger than allowed.
    TooLarge(Http2Stream),
    /// A request was refused: the connection has as many as it may.
    Refused,
    /// The client has violated RFC 9113.
    Fault(Fault),
}

/// A violation of RFC 9113 by the client, in order to count it. The session has responded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A request, which nobody has served.
    Request,
    /// The rest of a request that is served, or another frame of a stream.
    Stream,
    /// Frames or header compression, or it was a flood: the connection ends.
    Connection,
}

/// How far [`Session::receive`] has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// All complete frames.
    All,
    /// There may be more, once the output is sent.
    Part,
    /// The connection is to close once the output is sent.
    Error,
}

/// A connection, shared by its task and those of its requests.
#[derive(Clone, Debug)]
pub struct Session(Arc<Mutex<Core>>);

/// The state of a connection.
#[derive(Debug)]
struct Core {
    limits: Limits,
    decoder: Decoder,
    head: RequestHead,
    block: Option<Block>,
    /// No header blocks are accepted any more, or decoded.
    has_ended_blocks: bool,
    streams: Vec<Stream>,
    /// The largest stream that the client has opened.
    last: u32,
    /// The largest stream that is served once the connection is leaving.
    last_served: u32,
    /// Streams that were reset here, the oldest first.
    resets: VecDeque<u32>,
    output: BytesMut,
    send_window: i64,
    initial_send_window: i64,
    recv_window: i64,
    /// Bytes that were read or discarded since the last `WINDOW_UPDATE` of the connection.
    recv_unreported: u32,
    calm: Calm,
    /// Streams that were reset because of what the client sent, and have not been reported.
    faults: usize,
    has_settings: bool,
    client_leaves: bool,
    /// The connection has ended: all streams are gone.
    has_ended: bool,
    has_acknowledged: bool,
    waker: Option<Waker>,
    /// The connection's task was woken since it last began to listen.
    is_woken: bool,
}

/// A header block that is not complete.
#[derive(Debug)]
struct Block {
    stream: u32,
    is_last: bool,
    bytes: BytesMut,
    frames: usize,
}

/// A stream whose task has not ended.
#[derive(Debug)]
struct Stream {
    id: u32,
    /// Received, but not read.
    input: BytesMut,
    /// Accounts for `input`, with the memory that all bodies may take; `None` until the client is known.
    memory: Option<(BodyShare, usize)>,
    reading: Reading,
    recv_window: i64,
    recv_unreported: u32,
    /// The rest of the body's declared length.
    left: Option<u64>,
    has_received_all: bool,
    has_sent_all: bool,
    /// It has sent a part of its body since all streams were woken.
    has_had_turn: bool,
    is_reset: bool,
    send_window: i64,
    /// Its task, while it waits.
    waker: Option<Waker>,
}

/// The use of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// Its task reads it.
    On,
    /// Its task does not read the rest, which is dropped.
    Off,
    /// There was no memory for it. The rest is dropped.
    Refused,
}

impl Stream {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Session {
    /// A connection that has sent the preface. Its own `SETTINGS` are in the output.
    pub fn new(limits: Limits) -> Self {
        let mut output = BytesMut::with_capacity(256);
        let list = limits.max_head_bytes + 32 * limits.max_fields;
        FrameHead { len: 12, kind: kind::SETTINGS, flags: 0, stream: 0 }.write(&mut output);
        output.put_u16(3);
        let streams = limits.max_streams.min(MOST_STREAMS);
        output.put_u32(u32::try_from(streams).unwrap_or(u32::MAX));
        output.put_u16(6);
        output.put_u32(u32::try_from(list).unwrap_or(u32::MAX));
        let mut core = Core {
            limits,
            decoder: Decoder::default(),
            head: RequestHead::default(),
            block: None,
            has_ended_blocks: false,
            streams: Vec::new(),
            last: 0,
            last_served: u32::MAX,
            resets: VecDeque::new(),
            output,
            send_window: INITIAL_WINDOW,
            initial_send_window: INITIAL_WINDOW,
            recv_window: CONNECTION_WINDOW,
            recv_unreported: 0,
            calm: Calm::default(),
            faults: 0,
            has_settings: false,
            client_leaves: false,
            has_ended: false,
            has_acknowledged: false,
            waker: None,
            is_woken: false,
        };
        core.put_number(kind::WINDOW_UPDATE, 0, (CONNECTION_WINDOW - INITIAL_WINDOW) as u32);
        Self(Arc::new(Mutex::new(core)))
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        // If a task panicked while it held the lock, its stream ends with it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Handles the frames at the start of `input`, and removes them; puts the requests among them into `new`.
    pub fn receive(&self, input: &mut BytesMut, new: &mut Vec<New>) -> Received {
        let mut core = self.core();
        let received = core.receive(self, input, new);
        new.extend((0..std::mem::take(&mut core.faults)).map(|_| New::Fault(Fault::Stream)));
        match received {
            Ok(()) if core.output.len() >= OUTPUT_HIGH => Received::Part,
            Ok(()) => Received::All,
            Err(reason) => {
                new.push(New::Fault(Fault::Connection));
                core.go_away(reason);
                core.end();
                Received::Error
            }
        }
    }

    /// Wakes the connection's task once, as soon as there is something to send or a request has ended.
    pub fn listen(&self, waker: &Waker) {
        let mut core = self.core();
        if !core.waker.as_ref().is_some_and(|kept| kept.will_wake(waker)) {
            core.waker = Some(waker.clone());
        }
        core.is_woken = false;
    }

    /// Moves what is to be sent into `out`, which is empty.
    pub fn take_output(&self, out: &mut BytesMut) {
        let mut core = self.core();
        if core.output.is_empty() {
            return;
        }
        let was_full = core.output.len() >= OUTPUT_HIGH;
        std::mem::swap(&mut core.output, out);
        core.output.clear();
        if was_full {
            core.wake_in_turn();
        }
    }

    /// The number of requests whose tasks have not ended.
    pub fn active(&self) -> usize {
        self.core().streams.len()
    }

    /// The number of bytes of a header block that is not complete.
    pub fn unfinished(&self) -> Option<usize> {
        self.core().block.as_ref().map(|block| block.bytes.capacity())
    }

    /// Whether the client opens no more streams.
    pub fn is_left(&self) -> bool {
        self.core().client_leaves
    }

    /// Whether the client has acknowledged the `PING` of [`Self::announce_leaving`].
    pub fn has_acknowledged(&self) -> bool {
        self.core().has_acknowledged
    }

    /// Asks the client to open no more streams, and to acknowledge that.
    pub fn announce_leaving(&self) {
        let mut core = self.core();
        let last = (u32::MAX >> 1).min(core.last_served);
        core.put_go_away(last, Reason::None);
        FrameHead { len: 8, kind: kind::PING, flags: 0, stream: 0 }.write(&mut core.output);
        core.output.put_slice(&LEAVING);
    }

    /// Serves no stream that the client opens from here on.
    pub fn leave(&self) {
        self.core().go_away(Reason::None);
    }

    /// Ends the unfinished header block, and accepts no other: the connection closes after its requests in flight.
    pub fn end_blocks(&self) {
        let mut core = self.core();
        core.has_ended_blocks = true;
        if let Some(block) = &mut core.block {
            block.bytes = BytesMut::new();
        }
        core.go_away(Reason::Calm);
    }

    /// Frees the buffers of an idle connection.
    pub fn rest(&self) {
        let mut core = self.core();
        core.decoder.rest();
        if core.block.is_none() {
            core.head = RequestHead::default();
        }
        if core.output.is_empty() {
            core.output = BytesMut::new();
        }
    }

    /// The connection is gone.
    pub fn end(&self) {
        self.core().end();
    }
}

/// The payload of the `PING` that follows the first `GOAWAY`.
const LEAVING: [u8; 8] = *b"leaving.";

impl Core {
    fn find(&mut self, id: u32) -> Option<&mut Stream> {
        self.streams.iter_mut().find(|stream| stream.id == id)
    }

    /// Writes a frame whose payload is one number.
    fn put_number(&mut self, kind: u8, stream: u32, number: u32) {
        FrameHead { len: 4, kind, flags: 0, stream }.write(&mut self.output);
        self.output.put_u32(number);
    }

    fn go_away(&mut self, reason: Reason) {
        // It may not grow (RFC 9113 section 6.8).
        self.last_served = self.last_served.min(self.last);
        self.put_go_away(self.last_served, reason);
    }

    /// Wakes all streams that wait for room, those first that have sent nothing since the last time: they run in this order.
    fn wake_in_turn(&mut self) {
        self.streams.sort_by_key(|stream| stream.has_had_turn);
        for stream in &mut self.streams {
            stream.has_had_turn = false;
            stream.wake();
        }
    }

    fn put_go_away(&mut self, last: u32, reason: Reason) {
        FrameHead { len: 8, kind: kind::GOAWAY, flags: 0, stream: 0 }.write(&mut self.output);
        self.output.put_u32(last);
        self.output.put_u32(reason as u32);
    }

    /// Resets a stream from here.
    fn reset(&mut self, id: u32, reason: Reason) {
        self.put_number(kind::RST_STREAM, id, reason as u32);
        if self.resets.len() == RESETS_KEPT {
            self.resets.pop_front();
        }
        self.resets.push_back(id);
        let Some(stream) = self.find(id) else { return };
        stream.is_reset = true;
        stream.wake();
        let unread = stream.drop_input();
        self.report_read(unread);
    }

    /// Resets a stream because of what the client sent.
    fn stream_error(&mut self, id: u32, reason: Reason) -> Result<(), Reason> {
        self.faults += 1;
        self.reset(id, reason);
        self.calm.take()
    }

    /// The connection's share of the window is free again.
    fn report_read(&mut self, bytes: usize) {
        self.recv_unreported += u32::try_from(bytes).unwrap_or(u32::MAX);
        if i64::from(self.recv_unreported) >= UNREPORTED {
            self.recv_window += i64::from(self.recv_unreported);
            let unreported = std::mem::take(&mut self.recv_unreported);
            self.put_number(kind::WINDOW_UPDATE, 0, unreported);
            self.wake();
        }
    }

    fn end(&mut self) {
        self.has_ended = true;
        for stream in &mut self.streams {
            stream.is_reset = true;
            stream.drop_input();
            stream.wake();
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.as_ref().filter(|_| !self.is_woken) {
            self.is_woken = true;
            waker.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests;
