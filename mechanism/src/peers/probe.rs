//! Health checks of the peers: each is probed every `peers.interval`, on its listener for hops, and must sign its
//! response.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::StatusCode;
use outrigger_identity::clock::seconds;
use outrigger_identity::signing::Purpose;
use outrigger_identity::this::This;
use outrigger_rules::target::Target;
use outrigger_wire::names::X_OUTRIGGER_HOP;
use outrigger_wire::request::{Fields, Request};
use pingora_core::{Error, ErrorType};
use pingora_load_balancing::Backend;
use pingora_load_balancing::health_check::HealthCheck;

use crate::peers::answer::{AnswerRefused, Asked, ProbeAnswer};
use crate::peers::hop::{Hop, Kind, Nonce, Nonces, PROBE_PATH, Receiver, SUMMARY_PATH};
use crate::peers::{Peer, Peers, Seen, Standing, summary};
use outrigger_transport::app_pool::AppStream;
use outrigger_transport::upstream::{ConnectError, Resource};

/// After this many probes in a row without a response a peer is considered gone.
pub const MISSED_BEFORE_LOST: u32 = 3;
/// The maximum size of a response to a probe, in bytes.
const ANSWER_BYTES: usize = 4096;
/// The maximum size of a summary, in bytes.
const SUMMARY_BYTES: usize = 1 << 20;

/// Why a probe failed.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// There is no connection.
    #[error("it cannot be reached: {0}")]
    Connect(#[from] ConnectError),
    /// It does not speak HTTP.
    #[error("it does not speak HTTP: {0}")]
    Http(#[from] hyper::Error),
    /// The response is incomplete or too long.
    #[error("its response is not one to a probe")]
    Body,
    /// Timeout.
    #[error("it did not respond in time")]
    Late(#[from] tokio::time::error::Elapsed),
    /// The response does not prove that it is a peer.
    #[error("it responds with {0} and {1}")]
    Unproven(StatusCode, AnswerRefused),
}

/// Sends a GET request for `path` on the connection that `connecting` makes. Returns the status and the body.
///
/// # Errors
/// [`Unanswered`] if there is no complete response within `patience`.
pub async fn ask(
    connecting: impl Future<Output = Result<AppStream, ConnectError>>,
    path: &str,
    patience: Duration,
) -> Result<(StatusCode, Bytes), Unanswered> {
    let asked = async { answer_of(connecting.await?, request(path)).await };
    tokio::time::timeout(patience, asked).await?
}

fn request(path: &str) -> http::Request<Bytes> {
    let mut request = http::Request::new(Bytes::new());
    // Our own paths are valid; otherwise this would request the root.
    *request.uri_mut() = path.parse().unwrap_or_default();
    request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static("outrigger"));
    request
}

async fn answer_of(stream: AppStream, request: http::Request<Bytes>) -> Result<(StatusCode, Bytes), Unanswered> {
    let answer = outrigger_transport::ask::ask(stream, request).await?;
    Ok((answer.head.status, answer.body(ANSWER_BYTES).await.map_err(|_| Unanswered::Body)?))
}

/// A peer that has proved its identity.
#[derive(Debug)]
pub struct Proven {
    standing: Standing,
    pub(super) name: Box<str>,
    pub(super) run: u64,
}

impl Check {
    /// Probes an address. Returns the condition of the peer there, if it proves its identity.
    pub(super) async fn probe(&self, address: SocketAddr) -> Result<Proven, Unanswered> {
        let stream = AppStream::connect(&Target::Tcp(address)).await?;
        let from = if self.is_translated { None } else { stream.local_address() };
        let nonce = self.nonces.next();
        let asks = signed(&self.this, nonce, PROBE_PATH, Receiver::ANY);
        let (status, body) = answer_of(stream, asks).await?;
        let asked = Asked { nonce, asker: &self.this.name, address, from };
        let answer = ProbeAnswer::verify(&self.this.keys, &body, asked).map_err(|e| Unanswered::Unproven(status, e))?;
        Ok(Proven { standing: answer.condition.into(), name: answer.name, run: answer.run })
    }
}

/// A request of this Machine itself to a peer, signed for `receiver`.
pub(super) fn signed(this: &This, nonce: Nonce, path: &str, receiver: Receiver<'_>) -> http::Request<Bytes> {
    let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let hop = Hop { kind: Kind::Probe, client: nobody, nonce, from: this.name.as_ref().into() };
    let mut asks = request(path);
    let signed = Request {
        method: asks.method(),
        path,
        host: "outrigger",
        fields: Fields::Map(asks.headers()),
        is_http10: false,
        target: path,
        has_endless_body: false,
    };
    let token = hop.sign(&this.keys, &signed, receiver, seconds());
    if let Ok(token) = http::HeaderValue::from_maybe_shared(token) {
        asks.headers_mut().insert(&X_OUTRIGGER_HOP, token);
    }
    asks
}

/// Asks a peer for its summary, a JSON document.
///
/// # Errors
/// [`Unanswered`]: there is no complete response within `patience`, or it is not signed.
pub async fn summary_of(peers: &Peers, peer: &Peer, patience: Duration) -> Result<Vec<u8>, Unanswered> {
    let nonce = peers.nonces.next();
    let asked = async {
        let stream = AppStream::connect(&peer.target).await?;
        let answer =
            outrigger_transport::ask::ask(stream, signed(&peers.this, nonce, SUMMARY_PATH, Receiver::ANY)).await?;
        let status = answer.head.status;
        let body = answer.body(SUMMARY_BYTES).await.map_err(|_| Unanswered::Body)?;
        summary::verify(&peers.this.keys, Purpose::Summary, nonce, &body)
            .ok_or(Unanswered::Unproven(status, AnswerRefused::Unsigned))
    };
    tokio::time::timeout(patience, asked).await?
}

/// The results of one round of probes, by address.
pub type Round = Mutex<HashMap<SocketAddr, Result<Proven, Unanswered>>>;

/// The health check for `pingora-load-balancing`, which keeps its results for [`Peers`].
#[derive(Debug)]
pub struct Check {
    /// The Machine that sends the probes.
    pub this: This,
    /// The nonces of its probes.
    pub nonces: Arc<Nonces>,
    /// Addresses are translated between the Machines: peers see another source address than this Machine.
    pub is_translated: bool,
    /// The timeout of a probe.
    pub patience: Duration,
    /// Where the results go.
    pub round: Arc<Round>,
}

#[async_trait]
impl HealthCheck for Check {
    async fn check(&self, target: &Backend) -> pingora_core::Result<()> {
        let Some(address) = target.addr.as_inet() else { return Ok(()) };
        let found = match tokio::time::timeout(self.patience, self.probe(*address)).await {
            Ok(found) => found,
            Err(late) => Err(late.into()),
        };
        let is_ready = matches!(found, Ok(Proven { standing: Standing::Ready | Standing::Busy, .. }));
        self.round.lock().unwrap_or_else(PoisonError::into_inner).insert(*address, found);
        if is_ready { Ok(()) } else { Err(Error::explain(ErrorType::InternalError, "it is not ready")) }
    }

    fn health_threshold(&self, _: bool) -> usize {
        1
    }
}

/// Looks for peers for the life of the process.
pub async fn keep_resolving(peers: Arc<Peers>) {
    let mut has_failed = false;
    loop {
        let found = peers.balancer.update().await;
        if found.is_err() != has_failed {
            has_failed = found.is_err();
            match found {
                Ok(()) => tracing::info!(event = "peers", "peers can be looked up again"),
                Err(e) => tracing::warn!(event = "peers", "peers cannot be looked up, keeping the known ones: {e}"),
            }
        }
        tokio::time::sleep(peers.rules.interval).await;
    }
}

/// Probes the peers in a task of its own: a slow name server must not delay probes. After each round calls `seen` with whether
/// no complete table was known before it. Calls `note_exhaustion` when this host lacks a resource for a probe.
pub async fn keep_probing(peers: Arc<Peers>, seen: impl Fn(bool), note_exhaustion: impl Fn(Resource)) {
    loop {
        peers.balancer.backends().run_health_check(true).await;
        let answers = std::mem::take(&mut *peers.round.lock().unwrap_or_else(PoisonError::into_inner));
        seen(take_in(&peers, answers, &note_exhaustion));
        tokio::time::sleep(peers.rules.interval).await;
    }
}

/// Makes the next table of peers from the previous one and the results of a round. Returns whether no complete
/// table was known before.
fn take_in(
    peers: &Peers,
    answers: HashMap<SocketAddr, Result<Proven, Unanswered>>,
    note_exhaustion: impl Fn(Resource),
) -> bool {
    let before = peers.seen();
    let mut next = Seen::default();
    let mut answers: Vec<_> = answers.into_iter().collect();
    answers.sort_unstable_by_key(|(address, _)| *address);
    for (address, answer) in answers {
        let known = before.peers.iter().find(|peer| peer.target == Target::Tcp(address));
        if let Err(Unanswered::Connect(ConnectError::Exhausted { resource, .. })) = &answer {
            // The address was not probed: its state stays the same.
            note_exhaustion(*resource);
            match (known, before.strangers.get(&address)) {
                (Some(known), _) => next.peers.push(Arc::clone(known)),
                (None, asked) => drop(next.strangers.insert(address, asked.copied().unwrap_or(0))),
            }
            continue;
        }
        match (answer, known) {
            (Ok(Proven { name, .. }), _) if *name == *peers.this.name => {}
            (Ok(Proven { standing, name, run }), Some(known)) if *name == *known.name => {
                if known.standing() != standing {
                    tell(known, standing);
                }
                known.says(standing, run);
                next.peers.push(Arc::clone(known));
            }
            (Ok(Proven { standing, name, run }), _) => {
                let peer = Arc::new(Peer::new(name.into(), address, standing, run));
                tell(&peer, standing);
                next.peers.push(peer);
            }
            (Err(unanswered), Some(known)) => {
                if matches!(unanswered, Unanswered::Unproven(..)) {
                    known.is_doubted();
                }
                let missed = known.missed.fetch_add(1, Ordering::Relaxed) + 1;
                if known.standing() != Standing::Silent {
                    tracing::warn!(event = "peer", peer = %known.name, %address, "peer {}: {unanswered}", known.name);
                }
                known.set(Standing::Silent);
                if missed == MISSED_BEFORE_LOST {
                    tracing::warn!(event = "peer", peer = %known.name, %address, missed, "peer {} is considered down", known.name);
                }
                next.peers.push(Arc::clone(known));
            }
            (Err(unanswered), None) => {
                let asked = before.strangers.get(&address).copied().unwrap_or(0).saturating_add(1);
                if asked == MISSED_BEFORE_LOST && matches!(unanswered, Unanswered::Unproven(..)) {
                    // Only once: it may be there for long.
                    tracing::warn!(event = "peer", %address, "no peer at {address}: {unanswered}");
                } else {
                    tracing::debug!(%address, "no peer at {address}: {unanswered}");
                }
                next.strangers.insert(address, asked);
            }
        }
    }
    let is_complete = next.is_complete() && peers.found.age().is_some();
    peers.seen.store(Arc::new(next));
    !peers.has_looked.fetch_or(is_complete, Ordering::Relaxed)
}

fn tell(peer: &Peer, standing: Standing) {
    let (name, standing) = (&*peer.name, standing.name());
    tracing::info!(event = "peer", peer = name, standing, "peer {name} is {standing}");
}
