//! Paths of this clone. All state is under `target/`, so `cargo clean` removes everything.

use std::{
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::{Error, Result, error::While};

/// The path of a Unix socket may have 107 bytes; this leaves room for a suffix.
const SOCKET_PATH_BYTES: usize = 100;

/// The repository.
pub fn root() -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.parent().unwrap_or(crate_dir).to_path_buf()
}

/// Cargo's target directory of this clone.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// The directory of tools installed for this clone only.
pub fn tools() -> PathBuf {
    target().join("tools")
}

/// A directory for state under `target/`, created if needed.
pub fn state(name: &str) -> Result<PathBuf> {
    let dir = target().join(name);
    fs::create_dir_all(&dir).while_(format_args!("creating {}", dir.display()))?;
    Ok(dir)
}

/// A user that needs access to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

impl User {
    /// Looked up in `/etc/passwd`.
    pub fn named(name: &str) -> Option<Self> {
        let passwd = fs::read_to_string("/etc/passwd").ok()?;
        let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut numbers = line.split(':').skip(2).map(str::parse);
        Some(Self { uid: numbers.next()?.ok()?, gid: numbers.next()?.ok()? })
    }

    /// Whether this user may traverse every directory above `path`.
    pub fn reaches(self, path: &Path) -> bool {
        let passes = |dir: &Path| {
            let Ok(meta) = fs::metadata(dir) else { return true };
            let bit = match (meta.uid() == self.uid, meta.gid() == self.gid) {
                (true, _) => 0o100,
                (false, true) => 0o010,
                (false, false) => 0o001,
            };
            meta.mode() & bit != 0
        };
        path.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()).all(passes)
    }
}

/// A private directory outside of the clone. Its name is derived from `wanted`, so a second run finds it.
///
/// For files that cannot be under `target/`: the database of another user, or a socket whose path would be too long.
/// Listed in `target/outside`, for cleaning up.
pub fn outside(wanted: &Path) -> Result<PathBuf> {
    let us = rustix::process::getuid().as_raw();
    let mut hasher = DefaultHasher::new();
    (us, wanted).hash(&mut hasher);
    let name = format!("outrigger-{:016x}", hasher.finish());
    // The first name is unavailable only if it belongs to another user.
    for attempt in 0..10 {
        let dir = env::temp_dir().join(format!("{name}-{attempt}"));
        let made = fs::DirBuilder::new().mode(0o711).create(&dir);
        let ours = || fs::symlink_metadata(&dir).is_ok_and(|meta| meta.is_dir() && meta.uid() == us);
        if made.is_ok() || ours() {
            let note = state("outside")?.join(format!("{name}-{attempt}"));
            fs::write(&note, dir.as_os_str().as_encoded_bytes()).while_(format_args!("writing {}", note.display()))?;
            return Ok(dir);
        }
    }
    Err(Error::new(format_args!("cannot make a private directory in {}", env::temp_dir().display()))
        .hint("set TMPDIR to a directory that you may write to"))
}

/// The path for a Unix socket: below `dir`, unless that is longer than the system allows.
pub fn socket(dir: &Path, name: &str) -> Result<PathBuf> {
    let near = dir.join(name);
    if near.as_os_str().len() <= SOCKET_PATH_BYTES {
        return Ok(near);
    }
    Ok(outside(dir)?.join(name))
}

/// The program's path in the first directory of `PATH` that contains it.
pub fn in_path(program: &str) -> Option<PathBuf> {
    // Debian installs servers in directories that are not in the `PATH` of ordinary users.
    let usual = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&usual).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    dirs.map(|dir| dir.join(program))
        .find(|file| fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_socket_path_moves_to_a_short_one_and_stays_there() {
        let deep = target().join("x".repeat(120));
        let short = socket(&deep, "app.sock").unwrap();
        assert!(short.as_os_str().len() <= SOCKET_PATH_BYTES, "{}", short.display());
        assert_eq!(short, socket(&deep, "app.sock").unwrap());
        fs::remove_dir_all(short.parent().unwrap()).unwrap();
    }

    #[test]
    fn a_stranger_does_not_reach_a_private_directory() {
        let dir = state("paths-test").unwrap().join("private");
        let _ = fs::remove_dir_all(&dir);
        fs::DirBuilder::new().mode(0o700).create(&dir).unwrap();
        let owner = fs::metadata(&dir).unwrap();
        assert!(!User { uid: owner.uid() + 1, gid: owner.gid() + 1 }.reaches(&dir.join("data")));
        assert!(User { uid: owner.uid(), gid: owner.gid() }.reaches(&dir.join("data")));
    }
}
