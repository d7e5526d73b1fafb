//! Authenticates clients by API key or JWT. The proxy verifies both too, but the app does not trust every process
//! that can reach its socket.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use outrigger_tokens::{Algorithm, Key, Verifier};
use ring::digest;
use subtle::{Choice, ConstantTimeEq};

use crate::App;
use crate::config::{AuthMode, AuthSettings, ConfigError, KeyAlgorithm};
use crate::cursor::unhex;
use crate::error::ApiError;

/// Allowed clock skew between issuer and app, in seconds.
const LEEWAY_S: u64 = 30;

static X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The accepted credentials.
#[derive(Debug)]
pub struct Authenticator {
    mode: AuthMode,
    keys: Vec<ApiKey>,
    jwt: Option<Verifier>,
}

/// The authenticated client. Stored in the request's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// Authentication is off.
    Anybody,
    /// The API key's name.
    Key(String),
    /// The token's `sub`.
    User(String),
}

#[derive(Debug)]
struct ApiKey {
    name: String,
    sha256: Vec<u8>,
}

impl Authenticator {
    /// Reads the keys.
    ///
    /// # Errors
    /// A key cannot be read, or authentication is on and no key is configured.
    pub fn new(settings: &AuthSettings) -> Result<Self, ConfigError> {
        let keys = settings.api_keys.as_ref().map_or(Ok(Vec::new()), |keys| parse_keys(keys.expose()))?;
        let jwt = verifier(settings)?;
        if settings.auth == AuthMode::On && keys.is_empty() && jwt.is_none() {
            return Err(ConfigError::setting(
                "APP_API_KEYS",
                "no client could use the documents API: neither API keys nor a JWT key are configured",
                "set APP_API_KEYS, APP_JWT_SECRET or APP_JWT_KEY_FILE; APP_AUTH=off admits every client",
            ));
        }
        Ok(Self { mode: settings.auth, keys, jwt })
    }

    /// Whether authentication is off.
    pub fn is_off(&self) -> bool {
        self.mode == AuthMode::Off
    }

    /// Returns the user of a valid token, else the name of a known API key. The proxy uses the same order, so both
    /// attribute a request to the same client.
    ///
    /// # Errors
    /// The reason, for the metric's label and the response.
    fn identify(&self, headers: &HeaderMap) -> Result<Principal, Refusal> {
        if self.is_off() {
            return Ok(Principal::Anybody);
        }
        let authorization = once(headers, &header::AUTHORIZATION)?;
        let key = once(headers, &X_API_KEY)?.filter(|key| !key.is_empty());
        let token = authorization.map(|value| self.user_of(value));
        if let Some(Ok(user)) = token {
            return Ok(user);
        }
        match (key, token) {
            (Some(key), _) => self.key_named(key.as_bytes()).ok_or(Refusal::UnknownKey),
            (None, Some(Err(refusal))) => Err(refusal),
            (None, _) => Err(Refusal::Missing),
        }
    }

    fn user_of(&self, authorization: &HeaderValue) -> Result<Principal, Refusal> {
        let text = authorization.to_str().map_err(|_| Refusal::BadToken)?;
        let (scheme, token) = text.split_once(' ').ok_or(Refusal::Missing)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Refusal::Missing);
        }
        let jwt = self.jwt.as_ref().ok_or(Refusal::BadToken)?;
        user(jwt, token.trim()).map(Principal::User).ok_or(Refusal::BadToken)
    }

    fn key_named(&self, presented: &[u8]) -> Option<Principal> {
        let presented = digest::digest(&digest::SHA256, presented);
        let mut found = None;
        // Compares with every key, so the timing does not reveal which one matched.
        for key in &self.keys {
            let same: Choice = key.sha256.ct_eq(presented.as_ref());
            if bool::from(same) {
                found = Some(Principal::Key(key.name.clone()));
            }
        }
        found
    }
}

/// The value of a header that may occur at most once.
fn once<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() { Err(Refusal::Repeated) } else { Ok(first) }
}

/// Why a request is not authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The request has a credential header twice.
    Repeated,
    Missing,
    UnknownKey,
    BadToken,
}

impl Refusal {
    const ALL: [Self; 4] = [Self::Repeated, Self::Missing, Self::UnknownKey, Self::BadToken];

    /// The labels in metrics.
    pub(crate) fn labels() -> impl Iterator<Item = &'static str> {
        Self::ALL.into_iter().map(|refusal| refusal.table().0)
    }

    /// Metric label, advice for the client, and the response's `WWW-Authenticate` challenge.
    const fn table(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Repeated => ("repeated", "send one Authorization header, and one X-Api-Key", ""),
            Self::Missing => (
                "missing",
                "send an API key in X-Api-Key, or a JWT as Authorization: Bearer TOKEN",
                "Bearer realm=\"documents\"",
            ),
            Self::UnknownKey => ("unknown_key", "this API key is unknown", "Bearer realm=\"documents\""),
            Self::BadToken => (
                "bad_token",
                "this token is not valid: wrong signature, algorithm, audience or issuer, or expired",
                "Bearer realm=\"documents\", error=\"invalid_token\"",
            ),
        }
    }
}

/// Authentication layer around the documents API.
pub async fn require(State(app): State<App>, mut request: Request, next: Next) -> Response {
    match app.auth.identify(request.headers()) {
        Ok(principal) => {
            request.extensions_mut().insert(principal);
            next.run(request).await
        }
        Err(refusal) => {
            let (label, what_to_do, challenge) = refusal.table();
            app.metrics.requests.auth_refusals.with_label_values(&[label]).inc();
            if refusal == Refusal::Repeated {
                return ApiError::BadRequest(what_to_do.to_owned()).into_response();
            }
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
            // The item may be a key in plain text, so the error contains its position only.
            let bad = || ConfigError::setting("APP_API_KEYS", format!("entry {} is not name:digest", at + 1), HINT);
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

fn verifier(settings: &AuthSettings) -> Result<Option<Verifier>, ConfigError> {
    let key = match (&settings.jwt_secret, &settings.jwt_key_file) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => {
            let problem = "is set besides APP_JWT_SECRET, and a token must not choose how it is verified";
            return Err(ConfigError::setting("APP_JWT_KEY_FILE", problem, "set one of the two"));
        }
        (Some(secret), None) => Key::secret(secret.expose().as_bytes())
            .map_err(|e| ConfigError::setting("APP_JWT_SECRET", e.to_string(), "use at least 32 random bytes"))?,
        (None, Some(file)) => {
            let bad = |problem: String| {
                let problem = format!("{}: {problem}", file.display());
                let hint = "give the PEM of a public key that fits APP_JWT_ALGORITHM";
                ConfigError::setting("APP_JWT_KEY_FILE", problem, hint)
            };
            let pem = std::fs::read(file).map_err(|e| bad(e.to_string()))?;
            let algorithm = match settings.jwt_algorithm {
                KeyAlgorithm::Rs256 => Algorithm::Rs256,
                KeyAlgorithm::Es256 => Algorithm::Es256,
                KeyAlgorithm::EdDsa => Algorithm::EdDsa,
            };
            Key::pem(algorithm, &pem).map_err(|e| bad(e.to_string()))?
        }
    };
    Ok(Some(Verifier::new(key, settings.jwt_issuer.as_deref(), settings.jwt_audience.as_deref(), LEEWAY_S)))
}

/// The token's subject, if the token is valid; empty if it has none.
fn user(verifier: &Verifier, token: &str) -> Option<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    match verifier.verify(token.as_bytes(), now) {
        Ok(claims) => match claims.get("sub") {
            None => Some(String::new()),
            Some(subject) => subject.as_str().map(str::to_owned),
        },
        Err(error) => {
            tracing::debug!(error = %error, "a token was rejected: {error}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use crate::cursor::hex;
    use outrigger_tokens::mint::{self, KeyPair, LATER, RSA_PUBLIC, RSA_TOKEN};
    use serde_json::{Value, json};

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn authenticator(arguments: &[&str]) -> Result<Authenticator, ConfigError> {
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
        bearer(&mint::hs256(claims, secret.as_bytes()))
    }

    fn pem_file(name: &str, pem: &str) -> String {
        let path = std::env::temp_dir().join(format!("outrigger-app-{}-{name}.pem", std::process::id()));
        std::fs::write(&path, pem).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_known_key_is_identified_by_its_name() {
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
    fn a_token_comes_before_a_key_and_a_key_before_a_token_that_does_not_verify() {
        let digest = hex(digest::digest(&digest::SHA256, b"sesame").as_ref());
        let auth = authenticator(&["--api-keys", &format!("dev:{digest}"), "--jwt-secret", SECRET]).unwrap();
        let both = |mut token: HeaderMap, key: &str| {
            token.insert("x-api-key", key.parse().unwrap());
            token
        };
        let good = hs256(&json!({"sub": "ann", "exp": LATER}), SECRET);
        assert_eq!(auth.identify(&both(good.clone(), "sesame")), Ok(Principal::User("ann".to_owned())));
        assert_eq!(auth.identify(&both(good, "wrong")), Ok(Principal::User("ann".to_owned())));
        assert_eq!(auth.identify(&both(bearer("x.y.z"), "sesame")), Ok(Principal::Key("dev".to_owned())));
        assert_eq!(auth.identify(&both(bearer("x.y.z"), "wrong")), Err(Refusal::UnknownKey));
        assert_eq!(auth.identify(&both(bearer("x.y.z"), "")), Err(Refusal::BadToken));
    }

    #[test]
    fn a_repeated_credential_is_rejected() {
        let digest = hex(digest::digest(&digest::SHA256, b"sesame").as_ref());
        let auth = authenticator(&["--api-keys", &format!("dev:{digest}")]).unwrap();
        for name in ["x-api-key", "authorization"] {
            for other in ["sesame", "", "other"] {
                let mut twice = headers(name, "sesame");
                twice.append(name, other.parse().unwrap());
                assert_eq!(auth.identify(&twice), Err(Refusal::Repeated), "{name}: {other:?}");
            }
        }
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
        assert_eq!(
            auth.identify(&bearer(&mint::token(&json!({"alg": "none"}), &good, |_| Vec::new()))),
            Err(Refusal::BadToken)
        );
        assert_eq!(auth.identify(&bearer("")), Err(Refusal::BadToken));
    }

    #[test]
    fn verifies_ed25519() {
        verifies("ed", "EdDSA", &KeyPair::ed25519());
    }

    #[test]
    fn verifies_es256() {
        verifies("ec", "ES256", &KeyPair::p256());
    }

    fn verifies(name: &str, algorithm: &str, pair: &KeyPair) {
        let file = pem_file(name, &pair.pem());
        let auth = authenticator(&["--jwt-key-file", &file, "--jwt-algorithm", algorithm]).unwrap();
        let claims = json!({"sub": "ann", "exp": LATER});
        assert_eq!(auth.identify(&bearer(&pair.token(None, &claims))), Ok(Principal::User("ann".to_owned())));
        let sign = |_: &[u8]| pair.sign(b"something else");
        let other = mint::token(&json!({"alg": algorithm}), &claims, sign);
        assert_eq!(auth.identify(&bearer(&other)), Err(Refusal::BadToken));
    }

    #[test]
    fn verifies_rs256_and_nothing_signed_with_the_public_key_as_a_secret() {
        let file = pem_file("rsa", RSA_PUBLIC);
        let auth = authenticator(&["--jwt-key-file", &file]).unwrap();
        assert_eq!(auth.identify(&bearer(RSA_TOKEN)), Ok(Principal::User("ann".to_owned())));
        let confused = hs256(&json!({"sub": "ann", "exp": LATER}), RSA_PUBLIC);
        assert_eq!(auth.identify(&confused), Err(Refusal::BadToken));
        let wrong = authenticator(&["--jwt-key-file", &file, "--jwt-algorithm=ES256"]).unwrap_err().to_string();
        assert!(wrong.contains("is not a public key for ES256"), "{wrong}");
    }

    #[test]
    fn a_configuration_without_any_credential_is_rejected_at_start() {
        let error = authenticator(&[]).unwrap_err().to_string();
        assert!(error.contains("APP_AUTH=off"), "{error}");
        let open = authenticator(&["--auth=off"]).unwrap();
        assert_eq!(open.identify(&HeaderMap::new()), Ok(Principal::Anybody));
    }

    #[test]
    fn an_unreadable_key_is_reported_by_its_position_only() {
        for keys in ["dev", "dev:secret-in-the-clear", ":00", "a:00"] {
            let error = authenticator(&["--api-keys", keys]).unwrap_err().to_string();
            assert!(error.contains("entry 1 is not name:digest") && !error.contains("clear,"), "{error}");
            assert!(!error.contains("secret-in-the-clear"), "{error}");
        }
        assert!(authenticator(&["--jwt-secret=short"]).is_err());
        assert!(authenticator(&["--jwt-secret", SECRET, "--jwt-key-file=x.pem"]).is_err());
    }
}
