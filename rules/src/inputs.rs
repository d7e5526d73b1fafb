//! The files that a configuration was read from, and their versions, so that a change of any of them is noticed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Identifies one version of a file without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    modified: (i64, i64),
    bytes: u64,
    inode: u64,
}

impl Stamp {
    /// The version of this file now; `None` if there is no such file.
    pub fn of(file: &Path) -> Option<Self> {
        let meta = fs::metadata(file).ok()?;
        Some(Self { modified: (meta.mtime(), meta.mtime_nsec()), bytes: meta.size(), inode: meta.ino() })
    }
}

/// Whether a configuration may have other files and variables in it, which it could show to its author.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// It is from the operator's own file.
    Operator,
    /// It came over the admin listener without a token: any process of the machine may have sent it.
    Stranger,
}

/// Why a configuration of a stranger is rejected.
pub const STRANGE: &str = "files and variables are not read for a configuration that was sent without a token";
/// The remedy.
pub const STRANGE_HINT: &str = "set OUTRIGGER_ADMIN_TOKEN, or save the file and use `outrigger reload`";

/// The version of each file; `None`: there is no such file.
pub type Versions = BTreeMap<PathBuf, Option<Stamp>>;

/// The files of a configuration: the one that was named, those that it includes, and those of `${file:…}`.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    main: PathBuf,
    /// With the directory of the file that was named.
    patterns: Vec<PathBuf>,
    others: Vec<PathBuf>,
    versions: Versions,
}

impl Inputs {
    /// The file that was named. Call it before the file is read: a change while it is read is noticed then.
    pub fn of(main: &Path) -> Self {
        let versions = Versions::from([(main.to_owned(), Stamp::of(main))]);
        Self { main: main.to_owned(), versions, ..Self::default() }
    }

    /// There is no such file yet.
    pub fn without(main: &Path) -> Self {
        let versions = Versions::from([(main.to_owned(), None)]);
        Self { main: main.to_owned(), versions, ..Self::default() }
    }

    /// Adds the files of these patterns, before they are read.
    pub fn include(&mut self, patterns: Vec<PathBuf>) {
        self.patterns = patterns;
        let found = self.now().into_iter().filter(|(file, _)| *file != self.main);
        self.versions.extend(found);
    }

    /// Adds a file before it is read.
    pub fn add(&mut self, file: PathBuf) {
        self.versions.entry(file.clone()).or_insert_with(|| Stamp::of(&file));
        if !self.others.contains(&file) {
            self.others.push(file);
        }
    }

    /// Whether the file that was named is among these.
    pub fn has_main(&self, versions: &Versions) -> bool {
        versions.get(&self.main).is_some_and(Option::is_some)
    }

    /// The versions that were read.
    pub fn versions(&self) -> &Versions {
        &self.versions
    }

    /// The versions of the files that there are now.
    pub fn now(&self) -> Versions {
        let included = self.patterns.iter().flat_map(|pattern| files_of(pattern).0);
        let files = included.chain(self.others.iter().cloned()).chain([self.main.clone()]);
        files
            .map(|file| {
                let stamp = Stamp::of(&file);
                (file, stamp)
            })
            .collect()
    }
}

/// The files of a pattern, by their names, and whether its directory exists. A path without `*` and `?` is a file, whether it exists or
/// not.
pub fn files_of(pattern: &Path) -> (Vec<PathBuf>, bool) {
    let name = pattern.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if !name.contains(['*', '?']) {
        return (vec![pattern.to_owned()], true);
    }
    let directory = match pattern.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    let Ok(entries) = fs::read_dir(directory) else { return (Vec::new(), directory.is_dir()) };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut found: Vec<PathBuf> = names
        .filter(|found| {
            (!found.starts_with('.') || name.starts_with('.')) && matches(name.as_bytes(), found.as_bytes())
        })
        .map(|found| pattern.with_file_name(found))
        .filter(|file| !file.is_dir())
        .collect();
    found.sort();
    (found, true)
}

/// Whether `name` has the form of `pattern`: `*` is any text, `?` one byte.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut position) = (0, 0);
    // The last `*`, and how much of the name it took.
    let mut star: Option<(usize, usize)> = None;
    while position < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, position));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[position] => {
                at += 1;
                position += 1;
            }
            _ => {
                let Some((begin, taken)) = star else { return false };
                star = Some((begin, taken + 1));
                (at, position) = (begin + 1, taken + 1);
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names() {
        for (pattern, name, fits) in [
            ("*.toml", "a.toml", true),
            ("*.toml", ".toml", true),
            ("*.toml", "a.toml.bak", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b", "ab", true),
            ("*a*b", "aba", false),
            ("**", "x", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), fits, "{pattern} {name}");
        }
    }
}
