//! The client that a request counts for: only verified credentials matter, and all other requests are served too.

use std::fs;

use outrigger_tokens::mint::{self, KeyPair, LATER, RSA_PUBLIC, RSA_TOKEN};
use ring::hmac;
use serde_json::{Value, json};
use xtask::Signal;

use crate::backend::Backend;
use crate::harness::{Answer, Form, Proxy, Setup, every_form, from_address, get, hex, sha256, until, with_fields};
use crate::limits::{EDGE, NO_DEFAULTS, left, parsed, rule};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Each tier's requests per day; no other limit gives the same number.
const TIERS: &str = "tiers.anonymous = \"1x\"\ntiers.free = \"2x\"\ntiers.pro = \"5x\"\ntiers.enterprise = \"20x\"\n\
                     tiers.internal = \"30x\"\n";
const ANONYMOUS: i64 = 1000;
const FREE: i64 = 2000;
const PRO: i64 = 5000;
const ENTERPRISE: i64 = 20_000;
const INTERNAL: i64 = 30_000;

/// `more` is the section `identity`, and ends with a table.
fn rules(more: &str) -> String {
    format!("{TIERS}{NO_DEFAULTS}{more}\n{}", rule("each", "1000/1d", ""))
}

/// The client's quota per day, and the requests it has used.
#[track_caller]
fn quota_and_used(answer: &Answer) -> (i64, i64) {
    assert_eq!(answer.status, 200, "{answer:?}");
    let quota = parsed(answer, "ratelimit-policy")["each"]["q"];
    (quota, quota - left(answer, "each"))
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

/// Sends a request in every form; they must count for one new client.
#[track_caller]
fn is_new_client_with(proxy: &Proxy, field: &str, quota: i64) {
    for (used, request) in (1..).zip(every_form("/")) {
        let answer = proxy.ask(&with_fields(&request, &[field]));
        assert_eq!(quota_and_used(&answer), (quota, used), "{field}");
    }
}

/// With or without these headers, the request counts for its address.
#[track_caller]
fn is_its_address(proxy: &Proxy, fields: &[&str]) {
    for request in every_form("/") {
        let (_, before) = quota_and_used(&proxy.ask(&request));
        let answer = proxy.ask(&with_fields(&request, fields));
        assert_eq!(quota_and_used(&answer), (ANONYMOUS, before + 1), "{fields:?}");
    }
}

#[test]
fn a_key_is_identified_by_either_digest_and_has_a_tier() {
    let app = Backend::start();
    let keyed = |key: &str| {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
        hex(hmac::sign(&secret, key.as_bytes()).as_ref())
    };
    let keys = format!(
        "identity.keys_file = \"keys\"\n\
         [[identity.keys]]\nname = \"acme\"\nsha256 = \"{}\"\ntier = \"pro\"\n\
         [[identity.keys]]\nname = \"emca\"\nhmac_sha256 = \"{}\"\ntier = \"enterprise\"\n\
         [[identity.keys]]\nname = \"plain\"\nsha256 = \"{}\"\n",
        sha256("key-1"),
        keyed("key-2"),
        sha256("key-3").to_uppercase(),
    );
    let setup = Setup::new(&app, &rules(&keys)).env("OUTRIGGER_KEY_SECRET", SECRET);
    let line = |name: &str, digest: &str, tier: &str| format!("{name}:{digest}:{tier}\n");
    let of_file = line("ann@example.com", &format!("sha256={}", sha256("key-4")), "internal")
        + "# a comment\n\n"
        + &line("bob", &format!("hmac_sha256={}", keyed("key-5")), "anonymous");
    fs::write(setup.dir.join("keys"), &of_file).unwrap();
    let mut proxy = setup.start();
    let known = [("key-1", PRO), ("key-2", ENTERPRISE), ("key-3", FREE), ("key-4", INTERNAL), ("key-5", ANONYMOUS)];
    for (key, quota) in known {
        is_new_client_with(&proxy, &format!("X-API-KEY: {key}"), quota);
    }
    let digest = format!("X-Api-Key: {}", sha256("key-1"));
    for wrong in
        ["X-Api-Key: KEY-1", "X-Api-Key: key-11", "X-Api-Key: key-", "X-Api-Key: acme", "X-Key: key-1", &digest]
    {
        is_its_address(&proxy, &[wrong]);
    }
    is_its_address(&proxy, &["X-Api-Key:"]);
    proxy.counts("outrigger_credentials_refused_total", &[("reason", "unknown_key")], Form::NUMBER * 5);
    // A signal makes the proxy read the file of keys again.
    is_its_address(&proxy, &["X-Api-Key: key-6"]);
    fs::write(proxy.dir.join("keys"), of_file + &line("new", &format!("sha256={}", sha256("key-6")), "pro")).unwrap();
    proxy.signal(Signal::HUP);
    until("the new keys", || proxy.metric("outrigger_config_version", &[]) == 2.0);
    is_new_client_with(&proxy, "X-Api-Key: key-6", PRO);
    let log = proxy.log();
    assert!(!log.contains("key-1") && !log.contains(&sha256("key-1")) && !log.contains(SECRET), "{log}");
}

#[test]
fn an_unknown_key_is_a_separate_client_only_if_configured() {
    let app = Backend::start();
    let ignoring = Proxy::with(&app, &rules(""));
    is_its_address(&ignoring, &["X-Api-Key: made-up"]);
    let counting = Proxy::with(&app, &rules("identity.unknown_keys = \"count\"\nidentity.key_field = \"X-Token\"\n"));
    for key in ["one", "two"] {
        is_new_client_with(&counting, &format!("X-Token: {key}"), ANONYMOUS);
    }
    is_its_address(&counting, &["X-Api-Key: made-up"]);
}

#[test]
fn a_verified_token_names_the_user_for_every_algorithm() {
    let app = Backend::start();
    let (ed, ec) = (KeyPair::ed25519(), KeyPair::p256());
    let token = |algorithm: &str, claims: &Value| match algorithm {
        "HS256" => mint::hs256(claims, SECRET.as_bytes()),
        "ES256" => ec.token(None, claims),
        _ => ed.token(None, claims),
    };
    for (algorithm, place, key) in [
        ("HS256", "secret_file", format!("{SECRET}\n")),
        ("ES256", "key_file", ec.pem()),
        ("EdDSA", "key_file", ed.pem()),
        ("RS256", "key_file", RSA_PUBLIC.to_owned()),
    ] {
        let jwt = format!("[identity.jwt]\nalgorithm = \"{algorithm}\"\n{place} = \"key\"\n");
        let setup = Setup::new(&app, &rules(&jwt));
        fs::write(setup.dir.join("key"), key).unwrap();
        let proxy = setup.start();
        if algorithm == "RS256" {
            is_new_client_with(&proxy, &bearer(RSA_TOKEN), FREE);
            continue;
        }
        let claims = |user: &str, tier: Value| json!({"sub": user, "exp": LATER, "tier": tier});
        is_new_client_with(&proxy, &bearer(&token(algorithm, &claims("ann", json!("pro")))), PRO);
        is_new_client_with(&proxy, &bearer(&token(algorithm, &claims("bob", Value::Null))), FREE);
        is_new_client_with(&proxy, &bearer(&token(algorithm, &claims("eve", json!("boss")))), FREE);
        // Another token of the same user is the same client, from any address; schemes are case-insensitive.
        let again = shouted(&token(algorithm, &json!({"sub": "ann", "exp": LATER, "tier": "pro", "jti": 2})));
        assert_eq!(
            quota_and_used(&proxy.ask(&with_fields(&get("/"), &[&again]))),
            (PRO, Form::NUMBER as i64 + 1),
            "{algorithm}"
        );
        assert_eq!(proxy.metric("outrigger_credentials_refused_total", &[]), 0.0);
    }
    let variable = rules("[identity.jwt]\nuser_claim = \"uid\"\ntier_claim = \"plan\"\n");
    let proxy = Setup::new(&app, &variable).env("OUTRIGGER_JWT_SECRET", SECRET).start();
    let claims = json!({"sub": "x", "uid": 42, "exp": LATER, "tier": "internal", "plan": "enterprise"});
    is_new_client_with(&proxy, &bearer(&mint::hs256(&claims, SECRET.as_bytes())), ENTERPRISE);
}

fn shouted(token: &str) -> String {
    format!("authorization: bEARER  {token}")
}

#[test]
fn an_invalid_token_is_ignored_and_the_request_is_served() {
    let app = Backend::start();
    let jwt = "[identity.jwt]\nsecret_file = \"key\"\naudience = \"docs\"\nissuer = \"me\"\n";
    let setup = Setup::new(&app, &rules(jwt));
    fs::write(setup.dir.join("key"), SECRET).unwrap();
    let proxy = setup.start();
    let good = json!({"sub": "ann", "exp": LATER, "aud": "docs", "iss": "me", "tier": "internal"});
    let with = |field: &str, value: Value| {
        let mut claims = good.clone();
        claims[field] = value;
        mint::hs256(&claims, SECRET.as_bytes())
    };
    let fine = mint::hs256(&good, SECRET.as_bytes());
    is_new_client_with(&proxy, &bearer(&fine), INTERNAL);
    let unsigned = |alg: &str| mint::token(&json!({"alg": alg}), &good, |_| Vec::new());
    let long = bearer(&with("pad", json!("x".repeat(7000))));
    let cases = [
        (
            "bad_token",
            vec![
                bearer(&unsigned("none")),
                bearer(&unsigned("None")),
                bearer(&unsigned("HS256")),
                bearer(&mint::hs256(&good, b"another secret of thirty-two byte")),
                bearer(&with("aud", json!("others"))),
                bearer(&with("iss", json!("you"))),
                bearer(&with("aud", Value::Null)),
                bearer(&with("exp", Value::Null)),
                bearer(&with("sub", json!(["ann"]))),
                bearer(&fine[..fine.len() - 2]),
                bearer("not.a.token"),
                bearer(RSA_TOKEN),
            ],
        ),
        ("expired_token", vec![bearer(&with("exp", json!(1_700_000_000)))]),
        ("early_token", vec![bearer(&with("nbf", json!(LATER - 1)))]),
        ("nameless_token", vec![bearer(&with("sub", json!(""))), bearer(&with("sub", json!("a\nb")))]),
        ("long_token", vec![long]),
    ];
    for (reason, fields) in &cases {
        for field in fields {
            is_its_address(&proxy, &[field]);
        }
        proxy.counts("outrigger_credentials_refused_total", &[("reason", reason)], Form::NUMBER * fields.len());
    }
    for other_scheme in ["Authorization: Basic YW5uOnNlY3JldA==", "Authorization: Bearer"] {
        is_its_address(&proxy, &[other_scheme]);
    }
    assert!(!proxy.log().contains(&fine), "no token is logged");
}

#[test]
fn a_public_key_is_no_secret_to_sign_with() {
    let app = Backend::start();
    let setup = Setup::new(&app, &rules("[identity.jwt]\nalgorithm = \"RS256\"\nkey_file = \"key\"\n"));
    fs::write(setup.dir.join("key"), RSA_PUBLIC).unwrap();
    let proxy = setup.start();
    let claims = json!({"sub": "ann", "exp": LATER, "tier": "internal"});
    for secret in [RSA_PUBLIC, RSA_PUBLIC.trim_end()] {
        is_its_address(&proxy, &[&bearer(&mint::hs256(&claims, secret.as_bytes()))]);
    }
    proxy.counts("outrigger_credentials_refused_total", &[("reason", "bad_token")], 2 * Form::NUMBER);
}

#[test]
fn a_user_takes_precedence_over_a_key_and_is_a_different_client() {
    let app = Backend::start();
    let key = format!("[[identity.keys]]\nname = \"ann\"\nsha256 = \"{}\"\ntier = \"enterprise\"\n", sha256("key-1"));
    let setup = Setup::new(&app, &rules(&format!("{EDGE}[identity.jwt]\nsecret_file = \"key\"\n{key}")));
    fs::write(setup.dir.join("key"), SECRET).unwrap();
    let proxy = setup.start();
    let token = bearer(&mint::hs256(&json!({"sub": "ann", "exp": LATER, "tier": "pro"}), SECRET.as_bytes()));
    let ask = |fields: &[&str], address: &str| {
        quota_and_used(&proxy.ask(&from_address(&with_fields(&get("/"), fields), address)))
    };
    assert_eq!(ask(&["X-Api-Key: key-1"], "203.0.113.1"), (ENTERPRISE, 1));
    assert_eq!(ask(&[&token], "203.0.113.1"), (PRO, 1));
    assert_eq!(ask(&["X-Api-Key: key-1", &token], "203.0.113.2"), (PRO, 2), "a user, wherever it is");
    assert_eq!(ask(&["X-Api-Key: key-1"], "203.0.113.2"), (ENTERPRISE, 2));
    assert_eq!(ask(&["X-Api-Key: key-1", "Authorization: Bearer x.y.z"], "203.0.113.3"), (ENTERPRISE, 3));
}

/// The app may read the other one, so that the proxy and the app would see different clients.
#[test]
fn a_repeated_credential_is_rejected_and_no_other_spelling_reaches_the_app() {
    let app = Backend::start();
    let key = format!("[[identity.keys]]\nname = \"acme\"\nsha256 = \"{}\"\n", sha256("key-1"));
    let setup = Setup::new(&app, &rules(&format!("[identity.jwt]\nsecret_file = \"key\"\n{key}")));
    fs::write(setup.dir.join("key"), SECRET).unwrap();
    let proxy = setup.start();
    let fine = bearer(&mint::hs256(&json!({"sub": "ann", "exp": LATER}), SECRET.as_bytes()));
    let joined = format!("{fine}, {}", &fine["Authorization: ".len()..]);
    let repeated: [&[&str]; 9] = [
        &["X-Api-Key: key-1", "X-Api-Key: key-1"],
        &["X-Api-Key: key-1", "X-Api-Key:"],
        &["X-Api-Key:", "x-api-key: key-1"],
        &["X-Api-Key: key-1", "X-Api-Key: other"],
        &["X-Api-Key: key-1, key-1"],
        &[&fine, &fine],
        &[&fine, "Authorization: Basic YW5uOnNlY3JldA=="],
        &["Authorization: Basic YW5uOnNlY3JldA==, Bearer x"],
        &[&joined],
    ];
    for (fields, number) in repeated.iter().zip(1..) {
        for request in every_form("/") {
            proxy.ask(&with_fields(&request, fields)).is_problem(400, "repeated_credential");
        }
        proxy.counts_rejections("repeated_credential", Form::NUMBER * number);
    }
    assert_eq!(app.requests(), 0);
    // Not a credential for Outrigger, or one of each kind.
    for fields in [&["Authorization: Digest username=\"a\", realm=\"b\""][..], &["X-Api-Key: key-1", &fine]] {
        for request in every_form("/") {
            assert_eq!(proxy.ask(&with_fields(&request, fields)).status, 200, "{fields:?}");
        }
    }
    for twin in ["X_Api_Key", "x-api_key", "X.Api.Key"] {
        for request in every_form("/") {
            let answer = proxy.ask(&with_fields(&request, &[&format!("{twin}: key-1")]));
            assert_eq!((answer.status, answer.seen(&twin.to_ascii_lowercase())), (200, None));
        }
    }
    proxy.counts("outrigger_forged_fields_total", &[], 3 * Form::NUMBER);
}

#[test]
fn unverified_claims_of_tier_priority_or_name_are_ignored() {
    let app = Backend::start();
    let low = "[[routes]]\nname = \"low\"\npath = \"/low\"\npriority = \"low\"\n";
    let proxy = Proxy::with(&app, &(rules("") + low));
    let claims = [
        "X-Tier: internal",
        "X-User-Tier: internal",
        "X-Priority: critical",
        "X-Request-Priority: critical",
        "X-Client-Id: other",
        "X-User-Id: ann",
        "X-Outrigger-Tier: internal",
        "Priority: u=0",
        "Tier: internal",
    ];
    for claim in claims {
        is_its_address(&proxy, &[claim]);
    }
    is_its_address(&proxy, &claims);
    let asked = 2 * Form::NUMBER * (claims.len() + 1);
    proxy.counts("outrigger_requests_total", &[("priority", "medium")], asked);
    let answer = proxy.ask(&with_fields(&get("/low"), &claims));
    assert_eq!(answer.status, 200);
    proxy.counts("outrigger_requests_total", &[("priority", "low")], 1);
    proxy.counts("outrigger_requests_total", &[], asked + 1);
}

#[test]
fn credentials_reach_the_app_as_they_were_sent() {
    let app = Backend::start();
    let key = format!("[[identity.keys]]\nname = \"ann\"\nsha256 = \"{}\"\n", sha256("key-1"));
    let setup = Setup::new(&app, &rules(&format!("[identity.jwt]\nsecret_file = \"key\"\n{key}")));
    fs::write(setup.dir.join("key"), SECRET).unwrap();
    let proxy = setup.start();
    let fine = bearer(&mint::hs256(&json!({"sub": "ann", "exp": LATER}), SECRET.as_bytes()));
    for token in [
        &fine,
        "Authorization: Bearer junk",
        "Authorization: Basic YW5uOnNlY3JldA==",
        "Authorization: Custom a=\"b\",  c",
    ] {
        for key in ["X-Api-Key: key-1", "X-Api-Key: unknown"] {
            for request in every_form("/") {
                let answer = proxy.ask(&with_fields(&request, &[token, key, "Cookie: session=1"]));
                let seen = |name| answer.seen(name);
                assert_eq!(seen("authorization").as_deref(), token.split_once(": ").map(|(_, value)| value));
                assert_eq!(seen("x-api-key").as_deref(), key.split_once(": ").map(|(_, value)| value));
                assert_eq!(seen("cookie").as_deref(), Some("session=1"));
            }
        }
    }
}

/// A response with these keys, as an issuer publishes them.
fn published(keys: &[Value]) -> String {
    let body = json!({ "keys": keys }).to_string();
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn an_issuers_keys_are_fetched_in_the_background_and_updated() {
    let (app, mut issuer) = (Backend::start(), Backend::start());
    let (old, new) = (KeyPair::p256(), KeyPair::p256());
    issuer.says("/jwks", &published(&[old.jwk("old")]));
    let jwt = format!(
        "[identity.jwt]\nalgorithm = \"ES256\"\njwks_url = \"http://{}/jwks\"\njwks_refresh = \"1s\"\n",
        issuer.address()
    );
    let proxy = Proxy::with(&app, &rules(&jwt));
    let token =
        |pair: &KeyPair, kid, user| bearer(&pair.token(Some(kid), &json!({"sub": user, "exp": LATER, "tier": "pro"})));
    let quota = |field: &str| quota_and_used(&proxy.ask(&with_fields(&get("/"), &[field]))).0;
    until("the first keys", || quota(&token(&old, "old", "first")) == PRO);
    is_new_client_with(&proxy, &token(&old, "old", "ann"), PRO);
    for (kid, user) in [("new", "bob"), ("old", "eve")] {
        is_its_address(&proxy, &[&token(&new, kid, user)]);
    }
    proxy.counts("outrigger_credentials_refused_total", &[("reason", "unknown_signer")], Form::NUMBER);
    // Both keys for a while, as issuers rotate them; then only the new one.
    issuer.says("/jwks", &published(&[old.jwk("old"), new.jwk("new")]));
    until("the new key", || quota(&token(&new, "new", "second")) == PRO);
    assert_eq!(quota(&token(&old, "old", "ann")), PRO);
    issuer.says("/jwks", &published(&[new.jwk("new")]));
    until("the old key to be gone", || quota(&token(&old, "old", "ann")) == ANONYMOUS);
    is_new_client_with(&proxy, &token(&new, "new", "bob"), PRO);
    // An invalid key set, or an unreachable issuer, changes nothing.
    let fetches = issuer.requests_to("/jwks");
    issuer.says("/jwks", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
    issuer.gets(fetches + 2, "/jwks");
    assert_eq!(quota(&token(&new, "new", "bob")), PRO);
    issuer.stop();
    proxy.says("the issuer's keys cannot be fetched");
    assert_eq!(quota(&token(&new, "new", "bob")), PRO);
}

#[test]
fn an_issuer_that_does_not_respond_delays_no_request() {
    let (app, issuer) = (Backend::start(), Backend::start());
    issuer.at("/jwks", crate::backend::Play::Hang);
    let jwt = format!("[identity.jwt]\nalgorithm = \"ES256\"\njwks_url = \"http://{}/jwks\"\n", issuer.address());
    let proxy = Proxy::with(&app, &rules(&jwt));
    issuer.gets(1, "/jwks");
    is_its_address(&proxy, &[&bearer(&KeyPair::p256().token(Some("k"), &json!({"sub": "ann", "exp": LATER})))]);
    proxy.counts("outrigger_credentials_refused_total", &[("reason", "no_signers")], Form::NUMBER);
}
