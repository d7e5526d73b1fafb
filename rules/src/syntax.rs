//! Reads the file's TOML. After a syntax error it reports the mistake with a remedy, and goes on with what was probably meant: so the
//! mistakes of meaning in the rest of the file are found in the same run.
//!
//! Mistakes are repaired line by line: a line is replaced by one that parses, or left out if its meaning is unknown, and the file is
//! parsed again. No line is added or removed, so that each value keeps its place.

mod line;
mod twice;
mod value;

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::Value as Json;

use self::line::{Mistake, diagnose};
use crate::error::{Place, Problem, has_password};
use crate::finding::Rule;
use crate::tree::{self, Node, Value};

/// Maximum number of syntax errors that are reported.
const MOST_MISTAKES: usize = 100;

/// A file as far as it could be read.
#[derive(Debug)]
pub struct Parsed {
    /// The file, with its places.
    pub root: Node,
    /// The syntax errors.
    pub problems: Vec<Problem>,
    /// Lines were left out.
    pub is_partial: bool,
}

/// Names from the schema, to guess what was meant.
#[derive(Debug, Default)]
pub struct Names {
    /// Keys that are `true` or `false`, in all tables that have them.
    pub switches: Vec<String>,
    /// Tables of which a file may have several.
    pub lists: Vec<String>,
}

/// Parses `source`.
pub fn parse(source: &str, names: &Names) -> Parsed {
    let original: Vec<&str> = source.split('\n').collect();
    let mut lines: Vec<String> = original.iter().map(|line| (*line).to_owned()).collect();
    let mut told: BTreeMap<usize, Problem> = BTreeMap::new();
    let mut is_partial = false;
    loop {
        let text = lines.join("\n");
        let errors = tree::parse(&text).1;
        let fresh = errors.iter().map(|(span, message)| (line_of(&text, span.start), span, message));
        let first = fresh.filter(|(line, ..)| !told.contains_key(line)).min_by_key(|(line, ..)| *line);
        let Some((line, span, message)) = first else {
            // A repair that did not help would hide the rest of the file.
            let still = errors.iter().filter(|(_, message)| message != "duplicate key");
            let still = still.map(|(span, _)| line_of(&text, span.start)).find(|line| !lines[*line].is_empty());
            let Some(line) = still else { break };
            lines[line].clear();
            is_partial = true;
            continue;
        };
        if told.len() == MOST_MISTAKES {
            is_partial = true;
            break;
        }
        let start = start_of(&text, line);
        let columns = span.start.saturating_sub(start)..span.end.saturating_sub(start);
        let (line, mistake) = if message == "duplicate key" {
            (line, twice::diagnose(&lines, line, columns, names))
        } else {
            cause(&lines, line, columns, message, (names, is_secret(&original, line)))
        };
        if told.contains_key(&line) {
            // The cause has been reported, and its repair did not help.
            lines[line].clear();
            lines[line_of(&text, span.start)].clear();
            told.entry(line_of(&text, span.start)).or_insert_with(|| problem(source, &original, line, mistake));
            is_partial = true;
            continue;
        }
        match &mistake.fixed {
            Some(fixed) => lines[line].clone_from(fixed),
            None => {
                lines[line].clear();
                is_partial = true;
            }
        }
        told.insert(line, problem(source, &original, line, mistake));
    }
    let repaired = lines.join("\n");
    let mut root = tree::parse(&repaired).0;
    let places = Places::new(&original, &lines);
    places.restore(&mut root);
    Parsed { root, problems: told.into_values().collect(), is_partial }
}

/// The mistake behind an error: it may be in an earlier line, where a list or a text was not closed.
fn cause(
    lines: &[String],
    line: usize,
    columns: Range<usize>,
    message: &str,
    (names, is_secret): (&Names, bool),
) -> (usize, Mistake) {
    if let Some(mistake) = element(lines, line, message).filter(|_| !is_secret) {
        return (line, mistake);
    }
    if let Some(mistake) = diagnose(&lines[line], names, is_secret) {
        return (line, mistake);
    }
    let unclosed = (0..=line).rev().find_map(|line| Some((line, line::unclosed(&lines[line])?)));
    let between = |at: usize| lines.get(at + 1..line).unwrap_or_default();
    if let Some((at, (mistake, is_text))) = unclosed
        && (is_text || between(at).iter().all(|text| continues(text)))
    {
        return (at, mistake);
    }
    let hint = match message {
        _ if message.contains("comma") => "separate elements with commas: [\"GET\", \"POST\"]",
        _ if message.contains("array") => "a list is written [\"GET\", \"POST\"], and ends with ]",
        _ if message.contains("inline table") => "write { key = value, key = value }",
        _ if message.contains("character") => "remove it",
        _ => {
            "write `key = value`, `[table]`, or `[[table]]` for one of several; text is in quotes, comments begin with #"
        }
    };
    let mistake = Mistake {
        columns,
        message: format!("not valid TOML: {}", message.replace('\n', ", ")),
        hint: hint.to_owned(),
        fixed: None,
    };
    (line, mistake)
}

/// A mistake in an element of a list over several lines.
fn element(lines: &[String], line: usize, message: &str) -> Option<Mistake> {
    let text = lines[line].trim();
    let body = text.trim_end_matches(',').trim_end();
    let open = (0..line).rev().find(|at| line::unclosed(&lines[*at]).is_some())?;
    let is_inside =
        lines.get(open + 1..line)?.iter().all(|text| continues(text)) && lines[open].trim_end().ends_with(['[', ',']);
    if !is_inside || body.is_empty() || text.starts_with(['[', '{', '#', ']', '}']) || body.contains('=') {
        return None;
    }
    let start = lines[line].find(text)?;
    let columns = start..start + body.len();
    if value::is_value(body) {
        let fixed = Some(format!(",{}", lines[line]));
        let (what, hint) = ("there is no comma before this element", "write a comma after the element above");
        return message.contains("comma").then(|| Mistake {
            columns,
            message: what.to_owned(),
            hint: hint.to_owned(),
            fixed,
        });
    }
    let meant = value::meant(body, false)?;
    let fixed = Some(format!("{},", meant.value));
    Some(Mistake { columns, message: meant.why, hint: format!("write {}", meant.value), fixed })
}

/// Whether a line may be inside a list or a table that began above: it has no key and no header.
fn continues(text: &str) -> bool {
    let text = text.trim();
    text.is_empty() || text.starts_with(['#', '"', '\'', ']', '}', ','])
}

fn problem(source: &str, original: &[&str], line: usize, mistake: Mistake) -> Problem {
    let text = original[line];
    let start = original[..line].iter().map(|line| line.len() + 1).sum::<usize>();
    let length = text.trim_end().len();
    let columns = mistake.columns.start.min(length)..mistake.columns.end.min(length);
    let place = Place::File((start + columns.start).min(source.len())..(start + columns.end).min(source.len()));
    let place = if is_secret(original, line) { place.hidden() } else { place };
    Problem::new(place, mistake.message, mistake.hint).of(Rule::Syntax)
}

/// Whether a line may have a secret.
fn is_secret(lines: &[&str], line: usize) -> bool {
    let header = lines[..=line].iter().rev().find(|line| line.trim_start().starts_with('['));
    let in_credentials = header.is_some_and(|header| {
        let header = header.trim_start().trim_start_matches('[');
        header.starts_with("identity.keys") || header.starts_with("identity.jwt")
    });
    in_credentials || line::names_secret(lines[line]) || has_password(lines[line])
}

fn line_of(text: &str, offset: usize) -> usize {
    let line = text.as_bytes()[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count();
    // An error at the end belongs to the last line with text.
    let is_blank = |line: usize| text.split('\n').nth(line).is_none_or(|line| line.trim().is_empty());
    if offset >= text.trim_end().len() { (0..=line).rev().find(|line| !is_blank(*line)).unwrap_or(0) } else { line }
}

fn start_of(text: &str, line: usize) -> usize {
    text.split('\n').take(line).map(|line| line.len() + 1).sum()
}

/// Converts places in the repaired file to places in the file.
struct Places<'a> {
    original: &'a [&'a str],
    repaired: &'a [String],
    /// Where each line starts, in both.
    starts: (Vec<usize>, Vec<usize>),
}

impl<'a> Places<'a> {
    fn new(original: &'a [&'a str], repaired: &'a [String]) -> Self {
        fn starts<'l>(lines: impl Iterator<Item = &'l str>) -> Vec<usize> {
            lines
                .scan(0, |at, line| {
                    let start = *at;
                    *at += line.len() + 1;
                    Some(start)
                })
                .collect()
        }
        let starts = (starts(original.iter().copied()), starts(repaired.iter().map(String::as_str)));
        Self { original, repaired, starts }
    }

    fn offset(&self, repaired: usize) -> usize {
        let line = self.starts.1.partition_point(|start| *start <= repaired).saturating_sub(1);
        let (old, new) = (self.original[line], self.repaired[line].as_str());
        let column = repaired - self.starts.1[line];
        let same_start = old.bytes().zip(new.bytes()).take_while(|(a, b)| a == b).count();
        let same_end = old.bytes().rev().zip(new.bytes().rev()).take_while(|(a, b)| a == b).count();
        let column = if column <= same_start {
            column
        } else if new.len().saturating_sub(column) <= same_end {
            old.len() - new.len().saturating_sub(column).min(old.len())
        } else {
            // Text that was added: its surroundings.
            same_start.min(old.len())
        };
        self.starts.0[line] + column
    }

    fn place(&self, place: &mut Place) {
        if let Place::File(span) = place {
            let start = self.offset(span.start);
            *span = start..self.offset(span.end).max(start);
        }
    }

    fn restore(&self, node: &mut Node) {
        self.place(&mut node.place);
        match &mut node.value {
            Value::List(items) => items.iter_mut().for_each(|item| self.restore(item)),
            Value::Table(entries) => entries.iter_mut().for_each(|(_, place, node)| {
                self.place(place);
                self.restore(node);
            }),
            _ => {}
        }
    }
}

impl Names {
    /// The names in a schema.
    pub fn of(schema: &Json) -> Self {
        let mut kinds: BTreeMap<&str, bool> = BTreeMap::new();
        let tables = schema["definitions"].as_object().into_iter().flatten();
        for (key, property) in tables.filter_map(|(_, table)| table["properties"].as_object()).flatten() {
            let is_switch = property["type"] == "boolean" || property["type"][0] == "boolean";
            kinds.entry(key).and_modify(|all| *all &= is_switch).or_insert(is_switch);
        }
        let switches = kinds.into_iter().filter(|(_, is_switch)| *is_switch).map(|(key, _)| key.to_owned()).collect();
        let lists = ["routes", "faults", "identity.keys", "rate_limits.rules", "breaker.groups"];
        Self { switches, lists: lists.map(str::to_owned).into() }
    }
}

#[cfg(test)]
mod tests;
