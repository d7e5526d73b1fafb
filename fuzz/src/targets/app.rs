//! The application's page of metrics, and Redis's replies.

use std::collections::{HashMap, HashSet};

use outrigger_mechanism::exposition::line::{FamilyType, Line, Sample, read};
use outrigger_mechanism::exposition::{Dialect, Merged, openmetrics};
use outrigger_mechanism::limits::settling;
use outrigger_policy::lease;
use outrigger_policy::limiter::Quota;

use super::with_choice;

const OWN: &str = "# HELP outrigger_requests_total Requests.\n# TYPE outrigger_requests_total counter\n\
                   outrigger_requests_total{route=\"a\"} 3\n# HELP process_open_fds Open.\n# TYPE process_open_fds gauge\n\
                   process_open_fds 7\n# HELP outrigger_s S.\n# TYPE outrigger_s histogram\noutrigger_s_bucket{le=\"1\"} 1\n\
                   outrigger_s_bucket{le=\"+Inf\"} 2\noutrigger_s_sum 3\noutrigger_s_count 2\n";

/// Any page of the application gives a valid page with all of the proxy's metrics, which OpenMetrics can express with as many samples.
pub fn exposition(data: &[u8]) {
    let (choice, page) = with_choice(data);
    let dialect = if choice & 1 == 0 { Dialect::Text } else { Dialect::OpenMetrics };
    let own = Merged::new(OWN).page();
    let mut merged = Merged::new(OWN);
    let dropped: u64 = merged.add_app(page, dialect).each().map(|(_, lines)| lines).sum();
    let page_lines = page.split(|byte| *byte == b'\n').count();
    assert!(dropped <= page_lines as u64);
    let merged = merged.page();
    for line in own.lines() {
        assert!(merged.lines().any(|other| other == line), "{line} is gone");
    }
    let samples = valid(&merged, Dialect::Text);
    for sample in &samples {
        let is_own = sample.labels.first() == Some(&("process", "proxy"));
        assert!(is_own || sample.labels.first() == Some(&("process", "app")), "{sample:?}");
        assert!(is_own || !sample.name.starts_with("outrigger_"), "{sample:?}");
    }
    assert!(samples.len() <= own.lines().count() + page_lines);
    let open = openmetrics::translate(&merged, &HashMap::new());
    let body = open.strip_suffix("# EOF\n").expect("an end");
    assert_eq!(valid(body, Dialect::OpenMetrics).len(), samples.len());
    // Long labels in the name of the process must not multiply.
    assert!(merged.len() <= own.len() + 300 * page_lines + 4 * page.len() && open.len() <= 4 * merged.len() + 100);
}

/// The samples of a page on which each family is once and in one piece, and each series once.
fn valid(page: &str, dialect: Dialect) -> Vec<Sample<'_>> {
    let (mut families, mut series) = (HashSet::new(), HashSet::new());
    let (mut current, mut kind) = ("", FamilyType::Untyped);
    let mut samples = Vec::new();
    for line in page.lines() {
        match read(line.as_bytes(), dialect).unwrap_or_else(|why| panic!("{why:?}: {line}\n{page}")) {
            Line::Nothing => {}
            Line::Help(name, _) if name == current => {}
            Line::Type(name, of) if name == current => kind = of,
            Line::Help(name, _) => {
                assert!(families.insert(name), "{name} comes twice\n{page}");
                (current, kind) = (name, FamilyType::Untyped);
            }
            Line::Type(name, of) => {
                assert!(families.insert(name), "{name} comes twice\n{page}");
                (current, kind) = (name, of);
            }
            Line::Sample(sample) => {
                let suffix = sample.name.strip_prefix(current).expect("a sample of its family");
                let is_total = dialect == Dialect::OpenMetrics && kind == FamilyType::Counter && suffix == "_total";
                assert!(is_total || kind.suffixes().contains(&suffix), "{line}\n{page}");
                let mut labels = sample.labels.clone();
                labels.sort_unstable();
                assert!(series.insert((sample.name, labels)), "{line} comes twice\n{page}");
                samples.push(sample);
            }
        }
    }
    samples
}

/// Any reply of Redis is one that the script can give, or is rejected: it bans no client for longer than the script could.
pub fn redis_reply(data: &[u8]) {
    let Ok(reply) = redis::parse_redis_value(data) else { return };
    for (machines, debt) in [(1, 0), (3, 1), (1000, -5), (u32::MAX, i32::MIN)] {
        let quota = Quota::from_parts(600_000_000, 100);
        let Some(ns) = settling::reply_ns(&reply, quota, debt, machines) else { continue };
        let most = lease::furthest(quota, machines).saturating_add(quota.charge_ns(debt.unsigned_abs()));
        assert!(ns <= most.saturating_add(1_000_000), "{ns} ns");
        assert!(matches!(reply, redis::Value::Int(0..)));
    }
}
