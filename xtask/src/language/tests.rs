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
fn literals_with_three_words_and_names_of_tests_count() {
    let source = r###"// "not in a comment"
const A: &str = "one two \
    three";
fn f() { g("one two", 'x', "four five six"); let r = r"not a raw one"; }
#[cfg(test)]
mod tests {
    const B: &str = "not in a test";
    #[test]
    #[ignore]
    fn a_name_of_words() { fn helper() {} }
    #[tokio::test(flavor = "current_thread")]
    async fn another() {}
    fn no_test() {}
}
"###;
    let words = words_of_rust_messages(source);
    assert_eq!(texts(&words), ["one", "two", "three", "four", "five", "six"]);
    assert_eq!(words.iter().map(|word| word.line).collect::<Vec<_>>(), [2, 2, 3, 4, 4, 4]);
    assert_eq!(texts(&words_of_test_names(source)), ["a", "name", "of", "words", "another"]);
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
    kind: &'static str,
    words: Vec<Word>,
    found: Vec<Found>,
}

impl File {
    fn found(&self, budget: usize) -> impl Iterator<Item = &Word> {
        self.found.iter().filter(move |found| found.budget == budget).map(|found| &self.words[found.word])
    }
}

const COMMENTS: &str = "comments";
const TEXTS: &str = "documents";
/// Those in string literals, and names of tests.
const MESSAGES: &str = "messages";

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
            folders.iter().any(|&folder| relative == Path::new(folder) || relative.parent() == Some(Path::new(folder)))
        };
        let read = || fs::read_to_string(&path).unwrap();
        let kinds = match relative.extension().and_then(|ending| ending.to_str()) {
            Some("rs") => {
                let source = read();
                // Literals of tests are mostly input.
                let is_test = ["tests", "bench", "fuzz"].iter().any(|&dir| relative.iter().any(|part| part == dir))
                    || relative.ends_with("tests.rs");
                if relative.starts_with("xtask/src/language") || relative == Path::new("xtask/src/language.rs") {
                    continue; // They have the words to avoid.
                }
                let mut messages = words_of_test_names(&source);
                if !is_test {
                    messages.extend(words_of_rust_messages(&source));
                }
                vec![(COMMENTS, words_of_rust_comments(&source)), (MESSAGES, messages)]
            }
            Some("md") if is_one_of(&DOCUMENTS) && relative != Path::new(GLOSSARY) => {
                vec![(TEXTS, words_of_markdown(&read()))]
            }
            Some("toml") if is_one_of(&SETTINGS) => vec![(COMMENTS, words_of_toml_comments(&read()))],
            _ => continue,
        };
        files.extend(kinds.into_iter().map(|(kind, words)| File {
            path: relative.to_path_buf(),
            kind,
            found: find(&words),
            words,
        }));
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
        columns.entry(format!("= {}", file.kind)).or_default().push(file);
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
        let is_checked = !matches!(budget.bound, Bound::CommentsAtLeast(_)) || kind == COMMENTS;
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
                    write!(message, "\n  {}: {count}, lines {}{more}", file.path.display(), lines.join(", ")).unwrap();
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
fn comments_documents_and_messages_keep_the_budgets() {
    let files = repository();
    println!("{}\n", table(&files));
    let of = |kind: &str| files.iter().filter(|file| file.kind == kind).collect::<Vec<_>>();
    let broken: Vec<String> =
        [COMMENTS, TEXTS, MESSAGES].iter().flat_map(|kind| broken_budgets(kind, &of(kind))).collect();
    assert!(broken.is_empty(), "see {GLOSSARY} for the words to use\n\n{}", broken.join("\n\n"));
}
