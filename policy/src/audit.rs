//! What the audit trail says about an act, and how a line of it is written.
//!
//! An *entry* is one line of JSON. Each carries the hash of the one before, so that none can be taken away, added, moved or changed
//! without the next one showing it. A *chain* is all entries of one [`Class`] that one spool has written: what is kept equally long
//! is dropped together, and what is left is still a chain. docs/audit.md has the whole format.

mod line;

pub use self::line::{Draft, LONGEST_TEXT, MOST_PAIRS, Time, hex, text, unhex, uuid_v7};

/// How long an entry is kept, and how surely it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// What somebody tried and did not get.
    Security,
    /// Who came in, and who did not.
    Authentication,
    /// Who read or changed what.
    Data,
    /// What operators did.
    Administration,
    /// What was deleted, and what subjects asked for: the proof that it was done.
    Deletion,
}

/// Days.
const DAY_S: u64 = 86_400;

impl Class {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Security, Self::Authentication, Self::Data, Self::Administration, Self::Deletion];

    /// The name in entries, files and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Security => "security",
            Self::Authentication => "authentication",
            Self::Data => "data",
            Self::Administration => "administration",
            Self::Deletion => "deletion",
        }
    }

    /// The class of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }

    /// For how many seconds its entries are kept, unless the operator says otherwise.
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

/// When the client gets its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// At once; the entry is on disk at most 50 ms later.
    #[default]
    Group,
    /// Once the entry is on disk.
    BeforeResponse,
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventType {
    /// Somebody came in.
    Login,
    /// Somebody left.
    Logout,
    /// Somebody was not let in.
    AuthFailed,
    /// Somebody stays.
    TokenRefresh,
    /// Data was read.
    Read,
    /// Data was made or changed.
    Write,
    /// Data was deleted.
    Delete,
    /// Data was taken away in bulk.
    Export,
    /// An operator acted.
    AdminAction,
    /// The rules changed.
    ConfigChange,
    /// A flag changed.
    FlagChange,
    /// A quota was used up.
    RateLimited,
    /// A client is, or was, shut out.
    Banned,
    /// A breaker changed its state, or refused.
    Breaker,
    /// Something signed did not verify.
    Forged,
    /// There was no turn for it.
    Shed,
    /// A subject asked what is known of it.
    AccessRequest,
    /// A subject asked to be forgotten.
    ErasureRequest,
    /// A subject agreed, or no longer does.
    Consent,
}

impl EventType {
    /// All of them.
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

    /// The name in entries.
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

    /// The type of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.name() == name)
    }

    /// Where its entries go.
    pub const fn class(self) -> Class {
        match self {
            Self::RateLimited | Self::Banned | Self::Breaker | Self::Forged | Self::Shed => Class::Security,
            Self::Login | Self::Logout | Self::AuthFailed | Self::TokenRefresh => Class::Authentication,
            Self::Read | Self::Write | Self::Export => Class::Data,
            Self::AdminAction | Self::ConfigChange | Self::FlagChange => Class::Administration,
            Self::Delete | Self::AccessRequest | Self::ErasureRequest | Self::Consent => Class::Deletion,
        }
    }

    /// What was done, in a word.
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

/// What a route says about its requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Declared {
    /// Only refusals are entered.
    #[default]
    Off,
    /// Method and status tell the type.
    Class(Class),
    /// This type, whatever the method; a refused sign-in is still a failed one.
    Type(EventType),
}

impl Declared {
    /// Reads `"off"`, a class or a type. `"security"` is none: those entries are made of refusals, not of routes.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "off" => Some(Self::Off),
            "security" => None,
            name => Class::named(name)
                .map(Self::Class)
                .or_else(|| EventType::named(name).map(Self::Type).filter(|_| !name.starts_with("security."))),
        }
    }

    /// The type of a request with this method that the app has answered, or that nobody could; `None`: it is not entered.
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
        // Nobody came in, whatever was wrong with what was sent.
        Some(if status == 401 || is_denied && signs_in || signs_in && (400..500).contains(&status) {
            EventType::AuthFailed
        } else {
            event
        })
    }
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// It was done.
    Success,
    /// The app said no.
    Failure,
    /// Something broke; whether it was done may be unknown.
    Error,
    /// We said no; the app never saw it.
    Refused,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Success, Self::Failure, Self::Error, Self::Refused];

    /// The name in entries.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Error => "error",
            Self::Refused => "refused",
        }
    }

    /// The outcome of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.name() == name)
    }

    /// Of an answer of the app's.
    pub const fn of_status(status: u16) -> Self {
        match status {
            0..400 => Self::Success,
            400..500 => Self::Failure,
            _ => Self::Error,
        }
    }
}

/// The hash of an entry: SHA-256 of its line, without the newline.
pub type Hash = [u8; 32];

/// What the first entry of a chain has for the one before.
pub const NO_HASH: Hash = [0; 32];

/// The end of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The number of the last entry; 0 when there is none.
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
