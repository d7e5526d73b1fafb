//! Why a spool cannot be used.

use std::io;
use std::path::{Path, PathBuf};

/// Why a spool cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Another process writes to it.
    #[error("another process writes to {0}")]
    Locked(PathBuf),
    /// An error of the file system.
    #[error("{path}: {source}")]
    File {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file has invalid content.
    #[error("{path} {problem}")]
    Broken {
        /// The path.
        path: PathBuf,
        /// The problem.
        problem: &'static str,
    },
    /// The spool is full, and it has no shipped segment to remove.
    #[error("the spool has reached its bound, and no segment in it is shipped")]
    Full,
    /// The spool's files were removed or replaced.
    #[error("{0} has been removed or replaced")]
    Gone(PathBuf),
}

impl SpoolError {
    /// A label for metrics and gap entries.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Locked(_) => "locked",
            Self::Full => "spool_full",
            Self::Gone(_) => "gone",
            Self::Broken { .. } => "broken",
            Self::File { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "disk_full",
                io::ErrorKind::ReadOnlyFilesystem => "read_only",
                io::ErrorKind::PermissionDenied => "permission_denied",
                io::ErrorKind::NotFound => "gone",
                _ => "io_error",
            },
        }
    }
}

impl SpoolError {
    /// A copy of the error, for a further class that it affects.
    pub(super) fn again(&self) -> Self {
        match self {
            Self::Locked(path) => Self::Locked(path.clone()),
            Self::File { path, source } => Self::File { path: path.clone(), source: source.kind().into() },
            Self::Broken { path, problem } => Self::Broken { path: path.clone(), problem },
            Self::Full => Self::Full,
            Self::Gone(path) => Self::Gone(path.clone()),
        }
    }
}

pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> SpoolError {
    let path = path.to_owned();
    move |source| SpoolError::File { path, source }
}
