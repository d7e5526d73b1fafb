//! The scaling rules of `config/autoscaler/`: the number of Machines that fly-autoscaler would choose, hour by hour.
//!
//! The queries come from the file itself. They become recording rules, the two expressions become PromQL, and promtool
//! evaluates them over synthetic hours of Fly's and Outrigger's metrics.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use xtask::{Process, Program, Tool, http};
use yaml_rust2::{Yaml, YamlLoader};

use crate::harness::{PATIENCE, fresh_dir};
use crate::house::local;
use crate::promtool;

/// Every key that fly-autoscaler 0.3 reads; it rejects a file with any other.
const KEYS: [&str; 18] = [
    "app-name",
    "org",
    "regions",
    "process-group",
    "created-machine-count",
    "min-created-machine-count",
    "max-created-machine-count",
    "initial-machine-state",
    "started-machine-count",
    "min-started-machine-count",
    "max-started-machine-count",
    "concurrency",
    "interval",
    "timeout",
    "app-list-refresh-interval",
    "api-token",
    "verbose",
    "metric-collectors",
];
/// The same for a collector of type `prometheus`.
const COLLECTOR_KEYS: [&str; 5] = ["type", "metric-name", "query", "address", "token"];

/// Fly's scrape interval.
const SCRAPE_SECONDS: usize = 15;
const SCRAPES_A_MINUTE: usize = 60 / SCRAPE_SECONDS;

fn text() -> String {
    let path = xtask::paths::root().join("config/autoscaler/fly-autoscaler.yml");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn file() -> Yaml {
    YamlLoader::load_from_str(&text()).unwrap().remove(0)
}

/// Name and query of each collector.
fn collectors(file: &Yaml) -> Vec<(String, String)> {
    let all = file["metric-collectors"].as_vec().unwrap();
    let text = |collector: &Yaml, key: &str| collector[key].as_str().unwrap().to_owned();
    all.iter().map(|collector| (text(collector, "metric-name"), text(collector, "query"))).collect()
}

fn unknown_keys(table: &Yaml, known: &[&str]) -> Vec<String> {
    let keys = table.as_hash().unwrap().keys().map(|key| key.as_str().unwrap().to_owned());
    keys.filter(|key| !known.contains(&key.as_str())).collect()
}

/// Translates an expression of `max`, `min`, numbers and collectors' names to PromQL.
///
/// # Errors
/// Anything else: Expr has much more, which could not be tested here.
fn in_promql(expression: &str) -> Result<String, String> {
    let (promql, rest) = term(expression)?;
    if rest.trim().is_empty() { Ok(promql) } else { Err(format!("{rest:?} is left over")) }
}

fn term(text: &str) -> Result<(String, &str), String> {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    let (word, mut rest) = text.split_at(end);
    if word.is_empty() {
        return Err(format!("expected a number or a name, found {text:?}"));
    }
    let Some(arguments) = rest.strip_prefix('(') else {
        let is_number = word.chars().all(|c| c.is_ascii_digit());
        return Ok((if is_number { format!("vector({word})") } else { format!("autoscaler:{word}") }, rest));
    };
    // A lower bound is the greater of two values, and the reverse.
    let bound = match word {
        "max" => "clamp_min",
        "min" => "clamp_max",
        other => return Err(format!("{other} is neither max nor min")),
    };
    let mut promql = String::new();
    rest = arguments;
    loop {
        let (argument, after) = term(rest)?;
        promql = if promql.is_empty() { argument } else { format!("{bound}({promql}, scalar({argument}))") };
        let after = after.trim_start();
        if let Some(end) = after.strip_prefix(')') {
            return Ok((promql, end));
        }
        rest = after.strip_prefix(',').ok_or_else(|| format!("expected `,` or `)`, found {after:?}"))?;
    }
}

/// The file as recording rules: each collector, the two counts, and the resulting number of Machines.
fn rules() -> Value {
    let file = file();
    let mut rules: Vec<Value> = collectors(&file)
        .iter()
        .map(|(name, query)| json!({"record": format!("autoscaler:{name}"), "expr": query}))
        .collect();
    for (name, key) in [("at_least", "min-started-machine-count"), ("at_most", "max-started-machine-count")] {
        let promql = in_promql(file[key].as_str().unwrap()).unwrap();
        rules.push(json!({"record": format!("autoscaler:{name}"), "expr": promql}));
    }
    let started = "(count(fly_instance_up{app=\"outrigger\"}) or vector(0))";
    let wanted = format!("clamp_max(clamp_min({started}, scalar(autoscaler:at_least)), scalar(autoscaler:at_most))");
    rules.push(json!({"record": "autoscaler:wanted", "expr": wanted}));
    json!({"groups": [{"name": "autoscaler", "rules": rules}]})
}

/// The Machines' load for some minutes.
#[derive(Clone, Copy, Debug)]
struct Phase {
    minutes: usize,
    machines: usize,
    /// Share of all processors that is busy; `None`: Fly's processor metrics are missing; NaN: they do not change.
    cpu: Option<f64>,
    /// NaN: memory of size zero.
    memory: Option<f64>,
    /// `None`: Outrigger's metrics are missing.
    requests: Option<Requests>,
}

/// Requests per Machine.
#[derive(Clone, Copy, Debug)]
struct Requests {
    per_second: f64,
    /// Response time of this share of them; the others take 30 ms.
    seconds: f64,
    share: f64,
}

/// Two Machines for this long, with little load.
fn quiet(minutes: usize) -> Phase {
    Phase { minutes, machines: 2, cpu: Some(0.2), memory: Some(0.3), requests: Some(answering_in(0.03)) }
}

/// All of them take this long.
fn answering_in(seconds: f64) -> Requests {
    Requests { per_second: 20.0, seconds, share: 1.0 }
}

impl Phase {
    fn machines(self, machines: usize) -> Self {
        Self { machines, ..self }
    }

    fn cpu(self, cpu: f64) -> Self {
        Self { cpu: Some(cpu), ..self }
    }

    fn memory(self, memory: f64) -> Self {
        Self { memory: Some(memory), ..self }
    }

    /// Every request takes this long.
    fn answers_in(self, seconds: f64) -> Self {
        Self { requests: Some(answering_in(seconds)), ..self }
    }
}

/// Samples, one scrape after the other.
#[derive(Default)]
struct Series(Vec<(String, String, bool)>);

impl Series {
    /// Adds the value of a scrape, or marks a series as gone.
    fn push(&mut self, scrape: usize, name: &str, value: Option<f64>) {
        let index = self.0.iter().position(|(known, ..)| known == name).unwrap_or_else(|| {
            self.0.push((name.to_owned(), "_ ".repeat(scrape), false));
            self.0.len() - 1
        });
        let (_, values, was_there) = &mut self.0[index];
        match value {
            Some(value) => write!(values, "{value} ").unwrap(),
            None if *was_there => values.push_str("stale "),
            None => values.push_str("_ "),
        }
        *was_there = value.is_some();
    }
}

/// Some of Outrigger's buckets: promtool loads at most 10,000 samples for a query.
const BUCKETS: [&str; 7] = ["0.05", "0.25", "0.5", "1", "2.5", "10", "+Inf"];

/// The series of these hours in promtool's format. Every Machine has two processors.
fn series(phases: &[Phase]) -> Value {
    let mut series = Series::default();
    // Another app of the organisation, whose Machines do not count.
    let most = phases.iter().map(|phase| phase.machines).max().unwrap_or_default();
    let (mut scrape, mut busy, mut idle, mut buckets) = (0, 0.0, 0.0, [0.0; BUCKETS.len()]);
    for phase in phases {
        for _ in 0..phase.minutes * SCRAPES_A_MINUTE {
            if let Some(cpu) = phase.cpu.filter(|cpu| !cpu.is_nan()) {
                busy += cpu * 100.0 * SCRAPE_SECONDS as f64;
                idle += (1.0 - cpu) * 100.0 * SCRAPE_SECONDS as f64;
            }
            if let Some(Requests { per_second, seconds, share }) = phase.requests {
                for (bucket, bound) in buckets.iter_mut().zip(BUCKETS) {
                    let share = if bound.parse::<f64>().unwrap() >= seconds { 1.0 } else { 1.0 - share };
                    *bucket += share * per_second * SCRAPE_SECONDS as f64;
                }
            }
            series.push(scrape, "fly_instance_up{app=\"other\",instance=\"0\"}", Some(1.0));
            series.push(scrape, "fly_instance_cpu{app=\"other\",instance=\"0\",mode=\"user\"}", Some(busy + idle));
            for machine in 0..most {
                let is_up = machine < phase.machines;
                let mut push = |name: &str, labels: &str, value: Option<f64>| {
                    let name = format!("{name}{{app=\"outrigger\",instance=\"{machine}\"{labels}}}");
                    series.push(scrape, &name, value.filter(|_| is_up));
                };
                push("fly_instance_up", "", Some(1.0));
                for processor in 0..2 {
                    let labels = |mode: &str| format!(",cpu_id=\"{processor}\",mode=\"{mode}\"");
                    push("fly_instance_cpu", &labels("user"), phase.cpu.map(|_| busy));
                    push("fly_instance_cpu", &labels("idle"), phase.cpu.map(|_| idle));
                }
                let size = if phase.memory.is_some_and(f64::is_nan) { 0.0 } else { 1e9 };
                push("fly_instance_memory_mem_total", "", phase.memory.map(|_| size));
                let available = |memory: f64| if memory.is_nan() { 0.0 } else { (1.0 - memory) * size };
                push("fly_instance_memory_mem_available", "", phase.memory.map(available));
                push("outrigger_build_info", ",process=\"proxy\",version=\"0.1.0\"", phase.requests.map(|_| 1.0));
                // Health checks are slow and rejections fast: neither may count.
                for (route, outcome) in [("default", "success"), ("health", "success"), ("default", "rejected")] {
                    let labels = format!(",process=\"proxy\",route=\"{route}\",outcome=\"{outcome}\"");
                    let is_counted = route == "default" && outcome == "success";
                    let last = buckets[BUCKETS.len() - 1];
                    // An app without requests so far has no such series.
                    let known = phase.requests.filter(|_| last > 0.0);
                    for (count, bound) in buckets.iter().zip(BUCKETS) {
                        let other = if (bound == "+Inf") || (outcome == "rejected") { last } else { 0.0 };
                        let count = if is_counted { *count } else { other };
                        let bucket = format!("{labels},le=\"{bound}\"");
                        push("outrigger_request_duration_seconds_bucket", &bucket, known.map(|_| count));
                    }
                    push("outrigger_request_duration_seconds_count", &labels, known.map(|_| last));
                }
            }
            scrape += 1;
        }
    }
    series.0.into_iter().map(|(series, values, _)| json!({"series": series, "values": values.trim_end()})).collect()
}

/// Plays these phases, and checks the wanted number of Machines at these minutes, given the number at that time. At every
/// minute, every collector must return exactly one number, or fly-autoscaler would skip the round.
#[track_caller]
fn wants(phases: &[Phase], expected: &[(usize, usize)]) {
    play(phases, "autoscaler:wanted", expected);
}

#[track_caller]
fn play(phases: &[Phase], what: &str, expected: &[(usize, usize)]) {
    let minutes: usize = phases.iter().map(|phase| phase.minutes).sum();
    assert!(expected.iter().all(|(minute, _)| *minute < minutes), "nothing is known of later than minute {minutes}");
    let one = |expr: &str, minute: usize, value: f64| json!({"expr": expr, "eval_time": format!("{minute}m"), "exp_samples": [{"labels": "{}", "value": value}]});
    let mut tests: Vec<Value> =
        expected.iter().map(|(minute, count)| one(&format!("{what} + 0"), *minute, *count as f64)).collect();
    let all = "{__name__=~\"autoscaler:(cpu|memory|latency|keep|at_least|at_most)\"}";
    // The comparison drops NaN. Series without the counted label have an empty one.
    let last = minutes - 1;
    let sound = format!("min_over_time((count({all} >= 0 < 1000) or vector(0))[{last}m:1m])");
    tests.push(one(&sound, last, 6.0));
    let labelled =
        format!("max_over_time((count({{__name__=~\"autoscaler:.*\",app!=\"\"}}) or vector(0))[{last}m:1m])");
    tests.push(one(&labelled, last, 0.0));
    let test = json!({
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [{"interval": format!("{SCRAPE_SECONDS}s"), "input_series": series(phases), "promql_expr_test": tests}],
    });
    let dir = fresh_dir();
    fs::write(dir.join("rules.yml"), rules().to_string()).unwrap();
    let file = dir.join("test.yml");
    fs::write(&file, test.to_string()).unwrap();
    if let Err(e) = promtool::test_rules(&file) {
        panic!("{e}\nin {}, with {phases:#?}", file.display());
    }
}

#[test]
fn every_key_is_one_that_fly_autoscaler_reads() {
    let file = file();
    assert_eq!(unknown_keys(&file, &KEYS), Vec::<String>::new());
    for collector in file["metric-collectors"].as_vec().unwrap() {
        assert_eq!(unknown_keys(collector, &COLLECTOR_KEYS), Vec::<String>::new());
        assert_eq!(collector["type"].as_str(), Some("prometheus"));
        assert_eq!(collector["address"].as_str(), Some("https://api.fly.io/prometheus/MY_ORG"));
    }
    // A minimum needs a maximum of the same kind, and neither goes with a single count.
    let counts = KEYS.iter().filter(|key| key.ends_with("machine-count") && !file[**key].is_badvalue());
    assert_eq!(counts.collect::<Vec<_>>(), [&"min-started-machine-count", &"max-started-machine-count"]);
}

#[test]
fn a_key_that_does_not_exist_is_found() {
    let file = YamlLoader::load_from_str("app-name: a\nmax-machines: 10\n").unwrap().remove(0);
    assert_eq!(unknown_keys(&file, &KEYS), ["max-machines"]);
}

/// The file is expanded like shell text before it is parsed: text after a dollar sign disappears.
#[test]
fn only_the_token_comes_from_the_environment() {
    let text = text();
    let expanded: Vec<&str> = text.lines().filter(|line| line.contains('$')).map(str::trim).collect();
    assert_eq!(expanded, vec!["token: \"${FAS_PROMETHEUS_TOKEN}\""; collectors(&file()).len()]);
}

#[test]
fn the_rules_are_for_the_app_that_fly_toml_deploys() {
    let fly = fs::read_to_string(xtask::paths::root().join("fly.toml")).unwrap();
    let fly: toml::Table = fly.parse().unwrap();
    let app = fly["app"].as_str().unwrap();
    let file = file();
    assert_eq!(file["app-name"].as_str(), Some(app));
    for (name, query) in collectors(&file) {
        let selectors = query.matches('{').count();
        assert_eq!(query.matches(&format!("{{app=\"{app}\"")).count(), selectors, "{name} asks for other apps as well");
    }
    assert_eq!(fly["http_service"]["auto_stop_machines"].as_str(), Some("off"), "or both stop what the other starts");
}

/// fly-autoscaler treats an instant query with a scalar result as an error. `and` takes vectors only.
#[test]
fn every_query_gives_a_vector_and_prometheus_takes_it() {
    let guarded: Vec<Value> = collectors(&file())
        .iter()
        .map(|(name, query)| json!({"record": format!("guarded:{name}"), "expr": format!("({query}) and vector(1)")}))
        .collect();
    let rules = fresh_dir().join("rules.yml");
    fs::write(&rules, json!({"groups": [{"name": "guarded", "rules": guarded}]}).to_string()).unwrap();
    promtool::check_rules(&rules).unwrap();
}

#[test]
fn expressions_are_translated_to_promql_or_rejected() {
    let max = in_promql("max(2, min(10, cpu))").unwrap();
    assert_eq!(max, "clamp_min(vector(2), scalar(clamp_max(vector(10), scalar(autoscaler:cpu))))");
    for wrong in ["ceil(cpu)", "max(2, cpu", "max(2, cpu) + 1", "cpu > 2 ? 3 : 4", "max()", ""] {
        assert!(in_promql(wrong).is_err(), "{wrong}");
    }
}

/// Phases, and the number of Machines wanted at these minutes.
type Hours = (Vec<Phase>, Vec<(usize, usize)>);

fn busy_processors() -> Hours {
    let busy = quiet(0).cpu(0.9);
    let phases = [
        quiet(20),
        Phase { minutes: 10, ..busy },
        // The third has started: 1.8 Machines' work on three.
        Phase { minutes: 40, ..busy }.machines(3).cpu(0.6),
        // Work for less than one: 15 minutes later one fewer is enough, one at a time.
        quiet(30).machines(3).cpu(0.1),
    ];
    (phases.to_vec(), vec![(19, 2), (24, 2), (28, 3), (29, 3), (35, 3), (50, 3), (69, 3), (80, 3), (88, 2), (99, 2)])
}

fn full_memory() -> Hours {
    let phases = [
        quiet(20),
        quiet(8).memory(0.9),
        quiet(12).memory(0.9).machines(3),
        quiet(20).machines(4),
        quiet(20).machines(3),
    ];
    // The third started at minute 28 and does not help; the fourth is wanted after the third has run for five minutes. Memory
    // is fine from minute 40 on, so one fewer at 55; that happens at 60, and the next not before another 15 minutes.
    (
        phases.to_vec(),
        vec![(24, 2), (26, 3), (29, 3), (32, 3), (34, 4), (39, 4), (50, 4), (57, 3), (61, 3), (73, 3), (77, 2)],
    )
}

fn slow_answers() -> Hours {
    let phases = [
        quiet(20),
        quiet(6).answers_in(2.0),
        quiet(10).answers_in(2.0).machines(3),
        // Between the two thresholds: no Machine is added or removed.
        quiet(30).answers_in(0.8).machines(4),
        quiet(25).machines(4),
    ];
    (phases.to_vec(), vec![(21, 2), (25, 3), (27, 3), (30, 4), (40, 4), (65, 4), (75, 4), (85, 3)])
}

#[test]
fn two_machines_with_little_to_do_stay_two() {
    wants(&[quiet(40)], &[(0, 2), (1, 2), (5, 2), (20, 2), (39, 2)]);
}

#[test]
fn a_busy_processor_counts_once_it_has_been_busy_for_five_minutes() {
    let (phases, expected) = busy_processors();
    wants(&phases, &expected);
}

#[test]
fn a_busy_processor_adds_machines_in_proportion() {
    let phases = [quiet(10).machines(6), quiet(15).machines(6).cpu(1.0)];
    // Six Machines' work at 70 % needs nine.
    wants(&phases, &[(9, 6), (14, 6), (20, 9)]);
}

#[test]
fn full_memory_counts_once_it_has_been_full_for_five_minutes_and_adds_one_at_a_time() {
    let (phases, expected) = full_memory();
    wants(&phases, &expected);
}

#[test]
fn slow_responses_count_after_three_minutes() {
    let (phases, expected) = slow_answers();
    wants(&phases, &expected);
}

#[test]
fn just_above_a_threshold_is_above_it() {
    let calm = quiet(20).machines(3);
    let p99_of_1250_ms = Requests { share: 0.012, ..answering_in(2.0) };
    for above in [calm.cpu(0.71), calm.memory(0.81), Phase { requests: Some(p99_of_1250_ms), ..calm }] {
        wants(&[above], &[(19, 4)]);
    }
}

#[test]
fn a_load_exactly_at_a_threshold_keeps_the_number() {
    let at = quiet(40).machines(3).cpu(0.7).memory(0.8).answers_in(1.0);
    wants(&[at], &[(10, 3), (39, 3)]);
}

#[test]
fn the_signal_that_needs_the_most_machines_decides() {
    let all = quiet(30).machines(4).memory(0.9).answers_in(3.0);
    // Memory and latency ask for five, the processors for six.
    wants(&[all.cpu(0.2)], &[(2, 4), (20, 5)]);
    wants(&[all.cpu(1.0)], &[(20, 6)]);
}

#[test]
fn one_signal_that_is_not_quiet_is_enough_to_keep_a_machine() {
    let calm = quiet(40).machines(4);
    wants(&[calm], &[(10, 4), (18, 3)]);
    // The remaining three would be at 61 %, or at 76 %, or responses take more than 500 ms.
    let p99_of_667_ms = Requests { share: 0.015, ..answering_in(0.8) };
    for kept in [calm.cpu(0.46), calm.memory(0.57), Phase { requests: Some(p99_of_667_ms), ..calm }] {
        wants(&[kept], &[(10, 4), (18, 4), (39, 4)]);
    }
    // Just below all thresholds.
    wants(&[calm.cpu(0.44).memory(0.55).answers_in(0.2)], &[(10, 4), (20, 3)]);
}

#[test]
fn there_are_never_fewer_than_two_nor_more_than_ten() {
    wants(&[quiet(30).machines(1)], &[(1, 2), (29, 2)]);
    wants(&[quiet(30).machines(0)], &[(1, 2), (29, 2)]);
    let all = quiet(30).machines(10).cpu(1.0).memory(0.99).answers_in(9.0);
    wants(&[all], &[(10, 10), (29, 10)]);
    wants(&[quiet(30).machines(9).cpu(1.0)], &[(10, 10)]);
    // Started by hand: stopped when the load is low, not before.
    wants(&[all.machines(12)], &[(1, 10), (10, 10)]);
}

/// A Machine that Fly's proxy or a person starts is not stopped in the next round.
#[test]
fn a_machine_that_was_just_started_stays_for_a_quarter_of_an_hour() {
    wants(&[quiet(30), quiet(30).machines(3)], &[(29, 2), (31, 3), (40, 3), (44, 3), (47, 2)]);
}

#[test]
fn load_that_comes_and_goes_keeps_the_number() {
    let up = quiet(4).machines(3).cpu(0.95).memory(0.95);
    let down = quiet(4).machines(3);
    let slow = quiet(1).machines(3).answers_in(4.0);
    let fast = quiet(4).machines(3);
    let waves: Vec<Phase> = [up, down, up, down, up, down, slow, fast, slow, fast, slow, fast].to_vec();
    let minutes: usize = waves.iter().map(|phase| phase.minutes).sum();
    // From minute 3 on: earlier minutes show no change.
    let expected: Vec<(usize, usize)> = (0..minutes).map(|minute| (minute, 3)).collect();
    wants(&waves, &expected);
}

#[test]
fn a_deploy_that_takes_one_machine_away_at_a_time_keeps_the_number() {
    let phases = [
        quiet(20).machines(4),
        quiet(2).machines(3),
        quiet(2).machines(4),
        quiet(2).machines(3),
        quiet(14).machines(4),
    ];
    // One fewer is due from minute 15 on; after the deploy only when it is 15 minutes back.
    wants(&phases, &[(10, 4), (21, 3), (25, 3), (27, 4), (39, 4)]);
}

#[test]
fn an_app_without_requests_is_quiet() {
    let idle = Phase {
        requests: Some(Requests { per_second: 0.0, ..answering_in(0.03) }),
        ..quiet(40).machines(4).cpu(0.0).memory(0.1)
    };
    wants(&[idle], &[(1, 4), (10, 4), (18, 3)]);
}

#[test]
fn the_p99_of_a_handful_of_requests_is_an_accident() {
    let handful = Phase { requests: Some(Requests { per_second: 0.1, ..answering_in(8.0) }), ..quiet(40).machines(4) };
    wants(&[handful], &[(10, 4), (18, 3)]);
    let many = Phase { requests: Some(Requests { per_second: 1.0, ..answering_in(8.0) }), ..handful };
    wants(&[many], &[(10, 5), (18, 5)]);
}

#[test]
fn missing_metrics_keep_the_number() {
    let calm = quiet(40).machines(5);
    let none = Phase { cpu: None, memory: None, requests: None, ..calm };
    let missing = [
        Phase { cpu: None, ..calm },
        Phase { memory: None, ..calm },
        Phase { requests: None, ..calm },
        none,
        // Present, but unusable.
        calm.cpu(f64::NAN),
        calm.memory(f64::NAN),
    ];
    for phase in missing {
        wants(&[phase], &[(0, 5), (5, 5), (20, 5), (39, 5)]);
    }
    // With no metrics at all, it starts no more than two and stops none of those that only fly-autoscaler knows of.
    play(&[none.machines(0)], "autoscaler:at_least", &[(1, 2), (20, 2)]);
    play(&[none.machines(0)], "autoscaler:at_most", &[(1, 10), (20, 10)]);
}

#[test]
fn a_window_with_a_hole_is_not_full() {
    let calm = quiet(10).machines(5);
    let hole = Phase { minutes: 5, ..calm };
    let holes = [
        Phase { cpu: None, ..hole },
        Phase { memory: None, ..hole },
        Phase { requests: None, ..hole },
        hole.cpu(f64::NAN),
        hole.memory(f64::NAN),
        // The metrics of all Machines are missing, which is not the same as no Machines.
        Phase { cpu: None, memory: None, requests: None, ..hole }.machines(0),
    ];
    for hole in holes {
        // Quiet again from minute 15 on.
        play(&[calm, hole, Phase { minutes: 25, ..calm }], "autoscaler:keep", &[(20, 10), (29, 10), (33, 4)]);
    }
    let (hot, full, slow) = (calm.cpu(0.9), calm.memory(0.9), calm.answers_in(3.0));
    let nothing = Phase { minutes: 3, cpu: None, memory: None, requests: None, ..calm };
    let of_no_use = nothing.cpu(f64::NAN).memory(f64::NAN);
    for (busy, wanted) in [(hot, 7), (full, 6), (slow, 6)] {
        for hole in [nothing, of_no_use] {
            let (begin, end) = (Phase { minutes: 2, ..busy }, Phase { minutes: 12, ..busy });
            // It was hot in minutes 10 to 12, and is from 15 on.
            wants(&[calm, begin, hole, end], &[(12, 5), (15, 5), (17, 5), (24, wanted)]);
        }
    }
}

#[test]
fn one_signal_still_counts_when_the_others_are_missing() {
    let blind = Phase { memory: None, requests: None, ..quiet(20).machines(4) };
    wants(&[blind.cpu(1.0)], &[(10, 6)]);
    let slow = Phase { cpu: None, memory: None, ..quiet(20).machines(4).answers_in(3.0) };
    wants(&[slow], &[(10, 5)]);
}

/// fly-autoscaler queries VictoriaMetrics, whose language is nearly Prometheus'. Runs against the real one.
#[test]
fn victoriametrics_gives_the_same_machine_counts() {
    let database = Database::start();
    let gap = Phase { cpu: None, memory: None, requests: None, ..quiet(3).machines(5) };
    let nothing = (vec![Phase { minutes: 25, ..gap.machines(0) }], vec![(1, 2), (20, 2)]);
    let calm = quiet(30).machines(5);
    let holes = (vec![calm, gap, calm], vec![(18, 4), (32, 5), (40, 5), (46, 5), (52, 4)]);
    let of_no_use = (vec![calm.cpu(f64::NAN).memory(f64::NAN)], vec![(5, 5), (20, 5), (29, 5)]);
    let idle = Phase { requests: Some(Requests { per_second: 0.0, ..answering_in(0.03) }), ..calm.cpu(0.0) };
    let idle = (vec![idle], vec![(1, 5), (10, 5), (18, 4)]);
    let all = [busy_processors(), full_memory(), slow_answers(), nothing, holes, of_no_use, idle];
    for (n, (phases, expected)) in all.iter().enumerate() {
        // Far enough apart that no window includes two.
        let begin = database.begin + n * 4 * 3600;
        database.load(begin, phases);
        for &(minute, count) in expected {
            let wanted = database.wants(begin + minute * 60);
            assert_eq!(wanted, count, "at minute {minute} of {phases:#?}");
        }
    }
}

/// A VictoriaMetrics process.
struct Database {
    _process: Process,
    address: SocketAddr,
    /// The second in which its past begins.
    begin: usize,
}

impl Database {
    fn start() -> Self {
        let (dir, address) = (fresh_dir(), local());
        let mut process = Program::new(Tool::VictoriaMetrics.get().unwrap())
            .arg(format!("-storageDataPath={}", dir.join("data").display()))
            .arg(format!("-httpListenAddr={address}"))
            // Cached results would hide newly loaded samples.
            .arg("-search.disableCache")
            // A scraper marks the end of a series; loaded samples have no such marks.
            .arg("-search.maxStalenessInterval=20s")
            .start("victoria-metrics", &dir.join("log"))
            .unwrap();
        let is_up = || http::get(address, "/health", PATIENCE).is_ok_and(|answer| answer.status == 200);
        process.ready(Duration::from_secs(30), is_up).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as usize;
        // Two days back, on a whole minute; the retention is a month.
        Self { _process: process, address, begin: now / 60 * 60 - 2 * 24 * 3600 }
    }

    fn send(&self, path: &str, body: &str) -> String {
        let form = [("content-type", "application/x-www-form-urlencoded")];
        let answer = http::send("POST", self.address, path, &form, body, PATIENCE).unwrap();
        assert!((200..300).contains(&answer.status), "{path}: {}: {}", answer.status, answer.body);
        answer.body
    }

    fn load(&self, begin: usize, phases: &[Phase]) {
        let mut samples = String::new();
        for one in series(phases).as_array().unwrap() {
            let (name, values) = (one["series"].as_str().unwrap(), one["values"].as_str().unwrap());
            for (scrape, value) in values.split(' ').enumerate().filter(|(_, value)| value.parse::<f64>().is_ok()) {
                writeln!(samples, "{name} {value} {}", (begin + scrape * SCRAPE_SECONDS) * 1000).unwrap();
            }
        }
        self.send("/api/v1/import/prometheus", &samples);
        // Makes loaded samples visible to queries.
        http::get(self.address, "/internal/force_flush", PATIENCE).unwrap();
    }

    /// Queries as fly-autoscaler does: an instant query, of which it takes the first sample.
    fn ask(&self, query: &str, second: usize) -> f64 {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = self.send("/api/v1/query", &format!("query={encoded}&time={second}"));
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let samples = answer["data"]["result"].as_array().unwrap();
        assert!(answer["data"]["resultType"] == "vector" && samples.len() == 1, "{query}: {answer}");
        let value: f64 = samples[0]["value"][1].as_str().unwrap().parse().unwrap();
        assert!(value.is_finite(), "{query}: {answer}");
        value
    }

    /// Evaluates the rules in order, with earlier results in place of their names.
    fn wants(&self, second: usize) -> usize {
        let rules = rules();
        let mut known: Vec<(&str, f64)> = vec![];
        for rule in rules["groups"][0]["rules"].as_array().unwrap() {
            let query = known.iter().fold(rule["expr"].as_str().unwrap().to_owned(), |query, (name, value)| {
                query.replace(name, &format!("vector({value})"))
            });
            known.push((rule["record"].as_str().unwrap(), self.ask(&query, second)));
        }
        known.last().unwrap().1 as usize
    }
}
