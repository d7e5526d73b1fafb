//! Breakers of single clients: each refuses one client, for failures that only this client saw.

use std::time::Duration;

use super::saved::SavedClient;
use super::switch::Switch;
use super::{Refused, Settings, State};
use crate::saved::Shift;

/// The maximum number of callers with a breaker. Another caller replaces the least recent one whose breaker is closed. If
/// there is none, its failures count towards the shared breaker only.
pub(super) const MOST: usize = 16;

#[derive(Clone, Debug)]
struct ClientBreaker {
    key: u64,
    /// Failures in a row.
    failures: u32,
    switch: Switch,
    /// It opened because a probe failed or took too long; dropped when the shared breaker closes.
    is_for_probe: bool,
    touched: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct ClientBreakers {
    all: Vec<ClientBreaker>,
    /// Where the epochs of the next breaker begin, so that permits from an earlier breaker of the same caller are ignored.
    epoch: u64,
}

impl ClientBreakers {
    pub(super) fn is_calm(&self) -> bool {
        self.all.iter().all(|client| client.switch.state() == State::Closed)
    }

    /// Returns the number of breakers that are not closed.
    pub(super) fn open(&self) -> usize {
        self.all.iter().filter(|client| client.switch.state() != State::Closed).count()
    }

    /// Returns the number of their probes in progress.
    pub(super) fn probes(&self) -> usize {
        self.all.iter().map(|client| client.switch.probes()).sum()
    }

    fn find(&mut self, key: u64) -> Option<&mut ClientBreaker> {
        self.all.iter_mut().find(|client| client.key == key)
    }

    pub(super) fn refuses(&self, settings: &Settings, now: u64, key: u64) -> Option<Refused> {
        self.all.iter().find(|client| client.key == key)?.switch.refuses(settings, now)
    }

    /// Asks for permission; returns the epoch of the caller's breaker, to be passed back with the result.
    pub(super) fn ask(&mut self, settings: &Settings, now: u64, key: u64) -> Result<Option<u64>, Refused> {
        let Some(client) = self.find(key) else { return Ok(None) };
        client.switch.ask(settings, now, key)?;
        while client.switch.take_late(now).is_some() {}
        Ok(Some(client.switch.epoch))
    }

    pub(super) fn returned(&mut self, key: u64, at: u64) {
        if let Some(client) = self.find(key) {
            client.switch.returned(key, at);
        }
    }

    /// Records a successful call of a caller.
    pub(super) fn succeeded(&mut self, settings: &Settings, key: u64, epoch: Option<u64>) {
        let Some(index) = self.all.iter().position(|client| client.key == key) else { return };
        let client = &mut self.all[index];
        let is_well = match client.switch.state() {
            State::Closed => true,
            State::HalfOpen => epoch == Some(client.switch.epoch) && client.switch.succeeded(settings),
            State::Open | State::Ramp => false,
        };
        if is_well {
            self.all.swap_remove(index);
        }
    }

    /// Records a failed call of a caller.
    pub(super) fn failed(&mut self, settings: &Settings, now: u64, key: u64, epoch: Option<u64>, dice: f64) {
        let Some(client) = self.entry(key, now) else { return };
        client.touched = now;
        let opens = match client.switch.state() {
            State::Closed => {
                client.failures = client.failures.saturating_add(1);
                settings.consecutive > 0 && client.failures >= settings.consecutive
            }
            State::HalfOpen => epoch == Some(client.switch.epoch),
            State::Open | State::Ramp => false,
        };
        if opens {
            client.switch.open(settings, now, false, dice);
        }
    }

    /// A probe of this caller failed or took too long: refuses the caller for as long as the shared breaker's next trip
    /// would last.
    pub(super) fn shut_out(&mut self, settings: &Settings, now: u64, key: u64, of_all: &Switch, dice: f64) {
        let Some(client) = self.entry(key, now) else { return };
        if client.switch.state() != State::Open {
            client.is_for_probe = true;
            client.switch.follow(of_all);
            client.switch.open(settings, now, true, dice);
        }
    }

    fn entry(&mut self, key: u64, now: u64) -> Option<&mut ClientBreaker> {
        let index = match self.all.iter().position(|client| client.key == key) {
            Some(index) => index,
            None => {
                if self.all.len() >= MOST {
                    let closed =
                        self.all.iter().enumerate().filter(|(_, client)| client.switch.state() == State::Closed);
                    let (oldest, _) = closed.min_by_key(|(_, client)| client.touched)?;
                    self.all.swap_remove(oldest);
                }
                self.epoch += 1 << 32;
                let mut switch = Switch::default();
                switch.epoch = self.epoch;
                self.all.push(ClientBreaker { key, failures: 0, switch, is_for_probe: false, touched: now });
                self.all.len() - 1
            }
        };
        self.all.get_mut(index)
    }

    /// The shared breaker has closed.
    pub(super) fn all_closed(&mut self) {
        self.all.retain(|client| !client.is_for_probe);
    }

    /// Returns those that know of failures.
    pub(super) fn saved(&self) -> Vec<SavedClient> {
        let saved = |client: &ClientBreaker| SavedClient {
            key: client.key,
            failures: client.failures,
            is_for_probe: client.is_for_probe,
            switch: client.switch.saved(),
        };
        self.all.iter().map(saved).collect()
    }

    /// Adds the breakers of an earlier process.
    pub(super) fn restore(&mut self, saved: &[SavedClient], shift: Shift, settings: &Settings) {
        for saved in saved {
            let Some(client) = self.entry(saved.key, shift.now) else { return };
            client.failures = saved.failures;
            client.is_for_probe = saved.is_for_probe;
            client.switch.restore(saved.switch, shift, settings);
        }
    }

    pub(super) fn try_now(&mut self) {
        self.all.iter_mut().for_each(|client| client.switch.try_now());
    }

    /// Removes the breakers that opened within this time.
    pub(super) fn forgive(&mut self, now: u64, within: Duration) {
        self.all.retain(|client| {
            client.switch.open_for(now).is_none_or(|(left, length)| length.saturating_sub(left) >= within)
        });
    }

    pub(super) fn clear(&mut self) {
        self.all.clear();
    }
}
