//! The parts of structured fields (RFC 9651) needed to distinguish an upstream's rate limits. Pure functions.

/// The members of a structured field that is a list of items; `None` if it is something else.
pub fn items(line: &[u8]) -> Option<Vec<&[u8]>> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let members = line.split(|byte| {
        let escapes = is_quoted && !is_escaped && *byte == b'\\';
        is_quoted ^= *byte == b'"' && !is_escaped;
        is_escaped = escapes;
        *byte == b',' && !is_quoted
    });
    let members: Vec<&[u8]> = members.map(<[u8]>::trim_ascii).collect();
    let is_visible = line.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\t'));
    (is_visible && !is_quoted && members.iter().all(|member| is_item(member))).then_some(members)
}

/// Returns whether this is a string, token or number, with or without parameters. A member of a dictionary
/// (`limit=100`) is not.
fn is_item(member: &[u8]) -> bool {
    let end = match member.first() {
        Some(b'"') => match closing_quote(member) {
            Some(end) => end + 1,
            None => return false,
        },
        Some(byte) if byte.is_ascii_alphanumeric() || *byte == b'*' || *byte == b'-' => {
            let is_bare = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(byte);
            member.iter().position(|byte| !is_bare(byte)).unwrap_or(member.len())
        }
        _ => return false,
    };
    member.get(end).is_none_or(|byte| *byte == b';')
}

fn closing_quote(member: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        match member.get(at)? {
            b'\\' => at += 2,
            b'"' => return Some(at),
            _ => at += 1,
        }
    }
}

/// The name of an item that is a string without escapes.
pub fn name_of(item: &[u8]) -> Option<&[u8]> {
    let end = (item.first() == Some(&b'"')).then(|| closing_quote(item)).flatten()?;
    Some(&item[1..end])
}

/// The number after `key=`, as a parameter or as a member of a dictionary.
pub fn number_of(text: &[u8], key: &str) -> Option<u64> {
    let mut parts = text.split(|byte| matches!(byte, b';' | b','));
    let value = parts.find_map(|part| part.trim_ascii().strip_prefix(key.as_bytes())?.strip_prefix(b"="))?;
    leading_number(value)
}

/// The number at the start of `text`.
pub fn leading_number(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii_start();
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    std::str::from_utf8(&text[..end]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_distinguished_from_everything_else() {
        let split = |line: &str| {
            let items = items(line.as_bytes())?;
            Some(items.into_iter().map(|item| String::from_utf8_lossy(item).into_owned()).collect::<Vec<_>>())
        };
        let list = |items: &[&str]| Some(items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>());
        assert_eq!(split(r#""a";r=1;t=2,  "b,\"c";r=3"#), list(&[r#""a";r=1;t=2"#, r#""b,\"c";r=3"#]));
        assert_eq!(split("100;w=60, 10;w=1;comment=\"a, b\""), list(&["100;w=60", "10;w=1;comment=\"a, b\""]));
        assert_eq!(split("token"), list(&["token"]));
        for other in ["", ",", "limit=10, remaining=2", "\"a", "a b", "(1 2)", "?1;r=1,", "\"a\"x", "\u{e4}"] {
            assert_eq!(split(other), None, "{other}");
        }
    }

    #[test]
    fn numbers_and_names_are_found() {
        assert_eq!(number_of(b"\"a\";q=100;r=42;t=9", "r"), Some(42));
        assert_eq!(number_of(b"limit=10, remaining=2, reset=9", "remaining"), Some(2));
        assert_eq!(number_of(b"\"r=7\";q=1", "r"), None);
        assert_eq!(number_of(b"\"a\";r=many", "r"), None);
        assert_eq!(
            (leading_number(b"10, 10;w=1"), leading_number(b" 7"), leading_number(b"x")),
            (Some(10), Some(7), None)
        );
        assert_eq!(leading_number(b"99999999999999999999999"), None);
        assert_eq!((name_of(b"\"a-1\";r=1"), name_of(b"a;r=1"), name_of(b"\"")), (Some(&b"a-1"[..]), None, None));
    }
}
