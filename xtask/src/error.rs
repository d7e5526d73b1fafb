//! One error for the whole crate: what went wrong and what to do about it.

use std::fmt;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure that a person reads: what happened, and a hint where there is something to do.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    what: String,
    hint: Option<String>,
}

impl Error {
    pub fn new(what: impl fmt::Display) -> Self {
        Self { what: what.to_string(), hint: None }
    }

    /// Adds what the reader can do. The last hint wins.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "\nhint: {hint}"))
    }
}

/// Like `Display`, so that `unwrap` in a test prints the hint readably.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

/// Says what was being done when a lower error came up.
pub trait While<T> {
    /// `reading FILE` gives `reading FILE: permission denied`.
    fn while_(self, doing: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> While<T> for std::result::Result<T, E> {
    fn while_(self, doing: impl fmt::Display) -> Result<T> {
        self.map_err(|cause| Error::new(format_args!("{doing}: {cause}")))
    }
}
