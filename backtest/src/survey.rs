//! The first reading: when the requests were, how many, and how long the app took on each route.

use std::collections::HashMap;

use outrigger_traffic::request::Facts;

use crate::order::{MOST_LONG, is_long};
use crate::past::{Catalogue, Past};
use crate::source::{Source, SourceError};

/// The times of the app that are kept for a route.
const SAMPLES: usize = 512;
/// Without any recorded time: 10 ms.
const USUAL_NS: u64 = 10_000_000;

/// Random numbers that are the same in each run (xorshift64*).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of this number.
    pub const fn new(seed: u64) -> Self {
        Self(if seed == 0 { 1 } else { seed })
    }

    /// The next number.
    pub const fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// A fair sample of the times of the app (reservoir sampling, Vitter's algorithm R).
#[derive(Clone, Debug, Default)]
struct Reservoir {
    times_ns: Vec<u64>,
    seen: u64,
}

impl Reservoir {
    fn add(&mut self, time_ns: u64, random: &mut Random) {
        self.seen += 1;
        if self.times_ns.len() < SAMPLES {
            self.times_ns.push(time_ns);
            return;
        }
        let place = random.draw() % self.seen;
        if let Some(kept) = self.times_ns.get_mut(place as usize) {
            *kept = time_ns;
        }
    }
}

/// How long the app took, for requests that it was not asked for.
#[derive(Clone, Debug, Default)]
pub struct Services {
    by_route: HashMap<u16, Reservoir, foldhash::fast::RandomState>,
    all: Reservoir,
}

impl Services {
    /// A time of the app for a request on this route.
    pub fn sample(&self, route: u16, random: &mut Random) -> u64 {
        let times = &self.by_route.get(&route).unwrap_or(&self.all).times_ns;
        let times = if times.is_empty() { &self.all.times_ns } else { times };
        let place = random.draw() % (times.len() as u64).max(1);
        times.get(place as usize).copied().unwrap_or(USUAL_NS)
    }
}

/// The result of the first reading.
#[derive(Debug, Default)]
pub struct Survey {
    /// The number of requests.
    pub requests: u64,
    /// When the first one began, and the last one: nanoseconds since 1970.
    pub span: Option<(u64, u64)>,
    /// Requests that were not sent to the app, but may be under other rules.
    pub without_time: u64,
    /// How long the app took.
    pub services: Services,
    /// Requests that took long.
    pub long: Vec<Past>,
    /// All of them are in `long`.
    pub has_all_long: bool,
}

impl Survey {
    /// Reads all requests between two times.
    ///
    /// # Errors
    /// They cannot be read, or the time has no requests.
    pub fn of(
        source: &dyn Source,
        between: (u64, u64),
        catalogue: &mut Catalogue,
        notes: &mut Vec<String>,
    ) -> Result<Self, SourceError> {
        let mut survey = Self { has_all_long: true, ..Self::default() };
        let mut random = Random::new(0x0073_7572_7665_7921);
        source.each(between, catalogue, notes, &mut |past, catalogue| {
            survey.requests += 1;
            let (first, last) = survey.span.unwrap_or((past.at_ns, past.at_ns));
            survey.span = Some((first.min(past.at_ns), last.max(past.at_ns)));
            if is_long(past) {
                if survey.long.len() < MOST_LONG {
                    survey.long.push(*past);
                } else {
                    survey.has_all_long = false;
                }
            }
            match past.service_ns() {
                Some(time) => {
                    let route = catalogue.shapes().get(past.shape as usize).map_or(0, |shape| shape.route);
                    survey.services.by_route.entry(route).or_default().add(time, &mut random);
                    survey.services.all.add(time, &mut random);
                }
                None if past.facts.has(Facts::REJECTED) => survey.without_time += 1,
                None => {}
            }
        })?;
        if survey.requests == 0 {
            return Err(SourceError::Empty(source.name()));
        }
        if !survey.has_all_long {
            // They are taken where they ended, all of them, so that no request comes twice.
            survey.long = Vec::new();
        }
        Ok(survey)
    }
}
