//! RFC 9113 section 8: requests and responses. A malformed request ends only its stream, and does not reach the app.

use super::case::{Case, Expect, OK, Response, Step, case, steps};
use super::wire::*;

const MALFORMED: Expect = Expect::Stream(1, &[PROTOCOL_ERROR]);

fn five_bytes(response: &Response) -> bool {
    response.seen()["body"]["bytes"] == 5
}

/// The path of a case whose request must not reach the app.
fn path_of(name: &str) -> String {
    format!("/{}", name.replace(' ', "-"))
}

/// A request with exactly these headers that must be rejected. `PATH` stands for its own path.
fn malformed(section: &'static str, name: &'static str, fields: &[(&str, &str)]) -> Case {
    let path = path_of(name);
    let fields: Vec<_> =
        fields.iter().map(|(name, value)| (*name, if *value == "PATH" { path.as_str() } else { value })).collect();
    Case { hidden: Some(path.clone()), ..case(section, name, MALFORMED, &[last_headers(1, &fields)]) }
}

/// A `GET` with another header, for which it must be rejected.
fn spoiled(section: &'static str, name: &'static str, field: (&str, &str)) -> Case {
    malformed(section, name, &with("PATH", &[field]))
}

const METHOD: (&str, &str) = (":method", "GET");
const SCHEME: (&str, &str) = (":scheme", "http");
const PATH: (&str, &str) = (":path", "PATH");
const AUTHORITY: (&str, &str) = (":authority", "h2.test");

pub fn pseudo_headers() -> Vec<Case> {
    let odd_path = |path| [METHOD, SCHEME, (":path", path), AUTHORITY];
    let odd_authority = |authority| [METHOD, SCHEME, PATH, (":authority", authority)];
    vec![
        malformed("8.3.1", "no method", &[SCHEME, PATH, AUTHORITY]),
        malformed("8.3.1", "no scheme", &[METHOD, PATH, AUTHORITY]),
        malformed("8.3.1", "no path", &[METHOD, SCHEME, AUTHORITY]),
        malformed("8.3.1", "no pseudo-header", &[("x", "y")]),
        malformed("8.3.1", "neither authority nor Host", &[METHOD, SCHEME, PATH]),
        malformed("8.3", "method twice", &[METHOD, METHOD, SCHEME, PATH, AUTHORITY]),
        malformed("8.3", "scheme twice", &[METHOD, SCHEME, SCHEME, PATH, AUTHORITY]),
        malformed("8.3", "path twice", &[METHOD, SCHEME, PATH, PATH, AUTHORITY]),
        malformed("8.3", "authority twice", &[METHOD, SCHEME, PATH, AUTHORITY, AUTHORITY]),
        malformed("8.3", "unknown pseudo-header", &[METHOD, SCHEME, PATH, AUTHORITY, (":x", "y")]),
        malformed("8.3", "status in a request", &[METHOD, SCHEME, PATH, AUTHORITY, (":status", "200")]),
        malformed("8.3", "pseudo-header after a header", &[METHOD, SCHEME, PATH, ("x", "y"), AUTHORITY]),
        malformed("8.3.1", "empty method", &[(":method", ""), SCHEME, PATH, AUTHORITY]),
        malformed("8.3.1", "method with a space", &[(":method", "GE T"), SCHEME, PATH, AUTHORITY]),
        malformed("8.3.1", "empty scheme", &[METHOD, (":scheme", ""), PATH, AUTHORITY]),
        malformed("8.3.1", "empty path", &odd_path("")),
        malformed("8.3.1", "path without a slash", &odd_path("path")),
        malformed("8.3.1", "path with a space", &odd_path("/path with")),
        malformed("8.3.1", "path with a control character", &odd_path("/path\u{1}")),
        malformed("8.3.1", "path with a line end", &odd_path("/path\r\nx: y")),
        malformed("8.3.1", "path with a fragment", &odd_path("/path-with-a-fragment#x")),
        malformed("8.3.1", "asterisk without OPTIONS", &odd_path("*")),
        malformed("8.3.1", "empty authority", &odd_authority("")),
        malformed("8.3.1", "authority with user information", &odd_authority("user:pass@h2.test")),
        malformed("8.3.1", "authority with a space", &odd_authority("h2 test")),
        malformed("8.3.1", "authority with a path", &odd_authority("h2.test/path")),
        spoiled("8.3.1", "Host of another name", ("host", "other.test")),
        malformed("8.3.1", "two Hosts", &[METHOD, SCHEME, PATH, ("host", "a.test"), ("host", "b.test")]),
        malformed("8.5", "CONNECT with scheme and path", &[(":method", "CONNECT"), SCHEME, PATH, AUTHORITY]),
        malformed("8.5", "CONNECT without authority", &[(":method", "CONNECT")]),
        malformed("8.5", "CONNECT to a reverse proxy", &[(":method", "CONNECT"), (":authority", "h2.test:80")]),
        case(
            "8.3.1",
            "asterisk with OPTIONS",
            Expect::Served(1, 200, |r| r.seen()["target"] == "*"),
            &[last_headers(1, &[(":method", "OPTIONS"), SCHEME, (":path", "*"), AUTHORITY])],
        ),
        case(
            "8.3.1",
            "Host equal to authority",
            Expect::Served(1, 200, |r| r.seen()["headers"]["host"] == "h2.test"),
            &[last_headers(1, &with("/", &[("host", "h2.test")]))],
        ),
        case(
            "8.3.1",
            "Host without authority",
            Expect::Served(1, 200, |r| r.seen()["headers"]["host"] == "a.test"),
            &[last_headers(1, &[METHOD, SCHEME, (":path", "/"), ("host", "a.test")])],
        ),
        case(
            "8.3.1",
            "extension method",
            Expect::Served(1, 200, |r| r.seen()["method"] == "QUERY"),
            &[last_headers(1, &[(":method", "QUERY"), SCHEME, (":path", "/"), AUTHORITY])],
        ),
    ]
}

pub fn header_rules() -> Vec<Case> {
    let crumbs = |r: &Response| r.seen()["headers"]["cookie"] == "a=b; c=d; e=f";
    let passes = |r: &Response| r.seen()["headers"]["x"] == "a \t\u{e9}";
    let cookies = with("/", &[("cookie", "a=b"), ("x", "y"), ("cookie", "c=d"), ("cookie", "e=f")]);
    let big = "x".repeat(16_000);
    let wide = with("/too-large", &[("a", &big), ("b", &big), ("c", &big)]);
    let names: Vec<String> = (0..200).map(|n| format!("x-{n}")).collect();
    let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "y")).collect();
    let in_pieces = |block: &[u8]| -> Vec<u8> {
        let mut pieces = block.chunks(16_384).peekable();
        let mut bytes = frame(HEADERS, END_STREAM, 1, pieces.next().unwrap_or_default());
        while let Some(piece) = pieces.next() {
            let flags = if pieces.peek().is_none() { END_HEADERS } else { 0 };
            bytes.extend(frame(CONTINUATION, flags, 1, piece));
        }
        bytes
    };
    let too_large =
        |name, path: &str, bytes| Case { hidden: Some(path.to_owned()), ..case("10.5.1", name, MALFORMED, &[bytes]) };
    vec![
        spoiled("8.2.1", "name in upper case", ("X-Upper", "y")),
        spoiled("8.2.1", "empty name", ("", "y")),
        spoiled("8.2.1", "name with a space", ("x y", "y")),
        spoiled("8.2.1", "name with a colon", ("x:y", "y")),
        spoiled("8.2.1", "name with a control character", ("x\u{1}", "y")),
        spoiled("8.2.1", "name with DEL", ("x\u{7f}", "y")),
        spoiled("8.2.1", "name with a byte over 0x7f", ("x\u{e9}", "y")),
        spoiled("8.2.1", "name with a quote", ("x\"", "y")),
        spoiled("8.2.1", "value with NUL", ("x", "a\0b")),
        spoiled("8.2.1", "value with CR", ("x", "a\rb")),
        spoiled("8.2.1", "value with LF", ("x", "a\nb: c")),
        spoiled("8.2.1", "value that starts with a space", ("x", " a")),
        spoiled("8.2.1", "value that ends with a tab", ("x", "a\t")),
        case(
            "8.2.1",
            "value with a tab and bytes over 0x7f",
            Expect::Served(1, 200, passes),
            &[last_headers(1, &with("/", &[("x", "a \t\u{e9}")]))],
        ),
        case("8.2.1", "empty value", OK, &[last_headers(1, &with("/", &[("x", "")]))]),
        spoiled("8.2.2", "Connection", ("connection", "close")),
        spoiled("8.2.2", "Keep-Alive", ("keep-alive", "1")),
        spoiled("8.2.2", "Proxy-Connection", ("proxy-connection", "close")),
        spoiled("8.2.2", "Transfer-Encoding", ("transfer-encoding", "chunked")),
        spoiled("8.2.2", "Upgrade", ("upgrade", "websocket")),
        spoiled("8.2.2", "TE other than trailers", ("te", "gzip")),
        spoiled("8.2.2", "TE with more than trailers", ("te", "trailers, gzip")),
        case("8.2.2", "TE of trailers", OK, &[last_headers(1, &with("/", &[("te", "trailers")]))]),
        case("8.2.3", "cookie crumbs", Expect::Served(1, 200, crumbs), &[last_headers(1, &cookies)]),
        too_large("header list of 48000 bytes", "/too-large", in_pieces(&block(&wide))),
        too_large("200 headers", "/too-many", last_headers(1, &with("/too-many", &many))),
    ]
}

/// A `POST` with this `Content-Length`, then `rest`, which must be rejected.
fn mismatch(name: &'static str, length: &str, rest: &[u8]) -> Case {
    let path = path_of(name);
    let bytes = [post(1, &path, &[("content-length", length)]), rest.to_vec()];
    Case { hidden: Some(path), ..case("8.1.1", name, MALFORMED, &bytes) }
}

fn padded_end(payload: &[u8]) -> Vec<u8> {
    frame(DATA, PADDED | END_STREAM, 1, payload)
}

pub fn lengths() -> Vec<Case> {
    let post_of = |length: &'static str| post(1, "/", &[("content-length", length)]);
    let good = |name, bytes: &[Vec<u8>]| case("8.1.1", name, Expect::Served(1, 200, five_bytes), bytes);
    // The app may have the whole request before Outrigger reads the rest.
    let late = |name, bytes: &[Vec<u8>]| case("8.1.1", name, MALFORMED, bytes);
    let five = last_data(1, b"12345");
    let short = [data(1, b"123"), last_headers(1, &[("x", "y")])].concat();
    let no_body = post_fields("/Content-Length-without-a-body", &[("content-length", "5")]);
    let two = post(1, "/two-different-Content-Lengths", &[("content-length", "5"), ("content-length", "6")]);
    vec![
        good("exact Content-Length", &[post_of("5"), five.clone()]),
        good("exact Content-Length without padding", &[post_of("5"), padded_end(b"\x0312345\0\0\0")]),
        good("exact Content-Length, then an empty DATA", &[post_of("5"), data(1, b"12345"), last_data(1, b"")]),
        good("no Content-Length", &[post(1, "/", &[]), data(1, b"12"), last_data(1, b"345")]),
        mismatch("body that is too short", "5", &last_data(1, b"123")),
        mismatch("body that is too long", "5", &last_data(1, b"1234567")),
        late("body that is too long in two frames", &[post_of("5"), data(1, b"12345"), last_data(1, b"6")]),
        mismatch("body that is as long only with padding", "5", &padded_end(b"\x01123\0")),
        late("Content-Length of 0 with a body", &[post_of("0"), last_data(1, b"1")]),
        mismatch("short body before trailers", "5", &short),
        mismatch("Content-Length that is no number", "five", &five),
        mismatch("Content-Length with a sign", "+5", &five),
        mismatch("negative Content-Length", "-5", &five),
        mismatch("empty Content-Length", "", &five),
        mismatch("Content-Length over 64 bits", "99999999999999999999", &five),
        Case {
            hidden: Some("/Content-Length-without-a-body".into()),
            ..case("8.1.1", "Content-Length without a body", MALFORMED, &[last_headers(1, &no_body)])
        },
        Case {
            hidden: Some("/two-different-Content-Lengths".into()),
            ..case("8.1.1", "two different Content-Lengths", MALFORMED, &[two, five])
        },
    ]
}

pub fn trailers() -> Vec<Case> {
    let open = post(1, "/", &[]);
    let after = |trailers: &[(&str, &str)]| [post(1, "/", &[]), data(1, b"12345"), last_headers(1, trailers)];
    vec![
        case("8.1", "trailers", Expect::Served(1, 200, five_bytes), &after(&[("x-checksum", "y")])),
        case("8.1", "trailers without a body", OK, &[open.clone(), last_headers(1, &[("x-checksum", "y")])]),
        case("8.1", "trailers without END_STREAM", MALFORMED, &[open, headers(1, &[("x", "y")])]),
        case(
            "8.1",
            "DATA after trailers",
            Expect::Error(1, &[STREAM_CLOSED]),
            &[post(1, "/hang", &[]), last_headers(1, &[("x", "y")]), data(1, b"abc")],
        ),
        case("8.3", "pseudo-header in trailers", MALFORMED, &after(&[(":path", "/other")])),
        case("8.2.1", "upper case in trailers", MALFORMED, &after(&[("X-Upper", "y")])),
    ]
}

/// A stream error ends one stream; one that was open before it gets the rest of its body and its response.
pub fn open_neighbours() -> Vec<Case> {
    let survives = |section, name, wrong: &[Vec<u8>]| {
        let (first, last) = ([post(1, "/", &[("content-length", "5")]), data(1, b"123")], [last_data(1, b"45")]);
        case(section, name, Expect::Served(1, 200, five_bytes), &[&first[..], wrong, &last].concat())
    };
    let short = post(3, "/never", &[("content-length", "5")]);
    let connection = last_headers(3, &with("/never", &[("connection", "close")]));
    let overflow = [post(3, "/", &[]), window_update(3, 0x7fff_ffff)];
    vec![
        survives("8.1.1", "an open stream outlives a malformed request", &[connection]),
        survives("8.1.1", "an open stream outlives a short body", &[short.clone(), last_data(3, b"123")]),
        survives("8.1.1", "an open stream outlives a long body", &[short, data(3, b"1234567")]),
        survives("8.3.1", "an open stream outlives a missing path", &[last_headers(3, &[METHOD, SCHEME, AUTHORITY])]),
        survives("5.4.2", "an open stream outlives a window that overflows", &overflow),
        survives("5.4.2", "an open stream outlives RST_STREAM of another", &[get(3, "/hang"), reset(3)]),
    ]
}

pub fn responses() -> Vec<Case> {
    let whole = |r: &Response| r.body.is_empty();
    let no_http1 = |r: &Response| r.statuses == [103, 200] && r.body == b"done";
    let continued = |r: &Response| r.statuses == [100, 200] && r.seen()["body"]["bytes"] == 5;
    let head = [(":method", "HEAD"), SCHEME, (":path", "/"), AUTHORITY];
    vec![
        case("8.1", "response to HEAD", Expect::Served(1, 200, whole), &[last_headers(1, &head)]),
        case("8.1", "204", Expect::Served(1, 204, whole), &[get(1, "/204")]),
        case("8.1", "304", Expect::Served(1, 304, whole), &[get(1, "/304")]),
        case("8.1", "interim response", Expect::Served(1, 200, no_http1), &[get(1, "/103")]),
        case(
            "8.1",
            "chunked response of the app",
            Expect::Served(1, 200, |r| r.body == b"hello"),
            &[get(1, "/chunked")],
        ),
        steps(
            "8.1",
            "100 before the body",
            Expect::Served(1, 200, continued),
            vec![
                Step::Send(post(1, "/100", &[("content-length", "5"), ("expect", "100-continue")])),
                Step::Until(|frames| Response::of(frames, 1).statuses == [100]),
                Step::Send(last_data(1, b"12345")),
            ],
        ),
        case(
            "8.1",
            "response before the end of the request",
            Expect::Stream(1, &[0]),
            &[post(1, "/", &[("content-length", "99999999999999")]), data(1, b"123")],
        ),
        case("8.1", "incomplete response of the app", Expect::Stream(1, &[2, 8]), &[get(1, "/cut")]),
    ]
}
