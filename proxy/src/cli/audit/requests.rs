//! The entries about requests, one after the other, for `outrigger backtest`. Nothing is decrypted.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use memchr::memmem;
use outrigger_policy::audit::EventType;
use outrigger_trail::entry::Entry;
use outrigger_trail::layout;
use outrigger_trail::lines::Lines;
use outrigger_trail::store::search::{self, LARGEST_PAGE, Search};

use super::AuditError;
use super::database::{Database, Url};

/// Which entries are read.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The spool; `None`: not read.
    pub directory: Option<PathBuf>,
    /// PostgreSQL; `None`: not read.
    pub database: Option<Url>,
    /// At or after this time.
    pub since: Timestamp,
    /// Before this time.
    pub until: Timestamp,
    /// Only entries of this Machine.
    pub machine: Option<String>,
}

/// Calls `each` with every entry about a request, and its time, in any order. `each` returns false to end it.
///
/// # Errors
/// The audit log cannot be read.
pub fn each_request(wanted: &Wanted, each: &mut dyn FnMut(&Entry<'_>, Timestamp) -> bool) -> Result<(), AuditError> {
    let mut fitting = |line: &[u8]| {
        let Ok(entry) = Entry::parse(line) else { return true };
        let Ok(time) = entry.time.parse::<Timestamp>() else { return true };
        let is_of_machine = wanted.machine.as_deref().is_none_or(|machine| entry.machine == machine);
        // Beside the entry of a request, there may be one about its forged credential.
        let is_request = entry.route.is_some() && entry.event != EventType::Forged.name();
        let fits = (wanted.since..wanted.until).contains(&time) && is_request && is_of_machine;
        !fits || each(&entry, time)
    };
    match (&wanted.database, &wanted.directory) {
        // PostgreSQL has all Machines; what this one has not shipped yet is the last seconds.
        (Some(url), _) => in_database(url, wanted, &mut fitting),
        (None, Some(directory)) => in_spool(directory, &mut fitting),
        (None, None) => Err(AuditError::NoDirectory),
    }
}

fn in_spool(directory: &Path, each: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), AuditError> {
    for segment in layout::segments(directory).map_err(AuditError::file(directory))? {
        let file = match std::fs::File::open(&segment.path) {
            Ok(file) => file,
            // Retention has removed it meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(AuditError::File { path: segment.path, source }),
        };
        let mut lines = Lines::new(file);
        while let Some(line) = lines.take().map_err(AuditError::file(&segment.path))? {
            let is_of_request = line.is_whole && memmem::find(line.bytes, b"\"route\":").is_some();
            if is_of_request && !each(line.bytes) {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn in_database(url: &Url, wanted: &Wanted, each: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), AuditError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(AuditError::file(Path::new("the system")))?;
    let mut search = Search {
        from: Some(wanted.since),
        until: Some(wanted.until),
        machine: wanted.machine.clone(),
        limit: LARGEST_PAGE,
        ..Search::default()
    };
    runtime.block_on(async {
        let database = Database::connect(url).await?;
        loop {
            let found = search::search(&database.client, &search).await?;
            let is_last = (found.len() as i64) < LARGEST_PAGE;
            search.after = found.last().map(|found| found.place);
            if !found.iter().all(|found| each(found.line.as_bytes())) || is_last {
                return Ok(());
            }
        }
    })
}
