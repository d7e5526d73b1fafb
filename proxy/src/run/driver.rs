//! Drives [`outrigger_policy::supervisor`] with processes, signals, timers and probes, for the life of Outrigger.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_policy::supervisor::{Action, Event, MOST_SILENT, Reason, State as Phase, Supervisor};
use outrigger_rules::sections::run::RunRules;
use outrigger_rules::units::AppAddress;
use rustix::process::{Pid, Signal, set_child_subreaper};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::engine::metrics::RouteMetrics;
use crate::engine::notices;
use crate::engine::stages::hold;
use crate::engine::state::State;
use crate::mechanism::log::LogQueue;
use crate::run::process::{self, Command};
use crate::run::{ExitCode, GivenUp, Handle, Order, Shown, listening, probe};

/// How often it looks whether requests or processes have ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A request whose permit was returned, such as a stream, gets this long before the app is asked to stop.
const LAST_BYTES: Duration = Duration::from_secs(1);

/// A process of the app that can be started.
#[derive(Debug)]
pub struct Driver {
    state: Arc<State>,
    command: Command,
    /// Where the app's output goes, if Outrigger passes it on.
    log: LogQueue,
    orders: mpsc::UnboundedReceiver<Order>,
    shown: watch::Sender<Arc<Shown>>,
    epoch: Instant,
    /// The process, until it has ended.
    main: Option<Pid>,
    /// The process group of the last start.
    group: Option<Pid>,
    starts: u64,
    last_exit: ExitCode,
    /// Questions to the app.
    probes: JoinSet<()>,
    /// Whether the app gave a sign of life since the last look.
    is_alive: bool,
    /// Complete responses of the app until then.
    answered: u64,
    /// Since when no request has a permit.
    without_permits: Option<Instant>,
    /// When it is asked next, while it serves.
    next_check: Option<Instant>,
    /// Who waits for a restart, and the number of starts when they asked.
    waiting: Vec<(u64, oneshot::Sender<Result<(), GivenUp>>)>,
    responses: (mpsc::UnboundedSender<u64>, mpsc::UnboundedReceiver<u64>),
}

/// Why [`Driver::run`] goes on.
enum Woken {
    Event(Event),
    Child,
    Look,
    Check,
    Order(Order),
    Response(u64),
    Forward(Signal),
}

impl Driver {
    /// The command is not started yet.
    pub fn new(state: Arc<State>, command: Command, log: LogQueue) -> (Self, Handle) {
        let (send, orders) = mpsc::unbounded_channel();
        let (shown, watched) = watch::channel(Arc::default());
        let driver = Self {
            state,
            command,
            log,
            orders,
            shown,
            epoch: Instant::now(),
            main: None,
            group: None,
            starts: 0,
            last_exit: ExitCode(0),
            probes: JoinSet::new(),
            is_alive: false,
            answered: 0,
            without_permits: None,
            next_check: None,
            waiting: Vec::new(),
            responses: mpsc::unbounded_channel(),
        };
        (driver, Handle { orders: send, shown: watched })
    }

    /// Starts the command, and supervises it until it is stopped or given up. Returns the exit code of its last process: of one that is
    /// given up, never 0.
    ///
    /// # Errors
    /// Signals cannot be caught.
    pub async fn run(mut self) -> io::Result<ExitCode> {
        if let Err(e) = set_child_subreaper(Some(rustix::process::getpid())) {
            tracing::warn!("processes that the app leaves behind are not stopped with it: {e}");
        }
        let mut children = signal(SignalKind::child())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut user1 = signal(SignalKind::user_defined1())?;
        let mut user2 = signal(SignalKind::user_defined2())?;
        let (mut supervisor, actions) = Supervisor::start(&self.rules().settings, self.now());
        let mut has_given_up = self.act(&mut supervisor, actions);
        loop {
            self.show(&supervisor);
            if supervisor.state() == Phase::Ended {
                break;
            }
            let due = supervisor.due().map(|due| self.epoch + Duration::from_nanos(due));
            let looks = matches!(supervisor.state(), Phase::Finishing | Phase::Clearing);
            self.next_check = match self.rules().hang_timeout {
                // From now on: for a host that was suspended, not all the time counts.
                Some(timeout) if supervisor.state() == Phase::Serving => {
                    self.next_check.or_else(|| Some(Instant::now() + timeout / MOST_SILENT))
                }
                _ => None,
            };
            let woken = tokio::select! {
                _ = children.recv() => Woken::Child,
                Some(order) = self.orders.recv() => Woken::Order(order),
                Some(start) = self.responses.1.recv() => Woken::Response(start),
                () = sleep_until(due) => Woken::Event(Event::Due),
                () = tokio::time::sleep(LOOK_EVERY), if looks => Woken::Look,
                () = sleep_until(self.next_check) => Woken::Check,
                _ = hangup.recv() => Woken::Forward(Signal::HUP),
                _ = user1.recv() => Woken::Forward(Signal::USR1),
                _ = user2.recv() => Woken::Forward(Signal::USR2),
            };
            for event in self.events(woken, &supervisor) {
                let actions = supervisor.on(&self.rules().settings, self.now(), event);
                has_given_up |= self.act(&mut supervisor, actions);
            }
        }
        for (_, waiting) in self.waiting.drain(..) {
            // Who asked may be gone.
            let _ = waiting.send(Err(GivenUp));
        }
        let is_misleading = has_given_up && self.last_exit == ExitCode(0);
        Ok(if is_misleading { ExitCode(1) } else { self.last_exit })
    }

    fn rules(&self) -> RunRules {
        self.state.rules.load().config.run
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The events that this means for the app.
    fn events(&mut self, woken: Woken, supervisor: &Supervisor) -> Vec<Event> {
        match woken {
            Woken::Event(event) => {
                if event == Event::Due && supervisor.state() == Phase::Starting {
                    self.tell_of_silence();
                }
                vec![event]
            }
            Woken::Child => self.reap(supervisor.state()),
            Woken::Response(start) if start == self.starts => {
                self.is_alive = true;
                self.began_to_serve(supervisor);
                vec![Event::Alive]
            }
            // Of a process that is gone.
            Woken::Response(_) => Vec::new(),
            Woken::Check => {
                self.next_check = None;
                vec![self.check()]
            }
            Woken::Look if supervisor.state() == Phase::Finishing => {
                self.is_idle().then_some(Event::Idle).into_iter().collect()
            }
            Woken::Look => {
                let mut events = self.reap(supervisor.state());
                let is_cleared = self.group.is_none_or(process::is_cleared);
                events.extend(is_cleared.then_some(Event::Cleared));
                events
            }
            Woken::Order(Order::Restart(done)) => {
                self.waiting.push((self.starts, done));
                vec![Event::Restart]
            }
            Woken::Order(Order::Stop) => vec![Event::Stop],
            Woken::Order(Order::Hurry) => vec![Event::Hurry],
            Woken::Forward(signal) => {
                if let Some(main) = self.main {
                    process::signal(main, signal);
                }
                Vec::new()
            }
        }
    }

    /// Does what the machine says. Returns true if the app is given up.
    fn act(&mut self, supervisor: &mut Supervisor, actions: Vec<Action>) -> bool {
        let mut has_given_up = false;
        for action in actions {
            match action {
                Action::Hold => {
                    self.probes.abort_all();
                    self.without_permits = None;
                    hold::app_stops(&self.state);
                }
                Action::Start => has_given_up |= self.start(supervisor),
                Action::Terminate => self.terminate(supervisor.reason()),
                Action::TerminateRest => {
                    if let Some(group) = self.group {
                        process::signal_rest(group, self.main, Signal::TERM);
                    }
                }
                Action::Kill => {
                    if let Some(group) = self.group {
                        self.tell_of_kill(supervisor);
                        process::signal_rest(group, None, Signal::KILL);
                    }
                }
                Action::GiveUp => {
                    self.tell_of_end(supervisor.restarts());
                    has_given_up = true;
                }
            }
        }
        has_given_up
    }

    /// Starts the command. Returns true if it cannot be started, and never could.
    fn start(&mut self, supervisor: &mut Supervisor) -> bool {
        if self.starts > 0 {
            self.state.metrics.process.restarted(supervisor.reason());
        }
        self.starts += 1;
        let program = self.command.program.to_string_lossy().into_owned();
        match self.command.start(self.rules().output, &self.log) {
            Ok(pid) => {
                (self.main, self.group) = (Some(pid), Some(pid));
                let (number, address) = (pid.as_raw_nonzero().get(), self.address());
                let (starts, reason) = (self.starts, (self.starts > 1).then(|| supervisor.reason().name()));
                tracing::info!(event = "app_started", pid = number, starts, reason, app = %address, "started {program}");
                let details = json!({ "pid": number, "starts": starts, "command": program });
                notices::app_process(&self.state, "app.start", reason, &details);
                hold::app_starts(&self.state);
                self.ask_until_first_response();
                false
            }
            Err((code, error)) => {
                self.last_exit = code;
                tracing::error!(event = "app_not_started", exit_code = code.0, "cannot start {program}: {error}");
                let actions = supervisor.on(&self.rules().settings, self.now(), Event::Exited);
                let is_hopeless = self.starts == 1;
                if is_hopeless {
                    // A mistake in the command, which no restart corrects.
                    drop(supervisor.on(&self.rules().settings, self.now(), Event::Stop));
                    drop(supervisor.on(&self.rules().settings, self.now(), Event::Cleared));
                } else {
                    self.act(supervisor, actions);
                }
                is_hopeless
            }
        }
    }

    fn ask_until_first_response(&mut self) {
        self.probes = JoinSet::new();
        let (state, number, responses) = (Arc::clone(&self.state), self.starts, self.responses.0.clone());
        self.probes.spawn(async move {
            probe::first_response(state).await;
            // The driver has both ends.
            let _ = responses.send(number);
        });
    }

    /// Asks the app once more, and returns whether it gave a sign of life since the last time: it responded to a question, or completed
    /// a response to a request.
    fn check(&mut self) -> Event {
        while self.probes.try_join_next().is_some() {}
        let patience = self.rules().hang_timeout.unwrap_or_default() + LAST_BYTES;
        let (state, number, responses) = (Arc::clone(&self.state), self.starts, self.responses.0.clone());
        self.probes.spawn(async move {
            if tokio::time::timeout(patience, probe::is_alive(&state)).await.unwrap_or(false) {
                let _ = responses.send(number);
            }
        });
        let answered = self.responses_in_all();
        // With peers, they may be theirs.
        let has_answered = self.answered != answered && self.state.peers.is_none();
        self.answered = answered;
        if std::mem::take(&mut self.is_alive) || has_answered { Event::Alive } else { Event::Silent }
    }

    fn responses_in_all(&self) -> u64 {
        self.state.rules.load().route_metrics.iter().map(RouteMetrics::answered).sum()
    }

    /// Whether the app works on no request: all that there are wait here. Streams and slow uploads get a moment only.
    fn is_idle(&mut self) -> bool {
        let gate = self.state.gate.standing();
        let waiting = gate.waiting.iter().sum::<u32>() as usize;
        if self.state.in_flight() <= waiting {
            return true;
        }
        if gate.in_flight > 0 {
            self.without_permits = None;
            return false;
        }
        self.without_permits.get_or_insert_with(Instant::now).elapsed() > LAST_BYTES
    }

    fn reap(&mut self, phase: Phase) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some((pid, code)) = process::reap() {
            if self.main == Some(pid) {
                (self.main, self.last_exit) = (None, code);
                let pid = pid.as_raw_nonzero().get();
                if matches!(phase, Phase::Starting | Phase::Serving) {
                    tracing::warn!(
                        event = "app_exited",
                        pid,
                        exit_code = code.0,
                        "the app's process has ended by itself"
                    );
                } else {
                    tracing::info!(event = "app_exited", pid, exit_code = code.0, "the app's process has ended");
                }
                let details = json!({ "pid": pid, "exit_code": code.0 });
                notices::app_process(&self.state, "app.exit", None, &details);
                events.push(Event::Exited);
            } else {
                self.state.metrics.process.orphans.inc();
            }
        }
        events
    }

    fn terminate(&self, reason: Reason) {
        let Some(main) = self.main else { return };
        let pid = main.as_raw_nonzero().get();
        match reason {
            Reason::Hang => {
                let hang_ms = self.rules().hang_timeout.map(|timeout| timeout.as_millis() as u64);
                tracing::error!(event = "app_hangs", pid, hang_ms, "the app gives no sign of life: it is restarted");
                notices::app_process(&self.state, "app.stop", Some(reason.name()), &json!({ "pid": pid }));
            }
            _ => tracing::info!(event = "app_stops", pid, reason = reason.name(), "the app gets SIGTERM"),
        }
        process::signal(main, Signal::TERM);
        // A stopped process acts on SIGTERM only when it goes on.
        process::signal(main, Signal::CONT);
    }

    fn began_to_serve(&mut self, supervisor: &Supervisor) {
        if supervisor.state() == Phase::Starting {
            tracing::info!(
                event = "app_serves",
                pid = self.main.map(|pid| pid.as_raw_nonzero().get()),
                "the app responds"
            );
            self.answered = self.responses_in_all();
            let starts = self.starts;
            for (_, waiting) in self.waiting.extract_if(.., |(asked, _)| *asked < starts) {
                let _ = waiting.send(Ok(()));
            }
        }
    }

    /// The app has not responded within `start_timeout`.
    fn tell_of_silence(&self) {
        let address = self.address();
        let hint = listening::advice(&address, self.group);
        let seconds = self.rules().settings.start_timeout.as_secs_f64();
        tracing::error!(
            event = "app_silent",
            app = %address,
            "the app has not responded at {address} for {seconds} s: {hint}"
        );
    }

    fn tell_of_kill(&self, supervisor: &Supervisor) {
        let Some(main) = self.main else { return };
        let (pid, reason) = (main.as_raw_nonzero().get(), supervisor.reason().name());
        tracing::error!(event = "app_killed", pid, reason, "the app did not end after SIGTERM: it gets SIGKILL");
        notices::app_process(&self.state, "app.kill", Some(reason), &json!({ "pid": pid }));
    }

    fn tell_of_end(&self, restarts: u32) {
        let exit_code = self.last_exit.0;
        let hint = match exit_code {
            0 => ". If its command goes to the background, run it in the foreground",
            _ => "",
        };
        tracing::error!(
            event = "app_given_up",
            restarts,
            exit_code,
            "the app was restarted {restarts} times in a row: Outrigger ends, too{hint}"
        );
        notices::app_process(
            &self.state,
            "app.give_up",
            None,
            &json!({ "restarts": restarts, "exit_code": exit_code }),
        );
    }

    fn address(&self) -> AppAddress {
        self.state.rules.load().config.app.address.clone()
    }

    fn show(&self, supervisor: &Supervisor) {
        self.state.metrics.process.show(supervisor.state());
        let shown = Shown {
            phase: Some(supervisor.state()),
            pid: self.main.map(|pid| pid.as_raw_nonzero().get()),
            starts: self.starts,
            last_exit: (self.starts > 1 || self.main.is_none()).then_some(self.last_exit),
            last_reason: (self.starts > 1).then(|| supervisor.reason().name()),
        };
        self.shown.send_replace(Arc::new(shown));
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
