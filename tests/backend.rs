//! A scripted upstream: it does what a test tells it, byte by byte, including invalid responses.
//!
//! It has its own thread and runtime. Stopping it drops the runtime and with it every socket, which from outside looks like the
//! end of a real app.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpListener, UnixListener},
    runtime::Runtime,
    sync::{Semaphore, mpsc, watch},
};
use xtask::ports;

use crate::harness::{Hash, until};

/// How the app handles a request.
#[derive(Clone, Debug)]
pub enum Play {
    /// Reads the whole request and echoes it in the response, as JSON.
    Echo,
    /// The same, once the test adds a permit.
    EchoAfter(Arc<Semaphore>),
    /// Requests the body with a 100, then does the same.
    Continue,
    /// Reads the whole request and sends these bytes.
    Say(Vec<u8>),
    /// The same, then closes the connection.
    SayAndClose(Vec<u8>),
    /// Closes the connection without a response as often as this says, then echoes.
    CloseFirst(Arc<AtomicUsize>),
    /// Sends these bytes as soon as it has the header section, and closes.
    Interrupt(Vec<u8>),
    /// Like `Say`, with an empty 200 response; a pseudo-random fifth of the requests gets a 500.
    FailFifth(Arc<AtomicUsize>),
    /// Sends these bytes one at a time, at this interval.
    Drip(Vec<u8>, Duration),
    /// Sends these bytes in two pieces, cut at the number that is the request's query, then closes the connection if told so.
    InTwo(Vec<u8>, bool),
    /// Sends 103 responses without end.
    HintForever,
    /// Reads the whole request and never responds.
    Hang,
    /// Never reads the body.
    Ignore,
    /// A response of this many bytes, with `Content-Length`.
    Stream(u64),
    /// An event stream of the test's own events.
    Events(Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<String>>>),
    /// Switches to an echo of raw bytes, as a WebSocket would.
    Upgrade,
    /// Works on the request when a worker is free; a request that was begun is completed even if the client disconnects.
    Work(Arc<Workers>),
}

/// Workers that take one request at a time, in order of arrival.
#[derive(Debug)]
pub struct Workers {
    number: usize,
    free: Semaphore,
    /// The requests that were worked on, and the time that this took.
    worked: Mutex<(u32, Duration)>,
    service: Mutex<Duration>,
    stays: Mutex<Vec<(String, Duration)>>,
}

impl Workers {
    /// `number` workers that need `service` for a request.
    pub fn new(number: usize, service: Duration) -> Arc<Self> {
        Arc::new(Self {
            number,
            free: Semaphore::new(number),
            worked: Mutex::default(),
            service: Mutex::new(service),
            stays: Mutex::default(),
        })
    }

    /// Sets the time per request.
    pub fn need(&self, service: Duration) {
        *lock(&self.service) = service;
    }

    /// The requests that they could have done each second so far. On a busy machine they need longer than they were told.
    pub fn capacity(&self) -> f64 {
        let (requests, time) = *lock(&self.worked);
        f64::from(requests) * self.number as f64 / time.as_secs_f64()
    }

    /// The path of each completed request, in order, and how long it was with the app.
    pub fn stays(&self) -> Vec<(String, Duration)> {
        lock(&self.stays).clone()
    }

    /// False if the client `left` before the work began.
    async fn serve(&self, path: &str, left: impl Future) -> bool {
        let came = Instant::now();
        let permit = tokio::select! {
            permit = self.free.acquire() => permit.expect("workers are never sent home"),
            _ = left => return false,
        };
        let (service, began) = (*lock(&self.service), Instant::now());
        tokio::time::sleep(service).await;
        {
            let mut worked = lock(&self.worked);
            *worked = (worked.0 + 1, worked.1 + began.elapsed());
        }
        drop(permit);
        lock(&self.stays).push((path.to_owned(), came.elapsed()));
        true
    }
}

/// How the app treats a connection after a response.
#[derive(Clone, Copy, Debug)]
pub enum Habit {
    Keep,
    /// Closes it without `Connection: close`.
    Close,
    /// Closes it without `Connection: close` after some idle milliseconds, a different number each time.
    CloseSoon,
}

#[derive(Debug)]
struct Shared {
    plays: Mutex<HashMap<String, Play>>,
    habit: Mutex<Habit>,
    /// Received header sections, by path.
    heads: Mutex<HashMap<String, usize>>,
    whole: AtomicUsize,
    connections: AtomicUsize,
    open: AtomicUsize,
    /// Exchanges that the other side ended.
    abandoned: AtomicUsize,
}

#[derive(Clone, Debug)]
enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// A scripted upstream; see the module.
#[derive(Debug)]
pub struct Backend {
    address: Address,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
    listener: Option<tokio::task::JoinHandle<()>>,
    accepts: watch::Sender<bool>,
}

impl Backend {
    /// Listens on a free TCP port and echoes every request.
    pub fn start() -> Self {
        Self::on(Address::Tcp(([127, 0, 0, 1], ports::free().expect("a free port")).into()))
    }

    /// The same on a given local address.
    pub fn start_at(address: SocketAddr) -> Self {
        Self::on(Address::Tcp(address))
    }

    /// The same on a Unix socket.
    pub fn start_unix(socket: &Path) -> Self {
        Self::on(Address::Unix(socket.to_owned()))
    }

    /// Has a port on which it does not listen yet.
    pub fn stopped() -> Self {
        let mut app = Self::start();
        app.stop();
        app
    }

    fn on(address: Address) -> Self {
        let shared = Arc::new(Shared {
            plays: Mutex::default(),
            habit: Mutex::new(Habit::Keep),
            heads: Mutex::default(),
            whole: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            abandoned: AtomicUsize::new(0),
        });
        let mut app = Self { address, shared, runtime: None, listener: None, accepts: watch::Sender::new(true) };
        app.resume();
        app
    }

    /// The address as the proxy's config writes it.
    pub fn address(&self) -> String {
        match &self.address {
            Address::Tcp(address) => address.to_string(),
            Address::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    /// Stops listening and closes every connection.
    pub fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // As when a process is killed: the kernel closes its sockets in the order in which they were opened.
            if let Some(listener) = self.listener.take() {
                listener.abort();
                let _ = runtime.block_on(listener);
            }
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
        self.shared.open.store(0, Ordering::SeqCst);
    }

    /// Listens again.
    pub fn resume(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime for the app");
        let shared = Arc::clone(&self.shared);
        let listening = match self.address.clone() {
            Address::Tcp(address) => {
                let listener = runtime.block_on(TcpListener::bind(address)).expect("the app's port");
                let mut accepts = self.accepts.subscribe();
                runtime.spawn(async move {
                    while accepts.wait_for(|accepts| *accepts).await.is_ok() {
                        tokio::select! {
                            biased;
                            _ = accepts.changed() => {}
                            Ok((stream, _)) = listener.accept() => {
                                let _ = stream.set_nodelay(true);
                                tokio::spawn(serve(stream, Arc::clone(&shared)));
                            }
                        }
                    }
                })
            }
            Address::Unix(path) => {
                let _ = std::fs::remove_file(&path);
                let listener = runtime.block_on(async { UnixListener::bind(path) }).expect("the app's socket");
                runtime.spawn(async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        tokio::spawn(serve(stream, Arc::clone(&shared)));
                    }
                })
            }
        };
        self.listener = Some(listening);
        self.runtime = Some(runtime);
    }

    /// Plays this for `path` from now on.
    pub fn at(&self, path: &str, play: Play) {
        lock(&self.shared.plays).insert(path.to_owned(), play);
    }

    /// Sends these bytes in response to `path` from now on, and keeps the connection.
    pub fn says(&self, path: &str, bytes: &str) {
        self.at(path, Play::Say(bytes.into()));
    }

    /// Lets the same `number` of workers serve these paths from now on.
    pub fn works(&self, paths: &[&str], number: usize, service: Duration) -> Arc<Workers> {
        let workers = Workers::new(number, service);
        paths.iter().for_each(|path| self.at(path, Play::Work(Arc::clone(&workers))));
        workers
    }

    /// Requests for `path` wait for a permit of this semaphore from now on.
    pub fn gate(&self, path: &str) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        self.at(path, Play::EchoAfter(Arc::clone(&gate)));
        gate
    }

    /// The next request for `path` gets an event stream; events sent here reach it immediately.
    pub fn events(&self, path: &str) -> mpsc::UnboundedSender<String> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.at(path, Play::Events(Arc::new(tokio::sync::Mutex::new(receiver))));
        sender
    }

    /// Whether it accepts connections from now on. Until it does again, the kernel keeps them (TCP).
    pub fn accepts(&self, accepts: bool) {
        self.accepts.send_replace(accepts);
    }

    pub fn habit(&self, habit: Habit) {
        *lock(&self.shared.habit) = habit;
    }

    /// Requests whose header section was received.
    pub fn requests(&self) -> usize {
        lock(&self.shared.heads).values().sum()
    }

    /// Requests for this path whose header section was received.
    pub fn requests_to(&self, path: &str) -> usize {
        lock(&self.shared.heads).get(path).copied().unwrap_or_default()
    }

    /// Requests that were received whole, including the body.
    pub fn whole_requests(&self) -> usize {
        self.shared.whole.load(Ordering::SeqCst)
    }

    /// Connections accepted since the start.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Open connections.
    pub fn open_connections(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Exchanges that the proxy ended before they were complete.
    pub fn abandoned(&self) -> usize {
        self.shared.abandoned.load(Ordering::SeqCst)
    }

    /// Waits until this many requests for `path` have arrived.
    #[track_caller]
    pub fn gets(&self, requests: usize, path: &str) {
        until(&format!("the app to get {requests} requests for {path}"), || self.requests_to(path) >= requests);
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request's header section.
struct Head {
    text: String,
    method: String,
    target: String,
    version: String,
    /// Names in lower case.
    fields: Vec<(String, String)>,
}

impl Head {
    fn parse(text: String) -> Self {
        let mut lines = text.trim_end().split("\r\n");
        let mut first = lines.next().unwrap_or_default().splitn(3, ' ').map(str::to_owned);
        let mut part = || first.next().unwrap_or_default();
        let (method, target, version) = (part(), part(), part());
        let field = |line: &str| line.split_once(':').map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned()));
        let fields = lines.filter_map(field).collect();
        Self { text, method, target, version, fields }
    }

    fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// A request's body, as received.
#[derive(Default)]
struct Body {
    bytes: u64,
    hash: Hash,
    trailers: String,
    is_chunked: bool,
}

impl Body {
    fn add(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        self.hash.add(piece);
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: S, shared: Arc<Shared>) {
    shared.connections.fetch_add(1, Ordering::SeqCst);
    shared.open.fetch_add(1, Ordering::SeqCst);
    let mut stream = BufReader::with_capacity(64 << 10, stream);
    let mut served = 0;
    while let Some(head) = next_head(&mut stream, &shared, served).await {
        served += 1;
        if !matches!(exchange(&mut stream, &shared, &head).await, Ok(true)) {
            break;
        }
        if matches!(*lock(&shared.habit), Habit::Close) {
            break;
        }
    }
    shared.open.fetch_sub(1, Ordering::SeqCst);
}

async fn next_head<S: AsyncRead + Unpin>(stream: &mut BufReader<S>, shared: &Shared, served: u64) -> Option<Head> {
    let closes_soon = served > 0 && matches!(*lock(&shared.habit), Habit::CloseSoon);
    if closes_soon {
        // Steps of a third of a millisecond, so that some closes coincide with the proxy's next request.
        let patience = Duration::from_micros(served.wrapping_mul(7919) % 12 * 333);
        tokio::time::timeout(patience, stream.fill_buf()).await.ok()?.ok()?;
    }
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        if stream.read_until(b'\n', &mut text).await.ok()? == 0 {
            return None;
        }
    }
    let head = Head::parse(String::from_utf8_lossy(&text).into_owned());
    *lock(&shared.heads).entry(head.path().to_owned()).or_default() += 1;
    Some(head)
}

/// Plays one request; returns whether the connection can serve another.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut BufReader<S>,
    shared: &Shared,
    head: &Head,
) -> std::io::Result<bool> {
    let play = lock(&shared.plays).get(head.path()).cloned().unwrap_or(Play::Echo);
    match &play {
        Play::Interrupt(bytes) => {
            stream.write_all(bytes).await?;
            return Ok(false);
        }
        Play::Ignore => return std::future::pending().await,
        Play::Continue => stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?,
        _ => {}
    }
    let body = match read_body(stream, head).await {
        Ok(body) => body,
        Err(e) => {
            shared.abandoned.fetch_add(1, Ordering::SeqCst);
            return Err(e);
        }
    };
    shared.whole.fetch_add(1, Ordering::SeqCst);
    let outcome = perform(stream, &play, head, &body).await;
    if !matches!(outcome, Ok(true)) && !matches!(play, Play::SayAndClose(_) | Play::CloseFirst(_)) {
        shared.abandoned.fetch_add(1, Ordering::SeqCst);
    }
    outcome
}

async fn perform<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut BufReader<S>,
    play: &Play,
    head: &Head,
    body: &Body,
) -> std::io::Result<bool> {
    match play {
        Play::Echo | Play::Continue => stream.write_all(&echo(head, body)).await?,
        Play::EchoAfter(gate) => {
            let opened = tokio::select! {
                permit = gate.acquire() => permit,
                _ = stream.fill_buf() => return Ok(false),
            };
            opened.expect("gates are never closed").forget();
            stream.write_all(&echo(head, body)).await?;
        }
        Play::Say(bytes) => stream.write_all(bytes).await?,
        Play::CloseFirst(times) => {
            if times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
                return Ok(false);
            }
            stream.write_all(&echo(head, body)).await?;
        }
        Play::FailFifth(count) => {
            // A fixed hash of the count: evenly spread, and the same in each run.
            let dice = (count.fetch_add(1, Ordering::SeqCst) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
            let status = if dice.is_multiple_of(5) { "500 Internal Server Error" } else { "200 OK" };
            stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await?;
        }
        Play::Drip(bytes, pause) => {
            for byte in bytes {
                stream.write_all(&[*byte]).await?;
                tokio::time::sleep(*pause).await;
            }
        }
        Play::InTwo(bytes, closes) => {
            let at = head.target.split_once('?').and_then(|(_, query)| query.parse().ok()).unwrap_or(0);
            let (first, last) = bytes.split_at(bytes.len().min(at));
            if !first.is_empty() {
                stream.write_all(first).await?;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            stream.write_all(last).await?;
            return Ok(!closes);
        }
        Play::HintForever => loop {
            stream.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n").await?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        },
        Play::Work(workers) => {
            if !workers.serve(head.path(), stream.fill_buf()).await {
                return Ok(false);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await?;
        }
        Play::SayAndClose(bytes) => {
            stream.write_all(bytes).await?;
            return Ok(false);
        }
        Play::Hang | Play::Ignore | Play::Interrupt(_) => {
            stream.fill_buf().await?;
            return Ok(false);
        }
        Play::Stream(length) => {
            stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes()).await?;
            let mut left = *length;
            while left > 0 {
                let piece = &PATTERN[..usize::try_from(left).unwrap_or(usize::MAX).min(PATTERN.len())];
                stream.write_all(piece).await?;
                left -= piece.len() as u64;
            }
        }
        Play::Events(events) => {
            let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head).await?;
            let mut events = events.lock().await;
            loop {
                let event = tokio::select! {
                    event = events.recv() => event,
                    _ = stream.fill_buf() => return Ok(false),
                };
                let Some(event) = event else { break };
                stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await?;
            }
            stream.write_all(b"0\r\n\r\n").await?;
        }
        Play::Upgrade => {
            let head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
            stream.write_all(head).await?;
            let mut piece = vec![0; 16 << 10];
            loop {
                let read = stream.read(&mut piece).await?;
                if read == 0 {
                    return Ok(false);
                }
                stream.write_all(&piece[..read]).await?;
            }
        }
    }
    Ok(true)
}

/// The content that [`Play::Stream`] repeats. Its length is prime, so a lost or repeated piece shows.
pub static PATTERN: [u8; 65_521] = pattern();

const fn pattern() -> [u8; 65_521] {
    let mut bytes = [0; 65_521];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = (at * 31 % 251) as u8;
        at += 1;
    }
    bytes
}

async fn read_body<S: AsyncRead + Unpin>(stream: &mut BufReader<S>, head: &Head) -> std::io::Result<Body> {
    let mut body = Body::default();
    if head.field("transfer-encoding").is_none() {
        let length = head.field("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        read_exactly(stream, length, &mut body).await?;
        return Ok(body);
    }
    body.is_chunked = true;
    loop {
        let size = line(stream).await?;
        let size = u64::from_str_radix(size.trim(), 16).map_err(|_| std::io::ErrorKind::InvalidData)?;
        if size == 0 {
            break;
        }
        read_exactly(stream, size, &mut body).await?;
        line(stream).await?;
    }
    loop {
        let trailer = line(stream).await?;
        if trailer == "\r\n" {
            return Ok(body);
        }
        body.trailers.push_str(&trailer);
    }
}

async fn read_exactly<S: AsyncRead + Unpin>(
    stream: &mut BufReader<S>,
    mut left: u64,
    body: &mut Body,
) -> std::io::Result<()> {
    while left > 0 {
        let piece = stream.fill_buf().await?;
        if piece.is_empty() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let taken = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        body.add(&piece[..taken]);
        stream.consume(taken);
        left -= taken as u64;
    }
    Ok(())
}

async fn line<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> std::io::Result<String> {
    let mut line = String::new();
    match stream.read_line(&mut line).await? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(line),
    }
}

fn echo(head: &Head, body: &Body) -> Vec<u8> {
    let mut headers = HashMap::<&str, String>::new();
    for (name, value) in &head.fields {
        let joined = headers.entry(name).or_default();
        if !joined.is_empty() {
            joined.push_str(", ");
        }
        joined.push_str(value);
    }
    let answer = json!({
        "method": head.method,
        "target": head.target,
        "version": head.version,
        "headers": headers,
        "head": head.text,
        "body": {
            "bytes": body.bytes,
            "hash": body.hash.text(),
            "chunked": body.is_chunked,
            "trailers": body.trailers,
        },
    });
    let answer = answer.to_string();
    let length = answer.len();
    let answer = if head.method == "HEAD" { String::new() } else { answer };
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{answer}")
        .into_bytes()
}
