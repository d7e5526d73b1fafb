//! The summary as tables of text.

use jiff::Timestamp;

use crate::cli::audit::text;
use crate::control::status::headline::{duration, number, percent};
use crate::control::status::{Level, Rates, Status, Windows};

/// A table: its title, the heads of its columns, and its rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Its title.
    pub title: &'static str,
    /// The heads of its columns.
    pub head: &'static [&'static str],
    /// Its rows.
    pub rows: Vec<Vec<String>>,
}

/// The word for a level.
pub const fn word(level: Level) -> &'static str {
    match level {
        Level::Ok => "OK",
        Level::Warn => "WARN",
        Level::Bad => "BAD",
    }
}

fn of_clock(at: Timestamp) -> String {
    at.strftime("%H:%M:%S").to_string()
}

fn latency(ms: Option<f64>) -> String {
    ms.map_or_else(|| "-".to_owned(), duration)
}

fn rates(name: &str, priority: &str, windows: &Windows) -> Vec<String> {
    let Rates { requests_per_s, errors_per_s, rejected_per_s, p50_ms, p99_ms } = windows.last_10_s;
    let all = [number(requests_per_s), number(errors_per_s), number(rejected_per_s), latency(p50_ms), latency(p99_ms)];
    [name.to_owned(), priority.to_owned()].into_iter().chain(all).collect()
}

/// Requests by route, the busiest first.
pub fn routes(status: &Status) -> Table {
    let traffic = &status.traffic;
    let mut rows = vec![rates("all", "", &traffic.all)];
    rows.extend(traffic.routes.iter().map(|route| rates(&route.route, &route.priority, &route.windows)));
    if traffic.other_routes.routes > 0 {
        let name = format!("{} others", traffic.other_routes.routes);
        rows.push(rates(&name, "", &traffic.other_routes.windows));
    }
    Table { title: "Traffic", head: &["ROUTE", "PRIORITY", "REQ/S", "ERR/S", "REJECTED/S", "P50", "P99"], rows }
}

/// The queue, by priority: only priorities with traffic.
pub fn priorities(status: &Status) -> Table {
    let has_any = |queued: u32, rates: &Rates| queued > 0 || rates.requests_per_s > 0.0;
    let rows = status.traffic.priorities.iter().filter(|row| has_any(row.queued, &row.windows.last_10_s)).map(|row| {
        let since = row.shed_since.map(of_clock).unwrap_or_default();
        let shed = if row.shed_share > 0.0 { percent(row.shed_share) } else { "-".to_owned() };
        vec![row.priority.clone(), number(row.windows.last_10_s.requests_per_s), row.queued.to_string(), shed, since]
    });
    Table { title: "Priorities", head: &["PRIORITY", "REQ/S", "QUEUED", "SHED", "SINCE"], rows: rows.collect() }
}

/// Circuit breakers that are not closed, or see failures.
pub fn breakers(status: &Status) -> Table {
    let is_shown = |state: &str, failed: u32| state != "closed" || failed > 0;
    let shown = status.breakers.breakers.iter().filter(|breaker| is_shown(&breaker.state, breaker.failed));
    let rows = shown.map(|breaker| {
        let state = if breaker.is_forced { format!("{} (forced)", breaker.state) } else { breaker.state.clone() };
        vec![
            breaker.name.clone(),
            state,
            breaker.since.map(of_clock).unwrap_or_default(),
            format!("{} of {}", breaker.failed, breaker.calls),
            breaker.open_for_s.map(|s| format!("{s:.0} s")).unwrap_or_default(),
        ]
    });
    Table { title: "Breakers", head: &["BREAKER", "STATE", "SINCE", "FAILED", "OPEN FOR"], rows: rows.collect() }
}

/// Rate limits that reject requests, and the other reasons of rejections and failures.
pub fn refusals(status: &Status) -> Table {
    let limits = status.limits.limits.iter().filter(|limit| limit.refused_per_s > 0.0);
    let limits = limits.map(|limit| {
        vec![format!("rate_limits.{}", limit.name), number(limit.refused_per_s), limit.refused_total.to_string()]
    });
    let reasons = status.traffic.rejections.iter().chain(&status.traffic.failures);
    let reasons = reasons.map(|row| vec![row.reason.clone(), number(row.per_s), row.total.to_string()]);
    Table {
        title: "Refused and failed",
        head: &["RULE OR REASON", "PER S", "SINCE START"],
        rows: limits.chain(reasons).collect(),
    }
}

/// The other Machines.
pub fn peers(status: &Status) -> Table {
    let rows = status.machines.peers.iter();
    let rows = rows.map(|peer| vec![peer.name.clone(), peer.address.clone(), peer.state.clone()]);
    Table { title: "Machines", head: &["MACHINE", "ADDRESS", "STATE"], rows: rows.collect() }
}

/// The latest events, the newest first.
pub fn events(status: &Status, most: usize) -> Table {
    let rows = status.events.iter().take(most);
    Table {
        title: "Events",
        head: &["TIME", "EVENT"],
        rows: rows.map(|event| vec![of_clock(event.at), event.text.clone()]).collect(),
    }
}

/// One line each about the concurrency limit, the app, bans, audit log, snapshots and configuration.
pub fn facts(status: &Status) -> Vec<String> {
    let gate = &status.concurrency;
    let app = &status.app;
    let mut facts = vec![format!(
        "concurrency ({}): {} of {} permits, {} of {} queued, app latency {}",
        gate.mode,
        gate.in_flight,
        gate.limit,
        gate.queued,
        gate.queue_limit,
        latency(gate.latency_ms)
    )];
    let away = if app.is_reachable { "reachable".to_owned() } else { format!("away, {} requests wait", app.held) };
    let process = app.process.as_ref().map_or_else(String::new, |process| {
        let state = process.state.as_deref().unwrap_or("not started");
        let pid = process.pid.map_or_else(String::new, |pid| format!(" as process {pid}"));
        format!("; {state}{pid}, started {} times", process.starts)
    });
    facts.push(format!("app {}: {away}{process}; {} retries/s", app.address, number(app.retries_per_s)));
    if status.bans.count > 0 || status.bans.mode != "off" {
        facts.push(format!("bans ({}): {}", status.bans.mode, status.bans.count));
    }
    if let Some(audit) = &status.audit {
        let disk = if audit.is_writable { "written" } else { "NOT WRITABLE" };
        let lag = if audit.unshipped > 0 {
            format!(", {} not in PostgreSQL yet ({:.0} s)", audit.unshipped, audit.lag_s)
        } else {
            String::new()
        };
        let lost = if audit.lost > 0 { format!(", {} LOST", audit.lost) } else { String::new() };
        facts.push(format!("audit log ({}): {disk}{lag}{lost}", audit.mode));
    }
    if let Some(saved) = &status.saved {
        let written = saved.age_s.map_or_else(|| "not written yet".to_owned(), |age| format!("written {age:.0} s ago"));
        let failed = saved.error.as_ref().map_or_else(String::new, |error| format!(", NOT WRITABLE: {error}"));
        facts.push(format!(
            "saved state: {written}, {:.0} kB{failed}; restored {}",
            saved.bytes as f64 / 1e3,
            saved.restored
        ));
    }
    let config = &status.config;
    facts.push(format!(
        "configuration: version {} since {}, {} routes",
        config.version,
        of_clock(config.since),
        config.routes
    ));
    if let Some(until) = config.probation.as_ref().and_then(|probation| probation.until) {
        facts.push(format!("  on probation until {}", of_clock(until)));
    }
    if let Some(until) = config.probation.as_ref().and_then(|probation| probation.confirm_until) {
        facts.push(format!("  taken back at {} unless it is confirmed", of_clock(until)));
    }
    if let Some(machine) = &config.waiting_for {
        facts.push(format!("  the file has a change that Machine {machine} tries first"));
    }
    if let Some(undone) = &config.undone {
        let what = if undone.is_kept { "WOULD BE TAKEN BACK" } else { "TAKEN BACK" };
        facts.push(format!("version {} {what} at {}: {}", undone.version, of_clock(undone.at), undone.text));
    }
    if let Some(refused) = &config.refused {
        facts.push(format!("REFUSED at {}: {} problems", of_clock(refused.at), refused.count));
        facts.extend(refused.problems.iter().take(3).map(|problem| {
            let hint = problem.hint.as_ref().map_or_else(String::new, |hint| format!(" ({hint})"));
            format!("  {}: {}{hint}", problem.place, problem.message)
        }));
    }
    facts
}

/// All of it as text.
pub fn text(status: &Status) -> String {
    let mut out = format!("{}: {}\n", word(status.headline.level), text::safe(&status.headline.text));
    for other in &status.headline.others {
        out.push_str(&format!("also: {}\n", text::safe(other)));
    }
    out.push('\n');
    for fact in facts(status) {
        out.push_str(&text::safe(&fact));
        out.push('\n');
    }
    for table in
        [routes(status), priorities(status), breakers(status), refusals(status), peers(status), events(status, 10)]
    {
        if !table.rows.is_empty() {
            out.push('\n');
            out.push_str(&text::table(table.head, &table.rows));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::status::{Breaker, RouteTraffic};

    #[test]
    fn the_worst_comes_first_and_text_from_outside_is_escaped() {
        let mut status = Status::default();
        status.headline.level = Level::Bad;
        status.headline.text = "Breaker \"a\u{1b}[2J\" is open".into();
        status.traffic.routes.push(RouteTraffic { route: "se\u{1b}arch".into(), ..RouteTraffic::default() });
        status.breakers.breakers.push(Breaker {
            name: "a".into(),
            state: "open".into(),
            failed: 3,
            calls: 5,
            ..Breaker::default()
        });
        let text = text(&status);
        assert!(text.starts_with("BAD: Breaker"), "{text}");
        assert!(text.contains("3 of 5") && !text.contains('\u{1b}'), "{text}");
    }
}
