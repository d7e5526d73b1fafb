//! `examples/`: each app is started as its `Dockerfile` starts it, and all files are checked.

mod apps;
mod files;
mod guide;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use xtask::{Tool, paths};

use crate::harness::fresh_dir;
use crate::paths::built_with_go;

/// Their directories.
pub const EXAMPLES: [&str; 5] = ["node", "ruby", "python", "go", "cgi"];

/// A file of an example, or of all.
fn file(name: &str) -> String {
    let path = paths::root().join("examples").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// An instruction of an example's `Dockerfile` that is a list of words.
fn words(example: &str, instruction: &str) -> Vec<String> {
    let dockerfile = file(&format!("{example}/Dockerfile"));
    let list = dockerfile.lines().find_map(|line| line.strip_prefix(instruction)?.strip_prefix(' '));
    serde_json::from_str(list.unwrap_or_else(|| panic!("{example}/Dockerfile has no {instruction}"))).unwrap()
}

/// A copy of an example, with the packages that it needs.
struct Copied {
    dir: PathBuf,
    /// For `PATH`: the programs of the image.
    programs: PathBuf,
}

impl Copied {
    fn of(example: &str) -> Self {
        let dir = fresh_dir();
        let from = format!("{}/.", paths::root().join("examples").join(example).display());
        assert!(Command::new("cp").arg("-r").arg(from).arg(&dir).status().unwrap().success());
        let programs = dir.join("programs");
        fs::create_dir(&programs).unwrap();
        let copied = Self { dir, programs };
        match example {
            "node" => {
                copied.has("node", &Tool::Node.get().unwrap(), "");
                let express = Tool::Express.get().unwrap();
                symlink(express.parent().unwrap(), copied.dir.join("node_modules")).unwrap();
            }
            "ruby" => copied.has("puma", &Tool::Puma.get().unwrap(), ""),
            "python" => copied.has("python", &Tool::Fastapi.get().unwrap(), ""),
            "go" => copied.has("notes", &built_with_go(&copied.dir), ""),
            "cgi" => {
                Tool::PhpCgi.get().unwrap();
                // The package was only unpacked, unless the system has it.
                let modules = paths::tools().join("debian/lighttpd/usr/lib/lighttpd");
                let modules = if modules.exists() { format!("-m '{}'", modules.display()) } else { String::new() };
                copied.has("lighttpd", &Tool::Lighttpd.get().unwrap(), &modules);
            }
            other => panic!("no example {other}"),
        }
        copied
    }

    /// This program, always with these arguments.
    fn has(&self, name: &str, program: &Path, arguments: &str) {
        let script = self.programs.join(name);
        fs::write(&script, format!("#!/bin/sh\nexec '{}' {arguments} \"$@\"\n", program.display())).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// `PATH` with these programs first.
    fn path(&self) -> String {
        format!("{}:{}", self.programs.display(), std::env::var("PATH").unwrap())
    }
}
