//! `include = ["rules.d/*.toml"]`: further files of the configuration, and how they are joined.
//!
//! Tables are merged, and lists of tables are appended in the order of the files. A key that two files set is an error: no order of
//! files decides what is in force.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::{Place, Problem};
use crate::finding::Rule;
use crate::inputs::{Inputs, STRANGE, STRANGE_HINT, Trust, files_of};
use crate::sources::Sources;
use crate::syntax::{self, Names};
use crate::tree::{Node, Step, Value};

/// Maximum number of files, the first one included.
pub const MOST_FILES: usize = 256;
/// Maximum bytes of all files together.
pub const MOST_BYTES: usize = 16 << 20;

/// The key.
const INCLUDE: &str = "include";

/// The files, and the mistakes found so far.
#[derive(Debug)]
pub struct Reading<'a> {
    /// The text of the files.
    pub sources: &'a mut Sources,
    /// The files.
    pub inputs: &'a mut Inputs,
    /// Errors.
    pub problems: &'a mut Vec<Problem>,
    /// Warnings.
    pub warnings: &'a mut Vec<Problem>,
    /// Whether other files are read.
    pub trust: Trust,
}

/// Adds the files that `root` includes to it. Returns whether lines of them were left out.
pub fn include(root: &mut Node, names: &Names, reading: &mut Reading<'_>) -> bool {
    let patterns = patterns(root, reading);
    let main = reading.sources.main().to_owned();
    let directory = main.parent().unwrap_or(Path::new("")).to_owned();
    reading.inputs.include(patterns.iter().map(|(pattern, _)| directory.join(pattern)).collect());
    let mut seen: Vec<(u64, u64)> = identity(&main).into_iter().collect();
    let mut is_partial = false;
    for (pattern, place) in patterns {
        let (files, has_directory) = files_of(&directory.join(&pattern));
        if !has_directory {
            let message = format!("the directory of {pattern:?} does not exist");
            reading.warnings.push(Problem::new(place.clone(), message, "make it, or remove the pattern"));
        }
        for file in files {
            if identity(&file).is_some_and(|found| seen.contains(&found)) {
                continue;
            }
            seen.extend(identity(&file));
            match read(&file, reading.sources.size()) {
                Ok(text) => is_partial |= add(root, &file, text, names, reading),
                Err(ReadError { message, hint, is_last }) => {
                    let message = format!("the included file {} {message}", file.display());
                    reading.problems.push(Problem::new(place.clone(), message, hint).of(Rule::UnreadableFile));
                    if is_last {
                        return is_partial;
                    }
                }
            }
        }
    }
    is_partial
}

/// The patterns and their places, without those that are not patterns.
fn patterns(root: &Node, reading: &mut Reading<'_>) -> Vec<(String, Place)> {
    let (1, Node { value: Value::List(items), .. }) = root.nearest(&[Step::Key(INCLUDE)]) else { return Vec::new() };
    let mut patterns = Vec::new();
    for item in items {
        // The check against the schema tells what is no text.
        let Value::Text(pattern) = &item.value else { continue };
        let name = pattern.rsplit('/').next().unwrap_or_default();
        let above = &pattern[..pattern.len() - name.len()];
        let mistake = if pattern.contains("${") {
            Some(("`include` cannot have references", "write the path itself, relative to this file"))
        } else if name.is_empty() {
            Some(("`include` needs files", "write \"rules.d/*.toml\", for example"))
        } else if above.contains(['*', '?']) {
            Some(("`include` takes patterns only in the last part of a path", "write a pattern for each directory"))
        } else if name.contains(['[', '{']) || name.contains("**") {
            Some(("`include` knows no patterns but * and ?", "write \"rules.d/*.toml\", for example"))
        } else {
            None
        };
        let mistake = mistake.or((reading.trust == Trust::Stranger).then_some((STRANGE, STRANGE_HINT)));
        match mistake {
            Some((message, hint)) => reading.problems.push(Problem::new(item.place.clone(), message, hint)),
            None => patterns.push((pattern.clone(), item.place.clone())),
        }
    }
    patterns
}

/// Parses an included file, and merges it. Returns whether lines of it were left out.
fn add(root: &mut Node, file: &Path, text: String, names: &Names, reading: &mut Reading<'_>) -> bool {
    let syntax::Parsed { root: mut included, problems, is_partial } = syntax::parse(&text, names);
    let base = reading.sources.add(file.to_owned(), text);
    included.shift(base);
    reading.problems.extend(problems.into_iter().map(|mut problem| {
        problem.place.shift(base);
        problem
    }));
    if let Value::Table(entries) = &mut included.value
        && let Some(index) = entries.iter().position(|(key, ..)| key == INCLUDE)
    {
        let (_, place, _) = entries.remove(index);
        let hint = format!("name the files in `include` of {}", reading.sources.main().display());
        reading.problems.push(Problem::new(place, "an included file cannot include others", hint));
    }
    merge(root, included, &mut String::new(), reading);
    is_partial
}

/// Adds the keys of `other`.
fn merge(table: &mut Node, other: Node, path: &mut String, reading: &mut Reading<'_>) {
    let (Value::Table(entries), Value::Table(others)) = (&mut table.value, other.value) else { return };
    for (key, place, node) in others {
        let Some((_, first, existing)) = entries.iter_mut().find(|(name, ..)| *name == key) else {
            entries.push((key, place, node));
            continue;
        };
        match (&mut existing.value, node.value) {
            (Value::Table(_), Value::Table(inner)) => {
                let length = path.len();
                path.push_str(&key);
                path.push('.');
                merge(existing, Node { place: node.place, value: Value::Table(inner) }, path, reading);
                path.truncate(length);
            }
            (Value::List(items), Value::List(more)) if is_of_tables(items) && is_of_tables(&more) => items.extend(more),
            _ => {
                let above = first.span().map_or_else(String::new, |span| reading.sources.line(span));
                let message = format!("`{path}{key}` is set in {above} already");
                reading.problems.push(Problem::new(place, message, "remove one of the two"));
            }
        }
    }
}

fn is_of_tables(items: &[Node]) -> bool {
    items.iter().all(|item| matches!(item.value, Value::Table(_)))
}

/// The device and the inode: two paths may lead to one file.
fn identity(file: &Path) -> Option<(u64, u64)> {
    let meta = fs::metadata(file).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// Why a file is not included.
struct ReadError {
    message: String,
    hint: &'static str,
    /// No further file can be included.
    is_last: bool,
}

fn read(file: &Path, (files, bytes): (usize, usize)) -> Result<String, ReadError> {
    let error = |message: String, hint| ReadError { message, hint, is_last: false };
    if files >= MOST_FILES {
        let message = format!("is one too many: a configuration has at most {MOST_FILES} files");
        return Err(ReadError { message, hint: "join some of them", is_last: true });
    }
    let unreadable = |e: std::io::Error| {
        error(format!("cannot be read: {e}"), "correct its name, or let the user of this process read it")
    };
    let meta = fs::metadata(file).map_err(unreadable)?;
    if !meta.is_file() {
        return Err(error("is not a file".to_owned(), "name files, or a pattern such as \"rules.d/*.toml\""));
    }
    let left = MOST_BYTES.saturating_sub(bytes);
    let mut text = Vec::new();
    let most = u64::try_from(left).unwrap_or(u64::MAX).saturating_add(1);
    fs::File::open(file).and_then(|file| file.take(most).read_to_end(&mut text)).map_err(unreadable)?;
    if text.len() > left {
        let message = format!("is too long: a configuration has at most {}MiB in all its files", MOST_BYTES >> 20);
        return Err(ReadError { message, hint: "remove what is not needed", is_last: true });
    }
    String::from_utf8(text).map_err(|_| error("is not UTF-8".to_owned(), "save it as UTF-8"))
}

#[cfg(test)]
mod tests;
