//! A recorded request as spans of OpenTelemetry, with the names of its semantic conventions for HTTP (version 1.37).

use std::borrow::Cow;
use std::time::{Instant, SystemTime};

use http::{Method, Version};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use crate::traces::{Finished, Part, PartKind};

/// The spans of a request: its own, then those of its parts.
pub fn spans(finished: &Finished, scope: &InstrumentationScope) -> Vec<SpanData> {
    let mut all = Vec::with_capacity(finished.recording.parts.len() + 1);
    all.push(server(finished, scope));
    all.extend(finished.recording.parts.iter().map(|part| child(finished, part, scope)));
    all
}

impl Finished {
    /// An instant by the system's clock.
    fn time(&self, at: Instant) -> SystemTime {
        let before = self.ended.saturating_duration_since(at);
        self.ended_at.checked_sub(before).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    fn context(&self, span: u64) -> SpanContext {
        let trace = TraceId::from(self.recording.trace_id.0);
        SpanContext::new(trace, SpanId::from(span), TraceFlags::SAMPLED, false, TraceState::NONE)
    }

    /// The method as the conventions want it: an unknown one is `_OTHER`.
    fn method(&self) -> &'static str {
        const KNOWN: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
        KNOWN.into_iter().find(|known| *known == self.method.as_str()).unwrap_or("_OTHER")
    }

    /// The method in names of spans.
    fn named_method(&self) -> &'static str {
        match self.method() {
            "_OTHER" => "HTTP",
            known => known,
        }
    }
}

fn server(finished: &Finished, scope: &InstrumentationScope) -> SpanData {
    let recording = &finished.recording;
    let name = match &finished.pattern {
        Some(pattern) => Cow::Owned(format!("{} {pattern}", finished.named_method())),
        None => Cow::Borrowed(finished.named_method()),
    };
    let mut attributes = vec![
        KeyValue::new("http.request.method", finished.method()),
        KeyValue::new("url.scheme", recording.scheme),
        KeyValue::new("url.path", finished.path.clone()),
        KeyValue::new("network.protocol.version", version(recording.version)),
        KeyValue::new("http.request.body.size", count(finished.request_bytes)),
        KeyValue::new("http.response.body.size", count(finished.response_bytes)),
        KeyValue::new("outrigger.request_id", finished.request_id.as_str().to_owned()),
        KeyValue::new("outrigger.route", finished.route.to_string()),
        KeyValue::new("outrigger.priority", finished.priority),
        KeyValue::new("outrigger.outcome", finished.outcome.name()),
    ];
    if finished.method() == "_OTHER" {
        attributes.push(KeyValue::new("http.request.method_original", shortened(&finished.method)));
    }
    if let Some(pattern) = &finished.pattern {
        attributes.push(KeyValue::new("http.route", pattern.to_string()));
    }
    if let Some(reason) = finished.reason {
        attributes.push(KeyValue::new("outrigger.reason", reason));
    }
    if finished.status > 0 {
        attributes.push(KeyValue::new("http.response.status_code", i64::from(finished.status)));
    }
    let is_error = finished.status >= 500 || finished.status == 0;
    if is_error {
        let kind = finished.reason.map_or_else(|| finished.outcome.name().to_owned(), str::to_owned);
        attributes.push(KeyValue::new("error.type", kind));
    }
    SpanData {
        span_context: finished.context(recording.span_id.0),
        parent_span_id: recording.parent.map_or(SpanId::INVALID, |parent| SpanId::from(parent.0)),
        parent_span_is_remote: recording.parent.is_some(),
        span_kind: SpanKind::Server,
        name,
        start_time: finished.time(finished.began),
        end_time: finished.ended_at,
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        // As the conventions want it: a client's error is none of the server.
        status: if is_error { Status::error("") } else { Status::Unset },
        instrumentation_scope: scope.clone(),
    }
}

fn child(finished: &Finished, part: &Part, scope: &InstrumentationScope) -> SpanData {
    let mut attributes = Vec::new();
    let (span_kind, name) = match &part.kind {
        PartKind::Queue => (SpanKind::Internal, "queue"),
        PartKind::Hold => (SpanKind::Internal, "hold"),
        PartKind::Attempt(earlier) => {
            if *earlier > 0 {
                attributes.push(KeyValue::new("http.request.resend_count", i64::from(*earlier)));
            }
            let (host, port) = server_of(&finished.app);
            attributes.push(KeyValue::new("server.address", host.to_owned()));
            attributes.extend(port.map(|port| KeyValue::new("server.port", port)));
            (SpanKind::Client, finished.named_method())
        }
        PartKind::Peer(peer) => {
            attributes.push(KeyValue::new("server.address", peer.to_string()));
            attributes.push(KeyValue::new("outrigger.peer", peer.to_string()));
            (SpanKind::Client, finished.named_method())
        }
    };
    if span_kind == SpanKind::Client {
        attributes.push(KeyValue::new("http.request.method", finished.method()));
        if let Some(status) = part.status {
            attributes.push(KeyValue::new("http.response.status_code", i64::from(status)));
        }
    }
    let failed = part.error.map(str::to_owned);
    // For a client, a response with an error is one as well.
    let error = failed.or_else(|| part.status.filter(|status| *status >= 400).map(|status| status.to_string()));
    let status = if error.is_some() { Status::error("") } else { Status::Unset };
    attributes.extend(error.map(|error| KeyValue::new("error.type", error)));
    SpanData {
        span_context: finished.context(part.span_id.0),
        parent_span_id: SpanId::from(finished.recording.span_id.0),
        parent_span_is_remote: false,
        span_kind,
        name: Cow::Borrowed(name),
        start_time: finished.time(part.began),
        end_time: finished.time(part.ended.unwrap_or(finished.ended)),
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status,
        instrumentation_scope: scope.clone(),
    }
}

/// The host and the port of an address; of a Unix socket, its path.
fn server_of(address: &str) -> (&str, Option<i64>) {
    match address.rsplit_once(':') {
        Some(("unix", path)) => (path, None),
        Some((host, port)) => (host.trim_matches(['[', ']']), port.parse().ok()),
        None => (address, None),
    }
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

fn count(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// A method that any client may invent.
fn shortened(method: &Method) -> String {
    const LONGEST: usize = 32;
    method.as_str().chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for (address, server) in [
            ("127.0.0.1:3000", ("127.0.0.1", Some(3000))),
            ("[::1]:80", ("::1", Some(80))),
            ("app.internal:8080", ("app.internal", Some(8080))),
            ("unix:/run/app.sock", ("/run/app.sock", None)),
        ] {
            assert_eq!(server_of(address), server);
        }
    }
}
