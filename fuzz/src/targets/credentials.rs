//! Tokens, API keys, and the documents and files that verify them.

use std::sync::LazyLock;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use outrigger_identity::credentials::{Credentials, Identified, Keys, Who};
use outrigger_identity::jwt::{ClaimNames, Signers, Users};
use outrigger_identity::keys::{self, Digest, Entry, KeyDigest, KeyTable};
use outrigger_identity::verified::VerifiedKind;
use outrigger_policy::tier::Tier;
use outrigger_tokens::{Algorithm, Key, Rules, unverified_key_id};
use outrigger_wire::request::Fields;
use ring::{digest, hmac};
use serde_json::Value;

use super::{split_at_byte, with_choice};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const KNOWN: &[u8] = b"sesame";
const NOW: u64 = 1_800_000_000;
const LEEWAY_S: u64 = 30;

static X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
static CREDENTIALS: LazyLock<Credentials> = LazyLock::new(|| {
    let rules = Rules::new(Algorithm::Hs256, Some("me"), Some("docs"), LEEWAY_S);
    let names = ClaimNames { user: "sub".to_owned(), tier: "tier".to_owned() };
    // Nearly nothing is remembered, so that an input does not depend on the one before.
    let users = Users::new(rules, Signers::Fixed(Key::secret(SECRET).expect("a secret")), names, 0);
    let sha256 = digest::digest(&digest::SHA256, KNOWN);
    let hex: String = sha256.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let digest = KeyDigest::Sha256(Digest::from_hex(&hex).expect("a digest"));
    let table = KeyTable::new(vec![Entry { name: "acme".to_owned(), digest, tier: Tier::Pro }], None);
    Credentials::new(Keys { field: X_API_KEY.clone(), table, counts_unknown: true }, Some(users))
});

/// Only what is signed with the key makes a user, with a name that logs can show, at a time at which the token is valid. All else is
/// ignored.
///
/// The first byte says what the rest is: an `Authorization` and a key, each a line; or the two parts of a token, which is then
/// signed; or a key document, a line of the file of keys.
pub fn credentials(data: &[u8]) {
    let (choice, data) = with_choice(data);
    let (first, second) = split_at_byte(data, b'\n');
    match choice & 3 {
        0 => presented(first, second),
        1 => signed(first, second, choice),
        2 => published(data),
        _ => of_the_file(data),
    }
}

fn presented(authorization: &[u8], key: &[u8]) {
    let lines = [("authorization", authorization), (X_API_KEY.as_str(), key)];
    let wire = lines.map(|(name, value)| httparse::Header { name, value });
    let found = CREDENTIALS.identify(Fields::Wire(&wire), || NOW);
    match &found.who {
        Who::Verified(verified) => assert!(verified.kind == VerifiedKind::Key && key == KNOWN, "{verified:?}"),
        Who::UnknownKey(_) => assert!(!key.is_empty() && key != KNOWN),
        Who::Address => assert!(key.is_empty() || key.len() > 1024),
    }
    let values = lines.map(|(name, value)| Some((HeaderName::from_static(name), HeaderValue::from_bytes(value).ok()?)));
    if let [Some(one), Some(other)] = values {
        let map = HeaderMap::from_iter([one, other]);
        assert_eq!(CREDENTIALS.identify(Fields::Map(&map), || NOW), found);
        assert_eq!(CREDENTIALS.are_repeated(Fields::Map(&map)), CREDENTIALS.are_repeated(Fields::Wire(&wire)));
    }
    assert!(CREDENTIALS.are_repeated(Fields::Wire(&[wire[0], wire[1], wire[0]])), "a second credential is not noticed");
    assert!(CREDENTIALS.are_repeated(Fields::Wire(&[wire[1], wire[1]])), "a second key is not noticed");
    let _ = unverified_key_id(authorization);
}

/// A token with this header and these claims, and a valid signature.
fn signed(header: &[u8], claims: &[u8], choice: usize) {
    let header = if header.is_empty() { br#"{"alg":"HS256"}"# } else { header };
    let message = [base64url(header), base64url(claims)].join(".");
    let mut mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), message.as_bytes()).as_ref().to_vec();
    let identify = |mac: &[u8], now: u64| {
        let value = format!("Bearer {message}.{}", base64url(mac));
        let lines = [httparse::Header { name: AUTHORIZATION.as_str(), value: value.as_bytes() }];
        CREDENTIALS.identify(Fields::Wire(&lines), || now)
    };
    for now in [NOW, 0, u64::MAX] {
        let found = identify(&mac, now);
        if let Who::Verified(user) = &found.who {
            assert_eq!(user.kind, VerifiedKind::User);
            assert!((1..=256).contains(&user.name.len()) && !user.name.contains(char::is_control), "{:?}", user.name);
            may_be(&user.name, header, claims, now);
        }
    }
    mac[choice >> 2 & 31] ^= 1;
    assert_eq!(user_of(&identify(&mac, NOW)), None, "another signature");
    assert_eq!(user_of(&identify(&[], NOW)), None, "no signature");
}

fn user_of(found: &Identified) -> Option<&str> {
    match &found.who {
        Who::Verified(user) => Some(&user.name),
        Who::Address | Who::UnknownKey(_) => None,
    }
}

/// Checks a token of this user.
fn may_be(name: &str, header: &[u8], claims: &[u8], now: u64) {
    let header: Value = serde_json::from_slice(header).expect("a header");
    assert!(header["alg"] == "HS256" && header["crit"].is_null(), "{header}");
    let claims: Value = serde_json::from_slice(claims).expect("claims");
    let has = |claim: &Value, wanted: &str| {
        *claim == wanted || claim.as_array().is_some_and(|all| all.iter().any(|one| one == wanted))
    };
    assert!(has(&claims["iss"], "me") && has(&claims["aud"], "docs"), "{claims}");
    let subject = claims["sub"].as_str().map_or_else(|| claims["sub"].to_string(), str::to_owned);
    assert!(subject == name && (claims["sub"].is_string() || claims["sub"].is_number()), "{claims}");
    // Times are rounded to seconds; `f64` has about 2,000 of them at the end of `u64`.
    let slack = LEEWAY_S as f64 + 1.0 + now as f64 * 1e-12;
    let expires = claims["exp"].as_f64().expect("a time");
    let begins = claims["nbf"].as_f64().unwrap_or(0.0);
    assert!(now as f64 <= expires + slack && now as f64 >= begins - slack, "{now}: {claims}");
}

/// Keys that the issuer publishes, or the operator names: none is for another algorithm, and none is a shared secret.
fn published(document: &[u8]) {
    for algorithm in [Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa, Algorithm::Hs256] {
        if let Ok(key) = Key::pem(algorithm, document) {
            assert!(key.algorithm() == algorithm && algorithm != Algorithm::Hs256);
        }
        let Ok(document) = serde_json::from_slice::<Value>(document) else { continue };
        let keys = document["keys"].as_array().map_or(std::slice::from_ref(&document), Vec::as_slice);
        for jwk in keys {
            let Ok((id, key)) = Key::jwk(algorithm, jwk) else { continue };
            assert!(key.algorithm() == algorithm && algorithm != Algorithm::Hs256 && key.is(&key));
            assert!(jwk["kty"] != "oct", "a secret: {jwk}");
            assert!(id.is_none_or(|id| jwk["kid"] == *id));
            let rules = Rules::new(algorithm, None, None, 0);
            assert!(rules.verify_signature(b"e30.e30.e30", &key).is_err());
        }
    }
}

/// A line of the file of keys.
fn of_the_file(line: &[u8]) {
    let Ok(line) = std::str::from_utf8(line) else { return };
    match keys::parse_line(line) {
        Ok(Some(entry)) => {
            assert!(keys::is_name(&entry.name) && line.contains(&*entry.name) && line.contains(entry.tier.name()));
            let shown = format!("{entry:?}");
            assert!(
                line.split([':', '=']).all(|part| part.trim().len() < 64 || !shown.contains(part.trim())),
                "{shown}"
            );
        }
        Ok(None) => assert!(line.trim().is_empty() || line.trim().starts_with('#')),
        Err(_) => {}
    }
}

fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut out = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for digit in 0..=group.len() {
            out.push(char::from(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize]));
        }
    }
    out
}
