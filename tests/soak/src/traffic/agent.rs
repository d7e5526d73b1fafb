//! One client: its identity, its pauses, and its requests.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use futures_util::future::join_all;
use http::header::{CONNECTION, COOKIE, HOST, SET_COOKIE};
use http::request::Builder;
use http::response::Parts;
use http::{Method, Request, StatusCode};
use tokio::time::{Instant, sleep, timeout_at};

use super::{Failed, Results, Shared};
use crate::client::{Body, Connection, Trouble, collect, field, has_status, whole};
use crate::content::{content, receipt};
use crate::judge::{Failure, Kind};

/// The traffic that a client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    Kept,
    New,
    Http2,
    WebSocket,
    Events,
    Uploads,
    Leaves,
}

pub struct Agent {
    pub(super) shared: Arc<Shared>,
    pub(super) random: Rng,
    pub(super) results: Results,
    number: u64,
    made: u64,
    address: Ipv4Addr,
    has_key: bool,
    keeps_cookie: bool,
    cookie: Option<String>,
}

/// A request, and the body that its response must have.
pub struct Order {
    pub kind: Kind,
    pub id: u64,
    method: Method,
    path: String,
    body: Vec<u8>,
    wanted: Vec<u8>,
}

/// A mean pause of this length; none is longer than the second, so that a proxy that shuts down closes no connection on which a
/// request could come: its `lame_duck` is longer.
const PAUSE: f64 = 0.3;
const LONGEST_PAUSE: f64 = 1.5;

/// The key of `proxy.toml`.
const KEY: &str = "key-of-the-soak-test-that-nobody-guesses";

impl Agent {
    pub fn new(shared: Arc<Shared>, number: u64) -> Self {
        let random = Rng::with_seed(shared.seed.wrapping_mul(0x9e37_79b9).wrapping_add(number));
        let address = Ipv4Addr::LOCALHOST;
        let (results, cookie) = Default::default();
        Self { shared, random, results, number, made: 0, address, has_key: false, keeps_cookie: false, cookie }
    }

    /// Sends this traffic until the end.
    pub async fn run(mut self, habit: Habit) -> Results {
        while !self.shared.is_over() {
            self.becomes_another_client();
            self.pause().await;
            match habit {
                Habit::Kept => self.keeps_a_connection().await,
                Habit::New => self.opens_a_connection().await,
                Habit::Http2 => self.sends_at_once().await,
                Habit::WebSocket => self.talks().await,
                Habit::Events => self.listens().await,
                Habit::Uploads => self.uploads().await,
                Habit::Leaves => self.leaves().await,
            }
        }
        self.results
    }

    /// Three of four come again, one of four never came before.
    fn becomes_another_client(&mut self) {
        let host = if self.random.u32(0..4) > 0 { self.random.u32(1..200) } else { self.random.u32(1 << 16..1 << 24) };
        self.address = Ipv4Addr::from(0x0a00_0000 | host);
        self.has_key = host.is_multiple_of(10);
        self.keeps_cookie = self.random.u32(0..3) == 0;
        self.cookie = None;
    }

    pub(super) async fn pause(&mut self) {
        let random = -(1.0 - self.random.f64()).ln() * PAUSE;
        sleep(Duration::from_secs_f64(random.min(LONGEST_PAUSE))).await;
    }

    /// Unique in a run.
    pub(super) fn id(&mut self) -> u64 {
        self.made += 1;
        self.number << 40 | self.made
    }

    /// A request with the headers of this client.
    pub(super) fn request(&self, method: Method, path: &str) -> Builder {
        let mut request = Request::builder().method(method).uri(path);
        request = request.header("x-forwarded-for", self.address.to_string());
        if self.has_key {
            request = request.header("x-api-key", KEY);
        }
        if let Some(cookie) = &self.cookie {
            request = request.header(COOKIE, cookie);
        }
        request
    }

    fn keep_cookie(&mut self, head: &Parts) {
        if let Some(cookie) = field(&head.headers, SET_COOKIE.as_str()).filter(|_| self.keeps_cookie) {
            self.cookie = cookie.split(';').next().map(str::to_owned);
        }
    }

    /// Six of ten are GET, one is PUT, three are POST.
    fn any_order(&mut self, get: Kind, put: Option<Kind>, post: Kind) -> Order {
        match (self.random.u32(0..10), put) {
            (0..3, _) => self.order(post),
            (3, Some(put)) => self.order(put),
            _ => self.order(get),
        }
    }

    fn order(&mut self, kind: Kind) -> Order {
        let id = self.id();
        if matches!(kind, Kind::Get | Kind::GetNew | Kind::Http2Get) {
            let size = self.random.usize(0..4000) * if self.random.u32(0..20) == 0 { 16 } else { 1 };
            let path = format!("/items/{id:016x}?size={size}");
            return Order { kind, id, method: Method::GET, path, body: Vec::new(), wanted: content(id, size).into() };
        }
        let body: Vec<u8> = content(id, self.random.usize(0..6000)).into();
        let wanted = receipt(id, &body).into_bytes();
        let (method, above) = if kind == Kind::Put { (Method::PUT, "items") } else { (Method::POST, "orders") };
        Order { kind, id, method, path: format!("/{above}/{id:016x}"), body, wanted }
    }

    async fn keeps_a_connection(&mut self) {
        let ports = self.shared.pick();
        let Some(mut connection) = self.connected(Kind::Get, Connection::http1(ports.http1)).await else { return };
        for _ in 0..self.random.u32(1..40) {
            let order = self.any_order(Kind::Get, Some(Kind::Put), Kind::Post);
            if !self.carry_out(&order, &mut connection).await || self.shared.is_over() {
                return;
            }
            self.pause().await;
        }
    }

    async fn opens_a_connection(&mut self) {
        let ports = self.shared.pick();
        let Some(mut connection) = self.connected(Kind::GetNew, Connection::http1(ports.http1)).await else { return };
        let order = self.any_order(Kind::GetNew, None, Kind::Post);
        self.carry_out(&order, &mut connection).await;
    }

    /// The connection; a failure counts as one of a request of this kind.
    pub(super) async fn connected(
        &mut self,
        kind: Kind,
        connecting: impl Future<Output = Result<Connection, Failure>>,
    ) -> Option<Connection> {
        let from = Instant::now();
        let outcome = timeout_at(from + self.shared.timeout, connecting).await.unwrap_or(Err(Failure::Late));
        match outcome {
            Ok(connection) => Some(connection),
            Err(failure) => {
                self.failed(kind, from, failure, String::new());
                None
            }
        }
    }

    /// Sends a request over HTTP/1.1. Returns whether the connection can be used again.
    async fn carry_out(&mut self, order: &Order, connection: &mut Connection) -> bool {
        let from = Instant::now();
        let deadline = from + self.shared.timeout;
        let mut outcome = self.attempt(order, connection, deadline).await;
        let mut stays = true;
        if matches!(outcome, Err(Trouble::Unprocessed)) {
            // As each client does: once more, on a new connection.
            self.results.resent += 1;
            stays = false;
            outcome = match timeout_at(deadline, Connection::http1(self.shared.pick().http1)).await {
                Ok(Ok(mut other)) => self.attempt(order, &mut other, deadline).await,
                Ok(Err(failure)) => Err(failure.into()),
                Err(_) => Err(Failure::Late.into()),
            };
        }
        let is_good = outcome.is_ok();
        let closes = self.note(order, from, outcome);
        is_good && stays && !closes
    }

    async fn attempt(
        &mut self,
        order: &Order,
        connection: &mut Connection,
        deadline: Instant,
    ) -> Result<Parts, Trouble> {
        let request = order.request(self, "http://soak.test", matches!(connection, Connection::One(_)));
        exchange(order, request, connection, deadline).await
    }

    /// Some requests at the same time, a few times, on a connection of HTTP/2.
    async fn sends_at_once(&mut self) {
        let ports = self.shared.pick();
        let Some(connection) = self.connected(Kind::Http2Get, Connection::http2(ports.http2)).await else { return };
        for _ in 0..self.random.u32(1..60) {
            let some = self.random.u32(1..7);
            let orders: Vec<Order> = (0..some).map(|_| self.any_order(Kind::Http2Get, None, Kind::Http2Post)).collect();
            let from = Instant::now();
            let deadline = from + self.shared.timeout;
            let all = orders.iter().filter_map(|order| {
                let mut connection = connection.twin()?;
                let request = order.request(self, "http://soak.test", false);
                Some(async move {
                    let outcome = exchange(order, request, &mut connection, deadline).await;
                    (outcome, Instant::now())
                })
            });
            let outcomes = join_all(all).await;
            let mut stays = true;
            for (order, (outcome, ended)) in orders.iter().zip(outcomes) {
                if matches!(outcome, Err(Trouble::Unprocessed)) {
                    stays = false;
                    let ports = self.shared.pick();
                    let connecting = Connection::http2(ports.http2);
                    let Some(mut other) = self.connected(order.kind, connecting).await else { continue };
                    self.results.resent += 1;
                    let again = self.attempt(order, &mut other, deadline).await;
                    self.note(order, from, again);
                } else {
                    stays &= outcome.is_ok();
                    self.note_at(order, from, ended, outcome);
                }
            }
            if !stays || self.shared.is_over() {
                return;
            }
            self.pause().await;
        }
    }

    fn note(&mut self, order: &Order, from: Instant, outcome: Result<Parts, Trouble>) -> bool {
        self.note_at(order, from, Instant::now(), outcome)
    }

    /// Notes a result, and returns whether the proxy closes the connection.
    fn note_at(&mut self, order: &Order, from: Instant, to: Instant, outcome: Result<Parts, Trouble>) -> bool {
        match outcome {
            Ok(head) => {
                self.keep_cookie(&head);
                self.good(order.kind, from, to);
                if order.method == Method::POST {
                    self.results.done.push(order.id);
                }
                field(&head.headers, CONNECTION.as_str()).is_some_and(|value| value.eq_ignore_ascii_case("close"))
            }
            Err(trouble) => {
                let failure = match trouble {
                    Trouble::Unprocessed => Failure::BrokenBefore("not processed, twice in a row".to_owned()),
                    Trouble::Failed(failure) => failure,
                };
                self.failed_at(order.kind, from, to, failure, order.path.clone());
                true
            }
        }
    }

    pub(super) fn good(&mut self, kind: Kind, from: Instant, to: Instant) {
        *self.results.requests.entry(kind).or_default() += 1;
        self.took(kind, from, to);
    }

    /// Notes a latency only.
    pub(super) fn took(&mut self, kind: Kind, from: Instant, to: Instant) {
        let at = from.duration_since(self.shared.begin).as_secs_f64();
        let ms = to.duration_since(from).as_secs_f64() * 1000.0;
        self.results.latencies.entry(kind).or_default().push((at, ms));
    }

    pub(super) fn failed(&mut self, kind: Kind, from: Instant, failure: Failure, request: String) {
        self.failed_at(kind, from, Instant::now(), failure, request);
    }

    fn failed_at(&mut self, kind: Kind, from: Instant, to: Instant, failure: Failure, request: String) {
        *self.results.requests.entry(kind).or_default() += 1;
        let since = |at: Instant| at.duration_since(self.shared.begin);
        self.results.failed.push(Failed { kind, from: since(from), to: since(to), failure, request });
    }
}

impl Order {
    /// `is_http1`: with `Host` and a path, else with a whole URI.
    fn request(&self, client: &Agent, authority: &str, is_http1: bool) -> Request<Body> {
        let uri = if is_http1 { self.path.clone() } else { format!("{authority}{}", self.path) };
        let mut request = client.request(self.method.clone(), &uri);
        if is_http1 {
            request = request.header(HOST, "soak.test");
        }
        request.body(whole(self.body.clone())).unwrap_or_default()
    }

    fn check(&self, body: &[u8]) -> Result<(), Failure> {
        if body == self.wanted {
            return Ok(());
        }
        let begins = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        Err(Failure::Wrong(format!("{} bytes instead of {}: {begins:?}", body.len(), self.wanted.len())))
    }
}

/// Sends a request, and checks the whole response.
async fn exchange(
    order: &Order,
    request: Request<Body>,
    connection: &mut Connection,
    deadline: Instant,
) -> Result<Parts, Trouble> {
    let all = async {
        let response = connection.send(request).await?;
        let (head, body) = has_status(response, StatusCode::OK).await?;
        order.check(&collect(body).await?)?;
        Ok(head)
    };
    timeout_at(deadline, all).await.unwrap_or(Err(Failure::Late.into()))
}
