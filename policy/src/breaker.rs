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
//! A breaker is shared, so no client alone may open it: see [`Failure`] for what a failure says, and `evidence.rs` for how many clients
//! it takes. What only one client sees refuses only that client. A probe that fails shuts out its own client until several have
//! failed, and one that takes long gives its place to others.
//!
//! Nothing here waits for traffic that may never come: a half-open breaker lets probes through as they come and counts its
//! successes for as long as it takes, and a probe whose end nobody learns gives its place back as [`Outcome::Ignored`].

mod clients;
mod evidence;
mod places;
mod switch;
mod window;

use std::time::Duration;

use self::clients::ClientBreakers;
use self::evidence::{Counts, Run, Served};
use self::places::PlaceBreakers;
use self::switch::Switch;
use self::window::{Call, Window};

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
/// The share of calls that pass when the ramp begins.
const FIRST_SHARE: f64 = 0.1;
/// How long somebody waits who asked while all probes are out, or while traffic is ramped up.
const SOON: Duration = Duration::from_secs(1);
/// For how long it is open for all when only one client was told by the other side that it is away.
const BRIEFLY: Duration = Duration::from_secs(1);
/// And that counts only if nobody else was served for so long.
const LATELY: Duration = Duration::from_secs(60);

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
    /// So many clients must have seen failures that may be one client's doing; 1: any client opens it for all.
    pub min_clients: u32,
    /// PlaceBreakers that have nothing to do with each other share it. Each has a breaker of its own, and this one opens only if there is no
    /// connection, or no answer at several of them and none at any other.
    pub is_shared: bool,
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

/// Who makes a call. Both are hashes, or any numbers that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    /// The client: whatever somebody can have many of for nothing, such as addresses of one network, is the same.
    pub client: u64,
    /// What it asks for, where one breaker stands for things that have nothing to do with each other; otherwise the same for all.
    pub place: u64,
}

impl Caller {
    /// For a breaker that knows no clients.
    pub const ANYBODY: Self = Self { client: 0, place: 0 };

    /// What is refused alone.
    const fn key(self) -> u64 {
        self.client ^ self.place.rotate_left(29)
    }
}

/// What a failure says, which is a question of who could have caused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There was no connection: nothing was sent, so it is nobody's doing and counts whoever asked.
    Away,
    /// The other side says that it waits in vain for something itself. Counts whoever asked while nobody else was served of late, and then
    /// for a moment only.
    Reported,
    /// No answer, or none that can be used. Refuses the client that sees it, and everybody once several do.
    Silent,
    /// An answer that says that the other side failed. The same; but where places share a breaker, it says nothing about the other places.
    Answered,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With an answer, after this long.
    Success(Duration),
    /// Without one, or with one that says that the other side failed.
    Failure(Failure),
    /// Nobody knows: the caller has left. Says nothing about the other side.
    Ignored,
}

/// A call may be made. Given back by [`Breaker::record`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an unrecorded permit leaves a half-open breaker waiting for its probe"]
pub struct Permit {
    caller: Caller,
    at: u64,
    epoch: u64,
    client_epoch: Option<u64>,
    /// The same of its place's own breaker.
    of_place: Option<(u64, Option<u64>)>,
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
    switch: Switch,
    window: Window,
    run: Run,
    served: Served,
    clients: ClientBreakers,
    places: PlaceBreakers,
    reason: Option<Reason>,
}

impl Breaker {
    /// Closed, and knows nothing.
    pub fn new(settings: Settings) -> Self {
        Self {
            window: Window::new(settings.window),
            settings,
            control: Control::Automatic,
            switch: Switch::default(),
            run: Run::default(),
            served: Served::default(),
            clients: ClientBreakers::default(),
            places: PlaceBreakers::default(),
            reason: None,
        }
    }

    /// Changes the settings; the state stays, the window only if its span does.
    pub fn set(&mut self, settings: Settings) {
        if settings.window != self.settings.window {
            self.window = Window::new(settings.window);
        }
        self.places.set(settings);
        self.settings = settings;
    }

    /// Where it stands; what an operator says comes first. Closed itself, it stands where the worst of its places does.
    pub fn state(&self) -> State {
        match (self.control, self.switch.state()) {
            (Control::ForcedOpen, _) => State::Open,
            (Control::ForcedClosed, _) => State::Closed,
            (Control::Automatic, State::Closed) => self.places.worst().map_or(State::Closed, Self::state),
            (Control::Automatic, state) => state,
        }
    }

    /// Who decides.
    pub const fn control(&self) -> Control {
        self.control
    }

    /// Why it opened last.
    pub fn reason(&self) -> Option<Reason> {
        match (self.switch.state(), self.places.worst()) {
            (State::Closed, Some(place)) => place.reason(),
            _ => self.reason,
        }
    }

    /// Failures in a row, up to now; those of the place with the most of them.
    pub fn failures(&self) -> u32 {
        self.places.all().map(Self::failures).fold(self.run.total, u32::max)
    }

    /// How many clients are refused, or tried with care, for what only they saw.
    pub fn clients_refused(&self) -> usize {
        self.clients.open() + self.places.all().map(Self::clients_refused).sum::<usize>()
    }

    /// Whether everybody's calls pass.
    pub fn is_calm(&self) -> bool {
        self.control == Control::Automatic
            && self.switch.state() == State::Closed
            && self.clients.is_calm()
            && self.places.all().all(Self::is_calm)
    }

    /// Calls in the window, and how many of them failed and were slow. Of places, those with failures are counted.
    pub fn seen(&self, now: u64) -> (u32, u32, u32) {
        let totals = self.window.totals(now);
        let own = (totals.calls, totals.failed, totals.slow);
        self.places.all().map(|place| place.seen(now)).fold(own, |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2))
    }

    /// An operator takes over, or gives back; given back, it begins anew.
    pub fn control_by(&mut self, control: Control, now: u64) {
        if control == self.control {
            return;
        }
        self.control = control;
        self.run.clear();
        self.window.clear();
        self.clients.clear();
        self.places.clear();
        self.switch.reset(now);
    }

    /// Whether [`Breaker::ask`] would say no, without asking.
    pub fn refuses(&self, now: u64, caller: Caller) -> Option<Refused> {
        match self.control {
            Control::ForcedOpen => Some(Refused { retry_after: self.settings.open_for }),
            Control::ForcedClosed => None,
            Control::Automatic => {
                let refused = self.switch.refuses(&self.settings, now);
                refused
                    .or_else(|| self.clients.refuses(&self.settings, now, caller.key()))
                    .or_else(|| self.places.find(caller.place)?.refuses(now, caller))
            }
        }
    }

    /// Somebody wants to call.
    ///
    /// # Errors
    /// [`Refused`], with the time after which asking may help.
    pub fn ask(&mut self, now: u64, caller: Caller) -> Result<Permit, Refused> {
        if let Some(refused) = self.refuses(now, caller) {
            return Err(refused);
        }
        let (mut client_epoch, mut of_place) = (None, None);
        if self.control == Control::Automatic {
            if let Some(place) = self.places.find_mut(caller.place) {
                // May refuse where traffic is let back in turn: before anything is taken here.
                let permit = place.ask(now, caller)?;
                of_place = Some((permit.epoch, permit.client_epoch));
            }
            let before = self.switch.epoch;
            if let Err(refused) = self.switch.ask(&self.settings, now, caller.key()) {
                self.record_at_place(caller, now, of_place, now, Outcome::Ignored, 0.0);
                return Err(refused);
            }
            if before != self.switch.epoch {
                // Closed or half-open from here on: what it opened for is no part of what follows.
                self.run.clear();
            }
            while let Some(late) = self.switch.take_late(now) {
                self.clients.shut_out(&self.settings, now, late, &self.switch, 0.0);
            }
            // It refuses nobody whom it did not refuse above.
            client_epoch = self.clients.ask(&self.settings, now, caller.key())?;
        }
        Ok(Permit { caller, at: now, epoch: self.switch.epoch, client_epoch, of_place })
    }

    /// A call ended.
    #[expect(clippy::needless_pass_by_value, reason = "a permit is used once")]
    pub fn record(&mut self, permit: Permit, now: u64, outcome: Outcome, dice: f64) {
        let Permit { caller, at, epoch, client_epoch, of_place } = permit;
        self.record_at_place(caller, at, of_place, now, outcome, dice);
        let outcome = match outcome {
            // Who answers is neither away nor hangs, and how is its place's affair.
            Outcome::Success(_) | Outcome::Failure(Failure::Answered) if self.settings.is_shared => {
                Outcome::Success(Duration::ZERO)
            }
            outcome => outcome,
        };
        self.record_for_client(caller, at, client_epoch, now, outcome, dice);
        if epoch != self.switch.epoch {
            return;
        }
        let is_slow =
            matches!((outcome, self.settings.slow_after), (Outcome::Success(took), Some(slow)) if took >= slow);
        if self.switch.state() == State::HalfOpen && self.control == Control::Automatic {
            self.switch.returned(caller.key(), at);
            match outcome {
                Outcome::Ignored => {}
                Outcome::Success(_) if !(is_slow && self.settings.slow_rate.is_some()) => {
                    if self.switch.succeeded(&self.settings) {
                        self.close(now);
                    }
                }
                Outcome::Success(_) => self.probe_failed(caller, Failure::Answered, now, dice),
                Outcome::Failure(failure) => self.probe_failed(caller, failure, now, dice),
            }
            return;
        }
        match outcome {
            Outcome::Ignored => return,
            Outcome::Success(_) => {
                self.run.clear();
                self.served.add(caller.key(), now);
            }
            Outcome::Failure(failure) => self.run.add(caller, failure),
        }
        let is_failure = matches!(outcome, Outcome::Failure(_));
        let rates = self.settings.failure_rate.is_some() || self.settings.slow_rate.is_some();
        let rates = rates && !self.settings.is_shared;
        if rates {
            self.window.add(now, Call { client: caller.client, failed: is_failure, slow: is_slow });
        }
        // Only what went wrong can be too much.
        if (is_failure || is_slow) && self.control == Control::Automatic {
            if let Some(reason) = self.trip(now) {
                self.open(now, reason, dice);
            } else if self.is_reported(caller, now) {
                self.open_briefly(now);
            }
        }
    }

    /// What the call says about its place, where places share this breaker. Returns at once for nearly every success.
    fn record_at_place(
        &mut self,
        caller: Caller,
        at: u64,
        epochs: Option<(u64, Option<u64>)>,
        now: u64,
        outcome: Outcome,
        dice: f64,
    ) {
        if !self.settings.is_shared || self.control != Control::Automatic {
            return;
        }
        let says_something =
            matches!(outcome, Outcome::Failure(Failure::Reported | Failure::Silent | Failure::Answered))
                || matches!((outcome, self.settings.slow_after), (Outcome::Success(took), Some(slow)) if took >= slow);
        let place = if says_something {
            self.places.find_or_add(caller.place, self.settings, now)
        } else {
            self.places.find_mut(caller.place)
        };
        let Some(place) = place else { return };
        let (epoch, client_epoch) = epochs.unwrap_or((place.switch.epoch, None));
        place.record(Permit { caller, at, epoch, client_epoch, of_place: None }, now, outcome, dice);
    }

    /// What the call says about its own caller. Returns at once for nearly every success.
    fn record_for_client(
        &mut self,
        caller: Caller,
        at: u64,
        epoch: Option<u64>,
        now: u64,
        outcome: Outcome,
        dice: f64,
    ) {
        if self.control != Control::Automatic {
            return;
        }
        let (key, Settings { min_clients, is_shared, .. }) = (caller.key(), self.settings);
        if epoch.is_some() {
            self.clients.returned(key, at);
        }
        match outcome {
            Outcome::Success(_) => self.clients.succeeded(&self.settings, key, epoch),
            Outcome::Failure(Failure::Answered | Failure::Silent | Failure::Reported)
                if min_clients > 1 && !is_shared =>
            {
                self.clients.failed(&self.settings, now, key, epoch, dice);
            }
            Outcome::Failure(_) | Outcome::Ignored => {}
        }
    }

    /// One failed probe is enough when it says the same whoever makes it; else several clients have to see it.
    fn probe_failed(&mut self, caller: Caller, failure: Failure, now: u64, dice: f64) {
        self.run.add(caller, failure);
        let Settings { min_clients, is_shared, .. } = self.settings;
        if failure == Failure::Away || self.run.counted(min_clients, is_shared) >= min_clients.max(1) {
            self.open(now, Reason::Probe, dice);
        } else {
            self.clients.shut_out(&self.settings, now, caller.key(), &self.switch, dice);
        }
    }

    /// What it opened for is over, as somebody else has seen: it may be tried at once.
    pub fn try_now(&mut self) {
        self.switch.try_now();
        self.clients.try_now();
        self.places.each(Self::try_now);
    }

    /// What opened within this time did so for something that was no fault of the other side, or that is over as a whole: as if it had
    /// not.
    pub fn forgive(&mut self, now: u64, within: Duration) {
        self.clients.forgive(now, within);
        self.places.each(|place| place.forgive(now, within));
        if self.switch.open_for(now).is_some_and(|(left, length)| length.saturating_sub(left) < within) {
            self.run.clear();
            self.switch.forgive(now);
        }
    }

    fn trip(&self, now: u64) -> Option<Reason> {
        let Settings { consecutive, min_clients, is_shared, .. } = self.settings;
        if consecutive > 0
            && (self.run.away >= consecutive
                || self.run.total >= consecutive
                    && self.run.counted(min_clients, is_shared) >= consecutive.max(min_clients))
        {
            return Some(Reason::Consecutive);
        }
        let totals = self.window.totals(now);
        let is_over = |of: u32, rate: Option<f64>, counts: &dyn Fn() -> Counts| {
            let is_over = |of: u32, calls: u32| {
                calls >= self.settings.minimum.max(1)
                    && of > 0
                    && rate.is_some_and(|rate| f64::from(of) >= rate * f64::from(calls))
            };
            is_over(of, totals.calls) && {
                // And it would be without what one client saw more of than all others.
                let counted = counts().independent(min_clients);
                counted >= min_clients && is_over(counted, totals.calls.saturating_sub(of.saturating_sub(counted)))
            }
        };
        if is_over(totals.failed, self.settings.failure_rate, &|| self.window.failed(now)) {
            return Some(Reason::FailureRate);
        }
        is_over(totals.slow, self.settings.slow_rate, &|| self.window.slow(now)).then_some(Reason::SlowRate)
    }

    /// Whether all of the last failures are the other side's word that it waits in vain, and nobody else was served of late.
    fn is_reported(&self, caller: Caller, now: u64) -> bool {
        let Settings { consecutive, .. } = self.settings;
        let is_all = self.run.reported.saturating_add(self.run.away) == self.run.total;
        consecutive > 0
            && self.run.total >= consecutive
            && is_all
            && !self.served.has_other(caller.key(), now.saturating_sub(nanoseconds(LATELY)))
    }

    fn open(&mut self, now: u64, reason: Reason, dice: f64) {
        self.reason = Some(reason);
        self.window.clear();
        self.clients.clear();
        self.switch.open(&self.settings, now, false, dice);
    }

    fn open_briefly(&mut self, now: u64) {
        self.reason = Some(Reason::Consecutive);
        self.switch.open_briefly(now, BRIEFLY.min(self.settings.open_for));
    }

    fn close(&mut self, now: u64) {
        self.run.clear();
        self.window.clear();
        self.clients.all_closed();
        self.switch.close(now, self.settings.ramp);
    }

    /// How long it is still open, and how long in all: as [`Breaker::state`].
    pub fn open_for(&self, now: u64) -> Option<(Duration, Duration)> {
        match (self.control, self.switch.state()) {
            (Control::Automatic, State::Closed) => self.places.worst()?.open_for(now),
            (Control::Automatic, _) => self.switch.open_for(now),
            _ => None,
        }
    }
}

fn nanoseconds(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
