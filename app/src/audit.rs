//! The app's part in the audit trail: it stores what proxies ship ([`intake`]), enters by itself who reads and writes which
//! document ([`own`]), and sees to it that there is a place for both ([`upkeep`]).

pub mod intake;
pub mod own;
pub mod upkeep;

use std::sync::Arc;

use outrigger_policy::audit::Class;
use outrigger_policy::flags::{Flag, Switch};
use outrigger_trail::keys::{KEYS, MasterKeys};
use tokio::sync::{Mutex, Notify, Semaphore};

use crate::config::{AuditSettings, ConfigError};
use crate::units::Secret;

/// The classes that the app's own entries have.
pub const OWN_CLASSES: [Class; 2] = [Class::Data, Class::Deletion];
/// Connections that batches may use at the same time: requests come first.
const BATCHES_AT_ONCE: usize = 2;
/// A shorter one could be guessed.
const SHORTEST_SECRET: usize = 32;

/// What the endpoints and the app's own entries share.
#[derive(Debug)]
pub struct Audit {
    secret: Option<Secret>,
    keys: Option<MasterKeys>,
    flag: Flag,
    machine: String,
    batches: Semaphore,
    /// One removal at a time; held by its task, which may outlive the request.
    retention: Arc<Mutex<()>>,
    /// Wakes the upkeep: a partition is missing.
    wanting: Notify,
}

impl Audit {
    /// Reads the settings. `flag` is the trail's.
    ///
    /// # Errors
    /// The secret or a key cannot be used, with a hint.
    pub fn new(settings: &AuditSettings, flag: Flag, machine: String) -> Result<Self, ConfigError> {
        let secret = settings.audit_secret.clone();
        if secret.as_ref().is_some_and(|secret| secret.expose().len() < SHORTEST_SECRET) {
            let problem = format!("has less than {SHORTEST_SECRET} characters");
            let hint = "make one with `openssl rand -hex 32`, and give it to both programs";
            return Err(ConfigError::setting("OUTRIGGER_AUDIT_SECRET", problem, hint));
        }
        let keys = settings.audit_keys.as_ref().map_or(Ok(None), |keys| MasterKeys::parse(keys.expose()));
        let keys = keys.map_err(|e| ConfigError::setting(KEYS, e.to_string(), "give the app the proxy's keys"))?;
        let audit = Self {
            secret,
            keys,
            flag,
            machine,
            batches: Semaphore::new(BATCHES_AT_ONCE),
            retention: Arc::default(),
            wanting: Notify::new(),
        };
        if audit.keys.is_none() && audit.flag.switch != Switch::Off {
            tracing::warn!(
                "{KEYS} is not set: the app does not enter into the audit trail who reads and writes documents"
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
    fn a_secret_or_key_that_could_be_guessed_is_refused_at_start_and_never_shown() {
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
