//! THE life of a request: in from the client, out to a Machine, again for each `fly-replay`, and back.
//!
//! Source: docs:networking/dynamic-request-routing.html.markerb, c/27404 (facts: 2).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, UPGRADE};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio::time::{Instant, timeout};

use crate::BoxError;
use crate::code::{Code, EDGE_ERROR};
use crate::headers::{self, PREFERRED_UNAVAILABLE, REPLAY_FAILED, REPLAY_SRC};
use crate::idle::Watched;
use crate::machine::Machine;
use crate::reach::{Outgoing, Search, Unreached};
use crate::replay::{Fallback, Form, Instruction, MAX_JSON};
use crate::routing::Wish;
use crate::shared::Shared;
use crate::tape::Tape;
use crate::upstream::Reached;

pub(crate) type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

/// A client that is still sending gets its response after this time or this many bytes.
const DRAIN: (Duration, u64) = (Duration::from_secs(1), 64 << 20);

pub(crate) async fn serve(shared: &Arc<Shared>, peer: IpAddr, request: Request<Incoming>, chance: u128) -> Answer {
    shared.registry.count_with(|counts| counts.requests += 1);
    let settings = &shared.settings;
    let request_id = headers::request_id(&settings.region, chance);
    let (mut head, body) = request.into_parts();
    let upgrade = head.extensions.remove::<OnUpgrade>();
    headers::arrive(&mut head.headers, peer, &request_id, settings);
    let wish = headers::wish(&head.headers);
    let Some(target) = head.uri.path_and_query().cloned().map(Uri::from) else {
        return refuse(StatusCode::BAD_REQUEST, "a request needs a path", &request_id);
    };
    let tape = Tape::new(body, settings.replay.max_body, settings.limits.max_body);
    let outgoing = Outgoing { method: head.method, target, fields: head.headers, tape: tape.clone() };
    let is_upgrade = outgoing.fields.contains_key(UPGRADE);
    if tape.is_too_large() {
        // `Content-Length` is already too large; the body is not needed.
        return too_large(&tape, &request_id).await;
    }
    let mut answer = match travel(shared, wish, &outgoing).await {
        Ok(reached) if reached.response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            match upgrade.filter(|_| is_upgrade) {
                Some(client) => tunnel(shared, client, reached),
                None => fail(shared, Code::Interrupted),
            }
        }
        Ok(reached) => reached.into_response(shared).map(BodyExt::boxed_unsync),
        Err(_) if tape.is_too_large() => return too_large(&tape, &request_id).await,
        Err(code) => {
            let _ = timeout(DRAIN.0, tape.drain(DRAIN.1)).await;
            fail(shared, code)
        }
    };
    headers::leave(answer.headers_mut(), &request_id);
    answer
}

/// A replay in progress: the Machine that requested it, and the request.
struct Replaying {
    origin: Machine,
    instruction: Instruction,
    since: Instant,
}

/// Repeats until a Machine sends a response without `fly-replay`.
async fn travel(shared: &Arc<Shared>, mut wish: Wish, original: &Outgoing) -> Result<Reached, Code> {
    let settings = &shared.settings.replay;
    let mut outgoing = original.clone();
    let mut replaying: Option<Replaying> = None;
    let mut replays = 0;
    let mut is_fallback = false;
    loop {
        let timeout = replaying.as_ref().and_then(|replaying| replaying.instruction.timeout);
        let end = timeout.map(|timeout| Instant::now() + shared.settings.scaled(timeout));
        let reached = match Search::new(shared, end, !is_fallback).reach(&wish, &mut outgoing).await {
            Ok(reached) => reached,
            Err(unreached) => match replaying.take().filter(|_| unreached.code != Code::Interrupted) {
                Some(Replaying { origin, instruction, since }) if instruction.fallback.is_some() => {
                    shared.registry.count(unreached.code);
                    shared.registry.count_with(|counts| counts.fallbacks += 1);
                    (outgoing, wish) = give_back(shared, original, &outgoing, &origin, &instruction, since, unreached);
                    is_fallback = true;
                    continue;
                }
                _ => return Err(unreached.code),
            },
        };
        let is_switch = reached.response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let Some(form) = Form::of(reached.response.headers()).filter(|_| !is_switch) else { return Ok(reached) };
        if is_fallback || replays == settings.max_replays {
            return Err(Code::TooManyReplays);
        }
        replays += 1;
        let (instruction, origin) = read(reached, form).await.ok_or(Code::MalformedReplay)?;
        match &instruction.app {
            Some(app) if settings.forbidden_apps.contains(app) => return Err(Code::ReplayAppForbidden),
            Some(app) if *app != shared.settings.app => return Err(Code::ReplayAppNotFound),
            _ => {}
        }
        if !original.tape.keep_all().await {
            return Err(Code::ReplayTooLarge);
        }
        shared.registry.count_with(|counts| counts.replays += 1);
        wish = instruction.wish(&origin.id, settings.reaches_cordoned);
        outgoing = original.clone();
        outgoing.fields.remove(PREFERRED_UNAVAILABLE);
        instruction.transform.apply(&mut outgoing.fields);
        if let Some(path) = instruction.transform.path.as_deref() {
            outgoing.target = path.parse().map_err(|_| Code::MalformedReplay)?;
        }
        let source = source(&origin, instruction.state.as_deref());
        headers::set(&mut outgoing.fields, REPLAY_SRC, &source);
        replaying = Some(Replaying { origin, instruction, since: Instant::now() });
    }
}

/// The instruction in a response, and the Machine that sent it.
async fn read(reached: Reached, form: Form) -> Option<(Instruction, Machine)> {
    let (response, slot, _sender) = reached.into_parts();
    let (head, body) = response.into_parts();
    let instruction = match form {
        Form::Header => Instruction::from_fields(&head.headers),
        Form::Json => {
            let body = Limited::new(body, MAX_JSON).collect().await.ok()?;
            Instruction::from_json(&body.to_bytes())
        }
    };
    Some((instruction.ok()?, slot.machine.clone()))
}

/// `fly-replay-src`, separated as Fly's own client reads it (superfly/fly-ruby:lib/fly-ruby/regional_database.rb; facts: 2.1).
fn source(origin: &Machine, state: Option<&str>) -> String {
    let Machine { id, region, .. } = origin;
    let state = state.map(|state| format!(";state={state}")).unwrap_or_default();
    format!("instance={id};region={region};t={}{state}", headers::micros_since_epoch())
}

/// The request as it returns to the Machine that replayed it, with `fly-replay-failed` (facts: 2.1). `instance` and `region`
/// are the requested ones; `replay_source` is assumed to be the replaying Machine: Fly's value is not established.
fn give_back(
    shared: &Shared,
    original: &Outgoing,
    replayed: &Outgoing,
    origin: &Machine,
    instruction: &Instruction,
    since: Instant,
    unreached: Unreached,
) -> (Outgoing, Wish) {
    let settings = &shared.settings;
    let reason = match unreached {
        Unreached { is_timeout: true, .. } => "timeout",
        Unreached { code: Code::RetriesExhausted, .. } => "retries_exhausted",
        _ => "no_candidate",
    };
    let instance = instruction.instance.as_ref().or(instruction.prefer_instance.as_ref());
    let failed = format!(
        "instance={};app={};region={};replay_source={};reason={reason};elapsed_ms={}",
        instance.map(String::as_str).unwrap_or_default(),
        instruction.app.as_ref().unwrap_or(&settings.app),
        instruction.region.as_deref().unwrap_or_default(),
        origin.id,
        since.elapsed().as_millis(),
    );
    let mut outgoing = original.clone();
    headers::set(&mut outgoing.fields, REPLAY_FAILED, &failed);
    if let Some(source) = replayed.fields.get(REPLAY_SRC).filter(|_| settings.replay.src_on_fallback) {
        outgoing.fields.insert(REPLAY_SRC, source.clone());
    }
    let back = Wish { reaches_cordoned: settings.replay.reaches_cordoned, ..Wish::default() };
    let wish = match instruction.fallback {
        Some(Fallback::PreferSelf) => Wish { prefer: Some(origin.id.clone()), ..back },
        _ => back.exactly(&origin.id),
    };
    (outgoing, wish)
}

/// Sends 101 to the client, then copies bytes both ways until one side ends.
fn tunnel(shared: &Arc<Shared>, client: OnUpgrade, reached: Reached) -> Answer {
    let (mut response, slot, sender) = reached.into_parts();
    let machine = hyper::upgrade::on(&mut response);
    let idle = shared.settings.idle_timeout();
    shared.spawn(async move {
        let (Ok(client), Ok(machine)) = (client.await, machine.await) else { return };
        let (mut client, activity) = Watched::new(TokioIo::new(client));
        let mut machine = TokioIo::new(machine);
        // The edge does not report how a tunnel ended.
        tokio::select! {
            _ = copy_bidirectional(&mut client, &mut machine) => {}
            () = activity.is_over(idle) => {}
        }
        drop((slot, sender));
    });
    response.map(|_| nothing())
}

fn fail(shared: &Shared, code: Code) -> Answer {
    shared.registry.count(code);
    let mut answer = text(code.status(), code.words());
    answer.headers_mut().insert(EDGE_ERROR, HeaderValue::from_static(code.text()));
    answer
}

async fn too_large(tape: &Tape, request_id: &str) -> Answer {
    let _ = timeout(DRAIN.0, tape.drain(DRAIN.1)).await;
    refuse(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than the edge takes", request_id)
}

fn refuse(status: StatusCode, words: &str, request_id: &str) -> Answer {
    let mut answer = text(status, words);
    headers::leave(answer.headers_mut(), request_id);
    answer
}

fn text(status: StatusCode, words: &str) -> Answer {
    let mut answer = Response::new(Full::from(format!("{words}\n")).map_err(|e| match e {}).boxed_unsync());
    *answer.status_mut() = status;
    let fields: &mut HeaderMap = answer.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    fields.insert(CONTENT_LENGTH, HeaderValue::from(words.len() + 1));
    answer
}

fn nothing() -> UnsyncBoxBody<Bytes, BoxError> {
    Empty::new().map_err(|e| match e {}).boxed_unsync()
}
