//! Circuit breakers: they stop calls to an upstream that fails, and probe whether it has recovered.
//!
//! ```text
//!                trips                     `open_for` is over, next call
//!   Closed ───────────────► Open ──────────────────────────────────► HalfOpen
//!     ▲                      ▲ ▲                                       │   │
//!     │ the ramp is over     │ └────────────── a probe fails ──────────┘   │
//!   Ramp ────────────────────┘ trips                                       │
//!     ▲                                                                    │
//!     └──────────────────────── enough probes succeed ─────────────────────┘
//! ```
//!
//! Sources: Nygard, *Release It!* (2007); the trip conditions and their names are resilience4j's (consecutive failures;
//! failure rate and slow-call rate over a sliding window of calls or time, with a minimum); the ramp is Envoy's slow
//! start, by rejecting instead of weighting.
//!
//! Clients share a breaker, so no single client can open it: [`Failure`] classifies failures by cause, `evidence.rs`
//! counts clients. Failures that only one client sees refuse only that client. A failed probe refuses its own client until
//! probes of several clients have failed; a slow probe does not keep others from probing.
//!
//! A half-open breaker does not depend on the rate of traffic: it admits probes as requests arrive and counts successes
//! however far apart they are. A probe without a result ([`Outcome::Ignored`]) makes room for another.
//!
//! # Examples
//!
//! ```
//! use std::time::Duration;
//!
//! use outrigger_policy::breaker::{Breaker, Caller, Failure, Outcome, Settings, Span, State};
//!
//! const SECOND: u64 = 1_000_000_000;
//! let mut breaker = Breaker::new(Settings {
//!     consecutive: 3,
//!     window: Span::Time(Duration::from_secs(10)),
//!     minimum: 20,
//!     failure_rate: None,
//!     slow_after: None,
//!     slow_rate: None,
//!     open_for: Duration::from_secs(30),
//!     max_open_for: Duration::from_secs(300),
//!     jitter: 0.2,
//!     probes: 1,
//!     successes: 1,
//!     ramp: Duration::ZERO,
//!     min_clients: 1,
//!     is_shared: false,
//! });
//!
//! // Three refused connections in a row open the breaker for 30 s.
//! for client in 0..3 {
//!     let permit = breaker.ask(0, Caller { client, place: 0 }).unwrap();
//!     breaker.record(permit, 0, Outcome::Failure(Failure::Away), 0.5);
//! }
//! let refused = breaker.ask(10 * SECOND, Caller::ANYBODY).unwrap_err();
//! assert_eq!(refused.retry_after, Duration::from_secs(20));
//!
//! // Then the next call is a probe; its success closes the breaker.
//! let probe = breaker.ask(30 * SECOND, Caller::ANYBODY).unwrap();
//! assert_eq!(breaker.state(), State::HalfOpen);
//! breaker.record(probe, 30 * SECOND, Outcome::Success(Duration::from_millis(5)), 0.5);
//! assert_eq!(breaker.state(), State::Closed);
//! ```

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

/// The sliding window over which rates are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// The last calls, this many; clamped to 1..=[`MOST_CALLS`].
    Calls(u32),
    /// The calls that ended within this time, in steps of a tenth.
    Time(Duration),
}

/// The maximum number of calls in a window.
pub const MOST_CALLS: u32 = 10_000;
/// The fraction of calls that pass at the start of the ramp.
const FIRST_SHARE: f64 = 0.1;
/// The `retry_after` while all probes are out, or for calls refused by the ramp.
const SOON: Duration = Duration::from_secs(1);
/// How long [`Failure::Reported`] failures of one client open the breaker for all; at most `open_for`.
const BRIEFLY: Duration = Duration::from_secs(1);
/// They do so only if no other client was served for this long.
const LATELY: Duration = Duration::from_secs(60);

/// The conditions under which a breaker opens and closes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Opens after this many failures in a row; 0 disables the condition.
    pub consecutive: u32,
    /// The window for the two rates.
    pub window: Span,
    /// The minimum number of calls in the window for either rate; 0 counts as 1.
    pub minimum: u32,
    /// Opens if at least this fraction of calls failed, 0 to 1; `None` disables the condition.
    pub failure_rate: Option<f64>,
    /// A call that takes at least this long is slow; `None`: no call is.
    pub slow_after: Option<Duration>,
    /// Opens if at least this fraction of calls was slow, 0 to 1; `None` disables the condition.
    pub slow_rate: Option<f64>,
    /// How long the breaker stays open after the first trip.
    pub open_for: Duration,
    /// Each further trip in a row doubles the time, up to this.
    pub max_open_for: Duration,
    /// From the second trip in a row on, a random time of up to this fraction is added, so that breakers do not all probe
    /// at the same time.
    pub jitter: f64,
    /// Maximum number of concurrent probes while half-open; 0 counts as 1.
    pub probes: u32,
    /// The number of successful probes that close the breaker; 0 counts as 1.
    pub successes: u32,
    /// How long traffic ramps up, from a tenth to all, after the breaker closes; zero: no ramp.
    pub ramp: Duration,
    /// How many clients must see failures that a single client could cause; with 1, any client opens the breaker for all.
    pub min_clients: u32,
    /// Unrelated places share the breaker ([`Caller::place`]). Each place then has a breaker of its own, and this one opens
    /// only if connections fail, or if several places give no response and no other place gives one.
    pub is_shared: bool,
}

/// The state of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// All calls pass.
    Closed,
    /// All calls are refused.
    Open,
    /// A few calls pass as probes.
    HalfOpen,
    /// Closed again: an increasing fraction of calls passes.
    Ramp,
}

impl State {
    /// All states.
    pub const ALL: [Self; 4] = [Self::Closed, Self::Open, Self::HalfOpen, Self::Ramp];

    /// Returns the name used in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::Ramp => "ramp",
        }
    }
}

/// Controls a breaker. Default: [`Control::Automatic`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Control {
    /// The breaker decides.
    #[default]
    Automatic,
    /// Forced open by an operator: all calls are refused.
    ForcedOpen,
    /// Forced closed by an operator: all calls pass and are counted.
    ForcedClosed,
}

/// Why a breaker opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Too many failures in a row.
    Consecutive,
    /// The failure rate.
    FailureRate,
    /// The rate of slow calls.
    SlowRate,
    /// A probe failed.
    Probe,
}

impl Reason {
    /// Returns the name used in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Consecutive => "consecutive_failures",
            Self::FailureRate => "failure_rate",
            Self::SlowRate => "slow_call_rate",
            Self::Probe => "failed_probe",
        }
    }
}

/// The origin and target of a call. Both numbers are hashes, or any distinct values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    /// The client. Identities that cost nothing, such as addresses of one network, must map to the same client.
    pub client: u64,
    /// The target of the call, if unrelated targets share the breaker ([`Settings::is_shared`]); otherwise a constant.
    pub place: u64,
}

impl Caller {
    /// For a breaker that does not distinguish clients.
    pub const ANYBODY: Self = Self { client: 0, place: 0 };

    /// The key under which the caller alone is refused.
    const fn key(self) -> u64 {
        self.client ^ self.place.rotate_left(29)
    }
}

/// The kind of a failure, by what could have caused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection: nothing was sent, so no client caused it. Counts for all clients.
    Away,
    /// The upstream reports that one of its own dependencies does not respond. Like [`Failure::Silent`]; in addition,
    /// [`Settings::consecutive`] of them in a row open the breaker for all for 1 s, if no other client was served within
    /// the last minute.
    Reported,
    /// No response, or no usable one. Refuses the client that sees it, and all clients once several see it.
    Silent,
    /// A response that reports a failure. Like [`Failure::Silent`], but if places share the breaker, it counts for its own
    /// place only.
    Answered,
}

/// The result of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A response after this long.
    Success(Duration),
    /// No response, or one that reports a failure.
    Failure(Failure),
    /// Unknown, as when the client disconnected. Says nothing about the upstream.
    Ignored,
}

/// Permission for one call. Pass it to [`Breaker::record`] when the call ends.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an unrecorded permit leaves a half-open breaker waiting for its probe"]
pub struct Permit {
    caller: Caller,
    at: u64,
    epoch: u64,
    client_epoch: Option<u64>,
    /// The two epochs of its place's own breaker.
    of_place: Option<(u64, Option<u64>)>,
}

/// Error: the breaker refuses the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// A later call may pass after this time.
    pub retry_after: Duration,
}

/// A circuit breaker. Times are nanoseconds on a monotonic clock; `dice` is a random number from 0 to 1.
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
    /// Creates a closed breaker.
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

    /// Changes the settings. Keeps the state, and the window unless its span changes.
    pub fn set(&mut self, settings: Settings) {
        if settings.window != self.settings.window {
            self.window = Window::new(settings.window);
        }
        self.places.set(settings);
        self.settings = settings;
    }

    /// Returns the state. An operator's control takes precedence; a closed breaker returns the worst state of its places.
    pub fn state(&self) -> State {
        match (self.control, self.switch.state()) {
            (Control::ForcedOpen, _) => State::Open,
            (Control::ForcedClosed, _) => State::Closed,
            (Control::Automatic, State::Closed) => self.places.worst().map_or(State::Closed, Self::state),
            (Control::Automatic, state) => state,
        }
    }

    /// Returns the control.
    pub const fn control(&self) -> Control {
        self.control
    }

    /// Returns why it last opened.
    pub fn reason(&self) -> Option<Reason> {
        match (self.switch.state(), self.places.worst()) {
            (State::Closed, Some(place)) => place.reason(),
            _ => self.reason,
        }
    }

    /// Returns the current number of failures in a row; with places, that of the place with the most.
    pub fn failures(&self) -> u32 {
        self.places.all().map(Self::failures).fold(self.run.total, u32::max)
    }

    /// Returns the number of clients that are refused or probing for failures that only they saw.
    pub fn clients_refused(&self) -> usize {
        self.clients.open() + self.places.all().map(Self::clients_refused).sum::<usize>()
    }

    /// Returns whether all calls of all clients pass.
    pub fn is_calm(&self) -> bool {
        self.control == Control::Automatic
            && self.switch.state() == State::Closed
            && self.clients.is_calm()
            && self.places.all().all(Self::is_calm)
    }

    /// Returns the calls in the window, and how many of them failed and were slow. Only places that had failures are
    /// included.
    pub fn seen(&self, now: u64) -> (u32, u32, u32) {
        let totals = self.window.totals(now);
        let own = (totals.calls, totals.failed, totals.slow);
        self.places.all().map(|place| place.seen(now)).fold(own, |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2))
    }

    /// Changes the control. Every change resets the breaker to closed and clears all counts.
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

    /// Returns the rejection that [`Breaker::ask`] would return, without asking. Does not account for the ramp.
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

    /// Asks for permission for a call.
    ///
    /// # Errors
    /// [`Refused`], with the time after which a call may pass.
    pub fn ask(&mut self, now: u64, caller: Caller) -> Result<Permit, Refused> {
        if let Some(refused) = self.refuses(now, caller) {
            return Err(refused);
        }
        let (mut client_epoch, mut of_place) = (None, None);
        if self.control == Control::Automatic {
            if let Some(place) = self.places.find_mut(caller.place) {
                // May refuse on its ramp, so it is asked before this breaker changes.
                let permit = place.ask(now, caller)?;
                of_place = Some((permit.epoch, permit.client_epoch));
            }
            let before = self.switch.epoch;
            if let Err(refused) = self.switch.ask(&self.settings, now, caller.key()) {
                self.record_at_place(caller, now, of_place, now, Outcome::Ignored, 0.0);
                return Err(refused);
            }
            if before != self.switch.epoch {
                // The state changed: failures from before it opened no longer count.
                self.run.clear();
            }
            while let Some(late) = self.switch.take_late(now) {
                self.clients.shut_out(&self.settings, now, late, &self.switch, 0.0);
            }
            // Does not refuse here: `refuses` above included it.
            client_epoch = self.clients.ask(&self.settings, now, caller.key())?;
        }
        Ok(Permit { caller, at: now, epoch: self.switch.epoch, client_epoch, of_place })
    }

    /// Records the result of a call.
    #[expect(clippy::needless_pass_by_value, reason = "a permit is used once")]
    pub fn record(&mut self, permit: Permit, now: u64, outcome: Outcome, dice: f64) {
        let Permit { caller, at, epoch, client_epoch, of_place } = permit;
        self.record_at_place(caller, at, of_place, now, outcome, dice);
        let outcome = match outcome {
            // Any response shows that the upstream is reachable; its status only counts for its place.
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
        // Only failures and slow calls can trip the breaker.
        if (is_failure || is_slow) && self.control == Control::Automatic {
            if let Some(reason) = self.trip(now) {
                self.open(now, reason, dice);
            } else if self.is_reported(caller, now) {
                self.open_briefly(now);
            }
        }
    }

    /// Records the call for its place, if places share this breaker. Returns early for most successes.
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

    /// Records the call for its own caller. Returns early for most successes.
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

    /// Opens after one failed probe if no client can have caused the failure, else after failed probes of several clients.
    fn probe_failed(&mut self, caller: Caller, failure: Failure, now: u64, dice: f64) {
        self.run.add(caller, failure);
        let Settings { min_clients, is_shared, .. } = self.settings;
        if failure == Failure::Away || self.run.counted(min_clients, is_shared) >= min_clients.max(1) {
            self.open(now, Reason::Probe, dice);
        } else {
            self.clients.shut_out(&self.settings, now, caller.key(), &self.switch, dice);
        }
    }

    /// Ends the open time, because the cause is known to be over: the next call is a probe.
    pub fn try_now(&mut self) {
        self.switch.try_now();
        self.clients.try_now();
        self.places.each(Self::try_now);
    }

    /// Undoes openings of the last `within`, whose cause was not the upstream's fault or is over: closes without a ramp.
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
                // The rate must also be exceeded without the surplus of the busiest clients.
                let counted = counts().independent(min_clients);
                counted >= min_clients && is_over(counted, totals.calls.saturating_sub(of.saturating_sub(counted)))
            }
        };
        if is_over(totals.failed, self.settings.failure_rate, &|| self.window.failed(now)) {
            return Some(Reason::FailureRate);
        }
        is_over(totals.slow, self.settings.slow_rate, &|| self.window.slow(now)).then_some(Reason::SlowRate)
    }

    /// Returns whether the last failures are all [`Failure::Reported`] or [`Failure::Away`], enough of them in a row, and no
    /// other client was served recently.
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

    /// Returns the remaining and the total open time; `None` if it is not open or is forced by an operator.
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
