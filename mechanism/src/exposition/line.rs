//! Parses one line of Prometheus's text format 0.0.4, strictly: rejects exactly what Prometheus's own parsers reject. Pure:
//! text in, values out.
//!
//! OpenMetrics is accepted as far as the text format can express it: exemplars are cut off, and on an OpenMetrics page,
//! timestamps become milliseconds.

use std::borrow::Cow;

/// Why a line was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// An encoding or control characters that the format does not allow.
    Encoding,
    /// An invalid metric name.
    Name,
    /// An invalid label: its name, quotes or escapes, or a duplicate.
    Label,
    /// A value that is not a number.
    Value,
    /// A timestamp that is not a whole number of milliseconds, or text after it.
    Timestamp,
    /// A `TYPE` that is unknown, repeated, late, or contradicts the proxy's; and samples that contradict their type.
    Type,
    /// A `HELP` that is repeated or has an unknown escape.
    Help,
    /// A repeated series.
    Duplicate,
    /// One of the proxy's names: `outrigger_…`.
    Reserved,
    /// A line that is too long, or one too many.
    Size,
}

impl Dropped {
    /// All reasons.
    pub const ALL: [Self; 10] = [
        Self::Encoding,
        Self::Name,
        Self::Label,
        Self::Value,
        Self::Timestamp,
        Self::Type,
        Self::Help,
        Self::Duplicate,
        Self::Reserved,
        Self::Size,
    ];

    /// The label in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Encoding => "encoding",
            Self::Name => "name",
            Self::Label => "label",
            Self::Value => "value",
            Self::Timestamp => "timestamp",
            Self::Type => "type",
            Self::Help => "help",
            Self::Duplicate => "duplicate",
            Self::Reserved => "reserved",
            Self::Size => "size",
        }
    }
}

/// The format of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// The text format: timestamps in milliseconds.
    #[default]
    Text,
    /// OpenMetrics: timestamps in seconds, and a counter's family lacks the `_total` of its samples.
    OpenMetrics,
}

/// The type of a family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FamilyType {
    /// Increases only.
    Counter,
    /// Increases and decreases.
    Gauge,
    /// Buckets, their sum and their count.
    Histogram,
    /// Quantiles, their sum and their count.
    Summary,
    /// No type is declared.
    #[default]
    Untyped,
}

impl FamilyType {
    /// The name in a `TYPE` line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Summary => "summary",
            Self::Untyped => "untyped",
        }
    }

    fn named(name: &str) -> Option<Self> {
        let all = [Self::Counter, Self::Gauge, Self::Histogram, Self::Summary, Self::Untyped];
        if name.eq_ignore_ascii_case("unknown") {
            return Some(Self::Untyped);
        }
        all.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(name))
    }

    /// The suffixes that its samples add to its name.
    pub const fn suffixes(self) -> &'static [&'static str] {
        match self {
            Self::Counter | Self::Gauge | Self::Untyped => &[""],
            Self::Histogram => &["_bucket", "_sum", "_count"],
            Self::Summary => &["", "_sum", "_count"],
        }
    }
}

/// The content of a line.
#[derive(Clone, Debug, PartialEq)]
pub enum Line<'a> {
    /// An empty line or a comment.
    Nothing,
    /// The help of a family, escaped.
    Help(&'a str, &'a str),
    /// The type of a family.
    Type(&'a str, FamilyType),
    /// A sample.
    Sample(Sample<'a>),
}

/// A sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample<'a> {
    /// Its name.
    pub name: &'a str,
    /// Names and escaped values. A value has only one escaped form, so equal values are equal here.
    pub labels: Vec<(&'a str, &'a str)>,
    /// The number, as written.
    pub value: &'a str,
    /// In milliseconds; as written if it was in milliseconds.
    pub timestamp: Option<Cow<'a, str>>,
}

/// Parses a line without its line ending.
///
/// # Errors
/// Why the line is left out.
pub fn read(line: &[u8], dialect: Dialect) -> Result<Line<'_>, Dropped> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let line = std::str::from_utf8(line).map_err(|_| Dropped::Encoding)?;
    if line.chars().any(|c| c.is_control() && c != '\t') {
        return Err(Dropped::Encoding);
    }
    let line = line.trim_matches(BLANK);
    match line.strip_prefix('#') {
        Some(comment) => read_comment(comment.trim_start_matches(BLANK)),
        None if line.is_empty() => Ok(Line::Nothing),
        None => read_sample(line, dialect).map(Line::Sample),
    }
}

const BLANK: [char; 2] = [' ', '\t'];

/// The first word, and the rest.
fn word(text: &str) -> (&str, &str) {
    let (word, rest) = text.split_at(text.find(BLANK).unwrap_or(text.len()));
    (word, rest.trim_start_matches(BLANK))
}

fn read_comment(comment: &str) -> Result<Line<'_>, Dropped> {
    let (keyword, rest) = word(comment);
    let (name, text) = word(rest);
    match keyword {
        "HELP" if !is_name(name) => Err(Dropped::Name),
        "HELP" if !has_known_escapes(text, "\\n") => Err(Dropped::Help),
        "HELP" => Ok(Line::Help(name, text)),
        "TYPE" if !is_name(name) => Err(Dropped::Name),
        "TYPE" => FamilyType::named(text).map(|kind| Line::Type(name, kind)).ok_or(Dropped::Type),
        _ => Ok(Line::Nothing),
    }
}

fn read_sample(line: &str, dialect: Dialect) -> Result<Sample<'_>, Dropped> {
    let (name, rest) = line.split_at(line.find(['{', ' ', '\t']).unwrap_or(line.len()));
    if !is_name(name) {
        return Err(Dropped::Name);
    }
    let rest = rest.trim_start_matches(BLANK);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => read_labels(rest)?,
        None => (Vec::new(), rest),
    };
    let (value, rest) = word(rest.trim_start_matches(BLANK));
    if !is_number(value) {
        return Err(Dropped::Value);
    }
    // An exemplar, which only OpenMetrics has.
    let rest = if rest.starts_with('#') { "" } else { rest.split_once(" # {").map_or(rest, |(before, _)| before) };
    let timestamp = rest.trim_end_matches(BLANK);
    let timestamp = match (timestamp, dialect) {
        ("", _) => None,
        (text, Dialect::Text) if is_milliseconds(text) => Some(Cow::Borrowed(text)),
        (_, Dialect::Text) => return Err(Dropped::Timestamp),
        (text, Dialect::OpenMetrics) => {
            Some(milliseconds_of_seconds(text).ok_or(Dropped::Timestamp)?.to_string().into())
        }
    };
    Ok(Sample { name, labels, value, timestamp })
}

/// The labels of a list, and the text after its closing brace.
type Labels<'a> = (Vec<(&'a str, &'a str)>, &'a str);

/// Parses labels after their opening brace.
fn read_labels(mut rest: &str) -> Result<Labels<'_>, Dropped> {
    let mut labels: Vec<(&str, &str)> = Vec::new();
    loop {
        rest = rest.trim_start_matches(BLANK);
        if let Some(rest) = rest.strip_prefix('}') {
            return Ok((labels, rest));
        }
        let (name, after) = rest.split_once('=').ok_or(Dropped::Label)?;
        let name = name.trim_end_matches(BLANK);
        let after = after.trim_start_matches(BLANK).strip_prefix('"').ok_or(Dropped::Label)?;
        let end = end_of_quotes(after).ok_or(Dropped::Label)?;
        let value = &after[..end];
        let is_new = labels.iter().all(|(other, _)| *other != name);
        if !is_label(name) || !is_new || !has_known_escapes(value, "\\n\"") || labels.len() >= MOST_LABELS {
            return Err(Dropped::Label);
        }
        labels.push((name, value));
        rest = after[end + 1..].trim_start_matches(BLANK);
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest.starts_with('}') => {}
            None => return Err(Dropped::Label),
        }
    }
}

/// Beyond this, `f64` cannot represent every whole number.
const MOST_MILLISECONDS: f64 = 9_007_199_254_740_992.0;

/// The search for duplicates compares each label with all others.
const MOST_LABELS: usize = 128;

fn end_of_quotes(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        ends
    })
}

/// Whether each backslash is followed by one of these characters.
fn has_known_escapes(text: &str, known: &str) -> bool {
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character == '\\' && !characters.next().is_some_and(|next| known.contains(next)) {
            return false;
        }
    }
    true
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || matches!(b, b'_' | b':'))
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':'))
}

fn is_label(name: &str) -> bool {
    is_name(name) && !name.contains(':') && name != "__name__"
}

/// Parses a number that both of Prometheus's parsers accept: Go's syntax without hexadecimal numbers and underscores.
pub fn number(text: &str) -> Option<f64> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let is_infinite = unsigned.eq_ignore_ascii_case("inf") || unsigned.eq_ignore_ascii_case("infinity");
    if is_infinite || text.eq_ignore_ascii_case("nan") {
        return text.parse().ok();
    }
    let is_decimal = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
    // Larger numbers are an error in Go.
    if is_decimal { text.parse().ok().filter(|number: &f64| number.is_finite()) } else { None }
}

fn is_number(text: &str) -> bool {
    number(text).is_some()
}

fn is_milliseconds(text: &str) -> bool {
    !text.starts_with('+') && text.parse::<i64>().is_ok()
}

fn milliseconds_of_seconds(text: &str) -> Option<i64> {
    let milliseconds = number(text)? * 1000.0;
    (milliseconds.abs() < MOST_MILLISECONDS).then_some(milliseconds.round() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(line: &str) -> Result<Sample<'_>, Dropped> {
        match read(line.as_bytes(), Dialect::Text)? {
            Line::Sample(sample) => Ok(sample),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn reads_what_the_format_allows() {
        let plain = sample("a_b:c{x=\"1\",le=\"+Inf\"} 1.5e3 -1700").unwrap();
        assert_eq!((plain.name, plain.value, plain.timestamp), ("a_b:c", "1.5e3", Some("-1700".into())));
        assert_eq!(plain.labels, [("x", "1"), ("le", "+Inf")]);
        let loose = sample("  a\t{ x = \"}\\\"\\\\\\n,\" , }\tNaN \r").unwrap();
        assert_eq!((loose.labels, loose.value), (vec![("x", "}\\\"\\\\\\n,")], "NaN"));
        assert_eq!(sample("a{} 1").unwrap(), sample("a 1").unwrap());
        for value in ["0", "-1", "+1.", ".5", "1e-9", "+Inf", "-inf", "Infinity", "nan"] {
            assert_eq!(sample(&format!("a {value}")).map(|sample| sample.value.len()), Ok(value.len()), "{value}");
        }
        assert_eq!(read(b"#TYPE a GAUGE", Dialect::Text), Ok(Line::Type("a", FamilyType::Gauge)));
        assert_eq!(read(b"# TYPE a unknown", Dialect::Text), Ok(Line::Type("a", FamilyType::Untyped)));
        assert_eq!(read(b"# HELP a b\\n c \\\\", Dialect::Text), Ok(Line::Help("a", "b\\n c \\\\")));
        for nothing in ["", " \t", "#", "# a comment", "# EOF", "# UNIT a seconds"] {
            assert_eq!(read(nothing.as_bytes(), Dialect::Text), Ok(Line::Nothing), "{nothing}");
        }
    }

    #[test]
    fn says_why_a_line_is_dropped() {
        let cases: &[(&[u8], Dropped)] = &[
            (b"a{x=\"\xff\"} 1", Dropped::Encoding),
            (b"a{x=\"\0\"} 1", Dropped::Encoding),
            (b"a{x=\"\r\"} 1", Dropped::Encoding),
            (b"b-c 1", Dropped::Name),
            (b"1a 1", Dropped::Name),
            (b"{x=\"1\"} 1", Dropped::Name),
            (b"{\"a.b\",x=\"1\"} 1", Dropped::Name),
            (b"<html>", Dropped::Name),
            (b"# TYPE", Dropped::Name),
            (b"# HELP 1a text", Dropped::Name),
            (b"a{x} 1", Dropped::Label),
            (b"a{=\"1\"} 1", Dropped::Label),
            (b"a{x=1} 1", Dropped::Label),
            (b"a{x='1'} 1", Dropped::Label),
            (b"a{x:y=\"1\"} 1", Dropped::Label),
            (b"a{x=\"1\" y=\"2\"} 1", Dropped::Label),
            (b"a{,x=\"1\"} 1", Dropped::Label),
            (b"a{x=\"1\",,y=\"2\"} 1", Dropped::Label),
            (b"a{x=\"1\",x=\"2\"} 1", Dropped::Label),
            (b"a{x=\"\\q\"} 1", Dropped::Label),
            (b"a{x=\"1\\\"} 1", Dropped::Label),
            (b"a{x=\"1\" 1", Dropped::Label),
            (b"a{__name__=\"b\"} 1", Dropped::Label),
            (b"a", Dropped::Value),
            (b"a three", Dropped::Value),
            (b"a 0x10", Dropped::Value),
            (b"a 1_000", Dropped::Value),
            (b"a +nan", Dropped::Value),
            (b"a 1e999", Dropped::Value),
            (b"a 1,5", Dropped::Value),
            (b"a 1 soon", Dropped::Timestamp),
            (b"a 1 17.5", Dropped::Timestamp),
            (b"a 1 +17", Dropped::Timestamp),
            (b"a 1 17 more", Dropped::Timestamp),
            (b"a 1 99999999999999999999", Dropped::Timestamp),
            (b"# TYPE a", Dropped::Type),
            (b"# TYPE a info", Dropped::Type),
            (b"# TYPE a gauge gauge", Dropped::Type),
            (b"# HELP a \\q", Dropped::Help),
        ];
        for (line, why) in cases {
            assert_eq!(read(line, Dialect::Text), Err(*why), "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn exemplars_are_removed_and_seconds_become_milliseconds() {
        let line = b"a{q=\"# {\"} 7 # {trace_id=\"ab12\"} 0.5 1700000000.5";
        for dialect in [Dialect::Text, Dialect::OpenMetrics] {
            let Ok(Line::Sample(sample)) = read(line, dialect) else { panic!("{dialect:?}") };
            assert_eq!((sample.labels, sample.value, sample.timestamp), (vec![("q", "# {")], "7", None));
        }
        for (line, milliseconds) in [("a 7 1700000000.25 # {x=\"1\"} 2", "1700000000250"), ("a 7 17", "17000")] {
            let Ok(Line::Sample(sample)) = read(line.as_bytes(), Dialect::OpenMetrics) else { panic!("{line}") };
            assert_eq!(sample.timestamp.as_deref(), Some(milliseconds), "{line}");
        }
        assert_eq!(read(b"a 7 1e300", Dialect::OpenMetrics), Err(Dropped::Timestamp));
    }
}
