use std::path::Path;
use std::sync::Arc;

use outrigger_identity::credentials::{Credentials, Who};
use outrigger_tokens::mint::{self, KeyPair, LATER, RSA_PUBLIC};
use outrigger_wire::request::Fields;
use serde_json::json;

use super::*;
use crate::config::Config;
use crate::environment::{JWT_SECRET, KEY_SECRET};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const DIGEST: &str = "abababababababababababababababababababababababababababababababab";

fn load(source: &str, environment: &[(&str, &str)]) -> Result<Arc<Credentials>, String> {
    let lookup = |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
    let config = Config::parse(Path::new("proxy.toml"), source, &lookup).map_err(|e| e.to_string())?;
    Ok(config.credentials)
}

/// A file that is deleted on drop.
struct Written(PathBuf);

impl Written {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("outrigger-identity-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn user(credentials: &Credentials, token: &str) -> Option<String> {
    let value = http::HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
    let map = http::HeaderMap::from_iter([(http::header::AUTHORIZATION, value)]);
    match credentials.identify(Fields::Map(&map), || 1_800_000_000).who {
        Who::Verified(verified) => Some(verified.shown()),
        Who::Address | Who::UnknownKey(_) => None,
    }
}

#[test]
fn credentials_are_not_read_unless_configured() {
    assert!(load("", &[]).unwrap().is_empty());
    assert!(!load("[identity]\nunknown_keys = \"count\"", &[]).unwrap().is_empty());
}

#[test]
fn keys_come_from_the_table_and_from_the_file() {
    let digest = "2348f998744212575d85959674f9607ab26f67708a917157472832386337c904"; // "open"
    let file = Written::new("keys", &format!("# who has what\n\nother:hmac_sha256={DIGEST}:pro\r\n"));
    let source = format!(
        "[identity]\nkey_field = \"X-Key\"\nkeys_file = {:?}\n[[identity.keys]]\nname = \"acme\"\nsha256 = {digest:?}\n",
        file.0
    );
    let credentials = load(&source, &[(KEY_SECRET, SECRET)]).unwrap();
    let map = http::HeaderMap::from_iter([(HeaderName::from_static("x-key"), http::HeaderValue::from_static("open"))]);
    let Who::Verified(verified) = credentials.identify(Fields::Map(&map), || 0).who else { panic!() };
    assert_eq!((verified.shown().as_str(), verified.tier), ("key:acme", Tier::Free));
    let missing = load(&source, &[]).unwrap_err();
    assert!(missing.contains("needs the secret that it is keyed with, in OUTRIGGER_KEY_SECRET"), "{missing}");
    let short = load(&source, &[(KEY_SECRET, "sekrit")]).unwrap_err();
    assert!(short.contains("environment, OUTRIGGER_KEY_SECRET: has 6 bytes") && !short.contains("sekrit"), "{short}");
}

#[test]
fn mistakes_in_keys_are_reported_with_position_and_without_the_key() {
    let source = format!(
        r#"
[identity]
key_field = "X Key"
unknown_keys = "refuse"

[[identity.keys]]
name = "acme"
sha256 = "sekrit-in-the-clear"

[[identity.keys]]
name = "acme"
key = "sekrit-in-the-clear"
sha256 = 7

[[identity.keys]]
name = "gold"
sha256 = "{DIGEST}"
tier = "gold"
"#
    );
    insta::assert_snapshot!(load(&source, &[]).unwrap_err());
    let source = format!(
        r#"
[[identity.keys]]
name = "a b"
sha256 = "{DIGEST}"

[[identity.keys]]
name = "neither"

[[identity.keys]]
name = "acme"
sha256 = "sekrit-in-the-clear"

[[identity.keys]]
name = "acme"
sha256 = "{DIGEST}"

[[identity.keys]]
name = "again"
sha256 = "{}"

[[identity.keys]]
name = "acme"
hmac_sha256 = "{DIGEST}"
"#,
        DIGEST.to_uppercase()
    );
    insta::assert_snapshot!(load(&source, &[(KEY_SECRET, SECRET)]).unwrap_err());
}

#[test]
fn mistakes_in_a_file_of_keys_are_reported_by_line_without_the_keys() {
    let lines = [
        "acme:sha256=sekrit:pro".to_owned(),
        format!("good:sha256={DIGEST}:pro"),
        format!("twice:sha256={DIGEST}:pro"),
        format!("good:hmac_sha256={DIGEST}:pro"),
    ];
    let file = Written::new("bad-keys", &(lines.join("\n") + &"\nsekrit".repeat(4)));
    let source = format!("[identity]\nkeys_file = {:?}\n", file.0);
    let error = load(&source, &[]).unwrap_err();
    let name = file.0.display();
    for expected in [
        "proxy.toml:2:13".to_owned(),
        format!("{name}:1: the digest needs 64 hexadecimal digits"),
        format!("{name}:3 has the same digest as the key of \"good\""),
        format!("{name}:4: another key is called \"good\" already"),
        format!("{name}:6: needs three parts"),
        format!("{name}: 2 more lines are wrong"),
    ] {
        assert!(error.contains(&expected), "{expected}\n{error}");
    }
    assert!(!error.contains("sekrit"), "{error}");
    let error = load("[identity]\nkeys_file = \"/nowhere/keys\"\n", &[]).unwrap_err();
    assert!(error.contains("`keys_file` cannot be read: /nowhere/keys: "), "{error}");
}

#[test]
fn tokens_are_verified_with_any_one_of_four() {
    let claims = json!({"sub": "ann", "exp": LATER});
    let token = mint::hs256(&claims, SECRET.as_bytes());
    let by_variable = load("", &[(JWT_SECRET, SECRET)]).unwrap();
    assert_eq!(user(&by_variable, &token).as_deref(), Some("user:ann"));
    let strict = load("[identity.jwt]\naudience = \"docs\"", &[(JWT_SECRET, SECRET)]).unwrap();
    assert_eq!(user(&strict, &token), None);
    let file = Written::new("secret", &format!("{SECRET}\r\n"));
    let by_file = load(&format!("[identity.jwt]\nsecret_file = {:?}", file.0), &[]).unwrap();
    assert_eq!(user(&by_file, &token).as_deref(), Some("user:ann"));
    for (pair, algorithm) in [(KeyPair::ed25519(), "EdDSA"), (KeyPair::p256(), "ES256")] {
        let file = Written::new(algorithm, &pair.pem());
        let source = format!("[identity.jwt]\nalgorithm = {algorithm:?}\nkey_file = {:?}", file.0);
        let by_key = load(&source, &[]).unwrap();
        assert_eq!(user(&by_key, &pair.token(None, &claims)).as_deref(), Some("user:ann"));
        assert_eq!(user(&by_key, &token), None);
    }
    let fetched =
        load("[identity.jwt]\nalgorithm = \"ES256\"\njwks_url = \"http://127.0.0.1:1/jwks.json\"\n", &[]).unwrap();
    assert!(fetched.jwks().is_some());
}

#[test]
fn claims_can_have_other_names() {
    let source = "[identity.jwt]\nuser_claim = \"https://example.com/uid\"\ntier_claim = \"plan\"\nleeway = \"0s\"";
    let credentials = load(source, &[(JWT_SECRET, SECRET)]).unwrap();
    let claims = json!({"sub": "x", "https://example.com/uid": "ann", "plan": "pro", "exp": LATER});
    assert_eq!(user(&credentials, &mint::hs256(&claims, SECRET.as_bytes())).as_deref(), Some("user:ann"));
}

#[test]
fn unusable_token_settings_are_reported_with_position() {
    let source = r#"
[identity.jwt]
algorithm = "none"
secret = "sekrit-in-the-clear"
leeway = "30"
jwks_url = "https://user:sekrit@login.example.com/"
cache = 5
"#;
    insta::assert_snapshot!(load(source, &[]).unwrap_err());
    insta::assert_snapshot!(load("[identity.jwt]\naudience = \"docs\"", &[]).unwrap_err());
    insta::assert_snapshot!(load("", &[(JWT_SECRET, "sekrit")]).unwrap_err());
    let source = "[identity.jwt]\nleeway = \"2h\"\njwks_refresh = \"10ms\"\naudience = \"\"\nuser_claim = \" \"\n";
    insta::assert_snapshot!(load(source, &[(JWT_SECRET, SECRET)]).unwrap_err());
    let source = "[identity.jwt]\nkey_file = \"a.pem\"\njwks_url = \"http://a/\"";
    insta::assert_snapshot!(load(source, &[(JWT_SECRET, SECRET)]).unwrap_err());
    // A public key is not accepted as a secret, nor a secret as a public key.
    insta::assert_snapshot!(load("[identity.jwt]\nkey_file = \"a.pem\"", &[]).unwrap_err());
    insta::assert_snapshot!(load("[identity.jwt]\nalgorithm = \"RS256\"", &[(JWT_SECRET, SECRET)]).unwrap_err());
}

#[test]
fn a_key_file_must_hold_what_the_algorithm_needs() {
    let file = Written::new("rsa", RSA_PUBLIC);
    let source = |algorithm: &str| format!("[identity.jwt]\nalgorithm = {algorithm:?}\nkey_file = {:?}", file.0);
    assert!(load(&source("RS256"), &[]).is_ok());
    let error = load(&source("ES256"), &[]).unwrap_err();
    assert!(error.contains("is not a public key for ES256"), "{error}");
    let error = load("[identity.jwt]\nsecret_file = \"/nowhere/secret\"", &[]).unwrap_err();
    assert!(error.contains("`secret_file` cannot be read: /nowhere/secret: "), "{error}");
    let short = Written::new("short", "sekrit\n");
    let error = load(&format!("[identity.jwt]\nsecret_file = {:?}", short.0), &[]).unwrap_err();
    assert!(error.contains("has 6 bytes; it could be guessed from a token") && !error.contains("sekrit"), "{error}");
}

#[test]
fn a_hundred_thousand_keys_load_in_no_time() {
    let lines: String = (0..100_000).map(|n| format!("client-{n}:sha256={n:064x}:free\n")).collect();
    let file = Written::new("many", &lines);
    let began = std::time::Instant::now();
    assert!(!load(&format!("[identity]\nkeys_file = {:?}", file.0), &[]).unwrap().is_empty());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}
