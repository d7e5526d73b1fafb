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

mod chain;
mod error;
mod files;
mod head;
mod recovery;
mod room;

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use outrigger_policy::audit::{Class, Draft, EventType, Hash, Head, Outcome, Time};
use ring::digest::{SHA256, digest};

use self::chain::{Chain, Closed, heads_of};
pub use self::error::SpoolError;
use self::error::at;
use self::files::Open;
use crate::keys::{MasterKeys, WrappedKey};
use crate::layout::{self, Segment};

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
    /// The last entry that PostgreSQL has, by class.
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
