//! The files of a spool, as its writer uses them.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

use outrigger_policy::audit::{Class, Head, Time};
use ring::rand::{SecureRandom, SystemRandom};

use super::{SpoolError, at, hex, sha256};
use crate::entry::Entry;
use crate::keys::{MasterKeys, PublicKeys, WrappedKey};
use crate::layout::{self, Checkpoint, End, Header, Segment, Shipped};

/// Enough for the longest entry and a checkpoint.
const END_BYTES: u64 = 256 << 10;

/// An open segment.
#[derive(Debug)]
pub struct Open {
    pub segment: Segment,
    file: File,
    /// Its durable length in bytes.
    pub length: u64,
    /// Size of its data keys in bytes.
    pub keys_length: u64,
    header: [u8; 32],
    pub created: Time,
}

impl Open {
    /// Creates the segment after `committed`.
    pub fn create(
        directory: &Path,
        class: Class,
        chain: &str,
        machine: &str,
        committed: &Head,
        now: Time,
    ) -> Result<Self, SpoolError> {
        let segment = Segment::new(directory, class, committed.last + 1);
        let header = Header {
            segment: 1,
            chain: chain.to_owned(),
            class: class.name().to_owned(),
            machine: machine.to_owned(),
            first: segment.first,
            prev: hex(&committed.hash),
            created: now.to_string(),
        };
        // Serialising strings and numbers cannot fail.
        let mut line = serde_json::to_vec(&header).unwrap_or_default();
        let hash = sha256(&line);
        line.push(b'\n');
        let file = open_private(&segment.path)?;
        if has_entries(&file).map_err(at(&segment.path))? {
            let problem = "has entries that are not part of the chain: move it away";
            return Err(SpoolError::Broken { path: segment.path, problem });
        }
        // Truncates what an earlier attempt left, such as one on a full disk: it was never durable.
        let mut open = Self { segment, file, length: 0, keys_length: 0, header: hash, created: now };
        open.file.set_len(0).map_err(at(&open.segment.path))?;
        remove(&open.segment.keys())?;
        open.write(&line)?;
        sync_directory(directory)?;
        Ok(open)
    }

    /// Continues a segment that a crash left open.
    pub fn reopen(segment: Segment, length: u64, header: [u8; 32], created: Time) -> Result<Self, SpoolError> {
        let file = open_private(&segment.path)?;
        file.set_len(length).and_then(|()| file.sync_data()).map_err(at(&segment.path))?;
        let keys_length = size(&segment.keys());
        Ok(Self { segment, file, length, keys_length, header, created })
    }

    /// Writes `lines` after the durable ones and syncs them; truncates them again if that fails.
    pub fn write(&mut self, lines: &[u8]) -> Result<(), SpoolError> {
        let written = self.file.write_all_at(lines, self.length).and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // If this fails too, the next write overwrites them, and a restart truncates them.
            let _ = self.file.set_len(self.length);
            return Err(at(&self.segment.path)(source));
        }
        self.length += lines.len() as u64;
        Ok(())
    }

    /// Appends data keys to the segment's key file; they are durable when this returns.
    pub fn write_keys(&mut self, lines: &[u8]) -> Result<(), SpoolError> {
        let path = self.segment.keys();
        let is_new = !path.exists();
        let file = open_private(&path)?;
        let end = file.metadata().map_err(at(&path))?.len();
        if let Err(source) = file.write_all_at(lines, end).and_then(|()| file.sync_data()) {
            let _ = file.set_len(end);
            return Err(at(&path)(source));
        }
        self.keys_length = end + lines.len() as u64;
        if is_new { sync_directory(path.parent().unwrap_or(Path::new("."))) } else { Ok(()) }
    }

    pub fn write_checkpoint(
        &mut self,
        chain: &str,
        last: &Head,
        heads: &BTreeMap<String, End>,
        keys: &MasterKeys,
        now: Time,
    ) -> Result<(), SpoolError> {
        let checkpoint = Checkpoint {
            checkpoint: 1,
            chain: chain.to_owned(),
            class: self.segment.class.name().to_owned(),
            first: self.segment.first,
            last: last.last,
            header: hex(&self.header),
            hash: hex(&last.hash),
            time: now.to_string(),
            heads: heads.clone(),
            key: keys.current_id().to_owned(),
        };
        let mut line = layout::sign(&checkpoint, keys);
        line.push(b'\n');
        self.write(&line)
    }

    /// Whether its file was removed or replaced.
    pub fn is_gone(&self) -> bool {
        is_another(&self.file, &self.segment.path)
    }
}

/// Whether `path` is a different file than `file`.
pub fn is_another(file: &File, path: &Path) -> bool {
    let here = file.metadata().map(|file| (file.dev(), file.ino()));
    let there = fs::metadata(path).map(|file| (file.dev(), file.ino()));
    !matches!((here, there), (Ok(here), Ok(there)) if here == there)
}

/// Whether a segment has an entry after its header.
fn has_entries(file: &File) -> io::Result<bool> {
    let mut begin = vec![0; 64 << 10];
    let read = file.read_at(&mut begin, 0)?;
    Ok(memchr::memmem::find(&begin[..read], b"\n{\"seq\":").is_some())
}

/// Size of a file in bytes; 0 if it does not exist.
pub fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

pub fn make_private(directory: &Path) -> Result<(), SpoolError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(at(directory))
}

/// Opens a file for reading and writing; creates it, readable by its owner only, if needed.
pub fn open_private(path: &Path) -> Result<File, SpoolError> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map_err(at(path))
}

pub fn sync_directory(directory: &Path) -> Result<(), SpoolError> {
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(at(directory))
}

/// Writes a file atomically.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), SpoolError> {
    let beside = path.with_extension("new");
    let file = open_private(&beside)?;
    file.set_len(0)
        .and_then(|()| file.write_all_at(content, 0))
        .and_then(|()| file.sync_data())
        .map_err(at(&beside))?;
    fs::rename(&beside, path).map_err(at(path))?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}

pub fn remove(path: &Path) -> Result<(), SpoolError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at(path)(e)),
        _ => Ok(()),
    }
}

pub fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).and_then(|file| file.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Reads the chain's id, or creates one.
pub fn chain_id(directory: &Path) -> Result<String, SpoolError> {
    let path = directory.join(layout::CHAIN);
    match fs::read_to_string(&path) {
        Ok(text) => {
            let id = text.trim_end();
            let is_id = id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit());
            let problem = "is not the id of a chain: restore it from a copy, or move the directory away";
            if is_id { Ok(id.to_owned()) } else { Err(SpoolError::Broken { path, problem }) }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let mut id = [0; 8];
            let filled = SystemRandom::new().fill(&mut id);
            filled.map_err(|_| at(&path)(io::Error::other("the system provides no random bytes")))?;
            let id = hex(&id);
            replace(&path, format!("{id}\n").as_bytes())?;
            Ok(id)
        }
        Err(e) => Err(at(&path)(e)),
    }
}

/// The entries that PostgreSQL has. If the file is invalid, it is asked, which knows them.
pub fn shipped(directory: &Path) -> Result<Shipped, SpoolError> {
    let path = directory.join(layout::SHIPPED);
    match fs::read(&path) {
        Ok(text) => Ok(serde_json::from_slice(&text).unwrap_or_default()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Shipped::default()),
        Err(e) => Err(at(&path)(e)),
    }
}

pub fn write_shipped(directory: &Path, shipped: &Shipped) -> Result<(), SpoolError> {
    replace(&directory.join(layout::SHIPPED), &serde_json::to_vec(shipped).unwrap_or_default())
}

/// Time of the last entry of a closed segment; `None` unless a valid checkpoint covers that entry.
pub fn vouched_time(path: &Path, public: &PublicKeys) -> Result<Option<Time>, SpoolError> {
    let mut file = File::open(path).map_err(at(path))?;
    let length = file.metadata().map_err(at(path))?.len();
    let mut end = Vec::new();
    file.seek(SeekFrom::Start(length.saturating_sub(END_BYTES)))
        .and_then(|_| file.read_to_end(&mut end))
        .map_err(at(path))?;
    let mut lines = end.strip_suffix(b"\n").unwrap_or(&end).rsplit(|b| *b == b'\n');
    let (Some(checkpoint), Some(entry)) = (lines.next(), lines.next()) else { return Ok(None) };
    let Ok(vouched) = serde_json::from_slice::<Checkpoint>(&layout::unsigned(checkpoint)) else { return Ok(None) };
    if vouched.hash != hex(&sha256(entry)) || layout::verify(checkpoint, &vouched.key, public).is_err() {
        return Ok(None);
    }
    let time = Entry::parse(entry).ok().and_then(|entry| entry.time.parse::<jiff::Timestamp>().ok());
    Ok(time.map(|time| Time(time.as_microsecond())))
}

/// Destroys the keys of `subjects` in a key file.
pub fn forget(path: &Path, subjects: &[String]) -> Result<usize, SpoolError> {
    let mut file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(at(path)(e)),
    };
    let mut content = Vec::new();
    file.read_to_end(&mut content).map_err(at(path))?;
    let destroyed = blank_keys(&mut content, subjects);
    if destroyed > 0 {
        // In place, since a new file would leave the old one's blocks on disk.
        file.write_all_at(&content, 0).and_then(|()| file.sync_data()).map_err(at(path))?;
    }
    Ok(destroyed)
}

/// Number of keys of `subjects` in a key file; 0 if it does not exist.
pub fn count_keys(path: &Path, subjects: &[String]) -> Result<usize, SpoolError> {
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(at(path)(e)),
    };
    let keys = content.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice::<WrappedKey>(line).ok());
    Ok(keys.filter(|key| subjects.contains(&key.subject)).count())
}

/// Overwrites the keys of `subjects` with spaces.
pub fn blank_keys(lines: &mut [u8], subjects: &[String]) -> usize {
    let mut destroyed = 0;
    for line in lines.split_mut(|b| *b == b'\n') {
        let key = serde_json::from_slice::<WrappedKey>(line);
        if key.is_ok_and(|key| subjects.contains(&key.subject)) {
            line.fill(b' ');
            destroyed += 1;
        }
    }
    destroyed
}
