//! Requests a second of `outrigger backtest` on one core: `cargo bench --package outrigger-backtest`.
//!
//! A record of 1,000,000 requests in 10 minutes, of 20,000 clients on 50 routes with limits, queue and circuit breakers; both readings, two files
//! of rules. The bench fails below 200,000 requests a second.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use divan::Bencher;
use divan::counter::ItemsCount;
use outrigger_backtest::replay::{self, Question};
use outrigger_backtest::source::RecordSource;
use outrigger_rules::config::Config;
use outrigger_traffic::encode::{Encoder, header};
use outrigger_traffic::files;
use outrigger_traffic::request::{Applied, ClientKind, Facts, RecordedRequest};
use outrigger_traffic::shapes::{Described, Shapes};

const REQUESTS: u64 = 1_000_000;
const ROUTES: u64 = 50;
const BASE_NS: u64 = 1_700_000_000_000_000_000;
/// The least that is good enough.
const LEAST_PER_SECOND: f64 = 200_000.0;

fn main() {
    divan::main();
}

fn rules(rate: &str) -> Config {
    let mut text = format!(
        "[rate_limits]\nmedium = \"{rate}\"\n[[rate_limits.rules]]\nname = \"each\"\nrate = \"1000/1m\"\nby = \"client-and-route\"\n\
         [[rate_limits.rules]]\nname = \"all\"\nrate = \"200000/1m\"\nby = \"machine\"\n"
    );
    for route in 0..ROUTES {
        let _ = writeln!(text, "[[routes]]\nname = \"route-{route}\"\npath = \"/api/part{route}/{{id}}\"");
    }
    Config::parse(Path::new("bench"), &text, &|_| None).unwrap_or_else(|e| panic!("{e}"))
}

/// Writes the record; returns its directory.
fn record() -> PathBuf {
    let directory = std::env::temp_dir().join(format!("outrigger-backtest-bench-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap_or_else(|e| panic!("{e}"));
    let (mut shapes, mut block, mut file) = (Shapes::default(), Encoder::new(BASE_NS), header(BASE_NS).to_vec());
    let mut random = 1_u64;
    for number in 0..REQUESTS {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let (route, client) = (random % ROUTES, (random >> 20) % 20_000);
        let (name, path) = (format!("route-{route}"), format!("/api/part{route}/~"));
        let described = Described { method: "GET", host: "", path: &path, route: &name, headers: "" };
        let Some(shape) = shapes.shape(described, None, &mut block) else { continue };
        let service_us = 2_000 + random % 40_000;
        block.request(&RecordedRequest {
            started_ns: BASE_NS + number * 600_000,
            total_us: service_us + 100,
            service_us: Some(service_us),
            shape,
            status: if random.is_multiple_of(1000) { 500 } else { 200 },
            tier: (random % 3) as u8,
            kind: ClientKind::Key,
            client,
            address: client ^ 1,
            admission: Applied::Enforce,
            resilience: Applied::Enforce,
            facts: Facts::ANSWERED.with(Facts::FOR_APP, true).with(Facts::COUNTED_HERE, true),
            attempts: 1,
            ..RecordedRequest::default()
        });
        if block.len() > 16_384 {
            file.extend_from_slice(block.finish());
            block.clear();
        }
    }
    file.extend_from_slice(block.finish());
    fs::write(directory.join(files::name(BASE_NS)), file).unwrap_or_else(|e| panic!("{e}"));
    directory
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn backtest(bencher: Bencher<'_, '_>) {
    let directory = record();
    let (in_force, proposed) = (rules("600/1m"), rules("60/1m"));
    let source = RecordSource::new(&directory);
    let question = Question { in_force: &in_force, proposed: &proposed, between: (BASE_NS, u64::MAX), machines: 1 };
    bencher.counter(ItemsCount::new(REQUESTS)).bench(|| {
        let began = Instant::now();
        let report = replay::run(&source, question).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(report.requests, REQUESTS);
        let rate = REQUESTS as f64 / began.elapsed().as_secs_f64();
        assert!(rate >= LEAST_PER_SECOND, "only {rate:.0} requests a second");
    });
    let _ = fs::remove_dir_all(directory);
}
