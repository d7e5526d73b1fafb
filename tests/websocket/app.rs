//! The app: runs the app's side of the case that a request's path names, and keeps what it saw.

use std::{
    collections::HashMap,
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use super::{
    all,
    end::{BINARY, CLOSE, End, Head, PING, TEXT, shown},
};
use crate::harness::until;

/// Of one request: how its script ended, and its notes. `None` while it runs.
type Request = Option<(Result<(), String>, Vec<String>)>;

/// See the module.
pub struct App {
    pub address: SocketAddr,
    seen: Arc<Mutex<HashMap<String, Vec<Request>>>>,
}

impl App {
    pub fn start() -> Self {
        let by_path = |path: &str| {
            let name = path.rsplit('/').next().unwrap_or_default();
            all().find(|case| case.name == name).map(|case| case.app)
        };
        Self::with(by_path)
    }

    /// An app that echoes each message on every path.
    pub fn echoing() -> Self {
        Self::with(|_| Some(echo))
    }

    /// An app with one script.
    pub fn running(script: fn(&mut End, &Head) -> io::Result<()>) -> Self {
        Self::with(move |_| Some(script))
    }

    fn with(script: impl Fn(&str) -> Option<Script> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let seen = Arc::default();
        let app = Self { address, seen: Arc::clone(&seen) };
        let script = Arc::new(script);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, script) = (Arc::clone(&seen), Arc::clone(&script));
                thread::spawn(move || serve(End::new(stream, false)?, &seen, &*script));
            }
        });
        app
    }

    /// Requests for this path so far.
    pub fn requests(&self, path: &str) -> usize {
        lock(&self.seen).get(path).map_or(0, Vec::len)
    }

    /// The observations of all scripts of this path, once they have ended.
    pub fn seen(&self, path: &str) -> Vec<(Result<(), String>, Vec<String>)> {
        let ended = || lock(&self.seen).get(path).is_none_or(|all| all.iter().all(Option::is_some));
        until(&format!("the scripts of {path} to end"), ended);
        lock(&self.seen).get(path).map(|all| all.iter().flatten().cloned().collect()).unwrap_or_default()
    }
}

type Script = fn(&mut End, &Head) -> io::Result<()>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(
    mut end: End,
    seen: &Mutex<HashMap<String, Vec<Request>>>,
    script: &dyn Fn(&str) -> Option<Script>,
) -> io::Result<()> {
    while !end.is_tunnel {
        let head = end.head()?;
        let path = head.path().to_owned();
        let Some(script) = script(&path) else { return Ok(()) };
        let mut all = lock(seen);
        let requests = all.entry(path.clone()).or_default();
        requests.push(None);
        let index = requests.len() - 1;
        drop(all);
        let outcome = script(&mut end, &head).map_err(|e| e.to_string());
        let is_broken = outcome.is_err();
        let notes = std::mem::take(&mut end.notes);
        if let Some(requests) = lock(seen).get_mut(&path) {
            requests[index] = Some((outcome, notes));
        }
        if is_broken {
            break;
        }
    }
    Ok(())
}

/// `Sec-WebSocket-Accept` for a key (RFC 6455 section 4.2.2).
pub fn accept(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let hash = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::new();
    for piece in hash.as_ref().chunks(3) {
        let bits = piece.iter().fold(0, |bits, byte| bits << 8 | usize::from(*byte)) << (8 * (3 - piece.len()));
        for n in 0..4 {
            encoded.push(if n > piece.len() { '=' } else { char::from(digits[bits >> (18 - 6 * n) & 63]) });
        }
    }
    encoded
}

/// The response that switches protocols, with more lines.
pub fn switching(head: &Head, lines: &str) -> String {
    let accept = accept(&head.field("sec-websocket-key").unwrap_or_default());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n{lines}\r\n"
    )
}

/// Switches protocols, if the request is a handshake.
pub fn switch(end: &mut End, head: &Head) -> io::Result<()> {
    if !head.is_handshake() {
        return Err(io::Error::new(ErrorKind::InvalidData, format!("no handshake: {head:?}")));
    }
    end.is_tunnel = true;
    end.send(switching(head, ""))
}

/// A response other than 101; `status` has its reason phrase, `lines` the headers besides `Content-Length`.
pub fn decline(end: &mut End, status: &str, lines: &str, body: &str) -> io::Result<()> {
    end.send(format!("HTTP/1.1 {status}\r\n{lines}Content-Length: {}\r\n\r\n{body}", body.len()))
}

/// Switches protocols and echoes until a close frame.
pub fn echo(end: &mut End, head: &Head) -> io::Result<()> {
    switch(end, head)?;
    echo_frames(end)
}

/// Echoes frames, with pongs for pings, and completes the close handshake. Closes with 1002 and 1007 what RFC 6455 asks for.
pub fn echo_frames(end: &mut End) -> io::Result<()> {
    let (mut frames, mut is_text, mut message) = (0, false, Vec::new());
    loop {
        let frame = match end.next() {
            Ok(frame) => frame,
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => {
                end.note(format!("end after {frames} frames"));
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        frames += 1;
        if let Some(code) = broken_rule(&frame) {
            end.note(format!("broken: {}", frame.shown()));
            end.close(code, "")?;
            end.finish()?;
            end.note_end();
            return Ok(());
        }
        match frame.opcode() {
            CLOSE => {
                end.note(format!("close after {frames} frames: {:?}", frame.payload));
                end.say(CLOSE, &frame.payload)?;
                end.finish()?;
                end.note_end();
                return Ok(());
            }
            PING => end.send(end.frame(0x8a, &frame.payload))?,
            0..=BINARY => {
                if frame.opcode() != 0 {
                    message.clear();
                    is_text = frame.first == 0x81 || frame.first == TEXT;
                }
                message.extend(&frame.payload);
                if frame.is_final() && is_text && std::str::from_utf8(&message).is_err() {
                    end.note(format!("not UTF-8: {}", shown(&message)));
                    end.close(1007, "")?;
                    end.finish()?;
                    end.note_end();
                    return Ok(());
                }
                end.send(end.frame(frame.first, &frame.payload))?;
            }
            _ => end.note(frame.shown()),
        }
    }
}

fn broken_rule(frame: &super::end::Frame) -> Option<u16> {
    let is_control = frame.opcode() >= CLOSE;
    let is_reserved = matches!(frame.opcode(), 3..=7 | 11..);
    let is_too_long = is_control && (frame.payload.len() > 125 || !frame.is_final());
    let is_bad_close = frame.opcode() == CLOSE && frame.payload.len() == 1;
    (!frame.is_masked || is_reserved || is_too_long || is_bad_close || frame.first & 0x30 != 0).then_some(1002)
}
