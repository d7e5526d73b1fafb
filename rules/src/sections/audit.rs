//! `[audit]`: which events the audit log records, how durably, and for how long.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderName;
use outrigger_policy::audit::{Class, Declared, Durability};
use outrigger_trail::keys::{KEYS, MasterKeys};
use outrigger_trail::spool::Settings;
use outrigger_trail::store::address::{self, Address};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::complaints::Builder;
use crate::environment::{AUDIT_DATABASE_URL, FLY_MACHINE_ID};
use crate::error::{Place, Problem};
use crate::tree::Step;
use crate::units::{Size, Span, Text};

const DAY: Duration = Duration::from_secs(86_400);

const fn span(duration: Duration) -> Text<Span> {
    Text(Span(duration))
}

/// The audit log: who did what, written to disk before any other system depends on it. Changes need a restart, except of
/// `default`, `headers`, `parameters`, `retention`, `durability` and `record`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// The spool's directory. Unset: no audit log. Environment: OUTRIGGER_AUDIT_DIRECTORY.
    pub directory: Option<String>,
    /// The PostgreSQL that entries are shipped to, which keeps those of all Machines: `postgres://USER@HOST/DATABASE`. The
    /// tables are made if they are missing. Unset: entries stay in the directory. Environment, which wins and is the place for
    /// a password: OUTRIGGER_AUDIT_DATABASE_URL.
    #[schemars(extend("x-secret" = "value"))]
    pub database: Option<String>,
    /// The class of requests whose route has none: `"off"`, or as `audit` of a route.
    pub default: String,
    /// Events that may wait to be written. Beyond, events are counted as lost (`group`) or their requests rejected
    /// (`before-response`).
    #[schemars(range(min = 16, max = 1_000_000))]
    pub queue: u32,
    /// Maximum time until an event is on disk.
    pub commit_interval: Text<Span>,
    /// How long a request of `before-response` may wait until its event is on disk. Later: 503.
    pub commit_timeout: Text<Span>,
    /// A file of this size is closed and signed.
    pub segment_size: Text<Size>,
    /// Maximum size of all files together. At the limit, the oldest files that PostgreSQL already has are deleted first.
    pub max_size: Text<Size>,
    /// Request headers whose values are recorded.
    pub headers: Vec<String>,
    /// Path parameters, as in `/items/{id}`, whose values are recorded.
    pub parameters: Vec<String>,
    /// How long events are kept, by class.
    pub retention: Retention,
    /// How durably events are written, by class.
    pub durability: Durabilities,
    /// Details for the record of processing that the program cannot know (`outrigger audit report`).
    pub record: Record,
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            directory: None,
            database: None,
            default: "off".to_owned(),
            queue: 65_536,
            commit_interval: span(Duration::from_millis(50)),
            commit_timeout: span(Duration::from_secs(2)),
            segment_size: Text(Size(16 << 20)),
            max_size: Text(Size(1 << 30)),
            headers: Vec::new(),
            parameters: Vec::new(),
            retention: Retention::default(),
            durability: Durabilities::default(),
            record: Record::default(),
        }
    }
}

/// How long events are kept.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Rejections, bans, circuit breakers, forgeries.
    pub security: Text<Span>,
    /// Sign-ins.
    pub authentication: Text<Span>,
    /// Reads and changes of data.
    pub data: Text<Span>,
    /// Operators' actions.
    pub administration: Text<Span>,
    /// Deletions, consent, and subjects' requests.
    pub deletion: Text<Span>,
}

impl Default for Retention {
    fn default() -> Self {
        let default = |class: Class| span(Duration::from_secs(class.default_retention_s()));
        Self {
            security: default(Class::Security),
            authentication: default(Class::Authentication),
            data: default(Class::Data),
            administration: default(Class::Administration),
            deletion: default(Class::Deletion),
        }
    }
}

/// When a client gets its response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Surely {
    /// At once: events of the last `commit_interval` may be lost in a power failure.
    #[default]
    Group,
    /// After its event is on disk; 503 if it cannot be written.
    BeforeResponse,
}

impl From<Surely> for Durability {
    fn from(surely: Surely) -> Self {
        match surely {
            Surely::Group => Self::Group,
            Surely::BeforeResponse => Self::BeforeResponse,
        }
    }
}

/// How durably events are written.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Durabilities {
    /// Rejections, bans, circuit breakers, forgeries.
    pub security: Surely,
    /// Sign-ins.
    pub authentication: Surely,
    /// Reads and changes of data.
    pub data: Surely,
    /// Operators' actions.
    pub administration: Surely,
    /// Deletions, consent, and subjects' requests.
    pub deletion: Surely,
}

/// Details for the record of processing (GDPR Art. 30) that the program cannot know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Record {
    /// Name and address of the controller.
    pub controller: String,
    /// How to contact the controller.
    pub contact: String,
    /// The representative in the Union, if there is one.
    pub representative: String,
    /// The data-protection officer.
    pub dpo: String,
    /// Purposes of the audit log.
    pub purposes: Vec<String>,
    /// The legal basis.
    pub legal_basis: String,
    /// Categories of data subjects.
    pub subjects: Vec<String>,
    /// Recipients of the data.
    pub recipients: Vec<String>,
    /// Transfers to third countries, and their safeguards.
    pub transfers: Vec<String>,
    /// Measures in addition to those of the program.
    pub measures: Vec<String>,
}

/// The audit log, checked.
#[derive(Clone, Debug)]
pub struct AuditRules {
    /// The spool's directory.
    pub directory: PathBuf,
    /// The Machine's name in events.
    pub machine: String,
    /// The master keys; `None`: one is created in the directory.
    pub keys: Option<MasterKeys>,
    /// The PostgreSQL that events are shipped to; `None`: they stay in the directory.
    pub database: Option<Address>,
    /// Bounds of the spool.
    pub spool: Settings,
    /// Events that may wait to be written.
    pub queue: usize,
    /// Maximum time until an event is on disk.
    pub commit_interval: Duration,
    /// How long a request may wait for that.
    pub commit_timeout: Duration,
    /// By class.
    pub retention: [Duration; Class::ALL.len()],
    /// By class.
    pub durability: [Durability; Class::ALL.len()],
    /// Request headers that are recorded.
    pub headers: Vec<HeaderName>,
    /// Path parameters that are recorded.
    pub parameters: Vec<String>,
    /// Details for the record of processing.
    pub record: Record,
}

/// Settings that cannot change while the process runs.
pub type AtStart<'a> = (&'a Path, &'a str, Settings, usize, Option<&'a str>, Option<&'a Address>);

impl AuditRules {
    /// Settings that cannot change while the process runs.
    pub fn at_start(&self) -> AtStart<'_> {
        let key = self.keys.as_ref().map(MasterKeys::current_id);
        (&self.directory, &self.machine, self.spool, self.queue, key, self.database.as_ref())
    }

    /// These settings, except for those fixed at start, which come from `before`.
    pub fn keeping(self, before: &Self) -> Self {
        Self {
            directory: before.directory.clone(),
            machine: before.machine.clone(),
            keys: before.keys.clone(),
            database: before.database.clone(),
            spool: before.spool,
            queue: before.queue,
            ..self
        }
    }
}

/// Headers that carry secrets: never recorded, regardless of the configuration.
const NEVER: [&str; 8] = [
    "authorization",
    "cookie",
    "set-cookie",
    "proxy-authorization",
    "x-api-key",
    "x-auth-token",
    "x-csrf-token",
    "x-outrigger-hop",
];

impl Builder<'_> {
    /// Checks the section; `None` if there is no audit log.
    pub fn audit(&mut self, written: &Audit, machine: Option<&str>, key_field: &HeaderName) -> Option<AuditRules> {
        let at = |key| [Step::Key("audit"), Step::Key(key)];
        let keys = match (self.environment)(KEYS).map(|text| MasterKeys::parse(&text)) {
            Some(Ok(keys)) => keys,
            Some(Err(e)) => {
                let hint = "make a secret with `openssl rand -base64 32`; the first key encrypts, all decrypt";
                self.problems.push(Problem::new(Place::Variable(KEYS.to_owned()), e.to_string(), hint));
                None
            }
            None => None,
        };
        let database = self.audit_database(written);
        let interval = written.commit_interval.0.0;
        if !(Duration::from_millis(1)..=Duration::from_secs(10)).contains(&interval) {
            self.complain(&at("commit_interval"), "`commit_interval` needs 1ms to 10s", "write \"50ms\", for example");
        }
        if written.commit_timeout.0.0 < Duration::from_millis(10) {
            self.complain(&at("commit_timeout"), "`commit_timeout` needs at least 10ms", "write \"2s\", for example");
        }
        let (segment, most) = (written.segment_size.0.0, written.max_size.0.0);
        if segment < 64 << 10 || most / 8 < segment {
            let message = format!(
                "`max_size` ({}) needs to hold 8 of `segment_size` ({}) of at least 64KiB",
                Size(most),
                Size(segment)
            );
            self.complain(&at("max_size"), message, "write \"16MiB\" and \"1GiB\", for example");
        }
        self.check_retention(&written.retention);
        let headers = self.audit_headers(written, key_field);
        let fly = (self.environment)(FLY_MACHINE_ID).filter(|id| !id.trim().is_empty());
        let host = || (self.environment)("HOSTNAME").filter(|name| !name.trim().is_empty());
        let machine = machine.map(str::to_owned).or(fly).or_else(host).unwrap_or_else(|| "local".to_owned());
        let directory = written.directory.as_ref().filter(|directory| !directory.trim().is_empty())?;
        let (retention, durability) = (&written.retention, &written.durability);
        Some(AuditRules {
            directory: directory.into(),
            machine,
            keys,
            database,
            spool: Settings { segment_bytes: segment, max_bytes: most },
            queue: written.queue as usize,
            commit_interval: interval,
            commit_timeout: written.commit_timeout.0.0,
            retention: [
                retention.security.0.0,
                retention.authentication.0.0,
                retention.data.0.0,
                retention.administration.0.0,
                retention.deletion.0.0,
            ],
            durability: [
                durability.security.into(),
                durability.authentication.into(),
                durability.data.into(),
                durability.administration.into(),
                durability.deletion.into(),
            ],
            headers,
            parameters: written.parameters.clone(),
            record: written.record.clone(),
        })
    }

    /// The address of PostgreSQL, which is never shown: it may contain a password.
    fn audit_database(&mut self, written: &Audit) -> Option<Address> {
        let variable = (self.environment)(AUDIT_DATABASE_URL).filter(|url| !url.trim().is_empty());
        let place = match &variable {
            Some(_) => Place::Variable(AUDIT_DATABASE_URL.to_owned()),
            None => self.root.nearest(&[Step::Key("audit"), Step::Key("database")]).1.place.clone().hidden(),
        };
        let url = variable.or_else(|| written.database.clone()).filter(|url| !url.trim().is_empty())?;
        match Address::parse(url.trim()) {
            Ok(address) => Some(address),
            Err(e) => {
                let problem = format!("this address of PostgreSQL cannot be used: {e}");
                self.problems.push(Problem::new(place, problem, address::HINT));
                None
            }
        }
    }

    fn check_retention(&mut self, retention: &Retention) {
        let spans = [
            ("security", &retention.security),
            ("authentication", &retention.authentication),
            ("data", &retention.data),
            ("administration", &retention.administration),
            ("deletion", &retention.deletion),
        ];
        for (class, span) in spans {
            if span.0.0 < DAY {
                let path = [Step::Key("audit"), Step::Key("retention"), Step::Key(class)];
                self.complain(&path, format!("`{class}` is kept for less than a day"), "write \"30d\", for example");
            }
        }
    }

    fn audit_headers(&mut self, written: &Audit, key_field: &HeaderName) -> Vec<HeaderName> {
        let mut headers = Vec::new();
        for (index, name) in written.headers.iter().enumerate() {
            let path = [Step::Key("audit"), Step::Key("headers"), Step::Index(index)];
            match HeaderName::from_bytes(name.as_bytes()) {
                Ok(name) if NEVER.contains(&name.as_str()) || name == *key_field => {
                    self.complain(
                        &path,
                        format!("{name:?} carries secrets, which the audit log never contains"),
                        "leave it out",
                    );
                }
                Ok(name) => headers.push(name),
                Err(_) => {
                    self.complain(&path, format!("{name:?} is not a header name"), "write \"User-Agent\", for example");
                }
            }
        }
        headers
    }

    /// Parses a route's `audit`.
    pub fn declared(&mut self, path: &[Step<'_>], text: &str) -> Declared {
        Declared::named(text).unwrap_or_else(|| {
            let hint = "write \"off\", a class (authentication, data, administration, deletion) or a type such as \"auth.logout\"";
            self.complain(path, format!("`{text}` is not a class or type of the audit log"), hint);
            Declared::Off
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::load;
    #[test]
    fn the_audit_log_is_on_if_it_has_a_directory() {
        assert!(load("", &[]).unwrap().audit.is_none());
        let rules =
            load("", &[("OUTRIGGER_AUDIT_DIRECTORY", "/trail"), (FLY_MACHINE_ID, "m1")]).unwrap().audit.unwrap();
        assert_eq!((rules.directory.to_str(), rules.machine.as_str()), (Some("/trail"), "m1"));
        assert_eq!(rules.retention[Class::Deletion as usize], 1095 * DAY);
        assert_eq!(rules.durability, [Durability::Group; 5]);
    }

    #[test]
    fn the_address_of_postgresql_is_never_shown_with_its_password() {
        let source = "[audit]\ndirectory = \"/trail\"\ndatabase = \"postgres://file@localhost/app\"\n";
        let variable = (AUDIT_DATABASE_URL, "postgres://ann:correct-horse@localhost/app");
        let database = |environment: &[_]| load(source, environment).unwrap().audit.unwrap().database.unwrap();
        assert!(format!("{:?}", database(&[])).contains("file"));
        let shown = format!("{:?}", database(&[variable]));
        assert!(shown.contains("ann") && !shown.contains("horse"), "{shown}");
        let warnings = load("", &[("OUTRIGGER_AUDIT_SECRET", "x")]).unwrap().warnings;
        assert!(warnings.iter().any(|warning| warning.to_string().contains("OUTRIGGER_AUDIT_DATABASE_URL")));
    }

    #[test]
    fn a_route_names_its_class_or_its_type() {
        let source = "[audit]\ndefault = \"data\"\n[[routes]]\nname = \"a\"\npath = \"/a\"\naudit = \"auth.logout\"\n";
        let config = load(source, &[]).unwrap();
        let audited: Vec<_> = config.routes.all().iter().map(|route| route.audit).collect();
        let logout = Declared::Type(outrigger_policy::audit::EventType::Logout);
        assert_eq!(
            audited,
            [Declared::Off, Declared::Off, Declared::Off, Declared::Off, logout, Declared::Class(Class::Data)]
        );
    }

    #[test]
    fn invalid_settings_are_reported_with_position() {
        let errors = [
            load("[audit]\ncommit_interval = \"1h\"\nmax_size = \"16MiB\"\ncommit_timeout = \"1ms\"\n", &[]),
            load("[audit]\nheaders = [\"User-Agent\", \"Cookie\", \"a b\"]\n[audit.retention]\ndata = \"1h\"\n", &[]),
            load("[[routes]]\nname = \"a\"\npath = \"/a\"\naudit = \"datta\"\n", &[]),
            load("[audit]\ndefault = \"security\"\n", &[]),
            load("", &[(KEYS, "nonsense"), (AUDIT_DATABASE_URL, "postgres://app:hunter2@h:x/app")]),
            load("[audit]\ndatabase = \"postgres://:hunter2@\"\n", &[]),
        ];
        let text: Vec<String> = errors.into_iter().map(|error| error.unwrap_err()).collect();
        insta::assert_snapshot!(text.join("\n"));
    }
}
