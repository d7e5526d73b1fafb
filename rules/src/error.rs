//! Configuration errors: the place, the problem and the remedy.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

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

    /// The problems as text, in colour. Print it through `anstream`, which removes the colours where they are not wanted.
    pub fn styled(&self) -> String {
        self.render(&Renderer::styled(), &Level::ERROR)
    }

    /// Each problem with its place as text: `proxy.toml:3:13`, the name of a variable, or the file.
    pub fn placed(&self) -> impl Iterator<Item = (String, &Problem)> {
        self.problems.iter().map(|problem| {
            let place = match &problem.place {
                Place::Whole => self.file.display().to_string(),
                Place::Variable(name) => format!("environment, {name}"),
                Place::File(span) | Place::Secret(span) => {
                    let (line, column) = locate(&self.source, span.start);
                    format!("{}:{line}:{column}", self.file.display())
                }
            };
            (place, problem)
        })
    }

    /// The same text as the error's, with warnings instead of errors.
    #[must_use]
    pub fn as_warnings(&self) -> String {
        self.render(&Renderer::plain(), &Level::WARNING)
    }

    fn render(&self, renderer: &Renderer, level: &Level<'static>) -> String {
        let shown = self.problems.iter().map(|problem| renderer.render(&[self.group(problem, level.clone())]) + "\n");
        shown.collect::<Vec<_>>().join("\n")
    }

    fn group<'a>(&'a self, problem: &'a Problem, level: Level<'a>) -> Group<'a> {
        let file = self.file.to_string_lossy();
        let message = problem.message.as_str();
        let group = match &problem.place {
            Place::Whole => Group::with_title(level.primary_title(format!("{file}: {message}"))),
            Place::Variable(name) => Group::with_title(level.primary_title(format!("environment, {name}: {message}"))),
            Place::Secret(span) => {
                let (line, column) = locate(&self.source, span.start);
                level.primary_title(message).element(Origin::path(file).line(line).char_column(column))
            }
            Place::File(span) => {
                let mark = AnnotationKind::Primary.span(first_line(&self.source, span));
                level.primary_title(message).element(Snippet::source(&self.source).path(file).annotation(mark))
            }
        };
        let hint = problem.hint.as_deref().map(|hint| Level::HELP.with_name("hint").message(hint));
        group.elements(hint)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(&Renderer::plain(), &Level::ERROR))
    }
}

impl std::error::Error for ConfigError {}

/// The part of `span` in its first line. Later lines of a value may contain secrets, so they are not shown.
fn first_line(source: &str, span: &Range<usize>) -> Range<usize> {
    let start = source.floor_char_boundary(span.start);
    let line_end = source[start..].find(['\r', '\n']).map_or(source.len(), |length| start + length);
    start..source.floor_char_boundary(span.end).clamp(start, line_end)
}

/// Line and column, both from 1, the column in characters.
fn locate(source: &str, offset: usize) -> (usize, usize) {
    let before = &source[..source.floor_char_boundary(offset)];
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[start..].chars().count() + 1)
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
    use proptest::prelude::*;

    #[test]
    fn points_at_the_place_in_characters_not_bytes() {
        let source = "name = \"é\"\ncool_down = \"30\"\n";
        let start = source.find("\"30\"").unwrap();
        let problem =
            Problem::new(Place::File(start..start + 4), "`cool_down` needs a duration with a unit, got \"30\"");
        let error = ConfigError::new("proxy.toml", source, vec![problem.hint("write \"250ms\", \"30s\" or \"5m\"")]);
        insta::assert_snapshot!(error, @r#"
        error: `cool_down` needs a duration with a unit, got "30"
         --> proxy.toml:2:13
          |
        2 | cool_down = "30"
          |             ^^^^
          |
          = hint: write "250ms", "30s" or "5m"
        "#);
    }

    #[test]
    fn shows_no_other_line_and_no_secret() {
        let source = "keys = [\n  \"secret-1\",\n]\nurl = \"redis://:secret-2@h\" # é\nsecret-3 = 1\n";
        let shown = |place| {
            let error = ConfigError::new("proxy.toml", source, vec![Problem::new(place, "wrong").hint("right")]);
            assert!(error.styled().contains('\u{1b}') && !error.to_string().contains('\u{1b}'));
            error.to_string()
        };
        let list = shown(Place::File(7..source.find("url").unwrap()));
        assert!(list.contains("proxy.toml:1:8") && list.contains("keys = [") && !list.contains("secret"), "{list}");
        let url = source.find("\"redis").unwrap();
        insta::assert_snapshot!(shown(Place::File(url..url + 22).hidden()), @"
        error: wrong
        --> proxy.toml:4:7
         = hint: right
        ");
        insta::assert_snapshot!(shown(Place::Whole), @"
        error: proxy.toml: wrong
         |
         = hint: right
        ");
        let control =
            ConfigError::new("f", "a = \"\u{1b}[2J\"\n", vec![Problem::new(Place::File(4..10), "b\u{1b}[2J")]);
        assert!(!control.to_string().contains('\u{1b}'), "a terminal obeys no text of the file");
    }

    proptest! {
        #[test]
        fn any_place_can_be_shown(source in "[a-zé漢\\t\\r\\n\"]{0,40}", start in 0..60_usize, length in 0..60_usize) {
            let places = [Place::File(start..start + length), Place::Secret(start..start + length), Place::Whole];
            let problems = places.map(|place| Problem::new(place, "wrong")).to_vec();
            let text = ConfigError::new("proxy.toml", source, problems).to_string();
            prop_assert_eq!(text.matches("wrong").count(), 3, "{}", text);
        }
    }

    #[test]
    fn suggests_the_likely_name_and_no_far_fetched_one() {
        let known = ["listen", "lame_duck", "max_connections"];
        assert_eq!(did_you_mean("lisen", known), Some("listen"));
        assert_eq!(did_you_mean("max_conections", known), Some("max_connections"));
        assert_eq!(did_you_mean("colour", known), None);
    }
}
