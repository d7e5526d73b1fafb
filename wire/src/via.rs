//! `Via` (RFC 9110 section 7.6.3): detects requests that this process has forwarded already.
//!
//! Without that, such a request would loop until resources run out; it gets 508. If the app must not see `Via` (`headers.via
//! = false`), `CDN-Loop` (RFC 8586) carries the same name: servers do not change their behaviour because of it.

use std::fmt;

use http::{HeaderName, Version, header};

use crate::random::random;
use crate::request::Fields;

static CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");

/// The name of this process in requests that it forwards. Different for every process, so that several of them can be
/// chained.
#[derive(Clone)]
pub struct Pseudonym(Box<str>);

impl Pseudonym {
    /// Creates a unique name.
    pub fn fresh() -> Self {
        Self(format!("outrigger-{:016x}", random()).into())
    }

    /// Whether a request has been forwarded by this process.
    pub fn is_in(&self, fields: Fields<'_>) -> bool {
        let mut is_there = false;
        for name in [&header::VIA, &CDN_LOOP] {
            fields.each(name, |value| is_there |= memchr::memmem::find(value, self.0.as_bytes()).is_some());
        }
        is_there
    }
}

impl fmt::Debug for Pseudonym {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The header that names forwarding proxies.
pub fn field(with_via: bool) -> &'static HeaderName {
    if with_via { &header::VIA } else { &CDN_LOOP }
}

/// Writes its value: the names so far, and this process.
pub fn write(text: &mut Vec<u8>, fields: Fields<'_>, with_via: bool, received: Version, pseudonym: &Pseudonym) {
    fields.each(field(with_via), |value| {
        if !value.trim_ascii().is_empty() {
            text.extend_from_slice(value);
            text.extend_from_slice(b", ");
        }
    });
    if with_via {
        text.extend_from_slice(match received {
            Version::HTTP_10 => b"1.0 ",
            Version::HTTP_2 => b"2 ",
            _ => b"1.1 ",
        });
    }
    text.extend_from_slice(pseudonym.0.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(fields: &[(&'static str, &'static str)], with_via: bool, received: Version) -> String {
        let fields: Vec<_> =
            fields.iter().map(|(name, value)| httparse::Header { name, value: value.as_bytes() }).collect();
        let mut text = Vec::new();
        write(&mut text, Fields::Wire(&fields), with_via, received, &Pseudonym("outrigger-1".into()));
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn is_appended_to_existing_values() {
        assert_eq!(written(&[], true, Version::HTTP_11), "1.1 outrigger-1");
        assert_eq!(written(&[("via", "2 fly.io")], true, Version::HTTP_2), "2 fly.io, 2 outrigger-1");
        let two = [("Via", "1.0 fred"), ("VIA", ""), ("via", "1.1 p.example.net (x)")];
        assert_eq!(written(&two, true, Version::HTTP_10), "1.0 fred, 1.1 p.example.net (x), 1.0 outrigger-1");
        let both = [("Via", "1.0 fred"), ("CDN-Loop", "a; v=1")];
        assert_eq!(written(&both, false, Version::HTTP_11), "a; v=1, outrigger-1");
    }

    #[test]
    fn finds_only_itself_in_via_and_cdn_loop() {
        let pseudonym = Pseudonym::fresh();
        let other = Pseudonym::fresh();
        let value = format!("1.1 a, 2 {:?} (b), 1.1 c", pseudonym);
        for name in ["Via", "cdn-loop"] {
            let fields = [httparse::Header { name, value: value.as_bytes() }];
            assert!(pseudonym.is_in(Fields::Wire(&fields)) && !other.is_in(Fields::Wire(&fields)));
        }
        let elsewhere = [httparse::Header { name: "X-Via", value: value.as_bytes() }];
        assert!(!pseudonym.is_in(Fields::Wire(&elsewhere)));
    }
}
