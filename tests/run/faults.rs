//! The app crashes, hangs, or does not start at all.

use std::os::unix::process::ExitStatusExt;
use std::thread;
use std::time::Instant;

use xtask::{Signal, process};

use super::*;

#[test]
fn a_killed_app_costs_no_get_and_executes_no_post_twice() {
    let record = fresh_dir().join("record");
    let run = Run::serving(QUICK, &app(&[&format!("record={}", record.display())]));
    let load = Load::begin(run.address);
    let mut child = run.child();
    for _ in 0..3 {
        load.goes_on(200);
        process::signal(child, Signal::KILL);
        child = run.replaces(child);
    }
    load.goes_on(200);
    let requests = load.end();
    let executed = executed(&record);
    for request in &requests {
        match &request.id {
            None => assert_eq!(request.status, 200, "a GET"),
            // In flight when the app died: it may have been executed, or not.
            Some(id) if request.status == 502 => assert!(executed.get(id).is_none_or(|count| *count == 1), "{id}"),
            Some(id) => assert_eq!((request.status, executed.get(id)), (200, Some(&1)), "{id}"),
        }
    }
    assert!(executed.values().all(|count| *count == 1));
    assert_eq!(run.metric("outrigger_app_restarts_total", &[("reason", "exit")]), 3.0);
}

#[test]
fn a_hung_app_is_restarted_and_its_gets_succeed() {
    for habits in [&[][..], &["stubborn"]] {
        let rules = format!("{QUICK}run.hang_timeout = \"2s\"\nrun.stop_grace = \"500ms\"\n");
        let run = Run::serving(&rules, &app(habits));
        let child = run.child();
        process::signal(child, Signal::STOP);
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let address = run.address;
                thread::spawn(move || http::get(address, "/", PATIENCE * 2).unwrap().status)
            })
            .collect();
        run.replaces(child);
        for client in clients {
            assert_eq!(client.join().unwrap(), 200);
        }
        run.says("app_hangs");
        assert_eq!(run.log().contains("app_killed"), !habits.is_empty(), "{habits:?}");
        assert_eq!(run.metric("outrigger_app_restarts_total", &[("reason", "hang")]), 1.0);
    }
}

/// A single slow request takes as long as it takes: the others show that the app lives.
#[test]
fn an_app_that_works_on_slow_requests_does_not_hang() {
    let rules = format!("{QUICK}run.hang_timeout = \"2s\"\n");
    let run = Run::serving(&rules, &app(&[]));
    let child = run.child();
    assert_eq!(run.get("/slow?5").body, child.to_string());
    assert_eq!(run.child(), child);
}

#[test]
fn an_app_that_always_ends_is_given_up_with_its_exit_code() {
    for (script, code, pause) in [("exit 7", 7, "10ms"), ("kill -9 $$", 137, "10ms"), ("exit 0", 1, "0ms")] {
        let rules = format!("server.lame_duck = \"0s\"\nrun.backoff = \"{pause}\"\nrun.max_restarts = 2\n");
        let mut run = Run::start(&rules, &shell(script));
        let status = run.ends();
        assert_eq!((status.code(), status.signal()), (Some(code), None), "{script}: {}", run.log());
        assert_eq!(run.log().matches("\"app_started\"").count(), 3, "{}", run.log());
        assert!(run.log().contains("app_given_up"), "{}", run.log());
    }
}

#[test]
fn a_command_that_does_not_exist_is_given_up_at_once() {
    for (command, code) in [("/nonexistent/app", 127), ("/etc/passwd", 126)] {
        let mut run = Run::start(QUICK, &[command.to_owned()]);
        assert_eq!(run.ends().code(), Some(code));
        assert!(run.log().contains(command), "{}", run.log());
    }
}

/// Requests that wait for an app that is given up are told so.
#[test]
fn requests_that_wait_when_the_app_is_given_up_get_502() {
    let rules = "server.lame_duck = \"0s\"\nrun.backoff = \"3s\"\nrun.max_restarts = 1\n";
    let mut run = Run::start(rules, &shell("exit 3"));
    run.is("waiting");
    let began = Instant::now();
    let mut client = Client::connect(run.address).unwrap();
    let answer = client.send(get("/")).answer();
    answer.is_problem(502, "app-unreachable");
    assert!(began.elapsed() < SOON, "it waited for {:?}", began.elapsed());
    assert_eq!(run.ends().code(), Some(3));
}

#[test]
fn processes_that_a_killed_app_leaves_behind_end_with_it() {
    let python = app(&[]).join(" ");
    let run = Run::serving(QUICK, &shell(&format!("{python} & wait")));
    let shell = run.child();
    let worker: u32 = run.get("/").body.parse().unwrap();
    assert_ne!(shell, worker);
    // Another one has left the process group.
    assert_eq!(run.get("/leave").status, 200);
    process::signal(shell, Signal::KILL);
    run.replaces(shell);
    assert!(!process::exists(worker));
    assert_ne!(run.get("/").body, worker.to_string());
    let strays = process::children(run.process.pid());
    assert_eq!(strays, [run.child()], "only the new process is left");
}
