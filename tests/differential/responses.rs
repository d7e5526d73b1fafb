//! Generated responses of the app, cut at every byte, for clients of each version.

use std::io;

use super::{Dice, each, requests};
use crate::{
    backend::{Backend, Play},
    h2_conformance::{
        case::{Connection, Response},
        wire,
    },
    harness::{Client, PATIENCE, Proxy},
};

/// A response of the app.
#[derive(Clone, Debug)]
struct Script {
    bytes: Vec<u8>,
    /// The app closes the connection after it.
    closes: bool,
    /// The request is `HEAD`.
    is_head: bool,
    expect: Expect,
}

#[derive(Clone, Debug)]
enum Expect {
    /// The client gets this status and body.
    Whole(u16, Vec<u8>),
    /// The head is invalid: 502.
    Fails,
    /// The body is: 502, or this status and the beginning of this body, and an end that shows that it is incomplete.
    BreaksOff(u16, Vec<u8>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Http10,
    Http11,
    Http2,
}

/// The client's view of a response.
#[derive(Debug, PartialEq)]
struct Got {
    status: u16,
    body: Vec<u8>,
    is_whole: bool,
}

impl Expect {
    fn is(&self, got: &Got) -> bool {
        let is_502 = got.status == 502 && got.is_whole;
        match self {
            Self::Whole(status, body) => got.is_whole && got.status == *status && got.body == *body,
            Self::Fails => is_502,
            Self::BreaksOff(status, body) => {
                is_502 || (got.status == *status && body.starts_with(&got.body) && !got.is_whole)
            }
        }
    }
}

const STATUSES: [&str; 7] = [
    "200 OK",
    "201 Created",
    "206 ",
    "302 Found",
    "404 \u{e9} ? \"x\"",
    "418 I'm a teapot",
    "500 Internal Server Error",
];

const FIELDS: [&str; 12] = [
    "X-Mixed-Case: a\r\n",
    "X-Kept \t: 1\r\n",
    "x-empty:\r\n",
    "X-Blank: \t a \t\r\n",
    "Set-Cookie: a=1\r\nSet-Cookie: b=2\r\n",
    "Connection: X-Secret\r\nX-Secret: 1\r\n",
    "Keep-Alive: timeout=9\r\n",
    "Trailer: X-T\r\n",
    "Upgrade: h2c\r\n",
    "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n",
    "X-Text: \u{e9}\r\n",
    "Content-Type: text/plain\r\n",
];

/// Heads that must not pass, as what follows the status line. `LARGE` stands for 70 KiB.
const INVALID: [&str; 22] = [
    "Content-Length: 3, 3\r\n\r\nabc",
    "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked\r\nContent-Length : 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "Transfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "Transfer-Encoding: identity\r\n\r\nabc",
    "Content-Length: +3\r\n\r\nabc",
    "Content-Length: -3\r\n\r\nabc",
    "Content-Length: 0x3\r\n\r\nabc",
    "Content-Length:\r\n\r\nabc",
    "Content-Length: 99999999999999999999\r\n\r\nabc",
    "X-A: b\r\n folded\r\nContent-Length: 3\r\n\r\nabc",
    "X-A: b\0c\r\nContent-Length: 3\r\n\r\nabc",
    "X-A: b\rc\r\nContent-Length: 3\r\n\r\nabc",
    "X A: b\r\nContent-Length: 3\r\n\r\nabc",
    ": b\r\nContent-Length: 3\r\n\r\nabc",
    "no colon\r\nContent-Length: 3\r\n\r\nabc",
    "X-A: LARGE\r\nContent-Length: 3\r\n\r\nabc",
    "Content-Length: 3\r\n",
    "Content-Length: 3",
];

/// Status lines that must not pass.
const INVALID_LINES: [&str; 7] = [
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "HTTP/1.1 99 Low\r\n\r\n",
    "HTTP/1.1 20 OK\r\n\r\n",
    "HTTP/1.1 2000 OK\r\n\r\n",
    "HTTP/2.0 200 OK\r\n\r\n",
    "hello\r\n\r\n",
    "\x16\x03\x01\r\n\r\n",
];

/// Chunks whose first is right, and what follows is not.
const BROKEN_CHUNKS: [&str; 8] =
    ["zz\r\n", "\r\n", "-1\r\n", "3\nabc", "2;\0\r\n", "3\r\nabcX", "5\r\nab", "0\r\nX: y\n"];

fn scripts() -> Vec<Script> {
    let mut dice = Dice(0x5eed_0003);
    let mut scripts: Vec<Script> = (0..30).map(|_| valid(&mut dice)).collect();
    let fails =
        |bytes: String| Script { bytes: bytes.into_bytes(), closes: true, is_head: false, expect: Expect::Fails };
    scripts.extend(INVALID_LINES.map(|line| fails(line.to_owned())));
    scripts.extend(
        INVALID.map(|rest| fails(format!("HTTP/1.1 200 OK\r\n{rest}").replace("LARGE", &"y".repeat(70 << 10)))),
    );
    scripts.extend(BROKEN_CHUNKS.map(|rest| {
        let bytes = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n{rest}").into_bytes();
        let expect = Expect::BreaksOff(200, b"helloabc".to_vec());
        Script { bytes, closes: true, is_head: false, expect }
    }));
    let short = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello".to_vec();
    let expect = Expect::BreaksOff(200, b"hello".to_vec());
    scripts.push(Script { bytes: short, closes: true, is_head: false, expect });
    scripts
}

/// A valid response: interim ones, a status line, odd headers, and a body in any framing.
fn valid(dice: &mut Dice) -> Script {
    let mut bytes = String::new();
    for _ in 0..dice.below(3) {
        let interim =
            ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 3\r\n\r\n"];
        bytes += dice.pick(&interim);
    }
    let is_head = dice.one_in(5);
    let version = if dice.one_in(4) { "1.0" } else { "1.1" };
    let bodiless = dice.one_in(5).then(|| dice.pick(&["204 No Content", "304 Not Modified"]));
    let status = bodiless.unwrap_or_else(|| dice.pick(&STATUSES));
    bytes += &format!("HTTP/{version} {status}\r\n");
    (0..dice.below(4)).for_each(|_| bytes += dice.pick(&FIELDS));
    let body: Vec<u8> = (0..dice.below(40)).map(|n| b'a' + (n % 26) as u8).collect();
    let has_body = !is_head && bodiless.is_none();
    let status = status[..3].parse().expect("a number");
    let mut closes = false;
    let mut rest = body.clone();
    match dice.below(3) {
        0 => bytes += &format!("{}: {}\r\n", dice.pick(&["Content-Length", "content-length \t"]), body.len()),
        1 => {
            bytes += dice.pick(&["Transfer-Encoding: chunked\r\n", "transfer-encoding: Chunked\r\n"]);
            let pieces: Vec<Vec<u8>> = body.chunks(1 + dice.below(9)).map(<[u8]>::to_vec).collect();
            rest = requests::chunked(dice, &pieces).0;
        }
        _ => closes = has_body,
    }
    bytes += "\r\n";
    let expected = if has_body {
        body
    } else {
        rest.clear();
        Vec::new()
    };
    Script { bytes: [bytes.into_bytes(), rest].concat(), closes, is_head, expect: Expect::Whole(status, expected) }
}

fn ask(proxy: &Proxy, version: Version, path: &str, is_head: bool) -> Result<Got, String> {
    let method = if is_head { "HEAD" } else { "GET" };
    match version {
        Version::Http2 => ask_http2(proxy, method, path),
        Version::Http10 => {
            let mut client = proxy.connect();
            client.send(format!("{method} {path} HTTP/1.0\r\nHost: a.test\r\n\r\n"));
            let got = read(&mut client, is_head)?;
            match client.rest() {
                Ok(rest) if !rest.is_empty() => Err("more follows the response".to_owned()),
                _ => Ok(got),
            }
        }
        Version::Http11 => {
            let mut client = proxy.connect();
            let next = "GET /next HTTP/1.1\r\nHost: a.test\r\n\r\n";
            client.send(format!("{method} {path} HTTP/1.1\r\nHost: a.test\r\n\r\n{next}"));
            let got = read(&mut client, is_head)?;
            // In every case the client knows where the response ends, or that the connection does.
            let next = client.try_answer().map(|answer| answer.json()["target"].clone());
            match next {
                Ok(next) if got.is_whole && next == "/next" => Ok(got),
                Err(_) if !got.is_whole => Ok(got),
                next => Err(format!("{next:?} follows {got:?}")),
            }
        }
    }
}

/// Reads a response, whole or not.
fn read(client: &mut Client, is_head: bool) -> Result<Got, String> {
    let head = client.head().map_err(|e| format!("no response: {e}"))?;
    let mut got = Got { status: head.status, body: Vec::new(), is_whole: true };
    if is_head || matches!(head.status, 204 | 304) {
        return Ok(got);
    }
    let read = match (head.header("transfer-encoding"), head.header("content-length")) {
        (Some(_), _) => read_chunks(client, &mut got.body),
        (None, Some(length)) => {
            let length = length.parse().map_err(|e| format!("{length:?}: {e}"))?;
            client.take(length).map(|body| got.body = body)
        }
        (None, None) => client.rest().map(|body| got.body = body),
    };
    if read.is_err() {
        got.is_whole = false;
        let rest = client.rest().or_else(|_| client.piece()).unwrap_or_default();
        if head.header("content-length").is_some() {
            got.body = rest;
        }
    }
    Ok(got)
}

fn read_chunks(client: &mut Client, body: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let line = client.take_through(b"\r\n")?;
        let text = String::from_utf8_lossy(&line);
        let size = text.trim_end().split([';', ' ', '\t']).next().unwrap_or_default();
        let size = usize::from_str_radix(size, 16).map_err(|_| io::ErrorKind::InvalidData)?;
        if size == 0 {
            while client.take_through(b"\r\n")? != b"\r\n" {}
            return Ok(());
        }
        body.extend(client.take(size)?);
        client.take_through(b"\r\n")?;
    }
}

fn ask_http2(proxy: &Proxy, method: &str, path: &str) -> Result<Got, String> {
    let mut connection = Connection::greeted(proxy.h2c, PATIENCE);
    let fields = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "a.test")];
    connection.send(&wire::last_headers(1, &fields));
    connection.read_until(|frames| frames.iter().any(|frame| frame.ends(1)));
    let Response { statuses, body, reset, .. } = Response::of(&connection.frames, 1);
    let is_whole = reset.is_none() && connection.frames.iter().any(|frame| frame.ends(1));
    connection.serves(3)?;
    let status = statuses.last().copied().filter(|status| *status >= 200);
    // A reset before the head shows as much as one after it.
    Ok(Got { status: status.ok_or(format!("no response: {reset:?}"))?, body, is_whole })
}

#[test]
fn a_response_is_the_same_wherever_it_is_cut_and_for_every_client() {
    let app = Backend::start();
    let scripts: Vec<Script> = scripts();
    for (number, script) in scripts.iter().enumerate() {
        app.at(&format!("/{number}"), Play::InTwo(script.bytes.clone(), script.closes));
    }
    let proxy = Proxy::start(&app);
    let versions = [Version::Http10, Version::Http11, Version::Http2];
    let jobs: Vec<(usize, Version)> =
        (0..scripts.len()).flat_map(|number| versions.map(|version| (number, version))).collect();
    each(&jobs, |(number, version)| {
        let script = &scripts[*number];
        let end = script.bytes.len();
        // Zero is in one piece. Most of a large head is the same byte, and a head that fails does so at its end.
        let step = match script.expect {
            Expect::Fails if end > 1000 => 8000,
            Expect::Fails => 7,
            _ => 1,
        };
        let cuts = (0..end).step_by(step);
        let problem = |at: usize| {
            let got = ask(&proxy, *version, &format!("/{number}?{at}"), script.is_head);
            let is_right = got.as_ref().is_ok_and(|got| script.expect.is(got));
            (!is_right).then(|| format!("{version:?}, cut at {at}: {got:?}\n  {script:?}"))
        };
        cuts.filter_map(problem).take(1).collect()
    });
}
