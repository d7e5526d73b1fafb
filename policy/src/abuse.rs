//! Bans: each ban of a client is twice as long as the previous one, up to a maximum.
//!
//! [`crate::limiter`] counts the offences that lead to a ban, with one quota for each kind. Once a client's last ban has
//! been over for as long as the longest ban, its history is forgotten.
//!
//! # Examples
//!
//! ```
//! use std::time::Duration;
//!
//! use outrigger_policy::abuse::{Ban, Offence, Settings};
//!
//! const MINUTE: u64 = 60_000_000_000;
//! let settings = Settings { first: Duration::from_secs(60), longest: Duration::from_secs(600) };
//!
//! let first = Ban::after(None, Offence::LoginFailures, 0, settings);
//! assert!(first.holds(MINUTE - 1) && !first.holds(MINUTE));
//!
//! let second = Ban::after(Some(first), Offence::NotFound, 2 * MINUTE, settings);
//! assert_eq!((second.times, second.left(2 * MINUTE)), (2, Duration::from_secs(120)));
//! ```

use std::time::Duration;

use crate::saved::Shift;

/// A kind of offence that leads to a ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Offence {
    /// Requests rejected by a rate limit: 429.
    Refusals,
    /// Responses with 401 or 403.
    LoginFailures,
    /// Responses with 404.
    NotFound,
    /// An operator's decision.
    Operator,
}

impl Offence {
    /// All offences.
    pub const ALL: [Self; 4] = [Self::Refusals, Self::LoginFailures, Self::NotFound, Self::Operator];

    /// Returns the name used in configuration, metrics and the admin API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refusals => "refusals",
            Self::LoginFailures => "login_failures",
            Self::NotFound => "not_found",
            Self::Operator => "operator",
        }
    }
}

/// The length of bans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The first ban.
    pub first: Duration,
    /// The longest ban, and the time after which a client's history is forgotten.
    pub longest: Duration,
}

/// A client's last ban. Times are nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ban {
    /// The last offence.
    pub offence: Offence,
    /// The number of consecutive bans, including this one; at least 1.
    pub times: u32,
    /// When it began.
    pub since: u64,
    /// When it ends or ended.
    pub until: u64,
}

impl Ban {
    /// Returns the ban after an offence, given the client's last ban. A ban that still holds is returned unchanged:
    /// offences of a banned client do not extend it.
    pub fn after(before: Option<Self>, offence: Offence, now: u64, settings: Settings) -> Self {
        match before {
            Some(ban) if ban.holds(now) => ban,
            Some(ban) if !ban.is_forgotten(now, settings) => {
                Self::new(offence, ban.times.saturating_add(1), now, settings)
            }
            _ => Self::new(offence, 1, now, settings),
        }
    }

    /// Creates an operator's ban of the given length.
    pub fn of(length: Duration, now: u64) -> Self {
        Self { offence: Offence::Operator, times: 1, since: now, until: now.saturating_add(nanoseconds(length)) }
    }

    fn new(offence: Offence, times: u32, now: u64, settings: Settings) -> Self {
        let doubled = 2_u32.checked_pow(times - 1).and_then(|factor| settings.first.checked_mul(factor));
        let length = doubled.unwrap_or(Duration::MAX).min(settings.longest);
        Self { offence, times, since: now, until: now.saturating_add(nanoseconds(length)) }
    }

    /// Returns the ban of an earlier process on this one's clock; no longer than [`Settings::longest`], unless an operator set it.
    #[must_use]
    pub fn restored(self, shift: Shift, settings: Settings) -> Self {
        let most = if self.offence == Offence::Operator { u64::MAX } else { nanoseconds(settings.longest) };
        let until = shift.moved(self.until).min(shift.now.saturating_add(most));
        Self { times: self.times.max(1), since: shift.moved(self.since).min(until), until, ..self }
    }

    /// Returns whether the client is banned at `now`.
    pub const fn holds(&self, now: u64) -> bool {
        now < self.until
    }

    /// Returns the remaining time; zero once it is over.
    pub const fn left(&self, now: u64) -> Duration {
        Duration::from_nanos(self.until.saturating_sub(now))
    }

    /// Returns whether it has been over for at least [`Settings::longest`], so that the next ban is a first one.
    pub fn is_forgotten(&self, now: u64, settings: Settings) -> bool {
        now >= self.until.saturating_add(nanoseconds(settings.longest))
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000_000_000;
    const SETTINGS: Settings = Settings { first: Duration::from_secs(60), longest: Duration::from_secs(600) };

    #[test]
    fn each_ban_is_twice_as_long_up_to_the_longest() {
        let (mut now, mut ban, mut minutes) = (0, None, Vec::new());
        for _ in 0..6 {
            let next = Ban::after(ban, Offence::Refusals, now, SETTINGS);
            minutes.push((next.until - next.since) / MINUTE);
            now = next.until;
            ban = Some(next);
        }
        assert_eq!(minutes, [1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn requests_of_a_banned_client_do_not_extend_its_ban() {
        let ban = Ban::after(None, Offence::NotFound, 0, SETTINGS);
        assert_eq!(Ban::after(Some(ban), Offence::Refusals, MINUTE - 1, SETTINGS), ban);
        assert!(ban.holds(MINUTE - 1) && !ban.holds(MINUTE));
        assert_eq!(ban.left(MINUTE / 2), Duration::from_secs(30));
    }

    #[test]
    fn the_ban_time_resets_after_max_ban_without_a_new_ban() {
        let ban = Ban::after(None, Offence::NotFound, 0, SETTINGS);
        assert_eq!(Ban::after(Some(ban), Offence::NotFound, 11 * MINUTE - 1, SETTINGS).times, 2);
        assert_eq!(Ban::after(Some(ban), Offence::NotFound, 11 * MINUTE, SETTINGS).times, 1);
    }

    #[test]
    fn a_restored_ban_ends_when_it_would_have() {
        let ban = Ban::after(None, Offence::NotFound, 5 * MINUTE, SETTINGS);
        // Saved a quarter of a minute later; restored after another quarter, by a process with another clock.
        let shift = Shift { was: 5 * MINUTE + MINUTE / 4, now: 900 * MINUTE, age: MINUTE / 4 };
        let restored = ban.restored(shift, SETTINGS);
        assert_eq!(restored.left(900 * MINUTE), Duration::from_secs(30));
        assert_eq!(Ban::after(Some(restored), Offence::NotFound, 902 * MINUTE, SETTINGS).times, 2);
        // `max_ban` was lowered; an operator's ban is as long as the operator said.
        let lower = Settings { longest: Duration::from_secs(10), first: Duration::from_secs(10) };
        assert_eq!(ban.restored(shift, lower).left(900 * MINUTE), Duration::from_secs(10));
        let by_operator = Ban::of(Duration::from_secs(3600), 5 * MINUTE).restored(shift, lower);
        assert_eq!(by_operator.left(900 * MINUTE), Duration::from_secs(3570));
    }

    #[test]
    fn no_number_makes_it_panic() {
        let ban = Ban { times: u32::MAX, until: u64::MAX - 1, ..Ban::of(Duration::MAX, u64::MAX) };
        assert_eq!(Ban::after(Some(ban), Offence::Operator, u64::MAX - 1, SETTINGS).times, u32::MAX);
    }
}
