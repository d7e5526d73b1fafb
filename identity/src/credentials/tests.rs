use std::time::Instant;

use http::{HeaderMap, HeaderValue};
use outrigger_tokens::mint::{self, KeyPair, LATER, RSA_PUBLIC, RSA_TOKEN};
use outrigger_tokens::{Algorithm, Key, Rules};
use ring::digest;
use serde_json::{Value, json};

use super::*;
use crate::jwt::{ClaimNames, Signers};
use crate::keys::{Digest, Entry, KeyDigest};
use crate::verified::VerifiedKind;
use outrigger_policy::tier::Tier;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const NOW: u64 = 1_800_000_000;

fn users_with(rules: Rules, signers: Signers, remembered: usize) -> Users {
    let names = ClaimNames { user: "sub".to_owned(), tier: "tier".to_owned() };
    Users::new(rules, signers, names, remembered)
}

fn users() -> Users {
    let rules = Rules::new(Algorithm::Hs256, Some("me"), Some("docs"), 30);
    users_with(rules, Signers::Fixed(Key::secret(SECRET).unwrap()), 1000)
}

fn keys(known: &[(&str, &str, Tier)], counts_unknown: bool) -> Keys {
    let entries = known.iter().map(|(key, name, tier)| {
        let sha256 = digest::digest(&digest::SHA256, key.as_bytes());
        let hex: String = sha256.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let digest = KeyDigest::Sha256(Digest::from_hex(&hex).unwrap());
        Entry { name: (*name).to_owned(), digest, tier: *tier }
    });
    let table = KeyTable::new(entries.collect(), None);
    Keys { field: HeaderName::from_static("x-api-key"), table, counts_unknown }
}

fn credentials() -> Credentials {
    Credentials::new(keys(&[("sesame", "acme", Tier::Enterprise)], false), Some(users()))
}

fn fields(named: &[(&'static str, &str)]) -> HeaderMap {
    named.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())).collect()
}

fn identify(credentials: &Credentials, named: &[(&'static str, &str)]) -> Identified {
    let map = credentials.identify(Fields::Map(&fields(named)), || NOW);
    let wire: Vec<_> = named.iter().map(|(name, value)| httparse::Header { name, value: value.as_bytes() }).collect();
    assert_eq!(credentials.identify(Fields::Wire(&wire), || NOW), map);
    map
}

fn good() -> Value {
    json!({"sub": "ann", "exp": LATER, "aud": "docs", "iss": "me", "tier": "pro"})
}

fn bearer(claims: &Value) -> String {
    format!("Bearer {}", mint::hs256(claims, SECRET))
}

fn who(found: &Identified) -> Option<(VerifiedKind, &str, Tier)> {
    match &found.who {
        Who::Verified(verified) => Some((verified.kind, &verified.name, verified.tier)),
        Who::Address | Who::UnknownKey(_) => None,
    }
}

#[test]
fn a_user_takes_precedence_over_a_key_and_a_key_over_no_credential() {
    let credentials = credentials();
    let token = bearer(&good());
    let both = identify(&credentials, &[("authorization", &token), ("x-api-key", "sesame")]);
    assert_eq!(who(&both), Some((VerifiedKind::User, "ann", Tier::Pro)));
    assert_eq!(both.ignored().count(), 0);
    let key = identify(&credentials, &[("x-api-key", "sesame")]);
    assert_eq!(who(&key), Some((VerifiedKind::Key, "acme", Tier::Enterprise)));
    assert_eq!(identify(&credentials, &[]), Identified::default());
}

#[test]
fn a_bad_token_does_not_spoil_a_good_key() {
    let found = identify(&credentials(), &[("authorization", "Bearer junk"), ("x-api-key", "sesame")]);
    assert_eq!(who(&found), Some((VerifiedKind::Key, "acme", Tier::Enterprise)));
    assert_eq!((found.token, found.key), (Some(Ignored::BadToken), None));
}

#[test]
fn an_unverifiable_credential_is_ignored_and_counted_by_reason() {
    let credentials = credentials();
    let with = |field: &str, value: Value| {
        let mut claims = good();
        claims[field] = value;
        bearer(&claims)
    };
    let forged = format!("Bearer {}", mint::hs256(&good(), b"another secret of thirty-two byte"));
    let none = format!("Bearer {}", mint::token(&json!({"alg": "none"}), &good(), |_| Vec::new()));
    for (value, why) in [
        (forged, Ignored::BadToken),
        (none, Ignored::BadToken),
        (with("aud", json!("others")), Ignored::BadToken),
        (with("iss", json!("you")), Ignored::BadToken),
        (with("exp", Value::Null), Ignored::BadToken),
        (with("exp", json!(NOW - 31)), Ignored::ExpiredToken),
        (with("nbf", json!(NOW + 31)), Ignored::EarlyToken),
        (with("sub", Value::Null), Ignored::NamelessToken),
        (with("sub", json!("")), Ignored::NamelessToken),
        (with("sub", json!({"a": 1})), Ignored::BadToken),
        (with("sub", json!(true)), Ignored::NamelessToken),
        (with("sub", json!(1.5)), Ignored::NamelessToken),
        (with("sub", json!("a\nb")), Ignored::NamelessToken),
        (with("sub", json!("x".repeat(257))), Ignored::NamelessToken),
        (with("padding", json!("x".repeat(9000))), Ignored::LongToken),
        ("Bearer ".to_owned() + &"x".repeat(9000), Ignored::LongToken),
        ("Bearer x.y.z".to_owned(), Ignored::BadToken),
        ("Bearer  ".to_owned(), Ignored::BadToken),
    ] {
        // The second one comes from the cache.
        for _ in 0..2 {
            let found = identify(&credentials, &[("authorization", &value)]);
            assert_eq!((found.who, found.token), (Who::Address, Some(why)), "{value}");
        }
    }
    let found = identify(&credentials, &[("x-api-key", "Sesame")]);
    assert_eq!((found.who, found.key), (Who::Address, Some(Ignored::UnknownKey)));
}

#[test]
fn other_authorization_schemes_are_left_to_the_app() {
    let credentials = credentials();
    for value in ["Basic YW5uOnB3", "Bearer", "", "Bearerx.y.z", "Digest a=b"] {
        assert_eq!(identify(&credentials, &[("authorization", value)]), Identified::default(), "{value}");
    }
    let found = identify(&credentials, &[("authorization", &bearer(&good()).replace("Bearer ", "bEARER   "))]);
    assert!(who(&found).is_some());
}

#[test]
fn two_credentials_of_one_kind_are_both_ignored() {
    let credentials = credentials();
    let token = bearer(&good());
    let found = identify(&credentials, &[("authorization", &token), ("authorization", &token)]);
    assert_eq!((found.who, found.token), (Who::Address, Some(Ignored::BadToken)));
    let found = identify(&credentials, &[("x-api-key", "sesame"), ("x-api-key", "sesame")]);
    assert_eq!((found.who, found.key), (Who::Address, Some(Ignored::UnknownKey)));
}

#[test]
fn a_tier_comes_from_the_table_or_a_verified_claim_and_nothing_else() {
    let credentials = credentials();
    for field in ["x-tier", "tier", "x-user-tier", "x-outrigger-tier"] {
        assert_eq!(identify(&credentials, &[(field, "internal")]), Identified::default());
        let found = identify(&credentials, &[("authorization", &bearer(&good())), (field, "internal")]);
        assert_eq!(who(&found), Some((VerifiedKind::User, "ann", Tier::Pro)));
    }
    // A claim without a valid signature.
    let mut parts: Vec<String> = mint::hs256(&good(), SECRET).split('.').map(str::to_owned).collect();
    let mut claims = good();
    claims["tier"] = json!("internal");
    parts[1] = mint::base64url(claims.to_string().as_bytes());
    let found = identify(&credentials, &[("authorization", &format!("Bearer {}", parts.join(".")))]);
    assert_eq!((found.who, found.token), (Who::Address, Some(Ignored::BadToken)));
    for (claim, tier) in [
        (json!("internal"), Tier::Internal),
        (json!("anonymous"), Tier::Anonymous),
        (json!("Internal"), Tier::Free),
        (json!("gold"), Tier::Free),
        (json!(5), Tier::Free),
        (Value::Null, Tier::Free),
    ] {
        let mut claims = good();
        claims["tier"] = claim;
        let found = identify(&credentials, &[("authorization", &bearer(&claims))]);
        assert_eq!(who(&found), Some((VerifiedKind::User, "ann", tier)));
    }
}

#[test]
fn a_public_key_is_never_a_secret() {
    let rules = Rules::new(Algorithm::Rs256, None, None, 30);
    let key = Key::pem(Algorithm::Rs256, RSA_PUBLIC.as_bytes()).unwrap();
    let credentials = Credentials::new(keys(&[], false), Some(users_with(rules, Signers::Fixed(key), 1000)));
    let found = identify(&credentials, &[("authorization", &format!("Bearer {RSA_TOKEN}"))]);
    assert_eq!(who(&found), Some((VerifiedKind::User, "ann", Tier::Free)));
    let confused = mint::hs256(&json!({"sub": "ann", "exp": LATER}), RSA_PUBLIC.as_bytes());
    let found = identify(&credentials, &[("authorization", &format!("Bearer {confused}"))]);
    assert_eq!((found.who, found.token), (Who::Address, Some(Ignored::BadToken)));
}

#[test]
fn a_number_may_be_a_user() {
    let mut claims = good();
    claims["sub"] = json!(4711);
    let found = identify(&credentials(), &[("authorization", &bearer(&claims))]);
    assert_eq!(who(&found).unwrap().1, "4711");
}

#[test]
fn a_remembered_token_expires_and_the_clock_may_jump() {
    let users = users();
    let mut claims = good();
    (claims["nbf"], claims["exp"]) = (json!(NOW), json!(NOW + 100));
    let token = mint::hs256(&claims, SECRET);
    let at = |now: u64| users.identify(token.as_bytes(), now).map(|user| user.name.to_string());
    for (now, expected) in [
        (NOW, Ok("ann")),
        (NOW + 130, Ok("ann")),
        (NOW + 131, Err(Ignored::ExpiredToken)),
        // Back, far back, far ahead, and right again.
        (NOW + 50, Ok("ann")),
        (0, Err(Ignored::EarlyToken)),
        (u64::MAX, Err(Ignored::ExpiredToken)),
        (NOW - 30, Ok("ann")),
        (NOW - 31, Err(Ignored::EarlyToken)),
        (NOW + 1, Ok("ann")),
    ] {
        assert_eq!(at(now), expected.map(str::to_owned), "{now}");
    }
    assert_eq!(users.cached(), 1);
}

#[test]
fn a_token_that_is_verified_once_is_the_same_client_from_then_on() {
    let users = users();
    let token = mint::hs256(&good(), SECRET);
    let first = users.identify(token.as_bytes(), NOW).unwrap();
    let again = users.identify(token.as_bytes(), NOW + 1).unwrap();
    assert!(Arc::ptr_eq(&first, &again), "the second is remembered");
    let mut claims = good();
    claims["jti"] = json!(2);
    let another = users.identify(mint::hs256(&claims, SECRET).as_bytes(), NOW).unwrap();
    assert_eq!(first.hash, another.hash, "a user is one client with any token");
}

#[test]
fn any_number_of_distinct_tokens_keeps_within_its_bound() {
    let users =
        users_with(Rules::new(Algorithm::Hs256, None, None, 30), Signers::Fixed(Key::secret(SECRET).unwrap()), 2000);
    let kept = mint::hs256(&json!({"sub": "ann", "exp": LATER}), SECRET);
    let remembered = users.identify(kept.as_bytes(), NOW).unwrap();
    for n in 0..50_000 {
        assert!(users.identify(format!("a.b.{n}").as_bytes(), NOW).is_err());
        assert!(users.cached() <= 4000 || n % 1000 != 0);
    }
    assert!(users.cached() <= 4000);
    assert!(users.cached() > 1000, "and it does remember");
    let again = users.identify(kept.as_bytes(), NOW).unwrap();
    assert!(Arc::ptr_eq(&remembered, &again), "forged tokens displace no good one");
    for n in 0..5_000 {
        let good = mint::hs256(&json!({"sub": n, "exp": LATER}), SECRET);
        assert_eq!(&*users.identify(good.as_bytes(), NOW).unwrap().name, n.to_string());
    }
    assert!(users.cached() <= 4000);
}

#[test]
fn the_same_forged_token_costs_little() {
    let pair = KeyPair::p256();
    let rules = Rules::new(Algorithm::Es256, None, None, 30);
    let key = Key::pem(Algorithm::Es256, pair.pem().as_bytes()).unwrap();
    let users = users_with(rules, Signers::Fixed(key), 1000);
    let forged = KeyPair::p256().token(None, &json!({"sub": "ann", "exp": LATER}));
    assert_eq!(users.identify(forged.as_bytes(), NOW), Err(Ignored::BadToken));
    let began = Instant::now();
    for _ in 0..100_000 {
        assert_eq!(users.identify(forged.as_bytes(), NOW + 1), Err(Ignored::BadToken));
    }
    // Each signature would take some 100 µs, all of them 10 s.
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
}

#[test]
fn unknown_keys_are_separate_clients_if_configured() {
    let counting = Credentials::new(keys(&[], true), None);
    assert!(!counting.is_empty());
    let (a, b) = (identify(&counting, &[("x-api-key", "a")]), identify(&counting, &[("x-api-key", "b")]));
    assert!(matches!((&a.who, &b.who), (Who::UnknownKey(a), Who::UnknownKey(b)) if a != b));
    assert_eq!(a, identify(&counting, &[("x-api-key", "a")]));
    assert_eq!(a.key, None, "without a table none is unknown");
    assert_eq!(identify(&counting, &[("x-api-key", "")]), Identified::default());
    let long = "x".repeat(1025);
    assert_eq!(identify(&counting, &[("x-api-key", &long)]).who, Who::Address);
    let both = Credentials::new(keys(&[("sesame", "acme", Tier::Pro)], true), None);
    assert!(who(&identify(&both, &[("x-api-key", "sesame")])).is_some());
    // A client that sends the name instead of the key is a different client.
    let named = identify(&both, &[("x-api-key", "acme")]);
    let known = identify(&both, &[("x-api-key", "sesame")]);
    let (Who::UnknownKey(named), Who::Verified(known)) = (named.who, known.who) else { panic!() };
    assert_ne!(named, known.hash);
}

#[test]
fn without_configuration_credentials_are_not_read() {
    let nothing = Credentials::new(keys(&[], false), None);
    assert!(nothing.is_empty() && Credentials::default().is_empty());
    let found = nothing
        .identify(Fields::Map(&fields(&[("authorization", "Bearer x.y.z"), ("x-api-key", "k")])), || {
            panic!("nobody needs the time")
        });
    assert_eq!(found, Identified::default());
}

#[test]
fn a_hash_is_stable_and_differs_by_kind() {
    assert_eq!(client_hash(kind::USER, b"ann"), client_hash(kind::USER, b"ann"));
    assert_ne!(client_hash(kind::USER, b"ann"), client_hash(kind::KEY, b"ann"));
    assert_ne!(client_hash(kind::USER, b"ann"), client_hash(kind::USER, b"bob"));
    let user = Verified::new(VerifiedKind::User, "ann", Tier::Free);
    let key = Verified::new(VerifiedKind::Key, "ann", Tier::Free);
    assert_ne!(user.hash, key.hash);
    assert_eq!((user.shown(), key.shown()), ("user:ann".to_owned(), "key:ann".to_owned()));
}

#[test]
fn secrets_are_never_shown() {
    let shown = format!("{:?}", credentials());
    assert!(!shown.contains("0123") && !shown.contains("48, 49") && !shown.contains("sesame"), "{shown}");
}

#[test]
fn every_reason_has_its_own_label() {
    let labels: std::collections::HashSet<_> = Ignored::ALL.iter().map(|why| why.label()).collect();
    assert_eq!(labels.len(), Ignored::ALL.len());
}

proptest::proptest! {
    #[test]
    fn no_header_makes_it_panic(value in "\\PC{0,60}|Bearer [A-Za-z0-9_.-]{0,60}", key in "[!-~]{0,40}") {
        if let Ok(value) = HeaderValue::from_str(&value) {
            let mut map = fields(&[("x-api-key", &key)]);
            map.insert("authorization", value);
            let _ = credentials().identify(Fields::Map(&map), || NOW);
        }
    }
}
