//! How many files this process may open.

/// Raises the limit of open files to the hard limit: every client needs a descriptor, and so may its connection to the app.
/// The usual soft limit of 1,024 only protects programs that cannot handle more. Returns how many files may be open.
pub(super) fn raise_open_files(for_connections: usize) -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!("the limit of open files stays at {current:?}: {e}");
    }
    // `None` means unlimited.
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let wanted = for_connections as u64 + 100;
    if allowed < wanted {
        tracing::warn!(
            allowed,
            wanted,
            "the limit of open files is too low for max_connections: raise the hard limit, or lower max_connections"
        );
    }
    allowed
}
