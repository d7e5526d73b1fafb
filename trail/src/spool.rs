//! The spool: the directory in which entries get their place in a chain, and are on disk before anybody relies on it.
//!
//! ```text
//! append  → in memory, hashed                        (nothing is promised yet)
//! commit  → data keys, then lines, fdatasync          (promised)
//!         → HEAD says where each chain ends, signed   (at most every 50 ms)
//! roll    → checkpoint, signed; the next commit begins a new segment
//! ```
//!
//! A commit that fails leaves its class as if nothing had been appended since the last one: the file is cut back to what was
//! promised, and the caller still has what it wanted to write. Opening a spool cuts off what a crash has torn, and writes down that
//! it did.

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

/// The least time between two notes of what the app has.
const NOTE_EVERY_US: i64 = 1_000_000;
/// The least time between two signatures of `HEAD`.
const HEAD_EVERY_US: i64 = 50_000;
/// Room for a header and a checkpoint.
const FRAME_BYTES: u64 = 1536;
/// The oldest segment that is still written to.
const LONGEST_SEGMENT_US: i64 = 86_400_000_000;
/// What the program itself is called in entries.
pub const SYSTEM: &str = r#""actor":{"id":"outrigger","kind":"system"}"#;
/// What an operator is called in entries; `details` says which.
pub const OPERATOR: &str = r#""actor":{"id":"operator","kind":"operator"}"#;

/// The bounds of a spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A segment of this many bytes is closed.
    pub segment_bytes: u64,
    /// All of them together have no more. Half of it is the most that the class [`Class::Security`] gets, which strangers can fill.
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
    /// The file system says no.
    #[error("{path}: {source}")]
    File {
        /// Where.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
    /// A file holds something that it cannot hold.
    #[error("{path} {problem}")]
    Broken {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        problem: &'static str,
    },
    /// There is no room, and nothing that the app already has.
    #[error("the spool has reached its bound, and nothing in it is shipped")]
    Full,
    /// Its files are no longer where they were.
    #[error("{0} has been removed or replaced")]
    Gone(PathBuf),
}

impl SpoolError {
    /// In a word, for metrics and gap entries.
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
    /// The same once more, for the next class that it keeps from being written.
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

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its number.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
}

/// What was dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// From which chain.
    pub class: Class,
    /// The first entry.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// Bytes of its file.
    pub bytes: u64,
}

/// Something that was found when a spool was opened and that no crash explains. It is entered into the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// The action of its entry, such as `audit.rolled_back`.
    pub action: &'static str,
    /// The details of its entry: a JSON object.
    pub details: String,
}

/// A spool that this process writes to.
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
    /// The time in the newest `HEAD`, and in the newest that is surely on disk.
    head_time: Time,
    synced_head_time: Time,
    /// The latest time of what is appended and not committed.
    latest: Time,
    is_head_due: bool,
    is_closed: bool,
    /// What the app has, by class.
    shipped: [u64; Class::ALL.len()],
    /// The last erasure that was heard of.
    erasures: u64,
    /// When that was written down, and that it has changed since.
    noted_at: Time,
    is_note_due: bool,
    /// What went to make room.
    dropped: Vec<Dropped>,
    /// What was found when it was opened and no crash explains.
    alarms: Vec<Alarm>,
    /// Held as long as this lives.
    lock: File,
}

/// A chain of this spool.
#[derive(Debug)]
struct Chain {
    class: Class,
    /// With what is appended and not committed.
    head: Head,
    /// What is promised.
    committed: Head,
    /// The first entry that is kept.
    floor: u64,
    open: Option<Open>,
    /// Complete, in order.
    closed: Vec<Closed>,
    /// Lines that are appended and not committed.
    lines: Vec<u8>,
    /// Data keys that were not written yet.
    new_keys: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Closed {
    segment: Segment,
    last: u64,
    bytes: u64,
    /// Bytes of its data keys, as long as only they are here.
    keys_bytes: u64,
}

impl Spool {
    /// Opens the spool in `directory`, or begins one. What a crash has torn is cut off, and written down with the next commit.
    ///
    /// # Errors
    /// It is somebody else's now, or its files cannot be used.
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
            // Before HEAD is signed anew: it would hide what was found, should the program be killed in between.
            (spool.head_time, spool.synced_head_time) = (Time(i64::MAX), Time(i64::MAX));
            match spool.commit(now).into_iter().next() {
                // There is no room for it until something is shipped, which needs an open spool.
                None | Some((_, SpoolError::Full)) => {}
                Some((_, e)) => return Err(e),
            }
        }
        spool.sign_heads(now)?;
        // What says that nobody writes must not outlast a loss of power behind what is written now.
        spool.sync_head()?;
        Ok(spool)
    }

    /// The id of its chains.
    pub fn chain_id(&self) -> &str {
        &self.chain
    }

    /// What was found when it was opened and no crash explains.
    pub fn alarms(&self) -> &[Alarm] {
        &self.alarms
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What is promised of a chain.
    pub fn committed(&self, class: Class) -> Head {
        self.chains[class as usize].committed
    }

    /// The first entry of a chain that is kept.
    pub fn floor(&self, class: Class) -> u64 {
        self.chains[class as usize].floor
    }

    /// Bytes of its segments.
    pub fn bytes(&self) -> u64 {
        self.chains.iter().map(Chain::bytes).sum()
    }

    /// Appends an entry to the chain of its type's class; it is promised once it is committed.
    pub fn append(&mut self, draft: &Draft<'_>) -> Placed {
        self.append_to(draft.event.class(), draft)
    }

    /// Appends an entry to the chain of another class: a gap is written where something is missing.
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

    /// Has a data key written with the next commit of `class`, before the entries that use it.
    pub fn add_key(&mut self, class: Class, key: &WrappedKey) {
        // Text only: writing it as JSON does not fail.
        let new_keys = &mut self.chains[class as usize].new_keys;
        new_keys.extend(serde_json::to_vec(key).unwrap_or_default());
        new_keys.push(b'\n');
    }

    /// Whether a commit would write something.
    pub fn is_dirty(&self) -> bool {
        self.is_head_due || self.chains.iter().any(|chain| !chain.lines.is_empty())
    }

    /// Writes everything that was appended. A class that cannot be written is as it was after its last commit, and what was appended
    /// to it since is the caller's again.
    pub fn commit(&mut self, now: Time) -> Vec<(Class, SpoolError)> {
        let mut failed = Vec::new();
        let dirty = Class::ALL.map(|class| !self.chains[class as usize].lines.is_empty());
        let is_gone = dirty.contains(&true) && self.is_gone();
        let time = std::mem::take(&mut self.latest).max(now);
        let vouched = if dirty.contains(&true) && !is_gone { self.keep_head_close(time) } else { Ok(()) };
        // The keys of all classes before the lines of any: an entry must not name a key that a crash can take.
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
            // It lags behind, which it may; the next commit tries again, and writes nothing that is too far ahead of it.
            if self.sign_heads(time).is_ok() {
                self.signed_at = now;
            }
        }
        failed
    }

    /// Sees to it that nothing with a time up to `time` is further ahead of `HEAD` than a crash explains, also one of the machine: see
    /// [`layout::HEAD_LAG_US`].
    fn keep_head_close(&mut self, time: Time) -> Result<(), SpoolError> {
        let is_far = |head: Time| time.0.saturating_sub(head.0) > layout::HEAD_LAG_US;
        if is_far(self.head_time) {
            let (signed_at, is_due) = (self.signed_at, self.is_head_due);
            self.sign_heads(time)?;
            // What is written next is not vouched for by it.
            (self.signed_at, self.is_head_due) = (signed_at, is_due);
        }
        if is_far(self.synced_head_time) { self.sync_head() } else { Ok(()) }
    }

    fn sync_head(&mut self) -> Result<(), SpoolError> {
        self.heads.sync_data().map_err(at(&self.directory.join(layout::HEAD)))?;
        self.synced_head_time = self.head_time;
        Ok(())
    }

    /// Somebody has removed the directory, or put another one in its place: what is written would be read by nobody.
    fn is_gone(&self) -> bool {
        files::is_another(&self.lock, &self.directory.join(layout::LOCK))
    }

    /// Has an open segment with room, and its keys on disk.
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

    /// Signs `HEAD`, and closes what is open.
    ///
    /// # Errors
    /// What was not closed; nothing that was promised is lost by it.
    pub fn close(mut self, now: Time) -> Result<(), SpoolError> {
        self.note_shipped(now)?;
        self.roll(now, |_| true)?;
        self.is_closed = true;
        self.sign_heads(now)?;
        self.sync_head()
    }

    /// Closes the open segments for which `wanted` says so; without entries they stay open.
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

    /// Writes `HEAD`, whatever the time.
    ///
    /// # Errors
    /// It cannot be written.
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

    /// The app has everything of `class` up to `through`: those segments may go when room is needed, and their data keys are in
    /// PostgreSQL now.
    ///
    /// # Errors
    /// It cannot be written down; the app is sent it again after a restart then.
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
        // At most once a second: it costs more than a batch of entries, and what is not noted is sent again, which is harmless.
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

    /// What the app has of a class, and the last erasure that was heard of.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn shipped_through(&self) -> Result<Shipped, SpoolError> {
        files::shipped(&self.directory)
    }

    /// Drops shipped segments, the oldest first, until what is to be written fits.
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

    /// Drops the first closed segment of a class. `HEAD` says so before the file goes: a crash in between leaves one too many.
    fn drop_first(&mut self, class: Class, now: Time) -> Result<Option<Dropped>, SpoolError> {
        let (directory, machine, chain_id) = (self.directory.as_path(), self.machine.as_str(), self.chain.as_str());
        let chain = &mut self.chains[class as usize];
        let Some(closed) = chain.closed.first().cloned() else { return Ok(None) };
        if chain.closed.len() == 1 && chain.open.is_none() {
            // The header of the next one says where the chain goes on, should HEAD be lost.
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

    /// What retention would drop: for each class the segments whose last entry is older than `oldest` says.
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
                // What nothing vouches for is evidence, however old: `outrigger audit verify` tells of it.
                let last = files::vouched_time(&closed.segment.path, &self.keys.public())?;
                let is_old = last.is_some_and(|last| last < oldest(chain.class));
                // What comes after a segment that stays has to stay as well: what is left must begin with one entry.
                if !is_old || is_held(chain.class, &closed.segment.path)? {
                    break;
                }
                expired.push(Dropped { class: chain.class, first, last: closed.last, bytes: closed.bytes });
                first = closed.last + 1;
            }
        }
        Ok(expired)
    }

    /// Drops what [`Spool::expired`] has named.
    ///
    /// # Errors
    /// What could not be removed stays for the next time.
    pub fn drop_expired(&mut self, expired: &[Dropped], now: Time) -> Result<(), SpoolError> {
        for wanted in expired {
            let first = self.chains[wanted.class as usize].closed.first();
            if first.is_some_and(|closed| closed.last == wanted.last) {
                self.drop_first(wanted.class, now)?;
            }
        }
        files::sync_directory(&self.directory)
    }

    /// What went to make room since this was asked last.
    pub fn take_dropped(&mut self) -> Vec<Dropped> {
        std::mem::take(&mut self.dropped)
    }

    /// Destroys the data keys of these subjects, as pseudonyms, and tells how many there were.
    ///
    /// # Errors
    /// A file cannot be changed; keys before it are destroyed.
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

    /// Ends the open segment with its checkpoint. One without entries stays open: the next entries are its.
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

/// Where the other chains end, for the checkpoint of `class`: who shortens one would have to change the others.
fn heads_of(chains: &[Chain], class: Class) -> BTreeMap<String, End> {
    let others = chains.iter().filter(|chain| chain.class != class && chain.committed.last > 0);
    let end = |chain: &Chain| End { last: chain.committed.last, hash: hex(&chain.committed.hash) };
    others.map(|chain| (chain.class.name().to_owned(), end(chain))).collect()
}

/// Writes a file, whole or not at all, that only its owner may read; its directory is made if need be.
///
/// # Errors
/// What the file system says.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), SpoolError> {
    files::make_private(path.parent().unwrap_or(Path::new(".")))?;
    files::replace(path, content)
}

/// How many data keys of these subjects, as pseudonyms, the files of a spool have.
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

/// In lower case.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = Vec::new();
    outrigger_policy::audit::hex(&mut text, bytes);
    String::from_utf8(text).unwrap_or_default()
}

/// Something that the program did itself, with what else there is to say as a JSON object.
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
