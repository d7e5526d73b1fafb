//! A Machine: the proxy's real state and serving code, with a scripted app behind it.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use outrigger::engine::metrics::Metrics;
use outrigger::engine::state::State;
use outrigger::start::here::{self, Serving};
use outrigger_mechanism::log::{AccessLog, LogQueue};
use outrigger_rules::config::Config;
use outrigger_rules::sections::log::LogFormat;

use crate::app::App;
use crate::ledger::Ledger;
use crate::plan::Settings;
use crate::random::Random;

/// A Machine of the simulation.
#[derive(Debug)]
pub struct Machine {
    /// All that its requests share.
    pub state: Arc<State>,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Its app.
    pub app: App,
    serving: Serving,
    place: Place,
}

/// The addresses of a Machine.
#[derive(Clone, Debug)]
struct Place {
    number: usize,
    public: SocketAddr,
    /// Those of all Machines; empty if it is alone.
    peers: Vec<SocketAddr>,
    app: PathBuf,
}

impl Place {
    fn rules(&self, settings: &Settings) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "server.machine = \"m{}\"\nserver.listen = \"{}\"\nserver.threads = 1\nadmin.listen = \"127.0.0.1:1\"\n\
             app.address = \"unix:{}\"\n",
            self.number,
            self.public,
            self.app.display()
        );
        if let Some(own) = self.peers.get(self.number) {
            let list: Vec<String> = self.peers.iter().map(|address| format!("\"{address}\"")).collect();
            let _ = writeln!(
                text,
                "peers.listen = \"{own}\"\npeers.list = [{}]\naffinity.mode = \"off\"\n",
                list.join(", ")
            );
        }
        text + &settings.rules()
    }
}

fn environment(name: &str) -> Option<String> {
    let is_keys = name == outrigger_identity::signing::KEYS;
    is_keys.then(|| "0123456789abcdef0123456789abcdef".to_owned())
}

/// Starts this many Machines, which know each other, with their apps. Their sockets are in `directory`.
pub fn start(
    number: usize,
    settings: &Settings,
    directory: &Path,
    ledger: &Ledger,
    random: &mut Random,
) -> Vec<Machine> {
    let listen = |last: u8| {
        let ip = Ipv4Addr::new(127, 0, 0, last);
        let listener = TcpListener::bind((ip, 0)).expect("the loopback interface is up");
        listener.set_nonblocking(true).expect("a socket can be non-blocking");
        let address = listener.local_addr().expect("it is bound");
        (listener, address)
    };
    // Peers must be told apart from clients, so they have addresses of their own.
    let public: Vec<_> = (0..number).map(|_| listen(1)).collect();
    let private: Vec<_> = (0..number).map(|_| listen(2)).collect();
    let peers: Vec<_> = if number > 1 { private.iter().map(|(_, address)| *address).collect() } else { Vec::new() };
    let mut machines = Vec::new();
    for (number, ((public, address), (private, _))) in public.into_iter().zip(private).enumerate() {
        let app = directory.join(format!("m{number}"));
        let place = Place { number, public: address, peers: peers.clone(), app: app.clone() };
        let text = place.rules(settings);
        let config = Config::parse(Path::new("proxy.toml"), &text, &environment)
            .unwrap_or_else(|error| panic!("the configuration of the simulation is not valid:\n{error}"));
        let metrics = Metrics::new().expect("each metric is declared once");
        let (queue, _) = LogQueue::start(LogFormat::Json, metrics.log.dropped.clone()).expect("there are threads");
        let state = Arc::new(State::new(config, metrics, AccessLog::new(queue)));
        let private = (!place.peers.is_empty()).then_some(private);
        let serving = here::serve(&state, public, private).expect("the runtime takes sockets");
        let app = App::new(number, &app, ledger, random.fork());
        machines.push(Machine { state, address, app, serving, place });
    }
    for machine in &mut machines {
        machine.app.start();
    }
    machines
}

impl Machine {
    /// Changes its configuration.
    ///
    /// # Errors
    /// Its problems.
    pub fn reload(&self, settings: &Settings) -> Result<(), String> {
        self.serving.reload(&self.place.rules(settings), &environment)
    }

    /// Resources in use although nothing needs them.
    pub fn leaks(&self) -> Vec<String> {
        let (state, gate) = (&self.state, self.state.gate.standing());
        let waiting: u32 = gate.waiting.iter().sum();
        let probes: usize = state.breakers.all().iter().map(|cell| cell.probes()).sum();
        let counts = [
            ("requests in flight", state.in_flight()),
            ("permits in use", gate.in_flight as usize),
            ("requests in the queue", waiting as usize),
            ("connections of clients and peers", state.connections()),
            ("bytes of buffered bodies", state.body_memory.held()),
            ("probes of circuit breakers", probes),
        ];
        counts.iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{count} {what}")).collect()
    }

    /// Tables that are larger than they may be.
    pub fn outgrown(&self) -> Vec<String> {
        let (state, rules) = (&self.state, self.state.rules.load());
        let now = state.nanoseconds(outrigger_identity::clock::now());
        let bounds = [
            ("keys of rate limits", state.limits.size(now).0, rules.config.max_limit_keys),
            ("receipts", state.receipts.len(), rules.config.receipts.max),
            (
                "queue",
                gate_length(state),
                rules.config.gate.settings.max_held as usize + state.gate.standing().room as usize,
            ),
        ];
        bounds
            .iter()
            .filter(|(_, size, most)| size > most)
            .map(|(what, size, most)| format!("{what}: {size}, although {most} is the most"))
            .collect()
    }

    /// How many requests its app may get beyond those that clients have sent to it, in a run of this length.
    pub fn second_requests(&self, sent: usize, length: Duration) -> u64 {
        let rules = self.state.rules.load();
        let allowed = |budget: outrigger_policy::retry::Settings| {
            // A bucket holds one token at least.
            1.0 + budget.share * sent as f64 + f64::from(budget.free_per_second) * (length.as_secs() + 1) as f64
        };
        let hedges = if self.state.peers.is_some() { allowed(rules.config.retry.hedge_budget) } else { 0.0 };
        (allowed(rules.config.retry.budget) + hedges) as u64 + 1
    }
}

fn gate_length(state: &State) -> usize {
    state.gate.standing().waiting.iter().sum::<u32>() as usize
}
