//! Reads the next lines to send from the files of a class.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use outrigger_policy::audit::Class;
use outrigger_trail::keys::WrappedKey;
use outrigger_trail::layout;

/// The maximum number of lines in a batch.
const MOST_LINES: usize = 2000;
/// The maximum size of its lines, in bytes. The longest line is far shorter.
const MOST_BYTES: usize = 1 << 20;
/// The maximum number of bytes read from a file at once: many of the longest lines.
const READ_BYTES: u64 = 4 << 20;

/// A place in the files of a class.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    /// The first event of the segment.
    pub(super) first: u64,
    /// The offset in its file, in bytes.
    pub(super) at: u64,
    /// The offset in its file of data keys, in bytes.
    pub(super) keys_at: u64,
}

/// Lines of one class, as they are on disk.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pub(super) text: Vec<u8>,
    pub(super) last: u64,
    /// Where the next batch begins.
    pub(super) place: Place,
    /// The data keys that they need.
    pub(super) keys: Vec<WrappedKey>,
    /// The time of the first event.
    pub(super) oldest: Option<String>,
}

/// Reads the next lines of a class, up to the event `committed`; `None` if there are no more.
pub(super) fn read(
    directory: &Path,
    class: Class,
    place: Option<Place>,
    through: u64,
    committed: u64,
) -> std::io::Result<Option<Lines>> {
    let mut segments = layout::segments(directory)?;
    segments.retain(|segment| segment.class == class);
    // Start at the segment of the next event, or the last one if that is not written yet. If the event begins its
    // segment, start at the one before: its checkpoint may not have been sent.
    let of_next = segments.iter().rposition(|segment| segment.first <= through + 1).unwrap_or(0);
    let is_first = segments.get(of_next).is_some_and(|segment| segment.first == through + 1);
    let guess = if is_first { of_next.saturating_sub(1) } else { of_next };
    let start =
        place.and_then(|place| segments.iter().position(|segment| segment.first == place.first)).unwrap_or(guess);
    let mut lines = Lines { last: through, ..Lines::default() };
    let mut count = 0;
    for segment in segments.iter().skip(start) {
        let fresh = Place { first: segment.first, ..Place::default() };
        lines.place = place.filter(|place| place.first == segment.first).unwrap_or(fresh);
        // Keys before the events that need them; if there are many keys, a batch has only keys.
        let content = read_from(&segment.keys(), lines.place.keys_at)?;
        for line in content.split_inclusive(|b| *b == b'\n').take_while(|line| line.ends_with(b"\n")) {
            lines.keys.extend(serde_json::from_slice::<WrappedKey>(line));
            lines.place.keys_at += line.len() as u64;
            if lines.keys.len() >= MOST_LINES {
                return Ok(Some(lines));
            }
        }
        loop {
            let content = read_from(&segment.path, lines.place.at)?;
            let goes_on = content.len() as u64 == READ_BYTES;
            for line in content.split_inclusive(|b| *b == b'\n') {
                let number = number_of(line);
                let is_whole = line.ends_with(b"\n");
                if goes_on && !is_whole {
                    if line.len() == content.len() {
                        return Err(std::io::Error::other(format!("{}: a line has no end", segment.path.display())));
                    }
                    break;
                }
                let is_full = count >= MOST_LINES || count > 0 && lines.text.len() + line.len() > MOST_BYTES;
                if is_full || !is_whole || number.is_some_and(|number| number > committed) {
                    return Ok(lines.is_worth_it().then_some(lines));
                }
                lines.place.at += line.len() as u64;
                let is_sent = match number {
                    Some(number) => number <= through,
                    // The header of a segment was sent with its first event. A checkpoint comes after its events.
                    None => line.starts_with(b"{\"segment\"") && segment.first <= through,
                };
                if is_sent {
                    continue;
                }
                if let Some(number) = number {
                    lines.last = number;
                    if lines.oldest.is_none() {
                        lines.oldest = time_of(line);
                    }
                }
                lines.text.extend_from_slice(line);
                count += 1;
            }
            if !goes_on {
                break;
            }
        }
    }
    Ok(lines.is_worth_it().then_some(lines))
}

impl Lines {
    fn is_worth_it(&self) -> bool {
        !self.text.is_empty() || !self.keys.is_empty()
    }
}

/// Reads a file from an offset, at most [`READ_BYTES`]; a missing file is empty.
fn read_from(path: &Path, at: u64) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    match std::fs::File::open(path) {
        Ok(mut file) => {
            file.seek(SeekFrom::Start(at))?;
            file.take(READ_BYTES).read_to_end(&mut content)?;
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    Ok(content)
}

/// Returns the number of an event; `None` for a header or a checkpoint.
fn number_of(line: &[u8]) -> Option<u64> {
    let rest = line.strip_prefix(b"{\"seq\":")?;
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}

fn time_of(line: &[u8]) -> Option<String> {
    let at = memchr::memmem::find(line, b",\"time\":\"")? + 9;
    Some(String::from_utf8_lossy(line.get(at..at + 27)?).into_owned())
}
