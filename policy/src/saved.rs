//! The state that survives a restart, and its snapshot as bytes.
//!
//! Each mechanism defines its own saved state and how it is restored: [`crate::breaker::SavedBreaker`], [`crate::abuse::Ban`],
//! [`crate::retry::SavedBudget`], [`crate::concurrency`]. An arrival time of [`crate::limiter`] is only moved to another clock.
//!
//! Times are on the clock of the process that saved them, so two snapshots without a change between them have the same payload.
//! [`Shift`] moves them to the clock of the process that restores them, with the time that passed between the two.

mod format;

use std::fmt;
use std::time::Duration;

use crate::abuse::Ban;
use crate::breaker::SavedBreaker;
use crate::retry::SavedBudget;

/// A snapshot from a clock that is ahead by up to this counts as taken now: clocks of Machines differ a little.
pub const SKEW: Duration = Duration::from_secs(60);
/// The maximum length of a name in a snapshot, in bytes.
pub const LONGEST_NAME: usize = 1024;
/// The smallest bound of [`Saved::fit`] with a stated behaviour, in bytes.
pub const SMALLEST: usize = 64 << 10;

/// From the clock of the process that saved a state to that of the process that restores it. Times are nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shift {
    /// When it was saved, on the clock of then.
    pub was: u64,
    /// Now, on the clock of now.
    pub now: u64,
    /// The time that passed between the two.
    pub age: u64,
}

impl Shift {
    /// Returns a time of then on the clock of now. A time before the clock of now begins is 0.
    pub fn moved(self, at: u64) -> u64 {
        let moved = i128::from(self.now) + i128::from(at) - i128::from(self.was) - i128::from(self.age);
        u64::try_from(moved.max(0)).unwrap_or(u64::MAX)
    }
}

/// A key of a rate limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SavedKey {
    /// A hash of the limit and the client.
    pub tag: u64,
    /// Its arrival time.
    pub tat: u64,
}

/// A banned client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedBan {
    /// The client's name for operators, such as `address:192.0.2.1`.
    pub who: String,
    /// Its last ban.
    pub ban: Ban,
}

/// A snapshot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Saved {
    /// The name of the Machine; empty without one.
    pub machine: String,
    /// The version of the program, for messages only.
    pub version: String,
    /// When it was taken, in nanoseconds since 1970.
    pub unix_ns: u64,
    /// When it was taken, on the clock of its times.
    pub clock_ns: u64,
    /// Identifies the seed of the hashes in it.
    pub fingerprint: u64,
    /// The seed itself, unless it is derived from a key that the Machines share.
    pub seed: Option<[u8; 16]>,
    /// The concurrency limit.
    pub concurrency: Option<f64>,
    /// The retry budget.
    pub retries: Option<SavedBudget>,
    /// The circuit breakers, by name.
    pub breakers: Vec<(String, SavedBreaker)>,
    /// Bans.
    pub bans: Vec<SavedBan>,
    /// Keys of rate limits, and of the offences that lead to bans.
    pub limits: Vec<SavedKey>,
}

/// How many entries of a snapshot were left out, because they did not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Bans.
    pub bans: u64,
    /// Circuit breakers.
    pub breakers: u64,
    /// Keys of rate limits.
    pub limits: u64,
}

/// Why a snapshot is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// Other bytes.
    NotASnapshot,
    /// Another version of the format.
    OtherFormat(u16),
    /// Bytes are missing, or there are too many: what there are, and what there should be.
    Torn(u64, u64),
    /// The checksum is wrong.
    Checksum,
    /// The checksum is right, but not the content: this part of it.
    Malformed(&'static str),
    /// It is larger than allowed: its size, and the maximum.
    TooLarge(u64, u64),
    /// Another Machine's: the name there, and the name here.
    OtherMachine(String, String),
    /// It is from the future.
    Future(Duration),
}

impl Unusable {
    /// All kinds.
    pub const KINDS: [&'static str; 6] =
        ["not_a_snapshot", "other_format", "damaged", "too_large", "other_machine", "future"];

    /// Returns the name used in metrics.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::NotASnapshot => "not_a_snapshot",
            Self::OtherFormat(_) => "other_format",
            Self::Torn(..) | Self::Checksum | Self::Malformed(_) => "damaged",
            Self::TooLarge(..) => "too_large",
            Self::OtherMachine(..) => "other_machine",
            Self::Future(_) => "future",
        }
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotASnapshot => f.write_str("it is not a snapshot"),
            Self::OtherFormat(format) => {
                write!(f, "it has format {format}, this version reads format {}", format::FORMAT)
            }
            Self::Torn(is, should) => write!(f, "it is torn: {is} of {should} bytes"),
            Self::Checksum => f.write_str("its checksum is wrong"),
            Self::Malformed(part) => write!(f, "its {part} cannot be read"),
            Self::TooLarge(is, most) => write!(f, "it has {is} bytes, more than {most}"),
            Self::OtherMachine(there, here) => {
                write!(f, "it is of Machine {there:?}, and this is {here:?}")
            }
            Self::Future(by) => write!(f, "it is from the future, by {} s: was the clock set back?", by.as_secs()),
        }
    }
}

impl std::error::Error for Unusable {}

impl Saved {
    /// Encodes the snapshot.
    pub fn encode(&self) -> Vec<u8> {
        format::encode(self)
    }

    /// Decodes the output of [`Self::encode`]. Allocates no more than about ten times the size of `bytes`.
    ///
    /// # Errors
    /// [`Unusable`]
    pub fn decode(bytes: &[u8]) -> Result<Self, Unusable> {
        format::decode(bytes)
    }

    /// Returns a snapshot with this payload and a right checksum, for tests of the decoder.
    pub fn seal(unix_ns: u64, clock_ns: u64, payload: &[u8]) -> Vec<u8> {
        format::seal(unix_ns, clock_ns, payload)
    }

    /// Returns the part of the output of [`Self::encode`] that stays the same until something changes.
    pub fn payload(bytes: &[u8]) -> &[u8] {
        bytes.get(format::HEAD_BYTES..).unwrap_or_default()
    }

    /// Leaves out what does not fit into `most` bytes: bans get at most half of that and keep their place however many keys there are. Of
    /// bans and keys, those that end first are left out. Thousands of circuit breakers that do not fit lose the breakers of single clients and places
    /// first.
    pub fn fit(&mut self, most: usize) -> LeftOut {
        let mut left_out = LeftOut::default();
        let size = |ban: &SavedBan| format::BAN_BYTES + ban.who.len();
        let bans: usize = self.bans.iter().map(size).sum();
        if bans > most / 2 {
            self.bans.sort_unstable_by_key(|ban| std::cmp::Reverse(ban.ban.until));
            let mut used = 0;
            let kept = self.bans.iter().take_while(|ban| {
                used += size(ban);
                used <= most / 2
            });
            let kept = kept.count();
            left_out.bans = (self.bans.len() - kept) as u64;
            self.bans.truncate(kept);
        }
        let limits = std::mem::take(&mut self.limits);
        if self.encode().len() > most {
            self.breakers.iter_mut().for_each(|(_, breaker)| breaker.forget_names());
        }
        if self.encode().len() > most {
            left_out.breakers = self.breakers.len() as u64;
            self.breakers.clear();
        }
        let room = most.saturating_sub(self.encode().len()) / format::KEY_BYTES;
        self.limits = limits;
        if self.limits.len() > room {
            left_out.limits = (self.limits.len() - room) as u64;
            self.limits.select_nth_unstable_by_key(room, |key| std::cmp::Reverse(key.tat));
            self.limits.truncate(room);
        }
        left_out
    }

    /// Returns how old it is at `unix_ns`, nanoseconds since 1970. A clock that was set back a little does not make it younger than now.
    ///
    /// # Errors
    /// [`Unusable::Future`]: it is from more than [`SKEW`] in the future.
    pub fn age(&self, unix_ns: u64) -> Result<Duration, Unusable> {
        let ahead = Duration::from_nanos(self.unix_ns.saturating_sub(unix_ns));
        if ahead > SKEW {
            return Err(Unusable::Future(ahead));
        }
        Ok(Duration::from_nanos(unix_ns.saturating_sub(self.unix_ns)))
    }

    /// Checks that it is of this Machine.
    ///
    /// # Errors
    /// [`Unusable::OtherMachine`]
    pub fn check_machine(&self, here: &str) -> Result<(), Unusable> {
        if self.machine == here {
            return Ok(());
        }
        Err(Unusable::OtherMachine(self.machine.clone(), here.to_owned()))
    }
}

#[cfg(test)]
mod tests;
