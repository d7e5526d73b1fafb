//! A chain of a spool: its ends, and its segments.

use std::collections::BTreeMap;

use outrigger_policy::audit::{Class, Head, Time};

use super::files::Open;
use super::{SpoolError, hex};
use crate::keys::MasterKeys;
use crate::layout::{End, Segment};

/// A chain of this spool.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) class: Class,
    /// Includes appended entries that are not committed.
    pub(super) head: Head,
    /// The durable end.
    pub(super) committed: Head,
    /// The first entry kept.
    pub(super) floor: u64,
    pub(super) open: Option<Open>,
    /// Closed segments, in order.
    pub(super) closed: Vec<Closed>,
    /// Appended lines that are not committed.
    pub(super) lines: Vec<u8>,
    /// Data keys that are not written yet.
    pub(super) new_keys: Vec<u8>,
}

#[derive(Clone, Debug)]
pub(super) struct Closed {
    pub(super) segment: Segment,
    pub(super) last: u64,
    pub(super) bytes: u64,
    /// Size of its data keys; 0 once they are shipped and removed.
    pub(super) keys_bytes: u64,
}

impl Chain {
    pub(super) fn new(class: Class) -> Self {
        Self {
            class,
            head: Head::default(),
            committed: Head::default(),
            floor: 1,
            open: None,
            closed: Vec::new(),
            lines: Vec::new(),
            new_keys: Vec::new(),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        let closed: u64 = self.closed.iter().map(|closed| closed.bytes + closed.keys_bytes).sum();
        closed + self.open.as_ref().map_or(0, |open| open.length + open.keys_length)
    }

    /// Ends the open segment with its checkpoint. Keeps it open if it has no entries: the next ones are appended to
    /// it.
    pub(super) fn close(
        &mut self,
        chain_id: &str,
        heads: &BTreeMap<String, End>,
        keys: &MasterKeys,
        now: Time,
    ) -> Result<(), SpoolError> {
        let Some(open) = self.open.as_mut().filter(|open| open.segment.first <= self.committed.last) else {
            return Ok(());
        };
        open.write_checkpoint(chain_id, &self.committed, heads, keys, now)?;
        if let Some(open) = self.open.take() {
            let (last, bytes, keys_bytes) = (self.committed.last, open.length, open.keys_length);
            self.closed.push(Closed { last, bytes, keys_bytes, segment: open.segment });
        }
        Ok(())
    }
}

/// The ends of the other chains, for the checkpoint of `class`: a truncated chain contradicts the others'
/// checkpoints.
pub(super) fn heads_of(chains: &[Chain], class: Class) -> BTreeMap<String, End> {
    let others = chains.iter().filter(|chain| chain.class != class && chain.committed.last > 0);
    let end = |chain: &Chain| End { last: chain.committed.last, hash: hex(&chain.committed.hash) };
    others.map(|chain| (chain.class.name().to_owned(), end(chain))).collect()
}
