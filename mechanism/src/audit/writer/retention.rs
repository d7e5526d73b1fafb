//! Deletes expired segments, and destroys the data keys of subjects.

use std::path::Path;
use std::sync::atomic::Ordering;

use outrigger_policy::audit::{Class, Time};
use outrigger_trail::holds::{HoldError, Holds};
use outrigger_trail::spool::SpoolError;

use crate::audit::queue::{Authority, ForgetError, Trail};
use crate::audit::writer::Writer;

impl Writer {
    /// Destroys the data keys of these subjects, and returns how many there were.
    pub(super) fn forget(&mut self, subjects: &[String], authority: Authority) -> Result<usize, ForgetError> {
        let failed = |e: &dyn std::fmt::Display| ForgetError::Failed(e.to_string());
        let Some(spool) = &mut self.spool else { return Err(failed(&"the spool cannot be used")) };
        if authority == Authority::Operator {
            let holds = Holds::read(spool.directory()).map_err(|e| failed(&e))?;
            if let Some(hold) = holds.keeps_subject(subjects) {
                let (id, by, reason) = (hold.id.clone(), hold.by.clone(), hold.reason.clone());
                return Err(ForgetError::Held { id, by, reason });
            }
        }
        self.identities.forget(subjects);
        spool.forget(subjects).map_err(|e| failed(&e))
    }

    /// Deletes expired segments, after an event about them is on disk.
    pub(super) fn expire(&mut self, trail: &Trail) {
        let basis = trail.basis();
        let audit = &basis.audit;
        let Some(spool) = &mut self.spool else { return };
        let now = self.clock.time;
        let oldest = |class: Class| {
            let kept = i64::try_from(audit.retention[class as usize].as_micros()).unwrap_or(i64::MAX);
            Time(now.0.saturating_sub(kept))
        };
        let holds = match Holds::read(&audit.directory) {
            Ok(holds) => holds,
            Err(e) => {
                tracing::error!("expired entries of the audit log stay while its holds cannot be read: {e}");
                return;
            }
        };
        let is_held = |class: Class, segment: &Path| {
            let unreadable =
                |e: HoldError| SpoolError::File { path: segment.to_owned(), source: std::io::Error::other(e) };
            holds.keeps(class, segment).map(|hold| hold.is_some()).map_err(unreadable)
        };
        let expired = match spool.expired(now, oldest, is_held) {
            Ok(expired) => expired,
            Err(e) => {
                tracing::warn!("expired entries of the audit log stay for now: {e}");
                return;
            }
        };
        if expired.is_empty() {
            return;
        }
        for dropped in &expired {
            self.note_dropped(dropped, "age");
        }
        let Some(spool) = &mut self.spool else { return };
        let failed = spool.commit(now);
        if let Some((_, e)) = failed.first() {
            tracing::warn!("expired entries of the audit log stay until their removal can be recorded: {e}");
            return;
        }
        trail.committed[Class::Administration as usize]
            .store(spool.committed(Class::Administration).last, Ordering::Release);
        match spool.drop_expired(&expired, now) {
            Ok(()) => {
                for dropped in &expired {
                    let count = dropped.last - dropped.first + 1;
                    trail.metrics.dropped(dropped.class, "spool", count);
                    tracing::info!(
                        class = dropped.class.name(),
                        count,
                        "expired entries of the audit log are removed from the spool"
                    );
                }
            }
            Err(e) => tracing::warn!("some expired entries of the audit log stay for now: {e}"),
        }
    }
}
