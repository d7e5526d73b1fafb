//! Records results of calls, and decides whether they open or close a breaker.

use std::time::Duration;

use super::evidence::Counts;
use super::window::Call;
use super::{
    BRIEFLY, Breaker, Caller, Control, Failure, LATELY, Outcome, Permit, Reason, Settings, State, nanoseconds,
};

impl Breaker {
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
    pub(super) fn record_at_place(
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
}
