//! The audit log on disk: verification, recovery, following and shipping of files that somebody has changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use outrigger_policy::audit::{Class, Draft, EventType, Outcome, Time, uuid_v7};
use outrigger_trail::entry::Entry;
use outrigger_trail::follow::{Follower, Position};
use outrigger_trail::holds::Holds;
use outrigger_trail::keys::{MasterKeys, PublicKeys};
use outrigger_trail::layout::{self, HEAD, HEAD_SLOT};
use outrigger_trail::spool::{SYSTEM, Settings, Spool};
use outrigger_trail::store::batch::Batch;
use outrigger_trail::verify;

use super::with_choice;

type Files = BTreeMap<String, Vec<u8>>;

const BEGIN: i64 = 1_795_528_800_000_000;
const TYPES: [EventType; 3] = [EventType::RateLimited, EventType::Login, EventType::AdminAction];
/// Files that are not signed.
const OTHERS: [&str; 3] = ["SHIPPED", "HOLDS", "data-00000000000000000001.keys"];
const MOST_EDITS: usize = 8;

/// The files of a closed audit log: three classes, each with more than one segment.
static WHOLE: LazyLock<Files> = LazyLock::new(|| {
    let directory = Directory::new();
    fs::write(directory.0.join(layout::CHAIN), "00112233aabbccdd\n").expect("a file");
    let mut spool = open(&directory.0, Time(BEGIN)).expect("a spool");
    for number in 0..14_u64 {
        let now = Time(BEGIN + 50_000 * (number as i64 + 1));
        let event = TYPES[number as usize % TYPES.len()];
        spool.append(&Draft {
            status: Some(200),
            ..Draft::new(uuid_v7(now, (1, number)), now, "m1", event, Outcome::Success, SYSTEM)
        });
        assert!(spool.commit(now).is_empty());
    }
    spool.close(Time(BEGIN + 1_000_000)).expect("closed");
    let files = directory.read();
    assert!(files.len() > 8, "{:?}", files.keys());
    directory.is_whole().expect("an unchanged audit log is whole");
    files
});

/// Any change of a signed file is found, also after the proxy has started and stopped on the changed files; and who follows the log is
/// given only lines that were written.
///
/// The first byte chooses between edits of the files (each a file, a kind, two bytes of position and a length, and bytes to insert) and
/// one file with any bytes.
pub fn audit(data: &[u8]) {
    let (choice, data) = with_choice(data);
    let files = if choice & 1 == 0 { edited(data) } else { replaced(choice >> 1, data) };
    let is_same = signed(&files) == signed(&WHOLE);
    // A slot of `HEAD` is torn by a power failure, too: the next start repairs it.
    let is_only_head = files.iter().all(|(name, content)| name == HEAD || WHOLE.get(name) == Some(content));
    let directory = Directory::new();
    for (name, content) in &files {
        fs::write(directory.0.join(name), content).expect("a file");
    }
    let found = directory.is_whole();
    assert!(is_same == found.is_ok(), "{found:?}");
    followed(&directory.0);
    let _ = Holds::read(&directory.0).map(|holds| holds.keeps_subject(&["u_a".to_owned()]).is_some());
    for content in files.values() {
        let batch = Batch::new("00112233aabbccdd", "m1", Class::Security).with_lines(content);
        assert!(batch.entries.iter().all(|line| line.seq >= 0));
        for line in content.split(|byte| *byte == b'\n') {
            if let (Ok(entry), Some((seq, _))) = (Entry::parse(line), layout::number_and_time(line)) {
                assert!(entry.seq.is_none_or(|read| read == seq), "{entry:?} is number {seq}");
            }
        }
    }
    // A start, an event, and an end in order.
    let now = Time(BEGIN + 3_600_000_000);
    let Ok(mut spool) = open(&directory.0, now) else { return };
    let alarms = spool.alarms().len();
    spool.append(&Draft::new(uuid_v7(now, (1, 99)), now, "m1", EventType::Login, Outcome::Success, SYSTEM));
    let _ = spool.commit(now);
    if spool.close(Time(now.0 + 1_000_000)).is_ok() && !is_same && !(is_only_head && files.len() == WHOLE.len()) {
        assert!(alarms > 0 || directory.is_whole().is_err(), "a restart hides {:?}", found.err());
    }
}

fn open(directory: &Path, now: Time) -> Result<Spool, outrigger_trail::spool::SpoolError> {
    let settings = Settings { segment_bytes: 700, ..Settings::default() };
    Spool::open(directory, keys(), "m1", settings, now)
}

fn keys() -> MasterKeys {
    MasterKeys::parse("k1:0123456789abcdef0123456789abcdef").expect("keys").expect("a key")
}

fn public() -> PublicKeys {
    static PUBLIC: LazyLock<PublicKeys> = LazyLock::new(|| keys().public());
    PUBLIC.clone()
}

/// The signed files, without the blanks that fill the slots of `HEAD`.
fn signed(files: &Files) -> Files {
    let files = files.iter().filter(|(name, _)| !OTHERS.contains(&&***name) && *name != layout::LOCK);
    let trimmed = |(name, content): (&String, &Vec<u8>)| {
        let slots = content.chunks(HEAD_SLOT).map(<[u8]>::trim_ascii_end).filter(|_| name == HEAD);
        let head = slots.collect::<Vec<_>>().join(&b'\n');
        (name.clone(), if name == HEAD && content.len() == 2 * HEAD_SLOT { head } else { content.clone() })
    };
    files.map(trimmed).collect()
}

fn edited(mut data: &[u8]) -> Files {
    let mut files = WHOLE.clone();
    for _ in 0..MOST_EDITS {
        let [file, kind, high, low, length, rest @ ..] = data else { break };
        let names: Vec<String> = files.keys().cloned().collect();
        let Some(name) = names.get(usize::from(*file) % names.len().max(1)) else { break };
        let content = files.entry(name.clone()).or_default();
        let at = (usize::from(*high) << 8 | usize::from(*low)) % (content.len() + 1);
        let end = (at + usize::from(*length)).min(content.len());
        let inserted = &rest[..rest.len().min(usize::from(*length))];
        data = &rest[inserted.len()..];
        match kind % 7 {
            0 => drop(content.drain(at..end)),
            1 => drop(content.splice(at..at, inserted.iter().copied())),
            2 => drop(content.splice(at..end, inserted.iter().copied())),
            3 => content.truncate(at),
            4 => {
                // A line again, or lines in another order.
                let mut lines: Vec<&[u8]> = content.split_inclusive(|byte| *byte == b'\n').collect();
                let (from, to) = (at % lines.len().max(1), end % lines.len().max(1));
                if let Some(line) = lines.get(from).copied() {
                    lines.insert(to, line);
                }
                *content = lines.concat();
            }
            5 => {
                let other = names[at % names.len()].clone();
                let bytes = files[&other].clone();
                files.insert(name.clone(), bytes);
            }
            _ => drop(files.remove(name)),
        }
    }
    files
}

/// One file with these bytes.
fn replaced(number: usize, content: &[u8]) -> Files {
    let mut files = WHOLE.clone();
    let names: Vec<String> = files.keys().cloned().chain(OTHERS.map(str::to_owned)).collect();
    files.insert(names[number % names.len()].clone(), content.to_vec());
    files
}

fn followed(directory: &Path) {
    let since = Position { chain: "00112233aabbccdd".to_owned(), through: BTreeMap::new() };
    assert_eq!(since.to_string().parse(), Ok(since.clone()));
    let Ok(mut follower) = Follower::new(directory, public(), &Class::ALL, Some(&since)) else { return };
    let written: Vec<&[u8]> =
        WHOLE.values().flat_map(|content| content.split_inclusive(|byte| *byte == b'\n')).collect();
    while let Ok(batches) = follower.look() {
        if batches.is_empty() {
            break;
        }
        for line in batches.iter().flat_map(|batch| batch.lines.split_inclusive(|byte| *byte == b'\n')) {
            assert!(written.contains(&line), "never written: {:?}", String::from_utf8_lossy(line));
        }
    }
}

/// A directory in memory if there is one, removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("outrigger-fuzz-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    fn read(&self) -> Files {
        let files = fs::read_dir(&self.0).expect("a directory").map(|file| file.expect("a file"));
        let files = files.filter(|file| file.file_name() != layout::LOCK);
        files
            .map(|file| (file.file_name().into_string().expect("a name"), fs::read(file.path()).expect("a file")))
            .collect()
    }

    /// Returns all problems and notes: a closed audit log has neither.
    fn is_whole(&self) -> Result<(), String> {
        let findings = verify::spool(&self.0, &public(), &[], &mut |_| ()).map_err(|e| e.to_string())?;
        let problems = findings.problems.iter().map(ToString::to_string).chain(findings.notes);
        let all: Vec<String> = problems.collect();
        if all.is_empty() { Ok(()) } else { Err(all.join("; ")) }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
