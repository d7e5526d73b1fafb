//! Path patterns of routes: `/exact`, `/items/{id}`, `/files/**`.

use std::ops::ControlFlow;

use outrigger_wire::path;

use super::spelling;

/// One segment of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    /// In lower case: percent-encoded as clients send it, and decoded.
    Literal { sent: Box<[u8]>, decoded: Box<[u8]> },
    /// `{name}`: any one non-empty segment.
    Any,
}

/// `/exact`, `/items/{id}`, `/files/**`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PathPattern {
    pub(super) segments: Vec<Segment>,
    /// Ends in `/**`: also matches everything below.
    pub(super) and_below: bool,
}

impl Default for PathPattern {
    fn default() -> Self {
        Self { segments: Vec::new(), and_below: true }
    }
}

impl PathPattern {
    /// A path without wildcards; a trailing slash is ignored.
    pub(super) fn literal(path: &str) -> Self {
        let path = path.strip_prefix('/').unwrap_or(path);
        let segments = path.strip_suffix('/').unwrap_or(path).split('/').filter(|_| !path.is_empty());
        Self { segments: segments.map(literal_segment).collect(), and_below: false }
    }

    /// # Errors
    /// The mistake, and how to write the pattern.
    pub(super) fn parse(text: &str) -> Result<Self, (String, String)> {
        if let Some((why, hint)) = spelling::foreign(text) {
            return Err((format!("`path` {text:?} {why}"), hint));
        }
        Self::parse_plain(text).map_err(|(message, hint)| (message, hint.to_owned()))
    }

    /// Like [`Self::parse`], without a look at the patterns of other programs.
    pub(super) fn parse_plain(text: &str) -> Result<Self, (String, &'static str)> {
        const EXAMPLES: &str = "write \"/exact\", \"/items/{id}\" or \"/files/**\"";
        let fail = |why: &str| Err((format!("`path` {text:?} {why}"), EXAMPLES));
        if !text.starts_with('/') {
            return fail("does not begin with a slash");
        }
        if text.contains(['?', '#', ' ']) {
            return fail("has a character that no path of a request has");
        }
        let (exact, and_below) = match text.strip_suffix("**") {
            Some(before) if before.ends_with('/') => (before, true),
            Some(_) => return fail("has \"**\" beside other text; it stands alone, at the end"),
            None => (text, false),
        };
        let mut example = String::new();
        for segment in exact[1..].split('/') {
            let name = segment.strip_prefix('{').and_then(|s| s.strip_suffix('}'));
            let is_name = |n: &str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            match name {
                Some(name) if is_name(name) => example.push_str("/x"),
                Some(_) => return fail("has a parameter whose name is not made of letters, digits and _"),
                None if segment.contains(['*', '{', '}']) => return fail("has a wildcard that is not a whole segment"),
                None => example.extend(["/", segment]),
            }
        }
        let pattern = Self { and_below, ..Self::literal(exact) };
        if !pattern.is_unambiguous(&example) {
            return fail(
                "is not in normal form (no \"//\", \"/.\", \"/..\", \";\", \"\\\", no encoded slash, no needless %-encoding), so nothing can match it",
            );
        }
        Ok(pattern)
    }

    /// Whether all readings of `example`, a request for this pattern, match it.
    fn is_unambiguous(&self, example: &str) -> bool {
        if path::scan(example.as_bytes()).is_plain {
            return true;
        }
        let spelt = [|sent: &Segment| sent.sent().to_vec(), |sent: &Segment| sent.decoded().to_vec()];
        let spelt = spelt.map(|spelling| {
            let segments: Vec<Vec<u8>> = self.segments.iter().map(spelling).collect();
            [b"/", &*segments.join(&b'/')].concat()
        });
        let has_slashes = self.segments.iter().any(|segment| segment.decoded().contains(&b'/'));
        let mut is_unambiguous = !needlessly_encoded(example) && !has_slashes;
        let read = path::each_reading(example.as_bytes(), |reading| {
            let reading = if reading.len() > 1 { reading.strip_suffix(b"/").unwrap_or(reading) } else { reading };
            is_unambiguous &= spelt.iter().any(|spelt| spelt == reading);
            ControlFlow::Continue(())
        });
        read.is_ok() && is_unambiguous
    }

    pub(super) fn covers(&self, other: &Self) -> bool {
        let longer = self.segments.len() > other.segments.len();
        if longer || (!self.and_below && (other.and_below || self.segments.len() != other.segments.len())) {
            return false;
        }
        self.segments.iter().zip(&other.segments).all(|(own, theirs)| *own == Segment::Any || own == theirs)
    }

    /// Whether the pattern is exactly `path`, without wildcards.
    pub(super) fn names(&self, path: &Self) -> bool {
        self.segments == path.segments
    }
}

impl Segment {
    pub(super) fn sent(&self) -> &[u8] {
        match self {
            Self::Literal { sent, .. } => sent,
            Self::Any => b"x",
        }
    }

    pub(super) fn decoded(&self) -> &[u8] {
        match self {
            Self::Literal { decoded, .. } => decoded,
            Self::Any => b"x",
        }
    }
}

fn literal_segment(text: &str) -> Segment {
    if text.starts_with('{') && text.ends_with('}') {
        return Segment::Any;
    }
    let mut sent = String::new();
    for byte in text.bytes() {
        if byte.is_ascii() {
            sent.push(char::from(byte.to_ascii_lowercase()));
        } else {
            sent.push_str(&format!("%{byte:02x}"));
        }
    }
    let decoded = path::decode(text.as_bytes(), path::Slashes::Decoded).to_ascii_lowercase();
    Segment::Literal { sent: sent.into_bytes().into(), decoded: decoded.into() }
}

/// Whether it percent-encodes a character that needs no encoding.
fn needlessly_encoded(text: &str) -> bool {
    let is_unreserved = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    (0..text.len()).any(|at| path::encoded(&text.as_bytes()[at..]).is_some_and(is_unreserved))
}

/// The parameters of a pattern that are among `wanted`.
pub fn parameters(pattern: &str, wanted: &[String]) -> Box<[(usize, Box<str>)]> {
    let segments = pattern.split('/').skip(1).enumerate();
    let name = |segment: &str| segment.strip_prefix('{').and_then(|s| s.strip_suffix('}')).map(Box::from);
    let named = segments.filter_map(|(at, segment)| Some((at, name(segment)?)));
    named.filter(|(_, name): &(usize, Box<str>)| wanted.iter().any(|wanted| **wanted == **name)).collect()
}
