//! Values that are not TOML, and what was probably meant.

use toml::de::DeTable;

/// A value that parses, and what was wrong with the other one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meant {
    /// The value as TOML.
    pub value: String,
    /// The mistake.
    pub why: String,
}

impl Meant {
    fn new(value: impl Into<String>, why: impl Into<String>) -> Self {
        Self { value: value.into(), why: why.into() }
    }
}

/// Whether `text` is a TOML value.
pub(super) fn is_value(text: &str) -> bool {
    !text.contains('\n') && DeTable::parse(&format!("x = {text}\n")).is_ok_and(|table| table.get_ref().len() == 1)
}

/// The probable meaning of a value that does not parse. `is_switch`: its key is `true` or `false`.
pub(super) fn meant(text: &str, is_switch: bool) -> Option<Meant> {
    let text = text.trim();
    if let Some((rest, why)) = without_end(text) {
        let value = if is_value(rest) { rest.to_owned() } else { meant(rest, is_switch)?.value };
        return Some(Meant::new(value, why));
    }
    let found = plain_quotes(text)
        .or_else(|| word(text, is_switch))
        .or_else(|| quoted(text))
        .or_else(|| list(text, is_switch))
        .or_else(|| table(text))
        .or_else(|| number(text))
        .or_else(|| bare(text))?;
    // A list may go on in the next line.
    (is_value(&found.value) || is_value(&format!("{}]", found.value))).then_some(found)
}

/// The value without what follows it: a semicolon, a comma, or a comment of another language.
fn without_end(text: &str) -> Option<(&str, String)> {
    for mark in ["//", "/*", "--", "<!--", ";"] {
        for (at, _) in text.match_indices(mark) {
            let before = text[..at].trim_end();
            let is_separate = before.len() < at || (mark == ";" && at + 1 < text.len());
            let before = before.trim_end_matches([';', ',']).trim_end();
            if is_separate && !before.is_empty() && (is_value(before) || !before.contains(['"', '\''])) {
                return Some((before, format!("a comment begins with #, not with `{mark}`")));
            }
        }
    }
    let rest = text.strip_suffix(';').or_else(|| text.strip_suffix(','))?.trim_end();
    let is_open = rest.starts_with('[') && !rest.ends_with(']');
    let what = if text.ends_with(';') { "a semicolon" } else { "a comma" };
    (!rest.is_empty() && !is_open).then(|| (rest, format!("{what} after the value")))
}

/// Quotes of a word processor.
fn plain_quotes(text: &str) -> Option<Meant> {
    const CURLY: [char; 8] = ['“', '”', '„', '«', '»', '‘', '’', '`'];
    if !text.contains(CURLY) {
        return None;
    }
    let value = text.replace(CURLY, "\"");
    let value = if is_value(&value) { value } else { bare(&text.replace(CURLY, ""))?.value };
    Some(Meant::new(value, "these quotes are not the plain \" of TOML"))
}

/// Words for true, false and null.
fn word(text: &str, is_switch: bool) -> Option<Meant> {
    let lower = text.to_ascii_lowercase();
    let value = match lower.as_str() {
        "true" | "false" => lower.as_str(),
        "yes" | "on" | "enabled" | "y" if is_switch => "true",
        "no" | "off" | "disabled" | "n" if is_switch => "false",
        _ => return None,
    };
    Some(Meant::new(value, format!("`{text}` is not a value of TOML, which has true and false")))
}

/// Text whose quotes are wrong.
fn quoted(text: &str) -> Option<Meant> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    if text.starts_with("\"\"\"") || text.starts_with("'''") {
        return None;
    }
    let rest = &text[1..];
    let other = if quote == '"' { '\'' } else { '"' };
    let inner = rest.strip_suffix([quote, other]).unwrap_or(rest);
    if inner.contains('\\') && rest.ends_with(quote) && quote == '"' && !inner.contains('\'') {
        return Some(Meant::new(format!("'{inner}'"), "a backslash in \"…\" begins an escape"));
    }
    let parts: Vec<&str> = rest.split(quote).collect();
    if let [first, between, second, ""] = parts[..]
        && matches!(between.trim(), "," | "")
    {
        return Some(Meant::new(format!("[\"{first}\", \"{second}\"]"), "several values are a list, in brackets"));
    }
    if rest.contains(quote) && !rest.ends_with(quote) {
        let first = parts.first()?;
        return Some(Meant::new(format!("{quote}{first}{quote}"), "there is text after the closing quote"));
    }
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    if parts.len() > 1 && parts.iter().all(|part| is_value(part)) {
        return Some(Meant::new(format!("[{}]", parts.join(", ")), "several values are a list, in brackets"));
    }
    if inner.contains(['"', '\'']) {
        return None;
    }
    let why = if rest.ends_with(other) { "the quotes differ" } else { "the text has no closing quote" };
    Some(Meant::new(format!("\"{inner}\""), why))
}

/// A list whose elements or brackets are wrong.
fn list(text: &str, is_switch: bool) -> Option<Meant> {
    let inner = text.strip_prefix(['[', '('])?;
    let closed = inner.strip_suffix([']', ')']);
    let inner = closed.unwrap_or(inner).trim();
    let separate = |text: &str| text.split(',').map(|part| part.trim().to_owned()).collect::<Vec<_>>();
    let mut parts = separate(inner);
    if parts.len() == 1 {
        parts = inner.split_whitespace().map(str::to_owned).collect();
    }
    let ends_open = parts.last().is_some_and(String::is_empty);
    parts.retain(|part| !part.is_empty());
    let part = |part: &String| if is_value(part) { Some(part.clone()) } else { Some(meant(part, is_switch)?.value) };
    let parts = parts.iter().map(part).collect::<Option<Vec<_>>>()?;
    let why = match closed {
        Some(_) if text.starts_with('(') => "a list is written in square brackets",
        Some(_) => "the elements of a list are text in quotes, with commas between them",
        None if ends_open => {
            let value = format!("[{},", parts.join(", "));
            return Some(Meant::new(value, "the elements of a list are text in quotes, with commas between them"));
        }
        None => "the list has no closing bracket",
    };
    Some(Meant::new(format!("[{}]", parts.join(", ")), why))
}

/// An inline table as in JSON.
fn table(text: &str) -> Option<Meant> {
    let inner = text.strip_prefix('{')?;
    let closed = inner.strip_suffix('}');
    let (mut value, mut in_quotes) = (String::from("{"), false);
    for c in closed.unwrap_or(inner).trim_end().chars() {
        in_quotes ^= c == '"';
        match c {
            ':' if !in_quotes => value.push_str(" ="),
            c => value.push(c),
        }
    }
    value.push_str(" }");
    let why =
        if closed.is_some() { "an inline table has = between key and value" } else { "the table has no closing brace" };
    Some(Meant::new(value, why))
}

fn number(text: &str) -> Option<Meant> {
    let digits: String = text.chars().filter(|c| !matches!(c, ',' | '_' | '\'' | ' ')).collect();
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if !is_number {
        return None;
    }
    let value = digits.trim_start_matches('0');
    Some(Meant::new(if value.is_empty() { "0" } else { value }, "a number has digits only, and no zero before them"))
}

/// Text without quotes.
fn bare(text: &str) -> Option<Meant> {
    let is_null = matches!(text.to_ascii_lowercase().as_str(), "null" | "nil" | "undefined" | "~");
    if is_null || text.is_empty() || text.starts_with(['[', '{', '(', '"', '\'']) {
        return None;
    }
    let value = match (text.contains(['"', '\\']), text.contains('\'')) {
        (false, _) => format!("\"{text}\""),
        (true, false) => format!("'{text}'"),
        (true, true) => return None,
    };
    Some(Meant::new(value, "text must be in quotes"))
}
