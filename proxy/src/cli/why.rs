//! `outrigger why`: why a request was refused, retried or sent elsewhere. From the receipts in the memory of a running proxy; further
//! back from the audit log.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::Value;

use super::admin::{self, AdminError, At};
use super::audit;
use crate::cli::audit::text;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Options of `outrigger why`.
#[derive(Debug, Args)]
pub struct Options {
    /// The request id: `request_id` of the response's body, or its header X-Request-Id.
    request: String,
    /// Also show the user, key or address, and the path. The audit log records that.
    #[arg(long)]
    reveal: bool,
    /// How far back to look in the audit log: RFC 3339, or how long ago, such as 2h or 30d.
    #[arg(long, value_name = "TIME", value_parser = audit::moment, default_value = "30d")]
    since: Timestamp,
    #[command(flatten)]
    place: audit::Place,
    #[command(flatten)]
    by: audit::By,
}

/// Runs the command.
pub fn run(named: Option<&Path>, options: Options) -> ExitCode {
    let is_id = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    if options.request.is_empty() || !options.request.chars().all(is_id) {
        let story = "a request id has letters, digits and -_.: only; it is request_id in the body of the response";
        return super::fail(&story);
    }
    let address = match (At { admin: options.place.admin() }).address(named) {
        Ok(address) => address,
        Err(e) => return super::refuse(&e),
    };
    let (method, path, body) = if options.reveal {
        (Method::POST, format!("/requests/{}/reveal", options.request), Some(options.by.shown()))
    } else {
        (Method::GET, format!("/requests/{}", options.request), None)
    };
    match admin::request(address, &method, &path, body.as_ref(), TIMEOUT) {
        Ok(found) if options.place.is_json() => super::say(&format!("{}\n", text::safe_json(&found.to_string()))),
        Ok(found) => super::say(&story(&found)),
        Err(AdminError::Refused(StatusCode::NOT_FOUND, why)) => in_audit_log(named, options, &why),
        // No proxy runs here: its audit log may still be there.
        Err(e @ AdminError::Connect(..)) => in_audit_log(named, options, &e.to_string()),
        Err(e) => super::fail(&e),
    }
}

/// The receipts, as text.
fn story(found: &Value) -> String {
    let mut story = String::new();
    for receipt in found["receipts"].as_array().into_iter().flatten() {
        for line in receipt["story"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            story.push_str(&text::safe(line));
            story.push('\n');
        }
        for (name, label) in [("subject", "client"), ("address", "address"), ("path", "path")] {
            if let Some(value) = receipt[name].as_str() {
                story.push_str(&format!("{label}: {}\n", text::safe(value)));
            }
        }
    }
    story
}

fn in_audit_log(named: Option<&Path>, options: Options, why_not: &str) -> ExitCode {
    let search =
        audit::Search { request: options.request, since: options.since, reveal: options.reveal, by: options.by };
    match audit::of_request(named.unwrap_or(Path::new(super::DEFAULT_FILE)), options.place, search) {
        Ok(found) if !found.is_empty() => super::say(&found),
        Ok(_) => super::fail(&format_args!("{why_not}; the audit log has no entry of it since then")),
        // Without an audit log, what the proxy said is the answer.
        Err(audit::AuditError::NoDirectory | audit::AuditError::Config(_)) => super::fail(&why_not),
        Err(e) => super::fail(&format_args!("{why_not}; and in the audit log: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_receipt_is_printed_line_by_line_and_cannot_control_the_terminal() {
        let found = json!({ "receipts": [{ "story": ["a", "b\u{1b}[2J"], "subject": "user:ann", "path": "/x" }] });
        assert_eq!(story(&found), "a\nb\\u{1b}[2J\nclient: user:ann\npath: /x\n");
    }
}
