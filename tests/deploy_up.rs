//! `cargo xtask up`: the tour works as pasted, and every process and file is cleaned up, however it ends.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use xtask::{
    Process, Program, Signal, paths,
    process::{children, exists, signal},
    programs, wait,
};

/// Creates both databases and starts two programs and three documents, on a busy machine.
const START: Duration = Duration::from_secs(120);

struct House {
    xtask: Process,
    dir: PathBuf,
}

impl House {
    /// In the test's own state directory, since a developer may have one running.
    fn start(name: &str) -> Self {
        Self::start_with(name, &[])
    }

    fn start_with(name: &str, args: &[&str]) -> Self {
        // Includes our process id, so that two concurrent test runs in one clone do not collide.
        let state = format!("deploy-up/{name}-{}", std::process::id());
        let dir = paths::state(&state).unwrap();
        let log = dir.join("xtask.log");
        let _ = fs::remove_file(&log);
        let mut xtask = Program::new(programs::find("xtask").unwrap())
            .arg("up")
            .args(args)
            .env("XTASK_UP_STATE", state)
            .env(programs::BUILT, "1")
            .without_env("DATABASE_URL")
            .without_env("CHROMA_URL")
            .start("xtask up", &log)
            .unwrap();
        let is_up = || fs::read_to_string(&log).unwrap_or_default().contains("Ctrl-C ends everything");
        xtask.ready(START, is_up).unwrap();
        Self { xtask, dir }
    }

    /// Removes its files; a failed test keeps them for inspection.
    fn forget(self) {
        drop(self.xtask);
        fs::remove_dir_all(&self.dir).unwrap();
    }

    fn tour(&self) -> Vec<String> {
        self.lines("curl ")
    }

    /// The tour's commands that show the audit log.
    fn trail(&self) -> Vec<String> {
        self.lines("(. ")
    }

    fn lines(&self, beginning: &str) -> Vec<String> {
        let said = fs::read_to_string(self.xtask.log()).unwrap();
        said.lines().filter(|line| line.starts_with(beginning)).map(str::to_owned).collect()
    }

    /// The audit log's keys, which no other user may read.
    fn secrets(&self) -> String {
        let file = self.dir.join("audit.keys");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        fs::read_to_string(&file).unwrap()
    }

    /// All descendant processes.
    fn family(&self) -> BTreeSet<u32> {
        let mut family = BTreeSet::new();
        let mut heads = vec![self.xtask.pid()];
        while let Some(head) = heads.pop() {
            let found = children(head);
            heads.extend(found.iter().filter(|pid| !family.contains(*pid)));
            family.extend(found);
        }
        family
    }
}

fn paste(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{line}\n{said}{errors}");
    said.into_owned()
}

/// The audit log has the tour's requests with their clients, and is complete in both places.
fn shows_the_trail(house: &House) {
    let lines = house.trail();
    let [search, verify] = lines.as_slice() else { panic!("{lines:?}") };
    let mut said = String::new();
    let found = wait::until("the tour's requests to be in the trail", Duration::from_secs(10), || {
        said = paste(search);
        said.contains("data.") && said.contains("address:127.0.0.1")
    });
    assert!(found.is_ok(), "{search}\nsays:\n{said}");
    let said = paste(verify);
    assert!(said.contains("spool") && said.contains("postgres") && said.contains("whole"), "{verify}\nsays:\n{said}");
}

#[test]
fn the_tour_works_as_pasted_and_an_interrupt_leaves_no_process_behind() {
    let mut house = House::start("tour");
    let tour = house.tour();
    assert_eq!(tour.len(), 5, "{tour:?}");
    let expected = ["\"healthy\"", "From the tour.", "Canoes", "\"title\"", "outrigger_requests_total{"];
    for (line, expected) in tour.iter().zip(expected) {
        let said = paste(line);
        assert!(said.contains(expected), "{line}\nshould show {expected} and says:\n{said}");
    }
    shows_the_trail(&house);
    let family = house.family();
    assert!(family.len() > 4, "PostgreSQL with children, ChromaDB, the app and the proxy: {family:?}");
    let status = house.xtask.stop(Signal::INT, Duration::from_secs(60)).unwrap();
    assert!(status.success(), "{status}\n{}", house.xtask.log_tail(20));
    let left: Vec<&u32> = family.iter().filter(|pid| exists(**pid)).collect();
    assert!(left.is_empty(), "{left:?}");
    house.forget();
}

/// The command is anybody's; here it is that of the tests of `outrigger run`.
#[test]
fn the_tour_with_an_own_app_works_as_pasted() {
    let app = format!("exec python3 '{}/fixtures/run/app.py'", env!("CARGO_MANIFEST_DIR"));
    let mut house = House::start_with("own-app", &["--app", &app]);
    let said = fs::read_to_string(house.xtask.log()).unwrap();
    let begins = |line: &&str| ["curl ", "kill ", "'/"].iter().any(|start| line.starts_with(start));
    let tour: Vec<&str> = said.lines().filter(begins).collect();
    let expected = ["200 OK", "\"serving\"", "outrigger_requests_total{", "the app is restarted", "", "200 OK"];
    assert_eq!(tour.len(), expected.len(), "{tour:?}");
    for (line, expected) in tour.iter().zip(expected) {
        let said = paste(line);
        assert!(said.contains(expected), "{line}\nshould show {expected} and says:\n{said}");
    }
    let family = house.family();
    let status = house.xtask.stop(Signal::INT, Duration::from_secs(60)).unwrap();
    assert!(status.success(), "{status}\n{}", house.xtask.log_tail(20));
    let left: Vec<&u32> = family.iter().filter(|pid| exists(**pid)).collect();
    assert!(left.is_empty(), "{left:?}");
    house.forget();
}

#[test]
fn three_machines_stand_behind_an_edge_and_one_that_dies_comes_back() {
    let mut house = House::start_with("machines", &["--machines", "3"]);
    let tour = house.tour();
    let expected =
        ["\"healthy\"", "From the tour.", "Canoes", "\"title\"", "outrigger_requests_total{", "1", "\"name\":\"m3\""];
    assert_eq!(tour.len(), expected.len(), "{tour:?}");
    for (line, expected) in tour.iter().zip(expected) {
        let found = wait::until(&format!("{line} to show {expected}"), Duration::from_secs(20), || {
            paste(line).contains(expected)
        });
        assert!(found.is_ok(), "{found:?}: {}", paste(line));
    }
    let proxy = |house: &House| {
        let is_proxy =
            |pid: &&u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "outrigger");
        house.family().iter().find(is_proxy).copied().unwrap()
    };
    shows_the_trail(&house);
    for number in 1..=3 {
        assert!(house.dir.join(format!("audit-m{number}/HEAD")).exists(), "m{number} has no trail of its own");
    }
    let victim = proxy(&house);
    signal(victim, Signal::KILL);
    // The edge has other Machines, so no client waits for it.
    for _ in 0..5 {
        assert!(paste(&tour[3]).contains("\"title\""));
    }
    let said = || fs::read_to_string(house.xtask.log()).unwrap_or_default();
    wait::until("the Machine to start again", START, || said().contains("starts again")).unwrap();
    let family = house.family();
    let status = house.xtask.stop(Signal::INT, Duration::from_secs(60)).unwrap();
    assert!(status.success(), "{status}\n{}", house.xtask.log_tail(20));
    let left: Vec<&u32> = family.iter().filter(|pid| exists(**pid)).collect();
    assert!(left.is_empty(), "{left:?}");
    house.forget();
}

#[test]
fn a_kill_leaves_no_process_behind_and_the_next_start_works() {
    let house = House::start("killed");
    let family = house.family();
    signal(house.xtask.pid(), Signal::KILL);
    let all_gone = || family.iter().all(|pid| !exists(*pid));
    wait::until("everything to follow a killed xtask", Duration::from_secs(20), all_gone).unwrap();
    let secrets = house.secrets();
    drop(house);

    let start = Instant::now();
    let mut house = House::start("killed");
    assert_eq!(house.secrets(), secrets, "with other keys nobody could read the trail of before");
    shows_the_trail(&house);
    let said = house.xtask.log_tail(100);
    assert!(!said.contains("documents are in both stores"), "the seeds of before are still there:\n{said}");
    house.xtask.stop(Signal::TERM, Duration::from_secs(60)).unwrap();
    assert!(start.elapsed() < START);
    house.forget();
}
