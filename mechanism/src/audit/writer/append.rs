//! Adds events to the chains.

use std::sync::atomic::Ordering;
use std::time::Duration;

use outrigger_policy::audit::{Class, Draft, Outcome, Time, uuid_v7};
use outrigger_trail::spool::{self, Dropped, OPERATOR, Placed, SYSTEM, Spool};
use outrigger_wire::random::random;
use serde_json::json;

use crate::audit::basis::AuditBasis;
use crate::audit::event::{Act, Event, Item};
use crate::audit::identities;
use crate::audit::queue::Trail;
use crate::audit::refusals::{Beyond, Refusal};
use crate::audit::writer::Writer;
use crate::audit::writer::clock::Clock;

/// The smallest step back of the clock that is logged.
const CLOCK_STEP: Duration = Duration::from_secs(1);

/// Events that are missing in a chain.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lost {
    pub(super) count: u64,
    why: &'static str,
    from: Time,
    to: Time,
}

impl Lost {
    pub(super) fn add(&mut self, count: u64, why: &'static str, now: Time) {
        if self.count == 0 {
            (self.from, self.why) = (now, why);
        }
        self.count += count;
        self.to = now;
    }
}

impl Writer {
    /// Adds the number of lost events to the chains. Returns what was added: it is reset by the commit.
    pub(super) fn write_gaps(&mut self, trail: &Trail) -> [Lost; Class::ALL.len()] {
        for class in Class::ALL {
            let found_no_room = trail.lost[class as usize].swap(0, Ordering::Relaxed);
            if found_no_room > 0 {
                self.lost[class as usize].add(found_no_room, "queue_full", self.clock.time);
            }
        }
        let now = self.clock.time;
        let Some(spool) = &mut self.spool else { return self.lost };
        let basis = trail.basis();
        let machine = basis.audit.machine.as_str();
        for class in Class::ALL {
            let lost = self.lost[class as usize];
            if lost.count == 0 {
                continue;
            }
            let (from, to) = (lost.from.to_string(), lost.to.to_string());
            let signed = format!("{} {} {} {} {from} {to}", spool.chain_id(), class.name(), lost.count, lost.why);
            let signature = self.keys.sign(signed.as_bytes());
            let details = json!({
                "lost": lost.count, "why": lost.why, "from": from, "to": to,
                "key": signature.key, "signature": signature.signature,
            });
            let details = details.to_string();
            let id = uuid_v7(now, (random(), random()));
            spool.append_to(
                class,
                &Draft { outcome: Outcome::Error, ..spool::system(id, now, machine, "audit.gap", &details) },
            );
        }
        self.lost
    }

    pub(super) fn append(&mut self, basis: &AuditBasis, item: &Item) -> Option<(u128, Placed)> {
        let spool = self.spool.as_mut()?;
        let machine = basis.audit.machine.as_str();
        let (time, now) = (self.clock.of(item.at()), self.clock.instant);
        let id = uuid_v7(time, (random(), random()));
        let class = item.event().class();
        let placed = match item {
            Item::Request(event) => {
                let who = self.identities.of(&event.who, class, now, |key| spool.add_key(class, key)).unwrap_or(SYSTEM);
                append_request(spool, basis, event, Draft::new(id, time, machine, event.event, event.outcome, who))
            }
            Item::Act(act) => {
                let named;
                let who = match (&act.who, &act.subject) {
                    (Some(who), _) => {
                        self.identities.of(who, class, now, |key| spool.add_key(class, key)).unwrap_or(SYSTEM)
                    }
                    (None, Some(subject)) => match identities::named(&self.keys, subject) {
                        Some(text) => {
                            named = text;
                            &*named
                        }
                        None => OPERATOR,
                    },
                    (None, None) if act.is_operator => OPERATOR,
                    (None, None) => SYSTEM,
                };
                append_act(spool, act, Draft::new(id, time, machine, act.event, act.outcome, who))
            }
        };
        Some((id, placed))
    }

    /// Adds an event for rejections that are not logged one by one.
    pub(super) fn append_beyond(&mut self, refusal: &Refusal, beyond: &Beyond) {
        let (event, route, reason, limit) = *refusal;
        let Some(spool) = &mut self.spool else { return };
        let basis = &beyond.rules;
        let now = self.clock.time;
        let mut details = json!({ "count": beyond.count, "from": beyond.from.to_string(), "to": now.to_string() });
        if let Some(limit) = limit.and_then(|limit| basis.limit(limit)) {
            details["limit"] = limit.into();
        }
        let details = details.to_string();
        let id = uuid_v7(now, (random(), random()));
        spool.append(&Draft {
            route: basis.route(route).map(|route| &*route.name),
            status: Some(beyond.status),
            reason: Some(reason),
            details: Some(&details),
            ..Draft::new(id, now, &basis.audit.machine, event, Outcome::Refused, SYSTEM)
        });
    }

    /// Logs that the clock was set back, which explains the order of events.
    pub(super) fn note_clock(&mut self) {
        let now = Clock::now();
        let expected = self.clock.of(now.instant);
        let back = Duration::from_micros(u64::try_from(expected.0.saturating_sub(now.time.0)).unwrap_or(0));
        self.clock = now;
        if back < CLOCK_STEP {
            return;
        }
        let basis = self.trail.basis();
        let details = json!({ "expected": expected.to_string(), "back_ms": back.as_millis() as u64 }).to_string();
        if let Some(spool) = &mut self.spool {
            let id = uuid_v7(now.time, (random(), random()));
            spool.append(&spool::system(id, now.time, &basis.audit.machine, "audit.clock_set_back", &details));
        }
    }

    /// Logs a segment that was deleted, with the next commit.
    pub(super) fn note_dropped(&mut self, dropped: &Dropped, why: &str) {
        let Some(spool) = &mut self.spool else { return };
        let basis = self.trail.basis();
        let details = json!({
            "where": "spool", "why": why, "class": dropped.class.name(), "first": dropped.first, "last": dropped.last,
            "count": dropped.last - dropped.first + 1, "bytes": dropped.bytes,
        });
        let id = uuid_v7(self.clock.time, (random(), random()));
        spool.append(&spool::system(
            id,
            self.clock.time,
            &basis.audit.machine,
            "audit.retention",
            &details.to_string(),
        ));
    }
}

fn append_request(spool: &mut Spool, basis: &AuditBasis, event: &Event, draft: Draft<'_>) -> Placed {
    let route = basis.route(event.route);
    let mut details = event.evidence.as_ref().map(|evidence| evidence.shown()).unwrap_or_default();
    if let Some(limit) = event.limit.and_then(|limit| basis.limit(limit)) {
        details.insert("limit".to_owned(), limit.into());
    }
    let details = (!details.is_empty()).then(|| serde_json::Value::from(details).to_string());
    let draft = Draft {
        details: details.as_deref(),
        request_id: Some(event.request_id.as_str()),
        trace_id: event.trace.map(u128::from_be_bytes),
        method: Some(event.method.as_str()),
        route: route.map(|route| &*route.name),
        status: Some(event.status),
        duration_us: Some(u64::try_from(event.duration.as_micros()).unwrap_or(u64::MAX)),
        reason: event.reason,
        ..draft
    };
    let Some(captured) = &event.captured else { return spool.append(&draft) };
    let names = &basis.audit.headers;
    let headers: Vec<(&str, &[u8])> =
        captured.headers.iter().filter_map(|(at, value)| Some((names.get(*at)?.as_str(), &**value))).collect();
    let names = route.map_or(&[][..], |route| &route.parameters);
    let resource: Vec<(&str, &[u8])> =
        captured.resource.iter().filter_map(|(at, value)| Some((&**names.get(*at)?, &**value))).collect();
    spool.append(&Draft { headers: &headers, resource: &resource, ..draft })
}

fn append_act(spool: &mut Spool, act: &Act, draft: Draft<'_>) -> Placed {
    spool.append(&Draft {
        request_id: act.request_id.as_ref().map(outrigger_wire::request_id::RequestId::as_str),
        action: Some(act.action),
        reason: act.reason.as_deref(),
        details: act.details.as_deref(),
        ..draft
    })
}
