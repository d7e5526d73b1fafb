//! The session cookie: read from requests, set in responses, and hidden from the app.

use std::cell::RefCell;
use std::io::Write;

use http::header;
use outrigger_identity::clock::seconds;
use outrigger_identity::signing::{Keys, Purpose, VerifyBuffer};
use outrigger_identity::this::This;
use outrigger_policy::affinity::{Age, LARGEST, Lifetime, Session};
use outrigger_rules::sections::affinity::AffinityRules;
use outrigger_wire::cookies::{NAME, values};
use outrigger_wire::request::Fields;

use crate::affinity::{Cookie, Keeper, Sticky};

/// So many of this name are looked at; more are not there by accident.
const MOST_LOOKED_AT: usize = 4;

/// The memory for a session that was found.
#[derive(Debug)]
pub struct Buffer(VerifyBuffer);

impl Default for Buffer {
    fn default() -> Self {
        Self([0; size_of::<VerifyBuffer>()])
    }
}

/// The result of [`find`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'b> {
    /// There is no cookie.
    Nothing,
    /// A valid session, and whether the cookie should be refreshed.
    Session(Session<'b>, bool),
    /// An expired cookie.
    Over,
    /// A cookie without a valid signature, or from the future.
    Forged,
}

/// Returns the session of a request: that of the first valid cookie of this name.
pub fn find<'b>(keys: &Keys, lifetime: &Lifetime, fields: Fields<'_>, now: u32, buffer: &'b mut Buffer) -> Found<'b> {
    let mut candidates: [&[u8]; MOST_LOOKED_AT] = [b""; MOST_LOOKED_AT];
    let mut count = 0;
    fields.each(&header::COOKIE, |value| {
        for value in values(value) {
            if count < MOST_LOOKED_AT {
                candidates[count] = value;
                count += 1;
            }
        }
    });
    let candidates = &candidates[..count];
    let mut worst = Found::Nothing;
    for signed in candidates {
        // Keep only the length: a loop cannot return a borrow of a buffer that its next iteration may overwrite.
        let length = keys.verified(Purpose::Cookie, signed, &mut buffer.0).map_or(0, <[u8]>::len);
        let age = Session::decode(&buffer.0[..length]).map(|session| lifetime.judge(&session, now));
        match age {
            Some(age @ (Age::Fresh | Age::Due)) => {
                let session = Session::decode(&buffer.0[..length]);
                return session.map_or(Found::Forged, |session| Found::Session(session, age == Age::Due));
            }
            Some(Age::Over) => worst = Found::Over,
            Some(Age::Future) | None => worst = Found::Forged,
        }
    }
    worst
}

/// Gives `write` the value of `Set-Cookie`.
pub fn with_line(sticky: &Sticky, rules: &AffinityRules, this: &This, write: impl FnOnce(&[u8])) {
    thread_local! {
        static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    const ATTRIBUTES: &[u8] = b"; Path=/; HttpOnly; Secure; SameSite=Lax";
    LINE.with_borrow_mut(|line| {
        line.clear();
        line.extend_from_slice(NAME.as_bytes());
        line.push(b'=');
        match sticky.cookie {
            Cookie::Keep => return,
            Cookie::Clear => line.extend_from_slice(b"; Max-Age=0"),
            Cookie::Write { id, born } => {
                let now = seconds();
                let home = match &sticky.at {
                    Keeper::Other(name) => name.as_bytes(),
                    Keeper::This | Keeper::Nobody => this.name.as_bytes(),
                };
                let mut text = [0; LARGEST];
                let length = Session { id, born, written: now, home }.encode(&mut text);
                this.keys.append_signed(Purpose::Cookie, &text[..length], line);
                // Writing to a vector cannot fail.
                let _ = write!(line, "; Max-Age={}", rules.lifetime.left(born, now));
            }
        }
        line.extend_from_slice(ATTRIBUTES);
        write(line);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    const NOW: u32 = 1_800_000_000;
    const LIFETIME: Lifetime = Lifetime { idle: Duration::from_secs(3600), most: Duration::from_secs(86_400) };

    fn keys() -> Keys {
        Keys::parse("0123456789abcdef0123456789abcdef").unwrap().unwrap()
    }

    fn cookie(written: u32) -> String {
        let mut text = [0; LARGEST];
        let length = Session { id: 7, born: written, written, home: b"m1" }.encode(&mut text);
        let mut out = Vec::new();
        keys().append_signed(Purpose::Cookie, &text[..length], &mut out);
        format!("{NAME}={}", String::from_utf8(out).unwrap())
    }

    fn found(fields: &[&str]) -> String {
        let fields: Vec<_> =
            fields.iter().map(|value| httparse::Header { name: "Cookie", value: value.as_bytes() }).collect();
        match find(&keys(), &LIFETIME, Fields::Wire(&fields), NOW, &mut Buffer::default()) {
            Found::Session(session, is_due) => format!("{} {is_due}", String::from_utf8_lossy(session.home)),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_session_is_found_wherever_its_cookie_stands() {
        let own = cookie(NOW);
        assert_eq!(found(&[]), "Nothing");
        assert_eq!(found(&["a=b; c=d"]), "Nothing");
        assert_eq!(found(&[&own]), "m1 false");
        assert_eq!(found(&[&format!("a=b;{own} ; c=d")]), "m1 false");
        assert_eq!(found(&["a=b", &own]), "m1 false");
        assert_eq!(found(&[&format!("{}\"", own.replacen('=', "=\"", 1))]), "m1 false", "quoted");
        assert_eq!(found(&[&cookie(NOW - 1800)]), "m1 true");
    }

    #[test]
    fn invalid_cookies_are_distinguished_by_reason() {
        let own = cookie(NOW);
        assert_eq!(found(&[&own[..own.len() - 1]]), "Forged");
        assert_eq!(found(&[&format!("{own}A")]), "Forged");
        assert_eq!(found(&["_fly_affinity="]), "Forged");
        assert_eq!(found(&["_fly_affinity=148e21eea46589"]), "Forged");
        assert_eq!(found(&[&cookie(NOW - 3600)]), "Over");
        assert_eq!(found(&[&cookie(NOW + 120)]), "Forged");
        assert_eq!(found(&[&format!("x{own}")]), "Nothing", "another cookie whose name ends like ours");
        assert_eq!(found(&[&format!("_fly_affinity=junk; {own}")]), "m1 false", "the first that counts");
        let junk = "_fly_affinity=junk; ".repeat(4);
        assert_eq!(found(&[&format!("{junk}{own}")]), "Forged", "nobody has that many");
    }

    proptest! {
        #[test]
        fn reading_any_header_does_not_panic(field: Vec<u8>) {
            let fields = [httparse::Header { name: "cookie", value: &field }];
            let mut buffer = Buffer::default();
            let found = find(&keys(), &LIFETIME, Fields::Wire(&fields), NOW, &mut buffer);
            prop_assert!(matches!(found, Found::Nothing | Found::Forged));
        }
    }
}
