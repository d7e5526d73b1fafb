//! Limits, circuit breakers, bans and Machines for operators, as JSON; accepts bans and forced breaker states.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use outrigger_identity::client::Client;
use outrigger_identity::clock;
use outrigger_policy::breaker::{Control, Reason};
use outrigger_policy::flags::Mode;
use outrigger_policy::limiter::Quota;
use outrigger_policy::priority::Priority;
use outrigger_policy::tier::Tier;
use outrigger_rules::target::Target;
use outrigger_rules::units::Span;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::control::admin::access::{Endpoints, Needs};
use crate::engine::condition::condition;
use crate::engine::notices;
use crate::engine::state::State;
use crate::mechanism::abuse::Banned;
use crate::mechanism::breakers::{Cell, Standing};
use crate::mechanism::peers::{Peer, Standing as PeerStanding};

/// The longest name of a client, in bytes.
const NAME_BYTES: usize = 256;

/// Adds the endpoints.
pub fn endpoints(endpoints: Endpoints) -> Endpoints {
    endpoints
        .get(Needs::OwnHost, "/admission", admission)
        .get(Needs::OwnHost, "/breakers", breakers)
        .get(Needs::OwnHost, "/limits", limits)
        .get(Needs::OwnHost, "/machines", machines)
        .get(Needs::Operator, "/bans", bans)
        .post("/bans", ban)
        .delete("/bans/{client}", lift)
        .post("/breakers/{name}", force)
}

/// Why a change was rejected.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// A body that is not as described.
    #[error("{0}; send {{\"client\": \"address:192.0.2.1\", \"for\": \"10m\"}}")]
    Body(#[from] JsonRejection),
    /// Not a client.
    #[error("{0:?} is not a client: write address:IP, user:NAME or key:NAME")]
    Client(String),
    /// Not a duration.
    #[error("{0:?} is not a duration: write \"10m\", \"1h\" or \"1d\"")]
    Duration(String),
    /// The client is not banned.
    #[error("{0:?} is not banned; GET /bans lists all bans")]
    NotBanned(String),
    /// A body that is not as described.
    #[error("{0}; send {{\"force\": \"open\"}}, \"closed\" or \"automatic\"")]
    Force(JsonRejection),
    /// There is no such circuit breaker.
    #[error("there is no breaker {0:?}; GET /breakers lists those in use, and each route has one of its name")]
    NoBreaker(String),
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Body(_) | Self::Client(_) | Self::Duration(_) | Self::Force(_) => StatusCode::BAD_REQUEST,
            Self::NotBanned(_) | Self::NoBreaker(_) => StatusCode::NOT_FOUND,
        };
        (status, Json(json!({ "error": self.to_string() }))).into_response()
    }
}

async fn admission(Shared(state): Shared<Arc<State>>) -> Json<Value> {
    let gate = state.gate.standing();
    let rules = state.rules.load();
    let waiting: serde_json::Map<String, Value> =
        Priority::ALL.into_iter().zip(gate.waiting).map(|(p, n)| (p.name().to_owned(), n.into())).collect();
    Json(json!({
        "mode": rules.config.gate.mode.name(),
        "limit": gate.limit,
        "in_flight": gate.in_flight,
        "queue": waiting,
        "queue_limit": gate.room,
        "latency_ms": gate.latency.map(|latency| latency.as_secs_f64() * 1000.0),
    }))
}

async fn breakers(Shared(state): Shared<Arc<State>>) -> Json<Value> {
    let now = state.nanoseconds(clock::now());
    let all = state.breakers.all();
    let shown: Vec<Value> =
        all.iter().filter_map(|cell| cell.standing(now).map(|standing| shown_breaker(&cell.name, &standing))).collect();
    let held: u32 = if state.reach.is_away() { state.gate.standing().waiting.iter().sum() } else { 0 };
    Json(json!({ "breakers": shown, "app": { "reachable": !state.reach.is_away(), "held": held } }))
}

/// This Machine, and the others as it sees them.
async fn machines(Shared(state): Shared<Arc<State>>) -> Json<Value> {
    let rules = state.rules.load();
    let affinity = rules.config.affinity.as_ref().filter(|rules| rules.mode != Mode::Off);
    let peers: Vec<Value> = state.peers.as_ref().map_or_else(Vec::new, |peers| {
        let shown = |peer: &Arc<Peer>| {
            let address = match &peer.target {
                Target::Tcp(address) => address.to_string(),
                Target::Unix(path) => path.display().to_string(),
            };
            json!({ "name": *peer.name, "address": address, "state": peer.standing().name() })
        };
        peers.seen().peers.iter().map(shown).collect()
    });
    let condition = state.peers.as_ref().map(|peers| PeerStanding::from(condition(&state, &peers.local)).name());
    Json(json!({
        "name": rules.config.this.as_ref().map(|this| &*this.name),
        "state": condition,
        "affinity": affinity.map(|rules| json!({ "mode": rules.mode.name(), "via": rules.via.name() })),
        "peers": peers,
    }))
}

fn shown_breaker(name: &str, standing: &Standing) -> Value {
    let (calls, failed, slow) = standing.seen;
    json!({
        "name": name,
        "state": standing.position.name(),
        "forced": standing.control != Control::Automatic,
        "reason": standing.reason.map(Reason::name),
        "failures_in_a_row": standing.failures,
        "window": { "calls": calls, "failed": failed, "slow": slow },
        "open_for_s": standing.left.map(|left| left.as_secs_f64()),
        "clients_refused": standing.clients_refused,
    })
}

/// How an operator controls a circuit breaker.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Force {
    /// It rejects all requests.
    Open,
    /// It lets all requests pass.
    Closed,
    /// It decides by itself.
    Automatic,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Forced {
    force: Force,
}

async fn force(
    Shared(state): Shared<Arc<State>>,
    Path(name): Path<String>,
    body: Result<Json<Forced>, JsonRejection>,
) -> Result<Json<Value>, Refused> {
    let Json(Forced { force }) = body.map_err(Refused::Force)?;
    let cell = force_breaker(&state, &name, force)?;
    let now = state.nanoseconds(clock::now());
    Ok(Json(cell.standing(now).map_or(Value::Null, |standing| shown_breaker(&cell.name, &standing))))
}

/// Changes how a circuit breaker is controlled.
///
/// # Errors
/// There is no such circuit breaker.
pub fn force_breaker(state: &State, name: &str, force: Force) -> Result<Arc<Cell>, Refused> {
    let all = state.breakers.all();
    let cell = all.iter().find(|cell| *cell.name == *name).ok_or_else(|| Refused::NoBreaker(name.to_owned()))?;
    let (control, shown) = match force {
        Force::Open => (Control::ForcedOpen, "open"),
        Force::Closed => (Control::ForcedClosed, "closed"),
        Force::Automatic => (Control::Automatic, "automatic"),
    };
    if let Some(change) = cell.control_by(control, state.nanoseconds(clock::now())) {
        notices::breaker_changed(state, cell, change);
    }
    tracing::warn!(
        event = "breaker_forced",
        breaker = &*cell.name,
        force = shown,
        "an operator changes how a breaker is controlled"
    );
    notices::breaker_forced(state, &cell.name, shown);
    Ok(Arc::clone(cell))
}

async fn limits(Shared(state): Shared<Arc<State>>) -> Json<Value> {
    let rules = state.rules.load();
    let shown: Vec<Value> = rules
        .config
        .limits
        .all
        .iter()
        .zip(&rules.limit_metrics)
        .map(|(limit, counted)| {
            let tiers: serde_json::Map<String, Value> = Tier::ALL
                .into_iter()
                .zip(limit.quotas)
                .map(|(tier, quota)| (tier.name().to_owned(), quota.map_or(Value::Null, shown_quota)))
                .collect();
            json!({
                "name": *limit.name,
                "mode": limit.mode.name(),
                "shared": limit.is_shared,
                "tiers": tiers,
                "refused": counted.enforced.get(),
                "monitored": counted.monitored.get(),
            })
        })
        .collect();
    let (used, room) = state.limits.size(state.nanoseconds(clock::now()));
    let sharing = state.shared.standpoint();
    Json(json!({
        "limits": shown,
        "keys": { "used": used, "room": room },
        "sharing": {
            "state": sharing.mode.name(),
            "reason": sharing.reason,
            "since_s": clock::since(sharing.since).as_secs(),
            "machines": state.shared.machines(),
        },
    }))
}

fn shown_quota(quota: Quota) -> Value {
    json!({ "burst": quota.burst(), "interval_ms": quota.charge_ns(1) as f64 / 1e6 })
}

async fn bans(Shared(state): Shared<Arc<State>>) -> Json<Value> {
    let now = state.nanoseconds(clock::now());
    let shown: Vec<Value> = state.bans.list(now).iter().map(|banned| shown_ban(banned, now)).collect();
    Json(json!({ "bans": shown }))
}

fn shown_ban(banned: &Banned, now: u64) -> Value {
    let until = SystemTime::now() + banned.ban.left(now);
    json!({
        "client": banned.who,
        "reason": banned.ban.offence.name(),
        "times": banned.ban.times,
        "left_s": banned.ban.left(now).as_secs_f64().ceil(),
        "until": jiff::Timestamp::try_from(until).map_or(Value::Null, |until| until.to_string().into()),
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewBan {
    client: String,
    #[serde(rename = "for", default = "a_while")]
    length: String,
}

fn a_while() -> String {
    "1h".to_owned()
}

async fn ban(
    Shared(state): Shared<Arc<State>>,
    body: Result<Json<NewBan>, JsonRejection>,
) -> Result<(StatusCode, Json<Value>), Refused> {
    let Json(NewBan { client, length }) = body?;
    let (who, hash) = client_named(&client).ok_or_else(|| Refused::Client(client.clone()))?;
    let length: Duration = length.parse::<Span>().map_err(|_| Refused::Duration(length))?.0;
    let now = state.nanoseconds(clock::now());
    let ban = state.bans.set(hash, &who, length, now, &state.rules.load().config.abuse);
    tracing::warn!(client = who, ban_s = length.as_secs(), "an operator bans a client");
    notices::ban_changed(&state, "ban", (&who, hash), Some(length.as_secs()));
    Ok((StatusCode::CREATED, Json(shown_ban(&Banned { who, ban }, now))))
}

async fn lift(Shared(state): Shared<Arc<State>>, Path(client): Path<String>) -> Result<StatusCode, Refused> {
    lift_ban(&state, &client).map(|()| StatusCode::NO_CONTENT)
}

/// Lifts a ban.
///
/// # Errors
/// The client is not banned, or this is no name of a client.
pub fn lift_ban(state: &State, client: &str) -> Result<(), Refused> {
    let (who, hash) = client_named(client).ok_or_else(|| Refused::Client(client.to_owned()))?;
    if !state.bans.lift(hash, state.nanoseconds(clock::now()), &state.limits) {
        return Err(Refused::NotBanned(client.to_owned()));
    }
    tracing::warn!(client = who, "an operator lifts a ban");
    notices::ban_changed(state, "ban.lift", (&who, hash), None);
    Ok(())
}

/// The client that an operator names: its name as it is shown, and its hash.
fn client_named(text: &str) -> Option<(String, u64)> {
    (text.len() <= NAME_BYTES).then(|| Client::named(text)).flatten()
}
