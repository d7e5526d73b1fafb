//! Audit log events: their types and classes, and their form as JSON lines.
//!
//! An event is one line of JSON. It contains the hash of the previous line, so removing, adding, moving or changing an
//! event is detectable at the next one. A *chain* consists of all events of one [`Class`] written by one spool: events with
//! the same retention are deleted together, and the rest is still a chain. docs/audit.md has the complete format.
//!
//! # Examples
//!
//! ```
//! use outrigger_policy::audit::{Declared, Draft, EventType, Head, Outcome, Time, uuid_v7};
//!
//! // A route with `audit = "data"`, and a GET request with the app's response 404.
//! let event = Declared::named("data").unwrap().event("GET", 404).unwrap();
//! assert_eq!(event, EventType::Read);
//!
//! let time = Time(1_764_000_000_123_456);
//! let who = r#""actor":{"id":"u_a","kind":"user"}"#;
//! let draft = Draft {
//!     method: Some("GET"),
//!     status: Some(404),
//!     ..Draft::new(uuid_v7(time, (1, 2)), time, "m1", event, Outcome::of_status(404), who)
//! };
//! let mut line = Vec::new();
//! draft.write(event.class(), &Head::default(), &mut line);
//! assert!(line.starts_with(br#"{"seq":1,"class":"data","id":"#));
//! ```

mod line;

pub use self::line::{Draft, LONGEST_TEXT, MOST_PAIRS, Time, hex, text, unhex, uuid_v7};

/// The class of an event. It determines retention and durability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Rate limits, bans, circuit breakers, forged signatures and overload.
    Security,
    /// Logins, failed logins and logouts.
    Authentication,
    /// Access to data, and changes.
    Data,
    /// Operators' actions.
    Administration,
    /// Deletions and data subjects' requests, as proof that they were carried out.
    Deletion,
}

/// Seconds per day.
const DAY_S: u64 = 86_400;

impl Class {
    /// All classes.
    pub const ALL: [Self; 5] = [Self::Security, Self::Authentication, Self::Data, Self::Administration, Self::Deletion];

    /// Returns the name used in events, files and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Security => "security",
            Self::Authentication => "authentication",
            Self::Data => "data",
            Self::Administration => "administration",
            Self::Deletion => "deletion",
        }
    }

    /// Returns the class with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }

    /// Returns the default retention in seconds: 30, 90, 365, 730 or 1095 days.
    pub const fn default_retention_s(self) -> u64 {
        DAY_S
            * match self {
                Self::Security => 30,
                Self::Authentication => 90,
                Self::Data => 365,
                Self::Administration => 730,
                Self::Deletion => 1095,
            }
    }
}

/// When the client gets its response. Default: [`Durability::Group`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// At once; the event is on disk at most 50 ms later.
    #[default]
    Group,
    /// Once the event is on disk.
    BeforeResponse,
}

/// The type of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventType {
    /// A login.
    Login,
    /// A logout.
    Logout,
    /// A failed login, or a request without valid credentials.
    AuthFailed,
    /// A token was refreshed.
    TokenRefresh,
    /// Data was read.
    Read,
    /// Data was created or changed.
    Write,
    /// Data was deleted.
    Delete,
    /// Data was exported in bulk.
    Export,
    /// An operator's action.
    AdminAction,
    /// The configuration changed.
    ConfigChange,
    /// A feature flag changed.
    FlagChange,
    /// A rate limit rejected a request.
    RateLimited,
    /// A client was banned, a ban was lifted, or a ban rejected a request.
    Banned,
    /// A circuit breaker changed its state, or rejected a request.
    Breaker,
    /// A signature did not verify.
    Forged,
    /// The queue rejected a request.
    Shed,
    /// A data subject requested its data.
    AccessRequest,
    /// A data subject requested erasure.
    ErasureRequest,
    /// A data subject gave or withdrew consent.
    Consent,
}

impl EventType {
    /// All types.
    pub const ALL: [Self; 19] = [
        Self::Login,
        Self::Logout,
        Self::AuthFailed,
        Self::TokenRefresh,
        Self::Read,
        Self::Write,
        Self::Delete,
        Self::Export,
        Self::AdminAction,
        Self::ConfigChange,
        Self::FlagChange,
        Self::RateLimited,
        Self::Banned,
        Self::Breaker,
        Self::Forged,
        Self::Shed,
        Self::AccessRequest,
        Self::ErasureRequest,
        Self::Consent,
    ];

    /// Returns the name used in events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Login => "auth.login",
            Self::Logout => "auth.logout",
            Self::AuthFailed => "auth.failed",
            Self::TokenRefresh => "auth.token_refresh",
            Self::Read => "data.read",
            Self::Write => "data.write",
            Self::Delete => "data.delete",
            Self::Export => "data.export",
            Self::AdminAction => "admin.action",
            Self::ConfigChange => "admin.config_change",
            Self::FlagChange => "admin.flag_change",
            Self::RateLimited => "security.rate_limited",
            Self::Banned => "security.banned",
            Self::Breaker => "security.breaker",
            Self::Forged => "security.forged",
            Self::Shed => "security.shed",
            Self::AccessRequest => "subject.access_request",
            Self::ErasureRequest => "subject.erasure_request",
            Self::Consent => "subject.consent",
        }
    }

    /// Returns the type with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.name() == name)
    }

    /// Returns the class of events of this type.
    pub const fn class(self) -> Class {
        match self {
            Self::RateLimited | Self::Banned | Self::Breaker | Self::Forged | Self::Shed => Class::Security,
            Self::Login | Self::Logout | Self::AuthFailed | Self::TokenRefresh => Class::Authentication,
            Self::Read | Self::Write | Self::Export => Class::Data,
            Self::AdminAction | Self::ConfigChange | Self::FlagChange => Class::Administration,
            Self::Delete | Self::AccessRequest | Self::ErasureRequest | Self::Consent => Class::Deletion,
        }
    }

    /// Returns the action in one word.
    pub const fn action(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Logout => "logout",
            Self::AuthFailed => "login",
            Self::TokenRefresh => "refresh",
            Self::Read => "read",
            Self::Write => "write",
            Self::Delete => "delete",
            Self::Export | Self::AccessRequest => "export",
            Self::AdminAction => "act",
            Self::ConfigChange => "reload",
            Self::FlagChange => "switch",
            Self::RateLimited => "limit",
            Self::Banned => "ban",
            Self::Breaker => "break",
            Self::Forged => "verify",
            Self::Shed => "shed",
            Self::ErasureRequest => "erase",
            Self::Consent => "consent",
        }
    }
}

/// A route's `audit` setting. Default: [`Declared::Off`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Declared {
    /// Only rejections are logged.
    #[default]
    Off,
    /// The type follows from the method and status.
    Class(Class),
    /// This type, for all methods; a failed login is still logged as [`EventType::AuthFailed`].
    Type(EventType),
}

impl Declared {
    /// Parses `"off"`, a class or a type. Returns `None` for `"security"` and its types: rejections produce those events,
    /// not routes.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "off" => Some(Self::Off),
            "security" => None,
            name => Class::named(name)
                .map(Self::Class)
                .or_else(|| EventType::named(name).map(Self::Type).filter(|_| !name.starts_with("security."))),
        }
    }

    /// Returns the type of a request with this method and response status; `None` if it is not logged. Any 401, and a
    /// login or token refresh with any 4xx, gives [`EventType::AuthFailed`].
    pub fn event(self, method: &str, status: u16) -> Option<EventType> {
        let is_denied = matches!(status, 401 | 403);
        let by_method = match method {
            "GET" | "HEAD" | "OPTIONS" | "TRACE" => EventType::Read,
            "DELETE" => EventType::Delete,
            _ => EventType::Write,
        };
        let event = match self {
            Self::Off => return None,
            Self::Class(Class::Authentication) if method == "DELETE" => EventType::Logout,
            Self::Class(Class::Authentication) => EventType::Login,
            Self::Class(Class::Data) => by_method,
            Self::Class(Class::Administration | Class::Security) => EventType::AdminAction,
            Self::Class(Class::Deletion) => match by_method {
                EventType::Read => EventType::AccessRequest,
                EventType::Delete => EventType::ErasureRequest,
                _ => EventType::Consent,
            },
            Self::Type(event) => event,
        };
        let signs_in = matches!(event, EventType::Login | EventType::TokenRefresh);
        // The login failed, for any reason.
        Some(if status == 401 || is_denied && signs_in || signs_in && (400..500).contains(&status) {
            EventType::AuthFailed
        } else {
            event
        })
    }
}

/// The outcome of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// It was done: status below 400.
    Success,
    /// The app refused: 4xx.
    Failure,
    /// An error, 5xx or no response; it may be unknown whether it was done.
    Error,
    /// Outrigger rejected the request; it did not reach the app.
    Refused,
}

impl Outcome {
    /// All outcomes.
    pub const ALL: [Self; 4] = [Self::Success, Self::Failure, Self::Error, Self::Refused];

    /// Returns the name used in events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Error => "error",
            Self::Refused => "refused",
        }
    }

    /// Returns the outcome with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.name() == name)
    }

    /// Returns the outcome for a response of the app.
    pub const fn of_status(status: u16) -> Self {
        match status {
            0..400 => Self::Success,
            400..500 => Self::Failure,
            _ => Self::Error,
        }
    }
}

/// The hash of an event: SHA-256 of its line, without the newline.
pub type Hash = [u8; 32];

/// The previous hash in the first event of a chain.
pub const NO_HASH: Hash = [0; 32];

/// The end of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The number of the last event; 0 if the chain is empty.
    pub last: u64,
    /// Its hash.
    pub hash: Hash,
}

impl Default for Head {
    fn default() -> Self {
        Self { last: 0, hash: NO_HASH }
    }
}

#[cfg(test)]
mod tests;
