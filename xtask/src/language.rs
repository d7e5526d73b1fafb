//! Counts habits of language in comments and documents, and compares them with budgets.
//!
//! The budgets follow linkerd2-proxy, hyper and sozu. Counted as prose: comments of Rust and TOML files, string literals with at
//! least three words, names of tests, and Markdown, without code blocks, commented-out TOML keys, link targets and HTML. Inline
//! code is one word that matches no habit.

mod prose;

pub use self::prose::{
    words_of_markdown, words_of_rust_comments, words_of_rust_messages, words_of_test_names, words_of_toml_comments,
};

/// How many times in 1,000 words a habit may, or must, occur.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// Checked for comments, documents, and messages with names of tests, each as a whole.
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

#[cfg(test)]
mod tests;
