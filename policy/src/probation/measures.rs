//! The measures of each client in each bin.

use crate::priority::Priority;

/// How a request ended, for the comparison. Requests that an operator has refused or made fail are not counted: a pause, maintenance,
/// injected faults, a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The app responded with 2xx, or switched protocols.
    Fine,
    /// The app responded with 3xx.
    Redirect,
    /// The app responded with 4xx.
    ClientError,
    /// The app responded with 5xx.
    ServerError,
    /// A rate limit rejected it: 429.
    RateLimited,
    /// Its client is banned: 403.
    Banned,
    /// The concurrency limit rejected it: 503.
    Overloaded,
    /// A circuit breaker rejected it: 503.
    BreakerOpen,
    /// Its time was over: 504.
    Late,
    /// The app could not be reached: 502, 503 or 504.
    Unreachable,
    /// The app closed the connection, or did not speak HTTP: 502, or a response that was cut off.
    BadGateway,
    /// Outrigger rejected it for another reason: its size, its form, its address.
    Refused,
    /// Its client disconnected before the end.
    Abandoned,
}

impl Ending {
    /// All, in the order of the numbers in [`Row::endings`].
    pub const ALL: [Self; 13] = [
        Self::Fine,
        Self::Redirect,
        Self::ClientError,
        Self::ServerError,
        Self::RateLimited,
        Self::Banned,
        Self::Overloaded,
        Self::BreakerOpen,
        Self::Late,
        Self::Unreachable,
        Self::BadGateway,
        Self::Refused,
        Self::Abandoned,
    ];

    /// Whether it counts as failed or refused for the request's priority. The app's own 3xx and 4xx do not, nor a client that leaves.
    pub const fn is_bad(self) -> bool {
        !matches!(self, Self::Fine | Self::Redirect | Self::ClientError | Self::Abandoned)
    }
}

/// Bounds of durations in milliseconds.
pub const RUNGS_MS: [u32; 12] = [2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000];

/// The number of the highest bound that a duration reaches.
pub fn rung(milliseconds: u64) -> Option<usize> {
    RUNGS_MS.iter().rposition(|bound| milliseconds >= u64::from(*bound))
}

/// The requests of a cell in a bin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Requests that ended, by [`Ending`].
    pub endings: [u32; Ending::ALL.len()],
    /// Of those, the ones that took at least a bound of [`RUNGS_MS`], and less than the next.
    pub rungs: [u32; RUNGS_MS.len()],
    /// By priority: requests, and those that failed or were refused.
    pub priorities: [[u32; 2]; Priority::ALL.len()],
    /// Requests wait, and no response has begun for some time.
    pub is_unanswered: bool,
}

/// Numbers in a row of [`Row::columns`].
pub const COLUMNS: usize = UNANSWERED + 1 + Priority::ALL.len();
const FIRST_RUNG: usize = Ending::ALL.len() - 1;
const UNANSWERED: usize = FIRST_RUNG + RUNGS_MS.len();

impl Row {
    /// All shares, in single precision; NaN: there was no request.
    pub fn columns(&self) -> [f32; COLUMNS] {
        let mut columns = [f32::NAN; COLUMNS];
        let all: u32 = self.endings.iter().sum();
        if all > 0 || self.is_unanswered {
            columns[UNANSWERED] = f32::from(u8::from(self.is_unanswered));
        }
        if all > 0 {
            for (column, count) in columns.iter_mut().zip(&self.endings[1..]) {
                *column = share(*count, all);
            }
            let mut slower = 0;
            for (column, count) in columns[FIRST_RUNG..UNANSWERED].iter_mut().zip(&self.rungs).rev() {
                slower += count;
                *column = share(slower, all);
            }
        }
        for (column, [all, bad]) in columns[UNANSWERED + 1..].iter_mut().zip(&self.priorities) {
            if *all > 0 {
                *column = share(*bad, *all);
            }
        }
        columns
    }
}

/// Counters are read one after the other, so that a part may be larger than the whole.
fn share(part: u32, whole: u32) -> f32 {
    (f64::from(part) / f64::from(whole)).min(1.0) as f32
}

/// A measure: a share of the requests of each client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Requests that ended so.
    Ended(Ending),
    /// Requests that took much longer than most did before.
    Slow,
    /// Clients whose requests wait without an answer.
    Unanswered,
    /// Requests of a priority that failed or were refused.
    Bad(Priority),
}

impl Measure {
    /// The app could not be reached.
    pub const UNREACHABLE: Self = Self::Ended(Ending::Unreachable);

    /// All measures.
    pub const ALL: [Self; 19] = [
        Self::Ended(Ending::Redirect),
        Self::Ended(Ending::ClientError),
        Self::Ended(Ending::ServerError),
        Self::Ended(Ending::RateLimited),
        Self::Ended(Ending::Banned),
        Self::Ended(Ending::Overloaded),
        Self::Ended(Ending::BreakerOpen),
        Self::Ended(Ending::Late),
        Self::Ended(Ending::Unreachable),
        Self::Ended(Ending::BadGateway),
        Self::Ended(Ending::Refused),
        Self::Ended(Ending::Abandoned),
        Self::Slow,
        Self::Unanswered,
        Self::Bad(Priority::Critical),
        Self::Bad(Priority::High),
        Self::Bad(Priority::Medium),
        Self::Bad(Priority::Low),
        Self::Bad(Priority::Strict),
    ];

    /// Its name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ended(Ending::Fine) => "success",
            Self::Ended(Ending::Redirect) => "redirect",
            Self::Ended(Ending::ClientError) => "client_error",
            Self::Ended(Ending::ServerError) => "server_error",
            Self::Ended(Ending::RateLimited) => "rate_limited",
            Self::Ended(Ending::Banned) => "banned",
            Self::Ended(Ending::Overloaded) => "overloaded",
            Self::Ended(Ending::BreakerOpen) => "breaker_open",
            Self::Ended(Ending::Late) => "timeout",
            Self::Ended(Ending::Unreachable) => "unreachable",
            Self::Ended(Ending::BadGateway) => "bad_gateway",
            Self::Ended(Ending::Refused) => "refused",
            Self::Ended(Ending::Abandoned) => "client_closed",
            Self::Slow => "latency",
            Self::Unanswered => "unanswered",
            Self::Bad(Priority::Critical) => "failed_critical",
            Self::Bad(Priority::High) => "failed_high",
            Self::Bad(Priority::Medium) => "failed_medium",
            Self::Bad(Priority::Low) => "failed_low",
            Self::Bad(Priority::Strict) => "failed_strict",
        }
    }

    /// The requests that it counts, for operators.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Ended(Ending::Fine) => "successful requests",
            Self::Ended(Ending::Redirect) => "3xx of the app",
            Self::Ended(Ending::ClientError) => "4xx of the app",
            Self::Ended(Ending::ServerError) => "5xx of the app",
            Self::Ended(Ending::RateLimited) => "429 by rate limits",
            Self::Ended(Ending::Banned) => "403 by bans",
            Self::Ended(Ending::Overloaded) => "503 by the concurrency limit",
            Self::Ended(Ending::BreakerOpen) => "503 by circuit breakers",
            Self::Ended(Ending::Late) => "504",
            Self::Ended(Ending::Unreachable) => "requests for which the app could not be reached",
            Self::Ended(Ending::BadGateway) => "connections that the app closed, or responses that are no HTTP",
            Self::Ended(Ending::Refused) => "requests refused for their form, size or address",
            Self::Ended(Ending::Abandoned) => "requests whose client gave up",
            Self::Slow => "slow requests",
            Self::Unanswered => "clients that wait for an answer",
            Self::Bad(Priority::Critical) => "failed or refused requests of priority critical",
            Self::Bad(Priority::High) => "failed or refused requests of priority high",
            Self::Bad(Priority::Medium) => "failed or refused requests of priority medium",
            Self::Bad(Priority::Low) => "failed or refused requests of priority low",
            Self::Bad(Priority::Strict) => "failed or refused requests of priority strict",
        }
    }

    /// By how much a share must grow to be worse in practice. The app's 3xx and 4xx vary with what clients ask for.
    pub const fn margin(self) -> f64 {
        match self {
            Self::Ended(Ending::Redirect | Ending::ClientError) => 0.25,
            Self::Ended(Ending::Abandoned) | Self::Slow | Self::Bad(_) => 0.2,
            Self::Unanswered => 0.3,
            Self::Ended(_) => 0.1,
        }
    }

    /// Its column; `rung` is the bound that slow requests reach.
    pub const fn column(self, rung: usize) -> usize {
        match self {
            // `Fine` is no measure.
            Self::Ended(ending) => (ending as usize).saturating_sub(1),
            Self::Slow => FIRST_RUNG + rung,
            Self::Unanswered => UNANSWERED,
            Self::Bad(priority) => UNANSWERED + 1 + priority as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_measure_has_a_name_and_a_column() {
        let mut names: Vec<_> = Measure::ALL.map(Measure::name).into();
        let mut columns: Vec<_> = Measure::ALL.map(|measure| measure.column(0)).into();
        names.sort_unstable();
        names.dedup();
        columns.sort_unstable();
        columns.dedup();
        assert_eq!((names.len(), columns.len()), (Measure::ALL.len(), Measure::ALL.len()));
        assert!(columns.iter().all(|column| *column < COLUMNS));
        assert!(Ending::ALL.iter().enumerate().all(|(at, ending)| *ending as usize == at));
    }

    #[test]
    fn shares_are_those_of_one_client() {
        let mut row = Row::default();
        assert!(row.columns().iter().all(|share| share.is_nan()));
        row.endings[Ending::Fine as usize] = 3;
        row.endings[Ending::RateLimited as usize] = 1;
        row.rungs[rung(30).unwrap()] = 1;
        row.rungs[rung(3_600_000).unwrap()] = 1;
        row.priorities[Priority::Low as usize] = [2, 1];
        let columns = row.columns();
        let share = |measure: Measure, rung| columns[measure.column(rung)];
        assert_eq!(share(Measure::Ended(Ending::RateLimited), 0), 0.25);
        assert_eq!(share(Measure::Ended(Ending::Late), 0), 0.0);
        assert_eq!([share(Measure::Slow, 0), share(Measure::Slow, 3), share(Measure::Slow, 4)], [0.5, 0.5, 0.25]);
        assert_eq!(share(Measure::Bad(Priority::Low), 0), 0.5);
        assert!(share(Measure::Bad(Priority::High), 0).is_nan());
        assert_eq!((rung(0), rung(1), rung(2), rung(99)), (None, None, Some(0), Some(4)));
    }
}
