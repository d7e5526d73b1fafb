//! The life of an app that Outrigger starts itself: when it is started, stopped, killed, and given up.
//!
//! ```text
//!            responds                 an operator asks                   no request is at the app, or `stop_grace`
//! Starting ───────────► Serving ─────────────────────────► Finishing ──────────┐
//!  ▲   │ `start_timeout`   │ hangs                                             │
//!  │   └───────────────────┴─────────► Stopping (SIGTERM) ◄────────────────────┘
//!  │                                       │ grace
//!  │                                   Killing (SIGKILL)
//!  │ its process has ended (also by itself, in any state)
//!  │                                       ▼
//!  └── Waiting (backoff) ◄────────── Clearing (what it left behind) ─────────► Ended: shutdown, or too many restarts
//! ```
//!
//! Requests are held from the moment when the app is about to stop until it has been started again.

use std::time::Duration;

/// How an app is supervised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// From its start until it responds.
    pub start_timeout: Duration,
    /// How long requests may take to finish before SIGTERM, and then the process before SIGKILL.
    pub stop_grace: Duration,
    /// The pause before the first restart in a row; doubled with each further one.
    pub backoff: Duration,
    /// Maximum of that pause.
    pub max_backoff: Duration,
    /// How many restarts in a row are made.
    pub max_restarts: u32,
    /// After serving for this long, the next restart is the first one.
    pub stable_after: Duration,
}

/// After this many intervals in a row without a sign of life the app hangs.
pub const MOST_SILENT: u32 = 2;
/// The longest grace for a process that hangs, and for what a process has left behind.
pub const SHORT_GRACE: Duration = Duration::from_secs(3);
/// SIGKILL is repeated at this interval.
const KILL_AGAIN: Duration = Duration::from_secs(1);

/// The state of the app's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It runs, and has not responded yet.
    Starting,
    /// It responds.
    Serving,
    /// It is about to be restarted; the requests that it has may finish.
    Finishing,
    /// It got SIGTERM.
    Stopping,
    /// It got SIGKILL.
    Killing,
    /// It has ended; processes that it started have not.
    Clearing,
    /// It will be started after a pause.
    Waiting,
    /// It will not be started again.
    Ended,
}

impl State {
    /// All states.
    pub const ALL: [Self; 8] = [
        Self::Starting,
        Self::Serving,
        Self::Finishing,
        Self::Stopping,
        Self::Killing,
        Self::Clearing,
        Self::Waiting,
        Self::Ended,
    ];

    /// The label in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Finishing => "finishing",
            Self::Stopping => "stopping",
            Self::Killing => "killing",
            Self::Clearing => "clearing",
            Self::Waiting => "waiting",
            Self::Ended => "ended",
        }
    }
}

/// Why the process stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It ended by itself.
    Exit,
    /// It gave no sign of life.
    Hang,
    /// It did not respond within `start_timeout`.
    StartTimeout,
    /// An operator restarts it.
    Operator,
    /// Outrigger shuts down.
    Shutdown,
}

impl Reason {
    /// The reasons for restarts.
    pub const RESTARTS: [Self; 4] = [Self::Exit, Self::Hang, Self::StartTimeout, Self::Operator];

    /// The label in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exit => "exit",
            Self::Hang => "hang",
            Self::StartTimeout => "start_timeout",
            Self::Operator => "operator",
            Self::Shutdown => "shutdown",
        }
    }
}

/// An event in the life of the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The app has given a sign of life.
    Alive,
    /// An interval has passed without one.
    Silent,
    /// The process has ended, or could not be started.
    Exited,
    /// Nothing that it started is left.
    Cleared,
    /// No request is at the app.
    Idle,
    /// The time of [`Supervisor::due`] has come.
    Due,
    /// An operator asks for a restart.
    Restart,
    /// Outrigger shuts down.
    Stop,
    /// Outrigger shuts down at once.
    Hurry,
}

/// A step that the driver takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Hold requests.
    Hold,
    /// Start the process, and let requests through as soon as it accepts connections.
    Start,
    /// Send SIGTERM to the process.
    Terminate,
    /// Send SIGTERM to what the process has left behind.
    TerminateRest,
    /// Send SIGKILL to the process and all that it started.
    Kill,
    /// The app has given up: it was restarted too often.
    GiveUp,
}

/// The state machine.
#[derive(Clone, Debug)]
pub struct Supervisor {
    state: State,
    reason: Reason,
    due: Option<u64>,
    /// When it began to serve.
    serving_since: Option<u64>,
    silent: u32,
    restarts: u32,
    is_leaving: bool,
    /// It has responded at least once since Outrigger's start.
    has_served: bool,
}

impl Supervisor {
    /// The app is about to be started at `now`.
    pub fn start(settings: &Settings, now: u64) -> (Self, Vec<Action>) {
        let mut this = Self {
            state: State::Waiting,
            reason: Reason::Exit,
            due: None,
            serving_since: None,
            silent: 0,
            restarts: 0,
            is_leaving: false,
            has_served: false,
        };
        let actions = this.begin(settings, now);
        (this, actions)
    }

    /// The state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Why the process stops or stopped last.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// When [`Event::Due`] is due.
    pub fn due(&self) -> Option<u64> {
        self.due
    }

    /// Restarts in a row that no operator asked for.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// Whether the app has responded at least once.
    pub fn has_served(&self) -> bool {
        self.has_served
    }

    /// Takes an event at `now`, and returns what to do.
    pub fn on(&mut self, settings: &Settings, now: u64, event: Event) -> Vec<Action> {
        if matches!(event, Event::Stop | Event::Hurry) {
            self.is_leaving = true;
        }
        match (self.state, event) {
            (State::Ended, _) => Vec::new(),
            (State::Starting, Event::Alive) => {
                (self.state, self.due, self.silent, self.has_served) = (State::Serving, None, 0, true);
                self.serving_since = Some(now);
                Vec::new()
            }
            (State::Starting, Event::Due) => self.stop(settings, now, Reason::StartTimeout),
            (State::Serving, Event::Alive) => {
                self.silent = 0;
                Vec::new()
            }
            (State::Serving, Event::Silent) => {
                self.silent += 1;
                if self.silent >= MOST_SILENT { self.stop(settings, now, Reason::Hang) } else { Vec::new() }
            }
            (State::Starting | State::Serving, Event::Restart) => {
                (self.state, self.reason) = (State::Finishing, Reason::Operator);
                self.due = Some(later(now, settings.stop_grace));
                vec![Action::Hold]
            }
            (State::Finishing, Event::Idle | Event::Due) => self.stop(settings, now, Reason::Operator),
            (State::Starting | State::Serving | State::Finishing, Event::Stop | Event::Hurry) => {
                self.stop(settings, now, Reason::Shutdown)
            }
            (State::Starting | State::Serving, Event::Exited) => {
                self.reason = Reason::Exit;
                self.ended(settings, now)
            }
            (State::Finishing | State::Stopping | State::Killing, Event::Exited) => self.ended(settings, now),
            (State::Stopping, Event::Due | Event::Hurry) | (State::Killing, Event::Due) => {
                (self.state, self.due) = (State::Killing, Some(later(now, KILL_AGAIN)));
                vec![Action::Kill]
            }
            (State::Clearing, Event::Cleared) => self.cleared(settings, now),
            (State::Clearing, Event::Due | Event::Hurry) => {
                self.due = Some(later(now, KILL_AGAIN));
                vec![Action::Kill]
            }
            (State::Waiting, Event::Due) => self.begin(settings, now),
            (State::Waiting, Event::Restart) => {
                self.restarts = 0;
                self.begin(settings, now)
            }
            (State::Waiting, Event::Stop | Event::Hurry) => self.end(),
            // They come too late, or change nothing.
            (_, Event::Alive | Event::Silent | Event::Idle | Event::Cleared | Event::Due) => Vec::new(),
            (State::Stopping | State::Killing | State::Clearing, Event::Restart | Event::Stop)
            | (State::Killing, Event::Hurry)
            | (State::Finishing, Event::Restart)
            | (State::Clearing | State::Waiting, Event::Exited) => Vec::new(),
        }
    }

    fn begin(&mut self, settings: &Settings, now: u64) -> Vec<Action> {
        (self.state, self.due) = (State::Starting, Some(later(now, settings.start_timeout)));
        self.serving_since = None;
        vec![Action::Hold, Action::Start]
    }

    fn stop(&mut self, settings: &Settings, now: u64, reason: Reason) -> Vec<Action> {
        let grace = match reason {
            // It is unlikely to do anything with more.
            Reason::Hang | Reason::StartTimeout => settings.stop_grace.min(SHORT_GRACE),
            Reason::Exit | Reason::Operator | Reason::Shutdown => settings.stop_grace,
        };
        (self.state, self.reason, self.due) = (State::Stopping, reason, Some(later(now, grace)));
        vec![Action::Hold, Action::Terminate]
    }

    fn ended(&mut self, settings: &Settings, now: u64) -> Vec<Action> {
        let was_killed = self.state == State::Killing;
        self.state = State::Clearing;
        if was_killed {
            self.due = Some(later(now, KILL_AGAIN));
            return vec![Action::Kill];
        }
        self.due = Some(later(now, settings.stop_grace.min(SHORT_GRACE)));
        vec![Action::Hold, Action::TerminateRest]
    }

    fn cleared(&mut self, settings: &Settings, now: u64) -> Vec<Action> {
        if self.is_leaving {
            return self.end();
        }
        if self.reason == Reason::Operator {
            self.restarts = 0;
            return self.begin(settings, now);
        }
        let stable = u64::try_from(settings.stable_after.as_nanos()).unwrap_or(u64::MAX);
        if self.serving_since.is_some_and(|since| now.saturating_sub(since) >= stable) {
            self.restarts = 0;
        }
        if self.restarts >= settings.max_restarts {
            self.end();
            return vec![Action::GiveUp];
        }
        let doubled = settings.backoff.saturating_mul(1 << self.restarts.min(20));
        self.restarts += 1;
        (self.state, self.due) = (State::Waiting, Some(later(now, doubled.min(settings.max_backoff))));
        Vec::new()
    }

    fn end(&mut self) -> Vec<Action> {
        (self.state, self.due) = (State::Ended, None);
        Vec::new()
    }
}

fn later(now: u64, span: Duration) -> u64 {
    now.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
