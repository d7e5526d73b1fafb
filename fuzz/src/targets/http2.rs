//! HTTP/2: header blocks, frames and connections.

use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use outrigger_transport::http2::{self as session, Http2Stream, MOST_STREAMS, New, OUTPUT_HIGH, Received, Session};
use outrigger_wire::http2::request::RequestHead;
use outrigger_wire::http2::{FRAME_HEAD, FrameHead, MAX_FRAME, hpack, kind};
use outrigger_wire::malformed::Malformed;
use outrigger_wire::scan::{self, Framing, HeadScanner, Refused};

use super::{LIMITS, with_choice};

/// A header block that passes is one HTTP/1.1 head with the declared body.
pub fn header_block(data: &[u8]) {
    let (choice, data) = with_choice(data);
    let is_last = choice & 1 != 0;
    let (mut decoder, mut head) = (hpack::Decoder::default(), RequestHead::default());
    // Two blocks, since the second reads what the first has put into the table.
    let (first, second) = data.split_at(data.len() * (choice >> 1) / 256);
    for block in [first, second] {
        head.begin(LIMITS.max_bytes, LIMITS.max_fields);
        if decoder.decode(block, |name, value| head.field(name, value)).is_err() {
            return;
        }
        let Ok(complete) = head.finish(is_last) else { continue };
        let text = &complete.head;
        assert_eq!(HeadScanner::default().scan(text), Ok(Some(text.len())), "{:?}", String::from_utf8_lossy(text));
        match scan::inspect(text, LIMITS) {
            Ok(read) => {
                let declared = complete.length.map_or(Framing::Chunked, Framing::Length);
                let expected = if is_last { Framing::Length(complete.length.unwrap_or(0)) } else { declared };
                assert_eq!((read.len, read.framing), (text.len(), expected));
                assert!(!read.closes && !read.is_http10);
            }
            Err(
                Refused::TooLarge | Refused::Malformed(Malformed::Host | Malformed::Target | Malformed::RequestLine),
            ) => {}
            Err(other) => panic!("{other:?}: {:?}", String::from_utf8_lossy(text)),
        }
    }
}

const SESSION: session::Limits = session::Limits { max_head_bytes: 4096, max_fields: 64, max_streams: MOST_STREAMS };

/// A connection with any bytes after the preface.
pub fn connection(data: &[u8]) {
    let mut input = BytesMut::new();
    FrameHead { len: 0, kind: kind::SETTINGS, flags: 0, stream: 0 }.write(&mut input);
    input.extend_from_slice(data);
    serve(&mut [input]);
}

/// A connection with frames: each is a type, flags, a stream and a length, each of one byte, and its payload.
pub fn frames(mut data: &[u8]) {
    let mut input = vec![BytesMut::new()];
    FrameHead { len: 0, kind: kind::SETTINGS, flags: 0, stream: 0 }.write(&mut input[0]);
    while let [kind, flags, stream, len, rest @ ..] = data {
        let (payload, after) = rest.split_at(rest.len().min(usize::from(*len)));
        data = after;
        let mut frame = BytesMut::new();
        // A payload of one byte is repeated as far as a frame goes, so that few bytes fill a window.
        let payload = if let [byte] = payload { vec![*byte; MAX_FRAME] } else { payload.to_vec() };
        FrameHead { len: payload.len(), kind: kind % 11, flags: *flags, stream: u32::from(*stream) }.write(&mut frame);
        frame.extend_from_slice(&payload);
        input.push(frame);
    }
    serve(&mut input);
}

/// Serves the requests in these bytes, with bounded memory.
fn serve(pieces: &mut [BytesMut]) {
    let session = Session::new(SESSION);
    let (mut input, mut output, mut new, mut streams) = (BytesMut::new(), BytesMut::new(), Vec::new(), Vec::new());
    let mut turn = 0;
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            let received = session.receive(&mut input, &mut new);
            for new in new.drain(..) {
                if let New::Request(stream) | New::TooLarge(stream) = new {
                    streams.push(stream);
                }
            }
            assert!(session.active() == streams.len() && streams.len() <= MOST_STREAMS);
            assert!(session.unfinished().unwrap_or(0) <= 2 * (SESSION.max_block_bytes() + MAX_FRAME));
            output.clear();
            session.take_output(&mut output);
            assert!(output.len() <= 2 * OUTPUT_HIGH, "{} bytes to send", output.len());
            are_frames(&output);
            // Some requests are answered, some are dropped, others stay.
            turn += 1;
            if turn % 3 == 0 && !streams.is_empty() {
                answer(streams.swap_remove(turn % streams.len()));
            }
            match received {
                Received::Error => return,
                Received::All => break,
                Received::Part => {}
            }
        }
        assert!(input.len() < FRAME_HEAD + MAX_FRAME, "a whole frame is left");
    }
    session.end();
}

fn are_frames(mut output: &[u8]) {
    while !output.is_empty() {
        let head = FrameHead::parse(output).expect("a whole frame");
        output = &output[FRAME_HEAD + head.len..];
    }
}

fn answer(mut stream: Http2Stream) {
    let cx = &Context::from_waker(Waker::noop());
    let mut piece = [0; 1000];
    while let Poll::Ready(Ok(1..)) = stream.poll_payload(cx, &mut piece) {}
    stream.output().extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    if let Poll::Ready(Ok(())) = stream.poll_send(cx) {
        stream.complete();
    }
}
