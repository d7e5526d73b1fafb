//! The words of prose in comments, documents and messages.

use super::Word;

/// The prose of a Rust file's `//`, `///` and `//!` comments. Block comments are skipped.
pub fn words_of_rust_comments(source: &str) -> Vec<Word> {
    let mut lines: Vec<(usize, &str)> = Vec::new();
    let mut kind_before = ("", 0);
    for comment in parts(source).comments {
        let (kind, text) = split_marker(comment.text);
        // Only adjacent lines with one marker share a paragraph, and only if they do not follow code.
        if kind_before != (kind, comment.line.saturating_sub(1)) || comment.follows_code {
            lines.push((comment.line, ""));
        }
        lines.push((comment.line, text));
        kind_before = (kind, if comment.follows_code { 0 } else { comment.line });
    }
    words_of_lines(lines)
}

/// The prose in a Rust file's string literals, without SQL and those of its tests: each with at least three words.
pub fn words_of_rust_messages(source: &str) -> Vec<Word> {
    let end = source.find("#[cfg(test)]").unwrap_or(source.len());
    let mut messages = Vec::new();
    for Literal { line, text } in parts(&source[..end]).literals {
        let is_word = |word: &&str| word.len() > 1 && word.bytes().all(|byte| byte.is_ascii_alphabetic());
        let is_sql = ["select", "insert", "update", "delete", "with", "create", "alter"]
            .iter()
            .any(|verb| text.split_whitespace().next().is_some_and(|word| word.eq_ignore_ascii_case(verb)));
        if !is_sql && text.split_whitespace().filter(is_word).count() >= 3 {
            // Arguments are like inline code.
            messages.push((line, text.replace(['{', '}'], "`")));
        }
    }
    let lines = messages.iter().flat_map(|(line, text)| {
        let lines = (*line..).zip(text.lines().map(|text| text.trim_end_matches('\\')));
        std::iter::once((*line, "")).chain(lines)
    });
    words_of_lines(lines)
}

/// The names of a Rust file's tests, each as a sentence.
pub fn words_of_test_names(source: &str) -> Vec<Word> {
    let (mut names, mut is_test) = (Vec::new(), false);
    for (line, text) in (1..).zip(source.lines().map(str::trim)) {
        is_test |= text.starts_with("#[test]") || text.starts_with("#[tokio::test");
        let name =
            text.strip_prefix("async ").unwrap_or(text).strip_prefix("fn ").and_then(|rest| rest.split('(').next());
        if let Some(name) = name.filter(|_| std::mem::take(&mut is_test)) {
            names.push((line, name.replace('_', " ")));
        }
    }
    words_of_lines(names.iter().flat_map(|(line, name)| [(*line, ""), (*line, name.as_str())]))
}

/// The prose of a Markdown file.
pub fn words_of_markdown(source: &str) -> Vec<Word> {
    words_of_lines((1..).zip(source.lines()))
}

/// The prose of a TOML file's comments, without keys and tables that are commented out.
pub fn words_of_toml_comments(source: &str) -> Vec<Word> {
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(source.lines()) {
        let Some(start) = toml_comment(line) else {
            lines.push((number, ""));
            continue;
        };
        let follows_value = !line[..start].trim().is_empty();
        let text = line[start..].trim_start_matches('#').trim();
        let is_setting = text.starts_with('[')
            || text.split_once('=').is_some_and(|(key, _)| !key.trim().is_empty() && !key.trim().contains(' '));
        if follows_value {
            lines.push((number, ""));
        }
        lines.push((number, if is_setting { "" } else { text }));
        if follows_value {
            lines.push((number, ""));
        }
    }
    words_of_lines(lines)
}

// --- Comments and literals of a Rust file ---

#[derive(Default)]
struct Parts<'a> {
    comments: Vec<Comment<'a>>,
    literals: Vec<Literal<'a>>,
}

/// A string literal that is not raw.
struct Literal<'a> {
    line: usize,
    /// Without its quotes.
    text: &'a str,
}

struct Comment<'a> {
    line: usize,
    /// From `//` to the end of the line.
    text: &'a str,
    follows_code: bool,
}

fn split_marker(comment: &str) -> (&str, &str) {
    let is_doc = comment.starts_with("//!") || comment.starts_with("///") && !comment.starts_with("////");
    comment.split_at(if is_doc { 3 } else { 2 })
}

/// All line comments and string literals; what looks like one inside the other, or in a block comment, is skipped.
fn parts(source: &str) -> Parts<'_> {
    let bytes = source.as_bytes();
    let mut parts = Parts::default();
    let (mut at, mut line, mut counted) = (0, 1, 0);
    while at < bytes.len() {
        let rest = &bytes[at..];
        at = match rest {
            [b'/', b'/', ..] => {
                let end = at + rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len());
                line += lines_in(&bytes[counted..at]);
                counted = at;
                let line_start = bytes[..at].iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
                let follows_code = !bytes[line_start..at].trim_ascii().is_empty();
                parts.comments.push(Comment { line, text: source[at..end].trim_end(), follows_code });
                end
            }
            [b'/', b'*', ..] => at + block_comment(rest),
            [b'"', ..] => {
                let end = at + string(rest);
                line += lines_in(&bytes[counted..at]);
                counted = at;
                parts.literals.push(Literal { line, text: source[at..end].trim_matches('"') });
                end
            }
            [b'\'', ..] => at + quote(rest),
            [first, ..] if first.is_ascii_alphanumeric() || *first == b'_' => {
                let name = rest.iter().position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_');
                let name = name.unwrap_or(rest.len());
                let is_raw = matches!(&rest[..name], b"r" | b"br" | b"cr");
                at + name + if is_raw { raw_string(&rest[name..]) } else { 0 }
            }
            _ => at + 1,
        };
    }
    parts
}

fn lines_in(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}

/// The length of a block comment, with those inside it.
fn block_comment(bytes: &[u8]) -> usize {
    let (mut at, mut depth) = (0, 0);
    while at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => (at, depth) = (at + 2, depth + 1),
            [b'*', b'/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at.min(bytes.len())
}

/// The length of a string literal, with its quotes.
fn string(bytes: &[u8]) -> usize {
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The length of a raw string literal after its `r`, or 0 for a raw identifier.
fn raw_string(bytes: &[u8]) -> usize {
    let hashes = bytes.iter().take_while(|&&byte| byte == b'#').count();
    if bytes.get(hashes) != Some(&b'"') {
        return 0;
    }
    let end = [&b"\""[..], &b"#".repeat(hashes)].concat();
    let start = hashes + 1;
    let length = bytes[start..].windows(end.len()).position(|window| window == end);
    length.map_or(bytes.len(), |length| start + length + end.len())
}

/// The length of a character literal, or of the quote that begins a lifetime.
fn quote(bytes: &[u8]) -> usize {
    if bytes.get(1) == Some(&b'\\') {
        let end = bytes.iter().skip(3).position(|&byte| byte == b'\'');
        return end.map_or(bytes.len(), |end| end + 4);
    }
    // A character has up to four bytes; a lifetime has no quote after its first character.
    let width = bytes.iter().skip(2).take_while(|&&byte| byte & 0b1100_0000 == 0b1000_0000).count() + 1;
    if bytes.get(1 + width) == Some(&b'\'') { width + 2 } else { 1 }
}

/// Where a TOML line's comment starts. A string over several lines that holds a `#` is mistaken for a comment.
fn toml_comment(line: &str) -> Option<usize> {
    let (mut quote, mut is_escaped) = (None, false);
    for (at, c) in line.char_indices() {
        match (quote, c) {
            (Some('"'), '\\') if !is_escaped => {
                is_escaped = true;
                continue;
            }
            (Some(open), c) if c == open && !is_escaped => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '#') => return Some(at),
            _ => {}
        }
        is_escaped = false;
    }
    None
}

// --- Words of Markdown ---

/// Collects the words of one paragraph, and then of the next.
#[derive(Default)]
struct Prose {
    words: Vec<Word>,
    starts_sentence: bool,
    in_heading: bool,
    /// How many backticks opened the inline code that has not ended.
    code: usize,
}

fn words_of_lines<'a>(lines: impl IntoIterator<Item = (usize, &'a str)>) -> Vec<Word> {
    let mut prose = Prose::default();
    prose.end_paragraph();
    let (mut fence, mut in_html) = (None, false);
    for (number, line) in lines {
        let text = line.trim();
        let mark = ["```", "~~~"].into_iter().find(|mark| text.starts_with(mark));
        if fence.is_some() || mark.is_some() {
            fence = if fence.is_none() { mark } else { fence.filter(|open| mark != Some(open)) };
            prose.end_paragraph();
            continue;
        }
        if in_html || text.starts_with("<!--") {
            in_html = !text.contains("-->");
            continue;
        }
        let is_definition = text.starts_with('[') && text.contains("]: ");
        if text.is_empty() || is_definition {
            prose.end_paragraph();
            continue;
        }
        let text = text.trim_start_matches("> ");
        let heading = text.trim_start_matches('#');
        if heading.len() < text.len() && heading.starts_with(' ') {
            prose.end_paragraph();
            prose.in_heading = true;
            prose.add(number, heading);
            prose.end_paragraph();
        } else if text.starts_with('|') {
            for cell in text.split('|') {
                prose.end_paragraph();
                prose.add(number, cell);
            }
            prose.end_paragraph();
        } else if let Some(item) = list_item(text) {
            prose.end_paragraph();
            prose.add(number, item);
        } else {
            prose.add(number, text);
        }
    }
    prose.words
}

fn list_item(text: &str) -> Option<&str> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let marker = if digits > 0 { &text[digits..] } else { text };
    let is_mark = |mark: &&str| if digits > 0 { matches!(*mark, ". " | ") ") } else { !mark.starts_with(['.', ')']) };
    ["- ", "* ", "+ ", ". ", ") "].iter().filter(|mark| is_mark(mark)).find_map(|mark| marker.strip_prefix(mark))
}

impl Prose {
    fn end_paragraph(&mut self) {
        self.starts_sentence = true;
        self.in_heading = false;
        self.code = 0;
    }

    fn add(&mut self, line: usize, text: &str) {
        let text = self.without_code_and_links(text);
        for token in text.split_whitespace() {
            if token.contains("://") {
                self.push(line, token);
                continue;
            }
            for part in token.split_inclusive(['-', '/', '–', '—']) {
                self.push(line, part);
            }
        }
    }

    fn push(&mut self, line: usize, token: &str) {
        let is_part = |c: char| c.is_alphanumeric() || c == '`';
        let Some(start) = token.find(is_part) else {
            // Punctuation that stands alone belongs to the word before.
            if let Some(before) = self.words.last_mut().filter(|_| !self.starts_sentence) {
                before.after.push_str(token.trim_matches(['-', '/', '*', '_']));
            }
            return;
        };
        let end = token
            .rfind(is_part)
            .map_or(token.len(), |last| last + token[last..].chars().next().map_or(0, char::len_utf8));
        let text = token[start..end].replace('’', "'").to_lowercase();
        let after: String =
            token[end..].chars().filter(|c| !matches!(c, '*' | '_' | '"' | '”' | ')' | '-' | '/')).collect();
        let is_abbreviation = matches!(text.as_str(), "e.g" | "i.e" | "vs" | "cf");
        let ends = after.contains(['.', '!', '?']) && !is_abbreviation;
        let starts_sentence = std::mem::replace(&mut self.starts_sentence, ends);
        self.words.push(Word { line, text, after, starts_sentence, in_heading: self.in_heading });
    }

    /// Replaces inline code with a backtick, and removes HTML tags and the targets of links.
    fn without_code_and_links(&mut self, text: &str) -> String {
        let mut kept = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let ticks = rest.len() - rest.trim_start_matches('`').len();
            if ticks > 0 {
                if self.code == 0 {
                    self.code = ticks;
                    kept.push('`');
                } else if self.code == ticks {
                    self.code = 0;
                }
                rest = &rest[ticks..];
                continue;
            }
            let is_tag = c == '<' && rest[1..].starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
            let skipped = if self.code > 0 {
                Some(c.len_utf8())
            } else if rest.starts_with("](") {
                rest.find(')').map(|end| end + 1)
            } else if is_tag {
                rest.find('>').map(|end| end + 1)
            } else {
                None
            };
            if skipped.is_none() {
                kept.push(c);
            }
            rest = &rest[skipped.unwrap_or(c.len_utf8())..];
        }
        kept
    }
}
