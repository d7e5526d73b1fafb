//! The audit log as past requests. It has only those that it is configured to have, and less about each than the traffic record: no path, and
//! the whole time of a request instead of the app's.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;
use outrigger_backtest::past::{Catalogue, Past, bounded_us};
use outrigger_backtest::source::{Source, SourceError};
use outrigger_policy::audit::Outcome;
use outrigger_policy::tier::Tier;
use outrigger_traffic::checksum;
use outrigger_traffic::request::{ClientKind, Facts};
use outrigger_trail::entry::Entry;
use serde::Deserialize;

use crate::cli::audit::requests::{Wanted, each_request};

/// Maximum number of requests, of about 60 bytes each.
const MOST_REQUESTS: usize = 2_000_000;
/// Maximum number of rejections that one entry counts for.
const MOST_OF_ENTRY: u64 = 100_000;

/// Requests of the audit log.
#[derive(Debug, Default)]
pub(super) struct AuditSource {
    /// With numbers of `texts` in place of those of a catalogue: the shape is a method and a route.
    requests: Vec<(Past, (u32, u32))>,
    texts: Vec<String>,
    notes: Vec<String>,
    is_database: bool,
}

/// The members of an entry's details that matter here.
#[derive(Debug, Default, Deserialize)]
struct Details {
    limit: Option<String>,
    count: Option<u64>,
}

/// The numbers of texts.
#[derive(Default)]
struct Texts {
    all: Vec<String>,
    numbers: HashMap<String, u32>,
}

impl Texts {
    fn number(&mut self, text: &str) -> u32 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let number = self.all.len() as u32;
        self.all.push(text.to_owned());
        self.numbers.insert(text.to_owned(), number);
        number
    }
}

impl AuditSource {
    /// Reads the audit log.
    ///
    /// # Errors
    /// It cannot be read, or has too many entries.
    pub(super) fn read(wanted: &Wanted) -> Result<Self, String> {
        let mut texts = Texts::default();
        // Number 0 is no name, as in a catalogue.
        texts.number("");
        let (mut requests, mut machines, mut beyond) = (Vec::new(), BTreeSet::new(), 0);
        let mut each = |entry: &Entry<'_>, time: Timestamp| {
            let details = entry.details.and_then(|details| serde_json::from_str(details.get()).ok());
            let Details { limit, count } = details.unwrap_or_default();
            let count = count.unwrap_or(1).min(MOST_OF_ENTRY);
            beyond += count - 1;
            if machines.len() < 100 {
                machines.insert(entry.machine.clone().into_owned());
            }
            let method = texts.number(entry.method.as_deref().unwrap_or("GET"));
            let route = texts.number(entry.route.as_deref().unwrap_or_default());
            let reason = texts.number(entry.reason.as_deref().unwrap_or_default());
            let limit = texts.number(limit.as_deref().unwrap_or_default());
            let past = past(entry, time, (reason, limit));
            requests.extend((0..count).map(|_| (past, (method, route))));
            requests.len() <= MOST_REQUESTS
        };
        each_request(wanted, &mut each).map_err(|e| e.to_string())?;
        if requests.len() > MOST_REQUESTS {
            return Err(format!(
                "the audit log has more than {MOST_REQUESTS} requests of that time: name a shorter one with --since and --until"
            ));
        }
        requests.sort_by_key(|(past, _)| past.ended_ns());
        let mut notes = vec![
            "the audit log has only requests of routes with `audit`, rejections, and those of a sampled flag: limits that other requests \
             use up, too, are predicted as too loose"
                .to_owned(),
            "it has no paths, so each request keeps the route of its name, and no time of the app, so the whole time of a request is \
             taken for it"
                .to_owned(),
        ];
        if beyond > 0 {
            notes.push(format!("{beyond} rejections of floods are known by their number only, not by client"));
        }
        if machines.len() > 1 {
            notes.push(format!(
                "it has requests of {} Machines, replayed as if one had had them all; name one with --machine",
                machines.len()
            ));
        }
        Ok(Self { requests, texts: texts.all, notes, is_database: wanted.database.is_some() })
    }
}

fn past(entry: &Entry<'_>, time: Timestamp, (reason, limit): (u32, u32)) -> Past {
    let ended_ns = u64::try_from(time.as_nanosecond()).unwrap_or_default();
    let total_us = bounded_us(entry.duration_us.unwrap_or_default());
    let hash = |text: &str| checksum(text.as_bytes());
    let client = hash(entry.actor.id);
    let is_rejected = entry.outcome == Outcome::Refused.name();
    let number = |text: u32| u16::try_from(text).unwrap_or_default();
    let facts = Facts::COUNTED_HERE
        .with(Facts::FOR_APP, true)
        .with(Facts::REJECTED, is_rejected)
        .with(Facts::CLIENT_LEFT, entry.reason.as_deref() == Some("client_closed"))
        .with(Facts::ANSWERED, !is_rejected && reason == 0);
    Past {
        at_ns: ended_ns.saturating_sub(u64::from(total_us) * 1000),
        client,
        address: entry.client.map_or(client, hash),
        total_us,
        status: entry.status.unwrap_or(200),
        reason: number(reason),
        limit: number(limit),
        facts,
        tier: entry.actor.tier.as_deref().and_then(|tier| tier.parse::<Tier>().ok()).unwrap_or_default(),
        kind: match entry.actor.kind {
            "user" => ClientKind::User,
            "key" => ClientKind::Key,
            _ => ClientKind::Address,
        },
        ..Past::BLANK
    }
    .served_in((!is_rejected).then_some(u64::from(total_us)))
}

impl Source for AuditSource {
    fn each(
        &self,
        (from, until): (u64, u64),
        catalogue: &mut Catalogue,
        notes: &mut Vec<String>,
        each: &mut dyn FnMut(&Past, &Catalogue),
    ) -> Result<(), SourceError> {
        notes.extend(self.notes.iter().cloned());
        let names: Vec<u16> = self.texts.iter().map(|text| catalogue.name_number(text)).collect();
        let name = |number: u16| names.get(usize::from(number)).copied().unwrap_or_default();
        let text = |number: u32| self.texts.get(number as usize).map_or("", String::as_str);
        let mut shapes = HashMap::new();
        for (past, kind) in &self.requests {
            if !(from..until).contains(&past.at_ns) {
                continue;
            }
            let shape = *shapes.entry(*kind).or_insert_with(|| catalogue.shape(text(kind.0), "", "", text(kind.1), ""));
            if let Some(shape) = shape {
                each(&Past { shape, reason: name(past.reason), limit: name(past.limit), ..*past }, catalogue);
            }
        }
        Ok(())
    }

    fn name(&self) -> String {
        if self.is_database { "the audit log in PostgreSQL".to_owned() } else { "the audit log".to_owned() }
    }
}
