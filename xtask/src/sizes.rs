//! Holds the sizes of source files and functions: above these, a second subject usually hides in them.
//!
//! Tests and tables may be longer. Counts lines as `cargo fmt` leaves them, so a function ends at the first line that is its own
//! indentation and a closing brace.

use std::fmt;
use std::fs;
use std::path::Path;

use crate::{Result, error::While};

/// Maximum number of lines of a file.
const FILE_LINES: usize = 450;
/// Maximum number of lines of a function.
const FUNCTION_LINES: usize = 80;
/// The crates that are held.
const CRATES: [&str; 12] = [
    "proxy",
    "backtest",
    "mechanism",
    "transport",
    "rules",
    "wire",
    "identity",
    "policy",
    "metrics",
    "tokens",
    "trail",
    "traffic",
];
/// Functions that may be longer: tables.
const TABLES: [(&str, &str); 1] = [("proxy/src/engine/rejection.rs", "problem")];

/// A file or a function that is too long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooLong(String);

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The files and functions of the repository at `root` that are too long. A crate that is not there is left out.
///
/// # Errors
/// A file that cannot be read.
pub fn too_long(root: &Path) -> Result<Vec<TooLong>> {
    let mut found = Vec::new();
    for name in CRATES {
        let directory = root.join(name).join("src");
        if directory.is_dir() {
            read_all(&directory, &format!("{name}/src/"), &mut found)?;
        }
    }
    Ok(found)
}

fn read_all(directory: &Path, prefix: &str, found: &mut Vec<TooLong>) -> Result<()> {
    let reading = || format!("reading {}", directory.display());
    for entry in fs::read_dir(directory).while_(reading())? {
        let entry = entry.while_(reading())?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            read_all(&entry.path(), &format!("{name}/"), found)?;
        } else if name.ends_with(".rs") && !name.ends_with("tests.rs") {
            found.extend(of_file(&name, &fs::read_to_string(entry.path()).while_(reading())?));
        }
    }
    Ok(())
}

fn of_file(file: &str, text: &str) -> Vec<TooLong> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    if lines.len() > FILE_LINES {
        found.push(TooLong(format!("{file} has {} lines, more than {FILE_LINES}: split it", lines.len())));
    }
    for (at, name) in lines.iter().enumerate().filter_map(|(at, line)| Some((at, function(line)?))) {
        let length = length(&lines[at..]);
        if length > FUNCTION_LINES && !TABLES.contains(&(file, name)) {
            let line = at + 1;
            found.push(TooLong(format!("{file}:{line}: `{name}` has {length} lines, more than {FUNCTION_LINES}")));
        }
    }
    found
}

/// The name of the function that this line begins.
fn function(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let is_qualifier = |word: &str| word.starts_with("pub") || matches!(word, "async" | "const" | "unsafe");
    let name = after.split(|c: char| !(c.is_alphanumeric() || c == '_')).next()?;
    (before.split_whitespace().all(is_qualifier) && !name.is_empty()).then_some(name)
}

/// The number of lines of the function that begins with the first one.
fn length(lines: &[&str]) -> usize {
    let Some(first) = lines.first() else { return 0 };
    if first.ends_with(['}', ';']) {
        return 1;
    }
    let indent = first.len() - first.trim_start().len();
    // A declaration without a body ends its signature with a semicolon.
    let ends = |line: &&str| {
        line.get(indent..).is_some_and(|rest| rest == "}" || rest.starts_with(')') && rest.ends_with(';'))
    };
    lines.iter().position(ends).map_or(lines.len(), |last| last + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str, text: &str) -> Vec<String> {
        of_file(file, text).iter().map(ToString::to_string).collect()
    }

    /// A function of this many lines.
    fn text(name: &str, lines: usize) -> String {
        format!("    pub(super) async fn {name}(\n    ) {{\n{}    }}\n", "        work();\n".repeat(lines - 3))
    }

    #[test]
    fn a_long_function_is_named_with_its_place() {
        let source = format!("impl A {{\n    fn short(&self) {{}}\n    fn none(\n    );\n{}}}\n", text("long", 81));
        assert_eq!(found("rules/src/a.rs", &source), ["rules/src/a.rs:5: `long` has 81 lines, more than 80"]);
        assert_eq!(found("rules/src/a.rs", &text("fits", 80)), Vec::<String>::new());
    }

    #[test]
    fn tables_may_be_longer() {
        let file = "proxy/src/engine/rejection.rs";
        assert_eq!(found(file, &text("problem", 90)), Vec::<String>::new());
        assert_eq!(found(file, &text("other", 90)).len(), 1);
    }

    #[test]
    fn a_long_file_is_named() {
        let long = "// a line\n".repeat(451);
        assert_eq!(found("wire/src/a.rs", &long), ["wire/src/a.rs has 451 lines, more than 450: split it"]);
        assert_eq!(found("wire/src/a.rs", &"// a line\n".repeat(450)), Vec::<String>::new());
    }

    #[test]
    fn the_source_keeps_to_these_sizes() {
        let found: Vec<String> = too_long(&crate::paths::root()).unwrap().iter().map(ToString::to_string).collect();
        assert!(found.is_empty(), "{}", found.join("\n"));
    }
}
