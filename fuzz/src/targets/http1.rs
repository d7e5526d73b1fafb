//! HTTP/1.1: heads, chunked bodies, and both as they are written for the next hop.

use bytes::BytesMut;
use outrigger_wire::chunks::Chunks;
use outrigger_wire::client_address::{Edge, Sender};
use outrigger_wire::forwarding::Added;
use outrigger_wire::headers;
use outrigger_wire::http2::{hpack, response};
use outrigger_wire::ratelimit::{self, Item, Own};
use outrigger_wire::request::Fields;
use outrigger_wire::rewrite::{self, AnswerBody, Frame, Sifting};
use outrigger_wire::scan::{self, Framing, HeadScanner, Limits, Origin};
use outrigger_wire::sieve::Sieve;

use super::{LIMITS, with_choice};

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

const ITEMS: [Item<'static>; 2] = [
    Item { name: "medium", policy: "\"medium\";q=100;w=60", burst: 100, remaining: 5, full_in_s: 57 },
    Item { name: "all", policy: "\"all\";q=1000;w=60", burst: 1000, remaining: 700, full_in_s: 3 },
];
const SESSION: &[u8] = b"Set-Cookie: _fly_affinity=of-this-response\r\n";

/// A response that passes is one response for the next parser, with the body that was read; and a header block for HTTP/2. It has each
/// rate limit once, and a session unless others may store it.
pub fn response_rewrite(data: &[u8]) {
    let (choice, data) = with_choice(data);
    let own = Own { items: &ITEMS, headers: choice & 16 != 0, legacy_headers: choice & 32 != 0 };
    let frame = Frame {
        is_head_request: choice & 1 != 0,
        is_upgrade: choice & 2 != 0,
        request_id: Some(b"id"),
        date: b"now",
        limits: (own.headers || own.legacy_headers).then_some(own),
        session: if choice & 64 != 0 { SESSION } else { b"" },
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
    if head.status >= 200 {
        limits_are_once(own, all);
        let is_shared = |value: &&[u8]| {
            let mut directives = value.split(|byte| *byte == b',').map(|one| one.trim_ascii().to_ascii_lowercase());
            directives.any(|one| one == b"public" || one.starts_with(b"s-maxage="))
        };
        let may_be_stored = head.status == 304 || all("cache-control").iter().any(is_shared);
        let sessions = all("set-cookie").iter().filter(|cookie| **cookie == &SESSION[12..SESSION.len() - 2]).count();
        let is_expected = choice & 64 != 0 && !may_be_stored;
        assert!(sessions == usize::from(is_expected) || contains(data, b"of-this-response"), "{sessions} sessions");
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

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Each header of a rate limit is there once at most, and none leaves the client more than ours.
fn limits_are_once<'a>(own: Own<'_>, all: impl Fn(&str) -> Vec<&'a [u8]>) {
    let number = |value: &[u8]| {
        let digits: Vec<u8> = value.trim_ascii_start().iter().copied().take_while(u8::is_ascii_digit).collect();
        std::str::from_utf8(&digits).ok().and_then(|digits| digits.parse::<u64>().ok())
    };
    for name in ratelimit::names().filter(|name| own.merges(name)) {
        let values = all(name);
        assert!(values.len() <= 1, "{name}: {values:?}");
        let remaining = values.first().filter(|_| name.ends_with("-Remaining")).and_then(|value| number(value));
        assert!(remaining.is_none_or(|remaining| remaining <= 5), "{name}: {remaining:?}");
    }
    if own.headers {
        assert_eq!((all("ratelimit").len(), all("ratelimit-policy").len()), (1, 1));
    }
    if own.legacy_headers {
        assert!(all("x-ratelimit-remaining").len() + all("x-ratelimit-limit").len() > 0);
    }
}
