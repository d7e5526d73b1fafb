//! Configuration errors: the place, the problem and the remedy.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

/// The origin of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Bytes of the file.
    File(Range<usize>),
    /// Bytes of the file that may be a secret: errors show the place without the text.
    Secret(Range<usize>),
    /// A variable of the environment.
    Variable(String),
    /// The whole file, for example if it cannot be read.
    Whole,
}

impl Place {
    /// The same place, for a possible secret.
    #[must_use]
    pub fn hidden(self) -> Self {
        match self {
            Self::File(span) => Self::Secret(span),
            other => other,
        }
    }
}

/// One error or warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its place.
    pub place: Place,
    /// The expected and the found value. Lower case, no full stop.
    pub message: String,
    /// The remedy.
    pub hint: Option<String>,
}

impl Problem {
    /// A problem without a hint.
    pub fn new(place: Place, message: impl Into<String>) -> Self {
        Self { place, message: message.into(), hint: None }
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// All problems of one configuration, in the order of the file.
#[derive(Clone, Debug)]
pub struct ConfigError {
    file: PathBuf,
    source: String,
    /// At least one.
    pub problems: Vec<Problem>,
}

impl ConfigError {
    /// All problems of `file`, whose text is `source`.
    pub fn new(file: impl Into<PathBuf>, source: impl Into<String>, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| match &problem.place {
            Place::Whole => (0, 0),
            Place::File(span) | Place::Secret(span) => (1, span.start),
            Place::Variable(_) => (2, 0),
        });
        problems.dedup();
        Self { file: file.into(), source: source.into(), problems }
    }

    fn write_one(&self, f: &mut fmt::Formatter<'_>, problem: &Problem) -> fmt::Result {
        let file = self.file.display();
        match &problem.place {
            Place::Whole => writeln!(f, "{file}: {}", problem.message)?,
            Place::Secret(span) => {
                let (line_number, column, _) = locate(&self.source, span.start);
                writeln!(f, "{file}:{line_number}:{column}: {}", problem.message)?;
            }
            Place::Variable(name) => writeln!(f, "environment, {name}: {}", problem.message)?,
            Place::File(span) => {
                let (line_number, column, line) = locate(&self.source, span.start);
                writeln!(f, "{file}:{line_number}:{column}: {}", problem.message)?;
                let gutter = line_number.to_string();
                let marked = self.source.get(span.clone()).unwrap_or_default().lines().next().unwrap_or_default();
                let left: String = line.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
                let carets = "^".repeat(marked.chars().count().max(1));
                writeln!(f, "{gutter} | {line}")?;
                writeln!(f, "{:width$} | {left}{carets}", "", width = gutter.len())?;
            }
        }
        if let Some(hint) = &problem.hint {
            writeln!(f, "hint: {hint}")?;
        }
        Ok(())
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            self.write_one(f, problem)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// Line and column (both from 1, the column in characters) and the line's text.
fn locate(source: &str, offset: usize) -> (usize, usize, &str) {
    let mut offset = offset.min(source.len());
    while !source.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = &source[..offset];
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = source[start..].lines().next().unwrap_or_default();
    (before.matches('\n').count() + 1, before[start..].chars().count() + 1, line)
}

/// The item of `known` that is nearest to `found`, if it is near enough to be a misspelling.
pub fn did_you_mean<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let found = found.to_lowercase();
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&found, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().min(found.len()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_at_the_place_in_characters_not_bytes() {
        let source = "name = \"é\"\ncool_down = \"30\"\n";
        let start = source.find("\"30\"").unwrap();
        let problem =
            Problem::new(Place::File(start..start + 4), "`cool_down` needs a duration with a unit, got \"30\"");
        let error = ConfigError::new("proxy.toml", source, vec![problem.hint("write \"250ms\", \"30s\" or \"5m\"")]);
        insta::assert_snapshot!(error, @r#"
        proxy.toml:2:13: `cool_down` needs a duration with a unit, got "30"
        2 | cool_down = "30"
          |             ^^^^
        hint: write "250ms", "30s" or "5m"
        "#);
    }

    #[test]
    fn suggests_what_was_meant_and_nothing_far_fetched() {
        let known = ["listen", "lame_duck", "max_connections"];
        assert_eq!(did_you_mean("lisen", known), Some("listen"));
        assert_eq!(did_you_mean("max_conections", known), Some("max_connections"));
        assert_eq!(did_you_mean("colour", known), None);
    }
}
