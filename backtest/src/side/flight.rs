//! From the permit to the response: the queue, the circuit breaker and the recorded times of the app, as events on the virtual clock.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use outrigger_identity::client::Client;
use outrigger_mechanism::breakers::{SeenResponse, judge};
use outrigger_mechanism::limits::LimitedRequest;
use outrigger_policy::abuse::Offence;
use outrigger_policy::admission::{Ask, MOST_DISPLACED, Ticket, Turn, Verdict};
use outrigger_policy::breaker::{Failure, Outcome, Permit};
use outrigger_policy::concurrency::{Ended, Sample};
use outrigger_policy::flags::Mode;
use outrigger_policy::priority::Priority;
use outrigger_traffic::request::Facts;

use crate::past::Past;
use crate::side::Side;
use crate::tally::Place;

/// A request that waits for a permit or is with the app.
#[derive(Debug)]
struct Flight {
    past: Past,
    route: usize,
    place: Place,
    admission: Mode,
    is_counted: bool,
    is_beyond_monitored: bool,
    /// When it asked for a permit.
    asked: u64,
    /// When it was sent to the app.
    sent: u64,
    stage: Stage,
    /// Requests at the app when it was sent.
    in_flight: u32,
    /// It has a permit of the concurrency limit, which it returns.
    has_permit: bool,
    breaker: Option<(usize, Permit)>,
}

#[derive(Debug)]
enum Stage {
    Waiting(Ticket),
    AtApp,
}

/// All requests in flight, by number.
#[derive(Debug, Default)]
pub(super) struct Flights {
    all: Vec<(u32, Option<Flight>)>,
    free: Vec<u32>,
}

impl Flights {
    fn add(&mut self, flight: Flight) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.all.push((0, None));
            (self.all.len() - 1) as u32
        });
        if let Some((_, place)) = self.all.get_mut(number as usize) {
            *place = Some(flight);
        }
        number
    }

    fn get(&mut self, number: u32) -> Option<&mut Flight> {
        self.all.get_mut(number as usize)?.1.as_mut()
    }

    fn take(&mut self, number: u32) -> Option<Flight> {
        let (generation, place) = self.all.get_mut(number as usize)?;
        let flight = place.take()?;
        *generation = generation.wrapping_add(1);
        self.free.push(number);
        Some(flight)
    }

    /// The most that there were at a time.
    #[cfg(test)]
    pub(super) fn most(&self) -> usize {
        self.all.len()
    }

    fn generation(&self, number: u32) -> u32 {
        self.all.get(number as usize).map_or(0, |(generation, _)| *generation)
    }
}

/// Something that happens to a request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Event {
    at: u64,
    number: u32,
    /// Events of a request that has ended are void.
    generation: u32,
    kind: EventKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum EventKind {
    /// The head of the response arrives, or the attempt fails.
    Answered,
    /// It has waited for too long.
    GivesUp,
}

fn nanoseconds(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

impl Side<'_> {
    /// Lets everything happen that happens until `now`.
    pub(super) fn advance(&mut self, now: u64) {
        while let Some(Reverse(event)) = self.events.peek().copied()
            && event.at <= now
        {
            self.events.pop();
            if self.flights.generation(event.number) != event.generation {
                continue;
            }
            self.now = self.now.max(event.at);
            match event.kind {
                EventKind::Answered => self.answered(event.number),
                EventKind::GivesUp => self.gives_up(event.number),
            }
        }
        self.now = self.now.max(now);
    }

    /// Lets all requests end.
    pub fn finish(&mut self) {
        self.advance(u64::MAX);
    }

    fn happens(&mut self, at: u64, number: u32, kind: EventKind) {
        let generation = self.flights.generation(number);
        self.events.push(Reverse(Event { at, number, generation, kind }));
    }

    /// The circuit breaker and the permit, as the engine's `TURN`.
    pub(super) fn take_turn(
        &mut self,
        past: &Past,
        route: usize,
        place: Place,
        (admission, is_counted, is_beyond_monitored): (Mode, bool, bool),
    ) {
        let number = self.flights.add(Flight {
            past: *past,
            route,
            place,
            admission,
            is_counted,
            is_beyond_monitored,
            asked: self.now,
            sent: self.now,
            stage: Stage::AtApp,
            in_flight: 0,
            has_permit: false,
            breaker: None,
        });
        let config = self.config;
        let Some(rules) = config.routes.all().get(route) else { return };
        if let Some((breaker, settings, Mode::Enforce)) = self.breaker_of(rules, past) {
            let caller = self.caller(past, settings);
            let asked = self.breakers.get(breaker).map(|watched| &watched.breaker);
            if asked.is_some_and(|breaker| !breaker.is_calm() && breaker.refuses(self.now, caller).is_some()) {
                let reason = self.reasons.breaker.clone();
                return self.refuse(number, &reason);
            }
        }
        // In `monitor` requests are only counted, so they go on at once.
        if (admission, config.gate.mode) != (Mode::Enforce, Mode::Enforce) {
            return self.send(number);
        }
        let mut displaced = [None; MOST_DISPLACED];
        let mut empty = displaced.iter_mut();
        let ask = Ask { priority: rules.priority, client: past.client, now: self.now };
        let verdict = self.admission.ask(ask, |other, _| {
            if let Some(empty) = empty.next() {
                *empty = Some(other);
            }
        });
        for other in displaced.into_iter().flatten() {
            self.displaced(other);
        }
        match verdict {
            Verdict::Go => {
                let in_flight = self.admission.in_flight();
                if let Some(flight) = self.flights.get(number) {
                    (flight.has_permit, flight.in_flight) = (true, in_flight);
                }
                self.send(number);
            }
            Verdict::Wait(ticket) => {
                if let Some(waker) = self.admission.waker(&ticket) {
                    *waker = number;
                }
                if let Some(flight) = self.flights.get(number) {
                    flight.stage = Stage::Waiting(ticket);
                }
                let wait = config.gate.settings.max_wait.min(rules.timeout);
                self.happens(self.now.saturating_add(nanoseconds(wait)), number, EventKind::GivesUp);
            }
            Verdict::Refuse => {
                let reason = self.reasons.overloaded.clone();
                self.refuse(number, &reason);
            }
        }
    }

    /// A more important request has taken its place in the queue.
    fn displaced(&mut self, number: u32) {
        if let Some(Flight { stage, .. }) = self.flights.get(number)
            && let Stage::Waiting(ticket) = std::mem::replace(stage, Stage::AtApp)
        {
            let _ = self.admission.collect(ticket);
        }
        let reason = self.reasons.overloaded.clone();
        self.refuse(number, &reason);
    }

    fn gives_up(&mut self, number: u32) {
        let Some(flight) = self.flights.get(number) else { return };
        let Stage::Waiting(ticket) = &flight.stage else { return };
        let is_expired = self
            .config
            .routes
            .all()
            .get(flight.route)
            .is_some_and(|route| route.timeout <= self.config.gate.settings.max_wait);
        self.admission.abandon(ticket);
        let reason = if is_expired { self.reasons.expired.clone() } else { self.reasons.overloaded.clone() };
        self.refuse(number, &reason);
        self.grant();
    }

    /// Grants free permits to the next requests.
    fn grant(&mut self) {
        while let Some(number) = self.admission.grant() {
            let Some(flight) = self.flights.get(number) else { continue };
            let Stage::Waiting(ticket) = std::mem::replace(&mut flight.stage, Stage::AtApp) else { continue };
            if self.admission.collect(ticket) != Ok(Turn::Granted) {
                continue;
            }
            (flight.has_permit, flight.in_flight) = (true, self.admission.in_flight());
            let waited = self.now.saturating_sub(flight.asked);
            if !flight.place.is_before {
                self.tally.waits.add(waited);
            }
            self.send(number);
        }
    }

    /// Rejects a request for a reason that is not its client's fault.
    fn refuse(&mut self, number: u32, reason: &Arc<str>) {
        let Some(flight) = self.flights.take(number) else { return };
        self.tally.refused(flight.place, reason, false);
        if flight.is_counted {
            let client = self.client(&flight.past);
            if let Some(request) = self.limited_again(flight.route, flight.admission, &client) {
                self.books().give_back_all(request, flight.is_beyond_monitored);
            }
        }
    }

    fn limited_again<'r>(&'r self, number: usize, admission: Mode, client: &'r Client) -> Option<LimitedRequest<'r>> {
        let route = self.config.routes.all().get(number)?;
        Some(self.limited(number, route, client, admission))
    }

    /// Asks the circuit breaker, and sends the request to the app.
    fn send(&mut self, number: u32) {
        let Some((past, route)) = self.flights.get(number).map(|flight| (flight.past, flight.route)) else { return };
        let config = self.config;
        let Some(rules) = config.routes.all().get(route) else { return };
        let mut permit = None;
        if let Some((breaker, settings, mode)) = self.breaker_of(rules, &past) {
            let caller = self.caller(&past, settings);
            let now = self.now;
            let asked = self.breakers.get_mut(breaker).map(|watched| watched.breaker.ask(now, caller));
            match asked {
                Some(Ok(own)) => permit = Some((breaker, own)),
                Some(Err(_)) if mode == Mode::Enforce => {
                    if self.flights.get(number).is_some_and(|flight| flight.has_permit) {
                        self.admission.finish(past.client, rules.priority, now, 0);
                    }
                    let reason = self.reasons.breaker.clone();
                    return self.refuse(number, &reason);
                }
                _ => {}
            }
        }
        let shape = self.catalogue.shapes().get(past.shape as usize);
        let took = past.service_ns().unwrap_or_else(|| {
            let recorded = shape.map_or(0, |shape| shape.route);
            (self.guess)(recorded, self.draw())
        });
        let now = self.now;
        if let Some(flight) = self.flights.get(number) {
            (flight.sent, flight.breaker) = (now, permit);
        }
        self.happens(now.saturating_add(took), number, EventKind::Answered);
    }

    /// A random number, the same in each run.
    fn draw(&mut self) -> u64 {
        (self.dice() * u64::MAX as f64) as u64
    }

    /// The app's response arrives, or its failure shows.
    fn answered(&mut self, number: u32) {
        let Some(flight) = self.flights.take(number) else { return };
        let (past, now) = (flight.past, self.now);
        let failure = if past.facts.has(Facts::REJECTED) { "" } else { &**self.catalogue.name(past.reason) };
        let is_late = matches!(failure, "app_timeout" | "app_connect_timeout") && past.facts.has(Facts::HAD_LESS_TIME);
        if let Some((breaker, permit)) = flight.breaker {
            let took = Duration::from_nanos(now.saturating_sub(flight.sent));
            let outcome = self.outcome(&past, breaker, failure, is_late, took);
            let dice = self.dice();
            if let Some(watched) = self.breakers.get_mut(breaker) {
                watched.breaker.record(permit, now, outcome, dice);
            }
            self.look_at(breaker, flight.place.is_before);
        }
        if flight.has_permit {
            let ended = match failure {
                "" => Some(Ended::Answered),
                "app_timeout" if !is_late => Some(Ended::TimedOut),
                _ => None,
            };
            if let Some(ended) = ended {
                let class = self.route_tags.get(flight.route).map_or(0, |tag| (tag & 0xffff) as u16);
                self.admission.record(now, Sample { class, started: flight.sent, in_flight: flight.in_flight, ended });
            }
            let priority = self.config.routes.all().get(flight.route).map_or(Priority::Medium, |rules| rules.priority);
            self.admission.finish(past.client, priority, now, now.saturating_sub(flight.sent));
        }
        let offence = match past.status {
            401 | 403 => Some(Offence::LoginFailures),
            404 => Some(Offence::NotFound),
            _ => None,
        };
        if let Some(offence) = offence.filter(|_| flight.is_counted && past.facts.has(Facts::ANSWERED)) {
            let client = self.client(&past);
            self.offend(&client, offence, flight.admission);
            if let Some(request) = self.limited_again(flight.route, flight.admission, &client) {
                self.books().charge_failure(request, |_| None);
            }
        }
        if flight.has_permit {
            self.grant();
        }
    }

    /// How an attempt ended, for the circuit breaker: the engine's `breakers::ended`.
    fn outcome(&self, past: &Past, breaker: usize, failure: &str, is_late: bool, took: Duration) -> Outcome {
        if past.facts.has(Facts::REJECTED) {
            // It was not sent then: the app is taken to have responded.
            return Outcome::Success(took);
        }
        if past.facts.has(Facts::CLIENT_LEFT) || is_late {
            return Outcome::Ignored;
        }
        match failure {
            "" => {}
            "app_unreachable" | "app_connect_timeout" => return Outcome::Failure(Failure::Away),
            "internal" => return Outcome::Ignored,
            _ => return Outcome::Failure(Failure::Silent),
        }
        let response = SeenResponse {
            status: past.status,
            says_when: past.facts.has(Facts::SAYS_WHEN),
            had_less_time: past.facts.has(Facts::HAD_LESS_TIME),
            counts_429: self.config.breakers.get(breaker).is_some_and(|rules| rules.counts_429),
        };
        match judge(response) {
            None => Outcome::Ignored,
            Some(Ok(())) => Outcome::Success(took),
            Some(Err(failure)) => Outcome::Failure(failure),
        }
    }
}
