//! Prometheus' own checks of an exposition and of rules.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use xtask::tools::Tool;

/// `promtool check metrics`.
///
/// # Errors
/// Its complaints.
pub fn check(exposition: &str) -> Result<(), String> {
    let promtool = Tool::Promtool.get().map_err(|e| e.to_string())?;
    let mut child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| e.to_string())?;
    let mut input = child.stdin.take().ok_or("promtool takes no input")?;
    input.write_all(exposition.as_bytes()).map_err(|e| e.to_string())?;
    drop(input);
    let said = child.wait_with_output().map_err(|e| e.to_string())?;
    let text = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    if said.status.success() && text.trim().is_empty() { Ok(()) } else { Err(text) }
}

/// Whether Prometheus can parse an exposition, regardless of other complaints of `promtool check metrics`.
///
/// # Errors
/// The parse error.
pub fn parses(exposition: &str) -> Result<(), String> {
    let verdict = check(exposition).err().unwrap_or_default();
    let errors: Vec<&str> = verdict.lines().filter(|line| line.contains("parsing error")).collect();
    if errors.is_empty() { Ok(()) } else { Err(errors.join("\n")) }
}

/// `promtool check rules`.
///
/// # Errors
/// Its complaints.
pub fn check_rules(file: &Path) -> Result<(), String> {
    run(&["check", "rules", "--lint-fatal"], file)
}

/// `promtool test rules`: runs the rules that this file of unit tests names against the series in it.
///
/// # Errors
/// Every unmet expectation, with the actual result.
pub fn test_rules(file: &Path) -> Result<(), String> {
    run(&["test", "rules"], file)
}

fn run(words: &[&str], file: &Path) -> Result<(), String> {
    let promtool = Tool::Promtool.get().map_err(|e| e.to_string())?;
    let said = Command::new(promtool).args(words).arg(file).output().map_err(|e| e.to_string())?;
    if said.status.success() {
        return Ok(());
    }
    Err(format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr)))
}
