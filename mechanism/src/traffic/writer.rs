//! The thread that writes the record: it replaces hashes by pseudonyms and paths by templates, and keeps the files within their bounds.
//!
//! A pseudonym is a hash of the client's hash with a key that exists in the memory of this process only, and for one day (UTC): requests of
//! a client in a file belong together, but lead to no client, to no other day and to no other Machine.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::Thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use outrigger_identity::hash::Seed;
use outrigger_traffic::encode::{Encoder, HEADER_BYTES, header};
use outrigger_traffic::request::RecordedRequest;
use outrigger_traffic::shapes::{Described, Shapes};
use outrigger_traffic::template;
use ring::rand::{SecureRandom, SystemRandom};

use crate::traffic::directory::{TIDY_EVERY, create, file_bytes, tidy};
use crate::traffic::metrics::Loss;
use crate::traffic::{Batch, METHODS, Recorder, Seen, TrafficBasis, lock};

/// The longest time until a request is on disk.
const WRITE_EVERY: Duration = Duration::from_millis(500);
/// A block is written when it has this many bytes.
const BLOCK_BYTES: usize = 16 << 10;
/// After an error, the next attempt is made after this time.
const RETRY_AFTER: Duration = Duration::from_secs(5);
const DAY_NS: u64 = 86_400_000_000_000;

/// The file that is being written.
#[derive(Debug)]
struct Current {
    file: File,
    basis: Arc<TrafficBasis>,
    bytes: u64,
    began: Instant,
    began_ns: u64,
    pseudonyms: Seed,
}

/// The writer's state.
#[derive(Debug)]
pub(super) struct Writer {
    recorder: Arc<Recorder>,
    current: Option<Current>,
    shapes: Shapes,
    block: Encoder,
    /// Key of this day's pseudonyms.
    pseudonyms: (u64, Seed),
    retry_at: Option<Instant>,
    has_complained: bool,
    tidied: Instant,
    path: String,
    host: String,
    headers: String,
}

fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// A key that no other one can be computed from.
fn fresh_key() -> io::Result<Seed> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| io::Error::other("the system has no random numbers"))?;
    Ok(Seed::from_bytes(bytes))
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn start(recorder: Arc<Recorder>) -> io::Result<Thread> {
        let writer = Self {
            recorder,
            current: None,
            shapes: Shapes::default(),
            block: Encoder::new(0),
            pseudonyms: (unix_ns() / DAY_NS, fresh_key()?),
            retry_at: None,
            has_complained: false,
            tidied: Instant::now(),
            path: String::new(),
            host: String::new(),
            headers: String::new(),
        };
        let thread = std::thread::Builder::new().name("traffic".to_owned()).spawn(|| writer.run())?;
        Ok(thread.thread().clone())
    }

    fn run(mut self) {
        let mut spare = Batch::default();
        loop {
            // Read before the queues: what is queued before the end is written.
            let is_closed = self.recorder.is_closed.load(Ordering::Acquire);
            for shard in 0..self.recorder.shards.len() {
                std::mem::swap(&mut *lock(&self.recorder.shards[shard]), &mut spare);
                self.write(&spare);
                spare.clear();
            }
            self.flush();
            self.keep_up();
            if is_closed {
                break self.recorder.has_ended.store(true, Ordering::Release);
            }
            std::thread::park_timeout(WRITE_EVERY);
        }
    }

    fn write(&mut self, batch: &Batch) {
        let (mut bases, mut start) = (batch.bases.iter().peekable(), 0);
        let mut basis = None;
        for (number, (seen, length)) in batch.seen.iter().enumerate() {
            while let Some((_, next)) = bases.next_if(|(first, _)| *first <= number) {
                basis = Some(next);
            }
            let end = start + usize::from(*length);
            let path = batch.paths.get(start..end).unwrap_or_default();
            start = end;
            if let Some(basis) = basis {
                self.add(basis, seen, path);
            }
        }
    }

    fn add(&mut self, basis: &Arc<TrafficBasis>, seen: &Seen, path: &str) {
        if !self.has_file_for(basis) {
            return self.recorder.metrics.lost(Loss::NotWritten, 1);
        }
        let Some(current) = &self.current else { return };
        let pseudonym = |hash: u64| current.pseudonyms.hash(&hash.to_le_bytes());
        let client = pseudonym(seen.client);
        let address = if seen.address == seen.client { client } else { pseudonym(seen.address) };
        let since = seen.started.saturating_duration_since(current.began).as_nanos();
        let before = current.began.saturating_duration_since(seen.started).as_nanos();
        let started_ns = current.began_ns.wrapping_add(since as u64).wrapping_sub(before as u64);

        basis.host(seen.hints, &mut self.host);
        basis.headers(seen.hints, &mut self.headers);
        let (route, exact, parameters) = basis.route(seen.route);
        let (path, by) = match exact {
            _ if !basis.needs_path(seen) && exact.is_none() => ("", None),
            Some(exact) if seen.is_routed => (exact, None),
            Some(_) => ("", None),
            None => {
                let detail = basis.rules.paths.into();
                template::of_path(path, &basis.literals, parameters, detail, &mut self.path);
                (self.path.as_str(), Some(address))
            }
        };
        // Those of the configuration alone are few; clients can combine hosts and headers at will.
        let by = by.or_else(|| (!self.host.is_empty() || !self.headers.is_empty()).then_some(address));
        let method = METHODS.get(usize::from(seen.method)).unwrap_or(&"OTHER");
        let described = Described { method, host: &self.host, path, route, headers: &self.headers };
        let Some(shape) = self.shapes.shape(described, by, &mut self.block) else {
            return self.recorder.metrics.lost(Loss::TooManyShapes, 1);
        };
        let reason = seen.reason.and_then(|reason| self.shapes.text(reason, &mut self.block));
        let limit = seen.limit.and_then(|limit| basis.limit(limit));
        let limit = limit.and_then(|limit| self.shapes.text(limit, &mut self.block));
        let us = |span: Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        self.block.request(&RecordedRequest {
            started_ns,
            total_us: us(seen.total),
            queued_us: us(seen.queued),
            service_us: seen.service.map(us),
            shape,
            status: seen.status,
            reason,
            limit,
            tier: seen.tier,
            kind: seen.kind,
            client,
            address,
            admission: seen.admission,
            resilience: seen.resilience,
            facts: seen.facts,
            attempts: seen.attempts,
            body_class: seen.body_class,
        });
        if self.block.len() >= BLOCK_BYTES {
            self.flush();
        }
    }

    /// Makes sure that there is a file for requests of this configuration.
    fn has_file_for(&mut self, basis: &Arc<TrafficBasis>) -> bool {
        if let Some(current) = &mut self.current {
            if !Arc::ptr_eq(&current.basis, basis) && current.basis.rules.directory == basis.rules.directory {
                current.basis = Arc::clone(basis);
            }
            if Arc::ptr_eq(&current.basis, basis) && current.bytes < file_bytes(&basis.rules) {
                return true;
            }
            self.flush();
            self.current = None;
        }
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return false;
        }
        match self.open(basis) {
            Ok(()) => true,
            Err(error) => {
                self.failed(&error);
                false
            }
        }
    }

    fn open(&mut self, basis: &Arc<TrafficBasis>) -> io::Result<()> {
        let (began, began_ns) = (Instant::now(), unix_ns());
        if self.pseudonyms.0 != began_ns / DAY_NS {
            self.pseudonyms = (began_ns / DAY_NS, fresh_key()?);
        }
        // Room first. Files that cannot be deleted do not keep requests from being recorded, within the size of one file.
        let total = match tidy(&basis.rules, began_ns, began_ns) {
            Ok(total) => total,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        let (mut file, path) = create(&basis.rules, began_ns)?;
        if let Err(error) = file.write_all(&header(began_ns)) {
            // An empty file for each attempt would take all of the disk's inodes.
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
        let bytes = HEADER_BYTES as u64;
        self.recorder.metrics.bytes.set(i64::try_from(total + bytes).unwrap_or(i64::MAX));
        self.shapes.clear();
        self.block = Encoder::new(began_ns);
        let (basis, pseudonyms) = (Arc::clone(basis), self.pseudonyms.1);
        self.current = Some(Current { file, basis, bytes, began, began_ns, pseudonyms });
        (self.retry_at, self.tidied) = (None, began);
        Ok(())
    }

    /// Writes the block.
    fn flush(&mut self) {
        if self.block.is_empty() {
            return;
        }
        let requests = self.block.requests();
        let block = self.block.finish();
        let length = block.len();
        let written = match &mut self.current {
            Some(current) => current.file.write_all(block),
            None => Ok(()),
        };
        self.block.clear();
        match (written, &mut self.current) {
            (Ok(()), Some(current)) => {
                current.bytes += length as u64;
                self.recorder.metrics.recorded.inc_by(requests);
                self.recorder.metrics.bytes.add(length as i64);
                self.has_complained = false;
            }
            (Ok(()), None) => self.recorder.metrics.lost(Loss::NotWritten, requests),
            (Err(error), _) => {
                self.recorder.metrics.lost(Loss::NotWritten, requests);
                self.failed(&error);
            }
        }
    }

    /// A file that could not be written is left as it is: its last block is incomplete, and the next attempt makes another one.
    fn failed(&mut self, error: &io::Error) {
        self.current = None;
        self.retry_at = Some(Instant::now() + RETRY_AFTER);
        if !std::mem::replace(&mut self.has_complained, true) {
            tracing::warn!(
                event = "traffic_not_recorded",
                "requests are not in the traffic record: {error}; is the disk full, and is traffic.directory writable?"
            );
        }
    }

    /// A new day begins a new file, with another key; old files are deleted.
    fn keep_up(&mut self) {
        let Some(current) = &self.current else { return };
        let now_ns = unix_ns();
        if current.began_ns / DAY_NS != now_ns / DAY_NS {
            self.current = None;
            return;
        }
        if self.tidied.elapsed() < TIDY_EVERY {
            return;
        }
        self.tidied = Instant::now();
        match tidy(&current.basis.rules, current.began_ns, now_ns) {
            Ok(total) => self.recorder.metrics.bytes.set(i64::try_from(total).unwrap_or(i64::MAX)),
            Err(error) => tracing::debug!("old files of the traffic record cannot be deleted: {error}"),
        }
    }
}
