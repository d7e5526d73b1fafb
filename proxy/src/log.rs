//! Logs: written by a thread of their own, so that a slow reader of standard output never slows a request.
//!
//! The queue is bounded. What does not fit is dropped and counted (`outrigger_log_lines_dropped_total`).

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use prometheus::IntCounter;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::access_log::Line;
use crate::config::{LogFormat, LogLevel};

/// Lines that may wait.
const QUEUE_LINES: usize = 8192;

/// What the writer's thread is sent.
#[derive(Debug)]
pub enum Entry {
    /// A line that is ready.
    Ready(Vec<u8>),
    /// A request, to be formatted there.
    Access(Box<Line>),
    /// Write everything before this, then say so.
    Flush(SyncSender<()>),
}

/// The near end of the queue.
#[derive(Clone, Debug)]
pub struct LogQueue {
    sender: SyncSender<Entry>,
    dropped: IntCounter,
}

impl LogQueue {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(format: LogFormat, dropped: IntCounter) -> io::Result<(Self, JoinHandle<()>)> {
        let (sender, receiver) = sync_channel(QUEUE_LINES);
        let thread = std::thread::Builder::new().name("log".into()).spawn(move || write_all(&receiver, format))?;
        Ok((Self { sender, dropped }, thread))
    }

    /// Never waits.
    pub fn send(&self, entry: Entry) {
        if self.sender.try_send(entry).is_err() {
            self.dropped.inc();
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
        // Too late or gone: the process leaves all the same.
        let _ = written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

fn write_all(receiver: &Receiver<Entry>, format: LogFormat) {
    let mut out = io::BufWriter::with_capacity(64 << 10, io::stdout());
    while let Ok(first) = receiver.recv() {
        let mut next = Some(first);
        while let Some(entry) = next {
            // Standard output that is gone cannot be told about.
            match entry {
                Entry::Ready(line) => drop(out.write_all(&line)),
                Entry::Access(line) => drop(line.write(&mut out, format)),
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

/// Gathers one line and sends it when it is complete.
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

/// Changes the level while the process runs.
#[derive(Clone)]
pub struct LevelSwitch(Arc<dyn Fn(LogLevel) + Send + Sync>);

impl std::fmt::Debug for LevelSwitch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LevelSwitch")
    }
}

impl LevelSwitch {
    /// From now on.
    pub fn set(&self, level: LogLevel) {
        (self.0)(level);
    }
}

/// Sends everything that the program says to `queue`.
pub fn install(queue: &LogQueue, format: LogFormat, level: LogLevel) -> LevelSwitch {
    let (filter, handle) = reload::Layer::<EnvFilter, Registry>::new(filter(level));
    let lines = tracing_subscriber::fmt::layer().with_writer(queue.clone()).with_target(false);
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
        LogFormat::Text => lines.with_ansi(false).boxed(),
    };
    // A second subscriber can only be installed by a test of this crate, which does not look at logs.
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
    LevelSwitch(Arc::new(move |level| {
        // Fails only when the subscriber is gone, and nobody is left to read.
        let _ = handle.reload(self::filter(level));
    }))
}

/// Pingora speaks only of what it cannot handle: what a request meets is logged once, by us.
fn filter(level: LogLevel) -> EnvFilter {
    let level = match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
    };
    EnvFilter::new(format!(
        "{level},pingora_core=off,pingora_proxy=off,pingora_pool=off,pingora_load_balancing=off,hickory_proto=off,hickory_net=off,hickory_resolver=off,h2=off,hyper=off"
    ))
}
