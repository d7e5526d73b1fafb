//! The files of the record: made as they are needed, and deleted when they are old or too many.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::Duration;

use outrigger_rules::sections::traffic::TrafficRules;
use outrigger_traffic::files;

/// A file is closed at this share of the bytes that all of them may have.
const FILES: u64 = 16;
/// Bounds of the size of a file.
const FILE_BYTES: (u64, u64) = (32 << 10, 64 << 20);

/// The size at which a file is closed.
pub(super) fn file_bytes(rules: &TrafficRules) -> u64 {
    (rules.max_bytes / FILES).clamp(FILE_BYTES.0, FILE_BYTES.1)
}

/// Makes a file for requests from `base_ns` on, readable by its owner only, and the directory if it is missing.
///
/// # Errors
/// The system's error.
pub(super) fn create(rules: &TrafficRules, base_ns: u64) -> io::Result<(File, PathBuf)> {
    DirBuilder::new().recursive(true).mode(0o700).create(&rules.directory)?;
    let path = rules.directory.join(files::name(base_ns));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    Ok((file, path))
}

/// Deletes files that are older than `keep`, and the oldest ones until a further file has room. `open_ns`: the file that is being written,
/// which stays. Returns the bytes of those that are left.
///
/// # Errors
/// The system's error.
pub(super) fn tidy(rules: &TrafficRules, open_ns: u64, now_ns: u64) -> io::Result<u64> {
    let files = files::all(&rules.directory)?;
    let keep_ns = u64::try_from(rules.keep.as_nanos()).unwrap_or(u64::MAX);
    let mut total: u64 = files.iter().map(|file| file.bytes).sum();
    for (at, file) in files.iter().enumerate() {
        if file.begins_ns == open_ns {
            continue;
        }
        // A file ends where the next one begins.
        let ended = files.get(at + 1).map_or(now_ns, |next| next.begins_ns);
        let is_old = ended.saturating_add(keep_ns) < now_ns;
        if is_old || total + file_bytes(rules) > rules.max_bytes {
            fs::remove_file(&file.path)?;
            total -= file.bytes;
        }
    }
    Ok(total)
}

/// How often old files are looked for while no new one is made.
pub(super) const TIDY_EVERY: Duration = Duration::from_secs(60);
