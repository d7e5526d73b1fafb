//! Known API keys: stored as digests only.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use outrigger_policy::tier::Tier;
use ring::{digest, hmac};
use subtle::ConstantTimeEq;

use crate::verified::{Verified, VerifiedKind};

/// SHA-256 of a key, or HMAC-SHA-256 with the operator's secret. Plain SHA-256 is safe only for random keys.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyDigest {
    /// Plain.
    Sha256(Digest),
    /// Keyed.
    HmacSha256(Digest),
}

impl std::fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sha256(_) => "sha256",
            Self::HmacSha256(_) => "hmac_sha256",
        })
    }
}

/// 32 bytes that are compared in constant time, also inside a `HashMap`.
#[derive(Clone, Copy)]
pub struct Digest([u8; digest::SHA256_OUTPUT_LEN]);

impl Digest {
    /// Reads 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; digest::SHA256_OUTPUT_LEN];
        if text.len() != 2 * bytes.len() {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let nibble = |at: usize| char::from(pair[at]).to_digit(16);
            *byte = u8::try_from(nibble(0)? << 4 | nibble(1)?).ok()?;
        }
        Some(Self(bytes))
    }

    fn from_slice(bytes: &[u8]) -> Self {
        // Both callers pass exactly as many bytes as it has.
        Self(bytes.try_into().unwrap_or_default())
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Digest")
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Digest {}

impl Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

/// A key of the configuration or of its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The owner's name.
    pub name: String,
    /// The digest that identifies it.
    pub digest: KeyDigest,
    /// The key's tier.
    pub tier: Tier,
}

/// Known keys, found by digest.
#[derive(Default)]
pub struct KeyTable {
    plain: HashMap<Digest, Arc<Verified>>,
    keyed: HashMap<Digest, Arc<Verified>>,
    secret: Option<hmac::Key>,
}

impl std::fmt::Debug for KeyTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyTable").field("keys", &self.len()).finish_non_exhaustive()
    }
}

impl KeyTable {
    /// Contains all of `entries`; of two with the same digest the later one. Without `secret`, keyed digests match no key.
    pub fn new(entries: Vec<Entry>, secret: Option<&[u8]>) -> Self {
        let mut table = Self::default();
        for entry in entries {
            let verified = Arc::new(Verified::new(VerifiedKind::Key, &entry.name, entry.tier));
            match entry.digest {
                KeyDigest::Sha256(digest) => table.plain.insert(digest, verified),
                KeyDigest::HmacSha256(digest) => table.keyed.insert(digest, verified),
            };
        }
        table.secret = secret.map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret));
        table
    }

    /// Finds the owner of a key. Computes only the kinds of digests that some entry has.
    pub fn find(&self, presented: &[u8]) -> Option<&Arc<Verified>> {
        if !self.plain.is_empty() {
            let digest = digest::digest(&digest::SHA256, presented);
            if let Some(found) = self.plain.get(&Digest::from_slice(digest.as_ref())) {
                return Some(found);
            }
        }
        let secret = self.secret.as_ref().filter(|_| !self.keyed.is_empty())?;
        self.keyed.get(&Digest::from_slice(hmac::sign(secret, presented).as_ref()))
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.plain.len() + self.keyed.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Parses one line of the file of keys: `name:sha256=HEX:tier`, or `name:hmac_sha256=HEX:tier`. `None` for an empty line and
/// for a comment, which begins with `#`.
///
/// # Errors
/// Describes the error without quoting the line: it may be a key in the clear.
pub fn parse_line(line: &str) -> Result<Option<Entry>, &'static str> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let mut parts = line.split(':').map(str::trim);
    let (Some(name), Some(digest), Some(tier), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err("needs three parts with two colons: name:sha256=HEX:tier");
    };
    if !is_name(name) {
        return Err("the name needs 1 to 64 of letters, digits, - . _ and @");
    }
    let (kind, digits) = digest.split_once('=').ok_or("needs sha256=HEX or hmac_sha256=HEX between the colons")?;
    let digits = Digest::from_hex(digits.trim()).ok_or("the digest needs 64 hexadecimal digits")?;
    let digest = match kind.trim() {
        "sha256" => KeyDigest::Sha256(digits),
        "hmac_sha256" => KeyDigest::HmacSha256(digits),
        _ => return Err("the digest is sha256 or hmac_sha256"),
    };
    let tier = tier.parse().map_err(|_| "the tier is one of anonymous, free, pro, enterprise, internal")?;
    Ok(Some(Entry { name: name.to_owned(), digest, tier }))
}

/// Whether `name` is a valid name of a key: names appear in logs.
pub fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'@'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sha256(key: &str) -> Digest {
        Digest::from_slice(digest::digest(&digest::SHA256, key.as_bytes()).as_ref())
    }

    fn entry(name: &str, digest: KeyDigest) -> Entry {
        Entry { name: name.to_owned(), digest, tier: Tier::Pro }
    }

    #[test]
    fn a_hundred_thousand_keys_are_distinguished() {
        let entries = (0..100_000).map(|n| {
            let digest = sha256(&format!("key-{n}"));
            entry(&format!("client-{n}"), KeyDigest::Sha256(digest))
        });
        let table = KeyTable::new(entries.collect(), None);
        assert_eq!(table.len(), 100_000);
        for n in [0, 1, 77_777, 99_999] {
            assert_eq!(&*table.find(format!("key-{n}").as_bytes()).unwrap().name, format!("client-{n}"));
        }
        assert!(table.find(b"key-100000").is_none());
    }

    #[test]
    fn a_keyed_digest_needs_the_secret_that_made_it() {
        let secret = b"0123456789abcdef0123456789abcdef";
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let digest = KeyDigest::HmacSha256(Digest::from_slice(hmac::sign(&key, b"sesame").as_ref()));
        let entries = || vec![entry("dev", digest), entry("other", KeyDigest::Sha256(sha256("open")))];
        let table = KeyTable::new(entries(), Some(secret));
        assert_eq!(&*table.find(b"sesame").unwrap().name, "dev");
        assert_eq!(&*table.find(b"open").unwrap().name, "other");
        assert!(KeyTable::new(entries(), Some(b"another")).find(b"sesame").is_none());
        assert!(KeyTable::new(entries(), None).find(b"sesame").is_none());
    }

    #[test]
    fn the_digest_is_not_the_key() {
        let hex = "ab".repeat(32);
        let table = KeyTable::new(vec![entry("dev", KeyDigest::Sha256(Digest::from_hex(&hex).unwrap()))], None);
        assert!(table.find(hex.as_bytes()).is_none());
        assert!(table.find(&[0xab; 32]).is_none());
    }

    /// The table's hits are compared through `subtle`; this fails to compile if `Digest` derives its comparison.
    #[test]
    fn digests_are_compared_in_constant_time() {
        let (a, mut b) = (sha256("a"), sha256("a"));
        assert!(a == b && bool::from(a.0.ct_eq(&b.0)));
        for at in 0..32 {
            b.0[at] ^= 1;
            assert!(a != b, "{at}");
            b.0[at] ^= 1;
        }
    }

    #[test]
    fn a_mistake_in_the_file_is_described_without_the_line() {
        let hex = "Ab".repeat(32);
        let good = parse_line(&format!(" dev@x : hmac_sha256={hex} : enterprise ")).unwrap().unwrap();
        assert_eq!(
            (good.name.as_str(), good.tier, format!("{:?}", good.digest)),
            ("dev@x", Tier::Enterprise, "hmac_sha256".to_owned())
        );
        assert!(parse_line("").unwrap().is_none() && parse_line("  # dev:x:y").unwrap().is_none());
        for (line, problem) in [
            ("sekrit".to_owned(), "needs three parts"),
            (format!("dev:sha256={hex}:pro:sekrit"), "needs three parts"),
            (format!(":sha256={hex}:pro"), "the name needs"),
            (format!("a b:sha256={hex}:pro"), "the name needs"),
            ("dev:sekrit:pro".to_owned(), "needs sha256=HEX"),
            ("dev:sha256=sekrit:pro".to_owned(), "64 hexadecimal"),
            (format!("dev:sha256={}é:pro", &hex[2..]), "64 hexadecimal"),
            (format!("dev:md5={hex}:pro"), "the digest is"),
            (format!("dev:sha256={hex}:sekrit"), "the tier is"),
        ] {
            let error = parse_line(&line).unwrap_err();
            assert!(error.contains(problem) && !error.contains("sekrit"), "{line}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_it_panic(line in ".{0,200}") {
            let _ = parse_line(&line);
            let _ = Digest::from_hex(&line);
        }
    }
}
