//! The same for what PostgreSQL keeps of a chain: rows in the order of their numbers, what retention has dropped of them, and the
//! headers and checkpoints that came with them, also those of the chain's other classes.
//!
//! All of it has to be read in one transaction that sees one state (`repeatable read`): retention may be dropping meanwhile.

use std::collections::HashSet;

use jiff::{SignedDuration, Timestamp};
use outrigger_policy::audit::{Class, Hash, NO_HASH, unhex};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use super::walk::{Step, Walk, hash_of};
use super::{Claim, Findings, Found, Place, Wrong};
use crate::keys::{PublicKeys, Signature};
use crate::layout::{self, Checkpoint, Header};

const EVENTS: &str = "audit_events";
const FRAMES: &str = "audit_checkpoints";
const DROPS: &str = "audit_drops";

/// What takes minutes where everything is well: a proxy enters what retention has dropped, and ships what a checkpoint vouches for.
const PATIENCE: SignedDuration = SignedDuration::from_hours(1);

/// What retention has dropped from PostgreSQL: `DROP` of docs/audit.md.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropRecord {
    /// Its number; not signed.
    #[serde(default, skip_serializing)]
    pub id: i64,
    /// The chain.
    pub chain: String,
    /// Its class.
    pub class: String,
    /// Everything up to this entry.
    pub through: u64,
    /// The hash of that entry, in hexadecimal.
    pub hash: String,
    /// How many were dropped.
    pub count: u64,
    /// How many of all rows up to `through` stayed, because they are under a hold.
    pub kept: u64,
    /// SHA-256 over their hashes, in the order of their numbers, in hexadecimal.
    pub kept_digest: String,
    /// When, RFC 3339.
    pub at: String,
}

impl DropRecord {
    /// What is signed.
    pub fn message(&self) -> Vec<u8> {
        // Text and numbers: writing them as JSON does not fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// A record, and what the proxy has made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// What was dropped.
    pub record: DropRecord,
    /// The proxy's signature; `None` until it has entered it into the trail.
    pub signature: Option<Signature>,
}

/// What there is of a chain beside its rows.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// Headers and checkpoints, as lines.
    pub frames: Vec<Vec<u8>>,
    /// What retention has dropped.
    pub drops: Vec<Dropped>,
    /// What somebody else vouches for, such as the spool.
    pub claims: Vec<Claim>,
    /// What the checkpoints of the other classes vouch for: see [`heads`].
    pub heads: Vec<Head>,
    /// The last entry that the spool was told is stored, when there is a spool.
    pub shipped: Option<u64>,
}

/// The end of a class's chain, as the checkpoint of another class has it. Each class is shipped for itself, so a young one may be ahead of
/// what is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The end.
    pub claim: Claim,
    /// When the checkpoint was made; `None` when that cannot be read.
    pub at: Option<Timestamp>,
}

/// What the checkpoints of a chain, of whatever class, vouch for of its other classes. Those that are not as they were signed vouch for
/// nothing; [`Rows`] tells of them.
pub fn heads<'a>(chain: &str, frames: impl IntoIterator<Item = &'a [u8]>, keys: &PublicKeys) -> Vec<(Class, Head)> {
    let mut heads = Vec::new();
    for line in frames {
        let Ok(checkpoint) = serde_json::from_slice::<Checkpoint>(line) else { continue };
        if checkpoint.chain != chain || layout::verify(line, &checkpoint.key, keys).is_err() {
            continue;
        }
        let Checkpoint { class: own, first, last, .. } = &checkpoint;
        for (class, end) in checkpoint.heads.iter().filter(|(class, _)| *class != own) {
            if let (Some(class), Some(hash)) = (Class::named(class), unhex(end.hash.as_bytes())) {
                let by = format!("the checkpoint of {own} entries {first} to {last}");
                let claim = Claim { seq: end.last, hash, by };
                heads.push((class, Head { claim, at: checkpoint.time.parse().ok() }));
            }
        }
    }
    heads
}

/// A chain in PostgreSQL that is verified.
pub struct Rows {
    class: Class,
    findings: Findings,
    walk: Walk,
    /// The last record of what was dropped.
    dropped: Option<DropRecord>,
    kept: u64,
    digest: Context,
    last_kept: u64,
    /// What its own checkpoints vouch for.
    closed: u64,
    vouched: u64,
    /// The last that a young checkpoint of another class vouches for.
    awaited: Option<Claim>,
    shipped: Option<u64>,
    first: u64,
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows").field("class", &self.class).field("findings", &self.findings).finish_non_exhaustive()
    }
}

fn place(table: &str, class: Class, entry: Option<u64>) -> Place {
    Place { file: Some(table.to_owned()), line: None, class: Some(class), entry }
}

impl Rows {
    /// Begins with what there is beside the rows.
    pub fn new(chain: &str, class: Class, beside: Beside, keys: &PublicKeys, now: Timestamp) -> Self {
        let Beside { frames, drops, mut claims, heads, shipped } = beside;
        let is_old = |at: Option<Timestamp>| at.is_none_or(|at| now.duration_since(at) > PATIENCE);
        let mut findings = Findings { chain: chain.to_owned(), ..Findings::default() };
        let mut dropped: Option<DropRecord> = None;
        for Dropped { record, signature } in drops {
            let at = place(DROPS, class, Some(record.through));
            let wrong = match signature {
                _ if record.chain != chain || record.class != class.name() => Some("is of another chain".to_owned()),
                Some(signature) => keys.verify(&record.message(), &signature).err().map(|e| Wrong::signature(&e)),
                // A time that is yet to come would never be old.
                None => match record.at.parse().ok().filter(|at| now.duration_since(*at).abs() <= PATIENCE) {
                    Some::<Timestamp>(_) => {
                        findings.notes.push(format!(
                            "{}: retention dropped everything up to entry {} at {}, which no key vouches for until a proxy has entered it",
                            class.name(),
                            record.through,
                            record.at
                        ));
                        None
                    }
                    None => Some(format!(
                        "is of {}, and no key vouches for it: a proxy enters what retention drops within minutes; look whether one ships to this database",
                        record.at
                    )),
                },
            };
            if let Some(wrong) = wrong {
                findings.add(at, Wrong::Drop(wrong));
            }
            if dropped.as_ref().is_none_or(|last| (last.through, last.id) < (record.through, record.id)) {
                dropped = Some(record);
            }
        }
        claims.extend(checkpoints(chain, class, &frames, keys, &mut findings));
        let last_of = |claims: &[Claim]| claims.iter().map(|claim| claim.seq).max().unwrap_or_default();
        let closed = last_of(&claims);
        let (old, young): (Vec<Head>, Vec<Head>) = heads.into_iter().partition(|head| is_old(head.at));
        claims.extend(old.into_iter().map(|head| head.claim));
        let vouched = last_of(&claims);
        let awaited = young.into_iter().map(|head| head.claim).max_by_key(|claim| claim.seq);
        let (through, hash) =
            dropped.as_ref().map_or((0, Some(NO_HASH)), |last| (last.through, unhex(last.hash.as_bytes())));
        let mut walk = Walk::new(class, through + 1, hash, claims);
        if let Some((entry, wrong)) = walk.begin() {
            findings.add(place(DROPS, class, Some(entry)), wrong);
        }
        Self {
            class,
            findings,
            walk,
            dropped,
            kept: 0,
            digest: Context::new(&SHA256),
            last_kept: 0,
            closed,
            vouched,
            awaited,
            shipped,
            first: through + 1,
        }
    }

    /// Takes the next row, in the order of their numbers.
    pub fn row(&mut self, seq: u64, line: &[u8]) {
        if !line.starts_with(format!("{{\"seq\":{seq},").as_bytes()) {
            let wrong = Wrong::Unreadable("its line has another number than its row");
            self.findings.add(place(EVENTS, self.class, Some(seq)), wrong);
        }
        if self.dropped.as_ref().is_some_and(|dropped| seq <= dropped.through) {
            // Under a hold: what is around it is gone, so the record vouches for it.
            self.kept += 1;
            self.digest.update(&hash_of(line));
            self.first = self.first.min(seq);
            self.walk.entries += 1;
            if seq <= self.last_kept {
                let wrong = Wrong::OutOfPlace { expected: self.last_kept + 1 };
                self.findings.add(place(EVENTS, self.class, Some(seq)), wrong);
            }
            self.last_kept = seq;
            return;
        }
        if let Step::Wrong(entry, wrong) = self.walk.step(line) {
            self.findings.add(place(EVENTS, self.class, entry), wrong);
        }
        if let Some((entry, action)) = self.walk.alarm() {
            self.findings.add(place(EVENTS, self.class, Some(entry)), Wrong::Alarm(action));
        }
    }

    /// Takes what is searched for in a row: the columns that say something else than its line; `None` when that is no entry.
    pub fn columns(&mut self, seq: u64, changed: Option<&[&'static str]>) {
        let at = place(EVENTS, self.class, Some(seq));
        match changed {
            Some(changed) => changed.iter().for_each(|column| self.findings.add(at.clone(), Wrong::Column(column))),
            None => self.findings.add(at, Wrong::Unreadable("its members cannot be read")),
        }
    }

    /// What was found.
    pub fn finish(mut self) -> Findings {
        if let Some(dropped) = &self.dropped {
            let mut digest = Hash::default();
            digest.copy_from_slice(self.digest.clone().finish().as_ref());
            let wrong = if dropped.kept != self.kept {
                Some(format!("says that {} rows stayed, and {} are here", dropped.kept, self.kept))
            } else if unhex(dropped.kept_digest.as_bytes()) != Some(digest) {
                Some("vouches for other rows that stayed than these".to_owned())
            } else {
                None
            };
            if let Some(wrong) = wrong {
                self.findings.add(place(DROPS, self.class, Some(dropped.through)), Wrong::Drop(wrong));
            }
        }
        let last = self.walk.last();
        let at = place(EVENTS, self.class, None);
        if let Some(claim) = self.walk.unmet(1) {
            let wrong = Wrong::Truncated { last, claimed: claim.seq, by: claim.by.clone() };
            if claim.seq > self.closed {
                self.findings.notes.push(format!(
                    "{}: only checkpoints of other classes tell of entries after {last}; a proxy that catches up after an outage may be yet to ship them: see outrigger_audit_unshipped_entries",
                    self.class.name()
                ));
            }
            self.findings.add(at, wrong);
        } else if let Some(shipped) = self.shipped.filter(|shipped| *shipped > last) {
            self.findings.add(at, Wrong::Unstored { shipped, last });
        }
        if let Some(Claim { seq, by, .. }) = self.awaited.as_ref().filter(|claim| claim.seq > last.max(self.vouched)) {
            let class = self.class.name();
            self.findings.notes.push(format!("{class}: {by} vouches for {seq} entries, which are not all stored yet"));
        }
        if last > self.vouched && self.walk.entries > 0 {
            let from = self.vouched.max(self.first - 1) + 1;
            self.findings.notes.push(format!(
                "{}: entries {from} to {last} are chained, and no checkpoint for them is stored yet",
                self.class.name()
            ));
        }
        let found = Found {
            class: self.class,
            entries: self.walk.entries,
            first: self.first,
            last,
            hash: self.walk.hash(),
            vouched: self.vouched,
            problems: self.findings.count(),
        };
        self.findings.classes.push(found);
        self.findings
    }
}

/// What checkpoints vouch for, once their signatures and headers are as they should be.
fn checkpoints(
    chain: &str,
    class: Class,
    frames: &[Vec<u8>],
    keys: &PublicKeys,
    findings: &mut Findings,
) -> Vec<Claim> {
    let mut headers = HashSet::new();
    let mut claims = Vec::new();
    for line in frames {
        if let Ok(header) = serde_json::from_slice::<Header>(line) {
            headers.insert((header.first, hash_of(line)));
        }
    }
    for line in frames.iter().filter(|line| !line.starts_with(b"{\"segment\":")) {
        let mut wrong = |entry, wrong| findings.add(place(FRAMES, class, entry), Wrong::Checkpoint(wrong));
        let Ok(checkpoint) = serde_json::from_slice::<Checkpoint>(line) else {
            wrong(None, "cannot be read".to_owned());
            continue;
        };
        let last = Some(checkpoint.last);
        if let Err(e) = layout::verify(line, &checkpoint.key, keys) {
            wrong(last, Wrong::signature(&e));
        } else if checkpoint.chain != chain || checkpoint.class != class.name() {
            wrong(last, "belongs to another chain".to_owned());
        } else {
            let header = unhex(checkpoint.header.as_bytes());
            if !header.is_some_and(|hash| headers.contains(&(checkpoint.first, hash))) {
                wrong(last, "was made for another header".to_owned());
            }
            if let Some(hash) = unhex(checkpoint.hash.as_bytes()) {
                let by = format!("the checkpoint of entries {} to {}", checkpoint.first, checkpoint.last);
                claims.push(Claim { seq: checkpoint.last, hash, by });
            }
        }
    }
    claims
}
