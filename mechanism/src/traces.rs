//! Traces: the spans of requests that are recorded, and the queue to the task that sends them.
//!
//! ```text
//! export.rs    sends them to a collector, by OpenTelemetry's SDK
//! spans.rs     a recorded request as OpenTelemetry's spans
//! metrics.rs   sent and dropped spans
//! ```
//!
//! The queue is bounded. A request that finds it full is not recorded, or, if it fills up later, dropped and counted. A client whose
//! traceparent asks for a recording cannot displace those of others: such requests have half of the queue.

pub mod export;
pub mod metrics;
pub mod spans;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Instant, SystemTime};

use http::{Method, Version};
use outrigger_rules::sections::traces::Export;
use outrigger_wire::random::random;
use outrigger_wire::request_id::RequestId;
use outrigger_wire::trace_context::{SpanId, TraceId, TraceParent};
use tokio::sync::Notify;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::outcome::Outcome;
use crate::traces::metrics::{Loss, TraceMetrics};

/// The most spans of a request; the first are kept.
pub const MOST_SPANS: usize = 64;

/// A request's trace, as far as it is known.
#[derive(Debug, Default)]
pub enum Traced {
    /// Nothing.
    #[default]
    No,
    /// Its caller's trace, which is not recorded here.
    Named(TraceId),
    /// It is recorded.
    Recorded(Box<Recording>),
}

impl Traced {
    /// The id of its trace.
    pub fn trace_id(&self) -> Option<TraceId> {
        match self {
            Self::No => None,
            Self::Named(id) => Some(*id),
            Self::Recorded(recording) => Some(recording.trace_id),
        }
    }

    /// The recording, to read.
    pub fn peek(&self) -> Option<&Recording> {
        match self {
            Self::Recorded(recording) => Some(recording),
            Self::No | Self::Named(_) => None,
        }
    }

    /// The recording.
    pub fn recording(&mut self) -> Option<&mut Recording> {
        match self {
            Self::Recorded(recording) => Some(recording),
            Self::No | Self::Named(_) => None,
        }
    }
}

/// A request that is recorded.
#[derive(Debug)]
pub struct Recording {
    /// Its trace.
    pub trace_id: TraceId,
    /// Its span.
    pub span_id: SpanId,
    /// The caller's span.
    pub parent: Option<SpanId>,
    /// The spans of its parts, in the order of their beginning.
    pub parts: Vec<Part>,
    /// How many more there were.
    pub more: u32,
    /// As the client sees it: `https` or `http`.
    pub scheme: &'static str,
    /// The version of HTTP.
    pub version: Version,
    attempts: u32,
}

/// A part of a request.
#[derive(Debug)]
pub struct Part {
    /// Its span.
    pub span_id: SpanId,
    /// Its kind.
    pub kind: PartKind,
    /// When it began.
    pub began: Instant,
    /// When it ended; `None`: with the request.
    pub ended: Option<Instant>,
    /// The status of the response.
    pub status: Option<u16>,
    /// Why it failed.
    pub error: Option<&'static str>,
}

/// The kinds of parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartKind {
    /// It waited in the queue for a permit.
    Queue,
    /// It waited for an app that was down.
    Hold,
    /// An attempt at the app; the number of those before it.
    Attempt(u32),
    /// An attempt at a peer of this name.
    Peer(Arc<str>),
}

fn span_id() -> SpanId {
    SpanId(random().max(1))
}

impl Recording {
    /// Begins one, as a part of the caller's trace if there is one.
    pub fn begin(parent: Option<&TraceParent>) -> Self {
        let fresh = || TraceId((u128::from(random()) << 64 | u128::from(random())).max(1));
        Self {
            trace_id: parent.map_or_else(fresh, |parent| parent.trace_id),
            span_id: span_id(),
            parent: parent.map(|parent| parent.span_id),
            parts: Vec::new(),
            more: 0,
            scheme: "http",
            version: Version::HTTP_11,
            attempts: 0,
        }
    }

    /// The context for a callee, with the span of the request or of its latest part.
    pub fn context(&self) -> TraceParent {
        let span_id = self.parts.last().map_or(self.span_id, |part| part.span_id);
        TraceParent { trace_id: self.trace_id, span_id, is_sampled: true }
    }

    /// Adds a wait that is over.
    pub fn waited(&mut self, kind: PartKind, began: Instant, ended: Instant) {
        self.add(Part { span_id: span_id(), kind, began, ended: Some(ended), status: None, error: None });
    }

    /// An attempt begins, at the app or the peer of this name; returns its span.
    pub fn attempt(&mut self, peer: Option<Arc<str>>, began: Instant) -> SpanId {
        // One that was not said to have ended has led to the next.
        self.ended(began, None, None);
        let kind = match peer {
            Some(name) => PartKind::Peer(name),
            None => {
                self.attempts += 1;
                PartKind::Attempt(self.attempts - 1)
            }
        };
        let span_id = span_id();
        self.add(Part { span_id, kind, began, ended: None, status: None, error: None });
        span_id
    }

    /// The latest attempt has got the head of a response.
    pub fn answered(&mut self, status: u16) {
        if let Some(part) = self.open() {
            part.status = Some(status);
        }
    }

    /// The latest attempt has ended.
    pub fn ended(&mut self, at: Instant, status: Option<u16>, error: Option<&'static str>) {
        if let Some(part) = self.open() {
            (part.ended, part.error) = (Some(at), error);
            part.status = part.status.or(status);
        }
    }

    fn open(&mut self) -> Option<&mut Part> {
        self.parts.last_mut().filter(|part| part.ended.is_none())
    }

    fn add(&mut self, part: Part) {
        if self.parts.len() < MOST_SPANS {
            self.parts.push(part);
        } else {
            self.more = self.more.saturating_add(1);
        }
    }
}

/// A recorded request that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Its spans.
    pub recording: Box<Recording>,
    /// When its head was complete.
    pub began: Instant,
    /// When it ended.
    pub ended: Instant,
    /// The same by the system's clock.
    pub ended_at: SystemTime,
    /// The request id.
    pub request_id: RequestId,
    /// The method.
    pub method: Method,
    /// The path, shortened.
    pub path: String,
    /// The app's address.
    pub app: String,
    /// The name of the route.
    pub route: Arc<str>,
    /// The pattern of the route, if it has one.
    pub pattern: Option<Arc<str>>,
    /// The priority.
    pub priority: &'static str,
    /// The status of the response; 0: none.
    pub status: u16,
    /// How it ended.
    pub outcome: Outcome,
    /// Why Outrigger rejected it or the app failed.
    pub reason: Option<&'static str>,
    /// Bytes of the request's body.
    pub request_bytes: u64,
    /// Bytes of the response's body.
    pub response_bytes: u64,
}

/// Requests on their way to the collector.
#[derive(Debug)]
pub struct Traces {
    queue: mpsc::Sender<Queued>,
    closing: Arc<Notify>,
    guests: Arc<AtomicUsize>,
    most_guests: usize,
    metrics: TraceMetrics,
}

/// The end of the queue for the exporter.
#[derive(Debug)]
pub struct Queue {
    requests: mpsc::Receiver<Queued>,
    closing: Arc<Notify>,
}

/// A request in the queue; one of a guest takes a place of theirs until it is dropped.
#[derive(Debug)]
struct Queued {
    finished: Box<Finished>,
    _place: Option<GuestPlace>,
}

#[derive(Debug)]
struct GuestPlace(Arc<AtomicUsize>);

impl Drop for GuestPlace {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Traces {
    /// The queue for `export`, and its end for the exporter.
    pub fn new(export: &Export, metrics: TraceMetrics) -> (Self, Queue) {
        let (queue, requests) = mpsc::channel(export.queue);
        let closing = Arc::<Notify>::default();
        let outlet = Queue { requests, closing: Arc::clone(&closing) };
        (Self { queue, closing, guests: Arc::default(), most_guests: (export.queue / 2).max(1), metrics }, outlet)
    }

    /// No more requests are taken; the exporter sends what is queued, and ends.
    pub fn close(&self) {
        self.closing.notify_one();
    }

    /// Whether a request that begins now may be recorded: there is room.
    pub fn has_room(&self) -> bool {
        self.queue.capacity() > 0
    }

    /// Queues a recorded request; with `is_guest`, an untrusted sender asked for the recording. Never waits.
    pub fn send(&self, finished: Box<Finished>, is_guest: bool) {
        let spans = finished.recording.parts.len() as u64 + 1;
        let place = if is_guest {
            let place = GuestPlace(Arc::clone(&self.guests));
            if self.guests.fetch_add(1, Ordering::Relaxed) >= self.most_guests {
                self.metrics.lost(Loss::QueueFull, spans);
                return;
            }
            Some(place)
        } else {
            None
        };
        match self.queue.try_send(Queued { finished, _place: place }) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => self.metrics.lost(Loss::QueueFull, spans),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outrigger_metrics::Declare;
    use outrigger_rules::sections::traces::Protocol;
    use std::time::Duration;

    fn finished() -> Box<Finished> {
        Box::new(Finished {
            recording: Box::new(Recording::begin(None)),
            began: Instant::now(),
            ended: Instant::now(),
            ended_at: SystemTime::now(),
            request_id: RequestId::default(),
            method: Method::GET,
            path: "/".into(),
            app: "127.0.0.1:3000".into(),
            route: "default".into(),
            pattern: None,
            priority: "normal",
            status: 200,
            outcome: Outcome::Success,
            reason: None,
            request_bytes: 0,
            response_bytes: 0,
        })
    }

    fn queue(places: usize) -> (Traces, Queue) {
        let export = Export {
            url: String::new(),
            protocol: Protocol::Grpc,
            service: String::new(),
            queue: places,
            timeout: Duration::from_secs(1),
        };
        Traces::new(&export, TraceMetrics::new(&Declare::new(&[1.0])).unwrap())
    }

    #[test]
    fn a_guest_leaves_room_for_others() {
        let (traces, mut queue) = queue(8);
        for _ in 0..100 {
            traces.send(finished(), true);
        }
        assert_eq!((queue.requests.len(), traces.metrics.losses(Loss::QueueFull)), (4, 96));
        for _ in 0..100 {
            traces.send(finished(), false);
        }
        assert_eq!(queue.requests.len(), 8);
        assert!(!traces.has_room());
        while queue.requests.try_recv().is_ok() {}
        traces.send(finished(), true);
        assert_eq!(queue.requests.len(), 1, "places of guests are free again");
    }

    #[test]
    fn parts_are_bounded_and_the_next_attempt_ends_the_last() {
        let mut recording = Recording::begin(None);
        assert_eq!(recording.context().span_id, recording.span_id);
        let now = Instant::now();
        let first = recording.attempt(None, now);
        assert_eq!(recording.context().span_id, first);
        recording.answered(502);
        recording.attempt(None, now);
        assert_eq!((recording.parts[0].ended, recording.parts[0].status), (Some(now), Some(502)));
        assert_eq!(recording.parts[1].kind, PartKind::Attempt(1));
        for _ in 0..100 {
            recording.waited(PartKind::Queue, now, now);
        }
        assert_eq!((recording.parts.len(), recording.more), (MOST_SPANS, 102 - MOST_SPANS as u32));
    }

    #[test]
    fn a_recording_continues_the_callers_trace() {
        let parent = TraceParent { trace_id: TraceId(7), span_id: SpanId(9), is_sampled: true };
        let recording = Recording::begin(Some(&parent));
        assert_eq!((recording.trace_id, recording.parent), (TraceId(7), Some(SpanId(9))));
        assert_ne!(recording.span_id, SpanId(9));
    }
}
