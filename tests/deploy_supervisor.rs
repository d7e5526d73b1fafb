//! Runs the shipped `supervisord.conf`: crashes, hangs, giving up and the order of stopping.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use outrigger_trail::keys::MasterKeys;
use xtask::{
    Process, Program, Signal, Tool, http, paths, ports,
    process::{children, exists, signal},
    programs, wait,
};

const START: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);
/// Any API key will do; its value does not matter.
const KEYS: &str = "test:e587b71720a61b2fed9121a17b552ada9cbeec6d468f3bfb1be92300b821729a";

/// One supervisord with the shipped file, on its own ports and directories. There is no database: the app starts without one,
/// which is enough to live, hang and die.
struct Machine {
    supervisord: Process,
    bin: PathBuf,
    app: SocketAddr,
    proxy: SocketAddr,
}

impl Machine {
    /// `proxy_config` goes into the proxy's configuration file.
    fn start(name: &str, proxy_config: &str) -> Self {
        Self::start_with(name, proxy_config, &[])
    }

    fn start_with(name: &str, proxy_config: &str, env: &[(&str, &str)]) -> Self {
        // Includes our process id, so that two concurrent test runs in one clone do not collide.
        let dir = paths::state(&format!("deploy-supervisor/{name}-{}", std::process::id())).unwrap();
        let (bin, run) = (dir.join("bin"), dir.join("run"));
        fs::create_dir_all(&bin).unwrap();
        fs::create_dir_all(&run).unwrap();
        for program in ["outrigger", "outrigger-app"] {
            symlink(programs::find(program).unwrap(), bin.join(program)).unwrap();
        }
        symlink(paths::root().join("deploy/watchdog.py"), bin.join("outrigger-watchdog")).unwrap();
        let config = dir.join("proxy.toml");
        fs::write(&config, proxy_config).unwrap();
        let address = || SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free().unwrap()));
        let (app, proxy, admin, nobody) = (address(), address(), address(), address());
        let socket = paths::socket(&run, "app.sock").unwrap();
        let supervisord = Program::new(Tool::Supervisord.get().unwrap());
        let supervisord = env.iter().fold(supervisord, |program, (name, value)| program.env(name, value));
        let mut supervisord = supervisord
            .arg("-c")
            .arg(paths::root().join("supervisord.conf"))
            .env("BIN_DIR", &bin)
            .env("RUN_DIR", &run)
            .env("APP_SOCKET", &socket)
            .env("APP_LISTEN", app.to_string())
            .env("APP_API_KEYS", KEYS)
            .env("DATABASE_URL", format!("postgres://nobody@{nobody}/none"))
            .env("CHROMA_URL", format!("http://{nobody}"))
            .env("OUTRIGGER_CONFIG", &config)
            .env("OUTRIGGER_LISTEN", proxy.to_string())
            .env("OUTRIGGER_ADMIN_LISTEN", admin.to_string())
            .env("OUTRIGGER_APP_ADDRESS", format!("unix:{}", socket.display()))
            .env("OUTRIGGER_APP_METRICS", format!("http://{app}/metrics"))
            // If the test dies, the kernel signals only supervisord, which stops the others.
            .when_orphaned("TERM")
            .start("supervisord", &dir.join("log"))
            .unwrap();
        supervisord.ready(START, || is_live(app) && TcpStream::connect(proxy).is_ok()).unwrap();
        let mut machine = Self { supervisord, bin, app, proxy };
        machine.wait_for_log("entered RUNNING state", 3);
        machine
    }

    fn log(&self) -> String {
        fs::read_to_string(self.supervisord.log()).unwrap_or_default()
    }

    fn wait_for_log(&mut self, text: &str, times: usize) {
        let log = self.supervisord.log().to_path_buf();
        let count = || fs::read_to_string(&log).unwrap_or_default().matches(text).count();
        self.supervisord.ready(START, || count() >= times).unwrap();
    }

    /// The process that runs this program now.
    fn pid(&self, program: &str) -> Option<u32> {
        let runs = |pid: &u32| {
            let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            exe.file_name().is_some_and(|name| name == program)
        };
        children(self.supervisord.pid()).into_iter().find(runs)
    }

    /// Waits until the app runs in another process than `old` and responds.
    fn wait_for_new_app(&self, old: u32, limit: Duration) {
        let is_new = || self.pid("outrigger-app").is_some_and(|pid| pid != old) && is_live(self.app);
        wait::until("a new app", limit, is_new).unwrap_or_else(|error| panic!("{error}\n{}", self.log()));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let family = children(self.supervisord.pid());
        let _ = self.supervisord.stop(Signal::TERM, Duration::from_secs(20));
        for pid in family.into_iter().filter(|pid| exists(*pid)) {
            signal(pid, Signal::KILL);
        }
        // A failed test keeps its files for inspection.
        if let Some(dir) = self.bin.parent().filter(|_| !std::thread::panicking()) {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

fn is_live(app: SocketAddr) -> bool {
    http::get(app, "/health/live", SECOND).is_ok_and(|answer| answer.status == 200)
}

/// No drain: these tests check the end of processes, not waiting clients.
const AT_ONCE: &str = "[server]\nlame_duck = \"0s\"\n";

#[test]
fn a_killed_app_comes_back_behind_the_same_proxy() {
    let machine = Machine::start("killed", AT_ONCE);
    let (app, proxy) = (machine.pid("outrigger-app").unwrap(), machine.pid("outrigger").unwrap());
    signal(app, Signal::KILL);
    machine.wait_for_new_app(app, Duration::from_secs(10));
    assert_eq!(machine.pid("outrigger"), Some(proxy));
    let through = || http::get(machine.proxy, "/health", SECOND).is_ok_and(|answer| answer.status == 200);
    wait::until("an answer through the proxy", Duration::from_secs(5), through).unwrap();
}

#[test]
fn an_app_that_gives_up_ends_the_machine() {
    let mut machine = Machine::start("gives-up", AT_ONCE);
    let broken = machine.bin.join("outrigger-app");
    fs::remove_file(&broken).unwrap();
    symlink(Path::new("/bin/false"), &broken).unwrap();
    let family = children(machine.supervisord.pid());
    signal(machine.pid("outrigger-app").unwrap(), Signal::KILL);
    // Four starts, 0, 1, 2 and 3 seconds apart, then the proxy's drain.
    let status = machine.supervisord.wait(Duration::from_secs(30)).unwrap_or_else(|error| panic!("{error}"));
    assert!(!status.success(), "whoever looks at it has to see a failure: {status}");
    assert!(machine.log().contains("app has given up"), "{}", machine.log());
    // The watchdog stops supervisord and ends a moment after it.
    wait::until("the others to be gone", SECOND, || family.iter().all(|pid| !exists(*pid))).unwrap();
}

#[test]
fn a_machine_that_is_stopped_has_not_failed() {
    let mut machine = Machine::start("stopped", AT_ONCE);
    signal(machine.supervisord.pid(), Signal::TERM);
    let status = machine.supervisord.wait(Duration::from_secs(20)).unwrap_or_else(|error| panic!("{error}"));
    assert!(status.success(), "{status}");
}

/// An attacker in control of the app must not be able to rewrite the proxy's audit log.
#[test]
fn the_app_has_no_key_that_signs_the_audit_log_nor_another_secret_of_the_proxy() {
    let secret = "fedcba9876543210fedcba9876543210";
    let keys = format!("k1:{secret}");
    let env = [
        ("OUTRIGGER_AUDIT_KEYS", &*keys),
        ("OUTRIGGER_ADMIN_TOKEN", "token-0123456789abcdef0123456789"),
        ("OUTRIGGER_AFFINITY_KEYS", "affinity-0123456789abcdef0123456789"),
        ("OUTRIGGER_AUDIT_DATABASE_URL", "postgres://audit:hunter2@127.0.0.1:1/audit"),
    ];
    let machine = Machine::start_with("keys", AT_ONCE, &env);
    let environment = |program: &str| {
        let environ = fs::read(format!("/proc/{}/environ", machine.pid(program).unwrap())).unwrap();
        String::from_utf8_lossy(&environ).into_owned()
    };
    let (app, proxy) = (environment("outrigger-app"), environment("outrigger"));
    assert!(proxy.contains(secret), "the proxy signs");
    let derived = MasterKeys::parse(&keys).unwrap().unwrap().pseudonym_key().expose();
    assert!(app.contains(&format!("OUTRIGGER_AUDIT_PSEUDONYM_KEY={derived}\0")), "the app makes pseudonyms");
    for of_the_proxy in [secret, "hunter2", "OUTRIGGER_AUDIT_KEYS", "OUTRIGGER_ADMIN_TOKEN", "OUTRIGGER_AFFINITY_KEYS"]
    {
        assert!(!app.contains(of_the_proxy), "the app has {of_the_proxy}");
    }
}

#[test]
fn a_hung_app_is_killed_and_started_again() {
    let machine = Machine::start("hung", AT_ONCE);
    let app = machine.pid("outrigger-app").unwrap();
    signal(app, Signal::STOP);
    machine.wait_for_new_app(app, Duration::from_secs(30));
    assert!(machine.log().contains("killing outrigger-app"), "{}", machine.log());
}

#[test]
fn a_hung_proxy_is_killed_and_started_again() {
    let machine = Machine::start("hung-proxy", AT_ONCE);
    let proxy = machine.pid("outrigger").unwrap();
    signal(proxy, Signal::STOP);
    let answers = || {
        machine.pid("outrigger").is_some_and(|pid| pid != proxy)
            && http::get(machine.proxy, "/health", SECOND).is_ok_and(|answer| answer.status == 200)
    };
    wait::until("a new proxy", Duration::from_secs(30), answers)
        .unwrap_or_else(|error| panic!("{error}\n{}", machine.log()));
}

#[test]
fn the_app_serves_until_the_proxy_has_drained() {
    let mut machine = Machine::start("order", "[server]\nlame_duck = \"2s\"\n");
    let (app, proxy) = (machine.pid("outrigger-app").unwrap(), machine.pid("outrigger").unwrap());
    let start = Instant::now();
    machine.supervisord.signal(Signal::TERM);
    let mut answers = 0;
    while exists(proxy) {
        // The proxy may end between the two checks; the app must not stop before it.
        let is_answering = is_live(machine.app);
        assert!(is_answering || !exists(proxy), "the app ended before the proxy\n{}", machine.log());
        answers += u32::from(is_answering);
        assert!(start.elapsed() < START, "{}", machine.log());
    }
    assert!(answers > 0 && start.elapsed() > SECOND, "the proxy took its lame duck time");
    machine.supervisord.wait(Duration::from_secs(30)).unwrap();
    assert!(!exists(app));
    let log = machine.log();
    let place = |text: &str| log.find(text).unwrap_or_else(|| panic!("no `{text}` in\n{log}"));
    assert!(place("stopped: proxy") < place("stopped: app"));
}
