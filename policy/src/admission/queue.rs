//! The fair queue: requests in order of priority, and within a priority a ring of clients.
//!
//! Each waiting client has a *flow*: its own requests, oldest first. A flow joins the ring at the end, and again after each
//! of its requests that is granted a permit, as in round-robin fair queueing (Nagle 1987) and deficit round robin
//! (Shreedhar, Varghese 1995). A bounded number of flows that join later may overtake a flow of a heavy client
//! ([`Clients::is_heavy`]) or of a stranger. Once, a flow whose client has used much less takes the position of one, which
//! moves to the end.
//!
//! Therefore the first request of a flow waits for at most as many grants of its priority as there were other flows when its
//! own joined or was moved to the end, plus [`Terms::overtakers_of_strangers`] for a heavy client or a stranger, regardless
//! of later arrivals.

use std::collections::BTreeSet;

use super::Turn;
use super::clients::{Clients, HALF_LIFE_NS};
use super::slab::{Links, List, NONE, Slab};
use crate::priority::Priority;

/// A flow that joins looks at so many others for one whose position it takes.
const MOST_LOOKED_AT: usize = 16;
/// That one's client has used so many times as much. The usage of equal clients differs by less, mostly.
const MUCH_MORE: f64 = 3.0;

/// A queued request, or one whose owner has not collected its result yet.
#[derive(Debug)]
pub struct Place<T> {
    pub waker: T,
    pub turn: Turn,
    /// Its owner will collect the result.
    pub is_owned: bool,
    /// The number of its client, valid while the request waits or holds a permit.
    pub client: u32,
    /// When it was queued, in nanoseconds.
    pub since: u64,
    flow: u32,
    links: Links,
}

/// The requests of one client and priority.
#[derive(Debug)]
struct Flow {
    client: u32,
    priority: Priority,
    /// Others may overtake it.
    is_late: bool,
    /// It was moved to the end since it joined: that happens once.
    is_moved: bool,
    /// Flows are served in ascending order.
    rank: u64,
    /// Usage of its client when it joined, for comparison with others.
    usage: u64,
    places: List,
    ring: Links,
    /// The list of flows with the same number of requests.
    peers: Links,
}

/// All flows of one priority.
#[derive(Debug, Default)]
struct Ring {
    /// Both in order of rank.
    regular: List,
    late: List,
    /// How many times a flow has joined.
    joined: u64,
    /// The rank of the late flow that joined last.
    last_late: u64,
    /// Flows by their number of requests, and the largest such number.
    by_len: Vec<List>,
    longest: usize,
    /// Flows by what their clients had used when they joined.
    by_usage: BTreeSet<(u64, u32)>,
    waiting: u32,
    /// When a request was last granted a permit, or the first one joined.
    served_at: u64,
}

/// The conditions under which a flow joins the ring.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub now: u64,
    /// How many flows that join later may overtake a flow of a heavy client, if no stranger waits.
    pub overtakers: u32,
    /// How many may overtake that of a stranger: more.
    pub overtakers_of_strangers: u32,
}

/// The queue; see the module documentation.
#[derive(Debug)]
pub struct FairQueue<T> {
    places: Slab<Place<T>>,
    flows: Slab<Flow>,
    rings: [Ring; Priority::ALL.len()],
    len: u32,
}

/// A number for usage at `now` that is in the order of what is left of it at any later time.
fn comparable(usage: f64, now: u64) -> u64 {
    // The bits of positive numbers are in their order.
    (usage.max(1.0).log2() + now as f64 / HALF_LIFE_NS as f64).to_bits()
}

impl<T: Default> FairQueue<T> {
    pub fn new() -> Self {
        Self { places: Slab::default(), flows: Slab::default(), rings: Default::default(), len: 0 }
    }

    /// Returns the number of waiting requests.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Returns the number of waiting requests of a priority.
    pub fn waiting(&self, priority: Priority) -> u32 {
        self.rings[priority as usize].waiting
    }

    pub fn place(&self, number: u32) -> Option<&Place<T>> {
        self.places.get(number)
    }

    pub fn place_mut(&mut self, number: u32) -> Option<&mut Place<T>> {
        self.places.get_mut(number)
    }

    pub fn numbers(&self) -> std::ops::Range<u32> {
        self.places.numbers()
    }

    /// Frees the entry of a request whose owner has collected the result.
    pub fn forget(&mut self, number: u32) {
        self.places.remove(number);
    }

    pub fn priority_of(&self, number: u32) -> Priority {
        let flow = self.places.get(number).and_then(|place| self.flows.get(place.flow));
        flow.map_or(Priority::Strict, |flow| flow.priority)
    }

    /// Returns the number of a client's waiting requests of a priority.
    pub fn waiting_of(&self, clients: &Clients, client: u32, priority: Priority) -> u32 {
        let flow = clients.get(client).and_then(|client| self.flows.get(client.flows[priority as usize]));
        flow.map_or(0, |flow| flow.places.len)
    }

    /// Returns the oldest waiting request of a client and priority.
    pub fn oldest_of(&self, clients: &Clients, client: u32, priority: Priority) -> Option<u32> {
        let flow = self.flows.get(clients.get(client)?.flows[priority as usize])?;
        Some(flow.places.first)
    }

    /// Returns when a priority was last served; `None` if no request of it waits.
    pub fn served_at(&self, priority: Priority) -> Option<u64> {
        let ring = &self.rings[priority as usize];
        (ring.waiting > 0).then_some(ring.served_at)
    }

    /// Appends a request to its client's flow and returns its number.
    pub fn push(&mut self, clients: &mut Clients, client: u32, priority: Priority, terms: Terms) -> u32 {
        let ring = &mut self.rings[priority as usize];
        if ring.waiting == 0 {
            ring.served_at = terms.now;
        }
        ring.waiting += 1;
        self.len += 1;
        let mut flow = NONE;
        if let Some(client) = clients.get_mut(client) {
            client.waiting += 1;
            flow = client.flows[priority as usize];
        }
        if flow == NONE {
            let (places, ring, peers) = (List::default(), Links::default(), Links::default());
            let (is_late, is_moved) = (false, false);
            flow =
                self.flows.insert(Flow { client, priority, is_late, is_moved, rank: 0, usage: 0, places, ring, peers });
            if let Some(client) = clients.get_mut(client) {
                client.flows[priority as usize] = flow;
            }
            self.join(clients, flow, terms);
        }
        let place = Place {
            waker: T::default(),
            turn: Turn::Waiting,
            is_owned: true,
            client,
            since: terms.now,
            flow,
            links: Links::default(),
        };
        let number = self.places.insert(place);
        if let Some(flow) = self.flows.get_mut(flow) {
            flow.places.push(&mut self.places, number, |place| &mut place.links);
        }
        self.count(flow, 1);
        number
    }

    /// Returns the next request of a priority.
    pub fn next_of(&self, priority: Priority) -> Option<u32> {
        let ring = &self.rings[priority as usize];
        let flow = match (self.flows.get(ring.regular.first), self.flows.get(ring.late.first)) {
            (Some(regular), Some(late)) if late.rank < regular.rank => late,
            (Some(flow), _) | (None, Some(flow)) => flow,
            (None, None) => return None,
        };
        Some(flow.places.first)
    }

    /// Returns the next request: of the most important priority, unless that is not critical and a heavy client waits in it, and
    /// another priority was not served since `starved_since` and is next for a client that is not heavy.
    pub fn next(&self, clients: &Clients, starved_since: u64, now: u64) -> Option<u32> {
        let mut waiting = Priority::ALL.into_iter().filter(|priority| self.waiting(*priority) > 0);
        let first = waiting.next()?;
        let next = self.next_of(first)?;
        let mut starved = waiting.filter(|priority| self.served_at(*priority).is_some_and(|at| at < starved_since));
        let is_heavy = |number: u32| self.places.get(number).is_some_and(|place| clients.is_heavy(place.client, now));
        // The order is usual: most requests need no more than this.
        let Some(priority) =
            starved.next().filter(|_| first != Priority::Critical && self.heaviest_of(first).is_some_and(is_heavy))
        else {
            return Some(next);
        };
        let all = std::iter::once(priority).chain(starved);
        let starved = all.filter_map(|priority| self.next_of(priority)).find(|number| !is_heavy(*number));
        starved.or(Some(next))
    }

    /// Grants a permit to a request and returns its waker. The rest of its flow moves to the end of the ring.
    pub fn grant(&mut self, clients: &mut Clients, number: u32, terms: Terms) -> T {
        let flow = self.places.get(number).map_or(NONE, |place| place.flow);
        if let Some(priority) = self.flows.get(flow).map(|flow| flow.priority) {
            self.rings[priority as usize].served_at = terms.now;
        }
        let waker = self.remove(clients, number, Turn::Granted);
        if self.flows.get(flow).is_some() {
            self.leave(flow);
            self.join(clients, flow, terms);
        }
        waker
    }

    /// Removes a request from the queue and returns its waker. If it has an owner, its entry stays until the owner has
    /// collected the result. The rest of its flow keeps its position.
    pub fn remove(&mut self, clients: &mut Clients, number: u32, turn: Turn) -> T {
        let Some(place) = self.places.get_mut(number) else { return T::default() };
        let (at, client, is_owned) = (std::mem::replace(&mut place.flow, NONE), place.client, place.is_owned);
        let Some(flow) = self.flows.get_mut(at) else { return T::default() };
        place.turn = turn;
        let waker = std::mem::take(&mut place.waker);
        flow.places.remove(&mut self.places, number, |place| &mut place.links);
        let (priority, is_last) = (flow.priority as usize, flow.places.len == 0);
        self.rings[priority].waiting -= 1;
        self.len -= 1;
        self.count(at, -1);
        if let Some(client) = clients.get_mut(client) {
            client.waiting = client.waiting.saturating_sub(1);
            if is_last {
                client.flows[priority] = NONE;
            }
        }
        if is_last {
            self.leave(at);
            self.flows.remove(at);
        }
        if !is_owned {
            self.places.remove(number);
        }
        waker
    }

    /// Returns the request that makes room for one more request of a client with `own` requests of this priority in the
    /// queue: the newest request of the longest flow in the least important priority. In the same priority only if that
    /// flow has at least two requests more, so that it is not the shorter one afterwards (longest queue drop: Suter,
    /// Lakshman, Stiliadis, Choudhury 1998).
    pub fn makes_room_for(&self, priority: Priority, own: u32) -> Option<u32> {
        let least = self.least_important()?;
        let ring = &self.rings[least as usize];
        (least > priority || (least == priority && ring.longest as u32 >= own + 2))
            .then(|| self.last_of(least))
            .flatten()
    }

    /// Returns the least important priority with waiting requests.
    pub fn least_important(&self) -> Option<Priority> {
        Priority::ALL.into_iter().rev().find(|priority| self.waiting(*priority) > 0)
    }

    /// Returns the newest request of the longest flow of a priority; if no client has more than one, that of the client
    /// that had used most.
    pub fn last_of(&self, priority: Priority) -> Option<u32> {
        let ring = &self.rings[priority as usize];
        if ring.longest == 1 {
            return self.heaviest_of(priority);
        }
        let flow = self.flows.get(ring.by_len.get(ring.longest)?.last)?;
        Some(flow.places.last)
    }

    /// Returns the newest request of the flow whose client had used most when it joined.
    pub fn heaviest_of(&self, priority: Priority) -> Option<u32> {
        let (_, flow) = self.rings[priority as usize].by_usage.last()?;
        Some(self.flows.get(*flow)?.places.last)
    }

    /// Gives a flow its position in the ring.
    fn join(&mut self, clients: &Clients, at: u32, terms: Terms) {
        let Some(flow) = self.flows.get(at) else { return };
        let (client, priority) = (flow.client, flow.priority);
        let overtakers = if clients.is_stranger(client) {
            terms.overtakers_of_strangers
        } else if clients.is_heavy(client, terms.now) {
            terms.overtakers
        } else {
            0
        };
        let spent = clients.spent(client, priority, terms.now);
        let usage = comparable(spent, terms.now);
        let moved = if overtakers == 0 { self.first_heavier(clients, priority, spent, terms.now) } else { None };
        let ring = &mut self.rings[priority as usize];
        ring.by_usage.insert((usage, at));
        ring.joined += 1;
        let (last, joined) = (ring.last_late, ring.joined);
        let rank = match moved.and_then(|moved| self.flows.get_mut(moved)) {
            Some(moved) => {
                moved.is_moved = true;
                std::mem::replace(&mut moved.rank, joined)
            }
            // Keeps late flows in order.
            None if overtakers > 0 => last.max(joined + u64::from(overtakers)),
            None => joined,
        };
        let Some(flow) = self.flows.get_mut(at) else { return };
        (flow.usage, flow.rank, flow.is_late, flow.is_moved) = (usage, rank, overtakers > 0, false);
        if overtakers > 0 {
            ring.last_late = rank;
            ring.late.push(&mut self.flows, at, |flow| &mut flow.ring);
        } else if let Some(moved) = moved {
            ring.regular.replace(&mut self.flows, moved, at, |flow| &mut flow.ring);
            ring.regular.push(&mut self.flows, moved, |flow| &mut flow.ring);
        } else {
            ring.regular.push(&mut self.flows, at, |flow| &mut flow.ring);
        }
    }

    /// Returns the first of the next regular flows that was not moved yet, and whose client has used [`MUCH_MORE`] times as much as
    /// one with `spent` would have after its request.
    fn first_heavier(&self, clients: &Clients, priority: Priority, spent: f64, now: u64) -> Option<u32> {
        let most = MUCH_MORE * (spent + clients.cost());
        let mut at = self.rings[priority as usize].regular.first;
        for _ in 0..MOST_LOOKED_AT {
            let flow = self.flows.get(at)?;
            if !flow.is_moved && clients.spent(flow.client, priority, now) > most {
                return Some(at);
            }
            at = flow.ring.after();
        }
        None
    }

    fn leave(&mut self, at: u32) {
        let Some(flow) = self.flows.get(at) else { return };
        let ring = &mut self.rings[flow.priority as usize];
        ring.by_usage.remove(&(flow.usage, at));
        let list = if flow.is_late { &mut ring.late } else { &mut ring.regular };
        list.remove(&mut self.flows, at, |flow| &mut flow.ring);
    }

    /// Updates the index by length after a flow grew or shrank by one.
    fn count(&mut self, at: u32, change: i32) {
        let Some(flow) = self.flows.get(at) else { return };
        let ring = &mut self.rings[flow.priority as usize];
        let len = flow.places.len as usize;
        let before = len.saturating_add_signed(-change as isize);
        if ring.by_len.len() <= len {
            ring.by_len.resize(len + 1, List::default());
        }
        if before > 0 {
            ring.by_len[before].remove(&mut self.flows, at, |flow| &mut flow.peers);
        }
        if len > 0 {
            ring.by_len[len].push(&mut self.flows, at, |flow| &mut flow.peers);
        }
        // If the only longest flow shrank, the new maximum is its new length: no other flow is longer.
        if len > ring.longest || (before == ring.longest && ring.by_len[before].len == 0) {
            ring.longest = len;
        }
    }

    /// Returns the number of flows, and of entries that are not freed.
    #[cfg(test)]
    pub fn sizes(&self) -> (usize, usize) {
        (self.flows.len(), self.places.len())
    }

    /// Returns whether others may overtake a client's flow, and whether it was moved to the end.
    #[cfg(test)]
    pub fn standing_of(&self, clients: &Clients, client: u32, priority: Priority) -> (bool, bool) {
        let flow = clients.get(client).and_then(|client| self.flows.get(client.flows[priority as usize]));
        flow.map_or((false, false), |flow| (flow.is_late, flow.is_moved))
    }
}
