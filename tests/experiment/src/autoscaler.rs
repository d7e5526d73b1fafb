//! fly-autoscaler: the rules of `config/autoscaler/fly-autoscaler.yml` and its algorithm, with a real Prometheus.
//!
//! Each round evaluates all queries, then the two expressions, and starts stopped Machines while fewer are started than the
//! minimum, or stops started ones while there are more than the maximum, lowest ids first. A query without a finite result ends
//! the round. Source: superfly/fly-autoscaler, `reconciler.go`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outrigger_edge::{Edge, Fleet as _, State, settings};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use xtask::error::While;
use xtask::{Error, Result, say};
use yaml_rust2::{Yaml, YamlLoader};

use crate::clock;
use crate::machines::Machines;
use crate::prometheus::Prometheus;

/// The rules as they ship.
const FILE: &str = include_str!("../../../config/autoscaler/fly-autoscaler.yml");

/// The rules, with all durations divided; latencies stay as they are, since an app's work is not compressed.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    interval: Duration,
    minimum: String,
    maximum: String,
    /// Name and query of each collector.
    collectors: Vec<(String, String)>,
}

impl Rules {
    /// # Errors
    /// The file has another form than the one that is known here.
    pub fn read() -> Result<Self> {
        let all = YamlLoader::load_from_str(FILE).while_("reading fly-autoscaler.yml")?;
        let file = all.first().unwrap_or(&Yaml::BadValue);
        let text = |table: &Yaml, key: &str| {
            let value = table[key].as_str().map(str::to_owned);
            value.ok_or_else(|| Error::new(format_args!("fly-autoscaler.yml has no text `{key}`")))
        };
        let interval = text(file, "interval")?;
        let collectors = file["metric-collectors"].as_vec().map(Vec::as_slice).unwrap_or_default();
        Ok(Self {
            interval: clock::divided(&interval)
                .ok_or_else(|| Error::new(format_args!("fly-autoscaler.yml: `{interval}` is no duration")))?,
            minimum: text(file, "min-started-machine-count")?,
            maximum: text(file, "max-started-machine-count")?,
            collectors: collectors
                .iter()
                .map(|collector| Ok((text(collector, "metric-name")?, clock::query(&text(collector, "query")?))))
                .collect::<Result<_>>()?,
        })
    }
}

/// A change of the number of Machines.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Since the beginning, in the run.
    pub at: Duration,
    /// Started Machines before it.
    pub started: usize,
    pub what: Action,
    /// The metrics of this round.
    pub why: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Start(usize),
    Stop(usize),
}

/// The change that a round makes.
fn action(started: usize, minimum: f64, maximum: f64) -> Option<Action> {
    let (minimum, maximum) = (minimum.round().max(0.0) as usize, maximum.round().max(0.0) as usize);
    if started < minimum {
        Some(Action::Start(minimum - started))
    } else if started > maximum {
        Some(Action::Stop(started - maximum))
    } else {
        None
    }
}

/// The value of an expression of `max`, `min`, numbers and metrics.
///
/// # Errors
/// Anything else: fly-autoscaler's language has much more, which its rules here do not use.
fn evaluate(expression: &str, metrics: &BTreeMap<String, f64>) -> Result<f64> {
    match term(expression, metrics)? {
        (value, rest) if rest.trim().is_empty() => Ok(value),
        (_, rest) => Err(Error::new(format_args!("{expression}: {rest:?} is left over"))),
    }
}

fn term<'a>(text: &'a str, metrics: &BTreeMap<String, f64>) -> Result<(f64, &'a str)> {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && !"_.".contains(c)).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let Some(mut rest) = rest.strip_prefix('(') else {
        let value = word.parse().ok().or_else(|| metrics.get(word).copied());
        let value = value.ok_or_else(|| Error::new(format_args!("{word:?} is neither a number nor a metric")))?;
        return Ok((value, rest));
    };
    let better: fn(f64, f64) -> f64 = match word {
        "max" => f64::max,
        "min" => f64::min,
        other => return Err(Error::new(format_args!("{other:?} is neither max nor min"))),
    };
    let mut best = None;
    loop {
        let (value, after) = term(rest, metrics)?;
        let value = best.map_or(value, |best| better(best, value));
        best = Some(value);
        let after = after.trim_start();
        match after.strip_prefix(')') {
            Some(end) => return Ok((value, end)),
            None => {
                let next = after.strip_prefix(',');
                rest = next.ok_or_else(|| Error::new(format_args!("{after:?} instead of a comma or `)`")))?;
            }
        }
    }
}

/// A running autoscaler.
pub struct Autoscaler {
    changes: Arc<Mutex<Vec<Change>>>,
    task: JoinHandle<()>,
}

impl Autoscaler {
    /// Changes the number of Machines from now on. Each round is a line in this file.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn start(
        rules: Rules,
        prometheus: Prometheus,
        machines: Machines,
        edge: Arc<Edge>,
        log: &Path,
        begin: Instant,
    ) -> Result<Self> {
        let mut log = File::create(log).while_(format_args!("writing {}", log.display()))?;
        let changes: Arc<Mutex<Vec<Change>>> = Arc::default();
        let into = Arc::clone(&changes);
        let task = tokio::spawn(async move {
            let mut ticks = interval(rules.interval);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                // As fly-autoscaler does during a release.
                if machines.is_deploying() {
                    continue;
                }
                let now = crate::script::clock(Instant::now().saturating_duration_since(begin));
                match round(&rules, &prometheus, &machines).await {
                    Ok((started, metrics, action)) => {
                        let _ = writeln!(log, "{now}\t{started} started\t{metrics}\t{action:?}");
                        if let Some(what) = action {
                            let at = Instant::now().saturating_duration_since(begin);
                            let change = Change { at, started, what, why: metrics };
                            into.lock().unwrap_or_else(PoisonError::into_inner).push(change);
                            act(what, &machines, &edge);
                        }
                    }
                    Err(error) => {
                        let _ = writeln!(log, "{now}\t{error}");
                    }
                }
            }
        });
        Ok(Self { changes, task })
    }

    pub fn changes(&self) -> Vec<Change> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Autoscaler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The started Machines, the metrics, and what they demand.
async fn round(rules: &Rules, prometheus: &Prometheus, machines: &Machines) -> Result<(usize, String, Option<Action>)> {
    let mut metrics = BTreeMap::new();
    let mut words = String::new();
    for (name, query) in &rules.collectors {
        let value = prometheus.ask(query).await.while_(format_args!("collecting {name}"))?;
        let _ = write!(words, "{}{name} {value}", if words.is_empty() { "" } else { ", " });
        metrics.insert(name.clone(), value);
    }
    let (minimum, maximum) = (evaluate(&rules.minimum, &metrics)?, evaluate(&rules.maximum, &metrics)?);
    let started = machines.started().len();
    Ok((started, words, action(started, minimum, maximum)))
}

/// Returns at once, as Fly's API does; Machines start and stop meanwhile.
fn act(what: Action, machines: &Machines, edge: &Arc<Edge>) {
    let ids: Vec<String> = match what {
        Action::Start(count) => machines.stopped().into_iter().take(count).collect(),
        Action::Stop(count) => machines.started().into_iter().take(count).collect(),
    };
    for id in ids {
        let (machines, edge) = (machines.clone(), Arc::clone(edge));
        tokio::spawn(async move {
            let outcome = match what {
                Action::Start(_) => machines.run(&id).await.map(|()| State::Started),
                Action::Stop(_) => stop(&machines, &id).await.map(|()| State::Stopped),
            };
            match outcome {
                Ok(state) => {
                    edge.set_state(&id, state);
                }
                Err(error) => say(format_args!("fly-autoscaler: Machine {id}: {error}")),
            }
        });
    }
}

/// A stop without a cordon: the Machine gets its signal while the edge still routes to it.
async fn stop(machines: &Machines, id: &str) -> Result<()> {
    let machine = machines.machine(id)?;
    let timeout = clock::seconds(crate::script::times::KILL_TIMEOUT);
    let how = settings::Stop { signal: settings::Signal::Terminate, timeout, last_signal: settings::Signal::Kill };
    machines.stop(&machine, how).await.map_err(Error::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_that_ship_are_read_and_divided() {
        let rules = Rules::read().unwrap();
        assert_eq!(rules.interval, Duration::from_secs(1));
        let names: Vec<&str> = rules.collectors.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["cpu", "memory", "latency", "keep"]);
        assert!(rules.collectors[0].1.contains("[8s]") && rules.collectors[0].1.contains("[20s:1s]"));
        let metrics = |keep: f64| -> BTreeMap<String, f64> {
            let values = [("cpu", 3.0), ("memory", 0.0), ("latency", 0.0), ("keep", keep)];
            values.map(|(name, value)| (name.to_owned(), value)).into()
        };
        assert_eq!(evaluate(&rules.minimum, &metrics(10.0)).unwrap(), 3.0);
        assert_eq!(evaluate(&rules.maximum, &metrics(10.0)).unwrap(), 10.0);
        assert_eq!(evaluate(&rules.maximum, &metrics(1.0)).unwrap(), 3.0);
    }

    #[test]
    fn other_expressions_are_errors() {
        let metrics = BTreeMap::from([("cpu".to_owned(), 1.0)]);
        assert_eq!(evaluate("max(2, min(10, cpu))", &metrics).unwrap(), 2.0);
        for wrong in ["ceil(cpu)", "max(2, cpu", "max(2, cpu) + 1", "memory", "max()", ""] {
            assert!(evaluate(wrong, &metrics).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_round_only_moves_the_number_into_the_range() {
        assert_eq!(action(2, 2.0, 10.0), None);
        assert_eq!(action(2, 5.0, 10.0), Some(Action::Start(3)));
        assert_eq!(action(4, 2.0, 3.0), Some(Action::Stop(1)));
    }
}
