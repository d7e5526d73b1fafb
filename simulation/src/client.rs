//! Clients: each sends requests one after the other, and checks what comes back.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::ledger::{End, Id, Ledger};
use crate::message::{Cut, Head, Reader, content};
use crate::plan::TIMEOUT;
use crate::random::Random;

/// How much later than its time limit a response may begin: timers are accurate to a millisecond, and a response may take a few steps.
const SLACK: Duration = Duration::from_millis(50);
/// No response takes longer, from its head to its end.
const LONGEST_BODY: Duration = Duration::from_secs(20);
/// How long the end of a connection may take that closes after its response.
const LAST_BYTES: Duration = Duration::from_secs(3);

/// A client.
#[derive(Debug)]
pub struct Client {
    number: usize,
    ledger: Ledger,
    random: Random,
    /// The Machines.
    machines: Vec<SocketAddr>,
}

/// How a client sends a request, and waits for the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// At once, and to the end.
    Proper,
    /// It sends its body in pieces, with pauses.
    SlowBody,
    /// It leaves after this time, wherever the request is.
    Leaves(Duration),
    /// It leaves within its own body.
    LeavesInBody,
    /// It reads the response slowly.
    SlowReader,
}

/// A connection to a Machine.
struct Connection {
    machine: usize,
    stream: TcpStream,
    reader: Reader,
}

/// A request as a client makes it.
struct Request {
    id: Id,
    method: &'static str,
    bytes: Vec<u8>,
    /// Where its head ends.
    head: usize,
}

impl Request {
    /// How long its response may take once it is sent.
    fn patience(&self) -> Duration {
        // The time limit of a body that is streamed begins when the app has it, after the wait for a permit.
        let is_streamed = self.bytes.len() - self.head > 60_000;
        if is_streamed { 2 * TIMEOUT + SLACK } else { TIMEOUT + SLACK }
    }
}

impl Client {
    /// A client with a number.
    pub fn new(number: usize, machines: &[SocketAddr], ledger: &Ledger, random: Random) -> Self {
        Self { number, ledger: ledger.clone(), random, machines: machines.to_owned() }
    }

    /// Sends so many requests.
    pub async fn run(mut self, requests: u64) {
        let is_greedy = self.random.percent(25);
        let mut connection = None;
        for _ in 0..requests {
            let think = if is_greedy { self.random.ms(0, 30) } else { self.random.ms(0, 600) };
            connection = self.think(connection, think).await;
            if connection.is_none() || self.random.percent(10) {
                let machine = self.random.between(0, self.machines.len() as u64 - 1) as usize;
                connection = self.connect(machine).await;
            }
            let Some(open) = connection.take() else { continue };
            let path =
                if is_greedy { "/limited" } else { self.random.pick(&["/limited", "/low", "/other", "/some/path"]) };
            let manner = match self.random.between(0, 19) {
                0 => Manner::Leaves(self.random.ms(0, 40)),
                1 => Manner::Leaves(self.random.ms(0, 2_500)),
                2 => Manner::LeavesInBody,
                3 | 4 => Manner::SlowBody,
                5 => Manner::SlowReader,
                _ => Manner::Proper,
            };
            connection = self.exchange(open, path, manner).await;
        }
        let last = self.random.ms(0, 3_000);
        drop(self.think(connection, last).await);
    }

    /// Sends so many GET requests, one after the other, to one Machine; returns their statuses.
    pub async fn ask(mut self, machine: usize, requests: u64, pause: Duration) -> Vec<Option<u16>> {
        let mut statuses = Vec::new();
        let mut connection = None;
        for _ in 0..requests {
            connection = self.think(connection, pause).await;
            if connection.is_none() {
                connection = self.connect(machine).await;
            }
            let Some(open) = connection.take() else {
                statuses.push(None);
                continue;
            };
            let request = self.request(open.machine, "/other", Some("GET"));
            let id = request.id;
            connection = self.send_and_read(open, request, Manner::Proper).await;
            let status = self.ledger.requests().get(&id).and_then(|entry| entry.end).and_then(|(end, _)| match end {
                End::Complete(status) => Some(status),
                _ => None,
            });
            statuses.push(status);
        }
        statuses
    }

    async fn connect(&self, machine: usize) -> Option<Connection> {
        let socket = TcpSocket::new_v4().ok()?;
        // An address of its own: 127.1.0.0 and above.
        let own = Ipv4Addr::new(127, 1, (self.number >> 8) as u8, self.number as u8);
        socket.bind(SocketAddr::from((own, 0))).ok()?;
        let stream = socket.connect(self.machines[machine]).await.ok()?;
        let _ = stream.set_nodelay(true);
        Some(Connection { machine, stream, reader: Reader::default() })
    }

    /// Waits between two requests. Nothing may arrive meanwhile, but the connection may end: then `None`.
    async fn think(&self, connection: Option<Connection>, time: Duration) -> Option<Connection> {
        let Some(mut connection) = connection else {
            tokio::time::sleep(time).await;
            return None;
        };
        let until = tokio::time::Instant::now() + time;
        let Connection { stream, reader, machine } = &mut connection;
        match tokio::time::timeout_at(until, reader.wait(stream)).await {
            Err(_) => Some(connection),
            Ok(true) => {
                let text = String::from_utf8_lossy(reader.unread()).chars().take(80).collect::<String>();
                self.ledger
                    .violated(format!("m{machine} sends client {} a response to no request: {text:?}", self.number));
                None
            }
            Ok(false) => {
                tokio::time::sleep_until(until).await;
                None
            }
        }
    }

    fn request(&mut self, machine: usize, path: &'static str, method: Option<&'static str>) -> Request {
        let random = &mut self.random;
        let method = method.unwrap_or_else(|| {
            random.pick(&["GET", "GET", "GET", "GET", "POST", "POST", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
        });
        let id = self.ledger.sent(self.number, machine, method, path);
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: simulated\r\nX-Simulated: {id}\r\n");
        let mut body = Vec::new();
        if matches!(method, "POST" | "PUT") {
            let length = random.pick(&[0, 10, 2_000, 30_000, 100_000, 200_000]);
            let payload = content(id, '>', length);
            head += &format!("X-Length: {length}\r\n");
            if random.percent(30) {
                head += "Transfer-Encoding: chunked\r\n";
                for chunk in payload.chunks(9_000) {
                    body.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                    body.extend(chunk);
                    body.extend(b"\r\n");
                }
                body.extend(b"0\r\n\r\n");
            } else {
                head += &format!("Content-Length: {length}\r\n");
                body = payload;
            }
        }
        let mut bytes = (head + "\r\n").into_bytes();
        let head = bytes.len();
        bytes.extend(body);
        Request { id, method, bytes, head }
    }

    async fn exchange(&mut self, open: Connection, path: &'static str, manner: Manner) -> Option<Connection> {
        let request = self.request(open.machine, path, None);
        let id = request.id;
        if manner != Manner::Proper {
            self.ledger.note(&format!("request {id}: the client {manner:?}"));
        }
        match manner {
            Manner::Leaves(after) => {
                if let Ok(connection) = tokio::time::timeout(after, self.send_and_read(open, request, manner)).await {
                    return connection;
                }
                self.ledger.left(id);
                None
            }
            Manner::LeavesInBody => {
                let (mut open, part) = (open, request.bytes.len().saturating_sub(5));
                let _ = tokio::time::timeout(TIMEOUT, open.stream.write_all(&request.bytes[..part])).await;
                tokio::time::sleep(self.random.ms(0, 300)).await;
                self.ledger.ended(id, End::Left);
                None
            }
            _ => self.send_and_read(open, request, manner).await,
        }
    }

    /// Sends a request while it reads the response. Returns the connection if another request may follow.
    async fn send_and_read(&mut self, mut open: Connection, request: Request, manner: Manner) -> Option<Connection> {
        let id = request.id;
        let (answered, is_sent) = self.until_head(&mut open, &request, manner).await;
        let head = match answered {
            Some(Ok(head)) => head,
            Some(Err(cut)) => {
                self.cut(id, &cut);
                return None;
            }
            None => {
                self.ledger.violated(format!("request {id} hangs: no response within its time limit"));
                self.ledger.ended(id, End::Left);
                return None;
            }
        };
        if manner == Manner::SlowReader {
            tokio::time::sleep(self.random.ms(0, 1_200)).await;
        }
        let status = head.status().unwrap_or(0);
        let has_none = request.method == "HEAD" || matches!(status, 204 | 304);
        let Connection { stream, reader, .. } = &mut open;
        match tokio::time::timeout(LONGEST_BODY, reader.body(stream, &head, has_none, true)).await {
            Ok(Ok(body)) => {
                self.check(id, &head, (!has_none).then_some(&body));
                self.ledger.ended(id, End::Complete(status));
            }
            Ok(Err(cut @ Cut::Malformed(_))) => {
                self.cut(id, &cut);
                return None;
            }
            Ok(Err(_)) => {
                self.ledger.ended(id, End::Partial(status));
                return None;
            }
            Err(_) => {
                self.ledger.violated(format!("request {id} hangs within its response"));
                self.ledger.ended(id, End::Partial(status));
                return None;
            }
        }
        let closes = head.get("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        if closes && is_sent {
            let rest = tokio::time::timeout(LAST_BYTES, open.stream.read(&mut [0; 16])).await;
            if !matches!(rest, Ok(Ok(0) | Err(_))) {
                self.ledger.violated(format!("request {id}: the connection does not end after its last response"));
            }
        }
        (is_sent && !closes).then_some(open)
    }

    /// Sends a request, and reads until the head of its final response is complete. `None`: there is none in time. Also returns whether
    /// the request was sent to its end.
    async fn until_head(
        &mut self,
        open: &mut Connection,
        request: &Request,
        manner: Manner,
    ) -> (Option<Result<Head, Cut>>, bool) {
        let Connection { stream, reader, .. } = open;
        let (mut from, mut to) = stream.split();
        let pauses: Vec<Duration> = (0..4).map(|_| self.random.ms(0, 700)).collect();
        let sending = async {
            if manner != Manner::SlowBody {
                return to.write_all(&request.bytes).await.is_ok();
            }
            let (first, body) = request.bytes.split_at(request.head);
            let is_sent = to.write_all(first).await.is_ok();
            for (piece, pause) in body.chunks(body.len() / 4 + 1).zip(pauses) {
                tokio::time::sleep(pause).await;
                if to.write_all(piece).await.is_err() {
                    return false;
                }
            }
            is_sent
        };
        let reading = async {
            loop {
                match reader.head(&mut from).await {
                    Ok(head) if head.status().is_some_and(|status| status < 200) => {}
                    other => return other,
                }
            }
        };
        tokio::pin!(sending, reading);
        let mut is_sent = None;
        loop {
            // The time limit of the request; while it is sent, that of its body.
            let patience = if is_sent.is_some() { request.patience() } else { LONGEST_BODY };
            tokio::select! {
                biased;
                answered = &mut reading => return (Some(answered), is_sent == Some(true)),
                sent = &mut sending, if is_sent.is_none() => is_sent = Some(sent),
                () = tokio::time::sleep(patience) => return (None, false),
            }
        }
    }

    fn cut(&self, id: Id, cut: &Cut) {
        match cut {
            Cut::BeforeIt => self.ledger.ended(id, End::Closed),
            Cut::Within => self.ledger.ended(id, End::Partial(0)),
            Cut::Malformed(what) => {
                self.ledger.violated(format!("the response to request {id} is not HTTP: {what}"));
                self.ledger.ended(id, End::Partial(0));
            }
        }
    }

    /// Whether a response belongs to its request.
    fn check(&self, id: Id, head: &Head, body: Option<&Vec<u8>>) {
        let Some(of) = head.number("x-simulated") else {
            // Outrigger's own.
            if head.get("content-type") != Some("application/problem+json") {
                self.ledger.violated(format!("request {id} gets a response that is from nobody: {:?}", head.line));
            }
            return;
        };
        let length = head.number("x-length").unwrap_or(0) as usize;
        if of != id {
            self.ledger.violated(format!("request {id} gets the response to request {of}"));
        } else if body.is_some_and(|body| *body != content(id, '<', length)) {
            self.ledger.violated(format!("the body of the response to request {id} is not the one that the app sent"));
        }
    }
}
