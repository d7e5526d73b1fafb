//! The audit log's keys: pseudonyms, encryption and signatures.
//!
//! Operators provide *master keys*. From each, HKDF-SHA-256 (RFC 5869) derives three keys: one for pseudonyms
//! (HMAC-SHA-256), one that wraps the *data keys* of subjects (AES-256-GCM), and one that signs (Ed25519). A data key
//! is random and belongs to one subject: destroying it makes everything that it encrypts unreadable, wherever that is
//! stored.

mod public;

use std::cell::RefCell;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use ring::{hkdf, hmac};
use serde::{Deserialize, Serialize};

pub use self::public::{PublicKeys, Signature};

/// The variable with the master keys.
pub const KEYS: &str = "OUTRIGGER_AUDIT_KEYS";
/// The variable with the app's [`PseudonymKey`].
pub const PSEUDONYM_KEY: &str = "OUTRIGGER_AUDIT_PSEUDONYM_KEY";
/// Minimum length in characters; shorter secrets could be guessed.
pub const SHORTEST_SECRET: usize = 32;
const MOST_KEYS: usize = 16;
const SALT: &[u8] = b"outrigger audit trail v1";

/// A key is invalid, or a value cannot be decrypted or verified with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A key of a list cannot be parsed.
    #[error(
        "key number {number} {problem}; write \"id:secret,older:secret\", secrets of at least {SHORTEST_SECRET} characters"
    )]
    Unreadable {
        /// Its position, from 1.
        number: usize,
        /// The problem.
        problem: &'static str,
    },
    /// The key is not among the given ones.
    #[error("made with key {0:?}, which is not among the keys given ({KEYS})")]
    Unknown(String),
    /// The value cannot be decrypted or verified.
    #[error("it was not made with this key {0:?}, or was changed since")]
    Wrong(String),
    /// A pseudonym key cannot be parsed.
    #[error("is not a pseudonym key: use what `outrigger audit keys derive` prints, id:base64url")]
    NoPseudonymKey,
    /// The system provides no random bytes.
    #[error("the system provides no random bytes")]
    NoRandomness,
}

/// How a subject is identified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SubjectKind {
    /// A verified user.
    User,
    /// A known API key.
    Key,
    /// An address.
    Address,
}

impl SubjectKind {
    /// The name in entries.
    pub const fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Key => "key",
            Self::Address => "address",
        }
    }

    const fn prefix(self) -> &'static str {
        match self {
            Self::User => "u_",
            Self::Key => "k_",
            Self::Address => "a_",
        }
    }

    /// Whether `text` is a pseudonym as used in entries.
    pub fn is_pseudonym(text: &str) -> bool {
        [Self::User, Self::Key, Self::Address].into_iter().any(|kind| {
            text.strip_prefix(kind.prefix()).is_some_and(|id| URL_SAFE_NO_PAD.decode(id).is_ok_and(|id| id.len() == 16))
        })
    }

    /// The kind of a subject such as `user:ann`.
    pub fn of(subject: &str) -> Option<Self> {
        let (kind, name) = subject.split_once(':')?;
        [Self::User, Self::Key, Self::Address].into_iter().find(|of| of.name() == kind && !name.is_empty())
    }
}

/// The master keys: the first encrypts and signs, all of them decrypt and verify.
#[derive(Clone, Debug)]
pub struct MasterKeys {
    keys: Vec<std::sync::Arc<MasterKey>>,
}

struct MasterKey {
    id: String,
    pseudonyms: PseudonymKey,
    wrapping: LessSafeKey,
    signing: Ed25519KeyPair,
}

/// The part of a master key that creates pseudonyms. It cannot sign or decrypt, and the keys for that cannot be
/// derived from it, so the app gets only this part. `outrigger audit keys derive` prints it as `id:base64url`.
#[derive(Clone)]
pub struct PseudonymKey {
    id: String,
    secret: [u8; 32],
    key: hmac::Key,
}

impl std::fmt::Debug for PseudonymKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PseudonymKey({})", self.id)
    }
}

impl PseudonymKey {
    fn new(id: &str, secret: [u8; 32]) -> Self {
        Self { id: id.to_owned(), secret, key: hmac::Key::new(hmac::HMAC_SHA256, &secret) }
    }

    /// Parses `id:base64url`; `None` if the text is empty.
    ///
    /// # Errors
    /// The text is not a pseudonym key.
    pub fn parse(text: &str) -> Result<Option<Self>, KeyError> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        let secret = text.split_once(':').and_then(|(id, secret)| {
            let secret: [u8; 32] = URL_SAFE_NO_PAD.decode(secret).ok()?.try_into().ok()?;
            Some(Self::new(id, secret))
        });
        secret.map(Some).ok_or(KeyError::NoPseudonymKey)
    }

    /// The text for [`PseudonymKey::parse`]. A secret.
    pub fn expose(&self) -> String {
        format!("{}:{}", self.id, URL_SAFE_NO_PAD.encode(self.secret))
    }

    /// The pseudonym of `subject`, such as `user:ann`.
    pub fn pseudonym(&self, kind: SubjectKind, subject: &[u8]) -> String {
        let tag = hmac::sign(&self.key, subject);
        let mut text = String::with_capacity(24);
        text.push_str(kind.prefix());
        URL_SAFE_NO_PAD.encode_string(&tag.as_ref()[..16], &mut text);
        text
    }
}

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MasterKey({})", self.id)
    }
}

impl MasterKeys {
    /// Parses `id:secret,older:secret`; `None` if the text has no keys.
    ///
    /// # Errors
    /// The key that is invalid, and why.
    pub fn parse(text: &str) -> Result<Option<Self>, KeyError> {
        let mut keys: Vec<std::sync::Arc<MasterKey>> = Vec::new();
        for (at, part) in text.split(',').map(str::trim).filter(|part| !part.is_empty()).enumerate() {
            let bad = |problem| KeyError::Unreadable { number: at + 1, problem };
            let (id, secret) = part.split_once(':').ok_or(bad("has no id before a colon"))?;
            let is_id = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
            if !(1..=32).contains(&id.len()) || !id.bytes().all(is_id) {
                return Err(bad("has an id that is not made of 1 to 32 letters, digits, \"-\", \"_\" and \".\""));
            }
            if secret.len() < SHORTEST_SECRET {
                return Err(bad("has a secret that is too short"));
            }
            if keys.iter().any(|key| key.id == id) {
                return Err(bad("has an id that another one has"));
            }
            if keys.len() == MOST_KEYS {
                return Err(bad("is one too many"));
            }
            keys.push(std::sync::Arc::new(MasterKey::derive(id, secret.as_bytes()).ok_or(bad("cannot be used"))?));
        }
        Ok((!keys.is_empty()).then_some(Self { keys }))
    }

    /// Appends those keys of `older` that are not among these, to decrypt older values.
    #[must_use]
    pub fn and(mut self, older: &Self) -> Self {
        for key in &older.keys {
            if self.keys.iter().all(|known| known.id != key.id) {
                self.keys.push(std::sync::Arc::clone(key));
            }
        }
        self
    }

    /// The current key. There is at least one.
    fn current(&self) -> &MasterKey {
        &self.keys[0]
    }

    /// The current key's id.
    pub fn current_id(&self) -> &str {
        &self.current().id
    }

    /// The part of the current key that creates pseudonyms.
    pub fn pseudonym_key(&self) -> &PseudonymKey {
        &self.current().pseudonyms
    }

    /// The pseudonym of `subject`, such as `user:ann`.
    pub fn pseudonym(&self, kind: SubjectKind, subject: &[u8]) -> String {
        self.current().pseudonym(kind, subject)
    }

    /// Its pseudonyms under the current and all older keys. `None` unless `subject` is `user:…`, `key:…` or
    /// `address:…`.
    pub fn pseudonyms(&self, subject: &str) -> Option<Vec<String>> {
        let kind = SubjectKind::of(subject)?;
        Some(self.keys.iter().map(|key| key.pseudonym(kind, subject.as_bytes())).collect())
    }

    /// Creates a data key for the subject with this pseudonym.
    ///
    /// # Errors
    /// The system provides no random bytes.
    pub fn new_data_key(&self, subject: &str) -> Result<(DataKey, WrappedKey), KeyError> {
        let mut id = [0; 16];
        random(&mut id)?;
        let mut secret = [0; 32];
        random(&mut secret)?;
        let id = URL_SAFE_NO_PAD.encode(id);
        let wrapped = seal(&self.current().wrapping, &[id.as_bytes(), b" ", subject.as_bytes()].concat(), &secret)?;
        let key = data_key(&id, &secret).ok_or(KeyError::NoRandomness)?;
        Ok((
            key,
            WrappedKey {
                id,
                subject: subject.to_owned(),
                master: self.current().id.clone(),
                wrapped,
                created: String::new(),
                sealed: String::new(),
            },
        ))
    }

    /// Decrypts a data key.
    ///
    /// # Errors
    /// Its master key is unknown or a different one.
    pub fn unwrap_key(&self, wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        let master = self.keys.iter().find(|key| key.id == wrapped.master);
        let master = master.ok_or_else(|| KeyError::Unknown(wrapped.master.clone()))?;
        let aad = [wrapped.id.as_bytes(), b" ", wrapped.subject.as_bytes()].concat();
        let secret = open(&master.wrapping, &aad, &wrapped.wrapped);
        secret.and_then(|secret| data_key(&wrapped.id, &secret)).ok_or_else(|| KeyError::Wrong(wrapped.master.clone()))
    }

    /// Wraps a data key again under the current master key, so that an old one can be retired.
    ///
    /// # Errors
    /// Its master key is unknown or a different one.
    pub fn rewrap(&self, wrapped: &WrappedKey) -> Result<WrappedKey, KeyError> {
        let master = self.keys.iter().find(|key| key.id == wrapped.master);
        let master = master.ok_or_else(|| KeyError::Unknown(wrapped.master.clone()))?;
        let aad = [wrapped.id.as_bytes(), b" ", wrapped.subject.as_bytes()].concat();
        let secret =
            open(&master.wrapping, &aad, &wrapped.wrapped).ok_or_else(|| KeyError::Wrong(wrapped.master.clone()))?;
        let again = seal(&self.current().wrapping, &aad, &secret)?;
        Ok(WrappedKey { master: self.current().id.clone(), wrapped: again, ..wrapped.clone() })
    }

    /// Signs `message` with the current key.
    pub fn sign(&self, message: &[u8]) -> Signature {
        let signature = self.current().signing.sign(message);
        Signature { key: self.current().id.clone(), signature: URL_SAFE_NO_PAD.encode(signature.as_ref()) }
    }

    /// The public keys, which verify signatures and contain no secrets.
    pub fn public(&self) -> PublicKeys {
        let public = |key: &std::sync::Arc<MasterKey>| (key.id.clone(), key.signing.public_key().as_ref().to_vec());
        PublicKeys { keys: self.keys.iter().map(public).collect() }
    }
}

impl MasterKey {
    fn derive(id: &str, secret: &[u8]) -> Option<Self> {
        struct Length(usize);
        impl hkdf::KeyType for Length {
            fn len(&self) -> usize {
                self.0
            }
        }
        let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(secret);
        let expand = |purpose: &[u8]| {
            let mut key = [0; 32];
            extracted.expand(&[purpose], Length(key.len())).and_then(|okm| okm.fill(&mut key)).ok()?;
            Some(key)
        };
        Some(Self {
            id: id.to_owned(),
            pseudonyms: PseudonymKey::new(id, expand(b"pseudonyms")?),
            wrapping: LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &expand(b"wrapping")?).ok()?),
            signing: Ed25519KeyPair::from_seed_unchecked(&expand(b"signing")?).ok()?,
        })
    }

    fn pseudonym(&self, kind: SubjectKind, subject: &[u8]) -> String {
        self.pseudonyms.pseudonym(kind, subject)
    }
}

/// A subject's data key. Never logged.
pub struct DataKey {
    id: String,
    key: LessSafeKey,
}

impl std::fmt::Debug for DataKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DataKey({})", self.id)
    }
}

fn data_key(id: &str, secret: &[u8]) -> Option<DataKey> {
    Some(DataKey { id: id.to_owned(), key: LessSafeKey::new(UnboundKey::new(&AES_256_GCM, secret).ok()?) })
}

impl DataKey {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Encrypts `plain` as `id.text`.
    ///
    /// # Errors
    /// The system provides no random bytes.
    pub fn seal(&self, plain: &[u8]) -> Result<String, KeyError> {
        Ok(format!("{}.{}", self.id, seal(&self.key, self.id.as_bytes(), plain)?))
    }

    /// Decrypts the result of [`DataKey::seal`]; `None` for anything else.
    pub fn open(&self, sealed: &str) -> Option<Vec<u8>> {
        let (id, text) = sealed.split_once('.')?;
        if id != self.id {
            return None;
        }
        open(&self.key, self.id.as_bytes(), text)
    }
}

/// A data key as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey {
    /// Its id, the part before the dot in values that it encrypts.
    pub id: String,
    /// The subject's pseudonym.
    pub subject: String,
    /// The master key that wraps it.
    pub master: String,
    /// The encrypted key.
    pub wrapped: String,
    /// When it was created, RFC 3339.
    #[serde(default)]
    pub created: String,
    /// The subject's name, encrypted with this key. Entries refer to the key by its id.
    #[serde(default)]
    pub sealed: String,
}

fn seal(key: &LessSafeKey, aad: &[u8], plain: &[u8]) -> Result<String, KeyError> {
    let mut nonce = [0; NONCE_LEN];
    random(&mut nonce)?;
    let mut text = Vec::with_capacity(NONCE_LEN + plain.len() + 16);
    text.extend_from_slice(&nonce);
    text.extend_from_slice(plain);
    let tag =
        key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut text[NONCE_LEN..]);
    // Fails only for more than 64 GiB.
    text.extend_from_slice(tag.map_err(|_| KeyError::NoRandomness)?.as_ref());
    Ok(URL_SAFE_NO_PAD.encode(text))
}

fn open(key: &LessSafeKey, aad: &[u8], text: &str) -> Option<Vec<u8>> {
    let mut text = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (nonce, sealed) = text.split_at_mut_checked(NONCE_LEN)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    key.open_in_place(nonce, Aad::from(aad), sealed).ok().map(|plain| plain.to_vec())
}

/// Fills `out` from the system's generator, which is read a page at a time: a system call per key would cost more
/// than the key.
fn random(out: &mut [u8]) -> Result<(), KeyError> {
    thread_local! {
        static POOL: RefCell<([u8; 4096], usize)> = const { RefCell::new(([0; 4096], 4096)) };
    }
    POOL.with_borrow_mut(|(pool, used)| {
        if *used + out.len() > pool.len() {
            SystemRandom::new().fill(pool).map_err(|_| KeyError::NoRandomness)?;
            *used = 0;
        }
        let taken = &mut pool[*used..*used + out.len()];
        out.copy_from_slice(taken);
        // Used bytes must not remain in memory.
        taken.fill(0);
        *used += out.len();
        Ok(())
    })
}

#[cfg(test)]
mod tests;
