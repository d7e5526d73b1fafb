//! Paths without identifiers.
//!
//! A segment is kept if a route of the file names it, or, with [`Detail::Words`], if it looks like a word of an API. Every other one, and
//! every parameter of the request's route, becomes [`PLACEHOLDER`]. A query is no part of a path here.

use std::collections::HashSet;

/// In place of a segment that could identify somebody or something.
pub const PLACEHOLDER: &str = "~";
/// Maximum number of segments of a template; the rest of a path is one placeholder.
pub const MOST_SEGMENTS: usize = 12;
/// The longest word, in bytes.
const LONGEST_WORD: usize = 24;

/// Which segments are kept beside those that routes name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// Those that look like words.
    #[default]
    Words,
    /// No others.
    Routes,
}

/// The segments that routes name, in lower case.
#[derive(Clone, Debug, Default)]
pub struct Literals(HashSet<Box<str>, foldhash::fast::RandomState>);

impl Literals {
    /// Adds those of a pattern such as `/items/{id}` or `/files/**`.
    pub fn add(&mut self, pattern: &str) {
        let is_literal = |segment: &&str| !segment.is_empty() && !segment.starts_with('{') && *segment != "**";
        self.0.extend(pattern.split('/').filter(is_literal).map(|segment| segment.to_ascii_lowercase().into()));
    }
}

/// The template of a pattern without `/**`: `/items/{id}` is `/items/~`.
pub fn of_pattern(pattern: &str) -> String {
    let mut out = String::new();
    for segment in pattern.split('/').filter(|segment| !segment.is_empty()) {
        out.push('/');
        if segment.starts_with('{') { out.push_str(PLACEHOLDER) } else { out.push_str(&segment.to_ascii_lowercase()) }
    }
    if out.is_empty() { "/".to_owned() } else { out }
}

/// The numbers of a pattern's segments that are parameters.
pub fn parameters(pattern: &str) -> Vec<usize> {
    let segments = pattern.split('/').filter(|segment| !segment.is_empty()).enumerate();
    segments.filter(|(_, segment)| segment.starts_with('{')).map(|(at, _)| at).collect()
}

/// Writes the template of `path` into `out`. `parameters`: the numbers of the segments that the request's route has as parameters.
pub fn of_path(path: &str, literals: &Literals, parameters: &[usize], detail: Detail, out: &mut String) {
    out.clear();
    for (at, segment) in path.split('/').filter(|segment| !segment.is_empty()).enumerate() {
        if at == MOST_SEGMENTS {
            out.extend(["/", PLACEHOLDER]);
            return;
        }
        out.push('/');
        let start = out.len();
        out.extend(segment.bytes().take(LONGEST_WORD * 4).map(|byte| char::from(byte.to_ascii_lowercase())));
        let is_kept = !parameters.contains(&at)
            && segment.is_ascii()
            && (literals.0.contains(&out[start..]) || (detail == Detail::Words && is_word(segment)));
        if !is_kept {
            out.truncate(start);
            out.push_str(PLACEHOLDER);
        }
    }
    if out.is_empty() {
        out.push('/');
    }
}

/// Whether a segment looks like a word of an API: letters of one case or with a capital first, joined by `-`, `_` and `.`; or a version
/// such as `v2`. Digits, other characters, mixed cases, hexadecimal numbers, long or unpronounceable text look like an identifier.
fn is_word(segment: &str) -> bool {
    if let Some(number) = segment.strip_prefix('v').or_else(|| segment.strip_prefix('V'))
        && matches!(number.len(), 1 | 2)
        && number.bytes().all(|byte| byte.is_ascii_digit())
    {
        return true;
    }
    segment.len() <= LONGEST_WORD && segment.split(['-', '_', '.']).all(is_plain_word)
}

/// The longest run of consonants in a word.
const CONSONANTS: usize = 5;

fn is_plain_word(part: &str) -> bool {
    let bytes = part.as_bytes();
    let is_of_one_case = part.get(1..).is_some_and(|rest| !rest.bytes().any(|byte| byte.is_ascii_uppercase()))
        || bytes.iter().all(u8::is_ascii_uppercase);
    let is_vowel = |byte: &u8| matches!(byte.to_ascii_lowercase(), b'a' | b'e' | b'i' | b'o' | b'u' | b'y');
    let is_hexadecimal = bytes.len() >= 6 && bytes.iter().all(|byte| matches!(byte.to_ascii_lowercase(), b'a'..=b'f'));
    let is_pronounceable = bytes.split(is_vowel).all(|consonants| consonants.len() <= CONSONANTS);
    !part.is_empty()
        && bytes.iter().all(u8::is_ascii_alphabetic)
        && is_of_one_case
        && !is_hexadecimal
        && is_pronounceable
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn template(path: &str, detail: Detail) -> String {
        let mut literals = Literals::default();
        for pattern in ["/api/v1/users/{id}", "/2024/report", "/files/**"] {
            literals.add(pattern);
        }
        let mut out = String::new();
        of_path(path, &literals, &[], detail, &mut out);
        out
    }

    #[test]
    fn identifiers_become_placeholders() {
        for (path, expected) in [
            ("/", "/"),
            ("/api/v1/users/17", "/api/v1/users/~"),
            ("/API/V1/Users/17/", "/api/v1/users/~"),
            ("/api/v2/orders/status", "/api/v2/orders/status"),
            ("/2024/report", "/2024/report"),
            ("/2025/report", "/~/report"),
            ("/users/ann@example.com", "/users/~"),
            ("/users/0189a3f2-7c1b-7d30-a5c2-93f8e1b0c4d7", "/users/~"),
            ("/users/deadbeef", "/users/~"),
            ("/t/dGhpcyBpcyBh", "/t/~"),
            ("/t/xkcdqwrtzp", "/t/~"),
            ("/t/an-endless-name-of-something-secret", "/t/~"),
            ("/t/a%20b", "/t/~"),
            ("/t/grüße", "/t/~"),
            ("/style.css", "/style.css"),
            ("/a/b/c/d/e/f/g/h/i/j/k/l/m/n", "/a/b/c/d/e/f/g/h/i/j/k/l/~"),
        ] {
            assert_eq!(template(path, Detail::Words), expected, "{path}");
        }
        assert_eq!(template("/api/v1/users/ann", Detail::Routes), "/api/v1/users/~");
        assert_eq!(template("/shop/cart", Detail::Routes), "/~/~");
    }

    #[test]
    fn parameters_of_a_route_are_never_kept() {
        let mut literals = Literals::default();
        literals.add("/users/{id}/posts");
        let mut out = String::new();
        of_path("/users/posts/posts", &literals, &parameters("/users/{id}/posts"), Detail::Words, &mut out);
        assert_eq!((out.as_str(), of_pattern("/Users/{id}/posts/")), ("/users/~/posts", "/users/~/posts".to_owned()));
    }

    proptest! {
        #[test]
        fn a_template_has_no_digits_but_those_of_routes_and_versions(path in "(/[a-zA-Z0-9@.%~-]{0,40}){0,20}") {
            let template = template(&path, Detail::Words);
            prop_assert!(template.len() <= (MOST_SEGMENTS + 1) * (LONGEST_WORD + 1));
            for segment in template.split('/') {
                let is_version = segment.starts_with('v') && segment.len() <= 3;
                prop_assert!(is_version || segment == "2024" || !segment.contains(|c: char| c.is_ascii_digit()));
            }
        }
    }
}
