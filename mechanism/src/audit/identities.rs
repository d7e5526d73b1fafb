//! How events identify a client: by pseudonyms, and by its name, encrypted with the subject's key.
//!
//! This takes a data key, two encryptions and two hashes, so the result is cached. At the maximum size the older half
//! is dropped: a client that comes back has a new data key.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use outrigger_identity::verified::VerifiedKind;
use outrigger_policy::audit::Class;
use outrigger_policy::tier::Tier;
use outrigger_trail::keys::{KeyError, MasterKeys, SubjectKind, WrappedKey};

use crate::audit::event::Who;

/// The number of cached identities; at times there are twice as many: about 50 MB.
const MOST: usize = 32_768;

/// How long a key is used. PostgreSQL deletes a key that no event needs days after the shortest retention, which is a
/// day.
const RENEWED_AFTER: Duration = Duration::from_secs(86_400);

/// The key of the cache. A verified client is identified by a hash that is unpredictable from outside.
type Name = (u64, IpAddr, u8);

/// A cached identity.
#[derive(Debug)]
struct Identity {
    /// The members of an event, as JSON.
    text: Box<str>,
    key: WrappedKey,
    /// One bit for each class whose files have the key: each class has a retention of its own.
    kept: u8,
    made: Instant,
}

/// The cache of identities.
#[derive(Debug)]
pub struct Identities {
    keys: MasterKeys,
    young: HashMap<Name, Identity, foldhash::fast::RandomState>,
    old: HashMap<Name, Identity, foldhash::fast::RandomState>,
    most: usize,
}

impl Identities {
    /// Creates an empty cache.
    pub fn new(keys: MasterKeys) -> Self {
        Self { keys, young: HashMap::default(), old: HashMap::default(), most: MOST }
    }

    /// Returns the members that identify the client in an event of `class`. The subject's key is passed to `keep`
    /// before the first event of each class.
    ///
    /// # Errors
    /// The system provides no random bytes.
    pub fn of(
        &mut self,
        who: &Who,
        class: Class,
        now: Instant,
        keep: impl FnOnce(&WrappedKey),
    ) -> Result<&str, KeyError> {
        let name = (who.verified.as_ref().map_or(0, |verified| verified.hash), who.address, who.tier as u8);
        if !self.young.contains_key(&name) {
            let known = self.old.remove(&name);
            if self.young.len() >= self.most {
                self.old = std::mem::take(&mut self.young);
            }
            let identity = match known {
                Some(identity) => identity,
                None => {
                    let (text, key) = describe(&self.keys, who)?;
                    Identity { text, key, kept: 0, made: now }
                }
            };
            self.young.insert(name, identity);
        }
        // Found or just inserted.
        let Some(identity) = self.young.get_mut(&name) else { return Ok("") };
        if now.saturating_duration_since(identity.made) > RENEWED_AFTER {
            let (text, key) = describe(&self.keys, who)?;
            *identity = Identity { text, key, kept: 0, made: now };
        }
        if identity.kept & 1 << class as u8 == 0 {
            identity.kept |= 1 << class as u8;
            keep(&identity.key);
        }
        Ok(&identity.text)
    }

    /// Removes subjects, given as pseudonyms: they get a new key when they come back.
    pub fn forget(&mut self, subjects: &[String]) {
        let subjects: HashSet<&str> = subjects.iter().map(String::as_str).collect();
        let stays = |identity: &Identity| !subjects.contains(identity.key.subject.as_str());
        self.young.retain(|_, identity| stays(identity));
        self.old.retain(|_, identity| stays(identity));
    }
}

const ACTOR: &str = "\"actor\":{\"id\":\"";

/// Creates pseudonyms, a data key, and the encrypted name.
fn describe(keys: &MasterKeys, who: &Who) -> Result<(Box<str>, WrappedKey), KeyError> {
    let address = format!("address:{}", who.address.to_canonical());
    let (kind, subject) = match &who.verified {
        None => (SubjectKind::Address, address.clone()),
        Some(verified) => match verified.kind {
            VerifiedKind::User => (SubjectKind::User, verified.shown()),
            VerifiedKind::Key => (SubjectKind::Key, verified.shown()),
        },
    };
    let client = (kind != SubjectKind::Address).then_some((address.as_str(), who.address));
    members(keys, kind, &subject, client, who.tier)
}

/// Returns the members for a subject that an operator names, such as `user:ann`; `None` if it is not a subject. Without
/// its name: otherwise a search for an erased subject would bring its name back.
pub fn named(keys: &MasterKeys, subject: &str) -> Option<String> {
    let kind = SubjectKind::of(subject)?;
    Some(format!("{ACTOR}{}\",\"kind\":\"{}\"}}", keys.pseudonym(kind, subject.as_bytes()), kind.name()))
}

fn members(
    keys: &MasterKeys,
    kind: SubjectKind,
    subject: &str,
    client: Option<(&str, IpAddr)>,
    tier: Tier,
) -> Result<(Box<str>, WrappedKey), KeyError> {
    let actor = keys.pseudonym(kind, subject.as_bytes());
    let (key, wrapped) = keys.new_data_key(&actor)?;
    let mut plain = serde_json::Map::from_iter([("actor".to_owned(), subject.into())]);
    if let Some((_, address)) = client {
        plain.insert("address".to_owned(), address.to_canonical().to_string().into());
    }
    let sealed = key.seal(serde_json::Value::Object(plain).to_string().as_bytes())?;
    let tier = if tier == Tier::Anonymous { String::new() } else { format!(",\"tier\":\"{}\"", tier.name()) };
    let client = client.map_or_else(String::new, |(address, _)| {
        format!(",\"client\":\"{}\"", keys.pseudonym(SubjectKind::Address, address.as_bytes()))
    });
    let text = format!("{ACTOR}{actor}\",\"kind\":\"{}\"{tier}}}{client},\"sealed\":\"{}\"", kind.name(), wrapped.id);
    let created = format!("{:.6}", jiff::Timestamp::now());
    Ok((text.into(), WrappedKey { created, sealed, ..wrapped }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use outrigger_identity::verified::Verified;

    fn who(name: &str, address: [u8; 4]) -> Who {
        let verified = Verified::new(VerifiedKind::User, name, Tier::Pro);
        Who { address: address.into(), tier: Tier::Pro, verified: Some(std::sync::Arc::new(verified)) }
    }

    fn identities() -> Identities {
        Identities::new(MasterKeys::parse("k1:0123456789abcdef0123456789abcdef").unwrap().unwrap())
    }

    #[test]
    fn an_identity_is_described_once_until_evicted() {
        let mut identities = identities();
        let now = Instant::now();
        let mut made = Vec::new();
        let mut text = |identities: &mut Identities, who: &Who| {
            let mut count = None;
            let text = identities.of(who, Class::Data, now, |key| count = Some(key.clone())).unwrap().to_owned();
            made.extend(count);
            text
        };
        // A random text contains no "@".
        let name = "ann@example.org";
        let ann = text(&mut identities, &who(name, [192, 0, 2, 1]));
        assert_eq!(text(&mut identities, &who(name, [192, 0, 2, 1])), ann);
        assert!(!ann.contains(name) && !ann.contains("192.0.2.1"), "{ann}");
        let bob = text(&mut identities, &who("bob", [192, 0, 2, 1]));
        let subject = ann[ACTOR.len()..][..24].to_owned();
        identities.forget(&[subject]);
        assert_ne!(text(&mut identities, &who(name, [192, 0, 2, 1])), ann, "with another key");
        assert_eq!(text(&mut identities, &who("bob", [192, 0, 2, 1])), bob);
        assert_eq!(made.len(), 3);
    }

    #[test]
    fn remembered_identities_are_bounded() {
        let mut identities = Identities { most: 10, ..identities() };
        let now = Instant::now();
        for number in 0..1000_u16 {
            let [high, low] = number.to_be_bytes();
            identities.of(&who("ann", [10, 0, high, low]), Class::Data, now, |_| {}).unwrap();
            assert!(identities.young.len() + identities.old.len() <= 20);
        }
        let mut is_new = false;
        identities.of(&who("ann", [10, 0, 3, 231]), Class::Data, now, |_| is_new = true).unwrap();
        assert!(!is_new, "whoever was here last is known");
        identities.of(&who("ann", [10, 0, 3, 231]), Class::Security, now, |_| is_new = true).unwrap();
        assert!(is_new, "each class keeps the key for itself");
        let mut is_new = false;
        let later = now + RENEWED_AFTER + Duration::from_secs(1);
        identities.of(&who("ann", [10, 0, 3, 231]), Class::Security, later, |_| is_new = true).unwrap();
        assert!(is_new, "nobody's key is used for ever");
    }
}
