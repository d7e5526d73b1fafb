//! The app's part of the audit log: stores the entries that proxies ship ([`intake`]), records who reads and writes
//! which document ([`own`]), and creates the partitions for both ([`upkeep`]).

pub mod intake;
pub mod metrics;
pub mod own;
pub mod upkeep;

use std::sync::Arc;

use outrigger_policy::audit::Class;
use outrigger_policy::flags::{Flag, Switch};
use outrigger_trail::keys::{KEYS, MasterKeys, PSEUDONYM_KEY, PseudonymKey};
use tokio::sync::{Mutex, Notify, Semaphore};

use crate::config::{AuditSettings, ConfigError};
use crate::units::Secret;

/// The classes of the app's own entries.
pub const OWN_CLASSES: [Class; 2] = [Class::Data, Class::Deletion];
/// How many batches may use a database connection at the same time. Kept low, since client requests have priority.
const BATCHES_AT_ONCE: usize = 2;
/// Minimum length in characters; a shorter secret could be guessed.
const SHORTEST_SECRET: usize = 32;

/// State that the endpoints and the app's own entries share.
#[derive(Debug)]
pub struct Audit {
    secret: Option<Secret>,
    pseudonyms: Option<PseudonymKey>,
    flag: Flag,
    machine: String,
    batches: Semaphore,
    /// Allows one removal at a time. The removal's task holds it, which may outlive the request.
    retention: Arc<Mutex<()>>,
    /// Wakes the upkeep task when a partition is missing.
    wanting: Notify,
}

impl Audit {
    /// Reads the settings. `flag` is the audit log's feature flag.
    ///
    /// # Errors
    /// The secret or a key is invalid; the error contains a hint.
    pub fn new(settings: &AuditSettings, flag: Flag, machine: String) -> Result<Self, ConfigError> {
        let secret = settings.audit_secret.clone();
        if secret.as_ref().is_some_and(|secret| secret.expose().len() < SHORTEST_SECRET) {
            let problem = format!("has less than {SHORTEST_SECRET} characters");
            let hint = "make one with `openssl rand -hex 32`, and give it to both programs";
            return Err(ConfigError::setting("OUTRIGGER_AUDIT_SECRET", problem, hint));
        }
        let pseudonyms =
            settings.audit_pseudonym_key.as_ref().map_or(Ok(None), |key| PseudonymKey::parse(key.expose()));
        let hint = "use what `outrigger audit keys derive` prints";
        let mut pseudonyms = pseudonyms.map_err(|e| ConfigError::setting(PSEUDONYM_KEY, e.to_string(), hint))?;
        let keys = settings.audit_keys.as_ref().map_or(Ok(None), |keys| MasterKeys::parse(keys.expose()));
        let hint = "give the app a pseudonym key instead";
        if let Some(keys) = keys.map_err(|e| ConfigError::setting(KEYS, e.to_string(), hint))? {
            tracing::warn!(
                "{KEYS} is in the app's environment: an attacker who controls the app can sign the proxy's audit log. Give the app \
                 {PSEUDONYM_KEY} instead, as `outrigger audit keys derive` prints it, or start it by `outrigger audit keys exec`"
            );
            pseudonyms.get_or_insert_with(|| keys.pseudonym_key().clone());
        }
        let audit = Self {
            secret,
            pseudonyms,
            flag,
            machine,
            batches: Semaphore::new(BATCHES_AT_ONCE),
            retention: Arc::default(),
            wanting: Notify::new(),
        };
        if audit.pseudonyms.is_none() && audit.flag.switch != Switch::Off {
            tracing::warn!(
                "{PSEUDONYM_KEY} is not set: the app does not record in the audit log who reads and writes documents"
            );
        }
        Ok(audit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    fn audit(arguments: &[&str]) -> Result<Audit, ConfigError> {
        let arguments = [&["outrigger-app"], arguments].concat();
        let settings = Settings::read(arguments.into_iter().map(Into::into)).unwrap();
        Audit::new(&settings.audit, Flag::default(), "m1".to_owned())
    }

    #[test]
    fn a_weak_secret_or_key_is_rejected_at_start_and_never_shown() {
        let error = audit(&["--audit-secret=short-and-sweet"]).unwrap_err().to_string();
        assert!(error.starts_with("OUTRIGGER_AUDIT_SECRET: has less than 32"), "{error}");
        let error = audit(&["--audit-keys=k1:short-and-sweet"]).unwrap_err().to_string();
        assert!(error.starts_with("OUTRIGGER_AUDIT_KEYS: key number 1") && !error.contains("sweet"), "{error}");
        let secret = "0123456789abcdef0123456789abcdef";
        let both = [&*format!("--audit-secret={secret}"), &*format!("--audit-keys=k1:{secret}")];
        let text = format!("{:?}", audit(&both).unwrap());
        assert!(!text.contains(secret), "{text}");
        assert!(audit(&["--audit-secret=", "--audit-keys= "]).unwrap().secret.is_none());
    }
}
