//! The files of a spool: their names, and their lines other than entries.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use outrigger_policy::audit::{Class, Hash, Time};
use serde::{Deserialize, Serialize};

use crate::keys::{KeyError, PublicKeys, Signature};

/// Upper bound for a checkpoint's length, and the number of bytes read from a file's end to find it.
const CHECKPOINT: u64 = 16 * 1024;
/// Name of the file with the chain's id.
pub const CHAIN: &str = "CHAIN";
/// Name of the file that the writing process locks.
pub const LOCK: &str = "LOCK";
/// Name of the file with the signed ends of the chains.
pub const HEAD: &str = "HEAD";
/// Bytes of each of its two slots.
pub const HEAD_SLOT: usize = 4096;
/// How far an entry on disk may be ahead of the time in `HEAD`, in microseconds. The writer signs and syncs `HEAD`
/// before it writes an entry that would be further ahead. An entry that is further ahead therefore proves that `HEAD`
/// was replaced by an older one.
pub const HEAD_LAG_US: i64 = 250_000;
/// The largest number of an entry, as in PostgreSQL. A larger one, in a line or in the name of a file, was not written by this program.
pub const LARGEST_NUMBER: u64 = i64::MAX as u64;
/// Name of the file that records which entries PostgreSQL has.
pub const SHIPPED: &str = "SHIPPED";
/// Name of the file with the generated master key, used if no key is configured.
pub const MASTER_KEY: &str = "master.key";
/// Separates the message from the signature in a signed line.
pub const SIGNATURE: &str = ",\"signature\":";

/// A segment on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its file.
    pub path: PathBuf,
    /// Its class.
    pub class: Class,
    /// The number of its first entry.
    pub first: u64,
}

impl Segment {
    /// The segment of `class` that begins with entry `first`.
    pub fn new(directory: &Path, class: Class, first: u64) -> Self {
        Self { path: directory.join(format!("{}-{first:020}.jsonl", class.name())), class, first }
    }

    /// The file with the data keys that this segment was the first to use.
    pub fn keys(&self) -> PathBuf {
        self.path.with_extension("keys")
    }

    fn named(directory: &Path, name: &str) -> Option<Self> {
        let (class, first) = name.strip_suffix(".jsonl")?.rsplit_once('-')?;
        let (class, first) = (Class::named(class)?, number(first.as_bytes())?);
        let segment = Self::new(directory, class, first);
        (segment.path.file_name()?.to_str()? == name).then_some(segment)
    }
}

/// All segments of a spool, by class and in the order of their entries.
///
/// # Errors
/// The directory cannot be read.
pub fn segments(directory: &Path) -> io::Result<Vec<Segment>> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(directory)? {
        if let Some(segment) = file?.file_name().to_str().and_then(|name| Segment::named(directory, name)) {
            found.push(segment);
        }
    }
    found.sort_by_key(|segment| (segment.class, segment.first));
    Ok(found)
}

/// The last line of a segment, if it is a checkpoint. Does not verify its signature.
///
/// # Errors
/// The file cannot be read.
pub fn last_checkpoint(path: &Path) -> io::Result<Option<(Vec<u8>, Checkpoint)>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(CHECKPOINT)))?;
    let mut end = Vec::new();
    file.take(CHECKPOINT).read_to_end(&mut end)?;
    let Some(whole) = end.strip_suffix(b"\n") else { return Ok(None) };
    let line = whole.rsplit(|b| *b == b'\n').next().unwrap_or_default();
    Ok(serde_json::from_slice(line).ok().map(|checkpoint| (line.to_vec(), checkpoint)))
}

/// The number of an entry, from its digits.
pub fn number(digits: &[u8]) -> Option<u64> {
    let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (1..=LARGEST_NUMBER).contains(&number).then_some(number)
}

/// The number and time of an entry, without parsing the rest of its line; `None` if the line is not an entry.
pub fn number_and_time(line: &[u8]) -> Option<(u64, Time)> {
    let rest = line.strip_prefix(b"{\"seq\":")?;
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    let seq = number(&rest[..digits])?;
    let from = memchr::memmem::find(rest, b"\"time\":\"")? + b"\"time\":\"".len();
    let time = std::str::from_utf8(rest.get(from..from + 27)?).ok()?;
    Some((seq, Time(time.parse::<jiff::Timestamp>().ok()?.as_microsecond())))
}

/// Numbers and times of a class's entries after entry `after`. `segments` are those of the class, in order.
///
/// # Errors
/// A file cannot be read. Missing files are skipped: retention has removed them.
pub fn entries_behind(segments: &[Segment], after: u64) -> io::Result<Vec<(u64, Time)>> {
    let mut found = Vec::new();
    for (at, segment) in segments.iter().enumerate() {
        if segments.get(at + 1).is_some_and(|next| next.first <= after + 1) {
            continue;
        }
        let content = match std::fs::read(&segment.path) {
            Ok(content) => content,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        // Skips torn lines, which have no newline: they were never durable.
        let lines = content.split_inclusive(|b| *b == b'\n').filter_map(|line| line.strip_suffix(b"\n"));
        found.extend(lines.filter_map(number_and_time).filter(|(seq, _)| *seq > after));
    }
    Ok(found)
}

/// The first line of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Format version: 1.
    pub segment: u32,
    /// The chain.
    pub chain: String,
    /// Its class.
    pub class: String,
    /// The Machine that wrote it.
    pub machine: String,
    /// The number of the first entry.
    pub first: u64,
    /// The hash of the entry before it, in hex.
    pub prev: String,
    /// When it was created, RFC 3339.
    pub created: String,
}

/// The last line of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Format version: 1.
    pub checkpoint: u32,
    /// The chain.
    pub chain: String,
    /// Its class.
    pub class: String,
    /// The number of the first entry.
    pub first: u64,
    /// The number of the last entry; `first - 1` if there is none.
    pub last: u64,
    /// SHA-256 of the header's line.
    pub header: String,
    /// The hash of the last entry.
    pub hash: String,
    /// When it was written, RFC 3339.
    pub time: String,
    /// The ends of the other classes' chains at that time, by class.
    pub heads: BTreeMap<String, End>,
    /// The master key that signed it.
    pub key: String,
}

/// The content of `HEAD`: where each chain began and ended when it was signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heads {
    /// Format version: 1.
    pub head: u32,
    /// The chain.
    pub chain: String,
    /// The Machine that writes it.
    pub machine: String,
    /// Increases with every `HEAD`: the larger one is newer.
    pub number: u64,
    /// When it was signed, RFC 3339.
    pub time: String,
    /// The chains, by class.
    pub classes: BTreeMap<String, Span>,
    /// The program stopped in order: a checkpoint closes every segment.
    #[serde(default)]
    pub closed: bool,
    /// The master key that signed it.
    pub key: String,
}

impl Heads {
    /// Parses and verifies a `HEAD` that was kept elsewhere.
    ///
    /// # Errors
    /// It is invalid, its key is unknown, or it was changed.
    pub fn verified(line: &[u8], public: &PublicKeys) -> Result<Self, KeyError> {
        let heads: Self = serde_json::from_slice(line).map_err(|_| KeyError::Wrong("?".to_owned()))?;
        verify(line, &heads.key, public).map(|()| heads)
    }

    /// When it was signed; `None` if the time cannot be parsed.
    pub fn signed_at(&self) -> Option<Time> {
        self.time.parse::<jiff::Timestamp>().ok().map(|time| Time(time.as_microsecond()))
    }

    /// Whether it may have been signed after `older` by a writer that continued from there.
    pub fn is_ahead_of(&self, older: &Self) -> bool {
        self.number > older.number && Class::ALL.into_iter().all(|class| self.last(class) >= older.last(class))
    }

    /// The ends of the chains: class, number, hash.
    pub fn ends(&self) -> impl Iterator<Item = (Class, u64, Hash)> {
        let end = |(class, span): (&String, &Span)| {
            Some((Class::named(class)?, span.last, outrigger_policy::audit::unhex(span.hash.as_bytes())?))
        };
        self.classes.iter().filter_map(end).filter(|(_, last, _)| *last > 0)
    }

    /// The number of a class's last entry.
    pub fn last(&self, class: Class) -> u64 {
        self.classes.get(class.name()).map_or(0, |span| span.last)
    }

    /// The last of `tail` that is later than a crash can explain, if any. `tail` are entries of one class after its
    /// end.
    pub fn overrun(&self, class: Class, tail: &[(u64, Time)]) -> Option<(u64, Time)> {
        let (last, latest) = (self.last(class), self.signed_at()?.0.saturating_add(HEAD_LAG_US));
        tail.iter().copied().filter(|(seq, time)| *seq > last && time.0 > latest).max_by_key(|(seq, _)| *seq)
    }
}

/// The end of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The number of the last entry.
    pub last: u64,
    /// Its hash, in hex.
    pub hash: String,
}

/// The extent of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The number of the first entry kept here; earlier ones were removed.
    pub first: u64,
    /// The number of the last entry.
    pub last: u64,
    /// Its hash, in hex.
    pub hash: String,
}

/// Serialises `value`, a JSON object whose last member is `key`, as a signed line without the newline.
pub fn sign(value: &impl Serialize, keys: &crate::keys::MasterKeys) -> Vec<u8> {
    // Serialising strings and numbers cannot fail.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    // The signature is inserted before the closing brace.
    line.pop();
    let signature = keys.sign(&line);
    line.extend_from_slice(SIGNATURE.as_bytes());
    line.push(b'"');
    line.extend_from_slice(signature.signature.as_bytes());
    line.extend_from_slice(b"\"}");
    line
}

/// The newest `HEAD` of a directory with a valid signature: its line and its content. `None` if neither slot is
/// valid.
///
/// # Errors
/// The file cannot be read.
pub fn newest_head(directory: &Path, public: &PublicKeys) -> io::Result<Option<(String, Heads)>> {
    let content = std::fs::read(directory.join(HEAD))?;
    let slot = |slot: &[u8]| {
        let line = slot.trim_ascii_end();
        let heads: Heads = serde_json::from_slice(line).ok()?;
        verify(line, &heads.key, public).ok()?;
        Some((String::from_utf8(line.to_vec()).ok()?, heads))
    };
    Ok(content.chunks(HEAD_SLOT).filter_map(slot).max_by_key(|(_, heads)| heads.number))
}

/// A signed line without its signature; empty if it has none.
pub fn unsigned(line: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(line);
    text.rsplit_once(SIGNATURE).map_or_else(Vec::new, |(message, _)| format!("{message}}}").into_bytes())
}

/// Verifies a line that [`sign`] wrote.
///
/// # Errors
/// The key is unknown, or the line was changed.
pub fn verify(line: &[u8], key: &str, public: &PublicKeys) -> Result<(), KeyError> {
    let wrong = || KeyError::Wrong(key.to_owned());
    let text = std::str::from_utf8(line).map_err(|_| wrong())?;
    let (message, signature) = text.rsplit_once(SIGNATURE).ok_or_else(wrong)?;
    let signature = signature.strip_prefix('"').and_then(|s| s.strip_suffix("\"}")).ok_or_else(wrong)?;
    public.verify(message.as_bytes(), &Signature { key: key.to_owned(), signature: signature.to_owned() })
}

/// The content of `SHIPPED`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shipped {
    /// The number of the last entry that PostgreSQL has, by class.
    #[serde(default)]
    pub through: BTreeMap<String, u64>,
    /// The last erasure received from PostgreSQL.
    #[serde(default)]
    pub erasures: u64,
}
