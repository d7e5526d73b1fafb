//! `Date`, for responses whose upstream sends none (RFC 9110 section 6.6.1).

use std::time::{Duration, Instant};

/// The date as a header value (RFC 9110 section 5.6.7), formatted once a second.
pub fn date(now: Instant) -> [u8; 29] {
    thread_local! {
        static DATE: std::cell::Cell<Option<(Instant, [u8; 29])>> = const { std::cell::Cell::new(None) };
    }
    DATE.with(|kept| match kept.get() {
        Some((since, text)) if now.duration_since(since) < Duration::from_millis(500) => text,
        _ => {
            let mut text = *b"Thu, 01 Jan 1970 00:00:00 GMT";
            let written = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
            if written.len() == text.len() {
                text.copy_from_slice(written.as_bytes());
            }
            kept.set(Some((now, text)));
            text
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_in_imf_fixdate() {
        let text = String::from_utf8(date(Instant::now()).to_vec()).unwrap();
        assert!(text.ends_with(" GMT") && text.as_bytes()[3] == b',' && !text.contains("1970"), "{text}");
    }
}
