//! The report as text.

use std::fmt::Write;

use outrigger_backtest::report::{NamedRow, Report, Three, WaitRow};

use crate::cli::audit::text::{grouped, safe, table};

/// By how much rejections rise under the proposed rules, as a share of all requests.
pub(super) fn rise(report: &Report) -> f64 {
    let Three { in_force, proposed, .. } = report.rejected;
    (proposed as f64 - in_force as f64) / (report.requests as f64).max(1.0)
}

/// A share in percent.
pub(super) fn percent(share: f64) -> String {
    format!("{:.2}%", share * 100.0)
}

const HEADER: [&str; 3] = ["RECORDED", "IN FORCE", "PROPOSED"];

/// The report.
pub(super) fn of(report: &Report) -> String {
    let mut out = String::new();
    let share = |count: u64| percent(count as f64 / (report.requests as f64).max(1.0));
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "{} requests, {} to {}, from {}\n{} replayed in {:.2} s ({} a second)\n",
        grouped(report.requests),
        report.from,
        report.until,
        safe(&report.source),
        grouped(report.replayed),
        report.seconds,
        grouped(report.requests_per_second as u64)
    );
    let cells = |three: Three<u64>| [three.recorded, three.in_force, three.proposed].map(grouped);
    let optional = |three: Three<Option<u64>>| {
        [three.recorded, three.in_force, three.proposed].map(|n| n.map_or("-".to_owned(), grouped))
    };
    let row = |name: &str, cells: [String; 3]| [vec![name.to_owned()], cells.to_vec()].concat();
    let rejected = [report.rejected.recorded, report.rejected.in_force, report.rejected.proposed];
    let mut rows = vec![
        row("rejected", rejected.map(grouped)),
        row("of all requests", rejected.map(share)),
        row("would be rejected (monitor)", optional(report.monitored)),
        row("bans", optional(report.bans)),
    ];
    let waits = [report.waits.recorded, report.waits.in_force, report.waits.proposed];
    rows.push(row("waited for a permit", waits.map(|wait| grouped(wait.requests))));
    if waits.iter().any(|wait| wait.requests > 0) {
        let ms = |of: fn(&WaitRow) -> f64| waits.map(|wait| format!("{} ms", of(&wait)));
        rows.push(row("  median", ms(|wait| wait.p50_ms)));
        rows.push(row("  99th percentile", ms(|wait| wait.p99_ms)));
        rows.push(row("  longest", ms(|wait| wait.longest_ms)));
    }
    let mut section = |title: &str, rows: &[Vec<String>]| {
        if !rows.is_empty() {
            let header = [&[title][..], &HEADER].concat();
            out.push_str(&table(&header, rows));
            out.push('\n');
        }
    };
    section("TOTAL", &rows);
    let named = |all: &[NamedRow]| all.iter().map(|named| row(&named.name, cells(named.count))).collect::<Vec<_>>();
    section("REJECTED FOR", &named(&report.reasons));
    section("BY LIMIT", &named(&report.limits));
    let routes = report.routes.iter().map(|of| {
        let name = of.tier.map_or_else(|| of.route.clone(), |tier| format!("  {tier}"));
        let cell = |requests: u64, rejected: u64| format!("{} of {}", grouped(rejected), grouped(requests));
        let (requests, rejected) = (of.requests, of.rejected);
        row(
            &name,
            [
                cell(requests.recorded, rejected.recorded),
                cell(requests.in_force, rejected.in_force),
                cell(requests.proposed, rejected.proposed),
            ],
        )
    });
    section("REJECTED BY ROUTE", &routes.collect::<Vec<_>>());
    let breakers = report.breakers.iter().map(|named| {
        let (in_force, proposed) = (named.count.in_force, named.count.proposed);
        row(&named.name, optional(Three { recorded: None, in_force: Some(in_force), proposed: Some(proposed) }))
    });
    section("CIRCUIT BREAKER OPENED", &breakers.collect::<Vec<_>>());
    let clients = report.clients.iter().map(|of| row(&format!("{} {}", of.by, of.client), cells(of.rejected)));
    section("REJECTED BY CLIENT", &clients.collect::<Vec<_>>());
    out.push_str(&fidelity(report));
    for note in &report.notes {
        let _ = writeln!(out, "note: {}", safe(note));
    }
    out
}

/// How near the replay comes to the record.
fn fidelity(report: &Report) -> String {
    let fidelity = &report.fidelity;
    let (recorded, replayed) = (grouped(fidelity.recorded), grouped(fidelity.replayed));
    let Some(apart) = fidelity.apart else {
        return format!("fidelity: the record has no rejection by these rules; their replay has {replayed}\n");
    };
    let furthest = fidelity.furthest.as_ref().map_or_else(String::new, |furthest| {
        let (recorded, replayed) = (grouped(furthest.recorded), grouped(furthest.replayed));
        format!("; furthest at route {}, tier {}: {recorded} and {replayed}", furthest.route, furthest.tier)
    });
    format!(
        "fidelity: {recorded} rejections recorded, {replayed} by the rules in force: {} apart by route and tier{furthest}\n",
        percent(apart)
    )
}
