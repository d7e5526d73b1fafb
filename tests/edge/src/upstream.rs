//! Connections to Machines, kept for a while with the type `requests`.
//!
//! Source: docs:reference/load-balancing.html.md (facts: 1.2).

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::BoxError;
use crate::code::Code;
use crate::machine::Machine;
use crate::pick::Slot;
use crate::settings::ConcurrencyKind;
use crate::shared::Shared;
use crate::tape::{Playback, Tape};

/// How long a kept connection may take to become ready; after that, a new one is opened.
const READY: Duration = Duration::from_secs(1);

/// Idle connections, by Machine.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<HashMap<String, Vec<Idle>>>);

#[derive(Debug)]
struct Idle {
    sender: SendRequest<Playback>,
    machine: Machine,
    since: Instant,
}

impl Pool {
    /// The connection that was used last, if that was after `oldest`.
    async fn take(&self, machine: &Machine, oldest: Instant) -> Option<SendRequest<Playback>> {
        loop {
            let mut sender = self.pop(machine, oldest)?;
            // Its exchange is over; its task may need a moment to notice.
            if matches!(timeout(READY, sender.ready()).await, Ok(Ok(()))) {
                return Some(sender);
            }
        }
    }

    fn pop(&self, machine: &Machine, oldest: Instant) -> Option<SendRequest<Playback>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = all.get_mut(&machine.id)?;
        idle.retain(|idle| idle.since >= oldest && idle.machine == *machine && !idle.sender.is_closed());
        idle.pop().map(|idle| idle.sender)
    }

    fn put(&self, machine: Machine, sender: SendRequest<Playback>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = Idle { sender, since: Instant::now(), machine };
        all.entry(idle.machine.id.clone()).or_default().push(idle);
    }

    /// Closes connections that have been idle since.
    pub(crate) fn sweep(&self, oldest: Instant) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, idle| {
            idle.retain(|idle| idle.since >= oldest && !idle.sender.is_closed());
            !idle.is_empty()
        });
    }
}

/// Why a Machine sent no response.
#[derive(Debug)]
pub(crate) enum Failed {
    /// No connection, so the Machine has not seen the request.
    Unconnected(Code),
    /// The Machine may have seen the request.
    Begun,
}

/// A response's header section, and the state that is needed until its end.
#[derive(Debug)]
pub(crate) struct Reached {
    pub(crate) response: Response<Incoming>,
    slot: Slot,
    sender: SendRequest<Playback>,
    tape: Tape,
}

/// Sends a request to this slot's Machine. `request` builds it again when a kept connection turned out to be closed.
pub(crate) async fn send(
    shared: &Arc<Shared>,
    slot: Slot,
    tape: &Tape,
    request: impl Fn() -> Option<Request<Playback>>,
) -> Result<Reached, Failed> {
    let settings = &shared.settings;
    let is_pooled = settings.concurrency.kind == ConcurrencyKind::Requests;
    let oldest = Instant::now().checked_sub(settings.scaled(settings.routing.pool_idle));
    let mut kept = match oldest.filter(|_| is_pooled) {
        Some(oldest) => shared.pool.take(&slot.machine, oldest).await,
        None => None,
    };
    loop {
        let is_kept = kept.is_some();
        let mut sender = match kept.take() {
            Some(sender) => sender,
            None => connect(shared, &slot.machine).await.map_err(Failed::Unconnected)?,
        };
        let request = request().ok_or(Failed::Begun)?;
        shared.registry.sent(&slot.machine.id);
        match sender.try_send_request(request).await {
            Ok(response) => return Ok(Reached { response, slot, sender, tape: tape.clone() }),
            // hyper returns the request if none of it was written.
            Err(e) if e.message().is_none() => return Err(Failed::Begun),
            Err(_) if is_kept => {}
            Err(_) => return Err(Failed::Unconnected(Code::ConnectionRefused)),
        }
    }
}

async fn connect(shared: &Arc<Shared>, machine: &Machine) -> Result<SendRequest<Playback>, Code> {
    let patience = shared.settings.scaled(shared.settings.routing.connect_timeout);
    let stream = match timeout(patience, TcpStream::connect(machine.public)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) if e.kind() == io::ErrorKind::TimedOut => return Err(Code::ConnectTimeout),
        Ok(Err(_)) => return Err(Code::ConnectionRefused),
        Err(_) => return Err(Code::ConnectTimeout),
    };
    // Only old kernels fail here; the connection works anyway.
    let _ = stream.set_nodelay(true);
    shared.registry.connected(&machine.id);
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|_| Code::ConnectionRefused)?;
    shared.spawn(async move {
        // The request reports the same error.
        let _ = connection.with_upgrades().await;
    });
    Ok(sender)
}

impl Reached {
    /// The response for the client: streamed, with the slot held until its end.
    pub(crate) fn into_response(self, shared: &Arc<Shared>) -> Response<Tail> {
        let Self { response, slot, sender, tape } = self;
        let keeps = shared.settings.concurrency.kind == ConcurrencyKind::Requests;
        let (head, body) = response.into_parts();
        let is_over = body.is_end_stream();
        let tail = Tail { body, is_over, keeps, slot, sender: Some(sender), tape, shared: Arc::clone(shared) };
        Response::from_parts(head, tail)
    }

    /// The response's header section, its body, and the values to hold while the body is read.
    pub(crate) fn into_parts(self) -> (Response<Incoming>, Slot, SendRequest<Playback>) {
        (self.response, self.slot, self.sender)
    }
}

/// A body on its way from a Machine to the client.
#[derive(Debug)]
pub(crate) struct Tail {
    body: Incoming,
    is_over: bool,
    keeps: bool,
    slot: Slot,
    sender: Option<SendRequest<Playback>>,
    tape: Tape,
    shared: Arc<Shared>,
}

impl Body for Tail {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.is_over = frame.is_none() || self.body.is_end_stream();
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let sender = self.sender.take().filter(|_| self.is_over && self.keeps && self.tape.is_over());
        if let Some(sender) = sender {
            self.shared.pool.put(self.slot.machine.clone(), sender);
        }
    }
}
