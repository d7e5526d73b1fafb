//! The state of a breaker that survives a restart.
//!
//! An open breaker stays open for the rest of its time, and repeated trips stay counted. A half-open one is restored as open with its
//! time over, so the next call is a probe. The window and the failures in a row begin anew, and so does an operator's control.

use super::{Breaker, Control, Reason, State, clients, places};
use crate::saved::Shift;

/// The maximum number of clients in a [`SavedBreaker`].
pub const MOST_SAVED_CLIENTS: usize = clients::MOST;
/// The maximum number of places in a [`SavedBreaker`].
pub const MOST_SAVED_PLACES: usize = places::MOST;

/// The position of a breaker in a snapshot. Times are nanoseconds on the clock of the process that saved it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SavedPosition {
    /// All calls pass.
    #[default]
    Closed,
    /// All calls are refused.
    Open {
        /// The end of the open time.
        until: u64,
        /// The whole open time.
        length: u64,
        /// It closes without probes.
        is_brief: bool,
    },
    /// An increasing fraction of calls passes.
    Ramp {
        /// When it closed.
        since: u64,
    },
}

/// The position, and how often the breaker opened in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SavedSwitch {
    /// The position.
    pub position: SavedPosition,
    /// How often it opened in a row.
    pub trips: u32,
    /// When it closed last.
    pub closed_at: u64,
}

/// The breaker of one client, for failures that only this client saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SavedClient {
    /// The caller's key.
    pub key: u64,
    /// Failures in a row.
    pub failures: u32,
    /// It opened because of a probe.
    pub is_for_probe: bool,
    /// Its position.
    pub switch: SavedSwitch,
}

/// A breaker in a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedBreaker {
    /// Its position.
    pub switch: SavedSwitch,
    /// Why it last opened.
    pub reason: Option<Reason>,
    /// The breakers of single clients.
    pub clients: Vec<SavedClient>,
    /// The breakers of places, which have no places themselves.
    pub places: Vec<(u64, SavedBreaker)>,
}

impl SavedBreaker {
    /// Whether it is as a new one.
    pub fn is_fresh(&self) -> bool {
        *self == Self::default()
    }

    /// Removes what hashes name, which differ in another process.
    pub fn forget_names(&mut self) {
        self.clients.clear();
        self.places.clear();
    }
}

impl Breaker {
    /// Returns the state for a snapshot. Under an operator's control, it is that of a new breaker.
    pub fn saved(&self) -> SavedBreaker {
        if self.control != Control::Automatic {
            return SavedBreaker::default();
        }
        SavedBreaker {
            switch: self.switch.saved(),
            reason: self.reason,
            clients: self.clients.saved(),
            places: self.places.named().map(|(name, breaker)| (name, breaker.saved())).collect(),
        }
    }

    /// Takes over the state that an earlier process saved. A breaker that has a state of its own keeps it.
    pub fn restore(&mut self, saved: &SavedBreaker, shift: Shift) {
        if self.control != Control::Automatic || self.state() != State::Closed {
            return;
        }
        self.switch.restore(saved.switch, shift, &self.settings);
        self.reason = saved.reason;
        self.clients.restore(&saved.clients, shift, &self.settings);
        if self.settings.is_shared {
            for (name, place) in &saved.places {
                if let Some(breaker) = self.places.find_or_add(*name, self.settings, shift.now) {
                    breaker.restore(place, shift);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::breaker::{Caller, Failure, Outcome, Settings, Span};

    const SECOND: u64 = 1_000_000_000;
    /// The clock of the process that saves.
    const THEN: u64 = 1 << 50;
    const AWAY: Outcome = Outcome::Failure(Failure::Away);
    const QUICK: Outcome = Outcome::Success(Duration::from_millis(5));

    fn settings() -> Settings {
        Settings {
            consecutive: 3,
            window: Span::Time(Duration::from_secs(10)),
            minimum: 20,
            failure_rate: None,
            slow_after: None,
            slow_rate: None,
            open_for: Duration::from_secs(30),
            max_open_for: Duration::from_secs(300),
            jitter: 0.2,
            probes: 1,
            successes: 1,
            ramp: Duration::from_secs(10),
            min_clients: 1,
            is_shared: false,
        }
    }

    fn call(breaker: &mut Breaker, now: u64, client: u64, outcome: Outcome) -> bool {
        let Ok(permit) = breaker.ask(now, Caller { client, place: 0 }) else { return false };
        breaker.record(permit, now, outcome, 0.5);
        true
    }

    /// Opened at `THEN` for the `trips`th time in a row.
    fn opened(trips: u32) -> Breaker {
        let mut breaker = Breaker::new(settings());
        let mut now = if trips == 1 { THEN } else { THEN - 10_000 * SECOND };
        (0..3).for_each(|client| assert!(call(&mut breaker, now, client, AWAY)));
        for trip in 1..trips {
            let (left, _) = breaker.open_for(now).unwrap();
            now = if trip + 1 == trips { THEN } else { now + u64::try_from(left.as_nanos()).unwrap() };
            assert!(call(&mut breaker, now, 0, AWAY));
        }
        breaker
    }

    fn restored(breaker: &Breaker, shift: Shift) -> Breaker {
        let mut restored = Breaker::new(settings());
        restored.restore(&breaker.saved(), shift);
        restored
    }

    #[test]
    fn an_open_breaker_stays_open_for_the_rest_of_its_time() {
        // The second trip in a row: 60 s, and half of the jitter.
        let breaker = opened(2);
        assert_eq!(breaker.open_for(THEN).unwrap().0, Duration::from_secs(66));
        let now = THEN + 7;
        let mut restored = restored(&breaker, Shift { was: THEN + 20 * SECOND, now, age: 10 * SECOND });
        assert_eq!(restored.open_for(now).unwrap().0, Duration::from_secs(36));
        assert!(!call(&mut restored, now + 36 * SECOND - 1, 1, QUICK), "no call passes before its time");
        let at = now + 36 * SECOND;
        assert!(call(&mut restored, at, 1, AWAY), "then the next call is a probe");
        assert_eq!(restored.open_for(at).unwrap().0, Duration::from_secs(132), "and the trips go on doubling");
    }

    #[test]
    fn a_half_open_breaker_probes_anew() {
        let mut breaker = opened(2);
        let _probe = breaker.ask(THEN + 66 * SECOND, Caller::ANYBODY).unwrap();
        assert_eq!(breaker.state(), State::HalfOpen);
        let now = THEN;
        let mut restored = restored(&breaker, Shift { was: THEN + 67 * SECOND, now, age: SECOND });
        // It was not opened lately, so no event at the start closes it without a probe.
        restored.forgive(now, Duration::from_secs(1));
        assert!(restored.refuses(now, Caller::ANYBODY).is_none());
        assert!(call(&mut restored, now, 1, AWAY));
        assert_eq!(restored.state(), State::Open);
    }

    #[test]
    fn an_operators_control_ends_with_the_process() {
        for control in [Control::ForcedOpen, Control::ForcedClosed] {
            let mut breaker = opened(1);
            breaker.control_by(control, THEN);
            assert!(breaker.saved().is_fresh());
        }
    }

    #[test]
    fn breakers_of_clients_and_places_survive() {
        let shared = Settings { is_shared: true, min_clients: 2, ..settings() };
        let mut breaker = Breaker::new(shared);
        let caller = Caller { client: 7, place: 3 };
        for _ in 0..3 {
            let permit = breaker.ask(THEN, caller).unwrap();
            breaker.record(permit, THEN, Outcome::Failure(Failure::Answered), 0.5);
        }
        assert!(breaker.refuses(THEN, caller).is_some());
        let mut restored = Breaker::new(shared);
        restored.restore(&breaker.saved(), Shift { was: THEN, now: THEN, age: SECOND });
        assert!(restored.refuses(THEN, caller).is_some());
        assert!(restored.refuses(THEN, Caller { client: 7, place: 4 }).is_none());
        assert!(restored.refuses(THEN, Caller { client: 8, place: 3 }).is_none());
        let mut foreign = breaker.saved();
        foreign.forget_names();
        let mut restored = Breaker::new(shared);
        restored.restore(&foreign, Shift { was: THEN, now: THEN, age: SECOND });
        assert!(restored.refuses(THEN, caller).is_none());
    }

    proptest! {
        #[test]
        fn a_restored_breaker_decides_as_one_that_waited(
            trips in 1..5_u32,
            age in 0..1000 * SECOND,
            calls in prop::collection::vec((0..40 * SECOND, 0..5_u64, any::<bool>()), 1..40),
        ) {
            let mut waited = opened(trips);
            // The same clock goes on, so that both can be asked at the same times.
            let mut now = THEN + age;
            let mut restored = restored(&waited, Shift { was: THEN, now, age });
            for (gap, client, works) in calls {
                now += gap;
                let outcome = if works { QUICK } else { AWAY };
                prop_assert_eq!(call(&mut restored, now, client, outcome), call(&mut waited, now, client, outcome));
                prop_assert_eq!(restored.state(), waited.state());
                prop_assert_eq!(restored.open_for(now), waited.open_for(now));
            }
        }

        #[test]
        fn no_saved_state_refuses_for_longer_than_the_settings(
            (until, length, since, closed_at) in any::<(u64, u64, u64, u64)>(),
            is_brief: bool,
            ramps: bool,
            trips: u32,
            (was, age) in any::<(u64, u64)>(),
        ) {
            let position = if ramps { SavedPosition::Ramp { since } } else { SavedPosition::Open { until, length, is_brief } };
            let saved = SavedBreaker { switch: SavedSwitch { position, trips, closed_at }, ..SavedBreaker::default() };
            let mut breaker = Breaker::new(settings());
            breaker.restore(&saved, Shift { was, now: THEN, age });
            prop_assert!(breaker.open_for(THEN).is_none_or(|(left, _)| left <= Duration::from_secs(360)));
            let _ = call(&mut breaker, THEN, 1, AWAY);
            let _ = call(&mut breaker, THEN + 360 * SECOND, 1, AWAY);
        }
    }
}
