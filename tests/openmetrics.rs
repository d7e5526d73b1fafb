//! OpenMetrics, as Prometheus's own Python library parses it: stricter than Prometheus itself.

use std::io::Write;
use std::process::{Command, Stdio};

use xtask::tools::Tool;

/// The header of Prometheus 3.
pub const ACCEPT: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
     application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";

const PARSE: &str = "import sys\n\
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse\n\
    for page in sys.stdin.read().split('\\0'):\n    \
        for family in parse(page):\n        print(family.type, family.name, family.unit)\n";

/// Parses the pages; returns type, name and unit of each family.
///
/// # Errors
/// The parser's, with the page's line.
pub fn families(pages: &[String]) -> Result<Vec<String>, String> {
    let python = Tool::PrometheusClient.get().map_err(|e| e.to_string())?;
    let mut child = Command::new(python)
        .args(["-c", PARSE])
        .env("PYTHONUTF8", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| e.to_string())?;
    let mut input = child.stdin.take().ok_or("the parser takes no input")?;
    input.write_all(pages.join("\0").as_bytes()).map_err(|e| e.to_string())?;
    drop(input);
    let said = child.wait_with_output().map_err(|e| e.to_string())?;
    if !said.status.success() {
        return Err(String::from_utf8_lossy(&said.stderr).into_owned());
    }
    Ok(String::from_utf8_lossy(&said.stdout).lines().map(|line| line.trim_end().to_owned()).collect())
}
