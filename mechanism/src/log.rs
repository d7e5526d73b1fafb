//! Logs: written by a separate thread, so that a slow reader of standard output never slows a request.
//!
//! The queue is bounded. Lines that do not fit are dropped and counted (`outrigger_log_lines_dropped_total`). A client
//! cannot displace important lines: the access log gets only a part of the queue, and a kind of line, which is a place
//! in the source, is limited to a number of lines per second.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use outrigger_metrics::{Declare, IntCounter, Result};
use outrigger_rules::sections::log::{LogFormat, LogLevel};
use tracing::callsite::Identifier;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::access_log::Line;

/// The maximum number of queued lines.
const QUEUE_LINES: usize = 8192;
/// How many of them may be lines of the access log.
const ACCESS_LINES: usize = QUEUE_LINES / 4 * 3;
/// How many may be lines of the app, if Outrigger passes them on.
const APP_LINES: usize = QUEUE_LINES / 16;
/// The maximum number of lines of one kind per second.
const LINES_OF_A_KIND: u32 = 100;

/// Metrics of logs.
#[derive(Debug)]
pub struct LogMetrics {
    /// Lines that did not fit into their queue.
    pub dropped: IntCounter,
}

impl LogMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        let area = declare.area("Logs and metrics");
        Ok(Self {
            dropped: area
                .when("Log lines are missing: the reader of standard output is too slow.")
                .counter("outrigger_log_lines_dropped_total", "Log lines dropped because their queue was full.")?,
        })
    }
}

/// A message to the writer's thread.
#[derive(Debug)]
pub enum Entry {
    /// A formatted line.
    Ready(Vec<u8>),
    /// A request, formatted by the writer's thread.
    Access(Box<Line>),
    /// A line of the app.
    App(Vec<u8>),
    /// Write everything before this, then confirm it.
    Flush(SyncSender<()>),
}

/// The sending side of the queue.
#[derive(Clone, Debug)]
pub struct LogQueue {
    sender: SyncSender<Entry>,
    dropped: IntCounter,
    /// Queued lines of the access log.
    access: Arc<AtomicUsize>,
    /// Room for lines of the app.
    app: SyncSender<()>,
}

impl LogQueue {
    /// Starts the writer's thread.
    ///
    /// # Errors
    /// The system cannot create a thread.
    pub fn start(format: LogFormat, dropped: IntCounter) -> io::Result<(Self, JoinHandle<()>)> {
        let (sender, receiver) = sync_channel(QUEUE_LINES);
        let access = Arc::new(AtomicUsize::new(0));
        let (app, queued) = sync_channel(APP_LINES);
        let waiting = Waiting { access: Arc::clone(&access), app: queued };
        let thread =
            std::thread::Builder::new().name("log".into()).spawn(move || write_all(&receiver, format, &waiting))?;
        Ok((Self { sender, dropped, access, app }, thread))
    }

    /// Queues a message, or drops it if the queue is full. Never waits.
    pub fn send(&self, entry: Entry) {
        let is_access = matches!(entry, Entry::Access(_));
        if is_access && self.access.fetch_add(1, Ordering::Relaxed) >= ACCESS_LINES
            || self.sender.try_send(entry).is_err()
        {
            self.dropped.inc();
            if is_access {
                self.access.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Queues a line of the app. Waits while its part of the queue is full.
    pub fn send_patiently(&self, line: Vec<u8>) {
        // Without the writer, nobody reads either.
        if self.app.send(()).is_ok() {
            let _ = self.sender.send(Entry::App(line));
        }
    }

    /// Waits until everything sent so far is written, at most for `patience`.
    pub fn flush(&self, patience: Duration) {
        let (done, written) = sync_channel(1);
        let deadline = Instant::now() + patience;
        let mut entry = Entry::Flush(done);
        while let Err(std::sync::mpsc::TrySendError::Full(back)) = self.sender.try_send(entry) {
            if Instant::now() > deadline {
                return;
            }
            entry = back;
            std::thread::sleep(Duration::from_millis(1));
        }
        // Timeout, or the thread is gone: the process ends anyway.
        let _ = written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

/// The access log.
#[derive(Debug)]
pub struct AccessLog {
    queue: LogQueue,
}

impl AccessLog {
    /// Creates an access log that writes to `queue`.
    pub fn new(queue: LogQueue) -> Self {
        Self { queue }
    }

    /// Writes a line without waiting; one that does not fit is dropped and counted.
    pub fn write(&self, line: Line) {
        self.queue.send(Entry::Access(Box::new(line)));
    }
}

/// The queued lines of which there may be fewer than of others.
struct Waiting {
    access: Arc<AtomicUsize>,
    app: Receiver<()>,
}

fn write_all(receiver: &Receiver<Entry>, format: LogFormat, waiting: &Waiting) {
    let mut out = io::BufWriter::with_capacity(64 << 10, io::stdout());
    while let Ok(first) = receiver.recv() {
        let mut next = Some(first);
        while let Some(entry) = next {
            // An error of standard output cannot be reported.
            match entry {
                Entry::Ready(line) => drop(out.write_all(&line)),
                Entry::Access(line) => {
                    waiting.access.fetch_sub(1, Ordering::Relaxed);
                    drop(line.write(&mut out, format));
                }
                Entry::App(line) => {
                    let _ = waiting.app.try_recv();
                    drop(out.write_all(&line));
                }
                Entry::Flush(done) => {
                    let _ = out.flush();
                    let _ = done.send(());
                }
            }
            next = receiver.try_recv().ok();
        }
        let _ = out.flush();
    }
}

/// Collects one line and sends it when dropped.
#[derive(Debug)]
pub struct LineWriter {
    line: Vec<u8>,
    queue: LogQueue,
}

impl Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LineWriter {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.queue.send(Entry::Ready(std::mem::take(&mut self.line)));
        }
    }
}

impl<'a> MakeWriter<'a> for LogQueue {
    type Writer = LineWriter;

    fn make_writer(&'a self) -> LineWriter {
        LineWriter { line: Vec::with_capacity(256), queue: self.clone() }
    }
}

/// Limits the number of lines of each kind per second.
struct Kinds {
    /// By place in the source: the second, and the lines in it. Bounded by the number of places that log.
    seen: Mutex<HashMap<Identifier, (u64, u32)>>,
    started: Instant,
    dropped: IntCounter,
}

impl Kinds {
    fn new(dropped: IntCounter) -> Self {
        Self { seen: Mutex::default(), started: Instant::now(), dropped }
    }

    fn may_be_written(&self, kind: Identifier, second: u64) -> bool {
        // A panic with the lock held leaves whole numbers.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (of, lines) = seen.entry(kind).or_insert((second, 0));
        if *of != second {
            (*of, *lines) = (second, 0);
        }
        *lines = lines.saturating_add(1);
        *lines <= LINES_OF_A_KIND
    }
}

impl<S: Subscriber> Layer<S> for Kinds {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let may = self.may_be_written(event.metadata().callsite(), self.started.elapsed().as_secs());
        if !may {
            self.dropped.inc();
        }
        may
    }
}

/// Changes the log level at run time.
#[derive(Clone)]
pub struct LevelSwitch(Arc<dyn Fn(LogLevel) + Send + Sync>);

impl std::fmt::Debug for LevelSwitch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LevelSwitch")
    }
}

impl LevelSwitch {
    /// Changes nothing: there is no log.
    pub fn none() -> Self {
        Self(Arc::new(|_| {}))
    }

    /// Sets the level.
    pub fn set(&self, level: LogLevel) {
        (self.0)(level);
    }
}

/// Sends all log events to `queue`.
pub fn install(queue: &LogQueue, format: LogFormat, level: LogLevel) -> LevelSwitch {
    let (filter, handle) = reload::Layer::<EnvFilter, Registry>::new(filter(level));
    let lines = tracing_subscriber::fmt::layer().with_writer(queue.clone()).with_target(false);
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
        LogFormat::Text => lines.with_ansi(false).boxed(),
    };
    // Only a test of this crate can install a second subscriber, and it does not read logs.
    let _ = tracing_subscriber::registry().with(filter).with(Kinds::new(queue.dropped.clone())).with(lines).try_init();
    LevelSwitch(Arc::new(move |level| {
        // Fails only if the subscriber is gone, with all readers of the log.
        let _ = handle.reload(self::filter(level));
    }))
}

/// Logs of Pingora and other libraries are off: Outrigger logs the problems of a request once, itself.
fn filter(level: LogLevel) -> EnvFilter {
    let level = match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
    };
    EnvFilter::new(format!(
        "{level},pingora_core=off,pingora_proxy=off,pingora_pool=off,pingora_load_balancing=off,hickory_proto=off,hickory_net=off,hickory_resolver=off,h2=off,hyper=off,hyper_util=off,tonic=off,tower=off,reqwest=off"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Outcome;
    use outrigger_wire::request_id::RequestId;
    use std::net::IpAddr;
    use std::time::SystemTime;

    fn access() -> Entry {
        Entry::Access(Box::new(Line {
            time: SystemTime::UNIX_EPOCH,
            request_id: RequestId::from_edge(b"id-1").unwrap(),
            client: IpAddr::from([192, 0, 2, 1]),
            method: http::Method::GET,
            path: "/".to_owned(),
            route: "docs".into(),
            status: 200,
            outcome: Outcome::Success,
            reason: None,
            limit: None,
            duration: Duration::ZERO,
            queued: Duration::ZERO,
            app: None,
            first_byte: None,
            attempts: 1,
            request_bytes: 0,
            body_bytes: 0,
            trace_id: None,
            span_id: None,
        }))
    }

    fn counter() -> IntCounter {
        IntCounter::new("dropped", "dropped").unwrap()
    }

    #[test]
    fn request_lines_leave_room_for_other_lines() {
        let (sender, receiver) = sync_channel(QUEUE_LINES);
        let queue = LogQueue { sender, dropped: counter(), access: Arc::default(), app: sync_channel(0).0 };
        (0..2 * QUEUE_LINES).for_each(|_| queue.send(access()));
        assert_eq!(queue.dropped.get(), (2 * QUEUE_LINES - ACCESS_LINES) as u64);
        let before = queue.dropped.get();
        (0..QUEUE_LINES - ACCESS_LINES).for_each(|_| queue.send(Entry::Ready(b"important\n".to_vec())));
        assert_eq!(queue.dropped.get(), before, "they all have a place");
        queue.send(Entry::Ready(b"one too many\n".to_vec()));
        assert_eq!(queue.dropped.get(), before + 1);
        drop(receiver);
    }

    #[test]
    fn one_kind_of_line_does_not_push_out_another() {
        struct Count(Arc<AtomicUsize>);
        impl<S: Subscriber> Layer<S> for Count {
            fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let (dropped, written) = (counter(), Arc::new(AtomicUsize::new(0)));
        let layers = tracing_subscriber::registry().with(Kinds::new(dropped.clone())).with(Count(Arc::clone(&written)));
        tracing::subscriber::with_default(layers, || {
            for _ in 0..10 * LINES_OF_A_KIND {
                tracing::warn!("a client causes this");
            }
            let of_client = written.load(Ordering::Relaxed);
            // On a busy machine this may take two seconds, hardly ten.
            assert!((LINES_OF_A_KIND as usize..5 * LINES_OF_A_KIND as usize).contains(&of_client), "{of_client}");
            tracing::warn!("and this is about everybody");
            assert_eq!(written.load(Ordering::Relaxed), of_client + 1);
            assert_eq!(dropped.get() as usize, 10 * LINES_OF_A_KIND as usize - of_client);
        });
    }
}
