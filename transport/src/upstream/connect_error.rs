//! Why a connection failed.

use std::io;

use outrigger_rules::own;
use outrigger_rules::target::Target;

use crate::upstream::exhaustion::Resource;

/// Why a connection failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It was refused, or the target cannot be reached.
    #[error("{0}")]
    Refused(io::Error),
    /// The queue of the Unix socket is full: the app runs, but accepts too slowly.
    #[error("the app's queue is full")]
    Busy,
    /// No address is known for the name.
    #[error("no address is known for {0}")]
    Unknown(Box<str>),
    /// The name resolves to a listener of this proxy.
    #[error("{name} is the address of {own}: this proxy itself")]
    Loop {
        /// The name.
        name: Box<str>,
        /// The listener.
        own: own::Own,
    },
    /// This host lacks a resource that a connection needs; not a failure of the app.
    #[error("{resource}: {source}")]
    Exhausted {
        /// The resource.
        resource: Resource,
        /// The system's error.
        source: io::Error,
    },
}

impl ConnectError {
    /// Interprets the system's error for a connection to `target`.
    pub fn new(source: io::Error, target: &Target) -> Self {
        match Resource::of(&source, target) {
            Some(resource) => Self::Exhausted { resource, source },
            None if source.kind() == io::ErrorKind::WouldBlock => Self::Busy,
            None => Self::Refused(source),
        }
    }

    /// The resource that this host lacks, if that is the reason.
    pub fn exhausted(&self) -> Option<Resource> {
        match self {
            Self::Exhausted { resource, .. } => Some(*resource),
            _ => None,
        }
    }
}
