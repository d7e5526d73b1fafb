use std::io;
use std::task::{Context, Poll, Waker};

use bytes::{BufMut, BytesMut};
use outrigger_wire::http2::{FRAME_HEAD, FrameHead, INITIAL_WINDOW, MAX_FRAME, Reason, flag, hpack, kind};
use outrigger_wire::scan::{Limits as HeadLimits, inspect};

use super::*;
use crate::body_memory::BodyMemory;

const LIMITS: Limits = Limits { max_head_bytes: 8 << 10, max_fields: 32, max_streams: MOST_STREAMS };

/// The client's side of a session.
struct Client {
    session: Session,
    input: BytesMut,
    /// Frames of the server that have not been looked at.
    output: BytesMut,
}

impl Client {
    fn connect() -> Self {
        let mut client = Self { session: Session::new(LIMITS), input: BytesMut::new(), output: BytesMut::new() };
        client.put(kind::SETTINGS, 0, 0, b"");
        client.deliver();
        client.frames();
        client
    }

    fn put(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        FrameHead { len: payload.len(), kind, flags, stream }.write(&mut self.input);
        self.input.put_slice(payload);
    }

    fn put_post(&mut self, stream: u32, length: Option<&str>) {
        let mut block = BytesMut::from(&b"\x83\x86\x84\x41\x01a"[..]);
        if let Some(length) = length {
            hpack::put_field(&mut block, b"content-length", length.as_bytes());
        }
        self.put(kind::HEADERS, flag::END_HEADERS, stream, &block);
    }

    fn deliver(&mut self) -> Vec<Http2Stream> {
        let mut new = Vec::new();
        assert_ne!(self.session.receive(&mut self.input, &mut new), Received::Error);
        new.into_iter()
            .filter_map(|new| match new {
                New::Request(stream) | New::TooLarge(stream) => Some(stream),
                New::Refused | New::Fault(_) => None,
            })
            .collect()
    }

    fn frames(&mut self) -> Vec<(FrameHead, Vec<u8>)> {
        let mut piece = BytesMut::new();
        self.session.take_output(&mut piece);
        self.output.unsplit(piece);
        let mut frames = Vec::new();
        while let Some(head) = FrameHead::parse(&self.output) {
            let frame = self.output.split_to(FRAME_HEAD + head.len);
            frames.push((head, frame[FRAME_HEAD..].to_vec()));
        }
        frames
    }
}

fn poll<T>(poll: impl FnOnce(&mut Context<'_>) -> Poll<std::io::Result<T>>) -> Option<std::io::Result<T>> {
    match poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    }
}

fn taken(stream: &mut Http2Stream) -> BytesMut {
    let limits = HeadLimits { max_bytes: 8 << 10, max_fields: 32 };
    let head = inspect(stream.head(), limits).unwrap();
    stream.take_head(&head)
}

#[test]
fn a_request_and_its_response() {
    let mut client = Client::connect();
    client.put_post(1, Some("5"));
    client.put(kind::DATA, 0, 1, b"hel");
    let mut stream = client.deliver().pop().unwrap();
    assert_eq!(&taken(&mut stream)[..], b"POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 5\r\n\r\n");
    let mut piece = [0; 16];
    assert_eq!(poll(|cx| stream.poll_payload(cx, &mut piece)).unwrap().unwrap(), 3);
    assert!(poll(|cx| stream.poll_payload(cx, &mut piece)).is_none());
    assert_eq!((stream.is_read(), stream.unread_body()), (false, Some(2)));
    client.put(kind::DATA, flag::END_STREAM, 1, b"lo");
    client.deliver();
    assert_eq!(poll(|cx| stream.poll_payload(cx, &mut piece)).unwrap().unwrap(), 2);
    assert!(stream.is_read());
    stream.output().put_slice(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    poll(|cx| stream.poll_send(cx)).unwrap().unwrap();
    stream.complete();
    drop(stream);
    let frames = client.frames();
    let kinds: Vec<_> = frames.iter().map(|(head, _)| (head.kind, head.flags)).collect();
    assert_eq!(kinds, [(kind::HEADERS, flag::END_HEADERS), (kind::DATA, flag::END_STREAM)]);
    assert_eq!(frames[1].1, b"ok");
    assert_eq!(client.session.active(), 0);
}

#[test]
fn a_response_waits_for_the_windows_and_for_the_client_to_read() {
    let mut client = Client::connect();
    client.put_post(1, Some("0"));
    let mut stream = client.deliver().pop().unwrap();
    stream.output().put_slice(b"HTTP/1.1 200 OK\r\n\r\n");
    poll(|cx| stream.poll_send(cx)).unwrap().unwrap();
    let body = vec![b'x'; 1 << 20];
    let mut sent = 0;
    while let Some(Ok(bytes)) = poll(|cx| stream.poll_send_directly(cx, &body)) {
        sent += bytes;
    }
    assert_eq!(sent, usize::try_from(INITIAL_WINDOW).unwrap());
    client.frames();
    sent = 0;
    for stream in [0, 1] {
        client.put(kind::WINDOW_UPDATE, 0, stream, &(1_u32 << 20).to_be_bytes());
    }
    client.deliver();
    while let Some(Ok(bytes)) = poll(|cx| stream.poll_send_directly(cx, &body)) {
        sent += bytes;
    }
    assert!((OUTPUT_HIGH - MAX_FRAME..=OUTPUT_HIGH + MAX_FRAME).contains(&sent), "{sent}");
    client.frames();
    assert_eq!(poll(|cx| stream.poll_send_directly(cx, &body)).unwrap().unwrap(), MAX_FRAME);
}

/// Sends a body of `bytes` on a stream that has been opened.
fn put_body(client: &mut Client, id: u32, bytes: usize) {
    for piece in vec![b'x'; bytes].chunks(MAX_FRAME) {
        client.put(kind::DATA, 0, id, piece);
    }
}

/// By how much the server has enlarged a window.
fn granted(frames: &[(FrameHead, Vec<u8>)], id: u32) -> usize {
    let updates = frames.iter().filter(|(head, _)| head.kind == kind::WINDOW_UPDATE && head.stream == id);
    updates.map(|(_, payload)| u32::from_be_bytes(payload[..].try_into().unwrap()) as usize).sum()
}

#[test]
fn bodies_that_nobody_reads_fill_the_windows_of_their_streams_and_no_other() {
    let mut client = Client::connect();
    let window = usize::try_from(INITIAL_WINDOW).unwrap();
    let mut streams = Vec::new();
    for id in (1..200).step_by(2) {
        client.put_post(id, None);
        put_body(&mut client, id, window);
        streams.extend(client.deliver());
    }
    assert_eq!((streams.len(), granted(&client.frames(), 0)), (MOST_STREAMS, 0));
    // Bytes beyond its window reset a stream.
    client.put(kind::DATA, 0, 1, b"x");
    client.deliver();
    let reset = client.frames().into_iter().find(|(head, _)| head.kind == kind::RST_STREAM).unwrap();
    assert_eq!((reset.0.stream, reset.1[3]), (1, Reason::FlowControl as u8));
    drop(streams);
    let (granted, unreported) = (granted(&client.frames(), 0), client.session.core().recv_unreported as usize);
    assert!(granted + unreported > 99 * window, "{granted} {unreported}");
}

#[test]
fn the_window_of_an_upload_shrinks_while_there_is_no_memory_for_it() {
    const MOST: usize = 300 << 10;
    let memory = Arc::new(BodyMemory::default());
    let mut client = Client::connect();
    client.put_post(1, None);
    let mut stream = client.deliver().pop().unwrap();
    stream.account(memory.share(1), MOST);
    let mut others = [memory.share(2), memory.share(3)];
    assert!(others[0].grow(MOST / 2, MOST) && others[1].grow(MOST / 4, MOST));
    let (mut piece, mut window, mut sent) = (vec![0; 1 << 20], usize::try_from(INITIAL_WINDOW).unwrap(), 0);
    while sent < 300_000 {
        let part = window.min(3000);
        assert!(part > 0, "the upload goes on after {sent}");
        put_body(&mut client, 1, part);
        client.deliver();
        assert_eq!(poll(|cx| stream.poll_payload(cx, &mut piece)).unwrap().unwrap(), part);
        (window, sent) = (window - part + granted(&client.frames(), 1), sent + part);
        assert!(sent < 70_000 || window < 6000, "{window} after {sent}");
    }
    drop(others);
    put_body(&mut client, 1, window);
    client.deliver();
    assert!(poll(|cx| stream.poll_payload(cx, &mut piece)).unwrap().is_ok());
    assert!(granted(&client.frames(), 1) > 60_000, "there is memory again");
}

#[test]
fn a_goaway_never_names_a_later_stream_than_the_one_before() {
    let mut client = Client::connect();
    client.put_post(1, Some("0"));
    let _stream = client.deliver();
    client.session.end_blocks();
    client.session.announce_leaving();
    let last = client.frames().into_iter().filter(|(head, _)| head.kind == kind::GOAWAY);
    assert_eq!(last.map(|(_, payload)| payload[3]).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn a_body_for_which_there_is_no_memory_is_dropped() {
    const MOST: usize = 300 << 10;
    let memory = Arc::new(BodyMemory::default());
    let mut client = Client::connect();
    let mut streams = Vec::new();
    for id in [1, 3, 5] {
        client.put_post(id, None);
        put_body(&mut client, id, 1000);
        streams.extend(client.deliver());
    }
    streams.iter_mut().for_each(|stream| stream.account(memory.share(1), MOST));
    assert_eq!(memory.held(), 0, "a little is free");
    // An address may hold a third, which is less than two windows.
    for id in [1, 3, 5] {
        put_body(&mut client, id, 60_000);
        client.deliver();
    }
    assert!((60_000..=MOST / 3).contains(&memory.held()), "{}", memory.held());
    let mut piece = vec![0; 1 << 20];
    let mut read = |stream: &mut Http2Stream| poll(|cx| stream.poll_payload(cx, &mut piece)).unwrap();
    assert_eq!(read(&mut streams[0]).unwrap(), 61_000);
    assert_eq!(memory.held(), 0);
    assert_eq!(read(&mut streams[1]).unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
    assert!(!streams[1].is_gone(), "it can still get a response");
    // More of it is dropped, too.
    put_body(&mut client, 3, 1000);
    put_body(&mut client, 1, 1000);
    client.deliver();
    assert_eq!(read(&mut streams[0]).unwrap(), 1000);
    assert_eq!(client.session.core().find(3).unwrap().input.capacity(), 0);
}

#[test]
fn a_body_that_is_not_read_any_more_is_dropped() {
    let mut client = Client::connect();
    client.put_post(1, Some("2000000"));
    put_body(&mut client, 1, 60_000);
    let mut stream = client.deliver().pop().unwrap();
    stream.stop_reading();
    put_body(&mut client, 1, 5000);
    client.deliver();
    let unread = client.session.core().find(1).map(|stream| stream.input.capacity());
    assert_eq!((unread, client.session.core().recv_unreported), (Some(0), 65_000));
    assert_eq!(granted(&client.frames(), 1), 0, "the stream gets no larger window");
    assert!(!stream.is_read() && !stream.is_gone());
    // A length that is wrong is still an error.
    client.put(kind::DATA, flag::END_STREAM, 1, b"x");
    client.deliver();
    assert!(stream.is_gone());
}

#[test]
fn a_stream_that_is_dropped_is_reset() {
    let mut client = Client::connect();
    client.put_post(1, None);
    client.put_post(3, None);
    let mut streams = client.deliver();
    let mut answered = streams.remove(0);
    answered.output().put_slice(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n");
    poll(|cx| answered.poll_send(cx)).unwrap().unwrap();
    answered.complete();
    drop(answered);
    drop(streams);
    let resets: Vec<_> = client.frames().into_iter().filter(|(head, _)| head.kind == kind::RST_STREAM).collect();
    let codes: Vec<_> = resets.iter().map(|(head, payload)| (head.stream, payload[3])).collect();
    assert_eq!(codes, [(1, Reason::None as u8), (3, Reason::Internal as u8)]);
    // Frames that were on their way are ignored.
    client.put(kind::DATA, flag::END_STREAM, 1, b"late");
    client.deliver();
    assert!(client.frames().is_empty());
}

#[test]
fn frames_on_their_way_to_many_streams_that_were_reset_are_no_fault() {
    let mut client = Client::connect();
    for id in (1..200).step_by(2) {
        client.put_post(id, None);
    }
    drop(client.deliver());
    client.frames();
    for id in (1..200).step_by(2) {
        put_body(&mut client, id, 60_000);
    }
    client.deliver();
    let others: Vec<_> = client.frames().into_iter().filter(|(head, _)| head.kind != kind::WINDOW_UPDATE).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn a_large_head_continues_in_another_frame() {
    let mut client = Client::connect();
    client.put_post(1, Some("0"));
    let mut stream = client.deliver().pop().unwrap();
    let value = "x".repeat(40_000);
    stream.output().put_slice(format!("HTTP/1.1 200 OK\r\nA: {value}\r\nContent-Length: 0\r\n\r\n").as_bytes());
    poll(|cx| stream.poll_send(cx)).unwrap().unwrap();
    let frames = client.frames();
    let kinds: Vec<_> = frames.iter().map(|(head, _)| (head.kind, head.flags)).collect();
    let (first, last) = ((kind::HEADERS, flag::END_STREAM), (kind::CONTINUATION, flag::END_HEADERS));
    assert_eq!(kinds, [first, (kind::CONTINUATION, 0), last]);
    let block: Vec<u8> = frames.into_iter().flat_map(|(_, payload)| payload).collect();
    let mut values = Vec::new();
    hpack::Decoder::default().decode(&block, |_, value| values.push(value.to_vec())).unwrap();
    assert_eq!(values[1], value.as_bytes());
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        let session = Session::new(LIMITS);
        let mut input = BytesMut::from(&b"\0\0\0\x04\0\0\0\0\0"[..]);
        input.extend_from_slice(&bytes);
        let mut new = Vec::new();
        let _ = session.receive(&mut input, &mut new);
        drop(new);
        let _ = session.active();
    }
}

#[test]
fn a_cancelled_upload_is_no_whole_one() {
    let mut client = Client::connect();
    client.put_post(1, None);
    client.put(kind::DATA, flag::END_STREAM, 1, b"hello");
    client.put(kind::RST_STREAM, 0, 1, &8_u32.to_be_bytes());
    let mut stream = client.deliver().pop().unwrap();
    assert!(stream.is_gone() && !stream.is_read());
    assert!(poll(|cx| stream.poll_payload(cx, &mut [0; 16])).unwrap().is_err());
}

#[test]
fn a_large_response_leaves_room_for_others() {
    let mut client = Client::connect();
    client.put(kind::SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    client.put(kind::WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes());
    for id in [1, 3, 5] {
        client.put_post(id, Some("0"));
    }
    let mut streams = client.deliver();
    for stream in &mut streams {
        stream.output().put_slice(b"HTTP/1.1 200 OK\r\n\r\n");
        poll(|cx| stream.poll_send(cx)).unwrap().unwrap();
    }
    let body = vec![b'x'; 1 << 20];
    let mut sent = [0; 3];
    for _ in 0..30 {
        // Each has a body to send, and runs in the order in which it was woken.
        let order: Vec<u32> = client.session.core().streams.iter().map(|stream| stream.id).collect();
        for id in order {
            let index = usize::try_from(id / 2).unwrap();
            while let Some(Ok(bytes)) = poll(|cx| streams[index].poll_send_directly(cx, &body)) {
                sent[index] += bytes;
            }
        }
        client.frames();
    }
    let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
    assert!(*least > 0 && most - least <= 2 * OUTPUT_HIGH, "{sent:?}");
}
