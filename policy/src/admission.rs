//! Who goes, who waits, who is refused: slots for requests to the app, and a short queue for them.
//!
//! ```text
//! ask ──► a slot is free ─────────────────► Go
//!     └─► room in the queue, or somebody less important in it (who is refused) ──► Wait ──► granted, in order
//!     └─► otherwise ──────────────────────► Refuse, at once
//! ```
//!
//! The order: more important first; among the same, whoever's client holds fewer slots and places; then oldest first. The
//! queue is no longer than what the app answers in half of the longest wait, so who is let in is nearly always served,
//! unless everything goes to others who are more important. Of such a class, one newcomer in [`REFRESH`] has the place of
//! the oldest, so that those who wait are not all about to give up when its turn comes.

use std::time::Duration;

use crate::concurrency::{self, Concurrency, Sample};
use crate::priority::Priority;

/// What operators may set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The bounds of the limit.
    pub concurrency: concurrency::Settings,
    /// The longest wait.
    pub max_wait: Duration,
    /// The most that wait, however fast the app is.
    pub max_queue: u32,
    /// The most that wait while the app is away.
    pub max_held: u32,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// How important the request is.
    pub priority: Priority,
    /// Whose it is: a hash.
    pub client: u64,
    /// When, in nanoseconds.
    pub now: u64,
}

/// A place in the queue. Given back by exactly one of [`Admission::collect`] and [`Admission::abandon`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a place that nobody gives back is lost"]
pub struct Ticket(u32);

impl Ticket {
    /// The number of the place, for whoever gives it back.
    const fn number(self) -> u32 {
        self.0
    }
}

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has a slot: [`Admission::finish`] gives it back.
    Go,
    /// It waits.
    Wait(Ticket),
    /// There is no room for it.
    Refuse,
}

/// What became of somebody who waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing yet.
    Waiting,
    /// It has a slot.
    Granted,
    /// Somebody has its place: more important, more modest, or only newer in a class that gets nothing for long.
    Displaced,
}

/// Fewer slots and places first: 0, 1, 2 to 3, 4 to 7, 8 to 15, more.
const SHARES: usize = 6;
/// Clients are counted by hash; those that share a number are one to the order of waiting, and to nothing else.
const COUNTED_CLIENTS: usize = 4096;
/// One in so many that find no room has the place of the oldest.
const REFRESH: u32 = 8;
const NOBODY: u32 = u32::MAX;

#[derive(Debug)]
struct Place<T> {
    waker: T,
    turn: Turn,
    /// Somebody looks what becomes of it.
    is_owned: bool,
    client: u64,
    since: u64,
    list: u8,
    before: u32,
    after: u32,
}

#[derive(Clone, Copy, Debug)]
struct List {
    oldest: u32,
    newest: u32,
    len: u32,
}

const EMPTY: List = List { oldest: NOBODY, newest: NOBODY, len: 0 };

/// Slots and queue. `T` is what wakes somebody who waits.
#[derive(Debug)]
pub struct Admission<T> {
    law: Concurrency,
    settings: Settings,
    in_flight: u32,
    /// Those who passed without a slot.
    passed: u32,
    waiting: u32,
    places: Vec<Option<Place<T>>>,
    free: Vec<u32>,
    /// By priority, then by share.
    lists: [List; Priority::ALL.len() * SHARES],
    /// Slots and places by client.
    held: Box<[u16]>,
    /// Who found no room.
    turned_away: u32,
    /// The app is away: nobody goes, and whoever comes waits for it.
    is_suspended: bool,
    /// Since it is back: what the backlog of that time adds to the room, one less with each that goes.
    backlog: u32,
}

impl<T: Default> Admission<T> {
    /// Nobody is there yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            law: Concurrency::new(settings.concurrency),
            settings,
            in_flight: 0,
            passed: 0,
            waiting: 0,
            places: Vec::new(),
            free: Vec::new(),
            lists: [EMPTY; Priority::ALL.len() * SHARES],
            held: vec![0; COUNTED_CLIENTS].into(),
            turned_away: 0,
            is_suspended: false,
            backlog: 0,
        }
    }

    /// Changes the settings; whoever has a slot or waits keeps it.
    pub fn set(&mut self, settings: Settings) {
        if settings != self.settings {
            self.law.set_bounds(settings.concurrency.min, settings.concurrency.max);
            self.settings = settings;
        }
    }

    /// Slots now.
    pub fn limit(&self) -> u32 {
        self.law.limit()
    }

    /// Slots in use.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// How many of a priority wait.
    pub fn waiting(&self, priority: Priority) -> u32 {
        self.lists[Self::lists_of(priority)].iter().map(|list| list.len).sum()
    }

    /// What an answer takes now.
    pub fn latency(&self) -> Option<Duration> {
        self.law.latency()
    }

    /// The most that may wait now: what the app answers in half of the longest wait. Before anything is known of it, all
    /// may: the first answers tell.
    pub fn room(&self) -> u32 {
        self.room_for(Priority::Medium)
    }

    /// Nobody goes any more, until [`Admission::resume`]: the app is away. Whoever waits goes on waiting.
    pub fn suspend(&mut self) {
        self.is_suspended = true;
        // Those who are only counted have been sent already: nobody would give back the slots that they get.
        let is_counted = |place: &Option<Place<T>>| {
            place.as_ref().is_some_and(|place| !place.is_owned && place.turn == Turn::Waiting)
        };
        for number in 0..self.places.len() {
            if is_counted(&self.places[number]) {
                drop(self.unlink(number as u32, Turn::Displaced));
            }
        }
    }

    /// The app is back: those who wait go as slots allow. They are no reason to refuse those who come now, so there is room for
    /// as many again, and less and less as they go.
    pub fn resume(&mut self) {
        self.is_suspended = false;
        self.backlog = self.waiting.saturating_mul(2);
    }

    /// Nobody goes before critical requests, so they may fill more: what the app answers in four fifths of it.
    fn room_for(&self, priority: Priority) -> u32 {
        if self.is_suspended {
            return self.settings.max_held;
        }
        self.usual_room_for(priority).max(self.backlog.min(self.settings.max_held))
    }

    fn usual_room_for(&self, priority: Priority) -> u32 {
        let Some(answered) = self.law.answers_in(self.settings.max_wait) else { return self.settings.max_queue };
        let share = if priority == Priority::Critical { 0.8 } else { 0.5 };
        // Too many for the type means as many as it holds.
        ((answered * share) as u32).max(self.law.limit()).min(self.settings.max_queue)
    }

    /// Gives `client` a slot if one is free and nobody waits; takes nobody's place, and no place.
    pub fn ask_now(&mut self, client: u64) -> bool {
        let is_free = self.in_flight < self.law.limit() && self.waiting == 0 && !self.is_suspended;
        if is_free {
            self.in_flight += 1;
            self.hold(client);
        }
        is_free
    }

    /// Somebody asks. If it takes somebody's place, `displaced` is called with what wakes that one, and its priority.
    pub fn ask(&mut self, ask: Ask, displaced: impl FnOnce(T, Priority)) -> Verdict {
        if self.ask_now(ask.client) {
            return Verdict::Go;
        }
        let share = self.share(ask.client);
        if self.waiting >= self.room() {
            if let Some(last) = self.last_behind(ask.priority, share) {
                let priority = self.priority_of(last);
                displaced(self.unlink(last, Turn::Displaced), priority);
            } else if self.waiting >= self.room_for(ask.priority) {
                self.turned_away = self.turned_away.wrapping_add(1);
                let Some(stale) = self.oldest_beside(ask.priority, share) else { return Verdict::Refuse };
                displaced(self.unlink(stale, Turn::Displaced), ask.priority);
            }
        }
        Verdict::Wait(self.enqueue(ask, share))
    }

    /// The next one whose turn it is, if a slot is free: it has the slot now, and the answer wakes it.
    pub fn grant(&mut self) -> Option<T> {
        if self.waiting == 0 || self.is_suspended || self.in_flight >= self.law.limit() {
            return None;
        }
        let first = self.lists.iter().find(|list| list.len > 0)?.oldest;
        let client = self.places.get(first as usize)?.as_ref()?.client;
        let waker = self.unlink(first, Turn::Granted);
        self.backlog = self.backlog.saturating_sub(1);
        self.in_flight += 1;
        self.hold(client);
        Some(waker)
    }

    /// What became of a place; one whose turn has come is given back by this.
    pub fn collect(&mut self, ticket: Ticket) -> Result<Turn, Ticket> {
        let number = ticket.number();
        let turn =
            self.places.get(number as usize).and_then(Option::as_ref).map_or(Turn::Displaced, |place| place.turn);
        if turn == Turn::Waiting {
            return Err(Ticket(number));
        }
        self.forget(number);
        Ok(turn)
    }

    /// What wakes the owner of a place.
    pub fn waker(&mut self, ticket: &Ticket) -> Option<&mut T> {
        self.places.get_mut(ticket.0 as usize)?.as_mut().map(|place| &mut place.waker)
    }

    /// Nobody looks what becomes of it: it is only there to be counted.
    pub fn disown(&mut self, ticket: Ticket) {
        let number = ticket.number();
        if let Some(place) = self.places.get_mut(number as usize).and_then(Option::as_mut) {
            place.is_owned = false;
        }
    }

    /// Its owner waits no longer. True if it waited to the end: neither had its turn come nor its place been taken. A slot
    /// that it was granted in this moment is given back.
    pub fn abandon(&mut self, ticket: &Ticket) -> bool {
        let Some(place) = self.places.get(ticket.0 as usize).and_then(Option::as_ref) else { return false };
        let (turn, client) = (place.turn, place.client);
        match turn {
            Turn::Waiting => drop(self.unlink(ticket.0, Turn::Displaced)),
            Turn::Granted => self.finish(client),
            Turn::Displaced => {}
        }
        self.forget(ticket.0);
        turn == Turn::Waiting
    }

    /// Somebody passes without a slot, as all do who are only watched.
    pub fn pass(&mut self) {
        self.passed = self.passed.saturating_add(1);
    }

    /// One who was watched is done: whoever had the slot in question, the app has done a request's work.
    pub fn finish_watched(&mut self, client: u64) {
        self.passed = self.passed.saturating_sub(1);
        self.finish(client);
    }

    /// Requests at the app, with a slot or without.
    pub fn present(&self) -> u32 {
        self.passed.max(self.in_flight)
    }

    /// A slot is given back.
    pub fn finish(&mut self, client: u64) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.let_go(client);
    }

    /// An answer's head came, or did not come in time.
    pub fn record(&mut self, now: u64, sample: Sample) {
        self.law.record(now, sample);
    }

    /// Takes the oldest out of the queue that have waited longer than they may: for those whom nobody wakes. Says of which
    /// priority they were.
    pub fn expire(&mut self, now: u64, mut expired: impl FnMut(Priority)) {
        let longest = u64::try_from(self.settings.max_wait.as_nanos()).unwrap_or(u64::MAX);
        for number in 0..self.lists.len() {
            while let Some(Some(place)) = self.places.get(self.lists[number].oldest as usize)
                && now.saturating_sub(place.since) > longest
                && !place.is_owned
            {
                drop(self.unlink(self.lists[number].oldest, Turn::Displaced));
                expired(Priority::ALL[number / SHARES]);
            }
        }
    }

    fn priority_of(&self, place: u32) -> Priority {
        let list = self.places.get(place as usize).and_then(Option::as_ref).map_or(0, |place| usize::from(place.list));
        Priority::ALL[list / SHARES]
    }

    fn lists_of(priority: Priority) -> std::ops::Range<usize> {
        let first = priority as usize * SHARES;
        first..first + SHARES
    }

    /// The newest of the least important whom one of this priority and share may displace.
    fn last_behind(&self, priority: Priority, share: usize) -> Option<u32> {
        let own = priority as usize * SHARES + share;
        self.lists[own + 1..].iter().rev().find(|list| list.len > 0).map(|list| list.newest)
    }

    /// The oldest of the same priority, of whom one in so many that are turned away has the place: in a class that gets
    /// nothing for long, those who wait would all have waited for as long, and give up in the moment in which it gets something.
    fn oldest_beside(&self, priority: Priority, share: usize) -> Option<u32> {
        if !self.turned_away.is_multiple_of(REFRESH) {
            return None;
        }
        let lists = Self::lists_of(priority);
        self.lists[lists.start + share..lists.end].iter().rev().find(|list| list.len > 0).map(|list| list.oldest)
    }

    fn share(&self, client: u64) -> usize {
        let held = self.held[client as usize % COUNTED_CLIENTS];
        // 0, 1, 2..4, 4..8, …: the number of bits.
        (u16::BITS - held.leading_zeros()).min(SHARES as u32 - 1) as usize
    }

    fn hold(&mut self, client: u64) {
        let held = &mut self.held[client as usize % COUNTED_CLIENTS];
        *held = held.saturating_add(1);
    }

    fn let_go(&mut self, client: u64) {
        let held = &mut self.held[client as usize % COUNTED_CLIENTS];
        *held = held.saturating_sub(1);
    }

    fn enqueue(&mut self, ask: Ask, share: usize) -> Ticket {
        let list = ask.priority as usize * SHARES + share;
        let newest = self.lists[list].newest;
        let place = Place {
            waker: T::default(),
            turn: Turn::Waiting,
            is_owned: true,
            client: ask.client,
            since: ask.now,
            // 30 lists.
            list: list as u8,
            before: newest,
            after: NOBODY,
        };
        let number = match self.free.pop() {
            Some(number) => {
                self.places[number as usize] = Some(place);
                number
            }
            None => {
                self.places.push(Some(place));
                // Bounded by `max_queue` and the requests that have not looked yet what became of them.
                (self.places.len() - 1) as u32
            }
        };
        match self.places.get_mut(newest as usize).and_then(Option::as_mut) {
            Some(newest) => newest.after = number,
            None => self.lists[list].oldest = number,
        }
        self.lists[list].newest = number;
        self.lists[list].len += 1;
        self.waiting += 1;
        self.hold(ask.client);
        Ticket(number)
    }

    /// Takes a place out of its list; its owner, if it has one, still has to look what became of it.
    fn unlink(&mut self, number: u32, turn: Turn) -> T {
        let Some(place) = self.places.get_mut(number as usize).and_then(Option::as_mut) else { return T::default() };
        place.turn = turn;
        let (waker, is_owned) = (std::mem::take(&mut place.waker), place.is_owned);
        let (client, list, before, after) = (place.client, usize::from(place.list), place.before, place.after);
        match self.places.get_mut(before as usize).and_then(Option::as_mut) {
            Some(before) => before.after = after,
            None => self.lists[list].oldest = after,
        }
        match self.places.get_mut(after as usize).and_then(Option::as_mut) {
            Some(after) => after.before = before,
            None => self.lists[list].newest = before,
        }
        self.lists[list].len -= 1;
        self.waiting -= 1;
        self.let_go(client);
        if !is_owned {
            self.forget(number);
        }
        waker
    }

    fn forget(&mut self, number: u32) {
        if let Some(place) = self.places.get_mut(number as usize)
            && place.take().is_some()
        {
            self.free.push(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::concurrency::Ended;
    use proptest::prelude::*;

    fn settings(limit: u32, max_queue: u32) -> Settings {
        let concurrency = concurrency::Settings { min: limit, max: limit, initial: limit };
        Settings { concurrency, max_wait: Duration::from_secs(1), max_queue, max_held: 2 * max_queue }
    }

    fn ask(priority: Priority, client: u64) -> Ask {
        Ask { priority, client, now: 0 }
    }

    /// The name of whoever waits is what wakes it.
    fn wait(admission: &mut Admission<&'static str>, priority: Priority, client: u64, name: &'static str) -> Ticket {
        let Verdict::Wait(ticket) = admission.ask(ask(priority, client), |_, _| {}) else { panic!("{name} waits") };
        *admission.waker(&ticket).unwrap() = name;
        ticket
    }

    fn full(limit: u32, max_queue: u32) -> Admission<&'static str> {
        let mut admission = Admission::new(settings(limit, max_queue));
        // Answers that take a millisecond: `max_queue` alone bounds the queue.
        answers(&mut admission, 1_000_000);
        for client in 0..limit {
            assert_eq!(admission.ask(ask(Priority::Medium, 1000 + u64::from(client)), |_, _| {}), Verdict::Go);
        }
        admission
    }

    fn answers<T: Default>(admission: &mut Admission<T>, latency_ns: u64) {
        let in_flight = admission.limit();
        for n in 0..400 {
            let sample = Sample { class: 0, started: n * latency_ns, in_flight, ended: Ended::Answered };
            admission.record((n + 1) * latency_ns, sample);
        }
    }

    #[test]
    fn a_guest_takes_a_free_slot_or_none_and_nobodys_place() {
        let mut admission: Admission<u32> = Admission::new(settings(1, 2));
        assert!(admission.ask_now(9));
        assert!(!admission.ask_now(9));
        let mut displaced = 0;
        for client in 1..=2 {
            assert!(matches!(admission.ask(ask(Priority::Strict, client), |_, _| displaced += 1), Verdict::Wait(_)));
        }
        assert!(!admission.ask_now(9), "others wait");
        assert_eq!((displaced, admission.waiting), (0, 2));
    }

    #[test]
    fn the_more_important_go_first_and_then_the_oldest() {
        let mut a = full(1, 9);
        let tickets = [
            wait(&mut a, Priority::Low, 1, "low"),
            wait(&mut a, Priority::Critical, 2, "critical"),
            wait(&mut a, Priority::Medium, 3, "medium, older"),
            wait(&mut a, Priority::Medium, 4, "medium, newer"),
        ];
        let mut order = Vec::new();
        for _ in &tickets {
            assert_eq!(a.grant(), None, "no slot is free");
            a.finish(1000);
            order.extend(a.grant());
        }
        assert_eq!(order, ["critical", "medium, older", "medium, newer", "low"]);
        for ticket in tickets {
            assert_eq!(a.collect(ticket), Ok(Turn::Granted));
        }
    }

    #[test]
    fn while_the_app_is_away_all_wait_and_then_go_in_order_as_slots_allow() {
        let mut a = Admission::new(settings(1, 3));
        a.suspend();
        let names = ["low", "medium", "high", "critical"];
        let priorities = [Priority::Low, Priority::Medium, Priority::High, Priority::Critical];
        let tickets: Vec<Ticket> = priorities
            .into_iter()
            .zip(names)
            .zip(0..)
            .map(|((priority, name), n)| wait(&mut a, priority, n, name))
            .collect();
        assert_eq!(a.grant(), None);
        a.resume();
        // Those that waited for it are no reason to refuse those that come now, up to the bound.
        let late = [wait(&mut a, Priority::Strict, 20, "late"), wait(&mut a, Priority::Strict, 21, "late")];
        assert_eq!(a.ask(ask(Priority::Strict, 22), |_, _| {}), Verdict::Refuse);
        assert!(late.iter().all(|ticket| a.abandon(ticket)));
        let mut order = Vec::new();
        for _ in &tickets {
            order.extend(a.grant());
            assert_eq!(a.grant(), None, "one slot");
            a.finish(0);
        }
        assert_eq!(order, ["critical", "high", "medium", "low"]);
        assert!(tickets.into_iter().all(|ticket| a.collect(ticket) == Ok(Turn::Granted)));
    }

    #[test]
    fn who_is_only_counted_gets_no_slot_after_an_outage_and_takes_nobody_along() {
        let mut a = full(1, 9);
        let counted = wait(&mut a, Priority::High, 1, "counted");
        a.disown(counted);
        let waits = wait(&mut a, Priority::Low, 2, "waits");
        // Those whom nobody wakes are taken out when their time is over; whoever waits sees to that itself.
        a.expire(u64::MAX, |priority| assert_eq!(priority, Priority::High));
        assert_eq!(a.waiting(Priority::Low), 1);
        let counted = wait(&mut a, Priority::High, 1, "counted");
        a.disown(counted);
        a.suspend();
        a.finish(1000);
        a.resume();
        assert_eq!((a.grant(), a.grant()), (Some("waits"), None));
        assert_eq!(a.collect(waits), Ok(Turn::Granted));
    }

    #[test]
    fn the_newest_of_the_least_important_makes_room_and_nobody_else() {
        let mut a = full(1, 2);
        let (older, newer) = (wait(&mut a, Priority::Low, 1, "older"), wait(&mut a, Priority::Low, 2, "newer"));
        assert_eq!(a.ask(ask(Priority::Low, 3), |_, _| {}), Verdict::Refuse);
        assert_eq!(a.ask(ask(Priority::Strict, 3), |_, _| {}), Verdict::Refuse);
        let mut displaced = None;
        let verdict = a.ask(ask(Priority::High, 3), |name, _| displaced = Some(name));
        assert!(matches!(verdict, Verdict::Wait(_)));
        assert_eq!(displaced, Some("newer"));
        assert_eq!(a.collect(newer), Ok(Turn::Displaced));
        let older = a.collect(older).unwrap_err();
        assert!(a.abandon(&older));
    }

    #[test]
    fn a_greedy_client_waits_behind_a_modest_one_and_makes_room_for_it() {
        let mut a = full(1, 3);
        let greedy: Vec<_> = (0..3).map(|_| wait(&mut a, Priority::Medium, 7, "greedy")).collect();
        assert_eq!(a.ask(ask(Priority::Medium, 7), |_, _| {}), Verdict::Refuse);
        let modest = wait(&mut a, Priority::Medium, 8, "modest");
        a.finish(1000);
        assert_eq!(a.grant(), Some("greedy"), "its first came first, and was modest then");
        a.finish(7);
        assert_eq!(a.grant(), Some("modest"));
        assert_eq!(a.collect(modest), Ok(Turn::Granted));
        drop(greedy);
    }

    #[test]
    fn a_slot_granted_to_somebody_who_has_left_is_not_lost() {
        let mut a = full(1, 9);
        let ticket = wait(&mut a, Priority::Medium, 1, "left");
        a.finish(1000);
        assert_eq!(a.grant(), Some("left"));
        assert_eq!(a.in_flight(), 1);
        assert!(!a.abandon(&ticket), "its turn had come");
        assert_eq!(a.in_flight(), 0);
    }

    #[test]
    fn the_queue_is_what_the_app_answers_in_half_of_the_longest_wait() {
        let mut a: Admission<()> = Admission::new(settings(8, 1000));
        assert_eq!(a.room(), 1000, "nothing is known yet");
        answers(&mut a, 20_000_000);
        assert!((190..=210).contains(&a.room()), "400 a second, half a second: {}", a.room());
    }

    #[test]
    fn whoever_nobody_wakes_expires() {
        let mut a = full(1, 9);
        let monitored = wait(&mut a, Priority::Low, 1, "");
        a.disown(monitored);
        let mut expired = Vec::new();
        a.expire(1_000_000_000, |priority| expired.push(priority));
        assert!(expired.is_empty());
        a.expire(1_000_000_001, |priority| expired.push(priority));
        assert_eq!(expired, [Priority::Low]);
        assert_eq!(a.waiting(Priority::Low), 0);
        assert!(a.places.iter().all(Option::is_none), "its place is free again");
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Ask(usize, u64),
        Finish,
        Look(usize),
        Leave(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..5_usize, 0..6_u64).prop_map(|(p, c)| Step::Ask(p, c)),
            Just(Step::Finish),
            (0..20_usize).prop_map(Step::Look),
            (0..20_usize).prop_map(Step::Leave),
        ];
        prop::collection::vec(step, 0..300)
    }

    proptest! {
        #[test]
        fn no_sequence_loses_a_slot_or_a_place(steps in steps(), limit in 1..5_u32, queue in 1..6_u32) {
            let mut a: Admission<()> = Admission::new(settings(limit, queue));
            let (mut running, mut waiting): (Vec<u64>, Vec<(u64, Ticket)>) = (Vec::new(), Vec::new());
            for step in steps {
                match step {
                    Step::Ask(priority, client) => match a.ask(ask(Priority::ALL[priority], client), |(), _| {}) {
                        Verdict::Go => running.push(client),
                        Verdict::Wait(ticket) => waiting.push((client, ticket)),
                        Verdict::Refuse => prop_assert!(a.waiting >= queue),
                    },
                    Step::Finish => if let Some(client) = running.pop() { a.finish(client) },
                    Step::Look(index) if index < waiting.len() => {
                        let (client, ticket) = waiting.swap_remove(index);
                        match a.collect(ticket) {
                            Ok(Turn::Granted) => running.push(client),
                            Ok(_) => {}
                            Err(ticket) => waiting.push((client, ticket)),
                        }
                    }
                    Step::Leave(index) if index < waiting.len() => {
                        let (_, ticket) = waiting.swap_remove(index);
                        a.abandon(&ticket);
                    }
                    Step::Look(_) | Step::Leave(_) => {}
                }
                while a.grant().is_some() {}
                prop_assert!(a.in_flight <= limit && a.waiting <= queue.max(1));
                prop_assert!(a.waiting == 0 || a.in_flight == limit, "a slot is free while somebody waits");
            }
            for (client, ticket) in waiting {
                if a.collect(ticket).is_ok_and(|turn| turn == Turn::Granted) {
                    running.push(client);
                }
            }
            for client in running { a.finish(client); }
            while a.grant().is_some() {}
            prop_assert!(a.held.iter().map(|n| u32::from(*n)).sum::<u32>() == a.in_flight + a.waiting);
        }
    }
}
