//! `[traces]`: which requests are recorded as OpenTelemetry traces, and where these are sent.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::complaints::Builder;
use crate::tree::Step;
use crate::units::{OptionalShare, OrOff, Share, Span, Text, WrongText, text_schema};

/// The protocol to the collector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Protocol {
    /// OTLP over gRPC, usually at port 4317.
    #[default]
    #[serde(rename = "grpc")]
    Grpc,
    /// OTLP over HTTP in binary protobuf, usually at port 4318.
    #[serde(rename = "http/protobuf")]
    HttpProtobuf,
}

/// OpenTelemetry traces.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Traces {
    /// The collector's address: `http://HOST:PORT` or `https://HOST:PORT`. With `http/protobuf`, `/v1/traces` is added. Unset: no
    /// traces. Environment: OUTRIGGER_TRACES_ENDPOINT. Headers for the collector, such as its API key, are in
    /// OTEL_EXPORTER_OTLP_HEADERS.
    pub endpoint: Option<Text<CollectorUrl>>,
    /// The protocol.
    pub protocol: Protocol,
    /// The share of requests without a traceparent that are recorded, or "off".
    pub sample: Text<OptionalShare>,
    /// A request with a traceparent is recorded if its caller records it. False: as one without.
    pub follow_parent: bool,
    /// The service's name in traces.
    pub service: String,
    /// The most requests whose spans wait to be sent. Requests that a traceparent of an untrusted sender marks have half of it.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub queue: u32,
    /// Timeout for a response of the collector.
    pub timeout: Text<Span>,
}

impl Default for Traces {
    fn default() -> Self {
        Self {
            endpoint: None,
            protocol: Protocol::default(),
            sample: Text(OrOff(Some(Share(0.01)))),
            follow_parent: true,
            service: "outrigger".to_owned(),
            queue: 2048,
            timeout: Text(Span(Duration::from_secs(10))),
        }
    }
}

text_schema! { CollectorUrl => "collector-url" }

/// The address of a collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectorUrl(pub reqwest::Url);

impl FromStr for CollectorUrl {
    type Err = WrongText;

    fn from_str(text: &str) -> Result<Self, WrongText> {
        let url: reqwest::Url = text.parse().map_err(|_| WrongText)?;
        let is_http = matches!(url.scheme(), "http" | "https") && url.has_host();
        let is_plain = url.username().is_empty() && url.password().is_none();
        if is_http && is_plain && url.fragment().is_none() && url.query().is_none() {
            Ok(Self(url))
        } else {
            Err(WrongText)
        }
    }
}

impl fmt::Display for CollectorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Traces, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceRules {
    /// The share of requests without a traceparent that are recorded.
    pub sample: f64,
    /// Whether a traceparent decides.
    pub follow_parent: bool,
    /// These keys cannot change while the process runs.
    pub export: Export,
}

/// How traces are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The URL to which they are sent.
    pub url: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The service's name.
    pub service: String,
    /// The most requests that wait.
    pub queue: usize,
    /// Timeout for a response.
    pub timeout: Duration,
}

impl Builder<'_> {
    /// Checks the section; `None` without a collector.
    pub fn traces(&mut self, written: &Traces) -> Option<TraceRules> {
        let at = |key| [Step::Key("traces"), Step::Key(key)];
        if !(1..=1_000_000).contains(&written.queue) {
            let message = format!("`queue` is between 1 and 1000000, got {}", written.queue);
            self.complain(&at("queue"), message, "each request takes about 2 KiB of memory");
        }
        if written.service.is_empty() || written.service.len() > 255 {
            let message = "`service` needs 1 to 255 bytes";
            self.complain(&at("service"), message, "name this proxy as traces are to show it");
        }
        let timeout = written.timeout.0.0;
        if timeout.is_zero() {
            self.complain(&at("timeout"), "`timeout` needs more than zero", "write \"10s\"");
        }
        let endpoint = &written.endpoint.as_ref()?.0;
        Some(TraceRules {
            sample: written.sample.0.0.map_or(0.0, |share| share.0),
            follow_parent: written.follow_parent,
            export: Export {
                url: endpoint.for_traces(written.protocol),
                protocol: written.protocol,
                service: written.service.clone(),
                queue: written.queue as usize,
                timeout,
            },
        })
    }
}

impl CollectorUrl {
    /// The URL to which a protocol sends traces.
    fn for_traces(&self, protocol: Protocol) -> String {
        const PATH: &str = "/v1/traces";
        let url = self.0.as_str().trim_end_matches('/');
        match protocol {
            Protocol::HttpProtobuf if !url.ends_with(PATH) => format!("{url}{PATH}"),
            Protocol::HttpProtobuf | Protocol::Grpc => url.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_sends_traces_to_their_own_path() {
        let url = |text: &str, protocol| text.parse::<CollectorUrl>().unwrap().for_traces(protocol);
        assert_eq!(url("http://localhost:4317", Protocol::Grpc), "http://localhost:4317");
        for text in ["https://otel.example", "https://otel.example/", "https://otel.example/v1/traces"] {
            assert_eq!(url(text, Protocol::HttpProtobuf), "https://otel.example/v1/traces");
        }
        assert_eq!(url("http://a:4318/otlp", Protocol::HttpProtobuf), "http://a:4318/otlp/v1/traces");
        for wrong in ["localhost:4317", "grpc://a:1", "http://ann:secret@a", "http://a/?key=1", "http://a/#b", ""] {
            assert!(wrong.parse::<CollectorUrl>().is_err(), "{wrong}");
        }
    }
}
