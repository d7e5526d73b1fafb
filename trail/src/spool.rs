//! The spool: the directory in which entries are chained and made durable.
//!
//! ```text
//! append  → in memory, hashed                        (not durable)
//! commit  → data keys, then lines, fdatasync          (durable)
//!         → HEAD with the end of each chain, signed   (at most every 50 ms)
//! roll    → checkpoint, signed; the next commit begins a new segment
//! ```
//!
//! A failed commit leaves its class as after the previous commit: the file is truncated to its durable length, and
//! the caller still has the entries it wanted to write. Opening a spool truncates lines torn by a crash, and records
//! that.

mod files;
mod recovery;

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use outrigger_policy::audit::{Class, Draft, EventType, Hash, Head, Outcome, Time};
use ring::digest::{SHA256, digest};

use self::files::Open;
use crate::keys::{MasterKeys, WrappedKey};
use crate::layout::{self, End, HEAD_SLOT, Heads, Segment, Shipped, Span};

/// Minimum time between two updates of `SHIPPED`, in microseconds.
const NOTE_EVERY_US: i64 = 1_000_000;
/// Minimum time between two signatures of `HEAD`, in microseconds.
const HEAD_EVERY_US: i64 = 50_000;
/// Reserved for a header and a checkpoint.
const FRAME_BYTES: u64 = 1536;
/// Maximum age of an open segment, in microseconds.
const LONGEST_SEGMENT_US: i64 = 86_400_000_000;
/// The actor of the program's own entries.
pub const SYSTEM: &str = r#""actor":{"id":"outrigger","kind":"system"}"#;
/// The actor of operators' entries; `details` names the operator.
pub const OPERATOR: &str = r#""actor":{"id":"operator","kind":"operator"}"#;

/// The bounds of a spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A segment of this size is closed.
    pub segment_bytes: u64,
    /// Maximum size of all segments together. The class [`Class::Security`], which anonymous clients can fill, gets
    /// at most half of it.
    pub max_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { segment_bytes: 16 << 20, max_bytes: 1 << 30 }
    }
}

/// Why a spool cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Another process writes to it.
    #[error("another process writes to {0}")]
    Locked(PathBuf),
    /// An error of the file system.
    #[error("{path}: {source}")]
    File {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file has invalid content.
    #[error("{path} {problem}")]
    Broken {
        /// The path.
        path: PathBuf,
        /// The problem.
        problem: &'static str,
    },
    /// The spool is full, and it has no shipped segment to remove.
    #[error("the spool has reached its bound, and no segment in it is shipped")]
    Full,
    /// The spool's files were removed or replaced.
    #[error("{0} has been removed or replaced")]
    Gone(PathBuf),
}

impl SpoolError {
    /// A label for metrics and gap entries.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Locked(_) => "locked",
            Self::Full => "spool_full",
            Self::Gone(_) => "gone",
            Self::Broken { .. } => "broken",
            Self::File { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "disk_full",
                io::ErrorKind::ReadOnlyFilesystem => "read_only",
                io::ErrorKind::PermissionDenied => "permission_denied",
                io::ErrorKind::NotFound => "gone",
                _ => "io_error",
            },
        }
    }
}

impl SpoolError {
    /// A copy of the error, for a further class that it affects.
    fn again(&self) -> Self {
        match self {
            Self::Locked(path) => Self::Locked(path.clone()),
            Self::File { path, source } => Self::File { path: path.clone(), source: source.kind().into() },
            Self::Broken { path, problem } => Self::Broken { path: path.clone(), problem },
            Self::Full => Self::Full,
            Self::Gone(path) => Self::Gone(path.clone()),
        }
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> SpoolError {
    let path = path.to_owned();
    move |source| SpoolError::File { path, source }
}

/// The position of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its number.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
}

/// A removed range of entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The chain's class.
    pub class: Class,
    /// The first entry.
    pub first: u64,
    /// The last entry.
    pub last: u64,
    /// Size of its file in bytes.
    pub bytes: u64,
}

/// Evidence of tampering found when a spool was opened. It is recorded in the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// The action of its entry, such as `audit.rolled_back`.
    pub action: &'static str,
    /// The details of its entry: a JSON object.
    pub details: String,
}

/// A spool opened for writing.
#[derive(Debug)]
pub struct Spool {
    directory: PathBuf,
    chain: String,
    machine: String,
    keys: MasterKeys,
    settings: Settings,
    chains: [Chain; Class::ALL.len()],
    heads: File,
    number: u64,
    signed_at: Time,
    /// The time in the newest `HEAD`, and in the newest one that is durable.
    head_time: Time,
    synced_head_time: Time,
    /// The latest time of appended entries that are not committed.
    latest: Time,
    is_head_due: bool,
    is_closed: bool,
    /// The last entry that the app has, by class.
    shipped: [u64; Class::ALL.len()],
    /// The last erasure received from the app.
    erasures: u64,
    /// When `shipped` and `erasures` were written to disk, and whether they changed since.
    noted_at: Time,
    is_note_due: bool,
    /// Segments removed to make room.
    dropped: Vec<Dropped>,
    /// Evidence of tampering found when the spool was opened.
    alarms: Vec<Alarm>,
    /// Keeps the lock until dropped.
    lock: File,
}

/// A chain of this spool.
#[derive(Debug)]
struct Chain {
    class: Class,
    /// Includes appended entries that are not committed.
    head: Head,
    /// The durable end.
    committed: Head,
    /// The first entry kept.
    floor: u64,
    open: Option<Open>,
    /// Closed segments, in order.
    closed: Vec<Closed>,
    /// Appended lines that are not committed.
    lines: Vec<u8>,
    /// Data keys that are not written yet.
    new_keys: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Closed {
    segment: Segment,
    last: u64,
    bytes: u64,
    /// Size of its data keys; 0 once they are shipped and removed.
    keys_bytes: u64,
}

impl Spool {
    /// Opens or creates the spool in `directory`. Truncates lines torn by a crash, and records that with the next
    /// commit.
    ///
    /// # Errors
    /// Another process has it open, or its files cannot be used.
    pub fn open(
        directory: &Path,
        keys: MasterKeys,
        machine: &str,
        settings: Settings,
        now: Time,
    ) -> Result<Self, SpoolError> {
        files::make_private(directory)?;
        let lock = files::open_private(&directory.join(layout::LOCK))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(SpoolError::Locked(directory.to_owned())),
            Err(TryLockError::Error(source)) => return Err(at(&directory.join(layout::LOCK))(source)),
        }
        let chain = files::chain_id(directory)?;
        let heads = files::open_private(&directory.join(layout::HEAD))?;
        let mut spool = Self {
            directory: directory.to_owned(),
            chain,
            machine: machine.to_owned(),
            keys,
            settings,
            chains: Class::ALL.map(Chain::new),
            heads,
            number: 0,
            signed_at: Time(0),
            head_time: Time(0),
            synced_head_time: Time(0),
            latest: Time(0),
            is_head_due: true,
            is_closed: false,
            shipped: [0; Class::ALL.len()],
            erasures: 0,
            noted_at: Time(0),
            is_note_due: false,
            dropped: Vec::new(),
            alarms: Vec::new(),
            lock,
        };
        let shipped = files::shipped(directory)?;
        for class in Class::ALL {
            spool.shipped[class as usize] = shipped.through.get(class.name()).copied().unwrap_or(0);
        }
        spool.erasures = shipped.erasures;
        spool.recover(now)?;
        if !spool.alarms.is_empty() {
            // Before HEAD is signed again: if the program were killed in between, the new HEAD would hide the
            // evidence.
            (spool.head_time, spool.synced_head_time) = (Time(i64::MAX), Time(i64::MAX));
            match spool.commit(now).into_iter().next() {
                // When the spool is full, there is no room until something is shipped, which needs an open spool.
                None | Some((_, SpoolError::Full)) => {}
                Some((_, e)) => return Err(e),
            }
        }
        spool.sign_heads(now)?;
        // HEAD may still say that the spool is closed: it must not survive a power loss together with new entries.
        spool.sync_head()?;
        Ok(spool)
    }

    /// The id of its chains.
    pub fn chain_id(&self) -> &str {
        &self.chain
    }

    /// Evidence of tampering found when the spool was opened.
    pub fn alarms(&self) -> &[Alarm] {
        &self.alarms
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The durable end of a chain.
    pub fn committed(&self, class: Class) -> Head {
        self.chains[class as usize].committed
    }

    /// The first entry of a chain that is kept.
    pub fn floor(&self, class: Class) -> u64 {
        self.chains[class as usize].floor
    }

    /// Size of its segments in bytes.
    pub fn bytes(&self) -> u64 {
        self.chains.iter().map(Chain::bytes).sum()
    }

    /// Appends an entry to the chain of its type's class. It is durable once committed.
    pub fn append(&mut self, draft: &Draft<'_>) -> Placed {
        self.append_to(draft.event.class(), draft)
    }

    /// Appends an entry to another class's chain, for gap entries.
    pub fn append_to(&mut self, class: Class, draft: &Draft<'_>) -> Placed {
        let chain = &mut self.chains[class as usize];
        let start = chain.lines.len();
        draft.write(class, &chain.head, &mut chain.lines);
        self.latest = self.latest.max(draft.time);
        let hash = sha256(&chain.lines[start..]);
        chain.lines.push(b'\n');
        chain.head = Head { last: chain.head.last + 1, hash };
        Placed { seq: chain.head.last, hash }
    }

    /// Adds a data key, to be written with the next commit of `class`, before the entries that use it.
    pub fn add_key(&mut self, class: Class, key: &WrappedKey) {
        // Serialising plain strings cannot fail.
        let new_keys = &mut self.chains[class as usize].new_keys;
        new_keys.extend(serde_json::to_vec(key).unwrap_or_default());
        new_keys.push(b'\n');
    }

    /// Whether a commit would write anything.
    pub fn is_dirty(&self) -> bool {
        self.is_head_due || self.chains.iter().any(|chain| !chain.lines.is_empty())
    }

    /// Writes all appended entries. Returns the classes that failed: each is as after its previous commit, and its
    /// entries must be appended again.
    pub fn commit(&mut self, now: Time) -> Vec<(Class, SpoolError)> {
        let mut failed = Vec::new();
        let dirty = Class::ALL.map(|class| !self.chains[class as usize].lines.is_empty());
        let is_gone = dirty.contains(&true) && self.is_gone();
        let time = std::mem::take(&mut self.latest).max(now);
        let vouched = if dirty.contains(&true) && !is_gone { self.keep_head_close(time) } else { Ok(()) };
        // Writes the keys of all classes before the lines of any, so that no entry names a key that a crash can lose.
        for step in [Self::prepare, Self::write_lines] {
            for class in Class::ALL.into_iter().filter(|class| dirty[*class as usize]) {
                if failed.iter().any(|(of, _)| *of == class) {
                    continue;
                }
                let done = match &vouched {
                    _ if is_gone => Err(SpoolError::Gone(self.directory.clone())),
                    Ok(()) => step(self, class, now),
                    Err(e) => Err(e.again()),
                };
                if let Err(e) = done {
                    let chain = &mut self.chains[class as usize];
                    chain.lines.clear();
                    chain.head = chain.committed;
                    failed.push((class, e));
                }
            }
        }
        self.is_head_due |= dirty.contains(&true);
        if self.is_head_due && now.0.abs_diff(self.signed_at.0) >= HEAD_EVERY_US.unsigned_abs() {
            // HEAD may lag behind. The next commit tries again, and writes no entries too far ahead of it.
            if self.sign_heads(time).is_ok() {
                self.signed_at = now;
            }
        }
        failed
    }

    /// Signs and syncs `HEAD` if needed, so that no entry up to `time` is further ahead of it than a crash of the
    /// program or the machine can explain: see [`layout::HEAD_LAG_US`].
    fn keep_head_close(&mut self, time: Time) -> Result<(), SpoolError> {
        let is_far = |head: Time| time.0.saturating_sub(head.0) > layout::HEAD_LAG_US;
        if is_far(self.head_time) {
            let (signed_at, is_due) = (self.signed_at, self.is_head_due);
            self.sign_heads(time)?;
            // The entries written next are not covered by this signature.
            (self.signed_at, self.is_head_due) = (signed_at, is_due);
        }
        if is_far(self.synced_head_time) { self.sync_head() } else { Ok(()) }
    }

    fn sync_head(&mut self) -> Result<(), SpoolError> {
        self.heads.sync_data().map_err(at(&self.directory.join(layout::HEAD)))?;
        self.synced_head_time = self.head_time;
        Ok(())
    }

    /// Whether the directory was removed or replaced, so that entries would be lost.
    fn is_gone(&self) -> bool {
        files::is_another(&self.lock, &self.directory.join(layout::LOCK))
    }

    /// Ensures an open segment with room, and writes its keys to disk.
    fn prepare(&mut self, class: Class, now: Time) -> Result<(), SpoolError> {
        self.make_room(class, now)?;
        let (directory, machine, chain_id) = (self.directory.as_path(), self.machine.as_str(), self.chain.as_str());
        let heads = heads_of(&self.chains, class);
        let chain = &mut self.chains[class as usize];
        if let Some(open) = &chain.open {
            if open.is_gone() {
                chain.open = None;
                return Err(SpoolError::Gone(Segment::new(directory, class, chain.committed.last + 1).path));
            }
            let is_old = now.0.saturating_sub(open.created.0) >= LONGEST_SEGMENT_US;
            if open.length >= self.settings.segment_bytes || is_old {
                chain.close(chain_id, &heads, &self.keys, now)?;
            }
        }
        let open = match &mut chain.open {
            Some(open) => open,
            none => none.insert(Open::create(directory, class, chain_id, machine, &chain.committed, now)?),
        };
        if !chain.new_keys.is_empty() {
            open.write_keys(&chain.new_keys)?;
            chain.new_keys.clear();
        }
        Ok(())
    }

    fn write_lines(&mut self, class: Class, _: Time) -> Result<(), SpoolError> {
        let chain = &mut self.chains[class as usize];
        let Some(open) = &mut chain.open else { return Err(SpoolError::Gone(self.directory.clone())) };
        open.write(&chain.lines)?;
        chain.lines.clear();
        if chain.lines.capacity() > 4 << 20 {
            chain.lines = Vec::new();
        }
        chain.committed = chain.head;
        Ok(())
    }

    /// Signs `HEAD` and closes the open segments.
    ///
    /// # Errors
    /// A segment or `HEAD` could not be written; no durable entry is lost.
    pub fn close(mut self, now: Time) -> Result<(), SpoolError> {
        self.note_shipped(now)?;
        self.roll(now, |_| true)?;
        self.is_closed = true;
        self.sign_heads(now)?;
        self.sync_head()
    }

    /// Closes the open segments selected by `wanted`; those without entries stay open.
    fn roll(&mut self, now: Time, wanted: impl Fn(&Open) -> bool) -> Result<(), SpoolError> {
        for class in Class::ALL {
            let heads = heads_of(&self.chains, class);
            let chain = &mut self.chains[class as usize];
            if chain.open.as_ref().is_some_and(&wanted) {
                chain.close(&self.chain, &heads, &self.keys, now)?;
            }
        }
        Ok(())
    }

    /// Writes `HEAD`, however recent the last one is.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn sign_heads(&mut self, now: Time) -> Result<(), SpoolError> {
        self.number += 1;
        let span =
            |chain: &Chain| Span { first: chain.floor, last: chain.committed.last, hash: hex(&chain.committed.hash) };
        let heads = Heads {
            head: 1,
            chain: self.chain.clone(),
            machine: self.machine.clone(),
            number: self.number,
            time: now.to_string(),
            classes: self.chains.iter().map(|chain| (chain.class.name().to_owned(), span(chain))).collect(),
            closed: self.is_closed,
            key: self.keys.current_id().to_owned(),
        };
        let mut slot = layout::sign(&heads, &self.keys);
        slot.resize(HEAD_SLOT - 1, b' ');
        slot.push(b'\n');
        let offset = self.number % 2 * HEAD_SLOT as u64;
        let path = self.directory.join(layout::HEAD);
        self.heads.write_all_at(&slot, offset).map_err(at(&path))?;
        (self.signed_at, self.head_time) = (now, now);
        self.is_head_due = false;
        Ok(())
    }

    /// Records that the app has all entries of `class` up to `through`. Their segments may be removed to make room,
    /// and their data keys are removed, as PostgreSQL has them.
    ///
    /// # Errors
    /// The file cannot be written; after a restart, the entries are shipped again.
    pub fn shipped(&mut self, class: Class, through: u64, erasures: u64, now: Time) -> Result<(), SpoolError> {
        self.shipped[class as usize] = through;
        self.erasures = self.erasures.max(erasures);
        self.is_note_due = true;
        for closed in &mut self.chains[class as usize].closed {
            if closed.last <= through && closed.keys_bytes > 0 {
                files::remove(&closed.segment.keys())?;
                closed.keys_bytes = 0;
            }
        }
        // At most once a second, since it costs more than a batch of entries. Entries not recorded as shipped are
        // shipped again, which is harmless.
        if now.0.abs_diff(self.noted_at.0) >= NOTE_EVERY_US.unsigned_abs() { self.note_shipped(now) } else { Ok(()) }
    }

    fn note_shipped(&mut self, now: Time) -> Result<(), SpoolError> {
        if !self.is_note_due {
            return Ok(());
        }
        let through = Class::ALL.iter().map(|class| (class.name().to_owned(), self.shipped[*class as usize])).collect();
        files::write_shipped(&self.directory, &Shipped { through, erasures: self.erasures })?;
        (self.noted_at, self.is_note_due) = (now, false);
        Ok(())
    }

    /// The entries that the app has, and the last erasure received from it.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn shipped_through(&self) -> Result<Shipped, SpoolError> {
        files::shipped(&self.directory)
    }

    /// Removes shipped segments, oldest first, until the appended entries fit.
    fn make_room(&mut self, class: Class, now: Time) -> Result<(), SpoolError> {
        let chain = &self.chains[class as usize];
        let wanted = (chain.lines.len() + chain.new_keys.len()) as u64 + FRAME_BYTES;
        let mut dropped = false;
        loop {
            let most_of_class =
                if class == Class::Security { self.settings.max_bytes / 2 } else { self.settings.max_bytes };
            let used = self.chains[class as usize].bytes();
            if used + wanted <= most_of_class && self.bytes() + wanted <= self.settings.max_bytes {
                break;
            }
            let is_own_bound = used + wanted > most_of_class;
            let shipped = self.shipped;
            let candidates = self.chains.iter().filter(|chain| !is_own_bound || chain.class == class);
            let oldest = candidates
                .filter_map(|chain| chain.closed.first().filter(|closed| closed.last <= shipped[chain.class as usize]))
                .min_by_key(|closed| files::modified(&closed.segment.path));
            let Some(oldest) = oldest.cloned() else { return Err(SpoolError::Full) };
            let gone = self.drop_first(oldest.segment.class, now)?;
            self.dropped.extend(gone);
            dropped = true;
        }
        if dropped {
            files::sync_directory(&self.directory)?;
        }
        Ok(())
    }

    /// Removes the first closed segment of a class. Updates `HEAD` before the file: a crash in between leaves one
    /// file too many.
    fn drop_first(&mut self, class: Class, now: Time) -> Result<Option<Dropped>, SpoolError> {
        let (directory, machine, chain_id) = (self.directory.as_path(), self.machine.as_str(), self.chain.as_str());
        let chain = &mut self.chains[class as usize];
        let Some(closed) = chain.closed.first().cloned() else { return Ok(None) };
        if chain.closed.len() == 1 && chain.open.is_none() {
            // The next segment's header records where the chain continues, in case HEAD is lost.
            chain.open = Some(Open::create(directory, class, chain_id, machine, &chain.committed, now)?);
        }
        let before = std::mem::replace(&mut chain.floor, closed.last + 1);
        let head_time = self.head_time.min(now);
        let said = self.sign_heads(head_time).and_then(|()| self.sync_head());
        let chain = &mut self.chains[class as usize];
        if let Err(e) = said {
            chain.floor = before;
            return Err(e);
        }
        chain.closed.remove(0);
        files::remove(&closed.segment.path)?;
        files::remove(&closed.segment.keys())?;
        Ok(Some(Dropped { class, first: before, last: closed.last, bytes: closed.bytes }))
    }

    /// Returns the segments that retention may remove: for each class those whose last entry is older than `oldest`.
    ///
    /// # Errors
    /// A segment cannot be read.
    pub fn expired(
        &mut self,
        now: Time,
        oldest: impl Fn(Class) -> Time,
        is_held: impl Fn(Class, &Path) -> Result<bool, SpoolError>,
    ) -> Result<Vec<Dropped>, SpoolError> {
        self.roll(now, |open| now.0.saturating_sub(open.created.0) >= LONGEST_SEGMENT_US)?;
        let mut expired = Vec::new();
        for chain in &self.chains {
            let mut first = chain.floor;
            for closed in &chain.closed {
                // Segments without a valid checkpoint are evidence, however old: `outrigger audit verify` reports
                // them.
                let last = files::vouched_time(&closed.segment.path, &self.keys.public())?;
                let is_old = last.is_some_and(|last| last < oldest(chain.class));
                // Segments after one that stays must stay too: the remaining chain must be contiguous.
                if !is_old || is_held(chain.class, &closed.segment.path)? {
                    break;
                }
                expired.push(Dropped { class: chain.class, first, last: closed.last, bytes: closed.bytes });
                first = closed.last + 1;
            }
        }
        Ok(expired)
    }

    /// Removes the segments returned by [`Spool::expired`].
    ///
    /// # Errors
    /// Segments that could not be removed are left to the next run.
    pub fn drop_expired(&mut self, expired: &[Dropped], now: Time) -> Result<(), SpoolError> {
        for wanted in expired {
            let first = self.chains[wanted.class as usize].closed.first();
            if first.is_some_and(|closed| closed.last == wanted.last) {
                self.drop_first(wanted.class, now)?;
            }
        }
        files::sync_directory(&self.directory)
    }

    /// Segments removed to make room since the last call.
    pub fn take_dropped(&mut self) -> Vec<Dropped> {
        std::mem::take(&mut self.dropped)
    }

    /// Destroys the data keys of these subjects (pseudonyms) and returns their number.
    ///
    /// # Errors
    /// A file cannot be changed; keys in files before it are destroyed.
    pub fn forget(&mut self, subjects: &[String]) -> Result<usize, SpoolError> {
        let mut destroyed = 0;
        for chain in &mut self.chains {
            destroyed += files::blank_keys(&mut chain.new_keys, subjects);
            let open = chain.open.as_ref().map(|open| open.segment.keys());
            for path in chain.closed.iter().map(|closed| closed.segment.keys()).chain(open) {
                destroyed += files::forget(&path, subjects)?;
            }
        }
        Ok(destroyed)
    }
}

impl Chain {
    fn new(class: Class) -> Self {
        Self {
            class,
            head: Head::default(),
            committed: Head::default(),
            floor: 1,
            open: None,
            closed: Vec::new(),
            lines: Vec::new(),
            new_keys: Vec::new(),
        }
    }

    fn bytes(&self) -> u64 {
        let closed: u64 = self.closed.iter().map(|closed| closed.bytes + closed.keys_bytes).sum();
        closed + self.open.as_ref().map_or(0, |open| open.length + open.keys_length)
    }

    /// Ends the open segment with its checkpoint. Keeps it open if it has no entries: the next ones are appended to
    /// it.
    fn close(
        &mut self,
        chain_id: &str,
        heads: &BTreeMap<String, End>,
        keys: &MasterKeys,
        now: Time,
    ) -> Result<(), SpoolError> {
        let Some(open) = self.open.as_mut().filter(|open| open.segment.first <= self.committed.last) else {
            return Ok(());
        };
        open.write_checkpoint(chain_id, &self.committed, heads, keys, now)?;
        if let Some(open) = self.open.take() {
            let (last, bytes, keys_bytes) = (self.committed.last, open.length, open.keys_length);
            self.closed.push(Closed { last, bytes, keys_bytes, segment: open.segment });
        }
        Ok(())
    }
}

/// The ends of the other chains, for the checkpoint of `class`: a truncated chain contradicts the others'
/// checkpoints.
fn heads_of(chains: &[Chain], class: Class) -> BTreeMap<String, End> {
    let others = chains.iter().filter(|chain| chain.class != class && chain.committed.last > 0);
    let end = |chain: &Chain| End { last: chain.committed.last, hash: hex(&chain.committed.hash) };
    others.map(|chain| (chain.class.name().to_owned(), end(chain))).collect()
}

/// Writes a file atomically, readable by its owner only; creates its directory if needed.
///
/// # Errors
/// An error of the file system.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), SpoolError> {
    files::make_private(path.parent().unwrap_or(Path::new(".")))?;
    files::replace(path, content)
}

/// Number of data keys of these subjects (pseudonyms) in the files of a spool.
///
/// # Errors
/// A file cannot be read.
pub fn count_keys(directory: &Path, subjects: &[String]) -> Result<usize, SpoolError> {
    let mut count = 0;
    for segment in layout::segments(directory).map_err(at(directory))? {
        count += files::count_keys(&segment.keys(), subjects)?;
    }
    Ok(count)
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> Hash {
    let mut hash = Hash::default();
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = Vec::new();
    outrigger_policy::audit::hex(&mut text, bytes);
    String::from_utf8(text).unwrap_or_default()
}

/// An entry for an action of the program itself, with a JSON object of details.
pub fn system<'a>(id: u128, now: Time, machine: &'a str, action: &'a str, details: &'a str) -> Draft<'a> {
    Draft {
        action: Some(action),
        details: Some(details),
        ..Draft::new(id, now, machine, EventType::AdminAction, Outcome::Success, SYSTEM)
    }
}

#[cfg(test)]
mod rollback_tests;
#[cfg(test)]
mod tests;
