//! Types of settings: secrets, durations with a unit and, in older variables, without.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::config::ConfigError;

/// Text that `Debug` and `Display` do not show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// A duration written with its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(Duration);

impl Span {
    /// The duration.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for Span {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let bad = || ConfigError::Duration(text.to_owned());
        let text = text.trim();
        let unit_at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, unit) = text.split_at(unit_at);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let millis = match unit {
            "ms" => Some(number),
            "s" => number.checked_mul(1000),
            "m" => number.checked_mul(60_000),
            "h" => number.checked_mul(3_600_000),
            _ => None,
        };
        // More than a year is a typo, and some clocks overflow.
        millis.filter(|ms| *ms <= 366 * 86_400_000).map(|ms| Self(Duration::from_millis(ms))).ok_or_else(bad)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// A duration whose unit may be missing: then it is in milliseconds, as in older variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(Duration);

impl Millis {
    /// The duration.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for Millis {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let text = text.trim();
        let is_bare = text.bytes().all(|b| b.is_ascii_digit());
        let span: Option<Span> = if is_bare { format!("{text}ms").parse().ok() } else { text.parse().ok() };
        // With zero, an open breaker would reject no calls.
        let span = span.map(Span::get).filter(|span| !span.is_zero());
        span.map(Self).ok_or_else(|| ConfigError::Millis(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_needs_a_unit() {
        assert_eq!("250ms".parse::<Span>().unwrap().get(), Duration::from_millis(250));
        assert_eq!("5m".parse::<Span>().unwrap().get(), Duration::from_secs(300));
        for text in ["30", "", "s", "-1s", "1.5s", "99999999999999h", "3 s", "1d"] {
            assert!(text.parse::<Span>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn old_variables_are_milliseconds_unless_they_say_otherwise() {
        for (text, ms) in [("60000", 60_000), (" 250 ", 250), ("2s", 2000), ("5m", 300_000)] {
            assert_eq!(text.parse::<Millis>().unwrap().get(), Duration::from_millis(ms), "{text:?}");
        }
        for bad in ["", "0", "0s", "60 s", "-1", "1.5", "99999999999999"] {
            let problem = bad.parse::<Millis>().unwrap_err().to_string();
            assert!(problem.contains("milliseconds") && problem.contains(bad), "{problem}");
        }
    }
}
