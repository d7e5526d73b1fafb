//! One sentence for an operator: the worst problem, or that there is none. A function of the summary alone.

use jiff::Timestamp;

use crate::control::status::{Breaker, Headline, Level, Status};

/// Fewer requests in 10 seconds say little about the share of errors.
const FEW_REQUESTS: f64 = 2.0;
/// The share of errors that is a problem, and the one that is a bad one.
const SOME_ERRORS: f64 = 0.01;
const MANY_ERRORS: f64 = 0.05;
/// The share of requests that is rejected to protect the app, from which on this is bad.
const MUCH_SHED: f64 = 0.1;
/// Events that PostgreSQL does not have after this many seconds are a problem.
const LONG_LAG_S: f64 = 300.0;
/// The age in seconds of shared limits that Redis does not keep, from which on this is a problem.
const LONG_DEGRADED_S: u64 = 10;

/// The headline of `status`, which has none yet.
pub fn headline(status: &Status) -> Headline {
    let mut problems: Vec<(Level, String)> = Vec::new();
    let finders = [
        phase,
        maintenance,
        pause,
        app,
        breakers,
        errors,
        shedding,
        audit,
        saved,
        machines,
        undone,
        confirmation,
        configuration,
        queue,
        limits,
    ];
    finders.into_iter().for_each(|find| problems.extend(find(status)));
    // Stable: among equals, the order above.
    problems.sort_by_key(|(level, _)| std::cmp::Reverse(*level));
    let mut problems = problems.into_iter();
    match problems.next() {
        Some((level, text)) => Headline { level, text, others: problems.map(|(_, text)| text).collect() },
        None => Headline { level: Level::Ok, text: well(status), others: Vec::new() },
    }
}

fn well(status: &Status) -> String {
    let recent = &status.traffic.all.last_10_s;
    let tail = recent.p99_ms.map_or_else(String::new, |ms| format!(", p99 {}", duration(ms)));
    format!("All is well: {} requests/s{tail}", number(recent.requests_per_s))
}

fn phase(status: &Status) -> Option<(Level, String)> {
    (status.phase != "serving").then(|| (Level::Warn, "Outrigger shuts down: health checks fail".to_owned()))
}

fn maintenance(status: &Status) -> Option<(Level, String)> {
    let maintenance = status.maintenance.as_ref()?;
    let since = match maintenance.since {
        Some(since) => format!("since {} by an operator", time(since)),
        None => "by the configuration".to_owned(),
    };
    Some((Level::Warn, format!("Maintenance {since}: requests are refused")))
}

fn pause(status: &Status) -> Option<(Level, String)> {
    let pause = status.pause.as_ref()?;
    let waiting = match pause.waiting {
        1 => "1 request waits".to_owned(),
        waiting => format!("{waiting} requests wait"),
    };
    let (since, ends) = (time(pause.since), pause.ends.strftime("%H:%M:%S"));
    Some((Level::Warn, format!("Paused since {since} by an operator, until {ends}: {waiting}")))
}

fn app(status: &Status) -> Option<(Level, String)> {
    let app = &status.app;
    if app.is_reachable {
        return None;
    }
    let since = app.away_since.map_or_else(String::new, |at| format!(" since {}", time(at)));
    let state = app.process.as_ref().and_then(|process| process.state.as_deref());
    let process = state.filter(|state| *state != "serving").map_or_else(String::new, |state| format!(" ({state})"));
    let effect = match (app.hold_s > 0.0, app.held) {
        (false, _) => "requests fail at once".to_owned(),
        (true, 1) => "1 request waits".to_owned(),
        (true, held) => format!("{held} requests wait"),
    };
    Some((Level::Bad, format!("The app is away{since}{process}: {effect}")))
}

fn breakers(status: &Status) -> Option<(Level, String)> {
    let is_open = |breaker: &&Breaker| matches!(breaker.state.as_str(), "open" | "half_open");
    let open: Vec<&Breaker> = status.breakers.breakers.iter().filter(is_open).collect();
    let Some(first) = open.iter().find(|breaker| !breaker.is_forced).or(open.first()) else {
        let forced = status.breakers.breakers.iter().find(|breaker| breaker.is_forced)?;
        return Some((Level::Warn, format!("Breaker {:?} is forced closed: it protects nothing", forced.name)));
    };
    let since = first.since.map_or_else(String::new, |at| format!(" since {}", time(at)));
    let why = if first.is_forced {
        ": an operator forced it".to_owned()
    } else if first.calls > 0 && first.failed + first.slow > 0 {
        let (count, what) =
            if first.failed >= first.slow { (first.failed, "failed") } else { (first.slow, "were slow") };
        format!(": {count} of {} calls {what}", first.calls)
    } else {
        first.reason.as_ref().map_or_else(String::new, |reason| format!(": {}", reason.replace('_', " ")))
    };
    let more = match open.len() - 1 {
        0 => String::new(),
        more => format!("; {more} more open"),
    };
    let state = if first.state == "open" { "open" } else { "probing" };
    let level = if first.is_forced { Level::Warn } else { Level::Bad };
    Some((level, format!("Breaker {:?} is {state}{since}{why}{more}", first.name)))
}

fn errors(status: &Status) -> Option<(Level, String)> {
    let recent = &status.traffic.all.last_10_s;
    let share = share(recent.errors_per_s, recent.requests_per_s);
    if recent.requests_per_s < FEW_REQUESTS || share < SOME_ERRORS {
        return None;
    }
    let level = if share < MANY_ERRORS { Level::Warn } else { Level::Bad };
    let most = status.traffic.failures.first();
    let mostly = most.map_or_else(String::new, |most| format!(", mostly {}", most.reason.replace('_', " ")));
    Some((level, format!("The app fails: {} of requests in the last 10 s{mostly}", percent(share))))
}

fn shedding(status: &Status) -> Option<(Level, String)> {
    // The most important priority that is rejected.
    let shed = status.traffic.priorities.iter().find(|priority| priority.shed_since.is_some())?;
    let all: f64 = status.traffic.priorities.iter().map(|p| p.shed_share * p.windows.last_10_s.requests_per_s).sum();
    let is_much = share(all, status.traffic.all.last_10_s.requests_per_s) >= MUCH_SHED;
    let is_important = matches!(shed.priority.as_str(), "critical" | "high");
    let level = if is_much || is_important { Level::Bad } else { Level::Warn };
    let since = shed.shed_since.map_or_else(String::new, |at| format!(" since {}", time(at)));
    let tail = status.traffic.all.last_10_s.p99_ms.map_or_else(String::new, |ms| format!(": p99 {}", duration(ms)));
    Some((
        level,
        format!("The app is slow{tail}; shedding {} of {} priority{since}", percent(shed.shed_share), shed.priority),
    ))
}

fn audit(status: &Status) -> Option<(Level, String)> {
    let audit = status.audit.as_ref()?;
    if !audit.is_writable {
        return Some((Level::Bad, "The audit log cannot be written: see its disk".to_owned()));
    }
    if audit.alarms > 0 {
        return Some((
            Level::Warn,
            "The audit log was changed or rolled back: run `outrigger audit verify`".to_owned(),
        ));
    }
    if audit.lag_s > LONG_LAG_S {
        let minutes = audit.lag_s / 60.0;
        let text = format!("The audit log is not shipped: {} entries, {minutes:.0} minutes old", audit.unshipped);
        return Some((Level::Warn, text));
    }
    (audit.lost > 0).then(|| (Level::Warn, format!("The audit log lacks {} entries that were lost", audit.lost)))
}

fn saved(status: &Status) -> Option<(Level, String)> {
    let error = status.saved.as_ref()?.error.as_ref()?;
    Some((Level::Warn, format!("A restart would lose bans and limits: their snapshot cannot be written: {error}")))
}

fn machines(status: &Status) -> Option<(Level, String)> {
    let silent: Vec<&str> =
        status.machines.peers.iter().filter(|peer| peer.state == "silent").map(|peer| &*peer.name).collect();
    match silent.as_slice() {
        [] => None,
        [one] => Some((Level::Warn, format!("Machine {one} does not respond"))),
        [one, more @ ..] => Some((Level::Warn, format!("Machine {one} and {} more do not respond", more.len()))),
    }
}

fn undone(status: &Status) -> Option<(Level, String)> {
    let undone = status.config.undone.as_ref()?;
    let (version, at, text) = (undone.version, time(undone.at), &undone.text);
    let said = match (undone.is_kept, undone.is_in_file) {
        (true, _) => format!("Configuration {version} would have been taken back at {at}: {text}"),
        (false, true) => {
            format!(
                "Configuration {version} was taken back at {at}: {text}. The file still has it: change it before a restart"
            )
        }
        (false, false) => format!("Configuration {version} was taken back at {at}: {text}"),
    };
    Some((Level::Warn, said))
}

fn confirmation(status: &Status) -> Option<(Level, String)> {
    let until = status.config.probation.as_ref()?.confirm_until?.strftime("%H:%M:%S");
    Some((
        Level::Warn,
        format!("The configuration is taken back at {until} unless it is confirmed: `outrigger confirm`"),
    ))
}

fn configuration(status: &Status) -> Option<(Level, String)> {
    let refused = status.config.refused.as_ref()?;
    let first = refused.problems.first();
    let why = first.map_or_else(String::new, |problem| format!(": {}: {}", problem.place, problem.message));
    Some((Level::Warn, format!("The last reload was refused at {}{why}", time(refused.at))))
}

fn queue(status: &Status) -> Option<(Level, String)> {
    let concurrency = &status.concurrency;
    let is_full = concurrency.limit > 0 && concurrency.in_flight >= concurrency.limit;
    let waits = status.app.is_reachable && is_full && concurrency.queued > 0;
    waits.then(|| {
        let (queued, limit) = (concurrency.queued, concurrency.limit);
        (Level::Warn, format!("The app is busy: {queued} requests wait for one of {limit} permits"))
    })
}

fn limits(status: &Status) -> Option<(Level, String)> {
    let limits = &status.limits;
    let is_degraded = limits.sharing == "degraded" && limits.sharing_since_s >= LONG_DEGRADED_S;
    is_degraded.then(|| {
        let why = limits.sharing_reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        (Level::Warn, format!("Rate limits are not shared between Machines{why}"))
    })
}

fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// Minutes are enough for a day, and the page and the summary have the date.
pub fn time(at: Timestamp) -> String {
    at.strftime("%H:%M").to_string()
}

/// A duration, as people read it.
pub fn duration(ms: f64) -> String {
    match ms {
        _ if ms >= 10_000.0 => format!("{:.0} s", ms / 1000.0),
        _ if ms >= 1000.0 => format!("{:.1} s", ms / 1000.0),
        _ if ms >= 10.0 => format!("{ms:.0} ms"),
        _ => format!("{ms:.1} ms"),
    }
}

/// A share, as people read it.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent >= 1.0 || percent == 0.0 { format!("{percent:.0} %") } else { format!("{percent:.1} %") }
}

/// A number for each second, as people read it.
pub fn number(number: f64) -> String {
    if number >= 10.0 || number == 0.0 { format!("{number:.0}") } else { format!("{number:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::status::{
        Audit, Maintenance, Pause, PriorityTraffic, Rates, Refused, ReloadProblem, Undone, Windows,
    };

    fn at(hour: &str) -> Timestamp {
        format!("2026-11-27T{hour}:00Z").parse().unwrap()
    }

    fn calm() -> Status {
        let mut status = Status { phase: "serving".into(), ..Status::default() };
        status.app.is_reachable = true;
        status.traffic.all.last_10_s =
            Rates { requests_per_s: 312.0, p50_ms: Some(9.0), p99_ms: Some(48.2), ..Rates::default() };
        status
    }

    fn text(status: &Status) -> String {
        let Headline { level, text, others } = headline(status);
        format!("{level:?}: {text}{}", others.iter().map(|other| format!(" | {other}")).collect::<String>())
    }

    #[test]
    fn it_says_that_all_is_well() {
        assert_eq!(text(&calm()), "Ok: All is well: 312 requests/s, p99 48 ms");
        let mut idle = calm();
        idle.traffic.all.last_10_s = Rates::default();
        assert_eq!(text(&idle), "Ok: All is well: 0 requests/s");
    }

    #[test]
    fn it_names_the_worst_problem_first() {
        let mut status = calm();
        status.config.refused = Some(Refused {
            at: at("03:01"),
            count: 1,
            problems: vec![ReloadProblem {
                place: "proxy.toml:3:13".into(),
                message: "`cool_down` needs a duration with a unit, got \"30\"".into(),
                hint: None,
            }],
        });
        let refused = "The last reload was refused at 03:01: proxy.toml:3:13: `cool_down` needs a duration with a unit, got \"30\"";
        assert_eq!(text(&status), format!("Warn: {refused}"));
        status.breakers.breakers = vec![Breaker {
            name: "search".into(),
            state: "open".into(),
            since: Some(at("03:04")),
            calls: 60,
            failed: 52,
            ..Breaker::default()
        }];
        let open = "Breaker \"search\" is open since 03:04: 52 of 60 calls failed";
        assert_eq!(text(&status), format!("Bad: {open} | {refused}"));
        status.app.is_reachable = false;
        (status.app.hold_s, status.app.held, status.app.away_since) = (10.0, 40, Some(at("03:03")));
        assert_eq!(text(&status), format!("Bad: The app is away since 03:03: 40 requests wait | {open} | {refused}"));
    }

    #[test]
    fn it_says_what_is_shed_and_since_when() {
        let mut status = calm();
        status.traffic.all.last_10_s.p99_ms = Some(2100.0);
        let windows = Windows { last_10_s: Rates { requests_per_s: 20.0, ..Rates::default() }, ..Windows::default() };
        status.traffic.priorities = vec![
            PriorityTraffic { priority: "high".into(), windows, ..PriorityTraffic::default() },
            PriorityTraffic {
                priority: "low".into(),
                windows,
                shed_share: 0.12,
                shed_since: Some(at("03:04")),
                ..PriorityTraffic::default()
            },
        ];
        assert_eq!(text(&status), "Warn: The app is slow: p99 2.1 s; shedding 12 % of low priority since 03:04");
        status.traffic.priorities[0].shed_since = Some(at("03:05"));
        assert!(text(&status).starts_with("Bad: "));
    }

    #[test]
    fn a_forced_breaker_and_a_lost_audit_log_are_not_forgotten() {
        let mut status = calm();
        let forced =
            |state: &str| Breaker { name: "a".into(), state: state.into(), is_forced: true, ..Breaker::default() };
        status.breakers.breakers = vec![forced("open")];
        assert_eq!(text(&status), "Warn: Breaker \"a\" is open: an operator forced it");
        status.breakers.breakers = vec![forced("closed")];
        assert_eq!(text(&status), "Warn: Breaker \"a\" is forced closed: it protects nothing");
        status.audit = Some(Audit { is_writable: false, ..Audit::default() });
        assert!(text(&status).starts_with("Bad: The audit log cannot be written"));
    }

    #[test]
    fn pause_and_maintenance_are_problems() {
        let mut status = calm();
        status.pause = Some(Pause { since: at("03:01"), ends: at("03:02"), waiting: 12 });
        assert_eq!(text(&status), "Warn: Paused since 03:01 by an operator, until 03:02:00: 12 requests wait");
        status.pause = None;
        status.maintenance = Some(Maintenance { since: Some(at("03:01")), is_in_file: false });
        assert_eq!(text(&status), "Warn: Maintenance since 03:01 by an operator: requests are refused");
        status.maintenance = Some(Maintenance { since: None, is_in_file: true });
        assert_eq!(text(&status), "Warn: Maintenance by the configuration: requests are refused");
    }

    #[test]
    fn a_change_that_was_taken_back_is_a_problem_until_the_file_changes() {
        let mut status = calm();
        let text_of_it = "429 by rate limits: 0.2 % before, 71 % in 6 s".to_owned();
        let undone = Undone { at: at("03:01"), version: 7, text: text_of_it, is_in_file: true, ..Undone::default() };
        status.config.undone = Some(undone);
        let taken_back = "Warn: Configuration 7 was taken back at 03:01: 429 by rate limits: 0.2 % before, 71 % in 6 s";
        assert_eq!(text(&status), format!("{taken_back}. The file still has it: change it before a restart"));
        status.config.undone.as_mut().unwrap().is_in_file = false;
        assert_eq!(text(&status), taken_back);
    }

    #[test]
    fn few_errors_are_no_headline() {
        let mut status = calm();
        status.traffic.all.last_10_s.errors_per_s = 1.0;
        assert!(text(&status).starts_with("Ok: "));
        status.traffic.all.last_10_s.errors_per_s = 40.0;
        assert_eq!(text(&status), "Bad: The app fails: 13 % of requests in the last 10 s");
    }
}
