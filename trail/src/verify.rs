//! Verifies an audit log: finds entries that were removed, added, moved or changed, and explains what that means.
//!
//! Signatures cover unsigned data: `HEAD` signs the end of each chain, each checkpoint its segment and the ends of
//! the other chains at that time, and each entry's `prev` is the hash of the previous entry. Without the key, nothing
//! before the last signature can be changed without a contradiction. Entries after it, at most those written shortly
//! before a crash, are chained but not signed yet; they are reported as a note, as is a torn line there.
//!
//! A program may append entries meanwhile: `HEAD` is read first and is never ahead of the files, so all entries that
//! it names exist, and newer ones are not missed. Entries are not parsed: their number and hash are at fixed places
//! of the line.
//!
//! Read in this order: `verify/walk.rs` (one chain, entry by entry), `verify/spool.rs` (a directory), [`rows`]
//! (PostgreSQL).

mod heads;
pub mod rows;
mod spool;
mod walk;

use std::fmt;
use std::io;
use std::path::PathBuf;

use outrigger_policy::audit::Class;

use crate::keys::KeyError;
pub use spool::spool;
pub use walk::Claim;

/// Maximum number of listed problems; more are only counted.
pub const MOST_PROBLEMS: usize = 1000;

/// Why an audit log cannot be verified at all.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// There is no audit log.
    #[error(
        "{} has no audit log: no CHAIN, no HEAD, no segment; either none was ever written there, or all of it was removed", .0.display()
    )]
    Nothing(PathBuf),
    /// A file cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// The result of a verification.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// The chain's id; empty if it is unknown.
    pub chain: String,
    /// The chains, by class.
    pub classes: Vec<Found>,
    /// Problems, at most [`MOST_PROBLEMS`].
    pub problems: Vec<Problem>,
    /// Number of problems that are not listed.
    pub unlisted: u64,
    /// Observations that are not problems.
    pub notes: Vec<String>,
}

/// The state of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its class.
    pub class: Class,
    /// Number of entries read.
    pub entries: u64,
    /// The number of the first entry.
    pub first: u64,
    /// The number of the last entry; `first - 1` if there is none.
    pub last: u64,
    /// Its hash; `None` if its line is not an entry.
    pub hash: Option<outrigger_policy::audit::Hash>,
    /// Signatures cover all entries up to this number, including missing ones.
    pub vouched: u64,
    /// Number of its problems.
    pub problems: u64,
}

impl Findings {
    /// Whether no problem was found.
    pub fn is_whole(&self) -> bool {
        self.problems.is_empty()
    }

    /// Number of entries read.
    pub fn entries(&self) -> u64 {
        self.classes.iter().map(|class| class.entries).sum()
    }

    /// Adds a problem.
    pub fn add(&mut self, place: Place, wrong: Wrong) {
        if self.problems.len() < MOST_PROBLEMS {
            self.problems.push(Problem { place, wrong });
        } else {
            self.unlisted += 1;
        }
    }

    /// Number of problems, listed or not.
    pub fn count(&self) -> u64 {
        self.problems.len() as u64 + self.unlisted
    }
}

/// A problem and its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The position.
    pub place: Place,
    /// The problem.
    pub wrong: Wrong,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.wrong)
    }
}

/// Position of a problem.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The file's name in the directory, or the table.
    pub file: Option<String>,
    /// Line number, from 1.
    pub line: Option<u64>,
    /// The chain's class.
    pub class: Option<Class>,
    /// The entry's number.
    pub entry: Option<u64>,
}

impl Place {
    /// A file or table.
    pub fn file(name: &str) -> Self {
        Self { file: Some(name.to_owned()), ..Self::default() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        if let Some(file) = &self.file {
            f.write_str(file)?;
            if let Some(line) = self.line {
                write!(f, ":{line}")?;
            }
            between = ", ";
        }
        match (self.class, self.entry) {
            (Some(class), Some(entry)) => write!(f, "{between}{} entry {entry}", class.name()),
            (Some(class), None) if self.file.is_none() => f.write_str(class.name()),
            _ => Ok(()),
        }
    }
}

/// Kinds of problems.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// `CHAIN` is missing or invalid.
    #[error("does not have the chain's id: {0}")]
    Chain(&'static str),
    /// `HEAD` is missing.
    #[error("is missing")]
    NoHead,
    /// A slot of `HEAD` is invalid.
    #[error("slot {slot} {problem}")]
    Slot {
        /// 1 or 2.
        slot: usize,
        /// The problem.
        problem: String,
    },
    /// The slots of `HEAD` are not consecutive.
    #[error("its slots are {0} and {1}, which do not follow each other")]
    Apart(u64, u64),
    /// A header is invalid.
    #[error("the header {0}")]
    Header(String),
    /// A line is neither an entry nor a checkpoint.
    #[error("is not an entry: {0}")]
    Unreadable(&'static str),
    /// Entries are missing.
    #[error("{} missing", Missing(*.from, *.to))]
    Missing {
        /// The first of them.
        from: u64,
        /// The last of them.
        to: u64,
    },
    /// An entry is at the position of another one.
    #[error("is where entry {expected} should be")]
    OutOfPlace {
        /// The expected number.
        expected: u64,
    },
    /// The next entry's `prev` does not match.
    #[error("is not the entry that the next one, {next}, was written after")]
    Changed {
        /// The next entry.
        next: u64,
    },
    /// A signature does not match.
    #[error("is not the entry that {by} confirms")]
    Contradicted {
        /// The signed line.
        by: String,
    },
    /// The end of the chain is missing.
    #[error("the chain ends here, but {by} confirms {claimed} entries: the last {} missing", .claimed - .last)]
    Truncated {
        /// The last existing entry.
        last: u64,
        /// The last entry according to the signature.
        claimed: u64,
        /// The signed line.
        by: String,
    },
    /// A segment has no checkpoint, although another segment follows.
    #[error("ends without a checkpoint, though another segment follows")]
    NoCheckpoint,
    /// A segment has no checkpoint, although the program closed all segments.
    #[error("ends without a checkpoint, though HEAD says that the program closed it")]
    Unclosed,
    /// A checkpoint is invalid.
    #[error("the checkpoint {0}")]
    Checkpoint(String),
    /// There are lines after a checkpoint.
    #[error("comes after the checkpoint, which is a segment's last line")]
    AfterCheckpoint,
    /// A row's column used for searches differs from the entry.
    #[error("the column `{0}` differs from the entry")]
    Column(&'static str),
    /// The record of a removal from PostgreSQL is invalid.
    #[error("the record of what retention dropped {0}")]
    Drop(String),
    /// An entry is further ahead of `HEAD` than a crash can explain.
    #[error("is of {time}, and HEAD is of {head_time} and does not confirm it: a crash leaves at most {} ms unsigned", crate::layout::HEAD_LAG_US / 1000)]
    Overrun {
        /// Its time.
        time: String,
        /// When `HEAD` was signed.
        head_time: String,
    },
    /// `HEAD` is older than one that was kept elsewhere.
    #[error("is number {here}, and {by} has number {known} of the same directory")]
    OlderHead {
        /// Its number.
        here: u64,
        /// The number of the other one.
        known: u64,
        /// Where the other one is kept.
        by: String,
    },
    /// A `HEAD` that was kept elsewhere cannot be used.
    #[error("{0}")]
    Anchor(String),
    /// The program detected at its start that an older state was restored.
    #[error("records a finding of a start: {0}")]
    Alarm(&'static str),
    /// PostgreSQL lacks entries that the spool recorded as shipped.
    #[error("the spool has {shipped} entries as stored, but the last one here is {last}")]
    Unstored {
        /// The last acknowledged entry.
        shipped: u64,
        /// The last stored entry.
        last: u64,
    },
}

/// Displays `entry 3 is` or `entries 3 to 5 are`.
struct Missing(u64, u64);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == self.1 {
            write!(f, "entry {} is", self.0)
        } else {
            write!(f, "entries {} to {} are", self.0, self.1)
        }
    }
}

impl Wrong {
    /// Explains the problem for operators.
    pub const fn meaning(&self) -> &'static str {
        match self {
            Self::Chain(_) => "the file was changed or removed; HEAD and the segments still name their chain",
            Self::NoHead => {
                "the file that confirms the ends of the chains was removed: entries may be missing at their ends"
            }
            Self::Slot { .. } => {
                "HEAD was changed, or power was lost while it was written (then the next start repairs it)"
            }
            Self::Apart(..) => "a slot was restored to an earlier state: entries may be missing at the ends",
            Self::Header(_) => "the segment's first line was changed, or it is not the segment that its name says",
            Self::Unreadable(_) => "the line was changed or added by another program",
            Self::Missing { .. } => "entries were removed",
            Self::OutOfPlace { .. } => "the entry was moved, copied or added",
            Self::Changed { .. } => "one of the two was changed, replaced or added after it was written",
            Self::Contradicted { .. } => "the entry, or all from some entry on, were rewritten without the key",
            Self::Truncated { .. } => "the end was cut off",
            Self::Unclosed => "the checkpoint was removed, and entries may have been added before it",
            Self::NoCheckpoint => "the segment's end was cut off, or its checkpoint removed",
            Self::Checkpoint(_) => {
                "the checkpoint was changed, or the segment that it closes, or it is signed with a key that was not given"
            }
            Self::AfterCheckpoint => "lines were added",
            Self::Column(_) => {
                "the row was changed: searches list the entry wrongly or miss it; the entry itself is right"
            }
            Self::Drop(_) => "rows were deleted other than by retention, or the record was changed",
            Self::Overrun { .. } => {
                "an older HEAD was restored, and with it, perhaps, older or no files of other chains: entries may be missing at their ends"
            }
            Self::OlderHead { .. } => "the directory, or HEAD alone, was restored to an earlier state",
            Self::Anchor(_) => "the anchor was changed, or all that it confirms was removed",
            Self::Alarm(_) => {
                "the audit log was changed while the program did not run; the entry's details have the finding"
            }
            Self::Unstored { .. } => "rows were deleted from the database, or it was restored from an older backup",
        }
    }

    fn signature(error: &KeyError) -> String {
        match error {
            KeyError::Unknown(key) => format!("is signed with key {key:?}, which is not among the keys given"),
            _ => "does not have the signature of its key".to_owned(),
        }
    }
}

/// Progress of a verification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read.
    pub bytes: u64,
    /// Total bytes.
    pub of: u64,
    /// Entries read.
    pub entries: u64,
}

#[cfg(test)]
mod tests;
