//! Writes events as JSON lines: members in a fixed order, and text from outside escaped so that it stays in its string.

use std::fmt::{self, Write as _};

use super::{Class, EventType, Hash, Head, NO_HASH, Outcome};

/// The time of an event: microseconds since 1970, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub i64);

/// Microseconds per day.
const DAY_US: i64 = 86_400_000_000;

impl Time {
    /// Writes the time in RFC 3339 form: `2026-11-24T14:00:00.123456Z`. Clamped to the years 1970 to 9999.
    pub fn write(self, out: &mut Vec<u8>) {
        // Years 1970 to 9999, so that four digits suffice.
        let us = self.0.clamp(0, 253_402_300_799_999_999);
        let (year, month, day) = civil(us / DAY_US);
        let in_day = us % DAY_US;
        let (seconds, fraction) = (in_day / 1_000_000, in_day % 1_000_000);
        let mut text = *b"0000-00-00T00:00:00.000000Z";
        digits(&mut text[0..4], year);
        digits(&mut text[5..7], month);
        digits(&mut text[8..10], day);
        digits(&mut text[11..13], seconds / 3600);
        digits(&mut text[14..16], seconds / 60 % 60);
        digits(&mut text[17..19], seconds % 60);
        digits(&mut text[20..26], fraction);
        out.extend_from_slice(&text);
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::with_capacity(27);
        self.write(&mut text);
        f.write_str(&String::from_utf8_lossy(&text))
    }
}

fn digits(out: &mut [u8], mut value: i64) {
    for digit in out.iter_mut().rev() {
        // 0 to 9, never negative, because the time was clamped.
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// Returns year, month and day from days since 1970, after Howard Hinnant's `civil_from_days`.
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let of_era = z.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// An event that is not yet in a chain. Text from outside is escaped and truncated when the event is written.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'a> {
    /// The event's id, a UUIDv7.
    pub id: u128,
    /// When it happened.
    pub time: Time,
    /// The name of the Machine.
    pub machine: &'a str,
    /// The id of the request.
    pub request_id: Option<&'a str>,
    /// The id of the trace (W3C Trace Context).
    pub trace_id: Option<u128>,
    /// The type of the event.
    pub event: EventType,
    /// The action, if it is more specific than [`EventType::action`].
    pub action: Option<&'a str>,
    /// The request's method.
    pub method: Option<&'a str>,
    /// The request's route.
    pub route: Option<&'a str>,
    /// Names and values of the path parameters to log; at most [`MOST_PAIRS`].
    pub resource: &'a [(&'a str, &'a [u8])],
    /// Names and values of the headers to log; at most [`MOST_PAIRS`].
    pub headers: &'a [(&'a str, &'a [u8])],
    /// The outcome.
    pub outcome: Outcome,
    /// The response's status.
    pub status: Option<u16>,
    /// Microseconds from the request's head to the end of the exchange.
    pub duration_us: Option<u64>,
    /// The actor: JSON members, written unchanged, from `"actor":{…}` to `"sealed":"…"`.
    pub who: &'a str,
    /// The reason.
    pub reason: Option<&'a str>,
    /// Further details: a JSON object, written unchanged.
    pub details: Option<&'a str>,
}

/// The maximum length of a text from outside, in bytes before escaping; `…` replaces the rest.
pub const LONGEST_TEXT: usize = 256;
/// The maximum number of headers and of path parameters in an event.
pub const MOST_PAIRS: usize = 16;

impl<'a> Draft<'a> {
    /// Creates an event with its required members only.
    pub const fn new(id: u128, time: Time, machine: &'a str, event: EventType, outcome: Outcome, who: &'a str) -> Self {
        Self {
            id,
            time,
            machine,
            request_id: None,
            trace_id: None,
            event,
            action: None,
            method: None,
            route: None,
            resource: &[],
            headers: &[],
            outcome,
            status: None,
            duration_us: None,
            who,
            reason: None,
            details: None,
        }
    }

    /// Appends the event's line, without a newline, to `out`, as the successor of `head` in the chain of `class`.
    pub fn write(&self, class: Class, head: &Head, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"seq\":");
        number(out, head.last + 1);
        self.write_members(class, out);
        out.extend_from_slice(b",\"prev\":\"");
        hex(out, &head.hash);
        out.extend_from_slice(b"\"}");
    }

    /// Appends the event's line, without a newline and outside of any chain, to `out`.
    pub fn write_unchained(&self, class: Class, out: &mut Vec<u8>) {
        let start = out.len();
        self.write_members(class, out);
        // Replaces the comma in front of the first member.
        if let Some(first) = out.get_mut(start) {
            *first = b'{';
        }
        out.push(b'}');
    }

    fn write_members(&self, class: Class, out: &mut Vec<u8>) {
        let plain = |out: &mut Vec<u8>, name: &str, value: &str| {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(value.as_bytes());
            out.push(b'"');
        };
        plain(out, ",\"class\":\"", class.name());
        out.extend_from_slice(b",\"id\":\"");
        uuid(out, self.id);
        out.extend_from_slice(b"\",\"time\":\"");
        self.time.write(out);
        out.extend_from_slice(b"\",\"machine\":");
        text(out, self.machine.as_bytes());
        if let Some(id) = self.request_id {
            out.extend_from_slice(b",\"request_id\":");
            text(out, id.as_bytes());
        }
        if let Some(trace) = self.trace_id {
            out.extend_from_slice(b",\"trace_id\":\"");
            hex(out, &trace.to_be_bytes());
            out.push(b'"');
        }
        plain(out, ",\"type\":\"", self.event.name());
        plain(out, ",\"action\":\"", self.action.unwrap_or(self.event.action()));
        if let Some(method) = self.method {
            out.extend_from_slice(b",\"method\":");
            text(out, method.as_bytes());
        }
        if let Some(route) = self.route {
            out.extend_from_slice(b",\"route\":");
            text(out, route.as_bytes());
        }
        pairs(out, ",\"resource\":{", self.resource);
        pairs(out, ",\"headers\":{", self.headers);
        plain(out, ",\"outcome\":\"", self.outcome.name());
        if let Some(status) = self.status {
            out.extend_from_slice(b",\"status\":");
            number(out, u64::from(status));
        }
        if let Some(duration) = self.duration_us {
            out.extend_from_slice(b",\"duration_us\":");
            number(out, duration);
        }
        out.push(b',');
        out.extend_from_slice(self.who.as_bytes());
        if let Some(reason) = self.reason {
            out.extend_from_slice(b",\"reason\":");
            text(out, reason.as_bytes());
        }
        if let Some(details) = self.details {
            out.extend_from_slice(b",\"details\":");
            out.extend_from_slice(details.as_bytes());
        }
    }
}

fn pairs(out: &mut Vec<u8>, opening: &str, pairs: &[(&str, &[u8])]) {
    let mut opening = opening.as_bytes();
    for (name, value) in pairs.iter().take(MOST_PAIRS) {
        out.extend_from_slice(opening);
        opening = b",";
        text(out, name.as_bytes());
        out.push(b':');
        text(out, value);
    }
    if opening == b"," {
        out.push(b'}');
    }
}

/// Appends `bytes` as a JSON string. Invalid UTF-8 and U+0000 (which PostgreSQL rejects) become U+FFFD, control characters
/// are escaped, and text longer than [`LONGEST_TEXT`] is truncated.
pub fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    let is_plain = |b: u8| (0x20..0x7f).contains(&b) && b != b'"' && b != b'\\';
    // Without an early exit, so that the compiler vectorizes it.
    if bytes.len() <= LONGEST_TEXT && bytes.iter().fold(true, |plain, b| plain & is_plain(*b)) {
        out.extend_from_slice(bytes);
    } else {
        escape(out, bytes);
    }
    out.push(b'"');
}

#[cold]
fn escape(out: &mut Vec<u8>, bytes: &[u8]) {
    let shown = &bytes[..bytes.len().min(LONGEST_TEXT)];
    // Drops a character that was cut in two.
    let shown = if shown.len() < bytes.len() {
        let whole = shown.utf8_chunks().last().map_or(0, |chunk| chunk.invalid().len());
        &shown[..shown.len() - whole]
    } else {
        shown
    };
    let mut escaped = String::with_capacity(shown.len() + 16);
    for chunk in shown.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => escaped.push_str("\\\""),
                '\\' => escaped.push_str("\\\\"),
                '\0' => escaped.push('\u{fffd}'),
                // Also line separators and bidirectional controls, which change how a terminal shows the line.
                c if c.is_control()
                    || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
                {
                    // Writing to a `String` cannot fail.
                    let _ = write!(escaped, "\\u{:04x}", u32::from(c));
                }
                c => escaped.push(c),
            }
        }
        if !chunk.invalid().is_empty() {
            escaped.push('\u{fffd}');
        }
    }
    if shown.len() < bytes.len() {
        escaped.push('…');
    }
    out.extend_from_slice(escaped.as_bytes());
}

fn number(out: &mut Vec<u8>, mut value: u64) {
    let mut text = [0; 20];
    let mut at = text.len();
    loop {
        at -= 1;
        text[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&text[at..]);
}

/// Appends `bytes` as lower-case hexadecimal digits.
pub fn hex(out: &mut Vec<u8>, bytes: &[u8]) {
    for chunk in bytes.chunks(32) {
        let mut digits = [0; 64];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(chunk) {
            pair.copy_from_slice(&hex_pair(*byte));
        }
        out.extend_from_slice(&digits[..chunk.len() * 2]);
    }
}

const fn hex_pair(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [DIGITS[(byte >> 4) as usize], DIGITS[(byte & 15) as usize]]
}

/// Parses a hash written by [`hex`]. Returns `None` unless it is 64 lower-case hexadecimal digits.
pub fn unhex(text: &[u8]) -> Option<Hash> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let mut hash = NO_HASH;
    if text.len() != hash.len() * 2 {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(hash)
}

fn uuid(out: &mut Vec<u8>, id: u128) {
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (number, byte) in id.to_be_bytes().into_iter().enumerate() {
        // The hyphens are already in place.
        at += usize::from(matches!(number, 4 | 6 | 8 | 10));
        text[at..at + 2].copy_from_slice(&hex_pair(byte));
        at += 2;
    }
    out.extend_from_slice(&text);
}

/// Returns a UUIDv7 (RFC 9562) from a time and random bits, of which it uses 12 and 62.
pub const fn uuid_v7(time: Time, random: (u64, u64)) -> u128 {
    let milliseconds = (time.0 / 1000) as u64;
    let high = milliseconds << 16 | 0x7000 | random.0 & 0x0fff;
    let low = 0b10 << 62 | random.1 >> 2;
    (high as u128) << 64 | low as u128
}
