//! The body of a request: what has arrived of it, what is kept for another attempt, and what the app has got.
//!
//! ```text
//!            head                    permit          last byte               response head
//!  receives   |  reads up to 64 KiB   |  streams, if   |  the app's time       |
//!             |  client.body_timeout  |  there is more |  the route's timeout  |
//! ```
//!
//! A body whose announced length fits into the buffer is read before Outrigger asks for a permit, and so is the beginning of any
//! other body, until it pauses. The rest is streamed, see [`super::pump`].

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use outrigger_identity::client::Client;
use outrigger_wire::malformed::Malformed;
use outrigger_wire::scan::{Framing, Head};
use tokio::time::Instant;

use crate::engine::exchange::Exchange;
use crate::engine::rejection::Rejection;
use crate::engine::stages::admit;
use crate::engine::state::State;
use crate::http1::streaming::Streaming;
use crate::http1::{Broken, ClientSide, Lane};
use crate::transport::body_memory::{self, BodyShare};

/// The most of a body that is kept, for another attempt.
pub(super) const KEPT_BYTES: u64 = 64 << 10;
/// The most that one read returns.
const PIECE_BYTES: usize = 64 << 10;
/// The same when there is no memory left for bodies.
const SMALL_PIECE_BYTES: usize = 3 << 10;
/// Ends a body in chunks.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// The client of a streamed body may wait for a response to the first part. After such a pause, or such a time in total, the app
/// gets the part that has arrived.
const DIALOGUE_PAUSE: Duration = Duration::from_millis(200);
const DIALOGUE_TIME: Duration = Duration::from_secs(1);

/// A body that fits may take `client.body_timeout` in total, and a second more for each of so many bytes, so that slow clients
/// cannot occupy memory. (Apache's `RequestReadTimeout` has the same rule and rate.)
const MIN_BYTES_PER_SECOND: u64 = 500;

/// How often a stalled upload checks whether others need its memory.
const LOOK: Duration = Duration::from_millis(250);

/// How much of a rejected request's body is read at most, and for how long, to keep the connection.
const DRAIN_BYTES: u64 = 1 << 20;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

thread_local! {
    /// Read into before the bytes are copied, so that an upload that waits for its client holds no memory.
    pub(super) static PIECE: RefCell<Box<[u8]>> = RefCell::new(vec![0; PIECE_BYTES].into());
}

/// The body of a request; see the module.
#[derive(Debug)]
pub(super) struct Upload {
    /// The body as the app gets it, in its framing: all of it so far if it is kept, else the part that has not been sent.
    pub(super) buffer: BytesMut,
    /// Bytes of `buffer` that this attempt has sent.
    pub(super) sent: usize,
    /// Bytes of the request's head that this attempt has sent.
    pub(super) head_sent: usize,
    /// The app gets it in chunks.
    is_chunked: bool,
    /// All of it so far is in `buffer`, so the request can be sent again.
    pub(super) is_kept: bool,
    /// The client has sent all of it.
    pub(super) is_whole: bool,
    /// The app takes no more of it in this attempt.
    pub(super) is_cut: bool,
    /// The client may wait for an interim response before it sends the body.
    waits_for_app: bool,
    /// The most that is read at once of a part that is not kept.
    most_at_once: usize,
    /// Bytes of it that the client has sent.
    pub(super) received: u64,
    /// The time in which they were read before the request had a permit.
    pub(super) clients_time: Duration,
    memory: Option<BodyShare>,
    /// The client still sends it while the app gets it, or did when this attempt began.
    pub(super) streaming: Option<Streaming>,
}

impl Upload {
    /// The body of the request at the start of what `stream` has read. Its buffer begins with the head, until
    /// [`Self::drop_head`].
    pub(super) fn new(head: &Head, stream: &mut ClientSide<'_>) -> Self {
        let mut buffer = stream.take_request(head);
        let received = (buffer.len() - head.len) as u64;
        let (is_chunked, is_whole) = (head.framing == Framing::Chunked, stream.is_between_requests());
        if is_chunked && is_whole {
            buffer.put_slice(LAST_CHUNK);
        }
        Self {
            buffer,
            sent: 0,
            head_sent: 0,
            is_chunked,
            is_kept: true,
            is_whole,
            is_cut: false,
            waits_for_app: head.expects,
            most_at_once: PIECE_BYTES,
            received,
            clients_time: Duration::ZERO,
            memory: None,
            streaming: None,
        }
    }

    /// Takes the head of `len` bytes off.
    pub(super) fn drop_head(&mut self, len: usize) {
        bytes::Buf::advance(&mut self.buffer, len);
    }

    /// Reads what has arrived, without waiting, as far as it is kept.
    ///
    /// # Errors
    /// The client has disconnected, or the chunks are malformed.
    pub(super) fn read_arrived(&mut self, cx: &mut Context<'_>, stream: &mut ClientSide<'_>) -> Result<(), Broken> {
        while !self.is_whole && self.received < KEPT_BYTES {
            match self.poll_piece(cx, stream) {
                Poll::Ready(read) => drop(read?),
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// Reads a piece from the client into the buffer; returns its length. While all is kept, it fits.
    pub(super) fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut ClientSide<'_>,
    ) -> Poll<Result<usize, Broken>> {
        let room = KEPT_BYTES.saturating_sub(self.received);
        let most = if self.is_kept { usize::try_from(room).unwrap_or(PIECE_BYTES) } else { self.most_at_once };
        PIECE.with_borrow_mut(|piece| {
            let read = ready!(stream.poll_payload(cx, &mut piece[..most.min(PIECE_BYTES)]));
            let read = read.map_err(|error| match error.kind() {
                io::ErrorKind::InvalidData => Broken::Refused(Rejection::Malformed(Malformed::Chunk)),
                io::ErrorKind::QuotaExceeded => Broken::Refused(Rejection::TooManyUploads),
                _ => Broken::ClientLeft,
            })?;
            self.received += read as u64;
            self.is_whole = stream.is_between_requests();
            self.put(&piece[..read]);
            Poll::Ready(Ok(read))
        })
    }

    fn put(&mut self, piece: &[u8]) {
        if self.is_chunked {
            put_chunk(&mut self.buffer, piece);
            if self.is_whole {
                self.buffer.put_slice(LAST_CHUNK);
            }
        } else {
            self.buffer.put_slice(piece);
        }
    }

    /// Forgets what the app has got: the request cannot be sent again.
    pub(super) fn stop_keeping(&mut self) {
        self.is_kept = false;
        bytes::Buf::advance(&mut self.buffer, self.sent);
        self.sent = 0;
        self.rest();
    }

    /// Frees the buffer: the response is passed on, so the request is not sent again. Bytes that have not been sent stay.
    pub(super) fn release(&mut self) {
        self.stop_keeping();
        if self.is_cut {
            self.forget();
        }
    }

    /// Frees the buffer: nobody gets what is in it.
    pub(super) fn forget(&mut self) {
        (self.is_kept, self.sent) = (false, 0);
        (self.buffer, self.memory) = (BytesMut::new(), None);
    }

    /// Whether the client has sent more than `most` bytes.
    pub(super) fn is_longer_than(&self, most: u64) -> bool {
        self.received > most
    }

    /// The size of the whole body, as the app gets it, once the client has sent it.
    pub(super) fn whole_bytes(&self) -> Option<usize> {
        (self.is_whole && self.is_kept).then_some(self.buffer.len())
    }

    /// Accounts for the memory of the buffer. Returns false if there is none left for it.
    pub(super) fn account(&mut self, state: &State, client: IpAddr, most: usize) -> bool {
        self.hold(self.buffer.capacity(), state, client, most)
    }

    fn hold(&mut self, capacity: usize, state: &State, client: IpAddr, most: usize) -> bool {
        if body_memory::needed(capacity) == 0 {
            return true;
        }
        let memory = self.memory.get_or_insert_with(|| state.body_memory.share(Client::hash_of(client)));
        memory.hold(capacity, most)
    }

    /// Accounts for the next part if it is not kept: the app may not take it. If there is no memory left, parts are small.
    pub(super) fn make_room(&mut self, state: &State, client: IpAddr, most: usize) {
        if !self.is_kept {
            let has_room = self.hold(PIECE_BYTES, state, client, most);
            self.most_at_once = if has_room { PIECE_BYTES } else { SMALL_PIECE_BYTES };
        }
    }

    /// Frees the buffer while it is empty.
    pub(super) fn rest(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
            self.memory = None;
        }
    }

    fn holds_too_much(&self, most: usize) -> bool {
        self.memory.as_ref().is_some_and(|memory| memory.is_above_threshold(most))
    }
}

impl Lane<'_> {
    /// Reads the part of the body that is buffered, before the request asks for a permit.
    pub(super) async fn receive(&mut self, exchange: &mut Exchange) -> Result<(), Broken> {
        let Some(upload) = &mut self.upload else { return Ok(()) };
        let client = exchange.rules.config.client;
        if !upload.account(self.state, exchange.client.address, client.body_memory) {
            return Err(Broken::Refused(Rejection::TooManyUploads));
        }
        if upload.is_whole {
            exchange.is_replayable = true;
            return Ok(());
        }
        // Only the app can answer `Expect: 100-continue`.
        if upload.waits_for_app || !admit::needs_permit(exchange) {
            return Ok(());
        }
        let began = Instant::now();
        let received = self.read_to_keep(exchange, began).await;
        let now = Instant::now();
        // From here on the time is the app's.
        exchange.deadline += now - began;
        if let Some(upload) = &mut self.upload {
            upload.clients_time += now - began;
        }
        exchange.turn_began = now.into_std();
        exchange.is_replayable |= self.upload.as_ref().is_some_and(|upload| upload.is_whole);
        received
    }

    async fn read_to_keep(&mut self, exchange: &Exchange, began: Instant) -> Result<(), Broken> {
        let client = exchange.rules.config.client;
        let max_body = exchange.route().max_body_bytes;
        let Some(upload) = &mut self.upload else { return Ok(()) };
        let fits = self.stream.unread_body().is_some_and(|left| upload.received + left <= KEPT_BYTES);
        let mut last = began;
        while !upload.is_whole && upload.received < KEPT_BYTES {
            let patience = if fits {
                let in_all = client.body_timeout + Duration::from_secs(upload.received / MIN_BYTES_PER_SECOND);
                (last + client.body_timeout).min(began + in_all)
            } else {
                (last + DIALOGUE_PAUSE.min(client.body_timeout)).min(began + DIALOGUE_TIME)
            };
            let wake_at = if upload.memory.is_some() { patience.min(Instant::now() + LOOK) } else { patience };
            let read = poll_fn(|cx| match upload.poll_piece(cx, &mut self.stream) {
                Poll::Ready(read) => Poll::Ready(Some(read)),
                Poll::Pending => self.timer.poll(cx, wake_at).map(|()| None),
            });
            match read.await {
                Some(read) => drop(read?),
                None if wake_at < patience => {
                    if upload.holds_too_much(client.body_memory) {
                        return Err(Broken::Refused(Rejection::TooManyUploads));
                    }
                    continue;
                }
                None if fits => return Err(Broken::Refused(Rejection::BodyTooSlow)),
                None => break,
            }
            last = Instant::now();
            if upload.is_longer_than(max_body) {
                return Err(Broken::Refused(Rejection::BodyTooLarge));
            }
            if !upload.account(self.state, exchange.client.address, client.body_memory) {
                return Err(Broken::Refused(Rejection::TooManyUploads));
            }
        }
        Ok(())
    }

    /// Frees what is buffered of the body, of which nobody gets more. The rest of it is dropped when it arrives.
    pub(super) fn stop_reading(&mut self) {
        if let Some(upload) = &mut self.upload {
            upload.forget();
            self.stream.stop_reading();
        }
    }

    /// Whether the request can be sent again if its method is idempotent.
    pub(super) fn may_repeat(&self) -> bool {
        self.upload.as_ref().is_none_or(|upload| upload.is_kept)
    }

    /// Whether the rest of the body is short enough to be read after a response of Outrigger's own, so that the connection
    /// stays open.
    pub(super) fn may_drain(&self) -> bool {
        let waits_for_us = self.upload.as_ref().is_some_and(|upload| upload.waits_for_app);
        self.stream.is_between_requests()
            || (!waits_for_us && self.stream.unread_body().is_some_and(|left| left <= DRAIN_BYTES))
    }

    /// Reads the rest of the body after a response of Outrigger's own; returns whether all of it came.
    pub(super) async fn drain(&mut self) -> bool {
        let until = Instant::now() + DRAIN_TIMEOUT;
        poll_fn(|cx| {
            while !self.stream.is_between_requests() {
                let read = PIECE.with_borrow_mut(|piece| self.stream.poll_payload(cx, piece));
                match read {
                    Poll::Ready(Ok(read)) => self.received += read as u64,
                    Poll::Ready(Err(_)) => return Poll::Ready(false),
                    Poll::Pending => return self.timer.poll(cx, until).map(|()| false),
                }
            }
            Poll::Ready(true)
        })
        .await
    }
}

/// Writes a chunk of a body (RFC 9112 section 7.1), or nothing for no bytes: an empty chunk ends a body.
pub(super) fn put_chunk(out: &mut BytesMut, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let mut digits = [0; 16];
    let mut at = digits.len();
    let mut left = bytes.len();
    while left > 0 {
        at -= 1;
        digits[at] = b"0123456789abcdef"[left % 16];
        left /= 16;
    }
    out.reserve(digits.len() - at + bytes.len() + 4);
    out.put_slice(&digits[at..]);
    out.put_slice(b"\r\n");
    out.put_slice(bytes);
    out.put_slice(b"\r\n");
}
