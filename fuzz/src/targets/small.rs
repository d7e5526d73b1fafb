//! Headers whose values are parsed one at a time.

use std::time::Duration;

use outrigger_mechanism::exposition::openmetrics;
use outrigger_wire::accept::prefers_html;
use outrigger_wire::authority::{self, Authority};
use outrigger_wire::request_id::RequestId;
use outrigger_wire::trace_context::TraceParent;
use outrigger_wire::{cookies, retry_after};

/// One value, as each of these headers: what is accepted has the form that others rely on, and is written as it was read.
pub fn small_headers(data: &[u8]) {
    trace_parent(data);
    if let Some(id) = RequestId::from_edge(data) {
        assert!(id.as_bytes() == data && (1..=64).contains(&data.len()) && data.iter().all(u8::is_ascii_graphic));
    }
    let ranges: Vec<&[u8]> = data.split(|byte| *byte == b',').collect();
    assert_eq!(prefers_html([data]), prefers_html(ranges.iter().copied()), "a list is as several headers");
    assert!(!prefers_html([data, b"application/json"]), "JSON is as good as HTML");
    if let Some(after) = retry_after::asked_for(data) {
        assert!(after <= Duration::from_secs(86_400) && retry_after::seconds(after) <= 86_400);
    }
    cookie(data);
    if let Ok(text) = std::str::from_utf8(data) {
        assert_eq!(openmetrics::is_wanted([text].into_iter()), openmetrics::is_wanted(text.split(',')));
        host(text);
    }
}

fn trace_parent(data: &[u8]) {
    let Some(parent) = TraceParent::parse(data) else { return };
    assert!(parent.trace_id.0 != 0 && parent.span_id.0 != 0);
    let header = parent.header();
    assert_eq!(TraceParent::parse(header.as_bytes()), Some(parent));
    assert_eq!(header.as_bytes()[2..53], data[2..53], "both ids are those of the caller");
    let mut longer = data.to_vec();
    longer.push(b'x');
    assert!(TraceParent::parse(&longer).is_none() || (data.len() > 55 && !data.starts_with(b"00")));
}

/// Our cookie is found, and gone from what the application gets; the other cookies stay, in their order.
fn cookie(data: &[u8]) {
    let mut others = Vec::new();
    let has_others = cookies::write_others(data, &mut others);
    assert_eq!(has_others, !others.is_empty());
    assert_eq!(cookies::values(&others).count(), 0, "{:?}", String::from_utf8_lossy(&others));
    assert!(cookies::values(data).next().is_none() || cookies::is_in(data));
    let pairs = |text: &[u8]| {
        let pairs = text.split(|byte| *byte == b';').map(|pair| pair.trim_ascii().to_vec());
        pairs.filter(|pair| !pair.is_empty()).collect::<Vec<_>>()
    };
    let (all, left) = (pairs(data), pairs(&others));
    let mut rest = all.iter();
    assert!(left.iter().all(|pair| rest.any(|other| other == pair)), "in their order");
    assert_eq!(all.len() - left.len(), cookies::values(data).count(), "only ours are removed");
}

/// Names of hosts, in `Host`, `Origin` and absolute targets.
fn host(text: &str) {
    if let Some(parsed) = Authority::parse(text) {
        assert!(!parsed.host.is_empty() && parsed.host.bytes().all(|byte| byte.is_ascii_graphic()));
        assert!(!parsed.host.contains(['/', '@', '"', '\\', ',', ';', '[', ']', '?', '#']), "{parsed:?}");
        assert!(parsed.is_named_like(parsed));
        let host = if parsed.host.contains(':') { format!("[{}]", parsed.host) } else { parsed.host.to_owned() };
        let written = parsed.port.map_or(host.clone(), |port| format!("{host}:{port}"));
        let again = Authority::parse(&written).expect("it was read before");
        assert!(again.is_named_like(parsed) && again.port == parsed.port, "{parsed:?} and {again:?}");
    }
    let is_value = authority::is_host_value(text.as_bytes());
    assert!(
        !is_value || text.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"\\,;/@?#<>".contains(&byte)),
        "{text:?}"
    );
    assert!(authority::is_same_host(b"http", text.as_bytes(), text.to_ascii_uppercase().as_bytes()));
    assert!(!authority::is_host(text) || Authority::parse(text).is_some() || text.contains(':'));
}
