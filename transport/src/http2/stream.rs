//! One request and its response, as the task that serves it sees them.

use std::io;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, BytesMut};
use outrigger_wire::http2::{FRAME_HEAD, FrameHead, INITIAL_WINDOW, MAX_FRAME, Reason, flag, kind, response};
use outrigger_wire::scan::Head;

use super::{Core, OUTPUT_HIGH, Reading, Session, Stream};
use crate::body_memory::BodyShare;

/// The window of a stream for whose body there is no memory: it fits into the bytes that need none.
const SMALL_UPDATE: u32 = 2 << 10;

/// A stream of an HTTP/2 connection with a request. It takes the response as HTTP/1.1: a head, then the body without chunks.
/// Dropping it before [`Self::complete`] resets the stream.
#[derive(Debug)]
pub struct Http2Stream {
    session: Session,
    id: u32,
    /// The request's head, until it is taken.
    head: BytesMut,
    /// The response that has not been sent.
    output: BytesMut,
    /// The final response's head has been sent.
    has_head: bool,
    /// The response has no body, whatever its head says.
    is_bodiless: bool,
    /// The rest of the response's declared length.
    left: Option<u64>,
}

impl Http2Stream {
    pub(super) fn new(session: Session, id: u32, head: BytesMut) -> Self {
        let is_bodiless = head.starts_with(b"HEAD ");
        Self { session, id, head, output: BytesMut::new(), has_head: false, is_bodiless, left: None }
    }

    /// The request's head.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// Removes and returns the request's head.
    pub fn take_head(&mut self, _: &Head) -> BytesMut {
        std::mem::take(&mut self.head)
    }

    /// The buffer for the response; [`Self::poll_send`] sends it.
    pub fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// Whether the whole body of the request was read.
    pub fn is_read(&self) -> bool {
        self.session.core().find(self.id).is_none_or(|stream| stream.is_read())
    }

    /// Whether the stream was reset or the connection has ended.
    pub fn is_gone(&self) -> bool {
        self.session.core().find(self.id).is_none_or(|stream| stream.is_reset)
    }

    /// Resets the stream: the client may send the request again.
    pub fn refuse(self) {
        self.session.core().reset(self.id, Reason::Refused);
    }

    /// The number of bytes of the request's body that have not been read; `None` if it is unknown.
    pub fn unread_body(&self) -> Option<u64> {
        let mut core = self.session.core();
        let stream = core.find(self.id)?;
        stream.left.map(|left| left + stream.input.len() as u64)
    }

    /// Accounts for what has arrived of the request's body and was not read, now and later. If there is no memory for it, it is
    /// dropped, and reading it is an error.
    pub fn account(&mut self, share: BodyShare, most: usize) {
        let mut core = self.session.core();
        let Some(stream) = core.find(self.id) else { return };
        stream.memory = Some((share, most));
        let dropped = stream.hold_input();
        core.report_read(dropped);
    }

    /// The rest of the request's body is not read: what has arrived and what arrives later is dropped. The client gets no larger
    /// window for it.
    pub fn stop_reading(&mut self) {
        let mut core = self.session.core();
        let Some(stream) = core.find(self.id).filter(|stream| !stream.is_read()) else { return };
        stream.reading = Reading::Off;
        let dropped = stream.drop_input();
        core.report_read(dropped);
    }

    /// Reads a part of the request's body; 0 is its end.
    ///
    /// # Errors
    /// The stream was reset, or the connection has ended. `QuotaExceeded`: there was no memory for the body.
    pub fn poll_payload(&mut self, cx: &Context<'_>, piece: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut core = self.session.core();
        let Some(stream) = core.find(self.id).filter(|stream| !stream.is_reset) else { return gone() };
        match stream.reading {
            Reading::On => {}
            Reading::Off => return gone(),
            Reading::Refused => return Poll::Ready(Err(io::ErrorKind::QuotaExceeded.into())),
        }
        if stream.input.is_empty() {
            if stream.is_read() {
                return Poll::Ready(Ok(0));
            }
            stream.wait(cx);
            return Poll::Pending;
        }
        let read = piece.len().min(stream.input.len());
        stream.input.copy_to_slice(&mut piece[..read]);
        if stream.input.is_empty() {
            // An upload that waits for its client holds no memory.
            stream.drop_input();
        }
        stream.recv_unreported += u32::try_from(read).unwrap_or(u32::MAX);
        let mut update = 0;
        if !stream.has_received_all && i64::from(stream.recv_unreported) > INITIAL_WINDOW / 2 {
            update = stream.next_update();
        }
        if update > 0 {
            core.put_number(kind::WINDOW_UPDATE, self.id, update);
            core.wake();
        }
        core.report_read(read);
        Poll::Ready(Ok(read))
    }

    /// Ready when the stream was reset or the connection has ended.
    pub fn poll_gone(&mut self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mut core = self.session.core();
        match core.find(self.id) {
            Some(stream) if !stream.is_reset => {
                stream.wait(cx);
                Poll::Pending
            }
            _ => gone(),
        }
    }

    /// Sends the output. Ready: all of it has been taken by the connection.
    ///
    /// # Errors
    /// The stream was reset, or the connection has ended.
    pub fn poll_send(&mut self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mut core = self.session.core();
        while !self.output.is_empty() {
            let Some(stream) = core.find(self.id).filter(|stream| !stream.is_reset) else { return gone() };
            if stream.has_sent_all {
                // Nothing may follow.
                break;
            }
            if self.has_head {
                let sent = core.put_data(self.id, &self.output, &mut self.left);
                if sent == 0 {
                    return core.wait(self.id, cx);
                }
                self.output.advance(sent);
            } else {
                let Some(written) = core.put_head(self.id, &self.output, self.is_bodiless) else {
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                };
                self.output.advance(written.len);
                self.has_head = written.status >= 200;
                self.left = written.length;
            }
        }
        self.output.clear();
        Poll::Ready(Ok(()))
    }

    /// Sends a part of `bytes`. The output is empty, and the head has been sent.
    ///
    /// # Errors
    /// The stream was reset, or the connection has ended.
    pub fn poll_send_directly(&mut self, cx: &Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut core = self.session.core();
        if core.find(self.id).is_none_or(|stream| stream.is_reset) {
            return gone();
        }
        match core.put_data(self.id, bytes, &mut self.left) {
            0 => core.wait(self.id, cx).map_ok(|()| 0),
            sent => Poll::Ready(Ok(sent)),
        }
    }

    /// The response is complete.
    pub fn complete(&mut self) {
        let mut core = self.session.core();
        let Some(stream) = core.find(self.id) else { return };
        if self.has_head && !stream.has_sent_all && !stream.is_reset && self.left.is_none_or(|left| left == 0) {
            stream.has_sent_all = true;
            let head = FrameHead { len: 0, kind: kind::DATA, flags: flag::END_STREAM, stream: self.id };
            head.write(&mut core.output);
            core.wake();
        }
    }
}

impl Drop for Http2Stream {
    fn drop(&mut self) {
        let mut core = self.session.core();
        let Some(index) = core.streams.iter().position(|stream| stream.id == self.id) else { return };
        let stream = &core.streams[index];
        if !stream.is_reset {
            match (stream.has_sent_all, stream.has_received_all) {
                (true, true) => core.calm.served(),
                // The client need not send the rest (RFC 9113 section 8.1).
                (true, false) => core.reset(self.id, Reason::None),
                (false, _) => core.reset(self.id, Reason::Internal),
            }
        }
        let unread = core.streams.swap_remove(index).input.len();
        core.report_read(unread);
        // The connection's task may wait for its last request.
        core.wake();
    }
}

fn gone<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
}

impl Stream {
    /// Accounts for the input. If there is no memory for it, it is dropped; returns how many bytes that were.
    pub(super) fn hold_input(&mut self) -> usize {
        let Some((share, most)) = &mut self.memory else { return 0 };
        if share.hold(self.input.capacity(), *most) {
            return 0;
        }
        self.reading = Reading::Refused;
        self.drop_input()
    }

    /// Frees the input; returns how many bytes nobody has read.
    pub(super) fn drop_input(&mut self) -> usize {
        if let Some((share, _)) = &mut self.memory {
            share.release();
        }
        std::mem::take(&mut self.input).len()
    }

    /// Allows the client to send more; returns how much. While there is no memory for a whole window, its window shrinks to what
    /// needs none: an upload in progress becomes slow and is not rejected.
    fn next_update(&mut self) -> u32 {
        let has_room = self.memory.as_mut().is_none_or(|(share, most)| share.hold(INITIAL_WINDOW as usize, *most));
        if self.input.is_empty() {
            self.drop_input();
        }
        let update = match (has_room, self.recv_window < i64::from(SMALL_UPDATE)) {
            (true, _) => self.recv_unreported,
            (false, true) => self.recv_unreported.min(SMALL_UPDATE),
            (false, false) => 0,
        };
        self.recv_unreported -= update;
        self.recv_window += i64::from(update);
        update
    }

    fn is_read(&self) -> bool {
        !self.is_reset
            && self.reading == Reading::On
            && (self.has_received_all || self.left == Some(0))
            && self.input.is_empty()
    }

    fn wait(&mut self, cx: &Context<'_>) {
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
    }
}

impl Core {
    fn wait<T>(&mut self, id: u32, cx: &Context<'_>) -> Poll<io::Result<T>> {
        let Some(stream) = self.find(id) else { return gone() };
        stream.wait(cx);
        Poll::Pending
    }

    /// Writes as much of `bytes` as the windows and the output allow; returns how much. `left` is the rest of the declared
    /// length, after which the stream ends.
    fn put_data(&mut self, id: u32, bytes: &[u8], left: &mut Option<u64>) -> usize {
        let is_full = self.output.len() >= OUTPUT_HIGH;
        let window = self.send_window;
        let Some(stream) = self.find(id).filter(|_| !is_full) else { return 0 };
        let window = usize::try_from(window.min(stream.send_window)).unwrap_or(0);
        let most = left.map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
        let len = bytes.len().min(window).min(MAX_FRAME).min(most);
        if len == 0 {
            return 0;
        }
        let is_last = left.as_mut().is_some_and(|left| {
            *left -= len as u64;
            *left == 0
        });
        let size = i64::try_from(len).unwrap_or(i64::MAX);
        stream.send_window -= size;
        stream.has_had_turn = true;
        stream.has_sent_all |= is_last;
        self.send_window -= size;
        let flags = if is_last { flag::END_STREAM } else { 0 };
        self.output.reserve(FRAME_HEAD + len);
        FrameHead { len, kind: kind::DATA, flags, stream: id }.write(&mut self.output);
        self.output.put_slice(&bytes[..len]);
        self.wake();
        len
    }

    /// Writes the HTTP/1.1 head at the start of `text`; `None` if there is none.
    fn put_head(&mut self, id: u32, text: &[u8], is_bodiless: bool) -> Option<response::Written> {
        let start = self.output.len();
        self.output.put_slice(&[0; FRAME_HEAD]);
        let Some(written) = response::write(text, &mut self.output) else {
            self.output.truncate(start);
            return None;
        };
        let is_last =
            written.status >= 200 && (is_bodiless || matches!(written.status, 204 | 304) || written.length == Some(0));
        if let Some(stream) = self.find(id).filter(|_| is_last) {
            stream.has_sent_all = true;
        }
        let len = self.output.len() - start - FRAME_HEAD;
        let end_stream = if is_last { flag::END_STREAM } else { 0 };
        let end_headers = if len > MAX_FRAME { 0 } else { flag::END_HEADERS };
        let head =
            FrameHead { len: len.min(MAX_FRAME), kind: kind::HEADERS, flags: end_stream | end_headers, stream: id };
        self.output[start..start + FRAME_HEAD].copy_from_slice(&head.bytes());
        if len > MAX_FRAME {
            let rest = self.output.split_off(start + FRAME_HEAD + MAX_FRAME);
            let mut pieces = rest.chunks(MAX_FRAME).peekable();
            while let Some(piece) = pieces.next() {
                let flags = if pieces.peek().is_none() { flag::END_HEADERS } else { 0 };
                let head = FrameHead { len: piece.len(), kind: kind::CONTINUATION, flags, stream: id };
                head.write(&mut self.output);
                self.output.put_slice(piece);
            }
        }
        self.wake();
        Some(written)
    }
}
