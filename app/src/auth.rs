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
            (Some(secret), _) => {
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
