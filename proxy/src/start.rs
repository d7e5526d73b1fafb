//! Starts all parts of Outrigger, top to bottom, and shuts them down in order.

mod files;
#[doc(hidden)]
pub mod here;
mod saved;
mod shutdown;
mod traces;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use outrigger_identity::clock::unix_now;
use outrigger_identity::credentials::keep_fresh;
use outrigger_policy::flags::{Feature, Switch};
use outrigger_rules::config::Config;
use outrigger_rules::environment::{Given, unknown_variables};
use outrigger_rules::own::OwnListeners;
use outrigger_rules::target::Target;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::files::raise_open_files;
use self::shutdown::{Haste, Signals, drain};
use crate::accept::{self, Protocol, Worker, resting};
use crate::control::admin;
use crate::control::reload;
use crate::engine::attempt_times;
use crate::engine::connect::connect;
use crate::engine::exchange::Listener;
use crate::engine::history::EventKind;
use crate::engine::metrics::Metrics;
use crate::engine::notices;
use crate::engine::receipts;
use crate::engine::stages::hold;
use crate::engine::state::State;
use crate::mechanism::audit::{self, AuditBasis, Trail, upkeep};
use crate::mechanism::limits::settling::SharedState;
use crate::mechanism::log::{AccessLog, LogQueue};
use crate::mechanism::{limits, log, peers};
use crate::run::driver::Driver;
use crate::run::process::Command;
use crate::run::{ExitCode, Handle, Order};
use crate::transport::upstream::checked::Checked;
use crate::transport::upstream::names::Which;
use crate::transport::{app_pool, upstream};

/// Why the process cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A listener's address.
    #[error("cannot listen on {address} ({key}): {source}{hint}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The key that names it.
        key: &'static str,
        /// Advice for the operator.
        hint: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// A thread, a runtime or a signal.
    #[error("a system resource is not available: {0}")]
    System(#[from] io::Error),
    /// The audit trail has no keys.
    #[error(transparent)]
    Audit(#[from] audit::NoKeys),
    /// A metric that was declared twice: a fault of this program.
    #[error("the metrics cannot be declared: {0}")]
    Metrics(#[from] outrigger_metrics::Error),
}

/// The command line of `outrigger run`.
#[derive(Debug, Default)]
pub struct Launch {
    /// The app's command.
    pub command: Option<Command>,
    /// The defaults that it changes.
    pub given: Given,
}

/// Serves until SIGTERM or SIGINT, or until the app's process is given up. Returns the exit code. Without a file, all settings have their
/// defaults until it exists.
///
/// # Errors
/// Why it cannot start.
pub fn run(checked: Checked, file: &Path, launch: Launch) -> Result<ExitCode, RunError> {
    let config = &checked.config;
    let metrics = Metrics::new()?;
    let (queue, _writer) = LogQueue::start(config.log.format, metrics.log.dropped.clone())?;
    let level = log::install(&queue, config.log.format, config.log.level);
    let inputs = config.inputs.clone();
    warn_of_settings(config, file, inputs.has_main(inputs.versions()) || launch.command.is_some());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    // Before anything is accepted: a request that was must be drained.
    let mut signals = {
        let _context = runtime.enter();
        Signals::install()?
    };
    let files_allowed = raise_open_files(2 * config.server.max_connections + config.admin.max_connections);
    metrics.config.show(config, unix_now());
    metrics.config.show_version(1);
    let found = saved::find(config, &runtime);
    let public = bind(config.server.listen, "server.listen")?;
    let h2c = config.server.h2c_listen.map(|address| bind(address, "server.h2c_listen")).transpose()?;
    let peers = config.peers.as_ref().map(|peers| bind(peers.listen, "peers.listen")).transpose()?;
    let admin = bind(config.admin.listen, "admin.listen")?;
    if config.lacks_affinity_keys && config.flag(Feature::SessionAffinity).switch != Switch::Off {
        tracing::warn!("sessions are not sticky: OUTRIGGER_AFFINITY_KEYS is not set; see docs/machines.md");
    }
    let workers = config.server.threads;
    let trail = AuditBasis::of(config).map(|basis| Trail::new(basis, workers, metrics.audit.clone()));
    let (trail, commands) = trail.unzip();
    let (traces, exporter) = traces::begin(config, &metrics, &runtime).unzip();
    let mut state = State::with_trail(checked, metrics, AccessLog::new(queue.clone()), trail.map(Arc::new));
    state.traces = traces;
    let state = Arc::new(state);
    state.history.add(EventKind::Start, "Outrigger has started");
    state.exhaustion.set_files_allowed(files_allowed);
    start_audit_log(&state, commands)?;
    let saver = saved::begin(&state, found)?;

    let (leaving, _) = watch::channel(false);
    let (closing, _) = watch::channel(false);
    let server = state.rules.load().config.server.clone();
    spawn_workers(&public, h2c.as_ref(), peers.as_ref(), &state, &leaving, &closing)?;
    // The workers have clones: once they stop listening, the sockets close.
    drop((public, h2c, peers));

    let (driver, app) = launch.command.map(|command| Driver::new(Arc::clone(&state), command, queue.clone())).unzip();
    serve_admin(admin, Arc::clone(&state), app.clone())?;
    let result = runtime.block_on(async {
        let watched = reload::Watched { file: file.to_owned(), given: launch.given };
        tokio::spawn(reload::watch(watched, inputs, Arc::clone(&state), level));
        start_background_tasks(&state);
        let exporting = exporter.map(|exporter| tokio::spawn(exporter.run()));
        tracing::info!(
            listen = %server.listen,
            h2c_listen = server.h2c_listen.map(|a| a.to_string()),
            peers_listen = state.peers.as_ref().map(|peers| peers.rules.listen.to_string()),
            admin_listen = %state.rules.load().config.admin.listen,
            app = %state.rules.load().config.app.address,
            threads = server.threads,
            version = env!("CARGO_PKG_VERSION"),
            "outrigger serves"
        );
        let result = serve(&state, &leaving, &closing, &mut signals, driver.zip(app)).await;
        traces::end(&state, exporting).await;
        result
    });
    saver.into_iter().for_each(saved::Saver::finish);
    if let Some(trail) = &state.trail {
        notices::process(&state, "stop");
        trail.close(Duration::from_secs(5));
        if state.rules.load().config.audit.as_ref().is_some_and(|audit| audit.database.is_some()) {
            runtime.block_on(trail.is_shipped(Duration::from_secs(2)));
        }
    }
    state.traffic.close(Duration::from_secs(2));
    queue.flush(Duration::from_secs(1));
    // Remaining tasks have had their time; waiting for them would only delay the exit.
    runtime.shutdown_background();
    result
}

/// Serves until a signal, or until the app's process is given up; then drains, and stops the app.
async fn serve(
    state: &Arc<State>,
    leaving: &watch::Sender<bool>,
    closing: &watch::Sender<bool>,
    signals: &mut Signals,
    app: Option<(Driver, Handle)>,
) -> Result<ExitCode, RunError> {
    let Some((driver, app)) = app else {
        signals.next().await;
        drain(state, leaving, closing, signals, Haste::None).await;
        return Ok(ExitCode(0));
    };
    let mut running = pin!(driver.run());
    let given_up = tokio::select! {
        () = signals.next() => None,
        exit_code = &mut running => Some(exit_code?),
    };
    if let Some(exit_code) = given_up {
        hold::app_ended(state);
        drain(state, leaving, closing, signals, Haste::AppIsGone).await;
        return Ok(exit_code);
    }
    tokio::select! {
        () = drain(state, leaving, closing, signals, Haste::None) => {}
        // It was given up meanwhile.
        exit_code = &mut running => {
            hold::app_ended(state);
            return Ok(exit_code?);
        }
    }
    app.order(Order::Stop);
    tokio::select! {
        exit_code = &mut running => return exit_code.map(|_| ExitCode(0)).map_err(RunError::from),
        () = signals.next() => app.order(Order::Hurry),
    }
    running.await?;
    Ok(ExitCode(0))
}

/// Starts the writer of the audit log, if it is configured, and logs this start.
fn start_audit_log(state: &State, commands: Option<Receiver<audit::Command>>) -> Result<(), RunError> {
    let (Some(trail), Some(commands)) = (&state.trail, commands) else { return Ok(()) };
    let before = upkeep::flags_before(&trail.basis().audit);
    audit::start::<RunError>(trail, commands)?;
    let rules = state.rules.load();
    notices::process(state, "start");
    notices::flags_changed(state, before.unwrap_or_default(), &rules.config);
    upkeep::keep_flags(&rules.config);
    Ok(())
}

/// Starts the tasks that run for the life of the process.
fn start_background_tasks(state: &Arc<State>) {
    let shared = || Arc::clone(state);
    for which in [Which::App, Which::Metrics] {
        let state = shared();
        let rules = move || {
            let rules = state.rules.load();
            (rules.upstreams.clone(), OwnListeners::of(&rules.config))
        };
        let (moved, failures) = (Arc::clone(&shared().app_moved), shared().metrics.upstream.names_failed.clone());
        tokio::spawn(upstream::names::keep_looked_up(which, moved, failures, rules));
    }
    tokio::spawn(receipts::keep_expiring(shared()));
    tokio::spawn(attempt_times::keep_measured(shared()));
    if let Some(peers) = &state.peers {
        tokio::spawn(peers::probe::keep_resolving(Arc::clone(peers)));
        let (table, seeing, lacking) = (Arc::clone(peers), shared(), shared());
        let seen = move |is_first_look| {
            seeing.machines.set_known(table.machines().0);
            seeing.metrics.peers.show(&table, is_first_look);
        };
        let note_exhaustion = move |resource| {
            lacking.note_exhaustion(resource);
        };
        tokio::spawn(peers::probe::keep_probing(Arc::clone(peers), seen, note_exhaustion));
        let state = shared();
        let connect = move || {
            let state = Arc::clone(&state);
            async move { connect(&state).await }
        };
        let state = shared();
        let is_asked = move || state.rules.load().config.health.check.is_none();
        tokio::spawn(peers::local::keep_probing(Arc::clone(peers), is_asked, connect));
    }
    let checked = shared();
    tokio::spawn(async move {
        let rules = || checked.rules.load().config.health.clone();
        checked.health.keep_checking(rules, || connect(&checked)).await;
    });
    let (rules, lacking) = (shared(), shared());
    let settings = move || rules.rules.load().config.limits.sharing.clone();
    let shared_state = SharedState {
        limits: Arc::clone(&state.shared),
        machines: Arc::clone(&state.machines),
        metrics: state.metrics.limits.shared.clone(),
        clock: state.clock(),
    };
    let note_exhaustion = move |resource| {
        lacking.note_exhaustion(resource);
    };
    tokio::spawn(limits::settling::keep_synced(shared_state, settings, note_exhaustion));
    if let Some(trail) = &state.trail {
        let address = trail.basis().audit.database.clone();
        let database = address.map(|address| Arc::new(audit::database::Database::new(address)));
        tokio::spawn(audit::shipping::keep_shipping(Arc::clone(trail), database.clone()));
        tokio::spawn(audit::upkeep::keep_up(Arc::clone(trail), database));
    }
    let rules = shared();
    let credentials = move || Arc::clone(&rules.rules.load().config.credentials);
    let counted = shared();
    tokio::spawn(keep_fresh(credentials, move |fetched| counted.metrics.identity.keys_fetched(fetched.is_ok())));
}

/// Logs settings that the operator may not have meant.
fn warn_of_settings(config: &Config, file: &Path, has_file: bool) {
    for (name, meant) in unknown_variables(&config.variables()) {
        let hint = meant.map_or_else(String::new, |meant| format!("; did you mean {meant}?"));
        tracing::warn!("unknown environment variable {name}{hint}");
    }
    if !has_file {
        tracing::warn!(
            file = %file.display(),
            "{} does not exist: all settings have their defaults until it does",
            file.display()
        );
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    if config.limits_unset {
        tracing::info!("rate limits reject no request: the configuration has no [rate_limits], so they are in monitor");
    }
}

/// Starts the worker threads, each with clones of the listeners.
fn spawn_workers(
    public: &std::net::TcpListener,
    h2c: Option<&std::net::TcpListener>,
    peers: Option<&std::net::TcpListener>,
    state: &Arc<State>,
    leaving: &watch::Sender<bool>,
    closing: &watch::Sender<bool>,
) -> io::Result<()> {
    for number in 0..state.rules.load().config.server.threads {
        let listeners = [
            Some((public.try_clone()?, Protocol::Http1, Listener::Public)),
            clone_of(h2c, Protocol::H2c, Listener::Public)?,
            clone_of(peers, Protocol::Http1, Listener::Peers)?,
        ];
        let (state, leaving, closing) = (Arc::clone(state), leaving.subscribe(), closing.subscribe());
        let thread = std::thread::Builder::new().name(format!("worker-{number}"));
        thread.spawn(move || {
            audit::is_worker(number);
            if let Err(e) = work(listeners.into_iter().flatten().collect(), &state, &leaving, closing) {
                tracing::error!("a worker cannot serve: {e}");
                std::process::abort();
            }
        })?;
    }
    Ok(())
}

/// A listener's socket, its protocol, and whether it is public or for peers.
type Listening = (std::net::TcpListener, Protocol, Listener);

fn clone_of(
    listener: Option<&std::net::TcpListener>,
    protocol: Protocol,
    who: Listener,
) -> io::Result<Option<Listening>> {
    listener.map(|listener| Ok((listener.try_clone()?, protocol, who))).transpose()
}

fn bind(address: SocketAddr, key: &'static str) -> Result<std::net::TcpListener, RunError> {
    let try_bind = || {
        use socket2::{Domain, Socket, Type};
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        // A restart does not wait for connections of the previous process; two processes still cannot share the port.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        // The kernel lowers it to net.core.somaxconn.
        socket.listen(65_535)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    try_bind().map_err(|source: io::Error| {
        let hint = match source.kind() {
            io::ErrorKind::AddrInUse => "; another process has the port: stop it, or choose another one",
            io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege: choose a higher one",
            io::ErrorKind::AddrNotAvailable => "; no interface has this address: 0.0.0.0 means all of them",
            _ => "",
        };
        RunError::Listen { address, key, hint, source }
    })
}

/// One worker: a thread with its own runtime and its own connections to the app. A request never crosses threads.
fn work(
    listeners: Vec<Listening>,
    state: &Arc<State>,
    leaving: &watch::Receiver<bool>,
    closing: watch::Receiver<bool>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        for task in accept_all(listeners, state, leaving, &closing)? {
            if let Err(e) = task.await {
                tracing::error!("an accept loop ended: {e}");
            }
        }
        // Tells `leave` that this worker has accepted everything that had connected.
        drop(closing);
        // Idle connections close now; the others finish. The process ends when the last one has closed, and this thread with
        // it.
        loop {
            resting::wake_all();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
}

/// Accepts connections in this runtime, until `closing`, and keeps its connections to the app tidy. Returns the tasks that accept.
fn accept_all(
    listeners: impl IntoIterator<Item = Listening>,
    state: &Arc<State>,
    leaving: &watch::Receiver<bool>,
    closing: &watch::Receiver<bool>,
) -> io::Result<Vec<JoinHandle<()>>> {
    let mut accepting = Vec::new();
    for (socket, protocol, listener) in listeners {
        let worker = Worker { state: Arc::clone(state), listener, leaving: leaving.clone() };
        let socket = TcpListener::from_std(socket)?;
        accepting.push(tokio::spawn(accept::listen(socket, protocol, worker, closing.clone())));
    }
    tokio::spawn(sweep_kept_connections(Arc::clone(state)));
    tokio::spawn(sweep_when_asked(Arc::clone(state)));
    Ok(accepting)
}

/// Closes idle connections to the app when this process or host lacks a resource that others need.
async fn sweep_when_asked(state: Arc<State>) {
    /// Only connections that were idle for this long.
    const UNUSED: Duration = Duration::from_millis(100);
    loop {
        state.exhaustion.sweep.notified().await;
        app_pool::sweep(UNUSED, |_| true);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Closes this worker's connections to the app that have been idle for too long or lead to an old address.
async fn sweep_kept_connections(state: Arc<State>) {
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (rules, peers) = (state.rules.load(), state.peers.as_ref().map(|peers| peers.seen()));
        let (app, upstream) = (&rules.config.app, &rules.upstreams.app);
        let is_peer =
            |target: &Target| peers.as_ref().is_some_and(|seen| seen.peers.iter().any(|p| p.target == *target));
        app_pool::sweep(app.idle_timeout, |target| upstream.has(target) || is_peer(target));
    }
}

/// Serves the admin listener on a thread of its own, so that its clients take no time from the background tasks.
fn serve_admin(listener: std::net::TcpListener, state: Arc<State>, app: Option<Handle>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let serve = move || {
        runtime.block_on(async {
            match TcpListener::from_std(listener) {
                Ok(listener) => admin::serve(listener, state, app).await,
                Err(e) => tracing::error!("the admin listener cannot accept connections: {e}"),
            }
        });
    };
    std::thread::Builder::new().name("admin".to_owned()).spawn(serve).map(drop)
}
