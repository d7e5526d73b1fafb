//! Keeps the values of references out of messages: they may be secrets.
//!
//! Messages quote values as they are, escaped, cut off, in lower case, or a part of them. So each run of four bytes that a message has in
//! common with a value is replaced, up to the ends of the word, unless the same words are public: those of the schema, and of the files,
//! which are shown anyway. Messages about the value itself lose all that they quote.

use std::collections::HashSet;
use std::fmt;

use crate::error::Problem;
use crate::finding::Rule;
use crate::kinds::KINDS;
use crate::references::References;

/// The length of a run.
const RUN: usize = 4;

/// Replaces what is removed.
const REMOVED: &str = "…";

/// Removes the values of references from problems.
pub struct Scrubber {
    references: References,
    /// All runs of the values, in lower case.
    runs: HashSet<[u8; RUN]>,
    /// Texts that may be shown, in lower case.
    public: String,
}

impl fmt::Debug for Scrubber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scrubber").finish_non_exhaustive()
    }
}

impl Scrubber {
    /// For the values of these references. `public`: texts that may be shown.
    pub fn new(references: References, public: impl FnOnce() -> Vec<String>) -> Self {
        let mut runs = HashSet::new();
        for value in references.values() {
            for text in [value.to_owned(), format!("{value:?}")] {
                let bytes = text.to_ascii_lowercase().into_bytes();
                runs.extend(bytes.windows(RUN).filter_map(|run| <[u8; RUN]>::try_from(run).ok()));
            }
        }
        let mut all = String::new();
        if !runs.is_empty() {
            let hints = KINDS.iter().map(|kind| format!("{} {}", kind.needs.what, kind.needs.hint));
            for text in hints.chain(public()) {
                all.push_str(&text.to_ascii_lowercase());
                all.push('\n');
            }
        }
        Self { references, runs, public: all }
    }

    /// The references.
    pub fn references(&self) -> &References {
        &self.references
    }

    /// Removes the values from a problem.
    pub fn scrub(&self, problem: &mut Problem) {
        let own = self.references.at(&problem.place);
        // There is no value.
        if own.is_some_and(|expanded| expanded.is_failed) {
            return;
        }
        if let Some(expanded) = own
            && matches!(problem.rule, Rule::InvalidSetting | Rule::Suspicious)
        {
            let message = problem.message.split(", got ").next().unwrap_or_default();
            problem.message = format!("{}; its value comes from {}", without_quoted(message), expanded.names());
        }
        for text in [&mut problem.message, &mut problem.hint] {
            if let Some(clean) = self.cleaned(text) {
                *text = clean;
            }
        }
    }

    /// The text without the values; `None` if it has none.
    fn cleaned(&self, text: &str) -> Option<String> {
        if self.runs.is_empty() {
            return None;
        }
        let lower = text.to_ascii_lowercase();
        let bytes = lower.as_bytes();
        let mut found: Vec<(usize, usize)> = Vec::new();
        for (start, run) in bytes.windows(RUN).enumerate() {
            if !self.runs.contains(run) {
                continue;
            }
            match found.last_mut() {
                Some((_, end)) if start <= *end => *end = start + RUN,
                _ => found.push((start, start + RUN)),
            }
        }
        let mut clean = String::new();
        let mut copied = 0;
        for (start, end) in found {
            let start = words_before(text, start).max(copied);
            let end = words_after(text, end);
            if start < end && !self.is_public(&lower[start..end]) {
                clean.push_str(&text[copied..start]);
                clean.push_str(REMOVED);
                copied = end;
            }
        }
        if copied == 0 {
            return None;
        }
        clean.push_str(&text[copied..]);
        Some(clean)
    }

    /// Whether these words are in a text that may be shown.
    fn is_public(&self, words: &str) -> bool {
        let words = words.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        let is_part = |c: char| c.is_alphanumeric();
        let is_whole = |(at, _): (usize, &str)| {
            !self.public[..at].ends_with(is_part) && !self.public[at + words.len()..].starts_with(is_part)
        };
        self.public.match_indices(words).any(is_whole)
    }
}

/// The text with each quoted part replaced.
fn without_quoted(text: &str) -> String {
    let mut clean = String::new();
    let mut rest = text;
    while let Some(start) = rest.find('"') {
        clean.push_str(&rest[..=start]);
        clean.push_str(REMOVED);
        let inner = &rest[start + 1..];
        let mut is_escaped = false;
        let end = inner.find(|c| {
            let ends = c == '"' && !is_escaped;
            is_escaped = c == '\\' && !is_escaped;
            ends
        });
        rest = end.map_or("\"", |end| &inner[end..]);
        clean.push('"');
        rest = &rest[1..];
    }
    clean + rest
}

/// The beginning of the word at `at`.
fn words_before(text: &str, at: usize) -> usize {
    let at = text.floor_char_boundary(at);
    let word = text[..at].chars().rev().take_while(|c| c.is_alphanumeric()).map(char::len_utf8).sum::<usize>();
    if text[at..].starts_with(char::is_alphanumeric) { at - word } else { at }
}

/// The end of the word before `at`.
fn words_after(text: &str, at: usize) -> usize {
    let at = text.ceil_char_boundary(at);
    let word = text[at..].chars().take_while(|c| c.is_alphanumeric()).map(char::len_utf8).sum::<usize>();
    if text[..at].ends_with(char::is_alphanumeric) { at + word } else { at }
}

#[cfg(test)]
mod tests;
