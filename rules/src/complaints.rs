//! The context in which sections are checked: the place of each value, the environment, and the problems found so far.

use crate::environment::Environment;
use crate::error::Problem;
use crate::tree::{Node, Step};

/// Converts a file that fits the schema into a checked configuration.
pub struct Builder<'a> {
    /// The file and the environment, with the place of each value.
    pub root: &'a Node,
    /// The environment.
    pub environment: Environment<'a>,
    /// Errors.
    pub problems: Vec<Problem>,
    /// Warnings: valid values that are probably not intended.
    pub warnings: Vec<Problem>,
}

impl Builder<'_> {
    /// Adds an error for the value at `path`.
    pub fn complain(&mut self, path: &[Step<'_>], message: impl Into<String>, hint: &str) {
        let place = self.root.nearest(path).1.place.clone();
        self.problems.push(Problem::new(place, message, hint));
    }

    /// Adds a warning for the value at `path`.
    pub fn warn(&mut self, path: &[Step<'_>], message: impl Into<String>, hint: &str) {
        let place = self.root.nearest(path).1.place.clone();
        self.warnings.push(Problem::new(place, message, hint));
    }
}

/// Whether `text` may be a metrics label and a name in responses.
pub fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
}

/// How to write a name that is not valid.
pub fn name_hint(text: &str, why: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c.to_ascii_lowercase() } else { '-' };
    let name: String = text.trim().chars().take(64).map(plain).collect();
    let name = name.trim_matches('-');
    if is_name(name) { format!("write {name:?}: {why}") } else { format!("write \"login\", for example: {why}") }
}
