//! How the peers are: each is asked every second, over the listener that requests come by, and has to sign its answer.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use outrigger_identity::clock::seconds;
use outrigger_identity::this::This;
use outrigger_rules::target::Target;
use outrigger_wire::names::X_OUTRIGGER_HOP;
use outrigger_wire::request::{Fields, Request};
use pingora::lb::Backend;
use pingora::lb::health_check::HealthCheck;
use pingora::{Error, ErrorType};

use crate::engine::state::State;
use crate::mechanism::peers::answer::{AnswerRefused, Asked, ProbeAnswer};
use crate::mechanism::peers::hop::{Hop, Kind, Nonces, PROBE_PATH, Receiver};
use crate::mechanism::peers::{Peer, Peers, Seen, Standing};
use crate::transport::app_pool::AppStream;
use crate::transport::upstream::ConnectError;

/// After so many probes without an answer a peer is taken for gone.
pub const MISSED_BEFORE_LOST: u32 = 3;
/// The longest answer to a probe.
const ANSWER_BYTES: usize = 4096;

/// Why an answer to a probe is none.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// The system's word.
    #[error("it cannot be reached: {0}")]
    Connect(#[from] ConnectError),
    /// It speaks something else.
    #[error("it does not speak HTTP: {0}")]
    Http(#[from] hyper::Error),
    /// Its answer has no end, or is too long.
    #[error("its answer is no answer to a probe")]
    Body,
    /// It took too long.
    #[error("it takes too long")]
    Late(#[from] tokio::time::error::Elapsed),
    /// It does not prove that it is a peer.
    #[error("it answers {0} and {1}")]
    Unproven(StatusCode, AnswerRefused),
}

/// Asks at the other end of `connecting` for `path`. Gives the status and the body.
///
/// # Errors
/// Whatever keeps it from answering within `patience`.
pub async fn ask(
    connecting: impl Future<Output = Result<AppStream, ConnectError>>,
    path: &str,
    patience: Duration,
) -> Result<(StatusCode, Bytes), Unanswered> {
    let asked = async { answer_of(connecting.await?, request(path)).await };
    tokio::time::timeout(patience, asked).await?
}

fn request(path: &str) -> hyper::Request<Empty<Bytes>> {
    let mut request = hyper::Request::new(Empty::<Bytes>::new());
    // A path of ours is one; should that ever not hold, the root is asked for.
    *request.uri_mut() = path.parse().unwrap_or_default();
    request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static("outrigger"));
    request
}

async fn answer_of(
    stream: AppStream,
    request: hyper::Request<Empty<Bytes>>,
) -> Result<(StatusCode, Bytes), Unanswered> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // It ends when the sender is dropped, or with the other side.
    tokio::spawn(connection);
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await.map_err(|_| Unanswered::Body)?;
    Ok((status, body.to_bytes()))
}

/// A peer that has proved itself.
#[derive(Debug)]
pub struct Proven {
    standing: Standing,
    name: Box<str>,
    run: u64,
}

impl Check {
    /// A peer's own word of how it is, and the proof that it is one.
    async fn probe(&self, address: SocketAddr) -> Result<Proven, Unanswered> {
        let stream = AppStream::connect(&Target::Tcp(address)).await?;
        let from = if self.is_translated { None } else { stream.local_address() };
        let nonce = self.nonces.next();
        let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let hop = Hop { kind: Kind::Probe, client: nobody, nonce, from: self.this.name.as_ref().into() };
        let mut asks = request(PROBE_PATH);
        let signed = Request {
            method: asks.method(),
            path: PROBE_PATH,
            host: "outrigger",
            fields: Fields::Map(asks.headers()),
            is_http10: false,
            target: PROBE_PATH,
            has_endless_body: false,
        };
        let sealed = hop.seal(&self.this.keys, &signed, Receiver::ANY, seconds());
        if let Ok(sealed) = http::HeaderValue::from_maybe_shared(sealed) {
            asks.headers_mut().insert(&X_OUTRIGGER_HOP, sealed);
        }
        let (status, body) = answer_of(stream, asks).await?;
        let asked = Asked { nonce, asker: &self.this.name, address, from };
        let answer = ProbeAnswer::open(&self.this.keys, &body, asked).map_err(|e| Unanswered::Unproven(status, e))?;
        Ok(Proven { standing: answer.condition.into(), name: answer.name, run: answer.run })
    }
}

/// What the probes of one round found, by address.
pub type Round = Mutex<HashMap<SocketAddr, Result<Proven, Unanswered>>>;

/// Asks as `pingora-load-balancing` wants it, and keeps what it was told for [`Peers`].
#[derive(Debug)]
pub struct Check {
    /// Who asks.
    pub this: This,
    /// The numbers of its probes.
    pub nonces: Arc<Nonces>,
    /// Addresses are translated between the Machines: the one that it asks from is not the one that they see.
    pub is_translated: bool,
    /// How long an answer may take.
    pub patience: Duration,
    /// Where the answers go.
    pub round: Arc<Round>,
}

#[async_trait]
impl HealthCheck for Check {
    async fn check(&self, target: &Backend) -> pingora::Result<()> {
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

/// Looks for peers, for as long as the process lives.
pub async fn keep_looking(state: Arc<State>) {
    let Some(peers) = &state.peers else { return };
    let mut has_failed = false;
    loop {
        let found = peers.balancer.update().await;
        if found.is_err() != has_failed {
            has_failed = found.is_err();
            match found {
                Ok(()) => tracing::info!(event = "peers", "peers can be looked up again"),
                Err(e) => tracing::warn!(event = "peers", "peers cannot be looked up, those known stay: {e}"),
            }
        }
        tokio::time::sleep(peers.rules.interval).await;
    }
}

/// Asks them how they are, beside that: a name server that takes its time keeps nobody waiting.
pub async fn keep_asking(state: Arc<State>) {
    let Some(peers) = &state.peers else { return };
    loop {
        peers.balancer.backends().run_health_check(true).await;
        let answers = std::mem::take(&mut *peers.round.lock().unwrap_or_else(PoisonError::into_inner));
        take_in(&state, peers, answers);
        tokio::time::sleep(peers.rules.interval).await;
    }
}

/// Makes the next table of peers from the one before and what a round found.
fn take_in(state: &State, peers: &Peers, answers: HashMap<SocketAddr, Result<Proven, Unanswered>>) {
    let before = peers.seen();
    let mut next = Seen::default();
    let mut answers: Vec<_> = answers.into_iter().collect();
    answers.sort_unstable_by_key(|(address, _)| *address);
    for (address, answer) in answers {
        let known = before.peers.iter().find(|peer| peer.target == Target::Tcp(address));
        if let Err(Unanswered::Connect(ConnectError::Exhausted { resource, .. })) = &answer {
            // It was not asked: nothing is known of it that was not known before.
            state.exhaustion.note(*resource, state);
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
                    tracing::warn!(event = "peer", peer = %known.name, %address, missed, "peer {} is taken for gone", known.name);
                }
                next.peers.push(Arc::clone(known));
            }
            (Err(unanswered), None) => {
                let asked = before.strangers.get(&address).copied().unwrap_or(0).saturating_add(1);
                if asked == MISSED_BEFORE_LOST && matches!(unanswered, Unanswered::Unproven(..)) {
                    // Once: it may be there for long.
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
    state.machines.set_known(peers.machines().0);
    let is_first_look = !peers.has_looked.fetch_or(is_complete, Ordering::Relaxed);
    state.metrics.show_machines(peers, is_first_look);
}

fn tell(peer: &Peer, standing: Standing) {
    let (name, standing) = (&*peer.name, standing.name());
    tracing::info!(event = "peer", peer = name, standing, "peer {name} is {standing}");
}
