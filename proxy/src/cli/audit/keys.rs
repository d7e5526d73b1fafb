//! `outrigger audit keys`: the public keys for auditors, and the app's part of the keys.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use clap::{Args, Subcommand};
use outrigger_rules::environment::PROXY_SECRETS;
use outrigger_trail::keys::{KEYS, MasterKeys, PSEUDONYM_KEY, PseudonymKey};

use super::{AuditError, Context, Place};

/// Options of `outrigger audit keys`.
#[derive(Debug, Args)]
pub struct Options {
    /// The location.
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print the app's part of OUTRIGGER_AUDIT_KEYS, for OUTRIGGER_AUDIT_PSEUDONYM_KEY: a secret that makes pseudonyms, but
    /// can neither sign nor decrypt.
    Derive,
    /// Run the app with OUTRIGGER_AUDIT_PSEUDONYM_KEY, derived from OUTRIGGER_AUDIT_KEYS, and without the proxy's own secrets.
    Exec(Exec),
}

#[derive(Debug, Args)]
struct Exec {
    /// The user that runs it, a name or a number. Only root can change the user; that happens before the command runs.
    #[arg(long, env = "OUTRIGGER_APP_USER", value_name = "USER")]
    user: Option<String>,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(super) fn run(config: &Path, options: &Options) -> Result<ExitCode, AuditError> {
    match &options.what {
        None => {
            let context = Context::new(config, options.place.clone())?;
            show("public_keys", &context.keys()?.public().to_string(), options.place.json)
        }
        Some(What::Derive) => {
            let context = Context::new(config, options.place.clone())?;
            show("pseudonym_key", &context.keys()?.pseudonym_key().expose(), options.place.json)
        }
        Some(What::Exec(exec)) => Err(exec.run()?),
    }
}

fn show(name: &str, keys: &str, json: bool) -> Result<ExitCode, AuditError> {
    Ok(crate::cli::say(&if json { format!("{}\n", serde_json::json!({ name: keys })) } else { format!("{keys}\n") }))
}

impl Exec {
    /// Replaces this process with the command. Returns only if that fails.
    fn run(&self) -> Result<AuditError, AuditError> {
        let refused = |problem: String| AuditError::Refused(problem);
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let derived = match set(KEYS) {
            Some(text) => MasterKeys::parse(&text)
                .map_err(|source| AuditError::Keys { from: KEYS.to_owned(), source })?
                .map(|keys| keys.pseudonym_key().expose()),
            None => None,
        };
        if let Some(text) = set(PSEUDONYM_KEY) {
            // The app would reject it, too, but without saying that it comes from the container's environment.
            PseudonymKey::parse(&text).map_err(|source| AuditError::Keys { from: PSEUDONYM_KEY.to_owned(), source })?;
        }
        let (program, arguments) = self.command.split_first().ok_or_else(|| refused("no command".to_owned()))?;
        let mut command = Command::new(program);
        command.args(arguments);
        for secret in PROXY_SECRETS {
            command.env_remove(secret);
        }
        // The proxy uses the newest key, so the key derived from it takes precedence.
        if let Some(key) = derived {
            command.env(PSEUDONYM_KEY, key);
        }
        if let Some(user) = self.user.as_deref().filter(|user| !user.is_empty()) {
            let (uid, gid) = ids(user)?;
            if rustix::process::geteuid().as_raw() != uid {
                // This drops supplementary groups, too.
                command.gid(gid).uid(uid);
            }
        }
        let error = command.exec();
        Ok(refused(format!("{}: {error}", program.to_string_lossy())))
    }
}

/// The ids of a user in /etc/passwd.
fn ids(user: &str) -> Result<(u32, u32), AuditError> {
    let path = Path::new("/etc/passwd");
    let text = std::fs::read_to_string(path).map_err(AuditError::file(path))?;
    let found = text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, ..] = fields.as_slice() else { return None };
        (*name == user || *uid == user).then(|| Some((uid.parse().ok()?, gid.parse().ok()?))).flatten()
    });
    found.ok_or_else(|| {
        AuditError::Refused(format!("this system has no user {user}; create it, or correct OUTRIGGER_APP_USER"))
    })
}
