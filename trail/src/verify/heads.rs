//! Reads `HEAD`: its two slots, what they claim, and what is wrong with them.

use std::io;
use std::path::Path;
use std::time::Duration;

use outrigger_policy::audit::{Class, unhex};

use super::{Claim, Wrong};
use crate::keys::PublicKeys;
use crate::layout::{self, HEAD, HEAD_SLOT, Heads};

/// The content of `HEAD`.
pub(super) struct HeadFile {
    /// The file is missing, or empty.
    pub(super) is_blank: bool,
    pub(super) newest: Option<Heads>,
    pub(super) claims: Vec<(Class, Claim)>,
    pub(super) wrong: Vec<Wrong>,
}

pub(super) fn read_heads(directory: &Path, keys: &PublicKeys) -> io::Result<HeadFile> {
    let mut before = Vec::new();
    // A slot may be read while it is being written: a problem must occur twice.
    for _ in 0..20 {
        let bytes = match std::fs::read(directory.join(HEAD)) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok(HeadFile { is_blank: true, newest: None, claims: Vec::new(), wrong: vec![Wrong::NoHead] });
            }
            Err(e) => return Err(e),
        };
        let read = parse_heads(&bytes, keys);
        if read.wrong.is_empty() || bytes == before {
            return Ok(read);
        }
        before = bytes;
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(parse_heads(&before, keys))
}

fn parse_heads(bytes: &[u8], keys: &PublicKeys) -> HeadFile {
    let mut wrong = Vec::new();
    let mut slots: Vec<Heads> = Vec::new();
    let mut blank = None;
    for slot in 0..2 {
        let from = (slot * HEAD_SLOT).min(bytes.len());
        let bytes = &bytes[from..bytes.len().min(from + HEAD_SLOT)];
        match parse_slot(bytes, keys) {
            Ok(Some(heads)) => slots.push(heads),
            Ok(None) => blank = Some(slot + 1),
            Err(problem) => wrong.push(Wrong::Slot { slot: slot + 1, problem }),
        }
    }
    if bytes.len() > 2 * HEAD_SLOT {
        wrong.push(Wrong::Slot { slot: 2, problem: "is not the end of the file".to_owned() });
    }
    slots.sort_by_key(|heads| heads.number);
    if let [older, newer] = slots.as_slice()
        && (older.number + 1 != newer.number || older.chain != newer.chain)
    {
        wrong.push(Wrong::Apart(older.number, newer.number));
    }
    // The second slot is written with the second commit.
    if let Some(slot) = blank
        && slots.last().is_none_or(|heads| heads.number > 1)
    {
        wrong.push(Wrong::Slot { slot, problem: "is empty".to_owned() });
    }
    let mut claims = Vec::new();
    for heads in &slots {
        for (class, span) in &heads.classes {
            if let (Some(class), Some(hash)) = (Class::named(class), unhex(span.hash.as_bytes())) {
                claims.push((class, Claim { seq: span.last, hash, by: HEAD.to_owned() }));
            }
        }
    }
    HeadFile { is_blank: bytes.iter().all(u8::is_ascii_whitespace), newest: slots.pop(), claims, wrong }
}

/// Parses a slot; `None` if it was never written.
fn parse_slot(bytes: &[u8], keys: &PublicKeys) -> Result<Option<Heads>, String> {
    let padded = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let end = padded.iter().rposition(|b| *b != b' ').map_or(0, |at| at + 1);
    let line = &padded[..end];
    if line.is_empty() || bytes.iter().all(|b| *b == 0) {
        return Ok(None);
    }
    let heads: Heads = serde_json::from_slice(line).map_err(|_| "cannot be read")?;
    if heads.head != 1 {
        return Err(format!("has version {}, which this program does not know", heads.head));
    }
    layout::verify(line, &heads.key, keys).map_err(|e| Wrong::signature(&e))?;
    // The signature is valid, but the padding was changed.
    if bytes.len() != HEAD_SLOT || !bytes.ends_with(b"\n") {
        return Err("is not as long as it was".to_owned());
    }
    Ok(Some(heads))
}
