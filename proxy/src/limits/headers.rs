//! What answers tell of the limits: `RateLimit-Policy` and `RateLimit` as structured fields (draft-ietf-httpapi-ratelimit-headers-10).
//!
//! ```text
//! RateLimit-Policy: "medium";q=100;w=60      so many, in so many seconds
//! RateLimit: "medium";r=42;t=35              so many are left; nothing is taken any more in so many seconds
//! ```

use std::cell::RefCell;

use outrigger_policy::limiter::Quota;

use crate::exchange::Exchange;

/// One item of `RateLimit-Policy`. Names hold nothing that a structured field would have to escape.
pub fn policy(name: &str, quota: Quota, window_s: u64) -> String {
    format!("\"{name}\";q={};w={window_s}", quota.burst())
}

/// Calls `field` with the name and value of each field that the answer gets.
pub fn each(exchange: &Exchange, mut field: impl FnMut(&'static str, &[u8])) {
    thread_local! {
        static TEXT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    let limits = &exchange.rules.config.limits;
    let tier = exchange.client.tier as usize;
    let shown =
        || exchange.shown_limits.iter().filter_map(|left| Some((limits.all.get(usize::from(left.limit))?, left)));
    if shown().next().is_none() {
        return;
    }
    TEXT.with_borrow_mut(|text| {
        if limits.headers {
            text.clear();
            for (limit, _) in shown() {
                separate(text);
                text.extend_from_slice(limit.policies[tier].as_bytes());
            }
            field("RateLimit-Policy", text);
            text.clear();
            for (limit, left) in shown() {
                separate(text);
                text.push(b'"');
                text.extend_from_slice(limit.name.as_bytes());
                text.extend_from_slice(b"\";r=");
                decimal(text, left.remaining.into());
                text.extend_from_slice(b";t=");
                decimal(text, left.full_in_s.into());
            }
            field("RateLimit", text);
        }
        if limits.legacy_headers
            && let Some((limit, left)) = shown().min_by_key(|(_, left)| left.remaining)
        {
            let quota = limit.quotas[tier].map_or(0, Quota::burst);
            for (name, value) in [
                ("X-RateLimit-Limit", quota.into()),
                ("X-RateLimit-Remaining", left.remaining.into()),
                ("X-RateLimit-Reset", left.full_in_s.into()),
            ] {
                text.clear();
                decimal(text, value);
                field(name, text);
            }
        }
    });
}

fn separate(text: &mut Vec<u8>) {
    if !text.is_empty() {
        text.extend_from_slice(b", ");
    }
}

/// Writes a number; formatting is on the way of every request.
pub fn decimal(text: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        // A remainder of ten is one digit.
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    text.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_numbers_as_everybody_does() {
        for number in [0, 7, 10, 99, 100, 12_345, u64::MAX] {
            let mut text = Vec::new();
            decimal(&mut text, number);
            assert_eq!(String::from_utf8(text).unwrap(), number.to_string());
        }
    }
}
