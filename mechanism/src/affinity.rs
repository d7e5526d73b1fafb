//! Sticky sessions: the session cookie, and the headers for the edge.
//!
//! [`outrigger_policy::affinity`] decides where; [`cookie`] and [`replay`] contain the headers for clients and the
//! edge. The app gets the name of the home in the header [`outrigger_wire::names::X_OUTRIGGER_MACHINE`], and never the cookie.

pub mod cookie;
pub mod metrics;
pub mod replay;

use outrigger_identity::this::This;
use outrigger_policy::flags::Mode;

/// The session of a request, and how the request is handled.
#[derive(Debug, Default)]
pub struct Sticky {
    /// The mode for this client.
    pub mode: Mode,
    /// The home of the session.
    pub at: Keeper,
    /// How the response changes the cookie.
    pub cookie: Cookie,
    /// The session begins with this request.
    pub is_new: bool,
}

/// The home of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Keeper {
    /// There is no session.
    #[default]
    Nobody,
    /// This Machine.
    This,
    /// Another Machine.
    Other(Box<str>),
}

/// How a response changes the cookie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cookie {
    /// Not at all.
    #[default]
    Keep,
    /// Sets it.
    Write {
        /// The id of the session.
        id: u64,
        /// When the session began, in seconds since 1970.
        born: u32,
    },
    /// Deletes it: this Machine is draining, and the next one to see the client becomes its home.
    Clear,
}

impl Sticky {
    /// Returns whether the cookie is ours: it is then removed from requests to the app.
    pub fn is_enforced(&self) -> bool {
        self.mode == Mode::Enforce
    }

    /// Returns the name that the app gets.
    pub fn keeper<'a>(&'a self, this: &'a Option<This>) -> Option<&'a str> {
        match &self.at {
            Keeper::Nobody => None,
            Keeper::This => this.as_ref().map(|this| &*this.name),
            Keeper::Other(name) => Some(name),
        }
    }
}
