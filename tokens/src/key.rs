//! Keys, each for one algorithm.

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{DecodingKey, DecodingKeyKind};
use serde_json::Value;

use crate::ring_provider;

/// The minimum length of a shared secret, in bytes: that of an HMAC-SHA-256 tag.
const SECRET_BYTES: usize = 32;

/// The minimum length of an RSA modulus, in bytes.
const RSA_BYTES: usize = 256;

/// A signature algorithm for tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// HMAC with SHA-256: issuer and verifier share a secret.
    Hs256,
    /// RSA PKCS#1 v1.5 with SHA-256, 2048 to 8192 bits.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// Returns the name used in `alg`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }

    pub(crate) const fn of_library(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Hs256 => jsonwebtoken::Algorithm::HS256,
            Self::Rs256 => jsonwebtoken::Algorithm::RS256,
            Self::Es256 => jsonwebtoken::Algorithm::ES256,
            Self::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        }
    }
}

/// Why a key is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A secret shorter than 32 bytes, which could be guessed from a token.
    #[error("has {bytes} bytes; it could be guessed from a token")]
    ShortSecret {
        /// The secret's length.
        bytes: usize,
    },
    /// Not a PEM file with a public key for the algorithm.
    #[error("is not a public key for {} ({problem})", algorithm.name())]
    NotPem {
        /// The expected algorithm.
        algorithm: Algorithm,
        /// The problem.
        problem: String,
    },
    /// Not a public JSON Web Key for signatures with the algorithm.
    #[error("is not a key for {} ({problem})", algorithm.name())]
    NotJwk {
        /// The expected algorithm.
        algorithm: Algorithm,
        /// The problem.
        problem: &'static str,
    },
}

/// A key that verifies tokens. Its `Debug` output does not contain the key.
#[derive(Clone)]
pub struct Key {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl Key {
    /// Creates a key from a secret for HS256.
    ///
    /// # Errors
    /// [`KeyError::ShortSecret`] below 32 bytes.
    pub fn secret(secret: &[u8]) -> Result<Self, KeyError> {
        if secret.len() < SECRET_BYTES {
            return Err(KeyError::ShortSecret { bytes: secret.len() });
        }
        Ok(Self::new(Algorithm::Hs256, DecodingKey::from_secret(secret)))
    }

    /// Reads a public key for `algorithm` from PEM.
    ///
    /// # Errors
    /// [`KeyError::NotPem`] if it is not such a key, or if `algorithm` is HS256, which has no public keys.
    pub fn pem(algorithm: Algorithm, pem: &[u8]) -> Result<Self, KeyError> {
        let bad = |problem: String| KeyError::NotPem { algorithm, problem };
        let key = match algorithm {
            Algorithm::Hs256 => return Err(bad("a public key is not a secret".to_owned())),
            Algorithm::Rs256 => DecodingKey::from_rsa_pem(pem),
            Algorithm::Es256 => DecodingKey::from_ec_pem(pem),
            Algorithm::EdDsa => DecodingKey::from_ed_pem(pem),
        };
        let key = key.map_err(|e| bad(e.to_string()))?;
        let bytes = key.try_get_as_bytes().map_or(0, <[u8]>::len);
        match algorithm {
            Algorithm::Es256 if bytes != 65 => Err(bad("it is of another curve than P-256".to_owned())),
            Algorithm::EdDsa if bytes != 32 => Err(bad("it is of another curve than Ed25519".to_owned())),
            _ => Ok(Self::new(algorithm, key)),
        }
    }

    /// Reads a public JSON Web Key (RFC 7517) and its id, if it is meant for signatures with `algorithm`. Symmetric keys
    /// are rejected: anyone who can read one could sign tokens.
    ///
    /// # Errors
    /// [`KeyError::NotJwk`] if the type, curve, size, `use`, `key_ops` or `alg` do not match.
    pub fn jwk(algorithm: Algorithm, jwk: &Value) -> Result<(Option<String>, Self), KeyError> {
        let bad = |problem| KeyError::NotJwk { algorithm, problem };
        let jwk: Jwk = serde_json::from_value(jwk.clone()).map_err(|_| bad("it is not a JSON Web Key"))?;
        let fits_use = jwk.common.public_key_use.as_ref().is_none_or(|purpose| *purpose == PublicKeyUse::Signature);
        let operations = jwk.common.key_operations.as_ref();
        if !fits_use || operations.is_some_and(|operations| !operations.contains(&KeyOperations::Verify)) {
            return Err(bad("it is not meant for signatures"));
        }
        if jwk.common.key_algorithm.is_some_and(|alg| alg != KeyAlgorithm::from(algorithm.of_library())) {
            return Err(bad("it is meant for another algorithm"));
        }
        let fits = match (&jwk.algorithm, algorithm) {
            (AlgorithmParameters::RSA(_), Algorithm::Rs256) => true,
            (AlgorithmParameters::EllipticCurve(key), Algorithm::Es256) => key.curve == EllipticCurve::P256,
            (AlgorithmParameters::OctetKeyPair(key), Algorithm::EdDsa) => key.curve == EllipticCurve::Ed25519,
            _ => false,
        };
        if !fits {
            return Err(bad("it is of another kind"));
        }
        let key = DecodingKey::from_jwk(&jwk).map_err(|_| bad("it cannot be read"))?;
        let has_size = match (key.kind(), algorithm) {
            (DecodingKeyKind::RsaModulusExponent { n, .. }, _) => n.len() >= RSA_BYTES,
            (DecodingKeyKind::SecretOrDer(bytes), Algorithm::Es256) => bytes.len() == 65,
            (DecodingKeyKind::SecretOrDer(bytes), _) => bytes.len() == 32,
        };
        if !has_size {
            return Err(bad("it has another size"));
        }
        Ok((jwk.common.key_id, Self::new(algorithm, key)))
    }

    fn new(algorithm: Algorithm, key: DecodingKey) -> Self {
        // `jsonwebtoken` panics at the first token without an installed provider, so every key installs it.
        ring_provider::install();
        Self { algorithm, key }
    }

    /// Returns the algorithm of the key.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub(crate) fn of_library(&self) -> &DecodingKey {
        &self.key
    }

    /// Returns whether both keys are equal. Not in constant time: for public keys only.
    pub fn is(&self, other: &Self) -> bool {
        use DecodingKeyKind::{RsaModulusExponent, SecretOrDer};
        self.algorithm == other.algorithm
            && match (self.key.kind(), other.key.kind()) {
                (SecretOrDer(a), SecretOrDer(b)) => a == b,
                (RsaModulusExponent { n, e }, RsaModulusExponent { n: other_n, e: other_e }) => {
                    n == other_n && e == other_e
                }
                _ => false,
            }
    }
}
