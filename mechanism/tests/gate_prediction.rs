//! `monitor` predicts what `enforce` rejects, in simulated time: an app with four workers gets nearly three times what it can do.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use outrigger_mechanism::gate::{Entry, Gate, Permit, Waiting, Wish};
use outrigger_policy::admission::Settings;
use outrigger_policy::concurrency;
use outrigger_policy::flags::Mode;
use outrigger_policy::priority::Priority;

const WORKERS: usize = 4;
const SERVICE: Duration = Duration::from_millis(50);
const TICK: Duration = Duration::from_micros(250);
const MAX_WAIT: Duration = Duration::from_secs(1);
/// Requests a second.
const LOAD: [(Priority, u32); 2] = [(Priority::Low, 160), (Priority::High, 60)];

/// The requests of one run.
struct Run {
    gate: Arc<Gate>,
    mode: Mode,
    now: Instant,
    waiting: VecDeque<(Instant, Priority, Waiting)>,
    at_app: VecDeque<Permit>,
    served: Vec<(Instant, Permit)>,
    answered: usize,
    refused: BTreeMap<&'static str, u32>,
}

impl Run {
    fn new(mode: Mode) -> Self {
        let concurrency = concurrency::Settings { min: 1, max: 1000, initial: 20 };
        let settings = Settings { concurrency, max_wait: MAX_WAIT, max_queue: 1000, max_held: 1000 };
        Self {
            gate: Arc::new(Gate::new(settings)),
            mode,
            now: Instant::now(),
            waiting: VecDeque::new(),
            at_app: VecDeque::new(),
            served: Vec::new(),
            answered: 0,
            refused: BTreeMap::new(),
        }
    }

    fn arrives(&mut self, priority: Priority) {
        let wish = Wish { priority, client: 1, class: 0, mode: self.mode, is_guest: false };
        let refused = &mut self.refused;
        let mut count = |priority: Priority| *refused.entry(priority.name()).or_default() += 1;
        match self.gate.ask(wish, self.now, &mut count) {
            Entry::Go(permit) => self.at_app.push_back(permit),
            Entry::Wait(waiting) => self.waiting.push_back((self.now, priority, waiting)),
            Entry::Refused => count(priority),
        }
    }

    /// Lets the app work until now, and the requests that wait take their turn.
    fn goes_on(&mut self) {
        let now = self.now;
        let (done, at_work) = std::mem::take(&mut self.served).into_iter().partition(|(until, _)| *until <= now);
        self.served = at_work;
        for (until, mut permit) in Vec::from_iter::<Vec<(Instant, Permit)>>(done) {
            permit.answered(until);
            self.answered += 1;
        }
        let mut cx = Context::from_waker(Waker::noop());
        for (since, priority, mut waiting) in std::mem::take(&mut self.waiting) {
            match waiting.poll_turn(&mut cx) {
                Poll::Ready(Some(mut permit)) => {
                    permit.sent(now);
                    self.at_app.push_back(permit);
                }
                Poll::Pending if now - since < MAX_WAIT => self.waiting.push_back((since, priority, waiting)),
                Poll::Ready(None) | Poll::Pending => *self.refused.entry(priority.name()).or_default() += 1,
            }
        }
        while self.served.len() < WORKERS
            && let Some(permit) = self.at_app.pop_front()
        {
            self.served.push((now + SERVICE, permit));
        }
    }

    /// Returns what was refused in five seconds, after three seconds for the start.
    fn refused(mut self) -> (BTreeMap<&'static str, u32>, usize) {
        let began = self.now;
        let mut sent = [0; LOAD.len()];
        let mut before = None;
        while self.now - began < Duration::from_secs(8) {
            self.now += TICK;
            let age = self.now - began;
            for ((priority, rate), sent) in LOAD.into_iter().zip(&mut sent) {
                if age.as_secs_f64() * f64::from(rate) >= f64::from(*sent) {
                    *sent += 1;
                    self.arrives(priority);
                }
            }
            self.goes_on();
            if age >= Duration::from_secs(3) && before.is_none() {
                before = Some(self.refused.clone());
            }
        }
        let before = before.unwrap_or_default();
        for (priority, count) in &mut self.refused {
            *count -= before.get(priority).copied().unwrap_or_default();
        }
        (self.refused, self.answered)
    }
}

#[test]
fn monitor_predicts_what_enforce_rejects() {
    let (enforced, served) = Run::new(Mode::Enforce).refused();
    let (predicted, answered) = Run::new(Mode::Monitor).refused();
    println!("{enforced:?} refused, {predicted:?} predicted; {served} and {answered} served");
    let [enforced_low, predicted_low] = [&enforced, &predicted].map(|refused| f64::from(refused["low"]));
    // 220 a second, of which the app can do 80.
    assert!((680.0..=720.0).contains(&enforced_low), "{enforced_low} of about 700");
    assert!(
        (predicted_low - enforced_low).abs() <= 0.05 * enforced_low,
        "{predicted_low} predicted, {enforced_low} refused"
    );
    assert_eq!(
        [enforced.get("high"), predicted.get("high")],
        [None, None],
        "what matters fits into what the app can do"
    );
    assert!(served >= 620 && answered >= 620, "the app is kept busy: {served}, {answered} of 640");
}
