//! A deterministic simulation: the real proxy, with scripted clients and apps, on a virtual clock in one thread.
//!
//! A seed determines everything that the simulation decides: how many Machines there are, their configuration, what their apps do with
//! each request, when these crash, and when clients come and leave. `docs/simulation.md` says what is real and what is not, and how to
//! replay a seed. In this order: [`plan`] makes the plan of a seed, [`machine`] starts the proxies, [`app`] and [`client`] are the
//! scripted parts, [`ledger`] records what happens, and [`checks`] decides whether that was right.

pub mod app;
pub mod checks;
pub mod client;
pub mod ledger;
pub mod machine;
pub mod message;
pub mod plan;
pub mod random;

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Once};
use std::time::{Duration, SystemTime};

use outrigger_identity::clock;
use tokio::task::JoinSet;

use crate::client::Client;
use crate::ledger::Ledger;
use crate::machine::Machine;
use crate::plan::{BREAKERS_RECOVER, CHAOS, Event, Plan};
use crate::random::Random;

/// The longest that a seed may take of real time. It takes less than a second.
const PATIENCE: Duration = Duration::from_secs(60);
/// After this time, a connection whose client has left is closed.
const LAST_CONNECTIONS: Duration = Duration::from_secs(10);
/// The time of day at the start: the same in each run.
const BEGAN: Duration = Duration::from_secs(1_800_000_000);

/// The result of a seed.
#[derive(Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Events with virtual times.
    pub trace: Vec<String>,
    /// The invariants that do not hold; empty if all do.
    pub violations: Vec<String>,
    /// The number of requests.
    pub requests: usize,
}

impl Report {
    /// The first violation, and the command that replays it.
    pub fn failure(&self) -> Option<String> {
        let first = self.violations.first()?;
        let seed = self.seed;
        Some(format!(
            "seed {seed}: {first} ({} violations)\n  replay: cargo run -p outrigger-simulation -- --seed {seed}",
            self.violations.len()
        ))
    }
}

/// Runs a seed, on a thread of its own: what the proxy keeps by thread begins anew with each.
pub fn run(seed: u64) -> Report {
    let (done, result) = channel();
    let thread = std::thread::Builder::new().name(format!("seed-{seed}"));
    let thread = thread.spawn(move || {
        let _ = done.send(run_here(seed));
    });
    let failed = |what: &str| Report { seed, trace: Vec::new(), violations: vec![what.to_owned()], requests: 0 };
    match (thread, result.recv_timeout(PATIENCE)) {
        (Err(_), _) => failed("there is no thread for it"),
        (_, Ok(report)) => report,
        (_, Err(RecvTimeoutError::Disconnected)) => failed("the simulation has panicked"),
        (_, Err(RecvTimeoutError::Timeout)) => {
            failed("it does not end: a task runs all the time, or the clock stands still")
        }
    }
}

thread_local! {
    /// The panics of this thread, which a runtime catches.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// From now on, panics are noted as well.
fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.with_borrow_mut(|panics| panics.push(panic.to_string()));
            others(panic);
        }));
    });
}

fn run_here(seed: u64) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let runtime = runtime.expect("there is memory for a runtime");
    let directory = std::env::temp_dir().join(format!("outrigger-simulation-{}-{seed}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("there is a directory for temporary files");
    let report = runtime.block_on(simulate(seed, directory.clone()));
    drop(runtime);
    let _ = std::fs::remove_dir_all(directory);
    report
}

async fn simulate(seed: u64, directory: PathBuf) -> Report {
    note_panics();
    let mut random = Random::new(seed);
    outrigger_wire::random::set_seed(random.draw());
    clock::set_wall(SystemTime::UNIX_EPOCH + BEGAN);
    let ledger = Ledger::new();
    let plan = Plan::new(&mut random);
    let mut machines = machine::start(plan.machines, &plan.settings[0], &directory, &ledger, &mut random);
    let addresses: Vec<_> = machines.iter().map(|machine| machine.address).collect();
    // The peers have met each other by then.
    tokio::time::sleep(Duration::from_millis(100)).await;

    let mut clients = JoinSet::new();
    let mut number = 0;
    let mut come = |clients: &mut JoinSet<()>, random: &mut Random, requests: u64| {
        clients.spawn(Client::new(number, &addresses, &ledger, random.fork()).run(requests));
        number += 1;
    };
    for _ in 0..plan.clients {
        let requests = random.between(10, 30);
        come(&mut clients, &mut random, requests);
    }
    let states: Vec<_> = machines.iter().map(|machine| Arc::clone(&machine.state)).collect();
    let watching = tokio::spawn(checks::keep_watching(ledger.clone(), states));
    let mut settings = plan.settings.iter().skip(1);
    let mut crashes = Vec::new();
    for (at, event) in &plan.events {
        tokio::time::sleep(at.saturating_sub(ledger.now())).await;
        match event {
            Event::Crash(machine) => {
                machines[*machine].app.crash().await;
                crashes.push((*machine, ledger.now()));
            }
            Event::Start(machine) => machines[*machine].app.start(),
            Event::Mood(machine, mood) => machines[*machine].app.set(*mood),
            Event::Reload(machine) => {
                let Some(next) = settings.next() else { continue };
                ledger.note(&format!("m{machine} gets another configuration"));
                if let Err(problems) = machines[*machine].reload(next) {
                    ledger.violated(format!("m{machine} rejects its configuration: {problems}"));
                }
            }
            Event::Step(seconds) => {
                ledger.note(&format!("the time of day changes by {seconds} s"));
                let step = Duration::from_secs(seconds.unsigned_abs());
                let wall = clock::wall();
                clock::set_wall(if *seconds < 0 { wall - step } else { wall + step });
            }
            Event::Crowd(size) => {
                for _ in 0..*size {
                    let requests = random.between(1, 5);
                    come(&mut clients, &mut random, requests);
                }
            }
        }
        checks::sizes(&ledger, &machines);
    }
    tokio::time::sleep(CHAOS.saturating_sub(ledger.now())).await;
    ledger.note("the faults are over");
    while let Some(client) = clients.join_next().await {
        if client.is_err() {
            ledger.violated("a client of the simulation has panicked".to_owned());
        }
    }
    settle(&ledger, &mut machines, &addresses, &mut random).await;
    watching.abort();
    checks::requests(&ledger, &crashes);
    checks::amplification(&ledger, &machines);
    checks::limits(&ledger);
    checks::rest(&ledger, &machines);
    let requests = ledger.requests().len();
    for machine in &mut machines {
        machine.app.crash().await;
    }
    PANICS.take().into_iter().for_each(|panic| ledger.violated(format!("a task has panicked: {panic}")));
    let (trace, violations) = ledger.close();
    Report { seed, trace, violations, requests }
}

/// Lets all parts recover; then each Machine must serve.
async fn settle(ledger: &Ledger, machines: &mut [Machine], addresses: &[std::net::SocketAddr], random: &mut Random) {
    for machine in machines.iter_mut() {
        machine.app.set(app::Mood::Well);
        machine.app.start();
    }
    tokio::time::sleep(BREAKERS_RECOVER).await;
    for machine in 0..machines.len() {
        let client = |number| Client::new(number, addresses, ledger, Random::new(number as u64));
        // Probes of circuit breakers, then the rest of the way.
        client(60_000 + machine).ask(machine, 8, Duration::from_millis(200)).await;
        tokio::time::sleep(BREAKERS_RECOVER).await;
        let statuses = client(61_000 + machine).ask(machine, 6, random.ms(0, 100)).await;
        checks::recovery(ledger, machine, &statuses);
    }
    tokio::time::sleep(LAST_CONNECTIONS).await;
}

#[cfg(test)]
mod tests;
