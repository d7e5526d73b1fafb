//! The failed requests of well-behaved clients: each one with its reason, and where its Machines' logs mention it.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::load::{End, Outcome};
use crate::numbers::well_behaved;
use crate::script::{Script, clock};
use crate::side::Side;

/// How a request ended, for people.
pub fn how(end: &End) -> String {
    match end {
        End::Good => "good".to_owned(),
        End::Answered(status, by) => format!("{status} by {by}"),
        End::Late => "no response within the client's timeout".to_owned(),
        End::Broken => "connection broke".to_owned(),
    }
}

/// The same with the reason in the response: the name of Outrigger's problem type, or the edge's code.
pub fn why(outcome: &Outcome) -> String {
    let end = how(&outcome.end);
    let reason = reason(&outcome.words);
    if reason.is_empty() { end } else { format!("{end}: {reason}") }
}

fn reason(words: &str) -> String {
    if let Ok(problem) = serde_json::from_str::<Value>(words) {
        let kind = problem["type"].as_str().unwrap_or_default();
        return kind.rsplit(['#', ':', '/']).next().unwrap_or_default().to_owned();
    }
    // The edge's code is in upper case, and what the app says is not.
    let first = words.split(' ').next().unwrap_or_default();
    let is_code = first.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
    if is_code { first.to_owned() } else { String::new() }
}

/// The failed requests of well-behaved clients, ordered by time.
fn failed(side: &Side) -> Vec<&Outcome> {
    let mut failed: Vec<&Outcome> = well_behaved(&side.outcomes).filter(|outcome| !outcome.is_good()).collect();
    failed.sort_by_key(|outcome| outcome.arrival.at);
    failed
}

/// Their number by fault, kind and reason, most first, for the terminal.
pub fn summary(side: &Side, script: &Script) -> String {
    let mut counts: BTreeMap<[String; 3], usize> = BTreeMap::new();
    for outcome in failed(side) {
        let fault = script.during(outcome.arrival.at, outcome.ended());
        *counts.entry([fault.to_owned(), outcome.arrival.kind.name().to_owned(), why(outcome)]).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let lines = counts.iter().map(|([fault, kind, why], count)| format!("\n  {count:6}  {fault:17} {kind:8} {why}"));
    lines.collect()
}

/// One per line, with what the proxies' logs in this directory say of it.
pub fn table(side: &Side, script: &Script, logs: &Path) -> String {
    let failed = failed(side);
    let mut mentioned = mentions(logs, failed.iter().map(|outcome| outcome.request_id.as_str()));
    let mut text = "time\tms\tfault\tkind\tclient\tend\trequest id\twords\tlogs\n".to_owned();
    for outcome in failed {
        let Outcome { arrival, latency, request_id, words, .. } = outcome;
        let _ = writeln!(
            text,
            "{}\t{}\t{}\t{}\t{}\t{}\t{request_id}\t{words}\t{}",
            clock(arrival.at),
            latency.as_millis(),
            script.during(arrival.at, outcome.ended()),
            arrival.kind.name(),
            arrival.client,
            why(outcome),
            mentioned.remove(request_id.as_str()).unwrap_or_default(),
        );
    }
    text
}

/// What the logs say of each of these requests, in the order of their times.
fn mentions<'a>(logs: &Path, ids: impl Iterator<Item = &'a str>) -> HashMap<&'a str, String> {
    let mut found: HashMap<&str, Vec<(String, String)>> =
        ids.filter(|id| !id.is_empty()).map(|id| (id, Vec::new())).collect();
    let files = fs::read_dir(logs).into_iter().flatten().flatten().map(|entry| entry.path());
    for file in files {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(machine) = name.strip_suffix("-outrigger.log") else { continue };
        let text = fs::read(&file).unwrap_or_default();
        for line in String::from_utf8_lossy(&text).lines() {
            // Cheaper than parsing each line.
            let id = line.split_once("\"request_id\":\"").and_then(|(_, rest)| rest.split('"').next());
            let Some(into) = id.and_then(|id| found.get_mut(id)) else { continue };
            if let Some((time, words)) = mention(line) {
                into.push((time, format!("{machine} {words}")));
            }
        }
    }
    let joined = |(id, mut all): (&'a str, Vec<(String, String)>)| {
        all.sort();
        (id, all.into_iter().map(|(_, words)| words).collect::<Vec<_>>().join("; "))
    };
    found.into_iter().map(joined).collect()
}

/// Time and content of a line of the log.
fn mention(line: &str) -> Option<(String, String)> {
    let line: Value = serde_json::from_str(line).ok()?;
    let text = |key: &str| line[key].as_str().unwrap_or_default();
    let words = if text("message") == "request" {
        format!(
            "{} {} after {} ms, {} ms of them queued, {} attempts",
            line["status"],
            if text("reason").is_empty() { text("outcome") } else { text("reason") },
            line["duration_ms"],
            line["queue_ms"],
            line["attempts"]
        )
    } else {
        text("message").to_owned()
    };
    Some((text("timestamp").to_owned(), words))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::tests::outcome;
    use crate::report::tests::side;
    use crate::side::Form;

    const BUSY: &str = "{\"type\":\"https://iana.org/assignments/http-problem-types#temporary-reduced-capacity\"}";

    #[test]
    fn a_reason_is_the_problem_type_or_the_edges_code() {
        assert_eq!(reason(BUSY), "temporary-reduced-capacity");
        assert_eq!(reason("{\"type\":\"urn:outrigger:problem:app-closed\"}"), "app-closed");
        assert_eq!(reason("PU02 the request began and did not complete"), "PU02");
        assert_eq!(reason("busy"), "");
    }

    #[test]
    fn failed_requests_are_listed_and_counted_with_their_faults_and_logs() {
        let mut one = side(Form::One, 0, 10);
        one.outcomes.truncate(1);
        for _ in 0..2 {
            one.outcomes.push(Outcome { words: "PU02 x".into(), ..outcome(12.2, 7, End::Answered(502, "the edge")) });
        }
        let logs = std::env::temp_dir().join(format!("outrigger-experiment-failures-{}", std::process::id()));
        fs::create_dir_all(&logs).unwrap();
        let log = "{\"timestamp\":\"2\",\"message\":\"request\",\"request_id\":\"01ABC-ams\",\"status\":503,\"outcome\":\"rejected\",\
                   \"reason\":\"busy\",\"duration_ms\":4.5,\"queue_ms\":4.0,\"attempts\":0}\n\
                   {\"timestamp\":\"1\",\"message\":\"hm\",\"request_id\":\"01ABC-ams\"}\n{\"request_id\":\"other\"}\n";
        fs::write(logs.join("m02-outrigger.log"), log).unwrap();
        let text = table(&one, &Script::hour(), &logs);
        fs::remove_dir_all(&logs).unwrap();
        assert_eq!(
            text.lines().nth(1),
            Some(
                "03:03\t7\tMachine killed\tread\t1\t502 by the edge: PU02\t01ABC-ams\tPU02 x\tm02 hm; m02 503 busy after 4.5 ms, \
                 4.0 ms of them queued, 0 attempts"
            )
        );
        assert_eq!(text.lines().count(), 3);
        assert_eq!(summary(&one, &Script::hour()), "\n       2  Machine killed    read     502 by the edge: PU02");
    }
}
