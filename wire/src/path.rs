//! The ways in which an app may read a request's path. Pure: bytes in, readings out.
//!
//! Outrigger forwards a path unchanged, so its decisions must hold for every way in which the app may read it. Frameworks
//! differ: they match the path before or after percent-decoding, segment by segment or as a whole; a second server behind
//! the first decodes again; some merge slashes, read `\` as `/`, cut off `;parameters`, decode overlong UTF-8, cut at a
//! decoded `?`, or drop dots and blanks at a segment's end. A path in which none of that matters has one reading and costs
//! one scan. Any other path has a bounded number of readings, in lower case, and callers check each ([`each_reading`]).
//!
//! Dot segments and control characters are rejected in every reading: clients remove the former before sending, and never
//! need the latter.

use std::ops::ControlFlow;

/// Why a path is rejected under any configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Some reading has a segment `.` or `..`.
    DotSegment,
    /// It has a control character, encoded or not.
    ControlCharacter,
    /// It has more readings than Outrigger tries.
    TooManyReadings,
}

/// The result of scanning a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// There is only one reading.
    pub is_plain: bool,
    /// It contains capital letters.
    pub has_capitals: bool,
}

/// Maximum readings of one path.
const MOST_READINGS: usize = 64;
/// Maximum length of a path with more than one reading.
const MOST_PATH: usize = 16 << 10;
/// Maximum bytes of all readings of a path together: about 0.2 ms of work.
const MOST_BYTES: usize = 128 << 10;

const CAPITAL: u8 = 1;
const ODD: u8 = 2;
/// `/` and `.`: odd next to each other, and a dot at the end.
const SEPARATOR: u8 = 4;
const BESIDE: u8 = 8;

const CLASS: [u8; 256] = {
    let mut class = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        class[byte] = match byte as u8 {
            b'A'..=b'Z' => CAPITAL,
            b'%' | b';' | b'\\' | 0..=b' ' | 0x7f => ODD,
            b'/' | b'.' => SEPARATOR,
            _ => 0,
        };
        byte += 1;
    }
    class
};

/// Looks at each byte once. For typical short paths, a table is faster than vector instructions.
pub fn scan(path: &[u8]) -> Scan {
    let (mut seen, mut before) = (0, 0);
    for byte in path {
        let class = CLASS[usize::from(*byte)];
        seen |= class | (before & class & SEPARATOR) << 1;
        before = class;
    }
    let is_plain = seen & (ODD | BESIDE) == 0 && path.last() != Some(&b'.');
    Scan { is_plain, has_capitals: seen & CAPITAL != 0 }
}

/// A normalization that only some servers apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Overlong UTF-8 is decoded: `%C0%AF` is a slash.
    Overlong,
    /// The path ends at an encoded `?` or `#`.
    Cut,
    /// A backslash is a slash.
    Backslash,
    /// `;parameters` are not part of a segment.
    Parameters,
    /// Dots and blanks at the end of a segment are dropped.
    Trim,
    /// Several slashes count as one.
    Merge,
}

const STEPS: [Step; 6] = [Step::Overlong, Step::Cut, Step::Backslash, Step::Parameters, Step::Trim, Step::Merge];

impl Step {
    /// The steps that may change `text`, alone or after others.
    fn applying_to(text: &[u8]) -> Vec<Self> {
        let has_overlong = text.iter().any(|byte| matches!(byte, 0xc0 | 0xc1 | 0xe0 | 0xf0));
        let ascii = if has_overlong { decoded_overlong(text) } else { Vec::new() };
        let is_overlong = has_overlong && ascii != text;
        let (mut cut, mut backslash, mut parameters, mut trim, mut merge) = (false, false, false, false, false);
        // Checks both: some steps apply only to the decoded bytes.
        for text in [text, &ascii] {
            let mut before = 0;
            for &byte in text {
                let is_slash = |byte: u8| matches!(byte, b'/' | b'\\');
                cut |= matches!(byte, b'?' | b'#');
                backslash |= byte == b'\\';
                parameters |= byte == b';';
                trim |= matches!(before, b'.' | b' ') && (is_slash(byte) || matches!(byte, b';' | b'?' | b'#'));
                // Other steps may leave a segment empty.
                merge |= is_slash(before) && (is_slash(byte) || matches!(byte, b';' | b'.' | b' '));
                before = byte;
            }
            trim |= matches!(before, b'.' | b' ');
        }
        let applies = |step: &Self| match step {
            Self::Overlong => is_overlong,
            Self::Cut => cut,
            Self::Backslash => backslash,
            Self::Parameters => parameters,
            Self::Trim => trim,
            Self::Merge => merge,
        };
        STEPS.into_iter().filter(applies).collect()
    }

    fn take(self, text: &mut Vec<u8>) {
        match self {
            Self::Overlong => *text = decoded_overlong(text),
            Self::Cut => text.truncate(text.iter().position(|byte| matches!(byte, b'?' | b'#')).unwrap_or(text.len())),
            Self::Backslash => text.iter_mut().filter(|byte| **byte == b'\\').for_each(|byte| *byte = b'/'),
            Self::Parameters => strip_parameters(text),
            Self::Trim => trim_segments(text),
            Self::Merge => text.dedup_by(|byte, before| *byte == b'/' && *before == b'/'),
        }
    }
}

/// A path at one depth of decoding.
#[derive(Debug)]
struct Level {
    text: Vec<u8>,
    /// Decoded more than once.
    is_deep: bool,
    /// Steps that may change it.
    steps: Vec<Step>,
}

impl Level {
    fn new(text: &[u8], is_deep: bool) -> Self {
        Self { text: text.to_vec(), is_deep, steps: Step::applying_to(text) }
    }

    fn readings(&self) -> usize {
        1 << self.steps.len()
    }

    /// Writes the reading with this number.
    fn read(&self, number: usize, reading: &mut Vec<u8>) -> Result<(), Unreadable> {
        reading.clear();
        reading.extend_from_slice(&self.text);
        for (bit, step) in self.steps.iter().enumerate() {
            if number >> bit & 1 == 1 {
                if *step == Step::Trim {
                    // This step would hide a dot segment.
                    refuse_dot_segments(reading)?;
                }
                step.take(reading);
            }
        }
        refuse_dot_segments(reading)?;
        // Control characters that appear only after decoding twice, such as a line break in a URL inside the path, are
        // allowed.
        if !self.is_deep && reading.iter().any(u8::is_ascii_control) {
            return Err(Unreadable::ControlCharacter);
        }
        reading.make_ascii_lowercase();
        Ok(())
    }
}

/// Calls `each` with every reading of a path that is not plain, in lower case, until it breaks off.
///
/// # Errors
/// Why the path is rejected; `each` may have been called before.
pub fn each_reading(path: &[u8], mut each: impl FnMut(&[u8]) -> ControlFlow<()>) -> Result<(), Unreadable> {
    if path.len() > MOST_PATH {
        return Err(Unreadable::TooManyReadings);
    }
    let levels = levels(path);
    let readings: usize = levels.iter().map(Level::readings).sum();
    let bytes: usize = levels.iter().map(|level| level.readings() * level.text.len()).sum();
    let mut reading = Vec::with_capacity(path.len());
    if readings > MOST_READINGS || bytes > MOST_BYTES {
        // Errors in the first reading of each level are always reported.
        levels.iter().try_for_each(|level| level.read(0, &mut reading))?;
        return Err(Unreadable::TooManyReadings);
    }
    for level in &levels {
        for number in 0..level.readings() {
            level.read(number, &mut reading)?;
            if each(&reading).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The path at each depth of decoding, with and without its undecoded `;parameters`; each once.
fn levels(path: &[u8]) -> Vec<Level> {
    let mut levels = Vec::with_capacity(4);
    add_levels(&mut levels, path);
    if path.contains(&b';') {
        let mut bare = path.to_vec();
        strip_parameters(&mut bare);
        add_levels(&mut levels, &bare);
    }
    levels
}

fn add_levels(levels: &mut Vec<Level>, text: &[u8]) {
    let mut add = |text: &[u8], is_deep: bool| {
        if levels.iter().all(|known| known.text != text) {
            levels.push(Level::new(text, is_deep));
        }
    };
    add(text, false);
    let mut before = text.to_vec();
    for is_deep in [false, true] {
        if !before.contains(&b'%') {
            break;
        }
        let whole = decode(&before, Slashes::Decoded);
        add(&decode(&before, Slashes::Kept), is_deep);
        add(&whole, is_deep);
        before = whole;
    }
}

/// How encoded slashes are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slashes {
    /// They separate segments like any other slash.
    Decoded,
    /// They stay encoded within their segment: the path is decoded segment by segment.
    Kept,
}

/// Percent-decodes every byte, except slashes if they are kept.
pub fn decode(text: &[u8], slashes: Slashes) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        match encoded(rest) {
            Some(decoded) if decoded != b'/' || slashes == Slashes::Decoded => {
                out.push(decoded);
                rest = &rest[3..];
            }
            _ => {
                out.push(byte);
                rest = after;
            }
        }
    }
    out
}

/// The byte whose encoded form, such as `%2F`, is at the start of `text`.
pub fn encoded(text: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = *text else { return None };
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    };
    Some(digit(high)? << 4 | digit(low)?)
}

/// Replaces overlong encodings of ASCII characters by single bytes.
fn decoded_overlong(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let (ascii, len) = match text[at..] {
            [lead @ (0xc0 | 0xc1), last @ 0x80..=0xbf, ..] => ((lead & 1) << 6 | last & 0x3f, 2),
            [0xe0, lead @ (0x80 | 0x81), last @ 0x80..=0xbf, ..] => ((lead & 1) << 6 | last & 0x3f, 3),
            [0xf0, 0x80, lead @ (0x80 | 0x81), last @ 0x80..=0xbf, ..] => ((lead & 1) << 6 | last & 0x3f, 4),
            _ => (byte, 1),
        };
        out.push(ascii);
        at += len;
    }
    out
}

fn strip_parameters(text: &mut Vec<u8>) {
    let mut inside = false;
    text.retain(|byte| {
        inside = *byte != b'/' && (inside || *byte == b';');
        !inside
    });
}

fn trim_segments(text: &mut Vec<u8>) {
    let kept: Vec<&[u8]> = text.split(|byte| *byte == b'/').map(trimmed).collect();
    *text = kept.join(&b'/');
}

fn trimmed(segment: &[u8]) -> &[u8] {
    let end = segment.iter().rposition(|byte| !matches!(byte, b'.' | b' ')).map_or(0, |last| last + 1);
    &segment[..end]
}

fn refuse_dot_segments(reading: &[u8]) -> Result<(), Unreadable> {
    let is_dots = |segment: &[u8]| matches!(segment.trim_ascii_end(), b"." | b"..");
    if reading.split(|byte| *byte == b'/').any(is_dots) { Err(Unreadable::DotSegment) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
