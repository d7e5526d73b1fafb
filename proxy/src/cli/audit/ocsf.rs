//! Entries as events of the Open Cybersecurity Schema Framework, for a SIEM that reads it: docs/audit.md has the table.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use outrigger_trail::entry::Entry;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

/// The version of OCSF.
const VERSION: &str = "1.5.0";
const OTHER: u32 = 99;

/// An entry as an event: Authentication (3002), HTTP Activity (4002), or, without a request, Base Event (0).
pub(super) fn event(entry: &Entry<'_>, revealed: Option<&BTreeMap<String, String>>) -> Value {
    let (class, category, activity) = match (entry.event, entry.method.as_deref()) {
        ("auth.login" | "auth.failed", _) => (3002, 3, 1),
        ("auth.logout", _) => (3002, 3, 2),
        (event, _) if event.starts_with("auth.") => (3002, 3, OTHER),
        (_, Some(method)) => (4002, 4, activity_of(method)),
        (_, None) => (0, 0, OTHER),
    };
    let is_refused = entry.outcome == "refused";
    let mut event = Map::new();
    let mut set = |name: &str, value: Value| {
        if !value.is_null() {
            event.insert(name.to_owned(), value);
        }
    };
    set("class_uid", class.into());
    set("category_uid", category.into());
    set("activity_id", activity.into());
    set("type_uid", (class * 100 + activity).into());
    set("severity_id", severity_of(entry).into());
    set("status_id", if entry.outcome == "success" { 1 } else { 2 }.into());
    set("disposition_id", if is_refused { 2 } else { 1 }.into());
    set("time", entry.time.parse::<Timestamp>().map_or(Value::Null, |time| time.as_millisecond().into()));
    set("status_detail", entry.reason.as_deref().into());
    set("status_code", entry.status.map(|status| status.to_string()).into());
    set("duration", entry.duration_us.map(|duration| duration / 1000).into());
    set("metadata", metadata(entry));
    set("device", json!({ "uid": entry.machine, "type_id": 1 }));
    let user = user(entry, revealed);
    set("actor", json!({ "user": user }));
    if class == 3002 {
        set("user", user);
        set("dst_endpoint", json!({ "uid": entry.machine }));
    }
    if class != 0 {
        set("src_endpoint", source(entry, revealed));
        set("http_request", request(entry));
        set("http_response", entry.status.map_or(Value::Null, |code| json!({ "code": code })));
    }
    set("unmapped", unmapped(entry));
    Value::Object(event)
}

/// The methods that OCSF knows, in the order of their activities, from 1.
const METHODS: [&str; 8] = ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "POST", "PUT", "TRACE"];

fn activity_of(method: &str) -> u32 {
    let at = METHODS.iter().position(|known| *known == method);
    at.and_then(|at| u32::try_from(at + 1).ok()).unwrap_or(OTHER)
}

/// Informational 1, Low 2, Medium 3, High 4.
fn severity_of(entry: &Entry<'_>) -> u32 {
    match (entry.action.as_ref(), entry.event, entry.outcome) {
        ("audit.rolled_back" | "audit.missing" | "audit.reopened" | "audit.unvouched" | "audit.gap", ..) => 4,
        (_, "security.forged", _) | (.., "error") => 3,
        (.., "refused" | "failure") => 2,
        _ => 1,
    }
}

fn metadata(entry: &Entry<'_>) -> Value {
    let correlation = entry.trace_id.as_deref().or(entry.request_id.as_deref());
    without_null(json!({
        "version": VERSION,
        "product": { "name": "Outrigger", "vendor_name": "Outrigger", "version": env!("CARGO_PKG_VERSION") },
        "profiles": ["host", "security_control"],
        "uid": entry.id,
        "sequence": entry.seq,
        "log_name": entry.class,
        "event_code": entry.event,
        "correlation_uid": correlation,
    }))
}

fn user(entry: &Entry<'_>, revealed: Option<&BTreeMap<String, String>>) -> Value {
    let (kind, name) = match entry.actor.kind {
        "user" => (1, "User"),
        "operator" => (2, "Admin"),
        "system" => (3, "System"),
        other => (OTHER, other),
    };
    let plain = revealed.and_then(|revealed| revealed.get("actor"));
    without_null(json!({ "uid": entry.actor.id, "type_id": kind, "type": name, "name": plain }))
}

/// A pseudonym is no address.
fn source(entry: &Entry<'_>, revealed: Option<&BTreeMap<String, String>>) -> Value {
    let uid = entry.client.or_else(|| (entry.actor.kind == "address").then_some(entry.actor.id));
    let address = revealed.and_then(|revealed| revealed.get("address")).filter(|text| text.parse::<IpAddr>().is_ok());
    if uid.is_none() && address.is_none() { Value::Null } else { without_null(json!({ "uid": uid, "ip": address })) }
}

fn request(entry: &Entry<'_>) -> Value {
    let headers: Option<BTreeMap<&str, Value>> =
        entry.headers.and_then(|headers| serde_json::from_str(headers.get()).ok());
    let headers = headers.map(|headers| {
        headers.into_iter().map(|(name, value)| json!({ "name": name, "value": value })).collect::<Vec<_>>()
    });
    let method = entry.method.as_deref().filter(|method| METHODS.contains(method));
    without_null(json!({ "uid": entry.request_id, "http_method": method, "http_headers": headers }))
}

fn unmapped(entry: &Entry<'_>) -> Value {
    let raw = |value: Option<&RawValue>| value.and_then(|value| serde_json::from_str::<Value>(value.get()).ok());
    without_null(json!({
        "action": entry.action,
        "method": entry.method,
        "outcome": entry.outcome,
        "route": entry.route,
        "resource": raw(entry.resource),
        "request_id": entry.request_id,
        "trace_id": entry.trace_id,
        "tier": entry.actor.tier,
        "details": raw(entry.details),
        "sealed": entry.sealed,
        "prev": entry.prev,
    }))
}

fn without_null(mut value: Value) -> Value {
    if let Some(members) = value.as_object_mut() {
        members.retain(|_, value| !value.is_null());
    }
    value
}
