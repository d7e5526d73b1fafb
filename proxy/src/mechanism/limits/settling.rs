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

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_policy::lease::{self, Bill};
use outrigger_policy::limiter::Quota;
use outrigger_rules::sections::redis::RedisSettings;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ErrorKind, Pipeline, RedisError, Value};

use crate::engine::state::State;
use crate::mechanism::limits::shared::{Asks, Cells, Mode};
use crate::transport::upstream::Resource;

/// The script that Redis runs for each key: [`lease::settle`], in microseconds of Redis's own clock, counted from 2025
/// on ([`EPOCH_S`]) so that a double holds fractions of them. Only effects are replicated (Redis 5 and later), so the
/// script may read the clock.
const SCRIPT: &str = r"
local interval, burst, owed = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local ago, known, machines = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local clock = redis.call('TIME')
local now = (clock[1] - 1735689600) * 1000000 + clock[2]
if now > tonumber(ARGV[7]) then
  return redis.error_reply('LATE this usage report has expired')
end
local kept = redis.call('GET', KEYS[1])
local before = kept and tonumber(kept) or now + known
local since = math.min(math.max(before, now - ago), now + 2 * burst + machines * interval)
local tat = math.max(since + owed * interval, now)
if tat > now then
  redis.call('SET', KEYS[1], string.format('%.3f', tat), 'PX', math.ceil((tat - now) / 1000))
elseif kept then
  redis.call('DEL', KEYS[1])
end
return math.ceil(tat - now)
";

/// The start of 2025, in seconds since 1970.
const EPOCH_S: u64 = 1_735_689_600;

/// Usage is reported within this time, unless the lease runs out earlier.
const SETTLE_EVERY: Duration = Duration::from_millis(200);
/// The maximum number of usage reports in a batch.
const BATCH: usize = 512;
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
/// How often keys without new usage are checked.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Delays between attempts to connect to Redis.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// Why Redis could not be asked.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("it cannot be reached: {0}")]
    Connect(RedisError),
    #[error("it did not respond within {}", outrigger_rules::units::Span(*.0))]
    Timeout(Duration),
    #[error("the connection was lost: {0}")]
    Closed(RedisError),
    #[error("it refuses: {0}")]
    Refused(String),
    #[error("its reply is not one of Redis: {0}")]
    Nonsense(String),
}

impl LinkError {
    /// Returns the metric label.
    const fn kind(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Timeout(_) => "timeout",
            Self::Closed(_) => "closed",
            Self::Refused(_) => "refused",
            Self::Nonsense(_) => "nonsense",
        }
    }

    fn of(error: RedisError, timeout: Duration, is_connecting: bool) -> Self {
        match error.kind() {
            _ if error.is_timeout() => Self::Timeout(timeout),
            ErrorKind::Parse | ErrorKind::UnexpectedReturnType | ErrorKind::Client => Self::Nonsense(error.to_string()),
            ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::AuthenticationFailed => {
                Self::Refused(error.to_string())
            }
            _ if is_connecting => Self::Connect(error),
            _ => Self::Closed(error),
        }
    }
}

/// A connection on which the script is loaded.
struct Link {
    connection: MultiplexedConnection,
    script: String,
    timeout: Duration,
    /// Redis's clock in its last reply, and when the reply arrived.
    clock: (u64, Instant),
}

impl Link {
    async fn open(settings: &RedisSettings) -> Result<Self, LinkError> {
        let timeout = settings.timeout;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout))
            .set_pipeline_buffer_size(1);
        let opening = settings.client.get_multiplexed_async_connection_with_config(&config);
        // The library's own timeout does not include name resolution.
        let connection = tokio::time::timeout(timeout * 2, opening).await.map_err(|_| LinkError::Timeout(timeout))?;
        let connection = connection.map_err(|e| LinkError::of(e, timeout, true))?;
        let mut link = Self { connection, script: String::new(), timeout, clock: (0, Instant::now()) };
        link.load().await?;
        link.give_sign().await?;
        link.settle(settings, &[Due::PROBE], 1).await?;
        Ok(link)
    }

    async fn load(&mut self) -> Result<(), LinkError> {
        let mut load = Pipeline::new();
        load.cmd("SCRIPT").arg("LOAD").arg(SCRIPT);
        match &self.send(&load, 1).await?[..] {
            [Value::BulkString(sha)] if sha.len() == 40 && sha.iter().all(u8::is_ascii_hexdigit) => {
                self.script = String::from_utf8_lossy(sha).into_owned();
                Ok(())
            }
            [Value::ServerError(e)] => Err(LinkError::Refused(e.to_string())),
            _ => Err(LinkError::Nonsense("no digest of a script".to_owned())),
        }
    }

    async fn send(&mut self, commands: &Pipeline, count: usize) -> Result<Vec<Value>, LinkError> {
        let answers =
            tokio::time::timeout(self.timeout, self.connection.send_packed_commands(commands, 0, count)).await;
        let answers = answers.map_err(|_| LinkError::Timeout(self.timeout))?;
        let answers = answers.map_err(|e| LinkError::of(e, self.timeout, false))?;
        if answers.len() != count {
            return Err(LinkError::Nonsense(format!("{} replies to {count} commands", answers.len())));
        }
        Ok(answers)
    }

    /// Reads Redis's clock from a reply.
    fn heard(&mut self, clock: &Value) -> Result<(), LinkError> {
        let micros = match clock {
            Value::Array(parts) => match &parts[..] {
                [Value::BulkString(seconds), Value::BulkString(micros)] => {
                    number(seconds).zip(number(micros).filter(|micros| *micros < 1_000_000)).and_then(
                        |(seconds, micros)| seconds.checked_sub(EPOCH_S)?.checked_mul(1_000_000)?.checked_add(micros),
                    )
                }
                _ => None,
            },
            Value::ServerError(e) => return Err(LinkError::Refused(e.to_string())),
            _ => None,
        };
        let micros = micros.ok_or_else(|| LinkError::Nonsense("no time, or one before 2025".to_owned()))?;
        self.clock = (micros, Instant::now());
        Ok(())
    }

    /// Returns until when a report is valid, in Redis's time. The network delay of the last reply is unknown, so a
    /// report is valid for twice the timeout.
    fn good_until(&self) -> u64 {
        let (clock, read_at) = self.clock;
        let ahead = read_at.elapsed().saturating_add(self.timeout * 2).as_micros();
        clock.saturating_add(u64::try_from(ahead).unwrap_or(u64::MAX))
    }

    /// Checks the connection.
    async fn give_sign(&mut self) -> Result<(), LinkError> {
        let mut time = Pipeline::new();
        time.cmd("TIME");
        let answers = self.send(&time, 1).await?;
        answers.first().map_or(Ok(()), |clock| self.heard(clock))
    }

    /// How far ahead each arrival time is afterwards, in nanoseconds.
    async fn settle(&mut self, settings: &RedisSettings, bills: &[Due], machines: u32) -> Result<Vec<u64>, LinkError> {
        let mut answers = self.send(&self.bills(settings, bills, machines), bills.len() + 1).await?;
        let is_unknown = |answer: &Value| matches!(answer, Value::ServerError(e) if e.code() == "NOSCRIPT");
        // Redis has lost its scripts (`SCRIPT FLUSH`), so it has applied no report.
        if answers[..bills.len()].iter().all(is_unknown) {
            self.load().await?;
            answers = self.send(&self.bills(settings, bills, machines), bills.len() + 1).await?;
        }
        self.heard(&answers[bills.len()])?;
        answers.iter().zip(bills).map(|(answer, due)| ahead(answer, due, machines)).collect()
    }

    fn bills(&self, settings: &RedisSettings, bills: &[Due], machines: u32) -> Pipeline {
        let micros = |ns: u64| format!("{}.{:03}", ns / 1000, ns % 1000);
        let good_until = self.good_until();
        let mut commands = Pipeline::with_capacity(bills.len() + 1);
        for due in bills {
            let [one, other] = due.name;
            commands
                .cmd("EVALSHA")
                .arg(&self.script)
                .arg(1)
                .arg(format!("{}:{one:016x}{other:016x}", settings.prefix))
                .arg(micros(due.quota.charge_ns(1)))
                .arg(micros(due.quota.burst_ns()))
                .arg(due.bill.owed)
                .arg(micros(due.bill.ago_ns))
                .arg(micros(due.bill.known_ns))
                .arg(machines)
                .arg(good_until);
        }
        commands.cmd("TIME");
        commands
    }
}

/// Parses a number that consists of digits only.
fn number(digits: &[u8]) -> Option<u64> {
    let is_number = (1..=16).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    is_number.then(|| digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// Parses one reply of the script. Rejects values that the script cannot return.
fn ahead(answer: &Value, due: &Due, machines: u32) -> Result<u64, LinkError> {
    match answer {
        Value::Int(micros) => {
            let most = lease::furthest(due.quota, machines)
                .saturating_add(due.quota.charge_ns(due.bill.owed.unsigned_abs()))
                .saturating_add(1_000_000);
            let ns = u64::try_from(*micros).ok().and_then(|micros| micros.checked_mul(1000)).filter(|ns| *ns <= most);
            ns.ok_or_else(|| LinkError::Nonsense(format!("a quota that is full again in {micros} µs")))
        }
        Value::ServerError(e) => Err(LinkError::Refused(e.to_string())),
        _ => Err(LinkError::Nonsense("no number".to_owned())),
    }
}

/// A usage report, ready to be sent.
#[derive(Clone, Copy, Debug)]
struct Due {
    index: usize,
    name: [u64; 2],
    quota: Quota,
    bill: Bill,
    /// The debt when the report was written; the report may contain less.
    owed: i32,
}

impl Due {
    /// A report for an unused key that expires within a millisecond: a Redis that is read-only or full returns an
    /// error.
    const PROBE: Self = Self {
        index: 0,
        name: [0, 0],
        quota: Quota::MILLISECOND,
        bill: Bill { owed: 1, ago_ns: 0, known_ns: 0 },
        owed: 1,
    };
}

/// The task's state of a cell in use.
#[derive(Clone, Copy, Debug, Default)]
struct Note {
    /// When the current debt began.
    since: u64,
    settled_at: u64,
    is_queued: bool,
    is_urgent: bool,
    is_leaving: bool,
}

/// The keys that need a sync, and when.
#[derive(Debug, Default)]
struct Ledger {
    notes: HashMap<usize, Note, foldhash::fast::RandomState>,
    urgent: VecDeque<usize>,
    soon: BinaryHeap<Reverse<(u64, usize)>>,
}

impl Ledger {
    /// Queues the keys that have asked for a sync. Returns whether there were any.
    fn collect(&mut self, cells: &Cells, now: u64) -> bool {
        let mut any = false;
        cells.asking(|index| {
            any = true;
            self.queue(index, cells.cell(index).asks(), now);
        });
        any
    }

    fn queue(&mut self, index: usize, asks: Asks, now: u64) {
        let note = self.notes.entry(index).or_default();
        if !note.is_queued {
            (note.is_queued, note.since) = (true, now);
            let due = note.settled_at.saturating_add(SETTLE_EVERY.as_nanos() as u64).max(now);
            self.soon.push(Reverse((due, index)));
        }
        if asks == Asks::Now && !note.is_urgent {
            note.is_urgent = true;
            self.urgent.push_back(index);
        }
    }

    /// Returns the next key that is due. A key may be in both queues.
    fn next(&mut self, now: u64) -> Option<usize> {
        loop {
            let index = match self.urgent.pop_front() {
                Some(index) => index,
                None if self.soon.peek().is_some_and(|Reverse((due, _))| *due <= now) => self.soon.pop()?.0.1,
                None => return None,
            };
            if let Some(note) = self.notes.get_mut(&index).filter(|note| note.is_queued) {
                (note.is_queued, note.is_urgent) = (false, false);
                return Some(index);
            }
        }
    }

    /// Returns the usage reports that are due, at most a batch.
    fn bills(&mut self, cells: &Cells, machines: u32, was_alone: bool, now: u64) -> Vec<Due> {
        let mut bills = Vec::new();
        while bills.len() < BATCH
            && let Some(index) = self.next(now)
        {
            let cell = cells.cell(index);
            let Some(name) = cell.name() else {
                // The name is being written at this moment.
                self.queue(index, Asks::Soon, now);
                break;
            };
            cell.heard();
            let account = cell.account();
            let Some(quota) = cell.quota().filter(|_| account.owed != 0) else { continue };
            let owed = if was_alone { cell.still_owed(quota, machines, now) } else { account.owed };
            let note = self.notes.get(&index).copied().unwrap_or_default();
            // The share's arrival time already accounts for the age of the usage.
            let ago_ns = if was_alone { 0 } else { now.saturating_sub(note.since) };
            let bill = Bill { owed, ago_ns, known_ns: account.told.saturating_sub(now) };
            bills.push(Due { index, name, quota, bill, owed: account.owed });
        }
        bills
    }

    /// Queues keys with debt that did not ask, and frees idle ones.
    fn sweep(&mut self, cells: &Cells, machines: u32, now: u64) {
        let mut asking = Vec::new();
        self.notes.retain(|index, note| {
            let cell = cells.cell(*index);
            if note.is_queued {
                return true;
            }
            if cell.account().owed != 0 {
                asking.push(*index);
            } else if note.is_leaving {
                cells.free(*index);
                return false;
            } else if cell.is_idle(now) && now.saturating_sub(note.settled_at) > SWEEP_EVERY.as_nanos() as u64 {
                cells.leave(*index);
                note.is_leaving = true;
            }
            if let Some(quota) = cell.quota() {
                cell.keep_within(quota, machines, now);
            }
            true
        });
        for index in asking {
            self.queue(index, Asks::Soon, now);
        }
    }

    /// Frees all cells: no limit is shared any more.
    fn close(&mut self, cells: &Cells) {
        for (index, _) in self.notes.drain() {
            cells.free(index);
        }
        self.urgent.clear();
        self.soon.clear();
    }
}

/// Syncs for the life of the process.
pub async fn keep_settled(state: Arc<State>) {
    let mut settler = Settler {
        ledger: Ledger::default(),
        link: None,
        retry: FIRST_RETRY,
        retry_at: Instant::now(),
        swept_at: Instant::now(),
        awake_until: Instant::now(),
        is_told: false,
        state,
    };
    settler.state.metrics.limits.shared.show(Mode::Off);
    let mut in_force: Option<Arc<RedisSettings>> = None;
    loop {
        let settings = settler.state.rules.load().config.limits.sharing.clone();
        match (&in_force, &settings) {
            (None, None) => {}
            (Some(_), None) => settler.stop(),
            (Some(before), Some(now)) if now.reaches_the_same(before) => {}
            (_, Some(_)) => settler.begin(),
        }
        in_force = settings;
        let rest = match &in_force {
            Some(settings) => settler.turn(settings).await,
            None => SLEEP,
        };
        tokio::time::sleep(rest).await;
    }
}

struct Settler {
    state: Arc<State>,
    ledger: Ledger,
    link: Option<Link>,
    retry: Duration,
    retry_at: Instant,
    swept_at: Instant,
    awake_until: Instant,
    /// Whether the outage of Redis has been logged.
    is_told: bool,
}

impl Settler {
    fn now(&self) -> u64 {
        self.state.nanoseconds(Instant::now())
    }

    /// Starts sharing, or switches to another Redis.
    fn begin(&mut self) {
        self.state.shared.prepare();
        if self.state.shared.mode() == Mode::Shared {
            self.stand_alone();
        }
        self.link = None;
        (self.retry, self.retry_at, self.is_told) = (FIRST_RETRY, Instant::now(), false);
        self.set(Mode::Degraded, Some("not connected yet".to_owned()));
    }

    fn stop(&mut self) {
        self.link = None;
        self.set(Mode::Off, None);
        let state = Arc::clone(&self.state);
        if let Some(cells) = state.shared.cells() {
            self.ledger.collect(cells, self.now());
            self.ledger.close(cells);
        }
        tracing::info!(event = "shared_limits_off", "limits are no longer shared with other Machines");
    }

    fn set(&self, mode: Mode, reason: Option<String>) {
        self.state.shared.set(mode, reason);
        self.state.metrics.limits.shared.show(mode);
    }

    /// Syncs the keys that were used. Returns how long to pause.
    async fn turn(&mut self, settings: &RedisSettings) -> Duration {
        let state = Arc::clone(&self.state);
        let cells = state.shared.prepare();
        let machines = settings.machines.max(state.machines.known());
        state.shared.set_machines(machines);
        state.metrics.limits.shared.machines.set(machines.into());
        let is_asked = self.ledger.collect(cells, self.now());
        if is_asked {
            self.awake_until = Instant::now() + AWAKE;
        }
        if self.swept_at.elapsed() >= SWEEP_EVERY {
            self.swept_at = Instant::now();
            self.ledger.sweep(cells, machines, self.now());
            state.metrics.limits.shared.keys.set(i64::try_from(self.ledger.notes.len()).unwrap_or(i64::MAX));
        }
        let outcome = match self.link.take() {
            Some(link) => self.settle(link, settings, cells, machines).await,
            None if Instant::now() >= self.retry_at => self.come_back(settings, cells, machines).await,
            None => return REST,
        };
        match outcome {
            Ok(link) => self.link = Some(link),
            Err(e) => {
                if let LinkError::Connect(e) = &e
                    && let Some(resource) = Resource::behind(e)
                {
                    self.state.exhaustion.note(resource, &self.state);
                }
                self.fail(&e, settings);
            }
        }
        match Instant::now() < self.awake_until {
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
        let is_settled = self.settle_batch(&mut link, settings, cells, machines, false).await?;
        if !is_settled && link.clock.1.elapsed() >= SIGN_OF_LIFE {
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
            if !self.settle_batch(&mut link, settings, cells, machines, true).await? {
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
    async fn settle_batch(
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
        let began = Instant::now();
        let answers = link.settle(settings, &bills, machines).await?;
        let metrics = &self.state.metrics.limits.shared;
        metrics.exchanges.observe(began.elapsed().as_secs_f64());
        metrics.settled.inc_by(bills.len() as u64);
        let now = self.now();
        for (due, ahead_ns) in bills.iter().zip(answers) {
            cells.cell(due.index).settled(due.owed, now.saturating_add(ahead_ns));
            if let Some(note) = self.ledger.notes.get_mut(&due.index) {
                // Machines that sync after this one read more, so the next usage is synced at once.
                note.settled_at = if was_alone { 0 } else { now };
            }
            let counter = if due.bill.owed < 0 { &metrics.given_back } else { &metrics.spent };
            counter.inc_by(due.bill.owed.unsigned_abs().into());
        }
        Ok(true)
    }

    /// Starts local enforcement of each key, from what is known of it.
    fn stand_alone(&mut self) {
        let state = Arc::clone(&self.state);
        let Some(cells) = state.shared.cells() else { return };
        let (machines, now) = (state.shared.machines(), self.now());
        self.ledger.collect(cells, now);
        for index in self.ledger.notes.keys() {
            cells.cell(*index).stand_alone(machines, now);
        }
    }

    fn fail(&mut self, error: &LinkError, settings: &RedisSettings) {
        self.state.metrics.limits.shared.failed(error.kind());
        if self.state.shared.mode() == Mode::Shared {
            self.stand_alone();
        }
        let reason = error.to_string();
        if !self.is_told {
            self.is_told = true;
            tracing::warn!(
                event = "shared_limits_degraded",
                redis = settings.shown,
                kind = error.kind(),
                machines = self.state.shared.machines(),
                "Redis is unavailable for shared limits, each Machine enforces its share until it is back: {reason}"
            );
        }
        let before = self.state.shared.standpoint();
        if before.mode != Mode::Degraded || before.reason.as_ref() != Some(&reason) {
            self.set(Mode::Degraded, Some(reason));
        }
        self.retry_at = Instant::now() + self.retry;
        self.retry = (self.retry * 2).min(LAST_RETRY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(owed: i32) -> Due {
        let quota = Quota::from_parts(1_000_000_000, 10);
        Due { index: 0, name: [1, 2], quota, bill: Bill { owed, ..Bill::default() }, owed }
    }

    #[test]
    fn rejects_replies_that_the_script_cannot_give() {
        let read = |answer: Value| ahead(&answer, &due(3), 5);
        assert_eq!(read(Value::Int(0)).ok(), Some(0));
        assert_eq!(read(Value::Int(1_500_000)).ok(), Some(1_500_000_000));
        // Twice the burst, one for each of five Machines, and the report.
        assert!(read(Value::Int(28_000_000)).is_ok());
        for wrong in [
            Value::Int(-1),
            Value::Int(28_002_000),
            Value::Int(i64::MAX),
            Value::Nil,
            Value::Okay,
            Value::BulkString(b"1".to_vec()),
            Value::Array(vec![Value::Int(1)]),
        ] {
            assert_eq!(read(wrong.clone()).map_err(|e| e.kind()), Err("nonsense"), "{wrong:?}");
        }
    }

    #[test]
    fn urgent_keys_are_synced_at_once_and_others_on_schedule() {
        let mut ledger = Ledger::default();
        let now = 1 << 50;
        let later = now + SETTLE_EVERY.as_nanos() as u64;
        ledger.notes.insert(1, Note { settled_at: now, ..Note::default() });
        ledger.queue(1, Asks::Soon, now);
        ledger.queue(2, Asks::Soon, now);
        // A key without a recent sync is new to the other Machines as well.
        assert_eq!((ledger.next(now), ledger.next(now)), (Some(2), None));
        ledger.queue(1, Asks::Now, now);
        ledger.queue(1, Asks::Now, now);
        assert_eq!((ledger.next(now), ledger.next(later)), (Some(1), None));
        assert_eq!(ledger.notes[&1].since, now);
    }
}
