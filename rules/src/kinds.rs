//! The file's kinds of text, by their name in the JSON Schema: what each expects, and its check.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use outrigger_policy::flags::{Network, Switch};
use outrigger_policy::limiter::Rate;
use outrigger_policy::priority::Priority;
use outrigger_policy::tier::{Multiplier, Tier};

use crate::sections::edge::EdgeName;
use crate::sections::health::Check;
use crate::sections::traces::CollectorUrl;
use crate::units::{
    AppAddress, AutoSpan, CallWindow, FieldName, JwksUrl, MetricsUrl, OptionalRate, OptionalShare, OptionalSize,
    OptionalSpan, Share, Size, Span,
};

/// The expectation of a kind of text, for the error, and an example, for the hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Completes "`key` needs …".
    pub what: &'static str,
    /// Completes "hint: …".
    pub hint: &'static str,
}

/// One kind of text: its `format` in the schema, and its check.
pub struct Kind {
    /// The `format`.
    pub format: &'static str,
    /// A regular expression that every text of this kind matches, for validators that know no such format.
    pub pattern: &'static str,
    /// Texts of this kind.
    pub examples: &'static [&'static str],
    /// The error if `check` fails.
    pub needs: Needs,
    /// Whether the text is of this kind.
    pub check: fn(&str) -> bool,
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.format)
    }
}

/// A length of time without signs and spaces, as jiff reads it.
macro_rules! span {
    () => {
        "([0-9]+(\\.[0-9]+)?|\\.[0-9]+)(ms|msecs?|millis|milliseconds?|us|usecs?|micros|microseconds?|ns|nsecs?|nanos|nanoseconds?\
         |s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?|w|wks?|weeks?)"
    };
}
macro_rules! share {
    () => {
        "([0-9]+(\\.[0-9]*)?|\\.[0-9]+)%"
    };
}
macro_rules! size {
    () => {
        "[0-9]+(\\.[0-9]*)?([KMGTP]i?)?B"
    };
}
macro_rules! token {
    () => {
        "[!#$%&'*+.^_`|~0-9A-Za-z-]"
    };
}

/// Every kind of text in the file.
pub const KINDS: &[Kind] = &[
    Kind::of::<Span>("duration", "a duration with a unit", SPAN_HINT)
        .like(concat!("^(", span!(), ")+$"), &["30s", "250ms", "1.5s", "5m", "1h30m", "30d"]),
    Kind::of::<Size>("size", "a size with a unit", r#"write "512B", "64KiB", "10MB" or "1.5GiB""#)
        .like(concat!("^", size!(), "$"), &["512B", "64KiB", "10MB", "1.5GiB"]),
    Kind::of::<AppAddress>("app-address", "the app's address", r#"write "unix:/run/app.sock" or "127.0.0.1:3000""#)
        .like(
            "^(unix:.+|(\\[[0-9A-Fa-f:.]+\\]|[^/ :\\[\\]]+):[0-9]+)$",
            &["127.0.0.1:3000", "unix:/run/app.sock", "app.internal:3000"],
        ),
    Kind::of::<SocketAddr>("listen-address", "an address and a port", r#"write "0.0.0.0:8080" or "[::]:8080""#)
        .like("^([0-9]+(\\.[0-9]+){3}|\\[[0-9A-Fa-f:.]+(%[0-9]+)?\\]):[0-9]{1,5}$", &["0.0.0.0:8080", "[::]:8080"]),
    Kind::of::<MetricsUrl>("metrics-url", "an http URL", r#"write "http://127.0.0.1:8081/metrics""#)
        .like("^http://[^/ ]+(/.*)?$", &["http://127.0.0.1:8081/metrics"]),
    Kind::of::<Check>("health-check", "the path of the app's health check, or \"none\"", r#"write "/up", for example"#)
        .like("^(none|/[^ #*:{<\\[]*)$", &["/up", "/healthz", "none"]),
    Kind::of::<Network>("network", "an address or a network", r#"write "10.0.0.0/8", "fdaa::/16" or "192.0.2.1""#)
        .like("^ *[0-9A-Fa-f:.]+(/[0-9]{1,3})? *$", &["10.0.0.0/8", "fdaa::/16", "192.0.2.1"]),
    Kind::of::<Switch>("switch", "a switch", r#"write true, false, "monitor" or a percentage such as "10%""#)
        .like("^ *(true|false|monitor|\\+?[0-9]+ *%) *$", &["true", "false", "monitor", "10%"]),
    Kind::of::<Rate>("rate", "a rate, of at least one and at most a million a second", RATE_HINT)
        .like("^[0-9]+/[0-9]*[smhd]$", &["100/1m", "5/1s", "1000/1h"]),
    Kind::of::<OptionalRate>(
        "rate-or-off",
        "a rate, of at least one and at most a million a second, or \"off\"",
        RATE_HINT,
    )
    .like("^(off|[0-9]+/[0-9]*[smhd])$", &["100/1m", "5/1s", "1000/1h", "off"]),
    Kind::of::<Multiplier>("multiplier", "a multiplier above zero", r#"write "5x", "0.5x" or "unlimited""#)
        .like("^(unlimited|[0-9]+(\\.[0-9]{1,2})?x)$", &["5x", "0.5x", "unlimited"]),
    Kind::of::<Tier>("tier", "a tier", r#"write "anonymous", "free", "pro", "enterprise" or "internal""#)
        .like("^(anonymous|free|pro|enterprise|internal)$", &["free", "pro", "enterprise", "internal", "anonymous"]),
    Kind::of::<FieldName>("field-name", "the name of a header", r#"write "X-Api-Key", for example"#)
        .like(concat!("^", token!(), "+$"), &["X-Api-Key"]),
    Kind::of::<EdgeName>(
        "edge",
        "the source of the client's address",
        r#"write "auto", "fly", "none", or the header that your proxy sets, such as "X-Forwarded-For""#,
    )
    .like(
        concat!("^(auto|fly|none|[Ff][Oo][Rr][Ww][Aa][Rr][Dd][Ee][Dd]|", token!(), "*-", token!(), "*)$"),
        &["auto", "fly", "none", "X-Forwarded-For"],
    ),
    Kind::of::<JwksUrl>(
        "jwks-url",
        "an http or https URL without user, password and fragment",
        r#"write "https://login.example.com/.well-known/jwks.json", for example"#,
    )
    .like("^[Hh][Tt][Tt][Pp][Ss]?:[^#]+$", &["https://login.example.com/.well-known/jwks.json"]),
    Kind::of::<CollectorUrl>(
        "collector-url",
        "an http or https URL without user, password, query and fragment",
        r#"write "http://localhost:4317", for example"#,
    )
    .like("^[Hh][Tt][Tt][Pp][Ss]?:[^#?]+$", &["http://localhost:4317"]),
    Kind::of::<Share>("share", "a share above zero", r#"write "50%" or "2.5%""#)
        .like(concat!("^", share!(), "$"), &["50%", "2.5%"]),
    Kind::of::<OptionalShare>(
        "share-or-off",
        "a share above zero, or \"off\"",
        r#"write "50%", or "off" to disable it"#,
    )
    .like(concat!("^(off|", share!(), ")$"), &["50%", "2.5%", "off"]),
    Kind::of::<OptionalSize>(
        "size-or-off",
        "a size with a unit, or \"off\"",
        r#"write "512B", "64KiB", "10MB" or "1.5GiB", or "off" for no bound"#,
    )
    .like(concat!("^(off|", size!(), ")$"), &["64KiB", "10MB", "1.5GiB", "off"]),
    Kind::of::<OptionalSpan>(
        "duration-or-off",
        "a duration with a unit, or \"off\"",
        r#"write "250ms", "1.5s" or "5m", or "off" to disable it"#,
    )
    .like(concat!("^(off|(", span!(), ")+)$"), &["250ms", "1.5s", "5m", "off"]),
    Kind::of::<AutoSpan>(
        "duration-auto-or-off",
        "a duration with a unit above zero, \"auto\" or \"off\"",
        r#"write "auto", "250ms" or "1.5s", or "off" to disable it"#,
    )
    .like(concat!("^(auto|off|(", span!(), ")+)$"), &["auto", "250ms", "1.5s", "off"]),
    Kind::of::<CallWindow>(
        "call-window",
        "a duration, or a number of calls up to 10000",
        r#"write "10s" or "100 calls""#,
    )
    .like(concat!("^(\\+?[0-9]+ calls|(", span!(), ")+)$"), &["10s", "100 calls"]),
    Kind::of::<Priority>("priority", "a priority", "one of critical, high, medium, low, strict")
        .like("^(critical|high|medium|low|strict)$", &["medium", "critical", "high", "low", "strict"]),
];

const SPAN_HINT: &str = r#"write "250ms", "1.5s", "5m", "1h30m" or "30d"; neither months nor years"#;
const RATE_HINT: &str = r#"write "100/1m", "5/1s" or "1000/1h"; to have no limit, leave it out or say "off""#;

impl Kind {
    const fn of<T: FromStr>(format: &'static str, what: &'static str, hint: &'static str) -> Self {
        Self {
            format,
            pattern: "",
            examples: &[],
            needs: Needs { what, hint },
            check: |text| T::from_str(text).is_ok(),
        }
    }

    const fn like(self, pattern: &'static str, examples: &'static [&'static str]) -> Self {
        Self { pattern, examples, ..self }
    }

    /// A text of this kind.
    pub fn example(&self) -> &'static str {
        self.examples.first().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_text_makes_a_kind_panic(text in ".{0,60}") {
            for kind in KINDS {
                let _ = (kind.check)(&text);
            }
        }
    }
}
