//! `outrigger audit`: what operators and auditors do with the trail.
//!
//! Each act is itself entered into the trail. What reveals or destroys something is entered first, so that it is not done when it
//! cannot be entered. A command that finds nobody else writing does so itself; otherwise it asks the program that writes.
//!
//! Exit codes: 0 done, or whole; 1 failed, or not whole; 2 there is nothing to verify, or it cannot be read; 78 the configuration is
//! wrong.

mod act;
mod database;
mod erase;
mod export;
mod find;
mod hold;
mod keys;
mod report;
mod text;
mod verify;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use outrigger_policy::audit::Time;
use outrigger_rules::config::Config;
use outrigger_rules::error::ConfigError;
use outrigger_rules::sections::audit::AuditRules;
use outrigger_trail::holds::HoldError;
use outrigger_trail::keys::{KEYS, KeyError, MasterKeys, SubjectKind};
use outrigger_trail::layout;
use outrigger_trail::local;
use outrigger_trail::spool::SpoolError;
use outrigger_trail::store::StoreError;
use outrigger_trail::verify::VerifyError;

use self::database::{Database, Url};
use super::EX_CONFIG;

/// What is done with the trail.
#[derive(Debug, Subcommand)]
pub enum Audit {
    /// Say whether the trail is whole, and if not, what is wrong where.
    Verify(verify::Options),
    /// Print a receipt: a signed statement of where all chains end, to be kept elsewhere; `audit verify --receipt FILE` compares.
    Receipt(Place),
    /// Find entries, newest first.
    Search(find::Options),
    /// Write down everything that is known about a subject (GDPR, Art. 15).
    Export(export::Options),
    /// Make what is known about a subject unreadable, for ever (GDPR, Art. 17).
    Erase(erase::Options),
    /// Keep what would expire.
    #[command(subcommand)]
    Hold(hold::Command),
    /// Write the record of processing that GDPR, Art. 30, asks for.
    Report(report::Options),
    /// Print the public keys with which auditors verify; or give the app its part of the keys.
    Keys(keys::Options),
}

/// Where the trail is.
#[derive(Clone, Debug, Args)]
pub struct Place {
    /// The spool. Unset: audit.directory of the configuration.
    #[arg(long, env = "OUTRIGGER_AUDIT_DIRECTORY", value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
    /// PostgreSQL as well. Without a URL, DATABASE_URL: the password does not show in the list of processes then.
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "")]
    database: Option<Url>,
    /// The admin listener of the program that writes the trail, when it is another one than the configuration says.
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    /// For programs: JSON.
    #[arg(long)]
    json: bool,
}

/// Who acts, and why.
#[derive(Clone, Debug, Args)]
pub struct By {
    /// Who acts, for the trail.
    #[arg(long, default_value_t = whoever(), value_name = "WHO")]
    by: String,
    /// Why, for the trail.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

fn whoever() -> String {
    let name = |name| std::env::var(name).ok().filter(|name| !name.is_empty());
    let named = name("SUDO_USER").or_else(|| name("USER")).or_else(|| name("LOGNAME"));
    named.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}

/// A subject as operators write it: `user:ann`, `key:acme`, `address:192.0.2.1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject(String);

/// It is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write user:NAME, key:NAME or address:IP")]
pub struct NoSubject;

impl std::str::FromStr for Subject {
    type Err = NoSubject;

    fn from_str(text: &str) -> Result<Self, NoSubject> {
        match SubjectKind::of(text).ok_or(NoSubject)? {
            SubjectKind::Address => {
                let address: std::net::IpAddr = text["address:".len()..].parse().map_err(|_| NoSubject)?;
                // As the proxy writes it.
                Ok(Self(format!("address:{}", address.to_canonical())))
            }
            SubjectKind::User | SubjectKind::Key => Ok(Self(text.to_owned())),
        }
    }
}

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The configuration.
    #[error("{0}")]
    Config(ConfigError),
    /// No directory is named.
    #[error(
        "no trail is named: set audit.directory in the configuration, or OUTRIGGER_AUDIT_DIRECTORY, or write --directory DIRECTORY"
    )]
    NoDirectory,
    /// No keys are there.
    #[error("{KEYS} is not set, and {} is not there: set it to what the program has", .0.display())]
    NoKeys(PathBuf),
    /// The keys cannot be used.
    #[error("{from}: {source}")]
    Keys {
        /// Where they are from.
        from: String,
        /// What is wrong.
        source: KeyError,
    },
    /// DATABASE_URL cannot be used.
    #[error("{0}")]
    Url(String),
    /// The trail cannot be verified.
    #[error("{0}")]
    Verify(#[from] VerifyError),
    /// A file.
    #[error("{}: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The spool.
    #[error("{0}")]
    Spool(#[from] SpoolError),
    /// Holds.
    #[error("{0}")]
    Hold(#[from] HoldError),
    /// PostgreSQL.
    #[error("PostgreSQL: {0}")]
    Database(String),
    /// The program that writes.
    #[error("the program that writes the trail, at {address} (admin.listen): {problem}")]
    Program {
        /// Its admin listener.
        address: SocketAddr,
        /// What it said.
        problem: String,
    },
    /// The act could not be entered.
    #[error("nothing was done, because it cannot be entered into the trail: {0}")]
    NotEntered(Box<AuditError>),
    /// Something else that the operator has to know.
    #[error("{0}")]
    Refused(String),
}

impl AuditError {
    fn code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::NoDirectory | Self::NoKeys(_) | Self::Keys { .. } | Self::Url(_) => EX_CONFIG,
            Self::NotEntered(cause) if matches!(**cause, Self::Config(_) | Self::NoDirectory) => EX_CONFIG,
            Self::Verify(_) => 2,
            _ => 1,
        }
    }

    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }
}

impl From<StoreError> for AuditError {
    fn from(error: StoreError) -> Self {
        Self::Database(database::describe(&error))
    }
}

/// Does what the command line says.
pub fn main(config: &Path, audit: Audit) -> ExitCode {
    match run(config, audit) {
        Ok(code) => code,
        Err(AuditError::Config(error)) => super::refuse(&error),
        Err(error) => {
            // Standard error that is gone cannot be told about.
            let _ = writeln!(io::stderr(), "outrigger audit: {}", text::safe(&error.to_string()));
            ExitCode::from(error.code())
        }
    }
}

fn run(config: &Path, audit: Audit) -> Result<ExitCode, AuditError> {
    let context = |place: Place| Context::new(config, place);
    match audit {
        Audit::Verify(options) => verify::run(&context(options.place.clone())?, &options),
        Audit::Receipt(place) => verify::receipt(&context(place)?),
        Audit::Search(options) => find::run(&context(options.place.clone())?, &options),
        Audit::Export(options) => export::run(&context(options.place.clone())?, &options),
        Audit::Erase(options) => erase::run(&context(options.place.clone())?, &options),
        Audit::Hold(command) => hold::run(config, &command),
        Audit::Report(options) => report::run(&context(options.place.clone())?, &options),
        Audit::Keys(options) => keys::run(config, &options),
    }
}

/// What every command needs.
struct Context {
    config_file: PathBuf,
    place: Place,
    /// The spool; `None`: only PostgreSQL is asked.
    directory: Option<PathBuf>,
    /// The trail's rules, when the configuration was asked where it is.
    rules: Option<AuditRules>,
    runtime: tokio::runtime::Runtime,
}

impl Context {
    fn new(config_file: &Path, place: Place) -> Result<Self, AuditError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(AuditError::file(Path::new("the system")))?;
        let directory = place.directory.clone();
        let mut context = Self { config_file: config_file.to_owned(), place, directory, rules: None, runtime };
        if context.directory.is_none() {
            match context.config() {
                Ok(config) => {
                    context.directory = config.audit.as_ref().map(|rules| rules.directory.clone());
                    context.rules = config.audit;
                }
                // Who names a database may be where no proxy is configured.
                Err(_) if context.place.database.is_some() => {}
                Err(e) => return Err(e),
            }
        }
        Ok(context)
    }

    fn config(&self) -> Result<Config, AuditError> {
        // The proxy may run without its file, too.
        let named = Some(self.config_file.as_path()).filter(|file| *file != Path::new(super::DEFAULT_FILE));
        super::load_alone(named).map_err(AuditError::Config)
    }

    fn directory(&self) -> Result<&Path, AuditError> {
        self.directory.as_deref().ok_or(AuditError::NoDirectory)
    }

    /// The master keys, as the program has them. None are made here: what they would seal, the program could not open.
    fn keys(&self) -> Result<MasterKeys, AuditError> {
        if let Some(text) = std::env::var(KEYS).ok().filter(|text| !text.trim().is_empty()) {
            let keys = MasterKeys::parse(&text).map_err(|source| AuditError::Keys { from: KEYS.to_owned(), source })?;
            let keys = keys.ok_or_else(|| AuditError::NoKeys(PathBuf::from(layout::MASTER_KEY)))?;
            return Ok(self.directory.as_deref().map_or(keys.clone(), |directory| local::behind(directory, keys)));
        }
        let directory = self.directory()?;
        let path = directory.join(layout::MASTER_KEY);
        if !path.exists() {
            return Err(AuditError::NoKeys(path));
        }
        Ok(local::keys(directory)?)
    }

    /// The listener of the program that writes.
    fn admin(&self) -> Result<SocketAddr, AuditError> {
        match self.place.admin {
            Some(address) => Ok(address),
            None => Ok(self.config()?.admin.listen),
        }
    }

    /// PostgreSQL, when it was asked for.
    fn database(&self) -> Result<Option<Database>, AuditError> {
        let Some(url) = &self.place.database else { return Ok(None) };
        self.runtime.block_on(Database::connect(url)).map(Some)
    }
}

fn now() -> Time {
    Time(jiff::Timestamp::now().as_microsecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_written_as_the_trail_has_it() {
        let read = |text: &str| text.parse::<Subject>().map(|subject| subject.0);
        assert_eq!(read("user:ann").unwrap(), "user:ann");
        assert_eq!(read("address:::ffff:192.0.2.1").unwrap(), "address:192.0.2.1");
        assert_eq!(read("address:2001:DB8::0:1").unwrap(), "address:2001:db8::1");
        for bad in ["ann", "user:", "address:ann", "role:admin"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_is_in_no_debug_text() {
        let url: Url = "postgres://app:secret@db/app".parse().unwrap_or_else(|e| match e {});
        assert!(!format!("{url:?}").contains("secret"));
    }
}
