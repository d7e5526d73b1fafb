//! The states of a breaker and the transitions between them, without the conditions.

use std::time::Duration;

use super::saved::{SavedPosition, SavedSwitch};
use super::{FIRST_SHARE, Refused, SOON, Settings, State, nanoseconds};
use crate::saved::Shift;

/// A probe that takes longer no longer counts as out, so others may probe: its client may be causing the delay.
pub(super) const PROBE_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, Default)]
pub(super) struct Switch {
    inner: Inner,
    /// Incremented with every change of state, so that results of earlier permits are ignored.
    pub(super) epoch: u64,
    /// How often it opened in a row, and when it last closed.
    trips: u32,
    closed_at: u64,
}

#[derive(Clone, Debug, Default)]
enum Inner {
    #[default]
    Closed,
    Open {
        until: u64,
        length: u64,
        /// It closes without probes when its time is over.
        is_brief: bool,
    },
    HalfOpen {
        /// The probes in progress: key of the caller, and start time.
        out: Vec<(u64, u64)>,
        successes: u32,
    },
    Ramp {
        since: u64,
        credit: f64,
    },
}

impl Switch {
    pub(super) const fn state(&self) -> State {
        match self.inner {
            Inner::Closed => State::Closed,
            Inner::Open { .. } => State::Open,
            Inner::HalfOpen { .. } => State::HalfOpen,
            Inner::Ramp { .. } => State::Ramp,
        }
    }

    /// Returns the rejection that [`Self::ask`] would return, except on the ramp, which decides call by call.
    pub(super) fn refuses(&self, settings: &Settings, now: u64) -> Option<Refused> {
        match &self.inner {
            Inner::Open { until, .. } if now < *until => {
                Some(Refused { retry_after: Duration::from_nanos(until - now) })
            }
            Inner::HalfOpen { out, .. } => {
                let in_time = out.iter().filter(|(_, since)| !is_late(*since, now)).count();
                (in_time >= settings.probes.max(1) as usize).then_some(Refused { retry_after: SOON })
            }
            Inner::Closed | Inner::Open { .. } | Inner::Ramp { .. } => None,
        }
    }

    pub(super) fn ask(&mut self, settings: &Settings, now: u64, key: u64) -> Result<(), Refused> {
        if let Some(refused) = self.refuses(settings, now) {
            return Err(refused);
        }
        match &mut self.inner {
            Inner::Closed => {}
            Inner::Open { is_brief: true, .. } => self.enter(Inner::Closed),
            Inner::Open { .. } => self.enter(Inner::HalfOpen { out: vec![(key, now)], successes: 0 }),
            Inner::HalfOpen { out, .. } => out.push((key, now)),
            Inner::Ramp { since, credit } => {
                let share = now.saturating_sub(*since) as f64 / settings.ramp.as_nanos().max(1) as f64;
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
        Ok(())
    }

    /// The number of probes in progress.
    pub(super) fn probes(&self) -> usize {
        if let Inner::HalfOpen { out, .. } = &self.inner { out.len() } else { 0 }
    }

    /// Removes a probe that took at least [`PROBE_PATIENCE`] and returns its caller's key.
    pub(super) fn take_late(&mut self, now: u64) -> Option<u64> {
        let Inner::HalfOpen { out, .. } = &mut self.inner else { return None };
        let late = out.iter().position(|(_, since)| is_late(*since, now))?;
        Some(out.swap_remove(late).0)
    }

    /// Removes the probe of this caller that started at `at`: it has ended.
    pub(super) fn returned(&mut self, key: u64, at: u64) {
        if let Inner::HalfOpen { out, .. } = &mut self.inner
            && let Some(found) = out.iter().position(|probe| *probe == (key, at))
        {
            out.swap_remove(found);
        }
    }

    /// Counts a successful probe. Returns true if the breaker should close.
    pub(super) fn succeeded(&mut self, settings: &Settings) -> bool {
        let Inner::HalfOpen { successes, .. } = &mut self.inner else { return false };
        *successes += 1;
        *successes >= settings.successes.max(1)
    }

    /// Opens. The time doubles if a probe failed, if it closed less than one opening ago, or if `again`.
    pub(super) fn open(&mut self, settings: &Settings, now: u64, again: bool, dice: f64) {
        let (first, most) = (nanoseconds(settings.open_for), nanoseconds(settings.max_open_for));
        // The upstream has recovered once the breaker was closed for as long as its last opening.
        let is_in_a_row = again
            || match self.inner {
                Inner::HalfOpen { .. } => true,
                _ => self.trips > 0 && now.saturating_sub(self.closed_at) < length_of(self.trips, first, most),
            };
        self.trips = if is_in_a_row { self.trips.saturating_add(1) } else { 1 };
        let mut length = length_of(self.trips, first, most);
        if self.trips > 1 {
            length = length.saturating_add((length as f64 * settings.jitter * dice.clamp(0.0, 1.0)) as u64);
        }
        self.enter(Inner::Open { until: now.saturating_add(length), length, is_brief: false });
    }

    /// Opens for `length`, then closes without probes.
    pub(super) fn open_briefly(&mut self, now: u64, length: Duration) {
        let length = nanoseconds(length);
        self.enter(Inner::Open { until: now.saturating_add(length), length, is_brief: true });
    }

    /// Takes over the number of openings in a row from `other`, if it is higher.
    pub(super) fn follow(&mut self, other: &Self) {
        self.trips = self.trips.max(other.trips);
    }

    pub(super) fn close(&mut self, now: u64, ramp: Duration) {
        self.closed_at = now;
        let on_the_ramp = Inner::Ramp { since: now, credit: 1.0 };
        self.enter(if ramp.is_zero() { Inner::Closed } else { on_the_ramp });
    }

    /// Closes and clears the history.
    pub(super) fn reset(&mut self, now: u64) {
        self.closed_at = now;
        self.trips = 0;
        self.enter(Inner::Closed);
    }

    /// Ends the open time.
    pub(super) fn try_now(&mut self) {
        if let Inner::Open { until, .. } = &mut self.inner {
            *until = 0;
        }
    }

    /// Undoes the last opening.
    pub(super) fn forgive(&mut self, now: u64) {
        self.trips = self.trips.saturating_sub(1);
        self.closed_at = now;
        self.enter(Inner::Closed);
    }

    /// Returns the remaining and the total open time; `None` if it is not open.
    pub(super) fn open_for(&self, now: u64) -> Option<(Duration, Duration)> {
        match self.inner {
            Inner::Open { until, length, .. } => {
                Some((Duration::from_nanos(until.saturating_sub(now)), Duration::from_nanos(length)))
            }
            _ => None,
        }
    }

    /// Returns the state for a snapshot.
    pub(super) const fn saved(&self) -> SavedSwitch {
        let position = match self.inner {
            Inner::Closed => SavedPosition::Closed,
            Inner::Open { until, length, is_brief } => SavedPosition::Open { until, length, is_brief },
            // Its probes end with the process, so it probes anew. It was not opened lately: `forgive` must not close it.
            Inner::HalfOpen { .. } => SavedPosition::Open { until: 0, length: u64::MAX, is_brief: false },
            Inner::Ramp { since, .. } => SavedPosition::Ramp { since },
        };
        SavedSwitch { position, trips: self.trips, closed_at: self.closed_at }
    }

    /// Takes over the state of an earlier process. Stays open for at most as long as the settings open it.
    pub(super) fn restore(&mut self, saved: SavedSwitch, shift: Shift, settings: &Settings) {
        let first = nanoseconds(settings.open_for);
        let most = first.max(nanoseconds(settings.max_open_for));
        let most = most.saturating_add((most as f64 * settings.jitter) as u64);
        self.trips = saved.trips;
        self.closed_at = shift.moved(saved.closed_at).min(shift.now);
        self.enter(match saved.position {
            SavedPosition::Closed => Inner::Closed,
            SavedPosition::Open { until, length, is_brief } => {
                Inner::Open { until: shift.moved(until).min(shift.now.saturating_add(most)), length, is_brief }
            }
            SavedPosition::Ramp { since } => Inner::Ramp { since: shift.moved(since).min(shift.now), credit: 1.0 },
        });
    }

    fn enter(&mut self, inner: Inner) {
        self.inner = inner;
        self.epoch += 1;
    }
}

fn is_late(since: u64, now: u64) -> bool {
    now.saturating_sub(since) >= nanoseconds(PROBE_PATIENCE)
}

fn length_of(trips: u32, first: u64, most: u64) -> u64 {
    first.saturating_mul(1_u64.checked_shl(trips.saturating_sub(1)).unwrap_or(u64::MAX)).min(most.max(first))
}
