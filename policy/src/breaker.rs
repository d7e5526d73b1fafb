//! When to stop asking somebody who fails, and how to find out that it is well again.
//!
//! ```text
//!                trips                    its time is over, and somebody asks
//!   Closed ───────────────► Open ──────────────────────────────────► HalfOpen
//!     ▲                      ▲ ▲                                       │   │
//!     │ the ramp is over     │ └────────────── a probe fails ──────────┘   │
//!   Ramp ────────────────────┘ trips                                       │
//!     ▲                                                                    │
//!     └──────────────────────── enough probes succeed ─────────────────────┘
//! ```
//!
//! Sources: Nygard, *Release It!* (2007); the trip conditions and their names are those of resilience4j (consecutive, failure rate
//! and slow-call rate over a sliding window of calls or time, with a minimum); the ramp is Envoy's slow start, by refusing
//! instead of weighting.
//!
//! Nothing here waits for traffic that may never come: a half-open breaker lets probes through as they come and counts its
//! successes for as long as it takes, and a probe whose end nobody learns gives its place back as [`Outcome::Ignored`].

use std::time::Duration;

/// Over which calls rates are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// The last so many; at most [`MOST_CALLS`].
    Calls(u32),
    /// Those that ended within the last so long.
    Time(Duration),
}

/// The longest window of calls.
pub const MOST_CALLS: u32 = 10_000;
/// A window of time is forgotten a tenth at a time.
const BUCKETS: usize = 10;
/// The share of calls that pass when the ramp begins.
const FIRST_SHARE: f64 = 0.1;
/// How long somebody waits who asked while all probes are out, or while traffic is ramped up.
const SOON: Duration = Duration::from_secs(1);

/// When it trips, and how it comes back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Trips after so many failures in a row; 0: never for that reason.
    pub consecutive: u32,
    /// Over which calls the two rates are taken.
    pub window: Span,
    /// With fewer calls than this in the window, no rate says anything.
    pub minimum: u32,
    /// Trips when at least this share of calls failed, 0 to 1; none: never for that reason.
    pub failure_rate: Option<f64>,
    /// A call that takes this long is slow.
    pub slow_after: Option<Duration>,
    /// Trips when at least this share of calls was slow, 0 to 1.
    pub slow_rate: Option<f64>,
    /// How long it is open after it tripped.
    pub open_for: Duration,
    /// Each further trip doubles that, up to this.
    pub max_open_for: Duration,
    /// And up to this share more, by chance, so that many do not come back in one moment.
    pub jitter: f64,
    /// How many probes are let through at the same time while it is half-open; at least one.
    pub probes: u32,
    /// So many successful probes close it; at least one.
    pub successes: u32,
    /// Over how long traffic is let back, from a tenth to all; zero: at once.
    pub ramp: Duration,
}

/// Where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Calls pass.
    Closed,
    /// Calls are refused.
    Open,
    /// A few calls pass, to see.
    HalfOpen,
    /// It is closed again, and more and more calls pass.
    Ramp,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Closed, Self::Open, Self::HalfOpen, Self::Ramp];

    /// The name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::Ramp => "ramp",
        }
    }
}

/// Who decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Control {
    /// The breaker.
    #[default]
    Automatic,
    /// An operator: nothing passes.
    ForcedOpen,
    /// An operator: everything passes, and is counted.
    ForcedClosed,
}

/// Why it opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Too many failures in a row.
    Consecutive,
    /// Too many failures.
    FailureRate,
    /// Too many slow calls.
    SlowRate,
    /// A probe failed.
    Probe,
}

impl Reason {
    /// The name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Consecutive => "consecutive_failures",
            Self::FailureRate => "failure_rate",
            Self::SlowRate => "slow_call_rate",
            Self::Probe => "failed_probe",
        }
    }
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With an answer, after this long.
    Success(Duration),
    /// Without one, or with one that says that the other side failed.
    Failure,
    /// Nobody knows: whoever called has left. Says nothing about the other side.
    Ignored,
}

/// A call may be made. Given back by [`Breaker::record`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an unrecorded permit leaves a half-open breaker waiting for its probe"]
pub struct Permit {
    epoch: u64,
}

impl Permit {
    const fn epoch(self) -> u64 {
        self.epoch
    }
}

/// No call may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// When asking again may help.
    pub retry_after: Duration,
}

/// One breaker. Times are nanoseconds on a monotonic clock; `dice` is a random number in 0..1.
#[derive(Clone, Debug)]
pub struct Breaker {
    settings: Settings,
    control: Control,
    inner: Inner,
    /// Counts up with every change of state: what was permitted before it says nothing about what came after.
    epoch: u64,
    window: Window,
    consecutive: u32,
    /// How often it opened in a row, and when it was last closed again.
    trips: u32,
    closed_at: u64,
    reason: Option<Reason>,
}

#[derive(Clone, Copy, Debug)]
enum Inner {
    Closed,
    Open { until: u64, length: u64 },
    HalfOpen { probes: u32, successes: u32 },
    Ramp { since: u64, credit: f64 },
}

impl Breaker {
    /// Closed, and knows nothing.
    pub fn new(settings: Settings) -> Self {
        Self {
            window: Window::new(settings.window),
            settings,
            control: Control::Automatic,
            inner: Inner::Closed,
            epoch: 0,
            consecutive: 0,
            trips: 0,
            closed_at: 0,
            reason: None,
        }
    }

    /// Changes the settings; the state stays, the window only if its span does.
    pub fn set(&mut self, settings: Settings) {
        if settings.window != self.settings.window {
            self.window = Window::new(settings.window);
        }
        self.settings = settings;
    }

    /// Where it stands; what an operator says comes first.
    pub const fn state(&self) -> State {
        match (self.control, self.inner) {
            (Control::ForcedOpen, _) => State::Open,
            (Control::ForcedClosed, _) | (_, Inner::Closed) => State::Closed,
            (_, Inner::Open { .. }) => State::Open,
            (_, Inner::HalfOpen { .. }) => State::HalfOpen,
            (_, Inner::Ramp { .. }) => State::Ramp,
        }
    }

    /// Who decides.
    pub const fn control(&self) -> Control {
        self.control
    }

    /// Why it opened last.
    pub const fn reason(&self) -> Option<Reason> {
        self.reason
    }

    /// Failures in a row, up to now.
    pub const fn failures(&self) -> u32 {
        self.consecutive
    }

    /// Calls in the window, and how many of them failed and were slow.
    pub fn seen(&self, now: u64) -> (u32, u32, u32) {
        let totals = self.window.totals(now);
        (totals.calls, totals.failed, totals.slow)
    }

    /// An operator takes over, or gives back; given back, it begins anew.
    pub fn control_by(&mut self, control: Control, now: u64) {
        if control == self.control {
            return;
        }
        self.control = control;
        self.close(now);
        self.enter(Inner::Closed);
        self.trips = 0;
    }

    /// Whether [`Breaker::ask`] would say no, without asking.
    pub fn refuses(&self, now: u64) -> Option<Refused> {
        match (self.control, self.inner) {
            (Control::ForcedOpen, _) => Some(Refused { retry_after: self.settings.open_for }),
            (Control::ForcedClosed, _) => None,
            (_, Inner::Open { until, .. }) if now < until => {
                Some(Refused { retry_after: Duration::from_nanos(until - now) })
            }
            (_, Inner::HalfOpen { probes, .. }) if probes >= self.settings.probes.max(1) => {
                Some(Refused { retry_after: SOON })
            }
            // Whose turn it is on the ramp is decided when asked.
            _ => None,
        }
    }

    /// Somebody wants to call.
    ///
    /// # Errors
    /// [`Refused`], with the time after which asking may help.
    pub fn ask(&mut self, now: u64) -> Result<Permit, Refused> {
        if let Some(refused) = self.refuses(now) {
            return Err(refused);
        }
        if self.control == Control::Automatic {
            match &mut self.inner {
                Inner::Closed => {}
                Inner::Open { .. } => self.enter(Inner::HalfOpen { probes: 1, successes: 0 }),
                Inner::HalfOpen { probes, .. } => *probes += 1,
                Inner::Ramp { since, credit } => {
                    let share = now.saturating_sub(*since) as f64 / self.settings.ramp.as_nanos().max(1) as f64;
                    if share >= 1.0 {
                        self.enter(Inner::Closed);
                    } else {
                        *credit += share.max(FIRST_SHARE);
                        if *credit < 1.0 {
                            return Err(Refused { retry_after: SOON });
                        }
                        *credit -= 1.0;
                    }
                }
            }
        }
        Ok(Permit { epoch: self.epoch })
    }

    /// A call ended.
    pub fn record(&mut self, permit: Permit, now: u64, outcome: Outcome, dice: f64) {
        if permit.epoch() != self.epoch {
            return;
        }
        let is_slow =
            matches!((outcome, self.settings.slow_after), (Outcome::Success(took), Some(slow)) if took >= slow);
        if let Inner::HalfOpen { probes, successes } = &mut self.inner
            && self.control == Control::Automatic
        {
            *probes = probes.saturating_sub(1);
            match outcome {
                Outcome::Ignored => {}
                Outcome::Success(_) if !(is_slow && self.settings.slow_rate.is_some()) => {
                    *successes += 1;
                    if *successes >= self.settings.successes.max(1) {
                        self.close(now);
                    }
                }
                Outcome::Success(_) | Outcome::Failure => self.open(now, Reason::Probe, dice),
            }
            return;
        }
        match outcome {
            Outcome::Ignored => return,
            Outcome::Success(_) => self.consecutive = 0,
            Outcome::Failure => self.consecutive = self.consecutive.saturating_add(1),
        }
        let rates = self.settings.failure_rate.is_some() || self.settings.slow_rate.is_some();
        if rates {
            self.window.add(now, Call { failed: outcome == Outcome::Failure, slow: is_slow });
        }
        // Only what went wrong can be too much.
        if (outcome == Outcome::Failure || is_slow)
            && self.control == Control::Automatic
            && let Some(reason) = self.trip(now)
        {
            self.open(now, reason, dice);
        }
    }

    /// What it opened for is over, as somebody else has seen: it may be tried at once.
    pub fn try_now(&mut self) {
        if let Inner::Open { until, .. } = &mut self.inner {
            *until = 0;
        }
    }

    /// It opened for something that was no fault of the other side, or that is over as a whole: as if it had not.
    pub fn forgive(&mut self, now: u64) {
        if matches!(self.inner, Inner::Open { .. }) {
            self.trips = self.trips.saturating_sub(1);
            self.closed_at = now;
            self.consecutive = 0;
            self.enter(Inner::Closed);
        }
    }

    fn trip(&self, now: u64) -> Option<Reason> {
        let settings = &self.settings;
        if settings.consecutive > 0 && self.consecutive >= settings.consecutive {
            return Some(Reason::Consecutive);
        }
        let totals = self.window.totals(now);
        if totals.calls < settings.minimum.max(1) {
            return None;
        }
        let is_over =
            |count: u32, rate: Option<f64>| rate.is_some_and(|rate| f64::from(count) >= rate * f64::from(totals.calls));
        if is_over(totals.failed, settings.failure_rate) && totals.failed > 0 {
            return Some(Reason::FailureRate);
        }
        (is_over(totals.slow, settings.slow_rate) && totals.slow > 0).then_some(Reason::SlowRate)
    }

    fn open(&mut self, now: u64, reason: Reason, dice: f64) {
        let nanoseconds = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        let (first, most) = (nanoseconds(self.settings.open_for), nanoseconds(self.settings.max_open_for));
        // Whoever stayed closed for as long as it had last been open has recovered.
        let last = match self.inner {
            Inner::HalfOpen { .. } => true,
            _ => self.trips > 0 && now.saturating_sub(self.closed_at) < self.length_of(self.trips, first, most),
        };
        self.trips = if last { self.trips.saturating_add(1) } else { 1 };
        let mut length = self.length_of(self.trips, first, most);
        if self.trips > 1 {
            length = length.saturating_add((length as f64 * self.settings.jitter * dice.clamp(0.0, 1.0)) as u64);
        }
        self.reason = Some(reason);
        self.window.clear();
        self.enter(Inner::Open { until: now.saturating_add(length), length });
    }

    fn length_of(&self, trips: u32, first: u64, most: u64) -> u64 {
        first.saturating_mul(1_u64.checked_shl(trips.saturating_sub(1)).unwrap_or(u64::MAX)).min(most.max(first))
    }

    fn close(&mut self, now: u64) {
        self.closed_at = now;
        self.consecutive = 0;
        self.window.clear();
        let ramp = Inner::Ramp { since: now, credit: 1.0 };
        self.enter(if self.settings.ramp.is_zero() { Inner::Closed } else { ramp });
    }

    fn enter(&mut self, inner: Inner) {
        self.inner = inner;
        self.epoch += 1;
    }

    /// How long it is still open, and how long in all.
    pub fn open_for(&self, now: u64) -> Option<(Duration, Duration)> {
        match self.inner {
            Inner::Open { until, length } if self.control == Control::Automatic => {
                Some((Duration::from_nanos(until.saturating_sub(now)), Duration::from_nanos(length)))
            }
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    calls: u32,
    failed: u32,
    slow: u32,
}

#[derive(Clone, Copy, Debug)]
struct Call {
    failed: bool,
    slow: bool,
}

#[derive(Clone, Debug)]
enum Window {
    Calls { ring: Vec<Call>, next: usize, most: usize, totals: Totals },
    Time { length: u64, buckets: [(u64, Totals); BUCKETS] },
}

impl Window {
    fn new(span: Span) -> Self {
        match span {
            Span::Calls(most) => Self::Calls {
                ring: Vec::new(),
                next: 0,
                most: most.clamp(1, MOST_CALLS) as usize,
                totals: Totals::default(),
            },
            Span::Time(time) => Self::Time {
                length: (u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) / BUCKETS as u64).max(1),
                buckets: [(0, Totals::default()); BUCKETS],
            },
        }
    }

    fn add(&mut self, now: u64, call: Call) {
        match self {
            Self::Calls { ring, next, most, totals } => {
                if ring.len() < *most {
                    ring.push(call);
                } else {
                    let oldest = std::mem::replace(&mut ring[*next], call);
                    totals.calls -= 1;
                    totals.failed -= u32::from(oldest.failed);
                    totals.slow -= u32::from(oldest.slow);
                    *next = (*next + 1) % *most;
                }
                totals.add(call);
            }
            Self::Time { length, buckets } => {
                let number = now / *length;
                let bucket = &mut buckets[(number % BUCKETS as u64) as usize];
                if bucket.0 != number {
                    *bucket = (number, Totals::default());
                }
                bucket.1.add(call);
            }
        }
    }

    fn totals(&self, now: u64) -> Totals {
        match self {
            Self::Calls { totals, .. } => *totals,
            Self::Time { length, buckets } => {
                let number = now / *length;
                let recent = buckets.iter().filter(|(of, _)| number.saturating_sub(*of) < BUCKETS as u64);
                recent.fold(Totals::default(), |sum, (_, bucket)| Totals {
                    calls: sum.calls + bucket.calls,
                    failed: sum.failed + bucket.failed,
                    slow: sum.slow + bucket.slow,
                })
            }
        }
    }

    fn clear(&mut self) {
        match self {
            Self::Calls { ring, next, totals, .. } => {
                ring.clear();
                (*next, *totals) = (0, Totals::default());
            }
            Self::Time { buckets, .. } => *buckets = [(0, Totals::default()); BUCKETS],
        }
    }
}

impl Totals {
    fn add(&mut self, call: Call) {
        self.calls = self.calls.saturating_add(1);
        self.failed = self.failed.saturating_add(call.failed.into());
        self.slow = self.slow.saturating_add(call.slow.into());
    }
}

#[cfg(test)]
mod tests;
