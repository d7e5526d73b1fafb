//! A line that is not TOML, and what was probably meant.

use std::ops::Range;

use toml::de::DeTable;

use super::Names;
use super::value::{is_value, meant};
use crate::error::{self, has_password};

/// The mistake in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    /// Where, in bytes.
    pub columns: Range<usize>,
    /// The mistake.
    pub message: String,
    /// The remedy.
    pub hint: String,
    /// The line as it was probably meant; `None` if that is unknown.
    pub fixed: Option<String>,
}

/// Whether the key of a line says that its value may be a secret.
pub(super) fn names_secret(line: &str) -> bool {
    error::names_secret(line.split(['=', ':']).next().unwrap_or_default().trim())
}

/// The name in a table's header.
pub(super) fn header(line: &str) -> Option<&str> {
    let text = line.trim_start().strip_prefix('[')?;
    Some(text.trim_start_matches('[').split(']').next().unwrap_or_default().trim())
}

/// The key at the beginning of a line, and what follows it.
pub(super) fn split_key(text: &str) -> Option<(&str, &str)> {
    let end = match text.chars().next()? {
        quote @ ('"' | '\'') => text[1..].find(quote)? + 2,
        _ => text.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-' | '.'))).unwrap_or(text.len()),
    };
    let (key, rest) = text.split_at(end);
    (!key.is_empty()).then_some((key, rest.trim_start()))
}

/// A line without its indentation and its comment.
#[derive(Clone, Copy, Debug)]
struct Line<'a> {
    indent: &'a str,
    text: &'a str,
    comment: &'a str,
    is_secret: bool,
}

impl<'a> Line<'a> {
    fn of(line: &'a str) -> Self {
        let end = line.trim_end().len();
        let start = line.len() - line.trim_start().len();
        let mut quote = None;
        let comment = line[..end].char_indices().find(|(_, c)| {
            match (quote, c) {
                (None, '#') => return true,
                (None, '"' | '\'') => quote = Some(*c),
                (Some(open), c) if open == *c => quote = None,
                _ => {}
            }
            false
        });
        let comment = comment.map_or(end, |(at, _)| at);
        let start = start.min(comment);
        let text = line[start..comment].trim_end();
        let is_secret = names_secret(line) || has_password(line);
        Self { indent: &line[..start], text, comment: line[start + text.len()..].trim_end(), is_secret }
    }

    /// A mistake in `part` of the line, which should have been `meant`.
    fn mistake(&self, part: &str, message: impl Into<String>, meant: &str) -> Mistake {
        let start = self.indent.len() + (part.as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize);
        let shown = match meant.split_once(" = ") {
            Some((key, _)) if self.is_secret => format!("{key} = \"…\""),
            _ => meant.to_owned(),
        };
        Mistake {
            columns: start..start + part.len(),
            message: message.into(),
            hint: if meant.is_empty() { "remove it".to_owned() } else { format!("write {shown}") },
            fixed: Some(format!("{}{meant}{}", self.indent, self.comment)),
        }
    }
}

/// Finds the mistake in a line; `None` if the line by itself is right, or its meaning is unknown.
pub(super) fn diagnose(line: &str, names: &Names, is_secret: bool) -> Option<Mistake> {
    let own = Line::of(line);
    let own = Line { is_secret: own.is_secret || is_secret, ..own };
    if own.text.is_empty() || DeTable::parse(line).is_ok() {
        return None;
    }
    comment(own)
        .or_else(|| table_header(own, names))
        .or_else(|| block(own))
        .or_else(|| dash(own, names))
        .or_else(|| assignment(own, names))
}

/// A comment of another language.
fn comment(line: Line<'_>) -> Option<Mistake> {
    let mark = ["//", "/*", "*/", "--", ";", "<!--"].into_iter().find(|mark| line.text.starts_with(mark))?;
    if line.text == "---" {
        return Some(line.mistake(line.text, "`---` begins a file of YAML; this one is TOML", ""));
    }
    let text = line.text.trim_start_matches(mark).trim_end_matches("*/").trim();
    let mut mistake = line.mistake(mark_of(line, mark), format!("a comment begins with #, not with `{mark}`"), "");
    mistake.hint = if line.is_secret { "write # before it".to_owned() } else { format!("write # {text}") };
    Some(mistake)
}

fn mark_of<'a>(line: Line<'a>, mark: &str) -> &'a str {
    &line.text[..mark.len()]
}

/// `[table` and the like.
fn table_header(line: Line<'_>, names: &Names) -> Option<Mistake> {
    let inner = line.text.strip_prefix('[')?;
    let name = inner.trim_start_matches('[').split([']', '=', ':', ';', '{']).next()?.trim();
    let name = name.trim_matches('"').replace([' ', '/'], "_");
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || !name.chars().all(is_plain) {
        return None;
    }
    let is_list = names.lists.contains(&name) || inner.starts_with('[') && line.text.contains("]]");
    let meant = if is_list { format!("[[{name}]]") } else { format!("[{name}]") };
    let end = line.text.rfind(']').map_or(line.text.len(), |at| at + 1);
    if line.text.len() > end {
        return Some(line.mistake(&line.text[end..], "there is text after the name of the table", &meant));
    }
    let what = if line.text.contains(']') && line.text.contains(' ') {
        "the name of a table has no blanks"
    } else if line.text.contains(']') {
        "the brackets around the name of the table differ"
    } else {
        "the name of the table has no closing bracket"
    };
    let mut mistake = line.mistake(line.text, what, &meant);
    if !line.text.contains(']') {
        mistake.columns = mistake.columns.end..mistake.columns.end + 1;
    }
    Some(mistake)
}

/// `server {` and `}`.
fn block(line: Line<'_>) -> Option<Mistake> {
    const MESSAGE: &str = "TOML has no blocks in braces";
    if line.text.trim_end_matches([';', ',']).chars().all(|c| matches!(c, '}' | '{' | ']')) {
        return Some(line.mistake(line.text, MESSAGE, ""));
    }
    if line.text.starts_with('{') {
        let mut mistake = line.mistake(line.text, "this is JSON, and the file is TOML", "");
        mistake.hint = "write [server], for example, and `key = value` below it".to_owned();
        mistake.fixed = None;
        return Some(mistake);
    }
    let name = line.text.strip_suffix('{')?.trim_end().trim_end_matches([':', '=']).trim_end().trim_matches('"');
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.')) {
        let mut mistake = line.mistake(line.text, MESSAGE, "");
        mistake.hint = "write [table], or [[routes]] with `name` and `path` for a route, and its keys below".to_owned();
        mistake.fixed = None;
        return Some(mistake);
    }
    Some(line.mistake(line.text, MESSAGE, &format!("[{name}]")))
}

/// `- name: login`.
fn dash(line: Line<'_>, names: &Names) -> Option<Mistake> {
    let rest = line.text.strip_prefix('-').filter(|rest| rest.starts_with(' '))?.trim_start();
    let inner = assignment(Line { text: rest, ..line }, names);
    let mut mistake = line.mistake(&line.text[..1], "TOML has no lists with dashes", "");
    mistake.hint = "write [[routes]] above the keys of each route; a list of values is [\"…\", \"…\"]".to_owned();
    mistake.fixed = inner.and_then(|inner| inner.fixed);
    Some(mistake)
}

/// `key = value`.
fn assignment(line: Line<'_>, names: &Names) -> Option<Mistake> {
    let (key, rest) = split_key(line.text)?;
    if key.starts_with(['"', '\'']) && matches!(rest, "" | ",") {
        // The element of a list.
        return None;
    }
    let sign = ["==", "=>", ":=", "->", "+=", "=", ":"].into_iter().find(|sign| rest.starts_with(sign));
    let Some(sign) = sign else { return without_sign(line, key, rest, names) };
    let place = &rest[..sign.len()];
    let value = rest[sign.len()..].trim();
    let last = key.rsplit('.').next().unwrap_or(key).trim_matches('"');
    let is_switch = names.switches.iter().any(|switch| switch == last);
    if value.is_empty() {
        if sign == ":" {
            let is_list = names.lists.iter().any(|list| list == key);
            let header = if is_list { format!("[[{key}]]") } else { format!("[{key}]") };
            return Some(line.mistake(place, "a table begins with its name in brackets", &header));
        }
        let mut mistake = line.mistake(key, format!("`{key}` has no value"), "");
        mistake.hint = format!("write {key} = …, or remove the line: then the default applies");
        return Some(mistake);
    }
    let found = if is_value(value) { None } else { Some(meant(value, is_switch)) };
    if sign != "=" {
        let value = found.map_or_else(|| Some(value.to_owned()), |found| Some(found?.value))?;
        return Some(line.mistake(place, format!("a value follows `=`, not `{sign}`"), &format!("{key} = {value}")));
    }
    let Some(found) = found? else { return null(line, key, value) };
    let mut mistake = line.mistake(value, found.why, &format!("{key} = {}", found.value));
    if mistake.message.contains("closing") {
        mistake.columns = mistake.columns.end..mistake.columns.end + 1;
    }
    Some(mistake)
}

fn null(line: Line<'_>, key: &str, value: &str) -> Option<Mistake> {
    if !matches!(value.to_ascii_lowercase().as_str(), "null" | "nil" | "undefined" | "~") {
        return None;
    }
    let mut mistake = line.mistake(value, format!("TOML has no `{value}`"), "");
    mistake.hint = format!("leave `{key}` out: then it is unset");
    Some(mistake)
}

/// `listen 8080;`, and keys with blanks.
fn without_sign(line: Line<'_>, key: &str, rest: &str, names: &Names) -> Option<Mistake> {
    if let Some((name, value)) = line.text.split_once('=') {
        let name = name.trim();
        let is_plain = |c: char| c.is_alphanumeric() || matches!(c, ' ' | '_' | '-');
        if !name.chars().all(is_plain) {
            return None;
        }
        let joined = name.trim_start_matches("export ").trim_start_matches("set ").replace(' ', "_");
        let fixed = assignment(Line { text: &format!("{joined} ={value}"), indent: "", comment: "", ..line }, names);
        let value = fixed.and_then(|mistake| mistake.fixed).unwrap_or_else(|| format!("{joined} = {}", value.trim()));
        return Some(line.mistake(name, "a key has no blanks", &value));
    }
    let key = if line.is_secret && !names_secret(line.text) { "key" } else { key };
    if rest.is_empty() {
        let mut mistake = line.mistake(line.text, format!("`{key}` has no value"), "");
        mistake.hint = format!("write {key} = …, or # before a comment");
        return Some(mistake);
    }
    let value = rest.trim_end_matches([';', ',']).trim_end();
    let value = if is_value(value) { value.to_owned() } else { meant(value, false)?.value };
    Some(line.mistake(rest, format!("there is no = between `{key}` and its value"), &format!("{key} = {value}")))
}

/// A line that opens a list, a table or a text that later lines should close, and whether it is a text.
pub(super) fn unclosed(line: &str) -> Option<(Mistake, bool)> {
    let own = Line::of(line);
    let (key, rest) = split_key(own.text)?;
    let value = rest.strip_prefix('=')?.trim();
    let (close, what) = match value {
        _ if value.matches("\"\"\"").count() == 1 => ("\"\"\"", "the text over several lines is not closed"),
        _ if value.matches("'''").count() == 1 => ("'''", "the text over several lines is not closed"),
        _ if value.starts_with('[') && !value.ends_with(']') => ("]", "the list has no closing bracket"),
        _ if value.starts_with('{') && !value.ends_with('}') => (" }", "the table has no closing brace"),
        _ => return None,
    };
    let meant = format!("{key} = {value}{close}");
    let mut mistake = own.mistake(value, what, &meant);
    mistake.columns = mistake.columns.end..mistake.columns.end + 1;
    mistake.hint = format!("write {} at its end", close.trim());
    Some((mistake, close.len() == 3))
}
