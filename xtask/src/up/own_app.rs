//! `cargo xtask up --app 'COMMAND'`: the proxy with your own app, which it starts itself, and nothing else.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use xtask::{Error, Process, Program, Result, Signal, error::While, http, programs, say};

use super::{START, address};

/// Longer than the proxy's own drain, and the app's end.
const STOP: Duration = Duration::from_secs(60);

/// The settings of a first start.
const SETTINGS: &str = "# The settings of `cargo xtask up --app`: config/proxy.toml of the repository has all keys.\n\
                        [server]\nlame_duck = \"0s\"\n";

/// The command in `--app COMMAND`.
pub(super) fn wanted(args: &[String]) -> Option<&str> {
    match args {
        [flag, command] if flag == "--app" => Some(command.as_str()),
        [flag] => flag.strip_prefix("--app="),
        _ => None,
    }
    .filter(|command| !command.trim().is_empty())
}

/// Runs both until `stop`.
pub(super) fn run(command: &str, state: &Path, stop: &AtomicBool) -> Result<()> {
    let (front, admin) = (address("the proxy", 8080)?, address("the proxy's metrics", 9091)?);
    let config = state.join("app.toml");
    if !config.exists() {
        fs::write(&config, SETTINGS).while_(format_args!("writing {}", config.display()))?;
    }
    let mut proxy = start(command, (front, admin), state, &config)?;
    println!("{}", tour(front, admin, &config, proxy.log())?);
    while !stop.load(Ordering::SeqCst) {
        if let Some(status) = proxy.ended() {
            return Err(Error::new(format_args!("the proxy has ended: {status}\n{}", proxy.log_tail(20))));
        }
        thread::sleep(Duration::from_millis(100));
    }
    if proxy.stop(Signal::TERM, STOP).is_err() {
        say("the proxy did not end in time and was killed");
    }
    Ok(())
}

fn start(command: &str, (front, admin): (SocketAddr, SocketAddr), state: &Path, config: &Path) -> Result<Process> {
    let log = state.join("app-and-proxy.log");
    let _ = fs::remove_file(&log);
    let mut proxy = Program::new(programs::find("outrigger")?)
        .args(["run", "--config"])
        .arg(config)
        .args(["--", "sh", "-c", command])
        .env("OUTRIGGER_LISTEN", front.to_string())
        .env("OUTRIGGER_ADMIN_LISTEN", admin.to_string())
        .env("OUTRIGGER_LOG_FORMAT", "text")
        .without_env("OUTRIGGER_APP_ADDRESS")
        .when_orphaned("TERM")
        .start("the proxy", &log)?;
    say(format_args!("the proxy starts `{command}`; the log of both is {}", log.display()));
    let serves = || http::get(admin, "/app", Duration::from_secs(2)).is_ok_and(|app| app.body.contains("\"serving\""));
    proxy.ready(START, serves)?;
    Ok(proxy)
}

fn tour(front: SocketAddr, admin: SocketAddr, config: &Path, log: &Path) -> Result<String> {
    let outrigger = programs::find("outrigger")?;
    let (outrigger, config, log) = (outrigger.display(), config.display(), log.display());
    Ok(format!(
        "
Your app is running behind the proxy. A tour, to paste into another terminal:

curl -sS -i http://{front}/
curl -sS http://{admin}/app
curl -sS http://{admin}/metrics | grep ^outrigger_requests_total
'{outrigger}' restart --admin {admin}
kill -9 $(curl -sS http://{admin}/app | sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/')
curl -sS -i http://{front}/

The app restarts in each of the last two steps, and requests wait for it: docs/run.md.
Edit and save the settings in {config}:
the proxy applies them within a second, or reports the mistakes in {log}.
Ctrl-C ends everything."
    ))
}
