//! Signs `HEAD`, the durable statement about the ends of all chains.

use std::os::unix::fs::FileExt;

use outrigger_policy::audit::Time;

use super::chain::Chain;
use super::error::at;
use super::{Spool, SpoolError, hex};
use crate::layout::{self, HEAD_SLOT, Heads, Span};

impl Spool {
    /// Signs and syncs `HEAD` if needed, so that no entry up to `time` is further ahead of it than a crash of the
    /// program or the machine can explain: see [`layout::HEAD_LAG_US`].
    pub(super) fn keep_head_close(&mut self, time: Time) -> Result<(), SpoolError> {
        let is_far = |head: Time| time.0.saturating_sub(head.0) > layout::HEAD_LAG_US;
        if is_far(self.head_time) {
            let (signed_at, is_due) = (self.signed_at, self.is_head_due);
            self.sign_heads(time)?;
            // The entries written next are not covered by this signature.
            (self.signed_at, self.is_head_due) = (signed_at, is_due);
        }
        if is_far(self.synced_head_time) { self.sync_head() } else { Ok(()) }
    }

    pub(super) fn sync_head(&mut self) -> Result<(), SpoolError> {
        self.heads.sync_data().map_err(at(&self.directory.join(layout::HEAD)))?;
        self.synced_head_time = self.head_time;
        Ok(())
    }

    /// Writes `HEAD`, however recent the last one is.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn sign_heads(&mut self, now: Time) -> Result<(), SpoolError> {
        self.number += 1;
        let span =
            |chain: &Chain| Span { first: chain.floor, last: chain.committed.last, hash: hex(&chain.committed.hash) };
        let heads = Heads {
            head: 1,
            chain: self.chain.clone(),
            machine: self.machine.clone(),
            number: self.number,
            time: now.to_string(),
            classes: self.chains.iter().map(|chain| (chain.class.name().to_owned(), span(chain))).collect(),
            closed: self.is_closed,
            key: self.keys.current_id().to_owned(),
        };
        let mut slot = layout::sign(&heads, &self.keys);
        slot.resize(HEAD_SLOT - 1, b' ');
        slot.push(b'\n');
        let offset = self.number % 2 * HEAD_SLOT as u64;
        let path = self.directory.join(layout::HEAD);
        self.heads.write_all_at(&slot, offset).map_err(at(&path))?;
        (self.signed_at, self.head_time) = (now, now);
        self.is_head_due = false;
        Ok(())
    }
}
