//! When an answer must be on its way, and how to make anything end by then.

use std::future::Future;
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

/// What the proxy, or a client, gives us: whole milliseconds from the moment the request arrived.
pub const HEADER: &str = "x-request-timeout-ms";

/// Kept back from the header's time, so that our own answer arrives before the caller gives up.
const MARGIN: Duration = Duration::from_millis(50);

/// The moment by which a piece of work must have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

/// The deadline passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the deadline passed")]
pub struct Expired;

/// The header holds no number of milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("X-Request-Timeout-Ms needs a whole number of milliseconds")]
pub struct BadTimeout;

impl Deadline {
    /// `span` from now.
    pub fn after(span: Duration) -> Self {
        Self(Instant::now() + span)
    }

    /// The deadline of a request that just arrived: `longest` from now, or sooner when its header says so.
    ///
    /// # Errors
    /// The header is not a whole number; guessing would make somebody wait.
    pub fn of_request(headers: &HeaderMap, longest: Duration) -> Result<Self, BadTimeout> {
        let Some(value) = headers.get(HEADER) else { return Ok(Self::after(longest)) };
        let text = value.to_str().map_err(|_| BadTimeout)?.trim();
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(BadTimeout);
        }
        // More digits than a u64 holds is simply longer than our own limit.
        let given = Duration::from_millis(text.parse().unwrap_or(u64::MAX));
        // Half of a very short time would be too much to keep back.
        let margin = MARGIN.min(given / 5);
        Ok(Self::after((given - margin).min(longest)))
    }

    /// What is left, zero when it passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// The earlier of this and `span` from now.
    #[must_use]
    pub fn within(self, span: Duration) -> Self {
        self.min(Self::after(span))
    }

    /// This much earlier, to leave time for what comes after.
    #[must_use]
    pub fn reserving(self, span: Duration) -> Self {
        Self(self.0.checked_sub(span).unwrap_or(self.0))
    }

    /// Runs `work` until the deadline at the latest, then drops it.
    ///
    /// # Errors
    /// [`Expired`] when it did not end in time.
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
        // A little of it has gone by when we look.
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
    async fn a_header_that_is_no_number_is_refused() {
        for bad in ["", "soon", "-5", "1.5", "+7", "1 000"] {
            let headers = HeaderMap::from_iter([(HEADER.parse().unwrap(), bad.parse().unwrap())]);
            assert_eq!(Deadline::of_request(&headers, LONGEST), Err(BadTimeout), "{bad:?} was taken");
        }
    }
}
