//! Creates valid and forged tokens, and keys. For tests; the programs are built without this module.

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use ring::{hmac, signature};
use serde_json::{Value, json};

use crate::Algorithm;

/// An expiry far in the future: the year 2100, in seconds since 1970.
pub const LATER: u64 = 4_102_444_800;

/// Creates an HS256 token.
pub fn hs256(claims: &Value, secret: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    token(&json!({"alg": "HS256", "typ": "JWT"}), claims, |message| hmac::sign(&key, message).as_ref().to_vec())
}

/// Creates a token with this header, and the result of `sign` as its signature.
pub fn token(head: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", base64url(head.to_string().as_bytes()), base64url(claims.to_string().as_bytes()));
    let signature = sign(message.as_bytes());
    format!("{message}.{}", base64url(&signature))
}

/// A key pair for ES256 or EdDSA.
#[derive(Debug)]
pub enum KeyPair {
    /// EdDSA.
    Ed25519(Ed25519KeyPair),
    /// ES256.
    P256(EcdsaKeyPair),
}

impl KeyPair {
    /// Generates a key pair for EdDSA.
    pub fn ed25519() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("the system gives random bytes");
        Self::Ed25519(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("ring reads what it wrote"))
    }

    /// Generates a key pair for ES256.
    pub fn p256() -> Self {
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("the system gives random bytes");
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random);
        Self::P256(pair.expect("ring reads what it wrote"))
    }

    /// Returns the algorithm of the pair.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Ed25519(_) => Algorithm::EdDsa,
            Self::P256(_) => Algorithm::Es256,
        }
    }

    /// Creates a signed token; `kid` is the key id in its header, if any.
    pub fn token(&self, kid: Option<&str>, claims: &Value) -> String {
        let mut head = json!({"alg": self.algorithm().name()});
        if let Some(kid) = kid {
            head["kid"] = json!(kid);
        }
        token(&head, claims, |message| self.sign(message))
    }

    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
            Self::P256(pair) => {
                let signature: Result<signature::Signature, _> = pair.sign(&SystemRandom::new(), message);
                signature.expect("the system gives random bytes").as_ref().to_vec()
            }
        }
    }

    /// Returns the public key as PEM.
    pub fn pem(&self) -> String {
        // The prefix of the key in a SubjectPublicKeyInfo.
        let (prefix, key): (&[u8], &[u8]) = match self {
            Self::Ed25519(pair) => (b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00", pair.public_key().as_ref()),
            Self::P256(pair) => (
                b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00",
                pair.public_key().as_ref(),
            ),
        };
        let base64 = base64url(&[prefix, key].concat()).replace('-', "+").replace('_', "/");
        let padding = "=".repeat((4 - base64.len() % 4) % 4);
        format!("-----BEGIN PUBLIC KEY-----\n{base64}{padding}\n-----END PUBLIC KEY-----\n")
    }

    /// Returns the public key as a JSON Web Key.
    pub fn jwk(&self, kid: &str) -> Value {
        match self {
            Self::Ed25519(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": base64url(pair.public_key().as_ref())})
            }
            Self::P256(pair) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
                json!({"kty": "EC", "crv": "P-256", "kid": kid, "use": "sig", "x": base64url(x), "y": base64url(y)})
            }
        }
    }
}

/// Encodes as base64url, without padding.
pub fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for digit in 0..=three.len() {
            text.push(char::from(DIGITS[(bits >> (18 - 6 * digit)) as usize & 63]));
        }
    }
    text
}

/// The public key of an RSA key pair whose private key was discarded.
pub const RSA_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAsqsfj9r/Bc/245eGbDJW\n\
skwvR4+IuUTVZfLCfo7OzqYqPRDC3YnVpk8Y7pJhxXO/yHFf4oZmVt/Ak+Ck5eB3\n\
Mr3SGjTdh+Amq/Z+n/ovxfMuK68iW5VDi/yCUYdbLK0bssumKqNP7hO3lVIzqcrp\n\
0YOVP2TWl1QQsba0prWk8fGt2WCxMbS2K6nMzY91qUYLEoDMgf4DzYGYfBen6bWp\n\
b7qmV2W7N1wNpU4IkaHydwvay2mgmqCagF1je09er6CZOyyrGk8wWvHd+UuEdIq9\n\
0Q5xLgUbRYbjeTpCENyCeoi260tb1kioQbrTAVy67MK8brbHpEdEO4vDvzRYihAK\n\
lwIDAQAB\n\
-----END PUBLIC KEY-----\n";

/// A token signed with that pair: `{"sub":"ann","exp":4102444800}`, RS256, without `kid`.
pub const RSA_TOKEN: &str = concat!(
    "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhbm4iLCJleHAiOjQxMDI0NDQ4MDB9.gT7Qxs80TvQtrIqldHWq59",
    "4soYP0zMyLP-K_p7pMJuc1AKmexjdfDFxo4m1su9186F6Vwzn8o1H4YdU_zqBAfxe5vPiVKcRgJktqnT-xWl5sRqTr8CZ4PNSF0Q",
    "411Y6IpSz3hwp8pq4wtBcdj2KWmqTY6nVsc2-5RFnyuiMHnvue2OyY9kVVU3YRFZt_0cSNqfJrBkToptuCyFag-BSlhE-S_OmQ3Y",
    "pSigOj6GpDV2_MECqhvbdUFfIEn_026pDz9byLbS2ZQdRGxgo8hPO4sRDTfOHMe7CQm6SofGG4Oneheq2OpXRlrsVj1uHT3asnV7",
    "o3aZEMsCn2LBE_f3q-OQ",
);

/// The same key as a JSON Web Key.
pub fn rsa_jwk(kid: &str) -> Value {
    let base64: String = RSA_PUBLIC.lines().filter(|line| !line.starts_with('-')).collect();
    // The 256 bytes of the modulus follow 33 bytes of DER; both ends fall on a base64 digit boundary.
    let n = &base64[44..386];
    json!({"kty": "RSA", "alg": "RS256", "kid": kid, "e": "AQAB", "n": n.replace('+', "-").replace('/', "_")})
}
