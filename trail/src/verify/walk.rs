//! Verifies one chain, entry by entry.

use std::collections::VecDeque;

use outrigger_policy::audit::{Class, Hash, unhex};
use ring::digest::{SHA256, digest};

use super::Wrong;
use crate::entry::Entry;
use crate::layout;

/// A signed statement about an entry: its number and hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The number; 0 stands for the chain's beginning.
    pub seq: u64,
    /// The hash.
    pub hash: Hash,
    /// Its source, such as `HEAD`.
    pub by: String,
}

/// The verification of one chain.
pub(super) struct Walk {
    class: String,
    next: u64,
    /// The hash of the entry before `next`; `None` if that could not be read.
    hash: Option<Hash>,
    /// By number, without those already met.
    claims: VecDeque<Claim>,
    pub(super) entries: u64,
    /// Whether the chain may have alarms of the program itself, and the latest one.
    has_alarms: bool,
    alarm: Option<(u64, &'static str)>,
}

/// Actions that the program records at its start if an older state was restored. Its other findings leave their own
/// evidence.
const ALARMS: [&str; 2] = ["audit.rolled_back", "audit.unvouched"];

/// The result for a line.
pub(super) enum Step {
    /// The expected entry.
    Due,
    /// A problem with the entry of this number.
    Wrong(Option<u64>, Wrong),
}

pub(super) fn hash_of(line: &[u8]) -> Hash {
    let mut hash = Hash::default();
    hash.copy_from_slice(digest(&SHA256, line).as_ref());
    hash
}

const BEFORE: &[u8] = b"{\"seq\":";
const PREV: &[u8] = b",\"prev\":\"";
/// Bytes from the beginning of `PREV` to the end of the line.
const TAIL: usize = PREV.len() + 64 + 2;

fn alarm_in(line: &[u8]) -> Option<&'static str> {
    memchr::memmem::find(line, b"\"action\":\"audit.")?;
    let entry = Entry::parse(line).ok().filter(|entry| entry.actor.kind == "system")?;
    ALARMS.into_iter().find(|alarm| *alarm == entry.action)
}

impl Walk {
    /// Begins before entry `next`, whose `prev` must be `hash`.
    pub(super) fn new(class: Class, next: u64, hash: Option<Hash>, mut claims: Vec<Claim>) -> Self {
        claims.sort_by_key(|claim| claim.seq);
        // Claims about entries before the beginning can no longer be verified.
        claims.retain(|claim| claim.seq + 1 >= next);
        let has_alarms = class == Class::Administration;
        let class = format!(",\"class\":\"{}\",", class.name());
        Self { class, next, hash, claims: claims.into(), entries: 0, has_alarms, alarm: None }
    }

    pub(super) fn next(&self) -> u64 {
        self.next
    }

    pub(super) fn last(&self) -> u64 {
        self.next.saturating_sub(1)
    }

    pub(super) fn hash(&self) -> Option<Hash> {
        self.hash
    }

    /// Reads a line's number and `prev` without parsing it.
    fn read<'a>(&self, line: &'a [u8]) -> Result<(u64, &'a [u8]), &'static str> {
        let rest = line.strip_prefix(BEFORE).ok_or("it does not begin with a number")?;
        let digits = rest.iter().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len());
        let (digits, rest) = rest.split_at(digits);
        let seq = layout::number(digits).filter(|_| digits[0] != b'0').ok_or("its number is none")?;
        if !rest.starts_with(self.class.as_bytes()) {
            return Err("its class is another one than the chain's");
        }
        let tail = rest.len().checked_sub(TAIL).map(|at| &rest[at..]).ok_or("it has no end")?;
        let prev = tail.strip_prefix(PREV).and_then(|prev| prev.strip_suffix(b"\"}"));
        Ok((seq, prev.ok_or("it does not end with the hash of the one before")?))
    }

    /// Verifies the next line. After a problem, continues so that one fault causes one or few problems.
    pub(super) fn step(&mut self, line: &[u8]) -> Step {
        let (seq, prev) = match self.read(line) {
            Ok(read) => read,
            Err(why) => {
                // Counts as the expected entry, so that the next one is not reported for it.
                let due = self.next;
                (self.next, self.hash) = (due + 1, None);
                self.forget_claims();
                return Step::Wrong(Some(due), Wrong::Unreadable(why));
            }
        };
        self.entries += 1;
        if self.has_alarms {
            self.alarm = alarm_in(line).map(|action| (seq, action));
        }
        // An unreadable line may have been inserted before the expected entry, which this one then is.
        let is_due_late = self.hash.is_none() && seq + 1 == self.next;
        if seq < self.next && !is_due_late {
            return Step::Wrong(Some(seq), Wrong::OutOfPlace { expected: self.next });
        }
        let wrong = if seq > self.next {
            Some((None, Wrong::Missing { from: self.next, to: seq - 1 }))
        } else if seq < self.next || self.hash.is_none_or(|hash| unhex(prev) == Some(hash)) {
            None
        } else if seq == 1 {
            Some((Some(1), Wrong::Unreadable("it is the first one, but names one before it")))
        } else {
            Some((Some(seq - 1), Wrong::Changed { next: seq }))
        };
        self.take(seq, line, wrong)
    }

    /// Takes the program's alarm in the last line, if it was one.
    pub(super) fn alarm(&mut self) -> Option<(u64, &'static str)> {
        self.alarm.take()
    }

    fn take(&mut self, seq: u64, line: &[u8], wrong: Option<(Option<u64>, Wrong)>) -> Step {
        let hash = hash_of(line);
        (self.next, self.hash) = (seq + 1, Some(hash));
        let contradicted = self.meet_claims(seq, &hash);
        match wrong {
            Some((at, wrong)) => Step::Wrong(at, wrong),
            None => contradicted.map_or(Step::Due, |by| Step::Wrong(Some(seq), Wrong::Contradicted { by })),
        }
    }

    /// Verifies the claims about the chain's beginning.
    pub(super) fn begin(&mut self) -> Option<(u64, Wrong)> {
        let (last, hash) = (self.last(), self.hash?);
        self.meet_claims(last, &hash).map(|by| (last, Wrong::Contradicted { by }))
    }

    fn meet_claims(&mut self, seq: u64, hash: &Hash) -> Option<String> {
        let mut contradicted = None;
        while let Some(claim) = self.claims.pop_front_if(|claim| claim.seq <= seq) {
            if claim.seq == seq && claim.hash != *hash {
                contradicted.get_or_insert(claim.by);
            }
        }
        contradicted
    }

    fn forget_claims(&mut self) {
        let next = self.next;
        while self.claims.pop_front_if(|claim| claim.seq < next).is_some() {}
    }

    /// Continues at entry `next`, whose `prev` must be `hash`; the expected entries before it are missing.
    pub(super) fn jump(&mut self, next: u64, hash: Option<Hash>) {
        (self.next, self.hash) = (next, hash);
        self.forget_claims();
    }

    /// The last claim about an entry that is missing and was not removed by retention.
    pub(super) fn unmet(&self, floor: u64) -> Option<&Claim> {
        self.claims.iter().rev().find(|claim| claim.seq >= self.next.max(floor))
    }
}
