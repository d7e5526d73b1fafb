//! `Date`, for responses whose upstream sends none (RFC 9110 section 6.6.1).

use std::io::Write as _;
use std::time::{Duration, Instant, SystemTime};

use httpdate::HttpDate;

/// The date as a header value (RFC 9110 section 5.6.7), formatted once a second.
pub fn date(now: Instant) -> [u8; 29] {
    thread_local! {
        static DATE: std::cell::Cell<Option<(Instant, [u8; 29])>> = const { std::cell::Cell::new(None) };
    }
    DATE.with(|kept| match kept.get() {
        Some((since, text)) if now.duration_since(since) < Duration::from_millis(500) => text,
        _ => {
            let text = written(SystemTime::now());
            kept.set(Some((now, text)));
            text
        }
    })
}

/// `time` as a header value, for years 1970 to 9999; a clock outside of them gives the first or the last second.
fn written(time: SystemTime) -> [u8; 29] {
    // `HttpDate` panics outside of these years.
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    let time = time.clamp(SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + LAST);
    let mut text = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    // A date has 29 bytes, so the write does not fail.
    let _ = write!(&mut text[..], "{}", HttpDate::from(time));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_date_is_in_imf_fixdate() {
        let text = String::from_utf8(date(Instant::now()).to_vec()).unwrap();
        assert!(text.ends_with(" GMT") && text.as_bytes()[3] == b',' && !text.contains("1970"), "{text}");
    }

    #[test]
    fn a_clock_that_is_far_off_makes_a_date() {
        let epoch = SystemTime::UNIX_EPOCH;
        assert_eq!(&written(epoch - Duration::from_secs(1)), b"Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(&written(epoch + Duration::from_secs(1 << 40)), b"Fri, 31 Dec 9999 23:59:59 GMT");
    }

    proptest! {
        #[test]
        fn a_date_is_what_jiff_writes(seconds in 0..=253_402_207_200_i64) {
            let time = jiff::Timestamp::from_second(seconds).unwrap();
            let text = written(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs()));
            let expected = time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
            prop_assert_eq!(std::str::from_utf8(&text).unwrap(), expected);
        }
    }
}
