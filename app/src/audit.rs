//! The app's part of the audit log: records who reads and writes which document ([`own`]), and creates the partitions
//! for these entries ([`upkeep`]). The proxy stores its own.

pub mod metrics;
pub mod own;
pub mod upkeep;

use outrigger_policy::audit::Class;
use outrigger_policy::flags::{Flag, Switch};
use outrigger_trail::keys::{KEYS, MasterKeys, PSEUDONYM_KEY, PseudonymKey};
use tokio::sync::Notify;

use crate::config::{AuditSettings, ConfigError};

/// The classes of the app's own entries.
pub const OWN_CLASSES: [Class; 2] = [Class::Data, Class::Deletion];

/// What the app's own entries need.
#[derive(Debug)]
pub struct Audit {
    pseudonyms: Option<PseudonymKey>,
    flag: Flag,
    machine: String,
    /// Wakes the upkeep task when a partition is missing.
    wanting: Notify,
}

impl Audit {
    /// Reads the settings. `flag` is the audit log's feature flag.
    ///
    /// # Errors
    /// A key is invalid; the error contains a hint.
    pub fn new(settings: &AuditSettings, flag: Flag, machine: String) -> Result<Self, ConfigError> {
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
        let audit = Self { pseudonyms, flag, machine, wanting: Notify::new() };
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
    fn a_weak_key_is_rejected_at_start_and_never_shown() {
        let error = audit(&["--audit-keys=k1:short-and-sweet"]).unwrap_err().to_string();
        assert!(error.starts_with("OUTRIGGER_AUDIT_KEYS: key number 1") && !error.contains("sweet"), "{error}");
        let secret = "0123456789abcdef0123456789abcdef";
        let text = format!("{:?}", audit(&[&*format!("--audit-keys=k1:{secret}")]).unwrap());
        assert!(!text.contains(secret), "{text}");
        assert!(audit(&["--audit-keys= "]).unwrap().pseudonyms.is_none());
    }
}
