//! Simulated traffic under harmless and harmful changes. All random numbers have fixed seeds.

use super::baseline::Baseline;
use super::measures::{Ending, Measure, Row, rung};
use super::*;
use crate::priority::Priority;

/// Pseudo-random numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to 1.
    pub fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Poisson, for small means.
    fn poisson(&mut self, mean: f64) -> u32 {
        let (limit, mut product, mut count) = ((-mean).exp(), self.share(), 0);
        while product > limit {
            (product, count) = (product * self.share(), count + 1);
        }
        count
    }
}

/// How the rate of requests changes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    Steady,
    /// Quiet for seconds, then five times the mean; clients come in bursts.
    Bursty,
    /// A day, with a night in which hardly anybody comes; compressed to an hour.
    Daily,
}

const SHAPES: [Shape; 3] = [Shape::Steady, Shape::Bursty, Shape::Daily];

/// The effect of a change on a request: its ending and its duration in ms, or that it waits.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Effect {
    None,
    /// A share of the requests ends so.
    Ends(Ending, f64),
    /// The first requests of each client are fine, the others are rejected.
    Limit(u32),
    /// Requests of this priority are rejected.
    LimitOf(Priority),
    /// A share of the clients is banned after two seconds.
    Bans(f64),
    /// Requests wait for ten bins, then they fail.
    Held,
    /// Requests wait for ever.
    Hangs,
    /// All take this much longer.
    Slower(u64),
    /// A share is rejected, and the others are slow.
    Queue(f64, u64),
}

/// Each hits most requests.
const HARMFUL: [(&str, Effect); 21] = [
    ("a limit of 1/1m", Effect::Limit(1)),
    ("a limit of 2/1h", Effect::Limit(2)),
    ("a limit of 0.01x for the tier of most clients", Effect::Ends(Ending::RateLimited, 0.9)),
    ("a wrong port, requests wait first", Effect::Held),
    ("a wrong port", Effect::Ends(Ending::Unreachable, 1.0)),
    ("an address where nobody answers", Effect::Hangs),
    ("a port that speaks another protocol", Effect::Ends(Ending::BadGateway, 1.0)),
    ("a breaker that trips at once", Effect::Ends(Ending::BreakerOpen, 0.9)),
    ("a breaker for slow responses that are usual", Effect::Ends(Ending::BreakerOpen, 0.6)),
    ("a deadline of 1 ms", Effect::Ends(Ending::Late, 1.0)),
    ("a deadline below the usual latency", Effect::Ends(Ending::Late, 0.7)),
    ("a route that swallows all", Effect::Ends(Ending::ClientError, 1.0)),
    ("a header that the app needs is gone: it redirects", Effect::Ends(Ending::Redirect, 1.0)),
    ("a header that the app needs is gone: it fails", Effect::Ends(Ending::ServerError, 1.0)),
    ("a credential is not passed on", Effect::Ends(Ending::ClientError, 0.9)),
    ("all addresses are denied", Effect::Ends(Ending::Refused, 1.0)),
    ("heads of more than 1 KiB are refused", Effect::Ends(Ending::Refused, 0.6)),
    ("a concurrency limit of 1", Effect::Queue(0.5, 800)),
    ("a ban at the first offence", Effect::Bans(0.8)),
    ("a delay before each attempt", Effect::Slower(1000)),
    ("slow responses, and most clients give up", Effect::Ends(Ending::Abandoned, 0.7)),
];

/// Each hits a part of the requests: it takes longer to tell from chance, and many clients.
const PARTLY_HARMFUL: [(&str, Effect); 5] = [
    ("a limit for one priority", Effect::LimitOf(Priority::Low)),
    ("a limit for half of the requests", Effect::Ends(Ending::RateLimited, 0.5)),
    ("bodies of more than 1 KiB are refused", Effect::Ends(Ending::Refused, 0.3)),
    ("a ban of every second client", Effect::Bans(0.5)),
    ("the app fails one request of four", Effect::Ends(Ending::ServerError, 0.25)),
];

#[derive(Clone, Debug)]
struct World {
    dice: Dice,
    shape: Shape,
    clients: usize,
    bin: u32,
    /// Of the bursts.
    factor: f64,
    /// Bins until the app is well again: it fails a fifth of the requests now and then.
    unwell: u32,
    /// By client: requests since the change.
    sent: Vec<u32>,
}

impl World {
    fn new(shape: Shape, clients: usize, seed: u64) -> Self {
        Self { dice: Dice(seed), shape, clients, bin: 0, factor: 1.0, unwell: 0, sent: vec![0; clients] }
    }

    fn rate(&mut self) -> f64 {
        match self.shape {
            Shape::Steady => 1.0,
            Shape::Bursty => {
                if self.dice.share() < 0.1 {
                    self.factor = [0.05, 0.3, 1.0, 5.0][(self.dice.next() % 4) as usize];
                }
                self.factor
            }
            Shape::Daily => 1.0 + 0.8 * (f64::from(self.bin) * std::f64::consts::TAU / 7200.0).sin(),
        }
    }

    /// The next bin, `since` bins after a change.
    fn next(&mut self, effect: Effect, since: u32) -> Bin {
        let rate = self.rate();
        self.bin += 1;
        self.unwell = self.unwell.saturating_sub(1);
        if self.dice.share() < 0.002 {
            self.unwell = 4;
        }
        let mut bin = Bin::default();
        for client in 0..self.clients {
            // A few clients send much more than the others.
            let requests = self.dice.poisson(rate * if client.is_multiple_of(10) { 3.0 } else { 0.4 });
            let mut row = Row::default();
            (0..requests).for_each(|_| self.request(&mut row, client, effect, since));
            let waits = match effect {
                Effect::Held | Effect::Hangs => since >= 4 && self.sent[client] > 0,
                _ => false,
            };
            row.is_unanswered = waits && row.endings.iter().sum::<u32>() == 0;
            if requests > 0 || row.is_unanswered {
                bin.rows.push(((client * 7 % CELLS) as u16, row));
            }
        }
        bin
    }

    fn request(&mut self, row: &mut Row, client: usize, effect: Effect, since: u32) {
        let dice = &mut self.dice;
        let priority = [Priority::High, Priority::Medium, Priority::Medium, Priority::Low][(dice.next() % 4) as usize];
        let (fate, luck) = (dice.share(), dice.share());
        let is_crawler = client % 11 == 3;
        let mut ending = match fate {
            _ if self.unwell > 0 && luck < 0.2 => Ending::ServerError,
            fate if fate < 0.003 => Ending::ServerError,
            fate if fate < if is_crawler { 0.3 } else { 0.02 } => Ending::ClientError,
            fate if fate < if client.is_multiple_of(10) { 0.15 } else { 0.02 } => Ending::RateLimited,
            _ => Ending::Fine,
        };
        let mut took = 10 + (30.0 * luck * luck) as u64 + if dice.share() < 0.02 { 600 } else { 0 };
        self.sent[client] += 1;
        match effect {
            Effect::Ends(worse, share) if dice.share() < share => ending = worse,
            Effect::Limit(most) if self.sent[client] > most => ending = Ending::RateLimited,
            Effect::LimitOf(only) if priority == only => ending = Ending::RateLimited,
            Effect::Bans(share) if since > 4 && (client as f64) < share * self.clients as f64 => {
                ending = Ending::Banned;
            }
            Effect::Held if since > 10 => ending = Ending::Unreachable,
            Effect::Held | Effect::Hangs => return,
            Effect::Slower(by) => took += by,
            Effect::Queue(share, by) => {
                took += by;
                if dice.share() < share {
                    ending = Ending::Overloaded;
                }
            }
            _ => {}
        }
        row.endings[ending as usize] += 1;
        if let Some(rung) = rung(took) {
            row.rungs[rung] += 1;
        }
        row.priorities[priority as usize][0] += 1;
        row.priorities[priority as usize][1] += u32::from(ending.is_bad());
    }

    /// The bins after a change.
    fn changed(&mut self) {
        self.sent.fill(0);
    }
}

const MINUTE: Duration = Duration::from_secs(60);
const EVERYWHERE: Scope = Scope { reaches_elsewhere: true };

/// Traffic of this kind from a time of the day on, in bins, and what was learned from five minutes of it.
fn learned(shape: Shape, clients: usize, (seed, begins): (u64, u32)) -> (World, Baseline) {
    let mut world = World { bin: begins, ..World::new(shape, clients, seed) };
    let mut baseline = Baseline::default();
    (0..600).for_each(|_| baseline.add(&world.next(Effect::None, 0)));
    (world, baseline)
}

/// The first measure that a change is blamed for, and after which time.
fn blamed(world: &mut World, baseline: &Baseline, effect: Effect) -> Option<(Worse, Duration)> {
    world.changed();
    let mut probation = Probation::new(baseline, MINUTE, EVERYWHERE);
    (1..=120).find_map(|since| Some((probation.observe(&world.next(effect, since))?, BIN * since)))
}

/// The time after which each change is found, for each kind of traffic.
fn times(changes: &[(&str, Effect)], crowds: &[usize]) -> Vec<(Duration, String)> {
    let mut times = Vec::new();
    for shape in SHAPES {
        for clients in crowds.iter().copied() {
            // By day, in the evening, at night.
            for begins in [0, 2400, 4800] {
                let (world, baseline) = learned(shape, clients, (u64::from(begins) + clients as u64, begins));
                for (name, effect) in changes {
                    let found = blamed(&mut world.clone(), &baseline, *effect);
                    let after = found.map_or(Duration::MAX, |(_, after)| after);
                    times.push((after, format!("{name}, {shape:?} from {begins}, {clients} clients: {found:?}")));
                }
            }
        }
    }
    times.sort();
    println!("{} cases, median {:?}, slowest {:?}", times.len(), times[times.len() / 2].0, times.last());
    times
}

#[test]
fn harmful_changes_are_found_within_30_s_under_all_traffic() {
    let late = |(after, _): &(Duration, String)| *after > Duration::from_secs(30);
    let late: Vec<_> = times(&HARMFUL, &[12, 40, 200]).into_iter().filter(late).collect();
    assert!(late.is_empty(), "{late:#?}");
}

#[test]
fn changes_that_harm_a_part_are_found_while_on_probation_if_there_are_many_clients() {
    let late: Vec<_> = times(&PARTLY_HARMFUL, &[200]).into_iter().filter(|(after, _)| *after > MINUTE).collect();
    assert!(late.is_empty(), "{late:#?}");
}

#[test]
fn a_thousand_harmless_changes_are_not_blamed() {
    for shape in SHAPES {
        for (clients, seed) in [(3, 10), (12, 11), (40, 12), (200, 13)] {
            let (mut world, mut baseline) = learned(shape, clients, (seed, 0));
            for change in 0..84 {
                let mut probation = Probation::new(&baseline, MINUTE, EVERYWHERE);
                for since in 1..=120 {
                    let bin = world.next(Effect::None, since);
                    let worse = probation.observe(&bin);
                    assert_eq!(worse, None, "{shape:?}, {clients} clients, change {change}");
                    baseline.add(&bin);
                }
            }
        }
    }
}

#[test]
fn a_fresh_process_blames_only_what_hits_most() {
    let baseline = Baseline::default();
    let found = |effect| blamed(&mut World::new(Shape::Steady, 20, 5), &baseline, effect);
    assert_eq!(found(Effect::None), None);
    let (worse, after) = found(Effect::Ends(Ending::Late, 1.0)).unwrap();
    assert_eq!((worse.measure, worse.before), (Measure::Ended(Ending::Late), None));
    assert!(after <= Duration::from_secs(20), "{after:?}");
    assert_eq!(found(Effect::Ends(Ending::Late, 0.4)), None);
}

#[test]
fn it_says_what_was_seen() {
    let (mut world, baseline) = learned(Shape::Steady, 40, (6, 0));
    let (worse, after) = blamed(&mut world, &baseline, Effect::Ends(Ending::BreakerOpen, 0.7)).unwrap();
    assert_eq!(worse.measure, Measure::Ended(Ending::BreakerOpen));
    assert_eq!(worse.before, Some(0.0));
    assert!((0.6..0.8).contains(&worse.now) && worse.length <= after, "{worse:?} {after:?}");
}

#[test]
fn an_app_that_goes_away_by_itself_is_not_the_fault_of_a_change() {
    let (mut world, baseline) = learned(Shape::Steady, 40, (8, 0));
    let mut probation = Probation::new(&baseline, MINUTE, Scope::default());
    let tests = probation.tests.iter().any(|test| test.measure == Measure::UNREACHABLE);
    let bin = Bin { rows: world.next(Effect::None, 1).rows };
    assert!(!tests && probation.observe(&bin).is_none());
}

/// A client that floods with requests that are rejected.
fn flood(ending: Ending) -> Row {
    let mut row = Row { is_unanswered: false, ..Row::default() };
    row.endings[ending as usize] = 100_000;
    row.rungs[11] = 100_000;
    row.priorities = [[100_000; 2]; 5];
    row
}

#[test]
fn two_clients_cannot_have_a_change_taken_back() {
    let attackers = [[500, 500], [500, 501]];
    for ending in Ending::ALL {
        for others in [2, 3, 5, 12, 40] {
            for attackers in attackers {
                let mut world = World::new(Shape::Bursty, others, 20);
                let mut baseline = Baseline::default();
                for bin in 0..600 {
                    let mut usual = world.next(Effect::None, bin);
                    // They were there before, and behaved.
                    usual
                        .rows
                        .extend(attackers.map(|cell| (cell, Row { endings: one(Ending::Fine), ..Row::default() })));
                    baseline.add(&usual);
                }
                let mut probation = Probation::new(&baseline, MINUTE, EVERYWHERE);
                for since in 1..=120 {
                    let mut bin = world.next(Effect::None, since);
                    bin.rows.push((attackers[0], flood(ending)));
                    if attackers[1] != attackers[0] {
                        bin.rows.push((attackers[1], flood(ending)));
                    }
                    assert_eq!(probation.observe(&bin), None, "{ending:?} beside {others} clients");
                }
            }
        }
    }
}

fn one(ending: Ending) -> [u32; Ending::ALL.len()] {
    let mut endings = [0; Ending::ALL.len()];
    endings[ending as usize] = 1;
    endings
}

#[test]
fn the_only_client_speaks_for_itself() {
    let mut baseline = Baseline::default();
    let row = |ending| Bin { rows: vec![(9, Row { endings: one(ending), ..Row::default() })] };
    (0..100).for_each(|_| baseline.add(&row(Ending::Fine)));
    let mut probation = Probation::new(&baseline, MINUTE, EVERYWHERE);
    let found = (1..=120).find(|_| probation.observe(&row(Ending::RateLimited)).is_some());
    assert!(found.is_some_and(|bins| bins <= 12), "{found:?}");
}
