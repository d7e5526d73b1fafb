//! Hits of a search as text and JSON.

use std::collections::BTreeMap;

use outrigger_policy::audit::EventType;
use outrigger_trail::entry::Entry;
use serde_json::Value;

use super::{Hit, Opener, with_revealed};
use crate::cli::audit::text;

/// The hits as text.
pub fn show(hits: &[Hit], opener: Option<&Opener>, json: bool) -> String {
    if json {
        let line = |hit: &Hit| {
            let revealed = Entry::parse(hit.line.as_bytes()).ok().and_then(|entry| opener?.open(&entry));
            text::safe_json(&with_revealed(&hit.line, revealed.as_ref())) + "\n"
        };
        return hits.iter().map(line).collect();
    }
    if hits.is_empty() {
        return "no entries match\n".to_owned();
    }
    let mut header = vec!["TIME", "TYPE", "OUTCOME", "STATUS", "ACTOR", "ROUTE", "RESOURCE", "REASON", "REQUEST"];
    if opener.is_some() {
        header.extend(["WHO", "FROM"]);
    }
    let mut rows = Vec::new();
    for hit in hits {
        let Ok(entry) = Entry::parse(hit.line.as_bytes()) else { continue };
        let mut row = vec![
            entry.time.to_owned(),
            what(&entry),
            entry.outcome.to_owned(),
            entry.status.map_or_else(String::new, |status| status.to_string()),
            entry.actor.id.to_owned(),
            entry.route.as_deref().unwrap_or_default().to_owned(),
            entry.resource.map(|resource| pairs(resource.get())).unwrap_or_default(),
            entry.reason.as_deref().unwrap_or_default().to_owned(),
            entry.request_id.as_deref().unwrap_or_default().to_owned(),
        ];
        if let Some(opener) = opener {
            let revealed = opener.open(&entry);
            let of = |name: &str| match (&revealed, entry.sealed) {
                (Some(revealed), _) => revealed.get(name).cloned().unwrap_or_default(),
                (None, Some(_)) => "(no key)".to_owned(),
                (None, None) => String::new(),
            };
            row.extend([of("actor"), of("address")]);
        }
        rows.push(row);
    }
    text::table(&header, &rows)
}

/// The type, and the action if it is not the type's usual one.
fn what(entry: &Entry<'_>) -> String {
    let says_more = EventType::named(entry.event).is_none_or(|event| event.action() != entry.action);
    if says_more { format!("{} {}", entry.event, entry.action) } else { entry.event.to_owned() }
}

/// `{"id":"42"}` as `id=42`.
fn pairs(object: &str) -> String {
    let Ok(members) = serde_json::from_str::<BTreeMap<String, Value>>(object) else { return object.to_owned() };
    let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    members.into_iter().map(|(name, value)| format!("{name}={}", text(value))).collect::<Vec<_>>().join(" ")
}
