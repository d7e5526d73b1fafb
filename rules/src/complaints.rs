//! What sections are checked with: where each value stood, what the environment says, and what is wrong so far.

use crate::environment::Environment;
use crate::error::Problem;
use crate::tree::{Node, Step};

/// Turns what fits the schema into what makes sense.
pub struct Builder<'a> {
    /// The file and the environment, with the place of each value.
    pub root: &'a Node,
    /// The environment.
    pub environment: Environment<'a>,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// What works, and is probably not what was meant.
    pub warnings: Vec<Problem>,
}

impl Builder<'_> {
    /// Notes what is wrong with the value at `path`.
    pub fn complain(&mut self, path: &[Step<'_>], message: impl Into<String>, hint: &str) {
        let place = self.root.nearest(path).1.place.clone();
        self.problems.push(Problem::new(place, message).hint(hint));
    }

    /// Notes what works at `path`, and is probably not what was meant.
    pub fn warn(&mut self, path: &[Step<'_>], message: impl Into<String>, hint: &str) {
        let place = self.root.nearest(path).1.place.clone();
        self.warnings.push(Problem::new(place, message).hint(hint));
    }
}

/// What may be a label in metrics and a name in answers.
pub fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
}
