//! Samples of the resources that the proxies use, once a second, and of how busy the computer is.

use std::fs;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::machines::{Machines, NUMBER};

/// A proxy at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Seconds since the start.
    pub at: f64,
    pub machine: usize,
    pub pid: u32,
    /// Resident memory in MiB.
    pub memory: f64,
    pub descriptors: f64,
    pub threads: f64,
}

/// The share of all processors that was busy, at a time.
pub type Busy = (f64, f64);

/// Takes samples until it is stopped.
#[derive(Debug)]
pub struct Sampler {
    task: JoinHandle<(Vec<Sample>, Vec<Busy>)>,
    over: tokio::sync::watch::Sender<bool>,
}

impl Sampler {
    pub fn start(machines: &Machines, begin: Instant) -> Self {
        let (over, mut is_over) = tokio::sync::watch::channel(false);
        let machines = machines.clone();
        let task = tokio::spawn(async move {
            let (mut samples, mut busy) = (Vec::new(), Vec::new());
            let mut ticks = interval(Duration::from_secs(1));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut before = None;
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    _ = is_over.changed() => return (samples, busy),
                }
                let at = begin.elapsed().as_secs_f64();
                for machine in 0..NUMBER {
                    let sample = machines.pid(machine).and_then(|pid| of(at, machine, pid));
                    samples.extend(sample);
                }
                let now = processors();
                if let (Some((all, idle)), Some((all_before, idle_before))) = (now, before) {
                    let passed = f64::max(all - all_before, 1.0);
                    busy.push((at, 1.0 - (idle - idle_before) / passed));
                }
                before = now;
            }
        });
        Self { task, over }
    }

    pub async fn stop(self) -> (Vec<Sample>, Vec<Busy>) {
        let _ = self.over.send(true);
        self.task.await.unwrap_or_default()
    }
}

fn of(at: f64, machine: usize, pid: u32) -> Option<Sample> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| -> Option<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse().ok()
    };
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as f64;
    Some(Sample { at, machine, pid, memory: field("VmRSS")? / 1024.0, descriptors, threads: field("Threads")? })
}

/// Ticks of all processors since their start: all, and those in which they were idle.
fn processors() -> Option<(f64, f64)> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<f64> = stat.lines().next()?.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    // The fourth is idle, the fifth waits for disks.
    Some((ticks.iter().take(8).sum(), ticks.get(3)? + ticks.get(4)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_descriptors_and_threads() {
        let sample = of(1.0, 0, std::process::id()).unwrap();
        assert!(sample.memory > 1.0 && sample.descriptors >= 3.0 && sample.threads >= 1.0, "{sample:?}");
        assert_eq!(of(1.0, 0, u32::MAX), None);
    }
}
