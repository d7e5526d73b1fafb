//! The fast lane and the general path forward the same header sections.

use std::time::Duration;

use bytes::BytesMut;
use http::Method;
use outrigger_wire::client_address::{AddressSource, Edge, Sender};
use outrigger_wire::forwarding::{ForwardedStyle, Forwarding};
use outrigger_wire::ratelimit::{Item, Own};
use outrigger_wire::response_scan::ResponseScan;
use outrigger_wire::rewrite::{Frame, Sifting, relay_answer, write_request};
use outrigger_wire::scan::{Limits, inspect};
use outrigger_wire::via::Pseudonym;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// Names in lower case and values, sorted by name; the order of values with the same name stays.
type Section = Vec<(String, Vec<u8>)>;

fn sorted<'a>(fields: impl Iterator<Item = (&'a str, &'a [u8])>) -> Section {
    let mut section: Section = fields.map(|(name, value)| (name.to_ascii_lowercase(), value.to_vec())).collect();
    section.sort_by(|a, b| a.0.cmp(&b.0));
    section
}

fn of_map(map: &HeaderMap) -> Section {
    sorted(map.iter().map(|(name, value)| (name.as_str(), value.as_bytes())))
}

/// A header section as lines: names that the table treats apart and others, with values that matter to them.
fn lines(spaces: &'static [&'static str]) -> impl Strategy<Value = String> {
    let name = select(vec![
        "Keep-Alive",
        "Proxy-Connection",
        "TE",
        "Trailer",
        "Upgrade",
        "HTTP2-Settings",
        "Proxy-Authorization",
        "Proxy-Authenticate",
        "Proxy-Authentication-Info",
        "X-Forwarded-For",
        "X_Forwarded_For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "Forwarded",
        "Fly-Client-IP",
        "Fly-Forwarded-Proto",
        "Fly-Forwarded-Port",
        "CF-Connecting-IP",
        "X-Real-Ip",
        "X-Outrigger-Machine",
        "X-Outrigger-Refused",
        "X-Request-Id",
        "x-request-timeout-ms",
        "Via",
        "CDN-Loop",
        "X-Secret",
        "x-other",
        "Accept",
        "Alt-Svc",
        "Date",
        "Expect",
        "RateLimit",
        "RateLimit-Policy",
        "RateLimit-Remaining",
        "X-RateLimit-Remaining",
    ]);
    let value =
        select(vec!["", "a", "6.6.6.6", "1", "https", "for=6.6.6.6", "h2c", "websocket", "\"app\";r=2;t=9", "a, b"]);
    let option = select(vec![
        "close",
        "keep-alive",
        "Keep-Alive",
        "x-secret",
        "X-Other",
        "upgrade",
        "TE",
        "te, trailers",
        "Set-Cookie",
        "Cookie",
        "content-length",
        "Transfer-Encoding",
        "Host",
        "X-Forwarded-For, Via",
        "CF-Connecting-IP",
        "x_forwarded_for",
        "date",
        "cache-control",
        "content-type",
        "x-request-id",
        "RateLimit",
        "a b",
        "",
        "\"x-secret\"",
        "connection",
    ]);
    let own_value = select(vec![
        "Cookie: a=b; _fly_affinity=x;c=d",
        "Cookie: _fly_affinity=x",
        "cookie: a=b;c=d;",
        "Set-Cookie: a=1",
        "Set-Cookie: b=2",
        "Cache-Control: no-store",
        "Cache-Control: public",
        "Cache-Control: max-age=1, s-maxage=9",
        "Content-Type: text/event-stream; charset=utf-8",
        "Content-Type: text/html",
        "Retry-After: 5",
        "Retry-After: soon",
    ]);
    let framing = select(vec![
        "Content-Length: 0",
        "Content-Length: 5",
        "Content-Length: 3, 3",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: gzip, chunked",
    ]);
    let space = select(spaces);
    let line = prop_oneof![
        12 => (name, value).prop_map(|(name, value)| format!("{name}: {value}")),
        4 => prop::collection::vec(option, 1..4).prop_map(|options| format!("Connection: {}", options.join(" , "))),
        4 => own_value.prop_map(str::to_owned),
        1 => framing.prop_map(str::to_owned),
        1 => "[A-Za-z][A-Za-z_-]{0,12}: [ -~]{0,12}",
    ];
    let line = (line, space).prop_map(|(line, space)| format!("{}\r\n", line.replacen(':', &format!("{space}:"), 1)));
    prop::collection::vec(line, 0..14).prop_map(|lines| lines.concat())
}

fn edge_and_sender() -> impl Strategy<Value = (Edge, Sender)> {
    let source = select(vec!["x-forwarded-for", "fly-client-ip", "forwarded", "cf-connecting-ip", "x-secret"]);
    let edge =
        source.prop_map(|name| Edge { source: AddressSource::of(HeaderName::from_static(name)), ..Edge::default() });
    (edge, select(vec![Sender::Stranger, Sender::Proxy, Sender::Fly, Sender::Peer]))
}

/// The header section for the app, and the headers reported as removed.
type Sent = (Section, bool, Option<(String, Vec<u8>)>);

fn both_requests(head: &str, hides_session: bool, sieve: Sieve<'_>, forwarding: &Forwarding<'_>) -> Option<[Sent; 2]> {
    inspect(head.as_bytes(), Limits { max_bytes: 1 << 16, max_fields: 100 }).ok()?;
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let mut parsed = httparse::Request::new(&mut fields);
    parsed.parse(head.as_bytes()).ok()?;
    let mut map = RequestHeader::build(parsed.method?, parsed.path?.as_bytes(), None).unwrap();
    for field in parsed.headers.iter() {
        map.append_header(field.name.to_owned(), field.value).unwrap();
    }

    let request = Request { fields: Fields::Wire(parsed.headers), ..view(&map, false) };
    let mut added = Added::default();
    added.fill(&request, forwarding);
    let mut out = BytesMut::new();
    let sifting = Sifting { sieve, hides_session, is_upgrade: false, is_chunked: false, host: None };
    let removed = write_request(&mut out, &parsed, &added, sifting);
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut written = httparse::Request::new(&mut fields);
    assert!(written.parse(&out).unwrap().is_complete());
    let claim = removed.claim.map(|(name, value)| (name.to_ascii_lowercase(), value.to_vec()));
    let fast = (sorted(written.headers.iter().map(|field| (field.name, field.value))), removed.forged, claim);

    added.fill(&view(&map.clone(), false), forwarding);
    let removed = edit_request(&mut map, &added, sieve, hides_session).unwrap();
    let claim = removed.claim.map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()));
    Some([fast, (of_map(&map.headers), removed.forged, claim)])
}

/// A final or interim response as one path forwards it; `None` if the path rejects it.
type Relayed = Option<(Section, bool, Option<Duration>)>;

const ID: &[u8] = b"id-1";
const SESSION: &str = "session=1";

fn by_fast_lane(answer: &str, is_head_request: bool, limits: Option<Own<'_>>) -> Relayed {
    let session = format!("Set-Cookie: {SESSION}\r\n");
    let frame = Frame {
        is_head_request,
        is_upgrade: false,
        request_id: Some(ID),
        date: b"now",
        limits,
        session: session.as_bytes(),
        closes: false,
        takes_chunks: true,
    };
    let mut out = BytesMut::new();
    let head = relay_answer(answer.as_bytes(), &mut out, frame).ok()?.unwrap();
    let mut fields = [httparse::EMPTY_HEADER; 200];
    let mut written = httparse::Response::new(&mut fields);
    assert!(written.parse(&out).unwrap().is_complete(), "{out:?}");
    let section = sorted(written.headers.iter().map(|field| (field.name, field.value)));
    Some((section, head.is_event_stream, head.retry_after))
}

/// As Pingora does, with the hooks of the general path.
fn by_general_path(answer: &str, is_head_request: bool, limits: Option<Own<'_>>) -> Relayed {
    ResponseScan::default().feed(answer.as_bytes()).ok()?;
    let mut parser = httparse::ParserConfig::default();
    parser.allow_spaces_after_header_name_in_responses(true).allow_obsolete_multiline_headers_in_responses(true);
    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut parsed = httparse::Response::new(&mut fields);
    parser.parse_response(&mut parsed, answer.as_bytes()).ok()?;
    let mut response = ResponseHeader::build(parsed.code?, None).unwrap();
    for field in parsed.headers.iter() {
        response.append_header(field.name.to_owned(), field.value).unwrap();
    }
    let status = response.status.as_u16();
    let is_framed =
        [header::CONTENT_LENGTH, header::TRANSFER_ENCODING].iter().any(|name| response.headers.contains_key(name));
    if !is_head_request && headers::may_have_body(status) && !is_framed {
        response.insert_header(header::TRANSFER_ENCODING, "chunked").unwrap();
    }
    let retry_after = retry_after(&response);
    if !has_few_options(&response) {
        return None;
    }
    if status < 200 {
        edit_response(&mut response, false, None);
    } else {
        edit_final(&mut response, Some(ID), limits).unwrap();
        if may_carry_session(&response) {
            response.append_header(header::SET_COOKIE, SESSION).unwrap();
        }
    }
    Some((of_map(&response.headers), is_event_stream(&response), retry_after))
}

/// Without the headers that Pingora itself adds, and `Trailer`, as Pingora drops trailers and the fast lane forwards them.
fn comparable(relayed: Relayed) -> Relayed {
    let differs = |name: &str| matches!(name, "date" | "connection" | "trailer");
    relayed.map(|(section, is_stream, after)| {
        (section.into_iter().filter(|(name, _)| !differs(name)).collect(), is_stream, after)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn the_app_gets_the_same_request(
        // Whitespace before a colon is rejected.
        lines in lines(&[""]),
        (edge, sender) in edge_and_sender(),
        hides_session: bool,
        with_via: bool,
        notes_claims: bool,
        style in select(vec![ForwardedStyle::Both, ForwardedStyle::XForwarded, ForwardedStyle::Rfc7239, ForwardedStyle::Off]),
    ) {
        let read = [HeaderName::from_static("x-other")];
        let sieve = Sieve { sender, edge: &edge, read: &read, notes_claims };
        let pseudonym = Pseudonym::fresh();
        let forwarding = Forwarding {
            sender,
            edge: &edge,
            connected: [192, 0, 2, 1].into(),
            received: Version::HTTP_11,
            pseudonym: &pseudonym,
            style,
            with_via,
            request_id: None,
            keeper: Some("m1"),
            time_left: Some(Duration::from_secs(1)),
        };
        let head = format!("GET /a?b HTTP/1.1\r\nHost: a.example\r\n{lines}\r\n");
        if let Some([fast, general]) = both_requests(&head, hides_session, sieve, &forwarding) {
            prop_assert_eq!(&fast, &general, "{}", head);
            for gone in ["connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade", "x_forwarded_for"] {
                prop_assert!(!fast.0.iter().any(|(name, _)| name == gone), "{gone}: {head}");
            }
            prop_assert!(fast.0.iter().any(|(name, _)| name == "host"));
        }
    }

    #[test]
    fn the_client_gets_the_same_response(
        lines in lines(&["", "", "", " ", "\t "]),
        status in select(vec![200, 200, 200, 100, 103, 204, 206, 304, 404, 426, 503]),
        version in select(vec!["1.1", "1.1", "1.1", "1.0"]),
        is_head_request in prop::bool::weighted(0.2),
        shows_limits: bool,
        legacy_headers: bool,
    ) {
        let items = [Item { name: "medium", policy: "\"medium\";q=100;w=60", burst: 100, remaining: 42, full_in_s: 35 }];
        let limits = shows_limits.then_some(Own { items: &items, headers: true, legacy_headers });
        let answer = format!("HTTP/{version} {status} x\r\n{lines}\r\n");
        let fast = by_fast_lane(&answer, is_head_request, limits);
        let general = by_general_path(&answer, is_head_request, limits);
        if let Some((section, ..)) = &general {
            for gone in ["connection", "keep-alive", "proxy-connection", "te", "trailer", "x-outrigger-refused"] {
                prop_assert!(!section.iter().any(|(name, _)| name == gone), "{gone}: {answer}");
            }
        }
        prop_assert_eq!(comparable(fast), comparable(general), "{}", answer);
    }
}

#[test]
fn what_connection_names_is_removed_whatever_else_is() {
    // More headers than are removed in one pass over the map, and an option in each line.
    let hops: String = (0..12).map(|i| format!("Connection: x-{i}\r\nX-{i}: 1\r\n")).collect();
    let answer = format!("HTTP/1.1 200 OK\r\n{hops}X-12: 1\r\nKeep-Alive: 1\r\n\r\n");
    let general = by_general_path(&answer, false, None);
    assert_eq!(comparable(by_fast_lane(&answer, false, None)), comparable(general.clone()));
    let names: Vec<String> = general.unwrap().0.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["set-cookie", "transfer-encoding", "x-12", "x-request-id"]);
}

#[test]
fn http2_hosts_are_checked_as_in_http1() {
    let with_host = |host: &str| {
        let mut head = RequestHeader::build(Method::GET, b"/", None).unwrap();
        head.insert_header(header::HOST, host.to_owned()).unwrap();
        check_h2(&head)
    };
    for host in ["b.example", "[::1]:8080", "192.0.2.1", ""] {
        assert_eq!(with_host(host), Ok(()), "{host}");
    }
    for host in ["b\";for=6.6.6.6;x=\"", "b, c", "b c", "b/c", "b\\", "<b>", "'b'", "b:80:80"] {
        assert_eq!(with_host(host), Err(Malformed::Host), "{host}");
    }
}

#[test]
fn the_app_gets_one_cookie_header_of_a_request_over_http2() {
    let mut head = RequestHeader::build(Method::GET, b"/", None).unwrap();
    for (crumb, expected) in [("a=1", "a=1"), ("b=\"2\"", "a=1; b=\"2\""), ("c=", "a=1; b=\"2\"; c=")] {
        head.append_header(header::COOKIE, crumb).unwrap();
        join_cookies(&mut head).unwrap();
        let values: Vec<_> = head.headers.get_all(header::COOKIE).iter().collect();
        assert_eq!(values, [expected]);
    }
}
