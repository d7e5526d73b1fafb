//! The generated master key, used if no key is configured.

use std::fs;
use std::io;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};

use crate::keys::MasterKeys;
use crate::layout::MASTER_KEY;
use crate::spool::SpoolError;

/// Reads the key in `directory`, or creates one that only its owner may read.
///
/// # Errors
/// The directory cannot be used, or the file contains no key.
pub fn keys(directory: &Path) -> Result<MasterKeys, SpoolError> {
    let path = directory.join(MASTER_KEY);
    let broken = || SpoolError::Broken {
        path: path.clone(),
        problem: "has no key: restore it from a copy, or set OUTRIGGER_AUDIT_KEYS",
    };
    match fs::read_to_string(&path) {
        Ok(text) => MasterKeys::parse(text.trim()).ok().flatten().ok_or_else(broken),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let text = new_key().ok_or_else(broken)?;
            crate::spool::write_private(&path, text.as_bytes())?;
            MasterKeys::parse(&text).ok().flatten().ok_or_else(broken)
        }
        Err(source) => Err(SpoolError::File { path, source }),
    }
}

/// Appends the generated key in `directory`, if any, to the `given` keys, so that an audit log started with it stays
/// readable.
pub fn behind(directory: &Path, given: MasterKeys) -> MasterKeys {
    let text = fs::read_to_string(directory.join(MASTER_KEY)).unwrap_or_default();
    match MasterKeys::parse(text.trim()) {
        Ok(Some(local)) => given.and(&local),
        _ => given,
    }
}

/// A key that is never stored; `None` if the system provides no random bytes.
pub fn passing_keys() -> Option<MasterKeys> {
    // A random id, so that its signatures are not attributed to a stored key.
    let name = URL_SAFE_NO_PAD.encode(&random()?[..8]);
    MasterKeys::parse(&format!("passing-{name}:{}", URL_SAFE_NO_PAD.encode(random()?))).ok().flatten()
}

fn new_key() -> Option<String> {
    Some(format!("local:{}", URL_SAFE_NO_PAD.encode(random()?)))
}

fn random() -> Option<[u8; 32]> {
    let mut secret = [0; 32];
    SystemRandom::new().fill(&mut secret).ok()?;
    Some(secret)
}
