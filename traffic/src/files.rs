//! Names of files, and which of them belong to the record in a directory.

use std::io;
use std::path::{Path, PathBuf};

const PREFIX: &str = "traffic-";
const SUFFIX: &str = ".rec";

/// The name of a file that begins at this time, in nanoseconds since 1970. Names sort by time.
pub fn name(base_ns: u64) -> String {
    format!("{PREFIX}{base_ns:020}{SUFFIX}")
}

/// The time at which a file begins; `None` if it is not one of the record.
pub fn begins(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    (digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// A file of the record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordFile {
    /// When it begins, in nanoseconds since 1970.
    pub begins_ns: u64,
    /// Its path.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
}

/// The files of the record in `directory`, the oldest first. Other files are left out.
///
/// # Errors
/// The directory cannot be read.
pub fn all(directory: &Path) -> io::Result<Vec<RecordFile>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let Some(begins_ns) = entry.file_name().to_str().and_then(begins) else { continue };
        // A file may have been deleted meanwhile.
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_file() {
            files.push(RecordFile { begins_ns, path: entry.path(), bytes: meta.len() });
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_record_are_taken() {
        assert_eq!(begins(&name(1_700_000_000_000_000_000)), Some(1_700_000_000_000_000_000));
        for other in ["traffic-1.rec", "traffic-.rec", "traffic-0170000000000000000x.rec", "audit.log", ""] {
            assert_eq!(begins(other), None, "{other}");
        }
    }
}
