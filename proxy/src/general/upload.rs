//! Request bodies on the general path: the time of an upload counts as the client's, and it holds no permit.
//!
//! ```text
//!            head                    permit          last byte               response head
//!  receives   |  reads up to 64 KiB   |  streams, if   |  the app's time       |
//!             |  client.body_timeout  |  there is more |  the route's timeout  |
//! ```
//!
//! A body whose announced length fits into the buffer is read before Outrigger asks for a permit, and so is the beginning of any
//! other body, until it pauses. The rest is streamed. While it streams, Outrigger gives back the permit if the client sends
//! little, and asks for another after a large part, and before it passes on the end, when the app can begin to work.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header;
use outrigger_identity::client::Client;
use outrigger_wire::request::Kind;
use pingora::Result;
use pingora::proxy::Session;

use crate::engine::exchange::{Destination, Exchange};
use crate::engine::record;
use crate::engine::rejection::Rejection;
use crate::engine::stages::admit::NoTurn;
use crate::engine::stages::{admit, breakers, failover};
use crate::engine::steps;
use crate::general::Gateway;
use crate::general::context::Context;
use crate::general::heads::{content_length, view};
use crate::general::line::Watch;

use crate::mechanism::body_memory::BodyShare;
use crate::mechanism::gate::Permit;
use crate::transport::client_stream::{ClientStream, SMALL_PIECE_BYTES};

/// The size of Pingora's retry buffer. Pingora drops the whole buffer when a body is longer.
const RETRY_BYTES: u64 = 64 << 10;
/// The most that one read returns: the size of an HTTP/2 frame, and for HTTP/1.1 see `ClientStream::read_small_pieces`.
const PIECE_BYTES: u64 = SMALL_PIECE_BYTES as u64;
/// Beyond this, the next piece might not fit.
const KEPT_BYTES: u64 = RETRY_BYTES - PIECE_BYTES;

/// The client of a streamed body may wait for a response to the first part. After such a pause, or such a time in total, the app
/// gets the part that has arrived.
const DIALOGUE_PAUSE: Duration = Duration::from_millis(200);
const DIALOGUE_TIME: Duration = Duration::from_secs(1);

/// A body that fits may take `client.body_timeout` in total, and a second more for each of so many bytes, so that slow clients
/// cannot occupy memory. (Apache's `RequestReadTimeout` has the same rule and rate.)
const MIN_BYTES_PER_SECOND: u64 = 500;

/// A client that sends less than [`BUSY_BYTES`] in this time loses its permit.
const BUSY: Duration = Duration::from_millis(100);
const BUSY_BYTES: u64 = 16 << 10;
/// Bytes that are passed on without a permit before Outrigger asks for one again.
const UNPERMITTED_BYTES: u64 = 64 << 10;

/// The time between two requests for a permit at the end of a body.
const AGAIN: Duration = Duration::from_millis(100);

/// How often a stalled upload checks whether others need its memory.
const LOOK: Duration = Duration::from_millis(250);

/// The state of the request body.
#[derive(Debug, Default)]
pub struct Upload {
    /// The client still sends it, and it is streamed.
    is_streamed: bool,
    /// The memory accounted for its buffer.
    memory: Option<BodyShare>,
    /// The permit, while a task may give it back.
    lent: Option<Lent>,
    /// It had a permit when its streaming began.
    needs_permit: bool,
    /// Bytes passed on since it lost its permit.
    unpermitted: u64,
    /// When the client's time began.
    since: Option<Instant>,
    /// How long the app may pause after the response's head.
    pause: Duration,
}

impl Upload {
    /// Whether the client still sends it.
    pub(super) fn is_streamed(&self) -> bool {
        self.is_streamed
    }

    /// Gives back its permit without a latency sample, as part of the time was the client's.
    pub(super) fn give_back(&mut self) {
        self.lent = None;
    }
}

/// A permit that a task gives back when the client sends little.
#[derive(Debug)]
struct Lent {
    shared: Arc<Mutex<(Option<Permit>, u64)>>,
    watcher: tokio::task::JoinHandle<()>,
}

impl Lent {
    fn new(permit: Permit, line: Option<Watch>) -> Self {
        let shared = Arc::new(Mutex::new((Some(permit), 0)));
        let watched = Arc::clone(&shared);
        let watcher = tokio::spawn(async move {
            loop {
                tokio::time::sleep(BUSY).await;
                let app_is_slow = line.as_ref().is_some_and(Watch::app_takes_nothing);
                let mut shared = watched.lock().unwrap_or_else(PoisonError::into_inner);
                if shared.1 < BUSY_BYTES && !app_is_slow {
                    shared.0 = None;
                    return;
                }
                shared.1 = 0;
            }
        });
        Self { shared, watcher }
    }

    /// Counts bytes that have arrived. Returns false if the permit has been given back.
    fn count(&self, bytes: u64) -> bool {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.1 += bytes;
        shared.0.is_some()
    }

    fn take(&self) -> Option<Permit> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).0.take()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl Gateway {
    /// Reads the body of a request that the stages admit, unless an open circuit breaker rejects it.
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub(super) async fn take_body(
        &self,
        session: &mut Session,
        context: &mut Context,
    ) -> Result<Result<(), Rejection>> {
        if matches!(context.exchange.destination, Destination::App)
            && let Err(refused) =
                breakers::may_pass(&self.state, &view(session.req_header(), true), &mut context.exchange)
            && !failover::takes(&self.state, &mut context.exchange)
        {
            return Ok(Err(refused));
        }
        self.receive(session, context).await
    }

    /// The head of the response has arrived. From now on the app may pause for `pause`.
    pub(super) fn head_has_come(&self, context: &mut Context, is_stream: bool, pause: Duration) {
        context.upload.give_back();
        if let Some(line) = &context.line
            && !context.upload.is_streamed
        {
            line.more_within(pause);
        }
        context.upload.pause = pause;
        record::head(&self.state, &mut context.exchange, is_stream);
    }

    /// Reads the part of the body that is buffered, before the exchange asks for a permit.
    ///
    /// # Errors
    /// Pingora's, when the client has disconnected or sends an invalid body.
    pub(super) async fn receive(&self, session: &mut Session, context: &mut Context) -> Result<Result<(), Rejection>> {
        if session.as_mut().is_body_done() || context.exchange.kind == Kind::Upgrade {
            return Ok(Ok(()));
        }
        context.upload.is_streamed = true;
        // Only the app can answer `Expect: 100-continue`.
        let waits_for_app = session.req_header().headers.contains_key(header::EXPECT);
        if waits_for_app || !admit::needs_permit(&context.exchange) {
            return Ok(Ok(()));
        }
        let began = Instant::now();
        let mut memory = self.state.body_memory.share(Client::hash_of(context.exchange.client.address));
        let received = self.read_to_keep(session, &context.exchange, &mut memory, began).await;
        // Pingora keeps the buffer until the exchange ends, also after a rejection.
        context.upload.memory = Some(memory);
        let received = received?;
        let now = Instant::now();
        // From here on the time is the app's.
        context.exchange.deadline += now - began;
        context.exchange.turn_began = now;
        if received.is_ok() && session.as_mut().is_body_done() {
            context.upload.is_streamed = false;
            context.exchange.is_replayable = true;
        }
        Ok(received)
    }

    async fn read_to_keep(
        &self,
        session: &mut Session,
        exchange: &Exchange,
        memory: &mut BodyShare,
        began: Instant,
    ) -> Result<Result<(), Rejection>> {
        let client = exchange.rules.config.client;
        let max_body = exchange.route().max_body_bytes;
        let fits = content_length(session.req_header()).is_some_and(|length| length <= RETRY_BYTES);
        session.as_mut().enable_retry_buffering();
        read_small_pieces(session, true);
        let (mut received, mut last) = (0, began);
        while !session.as_mut().is_body_done() && (fits || received <= KEPT_BYTES) {
            let patience = if fits {
                let in_all = client.body_timeout + Duration::from_secs(received / MIN_BYTES_PER_SECOND);
                (last + client.body_timeout).min(began + in_all)
            } else {
                (last + DIALOGUE_PAUSE.min(client.body_timeout)).min(began + DIALOGUE_TIME)
            };
            let now = Instant::now();
            if now >= patience && fits {
                return Ok(Err(Rejection::BodyTooSlow));
            }
            if now >= patience {
                break;
            }
            let read = tokio::time::timeout((patience - now).min(LOOK), session.as_mut().read_request_body()).await;
            let piece = match read {
                Err(_) if memory.is_above_threshold(client.body_memory) => {
                    return Ok(Err(Rejection::TooManyUploads));
                }
                Err(_) => continue,
                Ok(read) => read.map_err(|e| e.into_down())?,
            };
            let Some(piece) = piece else { break };
            received += piece.len() as u64;
            last = Instant::now();
            if received > max_body {
                return Ok(Err(Rejection::BodyTooLarge));
            }
            // Pingora holds each piece twice: as read, and in the retry buffer.
            if !memory.grow(2 * piece.len(), client.body_memory) {
                return Ok(Err(Rejection::TooManyUploads));
            }
        }
        read_small_pieces(session, false);
        Ok(Ok(()))
    }

    /// Sets the time limit for the client or the app when an attempt begins.
    pub(super) fn begin_upload(&self, context: &mut Context) {
        let now = Instant::now();
        let Some(line) = &context.line else { return };
        if !context.upload.is_streamed {
            line.head_until(context.exchange.deadline);
            return;
        }
        line.body_within(context.exchange.rules.config.client.body_timeout);
        let watch = line.watch();
        let upload = &mut context.upload;
        upload.since = Some(now);
        let permit = context.exchange.permit.take().or_else(|| upload.lent.as_ref().and_then(Lent::take));
        if let Some(permit) = permit {
            upload.needs_permit = true;
            upload.lent = Some(Lent::new(permit, Some(watch)));
        }
    }

    /// Accounts for a piece of a streamed body before it is passed on.
    pub(super) async fn pass_on(
        &self,
        session: &mut Session,
        context: &mut Context,
        bytes: u64,
        is_end: bool,
    ) -> Result<()> {
        if session.as_ref().retry_buffer_truncated() {
            context.upload.memory = None;
        }
        let answered = context.exchange.head_at.is_some();
        let upload = &mut context.upload;
        let has_permit = if is_end {
            if let Some(lent) = upload.lent.take() {
                context.exchange.permit = lent.take();
            }
            context.exchange.permit.is_some()
        } else {
            upload.lent.as_ref().is_some_and(|lent| lent.count(bytes))
        };
        upload.unpermitted = if has_permit { 0 } else { upload.unpermitted + bytes };
        let asks = upload.needs_permit && !has_permit && !answered;
        if asks && (is_end || upload.unpermitted >= UNPERMITTED_BYTES) {
            upload.lent = None;
            upload.unpermitted = 0;
            if let Some(line) = &context.line {
                line.unlimited();
            }
            self.ask_again(session, context, is_end).await?;
        }
        let now = Instant::now();
        if is_end {
            context.upload.is_streamed = false;
            if answered {
                if let Some(line) = &context.line {
                    line.more_within(context.upload.pause);
                }
            } else {
                context.exchange.deadline += context.upload.since.map_or(Duration::ZERO, |since| now - since);
            }
            if let Some(permit) = &mut context.exchange.permit {
                permit.sent(now);
            }
            return Ok(());
        }
        if let Some(line) = &context.line {
            line.body_within(context.exchange.rules.config.client.body_timeout);
            if let Some(permit) = context.exchange.permit.take() {
                context.upload.lent = Some(Lent::new(permit, Some(line.watch())));
            }
        }
        Ok(())
    }

    /// Asks for a permit again. In the middle of a body, a rejection is ignored after the wait, as passing on pieces is
    /// little work. At the end, Outrigger asks until the deadline, because the client would have to send the whole body
    /// again.
    async fn ask_again(&self, session: &mut Session, context: &mut Context, is_end: bool) -> Result<()> {
        let began = Instant::now();
        let since = context.upload.since.unwrap_or(began);
        context.exchange.deadline += began - since;
        let turn = loop {
            context.exchange.turn_began = Instant::now();
            let asked = admit::slot(&self.state, &view(session.req_header(), false), &mut context.exchange);
            let turn = match asked {
                Ok(()) => self.wait_for_turn(&mut context.exchange).await,
                Err(rejection) => Err(NoTurn::Refused(rejection)),
            };
            match turn {
                Err(NoTurn::Refused(Rejection::Overloaded)) if !is_end => break Ok(()),
                Err(NoTurn::Refused(Rejection::Overloaded)) if Instant::now() + AGAIN < context.exchange.deadline => {
                    tokio::time::sleep(AGAIN).await;
                }
                turn => break turn,
            }
        };
        // At the end of the body, the wait counted as the app's time.
        context.upload.since = Some(if is_end { Instant::now() } else { began });
        turn.map_err(|no_turn| {
            let next = steps::not_admitted(&self.state, &mut context.exchange, no_turn);
            self.instead(context, next)
        })
    }
}

/// Limits reads to [`PIECE_BYTES`] while the body is buffered.
fn read_small_pieces(session: &Session, small: bool) {
    if let pingora::protocols::http::ServerSession::H1(h1) = session.as_ref()
        && let Some(stream) = h1.stream().as_any().downcast_ref::<ClientStream>()
    {
        stream.read_small_pieces(small);
    }
}
