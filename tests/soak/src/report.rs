//! The figures of `docs/soak.md`; the rest of it is written by hand.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::faults::Fault;
use crate::hangs::{BETWEEN, Hangs, LASTS, MOST_ATTEMPTS};
use crate::judge::Kind;
use crate::slope::percentile;
use crate::soak::{Series, Soak, WARM_UP};
use crate::traffic::Failed;

/// Where the figures of each are, in the document.
pub const SOAK: (&str, &str) = ("<!-- figures of the soak -->", "<!-- end of the soak -->");
pub const HANGS: (&str, &str) = ("<!-- figures of the hangs -->", "<!-- end of the hangs -->");

/// The document with other figures in this place. `None` without the place.
pub fn replaced(document: &str, (begin, end): (&str, &str), figures: &str) -> Option<String> {
    let (before, rest) = document.split_once(begin)?;
    let (_, after) = rest.split_once(end)?;
    Some(format!("{before}{begin}\n\n{}\n\n{end}{after}", figures.trim()))
}

/// A few lines for the terminal: what is wrong, or that nothing is.
pub fn summary(soak: &Soak) -> String {
    let mut text = format!(
        "{} requests and sessions, {} messages; {} faults; {} failed as documented, {} unexpectedly; CPU {:.0} %",
        soak.results.total(),
        soak.results.messages,
        soak.happened.len(),
        soak.results.failed.len() - soak.unexpected(),
        soak.unexpected(),
        100.0 * mean(soak.busy.iter().map(|busy| busy.1)),
    );
    for (one, _) in soak.failed().iter().filter(|(_, is_expected)| !is_expected).take(20) {
        let _ = write!(text, "\n  {} ({})", failed(one), soak.during(one.from, one.to));
    }
    for series in soak.growing() {
        let _ = write!(text, "\n  {} grows: {}", series.name, growth(series));
    }
    for wrong in &soak.wrong {
        let _ = write!(text, "\n  {wrong}");
    }
    text + if soak.passes() { "\npassed" } else { "\nfailed" }
}

/// A failed request in one line.
pub fn failed(one: &Failed) -> String {
    let (from, took) = (one.from.as_secs_f64(), (one.to - one.from).as_secs_f64());
    format!("{from:.1} s, for {took:.2} s: {} {}: {}", one.kind.name(), one.request, one.failure)
}

/// Every failed request, one per line.
pub fn failures(soak: &Soak) -> String {
    let mut text = "s\tms\texpected\tfault\tkind\trequest\tfailure\n".to_owned();
    for (one, is_expected) in soak.failed() {
        let (from, took) = (one.from.as_secs_f64(), (one.to - one.from).as_millis());
        let (fault, kind) = (soak.during(one.from, one.to), one.kind.name());
        let expected = if is_expected { "yes" } else { "no" };
        let _ = writeln!(text, "{from:.3}\t{took}\t{expected}\t{fault}\t{kind}\t{}\t{}", one.request, one.failure);
    }
    text
}

/// The figures of the soak.
pub fn soak(soak: &Soak) -> String {
    let mut text = String::new();
    let minutes = soak.length.as_secs_f64() / 60.0;
    let verdict = if soak.passes() { "passed" } else { "**failed**" };
    let _ = write!(
        text,
        "| | |\n|---|---|\n\
         | verdict | {verdict} |\n\
         | length, seed | {minutes:.0} min, {} |\n\
         | requests, sessions and streams | {} ({:.0} per second) |\n\
         | messages and events checked | {} |\n\
         | faults | {} |\n\
         | failed unexpectedly | {} |\n\
         | failed as documented | {} |\n\
         | sent again by the client, since the proxy had not processed them | {} |\n\
         | orders executed twice, or not at all | {} |\n\
         | CPU of the whole computer, mean and maximum | {:.0} %, {:.0} % |\n\n",
        soak.seed,
        soak.results.total(),
        soak.results.total() as f64 / soak.length.as_secs_f64(),
        soak.results.messages,
        soak.happened.len(),
        soak.unexpected(),
        soak.results.failed.len() - soak.unexpected(),
        soak.results.resent,
        soak.wrong.iter().filter(|wrong| wrong.contains(" orders ")).count(),
        100.0 * mean(soak.busy.iter().map(|busy| busy.1)),
        100.0 * soak.busy.iter().map(|busy| busy.1).fold(0.0, f64::max),
    );
    if !soak.wrong.is_empty() {
        text.push_str("Wrong at the end:\n\n");
        for wrong in &soak.wrong {
            let _ = writeln!(text, "- {}", wrong.lines().next().unwrap_or_default());
        }
        text.push('\n');
    }
    requests(&mut text, soak);
    failures_by_cause(&mut text, soak);
    faults(&mut text, soak);
    slopes(&mut text, soak);
    let _ = write!(text, "The proxies, together: {}.\n\n", mechanisms(&soak.counters));
    text.push_str(
        "![memory](soak/memory.png)\n\n![descriptors](soak/descriptors.png)\n\n![threads](soak/threads.png)\n\n\
         ![p50](soak/p50.png)\n\n![p99](soak/p99.png)\n",
    );
    text
}

fn requests(text: &mut String, soak: &Soak) {
    text.push_str("| traffic | requests | failed unexpectedly | failed as documented | latency | p50 | p99 |\n");
    text.push_str("|---|---|---|---|---|---|---|\n");
    let failed = soak.failed();
    for kind in Kind::ALL {
        let of_kind = |expected: bool| failed.iter().filter(|(one, is)| one.kind == kind && *is == expected).count();
        let number = soak.results.requests.get(&kind).copied().unwrap_or_default();
        let mut latencies: Vec<f64> =
            soak.results.latencies.get(&kind).into_iter().flatten().map(|point| point.1).collect();
        latencies.sort_unstable_by(f64::total_cmp);
        let ms = |percent: f64| {
            if latencies.is_empty() { "–".to_owned() } else { format!("{:.1} ms", percentile(&latencies, percent)) }
        };
        let _ = writeln!(
            text,
            "| {} | {number} | {} | {} | {} | {} | {} |",
            kind.name(),
            of_kind(false),
            of_kind(true),
            kind.latency(),
            ms(50.0),
            ms(99.0)
        );
    }
    text.push('\n');
}

fn failures_by_cause(text: &mut String, soak: &Soak) {
    let mut causes: BTreeMap<(bool, &str, String, &str), usize> = BTreeMap::new();
    for (one, is_expected) in soak.failed() {
        let during = soak.during(one.from, one.to);
        *causes.entry((is_expected, one.kind.name(), one.failure.to_string(), during)).or_default() += 1;
    }
    if causes.is_empty() {
        return;
    }
    text.push_str("| failed | traffic | how | fault at the time | |\n|---|---|---|---|---|\n");
    for ((is_expected, kind, how, during), number) in causes {
        let expected = if is_expected { "as documented" } else { "**unexpectedly**" };
        let _ = writeln!(text, "| {expected} | {kind} | {how} | {during} | {number} |");
    }
    text.push('\n');
}

fn faults(text: &mut String, soak: &Soak) {
    text.push_str("| fault | times |\n|---|---|\n");
    for name in Fault::NAMES {
        let number = soak.happened.iter().filter(|happened| happened.fault.name() == name).count();
        let _ = writeln!(text, "| {name} | {number} |");
    }
    text.push('\n');
}

fn slopes(text: &mut String, soak: &Soak) {
    let measured = soak.length.as_secs_f64() * (1.0 - WARM_UP) / 60.0;
    let _ = writeln!(
        text,
        "| growth in {measured:.1} min | mean | growth | its confidence interval | accepted in any case | |\n\
         |---|---|---|---|---|---|"
    );
    for series in &soak.series {
        let Some(trend) = series.trend else {
            let _ = writeln!(text, "| {} | | | | | too few values |", series.name);
            continue;
        };
        let accepted = (series.allowance.share * trend.mean.abs()).max(series.allowance.floor);
        let _ = writeln!(
            text,
            "| {} | {} | {:+.2} | {:+.2} to {:+.2} | {accepted:.2} | {} |",
            series.name,
            with_unit(trend.mean, series.unit),
            trend.growth,
            trend.interval.0,
            trend.interval.1,
            match (soak.is_judged(), series.grows()) {
                (false, _) => "too short to say",
                (true, true) => "**grows**",
                (true, false) => "flat",
            },
        );
    }
    text.push('\n');
}

fn with_unit(value: f64, unit: &str) -> String {
    format!("{value:.1} {unit}").trim_end().to_owned()
}

fn growth(series: &Series) -> String {
    series.trend.map_or_else(String::new, |trend| {
        let (least, most) = trend.interval;
        format!("by {:.2} ({least:.2} to {most:.2}) {}, mean {:.2}", trend.growth, series.unit, trend.mean)
    })
}

/// How often each mechanism was used.
fn mechanisms(counters: &BTreeMap<String, f64>) -> String {
    const NAMES: [(&str, &str); 9] = [
        ("retries", "outrigger_app_retries_total"),
        ("retries without budget", "outrigger_app_retries_denied_total"),
        ("attempts overdue", "outrigger_app_attempts_overdue_total"),
        ("hedged requests", "outrigger_hedges_total"),
        ("of these won", "outrigger_hedges_won_total"),
        ("hedges without budget", "outrigger_hedges_denied_total"),
        ("requests to peers", "outrigger_peer_requests_total"),
        ("requests held", "outrigger_held_requests_total"),
        ("rejections", "outrigger_rejections_total"),
    ];
    let number = |name: &str| counters.get(name).copied().unwrap_or_default();
    let all: Vec<String> = NAMES.iter().map(|(words, name)| format!("{words} {:.0}", number(name))).collect();
    let reloads =
        ["applied", "refused"].map(|result| number(&format!("outrigger_config_reloads_total{{result=\"{result}\"}}")));
    format!(
        "{}, reloads {:.0} and {:.0} refused, {:.0} taken back",
        all.join(", "),
        reloads[0],
        reloads[1],
        number("outrigger_config_rollbacks_total")
    )
}

/// The figures of the hangs.
pub fn hangs(hangs: &Hangs) -> String {
    let [repeatable, others] = [true, false].map(|is_repeatable| {
        let [p50, p99, most] = hangs.percentiles(is_repeatable);
        format!("{p50:.1} ms, {p99:.0} ms, {most:.0} ms")
    });
    let verdict = if hangs.passes() { "passed" } else { "**failed**" };
    let rest = format!("{} to {} s, with {} to {} s between", LASTS.0, LASTS.1, BETWEEN.0, BETWEEN.1);
    format!(
        "| | |\n|---|---|\n\
         | verdict | {verdict} |\n\
         | hangs of one app of three, seed | {} of {rest}; {} |\n\
         | length | {:.0} min |\n\
         | GET and PUT | {} ({:.0} requests per second in all) |\n\
         | of these failed within the client's timeout | {} (must be 0) |\n\
         | POST | {} |\n\
         | of these failed | {} (must be 0) |\n\
         | orders executed twice | {} (must be 0) |\n\
         | attempts at all apps | {} |\n\
         | for each request | {:.4} (at most {MOST_ATTEMPTS}) |\n\
         | latency of GET and PUT: p50, p99, maximum | {repeatable} |\n\
         | latency of POST | {others} |\n\n\
         The proxies, together: {}.\n",
        hangs.number,
        hangs.seed,
        hangs.length.as_secs_f64() / 60.0,
        hangs.requests(true),
        hangs.results.total() as f64 / hangs.length.as_secs_f64(),
        hangs.failed(true),
        hangs.requests(false),
        hangs.failed(false),
        hangs.twice,
        hangs.attempts(),
        hangs.attempts_per_request(),
        mechanisms(&hangs.counters),
    )
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let number = values.len().max(1) as f64;
    values.sum::<f64>() / number
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::Failure;
    use crate::soak::tests::{failure, soak as found};

    const DOCUMENT: &str = include_str!("../../../docs/soak.md");

    #[test]
    fn the_figures_replace_those_before_and_no_other_text() {
        let once = replaced(DOCUMENT, SOAK, "| a | b |").unwrap();
        assert!(once.contains("\n| a | b |\n") && once.contains(HANGS.0));
        let twice = replaced(&once, SOAK, "| c | d |").unwrap();
        assert!(!twice.contains("| a | b |"));
        assert_eq!(replaced(&twice, SOAK, "| a | b |").unwrap(), once);
        assert!(replaced(&once, HANGS, "| e | f |").unwrap().contains("| a | b |"));
        assert_eq!(replaced("no place", SOAK, ""), None);
    }

    #[test]
    fn the_figures_say_what_failed_and_what_grows() {
        let late = failure(Kind::Get, 50, Failure::Late);
        let text = soak(&found(4.0, vec![late]));
        assert!(text.contains("| verdict | **failed** |"), "{text}");
        assert!(text.contains("| failed unexpectedly | 1 |"), "{text}");
        assert!(text.contains("| **unexpectedly** | GET, kept connection | no response within the client's timeout |"));
        let row = text.lines().find(|line| line.starts_with("| memory of proxy a")).unwrap();
        assert!(row.ends_with("| **grows** |"), "{row}");
        assert_eq!(text.matches("**grows**").count(), 1);
        assert!(summary(&found(4.0, Vec::new())).contains("memory of proxy a grows"));
        assert!(summary(&found(0.0, Vec::new())).ends_with("\npassed"));
    }

    #[test]
    fn each_failure_is_listed_with_its_fault() {
        let closed = failure(Kind::Post, 101, Failure::Rejected(502, "app-closed".to_owned()));
        let text = failures(&found(0.0, vec![closed]));
        let row = text.lines().nth(1).unwrap();
        assert!(row.starts_with("101.000\t5\tyes\tapp killed"), "{row}");
        assert!(row.ends_with("POST\t/orders/1\t502 app-closed"), "{row}");
    }
}
