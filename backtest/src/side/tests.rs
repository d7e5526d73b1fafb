use std::path::Path;

use super::*;

fn config(text: &str) -> Config {
    Config::parse(Path::new("test"), text, &|_| None).unwrap_or_else(|e| panic!("{e}"))
}

/// A place in the first span of time.
fn place(past: &Past) -> Place {
    Place { route: 0, tier: past.tier, time: 0, client: (past.client, past.kind), is_before: false }
}

#[test]
fn memory_follows_the_requests_in_flight() {
    let mut catalogue = Catalogue::default();
    let shape = catalogue.shape("GET", "", "/", "default", "").unwrap();
    let config = config("rate_limits.mode = \"off\"\nadmission.max_queue = 50");
    let guess = |_, _| 1_000_000;
    let (mut routes, mut limits) = (Names::default(), Names::default());
    let with = Circumstances { catalogue: &catalogue, in_force: &config, guess: &guess, machines: 1, spans: 1 };
    let mut side = Side::new(&config, with, &mut routes, &mut limits);
    let facts = Facts::ANSWERED.with(Facts::COUNTED_HERE, true).with(Facts::FOR_APP, true);
    // 100,000 requests, one each millisecond, of 30 ms each, and a pause of the app after half of them.
    for n in 0..100_000_u64 {
        let service_us = if n == 50_000 { 500_000 } else { 30_000 };
        let past = Past { shape, client: n % 100, address: n % 100, facts, ..Past::BLANK }.served_in(Some(service_us));
        side.arrive(&past, (1 << 50) + n * 1_000_000, place(&past));
    }
    assert!(side.flights.most() <= 200, "{} at a time", side.flights.most());
    assert!(side.events.len() <= 2_000, "{} events", side.events.len());
    side.finish();
    assert_eq!(side.tally.total().requests, 100_000);
    assert!(side.events.is_empty());
}

/// Any facts in any combination, as a damaged or a foreign record may have them.
#[test]
fn any_requests_can_be_replayed_and_none_is_lost() {
    let mut catalogue = Catalogue::default();
    let reasons =
        ["", "quota_exceeded", "app_timeout", "app_unreachable", "path_ambiguous", "breaker_open", "internal"];
    let reasons = reasons.map(|reason| catalogue.name_number(reason));
    let paths = [("/", "default"), ("/a/~", "a"), ("", "gone"), ("/health/live", "health"), ("/b", "b")];
    let shapes = paths.map(|(path, route)| catalogue.shape("POST", "", path, route, "").unwrap());
    let file = "rate_limits.medium = \"2/1s\"\nadmission.max = 4\nadmission.initial = 2\nadmission.max_wait = \"50ms\"\n\
                [breaker]\nfailures = 3\nmin_clients = 1\nopen = \"1s\"\n[abuse]\nmode = \"enforce\"\nrefusals = \"3/1m\"\n\
                [[rate_limits.rules]]\nname = \"failures\"\nrate = \"30/1m\"\ncount = \"failures\"\n\
                [[routes]]\nname = \"a\"\npath = \"/a/{id}\"\npriority = \"low\"\n[[routes]]\nname = \"b\"\npath = \"/b\"\ntimeout = \"20ms\"\n";
    let config = config(file);
    let guess = |_, _| 5_000_000;
    let with = Circumstances { catalogue: &catalogue, in_force: &config, guess: &guess, machines: 3, spans: 1 };
    let mut side = Side::new(&config, with, &mut Names::default(), &mut Names::default());
    let mut state = 7_u64;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 20) % below
    };
    let mut now = 1 << 50;
    for _ in 0..30_000 {
        now += random(5_000_000);
        let modes = [Mode::Off, Mode::Monitor, Mode::Enforce];
        let past = Past {
            shape: shapes[random(5) as usize],
            client: random(20),
            address: random(10),
            status: [200, 404, 401, 500, 502, 503, 504, 429, 0][random(9) as usize],
            reason: reasons[random(7) as usize],
            facts: Facts(random(256) as u16),
            tier: Tier::ALL[random(5) as usize],
            kind: ClientKind::ALL[random(4) as usize],
            admission: modes[random(3) as usize],
            resilience: modes[random(3) as usize],
            ..Past::BLANK
        }
        .served_in((random(2) == 0).then(|| random(100_000)));
        side.arrive(&past, now, place(&past));
    }
    side.finish();
    let total = side.tally.total();
    assert_eq!(total.requests, 30_000);
    assert_eq!(side.tally.by_reason.iter().map(|(_, count)| count).sum::<u64>(), total.rejected());
    assert!(side.tally.openings.iter().map(|(_, count)| count).sum::<u64>() > 0, "{:?}", side.tally.openings);
    assert!(side.tally.bans > 0 && total.refused > 1000, "{total:?}");
    assert_eq!(side.admission.in_flight(), 0, "each permit is returned");
}
