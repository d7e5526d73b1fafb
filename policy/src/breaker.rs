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

mod call;
mod clients;
mod evidence;
mod places;
mod record;
mod saved;
mod settings;
mod switch;
mod window;

use std::time::Duration;

pub use self::call::{Caller, Failure, Outcome};
use self::clients::ClientBreakers;
use self::evidence::{Run, Served};
use self::places::PlaceBreakers;
pub use self::saved::{MOST_SAVED_CLIENTS, MOST_SAVED_PLACES, SavedBreaker, SavedClient, SavedPosition, SavedSwitch};
pub use self::settings::{MOST_CALLS, Settings, Span};
use self::switch::Switch;
use self::window::Window;

/// The fraction of calls that pass at the start of the ramp.
const FIRST_SHARE: f64 = 0.1;
/// The `retry_after` while all probes are out, or for calls refused by the ramp.
const SOON: Duration = Duration::from_secs(1);
/// How long [`Failure::Reported`] failures of one client open the breaker for all; at most `open_for`.
const BRIEFLY: Duration = Duration::from_secs(1);
/// They do so only if no other client was served for this long.
const LATELY: Duration = Duration::from_secs(60);

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
    /// All reasons.
    pub const ALL: [Self; 4] = [Self::Consecutive, Self::FailureRate, Self::SlowRate, Self::Probe];

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

    /// Returns the number of probes in progress.
    pub fn probes(&self) -> usize {
        self.switch.probes() + self.clients.probes() + self.places.all().map(Self::probes).sum::<usize>()
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
