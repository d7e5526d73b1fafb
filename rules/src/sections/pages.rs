//! `[pages]`: Outrigger's own responses as HTML, for browsers.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::complaints::Builder;
use crate::tree::Step;

/// The largest template, in bytes.
const MOST_BYTES: usize = 64 << 10;
/// The page without a template of the operator's own.
const BUILT_IN: &str = include_str!("pages/page.html");
/// The placeholders, without their braces.
const NAMES: [(&str, Value); 5] = [
    ("status", Value::Status),
    ("title", Value::Title),
    ("detail", Value::Detail),
    ("request_id", Value::RequestId),
    ("retry_after", Value::RetryAfter),
];

/// Outrigger's own responses for browsers. Other clients get JSON, whatever is written here.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pages {
    /// Whether clients that prefer HTML get HTML.
    pub html: bool,
    /// A file with the page, at most 64 KiB of UTF-8, with any of `{{status}}`, `{{title}}`, `{{detail}}`, `{{request_id}}` and
    /// `{{retry_after}}` (seconds, or empty). Read at the start and with each reload. It gets a strict Content-Security-Policy: no
    /// scripts, no requests, and only the styles of its `<style>` elements. Unset: a page of Outrigger's own.
    pub template: Option<PathBuf>,
}

impl Default for Pages {
    fn default() -> Self {
        Self { html: true, template: None }
    }
}

/// The checked section.
#[derive(Clone, Debug)]
pub struct PageRules {
    /// The page for clients that prefer HTML; `None`: they get JSON, too.
    pub template: Option<Arc<Template>>,
}

/// A page with places for values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Box<[Part]>,
    policy: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    Value(Value),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    Status,
    Title,
    Detail,
    RequestId,
    RetryAfter,
}

/// The values of a page.
#[derive(Clone, Copy, Debug)]
pub struct PageValues<'v> {
    /// The status code.
    pub status: u16,
    /// A short summary.
    pub title: &'v str,
    /// Advice.
    pub detail: &'v str,
    /// The request id.
    pub request_id: &'v str,
    /// Seconds, if there is a time to wait.
    pub retry_after: Option<u64>,
}

/// Why a text is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A name that does not exist.
    #[error("`{{{{{0}}}}}` is no placeholder")]
    Unknown(String),
    /// A placeholder without its end.
    #[error("a `{{{{` has no `}}}}`")]
    Open,
    /// A placeholder where escaping does not help, or where the policy's hash would change.
    #[error("`{0}` has a placeholder inside")]
    Inside(&'static str),
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// A placeholder that does not exist or does not end, or one inside of a `<style>` or `<script>` element.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let policy = policy(text)?;
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once("{{") {
            let (name, after) = after.split_once("}}").ok_or(TemplateError::Open)?;
            let known = NAMES.iter().find(|(known, _)| *known == name.trim());
            let (_, value) = known.ok_or_else(|| TemplateError::Unknown(name.chars().take(40).collect()))?;
            parts.extend([Part::Text(before.into()), Part::Value(*value)]);
            rest = after;
        }
        parts.push(Part::Text(rest.into()));
        Ok(Self { parts: parts.into(), policy: policy.into() })
    }

    /// The page with these values, which are escaped.
    pub fn page(&self, values: &PageValues<'_>) -> String {
        let mut page = String::with_capacity(2048);
        for part in &self.parts {
            match part {
                Part::Text(text) => page.push_str(text),
                Part::Value(Value::Title) => escape(&mut page, values.title),
                Part::Value(Value::Detail) => escape(&mut page, values.detail),
                Part::Value(Value::RequestId) => escape(&mut page, values.request_id),
                Part::Value(Value::Status) => page.push_str(&values.status.to_string()),
                Part::Value(Value::RetryAfter) => {
                    if let Some(seconds) = values.retry_after {
                        page.push_str(&seconds.to_string());
                    }
                }
            }
        }
        page
    }

    /// The value of its `Content-Security-Policy`.
    pub fn policy(&self) -> &Arc<str> {
        &self.policy
    }
}

/// It loads no other file and runs no script; the styles of its own elements apply, which their hashes name.
fn policy(text: &str) -> Result<String, TemplateError> {
    let mut sources = String::new();
    for style in elements(text, "<style", "</style")? {
        let hash = STANDARD.encode(digest(&SHA256, style.as_bytes()));
        // Writing to a string does not fail.
        let _ = write!(sources, " 'sha256-{hash}'");
    }
    elements(text, "<script", "</script")?;
    let styles = if sources.is_empty() { " 'none'" } else { &sources };
    Ok(format!(
        "default-src 'none'; style-src{styles}; img-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ))
}

/// The contents of these elements.
fn elements<'t>(text: &'t str, begin: &'static str, end: &str) -> Result<Vec<&'t str>, TemplateError> {
    // The same length: only ASCII changes.
    let (lower, mut at, mut found) = (text.to_ascii_lowercase(), 0, Vec::new());
    while let Some(start) = lower[at..].find(begin).map(|start| at + start) {
        let inner = lower[start..].find('>').map_or(text.len(), |close| start + close + 1);
        let close = lower[inner..].find(end).map_or(text.len(), |close| inner + close);
        if text[start..close].contains("{{") {
            return Err(TemplateError::Inside(begin));
        }
        found.push(&text[inner..close]);
        at = close;
    }
    Ok(found)
}

fn escape(page: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => page.push_str("&amp;"),
            '<' => page.push_str("&lt;"),
            '>' => page.push_str("&gt;"),
            '"' => page.push_str("&quot;"),
            '\'' => page.push_str("&#39;"),
            c => page.push(c),
        }
    }
}

impl Builder<'_> {
    /// Reads and checks the template.
    pub fn pages(&mut self, written: &Pages) -> PageRules {
        let own = written.template.as_ref().map(|file| {
            let bytes = read_bounded(file).map_err(|e| format!("{} cannot be read: {e}", file.display()))?;
            if bytes.len() > MOST_BYTES {
                return Err(format!("{} has more than {MOST_BYTES} bytes", file.display()));
            }
            let text = String::from_utf8(bytes).map_err(|_| format!("{} is not UTF-8", file.display()))?;
            Template::parse(&text).map_err(|e| format!("{}: {e}", file.display()))
        });
        let template = match own.unwrap_or_else(|| Template::parse(BUILT_IN).map_err(|e| e.to_string())) {
            Ok(template) => Some(template),
            Err(message) => {
                let hint =
                    "use {{status}}, {{title}}, {{detail}}, {{request_id}} and {{retry_after}}, outside of <style>";
                self.complain(&[Step::Key("pages"), Step::Key("template")], format!("`template`: {message}"), hint);
                None
            }
        };
        PageRules { template: template.filter(|_| written.html).map(Arc::new) }
    }
}

/// A file, or its beginning if it is too long.
fn read_bounded(file: &std::path::Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(file)?.take(MOST_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: PageValues<'_> =
        PageValues { status: 503, title: "<b>\"'&", detail: "d", request_id: "r", retry_after: None };

    #[test]
    fn values_are_escaped_and_stand_where_the_template_says() {
        let template = Template::parse("{{status}}|{{ title }}|{{detail}}{{request_id}}|{{retry_after}}.").unwrap();
        assert_eq!(template.page(&VALUES), "503|&lt;b&gt;&quot;&#39;&amp;|dr|.");
        assert!(template.page(&PageValues { retry_after: Some(7), ..VALUES }).ends_with("|7."));
    }

    #[test]
    fn a_text_that_is_no_template_is_refused() {
        let error = |text| Template::parse(text).unwrap_err().to_string();
        assert_eq!(error("{{stauts}}"), "`{{stauts}}` is no placeholder");
        assert_eq!(error("a {{status"), "a `{{` has no `}}`");
        assert_eq!(error("<STYLE>b { color: {{status}} }</style>"), "`<style` has a placeholder inside");
        assert_eq!(error("<script nonce=\"{{title}}\">1</script>"), "`<script` has a placeholder inside");
    }

    #[test]
    fn the_policy_allows_the_styles_of_the_page_only() {
        let built_in = Template::parse(BUILT_IN).unwrap();
        let styles = built_in.policy().split("; ").find(|part| part.starts_with("style-src")).unwrap();
        assert!(styles.matches("'sha256-").count() == 1 && !built_in.policy().contains("unsafe"), "{styles}");
        // `printf 'a{}' | openssl dgst -sha256 -binary | base64`
        let policy = Template::parse("<style>a{}</style>\u{130}<style media=\"print\">a{}</STYLE>").unwrap().policy;
        assert_eq!(policy.matches("'sha256-").count(), 2, "{policy}");
        assert!(Template::parse("a").unwrap().policy().contains("style-src 'none'"));
        // The page loads no other file.
        assert!(!BUILT_IN.contains("http") && !BUILT_IN.contains("url("));
    }
}
