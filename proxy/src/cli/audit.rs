//! `outrigger audit`: the commands for operators and auditors.
//!
//! Commands add entries about themselves to the audit log, except `receipt`, `keys` and `hold list`. A command that reveals
//! or destroys data adds it first, and stops if it cannot. If no program writes the audit log, the command writes it itself;
//! otherwise it asks that program.
//!
//! Exit codes: 0 success, or no problems; 1 failure, or problems; 2 the audit log does not exist or cannot be read; 78
//! invalid configuration.

mod act;
mod database;
mod erase;
mod export;
mod find;
mod follow;
mod hold;
mod keys;
mod ocsf;
mod report;
pub(super) mod requests;
pub(super) mod text;
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
use outrigger_trail::follow::FollowError;
use outrigger_trail::holds::HoldError;
use outrigger_trail::keys::{KEYS, KeyError, MasterKeys, SubjectKind};
use outrigger_trail::layout;
use outrigger_trail::local;
use outrigger_trail::spool::SpoolError;
use outrigger_trail::store::StoreError;
use outrigger_trail::verify::VerifyError;

use self::database::Database;
pub use self::database::Url;
pub use self::find::moment;
use super::EX_CONFIG;

/// A command for the audit log.
#[derive(Debug, Subcommand)]
pub enum Audit {
    /// Verify that the audit log is complete and unchanged; report each problem and its place.
    Verify(verify::Options),
    /// Print a receipt: a signed statement of where all chains end, to be kept elsewhere; `audit verify --receipt FILE`
    /// compares.
    Receipt(Place),
    /// Find entries, newest first.
    Search(find::Options),
    /// Print new entries as they are written, each once it is verified, for a log shipper.
    Follow(follow::Options),
    /// Export all entries about a subject (GDPR, Art. 15).
    Export(export::Options),
    /// Destroy a subject's keys, so that entries can never again show who it was (GDPR, Art. 17).
    Erase(erase::Options),
    /// Keep entries that would expire.
    #[command(subcommand)]
    Hold(hold::Command),
    /// Write the record of processing activities (GDPR, Art. 30).
    Report(report::Options),
    /// Print the public keys for auditors, or give the app its part of the keys.
    Keys(keys::Options),
}

/// The location of the audit log.
#[derive(Clone, Debug, Args)]
pub struct Place {
    /// The spool. Default: audit.directory of the configuration.
    #[arg(long, env = "OUTRIGGER_AUDIT_DIRECTORY", value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
    /// Include PostgreSQL. Without a URL, OUTRIGGER_AUDIT_DATABASE_URL is used, else DATABASE_URL: this keeps the password out of
    /// the process list.
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "")]
    database: Option<Url>,
    /// The admin listener of the program that writes the audit log, if it is not that of the configuration.
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Place {
    /// The admin listener that is named.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Whether JSON is wanted.
    pub fn is_json(&self) -> bool {
        self.json
    }
}

/// The operator and the reason.
#[derive(Clone, Debug, Args)]
pub struct By {
    /// The operator, for the audit log.
    #[arg(long, default_value_t = operator_name(), value_name = "NAME")]
    by: String,
    /// The reason, for the audit log.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

impl By {
    /// As the admin listener takes it.
    pub fn shown(&self) -> serde_json::Value {
        serde_json::json!({ "by": self.by, "reason": self.reason })
    }
}

fn operator_name() -> String {
    let name = |name| std::env::var(name).ok().filter(|name| !name.is_empty());
    let named = name("SUDO_USER").or_else(|| name("USER")).or_else(|| name("LOGNAME"));
    named.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}

/// A subject as operators write it: `user:ann`, `key:acme`, `address:192.0.2.1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject(String);

/// The text is not a subject.
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

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The configuration is invalid.
    #[error("{0}")]
    Config(ConfigError),
    /// No directory is configured.
    #[error(
        "no audit log is named: set audit.directory in the configuration, or OUTRIGGER_AUDIT_DIRECTORY, or use --directory DIRECTORY"
    )]
    NoDirectory,
    /// There are no keys.
    #[error("{KEYS} is not set, and {} does not exist: set it as for the proxy", .0.display())]
    NoKeys(PathBuf),
    /// The keys cannot be used.
    #[error("{from}: {source}")]
    Keys {
        /// The source of the keys.
        from: String,
        /// The cause.
        source: KeyError,
    },
    /// DATABASE_URL cannot be used.
    #[error("{0}")]
    Url(String),
    /// The audit log cannot be verified.
    #[error("{0}")]
    Verify(#[from] VerifyError),
    /// A file cannot be read or written.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Entries cannot be followed.
    #[error("{0}")]
    Follow(#[from] FollowError),
    /// The spool cannot be used.
    #[error("{0}")]
    Spool(#[from] SpoolError),
    /// The holds cannot be read or changed.
    #[error("{0}")]
    Hold(#[from] HoldError),
    /// PostgreSQL failed.
    #[error("PostgreSQL: {0}")]
    Database(String),
    /// The program that writes the audit log failed.
    #[error("the proxy that writes the audit log, at {address} (admin.listen): {problem}")]
    Program {
        /// Its admin listener.
        address: SocketAddr,
        /// The problem that it reported.
        problem: String,
    },
    /// The entry about the command could not be added.
    #[error("not done, because it cannot be recorded in the audit log: {0}")]
    NotRecorded(Box<AuditError>),
    /// Any other problem that the operator has to know.
    #[error("{0}")]
    Refused(String),
}

impl AuditError {
    fn code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::NoDirectory | Self::NoKeys(_) | Self::Keys { .. } | Self::Url(_) => EX_CONFIG,
            Self::NotRecorded(cause) if matches!(**cause, Self::Config(_) | Self::NoDirectory) => EX_CONFIG,
            Self::Verify(_) | Self::Follow(FollowError::Read { .. }) => 2,
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

/// A search for one request.
#[derive(Debug)]
pub struct Search {
    /// The request id.
    pub request: String,
    /// How far back.
    pub since: jiff::Timestamp,
    /// Decrypt names and addresses.
    pub reveal: bool,
    /// The operator.
    pub by: By,
}

/// The entries of a request, as text or JSON lines. Empty if there are none.
///
/// # Errors
/// There is no audit log, or it cannot be read.
pub fn of_request(config: &Path, place: Place, search: Search) -> Result<String, AuditError> {
    find::of_request(&Context::new(config, place)?, search)
}

/// Runs the command line.
pub fn main(config: &Path, audit: Audit) -> ExitCode {
    match run(config, audit) {
        Ok(code) => code,
        Err(AuditError::Config(error)) => super::refuse(&error),
        Err(error) => {
            // If standard error is closed, the message is lost.
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
        Audit::Follow(options) => follow::run(&context(options.place.clone())?, &options),
        Audit::Export(options) => export::run(&context(options.place.clone())?, &options),
        Audit::Erase(options) => erase::run(&context(options.place.clone())?, &options),
        Audit::Hold(command) => hold::run(config, &command),
        Audit::Report(options) => report::run(&context(options.place.clone())?, &options),
        Audit::Keys(options) => keys::run(config, &options),
    }
}

/// The context of all commands.
struct Context {
    config_file: PathBuf,
    place: Place,
    /// The spool; `None` if only PostgreSQL is used.
    directory: Option<PathBuf>,
    /// The configuration of the audit log, if it was needed to find the spool.
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
                // With a database named, the command may run where no proxy is configured.
                Err(_) if context.place.database.is_some() => {}
                Err(e) => return Err(e),
            }
        }
        Ok(context)
    }

    fn config(&self) -> Result<Config, AuditError> {
        // The proxy may run without a file, too.
        let named = Some(self.config_file.as_path()).filter(|file| *file != Path::new(super::DEFAULT_FILE));
        super::load_alone(named).map_err(AuditError::Config)
    }

    fn directory(&self) -> Result<&Path, AuditError> {
        self.directory.as_deref().ok_or(AuditError::NoDirectory)
    }

    /// The program's master keys. Never generates keys: the program could not decrypt what they encrypt.
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

    /// The admin listener of the program that writes the audit log.
    fn admin(&self) -> Result<SocketAddr, AuditError> {
        match self.place.admin {
            Some(address) => Ok(address),
            None => Ok(self.config()?.admin.listen),
        }
    }

    /// The connection to PostgreSQL, if requested.
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
    fn a_subject_is_written_as_in_the_audit_log() {
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
