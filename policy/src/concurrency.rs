//! The adaptive concurrency limit: how many requests the app may handle at a time, computed from response latency.
//!
//! ```text
//!              latency above TARGET: cut ──┐
//!   Free ──────────────────────────────────┼──► Trial, at a lower limit
//!    ▲         now and then: dip ──────────┘      │
//!    │                                            ├─ throughput stays: it was a queue, the lower limit does
//!    └────────────────────────────────────────────┴─ throughput falls: it was no queue, this latency is the baseline
//! ```
//!
//! An app that handles `k` requests at a time has latency `S` with up to `k` requests in flight, and `S × n / k` with `n`
//! (Little's law). The *stretch* is latency divided by `S`. At the `TARGET` stretch of 1.15, each server that becomes free
//! finds a request waiting, and the queue inside the app is short. `S`, the *baseline*, is not the minimum latency, which
//! noise biases: it is the latency measured while few requests are in flight, and while the limit is lowered for a trial.
//! docs/overload.md explains the algorithm and its constants.
//!
//! # Examples
//!
//! ```
//! use outrigger_policy::concurrency::{Concurrency, Ended, Sample, Settings};
//!
//! const MS: u64 = 1_000_000;
//! let mut concurrency = Concurrency::new(Settings { min: 1, max: 2000, initial: 20 });
//! let sample = |started, ended| Sample { class: 0, started, in_flight: 20, ended };
//!
//! concurrency.record(20 * MS, sample(0, Ended::Answered));
//! assert_eq!(concurrency.limit(), 20);
//!
//! // The app stops responding: the limit is halved once more than half of a window are timeouts.
//! for _ in 0..8 {
//!     concurrency.record(6_000 * MS, sample(1_000 * MS, Ended::TimedOut));
//! }
//! assert_eq!(concurrency.limit(), 10);
//! ```

mod trial;
mod window;

use std::time::Duration;

use self::trial::Trial;
use self::window::{Point, Window};

/// The number of request classes with separate latencies; higher class numbers are taken modulo this.
pub const CLASSES: usize = 1024;

/// Target stretch: latency as a multiple of the baseline. Higher for apps with a latency of a few milliseconds.
const TARGET: f64 = 1.15;
/// Queueing delay that is always allowed, in nanoseconds: it is harmless, and scheduling noise hides shorter delays.
const ALLOWED_NS: f64 = 1_500_000.0;
/// The limit moves if the stretch is off the target by more than this fraction of the target.
const BAND: f64 = 0.05;
/// The limit during a dip, as a fraction of the requests in flight.
const DIP: f64 = 0.75;
/// One step never lowers the limit below this fraction.
const STEEPEST_CUT: f64 = 0.5;
/// A trial shows a queue if throughput falls by at most this fraction of the loss expected without a queue.
const KEPT: f64 = 0.35;
/// With at most this fraction of the limit in flight, nothing queues inside the app.
const QUIET: f64 = 0.4;
/// With at least this fraction in flight, the limit is in use.
const USED: f64 = 0.8;
/// The minimum number of samples for any decision.
const FEWEST: f64 = 8.0;
/// The maximum number of samples in a window.
const MOST: f64 = 4096.0;
/// Relative error of the mean at which a window is precise enough to decide.
const PRECISE: f64 = 0.03;
/// Relative error at which a trial is decided.
const TOLERABLE: f64 = 0.05;
/// Relative error at which the limit may double.
const ROUGH: f64 = 0.12;
/// The limit may double after it has grown this many times in a row.
const CALM: u32 = 2;
/// A deviation of this many standard errors decides before the window is precise.
const SURE: f64 = 3.5;
/// The same for a small increase, which the next window corrects if it was wrong.
const LIKELY: f64 = 1.5;
/// The fraction of throughput that dips may cost.
const DIPS_COST: f64 = 0.004;
/// A dip follows at most this many round trips after a cut.
const SOON: f64 = 20.0;
/// Below this variance (relative to the square of the mean), few samples suffice for a large step.
const EVEN: f64 = 0.1;
/// A dip that moves the baseline by more than this fraction is confirmed by another dip.
const NEWS: f64 = 0.2;
/// The confirming dip follows after at most this many round trips.
const CONFIRM: f64 = 5.0;
/// After this many windows below the target, a limit that is too small for fractional steps is raised by one.
const RETRY_AFTER: u32 = 64;
/// A sample counts as at most this many times the current latency of its class.
const OUTLIER: f64 = 16.0;
/// The usual latency of a class is the mean over about this many samples.
const MEMORY: f64 = 1024.0;
/// The number of samples over which noise is averaged.
const NOISE_MEMORY: f64 = 512.0;

/// A limit that was learned this long ago is not restored: the app may have changed.
pub const LIMIT_HOLDS: Duration = Duration::from_secs(600);

/// Bounds and initial value of the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Minimum; 0 counts as 1.
    pub min: u32,
    /// Maximum; values below `min` count as `min`.
    pub max: u32,
    /// Initial limit, clamped to the bounds.
    pub initial: u32,
}

/// How the app handled a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It sent a response.
    Answered,
    /// It sent no response from `started` to `now`: the latency is at least that long.
    TimedOut,
}

/// One finished request to the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The class of the request, such as its route, modulo [`CLASSES`]. Latencies of classes may differ a hundredfold.
    pub class: u16,
    /// When it was sent, in nanoseconds on a monotonic clock.
    pub started: u64,
    /// Requests in flight when it was sent, including itself.
    pub in_flight: u32,
    /// How it ended.
    pub ended: Ended,
}

/// The concurrency limit of one app.
#[derive(Clone, Debug)]
pub struct Concurrency {
    settings: Settings,
    limit: f64,
    classes: Box<[Class]>,
    /// Latency without a queue, as a multiple of each class's usual latency.
    baseline: f64,
    /// Variance of one sample's stretch, relative to the squared mean.
    noise: f64,
    noise_samples: f64,
    /// Samples since the last decision.
    window: Window,
    /// Samples that end before this time are ignored: they reflect the previous limit.
    settles_at: u64,
    /// When the limit last moved. Samples that started earlier are ignored.
    moved_at: u64,
    /// Mean latency weighted by latency, in nanoseconds.
    round_trip: u64,
    trial: Option<Trial>,
    /// The last window was too slow.
    is_suspect: bool,
    /// How often in a row the limit grew without a queue; from [`CALM`] on it may double.
    calm: u32,
    /// Samples until the next dip is due.
    until_dip: f64,
    /// Windows until the limit may be raised by one where a fractional step has no effect.
    until_retry: u32,
    /// Smoothed latency in nanoseconds.
    latency: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Class {
    /// Latency in nanoseconds relative to the other classes; multiplied by the baseline, the latency without a queue.
    usual: f64,
    seen: f64,
}

impl Concurrency {
    /// Creates a limit at [`Settings::initial`], without any latency data.
    pub fn new(settings: Settings) -> Self {
        let mut new = Self {
            settings,
            limit: f64::from(settings.initial),
            classes: vec![Class::default(); CLASSES].into_boxed_slice(),
            baseline: 1.0,
            noise: 0.0,
            noise_samples: 0.0,
            window: Window::default(),
            settles_at: 0,
            moved_at: 0,
            round_trip: 0,
            trial: None,
            is_suspect: false,
            calm: CALM,
            until_dip: 0.0,
            until_retry: 0,
            latency: None,
        };
        new.set_bounds(settings.min, settings.max);
        new
    }

    /// Returns how many requests may be in flight to the app.
    pub fn limit(&self) -> u32 {
        self.limit.round() as u32
    }

    /// Returns the smoothed latency; `None` before the first few responses.
    pub fn latency(&self) -> Option<Duration> {
        self.latency.map(|ns| Duration::from_nanos(ns as u64))
    }

    /// Returns how many responses the app gives in `time` if the limit is in use (Little's law: limit × time / latency).
    /// `None` before the first few responses.
    pub fn answers_in(&self, time: Duration) -> Option<f64> {
        self.latency.map(|latency| self.limit * time.as_nanos() as f64 / latency)
    }

    /// Changes the bounds and clamps the limit at once. A `min` of 0 counts as 1, a `max` below `min` as `min`.
    pub fn set_bounds(&mut self, min: u32, max: u32) {
        self.settings.min = min.max(1);
        self.settings.max = max.max(self.settings.min);
        self.limit = self.within(self.limit);
    }

    /// Returns the limit for a snapshot, with its fraction.
    pub const fn saved(&self) -> f64 {
        self.limit
    }

    /// Starts with a limit that was learned before a restart, clamped to the bounds. Returns false if it may not fit the app
    /// of today: it is older than [`LIMIT_HOLDS`], or not a number. Latencies are learned anew.
    pub fn restore(&mut self, limit: f64, age: Duration) -> bool {
        let holds = age <= LIMIT_HOLDS && limit.is_finite();
        if holds {
            self.limit = self.within(limit);
        }
        holds
    }

    fn within(&self, limit: f64) -> f64 {
        limit.clamp(f64::from(self.settings.min), f64::from(self.settings.max))
    }

    /// Records that the response head of a request arrived at `now`, or that the request timed out. Ignores samples that
    /// end before they started.
    pub fn record(&mut self, now: u64, sample: Sample) {
        let Some(took) = now.checked_sub(sample.started) else { return };
        // Requests sent under the previous limit reflect that limit. Their start time alone is not enough: after a change,
        // short requests return first and would bias the window.
        if sample.started < self.moved_at
            || (now < self.settles_at && self.settles_at - now <= self.round_trip.saturating_mul(2))
        {
            return;
        }
        let took = (took as f64).max(1.0);
        if self.round_trip == 0 {
            // The first response met an almost empty app, so it is the first estimate of the baseline. Requests sent before
            // it arrived met a growing queue: neither the baseline nor the latency of a full app. `moved_at` excludes them.
            self.classes[usize::from(sample.class) % CLASSES] = Class { usual: took, seen: 1.0 };
            self.round_trip = took as u64;
            return self.move_to(self.limit, now);
        }
        let stretch = if self.window.samples > 0.0 { self.window.took / self.window.usual } else { 1.0 };
        let in_flight = f64::from(sample.in_flight.max(1));
        let is_quiet = in_flight <= (QUIET * self.limit).max(1.0) || self.trial.is_some();
        let class = &mut self.classes[usize::from(sample.class) % CLASSES];
        if class.seen == 0.0 {
            class.usual = took / (stretch * self.baseline);
            class.seen = 1.0;
        }
        let usual = class.usual * self.baseline;
        // The bound is relative to this window's stretch, as the usual latency itself may be out of date.
        let took = took.min(OUTLIER * usual * stretch.max(1.0));
        let window = &mut self.window;
        window.samples += 1.0;
        window.unseen += 1.0;
        window.timed_out += f64::from(u8::from(sample.ended == Ended::TimedOut));
        window.in_flight += in_flight;
        window.took += took;
        window.usual += usual;
        window.usual_squares += usual * usual;
        window.took_squares += took * took;
        window.took_usual += took * usual;
        // Relative to the other classes; a change common to all classes moves the baseline instead.
        if is_quiet || class.seen < FEWEST {
            class.seen = (class.seen + 1.0).min(MEMORY);
            class.usual += (took / (window.took / window.usual * self.baseline) - class.usual) / class.seen;
        }
        // A window shorter than a round trip would over-represent short requests.
        if window.unseen >= FEWEST && now.saturating_sub(window.seen_at) >= self.round_trip {
            window.seen_at = now;
            self.look(now);
        }
    }

    /// Evaluates the window: once per round trip, with at least [`FEWEST`] new samples.
    fn look(&mut self, now: u64) {
        let unseen = std::mem::take(&mut self.window.unseen);
        let window = self.window;
        self.noise += (window.noise() - self.noise) * unseen / (self.noise_samples + unseen);
        self.noise_samples = (self.noise_samples + unseen).min(NOISE_MEMORY);
        self.round_trip = (window.took_squares / window.took) as u64;
        let mean = window.took / window.samples;
        self.latency = Some(self.latency.map_or(mean, |latency| latency + (mean - latency) / 3.0));
        self.until_dip -= unseen;
        if window.timed_out * 2.0 > window.samples {
            // Most requests timed out: the limit is too high, regardless of the cause.
            self.trial = None;
            return self.move_to(self.limit * STEEPEST_CUT, now);
        }
        let point = window.point(self.noise);
        let is_precise = point.error <= PRECISE || window.samples >= MOST;
        match self.trial {
            Some(trial) => {
                // A trial may cost throughput, so it ends at a lower precision.
                if point.error <= TOLERABLE || window.samples >= MOST / 4.0 || Self::is_clear(trial.before, point) {
                    self.judge(trial, point, now);
                }
            }
            None if point.in_flight < USED * self.limit.round() => self.rest(point, now),
            None => self.correct(point, is_precise, now),
        }
    }

    /// The limit is not in use, so the window says nothing about it; but it shows the latency without a queue.
    fn rest(&mut self, point: Point, now: u64) {
        let is_quiet = point.in_flight <= (QUIET * self.limit).max(1.0);
        if is_quiet && (point.stretch < 1.5 || self.noise_samples <= FEWEST) {
            let gain = if self.noise_samples <= FEWEST { 1.0 } else { 0.2 };
            self.baseline *= 1.0 + gain * (point.stretch - 1.0);
        } else if point.is_too_slow(SURE * point.error) {
            // The app is slower although the limit is not in use: lower the unused limit before a load peak could overload
            // the app, but not below `initial`, so a few slow responses at low load do not throttle the next peak.
            let wanted = (point.in_flight / QUIET).max(point.wanted()).max(f64::from(self.settings.initial));
            if wanted.round() < self.limit.round() {
                self.calm = 0;
                return self.move_to(wanted, now);
            }
        }
        self.reset(now);
    }

    /// The limit is in use: moves it towards the target stretch.
    fn correct(&mut self, point: Point, is_precise: bool, now: u64) {
        let doubt = if is_precise { 0.0 } else { SURE * point.error * point.stretch };
        if point.is_too_slow(doubt) && point.wanted().round() < self.limit.round() {
            if !self.is_suspect {
                // The change may have occurred within this window; the next one lies entirely after it.
                self.reset(now);
                self.is_suspect = true;
                return;
            }
            self.calm = 0;
            self.until_retry = RETRY_AFTER;
            return self.cut(point, now);
        }
        let matters = point.latency > 2.0 * ALLOWED_NS;
        if matters && point.stretch < 0.95 - doubt {
            // Faster than the baseline, which is therefore out of date. Only a dip shows by how much.
            self.baseline *= point.stretch;
            return self.dip(Point { stretch: 1.0, ..point }, DIP, now);
        }
        if self.calm >= CALM
            && point.error < ROUGH
            && point.stretch < (point.target / 2.0).max(1.0 + BAND + point.error)
        {
            // A limit that is twice too high is detected at once, even under noise.
            return self.move_to(2.0 * point.in_flight, now);
        }
        let doubt = if is_precise { 0.0 } else { LIKELY * point.error * point.stretch };
        if point.stretch < point.target * (1.0 - BAND) - doubt {
            // Without a queue, latency does not show how far below capacity the app is.
            let wanted = point.wanted().min(point.in_flight * TARGET);
            if wanted.round() > self.limit.round() {
                self.calm += 1;
                return self.move_to(wanted, now);
            }
            self.until_retry = self.until_retry.saturating_sub(1);
            if self.until_retry == 0 {
                self.until_retry = RETRY_AFTER;
                return self.move_to(self.limit.round() + 1.0, now);
            }
        }
        if is_precise {
            if self.until_dip <= 0.0 && matters {
                return self.dip(point, DIP, now);
            }
            self.reset(now);
        }
    }

    fn move_to(&mut self, limit: f64, now: u64) {
        self.limit = self.within(limit);
        self.moved_at = now;
        self.settles_at = now.saturating_add(self.round_trip.saturating_mul(2));
        self.reset(self.settles_at);
    }

    fn reset(&mut self, now: u64) {
        self.window = Window { seen_at: now, ..Window::default() };
        self.is_suspect = false;
    }
}
