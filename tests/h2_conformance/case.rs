//! One case: what the client sends and what it expects, and the connection that plays it.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use super::wire::{self, ACK, DATA, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS};
use crate::harness::PATIENCE;

/// The server is taken not to read if it accepts no byte for this long.
const STALLED: Duration = Duration::from_millis(200);

/// The stream of the request that shows that a connection still serves.
pub const NEIGHBOUR: u32 = 100_001;

#[derive(Debug)]
pub enum Step {
    Send(Vec<u8>),
    /// Waits until the server has processed everything up to here: sends PING and waits for its ACK.
    Sync,
    /// Waits until the server ends this stream.
    End(u32),
    /// Waits until this is true of the received frames.
    Until(fn(&[Frame]) -> bool),
    /// Sends the same bytes this often, and stops early if the server closes.
    Repeat(Vec<u8>, usize),
    /// Sends the same frame this often without reading, until the server stops reading too, which it must. Then reads again.
    Stall(Vec<u8>, usize),
}

#[derive(Debug)]
pub enum Expect {
    /// GOAWAY with one of these codes, then the end of the connection.
    Connection(&'static [u32]),
    /// This stream is reset with one of these codes or gets a 4xx; then the connection serves another request.
    Stream(u32, &'static [u32]),
    /// Either of both.
    Error(u32, &'static [u32]),
    /// This stream gets a response with this status, whose frames fulfil the check; then the connection serves another request.
    Served(u32, u16, fn(&Response) -> bool),
    /// The connection is closed. HTTP/2 is not required before.
    Closed,
    /// GOAWAY with `ENHANCE_YOUR_CALM`, or the connection serves another request.
    Bounded,
}

#[derive(Debug)]
pub struct Case {
    pub name: &'static str,
    /// RFC 9113, or RFC 7541 if it begins with `hpack`.
    pub section: &'static str,
    pub steps: Vec<Step>,
    pub expect: Expect,
    /// Sends no preface and SETTINGS of its own accord.
    pub is_raw: bool,
    /// The path of a request that must not reach the app.
    pub hidden: Option<String>,
}

/// A case that sends these bytes at once.
pub fn case(section: &'static str, name: &'static str, expect: Expect, bytes: &[Vec<u8>]) -> Case {
    steps(section, name, expect, vec![Step::Send(bytes.concat())])
}

pub fn steps(section: &'static str, name: &'static str, expect: Expect, steps: Vec<Step>) -> Case {
    Case { name, section, steps, expect, is_raw: false, hidden: None }
}

/// A case that sends the preface itself.
pub fn raw(section: &'static str, name: &'static str, expect: Expect, bytes: &[&[u8]]) -> Case {
    let steps = vec![Step::Send(bytes.concat())];
    Case { name, section, steps, expect, is_raw: true, hidden: None }
}

pub fn any(_: &Response) -> bool {
    true
}

/// Stream 1 gets a 200.
pub const OK: Expect = Expect::Served(1, 200, any);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    fn number(&self, at: usize) -> Option<u32> {
        Some(u32::from_be_bytes(self.payload.get(at..at + 4)?.try_into().ok()?))
    }

    pub fn ends(&self, stream: u32) -> bool {
        let is_last = matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0;
        self.stream == stream && (is_last || self.kind == RST_STREAM)
    }
}

/// The frames of one stream.
#[derive(Clone, Debug, Default)]
pub struct Response {
    /// Every `:status`, interim ones first.
    pub statuses: Vec<u16>,
    pub body: Vec<u8>,
    pub reset: Option<u32>,
    /// All frames of the connection.
    pub frames: Vec<Frame>,
}

impl Response {
    pub fn of(frames: &[Frame], stream: u32) -> Self {
        let mut response = Self { frames: frames.to_vec(), ..Self::default() };
        for frame in frames.iter().filter(|frame| frame.stream == stream) {
            match frame.kind {
                HEADERS => response.statuses.extend(wire::status(&frame.payload)),
                DATA => response.body.extend(&frame.payload),
                RST_STREAM => response.reset = frame.number(0),
                _ => {}
            }
        }
        response
    }

    /// The request as the app got it.
    pub fn seen(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    fn brief(&self) -> String {
        format!("statuses {:?}, {} bytes, reset {:?}", self.statuses, self.body.len(), self.reset)
    }
}

/// A connection to the h2c listener.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    deadline: Instant,
    buffer: Vec<u8>,
    pub frames: Vec<Frame>,
    is_closed: bool,
    pings: u64,
}

impl Connection {
    pub fn open(address: SocketAddr, patience: Duration) -> Self {
        let stream = TcpStream::connect_timeout(&address, patience).expect("the proxy takes connections");
        stream.set_nodelay(true).expect("a socket");
        stream.set_write_timeout(Some(patience)).expect("a socket");
        let deadline = Instant::now() + patience;
        Self { stream, deadline, buffer: Vec::new(), frames: Vec::new(), is_closed: false, pings: 0 }
    }

    /// The same after the preface and SETTINGS. Without a dynamic table, statuses can be read.
    pub fn greeted(address: SocketAddr, patience: Duration) -> Self {
        let mut connection = Self::open(address, patience);
        connection.send(&[PREFACE, &wire::settings(&[(1, 0)])].concat());
        connection
    }

    /// Returns false if the other side has closed.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Reads until `done`, or the end of the connection. Returns false at the deadline.
    pub fn read_until(&mut self, mut done: impl FnMut(&[Frame]) -> bool) -> bool {
        while !done(&self.frames) && !self.is_closed {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.stream.set_read_timeout(Some(left)).expect("a time that is not zero");
            let mut piece = [0; 64 << 10];
            match self.stream.read(&mut piece) {
                Ok(0) => self.is_closed = true,
                Ok(read) => self.buffer.extend(&piece[..read]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return false;
                }
                Err(_) => self.is_closed = true,
            }
            self.parse();
        }
        true
    }

    fn parse(&mut self) {
        let mut at = 0;
        while let [a, b, c, kind, flags, s0, s1, s2, s3, rest @ ..] = &self.buffer[at..] {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            let Some(payload) = rest.get(..length) else { break };
            let stream = u32::from_be_bytes([*s0, *s1, *s2, *s3]) & 0x7fff_ffff;
            self.frames.push(Frame { kind: *kind, flags: *flags, stream, payload: payload.to_vec() });
            at += 9 + length;
        }
        self.buffer.drain(..at);
    }

    /// Waits for the ACK of a new PING.
    pub fn sync(&mut self) -> bool {
        self.pings += 1;
        let payload = (0x7e57_0000_0000_0000 | self.pings).to_be_bytes();
        self.send(&wire::frame(PING, 0, 0, &payload));
        let is_ack = |frame: &Frame| frame.kind == PING && frame.flags & ACK != 0 && frame.payload == payload;
        self.read_until(|frames| frames.iter().any(is_ack))
    }

    pub fn goaway(&self) -> Option<u32> {
        self.frames.iter().rev().find(|frame| frame.kind == GOAWAY).and_then(|frame| frame.number(4))
    }

    /// Whether one more request gets a 200.
    pub fn serves(&mut self, stream: u32) -> Result<(), String> {
        self.send(&wire::get(stream, "/neighbour"));
        let in_time = self.read_until(|frames| frames.iter().any(|frame| frame.ends(stream)));
        let response = Response::of(&self.frames, stream);
        let goaway = self.goaway();
        if in_time && response.statuses == [200] && response.reset.is_none() {
            return Ok(());
        }
        Err(format!("the connection does not serve on: {}, GOAWAY {goaway:?}", response.brief()))
    }

    fn play(&mut self, steps: &[Step]) -> Result<(), String> {
        for step in steps {
            let in_time = match step {
                Step::Send(bytes) => {
                    self.send(bytes);
                    true
                }
                Step::Sync => self.sync(),
                Step::End(stream) => self.read_until(|frames| frames.iter().any(|frame| frame.ends(*stream))),
                Step::Until(done) => self.read_until(done),
                Step::Stall(frame, times) => {
                    self.stall(frame, *times)?;
                    true
                }
                Step::Repeat(bytes, times) => {
                    let _ = (0..*times).all(|_| self.send(bytes));
                    true
                }
            };
            if !in_time {
                return Err("timed out between two steps".to_owned());
            }
        }
        Ok(())
    }

    fn stall(&mut self, frame: &[u8], times: usize) -> Result<(), String> {
        let all = frame.repeat(times);
        let mut sent = 0;
        self.stream.set_write_timeout(Some(STALLED)).expect("a socket");
        while sent < all.len() {
            match self.stream.write(&all[sent..]) {
                Ok(written) => sent += written,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(_) => return Ok(()),
            }
        }
        if sent == all.len() {
            return Err(format!("the server read {sent} bytes while the client read none"));
        }
        self.stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
        let mut writing = self.stream.try_clone().expect("a socket");
        let marker = [0x5a; 8];
        let rest = [&all[sent..sent.next_multiple_of(frame.len())], &wire::frame(PING, 0, 0, &marker)].concat();
        let is_ack = |frame: &Frame| frame.kind == PING && frame.payload == marker;
        let resumes = thread::scope(|scope| {
            scope.spawn(move || _ = writing.write_all(&rest));
            loop {
                let in_time = self.read_until(|frames| frames.len() >= 10_000 || frames.iter().any(is_ack));
                let is_last = !in_time || self.is_closed || self.frames.iter().any(is_ack);
                // There are too many to look at all of them again and again.
                self.frames.clear();
                if is_last {
                    break in_time && !self.is_closed;
                }
            }
        });
        if resumes { Ok(()) } else { Err("the server does not resume".to_owned()) }
    }

    fn is_connection_error(&mut self, codes: &[u32]) -> Result<(), String> {
        let in_time = self.read_until(|_| false);
        match self.goaway() {
            Some(code) if in_time && codes.contains(&code) => Ok(()),
            code if in_time => Err(format!("closed with GOAWAY {code:?}, not {codes:?}")),
            code => Err(format!("not closed in time; GOAWAY {code:?}")),
        }
    }

    fn is_stream_error(&mut self, stream: u32, codes: &[u32]) -> Result<(), String> {
        let in_time = self.read_until(|frames| frames.iter().any(|frame| frame.ends(stream)));
        // The stream of a whole exchange may be reset later.
        let has_reset = |frames: &[Frame]| Response::of(frames, stream).reset.is_some();
        if in_time && !has_reset(&self.frames) {
            self.sync();
        }
        let response = Response::of(&self.frames, stream);
        let is_rejected = response.statuses.last().is_some_and(|status| (400..500).contains(status));
        let is_reset = response.reset.is_some_and(|code| codes.contains(&code));
        if !in_time || !(is_rejected || is_reset) {
            return Err(format!("{}, GOAWAY {:?}, in time: {in_time}", response.brief(), self.goaway()));
        }
        self.serves(NEIGHBOUR)
    }

    /// Plays the case; the error says what happened instead.
    pub fn fulfils(&mut self, case: &Case) -> Result<(), String> {
        self.play(&case.steps)?;
        match case.expect {
            Expect::Connection(codes) => self.is_connection_error(codes),
            Expect::Stream(stream, codes) => self.is_stream_error(stream, codes),
            Expect::Error(stream, codes) => {
                self.read_until(|frames| frames.iter().any(|f| f.ends(stream) || f.kind == GOAWAY));
                self.sync();
                match self.goaway() {
                    Some(_) => self.is_connection_error(codes),
                    None => self.is_stream_error(stream, codes),
                }
            }
            Expect::Served(stream, status, check) => {
                let in_time = self.read_until(|frames| frames.iter().any(|frame| frame.ends(stream)));
                let response = Response::of(&self.frames, stream);
                if !in_time || response.statuses.last() != Some(&status) || response.reset.is_some_and(|code| code != 0)
                {
                    return Err(format!("{}, GOAWAY {:?}, in time: {in_time}", response.brief(), self.goaway()));
                }
                if !check(&response) {
                    let body = String::from_utf8_lossy(&response.body);
                    return Err(format!("served differently: {}: {body}", response.brief()));
                }
                self.serves(NEIGHBOUR)
            }
            Expect::Closed if self.read_until(|_| false) => Ok(()),
            Expect::Closed => Err("not closed in time".to_owned()),
            Expect::Bounded => match self.serves(NEIGHBOUR) {
                Err(_) if self.goaway() == Some(wire::ENHANCE_YOUR_CALM) => Ok(()),
                other => other,
            },
        }
    }
}

/// Whether the server has acknowledged as many SETTINGS.
pub fn settings_acks(frames: &[Frame]) -> usize {
    frames.iter().filter(|frame| frame.kind == SETTINGS && frame.flags & ACK != 0).count()
}
