//! The fair queue: requests in order of priority, and among those of one priority a ring of clients.
//!
//! Each client that waits has a *flow*, its own requests from oldest to newest. A flow joins the ring at its end, and again
//! after each of its requests that is granted a permit, as in round-robin fair queueing (Nagle 1987) and deficit round robin
//! (Shreedhar, Varghese 1995). A flow of a heavy client ([`Clients::is_heavy`]) may be overtaken by so many flows that join
//! after it, and no more. So the request at the head of a flow waits for no more grants of its priority than there were
//! flows when its own joined, plus that number, whatever comes later.

use super::Turn;
use super::clients::Clients;
use super::slab::{Links, List, NONE, Slab};
use crate::priority::Priority;

/// A request in the queue, or one whose owner has not seen yet what became of it.
#[derive(Debug)]
pub struct Place<T> {
    pub waker: T,
    pub turn: Turn,
    /// Somebody looks what becomes of it.
    pub is_owned: bool,
    /// The number of its client, as long as it waits or holds a permit.
    pub client: u32,
    /// When it came, in nanoseconds.
    pub since: u64,
    flow: u32,
    links: Links,
}

/// The requests of one client and priority.
#[derive(Debug)]
struct Flow {
    client: u32,
    priority: Priority,
    is_heavy: bool,
    /// Flows are served in this order.
    rank: u64,
    places: List,
    ring: Links,
    /// Among the flows with as many requests.
    peers: Links,
}

/// All flows of one priority.
#[derive(Debug, Default)]
struct Ring {
    /// Both in order of rank.
    regular: List,
    heavy: List,
    /// How many times a flow has joined.
    joined: u64,
    /// The rank of the heavy flow that joined last.
    last_heavy: u64,
    /// Flows by the number of their requests, and the largest such number.
    by_len: Vec<List>,
    longest: usize,
    waiting: u32,
    /// When one of them was granted a permit, or the first of them came.
    served_at: u64,
}

/// What decides where a flow joins the ring.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub now: u64,
    /// So many that join later may overtake a flow of a heavy client.
    pub overtakers: u32,
}

/// See the module.
#[derive(Debug)]
pub struct FairQueue<T> {
    places: Slab<Place<T>>,
    flows: Slab<Flow>,
    rings: [Ring; Priority::ALL.len()],
    len: u32,
}

impl<T: Default> FairQueue<T> {
    pub fn new() -> Self {
        Self { places: Slab::default(), flows: Slab::default(), rings: Default::default(), len: 0 }
    }

    /// Requests that wait.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Requests of one priority that wait.
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

    /// Its owner has seen what became of it.
    pub fn forget(&mut self, number: u32) {
        self.places.remove(number);
    }

    pub fn priority_of(&self, number: u32) -> Priority {
        let flow = self.places.get(number).and_then(|place| self.flows.get(place.flow));
        flow.map_or(Priority::Strict, |flow| flow.priority)
    }

    /// How many requests of one priority a client has here.
    pub fn waiting_of(&self, clients: &Clients, client: u32, priority: Priority) -> u32 {
        let flow = clients.get(client).and_then(|client| self.flows.get(client.flows[priority as usize]));
        flow.map_or(0, |flow| flow.places.len)
    }

    /// The oldest request of a client and priority.
    pub fn oldest_of(&self, clients: &Clients, client: u32, priority: Priority) -> Option<u32> {
        let flow = self.flows.get(clients.get(client)?.flows[priority as usize])?;
        Some(flow.places.first)
    }

    /// When a priority was served last, if anybody of it waits.
    pub fn served_at(&self, priority: Priority) -> Option<u64> {
        let ring = &self.rings[priority as usize];
        (ring.waiting > 0).then_some(ring.served_at)
    }

    /// A request joins its client's flow at the end.
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
            flow = self.flows.insert(Flow { client, priority, is_heavy: false, rank: 0, places, ring, peers });
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

    /// The request whose turn is next among those of a priority.
    pub fn next_of(&self, priority: Priority) -> Option<u32> {
        let ring = &self.rings[priority as usize];
        let flow = match (self.flows.get(ring.regular.first), self.flows.get(ring.heavy.first)) {
            (Some(regular), Some(heavy)) if heavy.rank < regular.rank => heavy,
            (Some(flow), _) | (None, Some(flow)) => flow,
            (None, None) => return None,
        };
        Some(flow.places.first)
    }

    /// The request whose turn is next: the most important first.
    pub fn next(&self) -> Option<u32> {
        Priority::ALL.into_iter().find_map(|priority| self.next_of(priority))
    }

    /// Its turn has come: it is granted a permit, and its client's other requests wait at the end of the ring.
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

    /// Takes a request out of the queue; its owner, if it has one, still has to see what became of it. Its client's other
    /// requests keep their turn.
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

    /// Who makes room for one more request of a client with `own` requests of this priority in the queue: the newest request of
    /// the client with the most of them in the least important priority. Within its own priority only a client that still has no
    /// fewer than the other one afterwards (longest queue drop: Suter, Lakshman, Stiliadis, Choudhury 1998).
    pub fn makes_room_for(&self, priority: Priority, own: u32) -> Option<u32> {
        let least = self.least_important()?;
        let ring = &self.rings[least as usize];
        (least > priority || (least == priority && ring.longest as u32 >= own + 2))
            .then(|| self.last_of(least))
            .flatten()
    }

    /// The least important priority of which somebody waits.
    pub fn least_important(&self) -> Option<Priority> {
        Priority::ALL.into_iter().rev().find(|priority| self.waiting(*priority) > 0)
    }

    /// The newest request of the client with the most of them of a priority.
    pub fn last_of(&self, priority: Priority) -> Option<u32> {
        let ring = &self.rings[priority as usize];
        let flow = self.flows.get(ring.by_len.get(ring.longest)?.last)?;
        Some(flow.places.last)
    }

    fn join(&mut self, clients: &Clients, at: u32, terms: Terms) {
        let Some(flow) = self.flows.get_mut(at) else { return };
        let ring = &mut self.rings[flow.priority as usize];
        ring.joined += 1;
        flow.is_heavy = clients.is_heavy(flow.client, terms.now);
        if flow.is_heavy {
            // Their order is kept when fewer may overtake than before.
            flow.rank = ring.last_heavy.max(ring.joined + u64::from(terms.overtakers));
            ring.last_heavy = flow.rank;
            ring.heavy.push(&mut self.flows, at, |flow| &mut flow.ring);
        } else {
            flow.rank = ring.joined;
            ring.regular.push(&mut self.flows, at, |flow| &mut flow.ring);
        }
    }

    fn leave(&mut self, at: u32) {
        let Some(flow) = self.flows.get(at) else { return };
        let ring = &mut self.rings[flow.priority as usize];
        let list = if flow.is_heavy { &mut ring.heavy } else { &mut ring.regular };
        list.remove(&mut self.flows, at, |flow| &mut flow.ring);
    }

    /// A flow has got longer or shorter by one.
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
        // A flow that was the only one of the longest is now as long as any other may be.
        if len > ring.longest || (before == ring.longest && ring.by_len[before].len == 0) {
            ring.longest = len;
        }
    }

    /// Flows, and places that nobody has given back.
    #[cfg(test)]
    pub fn sizes(&self) -> (usize, usize) {
        (self.flows.len(), self.places.len())
    }

    /// Whether a client's flow joined as that of a heavy client.
    #[cfg(test)]
    pub fn is_heavy(&self, clients: &Clients, client: u32, priority: Priority) -> bool {
        let flow = clients.get(client).and_then(|client| self.flows.get(client.flows[priority as usize]));
        flow.is_some_and(|flow| flow.is_heavy)
    }
}
