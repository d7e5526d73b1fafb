//! One end of a WebSocket connection, client or app: bytes, header sections, frames. It validates no frames, so that both ends
//! can break any rule.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use ring::digest::{SHA256, digest};

use crate::harness::{PATIENCE, hex};

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// How long an end waits for the other one.
const READ: Duration = Duration::from_secs(5);

/// A received frame, unmasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// FIN, the reserved bits and the opcode.
    pub first: u8,
    pub is_masked: bool,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn opcode(&self) -> u8 {
        self.first & 0x0f
    }

    pub fn is_final(&self) -> bool {
        self.first & 0x80 != 0
    }

    pub fn shown(&self) -> String {
        format!("frame {:02x} of {}", self.first, shown(&self.payload))
    }
}

/// A frame as on the wire; `first` is FIN, the reserved bits and the opcode.
pub fn encode(first: u8, is_masked: bool, payload: &[u8]) -> Vec<u8> {
    let bit = if is_masked { 0x80 } else { 0 };
    let mut bytes = vec![first];
    match payload.len() {
        len @ 0..126 => bytes.push(bit | len as u8),
        len @ 126..0x1_0000 => {
            bytes.push(bit | 126);
            bytes.extend((len as u16).to_be_bytes());
        }
        len => {
            bytes.push(bit | 127);
            bytes.extend((len as u64).to_be_bytes());
        }
    }
    let at = bytes.len() + if is_masked { 4 } else { 0 };
    if is_masked {
        bytes.extend(MASK);
    }
    bytes.extend(payload);
    if is_masked {
        mask(&mut bytes[at..], MASK);
    }
    bytes
}

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

fn mask(bytes: &mut [u8], key: [u8; 4]) {
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut pieces = bytes.chunks_exact_mut(8);
    for piece in &mut pieces {
        let word = u64::from_ne_bytes(piece.try_into().expect("8 bytes")) ^ wide;
        piece.copy_from_slice(&word.to_ne_bytes());
    }
    pieces.into_remainder().iter_mut().zip(key.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
}

/// Short payloads as text, long ones as a hash.
pub fn shown(bytes: &[u8]) -> String {
    match bytes.len() {
        0..200 => format!("{:?}", String::from_utf8_lossy(bytes)),
        len => format!("{len} bytes, {}", hex(&digest(&SHA256, bytes).as_ref()[..8])),
    }
}

/// A header section.
#[derive(Debug, Clone, Default)]
pub struct Head {
    pub first_line: String,
    /// Names in lower case, in order of arrival.
    pub fields: Vec<(String, String)>,
}

impl Head {
    fn parse(text: &str) -> Self {
        let mut lines = text.trim_end().split("\r\n");
        let first_line = lines.next().unwrap_or_default().to_owned();
        let field = |line: &str| line.split_once(':').map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned()));
        Self { first_line, fields: lines.filter_map(field).collect() }
    }

    /// All values, joined.
    pub fn field(&self, name: &str) -> Option<String> {
        let values: Vec<_> = self.fields.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect();
        (!values.is_empty()).then(|| values.join(", "))
    }

    pub fn status(&self) -> u16 {
        self.first_line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
    }

    pub fn path(&self) -> &str {
        self.first_line.split(' ').nth(1).and_then(|target| target.split('?').next()).unwrap_or_default()
    }

    /// Whether it is a valid request or response for a switch to WebSocket.
    pub fn is_handshake(&self) -> bool {
        let has = |name: &str, wanted: &str| {
            let value = self.field(name).unwrap_or_default();
            value.split(',').any(|option| option.trim().eq_ignore_ascii_case(wanted))
        };
        has("connection", "upgrade") && has("upgrade", "websocket")
    }
}

/// See the module.
#[derive(Debug)]
pub struct End {
    stream: TcpStream,
    buffer: Vec<u8>,
    at: usize,
    is_client: bool,
    /// Observations that the other run must share.
    pub notes: Vec<String>,
    /// The app switched protocols on this connection.
    pub is_tunnel: bool,
}

impl End {
    pub fn new(stream: TcpStream, is_client: bool) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(READ))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, buffer: Vec::new(), at: 0, is_client, notes: Vec::new(), is_tunnel: false })
    }

    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        Self::new(TcpStream::connect_timeout(&address, PATIENCE)?, true)
    }

    pub fn note(&mut self, what: impl Into<String>) {
        self.notes.push(what.into());
    }

    /// Another handle of the same connection, without its buffer.
    pub fn other_half(&self) -> io::Result<Self> {
        Self::new(self.stream.try_clone()?, self.is_client)
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Sends each byte on its own, so that the other side may see it on its own.
    pub fn send_bytewise(&mut self, bytes: &[u8]) -> io::Result<()> {
        for byte in bytes {
            self.send([*byte])?;
            std::thread::sleep(Duration::from_micros(300));
        }
        Ok(())
    }

    /// A frame of this end, as on the wire.
    pub fn frame(&self, first: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
        encode(first, self.is_client, payload.as_ref())
    }

    /// Sends one frame that is a whole message.
    pub fn say(&mut self, opcode: u8, payload: impl AsRef<[u8]>) -> io::Result<()> {
        self.send(self.frame(0x80 | opcode, payload))
    }

    pub fn close(&mut self, code: u16, reason: &str) -> io::Result<()> {
        self.say(CLOSE, [&code.to_be_bytes(), reason.as_bytes()].concat())
    }

    pub fn take(&mut self, bytes: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() - self.at < bytes {
            self.fill()?;
        }
        self.at += bytes;
        Ok(self.buffer[self.at - bytes..self.at].to_vec())
    }

    pub fn head(&mut self) -> io::Result<Head> {
        loop {
            if let Some(len) = self.buffer[self.at..].windows(4).position(|window| window == b"\r\n\r\n") {
                let bytes = self.take(len + 4)?;
                return Ok(Head::parse(&String::from_utf8_lossy(&bytes)));
            }
            self.fill()?;
        }
    }

    pub fn next(&mut self) -> io::Result<Frame> {
        let [first, second] = self.take(2)?[..] else { unreachable!() };
        let len = match second & 0x7f {
            126 => self.take(2)?.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)),
            127 => self.take(8)?.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)),
            len => usize::from(len),
        };
        let is_masked = second & 0x80 != 0;
        let key = if is_masked { self.take(4)? } else { vec![0; 4] };
        let mut payload = self.take(len)?;
        mask(&mut payload, key.try_into().expect("4 bytes"));
        Ok(Frame { first, is_masked, payload })
    }

    /// The next frame, noted.
    pub fn hear(&mut self) -> io::Result<Frame> {
        let frame = self.next()?;
        self.note(frame.shown());
        Ok(frame)
    }

    /// The next message that was sent as one frame; fails if it is another one.
    pub fn expect(&mut self, opcode: u8, payload: impl AsRef<[u8]>) -> io::Result<()> {
        let frame = self.next()?;
        let fits = frame.first == 0x80 | opcode && frame.payload == payload.as_ref();
        if fits { Ok(()) } else { Err(io::Error::new(ErrorKind::InvalidData, frame.shown())) }
    }

    /// Reads to the end; returns the bytes and how it ended: `end`, or the error's kind.
    pub fn rest(&mut self) -> (Vec<u8>, String) {
        let how = loop {
            match self.fill() {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => break "end".to_owned(),
                Err(e) => break format!("{:?}", e.kind()),
            }
        };
        let bytes = self.buffer.split_off(self.at);
        (bytes, how)
    }

    /// Reads to the end and notes the bytes and how it ended.
    pub fn note_end(&mut self) {
        let (bytes, how) = self.rest();
        self.note(format!("{how} after {}", shown(&bytes)));
    }

    /// The same where a reset and an end are the same to a WebSocket (1006), and the bytes before a reset may be lost.
    pub fn note_gone(&mut self) {
        let (_, how) = self.rest();
        let is_gone = matches!(how.as_str(), "end" | "ConnectionReset" | "BrokenPipe");
        self.note(if is_gone { "gone" } else { how.as_str() });
    }

    pub fn finish(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// The connection will be closed with a reset.
    pub fn will_reset(&self) -> io::Result<()> {
        Ok(rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO))?)
    }

    /// Sends until the other side has accepted no byte for `time`, 64 MiB at most; returns how many it accepted.
    pub fn send_until_blocked(&mut self, piece: &[u8], time: Duration) -> io::Result<usize> {
        const LIMIT: usize = 64 << 20;
        self.stream.set_write_timeout(Some(time))?;
        let mut sent = 0;
        while sent < LIMIT {
            let wanted = &piece[sent % piece.len()..];
            match self.stream.write(wanted) {
                Ok(accepted) => {
                    sent += accepted;
                    if accepted < wanted.len() {
                        break;
                    }
                }
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(e) => return Err(e),
            }
        }
        self.stream.set_write_timeout(Some(PATIENCE))?;
        Ok(sent)
    }

    fn fill(&mut self) -> io::Result<()> {
        if self.at == self.buffer.len() {
            self.buffer.clear();
            self.at = 0;
        }
        let len = self.buffer.len();
        self.buffer.resize(len + (32 << 10), 0);
        let read = self.stream.read(&mut self.buffer[len..]);
        self.buffer.truncate(len + *read.as_ref().unwrap_or(&0));
        match read? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}
