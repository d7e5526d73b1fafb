//! The batches that proxies ship: lines of segments as they are on disk.

use std::borrow::Cow;

use jiff::Timestamp;
use outrigger_policy::audit::Class;
use uuid::Uuid;

use crate::entry::Entry;
use crate::keys::WrappedKey;
use crate::layout::{Checkpoint, Header, Heads};

/// A batch. Invalid lines do not invalidate the batch: they are in [`Self::refused`].
#[derive(Debug)]
pub struct Batch<'a> {
    /// The chain.
    pub chain: String,
    /// The Machine that ships it.
    pub machine: String,
    /// The class of all its entries.
    pub class: Class,
    /// The last erasure for which the spool has destroyed its keys.
    pub erasures_seen: i64,
    /// The data keys that its entries were the first to use.
    pub keys: Vec<WrappedKey>,
    /// The newest `HEAD` of the spool: its signed line and its content.
    pub head: Option<(String, Heads)>,
    /// Its entries.
    pub entries: Vec<Line<'a>>,
    /// Headers and checkpoints of segments.
    pub marks: Vec<Mark<'a>>,
    /// Lines that cannot be stored as entries, with reasons.
    pub refused: Vec<Refused<'a>>,
}

/// An entry and its values for the database.
#[derive(Clone, Debug)]
pub struct Line<'a> {
    /// The exact text.
    pub text: &'a str,
    /// Its time.
    pub time: Timestamp,
    /// Its id.
    pub id: Uuid,
    /// Its number.
    pub seq: i64,
    /// The parsed entry.
    pub entry: Entry<'a>,
}

/// A header or a checkpoint.
#[derive(Clone, Debug)]
pub struct Mark<'a> {
    /// The exact text.
    pub text: &'a str,
    /// `header` or `checkpoint`.
    pub kind: &'static str,
    /// The number of the segment's first entry.
    pub first: i64,
    /// The number of its last entry; of a header, `first - 1`.
    pub last: i64,
}

/// A rejected line, kept unchanged.
#[derive(Clone, Debug)]
pub struct Refused<'a> {
    /// The line.
    pub line: Cow<'a, [u8]>,
    /// Why it was rejected.
    pub why: String,
    /// Whether it is among [`Batch::entries`].
    pub(crate) is_entry: bool,
}

impl<'a> Batch<'a> {
    /// A batch without lines.
    pub fn new(chain: &str, machine: &str, class: Class) -> Self {
        Self {
            chain: chain.to_owned(),
            machine: machine.to_owned(),
            class,
            erasures_seen: 0,
            keys: Vec::new(),
            head: None,
            entries: Vec::new(),
            marks: Vec::new(),
            refused: Vec::new(),
        }
    }

    /// The same with the lines of a text.
    #[must_use]
    pub fn with_lines(mut self, text: &'a [u8]) -> Self {
        for line in text.split_inclusive(|b| *b == b'\n') {
            self.add(line.strip_suffix(b"\n").unwrap_or(line));
        }
        self
    }

    fn add(&mut self, line: &'a [u8]) {
        let added = match std::str::from_utf8(line) {
            Err(_) => Err("is not UTF-8".to_owned()),
            Ok(text) if text.starts_with("{\"segment\":") => self.mark(text, "header"),
            Ok(text) if text.starts_with("{\"checkpoint\":") => self.mark(text, "checkpoint"),
            Ok(text) => self.entry(text),
        };
        if let Err(why) = added {
            self.refused.push(Refused { line: line.into(), why, is_entry: false });
        }
    }

    fn mark(&mut self, text: &'a str, kind: &'static str) -> Result<(), String> {
        let no = |e: serde_json::Error| format!("is not a valid {kind}: {e}");
        let (chain, class, first, last) = if kind == "header" {
            let header: Header = serde_json::from_str(text).map_err(no)?;
            (header.chain, header.class, header.first, header.first.saturating_sub(1))
        } else {
            let checkpoint: Checkpoint = serde_json::from_str(text).map_err(no)?;
            (checkpoint.chain, checkpoint.class, checkpoint.first, checkpoint.last)
        };
        self.is_ours(Some(&chain), &class)?;
        let number = |n: u64| i64::try_from(n).map_err(|_| format!("has a number out of range: {n}"));
        self.marks.push(Mark { text, kind, first: number(first)?, last: number(last)? });
        Ok(())
    }

    fn entry(&mut self, text: &'a str) -> Result<(), String> {
        let entry = Entry::parse(text.as_bytes()).map_err(|e| format!("is not an entry: {e}"))?;
        self.is_ours(None, entry.class)?;
        let seq = entry.seq.and_then(|seq| i64::try_from(seq).ok()).ok_or("has no number in its chain")?;
        let id = entry.id.parse().map_err(|_| format!("has an id that is not a UUID: {:?}", entry.id))?;
        let time = entry.time.parse().map_err(|_| format!("has a time that cannot be read: {:?}", entry.time))?;
        self.entries.push(Line { text, time, id, seq, entry });
        Ok(())
    }

    fn is_ours(&self, chain: Option<&str>, class: &str) -> Result<(), String> {
        if class != self.class.name() {
            return Err(format!("is of class {class:?} in a batch of class {:?}", self.class.name()));
        }
        match chain {
            Some(chain) if chain != self.chain => Err(format!("is of chain {chain:?} in a batch of {:?}", self.chain)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(text: &[u8]) -> Batch<'_> {
        Batch::new("0123456789abcdef", "m1", Class::Data).with_lines(text)
    }

    const ENTRY: &str = r#"{"seq":1,"class":"data","id":"0199a7a5-0000-7000-8000-000000000001","time":"2026-11-24T14:00:00.000001Z","machine":"m1","type":"data.read","action":"read","outcome":"success","actor":{"id":"u_x","kind":"user"},"prev":"00"}"#;

    fn refused(line: &[u8]) -> String {
        let batch = batch(line);
        assert!(batch.entries.is_empty() && batch.marks.is_empty());
        batch.refused[0].why.clone()
    }

    #[test]
    fn reads_entries_headers_and_checkpoints() {
        let header = r#"{"segment":1,"chain":"0123456789abcdef","class":"data","machine":"m1","first":1,"prev":"00","created":"2026-11-24T14:00:00Z"}"#;
        let checkpoint = r#"{"checkpoint":1,"chain":"0123456789abcdef","class":"data","first":1,"last":1,"header":"00","hash":"00","time":"2026-11-24T14:00:00Z","heads":{},"key":"k1","signature":"x"}"#;
        let body = format!("{header}\n{ENTRY}\n{checkpoint}\n");
        let batch = batch(body.as_bytes());
        assert_eq!((batch.entries.len(), batch.marks.len(), batch.refused.len()), (1, 2, 0), "{:?}", batch.refused);
        assert_eq!((batch.entries[0].seq, batch.entries[0].text), (1, ENTRY));
        assert_eq!((batch.marks[0].first, batch.marks[0].last), (1, 0));
        assert_eq!((batch.marks[1].first, batch.marks[1].last), (1, 1));
    }

    #[test]
    fn a_line_that_cannot_be_stored_does_not_fail_the_batch() {
        assert!(refused(b"{}").starts_with("is not an entry"));
        assert!(refused(b"\xff").starts_with("is not UTF-8"));
        assert!(refused(ENTRY.replace("\"seq\":1,", "").as_bytes()).contains("no number"));
        assert!(refused(ENTRY.replace("\"class\":\"data\"", "\"class\":\"security\"").as_bytes()).contains("security"));
        assert!(refused(ENTRY.replace("2026-11-24T", "").as_bytes()).contains("a time"));
        assert!(refused(ENTRY.replace("0199a7a5", "x").as_bytes()).contains("not a UUID"));
        assert!(refused(br#"{"segment":1,"chain":"x"}"#).starts_with("is not a valid header"));
    }
}
