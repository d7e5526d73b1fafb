//! Who calls: an API key or a JWT. Both are checked here again, although the proxy knows them too: whoever reaches the
//! socket is not trusted for that.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, header};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use ring::digest;
use subtle::{Choice, ConstantTimeEq};

use crate::App;
use crate::config::{AuthMode, AuthSettings, ConfigError, KeyAlgorithm};
use crate::cursor::unhex;
use crate::error::ApiError;

/// Seconds that the clocks of issuer and app may differ.
const LEEWAY_S: u64 = 30;

/// What callers must show.
#[derive(Debug)]
pub struct Authenticator {
    mode: AuthMode,
    keys: Vec<ApiKey>,
    jwt: Option<Jwt>,
}

/// Who called. Goes into the request's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// Authentication is off.
    Anybody,
    /// The name of the key.
    Key(String),
    /// The token's `sub`.
    User(String),
}

#[derive(Debug)]
struct ApiKey {
    name: String,
    sha256: Vec<u8>,
}

struct Jwt {
    key: DecodingKey,
    validation: Validation,
}

impl std::fmt::Debug for Jwt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jwt").field("algorithms", &self.validation.algorithms).finish_non_exhaustive()
    }
}

#[derive(serde::Deserialize)]
struct Claims {
    #[serde(default)]
    sub: String,
}

impl Authenticator {
    /// Reads the keys.
    ///
    /// # Errors
    /// A key cannot be read, or there is none although authentication is on.
    pub fn new(settings: &AuthSettings) -> Result<Self, ConfigError> {
        let keys = settings.api_keys.as_ref().map_or(Ok(Vec::new()), |keys| parse_keys(keys.expose()))?;
        let jwt = Jwt::new(settings)?;
        if settings.auth == AuthMode::On && keys.is_empty() && jwt.is_none() {
            return Err(ConfigError::setting(
                "APP_API_KEYS",
                "nobody could use the documents API: neither API keys nor a JWT key are configured",
                "set APP_API_KEYS, APP_JWT_SECRET or APP_JWT_KEY_FILE; APP_AUTH=off lets everybody in",
            ));
        }
        Ok(Self { mode: settings.auth, keys, jwt })
    }

    /// Whether anybody may call.
    pub fn is_off(&self) -> bool {
        self.mode == AuthMode::Off
    }

    /// Who sent these headers. A key counts before a token.
    ///
    /// # Errors
    /// Why nobody can be told, as a metric's label.
    fn identify(&self, headers: &HeaderMap) -> Result<Principal, Refusal> {
        if self.is_off() {
            return Ok(Principal::Anybody);
        }
        if let Some(key) = headers.get("x-api-key") {
            return self.key_named(key.as_bytes()).ok_or(Refusal::UnknownKey);
        }
        let Some(authorization) = headers.get(header::AUTHORIZATION) else { return Err(Refusal::Missing) };
        let text = authorization.to_str().map_err(|_| Refusal::BadToken)?;
        let (scheme, token) = text.split_once(' ').ok_or(Refusal::Missing)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Refusal::Missing);
        }
        let jwt = self.jwt.as_ref().ok_or(Refusal::BadToken)?;
        jwt.user(token.trim()).map(Principal::User).ok_or(Refusal::BadToken)
    }

    fn key_named(&self, presented: &[u8]) -> Option<Principal> {
        let presented = digest::digest(&digest::SHA256, presented);
        let mut found = None;
        // All of them, always: the time must not tell which one came close.
        for key in &self.keys {
            let same: Choice = key.sha256.ct_eq(presented.as_ref());
            if bool::from(same) {
                found = Some(Principal::Key(key.name.clone()));
            }
        }
        found
    }
}

/// Why a request is nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Missing,
    UnknownKey,
    BadToken,
}

impl Refusal {
    /// Metric label, what to do, and the challenge of the answer.
    const fn table(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Missing => (
                "missing",
                "send an API key in X-Api-Key, or a JWT as Authorization: Bearer TOKEN",
                "Bearer realm=\"documents\"",
            ),
            Self::UnknownKey => ("unknown_key", "this API key is not known here", "Bearer realm=\"documents\""),
            Self::BadToken => (
                "bad_token",
                "this token is not valid here: wrong signature, algorithm, audience or issuer, or expired",
                "Bearer realm=\"documents\", error=\"invalid_token\"",
            ),
        }
    }
}

/// The layer around the documents API.
pub async fn require(State(app): State<App>, mut request: Request, next: Next) -> Response {
    match app.auth.identify(request.headers()) {
        Ok(principal) => {
            request.extensions_mut().insert(principal);
            next.run(request).await
        }
        Err(refusal) => {
            let (label, what_to_do, challenge) = refusal.table();
            app.metrics.auth_refusals.with_label_values(&[label]).inc();
            let mut response = ApiError::Unauthorized(what_to_do).into_response();
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
            response
        }
    }
}

fn parse_keys(text: &str) -> Result<Vec<ApiKey>, ConfigError> {
    const HINT: &str = "write name:SHA256, several with commas; `printf %s KEY | sha256sum` makes the digest";
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    items
        .enumerate()
        .map(|(at, item)| {
            // The item itself might be a key in the clear: its place must do.
            let bad = || ConfigError::setting("APP_API_KEYS", format!("entry {} is no name:digest", at + 1), HINT);
            let (name, digest) = item.split_once(':').ok_or_else(bad)?;
            let sha256 =
                unhex(digest.trim()).filter(|bytes| bytes.len() == digest::SHA256_OUTPUT_LEN).ok_or_else(bad)?;
            if name.trim().is_empty() {
                return Err(bad());
            }
            Ok(ApiKey { name: name.trim().to_owned(), sha256 })
        })
        .collect()
}

impl Jwt {
    fn new(settings: &AuthSettings) -> Result<Option<Self>, ConfigError> {
        let (algorithm, key) = match (&settings.jwt_secret, &settings.jwt_key_file) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => {
                let problem = "is set besides APP_JWT_SECRET, and a token must not choose how it is verified";
                return Err(ConfigError::setting("APP_JWT_KEY_FILE", problem, "set one of the two"));
            }
            (Some(secret), None) => {
                let secret = secret.expose().as_bytes();
                if secret.len() < 32 {
                    let problem = format!("has {} bytes; whoever sees one token could guess it", secret.len());
                    return Err(ConfigError::setting("APP_JWT_SECRET", problem, "use at least 32 random bytes"));
                }
                (Algorithm::HS256, DecodingKey::from_secret(secret))
            }
            (None, Some(file)) => {
                let bad = |problem: String| {
                    let problem = format!("{}: {problem}", file.display());
                    let hint = "give the PEM of a public key that fits APP_JWT_ALGORITHM";
                    ConfigError::setting("APP_JWT_KEY_FILE", problem, hint)
                };
                let pem = std::fs::read(file).map_err(|e| bad(e.to_string()))?;
                let (algorithm, key) = match settings.jwt_algorithm {
                    KeyAlgorithm::Rs256 => (Algorithm::RS256, DecodingKey::from_rsa_pem(&pem)),
                    KeyAlgorithm::Es256 => (Algorithm::ES256, DecodingKey::from_ec_pem(&pem)),
                    KeyAlgorithm::EdDsa => (Algorithm::EdDSA, DecodingKey::from_ed_pem(&pem)),
                };
                let key = key.map_err(|e| bad(format!("is no public key for {algorithm:?} ({e})")))?;
                (algorithm, key)
            }
        };
        // One algorithm only: a token must not choose how it is verified.
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY_S;
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp"]);
        match &settings.jwt_audience {
            Some(audience) => {
                validation.set_audience(&[audience]);
                validation.required_spec_claims.insert("aud".to_owned());
            }
            None => validation.validate_aud = false,
        }
        if let Some(issuer) = &settings.jwt_issuer {
            validation.set_issuer(&[issuer]);
            validation.required_spec_claims.insert("iss".to_owned());
        }
        Ok(Some(Self { key, validation }))
    }

    /// The token's subject, if the token is good.
    fn user(&self, token: &str) -> Option<String> {
        match jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation) {
            Ok(token) => Some(token.claims.sub),
            Err(error) => {
                tracing::debug!(error = %error, "a token was refused: {error}");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use crate::cursor::hex;
    use jsonwebtoken::{EncodingKey, Header};
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
    use serde_json::{Value, json};

    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    const LATER: u64 = 4_102_444_800;

    fn authenticator(arguments: &[&str]) -> Result<Authenticator, ConfigError> {
        crate::jwt_ring::install();
        let arguments = [&["outrigger-app"], arguments].concat();
        Authenticator::new(&Settings::read(arguments.into_iter().map(Into::into)).unwrap().auth)
    }

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(name), value.parse().unwrap())])
    }

    fn bearer(token: &str) -> HeaderMap {
        headers("authorization", &format!("Bearer {token}"))
    }

    fn hs256(claims: &Value, secret: &str) -> HeaderMap {
        let key = EncodingKey::from_secret(secret.as_bytes());
        bearer(&jsonwebtoken::encode(&Header::default(), claims, &key).unwrap())
    }

    /// `header.payload` in base64, to be signed with something else.
    fn unsigned(algorithm: &str) -> String {
        let token = jsonwebtoken::encode(
            &Header::default(),
            &json!({"sub": "ann", "exp": LATER}),
            &EncodingKey::from_secret(b"x"),
        )
        .unwrap();
        let payload = token.split('.').nth(1).unwrap();
        let header = match algorithm {
            "ES256" => "eyJhbGciOiJFUzI1NiJ9",
            "EdDSA" => "eyJhbGciOiJFZERTQSJ9",
            _ => "eyJhbGciOiJub25lIn0",
        };
        format!("{header}.{payload}")
    }

    fn base64url(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let bits: String = bytes.iter().map(|byte| format!("{byte:08b}")).collect();
        let sextets = bits.as_bytes().chunks(6);
        sextets
            .map(|six| {
                let text = format!("{:0<6}", std::str::from_utf8(six).unwrap());
                char::from(DIGITS[usize::from_str_radix(&text, 2).unwrap()])
            })
            .collect()
    }

    /// A key file with this DER prefix and public key.
    fn key_file(name: &str, prefix: &str, public: &[u8]) -> String {
        let der = [&unhex(prefix).unwrap(), public].concat();
        let base64 = base64url(&der).replace('-', "+").replace('_', "/");
        let padding = "=".repeat((4 - base64.len() % 4) % 4);
        pem_file(name, &format!("-----BEGIN PUBLIC KEY-----\n{base64}{padding}\n-----END PUBLIC KEY-----\n"))
    }

    fn pem_file(name: &str, pem: &str) -> String {
        let path = std::env::temp_dir().join(format!("outrigger-app-{}-{name}.pem", std::process::id()));
        std::fs::write(&path, pem).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_known_key_is_its_name() {
        let digest = hex(digest::digest(&digest::SHA256, b"sesame").as_ref());
        let keys = format!("other:{}, dev:{digest}", "00".repeat(32));
        let auth = authenticator(&["--api-keys", &keys]).unwrap();
        assert_eq!(auth.identify(&headers("x-api-key", "sesame")), Ok(Principal::Key("dev".to_owned())));
        assert_eq!(auth.identify(&headers("x-api-key", "Sesame")), Err(Refusal::UnknownKey));
        assert_eq!(auth.identify(&headers("x-api-key", &digest)), Err(Refusal::UnknownKey));
        assert_eq!(auth.identify(&HeaderMap::new()), Err(Refusal::Missing));
        assert_eq!(auth.identify(&bearer("x.y.z")), Err(Refusal::BadToken));
    }

    #[test]
    fn a_token_counts_only_if_all_of_it_is_right() {
        let auth = authenticator(&["--jwt-secret", SECRET, "--jwt-audience=docs", "--jwt-issuer=me"]).unwrap();
        let good = json!({"sub": "ann", "exp": LATER, "aud": "docs", "iss": "me"});
        assert_eq!(auth.identify(&hs256(&good, SECRET)), Ok(Principal::User("ann".to_owned())));
        for (field, value) in [
            ("exp", json!(1000)),
            ("exp", Value::Null),
            ("nbf", json!(LATER)),
            ("aud", json!("others")),
            ("aud", Value::Null),
            ("iss", json!("you")),
            ("iss", Value::Null),
        ] {
            let mut bad = good.clone();
            bad[field] = value.clone();
            assert_eq!(auth.identify(&hs256(&bad, SECRET)), Err(Refusal::BadToken), "{field}: {value}");
        }
        assert_eq!(auth.identify(&hs256(&good, "another secret")), Err(Refusal::BadToken));
        assert_eq!(auth.identify(&bearer(&format!("{}.", unsigned("none")))), Err(Refusal::BadToken));
        assert_eq!(auth.identify(&bearer("")), Err(Refusal::BadToken));
    }

    #[test]
    fn verifies_ed25519() {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        let file = key_file("ed", "302a300506032b6570032100", pair.public_key().as_ref());
        let auth = authenticator(&["--jwt-key-file", &file, "--jwt-algorithm=EdDSA"]).unwrap();
        let message = unsigned("EdDSA");
        let signed = format!("{message}.{}", base64url(pair.sign(message.as_bytes()).as_ref()));
        assert_eq!(auth.identify(&bearer(&signed)), Ok(Principal::User("ann".to_owned())));
        let other = format!("{message}.{}", base64url(pair.sign(b"something else").as_ref()));
        assert_eq!(auth.identify(&bearer(&other)), Err(Refusal::BadToken));
    }

    #[test]
    fn verifies_es256() {
        let random = ring::rand::SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
        let prefix = "3059301306072a8648ce3d020106082a8648ce3d030107034200";
        let file = key_file("ec", prefix, pair.public_key().as_ref());
        let auth = authenticator(&["--jwt-key-file", &file, "--jwt-algorithm=ES256"]).unwrap();
        let message = unsigned("ES256");
        let signature = pair.sign(&random, message.as_bytes()).unwrap();
        let signed = format!("{message}.{}", base64url(signature.as_ref()));
        assert_eq!(auth.identify(&bearer(&signed)), Ok(Principal::User("ann".to_owned())));
    }

    #[test]
    fn verifies_rs256_and_nothing_signed_with_the_public_key_as_a_secret() {
        let file = pem_file("rsa", RSA_PUBLIC);
        let auth = authenticator(&["--jwt-key-file", &file]).unwrap();
        assert_eq!(auth.identify(&bearer(RSA_TOKEN)), Ok(Principal::User("ann".to_owned())));
        let confused = hs256(&json!({"sub": "ann", "exp": LATER}), RSA_PUBLIC);
        assert_eq!(auth.identify(&confused), Err(Refusal::BadToken));
        let wrong = authenticator(&["--jwt-key-file", &file, "--jwt-algorithm=ES256"]).unwrap_err().to_string();
        assert!(wrong.contains("is no public key for ES256"), "{wrong}");
    }

    #[test]
    fn refuses_to_start_where_nobody_could_come_in() {
        let error = authenticator(&[]).unwrap_err().to_string();
        assert!(error.contains("APP_AUTH=off"), "{error}");
        let open = authenticator(&["--auth=off"]).unwrap();
        assert_eq!(open.identify(&HeaderMap::new()), Ok(Principal::Anybody));
    }

    #[test]
    fn a_key_that_cannot_be_read_is_told_by_its_place_only() {
        for keys in ["dev", "dev:secret-in-the-clear", ":00", "a:00"] {
            let error = authenticator(&["--api-keys", keys]).unwrap_err().to_string();
            assert!(error.contains("entry 1 is no name:digest") && !error.contains("clear,"), "{error}");
            assert!(!error.contains("secret-in-the-clear"), "{error}");
        }
        assert!(authenticator(&["--jwt-secret=short"]).is_err());
        assert!(authenticator(&["--jwt-secret", SECRET, "--jwt-key-file=x.pem"]).is_err());
    }

    const RSA_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAsqsfj9r/Bc/245eGbDJW\n\
skwvR4+IuUTVZfLCfo7OzqYqPRDC3YnVpk8Y7pJhxXO/yHFf4oZmVt/Ak+Ck5eB3\n\
Mr3SGjTdh+Amq/Z+n/ovxfMuK68iW5VDi/yCUYdbLK0bssumKqNP7hO3lVIzqcrp\n\
0YOVP2TWl1QQsba0prWk8fGt2WCxMbS2K6nMzY91qUYLEoDMgf4DzYGYfBen6bWp\n\
b7qmV2W7N1wNpU4IkaHydwvay2mgmqCagF1je09er6CZOyyrGk8wWvHd+UuEdIq9\n\
0Q5xLgUbRYbjeTpCENyCeoi260tb1kioQbrTAVy67MK8brbHpEdEO4vDvzRYihAK\n\
lwIDAQAB\n\
-----END PUBLIC KEY-----\n";
    const RSA_TOKEN: &str = concat!(
        "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhbm4iLCJleHAiOjQxMDI0NDQ4MDB9.gT7Qxs80TvQtrIqldHWq59",
        "4soYP0zMyLP-K_p7pMJuc1AKmexjdfDFxo4m1su9186F6Vwzn8o1H4YdU_zqBAfxe5vPiVKcRgJktqnT-xWl5sRqTr8CZ4PNSF0Q",
        "411Y6IpSz3hwp8pq4wtBcdj2KWmqTY6nVsc2-5RFnyuiMHnvue2OyY9kVVU3YRFZt_0cSNqfJrBkToptuCyFag-BSlhE-S_OmQ3Y",
        "pSigOj6GpDV2_MECqhvbdUFfIEn_026pDz9byLbS2ZQdRGxgo8hPO4sRDTfOHMe7CQm6SofGG4Oneheq2OpXRlrsVj1uHT3asnV7",
        "o3aZEMsCn2LBE_f3q-OQ",
    );
}
