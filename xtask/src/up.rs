//! `cargo xtask up`: runs the whole stack on this machine until Ctrl-C. With `--machines`, runs several Machines
//! behind a stand-in for Fly's edge; with `--app`, the proxy and your own app.

mod machine;
mod own_app;
mod trail;

use std::{
    env,
    fs::{File, TryLockError},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use xtask::{
    Chroma, Error, Postgres, Process, Result, Signal, Tool, error::While, http, paths, ports, postgres, programs, say,
    tools, wait,
};

use self::machine::{Machine, Peers, Shared, is_ok};
use self::trail::Secrets;

/// Sent as `X-Api-Key` in the tour.
const KEY: &str = "outrigger-demo-key";
const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(10);
/// More would not fit a laptop's memory.
const MOST_MACHINES: u8 = 10;

/// The documents of a new database: title, content and a made-up embedding.
const SEEDS: [(&str, &str, &str); 3] = [
    ("Canoes", "An outrigger keeps a canoe upright in a swell.", "[0.9,0.1,0.0,0.2,0.0,0.0,0.1,0.0]"),
    ("Proxies", "A sidecar keeps an app answering when things go wrong.", "[0.1,0.9,0.3,0.0,0.0,0.1,0.0,0.0]"),
    ("Tides", "The tide is high twice a day.", "[0.7,0.0,0.0,0.6,0.1,0.0,0.0,0.2]"),
];

/// The running stack. Started in this order, stopped in reverse.
struct House {
    postgres: Option<Postgres>,
    chroma: Option<Chroma>,
    machines: Vec<Machine>,
    edge: Option<Process>,
    shared: Shared,
}

/// The addresses of all servers.
struct Addresses {
    /// The address for clients: the proxy, or the edge in front of several.
    front: SocketAddr,
    machines: Vec<machine::Addresses>,
    postgres: SocketAddr,
    chroma: SocketAddr,
}

/// Names another directory below `target/`, so that a test's stack can run next to the developer's.
const STATE: &str = "XTASK_UP_STATE";

pub fn run(args: &[String]) -> Result<()> {
    let own_app = own_app::wanted(args);
    let machines = if own_app.is_some() { 1 } else { wanted(args)? };
    if own_app.is_none() {
        tools::install(&needed())?;
    }
    let state = paths::state(&env::var(STATE).unwrap_or_else(|_| "up".to_owned()))?;
    let _only = lock(&state)?;
    say("building the programs (development profile, optimised a little; the first time takes minutes)");
    programs::ensure_built()?;

    let stop = stop_signals()?;
    if let Some(command) = own_app {
        return own_app::run(command, &state, &stop);
    }
    let (mut house, addresses) = start_somewhere(&state, machines)?;
    let document = seed(addresses.front)?;
    // The tour begins with it. It may fail with a developer's own server, which the tour then shows.
    let _ = wait::until("health", Duration::from_secs(5), || is_ok(addresses.front, "/health/detailed"));
    let audit = audit_commands(&house.shared, &addresses)?;
    println!("{}", tour(&addresses, &document, &state, &audit));
    let outcome = watch(&mut house, &stop);
    house.stop();
    outcome
}

/// The number in `--machines N`; 1 by default.
fn wanted(args: &[String]) -> Result<u8> {
    let number = match args {
        [] => return Ok(1),
        [flag, number] if flag == "--machines" => number.as_str(),
        [flag] => flag.strip_prefix("--machines=").unwrap_or_default(),
        _ => "",
    };
    number.parse().ok().filter(|number| (1..=MOST_MACHINES).contains(number)).ok_or_else(|| {
        Error::new(format_args!("`up {}` is not understood", args.join(" ")))
            .hint(format_args!(
                "`cargo xtask up`, `cargo xtask up --machines 3` for 1 to {MOST_MACHINES}, or `cargo xtask up --app 'COMMAND'`"
            ))
    })
}

fn needed() -> Vec<Tool> {
    let unneeded = |tool: &Tool| match tool {
        Tool::Postgres => is_given("DATABASE_URL"),
        Tool::Chroma => is_given("CHROMA_URL"),
        _ => false,
    };
    Tool::RUN.into_iter().filter(|tool| !unneeded(tool)).collect()
}

fn lock(state: &Path) -> Result<File> {
    let path = state.join("lock");
    let doing = format!("locking {}", path.display());
    let file = File::create(&path).while_(&doing)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Error::new("`cargo xtask up` is running in this clone already")
                .hint("use that one, or end it with Ctrl-C"))
        }
        Err(TryLockError::Error(cause)) => Err(Error::new(format_args!("{doing}: {cause}"))),
    }
}

/// The flag that the first signal sets. A second signal within a second is ignored, since some launchers send Ctrl-C
/// twice; a later one ends this process immediately, and the kernel then ends the others.
fn stop_signals() -> Result<Arc<AtomicBool>> {
    const SIGNALS: [Signal; 3] = [Signal::INT, Signal::TERM, Signal::HUP];
    let stop = Arc::new(AtomicBool::new(false));
    let impatient = Arc::new(AtomicBool::new(false));
    for signal in SIGNALS.map(Signal::as_raw) {
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&impatient)).while_("catching signals")?;
        signal_hook::flag::register(signal, Arc::clone(&stop)).while_("catching signals")?;
    }
    let first = Arc::clone(&stop);
    thread::spawn(move || {
        while !first.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(100));
        }
        thread::sleep(Duration::from_secs(1));
        impatient.store(true, Ordering::SeqCst);
    });
    Ok(stop)
}

/// Retries if another process takes a port between the check and its use, for example when two stacks start at once.
fn start_somewhere(state: &Path, machines: u8) -> Result<(House, Addresses)> {
    for _ in 0..5 {
        let front = address("the proxy", 8080)?;
        let addresses = Addresses {
            front,
            machines: match machines {
                1 => vec![machine::Addresses {
                    proxy: front,
                    admin: address("the proxy's metrics", 9091)?,
                    app: address("the app's metrics", 8081)?,
                }],
                _ => (0..machines).map(|_| machine::Addresses::free()).collect::<Result<_>>()?,
            },
            postgres: address_unless("DATABASE_URL", "PostgreSQL", 5432)?,
            chroma: address_unless("CHROMA_URL", "ChromaDB", 8000)?,
        };
        let Addresses { front, postgres, chroma, .. } = &addresses;
        let mut all: Vec<SocketAddr> = addresses.machines.iter().flat_map(machine::Addresses::all).collect();
        all.extend([front, postgres, chroma]);
        // After a failure all processes of this stack have ended, so a port in use belongs to another process.
        match start(state, &addresses) {
            Ok(house) => return Ok((house, addresses)),
            Err(_) if all.iter().any(|at| !ports::is_free(at.port())) => {
                say("one of the ports was taken meanwhile; trying again");
            }
            Err(error) => return Err(error),
        }
    }
    Err(Error::new("other processes keep taking the chosen ports")
        .hint("is another `cargo xtask up` failing over and over?"))
}

fn address(whose: &str, wanted: u16) -> Result<SocketAddr> {
    let (port, holder) = ports::prefer(wanted)?;
    if let Some(holder) = holder {
        say(format_args!("port {wanted} is taken by {holder}; {whose} gets {port}"));
    }
    Ok((Ipv4Addr::LOCALHOST, port).into())
}

/// The address for a server of this stack. If the variable names an external server, that may use the usual port.
fn address_unless(variable: &str, whose: &str, wanted: u16) -> Result<SocketAddr> {
    if is_given(variable) {
        return Ok((Ipv4Addr::LOCALHOST, ports::free()?).into());
    }
    address(whose, wanted)
}

fn start(state: &Path, addresses: &Addresses) -> Result<House> {
    let (database_url, postgres) = match given("DATABASE_URL") {
        Some(url) => (url, None),
        None => {
            let server = Postgres::start_on(state, addresses.postgres.port())?;
            server.create_database("outrigger")?;
            say(format_args!("PostgreSQL is ready on {}, its log is {}", server.address(), server.log().display()));
            (server.url("outrigger"), Some(server))
        }
    };
    let (chroma_url, chroma) = match given("CHROMA_URL") {
        Some(url) => (url, None),
        None => {
            let server = Chroma::start_on(state, addresses.chroma.port())?;
            say(format_args!("ChromaDB is ready on {}, its log is {}", server.address(), server.log().display()));
            (server.url(), Some(server))
        }
    };
    let peers = match addresses.machines.as_slice() {
        [_] => None,
        _ => Some(Peers {
            resolver: (Ipv4Addr::LOCALHOST, ports::free()?).into(),
            port: ports::free()?,
            key: postgres::random_hex(32)?,
        }),
    };
    let token_secret = postgres::random_hex(32)?;
    let trail = Secrets::of(state)?;
    let shared = Shared { state: state.to_owned(), database_url, chroma_url, token_secret, trail, peers };
    let machines = (1..).zip(&addresses.machines).map(|(number, at)| Machine::start(&shared, number, *at));
    let machines = machines.collect::<Result<Vec<_>>>()?;
    let edge = shared.peers.is_some().then(|| machine::start_edge(&shared, addresses.front, &machines)).transpose()?;
    let mut house = House { postgres, chroma, machines, edge, shared };
    // Another program on the same port may have responded to the health check.
    match house.ended() {
        Some(error) => Err(error),
        None => Ok(house),
    }
}

fn is_given(variable: &str) -> bool {
    env::var_os(variable).is_some_and(|value| !value.is_empty())
}

fn given(variable: &str) -> Option<String> {
    let value = env::var(variable).ok().filter(|value| !value.is_empty())?;
    say(format_args!("using the server that {variable} names"));
    Some(value)
}

/// Creates the documents unless some exist from an earlier run. Returns the id of one.
fn seed(proxy: SocketAddr) -> Result<String> {
    const DOCUMENTS: &str = "/api/v1/documents";
    let headers = [("x-api-key", KEY), ("content-type", "application/json")];
    let ask_once = |method: &str, body: &str| -> Result<http::Answer> {
        http::send(method, proxy, DOCUMENTS, &headers, body, Duration::from_secs(30))
    };
    let ask = |method: &str, body: &str| -> Result<String> {
        // 503 means "not yet", for example while the app prepares its tables. The request had no effect, so retrying
        // is safe.
        let patience = Instant::now() + START;
        let mut answer = ask_once(method, body)?;
        while answer.status == 503 && Instant::now() < patience {
            thread::sleep(Duration::from_millis(100));
            answer = ask_once(method, body)?;
        }
        if (200..300).contains(&answer.status) {
            return Ok(answer.body);
        }
        let (status, said) = (answer.status, answer.body.trim());
        Err(Error::new(format_args!("{method} {DOCUMENTS} through the proxy: {status} {said}")))
    };
    if let Some(id) = first_id(&ask("GET", "")?) {
        return Ok(id);
    }
    let mut last = String::new();
    for (title, content, embedding) in SEEDS {
        last = ask("POST", &format!(r#"{{"title":"{title}","content":"{content}","embedding":{embedding}}}"#))?;
    }
    say(format_args!("{} documents are in both stores", SEEDS.len()));
    first_id(&last).ok_or_else(|| Error::new(format_args!("a created document has no id: {last}")))
}

/// The first `"id": "…"` of a JSON text; sufficient here, without a parser.
fn first_id(json: &str) -> Option<String> {
    let (_, after) = json.split_once("\"id\"")?;
    let (_, value) = after.split_once('"')?;
    Some(value.split_once('"')?.0.to_owned())
}

/// Commands that show the audit log of the first Machine, and that of all Machines in PostgreSQL.
fn audit_commands(shared: &Shared, at: &Addresses) -> Result<String> {
    let spool = machine::spool(shared, 1);
    let shell = shared.trail.for_shell(&shared.state, &spool, at.machines[0].admin, &shared.database_url)?;
    let (shell, program) = (shell.display(), programs::find("outrigger")?);
    // In a subshell, so that the user's shell keeps its variables.
    let audit = |command: &str| format!("(. '{shell}'; '{}' audit {command})\n", program.display());
    Ok(audit("search --database --class data --limit 5 --reveal") + &audit("verify --database"))
}

fn tour(at: &Addresses, document: &str, state: &Path, audit: &str) -> String {
    let Addresses { front: proxy, machines, .. } = at;
    let admin = machines[0].admin;
    let api = format!("http://{proxy}/api/v1/documents");
    let (key, json) = (format!("-H 'X-Api-Key: {KEY}'"), "-H 'Content-Type: application/json'");
    let (_, _, near) = SEEDS[0];
    let many = machines.len() > 1;
    let log = state.join(if many { "proxy-m1.log" } else { "proxy.log" });
    let (log, jar) = (log.display(), state.join("cookies"));
    let (jar, kept) = (jar.display(), "_fly_affinity");
    let of_many = if many {
        format!(
            "
curl -sS -c {jar} -b {jar} {api}/{document} {key} -o /dev/null && grep -c {kept} {jar}
curl -sS http://{admin}/machines

The cookie {kept} makes sessions sticky. Kill a proxy or an app (`ps` shows them): the others take over until it is restarted.
The edge is a stand-in for Fly's: see docs/machines.md."
        )
    } else {
        String::new()
    };
    let new = r#"{"title":"Hello","content":"From the tour.","embedding":[0.8,0.2,0.0,0.3,0.0,0.0,0.1,0.0]}"#;
    format!(
        "
Everything is running. A tour, to paste into another terminal:

curl -sS http://{proxy}/health/detailed
curl -sS {api} {key} {json} -d '{new}'
curl -sS {api}/search {key} {json} -d '{{\"embedding\":{near},\"limit\":3}}'
curl -sS {api}/{document} {key}
curl -sS http://{admin}/metrics/all | grep ^outrigger_requests_total
{of_many}
The audit log of that, and whether it is complete, here and in PostgreSQL (docs/audit.md):

{audit}
Edit config/proxy.toml and save: the proxy applies it within a second, or reports the mistakes in
{log}.
Ctrl-C ends everything."
    )
}

/// Runs until a signal, or until a process ends, which is an error.
fn watch(house: &mut House, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::SeqCst) {
        if house.edge.is_some() {
            let House { machines, shared, .. } = house;
            machines.iter_mut().try_for_each(|machine| machine.revive(shared))?;
        }
        if let Some(ended) = house.ended() {
            return Err(ended);
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

impl House {
    /// The error for a process that has ended, with the end of its log.
    fn ended(&mut self) -> Option<Error> {
        let databases = [
            self.postgres.as_mut().and_then(Postgres::process_mut),
            self.chroma.as_mut().and_then(|chroma| chroma.process_mut()),
        ];
        let machines = self.machines.iter_mut().flat_map(Machine::processes);
        let mut all = databases.into_iter().flatten().chain(&mut self.edge).chain(machines);
        all.find_map(|process| {
            let status = process.ended()?;
            let (name, log) = (process.name(), process.log().display());
            let what = format!("{name} has ended: {status}");
            Some(Error::new(what).hint(format_args!("the end of {log}:\n{}", process.log_tail(15))))
        })
    }

    /// Stops the proxies first, so that the apps complete requests in flight.
    fn stop(mut self) {
        say("stopping (again Ctrl-C: at once)");
        if let Some(edge) = &mut self.edge
            && edge.stop(Signal::TERM, STOP).is_err()
        {
            say("the edge did not end in time and was killed");
        }
        // In parallel, since each one drains.
        thread::scope(|scope| {
            for machine in &mut self.machines {
                scope.spawn(|| machine.stop());
            }
        });
        let outcomes = [self.chroma.as_mut().map(|chroma| chroma.stop()), self.postgres.as_mut().map(Postgres::stop)];
        for error in outcomes.into_iter().flatten().filter_map(Result::err) {
            say(error);
        }
        say("all processes have ended; the data is kept for the next start");
    }
}
