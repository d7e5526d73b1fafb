//! Signatures between Machines of one app: cookies, replays and hops. HMAC-SHA-256 (RFC 2104), truncated to 128 bits.
//!
//! All Machines have the same keys, from the environment. The first key signs and all verify, so a new key is rolled out in
//! two steps without ending sessions: first after the old one, then before it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use subtle::ConstantTimeEq;

/// The variable with the keys, separated by commas.
pub const KEYS: &str = "OUTRIGGER_AFFINITY_KEYS";
/// Minimum length of a key: shorter ones can be guessed.
const SHORTEST_KEY_BYTES: usize = 32;
const MOST_KEYS: usize = 8;
/// Bytes of a signature.
pub const MAC_BYTES: usize = 16;

/// The purpose of a signature: it does not verify for another purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A session's cookie.
    Cookie = 1,
    /// The state of a replay.
    Replay = 2,
    // 3 and 4 were hops and probes before these contained addresses, headers and runs: their signatures are rejected.
    /// A request to a peer.
    Hop = 5,
    /// A peer's response to a probe.
    Probe = 6,
    /// A peer's summary of itself.
    Summary = 7,
    /// A peer's snapshot of its state.
    State = 8,
    /// Not a signature: the seed of the hashes that stand for clients.
    Seed = 9,
}

/// The keys.
#[derive(Clone)]
pub struct Keys(Vec<hmac::Key>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.0.len())
    }
}

/// Why text is not a list of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoKeys {
    /// A key is too short.
    #[error("key number {0} has fewer than {SHORTEST_KEY_BYTES} characters")]
    Short(usize),
    /// There are too many keys.
    #[error("there are more than {MOST_KEYS} keys")]
    Many,
}

impl Keys {
    /// Parses keys of at least 32 characters, separated by commas; `None` if there is none.
    ///
    /// # Errors
    /// A key is too short, or there are too many.
    pub fn parse(text: &str) -> Result<Option<Self>, NoKeys> {
        let keys: Vec<&str> = text.split(',').map(str::trim).filter(|key| !key.is_empty()).collect();
        if let Some(short) = keys.iter().position(|key| key.len() < SHORTEST_KEY_BYTES) {
            return Err(NoKeys::Short(short + 1));
        }
        if keys.len() > MOST_KEYS {
            return Err(NoKeys::Many);
        }
        let keys: Vec<_> = keys.iter().map(|key| hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes())).collect();
        Ok((!keys.is_empty()).then_some(Self(keys)))
    }

    fn mac(key: &hmac::Key, purpose: Purpose, text: &[u8]) -> [u8; MAC_BYTES] {
        let mut context = hmac::Context::with_key(key);
        context.update(&[purpose as u8]);
        context.update(text);
        let tag = context.sign();
        let mut mac = [0; MAC_BYTES];
        mac.copy_from_slice(&tag.as_ref()[..MAC_BYTES]);
        mac
    }

    /// Signs `text` with the first key.
    pub fn sign(&self, purpose: Purpose, text: &[u8]) -> [u8; MAC_BYTES] {
        // There is at least one key.
        self.0.first().map_or([0; MAC_BYTES], |key| Self::mac(key, purpose, text))
    }

    /// Whether `mac` is the signature of `text` by one of the keys. Takes equally long for right and wrong ones.
    pub fn verify(&self, purpose: Purpose, text: &[u8], mac: &[u8]) -> bool {
        self.0.iter().any(|key| Self::mac(key, purpose, text).ct_eq(mac).into())
    }

    /// Appends `text` and its signature, encoded for use in a header.
    pub fn append_signed(&self, purpose: Purpose, text: &[u8], out: &mut Vec<u8>) {
        let mut whole = [0; LARGEST_SIGNED + MAC_BYTES];
        let text = &text[..text.len().min(LARGEST_SIGNED)];
        whole[..text.len()].copy_from_slice(text);
        let length = text.len() + MAC_BYTES;
        whole[text.len()..length].copy_from_slice(&self.sign(purpose, text));
        let start = out.len();
        out.resize(start + length.div_ceil(3) * 4, 0);
        // Four characters for each three bytes fit.
        let written = URL_SAFE_NO_PAD.encode_slice(&whole[..length], &mut out[start..]).unwrap_or_default();
        out.truncate(start + written);
    }

    /// Verifies the output of [`Keys::append_signed`] and returns its text, in `buffer`; `None` if it does not verify.
    pub fn verified<'b>(&self, purpose: Purpose, signed: &[u8], buffer: &'b mut VerifyBuffer) -> Option<&'b [u8]> {
        // Input that is too long is an error.
        let length = URL_SAFE_NO_PAD.decode_slice(signed, buffer).ok()?;
        let (text, mac) = buffer[..length].split_at_checked(length.checked_sub(MAC_BYTES)?)?;
        self.verify(purpose, text, mac).then_some(text)
    }
}

/// Maximum length of a signed text.
pub const LARGEST_SIGNED: usize = 224;

/// Buffer for a verified text. The decoder needs space for whole groups.
pub type VerifyBuffer = [u8; LARGEST_SIGNED + MAC_BYTES + 3];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn keys(text: &str) -> Keys {
        Keys::parse(text).unwrap().unwrap()
    }

    fn signed(keys: &Keys, text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        keys.append_signed(Purpose::Cookie, text, &mut out);
        out
    }

    fn verifies(keys: &Keys, purpose: Purpose, signed: &[u8]) -> bool {
        keys.verified(purpose, signed, &mut [0; size_of::<VerifyBuffer>()]).is_some()
    }

    #[test]
    fn the_first_key_signs_and_all_verify() {
        let (old, both, new) = (keys(A), keys(&format!("{B}, {A}")), keys(B));
        let text = signed(&both, b"text");
        assert!(verifies(&new, Purpose::Cookie, &text) && verifies(&both, Purpose::Cookie, &text));
        assert!(!verifies(&old, Purpose::Cookie, &text));
        assert!(verifies(&both, Purpose::Cookie, &signed(&old, b"text")));
    }

    #[test]
    fn a_signature_is_valid_for_one_purpose_only() {
        let keys = keys(A);
        let text = signed(&keys, b"text");
        assert!(verifies(&keys, Purpose::Cookie, &text) && !verifies(&keys, Purpose::Hop, &text));
    }

    #[test]
    fn short_keys_are_rejected() {
        assert_eq!(Keys::parse("").unwrap().map(|_| ()), None);
        assert_eq!(Keys::parse(&format!("{A},short")).unwrap_err(), NoKeys::Short(2));
        assert_eq!(Keys::parse(&[A; 9].join(",")).unwrap_err(), NoKeys::Many);
        assert_eq!(format!("{:?}", keys(A)), "Keys(1)");
    }

    proptest! {
        #[test]
        fn only_signed_values_verify(
            text in proptest::collection::vec(any::<u8>(), 0..=LARGEST_SIGNED),
            at: prop::sample::Index,
            bit in 0..8_u8,
            cut in 1..20_usize,
        ) {
            let keys = keys(A);
            let whole = signed(&keys, &text);
            let mut buffer = [0; size_of::<VerifyBuffer>()];
            prop_assert_eq!(keys.verified(Purpose::Cookie, &whole, &mut buffer), Some(&*text));
            let mut edited = whole.clone();
            edited[at.index(whole.len())] ^= 1_u8 << bit;
            prop_assert!(!verifies(&keys, Purpose::Cookie, &edited));
            prop_assert!(!verifies(&keys, Purpose::Cookie, &whole[..whole.len() - cut.min(whole.len())]));
        }

        #[test]
        fn verifying_any_bytes_does_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(!verifies(&keys(A), Purpose::Cookie, &bytes));
        }
    }
}
