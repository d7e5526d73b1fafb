//! Scripted Machines, a fleet of them, and a client.
//!
//! Each Machine has its own address in 127/8, so that no other process takes a port that it gives up.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use outrigger_edge::settings::{Check, Stop};
use outrigger_edge::{Edge, Fleet, FleetError, Machine, Settings, Snapshot, State};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};

/// Time limit for events that should be immediate, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(10);

type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type Answered = Response<UnsyncBoxBody<Bytes, BoxError>>;

/// A request as a Machine received it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: Method,
    pub target: String,
    pub fields: HeaderMap,
    pub body: Bytes,
    /// The address that connected.
    pub peer: IpAddr,
}

impl Seen {
    pub fn field(&self, name: &str) -> Option<String> {
        let values: Vec<_> = self.fields.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
        (!values.is_empty()).then(|| values.join(", "))
    }

    /// The value of `key` in a header such as `instance=a;region=b`.
    pub fn part(&self, name: &str, key: &str) -> Option<String> {
        let field = self.field(name)?;
        field.split(';').find_map(|part| part.strip_prefix(key)?.strip_prefix('=').map(str::to_owned))
    }
}

/// How a Machine handles requests for a path.
#[derive(Clone)]
pub enum Play {
    /// 200 with the request's body.
    Echo,
    Say(Arc<dyn Fn(&Seen) -> Answered + Send + Sync>),
    /// As `Echo`, once there is a permit for it.
    EchoAfter(Arc<Semaphore>),
    /// Reads the header section and closes the connection.
    BreakOff,
    /// Responds with this header before it reads the body, which it does afterwards.
    SayEarly(&'static str, String),
    /// A response in pieces, as the test sends them.
    Stream(Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Bytes>>>),
    /// 101, then echoes each byte.
    Upgrade,
    /// Counts the body's bytes as they arrive, keeps none, and returns their number.
    Count(Arc<AtomicUsize>),
}

struct Inner {
    id: String,
    seen: Mutex<Vec<Seen>>,
    plays: Mutex<HashMap<String, Play>>,
    health: AtomicU16,
    next_health: Mutex<VecDeque<u16>>,
    checks: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    open: AtomicUsize,
}

/// One Machine.
pub struct Fake {
    pub machine: Machine,
    inner: Arc<Inner>,
    task: Mutex<Option<JoinHandle<()>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fake {
    /// A Machine with an address that is not running yet.
    pub async fn new(id: &str) -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(2);
        let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let host = Ipv4Addr::from([127, 64 + (std::process::id() % 128) as u8, high, low]);
        let listener = TcpListener::bind((host, 0)).await.unwrap();
        let public = listener.local_addr().unwrap();
        let machine = Machine { id: id.to_owned(), region: "ams".to_owned(), version: 1, public, private: public.ip() };
        let inner = Inner {
            id: id.to_owned(),
            seen: Mutex::default(),
            plays: Mutex::default(),
            health: AtomicU16::new(200),
            next_health: Mutex::default(),
            checks: Mutex::default(),
            connections: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
        };
        Self { machine, inner: Arc::new(inner), task: Mutex::default() }
    }

    /// A Machine that serves.
    pub async fn running(id: &str) -> Self {
        let fake = Self::new(id).await;
        fake.run().await;
        fake
    }

    pub fn in_region(mut self, region: &str) -> Self {
        self.machine.region = region.to_owned();
        self
    }

    pub async fn run(&self) {
        let listener = TcpListener::bind(self.machine.public).await.unwrap();
        *lock(&self.task) = Some(tokio::spawn(listen(listener, Arc::clone(&self.inner))));
    }

    /// Refuses new connections from now on, and drops the existing ones.
    pub async fn halt(&self) {
        let task = lock(&self.task).take();
        if let Some(task) = task {
            task.abort();
            let _ = task.await;
        }
    }

    pub fn plays(&self, path: &str, play: Play) {
        lock(&self.inner.plays).insert(path.to_owned(), play);
    }

    /// Responds to requests for `/` that were not yet replayed with this `fly-replay`.
    pub fn replays(&self, value: &str) {
        let value = value.to_owned();
        self.says("/", move |seen| {
            let is_back = ["fly-replay-src", "fly-replay-failed", "fly-preferred-instance-unavailable"];
            if is_back.iter().any(|name| seen.fields.contains_key(*name)) {
                Response::new(full(""))
            } else {
                Response::builder().status(307).header("fly-replay", &value).body(full("")).unwrap()
            }
        });
    }

    pub fn says(&self, path: &str, say: impl Fn(&Seen) -> Answered + Send + Sync + 'static) {
        self.plays(path, Play::Say(Arc::new(say)));
    }

    /// Requests for `path` wait for a permit of this semaphore.
    pub fn gate(&self, path: &str) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        self.plays(path, Play::EchoAfter(Arc::clone(&gate)));
        gate
    }

    /// Status of its health checks.
    pub fn health(&self, status: u16) {
        self.inner.health.store(status, Ordering::SeqCst);
    }

    /// Statuses of its next health checks, before that one.
    pub fn next_health(&self, statuses: &[u16]) {
        lock(&self.inner.next_health).extend(statuses);
    }

    pub fn checks(&self) -> Vec<Seen> {
        lock(&self.inner.checks).clone()
    }

    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.inner.seen).clone()
    }

    #[track_caller]
    pub fn last(&self) -> Seen {
        self.seen().pop().expect("a request came")
    }

    pub fn connections(&self) -> usize {
        self.inner.connections.load(Ordering::SeqCst)
    }

    pub fn open_connections(&self) -> usize {
        self.inner.open.load(Ordering::SeqCst)
    }
}

async fn listen(listener: TcpListener, inner: Arc<Inner>) {
    // Dropped with this task, and all connections with it.
    let mut connections = JoinSet::new();
    loop {
        let (stream, peer) = listener.accept().await.unwrap();
        while connections.try_join_next().is_some() {}
        inner.connections.fetch_add(1, Ordering::SeqCst);
        inner.open.fetch_add(1, Ordering::SeqCst);
        let inner = Arc::clone(&inner);
        connections.spawn(async move {
            let open = Open(Arc::clone(&inner));
            let service = service_fn(move |request| answer(Arc::clone(&inner), peer.ip(), request));
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _ = connection.with_upgrades().await;
            drop(open);
        });
    }
}

struct Open(Arc<Inner>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn answer(inner: Arc<Inner>, peer: IpAddr, mut request: Request<Incoming>) -> Result<Answered, BoxError> {
    let path = request.uri().path().to_owned();
    let mut seen = Seen {
        method: request.method().clone(),
        target: request.uri().to_string(),
        fields: request.headers().clone(),
        body: Bytes::new(),
        peer,
    };
    if path == "/health" {
        lock(&inner.checks).push(seen);
        let next = lock(&inner.next_health).pop_front();
        let status = StatusCode::from_u16(next.unwrap_or(inner.health.load(Ordering::SeqCst))).unwrap();
        return Ok(Response::builder().status(status).header("location", "/health").body(full("")).unwrap());
    }
    let play = lock(&inner.plays).get(&path).cloned().unwrap_or(Play::Echo);
    if matches!(play, Play::BreakOff | Play::SayEarly(..) | Play::Upgrade) {
        lock(&inner.seen).push(seen.clone());
    }
    let mut answer = match play {
        Play::BreakOff => return Err("told to break off".into()),
        Play::SayEarly(name, value) => {
            tokio::spawn(request.into_body().collect());
            Response::builder().header(name, value).body(full("")).unwrap()
        }
        Play::Upgrade => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
            let switch = Response::builder().status(101).header("connection", "upgrade");
            switch.header("upgrade", "websocket").body(full("")).unwrap()
        }
        Play::Count(count) => {
            let mut body = request.into_body();
            while let Some(frame) = body.frame().await {
                count.fetch_add(frame?.into_data().map_or(0, |data| data.len()), Ordering::SeqCst);
            }
            lock(&inner.seen).push(seen);
            Response::new(full(&count.load(Ordering::SeqCst).to_string()))
        }
        play => {
            seen.body = request.into_body().collect().await?.to_bytes();
            lock(&inner.seen).push(seen.clone());
            match play {
                Play::Say(say) => say(&seen),
                Play::EchoAfter(gate) => {
                    gate.acquire().await?.forget();
                    Response::new(whole(seen.body))
                }
                Play::Stream(pieces) => {
                    let pieces = futures_util::stream::unfold(pieces.lock_owned().await, |mut pieces| async {
                        let piece = pieces.recv().await?;
                        Some((Ok::<_, BoxError>(Frame::data(piece)), pieces))
                    });
                    Response::new(StreamBody::new(pieces).boxed_unsync())
                }
                _ => Response::new(whole(seen.body)),
            }
        }
    };
    answer.headers_mut().insert("x-machine", inner.id.parse()?);
    Ok(answer)
}

pub fn full(text: &str) -> UnsyncBoxBody<Bytes, BoxError> {
    whole(Bytes::copy_from_slice(text.as_bytes()))
}

fn whole(bytes: Bytes) -> UnsyncBoxBody<Bytes, BoxError> {
    Full::new(bytes).map_err(|e: Infallible| match e {}).boxed_unsync()
}

/// An edge in front of these, all started.
pub async fn edge(settings: Settings, fakes: &[&Fake]) -> Edge {
    let edge = Edge::start(settings, None).await.unwrap();
    for fake in fakes {
        edge.add(fake.machine.clone(), State::Started);
    }
    edge
}

/// Waits until the edge's snapshot matches.
pub async fn shows(edge: &Edge, what: &str, look: impl FnMut(&Snapshot) -> bool) {
    assert!(edge.until(PATIENCE, look).await, "waited {PATIENCE:?} for {what}: {:#?}", edge.snapshot());
}

/// Waits until `look` is true.
pub async fn until(what: &str, mut look: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !look() {
        assert!(tokio::time::Instant::now() < end, "waited {PATIENCE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A check at the speed of tests: every 20 ms, with the rest of Fly's values on that scale.
pub fn fast_checks(settings: &mut Settings) -> &mut Check {
    settings.time_scale = 0.02;
    let check = settings.check.insert(Check::of("/health"));
    check.interval = Duration::from_secs(1);
    // A busy machine must not look unhealthy.
    check.timeout = Duration::from_secs(60);
    check
}

/// A complete response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub fields: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(|value| value.to_str().unwrap())
    }

    /// The Machine that responded.
    pub fn machine(&self) -> &str {
        self.field("x-machine").unwrap_or("nobody")
    }

    /// Fails unless the edge itself responded, with this error.
    #[track_caller]
    pub fn is_error(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.field("x-edge-error")), (status, Some(code)), "{self:?}");
    }
}

pub fn request(method: &str, path: &str, fields: &[(&str, &str)], body: &[u8]) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(path);
    if !fields.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", "app.test");
    }
    let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    request.body(Full::new(Bytes::copy_from_slice(body))).unwrap()
}

/// One request on its own connection, and its complete response.
pub async fn send<B>(address: SocketAddr, request: Request<B>) -> Answer
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let exchange = async {
        let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let (head, body) = sender.send_request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        drop(sender);
        let _ = connection.await;
        Answer { status: head.status.as_u16(), fields: head.headers, body }
    };
    tokio::time::timeout(PATIENCE, exchange).await.expect("an answer in time")
}

pub async fn get(edge: &Edge, path: &str) -> Answer {
    get_with(edge, path, &[]).await
}

pub async fn get_with(edge: &Edge, path: &str, fields: &[(&str, &str)]) -> Answer {
    send(edge.address(), request("GET", path, fields, b"")).await
}

pub async fn post(edge: &Edge, path: &str, body: &[u8]) -> Answer {
    send(edge.address(), request("POST", path, &[], body)).await
}

/// A request in progress.
pub fn in_background(edge: &Edge, path: &str) -> JoinHandle<Answer> {
    let address = edge.address();
    let request = request("GET", path, &[], b"");
    tokio::spawn(send(address, request))
}

/// Sends raw bytes; returns the response up to and including `end`.
pub async fn raw(stream: &mut TcpStream, bytes: &[u8], end: &str) -> String {
    stream.write_all(bytes).await.unwrap();
    let mut text = Vec::new();
    let read = async {
        while !String::from_utf8_lossy(&text).contains(end) {
            if stream.read_buf(&mut text).await.unwrap() == 0 {
                break;
            }
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, read).await.is_ok();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(in_time, "waited for {end:?}, got {text:?}");
    text
}

/// A fleet of fakes that records its calls.
#[derive(Default)]
pub struct Fakes {
    all: Mutex<HashMap<String, Arc<Fake>>>,
    log: Mutex<Vec<String>>,
    pub stops: Mutex<Vec<Stop>>,
    /// Health of Machines that are created from now on; 0 is 200.
    pub next_health: AtomicU16,
    /// Machines with these ids cannot be started.
    pub broken: Mutex<Vec<String>>,
    created: AtomicUsize,
    on_stop: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl Fakes {
    /// Called at the moment at which a Machine would get its signal.
    pub fn on_stop(&self, act: impl Fn() + Send + 'static) {
        *lock(&self.on_stop) = Some(Box::new(act));
    }

    pub async fn of(ids: &[&str]) -> Arc<Self> {
        let fleet = Self::default();
        for id in ids {
            let fake = Arc::new(Fake::running(id).await);
            lock(&fleet.all).insert((*id).to_owned(), fake);
        }
        Arc::new(fleet)
    }

    pub fn get(&self, id: &str) -> Arc<Fake> {
        Arc::clone(&lock(&self.all)[id])
    }

    pub fn log(&self) -> Vec<String> {
        lock(&self.log).clone()
    }

    fn note(&self, what: &str, machine: &Machine) {
        lock(&self.log).push(format!("{what} {} v{}", machine.id, machine.version));
    }
}

#[async_trait]
impl Fleet for Fakes {
    async fn create(&self, region: &str, version: u64) -> Result<Machine, FleetError> {
        let id = format!("new{}", self.created.fetch_add(1, Ordering::SeqCst) + 1);
        let mut fake = Fake::new(&id).await.in_region(region);
        fake.machine.version = version;
        let health = self.next_health.load(Ordering::SeqCst);
        fake.health(if health == 0 { 200 } else { health });
        let machine = fake.machine.clone();
        self.note("create", &machine);
        lock(&self.all).insert(id, Arc::new(fake));
        Ok(machine)
    }

    async fn start(&self, machine: &Machine) -> Result<Machine, FleetError> {
        self.note("start", machine);
        if lock(&self.broken).contains(&machine.id) {
            return Err(FleetError("broken".to_owned()));
        }
        self.get(&machine.id).run().await;
        Ok(machine.clone())
    }

    async fn stop(&self, machine: &Machine, how: Stop) -> Result<(), FleetError> {
        self.note("stop", machine);
        if let Some(act) = &*lock(&self.on_stop) {
            act();
        }
        lock(&self.stops).push(how);
        self.get(&machine.id).halt().await;
        Ok(())
    }

    async fn suspend(&self, machine: &Machine) -> Result<(), FleetError> {
        self.note("suspend", machine);
        self.get(&machine.id).halt().await;
        Ok(())
    }

    async fn destroy(&self, machine: &Machine) -> Result<(), FleetError> {
        self.note("destroy", machine);
        Ok(())
    }
}

/// An edge with this fleet's Machines, all started.
pub async fn edge_of(settings: Settings, fleet: &Arc<Fakes>, ids: &[&str]) -> Edge {
    let edge = Edge::start(settings, Some(Arc::clone(fleet) as Arc<dyn Fleet>)).await.unwrap();
    for id in ids {
        edge.add(fleet.get(id).machine.clone(), State::Started);
    }
    edge
}
