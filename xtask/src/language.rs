//! Counts habits of language in comments and documents, and compares them with budgets.
//!
//! The budgets follow linkerd2-proxy, hyper and sozu. Counted as prose: comments of Rust and TOML files, and Markdown, without
//! code blocks, commented-out TOML keys, link targets and HTML. Inline code is one word that matches no habit.

/// How many times in 1,000 words a habit may, or must, occur.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// Checked for comments and for documents, each as a whole.
    AtMost(f64),
    /// Checked for the comments as a whole.
    CommentsAtLeast(f64),
}

/// How a habit is recognized.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// "who" or "whoever" with a verb, at the start of a sentence or after ", and", ", or", ", but" or ";". Relative clauses
    /// ("a client who waits"), questions, headings and indirect questions ("who did what", "who the client is") do not count.
    WhoAsSubject,
    /// A sentence that opens with "what" or "whatever"; questions and headings do not count.
    OpensWithWhat,
    /// One of these words or phrases, as singular or plural. A `*` at the end of a word stands for any ending.
    Words(&'static [&'static str]),
}

#[derive(Clone, Copy, Debug)]
pub struct Budget {
    pub name: &'static str,
    pub rule: Rule,
    pub bound: Bound,
}

const fn at_most(name: &'static str, most: f64, rule: Rule) -> Budget {
    Budget { name, rule, bound: Bound::AtMost(most) }
}

/// All budgets, per 1,000 words. The first four are the measured habits; the rest are words that `docs/glossary.md` replaces.
#[rustfmt::skip]
pub const BUDGETS: [Budget; 12] = [
    at_most("who as a subject", 0.04, Rule::WhoAsSubject),
    at_most("nobody, nothing, none", 1.8, Rule::Words(&["nobody", "nothing", "none"])),
    at_most("What opens a sentence", 0.06, Rule::OpensWithWhat),
    Budget {
        name: "the field's words",
        rule: Rule::Words(&["upstream", "downstream", "backend", "header", "response", "rate limit*", "concurrency", "circuit"]),
        bound: Bound::CommentsAtLeast(6.5),
    },
    at_most("answer (response)", 1.0, Rule::Words(&["answer", "answered", "answering"])),
    at_most("whoever, whatever", 0.1, Rule::Words(&["whoever", "whatever", "whosever", "whomever"])),
    at_most("slot, gate (permit, queue)", 0.2, Rule::Words(&["slot", "gate"])),
    at_most("refusal, told no (rejection)", 0.2, Rule::Words(&["refusal", "told no"])),
    at_most("is told", 0.1, Rule::Words(&["is told", "are told", "be told", "was told", "were told", "been told"])),
    at_most("settle, owe, bill (sync, debt)", 0.05, Rule::Words(&["settle*", "settling", "owed", "owe", "bill", "billed"])),
    at_most("seal (sign, encrypt)", 0.1, Rule::Words(&["seal", "sealed", "sealing", "unsealed"])),
    at_most("away, beside, on purpose", 0.1, Rule::Words(&["is away", "are away", "was away", "beside the", "on purpose"])),
];

/// One word of prose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// Line in the file, from 1.
    pub line: usize,
    /// In lower case, without punctuation around it; a single backtick for inline code.
    pub text: String,
    /// The punctuation that follows it.
    after: String,
    starts_sentence: bool,
    in_heading: bool,
}

/// One place where a habit was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Index into [`BUDGETS`].
    pub budget: usize,
    /// Index into the words.
    pub word: usize,
}

/// The prose of a Rust file's `//`, `///` and `//!` comments. Block comments are skipped.
pub fn words_of_rust_comments(source: &str) -> Vec<Word> {
    let mut lines: Vec<(usize, &str)> = Vec::new();
    let mut kind_before = ("", 0);
    for comment in line_comments(source) {
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

/// Every place where one of [`BUDGETS`] counts a word.
pub fn find(words: &[Word]) -> Vec<Found> {
    let mut found = Vec::new();
    for (budget, Budget { rule, .. }) in BUDGETS.iter().enumerate() {
        let places = (0..words.len()).filter(|&word| rule.matches(words, word));
        found.extend(places.map(|word| Found { budget, word }));
    }
    found
}

/// Occurrences in 1,000 words; 0 if there are no words.
pub fn per_thousand(found: usize, words: usize) -> f64 {
    if words == 0 { 0.0 } else { found as f64 * 1000.0 / words as f64 }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "<= {most}"),
            Self::CommentsAtLeast(least) => write!(f, ">= {least}"),
        }
    }
}

impl Bound {
    pub fn allows(self, found: usize, words: usize) -> bool {
        match self {
            Self::AtMost(most) => per_thousand(found, words) <= most,
            Self::CommentsAtLeast(least) => per_thousand(found, words) >= least,
        }
    }
}

impl Rule {
    fn matches(self, words: &[Word], at: usize) -> bool {
        match self {
            Self::WhoAsSubject => {
                matches!(words[at].text.as_str(), "who" | "whoever")
                    && opens_clause(words, at)
                    && is_followed_by_verb(words, at)
                    && !is_question(words, at)
                    && !words[at].in_heading
            }
            Self::OpensWithWhat => {
                matches!(words[at].text.as_str(), "what" | "what's" | "whatever")
                    && words[at].starts_sentence
                    && !is_question(words, at)
                    && !words[at].in_heading
            }
            Self::Words(phrases) => phrases.iter().any(|phrase| is_phrase(phrase, &words[at..])),
        }
    }
}

fn opens_clause(words: &[Word], at: usize) -> bool {
    let before = |n: usize| at.checked_sub(n).map(|index| &words[index]);
    let is_joined = || {
        before(1).is_some_and(|word| matches!(word.text.as_str(), "and" | "or" | "but") && word.after.is_empty())
            && before(2).is_some_and(|word| word.after.ends_with(','))
    };
    words[at].starts_sentence || before(1).is_some_and(|word| word.after.ends_with(';')) || is_joined()
}

/// Whether a verb can follow: no article, pronoun or other question word, and no indirect question such as "who did what".
fn is_followed_by_verb(words: &[Word], at: usize) -> bool {
    const NO_VERBS: [&str; 27] = [
        "a", "an", "the", "this", "that", "these", "those", "it", "they", "we", "he", "she", "you", "i", "its",
        "their", "our", "your", "each", "every", "and", "or", "what", "when", "where", "which", "why",
    ];
    let mut following = words[at + 1..].iter().take_while(|word| !word.starts_sentence);
    let verb = following.next().filter(|_| words[at].after.is_empty());
    let object = following.next();
    verb.is_some_and(|word| !NO_VERBS.contains(&word.text.as_str()))
        && !object.is_some_and(|word| matches!(word.text.as_str(), "what" | "when" | "where" | "which" | "whom"))
}

fn is_question(words: &[Word], at: usize) -> bool {
    let rest = &words[at + 1..];
    let end = rest.iter().position(|word| word.starts_sentence).unwrap_or(rest.len());
    words[at + end].after.contains('?')
}

fn is_phrase(phrase: &str, words: &[Word]) -> bool {
    let parts = phrase.split(' ');
    let mut words = words.iter();
    for (index, part) in parts.enumerate() {
        let Some(word) = words.next() else { return false };
        if index > 0 && word.starts_sentence {
            return false;
        }
        let text = word.text.strip_suffix("'s").unwrap_or(&word.text);
        let is_same = match part.strip_suffix('*') {
            Some(stem) => text.starts_with(stem),
            None => text.strip_prefix(part).is_some_and(|ending| matches!(ending, "" | "s" | "es")),
        };
        if !is_same {
            return false;
        }
    }
    true
}

// --- Comments of a Rust file ---

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

/// All line comments; what looks like one inside a literal or a block comment is skipped.
fn line_comments(source: &str) -> Vec<Comment<'_>> {
    let bytes = source.as_bytes();
    let mut comments = Vec::new();
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
                comments.push(Comment { line, text: source[at..end].trim_end(), follows_code });
                end
            }
            [b'/', b'*', ..] => at + block_comment(rest),
            [b'"', ..] => at + string(rest),
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
    comments
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

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        fmt::Write,
        fs,
        path::{Path, PathBuf},
    };

    use super::*;

    const WHO: usize = 0;
    const NOBODY: usize = 1;
    const WHAT: usize = 2;
    const FIELD: usize = 3;

    fn texts(words: &[Word]) -> Vec<&str> {
        words.iter().map(|word| word.text.as_str()).collect()
    }

    #[track_caller]
    fn assert_count(budget: usize, count: usize, markdown: &str) {
        let found = find(&words_of_markdown(markdown));
        assert_eq!(found.iter().filter(|found| found.budget == budget).count(), count, "{markdown}");
    }

    #[test]
    fn who_counts_as_the_subject_of_a_sentence_or_clause() {
        assert_count(WHO, 1, "Who waits longer gets a 503.");
        assert_count(WHO, 1, "It waits. Whoever comes later is rejected.");
        assert_count(WHO, 1, "The queue is full; who comes now is rejected.");
        assert_count(WHO, 1, "The first is served, and\nwho comes later waits.");
        assert_count(WHO, 1, "- who spends it all");
        assert_count(WHO, 1, "| client | who sends a request |");
    }

    #[test]
    fn relative_clauses_and_questions_with_who_do_not_count() {
        for english in [
            "A client who waits, and the one who left.",
            "The user, who waits; and also those who do not.",
            "A client who pays and who waits.",
            "Who is the client?",
            "## Who is a client",
            "Who the client is, by its address.",
            "Records who did it; who did what, and when.",
        ] {
            assert_count(WHO, 0, english);
        }
    }

    #[test]
    fn what_counts_at_the_start_of_a_sentence() {
        assert_count(WHAT, 1, "What is kept is bounded.");
        assert_count(WHAT, 1, "It is kept (see above). What is\nlost is gone. What is lost? It is gone.");
        assert_count(WHAT, 0, "This is what it keeps, e.g. What the client sent.");
        assert_count(WHAT, 0, "# What it keeps");
        assert_count(WHAT, 0, "`What` is a type.");
    }

    #[test]
    fn nobody_nothing_and_none_count_but_not_as_code() {
        assert_count(NOBODY, 3, "Nobody waits, nothing is sent; the default is none.");
        assert_count(NOBODY, 0, "Returns `None`, and [`nothing`].");
    }

    #[test]
    fn the_words_of_the_field_count_in_both_numbers_and_with_hyphens() {
        assert_count(FIELD, 4, "The upstream's response headers and circuit-breaker.");
        assert_count(FIELD, 3, "Rate limits, a rate-limited client, the rate\nlimiter.");
        assert_count(FIELD, 0, "The rate. Limits of a headerless thing.");
    }

    #[test]
    fn only_prose_of_markdown_counts() {
        let source = "Some *text* with a [link text](https://example.com/nobody) and `code\nof` two\n\n```sh\nnobody\n```\n\
                      <!-- nobody\nnothing -->\n[ref]: https://example.com/none\n- item, <b>one</b>\n1. two";
        let words = words_of_markdown(source);
        let wanted = ["some", "text", "with", "a", "link", "text", "and", "`", "two", "item", "one", "two"];
        assert_eq!(texts(&words), wanted);
        assert_eq!((words[8].line, words[9].line), (2, 10));
    }

    #[test]
    fn only_line_comments_of_rust_count() {
        let source = r###"//! One.
/// Two
/// words.
fn f<'a>(c: &'a str) { // three
    let s = "// no \" // no"; let r = r#"// no " // no"#; let b = b"//"; let t = '"'; // four
    let q = '\''; let u = '\u{1F600}'; /* // no /* // no */ // no */ let w = 'é'; // five
    let r#type = 1; let e = "\\"; //six
}
"###;
        let words = words_of_rust_comments(source);
        assert_eq!(texts(&words), ["one", "two", "words", "three", "four", "five", "six"]);
        assert_eq!(words.iter().map(|word| word.line).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7]);
        assert!(!words[2].starts_sentence && words[3].starts_sentence && words[4].starts_sentence);
    }

    #[test]
    fn code_in_doc_comments_does_not_count() {
        assert_eq!(texts(&words_of_rust_comments("/// A\n/// ```\n/// nobody\n/// ```\n/// b\n")), ["a", "b"]);
    }

    #[test]
    fn only_prose_in_comments_of_toml_counts() {
        let source = "# A key.\n# key = \"none\"\n# [none]\nkey = \"# none\" # and its value\n# Then: a = b\n";
        let words = words_of_toml_comments(source);
        assert_eq!(texts(&words), ["a", "key", "and", "its", "value", "then", "a", "b"]);
        assert!(words[2].starts_sentence && words[5].starts_sentence);
    }

    #[test]
    fn bounds_are_per_thousand_words() {
        assert!(Bound::AtMost(1.8).allows(18, 10_000) && !Bound::AtMost(1.8).allows(19, 10_000));
        assert!(Bound::CommentsAtLeast(6.5).allows(65, 10_000) && !Bound::CommentsAtLeast(6.5).allows(64, 10_000));
    }

    // --- The repository ---

    const DOCUMENTS: [&str; 2] = ["README.md", "docs"];
    /// It lists the words to avoid.
    const GLOSSARY: &str = "docs/glossary.md";
    const SETTINGS: [&str; 1] = ["config"];
    /// How many files, and lines of each, a message names.
    const NAMED: usize = 6;

    struct File {
        /// Relative to the repository.
        path: PathBuf,
        is_document: bool,
        words: Vec<Word>,
        found: Vec<Found>,
    }

    impl File {
        fn found(&self, budget: usize) -> impl Iterator<Item = &Word> {
            self.found.iter().filter(move |found| found.budget == budget).map(|found| &self.words[found.word])
        }
    }

    /// Reads every Rust file, the documents and the settings.
    fn repository() -> Vec<File> {
        let here = std::env::current_dir().unwrap();
        let root = here.ancestors().find(|dir| dir.join("Cargo.lock").exists()).unwrap();
        let mut paths = Vec::new();
        collect(root, &mut paths);
        paths.sort();
        let mut files = Vec::new();
        for path in paths {
            let relative = path.strip_prefix(root).unwrap();
            let is_one_of = |folders: &[&str]| {
                folders
                    .iter()
                    .any(|&folder| relative == Path::new(folder) || relative.parent() == Some(Path::new(folder)))
            };
            let read = || fs::read_to_string(&path).unwrap();
            let (is_document, words) = match relative.extension().and_then(|ending| ending.to_str()) {
                Some("rs") => (false, words_of_rust_comments(&read())),
                Some("md") if is_one_of(&DOCUMENTS) && relative != Path::new(GLOSSARY) => {
                    (true, words_of_markdown(&read()))
                }
                Some("toml") if is_one_of(&SETTINGS) => (false, words_of_toml_comments(&read())),
                _ => continue,
            };
            files.push(File { path: relative.to_path_buf(), is_document, found: find(&words), words });
        }
        files
    }

    fn collect(dir: &Path, paths: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let name = entry.file_name();
            let is_skipped = name == "target" || name == "node_modules" || name.as_encoded_bytes().starts_with(b".");
            let kind = entry.file_type().unwrap();
            if kind.is_dir() && !is_skipped {
                collect(&entry.path(), paths);
            } else if kind.is_file() {
                paths.push(entry.path());
            }
        }
    }

    /// Occurrences per 1,000 words: one line a budget, one column a top-level folder.
    fn table(files: &[File]) -> String {
        let mut columns: BTreeMap<String, Vec<&File>> = BTreeMap::new();
        for file in files {
            let folder = file.path.iter().next().unwrap().to_string_lossy().into_owned();
            columns.entry(folder).or_default().push(file);
            let all = if file.is_document { "documents" } else { "comments" };
            columns.entry(format!("= {all}")).or_default().push(file);
        }
        let mut text = format!("{:34}{:>9}", "per 1,000 words", "budget");
        for name in columns.keys() {
            write!(text, "{name:>13}").unwrap();
        }
        write!(text, "\n{:43}", "words").unwrap();
        for files in columns.values() {
            write!(text, "{:>13}", files.iter().map(|file| file.words.len()).sum::<usize>()).unwrap();
        }
        for (index, budget) in BUDGETS.iter().enumerate() {
            write!(text, "\n{:34}{:>9}", budget.name, budget.bound.to_string()).unwrap();
            for files in columns.values() {
                let words = files.iter().map(|file| file.words.len()).sum();
                let found = files.iter().map(|file| file.found(index).count()).sum();
                write!(text, "{:>13.2}", per_thousand(found, words)).unwrap();
            }
        }
        text
    }

    /// A message for each budget that these files do not keep, with the files and lines to look at first.
    fn broken_budgets(kind: &str, files: &[&File]) -> Vec<String> {
        let words = files.iter().map(|file| file.words.len()).sum();
        let mut messages = Vec::new();
        for (index, budget) in BUDGETS.iter().enumerate() {
            let found = files.iter().map(|file| file.found(index).count()).sum();
            let is_checked = !matches!(budget.bound, Bound::CommentsAtLeast(_)) || kind == "comments";
            if !is_checked || budget.bound.allows(found, words) {
                continue;
            }
            let rate = per_thousand(found, words);
            let mut message = format!("{kind}: {}: {rate:.2} per 1,000 words, budget {}", budget.name, budget.bound);
            let mut worst: Vec<&File> = files.to_vec();
            match budget.bound {
                Bound::AtMost(_) => {
                    worst.sort_by_key(|file| std::cmp::Reverse(file.found(index).count()));
                    worst.retain(|file| file.found(index).next().is_some());
                    for file in worst.iter().take(NAMED) {
                        let count = file.found(index).count();
                        let lines: Vec<_> = file.found(index).take(NAMED).map(|word| word.line.to_string()).collect();
                        let more = if count > NAMED { ", …" } else { "" };
                        write!(message, "\n  {}: {count}, lines {}{more}", file.path.display(), lines.join(", "))
                            .unwrap();
                    }
                }
                Bound::CommentsAtLeast(_) => {
                    // Where the most words say the least in the field's terms.
                    let missing = |file: &File| file.words.len().saturating_sub(100 * file.found(index).count());
                    worst.sort_by_key(|file| std::cmp::Reverse(missing(file)));
                    for file in worst.iter().take(NAMED) {
                        let count = file.found(index).count();
                        write!(message, "\n  {}: {count} in {} words", file.path.display(), file.words.len()).unwrap();
                    }
                }
            }
            messages.push(message);
        }
        messages
    }

    #[test]
    fn comments_and_documents_keep_the_budgets() {
        let files = repository();
        println!("{}\n", table(&files));
        let (documents, comments): (Vec<_>, Vec<_>) = files.iter().partition(|file| file.is_document);
        let mut broken = broken_budgets("comments", &comments);
        broken.extend(broken_budgets("documents", &documents));
        assert!(broken.is_empty(), "see {GLOSSARY} for the words to use\n\n{}", broken.join("\n\n"));
    }
}
