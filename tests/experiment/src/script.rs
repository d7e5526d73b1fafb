//! The faults and requests with their times. They are the same for every side: drawn once, from a seed.

use std::time::Duration;

use fastrand::Rng;
use outrigger_edge::Strategy;

use crate::clock::{FACTOR, seconds};

/// Requests that the app works on concurrently.
pub const WORKERS: u32 = 8;
/// Requests that wait in the app; it rejects more.
pub const QUEUE: u32 = 64;
/// Well-behaved clients, and how many requests a second they send together.
const CLIENTS: u32 = 200;
const RATE: f64 = 130.0;
/// How long a client waits for the response, in seconds of the hour.
pub const DEADLINE: f64 = 10.0;

/// Load after the hour, as a multiple of one app's capacity.
pub const OVERLOAD: f64 = 4.0;
/// The first part of the overload does not count: queues fill, and limits adapt.
const WARM_UP: Duration = Duration::from_secs(5);

/// Kind of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A `GET`.
    Read,
    /// A `POST`, which must not be sent twice.
    Write,
    /// A `POST` that is more important than others.
    Checkout,
    /// A `GET` that is expensive and least important.
    Search,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Checkout, Self::Search];

    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Checkout => "checkout",
            Self::Search => "search",
        }
    }

    /// Share of a well-behaved client's requests, in percent.
    fn percent(self) -> u32 {
        match self {
            Self::Read => 60,
            Self::Write => 20,
            Self::Checkout | Self::Search => 10,
        }
    }

    /// Mean time that the app works on it, and how much of that is the database, in the run.
    pub fn work(self) -> (Duration, Duration) {
        let (all, database) = match self {
            Self::Read => (20, 12),
            Self::Write => (30, 20),
            Self::Checkout => (25, 15),
            Self::Search => (80, 50),
        };
        (Duration::from_millis(all), Duration::from_millis(database))
    }

    fn any(random: &mut Rng) -> Self {
        let mut dice = random.u32(0..100);
        for kind in Self::ALL {
            match dice.checked_sub(kind.percent()) {
                Some(left) => dice = left,
                None => return kind,
            }
        }
        Self::Read
    }
}

/// Requests per second of the well-behaved mix that one app can serve.
pub fn capacity() -> f64 {
    let mean: f64 = Kind::ALL.iter().map(|kind| f64::from(kind.percent()) / 100.0 * kind.work().0.as_secs_f64()).sum();
    f64::from(WORKERS) / mean
}

/// The clients of a flood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flood {
    /// Few addresses, each far above any limit.
    Scrapers,
    /// Many addresses that send expensive requests, each rarely.
    Crowd,
}

impl Flood {
    /// Number of addresses, requests per second of all together, and their kind.
    fn shape(self) -> (u32, f64, Kind) {
        match self {
            Self::Scrapers => (8, 1200.0, Kind::Read),
            Self::Crowd => (200, 400.0, Kind::Search),
        }
    }

    /// Its load relative to one app's capacity.
    pub fn times_capacity(self) -> f64 {
        let (_, rate, kind) = self.shape();
        rate * kind.work().0.as_secs_f64() / f64::from(WORKERS)
    }
}

/// A fault of a side. Machines are counted from the first, and from the first again where there are fewer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// All its processes get SIGKILL; it is started again elsewhere.
    MachineKilled(usize),
    /// The app gets SIGKILL; its supervisor restarts it.
    AppCrash(usize),
    /// The app gets SIGSTOP; a watchdog kills it, and its supervisor restarts it.
    AppHang(usize),
    /// The database's part of a request takes this many times as long, in all apps.
    SlowDatabase(f64),
    Deploy(Strategy),
    Burst(Flood),
}

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            Self::MachineKilled(_) => "Machine killed",
            Self::AppCrash(_) => "app crash",
            Self::AppHang(_) => "app hang",
            Self::SlowDatabase(_) => "slow database",
            Self::Deploy(Strategy::Rolling) => "rolling deploy",
            Self::Deploy(Strategy::BlueGreen) => "blue-green deploy",
            Self::Burst(Flood::Scrapers) => "burst: scrapers",
            Self::Burst(Flood::Crowd) => "burst: crowd",
        }
    }
}

/// One line of the script, in minutes of the hour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line {
    pub at: f64,
    /// Duration in the script; an event such as a kill or a deploy is over when the side has recovered, at about that time.
    pub minutes: f64,
    pub fault: Fault,
}

impl Line {
    pub fn begins(&self) -> Duration {
        seconds(self.at * 60.0)
    }

    pub fn ends(&self) -> Duration {
        seconds((self.at + self.minutes) * 60.0)
    }
}

/// The whole script.
#[derive(Debug, Clone, PartialEq)]
pub struct Script {
    pub minutes: f64,
    pub lines: Vec<Line>,
    /// Duration of the overload after the hour.
    pub overload: Duration,
    /// The same where the number of Machines follows the load: it goes on until they are enough.
    pub long_overload: Duration,
    pub warm_up: Duration,
}

/// Times of processes and Machines, in seconds of the hour.
pub mod times {
    /// From a Machine's start to that of its processes.
    pub const MACHINE_BOOT: f64 = 10.0;
    /// From the app's start to its first response.
    pub const APP_START: f64 = 5.0;
    /// Until a supervisor restarts a process.
    pub const SUPERVISOR: f64 = 1.0;
    /// Until a Machine whose host failed is started elsewhere.
    pub const REPLACEMENT: f64 = 60.0;
    /// Until a watchdog kills an app that hangs.
    pub const WATCHDOG: f64 = 20.0;
    /// How long the app may take to complete requests.
    pub const APP_GRACE: f64 = 5.0;
    /// How long a Machine's processes may take to end.
    pub const KILL_TIMEOUT: f64 = 80.0;
}

impl Script {
    /// The hour.
    pub fn hour() -> Self {
        use Fault::{AppCrash, AppHang, Burst, Deploy, MachineKilled, SlowDatabase};
        let line = |at, minutes, fault| Line { at, minutes, fault };
        Self {
            minutes: 60.0,
            lines: vec![
                line(3.0, 1.5, MachineKilled(0)),
                line(7.0, 0.2, AppCrash(1)),
                line(10.0, 4.0, SlowDatabase(3.0)),
                line(16.0, 2.0, Deploy(Strategy::Rolling)),
                line(21.0, 4.0, Burst(Flood::Scrapers)),
                line(28.0, 0.2, AppCrash(2)),
                line(31.0, 0.5, AppHang(1)),
                line(35.0, 1.5, MachineKilled(2)),
                line(39.0, 1.5, Deploy(Strategy::BlueGreen)),
                line(43.0, 4.0, Burst(Flood::Crowd)),
                line(49.0, 2.0, Deploy(Strategy::Rolling)),
                line(53.0, 0.2, AppCrash(0)),
                line(55.0, 3.0, SlowDatabase(2.0)),
            ],
            overload: Duration::from_secs(20),
            long_overload: Duration::from_secs(105),
            warm_up: WARM_UP,
        }
    }

    /// Enough to check that everything works.
    pub fn short() -> Self {
        use Fault::{AppCrash, Burst, MachineKilled, SlowDatabase};
        let line = |at, minutes, fault| Line { at, minutes, fault };
        Self {
            minutes: 3.0,
            lines: vec![
                line(0.2, 0.2, AppCrash(0)),
                line(0.6, 0.4, SlowDatabase(3.0)),
                line(1.2, 0.5, Burst(Flood::Scrapers)),
                line(1.8, 1.1, MachineKilled(1)),
            ],
            overload: Duration::from_secs(3),
            long_overload: Duration::from_secs(4),
            warm_up: Duration::from_secs(1),
        }
    }

    /// Its duration, in the run.
    pub fn length(&self) -> Duration {
        seconds(self.minutes * 60.0)
    }

    /// The fault during a request or shortly before it: the last line of the script that began before the request's end, and
    /// ended at most half a minute before its beginning.
    pub fn during(&self, from: Duration, to: Duration) -> &'static str {
        let settles = seconds(30.0);
        let under_way = |line: &&Line| line.begins() <= to && from <= line.ends() + settles;
        self.lines.iter().rev().find(under_way).map_or("calm", |line| line.fault.name())
    }

    /// How often an app ends or hangs in the script, without a warning.
    pub fn deaths(&self) -> usize {
        use Fault::{AppCrash, AppHang, MachineKilled};
        self.lines.iter().filter(|line| matches!(line.fault, AppCrash(_) | AppHang(_) | MachineKilled(_))).count()
    }

    /// The expected number of POSTs of well-behaved clients that these apps work on at those times, with this number of Machines.
    pub fn posts_lost(&self, machines: usize) -> f64 {
        let posts = [Kind::Write, Kind::Checkout];
        let in_flight: f64 =
            posts.iter().map(|kind| RATE * f64::from(kind.percent()) / 100.0 * kind.work().0.as_secs_f64()).sum();
        self.deaths() as f64 * in_flight / machines as f64
    }

    /// Every request of the hour, ordered by time.
    pub fn arrivals(&self, seed: u64) -> Vec<Arrival> {
        let mut random = Rng::with_seed(seed);
        let mut all = Vec::new();
        poisson(&mut random, Duration::ZERO, self.length(), RATE, |at, random| {
            all.push(Arrival { at, client: random.u32(0..CLIENTS), kind: Kind::any(random), is_flood: false });
        });
        for line in &self.lines {
            let Fault::Burst(flood) = line.fault else { continue };
            let (addresses, rate, kind) = flood.shape();
            // Each burst has its own addresses.
            let first = CLIENTS + (flood as u32) * 1000;
            poisson(&mut random, line.begins(), line.ends(), rate, |at, random| {
                all.push(Arrival { at, client: first + random.u32(0..addresses), kind, is_flood: true });
            });
        }
        all.sort_by_key(|arrival| arrival.at);
        all
    }

    /// Every request of an overload of this length: the well-behaved mix, from so many clients that rate limits do not matter. A
    /// longer one begins with the same requests.
    pub fn overload(length: Duration, seed: u64) -> Vec<Arrival> {
        let mut random = Rng::with_seed(seed ^ 0x0ff1_0ad5);
        let mut all = Vec::new();
        poisson(&mut random, Duration::ZERO, length, OVERLOAD * capacity(), |at, random| {
            let client = 5000 + random.u32(0..2 * CLIENTS);
            all.push(Arrival { at, client, kind: Kind::any(random), is_flood: false });
        });
        all
    }
}

/// A scheduled request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrival {
    /// Since the start, in the run.
    pub at: Duration,
    pub client: u32,
    pub kind: Kind,
    pub is_flood: bool,
}

/// Random times at this mean rate per second.
fn poisson(random: &mut Rng, from: Duration, to: Duration, rate: f64, mut each: impl FnMut(Duration, &mut Rng)) {
    let mut at = from.as_secs_f64();
    loop {
        at -= (1.0 - random.f64()).ln() / rate;
        if at >= to.as_secs_f64() {
            return;
        }
        each(Duration::from_secs_f64(at), random);
    }
}

/// Formats a time of the run as one of the hour: `mm:ss`.
pub fn clock(at: Duration) -> String {
    let real = (at.as_secs_f64() * f64::from(FACTOR)).round() as u64;
    format!("{:02}:{:02}", real / 60, real % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_requests_and_another_one_others() {
        let script = Script::hour();
        assert_eq!(script.arrivals(1), script.arrivals(1));
        assert_ne!(script.arrivals(1), script.arrivals(2));
    }

    #[test]
    fn a_longer_overload_begins_with_the_same_requests() {
        let (short, long) = (Script::overload(Duration::from_secs(1), 1), Script::overload(Duration::from_secs(2), 1));
        assert_eq!(short, long[..short.len()]);
    }

    #[test]
    fn the_load_is_what_the_document_says() {
        let all = Script::hour().arrivals(1);
        assert!(all.is_sorted_by_key(|arrival| arrival.at));
        let good: Vec<_> = all.iter().filter(|arrival| !arrival.is_flood).collect();
        let expected = RATE * 240.0;
        assert!((good.len() as f64 - expected).abs() < 0.03 * expected, "{}", good.len());
        for kind in Kind::ALL {
            let share = good.iter().filter(|arrival| arrival.kind == kind).count() as f64 / good.len() as f64;
            assert!((share - f64::from(kind.percent()) / 100.0).abs() < 0.02, "{kind:?}: {share}");
        }
        assert_eq!(Kind::ALL.iter().map(|kind| kind.percent()).sum::<u32>(), 100);
        for flood in [Flood::Scrapers, Flood::Crowd] {
            assert!((3.0..=5.0).contains(&flood.times_capacity()), "{flood:?}");
        }
    }

    #[test]
    fn a_flood_comes_when_the_script_says_and_from_its_own_addresses() {
        let script = Script::hour();
        let bursts: Vec<_> = script.lines.iter().filter(|line| matches!(line.fault, Fault::Burst(_))).collect();
        for arrival in script.arrivals(1).iter().filter(|arrival| arrival.is_flood) {
            assert!(bursts.iter().any(|line| (line.begins()..line.ends()).contains(&arrival.at)));
            assert!(arrival.client >= CLIENTS);
        }
    }

    #[test]
    fn a_few_posts_are_lost() {
        let script = Script::hour();
        assert_eq!(script.deaths(), 6);
        // 26 writes of 30 ms and 13 checkouts of 25 ms a second.
        assert!((script.posts_lost(1) - 6.0 * 1.105).abs() < 1e-9, "{}", script.posts_lost(1));
    }

    #[test]
    fn a_moment_is_attributed_to_its_fault() {
        let script = Script::hour();
        let minute = |minute: f64| script.during(seconds(60.0 * minute), seconds(60.0 * minute + 0.5));
        assert_eq!((minute(1.0), minute(3.1), minute(7.1)), ("calm", "Machine killed", "app crash"));
        assert_eq!((minute(14.3), minute(14.7)), ("slow database", "calm"));
        assert_eq!(minute(6.999), "app crash", "it was under way when the app ended");
        assert_eq!(clock(seconds(61.0)), "01:01");
    }

    #[test]
    fn faults_do_not_overlap_and_end_within_the_hour() {
        for script in [Script::hour(), Script::short()] {
            assert!(script.lines.windows(2).all(|pair| pair[0].ends() <= pair[1].begins()));
            assert!(script.lines.iter().all(|line| line.ends() <= script.length()));
        }
    }
}
