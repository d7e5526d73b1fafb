//! Values that the file contains as text: `"30s"`, `"64KiB"`, `"unix:/run/app.sock"`.
//!
//! Each type parses and formats its text, and describes what it expects for the error message. The JSON Schema names the
//! kind as `format`, and the checker finds the kind by that name.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use jiff::SpanRelativeTo;
use jiff::fmt::friendly::SpanParser;

use crate::target::Target;
use outrigger_policy::breaker;
use outrigger_policy::flags::{Network, Switch};
use outrigger_policy::limiter::Rate;
use outrigger_policy::tier::{Multiplier, Tier};

/// The text is not of its kind; [`crate::kinds::KINDS`] has the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not of this kind")]
pub struct WrongText;

/// A length of time, to the millisecond and at most 100 years: `250ms`, `1.5s`, `1h30m`, `30d`.
///
/// The text is jiff's friendly format without spaces, signs and `HH:MM:SS`. A day has 24 hours, a week seven days. Months and
/// years are rejected, because they have no fixed length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = WrongText;

    fn from_str(text: &str) -> Result<Self, WrongText> {
        // Longer than any sensible value, and short enough that sums of values cannot overflow.
        const LONGEST: Duration = Duration::from_hours(100 * 366 * 24);
        if !text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase() || b == b'.') {
            return Err(WrongText);
        }
        let span = SpanParser::new().parse_span(text).map_err(|_| WrongText)?;
        let span = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| WrongText)?;
        let span = Duration::try_from(span).map_err(|_| WrongText)?;
        let is_whole = span.subsec_nanos().is_multiple_of(1_000_000);
        if is_whole && span <= LONGEST { Ok(Self(span)) } else { Err(WrongText) }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
        match units.into_iter().find(|(unit, _)| ms > 0 && ms.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", ms / unit),
            None => write!(f, "{ms}ms"),
        }
    }
}

/// A number of bytes: `512B`, `10MB` (powers of 1000), `64KiB`, `1.5GiB` (of 1024), up to `PB` and `PiB`. Fractions of a byte
/// are cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = WrongText;

    fn from_str(text: &str) -> Result<Self, WrongText> {
        // `ByteSize` also reads "64", "64k" and "64mb". Only these letters, with a B at the end, are unambiguous.
        let is_exact = text.bytes().all(|b| b.is_ascii_digit() || b".KMGTPiB".contains(&b));
        if !is_exact || !text.ends_with('B') {
            return Err(WrongText);
        }
        // Too large a number becomes the largest.
        let ByteSize(bytes) = text.parse().map_err(|_| WrongText)?;
        if i64::try_from(bytes).is_ok() { Ok(Self(bytes)) } else { Err(WrongText) }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match units.into_iter().find(|(unit, _)| self.0 > 0 && self.0.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// A rate, or `"off"`: `"100/1m"` or `"off"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionalRate(pub Option<Rate>);

impl FromStr for OptionalRate {
    type Err = WrongText;

    fn from_str(text: &str) -> Result<Self, WrongText> {
        if text == "off" { Ok(Self(None)) } else { text.parse().map(|rate| Self(Some(rate))).map_err(|_| WrongText) }
    }
}

impl fmt::Display for OptionalRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(rate) => rate.fmt(f),
            None => f.write_str("off"),
        }
    }
}

/// A share, above 0 % and at most 100 %; stored as 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share(pub f64);

impl FromStr for Share {
    type Err = WrongText;

    fn from_str(text: &str) -> Result<Self, WrongText> {
        let number = text.strip_suffix('%').ok_or(WrongText)?;
        if !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err(WrongText);
        }
        let percent: f64 = number.parse().map_err(|_| WrongText)?;
        if percent > 0.0 && percent <= 100.0 { Ok(Self(percent / 100.0)) } else { Err(WrongText) }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Rounded to a ten-thousandth: `0.29 * 100.0` is not 29.
        write!(f, "{}%", (self.0 * 1e6).round() / 1e4)
    }
}

/// `T`, or `"off"`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OrOff<T>(pub Option<T>);

/// A share or `"off"`.
pub type OptionalShare = OrOff<Share>;
/// A length of time or `"off"`.
pub type OptionalSpan = OrOff<Span>;
/// A size or `"off"`.
pub type OptionalSize = OrOff<Size>;

impl<T: FromStr> FromStr for OrOff<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        if text == "off" { Ok(Self(None)) } else { text.parse().map(|value| Self(Some(value))) }
    }
}

impl<T: fmt::Display> fmt::Display for OrOff<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("off"),
        }
    }
}

/// A length of time, `"auto"` or `"off"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoSpan {
    /// From what was measured.
    Auto,
    /// This long.
    Fixed(Span),
    /// None.
    Off,
}

impl FromStr for AutoSpan {
    type Err = WrongText;

    fn from_str(text: &str) -> Result<Self, WrongText> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            text => match text.parse()? {
                Span(Duration::ZERO) => Err(WrongText),
                span => Ok(Self::Fixed(span)),
            },
        }
    }
}

impl fmt::Display for AutoSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(span) => span.fmt(f),
            Self::Off => f.write_str("off"),
        }
    }
}

/// The calls over which rates are calculated: `"10s"` or `"100 calls"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallWindow(pub breaker::Span);

impl FromStr for CallWindow {
    type Err = WrongText;

    fn from_str(text: &str) -> Result<Self, WrongText> {
        let span = match text.strip_suffix(" calls") {
            Some(number) => {
                let calls = number.parse().ok().filter(|calls| (1..=breaker::MOST_CALLS).contains(calls));
                breaker::Span::Calls(calls.ok_or(WrongText)?)
            }
            None => breaker::Span::Time(text.parse::<Span>()?.0),
        };
        if span == breaker::Span::Time(Duration::ZERO) { Err(WrongText) } else { Ok(Self(span)) }
    }
}

impl fmt::Display for CallWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            breaker::Span::Calls(calls) => write!(f, "{calls} calls"),
            breaker::Span::Time(time) => Span(time).fmt(f),
        }
    }
}

/// The app's address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AppAddress {
    /// `unix:PATH`
    Unix(PathBuf),
    /// `HOST:PORT`; a name is looked up when the configuration is loaded.
    Tcp(String),
}

impl AppAddress {
    /// The address of `localhost`, if it has that name.
    pub fn localhost(&self) -> Option<SocketAddr> {
        let Self::Tcp(text) = self else { return None };
        let (host, port) = text.rsplit_once(':')?;
        let is_local = host.trim_end_matches('.').eq_ignore_ascii_case("localhost");
        is_local.then(|| Some(SocketAddr::from(([127, 0, 0, 1], port.parse().ok()?))))?
    }

    /// The destination of a connection; `None` for a name, which must be looked up.
    pub fn target(&self) -> Option<Target> {
        match self {
            Self::Unix(path) => Some(Target::Unix(path.as_path().into())),
            Self::Tcp(text) => text.parse().ok().map(Target::Tcp),
        }
    }
}

/// Maximum length of a path in a Unix socket's address on Linux.
const SOCKET_PATH_BYTES: usize = 107;

impl FromStr for AppAddress {
    type Err = WrongText;

    fn from_str(text: &str) -> Result<Self, WrongText> {
        if let Some(path) = text.strip_prefix("unix:") {
            let fits = !path.is_empty() && path.len() <= SOCKET_PATH_BYTES && !path.contains('\0');
            return if fits { Ok(Self::Unix(path.into())) } else { Err(WrongText) };
        }
        let (host, port) = text.rsplit_once(':').ok_or(WrongText)?;
        let port: u16 = port.parse().map_err(|_| WrongText)?;
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host_is_plain = !host.is_empty() && !host.contains(['/', ' ', ':', '[', ']']);
        if port > 0 && (host_is_plain || bracketed.is_some_and(|h| h.parse::<std::net::Ipv6Addr>().is_ok())) {
            Ok(Self::Tcp(text.to_owned()))
        } else {
            Err(WrongText)
        }
    }
}

impl fmt::Display for AppAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

/// The URL of metrics: `http://HOST:PORT/PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsUrl {
    /// `HOST:PORT`
    pub authority: String,
    /// With its leading slash.
    pub path: String,
}

impl FromStr for MetricsUrl {
    type Err = WrongText;

    fn from_str(text: &str) -> Result<Self, WrongText> {
        let rest = text.strip_prefix("http://").ok_or(WrongText)?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = if path.is_empty() { "/" } else { path };
        let authority = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
        match authority.parse::<AppAddress>()? {
            AppAddress::Tcp(authority) if path.parse::<http::uri::PathAndQuery>().is_ok() => {
                Ok(Self { authority, path: path.to_owned() })
            }
            _ => Err(WrongText),
        }
    }
}

impl fmt::Display for MetricsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

/// A header name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldName(pub http::HeaderName);

impl FromStr for FieldName {
    type Err = WrongText;

    fn from_str(text: &str) -> Result<Self, WrongText> {
        text.parse().map(Self).map_err(|_| WrongText)
    }
}

impl fmt::Display for FieldName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The URL at which an issuer of tokens publishes its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwksUrl(pub reqwest::Url);

impl FromStr for JwksUrl {
    type Err = WrongText;

    fn from_str(text: &str) -> Result<Self, WrongText> {
        let url: reqwest::Url = text.parse().map_err(|_| WrongText)?;
        let is_http = matches!(url.scheme(), "http" | "https") && url.has_host();
        let is_plain = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
        if is_http && is_plain { Ok(Self(url)) } else { Err(WrongText) }
    }
}

impl fmt::Display for JwksUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Text of the kind `T` in the raw file: a string for serde and the schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text<T>(pub T);

impl<'de, T: FromStr> serde::Deserialize<'de> for Text<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        // The checker has rejected invalid text before, with a better message.
        T::from_str(&text).map(Self).map_err(|_| serde::de::Error::custom(format!("unreadable text {text:?}")))
    }
}

impl<T: fmt::Display> serde::Serialize for Text<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

macro_rules! text_schema {
    ($($type:ty => $format:literal),* $(,)?) => {$(
        impl schemars::JsonSchema for Text<$type> {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $format.into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "format": $format })
            }
        }
    )*};
}

pub(crate) use text_schema;

text_schema! {
    Span => "duration",
    Size => "size",
    AppAddress => "app-address",
    SocketAddr => "listen-address",
    MetricsUrl => "metrics-url",
    Network => "network",
    Switch => "switch",
    Tier => "tier",
    FieldName => "field-name",
    JwksUrl => "jwks-url",
    Rate => "rate",
    OptionalRate => "rate-or-off",
    Multiplier => "multiplier",
    Share => "share",
    OptionalShare => "share-or-off",
    OptionalSpan => "duration-or-off",
    AutoSpan => "duration-auto-or-off",
    OptionalSize => "size-or-off",
    CallWindow => "call-window",
}

/// `n`, but at least 1.
pub const fn non_zero(n: u32) -> NonZeroU32 {
    match NonZeroU32::new(n) {
        Some(n) => n,
        None => NonZeroU32::MIN,
    }
}

/// `count` per minute.
pub fn per_minute(count: u32) -> Text<OptionalRate> {
    Text(OptionalRate(Rate::new(count, Duration::from_secs(60))))
}

/// A number of seconds.
pub const fn span(seconds: u64) -> Text<Span> {
    Text(Span(Duration::from_secs(seconds)))
}

#[cfg(test)]
mod tests;
