//! The packages that a program contains: a bill of materials in CycloneDX 1.6, and the licences' texts.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{Release, Target, cargo, file_of_repository, said_by, sha256, to_bytes, written};
use crate::{Error, Result, error::While};

/// Names of licences in the directory of a package, and of the C libraries in it.
const NAMES: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];
/// Directories below a package's own in which they may be: `c_src/mimalloc/v2/LICENSE`.
const DEPTH: usize = 3;
/// musl is part of the compiler's target, and has no package.
const MUSL: &str = "musl is under the MIT licence, Copyright © 2005-2025 Rich Felker, et al. (https://musl.libc.org)\n";

/// A package of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// An SPDX expression.
    pub licence: Option<String>,
    description: Option<String>,
    repository: Option<String>,
    /// SHA-256 of the package in the registry. Our own have none.
    digest: Option<String>,
    directory: PathBuf,
}

/// The packages of the program `outrigger`.
#[derive(Clone, Debug)]
pub struct Bill {
    /// By `NAME@VERSION`.
    pub packages: BTreeMap<String, Package>,
    /// Which packages each depends on.
    pub edges: BTreeMap<String, BTreeSet<String>>,
    compiler: String,
}

impl Bill {
    /// Of a target: what is linked into the program, without macros and build scripts.
    ///
    /// # Errors
    /// Cargo does not know the workspace.
    pub fn of(target: Target) -> Result<Self> {
        // Of this package alone: `cargo metadata` unites the features of the whole workspace.
        let tree = ["tree", "--locked", "--package", "outrigger", "--edges", "normal", "--prefix", "depth"];
        let tree = said_by(cargo(&tree).args(["--format", "{p}", "--target", target.triple]))?;
        let edges = edges(&tree)?;
        let metadata = said_by(&mut cargo(&["metadata", "--locked", "--format-version", "1"]))?;
        let metadata: Value = serde_json::from_str(&metadata).while_("reading cargo's metadata")?;
        let lock = String::from_utf8_lossy(&file_of_repository("Cargo.lock")?).into_owned();
        let digests = digests(&lock);
        let mut packages = BTreeMap::new();
        for package in metadata["packages"].as_array().into_iter().flatten() {
            let text =
                |key: &str| package[key].as_str().map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
            let (name, version) = (text("name").unwrap_or_default(), text("version").unwrap_or_default());
            let id = format!("{name}@{version}");
            if edges.contains_key(&id) {
                let manifest = PathBuf::from(package["manifest_path"].as_str().unwrap_or_default());
                let package = Package {
                    // An older way to write a choice.
                    licence: text("license").map(|licence| licence.replace(" / ", "/").replace('/', " OR ")),
                    description: text("description"),
                    repository: text("repository"),
                    digest: digests.get(&id).cloned(),
                    directory: manifest.parent().map(Path::to_path_buf).unwrap_or_default(),
                    name,
                    version,
                };
                packages.insert(id, package);
            }
        }
        if let Some(missing) = edges.keys().find(|id| !packages.contains_key(*id)) {
            return Err(Error::new(format_args!("cargo's metadata does not have {missing}")));
        }
        let compiler = said_by(std::process::Command::new("rustc").arg("--version").current_dir(crate::paths::root()))?;
        Ok(Self { packages, edges, compiler: compiler.split(' ').nth(1).unwrap_or_default().trim().to_owned() })
    }

    /// As CycloneDX 1.6, in JSON.
    ///
    /// # Errors
    /// A program for digests is missing.
    pub fn cyclonedx(&self, release: &Release) -> Result<Vec<u8>> {
        let digest = sha256(&release.program)?;
        let root = format!("outrigger@{}", release.version);
        let compiled = json!({
            "type": "library",
            "bom-ref": "rust-std",
            "name": "rust-std",
            "version": self.compiler,
            "description": format!("Rust's standard library for {}, and what it contains", release.target.triple),
            "licenses": [{ "expression": "MIT OR Apache-2.0" }],
            "purl": format!("pkg:generic/rust-std@{}", self.compiler),
        });
        let libraries = self.packages.iter().filter(|(id, _)| **id != root).map(|(id, package)| package.component(id));
        let components: Vec<Value> = libraries.chain([compiled]).collect();
        let dependencies: Vec<Value> = self
            .edges
            .iter()
            .map(|(id, on)| {
                let standard = (*id == root).then(|| "rust-std".to_owned());
                json!({ "ref": id, "dependsOn": on.iter().cloned().chain(standard).collect::<Vec<_>>() })
            })
            .chain([json!({ "ref": "rust-std", "dependsOn": [] })])
            .collect();
        let bill = json!({
            "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "serialNumber": serial(&digest),
            "version": 1,
            "metadata": {
                "timestamp": written(release.time)?,
                "tools": { "components": [{ "type": "application", "name": "cargo xtask dist", "version": release.version }] },
                "component": {
                    "type": "application",
                    "bom-ref": root,
                    "name": "outrigger",
                    "version": release.version,
                    "description": "A resilience sidecar for web apps",
                    "hashes": [{ "alg": "SHA-256", "content": digest }],
                    "licenses": [{ "expression": "Apache-2.0" }],
                    "purl": format!("pkg:generic/outrigger@{}?arch={}", release.version, release.target.debian),
                },
            },
            "components": components,
            "dependencies": dependencies,
        });
        Ok(to_bytes(&bill))
    }

    /// The licences of all packages that are not ours, with their texts, each text once.
    ///
    /// # Errors
    /// A package's directory that cannot be read.
    pub fn notices(&self) -> Result<Vec<u8>> {
        let others = || self.packages.values().filter(|package| package.digest.is_some());
        let mut text =
            "The program `outrigger` contains these packages, which are published at crates.io, and Rust's standard\n\
                        library (MIT OR Apache-2.0). The texts of their licences follow.\n\n"
                .to_owned();
        let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for package in others() {
            let (name, version) = (&package.name, &package.version);
            text.push_str(&format!("{name} {version}: {}\n", package.licence.as_deref().unwrap_or("see below")));
            let mut found = vec![];
            licences(&package.directory, DEPTH, &mut found).while_(format_args!("reading licences of {name}"))?;
            for licence in found {
                texts.entry(licence).or_default().insert(format!("{name} {version}"));
            }
        }
        text.push('\n');
        text.push_str(MUSL);
        for (licence, packages) in texts {
            let packages = packages.into_iter().collect::<Vec<_>>().join(", ");
            text.push_str(&format!("\n{}\n{packages}\n\n{}\n", "-".repeat(80), licence.trim_end()));
        }
        Ok(text.into_bytes())
    }
}

impl Package {
    fn component(&self, id: &str) -> Value {
        let mut component = json!({
            "type": "library",
            "bom-ref": id,
            "name": self.name,
            "version": self.version,
            "scope": "required",
            "purl": format!("pkg:cargo/{}@{}", self.name, self.version.replace('+', "%2B")),
        });
        let optional = [
            ("description", self.description.clone().map(Value::from)),
            ("licenses", self.licence.as_ref().map(|licence| json!([{ "expression": licence }]))),
            ("hashes", self.digest.as_ref().map(|digest| json!([{ "alg": "SHA-256", "content": digest }]))),
            ("externalReferences", self.repository.as_ref().map(|url| json!([{ "type": "vcs", "url": url }]))),
        ];
        for (key, value) in optional {
            if let Some(value) = value {
                component[key] = value;
            }
        }
        component
    }
}

/// The dependencies of each package, from lines of `cargo tree` such as `2bytes v1.12.1 (*)`: depth, name, version. A macro,
/// and what only it needs, is not in the program.
fn edges(tree: &str) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    // The packages from the root to the line above; `None` from a macro on.
    let mut above: Vec<Option<String>> = vec![];
    for line in tree.lines().filter(|line| !line.is_empty()) {
        let unreadable = || Error::new(format_args!("cargo tree printed `{line}`"));
        let name = line.find(|letter: char| !letter.is_ascii_digit()).ok_or_else(unreadable)?;
        let depth: usize = line[..name].parse().map_err(|_| unreadable())?;
        let mut words = line[name..].split(' ');
        let (Some(name), Some(version)) = (words.next(), words.next().and_then(|word| word.strip_prefix('v'))) else {
            return Err(unreadable());
        };
        above.truncate(depth);
        let parent = depth.checked_sub(1).map(|parent| above.get(parent).cloned().flatten());
        // At depth 0 there is no parent; below a macro there is one that does not count.
        let counts = !line.contains(" (proc-macro)") && parent != Some(None);
        let id = format!("{name}@{version}");
        if counts {
            edges.entry(id.clone()).or_default();
            if let Some(Some(parent)) = parent {
                edges.entry(parent).or_default().insert(id.clone());
            }
        }
        above.push(counts.then_some(id));
    }
    Ok(edges)
}

/// The digests in Cargo.lock by `NAME@VERSION`.
fn digests(lock: &str) -> HashMap<String, String> {
    let packages = lock.split("[[package]]").skip(1);
    let value = |package: &str, key: &str| {
        package
            .lines()
            .find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"')?.to_owned()))
    };
    let digest = |package| {
        Some((format!("{}@{}", value(package, "name")?, value(package, "version")?), value(package, "checksum")?))
    };
    packages.filter_map(digest).collect()
}

/// A UUID (RFC 9562, version 8) from a digest: the same program has the same.
fn serial(digest: &str) -> String {
    let part = |from: usize, to: usize| &digest[from..to];
    format!("urn:uuid:{}-{}-8{}-8{}-{}", part(0, 8), part(8, 12), part(13, 16), part(17, 20), part(20, 32))
}

/// The texts of the files whose names say that they are licences.
fn licences(directory: &Path, depth: usize, found: &mut Vec<String>) -> std::io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(directory)?.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        if path.is_dir() && depth > 0 && !path.is_symlink() {
            licences(&path, depth - 1, found)?;
        } else if NAMES.iter().any(|licence| name.starts_with(licence)) && !name.ends_with(".RS") && path.is_file() {
            found.push(String::from_utf8_lossy(&fs::read(&path)?).replace('\r', ""));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macros_and_their_dependencies_are_not_in_the_program() {
        let tree = "0outrigger v0.1.0 (/somewhere/proxy)\n1serde v1.0.1\n2serde_derive v1.0.1 (proc-macro)\n3syn v2.0.0\n\
                    3unicode v1.0.0\n2core v1.0.0\n1core v1.0.0 (*)\n1sub v0.2.0+1.5\n";
        let edges = edges(tree).unwrap();
        let shown: Vec<String> = edges
            .iter()
            .map(|(id, on)| format!("{id}: {}", on.iter().cloned().collect::<Vec<_>>().join(" ")))
            .collect();
        let lines = [
            "core@1.0.0: ",
            "outrigger@0.1.0: core@1.0.0 serde@1.0.1 sub@0.2.0+1.5",
            "serde@1.0.1: core@1.0.0",
            "sub@0.2.0+1.5: ",
        ];
        assert_eq!(shown, lines);
    }

    #[test]
    fn a_serial_number_is_a_uuid() {
        let serial = serial("0123456789abcdef0123456789abcdef");
        assert_eq!(serial, "urn:uuid:01234567-89ab-8def-8123-456789abcdef");
    }
}
