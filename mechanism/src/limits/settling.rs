//! Syncs this Machine's usage of shared rate limits with Redis, in one background task.
//!
//! ```text
//!   degraded ── connected, and all unreported usage reported ────► shared
//!      ▲                                                             │
//!      └── no reply in time · closed · refused · nonsense ───────────┘   retry after 0.1 s … 1 s
//! ```
//!
//! Keys that need it are synced in batches, one batch in flight at a time: when Redis is slow, batches grow and leases
//! are used up, but no request waits. Every usage report carries an expiry in Redis's own clock, so that a Redis that
//! stalls and resumes does not apply reports that their sender has given up on and sends again.

mod ledger;
mod link;

use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_identity::clock;
use outrigger_policy::lease::UsageReport;
use outrigger_policy::limiter::Quota;
use outrigger_rules::sections::redis::RedisSettings;

use crate::clock::Clock;
use crate::limits::metrics::SharedLimits;
use crate::limits::settling::ledger::{Due, Ledger, SWEEP_EVERY};
use crate::limits::settling::link::{Link, LinkError};
use crate::limits::shared::{Asks, Cells, Mode, Shared};
use crate::machines::Machines;
use outrigger_transport::upstream::Resource;

/// The maximum number of batches after a reconnect, regardless of remaining debt: enough for 512,000 keys.
const CATCH_UP: usize = 1000;
/// How often to look for keys that need a sync: while there are some, for a while after, and otherwise.
const LOOK_EVERY: Duration = Duration::from_millis(2);
const LISTEN: Duration = Duration::from_millis(5);
const REST: Duration = Duration::from_millis(20);
/// The same while no limit is shared.
const SLEEP: Duration = Duration::from_millis(100);
/// How long another key is expected after the last one.
const AWAKE: Duration = Duration::from_millis(200);
/// How often an idle connection to Redis is checked. Together with `timeout` well within a second.
const SIGN_OF_LIFE: Duration = Duration::from_millis(400);
/// Delays between attempts to connect to Redis.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// State that the task shares with requests, and its metrics.
#[derive(Debug)]
pub struct SharedState {
    /// The state of shared rate limits.
    pub limits: Arc<Shared>,
    /// The number of Machines.
    pub machines: Arc<Machines>,
    /// The metrics.
    pub metrics: SharedLimits,
    /// The clock of rate limits.
    pub clock: Clock,
}

/// How far ahead a reply of the script puts the arrival time, in nanoseconds; `None` for a reply that the script cannot give. For the
/// fuzz targets.
#[doc(hidden)]
pub fn reply_ns(reply: &redis::Value, quota: Quota, debt: i32, machines: u32) -> Option<u64> {
    let bill = UsageReport { debt, ..UsageReport::default() };
    link::ahead(reply, &Due { quota, bill, debt, ..Due::PROBE }, machines).ok()
}

/// Syncs for the life of the process. `settings` returns those in force; `None` while no limit is shared. `note_exhaustion` is
/// called when this host lacks a resource that a connection needs.
pub async fn keep_synced(
    shared: SharedState,
    settings: impl Fn() -> Option<Arc<RedisSettings>>,
    note_exhaustion: impl Fn(Resource),
) {
    let mut settler = Settler {
        ledger: Ledger::default(),
        link: None,
        retry: FIRST_RETRY,
        retry_at: clock::now(),
        swept_at: clock::now(),
        awake_until: clock::now(),
        is_told: false,
        shared,
        note_exhaustion,
    };
    settler.shared.metrics.show(Mode::Off);
    let mut in_force: Option<Arc<RedisSettings>> = None;
    loop {
        let next = settings();
        match (&in_force, &next) {
            (None, None) => {}
            (Some(_), None) => settler.stop(),
            (Some(before), Some(now)) if now.reaches_the_same(before) => {}
            (_, Some(_)) => settler.begin(),
        }
        in_force = next;
        let rest = match &in_force {
            Some(settings) => settler.turn(settings).await,
            None => SLEEP,
        };
        tokio::time::sleep(rest).await;
    }
}

struct Settler<F> {
    shared: SharedState,
    note_exhaustion: F,
    ledger: Ledger,
    link: Option<Link>,
    retry: Duration,
    retry_at: Instant,
    swept_at: Instant,
    awake_until: Instant,
    /// Whether the outage of Redis has been logged.
    is_told: bool,
}

impl<F: Fn(Resource)> Settler<F> {
    fn now(&self) -> u64 {
        self.shared.clock.nanoseconds(clock::now())
    }

    /// Starts sharing, or switches to another Redis.
    fn begin(&mut self) {
        self.shared.limits.prepare();
        if self.shared.limits.mode() == Mode::Shared {
            self.stand_alone();
        }
        self.link = None;
        (self.retry, self.retry_at, self.is_told) = (FIRST_RETRY, clock::now(), false);
        self.set(Mode::Degraded, Some("not connected yet".to_owned()));
    }

    fn stop(&mut self) {
        self.link = None;
        self.set(Mode::Off, None);
        let limits = Arc::clone(&self.shared.limits);
        if let Some(cells) = limits.cells() {
            self.ledger.collect(cells, self.now());
            self.ledger.close(cells);
        }
        tracing::info!(event = "shared_limits_off", "limits are no longer shared with other Machines");
    }

    fn set(&self, mode: Mode, reason: Option<String>) {
        self.shared.limits.set(mode, reason);
        self.shared.metrics.show(mode);
    }

    /// Syncs the keys that were used. Returns how long to pause.
    async fn turn(&mut self, settings: &RedisSettings) -> Duration {
        let limits = Arc::clone(&self.shared.limits);
        let cells = limits.prepare();
        let machines = settings.machines.max(self.shared.machines.known());
        limits.set_machines(machines);
        self.shared.metrics.machines.set(machines.into());
        let is_asked = self.ledger.collect(cells, self.now());
        if is_asked {
            self.awake_until = clock::now() + AWAKE;
        }
        if clock::since(self.swept_at) >= SWEEP_EVERY {
            self.swept_at = clock::now();
            self.ledger.sweep(cells, machines, self.now());
            self.shared.metrics.keys.set(i64::try_from(self.ledger.notes.len()).unwrap_or(i64::MAX));
        }
        let outcome = match self.link.take() {
            Some(link) => self.settle(link, settings, cells, machines).await,
            None if clock::now() >= self.retry_at => self.come_back(settings, cells, machines).await,
            None => return REST,
        };
        match outcome {
            Ok(link) => self.link = Some(link),
            Err(e) => {
                if let LinkError::Connect(e) = &e
                    && let Some(resource) = Resource::behind(e)
                {
                    (self.note_exhaustion)(resource);
                }
                self.fail(&e, settings);
            }
        }
        match clock::now() < self.awake_until {
            _ if is_asked => LOOK_EVERY,
            true => LISTEN,
            false => REST,
        }
    }

    async fn settle(
        &mut self,
        mut link: Link,
        settings: &RedisSettings,
        cells: &Cells,
        machines: u32,
    ) -> Result<Link, LinkError> {
        let is_settled = self.sync_batch(&mut link, settings, cells, machines, false).await?;
        if !is_settled && clock::since(link.clock.1) >= SIGN_OF_LIFE {
            link.give_sign().await?;
        }
        Ok(link)
    }

    /// Connects, and reports the debt of every key before Redis decides again.
    async fn come_back(&mut self, settings: &RedisSettings, cells: &Cells, machines: u32) -> Result<Link, LinkError> {
        let mut link = Link::open(settings).await?;
        let now = self.now();
        self.ledger.collect(cells, now);
        self.ledger.sweep(cells, machines, now);
        let owing: Vec<usize> = self.ledger.notes.keys().copied().collect();
        for index in owing {
            self.ledger.queue(index, Asks::Now, now);
        }
        for _ in 0..CATCH_UP {
            if !self.sync_batch(&mut link, settings, cells, machines, true).await? {
                break;
            }
        }
        (self.retry, self.is_told) = (FIRST_RETRY, false);
        self.set(Mode::Shared, None);
        tracing::info!(
            event = "shared_limits_shared",
            redis = settings.shown,
            machines,
            "limits are shared with all Machines"
        );
        Ok(link)
    }

    /// Syncs one batch. Returns whether there was one.
    async fn sync_batch(
        &mut self,
        link: &mut Link,
        settings: &RedisSettings,
        cells: &Cells,
        machines: u32,
        was_alone: bool,
    ) -> Result<bool, LinkError> {
        let bills = self.ledger.bills(cells, machines, was_alone, self.now());
        if bills.is_empty() {
            return Ok(false);
        }
        let began = clock::now();
        let answers = link.settle(settings, &bills, machines).await?;
        let metrics = &self.shared.metrics;
        metrics.exchanges.observe(clock::since(began).as_secs_f64());
        metrics.settled.inc_by(bills.len() as u64);
        let now = self.now();
        for (due, ahead_ns) in bills.iter().zip(answers) {
            cells.cell(due.index).settled(due.debt, now.saturating_add(ahead_ns));
            if let Some(note) = self.ledger.notes.get_mut(&due.index) {
                // Machines that sync after this one read more, so the next usage is synced at once.
                note.settled_at = if was_alone { 0 } else { now };
            }
            let counter = if due.bill.debt < 0 { &metrics.given_back } else { &metrics.spent };
            counter.inc_by(due.bill.debt.unsigned_abs().into());
        }
        Ok(true)
    }

    /// Starts local enforcement of each key, from what is known of it.
    fn stand_alone(&mut self) {
        let limits = Arc::clone(&self.shared.limits);
        let Some(cells) = limits.cells() else { return };
        let (machines, now) = (limits.machines(), self.now());
        self.ledger.collect(cells, now);
        for index in self.ledger.notes.keys() {
            cells.cell(*index).stand_alone(machines, now);
        }
    }

    fn fail(&mut self, error: &LinkError, settings: &RedisSettings) {
        self.shared.metrics.failed(error.kind());
        if self.shared.limits.mode() == Mode::Shared {
            self.stand_alone();
        }
        let reason = error.to_string();
        if !self.is_told {
            self.is_told = true;
            tracing::warn!(
                event = "shared_limits_degraded",
                redis = settings.shown,
                kind = error.kind(),
                machines = self.shared.limits.machines(),
                "Redis is unavailable for shared limits, each Machine enforces its share until it is back: {reason}"
            );
        }
        let before = self.shared.limits.standpoint();
        if before.mode != Mode::Degraded || before.reason.as_ref() != Some(&reason) {
            self.set(Mode::Degraded, Some(reason));
        }
        self.retry_at = clock::now() + self.retry;
        self.retry = (self.retry * 2).min(LAST_RETRY);
    }
}
