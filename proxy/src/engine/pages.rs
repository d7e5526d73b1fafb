//! Outrigger's own responses for people: the same problems as in `rejection.rs`, as a page and in plain words.

use std::sync::Arc;

use outrigger_rules::config::Config;
use outrigger_rules::sections::pages::PageValues;
use outrigger_wire::accept::prefers_html;
use outrigger_wire::retry_after::seconds;

use crate::engine::rejection::Problem;

/// The content type of a page.
pub const CONTENT_TYPE: &str = "text/html; charset=utf-8";

/// A page.
#[derive(Clone, Debug)]
pub struct Page {
    /// Its HTML.
    pub body: String,
    /// Its `Content-Security-Policy`.
    pub policy: Arc<str>,
}

/// The page for this problem, unless pages are off.
pub fn page(config: &Config, problem: &Problem, request_id: &str) -> Option<Page> {
    let template = config.pages.template.as_ref()?;
    let (title, advice) = words(problem);
    let retry_after = problem.retry_after.map(seconds);
    let wait = match retry_after {
        None => String::new(),
        Some(0..=5) => " Try again in a few seconds.".to_owned(),
        Some(seconds @ 6..120) => format!(" Try again in {seconds} seconds."),
        Some(seconds) => format!(" Try again in {} minutes.", seconds.div_ceil(60)),
    };
    let detail = format!("{advice}{wait}");
    let values =
        PageValues { status: problem.status.as_u16(), title, detail: detail.trim_start(), request_id, retry_after };
    Some(Page { body: template.page(&values), policy: Arc::clone(template.policy()) })
}

/// Title and advice for a person with a browser, who can change neither the request nor this site.
fn words(problem: &Problem) -> (&'static str, &'static str) {
    match problem.label {
        "maintenance" => ("Down for maintenance", "This site is being worked on."),
        "paused" | "app_restarting" | "draining" => ("One moment, please", "This site is being updated."),
        "temporary_reduced_capacity" | "deadline_exceeded" | "too_many_connections" | "out_of_resources" => {
            ("Too many visitors", "This site is very busy at the moment.")
        }
        "quota_exceeded" | "too_many_uploads" => {
            ("Too many requests", "You have sent more requests than this site allows.")
        }
        "abnormal_usage_detected" => ("Access is blocked for a while", "This site has seen unusual requests from you."),
        "address_not_allowed" => ("Access is not allowed", "This site is not open to your network."),
        "head_too_large" => ("The request is too large", "Deleting the cookies of this site usually helps."),
        "body_too_large" => ("The upload is too large", "This site accepts less at once. Please send a smaller file."),
        _ => match problem.status.as_u16() {
            404 => ("Nothing is here", "Please check the address."),
            403 => ("Access is not allowed", "You may not see this page."),
            408 => ("The connection is too slow", "Please try again."),
            400..500 => ("This request is not understood", "Please go back, and try again from there."),
            500 => ("Something went wrong", "The operator of this site finds the reason under the number below."),
            _ => {
                ("This site does not respond", "Please try again. If it persists, tell its operator the number below.")
            }
        },
    }
}

/// Whether the client of a request that was not parsed prefers HTML, as far as the beginning of it shows.
pub fn is_wanted(unread: &[u8]) -> bool {
    let lines = unread.split(|byte| *byte == b'\n').skip(1);
    // The last line may be incomplete.
    let count = unread.iter().filter(|byte| **byte == b'\n').count();
    let values = lines.take(count.saturating_sub(1)).map_while(|line| {
        let line = line.trim_ascii_end();
        let (name, value) = line.split_at_checked(line.iter().position(|byte| *byte == b':')?)?;
        Some(if name.eq_ignore_ascii_case(b"accept") { value.get(1..).unwrap_or_default().trim_ascii() } else { b"" })
    });
    prefers_html(values)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;

    use super::*;
    use crate::engine::rejection::{Failure, Rejection};

    #[test]
    fn every_problem_has_a_page_without_jargon() {
        let config = Config::parse(Path::new("test"), "", &|_| None).unwrap();
        let problems = Rejection::all().map(Rejection::problem).chain(Failure::ALL.map(Failure::problem));
        let mut titles = HashSet::new();
        for problem in problems {
            let (title, advice) = words(&problem);
            titles.insert(title);
            for word in ["app", "proxy", "header", "head", "upstream", "Retry-After", "circuit"] {
                let has = |text: &str| text.split(|c: char| !c.is_alphabetic()).any(|other| other == word);
                assert!(!has(title) && !has(advice), "{title}: {advice}");
            }
            let page = page(&config, &problem, "id-1").unwrap();
            assert!(page.body.contains("id-1") && page.body.contains(&problem.status.as_u16().to_string()));
            assert!(!page.body.contains("{{"), "{}", page.body);
        }
        assert!(titles.len() > 8, "{titles:?}");
    }

    #[test]
    fn the_accept_header_of_an_unparsed_request_is_found() {
        assert!(is_wanted(b"GET / HTTP/1.1\r\naccept:  text/html \r\nA B: c\r\n\r\n"));
        assert!(is_wanted(b"GET / HTTP/1.1\nA: b\nAccept: text/html\n"));
        for other in [
            &b"GET / HTTP/1.1\r\nAccept: text/html"[..],
            b"Accept: text/html\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\nAccept: text/html\r\n",
            b"GET / HTTP/1.1\r\nX-Accept: text/html\r\n\r\n",
            b"",
            b"\0\n:\n",
        ] {
            assert!(!is_wanted(other), "{}", other.escape_ascii());
        }
    }
}
