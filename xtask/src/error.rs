//! The crate's error type: the problem and the remedy.

use std::fmt;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error for people: the problem, and a hint if there is a remedy.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    what: String,
    hint: Option<String>,
}

impl Error {
    pub fn new(what: impl fmt::Display) -> Self {
        Self { what: what.to_string(), hint: None }
    }

    /// Adds a hint for the reader. Replaces an earlier one.
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

/// Adds the operation during which an error occurred.
pub trait While<T> {
    /// `reading FILE` results in `reading FILE: permission denied`.
    fn while_(self, doing: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> While<T> for std::result::Result<T, E> {
    fn while_(self, doing: impl fmt::Display) -> Result<T> {
        self.map_err(|cause| Error::new(format_args!("{doing}: {cause}")))
    }
}
