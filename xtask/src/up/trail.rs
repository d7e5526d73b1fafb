//! The audit log of the stack: secrets created once and kept, so that entries stay readable across restarts, and the
//! environment of `outrigger audit` for a shell.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use xtask::{Result, error::While, paths, postgres};

/// The secrets of every Machine.
#[derive(Debug)]
pub(super) struct Secrets {
    /// `OUTRIGGER_AUDIT_KEYS`.
    pub(super) keys: String,
}

impl Secrets {
    /// The secrets of the stack in `state`.
    pub(super) fn of(state: &Path) -> Result<Self> {
        Ok(Self { keys: kept(&state.join("audit.keys"), || Ok(format!("k1:{}", postgres::random_hex(32)?)))? })
    }

    /// Writes the environment of `outrigger audit` to a file that a shell can source, and returns its path.
    pub(super) fn for_shell(&self, state: &Path, spool: &Path, admin: SocketAddr, database: &str) -> Result<PathBuf> {
        let config = paths::root().join("config/proxy.toml");
        let variables = [
            ("OUTRIGGER_CONFIG", config.display().to_string()),
            ("OUTRIGGER_ADMIN_LISTEN", admin.to_string()),
            ("OUTRIGGER_AUDIT_DIRECTORY", spool.display().to_string()),
            ("OUTRIGGER_AUDIT_KEYS", self.keys.clone()),
            ("DATABASE_URL", database.to_owned()),
        ];
        let line = |(name, value): (&str, String)| format!("export {name}={}\n", quoted(&value));
        let file = state.join("audit.env");
        write_private(&file, &variables.map(line).concat())?;
        Ok(file)
    }
}

/// Quotes the value as a single word for a shell.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

/// The file's content; if the file is missing, writes and returns the result of `make`.
fn kept(file: &Path, make: impl FnOnce() -> Result<String>) -> Result<String> {
    match fs::read_to_string(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let made = make()?;
            write_private(file, &made)?;
            Ok(made)
        }
        read => read.while_(format_args!("reading {}", file.display())),
    }
}

/// Writes a file that only its owner may read. Written under another name and renamed, so that an interrupted run
/// leaves no partial secret.
fn write_private(file: &Path, content: &str) -> Result<()> {
    let doing = format!("writing {}", file.display());
    let fresh = file.with_extension("new");
    let _ = fs::remove_file(&fresh);
    let mut written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh).while_(&doing)?;
    written.write_all(content.as_bytes()).while_(&doing)?;
    fs::rename(&fresh, file).while_(&doing)
}
