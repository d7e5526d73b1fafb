//! Replays past requests under the rules in force and under proposed ones.

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use outrigger_policy::flags::Feature;
use outrigger_rules::config::Config;
use outrigger_traffic::request::Facts;

use crate::order::Order;
use crate::past::{Catalogue, Past};
use crate::report::{Counts, Report, Three};
use crate::side::{Circumstances, Reasons, Side};
use crate::source::{Source, SourceError};
use crate::survey::{Random, Survey};
use crate::tally::{Names, Place, Tally};

/// Requests from this long before `since` are replayed as well, uncounted: limits are not full at `since`.
pub const WARM_UP_NS: u64 = 3_600_000_000_000;
/// Spans of time that are counted separately.
const MOST_SPANS: u64 = 240;
const SECOND_NS: u64 = 1_000_000_000;
/// The virtual clock begins long after 0, as the clock of a process does.
const CLOCK_BEGINS: u64 = 1 << 50;

/// The two files of rules that are compared, and the time.
#[derive(Clone, Copy, Debug)]
pub struct Question<'c> {
    /// The rules that were in force.
    pub in_force: &'c Config,
    /// The proposed rules.
    pub proposed: &'c Config,
    /// The time that is looked at: nanoseconds since 1970.
    pub between: (u64, u64),
    /// The number of Machines that share rate limits.
    pub machines: u32,
}

/// Replays the requests of `source`.
///
/// # Errors
/// They cannot be read, or the time has no requests.
pub fn run(source: &dyn Source, question: Question<'_>) -> Result<Report, SourceError> {
    let began = Instant::now();
    let (since, until) = question.between;
    let between = (since.saturating_sub(WARM_UP_NS), until);
    let (mut catalogue, mut notes) = (Catalogue::of(&[question.in_force, question.proposed]), Vec::new());
    let survey = Survey::of(source, between, &mut catalogue, &mut notes)?;
    let Some((first, last)) = survey.span.filter(|(_, last)| *last >= since) else {
        return Err(SourceError::Empty(source.name()));
    };
    let from = first.max(since);
    let span_s = (last - from) / SECOND_NS / MOST_SPANS + 1;
    let spans = usize::try_from((last - from) / SECOND_NS / span_s + 1).unwrap_or(1);

    // The second reading adds to a copy what was recorded meanwhile, which the sides do not know.
    let (frozen, mut scratch) = (catalogue.clone(), catalogue);
    let (mut routes, mut limits) = (Names::default(), Names::default());
    let services = &survey.services;
    let guess = |route: u16, seed: u64| services.sample(route, &mut Random::new(seed));
    let circumstances = Circumstances {
        catalogue: &frozen,
        in_force: question.in_force,
        guess: &guess,
        machines: question.machines,
        spans,
    };
    let mut in_force = Side::new(question.in_force, circumstances, &mut routes, &mut limits);
    let mut proposed = Side::new(question.proposed, circumstances, &mut routes, &mut limits);
    let mut recorded = Recorded::new(&frozen, spans, &mut routes, limits);
    let mut now = CLOCK_BEGINS;
    let mut replay = |past: &Past| {
        // Requests that are out of order all the same arrive now.
        now = now.max(CLOCK_BEGINS + past.at_ns.saturating_sub(first));
        let place = Place {
            route: 0,
            tier: past.tier,
            time: usize::try_from(past.at_ns.saturating_sub(from) / SECOND_NS / span_s).unwrap_or_default(),
            client: (past.client, past.kind),
            is_before: past.at_ns < from,
        };
        recorded.count(past, place);
        in_force.arrive(past, now, place);
        proposed.arrive(past, now, place);
    };
    let mut order = Order::new(survey.long, survey.has_all_long);
    // Notes of this reading were made by the first one.
    source.each(between, &mut scratch, &mut Vec::new(), &mut |past, _| order.push(past, &mut replay))?;
    order.finish(&mut replay);
    in_force.finish();
    proposed.finish();

    let by_name = in_force.by_name.max(proposed.by_name);
    add_notes(&mut notes, question, (survey.without_time, by_name, survey.has_all_long));
    let counts = Counts {
        recorded: &recorded.tally,
        in_force: &in_force.tally,
        proposed: &proposed.tally,
        routes: &routes,
        limits: &recorded.names,
    };
    let span = Span { from, last, span_s };
    Ok(report_of(source.name(), &counts, span, (survey.requests, began.elapsed().as_secs_f64()), notes))
}

/// The time that is looked at, and the length of a part of it that is counted separately.
#[derive(Clone, Copy, Debug)]
struct Span {
    from: u64,
    last: u64,
    span_s: u64,
}

fn report_of(
    source: String,
    counts: &Counts<'_>,
    Span { from, last, span_s }: Span,
    (replayed, seconds): (u64, f64),
    notes: Vec<String>,
) -> Report {
    let optional = |of: fn(&Tally) -> u64| Three {
        recorded: None,
        in_force: Some(of(counts.in_force)),
        proposed: Some(of(counts.proposed)),
    };
    Report {
        source,
        from: shown(from),
        until: shown(last),
        replayed,
        seconds,
        requests_per_second: replayed as f64 / seconds.max(1e-9),
        requests: counts.recorded.total().requests,
        rejected: counts.rejected(),
        monitored: optional(|tally| tally.monitored),
        bans: optional(|tally| tally.bans),
        breakers: counts.named(|tally| &tally.openings),
        reasons: counts.named(|tally| &tally.by_reason),
        limits: counts.by_limit(),
        routes: counts.by_route(),
        clients: counts.by_client(),
        waits: counts.waits(),
        fidelity: counts.fidelity(),
        over_time: counts.over_time(from, span_s),
        notes,
    }
}

fn shown(ns: u64) -> String {
    let second = Timestamp::from_second(i64::try_from(ns / SECOND_NS).unwrap_or_default());
    second.map_or_else(|_| ns.to_string(), |second| second.to_string())
}

/// Adds remarks about the limits of a replay.
fn add_notes(notes: &mut Vec<String>, question: Question<'_>, (without_time, by_name, has_all_long): (u64, u64, bool)) {
    let (old, new) = (question.in_force, question.proposed);
    if without_time > 0 {
        notes.push(format!(
            "{without_time} requests were rejected then, so the app's time for them is not known: where a file admits one, it takes a \
             time drawn from those of its route, and the app is taken to respond with success"
        ));
    }
    if by_name > 0 {
        notes.push(format!(
            "{by_name} requests have a path that does not lead to their recorded route, so they have the route of that name"
        ));
    }
    if [old, new].iter().any(|config| config.limits.sharing.is_some()) {
        notes.push(format!(
            "shared rate limits: this Machine's share of one {}; name the number of them with --machines",
            if question.machines == 1 { "Machine".to_owned() } else { format!("of {} Machines", question.machines) }
        ));
    }
    let depends =
        |feature| old.flag(feature).mode_for_everybody().is_none() || new.flag(feature).mode_for_everybody().is_none();
    if depends(Feature::PrioritizedRateLimit) || depends(Feature::CircuitBreaker) {
        notes.push("flags that depend on the client have the recorded mode of each request".to_owned());
    }
    if !old.abuse.allow.is_empty() || !new.abuse.allow.is_empty() {
        notes.push("abuse.allow has no effect: the record has no addresses".to_owned());
    }
    if !has_all_long {
        notes.push(
            "too many requests took longer than 15s: they are replayed as if they had begun when they ended".to_owned(),
        );
    }
}

/// The rejections as recorded.
struct Recorded<'c> {
    catalogue: &'c Catalogue,
    reasons: Reasons,
    /// The number of each shape's route in the report.
    routes: Vec<usize>,
    limits: Vec<Option<usize>>,
    /// Names of limits.
    names: Names,
    tally: Tally,
}

impl<'c> Recorded<'c> {
    fn new(catalogue: &'c Catalogue, spans: usize, routes: &mut Names, names: Names) -> Self {
        let number = |shape: &crate::past::PastShape| routes.number(catalogue.name(shape.route));
        let routes = catalogue.shapes().iter().map(number).collect();
        Self { catalogue, reasons: Reasons::default(), routes, limits: Vec::new(), names, tally: Tally::new(spans) }
    }

    fn count(&mut self, past: &Past, place: Place) {
        // One that was recorded between the two readings may have a shape that is not known.
        let Some(route) = self.routes.get(past.shape as usize).copied() else { return };
        let place = Place { route, ..place };
        self.tally.asked(place);
        if !place.is_before {
            self.tally.waits.add(u64::from(past.queued_us) * 1000);
        }
        if past.facts.has(Facts::REJECTED) {
            let reason: &Arc<str> = self.catalogue.name(past.reason);
            self.tally.refused(place, reason, !self.reasons.has(reason));
            if past.limit > 0 {
                let row = self.limit(past.limit);
                self.tally.limited(place, row);
            }
        }
    }

    fn limit(&mut self, number: u16) -> usize {
        let at = usize::from(number);
        if at >= self.limits.len() {
            self.limits.resize(at + 1, None);
        }
        *self.limits[at].get_or_insert_with(|| self.names.number(self.catalogue.name(number)))
    }
}

#[cfg(test)]
mod tests;
