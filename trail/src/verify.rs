//! Whether a trail is whole: what is gone, added, moved or changed, where, and what it means.
//!
//! What is signed vouches for what is not: `HEAD` for the end of each chain, each checkpoint for its segment and for the ends of the
//! other chains at that time, and each entry's `prev` for the one before. So whoever has no key can change nothing up to the last
//! signature without a contradiction. What comes after it, at most what was written in the moment before a crash, is chained but not
//! signed yet; that is said as a note, and so is a torn line there.
//!
//! A program may be appending meanwhile: `HEAD` is read first and never runs ahead of the files, so whatever it names is there, and
//! what is newer is not missed. Entries are not parsed: their number and hash are at fixed places of the line.
//!
//! Read in this order: `verify/walk.rs` (one chain, entry by entry), `verify/spool.rs` (a directory), [`rows`] (what PostgreSQL keeps).

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

/// More problems than these are counted, not listed.
pub const MOST_PROBLEMS: usize = 1000;

/// What keeps a trail from being verified at all.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// There is none.
    #[error(
        "{} has no trail: no CHAIN, no HEAD, no segment; either nothing was ever written there, or all of it was taken away", .0.display()
    )]
    Nothing(PathBuf),
    /// A file cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// The chain's id; empty when it cannot be told.
    pub chain: String,
    /// What there is, by class.
    pub classes: Vec<Found>,
    /// What is wrong, at most [`MOST_PROBLEMS`] of it.
    pub problems: Vec<Problem>,
    /// How many problems more there are.
    pub unlisted: u64,
    /// What is as it may be, but worth knowing.
    pub notes: Vec<String>,
}

/// A chain as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its class.
    pub class: Class,
    /// How many entries were read.
    pub entries: u64,
    /// The number of the first one.
    pub first: u64,
    /// The number of the last one; one less than `first` when there is none.
    pub last: u64,
    /// Its hash; `None` when what is there is no entry.
    pub hash: Option<outrigger_policy::audit::Hash>,
    /// A signature vouches for all entries up to this number, whether they are there or not.
    pub vouched: u64,
    /// How many problems it has.
    pub problems: u64,
}

impl Findings {
    /// Whether nothing is wrong.
    pub fn is_whole(&self) -> bool {
        self.problems.is_empty()
    }

    /// How many entries were read.
    pub fn entries(&self) -> u64 {
        self.classes.iter().map(|class| class.entries).sum()
    }

    /// Adds something that is wrong.
    pub fn add(&mut self, place: Place, wrong: Wrong) {
        if self.problems.len() < MOST_PROBLEMS {
            self.problems.push(Problem { place, wrong });
        } else {
            self.unlisted += 1;
        }
    }

    /// How many problems there are, listed or not.
    pub fn count(&self) -> u64 {
        self.problems.len() as u64 + self.unlisted
    }
}

/// Something wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// What.
    pub wrong: Wrong,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.wrong)
    }
}

/// Where something is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The file's name in the directory, or the table.
    pub file: Option<String>,
    /// From 1.
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

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// `CHAIN`.
    #[error("does not have the chain's id: {0}")]
    Chain(&'static str),
    /// There is no `HEAD`.
    #[error("is missing")]
    NoHead,
    /// A slot of `HEAD`.
    #[error("slot {slot} {problem}")]
    Slot {
        /// 1 or 2.
        slot: usize,
        /// What about it.
        problem: String,
    },
    /// The slots of `HEAD` do not belong together.
    #[error("its slots are {0} and {1}, which do not follow each other")]
    Apart(u64, u64),
    /// A header.
    #[error("the header {0}")]
    Header(String),
    /// A line that is neither an entry nor a checkpoint.
    #[error("is no entry: {0}")]
    Unreadable(&'static str),
    /// Entries are not there.
    #[error("{} missing", Missing(*.from, *.to))]
    Missing {
        /// The first of them.
        from: u64,
        /// The last of them.
        to: u64,
    },
    /// An entry is where another one should be.
    #[error("stands where entry {expected} should")]
    OutOfPlace {
        /// The number that was due.
        expected: u64,
    },
    /// The next entry says so.
    #[error("is not the entry that the next one, {next}, was written after")]
    Changed {
        /// The next entry.
        next: u64,
    },
    /// A signature says so.
    #[error("is not the entry that {by} vouches for")]
    Contradicted {
        /// What is signed.
        by: String,
    },
    /// The end is not there.
    #[error("the chain ends here, but {by} vouches for {claimed} entries: the last {} missing", .claimed - .last)]
    Truncated {
        /// The last entry that is there.
        last: u64,
        /// The last one that there was.
        claimed: u64,
        /// What is signed.
        by: String,
    },
    /// A segment is not closed though another one follows.
    #[error("ends without a checkpoint, though another segment follows")]
    NoCheckpoint,
    /// A segment is not closed though the program closed all of them.
    #[error("ends without a checkpoint, though HEAD says that the program closed it")]
    Unclosed,
    /// A checkpoint.
    #[error("the checkpoint {0}")]
    Checkpoint(String),
    /// Lines after a checkpoint.
    #[error("stands after the checkpoint, which is a segment's last line")]
    AfterCheckpoint,
    /// A column of a row that is searched for.
    #[error("the column `{0}` says something else than the entry")]
    Column(&'static str),
    /// What retention says that it dropped from PostgreSQL.
    #[error("the record of what retention dropped {0}")]
    Drop(String),
    /// An entry is further ahead of `HEAD` than a crash explains.
    #[error("is of {time}, and HEAD is of {head_time} and does not vouch for it: a crash leaves at most {} ms unsigned", crate::layout::HEAD_LAG_US / 1000)]
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
        /// The number of the other.
        known: u64,
        /// Where that is.
        by: String,
    },
    /// Something that was kept elsewhere cannot be used.
    #[error("{0}")]
    Anchor(String),
    /// The program found at its start that an older state was put back.
    #[error("says that the program found at its start: {0}")]
    Alarm(&'static str),
    /// PostgreSQL lacks what the spool says that it has.
    #[error("the spool was told that {shipped} entries are stored, and the last one here is {last}")]
    Unstored {
        /// What was acknowledged.
        shipped: u64,
        /// What is there.
        last: u64,
    },
}

/// `entry 3 is`, `entries 3 to 5 are`.
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
    /// What it means, for somebody who has to act on it.
    pub const fn meaning(&self) -> &'static str {
        match self {
            Self::Chain(_) => "the file was changed or taken away; HEAD and the segments still name their chain",
            Self::NoHead => {
                "the file that vouches for the ends of the chains was taken away: entries may be missing at their ends"
            }
            Self::Slot { .. } => {
                "HEAD was changed, or power was lost in the moment in which it was written (then the program's next start mends it)"
            }
            Self::Apart(..) => "a slot was put back to what it was before: entries may be missing at the ends",
            Self::Header(_) => "the segment's first line was changed, or the segment is another one than its name says",
            Self::Unreadable(_) => "the line was changed or put there by something else than the program",
            Self::Missing { .. } => "entries were taken away",
            Self::OutOfPlace { .. } => "the entry was moved, copied or added",
            Self::Changed { .. } => "one of the two was changed, replaced or added after it was written",
            Self::Contradicted { .. } => "the entry, or all from some place on, were written anew without the key",
            Self::Truncated { .. } => "the end was cut off",
            Self::Unclosed => "the checkpoint was taken away, and something may have been added before it",
            Self::NoCheckpoint => "the segment's end was cut off, or its checkpoint taken away",
            Self::Checkpoint(_) => {
                "the checkpoint was changed, or the segment that it closes, or it is signed with a key that was not given"
            }
            Self::AfterCheckpoint => "something was added",
            Self::Column(_) => {
                "the row was changed: a search takes the entry for what it is not, or does not find it; what the entry says counts"
            }
            Self::Drop(_) => "rows were deleted by something else than retention, or the record was changed",
            Self::Overrun { .. } => {
                "an older HEAD was put back, and with it, perhaps, older or no files of other chains: entries may be missing at their ends"
            }
            Self::OlderHead { .. } => "the directory, or HEAD alone, was put back to an earlier state",
            Self::Anchor(_) => "the anchor was changed, or what it vouches for was taken away as a whole",
            Self::Alarm(_) => {
                "the audit log was changed while the program did not run; the entry's details say how that showed"
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

/// How far it has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read.
    pub bytes: u64,
    /// Bytes that there are.
    pub of: u64,
    /// Entries read.
    pub entries: u64,
}

#[cfg(test)]
mod tests;
