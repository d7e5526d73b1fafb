//! Reads and writes `Retry-After` (RFC 9110 section 10.2.3).

use std::time::{Duration, SystemTime};

/// Maximum `Retry-After` that is used, in seconds.
const LONGEST_SECONDS: u64 = 86_400;

/// Parses `Retry-After` in either form (RFC 9110 section 10.2.3): seconds, or a date in one of the three formats of section
/// 5.6.7. At most a day; zero for a past date. `None` if it is neither.
pub fn asked_for(value: &[u8]) -> Option<Duration> {
    asked_for_at(value, SystemTime::now)
}

fn asked_for_at(value: &[u8], now: impl FnOnce() -> SystemTime) -> Option<Duration> {
    const LONGEST: Duration = Duration::from_secs(LONGEST_SECONDS);
    let text = std::str::from_utf8(value).ok()?.trim_matches([' ', '\t']);
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit the number mean a very long time.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)).min(LONGEST));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now()).unwrap_or_default().min(LONGEST))
}

/// Whole seconds, rounded up.
pub fn seconds(after: Duration) -> u64 {
    after.as_secs() + u64::from(after.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110.
    const EXAMPLE: u64 = 784_111_777;

    fn at(seconds: u64, text: &str) -> Option<u64> {
        asked_for_at(text.as_bytes(), || SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).map(|d| d.as_secs())
    }

    #[test]
    fn a_wait_is_rounded_up() {
        assert_eq!(super::seconds(Duration::from_millis(1001)), 2);
        assert_eq!(super::seconds(Duration::from_secs(1)), 1);
    }

    #[test]
    fn seconds_and_dates_in_every_form_are_read() {
        for (text, asked) in [("0", 0), ("30", 30), (" 7\t", 7), ("007", 7), ("999999", LONGEST_SECONDS)] {
            assert_eq!(at(EXAMPLE, text), Some(asked), "{text}");
        }
        assert_eq!(at(EXAMPLE, &"9".repeat(40)), Some(LONGEST_SECONDS), "it overflows");
        for form in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert_eq!(at(EXAMPLE - 30, form), Some(30), "{form}");
            assert_eq!(at(EXAMPLE, form), Some(0), "{form}");
            assert_eq!(at(EXAMPLE + 100_000_000, form), Some(0), "it has passed: {form}");
            assert_eq!(at(0, form), Some(LONGEST_SECONDS), "{form}");
        }
        assert_eq!(at(EXAMPLE, "Fri, 31 Dec 9999 23:59:59 GMT"), Some(LONGEST_SECONDS));
        let nothing =
            ["", " ", "-1", "+1", "1.5", "1s", "soon", "0x10", "Sun, 06 Nov 1994", "Sun, 99 Nov 1994 08:49:37 GMT"];
        for text in nothing {
            assert_eq!(at(EXAMPLE, text), None, "{text:?}");
        }
        assert_eq!(asked_for(b"\xff"), None);
    }

    proptest! {
        #[test]
        fn the_time_until_every_date_is_exact(seconds in 0..4_000_000_000_u64, now in 0..4_000_000_000_u64) {
            let text = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            prop_assert_eq!(at(now, &text), Some(seconds.saturating_sub(now).min(LONGEST_SECONDS)));
        }

        #[test]
        fn any_value_is_read_without_error(value in prop::collection::vec(any::<u8>(), 0..60)) {
            let asked = asked_for(&value);
            prop_assert!(asked.is_none_or(|asked| asked <= Duration::from_secs(LONGEST_SECONDS)));
        }
    }
}
