//! Request deadlines, and running futures with them.

use std::future::Future;
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

/// The time that the proxy or client allows: whole milliseconds from the request's arrival.
pub const HEADER: &str = "x-request-timeout-ms";

/// Subtracted from the header's time, so that the app's own response arrives before the caller gives up.
const MARGIN: Duration = Duration::from_millis(50);

/// The time by which some work must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

/// The deadline passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the deadline passed")]
pub struct Expired;

/// The header is not a whole number of milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("X-Request-Timeout-Ms needs a whole number of milliseconds")]
pub struct BadTimeout;

impl Deadline {
    /// `span` from now.
    pub fn after(span: Duration) -> Self {
        Self(Instant::now() + span)
    }

    /// The deadline of a request that just arrived: `longest` from now, or earlier if its header says so.
    ///
    /// # Errors
    /// The header is not a whole number; a guess could make the client wait too long.
    pub fn of_request(headers: &HeaderMap, longest: Duration) -> Result<Self, BadTimeout> {
        let Some(value) = headers.get(HEADER) else { return Ok(Self::after(longest)) };
        let text = value.to_str().map_err(|_| BadTimeout)?.trim();
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(BadTimeout);
        }
        // A number too large for a u64 is above the app's own limit anyway.
        let given = Duration::from_millis(text.parse().unwrap_or(u64::MAX));
        // For short times, subtract a fifth instead of the full margin.
        let margin = MARGIN.min(given / 5);
        Ok(Self::after((given - margin).min(longest)))
    }

    /// The time left; zero if the deadline passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// The earlier of this deadline and `span` from now.
    #[must_use]
    pub fn within(self, span: Duration) -> Self {
        self.min(Self::after(span))
    }

    /// A deadline earlier by `span`, to leave time for later work.
    #[must_use]
    pub fn reserving(self, span: Duration) -> Self {
        Self(self.0.checked_sub(span).unwrap_or(self.0))
    }

    /// Runs `work` until the deadline at most, then drops it.
    ///
    /// # Errors
    /// [`Expired`] if it did not end in time.
    pub async fn run<F: Future>(self, work: F) -> Result<F::Output, Expired> {
        tokio::time::timeout_at(self.0, work).await.map_err(|_| Expired)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(30);

    fn remaining_ms(header: &str) -> u128 {
        let headers = HeaderMap::from_iter([(HEADER.parse().unwrap(), header.parse().unwrap())]);
        Deadline::of_request(&headers, LONGEST).unwrap().remaining().as_millis()
    }

    #[tokio::test]
    async fn the_header_lowers_the_deadline_and_keeps_a_margin() {
        // Allows for the time that the test itself takes.
        assert!((900..=950).contains(&remaining_ms("1000")));
        assert!((50..=80).contains(&remaining_ms("100")));
        assert_eq!(remaining_ms("0"), 0);
    }

    #[tokio::test]
    async fn the_header_never_raises_the_deadline() {
        assert!((29_900..=30_000).contains(&remaining_ms("999999")));
        assert!((29_900..=30_000).contains(&remaining_ms("99999999999999999999999999")));
    }

    #[tokio::test]
    async fn a_header_that_is_not_a_number_is_rejected() {
        for bad in ["", "soon", "-5", "1.5", "+7", "1 000"] {
            let headers = HeaderMap::from_iter([(HEADER.parse().unwrap(), bad.parse().unwrap())]);
            assert_eq!(Deadline::of_request(&headers, LONGEST), Err(BadTimeout), "{bad:?} was taken");
        }
    }
}
