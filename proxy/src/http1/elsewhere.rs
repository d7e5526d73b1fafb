//! Requests that are not for the app here: replays through the edge, requests for peers, and health probes of peers.

use std::borrow::Cow;
use std::mem::MaybeUninit;
use std::sync::Arc;

use bytes::BytesMut;
use http::{Method, StatusCode};
use outrigger_identity::clock::{self, seconds};
use outrigger_identity::signing::Purpose;
use outrigger_wire::request::{Fields, Request};
use outrigger_wire::rewrite;
use outrigger_wire::scan::MOST_FIELDS;

use crate::engine::answer::OwnResponse;
use crate::engine::attempts::{Event, Next};
use crate::engine::condition::condition;
use crate::engine::connect;
use crate::engine::exchange::{Destination, Exchange};
use crate::engine::rejection::{Failure, Rejection};
use crate::engine::reply;
use crate::engine::stages;
use crate::engine::steps;
use crate::engine::traces;
use crate::http1::attempts::not_connected;
use crate::http1::buffers::{recycle, scratch};
use crate::http1::request::{Prepared, path_of};
use crate::http1::{Answered, Broken, Lane};
use crate::mechanism::affinity::replay;
use crate::mechanism::peers::answer::ProbeAnswer;
use crate::mechanism::peers::hop::{Hop, Kind, STATE_PATH, SUMMARY_PATH};
use crate::mechanism::peers::metrics::SentOn;
use crate::mechanism::peers::summary;
use crate::mechanism::peers::{Peer, Standing};
use crate::transport::app_pool::{self, AppStream};

/// The request as the later stages see it.
fn asked<'a>(method: &'a Method, target: &'a str, host: &'a str) -> Request<'a> {
    let fields = Fields::Wire(&[]);
    Request { method, path: path_of(target), host, fields, is_http10: false, target, has_endless_body: false }
}

impl Lane<'_> {
    /// Rejects the request or sends it to its destination. A request that a peer declines comes back once.
    pub(super) async fn serve_prepared(&mut self, prepared: &mut Prepared) -> Result<(), Broken> {
        if let Some(problem) = prepared.refused {
            return self.answer(&mut prepared.exchange, &problem).await;
        }
        loop {
            match prepared.exchange.destination.clone() {
                Destination::App => match self.forward_in_turn(&mut prepared.exchange, &mut prepared.head).await {
                    Err(Broken::Moved) => {}
                    result => return result,
                },
                Destination::Replay(home) => return self.answer_replay(&mut prepared.exchange, &home).await,
                Destination::Probe if prepared.target == SUMMARY_PATH => {
                    return self.answer_signed(&mut prepared.exchange, Purpose::Summary).await;
                }
                Destination::Probe if prepared.target == STATE_PATH => {
                    return self.answer_signed(&mut prepared.exchange, Purpose::State).await;
                }
                Destination::Probe => return self.answer_probe(&mut prepared.exchange).await,
                Destination::Healthy => return self.answer_healthy(&mut prepared.exchange).await,
                Destination::Peer(peer, kind) => {
                    if let Some(result) = self.ask_peer(prepared, &peer, kind).await {
                        return result;
                    }
                    let Prepared { exchange, method, target, host, head, .. } = &mut *prepared;
                    let now = clock::now();
                    (exchange.destination, exchange.turn_began) = (Destination::App, now);
                    stages::take_turn(self.state, &asked(method, target, host), exchange).map_err(Broken::Refused)?;
                    rewrite::set_timeout(head, exchange.deadline.saturating_duration_since(now));
                }
            }
        }
    }

    /// Reads what is buffered of the body; then the request asks for its permit, if it has not before.
    pub(super) async fn receive_and_take_turn(&mut self, prepared: &mut Prepared) -> Result<(), Broken> {
        let Prepared { exchange, method, target, host, head, .. } = prepared;
        if !matches!(exchange.destination, Destination::App | Destination::Peer(..)) {
            return Ok(());
        }
        let had_arrived = self.upload.as_ref().is_some_and(|upload| upload.is_whole);
        self.receive(exchange).await?;
        if !had_arrived && matches!(exchange.destination, Destination::App) {
            stages::take_turn(self.state, &asked(method, target, host), exchange).map_err(Broken::Refused)?;
            rewrite::set_timeout(head, exchange.deadline.saturating_duration_since(clock::now()));
        }
        Ok(())
    }

    /// Sends the request to a peer and relays its response. `None`: the peer declined it, and it can be served here.
    pub(super) async fn ask_peer(
        &mut self,
        prepared: &mut Prepared,
        peer: &Arc<Peer>,
        kind: Kind,
    ) -> Option<Result<(), Broken>> {
        let Prepared { exchange, head, .. } = prepared;
        steps::happened(self.state, exchange, Event::SentToPeer { is_idempotent: self.is_idempotent });
        exchange.asked_at = clock::now();
        self.alarms.clear();
        if exchange.deadline <= exchange.asked_at {
            return self.after_peer(exchange, Event::Expired, "".into());
        }
        traces::attempt_begins(exchange, head, Some(&peer.name));
        let Some(hop) = self.hop(exchange, head, peer, kind) else {
            return self.after_peer(exchange, Event::PeerDeclined, "".into());
        };
        let head = rewrite::with_hop(head, &hop);
        let mut input = scratch();
        let asked = self.ask_once(exchange, peer, &head, &mut input).await;
        drop(head);
        let (outcome, event, detail) = match asked {
            Ok((_, answer)) if answer.is_given_back && self.may_repeat() => {
                (SentOn::Refused, Event::PeerDeclined, "".into())
            }
            Ok((stream, answer)) => {
                self.state.metrics.peers.sent(kind, SentOn::Answered);
                steps::happened(self.state, exchange, Event::PeerAnswered);
                return Some(self.relay(stream, input, answer, exchange).await);
            }
            Err(Broken::App(Failure::Unreachable, detail)) => {
                peer.not_reached();
                (SentOn::Unreachable, Event::PeerDeclined, detail)
            }
            // A packet may have been lost, which says nothing about the next request.
            Err(Broken::App(Failure::ConnectTimeout, detail)) => (SentOn::Unreachable, Event::PeerDeclined, detail),
            Err(Broken::App(failure @ (Failure::Closed | Failure::Invalid), detail)) => {
                (SentOn::Broken, Event::PeerBroke { failure, may_repeat: self.may_repeat() }, detail)
            }
            // This host lacks resources for a connection; the peer may be well.
            Err(Broken::Refused(Rejection::OutOfResources)) => (SentOn::Unreachable, Event::PeerDeclined, "".into()),
            Err(Broken::App(_, detail)) => (SentOn::Late, Event::PeerTimedOut, detail),
            Err(broken) => return Some(Err(broken)),
        };
        self.state.metrics.peers.sent(kind, outcome);
        self.stream.output().clear();
        recycle(input);
        let (request_id, outcome) = (exchange.request_id, format!("{outcome:?}"));
        tracing::debug!(%request_id, peer = %peer.name, kind = kind.name(), outcome, "a peer did not serve a request");
        self.after_peer(exchange, event, detail)
    }

    /// Reports the result of a request to a peer. `None`: it is served here.
    fn after_peer(
        &self,
        exchange: &mut Exchange,
        event: Event,
        detail: Cow<'static, str>,
    ) -> Option<Result<(), Broken>> {
        match steps::happened(self.state, exchange, event) {
            Next::ComeBack => None,
            Next::Reject(rejection) => Some(Err(Broken::Refused(rejection))),
            Next::Fail(failure) => Some(Err(Broken::App(failure, detail))),
            _ => Some(Err(Broken::ClientLeft)),
        }
    }

    /// Asks the peer on an idle pooled connection or a new one; returns the connection and the response's head.
    async fn ask_once(
        &mut self,
        exchange: &mut Exchange,
        peer: &Peer,
        head: &[u8],
        input: &mut BytesMut,
    ) -> Result<Answered, Broken> {
        let is_silent = peer.standing() == Standing::Silent;
        // A request that cannot be repeated needs a connection that the peer does not close just now.
        let may_be_kept = !is_silent && self.is_idempotent && self.may_repeat();
        let kept = if may_be_kept { app_pool::take(|kept| *kept.target() == peer.target) } else { None };
        if let Some(mut kept) = kept {
            match self.ask(&mut kept, head, input, exchange).await {
                Err(Broken::App(Failure::Closed, _)) if !self.has_heard && self.may_repeat() => {}
                asked => return asked.map(|answer| (kept, answer)),
            }
        }
        let patience = self.state.peers.as_ref().map_or_else(Default::default, |peers| peers.rules.timeout);
        let left = exchange.deadline.saturating_duration_since(clock::now());
        let connecting = connect::with_room(self.state, || AppStream::connect_to_peer(&peer.target));
        let connected = tokio::time::timeout(patience.min(left), connecting).await;
        let mut fresh = match connected {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(not_connected(&error)),
            Err(_) => return Err(Broken::App(Failure::ConnectTimeout, "connecting took too long".into())),
        };
        let answer = self.ask(&mut fresh, head, input, exchange).await?;
        Ok((fresh, answer))
    }

    /// Signs the request with this head, as the peer will read it.
    pub(super) fn hop(&self, exchange: &Exchange, head: &[u8], peer: &Peer, kind: Kind) -> Option<Vec<u8>> {
        let peers = self.state.peers.as_ref()?;
        let mut fields = [const { MaybeUninit::uninit() }; MOST_FIELDS];
        let mut parsed = httparse::Request::new(&mut []);
        parsed.parse_with_uninit_headers(head, &mut fields).ok()?;
        let method = Method::from_bytes(parsed.method?.as_bytes()).ok()?;
        let target = parsed.path?;
        let host = parsed.headers.iter().find(|field| field.name.eq_ignore_ascii_case("host"));
        let host = host.and_then(|host| std::str::from_utf8(host.value).ok()).unwrap_or_default();
        let request = Request { fields: Fields::Wire(parsed.headers), ..asked(&method, target, host) };
        let from = peers.this.name.as_ref().into();
        let hop = Hop { kind, client: exchange.client.address, nonce: peers.nonces.next(), from };
        Some(hop.sign(&peers.this.keys, &request, peer.receiver(), seconds()))
    }

    /// Asks the edge to send the request to its session's home.
    async fn answer_replay(&mut self, exchange: &mut Exchange, home: &str) -> Result<(), Broken> {
        let rules = Arc::clone(&exchange.rules);
        let (Some(this), Some(affinity)) = (&rules.config.this, &rules.config.affinity) else { return Ok(()) };
        let field = replay::field(this, home, affinity.replay_timeout, seconds());
        self.stop_reading();
        self.put_own(&OwnResponse::replay(exchange, &field), exchange.started, b"");
        exchange.status = 307;
        self.send_gathered(exchange).await
    }

    /// Answers the platform's health check.
    async fn answer_healthy(&mut self, exchange: &mut Exchange) -> Result<(), Broken> {
        let reply = reply::healthy(self.state);
        self.stop_reading();
        self.put_own(&OwnResponse::reply(exchange, &reply), exchange.started, reply.body.as_bytes());
        exchange.status = reply.status.as_u16();
        self.send_gathered(exchange).await
    }

    /// Answers a peer that asks for the summary or the snapshot of this Machine.
    async fn answer_signed(&mut self, exchange: &mut Exchange, purpose: Purpose) -> Result<(), Broken> {
        let (Some(peers), Some(hop)) = (&self.state.peers, &exchange.hop) else { return Ok(()) };
        let content = match purpose {
            Purpose::State => self.state.snapshots.latest(),
            _ => self.state.summary.load_full(),
        };
        let body = summary::sign(&peers.this.keys, purpose, hop.nonce, &content);
        self.stop_reading();
        self.put_own(&OwnResponse::to(exchange, StatusCode::OK, body.len()), exchange.started, &body);
        exchange.status = 200;
        self.send_gathered(exchange).await
    }

    /// Answers a peer's health probe.
    async fn answer_probe(&mut self, exchange: &mut Exchange) -> Result<(), Broken> {
        let (Some(peers), Some(hop)) = (&self.state.peers, &exchange.hop) else { return Ok(()) };
        let Some((local, remote)) = self.stream.addresses() else { return Ok(()) };
        let answer = ProbeAnswer {
            condition: condition(self.state, &peers.local),
            name: peers.this.name.as_ref().into(),
            run: peers.nonces.run(),
            nonce: hop.nonce,
            asker: hop.from.clone(),
            arrived_at: peers.rules.address.unwrap_or(local),
            came_from: remote,
        };
        let body = answer.sign(&peers.this.keys);
        self.stop_reading();
        self.put_own(&OwnResponse::to(exchange, StatusCode::OK, body.len()), exchange.started, &body);
        exchange.status = 200;
        self.send_gathered(exchange).await
    }
}
