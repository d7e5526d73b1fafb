//! Snapshots of the state: one file, read at the start and written while the process runs.
//!
//! [`outrigger_policy::saved`] has the format, and what is restored of each mechanism. The file holds names of banned clients and the seed
//! of the hashes that stand for clients, so only its owner can read it. It is replaced as a whole, so a crash leaves the one before.

pub mod metrics;

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use outrigger_identity::hash::{Seed, use_seed};
use outrigger_identity::signing::Purpose;
use outrigger_identity::this::This;
use outrigger_policy::saved::{Saved, Unusable};
use outrigger_rules::sections::state::StateRules;

/// The file in the directory.
pub const FILE: &str = "snapshot";
/// The file while it is written.
const UNFINISHED: &str = "snapshot.new";

/// Why a file is ignored.
#[derive(Debug, thiserror::Error)]
pub enum Ignored {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It is a directory, or a device.
    #[error("it is not a file")]
    NotAFile,
    /// Its content.
    #[error(transparent)]
    Unusable(#[from] Unusable),
}

impl Ignored {
    /// Returns the metric label.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Unreadable(_) | Self::NotAFile => metrics::UNREADABLE,
            Self::Unusable(unusable) => unusable.kind(),
        }
    }
}

/// Returns the path of the snapshot.
pub fn path(rules: &StateRules) -> PathBuf {
    rules.directory.join(FILE)
}

/// Nanoseconds since 1970.
pub fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Reads the snapshot; `None` if it does not exist.
///
/// # Errors
/// [`Ignored`]: there is a file, but it must not be used.
pub fn read(rules: &StateRules, unix_ns: u64) -> Result<Option<Saved>, Ignored> {
    let path = path(rules);
    let most = rules.max_bytes as u64;
    let meta = match fs::metadata(&path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    if !meta.is_file() {
        return Err(Ignored::NotAFile);
    }
    if meta.len() > most {
        return Err(Unusable::TooLarge(meta.len(), most).into());
    }
    let mut bytes = Vec::new();
    // It may grow meanwhile.
    fs::File::open(&path)?.take(most).read_to_end(&mut bytes)?;
    let saved = Saved::decode(&bytes)?;
    saved.check_machine(&rules.machine)?;
    saved.age(unix_ns)?;
    Ok(Some(saved))
}

/// Replaces the snapshot, and creates the directory if it is missing.
///
/// # Errors
/// The directory cannot be written, or the disk is full; the snapshot before stays.
pub fn write(rules: &StateRules, bytes: &[u8]) -> io::Result<u64> {
    DirBuilder::new().recursive(true).mode(0o700).create(&rules.directory)?;
    let unfinished = rules.directory.join(UNFINISHED);
    // Of a process that was killed. A new file has the right owner and mode, and is no link to another one.
    match fs::remove_file(&unfinished) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    // The mode above is subject to the process's mask.
    file.set_permissions(Permissions::from_mode(0o600))?;
    let written = file.write_all(bytes).and_then(|()| file.sync_data()).and_then(|()| file.metadata());
    let renamed = written.and_then(|meta| fs::rename(&unfinished, path(rules)).map(|()| meta.ino()));
    if renamed.is_err() {
        // Frees the space. The error that is reported is the first one.
        let _ = fs::remove_file(&unfinished);
    }
    renamed
}

/// Whether the snapshot is still the file with this inode.
pub fn is_there(rules: &StateRules, inode: u64) -> bool {
    fs::metadata(path(rules)).is_ok_and(|meta| meta.ino() == inode)
}

/// Makes the hashes that stand for clients the same as before a restart. With keys that all Machines share, they are the same on all of
/// them; without, the seed is in the snapshot. Call it before the configuration is read, which contains such hashes.
pub fn choose_seed(rules: &StateRules, this: Option<&This>) {
    let derived = this.map(|this| this.keys.sign(Purpose::Seed, b""));
    // An unusable snapshot is reported when it is restored.
    let stored = || read(rules, unix_ns()).ok().flatten()?.seed;
    if let Some(seed) = derived.or_else(stored) {
        use_seed(Seed::from_bytes(seed));
    }
}

/// The snapshots of a running process.
#[derive(Debug, Default)]
pub struct Snapshots {
    is_urgent: AtomicBool,
    latest: ArcSwap<Vec<u8>>,
    standing: Mutex<SnapshotStanding>,
}

/// Snapshots, for operators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotStanding {
    /// When the last one was written.
    pub written: Option<Instant>,
    /// Its size, in bytes.
    pub bytes: usize,
    /// How long it took to make and write it.
    pub took: Duration,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// The state that was restored at the start.
    pub restored: String,
}

impl Snapshots {
    /// Something has changed that must not wait: a ban, or a circuit breaker.
    pub fn hurry(&self) {
        self.is_urgent.store(true, Ordering::Relaxed);
    }

    /// Returns whether something must not wait, and forgets it.
    pub fn take_urgency(&self) -> bool {
        self.is_urgent.load(Ordering::Relaxed) && self.is_urgent.swap(false, Ordering::Relaxed)
    }

    /// Returns the latest snapshot, for peers; empty without one.
    pub fn latest(&self) -> Arc<Vec<u8>> {
        self.latest.load_full()
    }

    /// Keeps the latest snapshot for peers.
    pub fn keep(&self, bytes: Vec<u8>) {
        self.latest.store(Arc::new(bytes));
    }

    /// Returns the state for operators.
    pub fn standing(&self) -> SnapshotStanding {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the state for operators.
    pub fn note(&self, change: impl FnOnce(&mut SnapshotStanding)) {
        change(&mut self.standing.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::atomic::AtomicU32;

    use super::*;

    struct Scratch(StateRules);

    impl Scratch {
        fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let directory = std::env::temp_dir().join(format!("outrigger-saved-{}-{number}", std::process::id()));
            let _ = fs::remove_dir_all(&directory);
            let every = Duration::from_secs(1);
            Self(StateRules { directory, machine: "m1".to_owned(), every, max_bytes: 1 << 20, asks_peers: true })
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0.directory);
        }
    }

    const NOW: u64 = 1_800_000_000_000_000_000;

    fn saved() -> Saved {
        Saved { machine: "m1".to_owned(), unix_ns: NOW, seed: Some([7; 16]), ..Saved::default() }
    }

    #[test]
    fn a_snapshot_is_replaced_and_only_its_owner_can_read_it() {
        let Scratch(rules) = &Scratch::new();
        assert!(read(rules, NOW).unwrap().is_none(), "neither directory nor file");
        let first = write(rules, b"first").unwrap();
        // Left behind by a process that was killed.
        fs::write(rules.directory.join(UNFINISHED), "half").unwrap();
        let second = write(rules, &saved().encode()).unwrap();
        assert!(is_there(rules, second) && !is_there(rules, first));
        assert_eq!(read(rules, NOW).unwrap(), Some(saved()));
        let mode = |path: PathBuf| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(path(rules)), mode(rules.directory.clone())), (0o600, 0o700));
    }

    #[test]
    fn an_unfinished_file_that_is_a_link_is_not_followed() {
        let Scratch(rules) = &Scratch::new();
        write(rules, b"first").unwrap();
        let other = rules.directory.join("other");
        fs::write(&other, "other").unwrap();
        symlink(&other, rules.directory.join(UNFINISHED)).unwrap();
        write(rules, b"second").unwrap();
        assert_eq!(fs::read(other).unwrap(), b"other");
    }

    #[test]
    fn each_unusable_file_is_ignored_for_its_reason() {
        let Scratch(rules) = &Scratch::new();
        let mut kinds = Vec::new();
        let mut ignored = |rules: &StateRules| kinds.push(read(rules, NOW).unwrap_err().kind());
        let bytes = saved().encode();
        write(rules, &bytes[..bytes.len() - 1]).unwrap();
        ignored(rules);
        write(rules, b"other").unwrap();
        ignored(rules);
        write(rules, &Saved { machine: "m2".to_owned(), ..saved() }.encode()).unwrap();
        ignored(rules);
        write(rules, &Saved { unix_ns: NOW + 120_000_000_000, ..saved() }.encode()).unwrap();
        ignored(rules);
        write(rules, &bytes).unwrap();
        ignored(&StateRules { max_bytes: 20, ..rules.clone() });
        fs::remove_file(path(rules)).unwrap();
        fs::create_dir(path(rules)).unwrap();
        ignored(rules);
        assert!(write(rules, &bytes).is_err());
        assert!(!rules.directory.join(UNFINISHED).exists());
        assert_eq!(kinds, ["damaged", "not_a_snapshot", "other_machine", "future", "too_large", "unreadable"]);
    }
}
