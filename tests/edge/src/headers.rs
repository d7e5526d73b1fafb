//! The headers that the edge adds to requests and responses, and those that it removes.
//!
//! Source: docs:networking/request-headers.html.md, c/6346, c/27626 (facts: 3).

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA};

use crate::routing::Wish;
use crate::settings::Settings;

pub(crate) const REPLAY: HeaderName = HeaderName::from_static("fly-replay");
pub(crate) const REPLAY_SRC: HeaderName = HeaderName::from_static("fly-replay-src");
pub(crate) const REPLAY_FAILED: HeaderName = HeaderName::from_static("fly-replay-failed");
pub(crate) const PREFERRED_UNAVAILABLE: HeaderName = HeaderName::from_static("fly-preferred-instance-unavailable");
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("fly-request-id");

const CLIENT_IP: HeaderName = HeaderName::from_static("fly-client-ip");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const VIA_FLY: HeaderValue = HeaderValue::from_static("1.1 fly.io");

/// Turns a client's headers into those that a Machine receives.
pub(crate) fn arrive(fields: &mut HeaderMap, peer: IpAddr, request_id: &str, settings: &Settings) {
    let ours = &settings.headers;
    let client = ours
        .client_address_field
        .as_ref()
        .and_then(|name| fields.remove(name))
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .unwrap_or(peer);
    strip_hop_by_hop(fields);
    if ours.strips_replay_fields {
        for name in [REPLAY_SRC, REPLAY_FAILED, PREFERRED_UNAVAILABLE] {
            fields.remove(name);
        }
    }
    // The client's own entries stay on the left.
    let before = fields.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
    let chain: Vec<_> = before.map(str::to_owned).chain([client.to_string(), ours.app_address.to_string()]).collect();
    let (proto, port, ssl) = if ours.is_https { ("https", "443", "on") } else { ("http", "80", "off") };
    let start = format!("t={}", micros_since_epoch());
    let said = [
        (FORWARDED_FOR, chain.join(", ")),
        (CLIENT_IP, client.to_string()),
        (HeaderName::from_static("fly-forwarded-port"), port.to_owned()),
        (HeaderName::from_static("fly-forwarded-proto"), proto.to_owned()),
        (HeaderName::from_static("fly-forwarded-ssl"), ssl.to_owned()),
        (HeaderName::from_static("x-forwarded-proto"), proto.to_owned()),
        (HeaderName::from_static("fly-region"), settings.region.clone()),
        (REQUEST_ID, request_id.to_owned()),
        (HeaderName::from_static("x-request-start"), start),
    ];
    for (name, value) in said {
        set(fields, name, &value);
    }
    // A client's values survive in these two (c/6346).
    for (name, value) in [("x-forwarded-port", port), ("x-forwarded-ssl", ssl)] {
        fields.entry(name).or_insert(HeaderValue::from_static(value));
    }
    fields.append(VIA, VIA_FLY);
}

/// Turns a Machine's headers into those that the client receives.
pub(crate) fn leave(fields: &mut HeaderMap, request_id: &str) {
    strip_hop_by_hop(fields);
    set(fields, REQUEST_ID, request_id);
    fields.append(VIA, VIA_FLY);
}

/// The client's routing preferences. Source: docs:networking/dynamic-request-routing.html.markerb (facts: 2.1).
pub(crate) fn wish(fields: &HeaderMap) -> Wish {
    let text = |name: &str| fields.get(name).and_then(|value| value.to_str().ok()).map(|text| text.trim().to_owned());
    let forced = text("fly-force-region");
    let only_regions = forced.is_some();
    let regions = forced.or_else(|| text("fly-prefer-region")).unwrap_or_default();
    Wish {
        instance: text("fly-force-instance-id"),
        prefer: text("fly-prefer-instance-id"),
        regions: list(&regions),
        only_regions,
        ..Wish::default()
    }
}

/// The parts of a comma-separated list.
pub(crate) fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// Sets a header; an invalid value is left out.
pub(crate) fn set(fields: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        fields.insert(name, value);
    }
}

/// Removes hop-by-hop headers, except those that request or accept an upgrade.
fn strip_hop_by_hop(fields: &mut HeaderMap) {
    let connection: Vec<_> = fields.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok()).collect();
    let named = list(&connection.join(",").to_ascii_lowercase());
    let is_upgrade = named.iter().any(|name| name == "upgrade") && fields.contains_key(UPGRADE);
    for name in named.iter().filter(|name| !is_upgrade || *name != "upgrade") {
        fields.remove(name.as_str());
    }
    for name in [CONNECTION, TE, TRAILER, TRANSFER_ENCODING] {
        fields.remove(name);
    }
    for name in ["keep-alive", "proxy-connection", "expect"] {
        fields.remove(name);
    }
    if is_upgrade {
        fields.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    } else {
        fields.remove(UPGRADE);
    }
}

/// `<ULID>-<region>`: 48 bits of milliseconds and 80 random bits, in Crockford's base 32.
/// Source: docs:blueprints/bridge-deployments-wireguard.html.md (facts: 3).
pub(crate) fn request_id(region: &str, chance: u128) -> String {
    const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let number = (u128::from(micros_since_epoch() / 1000) << 80) | (chance >> 48);
    let digit = |place: u32| char::from(DIGITS[(number >> (5 * place)) as usize & 31]);
    let ulid: String = (0..26).rev().map(digit).collect();
    format!("{ulid}-{region}")
}

pub(crate) fn micros_since_epoch() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
