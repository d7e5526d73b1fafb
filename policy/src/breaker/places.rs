//! Breakers of the places that share a breaker, created only for places with failures.

use super::{Breaker, Settings, State};

/// The maximum number of places with a breaker. Another place replaces one whose breaker is closed: one that refuses no
/// client first, then the least recent. If there is none, its failures count towards the shared breaker only.
pub(super) const MOST: usize = 32;

#[derive(Clone, Debug)]
struct PlaceBreaker {
    name: u64,
    breaker: Box<Breaker>,
    touched: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct PlaceBreakers(Vec<PlaceBreaker>);

impl PlaceBreakers {
    pub(super) fn all(&self) -> impl Iterator<Item = &Breaker> {
        self.0.iter().map(|place| &*place.breaker)
    }

    /// Returns the breakers and the names of their places.
    pub(super) fn named(&self) -> impl Iterator<Item = (u64, &Breaker)> {
        self.0.iter().map(|place| (place.name, &*place.breaker))
    }

    pub(super) fn each(&mut self, act: impl FnMut(&mut Breaker)) {
        self.0.iter_mut().map(|place| &mut *place.breaker).for_each(act);
    }

    /// Returns the breaker in the worst state: open, then half-open, then ramp, then closed.
    pub(super) fn worst(&self) -> Option<&Breaker> {
        self.all().min_by_key(|breaker| match breaker.state() {
            State::Open => 0,
            State::HalfOpen => 1,
            State::Ramp => 2,
            State::Closed => 3,
        })
    }

    pub(super) fn find(&self, name: u64) -> Option<&Breaker> {
        self.0.iter().find(|place| place.name == name).map(|place| &*place.breaker)
    }

    pub(super) fn find_mut(&mut self, name: u64) -> Option<&mut Breaker> {
        self.0.iter_mut().find(|place| place.name == name).map(|place| &mut *place.breaker)
    }

    pub(super) fn find_or_add(&mut self, name: u64, settings: Settings, now: u64) -> Option<&mut Breaker> {
        let index = match self.0.iter().position(|place| place.name == name) {
            Some(index) => index,
            None => {
                if self.0.len() >= MOST {
                    let closed = self.0.iter().enumerate().filter(|(_, place)| place.breaker.state() == State::Closed);
                    let (oldest, _) = closed.min_by_key(|(_, place)| (!place.breaker.is_calm(), place.touched))?;
                    self.0.swap_remove(oldest);
                }
                let breaker = Box::new(Breaker::new(Settings { is_shared: false, ..settings }));
                self.0.push(PlaceBreaker { name, breaker, touched: now });
                self.0.len() - 1
            }
        };
        let place = self.0.get_mut(index)?;
        place.touched = now;
        Some(&mut *place.breaker)
    }

    pub(super) fn set(&mut self, settings: Settings) {
        if !settings.is_shared {
            self.0.clear();
        }
        self.each(|breaker| breaker.set(Settings { is_shared: false, ..settings }));
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
