//! Archives that are the same for the same content: tar and ar, written here, so that neither root nor an engine is needed.

use std::{
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
    thread,
};

use crate::{Error, Result, error::While, paths};

/// Size of a tar header, and what files are padded to.
const BLOCK: usize = 512;

/// A file or directory of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Relative, without `./`.
    pub path: String,
    /// `None`: a directory.
    pub content: Option<Vec<u8>>,
    pub mode: u32,
    /// Both the user and the group.
    pub owner: u32,
}

impl Entry {
    pub fn file(path: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), content: Some(content.into()), mode: 0o644, owner: 0 }
    }

    pub fn program(path: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        Self { mode: 0o755, ..Self::file(path, content) }
    }

    pub fn directory(path: impl Into<String>) -> Self {
        Self { path: path.into(), content: None, mode: 0o755, owner: 0 }
    }

    #[must_use]
    pub fn with_mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    #[must_use]
    pub fn owned_by(mut self, id: u32) -> Self {
        self.owner = id;
        self
    }
}

/// A tar archive (ustar) of these entries and of the directories above them, sorted by path, all with this time. Each path
/// begins with `prefix`.
///
/// # Errors
/// A path that is longer than the format allows.
pub fn tar(entries: &[Entry], prefix: &str, time: u64) -> Result<Vec<u8>> {
    let mut all = entries.to_vec();
    for entry in entries {
        for (end, _) in entry.path.match_indices('/') {
            let above = &entry.path[..end];
            if !all.iter().any(|other| other.path == above) {
                all.push(Entry::directory(above));
            }
        }
    }
    all.sort_by(|one, other| one.path.cmp(&other.path));
    let mut archive = Vec::new();
    for entry in &all {
        let content = entry.content.as_deref().unwrap_or_default();
        archive.extend(header(entry, prefix, content.len(), time)?);
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(BLOCK), 0);
    }
    archive.resize(archive.len() + 2 * BLOCK, 0);
    Ok(archive)
}

fn header(entry: &Entry, prefix: &str, size: usize, time: u64) -> Result<[u8; BLOCK]> {
    let is_directory = entry.content.is_none();
    let name = format!("{prefix}{}{}", entry.path, if is_directory { "/" } else { "" });
    let mut header = [0; BLOCK];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    if name.len() > 100 {
        return Err(Error::new(format_args!("{name} is too long for an archive")));
    }
    put(0, &name);
    put(100, &format!("{:07o}", entry.mode));
    put(108, &format!("{:07o}", entry.owner));
    put(116, &format!("{:07o}", entry.owner));
    put(124, &format!("{size:011o}"));
    put(136, &format!("{time:011o}"));
    put(156, if is_directory { "5" } else { "0" });
    put(257, "ustar\x0000");
    // The sum of all bytes, with spaces in place of the sum.
    put(148, "        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(header)
}

/// An archive of `ar`, the outer format of Debian packages.
pub fn ar(members: &[(&str, &[u8])], time: u64) -> Vec<u8> {
    let mut archive = b"!<arch>\n".to_vec();
    for (name, content) in members {
        archive
            .extend(format!("{name:<16}{time:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 100_644, content.len()).as_bytes());
        archive.extend(*content);
        if content.len() % 2 == 1 {
            archive.push(b'\n');
        }
    }
    archive
}

/// Compressed, without a time or a name in the result.
pub fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    through("gzip", &["-n"], content)
}

/// The SHA-256 digest in hexadecimal digits.
pub fn sha256(content: &[u8]) -> Result<String> {
    digest("sha256sum", content)
}

/// The MD5 digest, which `dpkg --verify` compares.
pub fn md5(content: &[u8]) -> Result<String> {
    digest("md5sum", content)
}

fn digest(program: &str, content: &[u8]) -> Result<String> {
    let printed = String::from_utf8_lossy(&through(program, &[], content)?).into_owned();
    let digest = printed.split_whitespace().next().unwrap_or_default();
    if digest.is_empty() { Err(Error::new(format_args!("{program} printed no digest"))) } else { Ok(digest.to_owned()) }
}

/// The output of a program of the system for `input`.
fn through(program: &str, args: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let path = paths::in_path(program).ok_or_else(|| Error::new(format_args!("`{program}` is not in PATH")))?;
    let doing = || format!("running {program}");
    let mut child =
        Command::new(path).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().while_(doing())?;
    let (mut to, mut from) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    let mut output = Vec::new();
    // Both at once: either pipe may be full.
    let (written, read) = thread::scope(|scope| {
        let writer = scope.spawn(move || to.write_all(input));
        let read = from.read_to_end(&mut output);
        (writer.join().expect("writing does not panic"), read)
    });
    let status = child.wait().while_(doing())?;
    written.while_(doing())?;
    read.while_(doing())?;
    if status.success() { Ok(output) } else { Err(Error::new(format_args!("{program}: {status}"))) }
}

/// Reads a file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).while_(format_args!("reading {}", path.display()))
}

/// Writes a file, and says so in an error.
pub fn write(path: &Path, content: &[u8]) -> Result<()> {
    std::fs::write(path, content).while_(format_args!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_the_same_in_any_order_and_has_the_directories_above() {
        let entries = [Entry::program("usr/bin/x", "x"), Entry::file("etc/x", "y").with_mode(0o640).owned_by(7)];
        let turned = [entries[1].clone(), entries[0].clone()];
        let archive = tar(&entries, "./", 1).unwrap();
        assert_eq!(archive, tar(&turned, "./", 1).unwrap());
        let listed =
            String::from_utf8(through("tar", &["--list", "--verbose", "--numeric-owner", "--utc"], &archive).unwrap());
        let listed: Vec<String> =
            listed.unwrap().lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let lines = [
            "drwxr-xr-x 0/0 0 1970-01-01 00:00 ./etc/",
            "-rw-r----- 7/7 1 1970-01-01 00:00 ./etc/x",
            "drwxr-xr-x 0/0 0 1970-01-01 00:00 ./usr/",
            "drwxr-xr-x 0/0 0 1970-01-01 00:00 ./usr/bin/",
            "-rwxr-xr-x 0/0 1 1970-01-01 00:00 ./usr/bin/x",
        ];
        assert_eq!(listed.len(), lines.len());
        assert_eq!(listed, lines);
    }

    #[test]
    fn a_path_that_does_not_fit_is_an_error() {
        assert!(tar(&[Entry::file("x".repeat(101), "")], "", 0).is_err());
    }

    #[test]
    fn digests_and_compression_are_those_of_the_system() {
        assert!(sha256(b"").unwrap().starts_with("e3b0c44298fc1c14"));
        assert!(md5(b"").unwrap().starts_with("d41d8cd98f00b204"));
        assert_eq!(through("gzip", &["-d"], &gzip(b"text").unwrap()).unwrap(), b"text");
    }
}
