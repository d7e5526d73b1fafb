//! `cargo xtask bench websocket`: compares the CPU cost of an echoed WebSocket message in Outrigger and HAProxy.
//!
//! Each connection has one message of [`PAYLOAD`] bytes under way. The echo server and the load generator wait with `epoll`, since
//! threads for thousands of connections would take the CPU time that the proxy needs.

use std::{
    fs,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::event::epoll;
use xtask::{Error, Result, Tool, error::While, paths, programs, say, tools};

use super::{Backend, Candidate, Side, candidates, cpu_seconds, pinned};

const ROUNDS: usize = 5;
const PAYLOAD: usize = 100;
/// A masked frame: 2 bytes, the mask, the payload.
const FRAME: usize = 6 + PAYLOAD;
const WARM_UP: Duration = Duration::from_secs(1);
const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const PLAIN: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const REQUEST: &[u8] = b"GET /ws HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// `cargo xtask bench websocket [CONNECTIONS] [SECONDS]`.
pub fn run(args: &[String]) -> Result<()> {
    let number = |at: usize, default: u32| match args.get(at) {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| Error::new(format_args!("`{text}` is not a number"))),
    };
    let (connections, seconds) = (number(0, 1000)?, number(1, 4)?);
    tools::install(&[Tool::Haproxy])?;
    say("building the programs with all optimisations, which takes minutes");
    programs::build(true)?;
    let dir = paths::state("bench")?;
    let candidates: Vec<_> =
        candidates()?.into_iter().filter(|candidate| !candidate.name.starts_with("NGINX")).collect();
    let server = Backend::start("bench-echo", &dir)?;
    let mut runs = vec![Vec::new(); candidates.len()];
    for round in 1..=ROUNDS {
        for (candidate, runs) in candidates.iter().zip(&mut runs) {
            say(format_args!("round {round} of {ROUNDS}: {}", candidate.name));
            runs.push(measure(candidate, &dir, server.address, connections, seconds)?);
        }
    }
    let table = table(&candidates, &mut runs, connections, seconds);
    let path = paths::target().join("bench-websocket.md");
    fs::write(&path, &table).while_(format_args!("writing {}", path.display()))?;
    println!("\n{table}");
    Ok(())
}

/// CPU µs per message, and messages per second.
type Run = (f64, f64);

fn measure(candidate: &Candidate, dir: &Path, app: SocketAddr, connections: u32, seconds: u32) -> Result<Run> {
    let (address, mut proxy) = candidate.start(dir, app, "/")?;
    let us = PathBuf::from(format!("/proc/{}/exe", std::process::id()));
    let args = ["bench-talk".to_owned(), address.to_string(), connections.to_string(), seconds.to_string()];
    let args = args.into_iter().chain([proxy.pid().to_string()]);
    let said = pinned(Side::Load, &us).args(args).output()?;
    if let Some(ended) = proxy.ended() {
        return Err(Error::new(format_args!("{} ended: {ended}", candidate.name)).hint(proxy.log_tail(10)));
    }
    let mut numbers = said.split_whitespace().map(str::parse::<f64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(messages)), Some(Ok(cpu))) if messages > 0.0 => {
            Ok((cpu * 1e6 / messages, messages / f64::from(seconds)))
        }
        _ => Err(Error::new("cannot read the load generator's report").hint(said)),
    }
}

fn table(candidates: &[Candidate], runs: &mut [Vec<Run>], connections: u32, seconds: u32) -> String {
    let mut text = format!(
        "Median [lowest–highest] of {ROUNDS} runs of {seconds} s, {connections} WebSocket connections with one message of {PAYLOAD} \
         bytes each, one thread for each proxy.\n\n| proxy | CPU µs/message | messages/s |\n|---|---|---|\n"
    );
    let mut medians = Vec::new();
    for (candidate, runs) in candidates.iter().zip(runs) {
        runs.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (Some(first), Some(middle), Some(last)) = (runs.first(), runs.get(runs.len() / 2), runs.last()) else {
            continue;
        };
        text.push_str(&format!(
            "| {} | {:.2} [{:.2}–{:.2}] | {:.0} |\n",
            candidate.name, middle.0, first.0, last.0, middle.1
        ));
        medians.push((candidate.name, middle.0));
    }
    let Some((_, haproxy)) = medians.iter().find(|(name, _)| name.starts_with("HAProxy")).copied() else { return text };
    for (name, median) in medians.iter().filter(|(name, _)| name.starts_with("Outrigger")) {
        text.push_str(&format!("\n{name}, to HAProxy: {:.2}", median / haproxy));
    }
    text.push('\n');
    text
}

/// One connection of either program.
struct Connection {
    stream: TcpStream,
    /// Received bytes of the current header section or frame.
    held: Vec<u8>,
    is_tunnel: bool,
}

impl Connection {
    fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream, held: Vec::new(), is_tunnel: false })
    }

    /// Reads once; false at the end.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        match self.stream.read(buffer) {
            Ok(read) => {
                self.held.extend_from_slice(&buffer[..read]);
                Ok(read > 0)
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(true),
            Err(e) => Err(e),
        }
    }
}

/// Waits for readable connections; the data of an event is the index of its connection.
struct Poll {
    epoll: rustix::fd::OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poll {
    fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, events: Vec::with_capacity(1024) })
    }

    fn add(&self, stream: impl AsFd, index: usize) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, stream, epoll::EventData::new_u64(index as u64), epoll::EventFlags::IN)?)
    }

    fn wait(&mut self) -> io::Result<Vec<usize>> {
        let limit = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        self.events.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(self.events.iter().map(|event| event.data.u64() as usize).collect())
    }
}

/// `xtask bench-echo ADDRESS`: echoes frames, and responds to requests that are no handshake.
pub fn echo(args: &[String]) -> Result<()> {
    let address = args.first().map(String::as_str).unwrap_or_default();
    let listener = TcpListener::bind(address).while_(format_args!("listening on {address:?}"))?;
    echo_all(&listener).while_("echoing")
}

fn echo_all(listener: &TcpListener) -> io::Result<()> {
    const LISTENER: usize = usize::MAX;
    listener.set_nonblocking(true)?;
    let mut poll = Poll::new()?;
    poll.add(listener, LISTENER)?;
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut buffer = vec![0; 16 << 10];
    loop {
        for index in poll.wait()? {
            if index == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    poll.add(&stream, connections.len())?;
                    connections.push(Some(Connection::new(stream)?));
                }
            } else if let Some(slot) = connections.get_mut(index)
                && !slot.as_mut().is_some_and(|connection| answers(connection, &mut buffer).unwrap_or(false))
            {
                *slot = None;
            }
        }
    }
}

/// Responds to what has arrived; false if the connection is over.
fn answers(connection: &mut Connection, buffer: &mut [u8]) -> io::Result<bool> {
    if !connection.read(buffer)? {
        return Ok(false);
    }
    if connection.is_tunnel {
        if let [first, second, _, _, _, _, payload @ ..] = connection.held.as_slice()
            && payload.len() >= PAYLOAD
        {
            // A server's frames have no mask; that of the client is zero. With one message under way, the socket has room.
            let frame = [&[*first, second & 0x7f], payload].concat();
            connection.stream.write_all(&frame)?;
            connection.held.clear();
        }
    } else if connection.held.ends_with(b"\r\n\r\n") {
        connection.is_tunnel = connection.held.starts_with(b"GET /ws");
        connection.held.clear();
        connection.stream.write_all(if connection.is_tunnel { SWITCH } else { PLAIN })?;
    }
    Ok(true)
}

/// `xtask bench-talk ADDRESS CONNECTIONS SECONDS PID`: prints the number of echoed messages, and the CPU seconds of the process.
pub fn talk(args: &[String]) -> Result<()> {
    let usage = || Error::new("usage: bench-talk ADDRESS CONNECTIONS SECONDS PID");
    let [address, connections, seconds, pid] = args else { return Err(usage()) };
    let address = address.parse().map_err(|_| usage())?;
    let number = |text: &String| text.parse::<u32>().map_err(|_| usage());
    let (connections, seconds, pid) = (number(connections)?, number(seconds)?, number(pid)?);
    let mut talk = Talk::start(address, connections).while_("opening the connections")?;
    talk.run(WARM_UP).while_("warming up")?;
    let before = cpu_seconds(pid);
    let messages = talk.run(Duration::from_secs(u64::from(seconds))).while_("talking")?;
    println!("{messages} {}", cpu_seconds(pid) - before);
    Ok(())
}

struct Talk {
    poll: Poll,
    connections: Vec<Connection>,
    frame: Vec<u8>,
}

impl Talk {
    /// Opens all connections, one after the other, and sends a first message on each.
    fn start(address: SocketAddr, connections: u32) -> io::Result<Self> {
        let mut frame = vec![0x82, 0x80 | PAYLOAD as u8, 0, 0, 0, 0];
        frame.resize(FRAME, b'x');
        let mut talk = Self { poll: Poll::new()?, connections: Vec::new(), frame };
        let mut buffer = [0; 4096];
        for index in 0..connections as usize {
            let mut connection = Connection::new(TcpStream::connect(address)?)?;
            connection.stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            connection.stream.write_all(REQUEST)?;
            while !connection.held.ends_with(b"\r\n\r\n") {
                if !connection.read(&mut buffer)? {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
            }
            if !connection.held.starts_with(b"HTTP/1.1 101") {
                return Err(io::Error::other(String::from_utf8_lossy(&connection.held).into_owned()));
            }
            connection.held.clear();
            connection.stream.set_nonblocking(true)?;
            talk.poll.add(&connection.stream, index)?;
            connection.stream.write_all(&talk.frame)?;
            talk.connections.push(connection);
        }
        Ok(talk)
    }

    /// Sends the next message on each connection whose message has come back; returns how many came back.
    fn run(&mut self, time: Duration) -> io::Result<u64> {
        let (until, mut messages) = (Instant::now() + time, 0);
        let mut buffer = [0; 4096];
        while Instant::now() < until {
            for index in self.poll.wait()? {
                let Some(connection) = self.connections.get_mut(index) else { continue };
                if !connection.read(&mut buffer)? {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                if connection.held.len() >= 2 + PAYLOAD {
                    connection.held.clear();
                    messages += 1;
                    connection.stream.write_all(&self.frame)?;
                }
            }
        }
        Ok(messages)
    }
}
