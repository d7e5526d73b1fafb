//! `Accept` (RFC 9110 section 12.5.1): whether a client wants HTML rather than JSON.

/// Whether the client names HTML, and prefers it to JSON. `values` are those of all its `Accept` headers.
///
/// # Examples
///
/// ```
/// use outrigger_wire::accept::prefers_html;
///
/// assert!(prefers_html([&b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"[..]]));
/// assert!(!prefers_html([&b"*/*"[..]]));
/// ```
pub fn prefers_html<'v>(values: impl IntoIterator<Item = &'v [u8]>) -> bool {
    let (mut html, mut json) = (0, 0);
    // Shorter values name no HTML.
    for value in values.into_iter().filter(|value| value.len() >= b"text/html".len()) {
        for range in value.split(|byte| *byte == b',') {
            let mut parts = range.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let kind = parts.next().unwrap_or_default();
            let is = |names: [&str; 2]| names.iter().any(|name| kind.eq_ignore_ascii_case(name.as_bytes()));
            let best = if is(["text/html", "application/xhtml+xml"]) {
                &mut html
            } else if is(["application/json", "application/problem+json"]) {
                &mut json
            } else {
                continue;
            };
            *best = (*best).max(parts.find_map(weight).unwrap_or(1000));
        }
    }
    html > json
}

/// The value of a parameter `q`, in thousandths; 0 for one that is malformed.
fn weight(parameter: &[u8]) -> Option<u16> {
    let value = parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q="))?;
    let weight = std::str::from_utf8(value).ok().and_then(|text| text.parse::<f32>().ok());
    // A cast from a float saturates, and takes NaN for 0.
    Some(weight.map_or(0, |weight| (weight.clamp(0.0, 1.0) * 1000.0) as u16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_prefer_html_and_programs_do_not() {
        let prefers = |value: &str| prefers_html([value.as_bytes()]);
        for html in [
            "text/html",
            "TEXT/HTML;level=1;q=0.1",
            "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
            "application/json;q=0.8, text/html",
            "application/xhtml+xml",
        ] {
            assert!(prefers(html), "{html}");
        }
        for other in [
            "",
            "*/*",
            "text/*",
            "application/json, text/plain, */*",
            "text/html;q=0",
            "text/html; q=0.000, */*",
            "text/html;q=x",
            "text/html;q=NaN",
            "text/html, application/json",
            "text/html;q=0.5, application/problem+json;q=0.6",
            "xtext/html",
        ] {
            assert!(!prefers(other), "{other}");
        }
        assert!(prefers_html([&b"*/*"[..], b"text/html"]) && !prefers_html([]));
    }
}
