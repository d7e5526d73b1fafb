//! Generated requests, valid and invalid.

use super::Dice;

#[derive(Clone, Debug)]
pub struct Request {
    pub method: &'static str,
    /// Scheme and host of an absolute target.
    pub origin: &'static str,
    pub path: String,
    pub hosts: &'static [&'static str],
    pub fields: Vec<(String, String)>,
    pub body: Body,
    /// A change of the head that only HTTP/1.1 can have: the first of these becomes the second.
    pub spoilt: Option<(&'static str, &'static str)>,
}

#[derive(Clone, Debug)]
pub enum Body {
    None,
    /// With the declared length, right or wrong.
    Length(String, Vec<u8>),
    /// As HTTP/1.1 sends it.
    Chunked(Vec<u8>, Content),
}

/// The content of a chunked body; `None` if it is malformed.
pub type Content = Option<(Vec<Vec<u8>>, Vec<(&'static str, &'static str)>)>;

impl Request {
    /// As HTTP/1.1 sends it.
    pub fn bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {}{} HTTP/1.1\r\n", self.method, self.origin, self.path);
        let hosts = self.hosts.iter().map(|host| ("Host", *host));
        let fields = self.fields.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in hosts.chain(fields) {
            head += &format!("{name}: {value}\r\n");
        }
        let body: &[u8] = match &self.body {
            Body::None => &[],
            Body::Length(length, bytes) => {
                head += &format!("Content-Length: {length}\r\n");
                bytes
            }
            Body::Chunked(bytes, _) => {
                head += "Transfer-Encoding: chunked\r\n";
                bytes
            }
        };
        head += "\r\n";
        if let Some((from, to)) = self.spoilt {
            head = head.replacen(from, to, 1);
        }
        [head.as_bytes(), body].concat()
    }

    pub fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|(other, _)| other.eq_ignore_ascii_case(name))
    }

    /// The body's length, if the declared one is a number, is compared with the declared one.
    pub fn length(&self) -> std::cmp::Ordering {
        match &self.body {
            Body::Length(length, bytes) => length.parse().map_or(std::cmp::Ordering::Equal, |n| bytes.len().cmp(&n)),
            _ => std::cmp::Ordering::Equal,
        }
    }

    /// Whether the client would wait for the rest of it.
    pub fn is_incomplete(&self) -> bool {
        self.length().is_lt()
    }
}

const METHODS: [&str; 10] =
    ["GET", "GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "QUERY", "x-Odd!#$%&'*+.^_`|~9"];
const ODD_METHODS: [&str; 5] = ["CONNECT", "G(T", "", "GE\u{e9}", "TRACE"];

const PATHS: [&str; 11] = [
    "/",
    "/?",
    "/a/b%20c//d;e/f%2Fg?x=1&y=%2F/../z",
    "/x?a=b&a=c&&d",
    "/%E4%20",
    "/a\"b<c>|^`{}'",
    "/caf\u{e9}",
    "/a:80/@b",
    "//a.test/b",
    "/internal/audit/x",
    "/100",
];
const ODD_PATHS: [&str; 12] =
    ["*", "a", "", "/a b", "/a#b", "/a\u{1}", "/\u{7f}", "?x", "/%00", "/./a", "/a/%2e%2e/b", "/metrics"];

const HOSTS: [&[&str]; 4] = [&["a.test"], &["A.test:8080"], &["[::1]:80"], &["a_b~c.d%41:"]];
const ODD_HOSTS: [&[&str]; 11] = [
    &[],
    &[""],
    &["a.test", "a.test"],
    &["a.test", "b.test"],
    &["a b"],
    &["user@a"],
    &["a:80:80"],
    &["a,b"],
    &["[::1"],
    &["a/b"],
    &["b\u{e9}"],
];

const FIELDS: [(&str, &str); 36] = [
    ("X-Mixed-Case", "a"),
    ("x-mixed-case", "b, c"),
    ("Accept-Encoding", "gzip, br"),
    ("X-Empty", ""),
    ("X-Text", "\u{e9} \"q\\\"\", x;y=z"),
    ("X-Tab", "a\tb"),
    ("x!#$%&'*+.^_`|~9", "odd name"),
    ("Cookie", "a=1"),
    ("Cookie", "b=2; c=\"3\""),
    ("Authorization", "Bearer x"),
    ("X-Forwarded-For", "6.6.6.6"),
    ("X_Forwarded_For", "6.6.6.6"),
    ("x-forwarded-host", "forged"),
    ("X-Real-Ip", "6.6.6.6"),
    ("Fly-Client-IP", "6.6.6.6"),
    ("Forwarded", "for=6.6.6.6"),
    ("X-Request-Id", "mine"),
    ("X-Outrigger-Tier", "gold"),
    ("X.Outrigger.Hop", "x"),
    ("X-Request-Timeout-Ms", "5000"),
    ("Via", "1.1 other"),
    ("CDN-Loop", "other"),
    ("Expect", "100-continue"),
    ("TE", "trailers"),
    ("Trailer", "X-T"),
    ("Content_Length", "7"),
    ("Transfer.Encoding", "chunked"),
    ("Content-Type", "text/plain; charset=utf-8"),
    ("Range", "bytes=0-1"),
    ("If-None-Match", "\"x\""),
    ("Proxy-Authorization", "Basic eDp5"),
    ("Proxy-Authenticate", "x"),
    ("HTTP2-Settings", "AAMAAABk"),
    ("Priority", "u=1"),
    ("X-Original-URL", "/metrics"),
    ("Accept", "text/event-stream"),
];
const ODD_FIELDS: [(&str, &str); 26] = [
    ("Connection", "close"),
    ("Connection", "X-Empty, X-Forwarded-For"),
    ("connection", "keep-alive"),
    ("Keep-Alive", "timeout=5"),
    ("Proxy-Connection", "keep-alive"),
    ("Upgrade", "h2c"),
    ("TE", "gzip"),
    ("X-Blank", " a "),
    ("X A", "b"),
    ("X-A ", "b"),
    ("X(A)", "b"),
    ("X\u{e9}", "b"),
    ("X\0", "b"),
    ("", "b"),
    ("X-A", "b\0c"),
    ("X-A", "b\rc"),
    ("X-A", "b\r\n folded"),
    ("X-A", "b\nX-B: c"),
    ("X-A", "b\u{1}"),
    ("X-A", "\u{7f}"),
    ("Content-Length", "x"),
    ("Transfer-Encoding", "chunked"),
    ("Transfer-Encoding", "gzip, chunked"),
    ("Transfer-Encoding", "identity"),
    ("Transfer-Encoding", "\"chunked\""),
    ("Host", "b.test"),
];

/// Changes that only HTTP/1.1 can have.
const SPOILT: [(&str, &str); 16] = [
    (" HTTP/1.1", " HTTP/1.2"),
    (" HTTP/1.1", " HTTP/2.0"),
    (" HTTP/1.1", " http/1.1"),
    (" HTTP/1.1", " x HTTP/1.1"),
    (" HTTP/1.1", "  HTTP/1.1"),
    (" HTTP/1.1", ""),
    (" HTTP/1.1\r\n", " HTTP/1.1\r\n X: y\r\n"),
    (" HTTP/1.1\r\n", " HTTP/1.1\r\n: y\r\n"),
    (" HTTP/1.1\r\n", " HTTP/1.1\r\nno colon\r\n"),
    (" HTTP/1.1\r\n", " HTTP/1.1\n"),
    ("\r\nHost: ", "\r\nHost : "),
    ("\r\nHost: ", "\r\nHost:\r\n "),
    ("\r\nHost: ", "\r\rHost: "),
    ("\r\n\r\n", "\n\n"),
    ("\r\n\r\n", "\r\n\n"),
    ("/", "\u{b}/"),
];

/// Scheme and host before the path.
const ORIGINS: [&str; 6] =
    ["http://a.test", "HTTPS://A.test:8080", "http://b.test", "ftp://a.test", "http://u@a.test", "http://"];

/// Wrong lengths of `hello`.
const SHORT: [&str; 3] = ["0", "1", "3"];
const LONG: [&str; 2] = ["6", "70000"];
/// No lengths.
const LENGTHS: [&str; 8] = ["x", "", "+5", "-5", "0x5", "5, 5", "5 5", "99999999999999999999"];

const MALFORMED_CHUNKS: [&str; 15] = [
    "zz\r\nhello\r\n0\r\n\r\n",
    "\r\nhello\r\n0\r\n\r\n",
    "-5\r\nhello\r\n0\r\n\r\n",
    "0x5\r\nhello\r\n0\r\n\r\n",
    "5\nhello\r\n0\r\n\r\n",
    "5\rxhello\r\n0\r\n\r\n",
    "5 \r\nhello\r\n0\r\n\r\n",
    "5 5\r\nhello\r\n0\r\n\r\n",
    "5\r\nhello0\r\n\r\n",
    "5\r\nhelloXX0\r\n\r\n",
    "5\r\nhello\r\n5;a=\0\r\nhello\r\n0\r\n\r\n",
    "5\r\nhello\r\n0\r\n folded\r\n\r\n",
    "5\r\nhello\r\n0\r\nA: b\nC: d\r\n\r\n",
    "fffffffffffffffff\r\nhello",
    "5\r\nhello\r\n0\r\n\n",
];

/// Requests with one thing that is odd or wrong each.
pub fn singles() -> Vec<Request> {
    let plain = Request {
        method: "POST",
        origin: "",
        path: "/".to_owned(),
        hosts: &["a.test"],
        fields: vec![("X-A".to_owned(), "b".to_owned())],
        body: Body::Length("5".to_owned(), b"hello".to_vec()),
        spoilt: None,
    };
    let field = |name: &str, value: &str| [plain.fields.clone(), vec![(name.to_owned(), value.to_owned())]].concat();
    let big = ("X-Big".to_owned(), "y".repeat(40 << 10));
    let length = |length: &str| Body::Length(length.to_owned(), b"hello".to_vec());
    let mut all = vec![
        plain.clone(),
        Request { body: Body::None, ..plain.clone() },
        Request { fields: field("Content-Length", "5"), ..plain.clone() },
        Request { fields: vec![big.clone()], ..plain.clone() },
        Request { fields: [field("X A", "b"), vec![big]].concat(), ..plain.clone() },
    ];
    let methods = METHODS.into_iter().chain(ODD_METHODS);
    all.extend(methods.map(|method| Request { method, ..plain.clone() }));
    let paths = PATHS.into_iter().chain(ODD_PATHS);
    all.extend(paths.map(|path| Request { path: path.to_owned(), ..plain.clone() }));
    let hosts = HOSTS.into_iter().chain(ODD_HOSTS);
    all.extend(hosts.map(|hosts| Request { hosts, ..plain.clone() }));
    all.extend(ORIGINS.map(|origin| Request { origin, ..plain.clone() }));
    let fields = FIELDS.into_iter().chain(ODD_FIELDS);
    all.extend(fields.map(|(name, value)| Request { fields: field(name, value), ..plain.clone() }));
    all.extend(SPOILT.map(|spoilt| Request { spoilt: Some(spoilt), ..plain.clone() }));
    let lengths = LENGTHS.into_iter().chain(SHORT).chain(LONG);
    all.extend(lengths.map(|declared| Request { body: length(declared), ..plain.clone() }));
    all.extend(
        MALFORMED_CHUNKS
            .map(|chunks| Request { body: Body::Chunked(chunks.as_bytes().to_vec(), None), ..plain.clone() }),
    );
    all
}

/// A request in which anything may be odd or wrong.
pub fn generate(dice: &mut Dice) -> Request {
    let method = dice.pick_or(&METHODS, &ODD_METHODS);
    let path = dice.pick_or(&PATHS, &ODD_PATHS).to_owned();
    let hosts = dice.pick_or(&HOSTS, &ODD_HOSTS);
    let origin = if dice.one_in(8) { dice.pick(&ORIGINS) } else { "" };
    let fields = (0..dice.below(7)).map(|_| dice.pick_or(&FIELDS, &ODD_FIELDS));
    let mut fields: Vec<_> = fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    match dice.below(60) {
        0 => fields.extend((0..110).map(|n| (format!("X-{n}"), "y".to_owned()))),
        1 => fields.push(("X-Big".to_owned(), "y".repeat(40 << 10))),
        2 => fields.push(("X-Long".to_owned(), "y".repeat(3000))),
        _ => {}
    }
    let body = body(dice);
    let spoilt = dice.one_in(14).then(|| dice.pick(&SPOILT));
    Request { method, origin, path, hosts, fields, body, spoilt }
}

fn body(dice: &mut Dice) -> Body {
    let bytes = |dice: &mut Dice, most| (0..dice.below(most)).map(|n| b'a' + (n % 26) as u8).collect::<Vec<u8>>();
    match dice.below(20) {
        0..8 => Body::None,
        8..12 => {
            let most = dice.pick(&[1, 6, 300, 60_000]);
            let bytes = bytes(dice, most);
            Body::Length(bytes.len().to_string(), bytes)
        }
        12 => {
            let length = if dice.one_in(2) { dice.pick(&SHORT) } else { dice.pick(&LONG) };
            Body::Length(length.to_owned(), b"hello".to_vec())
        }
        13 => Body::Length(dice.pick(&LENGTHS).to_owned(), b"hello".to_vec()),
        14 => Body::Chunked(dice.pick(&MALFORMED_CHUNKS).as_bytes().to_vec(), None),
        _ => {
            let most = dice.pick(&[2, 20, 500]);
            let pieces: Vec<Vec<u8>> = (0..dice.below(5)).map(|_| [vec![b'x'], bytes(dice, most)].concat()).collect();
            let (wire, trailers) = chunked(dice, &pieces);
            Body::Chunked(wire, Some((pieces, trailers)))
        }
    }
}

/// These pieces as chunks of odd shapes, with or without trailers.
pub fn chunked(dice: &mut Dice, pieces: &[Vec<u8>]) -> (Vec<u8>, Vec<(&'static str, &'static str)>) {
    const EXTENSIONS: [&str; 7] = ["", "", "", ";a", ";a=b;c=d", " \t; a = \"b;\\\"c\"", ";\u{e9}"];
    let mut wire = Vec::new();
    for piece in pieces {
        let size = match dice.below(3) {
            0 => format!("{:x}", piece.len()),
            1 => format!("{:X}", piece.len()),
            _ => format!("{:05x}", piece.len()),
        };
        wire.extend(format!("{size}{}\r\n", dice.pick(&EXTENSIONS)).bytes());
        wire.extend(piece);
        wire.extend(b"\r\n");
    }
    wire.extend(format!("{}{}\r\n", dice.pick(&["0", "0", "000"]), dice.pick(&EXTENSIONS)).bytes());
    let trailers = if dice.one_in(3) { vec![("x-t", "1"), ("x-checksum", "y z")] } else { vec![] };
    for (name, value) in &trailers {
        wire.extend(format!("{name}: {value}\r\n").bytes());
    }
    wire.extend(b"\r\n");
    (wire, trailers)
}
