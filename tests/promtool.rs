//! Prometheus' own judgement of an exposition.

use std::io::Write;
use std::process::{Command, Stdio};

use xtask::tools::Tool;

/// `promtool check metrics`.
///
/// # Errors
/// What it finds fault with.
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
