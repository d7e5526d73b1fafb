//! The plan of a run: the configuration, and what happens when. All of it follows from the seed.

use std::time::Duration;

use crate::app::Mood;
use crate::random::Random;

/// How long faults happen.
pub const CHAOS: Duration = Duration::from_secs(10);
/// The time limit of a request's head, by the configuration.
pub const TIMEOUT: Duration = Duration::from_secs(2);
/// The rate limit of the path `/limited`: so many requests of a client per second, and as many at once.
pub const LIMIT: u64 = 5;
/// The longest time for which a circuit breaker opens, and then lets less than all through.
pub const BREAKERS_RECOVER: Duration = Duration::from_secs(6);

/// The settings that differ between seeds.
#[derive(Clone, Debug)]
pub struct Settings {
    hold: &'static str,
    max_concurrency: u64,
    max_queue: u64,
    probes: u64,
    budget: &'static str,
    budget_min: u64,
    statuses: &'static str,
    attempt_timeout: &'static str,
    hedge: &'static str,
    /// Increases with each reload, so that each changes something.
    version: u64,
}

impl Settings {
    fn new(random: &mut Random) -> Self {
        Self {
            hold: random.pick(&["0s", "500ms", "1500ms"]),
            max_concurrency: random.pick(&[1, 3, 40]),
            max_queue: random.pick(&[2, 20]),
            probes: random.pick(&[1, 3]),
            budget: random.pick(&["1%", "10%", "50%"]),
            budget_min: random.pick(&[0, 0, 1]),
            statuses: random.pick(&["[]", "[500, 503]"]),
            attempt_timeout: random.pick(&["\"auto\"", "\"off\"", "\"300ms\""]),
            hedge: random.pick(&["\"auto\"", "\"off\"", "\"100ms\""]),
            version: 0,
        }
    }

    /// Settings for a reload.
    fn changed(&self, random: &mut Random) -> Self {
        let mut next = Self { version: self.version + 1, ..self.clone() };
        match random.between(0, 3) {
            0 => next.max_concurrency = random.pick(&[1, 3, 40]),
            1 => next.max_queue = random.pick(&[2, 20]),
            2 => next.probes = random.pick(&[1, 3]),
            _ => {}
        }
        next
    }

    /// As a part of a configuration file.
    pub fn rules(&self) -> String {
        let Self { hold, max_concurrency, max_queue, probes, budget, budget_min, statuses, .. } = self;
        let Self { attempt_timeout, hedge, version, .. } = self;
        let initial = max_concurrency.min(&20);
        format!(
            r#"
app.timeout = "2s"
app.connect_timeout = "500ms"
app.hold = "{hold}"
app.max_held = 20

[client]
body_timeout = "3s"

[admission]
max = {max_concurrency}
initial = {initial}
max_queue = {max_queue}
max_wait = "800ms"

[breaker]
failures = 3
min_calls = 5
open = "1s"
max_open = "3s"
jitter = "off"
probes = {probes}
successes = 2
ramp = "1s"

[retry]
attempts = 3
budget = "{budget}"
budget_min = {budget_min}
statuses = {statuses}
attempt_timeout = {attempt_timeout}
hedge = {hedge}

[rate_limits]
critical = "off"
high = "off"
medium = "off"
low = "off"
strict = "off"

[[rate_limits.rules]]
name = "limited"
rate = "{LIMIT}/1s"
by = "address"
routes = ["limited"]

[[routes]]
name = "limited"
path = "/limited"
priority = "high"

[[routes]]
name = "low"
path = "/low"
priority = "low"

[[routes]]
name = "version{version}"
path = "/version/{version}"
"#
        )
    }
}

/// A fault, or another change, of a Machine or of all.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// The app's process ends.
    Crash(usize),
    /// The app's process starts.
    Start(usize),
    /// The app behaves otherwise.
    Mood(usize, Mood),
    /// The configuration changes.
    Reload(usize),
    /// The time of day changes by so many seconds.
    Step(i64),
    /// So many more clients come, each with a few requests.
    Crowd(u64),
}

/// A plan.
#[derive(Debug)]
pub struct Plan {
    /// The number of Machines.
    pub machines: usize,
    /// The configuration at the start, and after each reload.
    pub settings: Vec<Settings>,
    /// The faults, in order of time.
    pub events: Vec<(Duration, Event)>,
    /// The number of clients from the beginning.
    pub clients: u64,
}

impl Plan {
    /// The plan of a seed.
    pub fn new(random: &mut Random) -> Self {
        let machines = random.pick(&[1, 1, 2, 3]);
        let mut settings = vec![Settings::new(random)];
        let mut events = Vec::new();
        let chaos = CHAOS.as_millis() as u64;
        for machine in 0..machines {
            let mut at = random.between(0, 1500);
            while at < chaos {
                let length = random.pick(&[20, 300, 1_000, 2_500]);
                let (begins, ends) = match random.between(0, 9) {
                    0..=2 => (Event::Crash(machine), Event::Start(machine)),
                    3 => (Event::Mood(machine, Mood::Hung), Event::Mood(machine, Mood::Well)),
                    4 => (Event::Mood(machine, Mood::Failing), Event::Mood(machine, Mood::Well)),
                    5 => (Event::Mood(machine, Mood::Slow), Event::Mood(machine, Mood::Well)),
                    _ => (Event::Mood(machine, Mood::Erratic), Event::Mood(machine, Mood::Well)),
                };
                events.push((at, begins));
                events.push((at + length, ends));
                at += length + random.between(50, 2_500);
            }
            for _ in 0..random.between(0, 3) {
                events.push((random.between(0, chaos), Event::Reload(machine)));
            }
        }
        for _ in 0..random.between(0, 2) {
            let seconds = random.between(1, 200) as i64;
            events.push((random.between(0, chaos), Event::Step(if random.percent(50) { seconds } else { -seconds })));
        }
        for _ in 0..random.between(0, 2) {
            events.push((random.between(0, chaos), Event::Crowd(random.between(5, 25))));
        }
        events.sort_by_key(|(at, _)| *at);
        for (_, event) in &events {
            if let Event::Reload(_) = event {
                let next = settings.last().map(|last| last.changed(random));
                settings.extend(next);
            }
        }
        let events = events.into_iter().map(|(at, event)| (Duration::from_millis(at), event)).collect();
        Self { machines, settings, events, clients: random.between(3, 9) }
    }
}
