use super::*;

const SECOND: u64 = 1_000_000_000;

const SETTINGS: Settings = Settings {
    start_timeout: Duration::from_secs(60),
    stop_grace: Duration::from_secs(10),
    backoff: Duration::from_millis(100),
    max_backoff: Duration::from_millis(500),
    max_restarts: 5,
    stable_after: Duration::from_secs(60),
};

struct Run {
    supervisor: Supervisor,
    now: u64,
}

impl Run {
    fn new() -> Self {
        let (supervisor, actions) = Supervisor::start(&SETTINGS, 0);
        assert_eq!(actions, [Action::Hold, Action::Start]);
        Self { supervisor, now: 0 }
    }

    fn serving() -> Self {
        let mut run = Self::new();
        run.on(Event::Alive);
        assert_eq!(run.supervisor.state(), State::Serving);
        run
    }

    fn on(&mut self, event: Event) -> Vec<Action> {
        self.supervisor.on(&SETTINGS, self.now, event)
    }

    /// Waits until something is due.
    fn due(&mut self) -> Vec<Action> {
        self.now = self.supervisor.due().unwrap();
        self.on(Event::Due)
    }

    /// The process ends, and nothing is left; returns the pause in milliseconds, `None` if there is none.
    fn crash(&mut self) -> Option<u64> {
        assert_eq!(self.on(Event::Exited), [Action::Hold, Action::TerminateRest]);
        let actions = self.on(Event::Cleared);
        match self.supervisor.due() {
            Some(due) => Some((due - self.now) / 1_000_000),
            None => {
                assert_eq!(actions, [Action::GiveUp]);
                None
            }
        }
    }
}

#[test]
fn a_crash_loop_is_slowed_down_and_given_up() {
    let mut run = Run::new();
    for pause in [100, 200, 400, 500, 500] {
        assert_eq!(run.crash(), Some(pause));
        assert_eq!(run.due(), [Action::Hold, Action::Start]);
    }
    assert_eq!(run.crash(), None);
    assert_eq!(run.supervisor.state(), State::Ended);
    assert_eq!(run.on(Event::Restart), []);
}

#[test]
fn an_app_that_has_served_for_a_while_begins_anew() {
    let mut run = Run::serving();
    for _ in 0..20 {
        run.now += 60 * SECOND;
        assert_eq!(run.crash(), Some(100));
        run.due();
        run.on(Event::Alive);
    }
    // Without that, not.
    run.now += 59 * SECOND;
    assert_eq!(run.crash(), Some(200));
}

#[test]
fn an_app_that_hangs_is_terminated_and_then_killed() {
    let mut run = Run::serving();
    assert_eq!(run.on(Event::Silent), []);
    assert_eq!(run.on(Event::Alive), []);
    assert_eq!(run.on(Event::Silent), []);
    assert_eq!(run.on(Event::Silent), [Action::Hold, Action::Terminate]);
    assert_eq!(run.supervisor.reason(), Reason::Hang);
    let began = run.now;
    assert_eq!(run.due(), [Action::Kill]);
    assert_eq!(run.now - began, 3 * SECOND);
    // As often as it takes.
    assert_eq!(run.due(), [Action::Kill]);
    assert_eq!(run.on(Event::Exited), [Action::Kill]);
    assert_eq!(run.on(Event::Cleared), []);
    assert_eq!(run.supervisor.state(), State::Waiting);
}

#[test]
fn an_app_that_never_responds_is_restarted() {
    let mut run = Run::new();
    assert_eq!(run.on(Event::Silent), []);
    assert_eq!(run.due(), [Action::Hold, Action::Terminate]);
    assert_eq!((run.now, run.supervisor.reason()), (60 * SECOND, Reason::StartTimeout));
}

#[test]
fn an_operators_restart_lets_requests_finish_and_is_not_counted() {
    let mut run = Run::serving();
    for _ in 0..20 {
        assert_eq!(run.on(Event::Restart), [Action::Hold]);
        assert_eq!(run.on(Event::Silent), [], "it need not respond meanwhile");
        assert_eq!(run.on(Event::Idle), [Action::Hold, Action::Terminate]);
        assert_eq!(run.on(Event::Restart), [], "it is on its way");
        assert_eq!(run.on(Event::Exited), [Action::Hold, Action::TerminateRest]);
        assert_eq!(run.on(Event::Cleared), [Action::Hold, Action::Start]);
        run.on(Event::Alive);
    }
    // Requests that do not finish do not keep it.
    run.on(Event::Restart);
    assert_eq!(run.due(), [Action::Hold, Action::Terminate]);
    assert_eq!(run.now, 10 * SECOND);
    // And it need not wait for a pause.
    run.on(Event::Exited);
    run.on(Event::Cleared);
    assert_eq!(run.crash(), Some(100));
    assert_eq!(run.on(Event::Restart), [Action::Hold, Action::Start]);
}

#[test]
fn a_shutdown_ends_it_in_every_state() {
    let ends = |mut run: Run, expected: &[Action]| {
        assert_eq!(run.on(Event::Stop), expected);
        if !expected.is_empty() {
            assert_eq!(run.supervisor.reason(), Reason::Shutdown);
        }
        if run.supervisor.state() != State::Ended {
            run.on(Event::Exited);
            assert_eq!(run.on(Event::Cleared), []);
        }
        assert_eq!(run.supervisor.state(), State::Ended);
    };
    let terminated = [Action::Hold, Action::Terminate];
    ends(Run::new(), &terminated);
    ends(Run::serving(), &terminated);
    let after = |events: &[Event]| {
        let mut run = Run::serving();
        events.iter().for_each(|event| drop(run.on(*event)));
        run
    };
    ends(after(&[Event::Restart]), &terminated);
    ends(after(&[Event::Restart, Event::Idle]), &[]);
    ends(after(&[Event::Exited]), &[]);
    ends(after(&[Event::Exited, Event::Cleared]), &[]);
    let mut run = after(&[Event::Stop]);
    assert_eq!(run.on(Event::Hurry), [Action::Kill]);
}

#[test]
fn processes_left_behind_are_killed_after_a_while() {
    let mut run = Run::serving();
    assert_eq!(run.on(Event::Exited), [Action::Hold, Action::TerminateRest]);
    assert_eq!(run.due(), [Action::Kill]);
    assert_eq!(run.now, 3 * SECOND);
    assert_eq!(run.due(), [Action::Kill]);
}
