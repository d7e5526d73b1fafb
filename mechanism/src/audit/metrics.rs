//! Metrics of the audit log.

use std::sync::atomic::{AtomicBool, Ordering};

use outrigger_metrics::{Declare, Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, Result};
use outrigger_policy::audit::Class;

/// Results of shipping an entry, and a batch.
const SHIPPED: [&str; 3] = ["stored", "known", "refused"];
const BATCHES: [&str; 2] = ["ok", "failed"];
/// Signs of a changed audit log.
const FINDINGS: [&str; 4] = ["audit.rolled_back", "audit.missing", "audit.reopened", "audit.unvouched"];

/// Metrics of the audit log.
#[derive(Clone, Debug)]
pub struct AuditMetrics {
    entries: [IntCounter; Class::ALL.len()],
    monitored: [IntCounter; Class::ALL.len()],
    lost: IntCounterVec,
    dropped: IntCounterVec,
    alarms: IntCounterVec,
    writable: IntGauge,
    /// How long a commit took.
    pub commits: Histogram,
    /// Bytes of the audit log on disk.
    pub spool_bytes: IntGauge,
    /// Entries that wait to be written.
    pub queued: IntGauge,
    /// Entries on disk that the app does not have yet.
    pub unshipped: IntGauge,
    /// Age of the oldest of them, in seconds.
    pub lag: Gauge,
    /// Entries sent to PostgreSQL, by result: stored, known before, refused by the database.
    pub shipped: IntCounterVec,
    /// Batches sent to PostgreSQL, by result.
    pub batches: IntCounterVec,
}

impl AuditMetrics {
    /// Declares them.
    pub fn new(declare: &Declare) -> Result<Self> {
        let area = declare.area("Audit log");
        let metrics = Self {
            entries: area.when("Is anything recorded? How much does each class write?").counter_for_each(
                "outrigger_audit_entries_total",
                "Entries of the audit log written to disk.",
                "class",
                Class::ALL.map(Class::name),
            )?,
            monitored: area.when("Before `enforce`: how much would be written?").counter_for_each(
                "outrigger_audit_monitored_total",
                "Entries that the audit log would have if it were not in monitor mode.",
                "class",
                Class::ALL.map(Class::name),
            )?,
            lost: area
                .when("Any increase: the log has a gap; `why` says what to repair.")
                .of("class", Class::ALL.map(Class::name))
                .named("why", "`queue_full`, `closed`, or what is wrong with the disk, such as `disk_full`")
                .counters(
                    "outrigger_audit_lost_total",
                    "Entries that could not be written; a gap entry in the chain says how many.",
                )?,
            dropped: area
                .when("Entries are expected but not found: has retention removed them?")
                .of("class", Class::ALL.map(Class::name))
                .of("where", ["spool", "postgres"])
                .counters(
                    "outrigger_audit_dropped_total",
                    "Expired entries, removed from the spool or from PostgreSQL.",
                )?,
            alarms: area
                .when("Any increase: investigate at once, see docs/audit.md.")
                .of("finding", FINDINGS)
                .counters(
                    "outrigger_audit_alarms_total",
                    "Signs, found at the start or by PostgreSQL, that the audit log was changed or \
                     rolled back.",
                )?,
            writable: area.when("At 0, requests that need an entry get 503.").gauge_at_one(
                "outrigger_audit_writable",
                "0 while the entries of a class cannot be written, else 1.",
            )?,
            commits: area
                .when("Requests of a class with `before-response` are slow: this is the disk's part.")
                .histogram("outrigger_audit_commit_duration_seconds", "How long it took to write entries durably.")?,
            spool_bytes: area
                .when("Is there room? Compare with `audit.max_size` and the disk.")
                .gauge("outrigger_audit_spool_bytes", "Bytes of the audit log's files.")?,
            queued: area
                .when("It grows: the disk is too slow for the entries.")
                .gauge("outrigger_audit_queue_entries", "Entries that wait to be written.")?,
            unshipped: area
                .when("Before a disk is deleted: 0 means that PostgreSQL has all.")
                .gauge("outrigger_audit_unshipped_entries", "Entries on disk that PostgreSQL does not have yet.")?,
            lag: area
                .when("It grows: PostgreSQL is behind, and the entries are on this disk only.")
                .real("outrigger_audit_lag_seconds", "Age of the oldest entry that PostgreSQL does not have yet.")?,
            shipped: area
                .when("`refused` rises: the database rejects entries, which are set aside.")
                .of("result", SHIPPED)
                .counters(
                    "outrigger_audit_shipped_total",
                    "Entries sent to PostgreSQL, by result: stored, known already, or rejected by the \
                     database and set aside.",
                )?,
            batches: area
                .when("`failed` rises: PostgreSQL does not take entries; the lag shows for how long.")
                .of("result", BATCHES)
                .counters("outrigger_audit_batches_total", "Batches of entries sent to PostgreSQL, by result.")?,
        };
        metrics.begin_at_zero();
        Ok(metrics)
    }

    /// Creates series: the first increment of a new one would not be seen as an increase.
    fn begin_at_zero(&self) {
        SHIPPED.iter().for_each(|result| drop(self.shipped.with_label_values(&[result])));
        BATCHES.iter().for_each(|result| drop(self.batches.with_label_values(&[result])));
        FINDINGS.iter().for_each(|finding| drop(self.alarms.with_label_values(&[finding])));
    }

    /// Counts entries written to disk.
    pub fn entered(&self, class: Class, count: u64) {
        self.entries[class as usize].inc_by(count);
    }

    /// Counts an entry that `enforce` would have written.
    pub fn monitored(&self, class: Class) {
        self.monitored[class as usize].inc();
    }

    /// Counts entries that could not be written.
    pub fn lost(&self, class: Class, why: &str, count: u64) {
        self.lost.with_label_values(&[class.name(), why]).inc_by(count);
    }

    /// Counts a sign that the audit log was changed or put back to an earlier state.
    pub fn alarm(&self, finding: &str) {
        self.alarms.with_label_values(&[finding]).inc();
    }

    /// Entries that could not be written, and signs that the audit log was changed or rolled back.
    pub fn lost_and_alarms(&self) -> (u64, u64) {
        (outrigger_metrics::sum(&self.lost), outrigger_metrics::sum(&self.alarms))
    }

    /// Counts entries removed by retention.
    pub fn dropped(&self, class: Class, place: &str, count: u64) {
        self.dropped.with_label_values(&[class.name(), place]).inc_by(count);
    }

    /// Shows whether entries of all classes can be written.
    pub fn show_writable(&self, writable: &[AtomicBool]) {
        self.writable.set(writable.iter().all(|class| class.load(Ordering::Relaxed)).into());
    }
}
