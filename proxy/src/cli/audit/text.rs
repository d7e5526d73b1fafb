//! Formats output: text from outside cannot control a terminal, a spreadsheet or an HTML page.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Whether a terminal, or its reader, would take it for something other than a character.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// The text, with characters that could control a terminal shown as `\u{…}`.
pub fn safe(text: &str) -> String {
    escape(text, |out, c| write!(out, "{}", c.escape_unicode()))
}

/// Like [`safe`], for several lines: newlines stay.
pub(super) fn safe_lines(text: &str) -> String {
    text.split('\n').map(safe).collect::<Vec<_>>().join("\n")
}

/// Like [`safe`], for a line of JSON; its values stay the same.
pub fn safe_json(line: &str) -> String {
    escape(line, |out, c| {
        // Between members only: JSON does not allow it inside a string.
        if c == '\t' {
            return out.write_char(' ');
        }
        let mut units = [0; 2];
        c.encode_utf16(&mut units).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"))
    })
}

fn escape(text: &str, show: impl Fn(&mut String, char) -> std::fmt::Result) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) {
            // Writing to a string cannot fail.
            let _ = show(&mut out, c);
        } else {
            out.push(c);
        }
    }
    out
}

/// A field of a CSV file (RFC 4180). Text that a spreadsheet would evaluate as a formula gets an apostrophe.
pub(super) fn csv(field: &str) -> String {
    let is_formula = field.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']);
    let field = safe(field);
    let field = if is_formula { format!("'{field}") } else { field };
    if field.contains(['"', ',', '\n', '\r']) || field.starts_with(' ') || field.ends_with(' ') {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field
    }
}

/// The text, escaped for an HTML page.
pub(super) fn html(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    safe(&text.replace('"', "&quot;").replace('\'', "&#39;"))
}

/// A table without lines and colours.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| safe(cell)).collect::<Vec<_>>());
    }
    let mut out = String::new();
    for line in table.to_string().lines() {
        // The first column is indented by a space.
        out.push_str(line.strip_prefix(' ').unwrap_or(line).trim_end());
        out.push('\n');
    }
    out
}

/// `10000` as `10,000`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A progress bar, shown on terminals only.
pub(super) fn progress(json: bool, what: &'static str) -> ProgressBar {
    let is_watched = !json && io::stderr().is_terminal();
    let target = if is_watched { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(0), target);
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {eta}") {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_output_controls_a_terminal() {
        assert_eq!(safe("a\u{1b}[31mb\u{9b}c\u{202e}d\ne"), r"a\u{1b}[31mb\u{9b}c\u{202e}d\u{a}e");
        assert_eq!(safe("grüße 日本"), "grüße 日本");
        let line = "{\"a\":\"\u{9b}\u{e0041}\u{202e}\"}";
        let shown = safe_json(line);
        assert_eq!(shown, r#"{"a":"\u009b\udb40\udc41\u202e"}"#);
        let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(parse(&shown), parse(line));
    }

    #[test]
    fn no_cell_is_a_formula() {
        assert_eq!(csv("=HYPERLINK(\"x\",1)"), "\"'=HYPERLINK(\"\"x\"\",1)\"");
        for (field, shown) in [("+1", "'+1"), ("-1", "'-1"), ("@a", "'@a"), ("\ta", r"'\u{9}a"), ("a,b", "\"a,b\"")] {
            assert_eq!(csv(field), shown);
        }
        assert_eq!(csv("plain"), "plain");
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
