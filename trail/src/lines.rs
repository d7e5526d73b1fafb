//! Reads the lines of a file in large blocks.

use std::fs::File;
use std::io::{self, Read};

const BLOCK: usize = 1 << 20;
/// Upper bound for an entry's length, which limits the memory used.
const LONGEST: usize = 4 << 20;

/// A reader of lines.
#[derive(Debug)]
pub struct Lines {
    file: File,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    number: u64,
    read: u64,
    at_end: bool,
}

/// A line.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// Without the newline.
    pub bytes: &'a [u8],
    /// Line number, from 1.
    pub number: u64,
    /// Whether it ended with a newline.
    pub is_whole: bool,
}

impl Lines {
    /// Starts at the file's current position.
    pub fn new(file: File) -> Self {
        Self { file, buffer: vec![0; BLOCK], start: 0, end: 0, number: 0, read: 0, at_end: false }
    }

    /// Number of bytes read so far.
    pub fn read(&self) -> u64 {
        self.read
    }

    /// The next line; `None` at the end. A line longer than any entry is returned in pieces, none of which is whole.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn take(&mut self) -> io::Result<Option<Line<'_>>> {
        let mut looked = self.start;
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.buffer[looked..self.end]) {
                let (from, to) = (self.start, looked + at);
                self.start = to + 1;
                self.number += 1;
                return Ok(Some(Line { bytes: &self.buffer[from..to], number: self.number, is_whole: true }));
            }
            let rest = self.end - self.start;
            if self.at_end || rest >= LONGEST {
                if rest == 0 {
                    return Ok(None);
                }
                let from = std::mem::replace(&mut self.start, self.end);
                self.number += 1;
                return Ok(Some(Line { bytes: &self.buffer[from..self.end], number: self.number, is_whole: false }));
            }
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end, looked) = (0, rest, rest);
            if self.buffer.len() - self.end < BLOCK / 2 {
                self.buffer.resize(self.buffer.len() + BLOCK, 0);
            }
            let count = loop {
                match self.file.read(&mut self.buffer[self.end..]) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    result => break result?,
                }
            };
            self.at_end = count == 0;
            self.end += count;
            self.read += count as u64;
        }
    }
}
