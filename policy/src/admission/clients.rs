//! Exact state for each client that holds a permit, waits, or recently used the app while other requests had to wait.
//!
//! A client's *usage* is the time for which its requests held permits, and [`REJECTED`] of an average request for each that
//! got none, by priority, halved every [`HALF_LIFE_NS`]. A client is *heavy* if its usage exceeds [`HEAVY`] times the average
//! of the other clients, [`HEAVY`] average requests, and [`SHARE`] of all usage. Clients with a new key for each request lower the average, but make no ordinary client heavy.
//! A client that had no response for some minutes is a *stranger* (`seen.rs`).

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::seen::Seen;
use super::slab::{Links, List, NONE, Slab};
use crate::priority::Priority;

/// The half-life of usage, in nanoseconds.
pub const HALF_LIFE_NS: u64 = 5_000_000_000;
/// An idle client (no permit, no waiting request) is forgotten after this time, in nanoseconds: 1/16 of its usage is left.
pub const FORGOTTEN_AFTER_NS: u64 = 4 * HALF_LIFE_NS;
/// The maximum number of idle clients that are remembered. The client that has been idle for longest is forgotten first,
/// and then counts as one without usage.
pub const MOST_IDLE: u32 = 16_384;
/// A heavy client's usage, as a multiple of the other clients' average.
const HEAVY: f64 = 8.0;
/// The minimum fraction of all usage that makes a client heavy.
const SHARE: f64 = 1.0 / 32.0;
/// A request that got no permit counts as this fraction of an average one: who asks often is told from who asks rarely even if
/// hardly any of them is served, and who was served still has used more.
const REJECTED: f64 = 0.75;
/// The average cost of a request is the mean over about this many requests.
const COST_MEMORY: f64 = 64.0;
/// A stranger counts as a client that has used as much as this many average requests: others first.
const STRANGER: f64 = 16.0;

/// The identity hasher: client identifiers are already hashes under a secret key.
#[derive(Debug, Default)]
pub struct HashedAlready(u64);

impl Hasher for HashedAlready {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u64(&mut self, id: u64) {
        self.0 = id;
    }
}

#[derive(Debug)]
pub struct Client {
    id: u64,
    /// Permits held.
    pub held: u32,
    /// Requests in the queue.
    pub waiting: u32,
    /// Usage in nanoseconds at the time `as_of`, by priority.
    usage: [f64; Priority::ALL.len()],
    as_of: u64,
    is_idle: bool,
    idle: Links,
    /// Its requests in the queue, by priority.
    pub flows: [u32; Priority::ALL.len()],
}

/// All clients; see the module documentation.
#[derive(Debug, Default)]
pub struct Clients {
    numbers: HashMap<u64, u32, BuildHasherDefault<HashedAlready>>,
    clients: Slab<Client>,
    /// Idle clients, the longest idle first.
    idle: List,
    /// The sum of all clients' usage at the time `as_of`.
    usage: f64,
    as_of: u64,
    /// The average cost of a request, in nanoseconds.
    cost: f64,
    seen: Seen,
}

impl Client {
    fn used(&self) -> f64 {
        self.usage.iter().sum()
    }

    /// Halves the usage for the time since it was valid.
    fn decay(&mut self, now: u64) {
        let factor = decayed(1.0, self.as_of, now);
        self.usage.iter_mut().for_each(|usage| *usage *= factor);
        self.as_of = self.as_of.max(now);
    }
}

impl Clients {
    pub fn find(&self, id: u64) -> Option<u32> {
        self.numbers.get(&id).copied()
    }

    pub fn get(&self, number: u32) -> Option<&Client> {
        self.clients.get(number)
    }

    pub fn get_mut(&mut self, number: u32) -> Option<&mut Client> {
        self.clients.get_mut(number)
    }

    /// Returns the client's number, adding the client if it is unknown. The caller then gives it a permit or queues a
    /// request for it.
    pub fn enter(&mut self, id: u64) -> u32 {
        if let Some(number) = self.find(id) {
            if self.clients.get_mut(number).is_some_and(|client| std::mem::take(&mut client.is_idle)) {
                self.idle.remove(&mut self.clients, number, |client| &mut client.idle);
            }
            return number;
        }
        let flows = [NONE; Priority::ALL.len()];
        let (is_idle, idle) = (false, Links::default());
        let usage = [0.0; Priority::ALL.len()];
        let client = Client { id, held: 0, waiting: 0, usage, as_of: 0, is_idle, idle, flows };
        let number = self.clients.insert(client);
        self.numbers.insert(id, number);
        number
    }

    pub fn hold(&mut self, number: u32) {
        if let Some(client) = self.clients.get_mut(number) {
            client.held += 1;
        }
    }

    /// Returns a permit after `used` nanoseconds, which are added to its client's usage if they `count`.
    pub fn release(&mut self, number: u32, priority: Priority, now: u64, used: u64, counts: bool) {
        let Some(client) = self.clients.get_mut(number) else { return };
        if client.held == 0 {
            return;
        }
        client.held -= 1;
        if used > 0 {
            let used = used as f64;
            self.cost = if self.cost == 0.0 { used } else { self.cost + (used - self.cost) / COST_MEMORY };
            self.seen.add(client.id, now);
            if counts {
                client.decay(now);
                client.usage[priority as usize] += used;
                self.usage = decayed(self.usage, self.as_of, now) + used;
                self.as_of = self.as_of.max(now);
            }
        }
        self.rest(number, now);
    }

    /// Counts a request that got no permit. A stranger's does not count, so that new clients push nobody out of the memory; and
    /// rejections alone make no client look worse than a stranger.
    pub fn charge(&mut self, number: u32, priority: Priority, now: u64) {
        let Some(client) = self.clients.get_mut(number).filter(|client| self.seen.has(client.id)) else { return };
        client.decay(now);
        let usage = &mut client.usage[priority as usize];
        let used = (REJECTED * self.cost).min(STRANGER * self.cost - *usage).max(0.0);
        *usage += used;
        self.usage = decayed(self.usage, self.as_of, now) + used;
        self.as_of = self.as_of.max(now);
        if client.is_idle {
            self.idle.remove(&mut self.clients, number, |client| &mut client.idle);
            self.idle.push(&mut self.clients, number, |client| &mut client.idle);
        }
    }

    /// Must be called after a client gave up a permit or left the queue: if that was its last, it becomes idle, or is
    /// forgotten if it has no usage.
    pub fn rest(&mut self, number: u32, now: u64) {
        let Some(client) = self.clients.get_mut(number) else { return };
        if client.held > 0 || client.waiting > 0 || client.is_idle {
            return;
        }
        if client.used() > 0.0 {
            client.is_idle = true;
            client.decay(now);
            self.idle.push(&mut self.clients, number, |client| &mut client.idle);
        } else {
            self.remove(number);
        }
        // At most two removals per call: constant work, and enough to stay within the bound.
        for _ in 0..2 {
            let Some(oldest) = self.clients.get(self.idle.first) else { break };
            if self.idle.len <= MOST_IDLE && now.saturating_sub(oldest.as_of) <= FORGOTTEN_AFTER_NS {
                break;
            }
            let oldest = self.idle.first;
            self.idle.remove(&mut self.clients, oldest, |client| &mut client.idle);
            self.remove(oldest);
        }
    }

    fn remove(&mut self, number: u32) {
        let Some(client) = self.clients.remove(number) else { return };
        self.numbers.remove(&client.id);
        // The sum restarts at 0 with the last client, so rounding errors do not accumulate.
        let rest = self.usage - decayed(client.used(), client.as_of, self.as_of);
        self.usage = if self.numbers.is_empty() { 0.0 } else { rest.max(0.0) };
    }

    /// Returns whether a client is heavy. Each permit that it holds counts as one average request.
    pub fn is_heavy(&self, number: u32, now: u64) -> bool {
        let Some(client) = self.clients.get(number) else { return false };
        let used = decayed(client.used(), client.as_of, now);
        let others = self.numbers.len().saturating_sub(1) as f64;
        if others == 0.0 {
            return false;
        }
        let all = decayed(self.usage, self.as_of, now);
        let average = (all - used).max(0.0) / others;
        used + f64::from(client.held) * self.cost > (HEAVY * average.max(self.cost)).max(SHARE * all)
    }

    /// Returns the average cost of a request, in nanoseconds.
    pub const fn cost(&self) -> f64 {
        self.cost
    }

    /// Returns whether a client had no response for some minutes, while others had.
    pub fn is_stranger(&self, number: u32) -> bool {
        self.cost > 0.0 && self.clients.get(number).is_none_or(|client| !self.seen.has(client.id))
    }

    /// Returns what a client has used in a priority, and will use with the permits that it holds.
    pub fn spent(&self, number: u32, priority: Priority, now: u64) -> f64 {
        let Some(client) = self.clients.get(number) else { return 0.0 };
        let spent = decayed(client.usage[priority as usize], client.as_of, now) + f64::from(client.held) * self.cost;
        if self.seen.has(client.id) { spent } else { spent.max(STRANGER * self.cost) }
    }

    /// Returns whether a client in the queue has used more than the client of a new request would have after it: that
    /// client's request should give way. A stranger takes no place from anybody.
    pub fn has_used_more(&self, waiting: u32, newcomer: u64, priority: Priority, now: u64) -> bool {
        let own = self.find(newcomer).map_or(0.0, |number| self.spent(number, priority, now));
        self.seen.has(newcomer) && self.spent(waiting, priority, now) > own + self.cost
    }

    #[cfg(test)]
    pub fn totals(&self) -> (usize, u32, u32, u32) {
        let all = self.clients.numbers().filter_map(|number| self.clients.get(number));
        let (held, waiting) = all.fold((0, 0), |sum, client| (sum.0 + client.held, sum.1 + client.waiting));
        (self.clients.len(), self.idle.len, held, waiting)
    }
}

fn decayed(usage: f64, as_of: u64, now: u64) -> f64 {
    match now.saturating_sub(as_of) {
        0 => usage,
        _ if usage == 0.0 => 0.0,
        age => usage * (-(age as f64) / HALF_LIFE_NS as f64).exp2(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn uses(clients: &mut Clients, id: u64, now: u64, used: u64) {
        let number = clients.enter(id);
        clients.hold(number);
        clients.release(number, Priority::Medium, now, used, true);
    }

    #[test]
    fn a_client_that_asks_eighty_times_as_often_is_heavy_until_it_has_been_quiet_for_a_while() {
        let mut clients = Clients::default();
        for n in 0..80 {
            uses(&mut clients, 1000 + n, n * MS, 20 * MS);
            uses(&mut clients, 7, n * MS, 20 * MS);
        }
        let (heavy, other) = (clients.enter(7), clients.enter(1003));
        assert!(clients.is_heavy(heavy, 80 * MS));
        assert!(!clients.is_heavy(other, 80 * MS));
        // The other clients continue; ten half-lives later the heavy client's usage is negligible.
        for n in 0..80 {
            uses(&mut clients, 2000 + n, 80 * MS + 10 * HALF_LIFE_NS, 20 * MS);
        }
        assert!(!clients.is_heavy(heavy, 80 * MS + 10 * HALF_LIFE_NS));
    }

    #[test]
    fn a_client_weighs_as_much_as_the_app_time_of_its_requests() {
        let mut clients = Clients::default();
        for n in 0..50 {
            uses(&mut clients, 1000 + n, n * MS, 10 * MS);
        }
        uses(&mut clients, 7, 50 * MS, 3_000 * MS);
        let slow = clients.enter(7);
        assert!(clients.is_heavy(slow, 51 * MS));
    }

    #[test]
    fn a_new_client_per_request_makes_no_other_client_heavy() {
        let mut clients = Clients::default();
        for n in 0..10_000 {
            uses(&mut clients, n % 100, n * MS, 20 * MS);
            uses(&mut clients, 1_000_000 + n, n * MS, 20 * MS);
        }
        for id in 0..100 {
            let number = clients.enter(id);
            assert!(!clients.is_heavy(number, 10_000 * MS));
        }
    }

    #[test]
    fn equal_clients_are_never_heavy_and_neither_is_the_only_one() {
        let mut clients = Clients::default();
        for n in 0..10_000 {
            uses(&mut clients, n % 100, n * MS, 20 * MS);
        }
        for id in 0..100 {
            let number = clients.enter(id);
            assert!(!clients.is_heavy(number, 10_000 * MS));
        }
        let mut clients = Clients::default();
        for n in 0..100 {
            uses(&mut clients, 1, n * MS, 20 * MS);
        }
        let only = clients.enter(1);
        assert!(!clients.is_heavy(only, 100 * MS));
    }

    #[test]
    fn clients_that_come_once_are_forgotten_and_never_more_than_so_many_are_remembered() {
        let mut clients = Clients::default();
        for n in 0..100_000 {
            uses(&mut clients, n, n, 20 * MS);
            assert!(clients.numbers.len() <= MOST_IDLE as usize);
        }
        assert_eq!(clients.totals().1, MOST_IDLE);
        for n in 0..u64::from(MOST_IDLE) {
            uses(&mut clients, 7, 100_000 + FORGOTTEN_AFTER_NS + n, 20 * MS);
        }
        assert_eq!(clients.totals(), (1, 1, 0, 0));
        assert!(clients.usage.is_finite() && clients.usage >= 0.0);
    }
}
