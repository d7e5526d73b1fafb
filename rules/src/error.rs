//! Configuration errors: the place, the problem and the remedy.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use annotate_snippets::{Annotation, AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use crate::finding::{Finding, Rule};
use crate::inputs::Inputs;
use crate::sources::{Located, Sources, locate};

/// The origin of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Bytes of [`Sources`].
    File(Range<usize>),
    /// Bytes that may be a secret: errors show the place without the text.
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

    /// Moves a place in a file by `base`.
    pub fn shift(&mut self, base: usize) {
        if let Self::File(span) | Self::Secret(span) = self {
            *span = span.start + base..span.end + base;
        }
    }

    /// The bytes of the configuration's text.
    pub fn span(&self) -> Option<&Range<usize>> {
        match self {
            Self::File(span) | Self::Secret(span) => Some(span),
            Self::Variable(_) | Self::Whole => None,
        }
    }
}

/// Whether `text` has a URL with a user or a password.
pub fn has_password(text: &str) -> bool {
    let rest = |at: usize| text[at + 3..].split(['"', '\'', ' ', '\t']).next().unwrap_or_default();
    text.match_indices("://").any(|(at, _)| rest(at).contains('@'))
}

/// Words in the names of keys whose values are not shown.
const SECRETS: [&str; 11] = [
    "sha256",
    "secret",
    "passw",
    "token",
    "api_key",
    "apikey",
    "api-key",
    "credential",
    "private_key",
    "url",
    "database",
];

/// Whether a key's name says that its value may be a secret.
pub fn names_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    SECRETS.iter().any(|secret| key.contains(secret)) || key == "key" || key == "keys"
}

/// The line around `offset`, without its end.
fn line_at(source: &str, offset: usize) -> &str {
    let offset = source.floor_char_boundary(offset);
    let start = source[..offset].rfind('\n').map_or(0, |newline| newline + 1);
    source[start..].split(['\r', '\n']).next().unwrap_or_default()
}

/// One error or warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its place.
    pub place: Place,
    /// Its kind.
    pub rule: Rule,
    /// The key, such as `routes[2].path`, if the place is that of one.
    pub key: Option<String>,
    /// The expected and the found value. Lower case, no full stop.
    pub message: String,
    /// The remedy: every problem has one.
    pub hint: String,
}

impl Problem {
    /// An invalid setting.
    pub fn new(place: Place, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { place, rule: Rule::InvalidSetting, key: None, message: message.into(), hint: hint.into() }
    }

    /// The same as a problem of this kind.
    #[must_use]
    pub fn of(self, rule: Rule) -> Self {
        Self { rule, ..self }
    }
}

/// All problems of one configuration, in the order of the file.
#[derive(Clone, Debug)]
pub struct ConfigError {
    sources: Box<Sources>,
    /// At least one.
    pub problems: Vec<Problem>,
    /// The files that were read: a change of one may solve the problems.
    pub inputs: Box<Inputs>,
    /// The variables to which the files refer.
    pub variables: Vec<String>,
}

impl ConfigError {
    /// All problems of `file`, whose text is `source`.
    pub fn new(file: impl Into<PathBuf>, source: impl Into<String>, problems: Vec<Problem>) -> Self {
        Self::of(Sources::of(file, source), problems)
    }

    /// All problems of these files.
    pub fn of(sources: Sources, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| match &problem.place {
            Place::Whole => (0, 0),
            Place::File(span) | Place::Secret(span) => (1, span.start),
            Place::Variable(_) => (2, 0),
        });
        problems.dedup();
        Self { sources: Box::new(sources), problems, inputs: Box::default(), variables: Vec::new() }
    }

    /// The same with the files that were read, and the variables to which they refer.
    #[must_use]
    pub fn after(self, inputs: Inputs, variables: Vec<String>) -> Self {
        Self { inputs: Box::new(inputs), variables, ..self }
    }

    /// The number of errors; the other problems are warnings.
    pub fn errors(&self) -> usize {
        self.problems.iter().filter(|problem| !problem.rule.is_warning()).count()
    }

    /// The problems as text, in colour. Print it through `anstream`, which removes the colours where they are not wanted.
    pub fn styled(&self) -> String {
        self.render(&Renderer::styled())
    }

    /// All problems without the file's text, for programs.
    pub fn findings(&self) -> Vec<Finding> {
        let finding = |problem: &Problem| {
            let located = problem.place.span().map(|span| self.sources.at(span));
            let ends = located.as_ref().map(|located| {
                let span = located.first_line();
                (locate(located.text, span.start), locate(located.text, span.end))
            });
            let variable = match &problem.place {
                Place::Variable(name) => Some(name.clone()),
                _ => None,
            };
            Finding {
                severity: if problem.rule.is_warning() { "warning" } else { "error" },
                rule: problem.rule,
                file: located.map_or(self.sources.main(), |located| located.file).display().to_string(),
                line: ends.map(|((line, _), _)| line),
                column: ends.map(|((_, column), _)| column),
                end_column: ends.map(|(_, (_, column))| column),
                variable,
                key: problem.key.clone(),
                message: problem.message.clone(),
                hint: problem.hint.clone(),
                text: self.render_one(problem, &Renderer::plain()),
            }
        };
        self.problems.iter().map(finding).collect()
    }

    /// Each problem with its place as text: `proxy.toml:3:13`, the name of a variable, or the file.
    pub fn placed(&self) -> impl Iterator<Item = (String, &Problem)> {
        self.problems.iter().map(|problem| {
            let place = match &problem.place {
                Place::Whole => self.sources.main().display().to_string(),
                Place::Variable(name) => format!("environment, {name}"),
                Place::File(span) | Place::Secret(span) => {
                    let located = self.sources.at(span);
                    let (line, column) = located.start();
                    format!("{}:{line}:{column}", located.file.display())
                }
            };
            (place, problem)
        })
    }

    fn render(&self, renderer: &Renderer) -> String {
        let shown = self.problems.iter().map(|problem| self.render_one(problem, renderer));
        shown.collect::<Vec<_>>().join("\n")
    }

    fn render_one(&self, problem: &Problem, renderer: &Renderer) -> String {
        let level = if problem.rule.is_warning() { Level::WARNING } else { Level::ERROR };
        renderer.render(&[self.group(problem, level)]) + "\n"
    }

    fn group<'a>(&'a self, problem: &'a Problem, level: Level<'a>) -> Group<'a> {
        let message = visible(&problem.message);
        let group = match &problem.place {
            Place::Whole => {
                Group::with_title(level.primary_title(format!("{}: {message}", self.sources.main().display())))
            }
            Place::Variable(name) => Group::with_title(level.primary_title(format!("environment, {name}: {message}"))),
            Place::File(span) | Place::Secret(span) => {
                let located = self.sources.at(span);
                let file = visible(&located.file.to_string_lossy()).into_owned();
                let is_secret = matches!(problem.place, Place::Secret(_));
                if is_secret || has_password(line_at(located.text, located.span.start)) {
                    let (line, column) = located.start();
                    let origin = Origin::path(file).line(line).char_column(column);
                    level.primary_title(message).element(origin)
                } else {
                    level.primary_title(message).element(snippet(&located, file))
                }
            }
        };
        // The library replaces these in titles and lines, but not here.
        let hint = visible(&problem.hint).replace(|c: char| c.is_ascii_control() && c != '\n', "\u{fffd}");
        group.element(Level::HELP.with_name("hint").message(hint))
    }
}

/// The text with a dot, of as many bytes, instead of each control character that the library leaves: a terminal would obey it.
fn visible(text: &str) -> Cow<'_, str> {
    let is_left = |c: char| ('\u{80}'..='\u{9f}').contains(&c);
    if text.contains(is_left) { Cow::Owned(text.replace(is_left, "\u{b7}")) } else { Cow::Borrowed(text) }
}

/// The line of a place, with a mark below.
fn snippet<'a>(located: &Located<'a>, file: String) -> Snippet<'a, Annotation<'a>> {
    let mark = located.first_line();
    // The library reads all that it gets: with the whole file, thousands of problems would take minutes.
    let (line, before) = lines_of(located.text, &mark);
    let number = located.text[..before].bytes().filter(|byte| *byte == b'\n').count() + 1;
    let mark = AnnotationKind::Primary.span(mark.start - before..mark.end - before);
    Snippet::source(visible(line)).line_start(number).path(file).annotation(mark)
}

/// The lines of a mark, and where they begin; the whole text for a mark at its end.
fn lines_of<'s>(source: &'s str, mark: &Range<usize>) -> (&'s str, usize) {
    let start = source[..mark.start].rfind('\n').map_or(0, |at| at + 1);
    let end = source[mark.end..].find('\n').map_or(source.len(), |at| mark.end + at + 1);
    if start == end { (source, 0) } else { (&source[start..end], start) }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(&Renderer::plain()))
    }
}

impl std::error::Error for ConfigError {}

/// The item of `known` that is nearest to `found`, if it is near enough to be a misspelling.
pub fn did_you_mean<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let found = found.to_lowercase();
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&found, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| {
            let shorter = candidate.len().min(found.len());
            *distance <= 1 + shorter / 4 && *distance < shorter
        })
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
        let problem = Problem::new(
            Place::File(start..start + 4),
            "`cool_down` needs a duration with a unit, got \"30\"",
            "write \"250ms\", \"30s\" or \"5m\"",
        );
        let error = ConfigError::new("proxy.toml", source, vec![problem]);
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
            let error = ConfigError::new("proxy.toml", source, vec![Problem::new(place, "wrong", "right")]);
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
        for control in ['\u{1b}', '\u{16}', '\r', '\u{9b}', '\u{85}'] {
            let (source, text) = (format!("a = \"{control}[2J\"\n"), format!("b{control}[2J"));
            for place in [Place::File(4..4 + 5 + control.len_utf8()), Place::Whole, Place::Variable("A".to_owned())] {
                let error =
                    ConfigError::new("f", source.clone(), vec![Problem::new(place, text.clone(), text.clone())]);
                assert!(!error.to_string().contains(control), "a terminal obeys no text of the file: {error}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_place_can_be_shown(source in "[a-zé漢\\t\\r\\n\"]{0,40}", start in 0..60_usize, length in 0..60_usize) {
            let places = [Place::File(start..start + length), Place::Secret(start..start + length), Place::Whole];
            let problems = places.map(|place| Problem::new(place, "wrong", "right")).to_vec();
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
        assert_eq!(did_you_mean("b", ["a"]), None);
    }
}
