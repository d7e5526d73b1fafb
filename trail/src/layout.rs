//! The files of a spool: their names, and the lines in them that are no entries.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use outrigger_policy::audit::Class;
use serde::{Deserialize, Serialize};

use crate::keys::{KeyError, PublicKeys, Signature};

/// The name of the file with the chain's id.
pub const CHAIN: &str = "CHAIN";
/// The name of the file that whoever writes has locked.
pub const LOCK: &str = "LOCK";
/// The name of the file that vouches for the ends of the chains.
pub const HEAD: &str = "HEAD";
/// Bytes of each of its two slots.
pub const HEAD_SLOT: usize = 4096;
/// The name of the file that says what the app has.
pub const SHIPPED: &str = "SHIPPED";
/// The name of the master key that is made when none is given.
pub const MASTER_KEY: &str = "master.key";
/// What stands before a signature in a signed line.
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

    /// The file with the data keys that it was the first to use.
    pub fn keys(&self) -> PathBuf {
        self.path.with_extension("keys")
    }

    fn named(directory: &Path, name: &str) -> Option<Self> {
        let (class, first) = name.strip_suffix(".jsonl")?.rsplit_once('-')?;
        let (class, first) = (Class::named(class)?, first.parse().ok()?);
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

/// The first line of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The version of the format: 1.
    pub segment: u32,
    /// The chain.
    pub chain: String,
    /// Its class.
    pub class: String,
    /// Where it was written.
    pub machine: String,
    /// The number of the first entry.
    pub first: u64,
    /// The hash of the entry before it, in hexadecimal.
    pub prev: String,
    /// When, RFC 3339.
    pub created: String,
}

/// The last line of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The version of the format: 1.
    pub checkpoint: u32,
    /// The chain.
    pub chain: String,
    /// Its class.
    pub class: String,
    /// The number of the first entry.
    pub first: u64,
    /// The number of the last one; one less than `first` when there is none.
    pub last: u64,
    /// SHA-256 of the header's line.
    pub header: String,
    /// The hash of the last entry.
    pub hash: String,
    /// When, RFC 3339.
    pub time: String,
    /// The ends of the other classes' chains then, by class.
    pub heads: BTreeMap<String, End>,
    /// The master key.
    pub key: String,
}

/// What the file `HEAD` says: where each chain began and ended a moment ago.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heads {
    /// The version of the format: 1.
    pub head: u32,
    /// The chain.
    pub chain: String,
    /// Where it is written.
    pub machine: String,
    /// Counts up: the larger is the newer.
    pub number: u64,
    /// When, RFC 3339.
    pub time: String,
    /// By class.
    pub classes: BTreeMap<String, Span>,
    /// The program has ended in order: every segment is closed by a checkpoint.
    #[serde(default)]
    pub closed: bool,
    /// The master key.
    pub key: String,
}

/// The end of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The number of the last entry.
    pub last: u64,
    /// Its hash, in hexadecimal.
    pub hash: String,
}

/// What there is of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The number of the first entry that is kept here: those before it are dropped.
    pub first: u64,
    /// The number of the last entry.
    pub last: u64,
    /// Its hash, in hexadecimal.
    pub hash: String,
}

/// Writes `value`, a JSON object whose last member is `key`, as a signed line, without the newline.
pub fn sign(value: &impl Serialize, keys: &crate::keys::MasterKeys) -> Vec<u8> {
    // Structures of text and numbers: writing them as JSON does not fail.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    // The closing brace comes after the signature.
    line.pop();
    let signature = keys.sign(&line);
    line.extend_from_slice(SIGNATURE.as_bytes());
    line.push(b'"');
    line.extend_from_slice(signature.signature.as_bytes());
    line.extend_from_slice(b"\"}");
    line
}

/// A signed line as it was before it was signed; empty when it is none.
pub fn unsigned(line: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(line);
    text.rsplit_once(SIGNATURE).map_or_else(Vec::new, |(message, _)| format!("{message}}}").into_bytes())
}

/// Whether a line that [`sign`] has written is as it was.
///
/// # Errors
/// The key is unknown, or it was changed.
pub fn verify(line: &[u8], key: &str, public: &PublicKeys) -> Result<(), KeyError> {
    let wrong = || KeyError::Wrong(key.to_owned());
    let text = std::str::from_utf8(line).map_err(|_| wrong())?;
    let (message, signature) = text.rsplit_once(SIGNATURE).ok_or_else(wrong)?;
    let signature = signature.strip_prefix('"').and_then(|s| s.strip_suffix("\"}")).ok_or_else(wrong)?;
    public.verify(message.as_bytes(), &Signature { key: key.to_owned(), signature: signature.to_owned() })
}

/// What the file `SHIPPED` says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shipped {
    /// The number of the last entry that the app has, by class.
    #[serde(default)]
    pub through: BTreeMap<String, u64>,
    /// The last erasure that was heard of.
    #[serde(default)]
    pub erasures: u64,
}
