//! Removal from a spool: shipped segments, when it is full; expired ones; and data keys of subjects.

use std::path::Path;

use outrigger_policy::audit::{Class, Time};

use super::files::{self, Open};
use super::{Dropped, FRAME_BYTES, LONGEST_SEGMENT_US, NOTE_EVERY_US, Spool, SpoolError};
use crate::layout::Shipped;

impl Spool {
    /// Records that PostgreSQL has all entries of `class` up to `through`. Their segments may be removed to make room,
    /// and their data keys are removed, as PostgreSQL has them.
    ///
    /// # Errors
    /// The file cannot be written; after a restart, the entries are shipped again.
    pub fn shipped(&mut self, class: Class, through: u64, erasures: u64, now: Time) -> Result<(), SpoolError> {
        // Of a chain that was here before.
        if through > self.chains[class as usize].committed.last {
            return Ok(());
        }
        self.shipped[class as usize] = through;
        self.erasures = self.erasures.max(erasures);
        self.is_note_due = true;
        for closed in &mut self.chains[class as usize].closed {
            if closed.last <= through && closed.keys_bytes > 0 {
                files::remove(&closed.segment.keys())?;
                closed.keys_bytes = 0;
            }
        }
        // At most once a second, since it costs more than a batch of entries. Entries not recorded as shipped are
        // shipped again, which is harmless.
        if now.0.abs_diff(self.noted_at.0) >= NOTE_EVERY_US.unsigned_abs() { self.note_shipped(now) } else { Ok(()) }
    }

    pub(super) fn note_shipped(&mut self, now: Time) -> Result<(), SpoolError> {
        if !self.is_note_due {
            return Ok(());
        }
        let through = Class::ALL.iter().map(|class| (class.name().to_owned(), self.shipped[*class as usize])).collect();
        files::write_shipped(&self.directory, &Shipped { through, erasures: self.erasures })?;
        (self.noted_at, self.is_note_due) = (now, false);
        Ok(())
    }

    /// The entries that PostgreSQL has, and the last erasure received from it.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn shipped_through(&self) -> Result<Shipped, SpoolError> {
        files::shipped(&self.directory)
    }

    /// Removes shipped segments, oldest first, until the appended entries fit.
    pub(super) fn make_room(&mut self, class: Class, now: Time) -> Result<(), SpoolError> {
        let chain = &self.chains[class as usize];
        let wanted = (chain.lines.len() + chain.new_keys.len()) as u64 + FRAME_BYTES;
        let mut dropped = false;
        loop {
            let most_of_class =
                if class == Class::Security { self.settings.max_bytes / 2 } else { self.settings.max_bytes };
            let used = self.chains[class as usize].bytes();
            if used + wanted <= most_of_class && self.bytes() + wanted <= self.settings.max_bytes {
                break;
            }
            let is_own_bound = used + wanted > most_of_class;
            let shipped = self.shipped;
            let candidates = self.chains.iter().filter(|chain| !is_own_bound || chain.class == class);
            let oldest = candidates
                .filter_map(|chain| chain.closed.first().filter(|closed| closed.last <= shipped[chain.class as usize]))
                .min_by_key(|closed| files::modified(&closed.segment.path));
            let Some(oldest) = oldest.cloned() else { return Err(SpoolError::Full) };
            let gone = self.drop_first(oldest.segment.class, now)?;
            self.dropped.extend(gone);
            dropped = true;
        }
        if dropped {
            files::sync_directory(&self.directory)?;
        }
        Ok(())
    }

    /// Removes the first closed segment of a class. Updates `HEAD` before the file: a crash in between leaves one
    /// file too many.
    fn drop_first(&mut self, class: Class, now: Time) -> Result<Option<Dropped>, SpoolError> {
        let (directory, machine, chain_id) = (self.directory.as_path(), self.machine.as_str(), self.chain.as_str());
        let chain = &mut self.chains[class as usize];
        let Some(closed) = chain.closed.first().cloned() else { return Ok(None) };
        if chain.closed.len() == 1 && chain.open.is_none() {
            // The next segment's header records where the chain continues, in case HEAD is lost.
            chain.open = Some(Open::create(directory, class, chain_id, machine, &chain.committed, now)?);
        }
        let before = std::mem::replace(&mut chain.floor, closed.last + 1);
        let head_time = self.head_time.min(now);
        let said = self.sign_heads(head_time).and_then(|()| self.sync_head());
        let chain = &mut self.chains[class as usize];
        if let Err(e) = said {
            chain.floor = before;
            return Err(e);
        }
        chain.closed.remove(0);
        files::remove(&closed.segment.path)?;
        files::remove(&closed.segment.keys())?;
        Ok(Some(Dropped { class, first: before, last: closed.last, bytes: closed.bytes }))
    }

    /// Returns the segments that retention may remove: for each class those whose last entry is older than `oldest`.
    ///
    /// # Errors
    /// A segment cannot be read.
    pub fn expired(
        &mut self,
        now: Time,
        oldest: impl Fn(Class) -> Time,
        is_held: impl Fn(Class, &Path) -> Result<bool, SpoolError>,
    ) -> Result<Vec<Dropped>, SpoolError> {
        self.roll(now, |open| now.0.saturating_sub(open.created.0) >= LONGEST_SEGMENT_US)?;
        let mut expired = Vec::new();
        for chain in &self.chains {
            let mut first = chain.floor;
            for closed in &chain.closed {
                // Segments without a valid checkpoint are evidence, however old: `outrigger audit verify` reports
                // them.
                let last = files::vouched_time(&closed.segment.path, &self.keys.public())?;
                let is_old = last.is_some_and(|last| last < oldest(chain.class));
                // Segments after one that stays must stay too: the remaining chain must be contiguous.
                if !is_old || is_held(chain.class, &closed.segment.path)? {
                    break;
                }
                expired.push(Dropped { class: chain.class, first, last: closed.last, bytes: closed.bytes });
                first = closed.last + 1;
            }
        }
        Ok(expired)
    }

    /// Removes the segments returned by [`Spool::expired`].
    ///
    /// # Errors
    /// Segments that could not be removed are left to the next run.
    pub fn drop_expired(&mut self, expired: &[Dropped], now: Time) -> Result<(), SpoolError> {
        for wanted in expired {
            let first = self.chains[wanted.class as usize].closed.first();
            if first.is_some_and(|closed| closed.last == wanted.last) {
                self.drop_first(wanted.class, now)?;
            }
        }
        files::sync_directory(&self.directory)
    }

    /// Segments removed to make room since the last call.
    pub fn take_dropped(&mut self) -> Vec<Dropped> {
        std::mem::take(&mut self.dropped)
    }

    /// Destroys the data keys of these subjects (pseudonyms) and returns their number.
    ///
    /// # Errors
    /// A file cannot be changed; keys in files before it are destroyed.
    pub fn forget(&mut self, subjects: &[String]) -> Result<usize, SpoolError> {
        let mut destroyed = 0;
        for chain in &mut self.chains {
            destroyed += files::blank_keys(&mut chain.new_keys, subjects);
            let open = chain.open.as_ref().map(|open| open.segment.keys());
            for path in chain.closed.iter().map(|closed| closed.segment.keys()).chain(open) {
                destroyed += files::forget(&path, subjects)?;
            }
        }
        Ok(destroyed)
    }
}
