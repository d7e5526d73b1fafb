//! Holds of a spool: entries that retention must keep although their time is over, for example for a court.
//!
//! Holds are in the file `HOLDS` of the directory, one JSON object per line, and lines are only appended:
//! `{"hold":"h1",…}` begins one, `{"release":"h1",…}` ends it. So two commands can write at once, and ended holds
//! remain documented. PostgreSQL has its own holds (`audit_holds`) for shipped entries.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use memchr::memmem;
use outrigger_policy::audit::Class;
use serde::{Deserialize, Serialize};

/// The file's name.
pub const HOLDS: &str = "HOLDS";

/// The holds cannot be read or written. While they cannot be read, entries must not be removed.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// The file cannot be read or written.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A line is neither a hold nor a release.
    #[error("{}:{line} is no hold and no release; put it right or take the line out, until then nothing is dropped", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
    },
}

/// A hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Its id.
    #[serde(rename = "hold")]
    pub id: String,
    /// The class that it applies to; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Pseudonyms of the actors or clients whose entries it applies to; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subjects: Vec<String>,
    /// The reason.
    pub reason: String,
    /// The person who requested it.
    pub by: String,
    /// Its start, RFC 3339.
    pub since: String,
    /// Its release, if it has ended.
    #[serde(skip)]
    pub released: Option<Release>,
}

/// The end of a hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// The hold's id.
    #[serde(rename = "release")]
    pub id: String,
    /// The person who released it.
    pub by: String,
    /// Time of the release, RFC 3339.
    pub at: String,
}

/// All holds of a spool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holds(pub Vec<Hold>);

impl Holds {
    /// Reads a spool's holds, including released ones.
    ///
    /// # Errors
    /// The file cannot be read, or one of its lines is invalid.
    pub fn read(directory: &Path) -> Result<Self, HoldError> {
        let path = directory.join(HOLDS);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(HoldError::File { path, source }),
        };
        let mut holds = Self::default();
        for (at, line) in text.split(|b| *b == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            if let Ok(hold) = serde_json::from_slice::<Hold>(line)
                && hold.class.as_deref().is_none_or(|class| Class::named(class).is_some())
            {
                holds.0.push(hold);
            } else if let Ok(release) = serde_json::from_slice::<Release>(line) {
                for hold in holds.0.iter_mut().filter(|hold| hold.id == release.id && hold.released.is_none()) {
                    hold.released = Some(release.clone());
                }
            } else {
                return Err(HoldError::Unreadable { path, line: at + 1 });
            }
        }
        Ok(holds)
    }

    /// The holds that are not released.
    pub fn active(&self) -> impl Iterator<Item = &Hold> + Clone {
        self.0.iter().filter(|hold| hold.released.is_none())
    }

    /// Returns a hold that applies to the segment of `class` in the file `segment`, if any.
    ///
    /// # Errors
    /// The segment cannot be read, which only holds with subjects require.
    pub fn keeps(&self, class: Class, segment: &Path) -> Result<Option<&Hold>, HoldError> {
        let mut of_class = self.active().filter(|hold| hold.class.as_deref().is_none_or(|name| name == class.name()));
        if let Some(hold) = of_class.clone().find(|hold| hold.subjects.is_empty()) {
            return Ok(Some(hold));
        }
        if of_class.clone().next().is_none() {
            return Ok(None);
        }
        let content = std::fs::read(segment);
        let content = content.map_err(|source| HoldError::File { path: segment.to_owned(), source })?;
        let is_there = |subject: &String| memmem::find(&content, subject.as_bytes()).is_some();
        Ok(of_class.find(|hold| hold.subjects.iter().any(is_there)))
    }

    /// Returns a hold that applies to one of these pseudonyms, if any.
    pub fn keeps_subject(&self, subjects: &[String]) -> Option<&Hold> {
        self.active().find(|hold| hold.subjects.iter().any(|held| subjects.contains(held)))
    }
}

/// Begins a hold; it is on disk when this returns.
///
/// # Errors
/// The file cannot be written.
pub fn add(directory: &Path, hold: &Hold) -> Result<(), HoldError> {
    append(directory, hold)
}

/// Ends a hold; the release is on disk when this returns. Has no effect if the hold is unknown or already released.
///
/// # Errors
/// The file cannot be written.
pub fn release(directory: &Path, release: &Release) -> Result<(), HoldError> {
    append(directory, release)
}

fn append(directory: &Path, line: &impl Serialize) -> Result<(), HoldError> {
    let path = directory.join(HOLDS);
    // Serialising plain strings cannot fail.
    let mut bytes = serde_json::to_vec(line).unwrap_or_default();
    bytes.push(b'\n');
    let write = || {
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::File::open(directory)?.sync_all()
    };
    write().map_err(|source| HoldError::File { path: path.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(id: &str, class: Option<Class>, subjects: &[&str]) -> Hold {
        Hold {
            id: id.to_owned(),
            class: class.map(|class| class.name().to_owned()),
            subjects: subjects.iter().map(|&s| s.to_owned()).collect(),
            reason: "a court".to_owned(),
            by: "ann".to_owned(),
            since: "2026-11-24T14:00:00Z".to_owned(),
            released: None,
        }
    }

    #[test]
    fn a_hold_keeps_what_it_says_until_it_is_released() {
        let directory = std::env::temp_dir().join(format!("outrigger-holds-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        assert_eq!(Holds::read(&directory).unwrap(), Holds::default());
        add(&directory, &hold("h1", Some(Class::Data), &[])).unwrap();
        add(&directory, &hold("h2", None, &["u_ann"])).unwrap();
        let holds = Holds::read(&directory).unwrap();
        let segment = |name: &str, content: &str| {
            let path = directory.join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let (of_bob, of_ann) = (segment("bob", "{\"client\":\"u_bob\"}"), segment("ann", "{\"client\":\"u_ann\"}"));
        let keeps = |holds: &Holds, class, path| holds.keeps(class, path).unwrap().map(|hold| hold.id.clone());
        assert_eq!(keeps(&holds, Class::Data, &of_bob).unwrap(), "h1");
        assert_eq!(keeps(&holds, Class::Security, &of_bob), None);
        assert_eq!(keeps(&holds, Class::Security, &of_ann).unwrap(), "h2");
        assert!(holds.keeps(Class::Security, &directory.join("gone")).is_err());
        assert_eq!(holds.keeps_subject(&["u_ann".to_owned()]).unwrap().id, "h2");
        let end = Release { id: "h1".to_owned(), by: "bob".to_owned(), at: "2026-11-25T14:00:00Z".to_owned() };
        release(&directory, &end).unwrap();
        let holds = Holds::read(&directory).unwrap();
        assert_eq!(keeps(&holds, Class::Data, &of_bob), None);
        assert_eq!((holds.0.len(), holds.0[0].released.as_ref()), (2, Some(&end)));
        std::fs::write(directory.join(HOLDS), "{\"hold\":\n").unwrap();
        assert!(Holds::read(&directory).unwrap_err().to_string().contains("HOLDS:1 is no hold"));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
