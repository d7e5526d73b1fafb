//! Which headers of a message are forwarded: the one table for both directions and all protocol versions.
//!
//! [`crate::rewrite`] applies it. Pure: names in, verdicts out.
//!
//! | header | request to the app | response to the client |
//! |---|---|---|
//! | `Connection`, `Keep-Alive`, `Proxy-Connection`, `TE`, `HTTP2-Settings`, `Proxy-Auth…` | removed | removed |
//! | named by `Connection` | removed, except framing, `Host` and guarded headers | removed, except framing |
//! | `Upgrade` | removed, except from an upgrade ([`asks_to_switch`]) | removed, except with 101 and 426 |
//! | `Trailer` | removed | forwarded with the trailers, over HTTP/1.1 |
//! | `Transfer-Encoding` | removed; the proxy frames the body itself | the same; none with 1xx, 204 and 304 |
//! | `Content-Length` | forwarded | forwarded, except with 1xx and 204 |
//! | guarded (addresses, `X-Forwarded-…`, `Fly-…`, `X-Outrigger-…`) | by sender: [`crate::sieve`] | `X-Outrigger-Refused` removed |
//! | the session cookie | removed from `Cookie` | |
//! | the proxy's own: [`Added`]; `X-Request-Id`, rate limits | replaced | replaced or merged in final responses |
//! | all others, such as `Alt-Svc`, `Expect`, `Set-Cookie` | forwarded | forwarded |

use http::header;

use crate::forwarding::Added;
use crate::names::{X_OUTRIGGER_REFUSED, X_REQUEST_ID};
use crate::ratelimit;
use crate::request::Fields;
use crate::sieve::{Passage, Sieve};

/// The most options of `Connection` in a message: each header's name is compared with each option.
pub const MOST_OPTIONS: usize = 16;

/// What happens to a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is forwarded unchanged.
    Passes,
    /// It is removed: it is for the connection that it arrived on (RFC 9110 section 7.6.1).
    HopByHop,
    /// It is removed: it delimits the body, which the proxy frames itself, or which does not exist.
    Framing,
    /// It is removed: its sender may not send it.
    Removed,
    /// It is removed and counted as forged.
    Forged,
    /// Its value is forwarded without the session cookie ([`crate::cookies::write_others`]).
    Cookie,
    /// It is removed: the proxy sends its own.
    Replaced,
}

/// The meaning of a name that the table treats apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    HopByHop,
    Upgrade,
    Trailer,
    Encoding,
    Length,
}

/// By length first: that is one instruction and excludes most headers.
fn role(name: &str) -> Option<Role> {
    let is = |other: &str, role| name.eq_ignore_ascii_case(other).then_some(role);
    match name.len() {
        2 => is("te", Role::HopByHop),
        7 => is("upgrade", Role::Upgrade).or_else(|| is("trailer", Role::Trailer)),
        10 => is("connection", Role::HopByHop).or_else(|| is("keep-alive", Role::HopByHop)),
        14 => is("content-length", Role::Length).or_else(|| is("http2-settings", Role::HopByHop)),
        16 => is("proxy-connection", Role::HopByHop),
        17 => is("transfer-encoding", Role::Encoding),
        18 => is("proxy-authenticate", Role::HopByHop),
        19 => is("proxy-authorization", Role::HopByHop),
        25 => is("proxy-authentication-info", Role::HopByHop),
        _ => None,
    }
}

/// The options of one `Connection`, such as `close` or the name of a header.
pub fn options(connection: &[u8]) -> impl Iterator<Item = &[u8]> {
    connection.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|option| !option.is_empty())
}

/// Whether a request with these headers asks to switch protocols: it has `Upgrade`, and `Connection` names it (RFC 9110 section
/// 7.8), which HTTP/1.0 lacks.
///
/// Requests over HTTP/2, and HTTP over TLS, would pass all checks unseen in a tunnel. An offer of these is ignored, as that
/// section allows.
pub fn asks_to_switch(fields: Fields<'_>, is_http10: bool) -> bool {
    if is_http10 || !fields.has(&header::UPGRADE) {
        return false;
    }
    let (mut may_switch, mut is_named) = (true, false);
    fields.each(&header::UPGRADE, |offered| {
        let mut protocols = options(offered).peekable();
        may_switch &= protocols.peek().is_some() && !protocols.any(carries_http);
    });
    fields.each(&header::CONNECTION, |value| {
        is_named |= options(value).any(|option| option.eq_ignore_ascii_case(b"upgrade"));
    });
    may_switch && is_named
}

fn carries_http(protocol: &[u8]) -> bool {
    let name = protocol.split(|byte| *byte == b'/').next().unwrap_or_default().trim_ascii();
    [&b"h2c"[..], b"h2", b"http", b"tls"].iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// The headers that the `Connection` headers of a message name, in all of its lines.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    fields: Fields<'a>,
    has_any: bool,
}

impl<'a> Named<'a> {
    /// Reads all `Connection` headers.
    pub fn of(fields: Fields<'a>) -> Self {
        let mut has_any = false;
        fields.each(&header::CONNECTION, |value| has_any |= options(value).any(names_header));
        Self { fields, has_any }
    }

    /// For a caller that knows already whether an option names a header ([`names_header`]).
    pub fn known(fields: Fields<'a>, has_any: bool) -> Self {
        Self { fields, has_any }
    }

    fn has(self, name: &str) -> bool {
        let mut is_named = false;
        self.fields.each(&header::CONNECTION, |value| {
            is_named |= options(value).any(|option| option.eq_ignore_ascii_case(name.as_bytes()));
        });
        is_named
    }
}

/// Whether an option of `Connection` is the name of a header.
pub fn names_header(option: &[u8]) -> bool {
    !option.eq_ignore_ascii_case(b"keep-alive") && !option.eq_ignore_ascii_case(b"close")
}

/// The table for one request.
#[derive(Clone, Copy, Debug)]
pub struct RequestHeaders<'a> {
    /// Which guarded headers this sender may send.
    pub sieve: Sieve<'a>,
    /// The headers that `Connection` names.
    pub named: Named<'a>,
    /// The session cookie is Outrigger's own and is removed.
    pub hides_session: bool,
    /// The request asks to switch protocols.
    pub is_upgrade: bool,
    /// The headers that the proxy adds.
    pub added: &'a Added,
}

impl RequestHeaders<'_> {
    /// Decides about the header `name`.
    #[inline]
    pub fn verdict(&self, name: &str) -> Verdict {
        match role(name) {
            Some(Role::Upgrade) if self.is_upgrade => return Verdict::Passes,
            Some(Role::HopByHop | Role::Upgrade | Role::Trailer) => return Verdict::HopByHop,
            Some(Role::Encoding) => return Verdict::Framing,
            Some(Role::Length) => return Verdict::Passes,
            None => {}
        }
        match self.sieve.passage(name) {
            Passage::Passes => {}
            Passage::Removed => return Verdict::Removed,
            Passage::Forged => return Verdict::Forged,
        }
        if self.named.has_any && self.named.has(name) && !self.is_protected(name) {
            Verdict::HopByHop
        } else if self.hides_session && name.eq_ignore_ascii_case("cookie") {
            Verdict::Cookie
        } else if self.added.replaces(name) {
            Verdict::Replaced
        } else {
            Verdict::Passes
        }
    }

    /// Whether `Connection` cannot have the header removed: a client must not hide from the app what a trusted proxy says.
    #[cold]
    fn is_protected(&self, name: &str) -> bool {
        name.eq_ignore_ascii_case("host") || self.sieve.is_guarded(name)
    }
}

/// The table for one response.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHeaders<'a> {
    /// The status code.
    pub status: u16,
    /// The headers that `Connection` names.
    pub named: Named<'a>,
    /// Trailers of the body are forwarded.
    pub passes_trailers: bool,
    /// Outrigger sends `X-Request-Id`.
    pub sends_request_id: bool,
    /// The rate limits that Outrigger sends.
    pub limits: Option<ratelimit::Own<'a>>,
}

impl ResponseHeaders<'_> {
    /// Decides about the header `name`. [`Verdict::Replaced`] also stands for headers that are merged with the proxy's own.
    #[inline]
    pub fn verdict(&self, name: &str) -> Verdict {
        match role(name) {
            Some(Role::HopByHop) => return Verdict::HopByHop,
            Some(Role::Upgrade) if matches!(self.status, 101 | 426) => return Verdict::Passes,
            Some(Role::Trailer) if self.passes_trailers => return Verdict::Passes,
            Some(Role::Upgrade | Role::Trailer) => return Verdict::HopByHop,
            Some(Role::Encoding) => return Verdict::Framing,
            Some(Role::Length) if self.status < 200 || self.status == 204 => return Verdict::Framing,
            Some(Role::Length) => return Verdict::Passes,
            None => {}
        }
        let is = |other: &str| name.len() == other.len() && name.eq_ignore_ascii_case(other);
        if is(X_OUTRIGGER_REFUSED.as_str()) {
            // Between Machines only: an app's response with it would be mistaken for a declined request.
            Verdict::Removed
        } else if self.named.has_any && self.named.has(name) {
            Verdict::HopByHop
        } else if self.status >= 200
            && ((self.sends_request_id && is(X_REQUEST_ID.as_str())) || self.limits.is_some_and(|own| own.merges(name)))
        {
            Verdict::Replaced
        } else {
            Verdict::Passes
        }
    }
}

/// Whether a response with this status can have a body, if the request was not `HEAD` (RFC 9110 section 6.4.1).
pub fn may_have_body(status: u16) -> bool {
    status >= 200 && status != 204 && status != 304
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use http::HeaderName;

    use super::*;
    use crate::client_address::{AddressSource, Edge, Sender};

    const NAMES: [&str; 26] = [
        "Connection",
        "Keep-Alive",
        "Proxy-Connection",
        "TE",
        "HTTP2-Settings",
        "Proxy-Authenticate",
        "Proxy-Authorization",
        "Proxy-Authentication-Info",
        "Trailer",
        "Upgrade",
        "Transfer-Encoding",
        "Content-Length",
        "Host",
        "X-Named",
        "X-Forwarded-For",
        "X_Forwarded_For",
        "Fly-Region",
        "X-Outrigger-Machine",
        "X-Outrigger-Refused",
        "Via",
        "X-Request-Id",
        "Cookie",
        "Set-Cookie",
        "RateLimit",
        "Alt-Svc",
        "Expect",
    ];

    #[test]
    fn the_table() {
        let connection: [httparse::Header<'_>; 2] =
            ["close, x-named, Host", "X-Forwarded-For,content-length,set-cookie2"]
                .map(|value| httparse::Header { name: "Connection", value: value.as_bytes() });
        let named = Named::of(Fields::Wire(&connection));
        let edge = Edge { source: AddressSource::of(HeaderName::from_static("x-forwarded-for")), ..Edge::default() };
        let added = Added::default();
        let request = |sender, name| {
            let sieve = Sieve { sender, edge: &edge, read: &[], notes_claims: false };
            RequestHeaders { sieve, named, hides_session: true, is_upgrade: false, added: &added }.verdict(name)
        };
        let item = [ratelimit::Item::default()];
        let own = ratelimit::Own { items: &item, headers: true, legacy_headers: true };
        let response = |status, name| {
            ResponseHeaders { status, named, passes_trailers: true, sends_request_id: true, limits: Some(own) }
                .verdict(name)
        };
        let mut table = String::new();
        let columns = ["", "from a client", "from a proxy", "200", "103", "204", "426"];
        let mut line = |cells: [String; 7]| {
            let [name, rest @ ..] = cells;
            let _ = write!(table, "{name:25}");
            for cell in rest {
                let _ = write!(table, " | {cell:13}");
            }
            table.truncate(table.trim_end().len());
            table.push('\n');
        };
        line(columns.map(str::to_owned));
        for name in NAMES {
            let verdicts = [
                request(Sender::Stranger, name),
                request(Sender::Proxy, name),
                response(200, name),
                response(103, name),
                response(204, name),
                response(426, name),
            ];
            let [a, b, c, d, e, f] = verdicts.map(|verdict| format!("{verdict:?}"));
            line([name.to_owned(), a, b, c, d, e, f]);
        }
        assert_eq!(table, include_str!("headers_table.txt"), "{table}");
    }

    #[test]
    fn a_request_asks_to_switch_only_if_connection_says_so() {
        for (lines, expected) in [
            ("Connection: Upgrade|Upgrade: websocket", true),
            ("Connection: keep-alive ,uPgrade|Upgrade: WebSocket", true),
            ("Connection: keep-alive|Connection: upgrade|Upgrade: websocket", true),
            ("Connection: Upgrade|Upgrade: x/1, y|Upgrade: websocket", true),
            ("Connection: Upgrade|Upgrade: x|Content-Length: 1", true),
            ("Upgrade: websocket", false),
            ("Connection: close|Upgrade: websocket", false),
            ("Connection: upgrades|Upgrade: websocket", false),
            ("Connection: Upgrade", false),
            ("Connection: Upgrade|Upgrade: ", false),
            ("Connection: Upgrade|Upgrade: ,", false),
            ("Connection: Upgrade|Upgrade: h2c", false),
            ("Connection: Upgrade|Upgrade: websocket, H2C", false),
            ("Connection: Upgrade|Upgrade: h2c|Upgrade: websocket", false),
            ("Connection: Upgrade|Upgrade: websocket|Upgrade: h2", false),
            ("Connection: Upgrade|Upgrade: HTTP/2.0", false),
            ("Connection: Upgrade|Upgrade: TLS/1.2", false),
        ] {
            let fields: Vec<_> = lines
                .split('|')
                .filter_map(|line| line.split_once(": "))
                .map(|(name, value)| httparse::Header { name, value: value.as_bytes() })
                .collect();
            assert_eq!(asks_to_switch(Fields::Wire(&fields), false), expected, "{lines}");
            assert!(!asks_to_switch(Fields::Wire(&fields), true), "{lines}");
        }
    }

    #[test]
    fn connection_names_headers_in_all_of_its_lines() {
        let named = |values: &[&'static str], name: &str| {
            let lines: Vec<_> =
                values.iter().map(|v| httparse::Header { name: "connection", value: v.as_bytes() }).collect();
            let named = Named::of(Fields::Wire(&lines));
            named.has_any && named.has(name)
        };
        assert!(named(&["X-A", "close"], "x-a"));
        assert!(named(&["keep-alive", "close ,\tx-a"], "X-A"));
        assert!(!named(&["X-Ab", "x a"], "X-A"));
        assert!(!named(&["close", "Keep-Alive"], "Close"));
        assert!(!named(&[], "X-A"));
    }
}
