//! W3C Trace Context: the header `traceparent` (<https://www.w3.org/TR/trace-context/>). Pure.

use std::fmt;

/// The bytes of a `traceparent` of version 00.
pub const TRACEPARENT_BYTES: usize = 55;
/// The flag of a trace whose caller records it.
const SAMPLED: u8 = 1;

/// The id of a trace: not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(pub u128);

/// The id of a span: not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanId(pub u64);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A caller's span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// Its trace.
    pub trace_id: TraceId,
    /// Its id.
    pub span_id: SpanId,
    /// Whether the caller records it.
    pub is_sampled: bool,
}

impl TraceParent {
    /// Reads a header. `None`: it is invalid, and so names no trace. A later version may have more after the flags.
    pub fn parse(header: &[u8]) -> Option<Self> {
        let (known, more) = header.split_at_checked(TRACEPARENT_BYTES)?;
        if [2, 35, 52].iter().any(|at| known[*at] != b'-') {
            return None;
        }
        let version = hex(&known[..2])?;
        let may_go_on = version != 0 && more.first().is_none_or(|byte| *byte == b'-');
        if version == 0xff || !(more.is_empty() || may_go_on) {
            return None;
        }
        let (trace_id, span_id) = (hex(&known[3..35])?, u64::try_from(hex(&known[36..52])?).ok()?);
        let is_sampled = hex(&known[53..])? & u128::from(SAMPLED) != 0;
        let is_valid = trace_id != 0 && span_id != 0;
        is_valid.then_some(Self { trace_id: TraceId(trace_id), span_id: SpanId(span_id), is_sampled })
    }

    /// The header.
    pub fn header(&self) -> String {
        format!("00-{}-{}-{:02x}", self.trace_id, self.span_id, u8::from(self.is_sampled))
    }
}

/// Reads lower-case digits, as the standard demands.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";

    #[test]
    fn a_header_is_read_and_written() {
        let read = TraceParent::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(read.trace_id.to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!((read.span_id.to_string().as_str(), read.is_sampled), ("00f067aa0ba902b7", true));
        assert_eq!(read.header(), GOOD);
        for (flags, is_sampled) in [("00", false), ("02", false), ("03", true), ("ff", true)] {
            let header = format!("{}{flags}", &GOOD[..53]);
            assert_eq!(TraceParent::parse(header.as_bytes()).unwrap().is_sampled, is_sampled, "{header}");
        }
        assert!(TraceParent::parse(GOOD.replacen("00", "cc", 1).as_bytes()).is_some(), "a later version");
        assert!(TraceParent::parse(format!("{}-more", GOOD.replacen("00", "01", 1)).as_bytes()).is_some());
    }

    #[test]
    fn an_invalid_header_names_no_trace() {
        let zeros = ["0af7651916cd43dd8448eb211c80319c", "00f067aa0ba902b7"].map(|id| (id, "0".repeat(id.len())));
        let mut wrong = vec![
            String::new(),
            GOOD[..54].to_owned(),
            format!("{GOOD}-more"),
            format!("{}x", GOOD.replacen("00", "01", 1)),
            GOOD.to_uppercase(),
            GOOD.replacen("00", "ff", 1),
            GOOD.replace("-01", "-0g"),
            GOOD.replacen('-', "_", 1),
            format!("{}+1", &GOOD[..53]),
        ];
        wrong.extend(zeros.map(|(id, zero)| GOOD.replace(id, &zero)));
        for header in wrong {
            assert_eq!(TraceParent::parse(header.as_bytes()), None, "{header}");
        }
    }
}
