//! Frames of the client.

use bytes::{Buf, BufMut, BytesMut};
use outrigger_wire::http2::request::Unfit;
use outrigger_wire::http2::{
    FRAME_HEAD, FrameHead, INITIAL_WINDOW, MAX_FRAME, MAX_WINDOW, Reason, flag, kind, unpadded,
};

use super::{
    Block, Core, Fault, Http2Stream, LEAVING, MOST_STREAMS, MOST_TASKS, New, OUTPUT_HIGH, Reading, Session, Stream,
};

/// Frames of one header block.
const MOST_BLOCK_FRAMES: usize = 128;

/// The state of a stream, for its frames.
enum Known {
    Active,
    /// It was reset here, and the frame was on its way.
    Ignored,
    /// It has ended.
    Closed,
    /// The client has not opened it.
    Idle,
}

impl Core {
    /// Handles complete frames until one is incomplete, or the output is full.
    ///
    /// # Errors
    /// A connection error.
    pub(super) fn receive(
        &mut self,
        session: &Session,
        input: &mut BytesMut,
        new: &mut Vec<New>,
    ) -> Result<(), Reason> {
        let mut taken = 0;
        while !self.has_ended && self.output.len() < OUTPUT_HIGH {
            let Some(frame) = FrameHead::parse(&input[taken..]) else { break };
            if frame.len > MAX_FRAME {
                return Err(Reason::FrameSize);
            }
            if !self.has_settings && (frame.kind != kind::SETTINGS || frame.flags & flag::ACK != 0) {
                return Err(Reason::Protocol);
            }
            let continues = self.block.as_ref().is_some_and(|block| block.stream == frame.stream);
            if (frame.kind == kind::CONTINUATION) != self.block.is_some() || (self.block.is_some() && !continues) {
                return Err(Reason::Protocol);
            }
            let start = taken + FRAME_HEAD;
            let Some(payload) = input.get(start..start + frame.len) else { break };
            match frame.kind {
                kind::DATA => self.data(frame, payload)?,
                kind::HEADERS => self.headers(session, frame, payload, new)?,
                kind::CONTINUATION => self.continuation(session, frame, payload, new)?,
                kind::PRIORITY => self.priority(frame)?,
                kind::RST_STREAM => self.client_resets(frame)?,
                kind::SETTINGS => self.settings(frame, payload)?,
                kind::PUSH_PROMISE => return Err(Reason::Protocol),
                kind::PING => self.ping(frame, payload)?,
                kind::GOAWAY => {
                    check(frame.stream == 0, Reason::Protocol)?;
                    check(frame.len >= 8, Reason::FrameSize)?;
                    self.client_leaves = true;
                }
                kind::WINDOW_UPDATE => self.window_update(frame, payload)?,
                // Frames of unknown types are ignored (RFC 9113 section 4.1).
                _ => {}
            }
            taken = start + frame.len;
        }
        input.advance(taken);
        Ok(())
    }

    fn known(&mut self, id: u32) -> Known {
        let is_active = self.find(id).is_some_and(|stream| !stream.is_reset);
        match id {
            _ if is_active => Known::Active,
            _ if self.resets.contains(&id) || (id > self.last_served && id <= self.last) => Known::Ignored,
            _ if id > self.last => Known::Idle,
            _ => Known::Closed,
        }
    }

    fn data(&mut self, frame: FrameHead, payload: &[u8]) -> Result<(), Reason> {
        check(frame.stream != 0, Reason::Protocol)?;
        let content = unpadded(frame.flags, payload).ok_or(Reason::Protocol)?;
        let is_last = frame.flags & flag::END_STREAM != 0;
        // Padding counts, too (RFC 9113 section 6.9.1).
        let size = i64::try_from(frame.len).unwrap_or(i64::MAX);
        self.recv_window -= size;
        check(self.recv_window >= 0, Reason::FlowControl)?;
        if content.is_empty() && !is_last {
            self.calm.empty()?;
        } else {
            self.calm.filled();
        }
        match self.known(frame.stream) {
            Known::Active => {}
            Known::Idle => return Err(Reason::Protocol),
            Known::Ignored => {
                self.report_read(frame.len);
                return Ok(());
            }
            Known::Closed => {
                self.report_read(frame.len);
                return self.stream_error(frame.stream, Reason::StreamClosed);
            }
        }
        let Some(stream) = self.find(frame.stream) else { return Ok(()) };
        stream.recv_window -= size;
        let fault = if stream.has_received_all {
            Some(Reason::StreamClosed)
        } else if stream.recv_window < 0 {
            Some(Reason::FlowControl)
        } else {
            let left = stream.left.map(|left| left.checked_sub(content.len() as u64));
            let fits = left.is_none_or(|left| left.is_some_and(|left| !is_last || left == 0));
            stream.left = left.flatten().or(stream.left);
            (!fits).then_some(Reason::Protocol)
        };
        if let Some(reason) = fault {
            self.report_read(frame.len);
            return self.stream_error(frame.stream, reason);
        }
        stream.has_received_all = is_last;
        let mut read = frame.len - content.len();
        stream.recv_unreported += u32::try_from(read).unwrap_or(0);
        if stream.reading == Reading::On {
            stream.input.put_slice(content);
            read += stream.hold_input();
        } else {
            read = frame.len;
        }
        stream.wake();
        self.report_read(read);
        Ok(())
    }

    fn headers(
        &mut self,
        session: &Session,
        frame: FrameHead,
        payload: &[u8],
        new: &mut Vec<New>,
    ) -> Result<(), Reason> {
        check(frame.stream != 0, Reason::Protocol)?;
        let mut fragment = unpadded(frame.flags, payload).ok_or(Reason::Protocol)?;
        if frame.flags & flag::PRIORITY != 0 {
            fragment = fragment.get(5..).ok_or(Reason::FrameSize)?;
        }
        let is_last = frame.flags & flag::END_STREAM != 0;
        if frame.flags & flag::END_HEADERS != 0 {
            return self.block(session, frame.stream, is_last, fragment, new);
        }
        // Connections that have given up a block keep no other one.
        let bytes = if self.has_ended_blocks { BytesMut::new() } else { BytesMut::from(fragment) };
        self.block = Some(Block { stream: frame.stream, is_last, bytes, frames: 1 });
        Ok(())
    }

    fn continuation(
        &mut self,
        session: &Session,
        frame: FrameHead,
        payload: &[u8],
        new: &mut Vec<New>,
    ) -> Result<(), Reason> {
        let Some(mut block) = self.block.take() else { return Err(Reason::Protocol) };
        block.frames += 1;
        let is_bounded = block.bytes.len() + payload.len() <= self.limits.max_block_bytes();
        check(is_bounded && block.frames <= MOST_BLOCK_FRAMES, Reason::Calm)?;
        if !self.has_ended_blocks {
            block.bytes.put_slice(payload);
        }
        if frame.flags & flag::END_HEADERS != 0 {
            return self.block(session, block.stream, block.is_last, &block.bytes, new);
        }
        self.block = Some(block);
        Ok(())
    }

    /// Handles a complete header block. It is decoded in any case, as the next one may refer to its headers.
    fn block(
        &mut self,
        session: &Session,
        id: u32,
        is_last: bool,
        block: &[u8],
        new: &mut Vec<New>,
    ) -> Result<(), Reason> {
        if self.has_ended_blocks {
            // Without the earlier ones it cannot be decoded. Trailers end the body, and are not forwarded anyway.
            return match self.known(id) {
                Known::Active => self.trailers(id, is_last),
                Known::Idle if id % 2 == 1 => {
                    self.last = id;
                    Ok(())
                }
                _ => Ok(()),
            };
        }
        let Self { head, decoder, limits, .. } = self;
        head.begin(limits.max_head_bytes, limits.max_fields);
        decoder.decode(block, |name, value| head.field(name, value)).map_err(|_| Reason::Compression)?;
        match self.known(id) {
            Known::Active => return self.trailers(id, is_last),
            Known::Ignored => return Ok(()),
            Known::Closed => return Err(Reason::StreamClosed),
            Known::Idle => {}
        }
        check(id % 2 == 1, Reason::Protocol)?;
        self.last = id;
        if id > self.last_served {
            // The client did not know yet that this connection is leaving; it may send the request elsewhere.
            return Ok(());
        }
        let open = self.streams.iter().filter(|stream| !stream.is_reset).count();
        if open >= MOST_STREAMS || self.streams.len() >= MOST_TASKS {
            // No fault of a client that does not know the limit yet.
            self.reset(id, Reason::Refused);
            new.push(New::Refused);
            return Ok(());
        }
        let (complete, length) = match self.head.finish(is_last) {
            Ok(complete) => (Some(complete.head), complete.length),
            Err(Unfit::TooLarge) => (None, None),
            Err(Unfit::Malformed(reason)) => {
                new.push(New::Fault(Fault::Request));
                self.reset(id, reason);
                return self.calm.take();
            }
        };
        self.streams.push(Stream {
            id,
            input: BytesMut::new(),
            memory: None,
            reading: Reading::On,
            recv_window: INITIAL_WINDOW,
            recv_unreported: 0,
            left: length,
            has_received_all: is_last,
            has_sent_all: false,
            has_had_turn: false,
            is_reset: false,
            send_window: self.initial_send_window,
            waker: None,
        });
        let is_whole = complete.is_some();
        let stream = Http2Stream::new(session.clone(), id, complete.unwrap_or_default());
        new.push(if is_whole { New::Request(stream) } else { New::TooLarge(stream) });
        Ok(())
    }

    fn trailers(&mut self, id: u32, is_last: bool) -> Result<(), Reason> {
        let is_valid = is_last && (self.has_ended_blocks || self.head.is_trailers());
        let Some(stream) = self.find(id) else { return Ok(()) };
        if stream.has_received_all {
            return self.stream_error(id, Reason::StreamClosed);
        }
        if !is_valid || stream.left.is_some_and(|left| left > 0) {
            return self.stream_error(id, Reason::Protocol);
        }
        stream.has_received_all = true;
        stream.wake();
        Ok(())
    }

    fn priority(&mut self, frame: FrameHead) -> Result<(), Reason> {
        check(frame.stream != 0, Reason::Protocol)?;
        match self.known(frame.stream) {
            _ if frame.len == 5 => Ok(()),
            Known::Active => self.stream_error(frame.stream, Reason::FrameSize),
            Known::Ignored | Known::Closed => Ok(()),
            Known::Idle => Err(Reason::FrameSize),
        }
    }

    fn client_resets(&mut self, frame: FrameHead) -> Result<(), Reason> {
        check(frame.stream != 0, Reason::Protocol)?;
        check(frame.len == 4, Reason::FrameSize)?;
        check(frame.stream <= self.last, Reason::Protocol)?;
        let Some(stream) = self.find(frame.stream).filter(|stream| !stream.is_reset) else { return Ok(()) };
        stream.is_reset = true;
        stream.wake();
        let unread = stream.drop_input();
        self.report_read(unread);
        self.calm.take()
    }

    fn settings(&mut self, frame: FrameHead, payload: &[u8]) -> Result<(), Reason> {
        check(frame.stream == 0, Reason::Protocol)?;
        if frame.flags & flag::ACK != 0 {
            return check(frame.len == 0, Reason::FrameSize);
        }
        check(frame.len.is_multiple_of(6), Reason::FrameSize)?;
        self.has_settings = true;
        let mut window = None;
        for setting in payload.chunks_exact(6) {
            let [i0, i1, v0, v1, v2, v3] = *setting else { break };
            let value = u32::from_be_bytes([v0, v1, v2, v3]);
            match u16::from_be_bytes([i0, i1]) {
                2 => check(value <= 1, Reason::Protocol)?,
                4 => {
                    check(i64::from(value) <= MAX_WINDOW, Reason::FlowControl)?;
                    window = Some(i64::from(value));
                }
                // Frames are never larger than the smallest allowed size.
                5 => check((1 << 14..1 << 24).contains(&value), Reason::Protocol)?,
                // The encoder has no dynamic table, and no streams are pushed.
                _ => {}
            }
        }
        FrameHead { len: 0, kind: kind::SETTINGS, flags: flag::ACK, stream: 0 }.write(&mut self.output);
        // Once for each frame: the work grows with the streams.
        window.map_or(Ok(()), |window| self.initial_window(window))
    }

    fn initial_window(&mut self, size: i64) -> Result<(), Reason> {
        let change = size - self.initial_send_window;
        self.initial_send_window = size;
        for stream in &mut self.streams {
            stream.send_window += change;
            check(stream.send_window <= MAX_WINDOW, Reason::FlowControl)?;
            stream.wake();
        }
        Ok(())
    }

    fn ping(&mut self, frame: FrameHead, payload: &[u8]) -> Result<(), Reason> {
        check(frame.stream == 0, Reason::Protocol)?;
        check(frame.len == 8, Reason::FrameSize)?;
        if frame.flags & flag::ACK != 0 {
            self.has_acknowledged |= *payload == LEAVING;
            return Ok(());
        }
        FrameHead { len: 8, kind: kind::PING, flags: flag::ACK, stream: 0 }.write(&mut self.output);
        self.output.put_slice(payload);
        Ok(())
    }

    fn window_update(&mut self, frame: FrameHead, payload: &[u8]) -> Result<(), Reason> {
        let Ok(bytes) = <[u8; 4]>::try_from(payload) else { return Err(Reason::FrameSize) };
        let increment = i64::from(u32::from_be_bytes(bytes) & 0x7fff_ffff);
        if frame.stream == 0 {
            check(increment > 0, Reason::Protocol)?;
            let was_empty = self.send_window <= 0;
            self.send_window += increment;
            check(self.send_window <= MAX_WINDOW, Reason::FlowControl)?;
            if was_empty {
                self.wake_in_turn();
            }
            return Ok(());
        }
        match self.known(frame.stream) {
            Known::Idle => return Err(Reason::Protocol),
            Known::Closed | Known::Ignored => return Ok(()),
            Known::Active => {}
        }
        if increment == 0 {
            return self.stream_error(frame.stream, Reason::Protocol);
        }
        let Some(stream) = self.find(frame.stream) else { return Ok(()) };
        stream.send_window += increment;
        if stream.send_window > MAX_WINDOW {
            return self.stream_error(frame.stream, Reason::FlowControl);
        }
        stream.wake();
        Ok(())
    }
}

fn check(is_right: bool, otherwise: Reason) -> Result<(), Reason> {
    if is_right { Ok(()) } else { Err(otherwise) }
}
