//! Reads the entries of a spool while it is written, each only once it is verified: it continues the chain, and the chain
//! leads to an end that is signed, in the segment's checkpoint or in `HEAD`.
//!
//! A reader needs the public keys only. It holds one segment in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use outrigger_policy::audit::{Class, Hash, unhex};

use crate::keys::PublicKeys;
use crate::layout::{self, Checkpoint, Header, Heads, Segment};
use crate::spool::{hex, sha256};

/// How far a reader has come: `CHAIN/CLASS:NUMBER,…`. Classes without a number have not been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The chain.
    pub chain: String,
    /// The last entry read of each class.
    pub through: BTreeMap<Class, u64>,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let classes: Vec<_> = self.through.iter().map(|(class, last)| format!("{}:{last}", class.name())).collect();
        write!(f, "{}/{}", self.chain, classes.join(","))
    }
}

/// The text is not a position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write CHAIN/CLASS:NUMBER,…, such as 88024b8d858817c5/data:17,security:3")]
pub struct NoPosition;

impl FromStr for Position {
    type Err = NoPosition;

    fn from_str(text: &str) -> Result<Self, NoPosition> {
        let (chain, classes) = text.trim().split_once('/').ok_or(NoPosition)?;
        if chain.len() != 16 || !chain.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(NoPosition);
        }
        let of = |part: &str| {
            let (class, last) = part.split_once(':')?;
            Some((Class::named(class)?, last.parse().ok()?))
        };
        let through: Option<_> = classes.split(',').filter(|part| !part.is_empty()).map(of).collect();
        Ok(Self { chain: chain.to_owned(), through: through.ok_or(NoPosition)? })
    }
}

/// Why nothing more can be read.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// A file cannot be read.
    #[error("{}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// `HEAD` has no valid signature.
    #[error("{}: HEAD is not signed by a key of the audit log; is OUTRIGGER_AUDIT_KEYS that of the proxy?", .0.display())]
    Head(PathBuf),
    /// The position belongs to another directory.
    #[error(
        "the position is in chain {given}, but this is {here}: name the directory that it is of, or begin anew without it"
    )]
    OtherChain {
        /// The chain of the position.
        given: String,
        /// The chain of the directory.
        here: String,
    },
    /// The chain is shorter than the position.
    #[error("{class}: entry {through} was read before, but HEAD ends at {last}: an earlier state was restored; `outrigger audit verify`", class = class.name())]
    RolledBack {
        /// The class.
        class: Class,
        /// The position.
        through: u64,
        /// Where it ends.
        last: u64,
    },
    /// An entry does not verify.
    #[error("{}: {problem}; nothing from there on is passed on: `outrigger audit verify`", .path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// The problem.
        problem: String,
    },
}

/// Verified entries of one class, in order.
#[derive(Debug)]
pub struct Batch {
    /// The class.
    pub class: Class,
    /// Whole lines, exactly as in the spool.
    pub lines: Vec<u8>,
    /// The number of the last one.
    pub through: u64,
    /// The first and the last number of entries that were deleted before they were read.
    pub missed: Option<(u64, u64)>,
}

/// A reader of a spool.
#[derive(Debug)]
pub struct Follower {
    directory: PathBuf,
    keys: PublicKeys,
    /// The chain.
    pub chain: String,
    cursors: BTreeMap<Class, Cursor>,
    /// Of a class that is not followed any more.
    broken: Option<FollowError>,
}

#[derive(Debug, Default)]
struct Cursor {
    through: u64,
    /// Entries before this reader's first one are not missed.
    has_begun: bool,
    /// An entry does not verify: there are no more.
    is_broken: bool,
    at: Option<At>,
}

/// A place in a segment, after entry `through`.
#[derive(Clone, Copy, Debug)]
struct At {
    first: u64,
    offset: u64,
    /// The hash of entry `through`, and that of the segment's header.
    hash: Hash,
    header: Hash,
}

impl Follower {
    /// Begins after a position, or with the first entries that there are.
    ///
    /// # Errors
    /// There is no audit log, or the position is of another one.
    pub fn new(
        directory: &Path,
        keys: PublicKeys,
        classes: &[Class],
        since: Option<&Position>,
    ) -> Result<Self, FollowError> {
        let heads = heads(directory, &keys)?;
        if let Some(since) = since.filter(|since| since.chain != heads.chain) {
            return Err(FollowError::OtherChain { given: since.chain.clone(), here: heads.chain });
        }
        let cursor = |class: &Class| {
            let through = since.and_then(|since| since.through.get(class)).copied();
            (*class, Cursor { through: through.unwrap_or_default(), has_begun: through.is_some(), ..Cursor::default() })
        };
        let cursors = classes.iter().map(cursor).collect();
        Ok(Self { directory: directory.to_owned(), keys, chain: heads.chain, cursors, broken: None })
    }

    /// How far this reader has come.
    pub fn position(&self) -> Position {
        let through = self.cursors.iter().filter(|(_, cursor)| cursor.has_begun);
        Position {
            chain: self.chain.clone(),
            through: through.map(|(class, cursor)| (*class, cursor.through)).collect(),
        }
    }

    /// Skips all entries that are signed now.
    ///
    /// # Errors
    /// `HEAD` cannot be read.
    pub fn skip(&mut self) -> Result<(), FollowError> {
        let heads = heads(&self.directory, &self.keys)?;
        for (class, cursor) in &mut self.cursors {
            *cursor = Cursor { through: heads.last(*class), has_begun: true, ..Cursor::default() };
        }
        Ok(())
    }

    /// Returns the next verified entries: of each class, those of one segment. Empty if there are none now.
    ///
    /// # Errors
    /// An entry does not verify, or a file cannot be read. The other classes are returned first, up to their ends.
    pub fn look(&mut self) -> Result<Vec<Batch>, FollowError> {
        // In this order: entries that `HEAD` names were on disk before it.
        let heads = heads(&self.directory, &self.keys)?;
        if heads.chain != self.chain {
            return Err(FollowError::OtherChain { given: self.chain.clone(), here: heads.chain });
        }
        let read = |source| FollowError::Read { path: self.directory.clone(), source };
        let segments = layout::segments(&self.directory).map_err(read)?;
        let mut batches = Vec::new();
        for (class, cursor) in &mut self.cursors {
            let of_class: Vec<&Segment> = segments.iter().filter(|segment| segment.class == *class).collect();
            match cursor.next(*class, &of_class, &heads, &self.keys) {
                Ok(batch) => batches.extend(batch),
                Err(error) => {
                    cursor.is_broken = true;
                    self.broken.get_or_insert(error);
                }
            }
        }
        match self.broken.take_if(|_| batches.is_empty()) {
            Some(error) => Err(error),
            None => Ok(batches),
        }
    }
}

fn heads(directory: &Path, keys: &PublicKeys) -> Result<Heads, FollowError> {
    let read = |source| FollowError::Read { path: directory.join(layout::HEAD), source };
    let newest = layout::newest_head(directory, keys).map_err(read)?;
    newest.map(|(_, heads)| heads).ok_or_else(|| FollowError::Head(directory.to_owned()))
}

impl Cursor {
    fn next(
        &mut self,
        class: Class,
        segments: &[&Segment],
        heads: &Heads,
        keys: &PublicKeys,
    ) -> Result<Option<Batch>, FollowError> {
        if self.is_broken {
            return Ok(None);
        }
        let (before, last) = (self.through, heads.last(class));
        if last < before {
            return Err(FollowError::RolledBack { class, through: before, last });
        }
        if last == before {
            self.has_begun = true;
            return Ok(None);
        }
        let segment = match segments.iter().rposition(|segment| segment.first <= before + 1) {
            Some(at) => segments.get(at),
            None => segments.first(),
        };
        let missed = segment.map_or(last, |segment| segment.first.saturating_sub(1));
        let missed = (missed > before).then_some((before + 1, missed));
        if let Some((_, to)) = missed {
            (self.through, self.at) = (to, None);
        }
        let lines = match segment {
            // Nothing in it is signed yet if all before it was deleted.
            Some(segment) if self.through < last => self.read(segment, heads, keys)?,
            _ => Vec::new(),
        };
        let missed = missed.filter(|_| std::mem::replace(&mut self.has_begun, true));
        Ok(Some(Batch { class, lines, through: self.through, missed }))
    }

    /// Reads the lines of a segment after `through`, up to its checkpoint or the end that `HEAD` signs.
    fn read(&mut self, segment: &Segment, heads: &Heads, keys: &PublicKeys) -> Result<Vec<u8>, FollowError> {
        let known = self.at;
        let here = known.filter(|at| at.first == segment.first);
        let content = match read_from(&segment.path, here.map_or(0, |at| at.offset)) {
            Ok(content) => content,
            // Deleted just now: the next look tells what was missed.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(FollowError::Read { path: segment.path.clone(), source }),
        };
        let broken = |problem: String| FollowError::Broken { path: segment.path.clone(), problem };
        let span = heads.classes.get(segment.class.name());
        let end = span.and_then(|span| Some((span.last, unhex(span.hash.as_bytes())?)));
        let (last, end_hash) = end.ok_or_else(|| broken("HEAD does not name its end".to_owned()))?;
        let mut at = here;
        // While the entries of the segment that were read before are walked again.
        let mut number = here.map_or(segment.first.saturating_sub(1), |_| self.through);
        let (mut lines, mut is_signed) = (Vec::new(), false);
        for line in content.split_inclusive(|b| *b == b'\n') {
            let Some(text) = line.strip_suffix(b"\n") else { break };
            let Some(place) = &mut at else {
                at = Some(
                    first_line(text, segment, &heads.chain, known.filter(|_| self.through + 1 == segment.first))
                        .map_err(broken)?,
                );
                continue;
            };
            if text.starts_with(b"{\"checkpoint\":") {
                checkpoint(text, segment, &heads.chain, number, place, keys).map_err(broken)?;
                place.offset += line.len() as u64;
                is_signed = true;
                break;
            }
            if number >= last {
                break;
            }
            let (start, tail) = (format!("{{\"seq\":{},", number + 1), format!(",\"prev\":\"{}\"}}", hex(&place.hash)));
            if !text.starts_with(start.as_bytes()) || !text.ends_with(tail.as_bytes()) {
                return Err(broken(format!("entry {} is not what was written after entry {number}", number + 1)));
            }
            number += 1;
            (place.hash, place.offset) = (sha256(text), place.offset + line.len() as u64);
            if number > self.through {
                lines.extend_from_slice(line);
            }
            if number == last {
                if place.hash != end_hash {
                    return Err(broken(format!("entry {number} is not the one that HEAD signs")));
                }
                is_signed = true;
            }
        }
        if !is_signed {
            return Err(broken(format!("it ends at entry {number} without a checkpoint, and HEAD ends at {last}")));
        }
        (self.through, self.at) = (number.max(self.through), at);
        Ok(lines)
    }
}

fn first_line(line: &[u8], segment: &Segment, chain: &str, before: Option<At>) -> Result<At, String> {
    let header: Header = serde_json::from_slice(line).map_err(|e| format!("its header cannot be read: {e}"))?;
    let hash = unhex(header.prev.as_bytes()).ok_or("its header has no hash")?;
    if header.chain != chain || header.class != segment.class.name() || header.first != segment.first {
        return Err("its header is that of another segment".to_owned());
    }
    if before.is_some_and(|before| before.hash != hash) {
        return Err("it does not continue the segment before it".to_owned());
    }
    Ok(At { first: segment.first, offset: line.len() as u64 + 1, hash, header: sha256(line) })
}

fn checkpoint(
    line: &[u8],
    segment: &Segment,
    chain: &str,
    number: u64,
    at: &At,
    keys: &PublicKeys,
) -> Result<(), String> {
    let read: Checkpoint = serde_json::from_slice(line).map_err(|e| format!("its checkpoint cannot be read: {e}"))?;
    layout::verify(line, &read.key, keys).map_err(|e| format!("its checkpoint does not verify: {e}"))?;
    let is_of_it = read.chain == chain && read.class == segment.class.name() && read.first == segment.first;
    let is_here = read.last == number && read.hash == hex(&at.hash) && read.header == hex(&at.header);
    (is_of_it && is_here).then_some(()).ok_or_else(|| "its checkpoint is about other entries".to_owned())
}

fn read_from(path: &Path, offset: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_is_written() {
        let text = "88024b8d858817c5/security:3,data:17";
        let position: Position = text.parse().unwrap();
        assert_eq!((position.to_string().as_str(), position.through[&Class::Data]), (text, 17));
        assert_eq!("88024b8d858817c5/".parse::<Position>().unwrap().through.len(), 0);
        for bad in ["", "88024b8d858817c5", "x/data:1", "88024b8d858817c5/dat:1", "88024b8d858817c5/data:x"] {
            assert_eq!(bad.parse::<Position>(), Err(NoPosition), "{bad}");
        }
    }
}
