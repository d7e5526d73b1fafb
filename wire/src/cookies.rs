//! The session cookie in a request, and whether a response may carry one.

use memchr::memmem;

/// Name of the session cookie.
pub const NAME: &str = "_fly_affinity";

/// The values of our cookie in one header.
pub fn values(field: &[u8]) -> impl Iterator<Item = &[u8]> {
    // Usually there is one or none, and one pass finds it.
    let mut rest = if memmem::find(field, NAME.as_bytes()).is_some() { field } else { b"" };
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let (pair, after) = match memchr::memchr(b';', rest) {
                Some(end) => (&rest[..end], &rest[end + 1..]),
                None => (rest, &b""[..]),
            };
            rest = after;
            if let Some(value) = value_of(pair) {
                return Some(value);
            }
        }
        None
    })
}

fn value_of(pair: &[u8]) -> Option<&[u8]> {
    let value = pair.trim_ascii().strip_prefix(NAME.as_bytes())?.trim_ascii_start().strip_prefix(b"=")?.trim_ascii();
    // Some clients add quotes.
    Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
}

/// Whether a response with this `Cache-Control` may be stored by shared caches: they would give its session to other
/// clients.
pub fn is_shared(field: &[u8]) -> bool {
    let mut directives = field.split(|b| *b == b',').map(<[u8]>::trim_ascii);
    directives.any(|directive| {
        directive.eq_ignore_ascii_case(b"public")
            || directive.get(..9).is_some_and(|d| d.eq_ignore_ascii_case(b"s-maxage="))
    })
}

/// Whether the header contains our cookie.
pub fn is_in(field: &[u8]) -> bool {
    memmem::find(field, NAME.as_bytes()).is_some()
}

/// Writes the cookies of `field` except ours; returns whether any is left.
pub fn write_others(field: &[u8], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let others = field.split(|b| *b == b';').filter(|pair| value_of(pair).is_none()).map(<[u8]>::trim_ascii);
    for pair in others.filter(|pair| !pair.is_empty()) {
        if out.len() > start {
            out.extend_from_slice(b"; ");
        }
        out.extend_from_slice(pair);
    }
    out.len() > start
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn without(field: &str) -> String {
        let mut out = Vec::new();
        write_others(field.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_app_gets_every_cookie_but_ours() {
        assert_eq!(without("a=b; _fly_affinity=x; c=d"), "a=b; c=d");
        assert_eq!(without("_fly_affinity=x"), "");
        assert_eq!(without("_fly_affinity=x; _fly_affinity=y; a=\"b c\""), "a=\"b c\"");
        assert_eq!(without("x_fly_affinity=x; _fly_affinity2=y"), "x_fly_affinity=x; _fly_affinity2=y");
    }

    proptest! {
        #[test]
        fn our_cookies_are_removed_from_every_header(field: Vec<u8>) {
            let mut out = Vec::new();
            write_others(&field, &mut out);
            prop_assert!(values(&out).next().is_none());
        }
    }
}
