//! Signatures, and the public keys that verify them.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{ED25519, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use super::KeyError;

/// A signature and its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The master key whose signing key made it.
    pub key: String,
    /// Ed25519 as base64url.
    pub signature: String,
}

/// Public keys that verify signatures. They contain no secrets, so auditors may have them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublicKeys {
    pub(super) keys: Vec<(String, Vec<u8>)>,
}

impl PublicKeys {
    /// Parses `id:base64url,…`, the format of [`PublicKeys`]'s `Display`.
    ///
    /// # Errors
    /// The key that is invalid, and why.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let mut keys = Vec::new();
        for (at, part) in text.split(',').map(str::trim).filter(|part| !part.is_empty()).enumerate() {
            let bad = |problem| KeyError::Unreadable { number: at + 1, problem };
            let (id, key) = part.split_once(':').ok_or(bad("has no id before a colon"))?;
            let key = URL_SAFE_NO_PAD.decode(key).ok().filter(|key| key.len() == 32);
            keys.push((id.to_owned(), key.ok_or(bad("is not a public key: 32 bytes as base64url"))?));
        }
        Ok(Self { keys })
    }

    /// Verifies `signature` over `message`.
    ///
    /// # Errors
    /// The key is unknown, or the signature does not match.
    pub fn verify(&self, message: &[u8], signature: &Signature) -> Result<(), KeyError> {
        let key = self.keys.iter().find(|(id, _)| *id == signature.key);
        let (_, key) = key.ok_or_else(|| KeyError::Unknown(signature.key.clone()))?;
        let wrong = || KeyError::Wrong(signature.key.clone());
        let bytes = URL_SAFE_NO_PAD.decode(&signature.signature).map_err(|_| wrong())?;
        UnparsedPublicKey::new(&ED25519, key).verify(message, &bytes).map_err(|_| wrong())
    }
}

impl std::fmt::Display for PublicKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, (id, key)) in self.keys.iter().enumerate() {
            write!(f, "{}{id}:{}", if at > 0 { "," } else { "" }, URL_SAFE_NO_PAD.encode(key))?;
        }
        Ok(())
    }
}
