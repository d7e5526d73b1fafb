//! The access log: one line per request, if enabled.

use std::io::{self, Write};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_rules::sections::log::LogFormat;
use outrigger_wire::request_id::RequestId;
use outrigger_wire::trace_context::{SpanId, TraceId};
use serde::Serialize;

use crate::outcome::Outcome;

/// A line of the access log. Query strings are left out: they contain secrets.
#[derive(Debug)]
pub struct Line {
    /// When the request ended.
    pub time: SystemTime,
    /// The request id.
    pub request_id: RequestId,
    /// The address of the client.
    pub client: IpAddr,
    /// The method.
    pub method: http::Method,
    /// The path, shortened to 1024 bytes.
    pub path: String,
    /// The name of the route.
    pub route: Arc<str>,
    /// The status of the response; 499 if the client disconnected.
    pub status: u16,
    /// How the request ended.
    pub outcome: Outcome,
    /// Why Outrigger rejected the request or the app failed.
    pub reason: Option<&'static str>,
    /// The rate limit that rejected it.
    pub limit: Option<String>,
    /// The time from the head to the end of the response.
    pub duration: Duration,
    /// The part of it in the queue, for a permit or for an app that was down.
    pub queued: Duration,
    /// The part of it that the app took for the head of its response, or until the attempt failed; `None` if it was not asked or
    /// could not be reached.
    pub app: Option<Duration>,
    /// The time from the head to the head of the response; `None` if the response is Outrigger's own, or there is none.
    pub first_byte: Option<Duration>,
    /// The number of attempts at the upstream.
    pub attempts: u32,
    /// Bytes of the request body that the client has sent.
    pub request_bytes: u64,
    /// The size of the response body, in bytes.
    pub body_bytes: u64,
    /// Its trace: the caller's, or one that was begun here.
    pub trace_id: Option<TraceId>,
    /// Its span, if it is recorded.
    pub span_id: Option<SpanId>,
}

#[derive(Serialize)]
struct Shown<'a> {
    timestamp: String,
    level: &'static str,
    message: &'static str,
    request_id: &'a str,
    client: IpAddr,
    method: &'a str,
    path: &'a str,
    route: &'a str,
    status: u16,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'a str>,
    duration_ms: f64,
    queue_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    app_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttfb_ms: Option<f64>,
    attempts: u32,
    request_bytes: u64,
    body_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    span_id: Option<String>,
}

/// In milliseconds, to the microsecond.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000_000.0).round() / 1000.0
}

impl Line {
    /// Writes one line.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, out: &mut impl Write, format: LogFormat) -> io::Result<()> {
        let timestamp = jiff::Timestamp::try_from(self.time).unwrap_or_default();
        match format {
            LogFormat::Json => {
                let shown = Shown {
                    timestamp: format!("{timestamp:.6}"),
                    level: "INFO",
                    message: "request",
                    request_id: self.request_id.as_str(),
                    client: self.client,
                    method: self.method.as_str(),
                    path: &self.path,
                    route: &self.route,
                    status: self.status,
                    outcome: self.outcome.name(),
                    reason: self.reason,
                    limit: self.limit.as_deref(),
                    duration_ms: milliseconds(self.duration),
                    queue_ms: milliseconds(self.queued),
                    app_ms: self.app.map(milliseconds),
                    ttfb_ms: self.first_byte.map(milliseconds),
                    attempts: self.attempts,
                    request_bytes: self.request_bytes,
                    body_bytes: self.body_bytes,
                    trace_id: self.trace_id.map(|id| id.to_string()),
                    span_id: self.span_id.map(|id| id.to_string()),
                };
                serde_json::to_writer(&mut *out, &shown)?;
                out.write_all(b"\n")
            }
            LogFormat::Text => writeln!(
                out,
                "{timestamp:.6}  INFO request {} {} {:?} -> {} {} in {:.3} ms route={} request_id={} queue_ms={:.3}{}{} \
                 attempts={} request_bytes={} body_bytes={}{}{}{}{}",
                self.client,
                self.method,
                self.path,
                self.status,
                self.outcome.name(),
                milliseconds(self.duration),
                self.route,
                self.request_id,
                milliseconds(self.queued),
                self.app.map_or_else(String::new, |took| format!(" app_ms={:.3}", milliseconds(took))),
                self.first_byte.map_or_else(String::new, |took| format!(" ttfb_ms={:.3}", milliseconds(took))),
                self.attempts,
                self.request_bytes,
                self.body_bytes,
                self.reason.map_or_else(String::new, |reason| format!(" reason={reason}")),
                self.limit.as_ref().map_or_else(String::new, |limit| format!(" limit={limit}")),
                self.trace_id.map_or_else(String::new, |id| format!(" trace_id={id}")),
                self.span_id.map_or_else(String::new, |id| format!(" span_id={id}")),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(path: &str) -> Line {
        Line {
            time: SystemTime::UNIX_EPOCH,
            request_id: RequestId::from_edge(b"id-1").unwrap(),
            client: IpAddr::from([192, 0, 2, 1]),
            method: http::Method::GET,
            path: path.to_owned(),
            route: "docs".into(),
            status: 502,
            outcome: Outcome::BadGateway,
            reason: Some("app_closed"),
            limit: None,
            duration: Duration::from_micros(1234),
            queued: Duration::from_micros(100),
            app: Some(Duration::from_micros(900)),
            first_byte: Some(Duration::from_micros(1010)),
            attempts: 2,
            request_bytes: 5,
            body_bytes: 7,
            trace_id: Some(TraceId(10)),
            span_id: Some(SpanId(11)),
        }
    }

    #[test]
    fn any_path_gives_one_line() {
        for format in [LogFormat::Json, LogFormat::Text] {
            let mut out = Vec::new();
            line("/a\nb\"c\u{1b}").write(&mut out, format).unwrap();
            let text = String::from_utf8(out).unwrap();
            assert_eq!(text.matches('\n').count(), 1, "{text}");
            assert!(!text.contains('\u{1b}'), "{text}");
        }
    }

    #[test]
    fn times_that_do_not_exist_are_left_out() {
        let line = Line { app: None, first_byte: None, ..line("/d") };
        for format in [LogFormat::Json, LogFormat::Text] {
            let mut out = Vec::new();
            line.write(&mut out, format).unwrap();
            let text = String::from_utf8(out).unwrap();
            assert!(text.contains("queue_ms") && !text.contains("app_ms") && !text.contains("ttfb_ms"), "{text}");
        }
    }

    #[test]
    fn a_json_line_has_the_fields_that_the_docs_name() {
        let mut out = Vec::new();
        line("/d").write(&mut out, LogFormat::Json).unwrap();
        insta::assert_snapshot!(String::from_utf8(out).unwrap());
    }
}
