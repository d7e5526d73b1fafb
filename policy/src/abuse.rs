//! Who is shut out, and for how long: each ban is twice as long as the one before, up to a bound.
//!
//! What leads to a ban is counted by [`crate::limiter`], one quota for each kind of offence. A client that has behaved
//! for as long as the longest ban begins anew.

use std::time::Duration;

/// What is counted against a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Offence {
    /// Requests beyond its quota: 429.
    Refusals,
    /// Answers 401 and 403.
    LoginFailures,
    /// Answers 404.
    NotFound,
    /// An operator's decision.
    Operator,
}

impl Offence {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Refusals, Self::LoginFailures, Self::NotFound, Self::Operator];

    /// The name in configuration, metrics and the admin API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refusals => "refusals",
            Self::LoginFailures => "login_failures",
            Self::NotFound => "not_found",
            Self::Operator => "operator",
        }
    }
}

/// How long bans are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The first one.
    pub first: Duration,
    /// The longest.
    pub longest: Duration,
}

/// What is remembered of one client. Times are nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ban {
    /// The last offence.
    pub offence: Offence,
    /// How many bans in a row.
    pub times: u32,
    /// When it began.
    pub since: u64,
    /// When it ends, or has ended.
    pub until: u64,
}

impl Ban {
    /// The next ban of a client of whom `before` is remembered. One that is still shut out stays so for its time: what it
    /// does meanwhile is refused and counts no further.
    pub fn after(before: Option<Self>, offence: Offence, now: u64, settings: Settings) -> Self {
        match before {
            Some(ban) if ban.holds(now) => ban,
            Some(ban) if !ban.is_forgotten(now, settings) => {
                Self::new(offence, ban.times.saturating_add(1), now, settings)
            }
            _ => Self::new(offence, 1, now, settings),
        }
    }

    /// One of a given length, by an operator.
    pub fn of(length: Duration, now: u64) -> Self {
        Self { offence: Offence::Operator, times: 1, since: now, until: now.saturating_add(nanoseconds(length)) }
    }

    fn new(offence: Offence, times: u32, now: u64, settings: Settings) -> Self {
        let doubled = 2_u32.checked_pow(times - 1).and_then(|factor| settings.first.checked_mul(factor));
        let length = doubled.unwrap_or(Duration::MAX).min(settings.longest);
        Self { offence, times, since: now, until: now.saturating_add(nanoseconds(length)) }
    }

    /// Whether the client is shut out.
    pub const fn holds(&self, now: u64) -> bool {
        now < self.until
    }

    /// What is left of it.
    pub const fn left(&self, now: u64) -> Duration {
        Duration::from_nanos(self.until.saturating_sub(now))
    }

    /// Whether it is so long over that it counts no more.
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
    fn what_a_banned_client_does_makes_its_ban_no_longer() {
        let ban = Ban::after(None, Offence::NotFound, 0, SETTINGS);
        assert_eq!(Ban::after(Some(ban), Offence::Refusals, MINUTE - 1, SETTINGS), ban);
        assert!(ban.holds(MINUTE - 1) && !ban.holds(MINUTE));
        assert_eq!(ban.left(MINUTE / 2), Duration::from_secs(30));
    }

    #[test]
    fn who_behaves_for_as_long_as_the_longest_ban_begins_anew() {
        let ban = Ban::after(None, Offence::NotFound, 0, SETTINGS);
        assert_eq!(Ban::after(Some(ban), Offence::NotFound, 11 * MINUTE - 1, SETTINGS).times, 2);
        assert_eq!(Ban::after(Some(ban), Offence::NotFound, 11 * MINUTE, SETTINGS).times, 1);
    }

    #[test]
    fn no_number_makes_it_panic() {
        let ban = Ban { times: u32::MAX, until: u64::MAX - 1, ..Ban::of(Duration::MAX, u64::MAX) };
        assert_eq!(Ban::after(Some(ban), Offence::Operator, u64::MAX - 1, SETTINGS).times, u32::MAX);
    }
}
