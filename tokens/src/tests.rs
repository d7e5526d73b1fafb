use ring::hmac;
use serde_json::{Value, json};

use super::mint::{self, KeyPair, LATER, RSA_PUBLIC, RSA_TOKEN};
use super::*;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const NOW: u64 = 1_800_000_000;

fn user(verifier: &Verifier, token: &str) -> Result<String, Refused> {
    verifier.verify(token.as_bytes(), NOW).map(|claims| claims.text("sub").unwrap_or_default().to_owned())
}

fn is_invalid(outcome: &Result<String, Refused>) -> bool {
    matches!(outcome, Err(Refused::Invalid(_)))
}

fn with_secret() -> Verifier {
    Verifier::new(Key::secret(SECRET).unwrap(), Some("me"), Some("docs"), 30)
}

fn good() -> Value {
    json!({"sub": "ann", "exp": LATER, "aud": "docs", "iss": "me", "tier": "pro"})
}

#[test]
fn a_token_counts_only_if_all_of_it_is_right() {
    let verifier = with_secret();
    let token = mint::hs256(&good(), SECRET);
    assert_eq!(user(&verifier, &token), Ok("ann".to_owned()));
    assert_eq!(verifier.verify(token.as_bytes(), NOW).unwrap().text("tier"), Some("pro"));
    for (field, value) in [
        ("exp", Value::Null),
        ("exp", json!("2100-01-01")),
        ("exp", json!(-1)),
        ("exp", json!(1e300)),
        ("nbf", json!("today")),
        ("nbf", json!([1])),
        ("aud", json!("others")),
        ("aud", json!(["others"])),
        ("aud", Value::Null),
        ("aud", json!(7)),
        ("iss", json!("you")),
        ("iss", Value::Null),
    ] {
        let mut bad = good();
        bad[field] = value.clone();
        assert!(is_invalid(&user(&verifier, &mint::hs256(&bad, SECRET))), "{field}: {value}");
    }
    assert!(is_invalid(&user(&verifier, &mint::hs256(&good(), b"another secret of thirty-two byte"))));
    for text in ["", ".", "..", "...", "a.b.c", &token[1..], &token[..token.len() - 1], &format!("{token}.x")] {
        assert!(is_invalid(&user(&verifier, text)), "{text}");
    }
}

#[test]
fn an_audience_may_be_one_of_many() {
    let mut claims = good();
    claims["aud"] = json!(["others", "docs"]);
    assert_eq!(user(&with_secret(), &mint::hs256(&claims, SECRET)), Ok("ann".to_owned()));
}

#[test]
fn times_are_checked_with_leeway_for_any_clock() {
    let verifier = with_secret();
    let mut claims = good();
    (claims["nbf"], claims["exp"]) = (json!(1000), json!(2000.4));
    let claims = verifier.rules.verify_signature(mint::hs256(&claims, SECRET).as_bytes(), &verifier.key).unwrap();
    let expected = [
        (0, Err(Refused::Early)),
        (969, Err(Refused::Early)),
        (970, Ok(())),
        (2030, Ok(())),
        (2031, Err(Refused::Expired)),
        (u64::MAX, Err(Refused::Expired)),
        // The clock was set back.
        (1500, Ok(())),
    ];
    for (now, outcome) in expected {
        assert_eq!(claims.lifetime.check(now), outcome, "{now}");
    }
    let endless = Lifetime { begins: 0, expires: u64::MAX, leeway_s: u64::MAX };
    assert_eq!(endless.check(u64::MAX), Ok(()));
}

#[test]
fn only_the_pinned_algorithm_is_tried() {
    let verifier = with_secret();
    for alg in ["none", "None", "nOnE", "HS384", "HS512", "RS256", "ES256", "EdDSA", ""] {
        let sign = |message: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), message).as_ref().to_vec();
        let signed = mint::token(&json!({"alg": alg}), &good(), sign);
        let unsigned = mint::token(&json!({"alg": alg}), &good(), |_| Vec::new());
        for token in [signed, unsigned] {
            assert!(is_invalid(&user(&verifier, &token)), "{alg}");
        }
    }
}

#[test]
fn a_token_that_requires_extensions_is_rejected() {
    let sign = |message: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), message).as_ref().to_vec();
    let token = mint::token(&json!({"alg": "HS256", "crit": ["b64"], "b64": true}), &good(), sign);
    assert!(is_invalid(&user(&with_secret(), &token)));
}

#[test]
fn a_public_key_is_no_secret() {
    let verifier = Verifier::new(Key::pem(Algorithm::Rs256, RSA_PUBLIC.as_bytes()).unwrap(), None, None, 30);
    assert_eq!(user(&verifier, RSA_TOKEN), Ok("ann".to_owned()));
    let claims = json!({"sub": "ann", "exp": LATER});
    let der = RSA_PUBLIC.replace("-----BEGIN PUBLIC KEY-----\n", "");
    for secret in [RSA_PUBLIC, RSA_PUBLIC.trim_end(), &der] {
        assert!(is_invalid(&user(&verifier, &mint::hs256(&claims, secret.as_bytes()))));
    }
    assert!(Key::pem(Algorithm::Hs256, RSA_PUBLIC.as_bytes()).is_err());
    // A key and rules for different algorithms verify nothing.
    let rules = Rules::new(Algorithm::Hs256, None, None, 30);
    let key = Key::pem(Algorithm::Rs256, RSA_PUBLIC.as_bytes()).unwrap();
    assert!(rules.verify_signature(RSA_TOKEN.as_bytes(), &key).is_err());
    assert!(rules.verify_signature(mint::hs256(&claims, RSA_PUBLIC.as_bytes()).as_bytes(), &key).is_err());
}

#[test]
fn every_kind_of_key_verifies_only_its_own_signatures() {
    let claims = json!({"sub": "ann", "exp": LATER});
    for (ours, theirs) in [(KeyPair::ed25519(), KeyPair::ed25519()), (KeyPair::p256(), KeyPair::p256())] {
        let pem = Key::pem(ours.algorithm(), ours.pem().as_bytes()).unwrap();
        let (kid, jwk) = Key::jwk(ours.algorithm(), &ours.jwk("k1")).unwrap();
        assert_eq!(kid.as_deref(), Some("k1"));
        assert!(pem.is(&jwk));
        for key in [pem, jwk] {
            let verifier = Verifier::new(key, None, None, 0);
            assert_eq!(user(&verifier, &ours.token(None, &claims)), Ok("ann".to_owned()));
            assert!(is_invalid(&user(&verifier, &theirs.token(None, &claims))));
        }
    }
    let (_, key) = Key::jwk(Algorithm::Rs256, &mint::rsa_jwk("k1")).unwrap();
    assert_eq!(user(&Verifier::new(key, None, None, 0), RSA_TOKEN), Ok("ann".to_owned()));
}

#[test]
fn a_web_key_counts_only_for_what_it_is_meant_for() {
    let good = KeyPair::p256().jwk("k1");
    assert!(Key::jwk(Algorithm::Es256, &good).is_ok());
    for (field, value) in [
        ("kty", json!("oct")),
        ("kty", json!("RSA")),
        ("crv", json!("P-384")),
        ("use", json!("enc")),
        ("alg", json!("ES384")),
        ("alg", json!("HS256")),
        ("key_ops", json!(["sign"])),
        ("x", json!("AAAA")),
        ("x", json!("***")),
        ("y", Value::Null),
    ] {
        let mut bad = good.clone();
        bad[field] = value.clone();
        assert!(Key::jwk(Algorithm::Es256, &bad).is_err(), "{field}: {value}");
    }
    for algorithm in [Algorithm::Hs256, Algorithm::Rs256, Algorithm::EdDsa] {
        assert!(Key::jwk(algorithm, &good).is_err(), "{algorithm:?}");
    }
    let secret = json!({"kty": "oct", "k": mint::base64url(SECRET), "alg": "HS256"});
    assert!(Key::jwk(Algorithm::Hs256, &secret).is_err());
    let mut short = mint::rsa_jwk("k1");
    short["n"] = json!(mint::base64url(&[0xc5; 128]));
    assert!(Key::jwk(Algorithm::Rs256, &short).is_err());
    for junk in [json!(null), json!({}), json!([]), json!("key")] {
        assert!(Key::jwk(Algorithm::Es256, &junk).is_err(), "{junk}");
    }
}

#[test]
fn a_secret_must_be_long_and_a_key_file_must_fit() {
    assert_eq!(Key::secret(b"short").unwrap_err(), KeyError::ShortSecret { bytes: 5 });
    let (ed, ec) = (KeyPair::ed25519().pem(), KeyPair::p256().pem());
    for (algorithm, pem) in [
        (Algorithm::Es256, RSA_PUBLIC),
        (Algorithm::EdDsa, RSA_PUBLIC),
        (Algorithm::Rs256, &ed),
        (Algorithm::Es256, &ed),
        (Algorithm::EdDsa, &ec),
        (Algorithm::Rs256, &ec),
        (Algorithm::Rs256, "no PEM at all"),
        (Algorithm::Rs256, ""),
    ] {
        let error = Key::pem(algorithm, pem.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(&format!("is not a public key for {}", algorithm.name())), "{error}");
    }
}

#[test]
fn the_secret_is_never_shown() {
    let shown = format!("{:?}", with_secret());
    assert!(!shown.contains("0123456789") && !shown.contains("48, 49, 50"), "{shown}");
}

#[test]
fn the_key_id_is_read_before_verification() {
    let pair = KeyPair::ed25519();
    assert_eq!(unverified_key_id(pair.token(Some("k1"), &json!({})).as_bytes()), Ok(Some("k1".to_owned())));
    assert_eq!(unverified_key_id(pair.token(None, &json!({})).as_bytes()), Ok(None));
    assert!(unverified_key_id(b"junk").is_err());
}
