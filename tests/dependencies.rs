//! `deny.toml`: which licences and sources of dependencies `cargo xtask test` accepts.

use std::fs;
use std::path::Path;
use std::process::Command;

use xtask::Tool;

use crate::harness::fresh_dir;

/// Checks a crate with this manifest; returns whether it passes, and what is said.
fn check(manifest: &str) -> (bool, String) {
    let dir = fresh_dir();
    fs::create_dir(dir.join("src")).unwrap();
    fs::write(dir.join("src/lib.rs"), "").unwrap();
    fs::write(dir.join("Cargo.toml"), format!("{manifest}\n[workspace]\n")).unwrap();
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deny.toml");
    let mut deny = Command::new(Tool::CargoDeny.get().unwrap());
    deny.args(["--log-level", "error", "--offline", "--config"]).arg(rules);
    let output = deny.args(["check", "bans", "licenses", "sources"]).current_dir(&dir).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn a_licence_that_is_not_allowed_fails_the_check_and_is_named() {
    let package = "[package]\nname = \"borrowed\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
    let (passes, said) = check(&format!("{package}license = \"MIT OR GPL-3.0-only\"\n"));
    assert!(passes, "{said}");
    for licence in ["license = \"GPL-3.0-only\"", "license = \"MIT AND GPL-3.0-only\"", ""] {
        let (passes, said) = check(&format!("{package}{licence}\n"));
        assert!(!passes && said.contains("borrowed") && said.contains("licenses FAILED"), "{licence}: {said}");
    }
}
