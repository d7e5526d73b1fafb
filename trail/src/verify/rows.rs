//! Verifies a chain in PostgreSQL: rows in the order of their numbers, records of removals, and headers and
//! checkpoints, including those of the chain's other classes.
//!
//! All of it must be read in one transaction with a single snapshot (`repeatable read`), since retention may remove
//! entries meanwhile.

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

/// Upper bound for delays that normally take minutes: until a proxy records a removal, and until it ships the entries
/// that a checkpoint names.
const PATIENCE: SignedDuration = SignedDuration::from_hours(1);

/// A removal from PostgreSQL by retention: see *Retention* in docs/audit.md.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropRecord {
    /// Its number; not signed.
    #[serde(default, skip_serializing)]
    pub id: i64,
    /// The chain.
    pub chain: String,
    /// Its class.
    pub class: String,
    /// The last removed entry.
    pub through: u64,
    /// The hash of that entry, in hex.
    pub hash: String,
    /// Number of entries removed.
    pub count: u64,
    /// Number of rows up to `through` that are kept by a hold.
    pub kept: u64,
    /// SHA-256 over their hashes, in the order of their numbers, in hex.
    pub kept_digest: String,
    /// When it was removed, RFC 3339.
    pub at: String,
}

impl DropRecord {
    /// The signed text.
    pub fn message(&self) -> Vec<u8> {
        // Serialising strings and numbers cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// A removal, and whether a proxy has recorded it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The removal.
    pub record: DropRecord,
    /// The proxy's signature; `None` until it has recorded the removal in the audit log.
    pub signature: Option<Signature>,
}

/// The data of a chain other than its rows.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// The lines of headers and checkpoints.
    pub frames: Vec<Vec<u8>>,
    /// Removals by retention.
    pub drops: Vec<Dropped>,
    /// Claims from other sources, such as the spool.
    pub claims: Vec<Claim>,
    /// Claims by the checkpoints of the other classes: see [`heads`].
    pub heads: Vec<Head>,
    /// The last entry that the spool recorded as shipped, if there is a spool.
    pub shipped: Option<u64>,
}

/// The end of a class's chain according to another class's checkpoint. Classes are shipped independently, so a recent
/// one may be ahead of the stored entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The end.
    pub claim: Claim,
    /// The checkpoint's time; `None` if it cannot be parsed.
    pub at: Option<Timestamp>,
}

/// The ends of other classes according to a chain's checkpoints. Ignores checkpoints with invalid signatures;
/// [`Rows`] reports them.
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

/// The verification of a chain in PostgreSQL.
pub struct Rows {
    class: Class,
    findings: Findings,
    walk: Walk,
    /// The latest removal.
    dropped: Option<DropRecord>,
    kept: u64,
    digest: Context,
    last_kept: u64,
    /// The last entry that its own checkpoints cover.
    closed: u64,
    vouched: u64,
    /// The last entry according to recent checkpoints of other classes.
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
    /// Begins with the data other than rows.
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
                // A time in the future would never exceed the bound.
                None => match record.at.parse().ok().filter(|at| now.duration_since(*at).abs() <= PATIENCE) {
                    Some::<Timestamp>(_) => {
                        findings.notes.push(format!(
                            "{}: retention dropped everything up to entry {} at {}, which no signature confirms until a proxy has recorded it",
                            class.name(),
                            record.through,
                            record.at
                        ));
                        None
                    }
                    None => Some(format!(
                        "is of {}, and no signature confirms it: a proxy records within minutes what retention drops; check that one ships to this database",
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

    /// Verifies the next row, in the order of their numbers.
    pub fn row(&mut self, seq: u64, line: &[u8]) {
        if !line.starts_with(format!("{{\"seq\":{seq},").as_bytes()) {
            let wrong = Wrong::Unreadable("its line has another number than its row");
            self.findings.add(place(EVENTS, self.class, Some(seq)), wrong);
        }
        if self.dropped.as_ref().is_some_and(|dropped| seq <= dropped.through) {
            // Under a hold: its neighbours are removed, so it is verified by the removal's digest.
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

    /// Reports the columns of a row that differ from its line; `changed` is `None` if the line is not an entry.
    pub fn columns(&mut self, seq: u64, changed: Option<&[&'static str]>) {
        let at = place(EVENTS, self.class, Some(seq));
        match changed {
            Some(changed) => changed.iter().for_each(|column| self.findings.add(at.clone(), Wrong::Column(column))),
            None => self.findings.add(at, Wrong::Unreadable("its members cannot be read")),
        }
    }

    /// Completes the verification.
    pub fn finish(mut self) -> Findings {
        if let Some(dropped) = &self.dropped {
            let mut digest = Hash::default();
            digest.copy_from_slice(self.digest.clone().finish().as_ref());
            let wrong = if dropped.kept != self.kept {
                Some(format!("says that {} rows stayed, and {} are here", dropped.kept, self.kept))
            } else if unhex(dropped.kept_digest.as_bytes()) != Some(digest) {
                Some("confirms other remaining rows than these".to_owned())
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
            self.findings.notes.push(format!("{class}: {by} confirms {seq} entries, which are not all stored yet"));
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

/// The claims of checkpoints with valid signatures.
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
