//! Clients in an open loop: each request is sent on schedule, independent of earlier ones, and its latency counts from that
//! time. Clients do not retry; they disconnect after their deadline.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{COOKIE, HeaderName, HeaderValue, SET_COOKIE};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use outrigger_edge::EDGE_ERROR;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::script::{Arrival, Kind};

/// The header in which a client tells the edge its address, since all are on one computer.
pub const ADDRESS: HeaderName = HeaderName::from_static("x-experiment-client");

/// Result of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub arrival: Arrival,
    /// From the scheduled time of the request to the end of the response.
    pub latency: Duration,
    pub end: End,
    /// Id and text of the response, if there was one.
    pub request_id: String,
    pub words: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Good,
    /// A response other than 200: its status, and which program sent it.
    Answered(u16, &'static str),
    /// No response before the client's deadline.
    Late,
    /// The connection broke.
    Broken,
}

impl Outcome {
    /// The end of the request, in the run.
    pub fn ended(&self) -> Duration {
        self.arrival.at + self.latency
    }

    pub fn is_good(&self) -> bool {
        self.end == End::Good
    }
}

#[derive(Clone)]
struct Crowd {
    client: Client<HttpConnector, Full<Bytes>>,
    edge: SocketAddr,
    deadline: Duration,
    /// The cookie of each well-behaved client.
    cookies: Arc<Mutex<HashMap<u32, HeaderValue>>>,
}

/// Sends all requests, and waits for their results.
pub async fn run(edge: SocketAddr, begin: Instant, arrivals: Vec<Arrival>, deadline: Duration) -> Vec<Outcome> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let crowd = Crowd { client, edge, deadline, cookies: Arc::default() };
    let mut under_way = JoinSet::new();
    let mut outcomes = Vec::with_capacity(arrivals.len());
    for arrival in arrivals {
        sleep_until(begin + arrival.at).await;
        let crowd = crowd.clone();
        under_way.spawn(async move { crowd.send(begin, arrival).await });
        while let Some(done) = under_way.try_join_next() {
            outcomes.extend(done.ok());
        }
    }
    while let Some(done) = under_way.join_next().await {
        outcomes.extend(done.ok());
    }
    outcomes
}

impl Crowd {
    async fn send(&self, begin: Instant, arrival: Arrival) -> Outcome {
        let due = begin + arrival.at;
        let mut request_id = String::new();
        let (end, words) = match timeout_at(due + self.deadline, self.exchange(arrival, &mut request_id)).await {
            Ok(Ok(done)) => done,
            Ok(Err(e)) => (End::Broken, e.to_string()),
            Err(_) => (End::Late, String::new()),
        };
        Outcome { arrival, latency: due.elapsed(), end, request_id, words }
    }

    async fn exchange(
        &self,
        arrival: Arrival,
        request_id: &mut String,
    ) -> Result<(End, String), Box<dyn std::error::Error + Send + Sync>> {
        let answer = self.client.request(self.request(arrival)?).await?;
        let (head, body) = answer.into_parts();
        *request_id = field(&head.headers, "fly-request-id");
        self.keep_cookie(arrival, &head.headers);
        let body = body.collect().await?.to_bytes();
        if head.status == StatusCode::OK {
            return Ok((End::Good, String::new()));
        }
        let is_problem = field(&head.headers, "content-type").starts_with("application/problem+json");
        let by = match (head.headers.contains_key(EDGE_ERROR), is_problem) {
            (true, _) => "the edge",
            (false, true) => "Outrigger",
            (false, false) => "the app",
        };
        let words = String::from_utf8_lossy(&body).replace(['\n', '\t'], " ");
        let words = format!("{} {words}", field(&head.headers, EDGE_ERROR));
        Ok((End::Answered(head.status.as_u16(), by), words.trim().to_owned()))
    }

    fn request(&self, arrival: Arrival) -> Result<Request<Full<Bytes>>, http::Error> {
        let number = arrival.client % 97;
        let (method, path) = match arrival.kind {
            Kind::Read => (Method::GET, format!("/items/{number}")),
            Kind::Write => (Method::POST, format!("/items/{number}")),
            Kind::Checkout => (Method::POST, "/checkout".to_owned()),
            Kind::Search => (Method::GET, "/search?q=sea".to_owned()),
        };
        let body = if method == Method::POST { Bytes::from_static(&[b'x'; 200]) } else { Bytes::new() };
        let [.., high, low] = arrival.client.to_be_bytes();
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.edge))
            .header(ADDRESS, format!("10.1.{high}.{low}"));
        let cookie = self.cookies.lock().unwrap_or_else(PoisonError::into_inner).get(&arrival.client).cloned();
        if let Some(cookie) = cookie {
            request = request.header(COOKIE, cookie);
        }
        request.body(Full::new(body))
    }

    /// Floods keep no cookies.
    fn keep_cookie(&self, arrival: Arrival, fields: &HeaderMap) {
        let Some(cookie) = fields.get(SET_COOKIE).and_then(|value| value.to_str().ok()) else { return };
        let cookie = cookie.split(';').next().unwrap_or_default();
        if let Some(value) = HeaderValue::from_str(cookie).ok().filter(|_| !arrival.is_flood) {
            self.cookies.lock().unwrap_or_else(PoisonError::into_inner).insert(arrival.client, value);
        }
    }
}

fn field(fields: &HeaderMap, name: &str) -> String {
    fields.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}
