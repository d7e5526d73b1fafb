//! The files of a configuration as one text: a place is a range of bytes in it, and leads back to its file.

use std::ops::Range;
use std::path::{Path, PathBuf};

/// One file.
#[derive(Clone, Debug)]
struct Source {
    file: PathBuf,
    text: String,
    /// Where it begins in the whole.
    base: usize,
}

/// The file that was named, and those that it includes.
#[derive(Clone, Debug)]
pub struct Sources {
    main: Source,
    included: Vec<Source>,
}

/// A place in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located<'a> {
    /// The file.
    pub file: &'a Path,
    /// Its text.
    pub text: &'a str,
    /// Bytes of the text; they may be beyond its end.
    pub span: Range<usize>,
}

impl Sources {
    /// A configuration of one file.
    pub fn of(file: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        Self { main: Source { file: file.into(), text: text.into(), base: 0 }, included: Vec::new() }
    }

    /// Adds an included file; returns where it begins.
    pub fn add(&mut self, file: PathBuf, text: String) -> usize {
        let last = self.included.last().unwrap_or(&self.main);
        // The end of a file and the beginning of the next are different places.
        let base = last.base + last.text.len() + 1;
        self.included.push(Source { file, text, base });
        base
    }

    /// The file that was named.
    pub fn main(&self) -> &Path {
        &self.main.file
    }

    /// The number of files, and of the bytes in them.
    pub fn size(&self) -> (usize, usize) {
        let bytes = self.included.iter().fold(self.main.text.len(), |bytes, source| bytes + source.text.len());
        (1 + self.included.len(), bytes)
    }

    /// The names and texts of all files.
    pub fn texts(&self) -> impl Iterator<Item = String> {
        let all = [&self.main].into_iter().chain(&self.included);
        all.flat_map(|source| [source.file.display().to_string(), source.text.clone()])
    }

    /// The texts of all files.
    pub fn contents(&self) -> impl Iterator<Item = &str> {
        [&self.main].into_iter().chain(&self.included).map(|source| source.text.as_str())
    }

    /// The file of a place.
    pub fn at(&self, span: &Range<usize>) -> Located<'_> {
        let number = self.included.partition_point(|source| source.base <= span.start);
        let source = number.checked_sub(1).and_then(|number| self.included.get(number)).unwrap_or(&self.main);
        let Source { file, text, base } = source;
        Located { file, text, span: span.start - base..span.end.saturating_sub(*base) }
    }

    /// The file and the line of a place: `proxy.toml:3`.
    pub fn line(&self, span: &Range<usize>) -> String {
        let located = self.at(span);
        format!("{}:{}", located.file.display(), located.start().0)
    }
}

/// Finds the lines of many places.
#[derive(Debug)]
pub struct Lines<'a> {
    sources: &'a Sources,
    /// Where each line begins, in the text of all files.
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    /// Of these files.
    pub fn of(sources: &'a Sources) -> Self {
        let all = [&sources.main].into_iter().chain(&sources.included);
        let of_one = |source: &'a Source| {
            let ends = source.text.match_indices('\n').map(|(at, _)| at + 1);
            [0].into_iter().chain(ends).map(move |start| source.base + start)
        };
        Self { sources, starts: all.flat_map(of_one).collect() }
    }

    /// The file of a place, and its line, from 1.
    pub fn line(&self, span: &Range<usize>) -> (&'a Path, usize) {
        let located = self.sources.at(span);
        let base = span.start - located.span.start;
        let until = |offset: usize| self.starts.partition_point(|start| *start <= offset);
        (located.file, until(span.start) - until(base) + 1)
    }
}

impl Located<'_> {
    /// Line and column of its beginning, both from 1, the column in characters.
    pub fn start(&self) -> (usize, usize) {
        locate(self.text, self.span.start)
    }

    /// The part in its first line. Later lines of a value may contain secrets, so they are not shown.
    pub fn first_line(&self) -> Range<usize> {
        let start = self.text.floor_char_boundary(self.span.start);
        let line_end = self.text[start..].find(['\r', '\n']).map_or(self.text.len(), |length| start + length);
        start..self.text.floor_char_boundary(self.span.end).clamp(start, line_end)
    }
}

/// Line and column, both from 1, the column in characters.
pub fn locate(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(offset)];
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_leads_to_its_file() {
        let mut sources = Sources::of("a.toml", "one\ntwo");
        let second = sources.add("b.toml".into(), "three\nfour".to_owned());
        let third = sources.add("c.toml".into(), String::new());
        assert_eq!(sources.line(&(4..5)), "a.toml:2");
        assert_eq!(sources.line(&(7..7)), "a.toml:2", "the end of the first");
        assert_eq!(sources.line(&(second..second + 1)), "b.toml:1");
        assert_eq!(sources.line(&(second + 6..second + 7)), "b.toml:2");
        assert_eq!(sources.line(&(third..third)), "c.toml:1");
        assert_eq!(sources.at(&(third + 9..third + 12)).start(), (1, 1), "beyond the end");
        assert_eq!(sources.size(), (3, 17));
        let lines = Lines::of(&sources);
        for span in [0..1, 4..5, second..second + 1, second + 6..second + 7, third..third] {
            let (file, line) = lines.line(&span);
            assert_eq!(format!("{}:{line}", file.display()), sources.line(&span));
        }
    }
}
