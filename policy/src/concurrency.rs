//! How many requests the app may work on at a time, found from how long its answers take.
//!
//! ```text
//!              latency above TARGET: cut ──┐
//!   Free ──────────────────────────────────┼──► Trial, at a lower limit
//!    ▲         now and then: dip ──────────┘      │
//!    │                                            ├─ throughput stays: it was a queue, the lower limit does
//!    └────────────────────────────────────────────┴─ throughput falls: it was no queue, this latency is the baseline
//! ```
//!
//! An app that works on `k` requests at a time answers in `S` as long as no more than `k` are there, and in `S × n / k`
//! when `n` are (Little's law). The *stretch* is latency over `S`; at a stretch of [`TARGET`] each server that gets
//! free finds somebody waiting, and hardly more wait. `S`, the *baseline*, is never taken for a minimum, which noise biases:
//! it is the latency while few requests are there, and while the limit is lowered for a trial.

use std::time::Duration;

/// Kinds of requests told apart; more are folded.
pub const CLASSES: usize = 1024;

/// Wanted latency, as a multiple of the latency without a queue; more for an app that answers in a few milliseconds.
const TARGET: f64 = 1.15;
/// Latency without a queue and this is well in any case, in nanoseconds: so long a queue hurts nobody, and a shorter one could
/// not be told from the machine's own hesitation.
const ALLOWED_NS: f64 = 1_500_000.0;
/// The stretch may be off by this share of what is wanted before the limit moves.
const BAND: f64 = 0.05;
/// The limit during a dip, as a share of what is in flight.
const DIP: f64 = 0.75;
/// The limit never falls below this share in one step.
const STEEPEST_CUT: f64 = 0.5;
/// A lower limit costs no throughput when no more is lost than this share of what the app, were it not queueing, would lose.
const KEPT: f64 = 0.35;
/// With less than this share of the limit in flight, nothing queues.
const QUIET: f64 = 0.4;
/// With at least this share of it in flight, the limit is used.
const USED: f64 = 0.8;
/// The least samples that say anything.
const FEWEST: f64 = 8.0;
/// No window is longer, however noisy the app.
const MOST: f64 = 4096.0;
/// Relative error of a mean that settles a matter.
const PRECISE: f64 = 0.03;
/// One that settles a trial.
const TOLERABLE: f64 = 0.05;
/// One that is good enough to try twice as many.
const ROUGH: f64 = 0.12;
/// The limit doubles once it has grown so many times in a row.
const CALM: u32 = 2;
/// Standard errors that settle a matter before that.
const SURE: f64 = 3.5;
/// Standard errors that allow a little more before that: if it was a mistake, the next window takes it back.
const LIKELY: f64 = 1.5;
/// Dips may cost this share of throughput.
const DIPS_COST: f64 = 0.004;
/// A dip follows so many round trips after a cut.
const SOON: f64 = 20.0;
/// With less variance than this, relative to the square of the mean, a few answers say enough for a large step.
const EVEN: f64 = 0.1;
/// A baseline that a dip moved by more than this share is news.
const NEWS: f64 = 0.2;
/// A dip follows so many round trips after news.
const CONFIRM: f64 = 5.0;
/// A limit that was too high by one is tried again after so many windows.
const RETRY_AFTER: u32 = 64;
/// A sample counts as at most so many times what is usual for its class now.
const OUTLIER: f64 = 16.0;
/// What is usual for a class is the mean over about so many samples.
const MEMORY: f64 = 1024.0;
/// Samples over which noise is known.
const NOISE_MEMORY: f64 = 512.0;

/// Bounds of the limit, and where it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The least; 0 means 1.
    pub min: u32,
    /// The most; less than `min` means `min`.
    pub max: u32,
    /// Where it starts.
    pub initial: u32,
}

/// How a request's time at the app ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With an answer.
    Answered,
    /// Waited from `started` to `now` in vain: the latency is at least that.
    TimedOut,
}

/// One request that was sent to the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Which kind of request; kinds may differ in latency a hundredfold. Folded into `0..CLASSES`.
    pub class: u16,
    /// When it was sent, in nanoseconds on a monotonic clock.
    pub started: u64,
    /// Requests in flight when it was sent, itself included.
    pub in_flight: u32,
    /// How its time ended.
    pub ended: Ended,
}

/// The limit of one app.
#[derive(Clone, Debug)]
pub struct Concurrency {
    settings: Settings,
    limit: f64,
    classes: Box<[Class]>,
    /// The latency without a queue, as a multiple of what is usual for each class.
    baseline: f64,
    /// Variance of one sample's stretch, relative to the mean.
    noise: f64,
    noise_samples: f64,
    /// Since the last decision.
    window: Window,
    /// From here on, what comes back was sent under this limit, unless it was sent before `moved_at`.
    settles_at: u64,
    /// When the limit moved last.
    moved_at: u64,
    /// What a request takes, long ones counting more, in nanoseconds.
    round_trip: u64,
    trial: Option<Trial>,
    /// The last window was too slow.
    is_suspect: bool,
    /// So many times in a row nothing queued and the limit grew: after [`CALM`] it may double.
    calm: u32,
    /// Samples until the next dip is due.
    until_dip: f64,
    /// Windows until one more may be tried where a fraction is not enough.
    until_retry: u32,
    /// Smoothed.
    latency: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Class {
    /// Latency in ns, in proportion to the other classes; times the baseline, that without a queue.
    usual: f64,
    seen: f64,
}

/// A lower limit is being tried.
#[derive(Clone, Copy, Debug)]
struct Trial {
    before: Point,
    is_dip: bool,
}

/// So many in flight, so stretched, give or take a share of it.
#[derive(Clone, Copy, Debug)]
struct Point {
    in_flight: f64,
    stretch: f64,
    error: f64,
    /// The stretch that is wanted.
    target: f64,
    /// Mean latency in ns.
    latency: f64,
}

impl Point {
    /// So many should be in flight, by this.
    fn wanted(&self) -> f64 {
        self.in_flight * self.target / self.stretch
    }

    fn is_too_slow(&self, doubt: f64) -> bool {
        self.stretch > self.target * (1.0 + BAND) + doubt
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Window {
    samples: f64,
    /// Since the last look, and when that was.
    unseen: f64,
    seen_at: u64,
    timed_out: f64,
    in_flight: f64,
    took: f64,
    usual: f64,
    usual_squares: f64,
    took_squares: f64,
    took_usual: f64,
}

impl Window {
    /// Variance of one sample's stretch in relation to its square, heavier requests counting more.
    fn noise(&self) -> f64 {
        let stretch = self.took / self.usual;
        let squares = self.took_squares - 2.0 * stretch * self.took_usual + stretch * stretch * self.usual_squares;
        let of_all = squares.max(0.0) * self.samples / (self.samples - 1.0).max(1.0);
        of_all / (self.usual_squares * stretch * stretch).max(f64::MIN_POSITIVE)
    }

    fn point(&self, noise: f64) -> Point {
        // Heavy requests count more, so fewer samples decide.
        let effective = self.usual * self.usual / self.usual_squares.max(f64::MIN_POSITIVE);
        Point {
            in_flight: self.in_flight / self.samples,
            stretch: (self.took / self.usual).clamp(0.01, 1e6),
            error: (noise / effective.max(1.0)).sqrt(),
            target: TARGET.max(1.0 + self.samples * ALLOWED_NS / self.usual),
            latency: self.took / self.samples,
        }
    }
}

impl Concurrency {
    /// Knows nothing yet.
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

    /// How many requests may be in flight to the app.
    pub fn limit(&self) -> u32 {
        self.limit.round() as u32
    }

    /// What an answer takes now, smoothed; none before the first few.
    pub fn latency(&self) -> Option<Duration> {
        self.latency.map(|ns| Duration::from_nanos(ns as u64))
    }

    /// What the app answers in `time`, were the limit used: by Little's law. None before the first few answers.
    pub fn answers_in(&self, time: Duration) -> Option<f64> {
        self.latency.map(|latency| self.limit * time.as_nanos() as f64 / latency)
    }

    /// Takes effect at once. A `min` of 0 means 1; a `max` below `min` means `min`.
    pub fn set_bounds(&mut self, min: u32, max: u32) {
        self.settings.min = min.max(1);
        self.settings.max = max.max(self.settings.min);
        self.limit = self.within(self.limit);
    }

    fn within(&self, limit: f64) -> f64 {
        limit.clamp(f64::from(self.settings.min), f64::from(self.settings.max))
    }

    /// One request's response head came, or it timed out.
    pub fn record(&mut self, now: u64, sample: Sample) {
        // A clock that went back says nothing.
        let Some(took) = now.checked_sub(sample.started) else { return };
        // What was sent under another limit tells about that one. To go by when it was sent alone would be wrong: of what is
        // sent after a change, the short ones come back first.
        if sample.started < self.moved_at
            || (now < self.settles_at && self.settles_at - now <= self.round_trip.saturating_mul(2))
        {
            return;
        }
        let took = (took as f64).max(1.0);
        if self.round_trip == 0 {
            // The first answer: nobody was there before it, or hardly anybody. Whoever was sent meanwhile found more at the app
            // than the one before, so what they take is neither the latency without a queue nor that of a full app.
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
        // Relative to the others in this window: what is usual may be wrong, and has to be found out.
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
        // In proportion to the other classes: what all of them have in common is the baseline's.
        if is_quiet || class.seen < FEWEST {
            class.seen = (class.seen + 1.0).min(MEMORY);
            class.usual += (took / (window.took / window.usual * self.baseline) - class.usual) / class.seen;
        }
        // In shorter windows the short ones would be too many.
        if window.unseen >= FEWEST && now.saturating_sub(window.seen_at) >= self.round_trip {
            window.seen_at = now;
            self.look(now);
        }
    }

    /// Once in a round trip, and not before there is something to be seen.
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
            // Whatever the reason, it is not more requests that the app needs.
            self.trial = None;
            return self.move_to(self.limit * STEEPEST_CUT, now);
        }
        let point = window.point(self.noise);
        let is_precise = point.error <= PRECISE || window.samples >= MOST;
        match self.trial {
            Some(trial) => {
                // A trial costs throughput while it lasts: it need not be as precise as what follows from it.
                if point.error <= TOLERABLE || window.samples >= MOST / 4.0 || Self::is_clear(trial.before, point) {
                    self.judge(trial, point, now);
                }
            }
            None if point.in_flight < USED * self.limit.round() => self.rest(point, now),
            None => self.correct(point, is_precise, now),
        }
    }

    /// The limit is not used, so nothing is learnt of it; but the app is seen as it is without a queue.
    fn rest(&mut self, point: Point, now: u64) {
        let is_quiet = point.in_flight <= (QUIET * self.limit).max(1.0);
        if is_quiet && (point.stretch < 1.5 || self.noise_samples <= FEWEST) {
            let gain = if self.noise_samples <= FEWEST { 1.0 } else { 0.2 };
            self.baseline *= 1.0 + gain * (point.stretch - 1.0);
        } else if point.is_too_slow(SURE * point.error) {
            // Slower, although there is room: what is not needed is not kept for the day when it would do harm. A few slow
            // answers at night are no reason to begin the day with less than at first.
            let wanted = (point.in_flight / QUIET).max(point.wanted()).max(f64::from(self.settings.initial));
            if wanted.round() < self.limit.round() {
                self.calm = 0;
                return self.move_to(wanted, now);
            }
        }
        self.reset(now);
    }

    /// The limit is used: does the app queue?
    fn correct(&mut self, point: Point, is_precise: bool, now: u64) {
        let doubt = if is_precise { 0.0 } else { SURE * point.error * point.stretch };
        if point.is_too_slow(doubt) && point.wanted().round() < self.limit.round() {
            if !self.is_suspect {
                // The change was in the middle of this window: the next one is all after it.
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
            // Faster than without a queue: the baseline is out of date, and how far only a dip can tell.
            self.baseline *= point.stretch;
            return self.dip(Point { stretch: 1.0, ..point }, DIP, now);
        }
        if self.calm >= CALM
            && point.error < ROUGH
            && point.stretch < (point.target / 2.0).max(1.0 + BAND + point.error)
        {
            // Twice too much shows at once, whatever the noise.
            return self.move_to(2.0 * point.in_flight, now);
        }
        let doubt = if is_precise { 0.0 } else { LIKELY * point.error * point.stretch };
        if point.stretch < point.target * (1.0 - BAND) - doubt {
            // Below the point where it queues, latency does not say how far below.
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

    /// Moves the limit to what the stretch says; far down only as a trial, a step at a time.
    fn cut(&mut self, before: Point, now: u64) {
        let lower = before.wanted().max(before.in_flight * STEEPEST_CUT);
        let is_far = lower.round() < 0.9 * before.in_flight;
        self.trial = is_far.then_some(Trial { before, is_dip: false });
        self.move_to(lower, now);
    }

    /// Lowers the limit to a share of what is in flight, for as long as it takes to see what that changes.
    fn dip(&mut self, before: Point, share: f64, now: u64) {
        let lower = (share * before.in_flight).round().min(before.in_flight.round() - 1.0);
        if lower < f64::from(self.settings.min) {
            self.until_dip = MOST;
            self.reset(now);
            return;
        }
        self.calm = 0;
        self.trial = Some(Trial { before, is_dip: true });
        self.move_to(lower, now);
    }

    /// The share of throughput that is left after a trial, and how little would show that nothing had queued.
    fn throughput(before: Point, after: Point) -> (f64, f64) {
        let fewer = after.in_flight / before.in_flight;
        (fewer * before.stretch / after.stretch, 1.0 - KEPT * (1.0 - fewer))
    }

    fn is_clear(before: Point, after: Point) -> bool {
        let (left, bar) = Self::throughput(before, after);
        (left - bar).abs() > SURE * left * before.error.hypot(after.error)
    }

    fn judge(&mut self, trial: Trial, after: Point, now: u64) {
        let Trial { before, is_dip } = trial;
        let samples = self.window.samples;
        self.trial = None;
        let (left, bar) = Self::throughput(before, after);
        if after.in_flight > 0.95 * before.in_flight || after.in_flight < USED * self.limit.round() {
            // Too few came to tell.
            return self.move_to(if is_dip { before.in_flight } else { self.limit }, now);
        }
        if left >= bar {
            // As much is done with fewer.
            if after.stretch < 1.0 {
                self.baseline *= after.stretch;
            }
            let stretch = after.stretch.max(1.0);
            if is_dip {
                // As much as before: the queue is at least as long as what was taken away, and may be much longer.
                let share = if left >= 1.0 && self.noise < EVEN { STEEPEST_CUT } else { DIP };
                return self.dip(Point { stretch, ..after }, share, now);
            }
            self.until_dip = self.until_dip.min(SOON * after.in_flight.max(FEWEST));
            return self.cut(Point { stretch, ..after }, now);
        }
        // Less is done with fewer: they were all worked on, and this is how long it takes.
        self.baseline *= after.stretch;
        let lost = (1.0 - left).clamp(0.05, 1.0);
        if is_dip {
            // The settling costs as well.
            self.until_dip = (samples + 3.0 * before.in_flight) * lost / DIPS_COST;
            // What is new may be a mistake: the next one tells, and does so soon.
            if !(1.0 - NEWS..=1.0 + NEWS).contains(&after.stretch) {
                self.until_dip = self.until_dip.min(CONFIRM * before.in_flight.max(FEWEST));
            }
            self.move_to(before.in_flight * after.target * (after.stretch / before.stretch).min(1.0), now);
        } else {
            self.until_dip = self.until_dip.min(SOON * before.in_flight.max(FEWEST));
            self.move_to(before.in_flight, now);
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
