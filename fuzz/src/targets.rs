//! Properties that must hold for any bytes. A target panics if one does not. A test of the transport crate gives them the files
//! in `corpus/`, and changes of these.

use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use outrigger_policy::saved::Saved;
use outrigger_traffic::decode::{Dictionary, Reader};
use outrigger_traffic::encode::{self, BLOCK_HEADER_BYTES};
use outrigger_traffic::request::RecordedRequest;
use outrigger_traffic::{MOST_SHAPES, MOST_TEXTS, checksum};
use outrigger_transport::http2::{self as session, Http2Stream, MOST_STREAMS, New, OUTPUT_HIGH, Received, Session};
use outrigger_wire::chunks::Chunks;
use outrigger_wire::client_address::{Edge, Sender};
use outrigger_wire::forwarding::Added;
use outrigger_wire::headers;
use outrigger_wire::http2::request::RequestHead;
use outrigger_wire::http2::{FRAME_HEAD, FrameHead, MAX_FRAME, hpack, kind, response};
use outrigger_wire::malformed::Malformed;
use outrigger_wire::request::Fields;
use outrigger_wire::rewrite::{self, AnswerBody, Frame, Sifting};
use outrigger_wire::scan::{self, Framing, HeadScanner, Limits, Origin, Refused};
use outrigger_wire::sieve::Sieve;

const LIMITS: Limits = Limits { max_bytes: 4096, max_fields: 64 };

/// A target, and its name: that of its directory in `corpus/`.
pub type Target = (&'static str, fn(&[u8]));

pub const ALL: [Target; 9] = [
    ("request_head", request_head),
    ("chunks", chunks),
    ("request_rewrite", request_rewrite),
    ("response_rewrite", response_rewrite),
    ("header_block", header_block),
    ("frames", frames),
    ("connection", connection),
    ("snapshot", snapshot),
    ("traffic_record", traffic_record),
];

/// The first byte, and the rest.
fn with_choice(data: &[u8]) -> (usize, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (usize::from(*first), rest))
}

/// A head that arrives in pieces ends where the whole does, and means what each of its lines says.
pub fn request_head(data: &[u8]) {
    let (choice, data) = with_choice(data);
    let whole = HeadScanner::default().scan(data);
    let mut scanner = HeadScanner::default();
    let steps = (0..=data.len()).step_by(choice % 16 + 1).chain([data.len()]);
    let pieces = steps.map(|end| scanner.scan(&data[..end])).find(|scanned| *scanned != Ok(None)).unwrap_or(Ok(None));
    assert_eq!(pieces, whole);
    let Ok(Some(len)) = whole else { return };
    let Ok(head) = scan::inspect(&data[..len], LIMITS) else { return };
    assert_eq!(head.len, len, "two parsers see two ends");
    assert_eq!(head.framing, framing(&data[..len]));
}

/// The framing of a valid head, read line by line.
fn framing(head: &[u8]) -> Framing {
    let values = |name: &str| {
        let lines = head.split(|byte| *byte == b'\n').skip(1);
        let fields = lines.filter_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            line[..colon].eq_ignore_ascii_case(name.as_bytes()).then(|| line[colon + 1..].trim_ascii())
        });
        fields.collect::<Vec<_>>()
    };
    match (&values("content-length")[..], &values("transfer-encoding")[..]) {
        ([], []) => Framing::Length(0),
        ([length], []) => {
            Framing::Length(std::str::from_utf8(length).ok().and_then(|n| n.parse().ok()).expect("digits"))
        }
        ([], [coding]) => {
            assert!(coding.eq_ignore_ascii_case(b"chunked"));
            Framing::Chunked
        }
        other => panic!("an ambiguous body: {other:?}"),
    }
}

/// Finding the end of a body and decoding it agree, in pieces of any size, also with a parser that knows nothing of pieces.
pub fn chunks(data: &[u8]) {
    let (choice, data) = with_choice(data);
    let mut chunks = Chunks::default();
    let whole = chunks.feed(data).map(|taken| (taken, chunks.is_done()));
    let size = choice % 64 + 1;
    let (mut fed, mut decoded) = (Ok((0, false)), Ok((0, false)));
    let (mut feeding, mut decoding, mut content) = (Chunks::default(), Chunks::default(), Vec::new());
    for piece in data.chunks(size) {
        if let Ok((taken, false)) = fed {
            fed = feeding.feed(piece).map(|more| (taken + more, feeding.is_done()));
        }
        if let Ok((taken, false)) = decoded {
            let mut piece = piece.to_vec();
            decoded = decoding.decode(&mut piece).map(|(more, data)| {
                content.extend_from_slice(&piece[..data]);
                (taken + more, decoding.is_done())
            });
        }
    }
    assert_eq!(fed, whole);
    assert_eq!(decoded, whole);
    if let Ok((taken, true)) = whole {
        assert_eq!(content, dechunked(&data[..taken]));
    }
}

/// The content of a valid chunked body.
fn dechunked(mut body: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    loop {
        let end = body.iter().position(|byte| *byte == b'\n').expect("a line");
        let digits = body.iter().position(|byte| !byte.is_ascii_hexdigit()).expect("an end of the size");
        let size = std::str::from_utf8(&body[..digits]).expect("digits");
        let size = usize::from_str_radix(size, 16).expect("a size");
        if size == 0 {
            return content;
        }
        content.extend_from_slice(&body[end + 1..][..size]);
        body = body[end + 1 + size..].strip_prefix(b"\r\n").expect("the end of a chunk");
    }
}

/// A request that passes is still one request for the next parser, with the same body, and without what its sender may not say.
pub fn request_rewrite(data: &[u8]) {
    let (choice, data) = with_choice(data);
    let Ok(Some(len)) = HeadScanner::default().scan(data) else { return };
    let Ok(head) = scan::inspect(&data[..len], LIMITS) else { return };
    // An absolute target becomes a path first.
    let Origin { start, len: dropped, lacks_path, .. } = head.origin;
    let mut data = data[..len].to_vec();
    data.splice(start..start + dropped, lacks_path.then_some(b'/'));
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut fields);
    assert!(request.parse(&data).is_ok());
    let names: Vec<&str> = request.headers.iter().map(|field| field.name).collect();
    let has_host = names.iter().any(|name| name.eq_ignore_ascii_case("host"));
    let is_chunked = head.framing == Framing::Chunked;
    let edge = Edge::default();
    let sieve = Sieve { sender: Sender::Stranger, edge: &edge, read: &[], notes_claims: false };
    let sifting = Sifting {
        sieve,
        hides_session: choice & 1 != 0,
        is_upgrade: headers::asks_to_switch(Fields::Wire(request.headers), head.is_http10),
        is_chunked,
        host: (!has_host).then_some("a"),
    };
    let mut out = BytesMut::new();
    rewrite::write_request(&mut out, &request, &Added::default(), sifting);
    assert_eq!(HeadScanner::default().scan(&out), Ok(Some(out.len())));
    let again = scan::inspect(&out, Limits { max_bytes: usize::MAX, max_fields: 128 }).expect("a valid head");
    assert_eq!((again.len, again.framing), (out.len(), head.framing));
    assert!(!again.is_http10);
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut written = httparse::Request::new(&mut fields);
    assert!(written.parse(&out).is_ok());
    for field in written.headers.iter() {
        assert!(!sieve.is_guarded(field.name), "{}", field.name);
        let is_ours =
            ["host", "connection", "transfer-encoding"].iter().any(|own| field.name.eq_ignore_ascii_case(own));
        assert!(is_ours || names.contains(&field.name), "{} comes from nowhere", field.name);
    }
}

/// A response that passes is one response for the next parser, with the body that was read; and a header block for HTTP/2.
pub fn response_rewrite(data: &[u8]) {
    let (choice, data) = with_choice(data);
    let frame = Frame {
        is_head_request: choice & 1 != 0,
        is_upgrade: choice & 2 != 0,
        request_id: Some(b"id"),
        date: b"now",
        limits: None,
        session: b"",
        closes: choice & 4 != 0,
        takes_chunks: choice & 8 != 0,
    };
    let mut out = BytesMut::new();
    let Ok(Some(head)) = rewrite::relay_answer(data, &mut out, frame) else { return };
    let part = head.len * choice / 256;
    assert!(matches!(rewrite::relay_answer(&data[..part], &mut BytesMut::new(), frame), Ok(None)), "half a head");
    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut written = httparse::Response::new(&mut fields);
    assert_eq!(written.parse(&out), Ok(httparse::Status::Complete(out.len())), "{:?}", String::from_utf8_lossy(&out));
    assert_eq!((written.code, written.version), (Some(head.status), Some(1)));
    let all = |name: &str| {
        let named = written.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        named.map(|field| field.value).collect::<Vec<_>>()
    };
    let (lengths, codings) = (all("content-length"), all("transfer-encoding"));
    assert!(lengths.len() + codings.len() <= 1, "two framings");
    let may_have_body = !frame.is_head_request && headers::may_have_body(head.status);
    match head.body {
        AnswerBody::Framed(Framing::Length(length)) if may_have_body => {
            let declared = lengths.first().and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
            assert_eq!(declared, Some(length));
        }
        AnswerBody::Framed(Framing::Length(length)) => assert_eq!(length, 0),
        AnswerBody::Framed(Framing::Chunked) | AnswerBody::UntilClose => {
            assert_eq!((lengths.len(), codings.len()), (0, usize::from(frame.takes_chunks)));
        }
    }
    for hop in ["keep-alive", "proxy-connection", "te"] {
        assert!(all(hop).is_empty(), "{hop}");
    }
    let mut block = BytesMut::new();
    let in_http2 = response::write(&out, &mut block).expect("a head");
    assert_eq!((in_http2.len, in_http2.status), (out.len(), head.status));
    hpack::Decoder::default()
        .decode(&block, |name, value| {
            assert!(!name.iter().any(u8::is_ascii_uppercase) && !value.contains(&b'\n'));
            assert!(!matches!(name, b"connection" | b"transfer-encoding" | b"upgrade"));
        })
        .expect("a header block");
}

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

/// Serves what these bytes ask for; whatever they are, memory is bounded.
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

/// A snapshot of the state is refused, or read as it would be written: no bytes make it panic, also those with a right checksum.
pub fn snapshot(data: &[u8]) {
    let _ = Saved::decode(data);
    let Ok(saved) = Saved::decode(&Saved::seal(1, 2, data)) else { return };
    assert!(
        saved.limits.len() * 16 + saved.bans.len() * 23 + saved.breakers.len() * 33 <= data.len(),
        "more than there was"
    );
    let written = saved.encode();
    let again = Saved::decode(&written).expect("it was read before");
    assert_eq!(again.encode(), written);
    let mut small = saved;
    let _ = small.fit(1 << 16);
    assert!(small.encode().len() <= 1 << 16 || data.len() < 1 << 16);
}

/// Any bytes are a traffic record, or the beginning of one. They are read as a file, and as the entries of a block.
pub fn traffic_record(data: &[u8]) {
    read_record(data);
    let mut file = encode::header(1_700_000_000_000_000_000).to_vec();
    file.extend((data.len() as u32).to_le_bytes());
    file.extend(checksum(data).to_le_bytes());
    file.extend_from_slice(data);
    read_record(&file);
}

/// Each request refers to a shape and to texts that were there before it, and takes at least some bytes.
fn read_record(file: &[u8]) {
    let Ok(Some(mut reader)) = Reader::open(file) else { return };
    let mut requests = 0;
    let mut each = |request: &RecordedRequest, dictionary: &Dictionary| {
        requests += 1;
        assert!((request.shape as usize) < dictionary.shapes().len().min(MOST_SHAPES));
        assert!(request.reason.is_none_or(|text| (text as usize) < MOST_TEXTS));
    };
    while matches!(reader.block(&mut each), Ok(true)) {}
    assert!(requests <= file.len() / BLOCK_HEADER_BYTES);
}
