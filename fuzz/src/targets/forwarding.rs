//! The headers about a client, and the head that the application gets, for every kind of sender.

use std::net::IpAddr;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::BytesMut;
use http::{HeaderName, Method, Version};
use outrigger_wire::client_address::{AddressSource, Edge, Sender};
use outrigger_wire::forwarding::{Added, ForwardedStyle, Forwarding};
use outrigger_wire::headers;
use outrigger_wire::request::{Fields, Request};
use outrigger_wire::request_id::RequestId;
use outrigger_wire::rewrite::{self, Sifting};
use outrigger_wire::scan::{self, Framing, HeadScanner, Limits};
use outrigger_wire::sieve::Sieve;
use outrigger_wire::trace_context::{SpanId, TraceId, TraceParent};
use outrigger_wire::via::Pseudonym;

use super::{LIMITS, with_choice};

const SENDERS: [Sender; 4] = [Sender::Stranger, Sender::Proxy, Sender::Fly, Sender::Peer];
const STYLES: [ForwardedStyle; 4] =
    [ForwardedStyle::Both, ForwardedStyle::XForwarded, ForwardedStyle::Rfc7239, ForwardedStyle::Off];
const CONNECTED: &str = "10.1.2.3";
const CLIENT: &str = "203.0.113.9";

static PSEUDONYM: LazyLock<Pseudonym> = LazyLock::new(Pseudonym::fresh);
static EDGES: LazyLock<[Edge; 4]> = LazyLock::new(|| {
    ["", "x-forwarded-for", "forwarded", "fly-client-ip"].map(|name| Edge {
        source: HeaderName::try_from(name).map_or(AddressSource::Connection, AddressSource::of),
        networks: ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().expect("a network")).into(),
        is_fly: name == "fly-client-ip",
    })
});

/// The client's address is the one that a trusted sender appends, with any headers of the client before it. The head that the application gets is one request
/// with the same body; it names each address once, and nothing that its sender may not say.
pub fn forwarding(data: &[u8]) {
    let (who, data) = with_choice(data);
    let (how, data) = with_choice(data);
    let Ok(Some(len)) = HeadScanner::default().scan(data) else { return };
    let Ok(head) = scan::inspect(&data[..len], LIMITS) else { return };
    if head.origin.len > 0 {
        return;
    }
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Request::new(&mut fields);
    assert!(parsed.parse(&data[..len]).is_ok());
    let edge = &EDGES[who >> 2 & 3];
    let sender = SENDERS[who & 3];
    an_appended_address_counts(edge, parsed.headers);

    let fields = Fields::Wire(parsed.headers);
    let host = fields.get(&http::header::HOST).map_or("", |host| std::str::from_utf8(host).expect("a host is ASCII"));
    let target = parsed.path.unwrap_or_default();
    let method = Method::from_bytes(parsed.method.unwrap_or_default().as_bytes()).unwrap_or_default();
    let request = Request {
        method: &method,
        path: target.split('?').next().unwrap_or_default(),
        host,
        fields,
        is_http10: head.is_http10,
        target,
        has_endless_body: head.framing == Framing::Chunked,
    };
    let id = RequestId::from_edge(b"id-1");
    let forwarding = Forwarding {
        sender,
        edge,
        connected: address(CONNECTED),
        received: if head.is_http10 { Version::HTTP_10 } else { Version::HTTP_11 },
        pseudonym: &PSEUDONYM,
        style: STYLES[how & 3],
        with_via: how & 4 != 0,
        request_id: id.as_ref().filter(|_| how & 8 != 0),
        keeper: (how & 16 != 0).then_some("m1"),
        trace: (how & 32 != 0).then_some(TraceParent { trace_id: TraceId(7), span_id: SpanId(8), is_sampled: true }),
        time_left: (how & 64 != 0).then_some(Duration::from_micros(1_500_500)),
    };
    let mut added = Added::default();
    added.fill(&request, &forwarding);
    let sieve = Sieve { sender, edge, read: &[], notes_claims: how & 128 != 0 };
    let sifting = Sifting {
        sieve,
        hides_session: who & 16 != 0,
        is_upgrade: headers::asks_to_switch(fields, head.is_http10),
        is_chunked: head.framing == Framing::Chunked,
        host: host.is_empty().then_some("a").filter(|_| !fields.has(&http::header::HOST)),
    };
    let mut out = BytesMut::new();
    let removed = rewrite::write_request(&mut out, &parsed, &added, sifting);
    if let Some((name, _)) = removed.claim {
        assert!(sieve.notes_claims && sieve.is_guarded(name));
    }
    is_as_promised(&out, &forwarding, &added, &sieve, head.framing);

    // The same head for a peer, and later, with less time and for another span.
    let hop = rewrite::with_hop(&out, b"AAAA");
    assert_eq!(written(&hop, head.framing).iter().filter(|(name, _)| name == "x-outrigger-hop").count(), 1);
    let before = written(&out, head.framing).len();
    rewrite::set_timeout(&mut out, Duration::from_millis(7));
    let again = written(&out, head.framing);
    assert_eq!(again.len(), before);
    if forwarding.time_left.is_some() {
        assert_eq!(again.last().map(|(name, value)| (&**name, &**value)), Some(("x-request-timeout-ms", &b"7"[..])));
    }
    if let Some(trace) = forwarding.trace {
        rewrite::set_span(&mut out, SpanId(0xabc));
        let all = written(&out, head.framing);
        let parents: Vec<_> = all.iter().filter(|(name, _)| name == "traceparent").collect();
        let expected = Some(TraceParent { span_id: SpanId(0xabc), ..trace });
        assert!(parents.len() == 1 && TraceParent::parse(&parents[0].1) == expected, "{parents:?}");
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A trusted sender appends the address that it sees: to a list as a line of its own or to the last line, else as the only line.
fn an_appended_address_counts(edge: &Edge, received: &[httparse::Header<'_>]) {
    let Some(name) = edge.source.header() else {
        assert_eq!(edge.client(Sender::Proxy, Fields::Wire(received)), None);
        return;
    };
    let count = Fields::Wire(received).all(name).len();
    let client = edge.client(Sender::Proxy, Fields::Wire(received));
    if edge.source == AddressSource::Header(name.clone()) {
        assert!(client.is_none() || count == 1, "{count} addresses");
        return;
    }
    for sender in [Sender::Stranger, Sender::Peer] {
        assert_eq!(edge.client(sender, Fields::Wire(received)), None);
    }
    let own = if edge.source == AddressSource::Forwarded { format!("for={CLIENT}") } else { CLIENT.to_owned() };
    let line = httparse::Header { name: name.as_str(), value: own.as_bytes() };
    let lines: Vec<_> = received.iter().copied().chain([line]).collect();
    assert_eq!(edge.client(Sender::Proxy, Fields::Wire(&lines)), Some(address(CLIENT)));
    if let (AddressSource::ForwardedFor, Some(last)) = (&edge.source, Fields::Wire(received).all(name).last()) {
        let joined = [last, &b", "[..], own.as_bytes()].concat();
        let mut lines: Vec<_> = received.to_vec();
        let at = lines.iter().rposition(|line| line.name.eq_ignore_ascii_case(name.as_str())).expect("there is one");
        lines[at].value = &joined;
        assert_eq!(edge.client(Sender::Proxy, Fields::Wire(&lines)), Some(address(CLIENT)));
    }
}

/// The headers of a written head, which is one request with this body: names in lower case, and values.
fn written(head: &[u8], framing: Framing) -> Vec<(String, Vec<u8>)> {
    assert_eq!(HeadScanner::default().scan(head), Ok(Some(head.len())));
    let again = scan::inspect(head, Limits { max_bytes: usize::MAX, max_fields: 128 }).expect("a valid head");
    assert_eq!((again.len, again.framing), (head.len(), framing));
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut parsed = httparse::Request::new(&mut fields);
    assert!(parsed.parse(head).is_ok());
    parsed.headers.iter().map(|field| (field.name.to_ascii_lowercase(), field.value.to_vec())).collect()
}

fn is_as_promised(out: &[u8], forwarding: &Forwarding<'_>, added: &Added, sieve: &Sieve<'_>, framing: Framing) {
    let all = written(out, framing);
    let values =
        |wanted: &str| all.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value).collect::<Vec<_>>();
    for (name, value) in added.iter() {
        let sent = values(name.as_str());
        assert!(sent.len() == 1 && sent[0].trim_ascii() == value.trim_ascii(), "{name}: {sent:?}");
    }
    let source = forwarding.edge.source.header().map(HeaderName::as_str);
    for (name, _) in &all {
        let is_own = added.replaces(name);
        if name.starts_with("x-outrigger-") {
            assert!(is_own, "{name}");
        }
        match forwarding.sender {
            Sender::Stranger => assert!(is_own || !sieve.is_guarded(name), "{name}"),
            Sender::Proxy | Sender::Fly => {
                let is_address = ["x-forwarded-for", "forwarded", "x-real-ip", "fly-client-ip", "true-client-ip"];
                assert!(is_own || !is_address.contains(&&**name) || source == Some(&**name), "{name}");
            }
            Sender::Peer => {}
        }
        let spelled: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let guarded =
            ["x-forwarded-for", "forwarded", "x-real-ip", "fly-client-ip", "x-forwarded-proto", "x-request-id"];
        assert!(!guarded.contains(&&*spelled) || *name == spelled, "{name} reads as {spelled}");
    }
    let has_own_address = forwarding.sender != Sender::Peer
        && matches!(forwarding.style, ForwardedStyle::Both | ForwardedStyle::XForwarded);
    if has_own_address {
        let text = String::from_utf8(values("x-forwarded-for")[0].clone()).expect("addresses");
        let hops: Vec<IpAddr> = text.split(", ").map(address).collect();
        assert_eq!(hops.last(), Some(&forwarding.connected), "the connection's address is the last one");
    }
    let wire: Vec<_> = all.iter().map(|(name, value)| httparse::Header { name, value }).collect();
    assert!(forwarding.pseudonym.is_in(Fields::Wire(&wire)), "a loop would not be noticed");
}
