//! Client tiers: a tier multiplies the client's own rate limits.
//!
//! The tier comes from the table of API keys or from a verified claim, never from a header that the client can set.
//!
//! # Examples
//!
//! ```
//! use outrigger_policy::tier::{Multiplier, Tier};
//!
//! let tier: Tier = "pro".parse().unwrap();
//! let multiplier: Multiplier = "2.5x".parse().unwrap();
//! assert_eq!(tier, Tier::Pro);
//! assert_eq!(multiplier, Multiplier::Hundredths(250));
//! assert_eq!(multiplier.to_string(), "2.50x");
//! assert!("0x".parse::<Multiplier>().is_err());
//! ```

use std::fmt;
use std::str::FromStr;

/// The tier of a client. Default: [`Tier::Anonymous`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// No verified credentials.
    #[default]
    Anonymous,
    /// A known client without a paid plan.
    Free,
    /// A client with a paid plan.
    Pro,
    /// A client with a contract.
    Enterprise,
    /// The operator's own services.
    Internal,
}

impl Tier {
    /// All tiers, lowest first.
    pub const ALL: [Self; 5] = [Self::Anonymous, Self::Free, Self::Pro, Self::Enterprise, Self::Internal];

    /// Returns the name used in configuration, claims, metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Free => "free",
            Self::Pro => "pro",
            Self::Enterprise => "enterprise",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Error: the text is not the name of a tier. Names are lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownTier;

impl fmt::Display for UnknownTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a tier: write anonymous, free, pro, enterprise or internal")
    }
}

impl std::error::Error for UnknownTier {}

impl FromStr for Tier {
    type Err = UnknownTier;

    fn from_str(text: &str) -> Result<Self, UnknownTier> {
        Self::ALL.into_iter().find(|tier| tier.name() == text).ok_or(UnknownTier)
    }
}

/// The factor by which a tier multiplies the rate and burst of a limit.
///
/// Written as `"5x"`, `"0.5x"` (at most two decimals, 0.01 to 1,000,000) or `"unlimited"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Multiplier {
    /// The factor in hundredths, at least 1: `150` is 1.5×.
    Hundredths(u32),
    /// Limits by client do not apply to the tier.
    Unlimited,
}

impl Multiplier {
    /// 1×.
    pub const ONE: Self = Self::Hundredths(100);
}

/// Error: the text is not a multiplier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadMultiplier;

impl fmt::Display for BadMultiplier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a multiplier: write \"5x\", \"0.5x\" or \"unlimited\"")
    }
}

impl std::error::Error for BadMultiplier {}

impl FromStr for Multiplier {
    type Err = BadMultiplier;

    fn from_str(text: &str) -> Result<Self, BadMultiplier> {
        if text == "unlimited" {
            return Ok(Self::Unlimited);
        }
        let number = text.strip_suffix('x').ok_or(BadMultiplier)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !is_number(whole) || !is_number(fraction) || fraction.len() > 2 {
            return Err(BadMultiplier);
        }
        let fraction: u32 = format!("{fraction:0<2}").parse().map_err(|_| BadMultiplier)?;
        let hundredths = whole.parse::<u32>().ok().and_then(|w| w.checked_mul(100)?.checked_add(fraction));
        hundredths.filter(|h| (1..=100_000_000).contains(h)).map(Self::Hundredths).ok_or(BadMultiplier)
    }
}

impl fmt::Display for Multiplier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => f.write_str("unlimited"),
            Self::Hundredths(h) if h.is_multiple_of(100) => write!(f, "{}x", h / 100),
            Self::Hundredths(h) => write!(f, "{}.{:02}x", h / 100, h % 100),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back_as_itself() {
        for tier in Tier::ALL {
            assert_eq!(tier.name().parse(), Ok(tier));
        }
        assert_eq!("Pro".parse::<Tier>(), Err(UnknownTier));
    }

    #[test]
    fn a_multiplier_reads_back_as_itself() {
        for (text, hundredths) in [("1x", 100), ("0.5x", 50), ("2.25x", 225), ("1000x", 100_000)] {
            let multiplier: Multiplier = text.parse().unwrap();
            assert_eq!(multiplier, Multiplier::Hundredths(hundredths));
            assert_eq!(multiplier.to_string().parse(), Ok(multiplier));
        }
        assert_eq!("unlimited".parse(), Ok(Multiplier::Unlimited));
        for bad in ["", "x", "0x", "0.00x", "-1x", "1", "1.x", ".5x", "1.234x", "99999999999x"] {
            assert_eq!(bad.parse::<Multiplier>(), Err(BadMultiplier), "{bad}");
        }
    }
}
