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

/// Queues a request; its name is its waker.
fn wait<T: Default + std::fmt::Display>(
    admission: &mut Admission<T>,
    priority: Priority,
    client: u64,
    name: T,
) -> Ticket {
    let Verdict::Wait(ticket) = admission.ask(ask(priority, client), |_, _| {}) else { panic!("{name} waits") };
    *admission.waker(&ticket).unwrap() = name;
    ticket
}

/// Returns a permit, after a request that took no time.
fn done<T: Default>(admission: &mut Admission<T>, client: u64) {
    admission.finish(client, Priority::Medium, 0, 0);
}

fn full(limit: u32, max_queue: u32) -> Admission<&'static str> {
    let mut admission = Admission::new(settings(limit, max_queue));
    // A latency of 1 ms: only `max_queue` bounds the queue.
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
fn ask_now_takes_a_free_permit_only_and_displaces_no_request() {
    let mut admission: Admission<u32> = Admission::new(settings(1, 2));
    assert!(admission.ask_now(9));
    assert!(!admission.ask_now(9));
    let mut displaced = 0;
    for client in 1..=2 {
        assert!(matches!(admission.ask(ask(Priority::Strict, client), |_, _| displaced += 1), Verdict::Wait(_)));
    }
    assert!(!admission.ask_now(9), "others wait");
    assert_eq!((displaced, admission.queue.len()), (0, 2));
}

#[test]
fn requests_are_ordered_by_priority_then_by_arrival() {
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
        done(&mut a, 1000);
        order.extend(a.grant());
    }
    assert_eq!(order, ["critical", "medium, older", "medium, newer", "low"]);
    for ticket in tickets {
        assert_eq!(a.collect(ticket), Ok(Turn::Granted));
    }
}

#[test]
fn while_the_app_is_down_requests_wait_then_go_in_order_within_the_limit() {
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
    // The backlog causes no rejections of new requests, up to `max_held`.
    let late = [wait(&mut a, Priority::Strict, 20, "late"), wait(&mut a, Priority::Strict, 21, "late")];
    assert_eq!(a.ask(ask(Priority::Strict, 22), |_, _| {}), Verdict::Refuse);
    assert!(late.iter().all(|ticket| a.abandon(ticket)));
    let mut order = Vec::new();
    for _ in &tickets {
        order.extend(a.grant());
        assert_eq!(a.grant(), None, "one slot");
        done(&mut a, 0);
    }
    assert_eq!(order, ["critical", "high", "medium", "low"]);
    assert!(tickets.into_iter().all(|ticket| a.collect(ticket) == Ok(Turn::Granted)));
}

#[test]
fn disowned_requests_get_no_permit_after_an_outage_and_expire_alone() {
    let mut a = full(1, 9);
    let counted = wait(&mut a, Priority::High, 1, "counted");
    a.disown(counted);
    let waits = wait(&mut a, Priority::Low, 2, "waits");
    // Only disowned requests expire; the owner of any other request abandons it.
    a.expire(1, u64::MAX, |priority| assert_eq!(priority, Priority::High));
    assert_eq!(a.waiting(Priority::Low), 1);
    let counted = wait(&mut a, Priority::High, 1, "counted");
    a.disown(counted);
    a.suspend();
    done(&mut a, 1000);
    a.resume();
    assert_eq!((a.grant(), a.grant()), (Some("waits"), None));
    assert_eq!(a.collect(waits), Ok(Turn::Granted));
}

#[test]
fn only_the_newest_of_the_lowest_priority_is_displaced() {
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
fn a_greedy_client_queues_behind_a_modest_one_and_is_displaced_by_it() {
    let mut a = full(1, 3);
    let greedy: Vec<_> = (0..3).map(|_| wait(&mut a, Priority::Medium, 7, "greedy")).collect();
    assert_eq!(a.ask(ask(Priority::Medium, 7), |_, _| {}), Verdict::Refuse);
    let mut displaced = 0;
    let Verdict::Wait(modest) = a.ask(ask(Priority::Medium, 8), |_, _| displaced += 1) else { panic!("it waits") };
    *a.waker(&modest).unwrap() = "modest";
    assert_eq!(displaced, 1, "the newest of the client with the most");
    done(&mut a, 1000);
    assert_eq!(a.grant(), Some("greedy"), "its first came first");
    done(&mut a, 7);
    assert_eq!(a.grant(), Some("modest"));
    assert_eq!(a.collect(modest), Ok(Turn::Granted));
    drop(greedy);
}

#[test]
fn a_client_with_one_request_is_never_displaced_for_another_of_the_same_priority() {
    let mut a = full(1, 3);
    let modest: Vec<_> = (0..3).map(|client| wait(&mut a, Priority::Medium, client, "modest")).collect();
    for newcomer in 100..1_000 {
        assert_eq!(a.ask(ask(Priority::Medium, newcomer), |_, _| {}), Verdict::Refuse);
    }
    for ticket in modest {
        done(&mut a, 1000);
        assert_eq!(a.grant(), Some("modest"));
        assert_eq!(a.collect(ticket), Ok(Turn::Granted));
    }
}

#[test]
fn a_permit_granted_to_a_disconnected_client_is_not_lost() {
    let mut a = full(1, 9);
    let ticket = wait(&mut a, Priority::Medium, 1, "left");
    done(&mut a, 1000);
    assert_eq!(a.grant(), Some("left"));
    assert_eq!(a.in_flight(), 1);
    assert!(!a.abandon(&ticket), "its turn had come");
    assert_eq!(a.in_flight(), 0);
}

/// Requests arrive, and no permit is granted.
fn flood(a: &mut Admission<()>, from: u64, to: u64, every: u64) -> (u32, u32) {
    let (mut refused, mut displaced) = (0, 0);
    for now in (from..to).step_by(every as usize) {
        match a.ask(Ask { priority: Priority::Medium, client: 1_000_000 + now, now }, |(), _| displaced += 1) {
            Verdict::Refuse => refused += 1,
            Verdict::Go | Verdict::Wait(_) => {}
        }
    }
    (refused, displaced)
}

const MS: u64 = 1_000_000;

#[test]
fn a_burst_may_queue_and_an_overloaded_queue_holds_four_fifths_of_max_wait() {
    let mut a: Admission<()> = Admission::new(settings(8, 1000));
    answers(&mut a, 20 * MS);
    let start = 10_000 * MS;
    // 400 requests in 400 ms are all queued.
    assert_eq!(flood(&mut a, start, start + 400 * MS, MS), (0, 0));
    // After 500 ms it is an overload: room for 400 per second × 0.8 s.
    let (refused, displaced) = flood(&mut a, start + 400 * MS, start + 900 * MS, MS);
    assert!((310..=330).contains(&a.room()), "{}", a.room());
    assert!(refused + displaced > 500, "{refused} refused, {displaced} displaced");
    assert!(a.queue.len() <= a.room());
    // Rejections continue while there is no room, and end some time later.
    let (refused, displaced) = flood(&mut a, start + 900 * MS, start + 990 * MS, MS);
    assert_eq!(refused + displaced, 90);
    let later = start + 5_000 * MS;
    while a.queue.len() > 0 {
        done(&mut a, 0);
        a.in_flight = 0;
        while a.grant().is_some() {}
    }
    assert_eq!(flood(&mut a, later, later + 400 * MS, MS), (0, 0), "another burst");
}

#[test]
fn earlier_slow_responses_do_not_shorten_the_queue_for_a_burst() {
    let mut a: Admission<()> = Admission::new(settings(20, 1000));
    answers(&mut a, 3_000 * MS);
    assert_eq!(flood(&mut a, 5_000_000 * MS, 5_000_000 * MS + 100, 1), (0, 0));
}

#[test]
fn in_a_starved_priority_the_oldest_is_displaced_after_half_of_max_wait() {
    let mut a = full(1, 3);
    let ask_at = |a: &mut Admission<&'static str>, client: u64, at_ms: u64| {
        let mut displaced = Vec::new();
        let verdict = a.ask(Ask { priority: Priority::Low, client, now: at_ms * MS }, |name, _| displaced.push(name));
        (matches!(verdict, Verdict::Wait(_)), displaced)
    };
    let _tickets =
        [("first", 1), ("second", 2), ("third", 3)].map(|(name, client)| wait(&mut a, Priority::Low, client, name));
    assert_eq!(ask_at(&mut a, 8, 499), (false, vec![]));
    assert_eq!(ask_at(&mut a, 8, 501), (true, vec!["first"]));
    // Displacing stops as soon as a request of the priority is granted a permit.
    done(&mut a, 1000);
    assert_eq!(a.grant(), Some("second"));
    assert!(ask_at(&mut a, 9, 502).0, "there is room");
    assert_eq!(ask_at(&mut a, 10, 900), (false, vec![]));
}

#[test]
fn a_disowned_request_expires_after_max_wait() {
    let mut a = full(1, 9);
    let monitored = wait(&mut a, Priority::Low, 1, "");
    a.disown(monitored);
    let mut expired = Vec::new();
    a.expire(1, 1_000_000_000, |priority| expired.push(priority));
    assert!(expired.is_empty());
    a.expire(1, 1_000_000_001, |priority| expired.push(priority));
    assert_eq!(expired, [Priority::Low]);
    assert_eq!(a.waiting(Priority::Low), 0);
    assert_eq!(a.queue.sizes(), (0, 0), "its place is free again");
}

/// Asks at a time of a priority; whether it waits, and who gave way.
fn ask_as(a: &mut Admission<&'static str>, priority: Priority, client: u64, now: u64) -> (bool, Vec<&'static str>) {
    let mut displaced = Vec::new();
    let verdict = a.ask(Ask { priority, client, now }, |name, _| displaced.push(name));
    (matches!(verdict, Verdict::Wait(_)), displaced)
}

#[test]
fn who_has_used_more_gives_way_to_known_clients_and_never_to_strangers() {
    let mut a = full(1, 3);
    // Client 7 and the others had responses; client 7 had thirty more while others waited.
    let _waits =
        [wait(&mut a, Priority::Low, 7, "7"), wait(&mut a, Priority::Low, 8, "8"), wait(&mut a, Priority::Low, 9, "9")];
    for client in [1000, 7, 8] {
        a.finish(client, Priority::Low, MS, 20 * MS);
        a.grant();
    }
    a.finish(9, Priority::Low, MS, 20 * MS);
    assert_eq!(a.ask(Ask { priority: Priority::Low, client: 7, now: MS }, |_, _| {}), Verdict::Go);
    for _ in 0..30 {
        let _waits = wait(&mut a, Priority::Low, 7, "7 again");
        a.finish(7, Priority::Low, MS, 20 * MS);
        assert_eq!(a.grant(), Some("7 again"));
    }
    let _waits =
        [wait(&mut a, Priority::Low, 9, "9"), wait(&mut a, Priority::Low, 7, "7"), wait(&mut a, Priority::Low, 1, "1")];
    assert_eq!(ask_as(&mut a, Priority::Low, 2, 2 * MS), (false, vec![]), "a stranger");
    assert_eq!(ask_as(&mut a, Priority::Low, 8, 2 * MS), (true, vec!["7"]));
    // Client 1 is a stranger: somebody who was served goes first, if that is no heavier.
    assert_eq!(ask_as(&mut a, Priority::Low, 1000, 3 * MS), (true, vec!["1"]));
    assert_eq!(ask_as(&mut a, Priority::Low, 1000, 3 * MS), (false, vec![]));
    assert_eq!(ask_as(&mut a, Priority::Low, 7, 3 * MS), (false, vec![]));
}

#[test]
fn whose_requests_are_rejected_often_gives_way_to_who_asks_rarely() {
    let mut a = full(1, 3);
    // All had one response.
    let mut before = 1000;
    for client in [7, 8, 9, 10, 11, 12] {
        let _waits = wait(&mut a, Priority::Low, client, "before");
        a.finish(before, Priority::Low, MS, 20 * MS);
        assert_eq!(a.grant(), Some("before"));
        before = client;
    }
    let _waits = [9, 10, 11].map(|client| wait(&mut a, Priority::Low, client, "waits"));
    for _ in 0..1000 {
        assert_eq!(ask_as(&mut a, Priority::Low, 7, MS), (false, vec![]));
    }
    a.finish(12, Priority::Low, MS, 20 * MS);
    assert_eq!(a.grant(), Some("waits"));
    let _waits = wait(&mut a, Priority::Low, 7, "asks often");
    assert_eq!(ask_as(&mut a, Priority::Low, 8, MS), (true, vec!["asks often"]));
    // It still looks no worse than a stranger.
    let number = a.clients.find(7).unwrap();
    assert!(a.clients.spent(number, Priority::Low, MS) <= 16.0 * a.clients.cost());
}

#[test]
fn strangers_without_end_take_no_place_from_a_client_that_is_known() {
    let mut a = full(1, 3);
    for n in 0..200 {
        let ticket = wait(&mut a, Priority::Medium, 1, "known");
        a.finish(if n == 0 { 1000 } else { 1 }, Priority::Medium, MS, 20 * MS);
        assert_eq!(a.grant(), Some("known"));
        assert_eq!(a.collect(ticket), Ok(Turn::Granted));
    }
    let mut tickets = vec![wait(&mut a, Priority::Medium, 1, "known")];
    for stranger in 10_000..20_000 {
        match a.ask(Ask { priority: Priority::Medium, client: stranger, now: MS }, |name, _| panic!("{name} gave way"))
        {
            Verdict::Wait(ticket) => tickets.push(ticket),
            verdict => assert_eq!(verdict, Verdict::Refuse),
        }
    }
    assert_eq!(tickets.len(), 3);
}

#[test]
fn a_request_that_takes_anothers_place_is_served_when_that_would_have_been() {
    let mut a = full(1, 3);
    for client in [8, 7] {
        let _waits = wait(&mut a, Priority::Low, client, "before");
        a.finish(if client == 8 { 1000 } else { 8 }, Priority::Low, MS, 20 * MS);
        assert_eq!(a.grant(), Some("before"));
    }
    let _waits =
        [7, 1, 2].map(|client| wait(&mut a, Priority::Low, client, if client == 7 { "heavy" } else { "stranger" }));
    a.finish(7, Priority::Low, MS, 500 * MS);
    a.in_flight = 1;
    // The first in the queue joined before its client had used so much: nobody gives way to client 8 but a stranger.
    assert_eq!(ask_as(&mut a, Priority::Low, 8, 2 * MS), (true, vec!["stranger"]));
    let mut served = Vec::new();
    for _ in 0..3 {
        a.in_flight = 0;
        served.extend(a.grant());
    }
    assert_eq!(served, ["heavy", "stranger", ""]);
}

#[test]
fn a_known_client_with_much_less_usage_goes_first_and_no_request_is_moved_twice() {
    let mut a = full(2, 100);
    // Usage counts while requests wait. All are known; 21 and 22 have used much more.
    let _waits = wait(&mut a, Priority::Strict, 99, "waits");
    for client in 1..=22 {
        let _waits = wait(&mut a, Priority::Low, client, "before");
        a.in_flight = 1;
        assert_eq!(a.grant(), Some("before"));
        a.finish(client, Priority::Low, MS, if client > 20 { 90 * MS } else { 10 * MS });
        a.in_flight = 2;
    }
    let _crowd = [(21, "first of the crowd"), (22, "second of the crowd")]
        .map(|(client, name)| wait(&mut a, Priority::Low, client, name));
    let _light = [(1, "one"), (2, "two"), (3, "three")].map(|(client, name)| wait(&mut a, Priority::Low, client, name));
    let mut served = Vec::new();
    for _ in 0..5 {
        a.in_flight = 1;
        served.extend(a.grant());
    }
    assert_eq!(served, ["one", "two", "first of the crowd", "second of the crowd", "three"]);
}

#[test]
fn less_important_requests_get_something_if_a_heavy_client_is_in_front_except_while_critical_ones_wait() {
    for (priority, client, least) in [(Priority::Medium, 7, 4), (Priority::Medium, 0, 0), (Priority::Critical, 7, 0)] {
        let mut a: Admission<&'static str> = Admission::new(settings(1, 10_000));
        assert!(a.ask_now(1));
        // The requests of client 7 all come from it; those of client 0 are of a new one each.
        for n in 0..2_000 {
            let _waits = wait(&mut a, priority, if client == 0 { 1_000 + n } else { client }, "more important");
        }
        for client in 200..220 {
            let _waits = wait(&mut a, Priority::Low, client, "less");
        }
        let mut served = Vec::new();
        for n in 0..1_100 {
            let before = match (n, client) {
                (0, _) => 1,
                (_, 0) => 999 + n,
                _ => client,
            };
            a.finish(before, priority, n * MS, MS);
            a.in_flight = 0;
            served.extend(a.grant());
        }
        assert_eq!(served.iter().filter(|name| **name == "less").count(), least, "of 1,100");
    }
}

#[test]
fn less_important_requests_get_something_if_a_heavy_client_waits_behind_a_light_one() {
    let served = [true, false].map(|heavy_waits| {
        let mut a: Admission<u64> = Admission::new(settings(1, 10_000));
        assert!(a.ask_now(1));
        let mut holder = 1;
        let mut next = |a: &mut Admission<u64>, client: u64, now: u64| {
            let _waits = wait(a, Priority::Medium, client, client);
            let priority = if holder < 200 { Priority::Medium } else { Priority::Low };
            a.finish(holder, priority, now, MS);
            holder = a.grant().unwrap();
            holder
        };
        let _less = [200, 201, 202, 203].map(|client| wait(&mut a, Priority::Low, client, client));
        for client in std::iter::repeat_n(7, 2_000).chain([100, 101, 100]) {
            assert_eq!(next(&mut a, client, MS), client);
        }
        let _heavy = heavy_waits.then(|| wait(&mut a, Priority::Medium, 7, 7));
        let served: Vec<u64> = (1..1_100).map(|n| next(&mut a, 100 + n % 2, (n + 1) * MS)).collect();
        assert!(!served.contains(&7), "the light ones are in front of it");
        served.into_iter().filter(|client| *client >= 200).count()
    });
    assert_eq!(served, [4, 0]);
}

#[test]
fn new_clients_delay_no_request_that_waited_before_them() {
    let mut a: Admission<u64> = Admission::new(settings(1, 10_000));
    assert!(a.ask_now(1));
    let queue = |a: &mut Admission<u64>, client: u64| {
        let Verdict::Wait(ticket) = a.ask(ask(Priority::Medium, client), |_, _| {}) else { panic!("it waits") };
        *a.waker(&ticket).unwrap() = client;
    };
    (100..150).for_each(|client| queue(&mut a, client));
    queue(&mut a, 7);
    let mut running = 1;
    for grants in 1..=51 {
        // Ten more requests, each from a new client.
        (0..10).for_each(|n| queue(&mut a, 1_000_000 + grants * 10 + n));
        done(&mut a, running);
        running = a.grant().unwrap();
        assert_eq!(running == 7, grants == 51, "after {grants} grants");
    }
}

#[test]
fn a_heavy_client_is_overtaken_by_a_bounded_number_of_later_requests() {
    let mut a: Admission<u64> = Admission::new(settings(1, 100));
    let queue = |a: &mut Admission<u64>, client: u64| {
        let Verdict::Wait(ticket) = a.ask(ask(Priority::Medium, client), |_, _| {}) else { panic!("it waits") };
        *a.waker(&ticket).unwrap() = client;
    };
    // None of those that come later is a stranger.
    let modest: Vec<u64> = (100..120).chain([200, 201, 5_000]).chain(1_001..1_025).collect();
    for client in &modest {
        assert!(a.ask_now(*client));
        a.finish(*client, Priority::Medium, 0, MS);
    }
    assert!(a.ask_now(7));
    modest.iter().for_each(|client| queue(&mut a, *client));
    a.finish(7, Priority::Medium, MS, MS);
    queue(&mut a, 7);
    let next = |a: &mut Admission<u64>, used: u64| {
        let client = a.grant().expect("somebody waits");
        a.finish(client, Priority::Medium, MS, used);
        client
    };
    modest.iter().for_each(|client| assert_eq!(next(&mut a, MS), *client));
    queue(&mut a, 200);
    queue(&mut a, 201);
    // 30 s at the app while other requests wait.
    assert_eq!(next(&mut a, 30_000 * MS), 7);
    queue(&mut a, 7);
    assert_eq!((next(&mut a, MS), next(&mut a, MS)), (200, 201));
    queue(&mut a, 200);
    assert_eq!(next(&mut a, MS), 200, "it comes later and is modest");
    let overtakers = a.terms().overtakers;
    assert_eq!(overtakers, 25);
    for newcomer in 1..u64::from(overtakers) {
        queue(&mut a, 1_000 + newcomer);
        assert_eq!(next(&mut a, MS), 1_000 + newcomer);
    }
    queue(&mut a, 5_000);
    assert_eq!(next(&mut a, MS), 7);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Ask(usize, u64),
    /// The oldest running request ends after this many milliseconds.
    Finish(u64),
    Look(usize),
    Leave(usize),
    Pause(u64),
}

/// Most requests are from client 0; clients from 8 on mostly send one.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let client = prop_oneof![Just(0_u64), 0..8_u64, 8..1_000_000_u64];
    let step = prop_oneof![
        4 => (0..5_usize, client).prop_map(|(p, c)| Step::Ask(p, c)),
        2 => prop_oneof![Just(1), Just(20), 0..5_000_u64].prop_map(Step::Finish),
        1 => (0..20_usize).prop_map(Step::Look),
        1 => (0..20_usize).prop_map(Step::Leave),
        1 => (0..400_u64).prop_map(Step::Pause),
    ];
    prop::collection::vec(step, 0..400)
}

/// The number of grants that a flow may still have to wait for.
type Allowances = std::collections::HashMap<(usize, u64), u32>;

/// The documented bound when a flow joins or is moved: the other flows, plus the overtakers of a heavy client.
fn allowance(a: &Admission<u64>, allowances: &Allowances, priority: usize, client: u64) -> u32 {
    let others = allowances.keys().filter(|(p, c)| *p == priority && *c != client).count() as u32;
    let number = a.clients.find(client).unwrap();
    let (is_late, _) = a.queue.standing_of(&a.clients, number, Priority::ALL[priority]);
    // A heavy client stays behind the strangers that are there.
    others + if is_late { a.terms().overtakers_of_strangers } else { 0 }
}

/// Renews the bound of a flow that was moved to the end: at most one since the last call.
fn renew_moved(a: &Admission<u64>, allowances: &mut Allowances, moved: &mut std::collections::HashSet<(usize, u64)>) {
    let is_moved = |(priority, client): (usize, u64)| {
        let number = a.clients.find(client).unwrap();
        a.queue.standing_of(&a.clients, number, Priority::ALL[priority]).1
    };
    moved.retain(|flow| allowances.contains_key(flow) && is_moved(*flow));
    let new: Vec<_> = allowances.keys().copied().filter(|flow| is_moved(*flow) && !moved.contains(flow)).collect();
    assert!(new.len() <= 1, "{new:?}");
    for flow in new {
        moved.insert(flow);
        allowances.insert(flow, allowance(a, allowances, flow.0, flow.1));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn no_permit_is_lost_and_no_request_waits_for_more_grants_than_stated(
        steps in steps(), limit in 1..5_u32, queue in 1..40_u32,
    ) {
        let mut a: Admission<u64> = Admission::new(settings(limit, queue));
        let mut running: std::collections::VecDeque<(Priority, u64)> = [].into();
        let mut waiting: Vec<(usize, u64, Ticket)> = Vec::new();
        let mut now = 0;
        // The expected length of each flow, tracked from all calls and results; and its allowance.
        let mut lens: Allowances = Allowances::new();
        let mut allowances: Allowances = Allowances::new();
        let mut moved = std::collections::HashSet::new();
        let less = |lens: &mut Allowances, allowances: &mut Allowances, flow: (usize, u64)| {
            let len = lens.get_mut(&flow).unwrap();
            *len -= 1;
            if *len == 0 {
                lens.remove(&flow);
                allowances.remove(&flow);
            }
        };
        for step in steps {
            match step {
                Step::Pause(ms) => now += ms * MS,
                Step::Ask(priority, client) => {
                    let own = lens.get(&(priority, client)).copied().unwrap_or(0);
                    let used_more: Vec<u64> = lens.keys().filter(|flow| flow.0 == priority).map(|flow| flow.1).filter(|other| {
                        let number = a.clients.find(*other).unwrap();
                        a.clients.has_used_more(number, client, Priority::ALL[priority], now)
                    }).collect();
                    let mut displaced = Vec::new();
                    let verdict = a.ask(Ask { priority: Priority::ALL[priority], client, now }, |victim, of| displaced.push((of as usize, victim)));
                    for victim in displaced {
                        let is_fair = victim.0 > priority || victim.1 == client || lens[&victim] > own
                            || (victim.0 == priority && used_more.contains(&victim.1));
                        // Shedding displaces the newest request of the longest flow in the least important priority.
                        let least = lens.keys().map(|flow| flow.0).max();
                        let longest = lens.iter().filter(|(flow, _)| Some(flow.0) == least).map(|(_, len)| *len).max();
                        let is_cut = Some(victim.0) == least && lens.get(&victim).copied() == longest;
                        prop_assert!(is_fair || is_cut, "{victim:?} is displaced for {client} with {own}");
                        less(&mut lens, &mut allowances, victim);
                    }
                    match verdict {
                        Verdict::Go => running.push_back((Priority::ALL[priority], client)),
                        Verdict::Wait(ticket) => {
                            *a.waker(&ticket).unwrap() = client;
                            waiting.push((priority, client, ticket));
                            *lens.entry((priority, client)).or_default() += 1;
                            if !allowances.contains_key(&(priority, client)) {
                                let allowed = allowance(&a, &allowances, priority, client);
                                allowances.insert((priority, client), allowed);
                            }
                            renew_moved(&a, &mut allowances, &mut moved);
                        }
                        Verdict::Refuse => {}
                    }
                }
                Step::Finish(ms) => if let Some((priority, client)) = running.pop_front() { a.finish(client, priority, now, ms * MS) },
                Step::Look(index) if index < waiting.len() => {
                    let (priority, client, ticket) = waiting.swap_remove(index);
                    match a.collect(ticket) {
                        Ok(Turn::Granted) => running.push_back((Priority::ALL[priority], client)),
                        Ok(_) => {}
                        Err(ticket) => waiting.push((priority, client, ticket)),
                    }
                }
                Step::Leave(index) if index < waiting.len() => {
                    let (priority, client, ticket) = waiting.swap_remove(index);
                    if a.abandon(&ticket) {
                        less(&mut lens, &mut allowances, (priority, client));
                    }
                }
                Step::Look(_) | Step::Leave(_) => {}
            }
            let since = a.clock.saturating_sub(a.max_wait() / PATIENCE);
            while let Some(next) = a.queue.next(&a.clients, since, a.clock).map(|number| a.queue.priority_of(number)) {
                let most_important = lens.keys().map(|flow| flow.0).min().unwrap();
                let is_starved = a.queue.served_at(next).is_some_and(|at| at < since);
                let Some(client) = a.grant() else { break };
                let priority = next as usize;
                prop_assert!(priority == most_important || (most_important > 0 && is_starved));
                let flow = (priority, client);
                prop_assert!(lens.contains_key(&flow));
                less(&mut lens, &mut allowances, flow);
                for (other, allowed) in allowances.iter_mut().filter(|(other, _)| other.0 == priority && **other != flow) {
                    prop_assert!(*allowed > 0, "{other:?} has waited for more than its bound");
                    *allowed -= 1;
                }
                if lens.contains_key(&flow) {
                    let allowed = allowance(&a, &allowances, priority, client);
                    allowances.insert(flow, allowed);
                }
                renew_moved(&a, &mut allowances, &mut moved);
            }
            prop_assert!(a.in_flight <= limit && a.queue.len() <= queue.max(1));
            prop_assert_eq!(a.queue.len(), lens.values().sum::<u32>());
            prop_assert!(a.queue.len() == 0 || a.in_flight == limit, "a permit is free while a request waits");
        }
        for (priority, client, ticket) in waiting {
            match a.collect(ticket) {
                Ok(Turn::Granted) => running.push_back((Priority::ALL[priority], client)),
                Ok(_) => {}
                Err(ticket) => assert!(a.abandon(&ticket)),
            }
        }
        for (priority, client) in running { a.finish(client, priority, now, 0); }
        let (clients, idle, held, waits) = a.clients.totals();
        prop_assert_eq!((a.in_flight, a.queue.len(), a.queue.sizes(), held, waits), (0, 0, (0, 0), 0, 0));
        prop_assert_eq!(clients, idle as usize, "only those with usage are remembered");
    }
}
