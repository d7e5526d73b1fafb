//! Holds the floors of the source: a module imports modules of lower floors, never of its own or a higher one.
//!
//! Reads every path that begins with `crate::` or leaves its module with `super::`, without tests and comments, and each crate's
//! dependencies. [`CRATES`] lists the floors. An import that is there already and points up is listed with its file, so that no other one
//! comes in; once it is gone, the list must shrink.

mod crates;

use std::fmt;
use std::fs;
use std::path::Path;

pub use self::crates::CRATES;
use crate::{Result, error::While};

/// A crate of the workspace, and its floors.
#[derive(Clone, Copy, Debug)]
pub struct Crate {
    /// Its directory. The package is `outrigger-` and this, or `outrigger` for `proxy`.
    pub directory: &'static str,
    /// The directories of the crates that it may depend on, outside of tests.
    pub below: &'static [&'static str],
    /// Its modules, the lowest floor first. A name stands for the module and all below it, unless a longer name is listed too. Empty:
    /// only its dependencies are held.
    pub floors: &'static [&'static [&'static str]],
    /// Imports that point up and are known: the file below `src`, and the module that it imports.
    pub known: &'static [(&'static str, &'static str)],
}

/// An import that points up, or a floor that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach(String);

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Everything in the repository at `root` that does not keep to the floors of `crates`.
///
/// # Errors
/// A file that cannot be read.
pub fn breaches(root: &Path, crates: &[Crate]) -> Result<Vec<Breach>> {
    let mut breaches = Vec::new();
    for held in crates {
        let directory = root.join(held.directory);
        let manifest = directory.join("Cargo.toml");
        let text = fs::read_to_string(&manifest).while_(format_args!("reading {}", manifest.display()))?;
        breaches.extend(of_dependencies(held, &text));
        let mut files = Vec::new();
        read_all(&directory.join("src"), "", &mut files)?;
        breaches.extend(of_imports(held, &files));
    }
    Ok(breaches)
}

/// Reads the Rust files below `directory`: their paths from there, and their text.
fn read_all(directory: &Path, prefix: &str, files: &mut Vec<(String, String)>) -> Result<()> {
    let reading = || format!("reading {}", directory.display());
    for entry in fs::read_dir(directory).while_(reading())? {
        let entry = entry.while_(reading())?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            read_all(&entry.path(), &format!("{name}/"), files)?;
        } else if name.ends_with(".rs") {
            files.push((name, fs::read_to_string(entry.path()).while_(reading())?));
        }
    }
    files.sort();
    Ok(())
}

/// Dependencies of this repository that are not below.
fn of_dependencies(held: &Crate, manifest: &str) -> Vec<Breach> {
    let section = manifest.split("\n[").find_map(|section| section.strip_prefix("dependencies]")).unwrap_or_default();
    let ours = section.lines().filter_map(|line| line.strip_prefix("outrigger-"));
    let names = ours.filter_map(|line| line.split(['.', ' ', '=']).next());
    let above = names.filter(|name| !held.below.contains(name));
    let breach = |name| {
        let directory = held.directory;
        Breach(format!("{directory}/Cargo.toml depends on {name}/Cargo.toml, which is not below it"))
    };
    above.map(breach).collect()
}

/// Imports of a crate's files that point up, modules without a floor, and known ones that are gone.
fn of_imports(held: &Crate, files: &[(String, String)]) -> Vec<Breach> {
    let mut breaches = Vec::new();
    if held.floors.is_empty() {
        return breaches;
    }
    let mut met = Vec::new();
    for (file, text) in files {
        let own = module_of(file);
        // The root declares the modules, and a program only starts; tests may use all modules.
        if own.is_empty() || file == "main.rs" || file.ends_with("tests.rs") {
            continue;
        }
        let path = format!("{}/src/{file}", held.directory);
        let Some(from) = floor_of(held, &own) else {
            breaches.push(Breach(format!("{path} is on no floor: list its module in xtask/src/floors/crates.rs")));
            continue;
        };
        let code = code(text);
        let mut imported = imports(&own, &code);
        imported.sort();
        imported.dedup();
        for module in imported {
            let Some(to) = floor_of(held, &module) else { continue };
            if to.0 < from.0 || to.1 == from.1 {
                continue;
            }
            let known = held.known.iter().position(|known| known.0 == file && known.1 == to.1);
            match known {
                Some(index) => met.push(index),
                None => {
                    let other = file_of(files, &module).unwrap_or(to.1);
                    let line = format!(
                        "{path} imports {}/src/{other}, which is not below it (floors: {} and {})",
                        held.directory, from.1, to.1
                    );
                    breaches.push(Breach(line));
                }
            }
        }
    }
    let gone = held.known.iter().enumerate().filter(|(index, _)| !met.contains(index));
    breaches.extend(gone.map(|(_, (file, module))| {
        Breach(format!(
            "{}/src/{file} no longer imports `{module}`: take it out of xtask/src/floors/crates.rs",
            held.directory
        ))
    }));
    breaches.dedup();
    breaches
}

/// The path of a file's module, without `crate`; empty for the root.
fn module_of(file: &str) -> Vec<&str> {
    let path = file.strip_suffix(".rs").unwrap_or(file);
    path.split('/').filter(|part| *part != "lib" && *part != "mod").collect()
}

/// The file of the deepest module that `path` names.
fn file_of<'a>(files: &'a [(String, String)], path: &[&str]) -> Option<&'a str> {
    (1..=path.len()).rev().find_map(|len| {
        let name = format!("{}.rs", path[..len].join("/"));
        files.iter().map(|(file, _)| file.as_str()).find(|file| *file == name)
    })
}

/// The number of a path's floor, and the name by which it is listed.
fn floor_of(held: &Crate, path: &[&str]) -> Option<(usize, &'static str)> {
    (1..=path.len()).rev().find_map(|len| {
        let name = path[..len].join("::");
        let listed = |floor: &&'static [&'static str]| floor.iter().copied().find(|listed| *listed == name);
        held.floors.iter().enumerate().find_map(|(number, floor)| Some((number, listed(floor)?)))
    })
}

/// The code of a file: without comments that are whole lines, and without its tests.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    text.split_inclusive('\n').filter(|line| !line.trim_start().starts_with("//")).collect()
}

/// The paths that `code` of module `own` imports from its crate, without `crate`.
fn imports<'a>(own: &[&'a str], code: &'a str) -> Vec<Vec<&'a str>> {
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(at) = ["crate::", "super::"].iter().filter_map(|start| rest.find(start)).min() {
        let is_whole = !rest[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | ':' | '$'));
        let (mut base, mut path) = (own.to_vec(), &rest[at..]);
        if let Some(after) = path.strip_prefix("crate::") {
            (base, path) = (Vec::new(), after);
        } else {
            while let Some(after) = path.strip_prefix("super::") {
                base.pop();
                path = after;
            }
        }
        if is_whole {
            add_tree(&base, path, &mut found);
        }
        rest = &rest[at + "crate::".len()..];
    }
    found
}

/// Adds each path of a tree such as `a::{b, c::d}` below `base`.
fn add_tree<'a>(base: &[&'a str], tree: &'a str, found: &mut Vec<Vec<&'a str>>) {
    let mut path = base.to_vec();
    let mut rest = tree;
    loop {
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        if end == 0 {
            break;
        }
        path.push(&rest[..end]);
        rest = &rest[end..];
        match rest.strip_prefix("::") {
            Some(after) => rest = after,
            None => break,
        }
    }
    match rest.strip_prefix('{') {
        Some(inner) => branches(inner).for_each(|branch| add_tree(&path, branch, found)),
        None => found.push(path),
    }
}

/// The branches of a group, up to its closing brace.
fn branches(inner: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    let end = inner.find(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        depth < 0
    });
    let mut depth = 0;
    let split = move |c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    };
    inner[..end.unwrap_or(inner.len())].split(split).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELD: Crate = Crate {
        directory: "house",
        below: &["ground"],
        floors: &[&["cellar", "well"], &["hall"], &["hall::gallery", "roof"]],
        known: &[("hall/stairs.rs", "roof")],
    };

    fn breaches(files: &[(&str, &str)]) -> Vec<String> {
        let mut files: Vec<_> = files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect();
        files.push(("hall/stairs.rs".to_owned(), "use crate::roof;\n".to_owned()));
        files.push(("roof.rs".to_owned(), String::new()));
        of_imports(&HELD, &files).into_iter().map(|breach| breach.to_string()).collect()
    }

    #[test]
    fn an_import_that_points_up_is_named_with_both_files() {
        let upward =
            "house/src/cellar/wine.rs imports house/src/roof.rs, which is not below it (floors: cellar and roof)";
        for text in [
            "use crate::roof::Tile;\n",
            "use super::super::roof;\n",
            "use crate::{\n    cellar,\n    roof::{self, Tile},\n};\n",
            "fn f() -> crate::roof::Tile {}\n",
        ] {
            assert_eq!(breaches(&[("cellar/wine.rs", text)]), [upward], "{text}");
        }
    }

    #[test]
    fn downward_imports_are_allowed() {
        for text in [
            "use crate::cellar::Wine;\nuse crate::hall;\n",
            "// use crate::roof;\n/// See [`crate::roof`].\nuse crate::cellar;\n",
            "use other_crate::roof;\nuse std::roof;\n",
            "#[cfg(test)]\nmod tests {\n    use crate::roof;\n}\n",
        ] {
            assert_eq!(breaches(&[("hall.rs", text)]), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn neighbours_of_one_floor_do_not_know_each_other() {
        assert_eq!(breaches(&[("well.rs", "use crate::cellar;\n")]).len(), 1);
        assert_eq!(breaches(&[("hall.rs", "use crate::hall::gallery::View;\n")]).len(), 1, "a longer name counts");
        assert_eq!(breaches(&[("hall/gallery.rs", "use super::door;\n")]).len(), 0);
    }

    #[test]
    fn a_known_one_may_stay_and_must_not_outlive_its_import() {
        let files = [("hall/stairs.rs".to_owned(), String::new())];
        let gone: Vec<_> = of_imports(&HELD, &files).into_iter().map(|breach| breach.to_string()).collect();
        assert_eq!(
            gone,
            ["house/src/hall/stairs.rs no longer imports `roof`: take it out of xtask/src/floors/crates.rs"]
        );
    }

    #[test]
    fn a_module_needs_a_floor_and_a_crate_depends_on_lower_ones() {
        assert_eq!(breaches(&[("shed.rs", "")]).len(), 1);
        let manifest = "[package]\n\n[dependencies]\noutrigger-ground.workspace = true\noutrigger-sky = { path = \"x\" }\nserde = \"1\"\n\n\
                        [dev-dependencies]\noutrigger-moon.workspace = true\n";
        let above: Vec<_> = of_dependencies(&HELD, manifest).into_iter().map(|breach| breach.to_string()).collect();
        assert_eq!(above, ["house/Cargo.toml depends on sky/Cargo.toml, which is not below it"]);
    }

    #[test]
    fn the_source_keeps_to_its_floors() {
        let breaches = super::breaches(&crate::paths::root(), &CRATES).unwrap();
        let lines: Vec<String> = breaches.iter().map(ToString::to_string).collect();
        assert!(lines.is_empty(), "{}", lines.join("\n"));
    }
}
