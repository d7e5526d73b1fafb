//! Request priorities. The order of the variants is the order of service.
//!
//! # Examples
//!
//! ```
//! use outrigger_policy::priority::Priority;
//!
//! let priority: Priority = "high".parse().unwrap();
//! assert_eq!(priority, Priority::High);
//! assert!(priority < Priority::default(), "the more important sorts first");
//! assert!("urgent".parse::<Priority>().is_err());
//! ```

use std::fmt;
use std::str::FromStr;

/// The priority of a route's requests, most important first. Default: [`Priority::Medium`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Health checks and logins: rejected last.
    Critical,
    /// The core of the API.
    High,
    /// The default, for routes without a priority of their own.
    #[default]
    Medium,
    /// Expensive work that can wait, such as retrieval and AI.
    Low,
    /// Very expensive work: rejected first.
    Strict,
}

impl Priority {
    /// All priorities, most important first.
    pub const ALL: [Self; 5] = [Self::Critical, Self::High, Self::Medium, Self::Low, Self::Strict];

    /// Returns the name used in configuration, metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Medium => "medium",
            Self::Low => "low",
            Self::Strict => "strict",
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Error: the text is not the name of a priority. Names are lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownPriority;

impl fmt::Display for UnknownPriority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a priority: write critical, high, medium, low or strict")
    }
}

impl std::error::Error for UnknownPriority {}

impl FromStr for Priority {
    type Err = UnknownPriority;

    fn from_str(text: &str) -> Result<Self, UnknownPriority> {
        Self::ALL.into_iter().find(|p| p.name() == text).ok_or(UnknownPriority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn critical_comes_before_everything_else() {
        assert!(Priority::ALL.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(Priority::ALL[0], Priority::Critical);
    }

    #[test]
    fn every_name_reads_back_as_itself() {
        for priority in Priority::ALL {
            assert_eq!(priority.name().parse(), Ok(priority));
        }
        assert_eq!("Critical".parse::<Priority>(), Err(UnknownPriority));
    }
}
