//! `outrigger status` and `outrigger top`: the summary in a terminal, as text and as JSON, of this Machine and of all.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use xtask::Tool;

use crate::backend::Backend;
use crate::harness::{Proxy, Setup, get, socket, until};
use crate::limits::{NO_DEFAULTS, route};
use crate::machines::pair;

fn run(proxy: &Proxy, args: &[&str]) -> (Option<i32>, String) {
    let admin = proxy.admin.to_string();
    let output = proxy.run(&[args, &["--admin", &admin]].concat());
    (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr))
}

#[test]
fn status_says_how_things_are_and_exits_with_2_if_clients_get_errors() {
    let mut app = Backend::start();
    let proxy =
        Proxy::with(&app, &format!("{NO_DEFAULTS}app.hold = \"0s\"\nretry.attempts = 1\n{}", route("search", "")));
    assert_eq!(proxy.get("/search").status, 200);
    until("the request to be seen", || run(&proxy, &["status"]).1.contains("search"));
    let (code, text) = run(&proxy, &["status"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("OK: All is well"), "{text}");
    assert!(text.contains("configuration: version 1"), "{text}");
    // Without a terminal, `top` prints the same.
    assert!(run(&proxy, &["top"]).1.starts_with("OK: "));
    let (_, json) = run(&proxy, &["status", "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["headline"]["level"], "ok", "{json}");

    app.stop();
    // On the connection that was kept, or on a new one.
    assert_eq!(proxy.get("/search").status, 502);
    until("the app to be away", || run(&proxy, &["status"]).0 == Some(2));
    let (_, text) = run(&proxy, &["status"]);
    assert!(text.starts_with("BAD: The app is away"), "{text}");

    let admin = proxy.admin.to_string();
    let setup = Setup::clone(&proxy);
    drop(proxy);
    let output = setup.run(&["status", "--admin", &admin]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("no proxy at") && error.contains("--admin"), "{error}");
}

/// Peers give their summary to a Machine with the same keys, and to nobody else.
#[test]
fn status_shows_all_machines() {
    let (a, b) = pair("");
    let names = || {
        let (_, json) = run(&a.proxy, &["status", "--all", "--json"]);
        let json: Value = serde_json::from_str(&json).unwrap();
        let machines = json["machines"].as_array().unwrap().clone();
        machines.iter().filter(|machine| machine["status"]["phase"] == "serving").count()
    };
    until("both Machines", || names() == 2);
    let (_, text) = run(&a.proxy, &["status", "--all"]);
    assert_eq!(text.matches("All is well").count(), 2, "{text}");
    // Without a signature, it is a path of nobody.
    let answer = crate::harness::Client::connect(b.peers).unwrap().send(get("/.outrigger/summary")).answer();
    answer.is_problem(403, "not_a_peer");
    // One that does not answer is shown, and the others are as well.
    let name = "b";
    drop(b);
    until("the other to be silent", || {
        let (_, text) = run(&a.proxy, &["status", "--all"]);
        text.contains("no answer")
            && text.contains(&format!("== {name} =="))
            && text.matches("All is well").count() <= 1
    });
}

/// A terminal of tmux, with `outrigger top` in it.
struct Terminal {
    tmux: std::path::PathBuf,
    socket: String,
}

impl Terminal {
    fn tmux(&self, args: &[&str]) -> String {
        let output =
            Command::new(&self.tmux).args(["-f", "/dev/null", "-S", &self.socket]).args(args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-t", "top"])
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

#[test]
fn top_shows_load_within_a_second_and_follows_the_size_of_its_terminal() {
    let app = Backend::start();
    let proxy = Proxy::with(&app, &format!("{NO_DEFAULTS}{}", route("search", "")));
    let socket = socket(&proxy.dir).display().to_string();
    let terminal = Terminal { tmux: Tool::Tmux.get().unwrap(), socket };
    let top = format!("{} top --admin {}", xtask::programs::find("outrigger").unwrap().display(), proxy.admin);
    terminal.tmux(&["new-session", "-d", "-s", "top", "-x", "100", "-y", "30", &top]);
    until("the screen", || terminal.screen().contains("q quit"));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = proxy.connect();
            while !stop.load(Ordering::Relaxed) {
                client.send(get("/search")).answer();
                thread::sleep(Duration::from_millis(2));
            }
        });
        let began = Instant::now();
        until("the load to show", || terminal.screen().lines().any(|line| line.starts_with("search")));
        // The summary has points of a second; the machine that runs this may be busy.
        println!("the load was on the screen after {:?}", began.elapsed());
        for (width, height) in [("60", "20"), ("160", "50"), ("30", "8")] {
            terminal.tmux(&["resize-window", "-t", "top", "-x", width, "-y", height]);
            let width: usize = width.parse().unwrap();
            until("the new size", || {
                let screen = terminal.screen();
                screen.lines().all(|line| line.chars().count() <= width) && screen.contains("q quit")
            });
        }
        stop.store(true, Ordering::Relaxed);
    });
    terminal.tmux(&["send-keys", "-t", "top", "q"]);
    until("it to end", || terminal.tmux(&["list-sessions"]).is_empty());
}
