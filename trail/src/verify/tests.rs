use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use outrigger_policy::audit::{Draft, EventType, Head, Outcome, Time, hex, uuid_v7};

use super::walk::hash_of;
use super::*;
use crate::keys::{MasterKeys, PublicKeys};
use crate::layout::{self, Checkpoint, End, HEAD_SLOT, Header, Heads, Segment, Span};

pub(super) fn keys() -> MasterKeys {
    MasterKeys::parse("k1:0123456789abcdef0123456789abcdef").unwrap().unwrap()
}

/// A directory per test, removed at its end.
pub(super) struct Directory(pub(super) PathBuf);

impl Directory {
    pub(super) fn new(name: &str) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("outrigger-verify-{}-{number}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Deterministic pseudo-random numbers.
pub(super) struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below.max(1) as u64) as usize
    }
}

pub(super) fn hexed(hash: &[u8]) -> String {
    let mut out = Vec::new();
    hex(&mut out, hash);
    String::from_utf8(out).unwrap()
}

/// An independent writer of the format, so that tests find mistakes that the program's reader and writer share.
pub(super) struct Writer {
    directory: PathBuf,
    keys: MasterKeys,
    chains: BTreeMap<Class, Written>,
    number: u64,
    segment_size: u64,
}

#[derive(Default)]
struct Written {
    floor: u64,
    head: Head,
    open: Option<(fs::File, u64, [u8; 32], u64)>,
}

const CHAIN: &str = "00112233aabbccdd";

impl Writer {
    pub(super) fn new(directory: &Path, segment_size: u64) -> Self {
        fs::write(directory.join(layout::CHAIN), format!("{CHAIN}\n")).unwrap();
        let mut writer =
            Self { directory: directory.to_owned(), keys: keys(), chains: BTreeMap::new(), number: 0, segment_size };
        writer.head();
        writer
    }

    pub(super) fn append(&mut self, event: EventType, text: &str) {
        let class = event.class();
        let time = Time(1_764_000_000_000_000 + self.number as i64);
        if self.chains.get(&class).is_some_and(|chain| chain.open.as_ref().is_some_and(|o| o.3 > self.segment_size)) {
            self.close(class);
        }
        let chain = self.chains.entry(class).or_insert_with(|| Written { floor: 1, ..Written::default() });
        let head = chain.head;
        let (file, _, _, size) = chain.open.get_or_insert_with(|| {
            let segment = Segment::new(&self.directory, class, head.last + 1);
            let header = Header {
                segment: 1,
                chain: CHAIN.to_owned(),
                class: class.name().to_owned(),
                machine: "m1".to_owned(),
                first: head.last + 1,
                prev: hexed(&head.hash),
                created: time.to_string(),
            };
            let line = serde_json::to_vec(&header).unwrap();
            let mut file = fs::File::create_new(&segment.path).unwrap();
            file.write_all(&[&line[..], b"\n"].concat()).unwrap();
            (file, head.last + 1, hash_of(&line), 0)
        });
        let draft = Draft {
            request_id: Some(text),
            route: Some("documents"),
            status: Some(200),
            ..Draft::new(
                uuid_v7(time, (1, self.number)),
                time,
                "m1",
                event,
                Outcome::Success,
                r#""actor":{"id":"u_aaaaaaaaaaaaaaaaaaaaaa","kind":"user"},"client":"a_bbbbbbbbbbbbbbbbbbbbbb","sealed":"cccccccccccccccccccccc.ddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd""#,
            )
        };
        let mut line = Vec::new();
        draft.write(class, &head, &mut line);
        chain.head = Head { last: head.last + 1, hash: hash_of(&line) };
        line.push(b'\n');
        file.write_all(&line).unwrap();
        *size += line.len() as u64;
    }

    fn close(&mut self, class: Class) {
        let ends = self.chains.iter().filter(|(other, _)| **other != class);
        let heads = ends
            .map(|(class, chain)| {
                (class.name().to_owned(), End { last: chain.head.last, hash: hexed(&chain.head.hash) })
            })
            .collect();
        let chain = self.chains.get_mut(&class).unwrap();
        if let Some((mut file, first, header, _)) = chain.open.take() {
            let checkpoint = Checkpoint {
                checkpoint: 1,
                chain: CHAIN.to_owned(),
                class: class.name().to_owned(),
                first,
                last: chain.head.last,
                header: hexed(&header),
                hash: hexed(&chain.head.hash),
                time: Time(1_764_000_000_000_000).to_string(),
                heads,
                key: self.keys.current_id().to_owned(),
            };
            let line = layout::sign(&checkpoint, &self.keys);
            file.write_all(&[&line[..], b"\n"].concat()).unwrap();
        }
    }

    pub(super) fn head(&mut self) {
        use std::os::unix::fs::FileExt;
        self.number += 1;
        let span = |chain: &Written| Span { first: chain.floor, last: chain.head.last, hash: hexed(&chain.head.hash) };
        let heads = Heads {
            head: 1,
            chain: CHAIN.to_owned(),
            machine: "m1".to_owned(),
            number: self.number,
            time: Time(1_764_000_000_000_000).to_string(),
            classes: self.chains.iter().map(|(class, chain)| (class.name().to_owned(), span(chain))).collect(),
            closed: false,
            key: self.keys.current_id().to_owned(),
        };
        let mut slot = layout::sign(&heads, &self.keys);
        slot.resize(HEAD_SLOT - 1, b' ');
        slot.push(b'\n');
        let file =
            fs::File::options().create(true).truncate(false).write(true).open(self.directory.join("HEAD")).unwrap();
        file.write_all_at(&slot, self.number % 2 * HEAD_SLOT as u64).unwrap();
    }

    /// Removes the oldest closed segment of `class`.
    fn drop_oldest(&mut self, class: Class) {
        let segments: Vec<_> =
            layout::segments(&self.directory).unwrap().into_iter().filter(|s| s.class == class).collect();
        if let [oldest, next, ..] = segments.as_slice() {
            self.chains.get_mut(&class).unwrap().floor = next.first;
            self.head();
            fs::remove_file(&oldest.path).unwrap();
        }
    }

    pub(super) fn finish(mut self) {
        for class in Class::ALL {
            if self.chains.contains_key(&class) {
                self.close(class);
            }
        }
        self.head();
    }
}

fn look(directory: &Path) -> Findings {
    spool(directory, &keys().public(), &[], &mut |_| ()).unwrap()
}

/// One type of each class.
const TYPES: [EventType; 5] =
    [EventType::RateLimited, EventType::Login, EventType::Read, EventType::AdminAction, EventType::Delete];

fn trail(name: &str, entries: u64, segment_size: u64) -> (Directory, Writer) {
    let directory = Directory::new(name);
    let mut writer = Writer::new(&directory.0, segment_size);
    let mut dice = Dice(7);
    for number in 0..entries {
        writer.append(TYPES[dice.roll(TYPES.len())], &format!("r-{number}"));
        if number % 20 == 0 {
            writer.head();
        }
    }
    writer.head();
    (directory, writer)
}

#[test]
fn an_unchanged_audit_log_is_whole() {
    let (directory, writer) = trail("whole", 10_000, 100_000);
    let open = look(&directory.0);
    assert_eq!(open.problems, []);
    assert_eq!((open.entries(), open.classes.len()), (10_000, 5));
    assert_eq!(open.notes.len(), 1, "{:?}", open.notes);
    writer.finish();
    let closed = look(&directory.0);
    assert!(closed.is_whole() && closed.notes.is_empty(), "{closed:?}");
    assert!(closed.classes.iter().all(|class| class.first == 1 && class.vouched == class.last));
}

#[test]
fn an_empty_audit_log_is_not_whole() {
    let directory = Directory::new("empty");
    let look = |keys: PublicKeys| spool(&directory.0, &keys, &[], &mut |_| ());
    assert!(matches!(look(keys().public()), Err(VerifyError::Nothing(_))));
    assert!(matches!(
        spool(&directory.0.join("none"), &keys().public(), &[], &mut |_| ()),
        Err(VerifyError::Read { .. })
    ));
    let writer = Writer::new(&directory.0, 100);
    writer.finish();
    assert!(look(keys().public()).unwrap().is_whole());
    // Nothing verifies without the key.
    assert!(!look(PublicKeys::default()).unwrap().is_whole());
}

#[test]
fn entries_dropped_by_retention_are_not_missing() {
    let (directory, mut writer) = trail("retention", 2_000, 20_000);
    let oldest = layout::segments(&directory.0).unwrap().into_iter().find(|s| s.class == Class::Data).unwrap();
    let bytes = fs::read(&oldest.path).unwrap();
    writer.drop_oldest(Class::Data);
    let findings = look(&directory.0);
    assert_eq!(findings.problems, []);
    assert!(findings.classes.iter().find(|class| class.class == Class::Data).unwrap().first > 1);
    // A crash between raising the floor and removing the file.
    fs::write(&oldest.path, bytes).unwrap();
    assert_eq!(look(&directory.0).problems, []);
    for _ in 0..100 {
        writer.drop_oldest(Class::Data);
    }
    assert_eq!(look(&directory.0).problems, []);
    writer.finish();
    assert_eq!(look(&directory.0).problems, []);
    // Removals above the floor are found.
    let second = layout::segments(&directory.0).unwrap().into_iter().find(|s| s.class == Class::Data).unwrap();
    fs::remove_file(second.path).unwrap();
    assert!(!look(&directory.0).is_whole());
}

#[test]
fn the_remains_of_a_crash_are_a_note() {
    let (directory, mut writer) = trail("crash", 500, 20_000);
    for number in 0..3 {
        writer.append(EventType::Read, &format!("late-{number}"));
    }
    let findings = look(&directory.0);
    assert_eq!(findings.problems, []);
    assert!(findings.notes.iter().any(|note| note.contains("not signed yet")), "{:?}", findings.notes);
    let newest = layout::segments(&directory.0).unwrap().into_iter().rfind(|s| s.class == Class::Data).unwrap();
    let whole = fs::read(&newest.path).unwrap();
    let last_line = whole[..whole.len() - 1].iter().rposition(|b| *b == b'\n').unwrap() + 1;
    for cut in last_line + 1..whole.len() {
        fs::write(&newest.path, &whole[..cut]).unwrap();
        let findings = look(&directory.0);
        assert_eq!(findings.problems, [], "{cut}");
        assert!(findings.notes.iter().any(|note| note.contains("torn")), "{cut}: {:?}", findings.notes);
    }
    // A block that was never written.
    let mut hole = whole.clone();
    hole[last_line..].fill(0);
    fs::write(&newest.path, &hole).unwrap();
    assert_eq!(look(&directory.0).problems, []);
    // A segment that was only begun.
    fs::write(&newest.path, &whole).unwrap();
    let findings = look(&directory.0);
    let last = findings.classes.iter().find(|class| class.class == Class::Data).unwrap().last;
    writer.close(Class::Data);
    let next = Segment::new(&directory.0, Class::Data, last + 1);
    for begun in ["", "{\"segment\":1,"] {
        fs::write(&next.path, begun).unwrap();
        assert_eq!(look(&directory.0).problems, [], "{begun:?}");
    }
}

#[test]
fn an_audit_log_that_grows_during_verification_raises_no_alarm() {
    let directory = Directory::new("grows");
    let mut writer = Writer::new(&directory.0, 5_000);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut dice = Dice(3);
            for number in 0u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                writer.append(TYPES[dice.roll(TYPES.len())], &format!("r-{number}"));
                if number % 5 == 0 {
                    writer.head();
                }
                if number % 50 == 0 {
                    for class in Class::ALL {
                        if layout::segments(&directory.0).unwrap().iter().filter(|s| s.class == class).count() > 4 {
                            writer.drop_oldest(class);
                        }
                    }
                }
            }
        });
        let mut rounds = 0;
        let mut last = 0;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while rounds < 200 || last < 5_000 {
                assert!(std::time::Instant::now() < deadline, "{rounds} rounds, {last} entries");
                let findings = look(&directory.0);
                assert_eq!(findings.problems, [], "round {rounds}");
                rounds += 1;
                last = findings.classes.iter().map(|class| class.last).sum();
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Verifies what the spool itself writes, through random events.
#[test]
fn a_spool_is_whole_after_any_crashes_and_restarts() {
    use crate::spool::{SYSTEM, Settings, Spool};
    let directory = Directory::new("spool");
    let settings = Settings { segment_bytes: 4_000, ..Settings::default() };
    let mut dice = Dice(11);
    let mut now = Time(1_795_528_800_000_000);
    let open = |now| Spool::open(&directory.0, keys(), "m1", settings, now).unwrap();
    let mut spool = open(now);
    let mut dropped = 0;
    for round in 0..500u32 {
        now.0 += 10_000 + dice.roll(90_000) as i64;
        match dice.roll(30) {
            0 => {
                // As after kill -9: no segment is closed, and HEAD lags behind.
                drop(spool);
                assert_eq!(look(&directory.0).problems, [], "round {round}, after a crash");
                spool = open(now);
            }
            1 => {
                spool.close(now).unwrap();
                assert_eq!(look(&directory.0).problems, [], "round {round}, after it was closed");
                spool = open(now);
            }
            2 => {
                let expired = spool.expired(now, |_| Time(now.0 - 20_000_000), |_, _| Ok(false)).unwrap();
                spool.drop_expired(&expired, now).unwrap();
                dropped += expired.len();
            }
            _ => {
                for _ in 0..dice.roll(4) {
                    let event = TYPES[dice.roll(TYPES.len())];
                    spool.append(&Draft::new(u128::from(round), now, "m1", event, Outcome::Success, SYSTEM));
                }
                assert!(spool.commit(now).is_empty());
            }
        }
        let findings = look(&directory.0);
        assert_eq!(findings.problems, [], "round {round}");
    }
    assert!(dropped > 3, "{dropped}");
}

mod rows_of_a_database {
    use super::*;
    use crate::verify::rows::{Beside, DropRecord, Dropped, Rows, heads};

    /// Half an hour after the removals below.
    const NOW: &str = "2026-11-24T14:30:00Z";

    /// The frames and entries of one class.
    fn read(directory: &Path) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        read_class(directory, Class::Data)
    }

    fn read_class(directory: &Path, class: Class) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let segments = layout::segments(directory).unwrap().into_iter().filter(|s| s.class == class);
        let lines = segments.flat_map(|s| {
            fs::read_to_string(s.path).unwrap().lines().map(|line| line.as_bytes().to_vec()).collect::<Vec<_>>()
        });
        lines.partition(|line| !line.starts_with(b"{\"seq\""))
    }

    fn walk(entries: &[(u64, &[u8])], beside: Beside) -> Findings {
        walk_at(NOW, entries, beside)
    }

    fn walk_at(now: &str, entries: &[(u64, &[u8])], beside: Beside) -> Findings {
        let mut rows = Rows::new(CHAIN, Class::Data, beside, &keys().public(), now.parse().unwrap());
        for (seq, line) in entries {
            rows.row(*seq, line);
        }
        rows.finish()
    }

    fn record(entries: &[(u64, &[u8])], through: u64, held: &[u64]) -> DropRecord {
        let mut hashes = Vec::new();
        for (_, line) in entries.iter().filter(|(seq, _)| held.contains(seq)) {
            hashes.extend(hash_of(line));
        }
        DropRecord {
            id: 1,
            chain: CHAIN.to_owned(),
            class: "data".to_owned(),
            through,
            hash: hexed(&hash_of(entries[through as usize - 1].1)),
            count: through - held.len() as u64,
            kept: held.len() as u64,
            kept_digest: hexed(&hash_of(&hashes)),
            at: "2026-11-24T14:00:00Z".to_owned(),
        }
    }

    #[test]
    fn are_verified_after_retention() {
        let (directory, writer) = trail("rows", 1_000, 10_000);
        writer.finish();
        let (frames, lines) = read(&directory.0);
        let all: Vec<(u64, &[u8])> = (1..).zip(lines.iter().map(Vec::as_slice)).collect();
        let beside =
            |drops| Beside { frames: frames.clone(), drops, shipped: Some(all.len() as u64), ..Beside::default() };
        let whole = walk(&all, beside(Vec::new()));
        assert!(whole.is_whole() && whole.notes.is_empty(), "{whole:?}");

        let record = record(&all, 100, &[7, 50]);
        let signed = Dropped { signature: Some(keys().sign(&record.message())), record };
        let left: Vec<_> = all.iter().copied().filter(|(seq, _)| *seq > 100 || [7, 50].contains(seq)).collect();
        let found = walk(&left, beside(vec![signed.clone()]));
        assert!(found.is_whole() && found.notes.is_empty(), "{found:?}");
        assert_eq!((found.classes[0].first, found.classes[0].entries), (7, left.len() as u64));

        let without = |seq: u64| left.iter().copied().filter(|row| row.0 != seq).collect::<Vec<_>>();
        for gone in [7, 50, 101, 150, all.len() as u64] {
            assert!(!walk(&without(gone), beside(vec![signed.clone()])).is_whole(), "{gone}");
        }
        let mut moved = left.clone();
        moved.swap(0, 1);
        assert!(!walk(&moved, beside(vec![signed.clone()])).is_whole());
        let changed = String::from_utf8(left[0].1.to_vec()).unwrap().replace("\"status\":200", "\"status\":500");
        assert_ne!(changed.as_bytes(), left[0].1);
        let mut rows = left.clone();
        rows[0].1 = changed.as_bytes();
        assert!(!walk(&rows, beside(vec![signed.clone()])).is_whole());
        // An attacker removes more rows and changes the record accordingly.
        let mut forged = signed.clone();
        forged.record.through = 200;
        let fewer: Vec<_> = left.iter().copied().filter(|row| row.0 <= 100 || row.0 > 200).collect();
        assert!(!walk(&fewer, beside(vec![forged])).is_whole());
        assert!(!walk(&left, beside(Vec::new())).is_whole());
        // An unsigned record is accepted for some time only, and not with a time in the future.
        let unsigned = Dropped { signature: None, ..signed };
        let found = walk(&left, beside(vec![unsigned.clone()]));
        assert!(found.is_whole() && found.notes.len() == 1, "{found:?}");
        for now in ["2026-11-24T15:00:01Z", "2027-01-01T00:00:00Z", "2026-11-24T12:59:59Z"] {
            let found = walk_at(now, &left, beside(vec![unsigned.clone()]));
            assert!(matches!(&*found.problems, [Problem { wrong: Wrong::Drop(_), .. }]), "{now}: {found:?}");
            let text = found.problems[0].to_string();
            assert!(
                text.contains("audit_drops, data entry 100") && text.contains("no signature confirms it"),
                "{text}"
            );
        }
        let mut timeless = unsigned;
        timeless.record.at = "yesterday".to_owned();
        assert!(!walk(&left, beside(vec![timeless])).is_whole());
    }

    #[test]
    fn are_missing_if_only_checkpoints_of_other_classes_name_them() {
        let (directory, writer) = trail("heads", 1_000, 10_000);
        writer.finish();
        let (frames, lines) = read(&directory.0);
        let all: Vec<(u64, &[u8])> = (1..).zip(lines.iter().map(Vec::as_slice)).collect();
        let (count, cut) = (all.len() as u64, all.len() as u64 - 40);
        let others: Vec<Vec<u8>> = Class::ALL
            .into_iter()
            .filter(|class| *class != Class::Data)
            .flat_map(|class| read_class(&directory.0, class).0)
            .collect();
        let told = |frames: &[Vec<u8>]| -> Vec<_> {
            let told = heads(CHAIN, frames.iter().map(Vec::as_slice), &keys().public());
            told.into_iter().filter(|(class, _)| *class == Class::Data).map(|(_, head)| head).collect()
        };
        let left: Vec<Vec<u8>> = frames
            .iter()
            .filter(|line| match serde_json::from_slice::<Checkpoint>(line) {
                Ok(checkpoint) => checkpoint.last <= cut,
                Err(_) => serde_json::from_slice::<Header>(line).unwrap().first <= cut,
            })
            .cloned()
            .collect();
        assert!(left.len() < frames.len());
        let beside = |heads| Beside { frames: left.clone(), heads, shipped: Some(cut), ..Beside::default() };

        let whole = walk(&all, Beside { frames, heads: told(&others), ..Beside::default() });
        assert!(whole.is_whole() && whole.notes.is_empty(), "{whole:?}");
        let some = &all[..cut as usize];
        assert!(walk(some, beside(Vec::new())).is_whole(), "its own lines do not tell");
        let found = walk(some, beside(told(&others)));
        assert!(
            matches!(&*found.problems, [Problem { wrong: Wrong::Truncated { last, claimed, by }, .. }]
                if (*last, *claimed) == (cut, count) && by.starts_with("the checkpoint of")),
            "{found:?}"
        );
        assert!(found.notes.iter().any(|note| note.contains("outrigger_audit_unshipped_entries")), "{found:?}");
        let found = walk(&[], Beside { heads: told(&others), ..Beside::default() });
        assert!(matches!(found.problems[0].wrong, Wrong::Truncated { last: 0, .. }), "nothing at all: {found:?}");
        // Classes are shipped independently: entries that a recent checkpoint names may not be stored yet.
        let found = walk_at("2025-11-24T16:30:00Z", some, beside(told(&others)));
        assert!(found.is_whole() && found.notes.iter().any(|note| note.contains("not all stored yet")), "{found:?}");
        // Without the key, a checkpoint cannot be changed.
        let forged: Vec<Vec<u8>> = others
            .iter()
            .map(|line| {
                String::from_utf8(line.clone()).unwrap().replace(&format!("\"last\":{count},"), "\"last\":9999,")
            })
            .map(String::into_bytes)
            .collect();
        assert!(forged != others && told(&forged).iter().all(|head| head.claim.seq < count));
    }

    #[test]
    fn with_a_different_column_are_reported_with_it() {
        let mut rows = Rows::new(CHAIN, Class::Data, Beside::default(), &keys().public(), NOW.parse().unwrap());
        rows.columns(5, Some(&[]));
        rows.columns(6, Some(&["actor", "time"]));
        rows.columns(7, None);
        let found = rows.finish();
        let said: Vec<String> = found.problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "audit_events, data entry 6: the column `actor` differs from the entry",
                "audit_events, data entry 6: the column `time` differs from the entry",
                "audit_events, data entry 7: is not an entry: its members cannot be read",
            ]
        );
    }

    #[test]
    fn are_missing_if_the_spool_has_them_as_stored() {
        let (directory, writer) = trail("unstored", 100, 100_000);
        writer.finish();
        let (_, lines) = read(&directory.0);
        let some: Vec<(u64, &[u8])> = (1..6).zip(lines.iter().map(Vec::as_slice)).collect();
        let found = walk(&some, Beside { shipped: Some(8), ..Beside::default() });
        assert_eq!(found.problems[0].wrong, Wrong::Unstored { shipped: 8, last: 5 });
        let hash = hash_of(&lines[6]);
        let claims = vec![Claim { seq: 6, hash, by: "the spool".to_owned() }];
        assert!(!walk(&some, Beside { claims, ..Beside::default() }).is_whole());
    }
}

/// Manipulations that are possible without the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tampering {
    Edit,
    RemoveLine,
    RepeatLine,
    SwapLines,
    Cut,
    RemoveFile,
    RemoveEnd,
    RemoveAll,
    EmptySlot,
    OldSlot,
    Rewrite,
    Forge,
    SwapFiles,
    Add,
}

const TAMPERINGS: [Tampering; 14] = [
    Tampering::Edit,
    Tampering::RemoveLine,
    Tampering::RepeatLine,
    Tampering::SwapLines,
    Tampering::Cut,
    Tampering::RemoveFile,
    Tampering::RemoveEnd,
    Tampering::RemoveAll,
    Tampering::EmptySlot,
    Tampering::OldSlot,
    Tampering::Rewrite,
    Tampering::Forge,
    Tampering::SwapFiles,
    Tampering::Add,
];

struct Tampered {
    what: String,
    /// Whether a class's last checkpoint was removed. That leaves only a note, since no entry depends on it.
    is_last_checkpoint: bool,
}

/// Rewrites the entries from line `from` on, so that each has the hash of the previous one.
fn rechain(lines: &mut [Vec<u8>], from: usize) {
    for at in from.max(2)..lines.len() {
        if !lines[at].starts_with(b"{\"seq\"") {
            break;
        }
        let prev = hexed(&hash_of(&lines[at - 1]));
        let end = lines[at].len() - 66;
        lines[at].truncate(end);
        lines[at].extend_from_slice(prev.as_bytes());
        lines[at].extend_from_slice(b"\"}");
    }
}

fn tamper(directory: &Path, tampering: Tampering, dice: &mut Dice) -> Tampered {
    let segments = layout::segments(directory).unwrap();
    let segment = &segments[dice.roll(segments.len())];
    let is_newest = segments.iter().rfind(|s| s.class == segment.class) == Some(segment);
    let mut bytes = fs::read(&segment.path).unwrap();
    let mut lines: Vec<Vec<u8>> = bytes[..bytes.len() - 1].split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    let line = dice.roll(lines.len());
    let is_last_checkpoint = |line: usize| is_newest && line + 1 == lines.len();
    let write = |lines: &[Vec<u8>]| fs::write(&segment.path, [&lines.join(&b'\n')[..], b"\n"].concat()).unwrap();
    let of = name_of(&segment.path);
    let plain = |what: String| Tampered { what: format!("{tampering:?} {of} {what}"), is_last_checkpoint: false };
    match tampering {
        Tampering::Edit => {
            let special = ["HEAD", "CHAIN"];
            if let Some(file) = special.get(dice.roll(8)) {
                let path = directory.join(file);
                let mut bytes = fs::read(&path).unwrap();
                let at = dice.roll(bytes.len());
                bytes[at] ^= 1 << dice.roll(7);
                fs::write(&path, bytes).unwrap();
                return plain(format!("{file} byte {at}"));
            }
            let at = dice.roll(bytes.len());
            let bit = 1 << dice.roll(8);
            bytes[at] ^= bit;
            fs::write(&segment.path, &bytes).unwrap();
            let is_last_checkpoint = is_newest && bytes.len() - at <= lines[lines.len() - 1].len() + 1;
            Tampered { is_last_checkpoint, ..plain(format!("byte {at}, bit {bit}")) }
        }
        Tampering::RemoveLine => {
            let is_last_checkpoint = is_last_checkpoint(line);
            lines.remove(line);
            write(&lines);
            Tampered { is_last_checkpoint, ..plain(format!("line {line}")) }
        }
        Tampering::RepeatLine => {
            let to = dice.roll(lines.len() + 1);
            lines.insert(to, lines[line].clone());
            write(&lines);
            plain(format!("line {line} to {to}"))
        }
        Tampering::SwapLines => {
            let other = (line + 1 + dice.roll(lines.len() - 1)) % lines.len();
            lines.swap(line, other);
            write(&lines);
            plain(format!("lines {line} and {other}"))
        }
        Tampering::Cut => {
            let at = dice.roll(bytes.len());
            fs::write(&segment.path, &bytes[..at]).unwrap();
            let is_last_checkpoint = is_newest && bytes.len() - at <= lines[lines.len() - 1].len() + 1;
            Tampered { is_last_checkpoint, ..plain(format!("at {at}")) }
        }
        Tampering::RemoveFile => {
            let file = ["HEAD", "CHAIN", &of][dice.roll(3)].to_owned();
            fs::remove_file(directory.join(&file)).unwrap();
            plain(file)
        }
        Tampering::RemoveEnd => {
            let count = segments.iter().filter(|s| s.class == segment.class && s.first >= segment.first).count();
            for gone in segments.iter().filter(|s| s.class == segment.class && s.first >= segment.first) {
                fs::remove_file(&gone.path).unwrap();
            }
            plain(format!("and later ones: {count}"))
        }
        Tampering::RemoveAll => {
            for gone in &segments {
                fs::remove_file(&gone.path).unwrap();
            }
            plain("all".to_owned())
        }
        Tampering::EmptySlot | Tampering::OldSlot => {
            let path = directory.join("HEAD");
            let mut bytes = fs::read(&path).unwrap();
            let slot = dice.roll(2);
            let (one, other) = bytes.split_at_mut(HEAD_SLOT);
            let (slot_bytes, other) = if slot == 0 { (one, other) } else { (other, one) };
            if tampering == Tampering::EmptySlot {
                slot_bytes.fill(b" \0"[dice.roll(2)]);
            } else {
                slot_bytes.copy_from_slice(other);
            }
            fs::write(&path, bytes).unwrap();
            plain(format!("slot {slot}"))
        }
        Tampering::Rewrite => {
            // Rewrites the whole segment with valid hashes: only signatures reveal it.
            let line = 1 + dice.roll(lines.len() - 2);
            let text = String::from_utf8(lines[line].clone()).unwrap();
            lines[line] = text.replace("\"status\":200", "\"status\":403").into_bytes();
            rechain(&mut lines, line + 1);
            write(&lines);
            plain(format!("from line {line}"))
        }
        Tampering::Forge => {
            let line = 1 + dice.roll(lines.len() - 2);
            let forged = lines[line].clone();
            lines.insert(line, forged);
            for (at, line) in lines.iter_mut().enumerate().skip(line + 1) {
                if let Some(rest) = String::from_utf8(line.clone()).unwrap().strip_prefix("{\"seq\":") {
                    let (seq, rest) = rest.split_once(',').unwrap();
                    let seq: u64 = seq.parse().unwrap();
                    *line = format!("{{\"seq\":{},{rest}", seq + 1).into_bytes();
                }
                let _ = at;
            }
            rechain(&mut lines, line);
            write(&lines);
            plain(format!("at line {line}"))
        }
        Tampering::SwapFiles => {
            let other = segments.iter().filter(|s| *s != segment).nth(dice.roll(segments.len() - 1)).unwrap();
            let others = fs::read(&other.path).unwrap();
            fs::write(&other.path, &bytes).unwrap();
            fs::write(&segment.path, others).unwrap();
            plain(name_of(&other.path))
        }
        Tampering::Add => {
            bytes.extend_from_slice(
                [&b"\n"[..], b"{}\n", b"x", &[&lines[lines.len() - 2][..], b"\n"].concat()][dice.roll(4)],
            );
            fs::write(&segment.path, bytes).unwrap();
            plain("at the end".to_owned())
        }
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

fn read_all(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
    paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[test]
fn every_manipulation_is_found_without_false_alarms() {
    let (directory, writer) = trail("tampered", 10_000, 300_000);
    writer.finish();
    let before = read_all(&directory.0);
    assert!(before.len() > 15, "{}", before.len());
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for round in 0..420 {
        let tampering = TAMPERINGS[round % TAMPERINGS.len()];
        let tampered = tamper(&directory.0, tampering, &mut dice);
        let after = read_all(&directory.0);
        if after != before {
            let findings = look(&directory.0);
            let is_found = !findings.is_whole() || tampered.is_last_checkpoint && !findings.notes.is_empty();
            assert!(is_found, "round {round}: {}", tampered.what);
            // A single edit causes few problems.
            if tampering == Tampering::Edit {
                assert!(findings.count() <= 8, "round {round}: {}: {:#?}", tampered.what, findings.problems);
            }
        }
        for (path, bytes) in &before {
            if after.get(path) != Some(bytes) {
                fs::write(path, bytes).unwrap();
            }
        }
        if round % 50 == 0 {
            assert!(look(&directory.0).is_whole(), "round {round}");
        }
    }
    assert!(look(&directory.0).is_whole());
}

#[test]
fn a_number_that_no_database_has_is_a_problem_like_any_other() {
    let (directory, writer) = trail("number", 100, 100_000);
    writer.finish();
    let segment = layout::segments(&directory.0).unwrap().into_iter().find(|s| s.class == Class::Data).unwrap();
    let whole = fs::read_to_string(&segment.path).unwrap();
    for number in [0, layout::LARGEST_NUMBER + 1, u64::MAX] {
        for entry in [1, 3] {
            let changed = whole.replacen(&format!("{{\"seq\":{entry},"), &format!("{{\"seq\":{number},"), 1);
            assert_ne!(changed, whole);
            fs::write(&segment.path, changed).unwrap();
            assert!(!look(&directory.0).is_whole(), "{number} instead of {entry}");
        }
    }
    fs::write(&segment.path, whole).unwrap();
    // The name of a file has a number, too.
    fs::write(Segment::new(&directory.0, Class::Data, u64::MAX).path, "").unwrap();
    assert!(look(&directory.0).is_whole());
    assert!(layout::segments(&directory.0).unwrap().iter().all(|segment| segment.first <= layout::LARGEST_NUMBER));
}

#[test]
fn a_problem_has_its_position_and_meaning() {
    let (directory, writer) = trail("said", 200, 10_000);
    writer.finish();
    let segment = layout::segments(&directory.0).unwrap().into_iter().find(|s| s.class == Class::Data).unwrap();
    let whole = fs::read_to_string(&segment.path).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    let mut said = String::new();
    let mut tell = |how: &str, lines: &[&str]| {
        fs::write(&segment.path, lines.join("\n") + "\n").unwrap();
        said.push_str(&format!("{how}\n"));
        for problem in look(&directory.0).problems {
            said.push_str(&format!("  {problem}\n    {}\n", problem.wrong.meaning()));
        }
    };
    let edited = lines[5].replace("\"status\":200", "\"status\":500");
    tell("an entry is changed", &[&lines[..5], &[&edited[..]], &lines[6..]].concat());
    tell("two entries are gone", &[&lines[..5], &lines[7..]].concat());
    tell("two entries have changed places", &[&lines[..5], &[lines[6], lines[5]], &lines[7..]].concat());
    tell("an entry is there twice", &[&lines[..6], &lines[5..]].concat());
    tell("a line is none", &[&lines[..5], &["nothing"], &lines[6..]].concat());
    tell("the checkpoint is gone", &lines[..lines.len() - 1]);
    let header = lines[0].replacen("\"m1\"", "\"m2\"", 1);
    assert_ne!(header, lines[0]);
    tell("the header is changed", &[&[&header[..]], &lines[1..]].concat());
    fs::remove_file(&segment.path).unwrap();
    said.push_str("the segment is gone\n");
    for problem in look(&directory.0).problems {
        said.push_str(&format!("  {problem}\n    {}\n", problem.wrong.meaning()));
    }
    fs::write(&segment.path, &whole).unwrap();
    for newest in layout::segments(&directory.0).unwrap().iter().filter(|s| s.class == Class::Data) {
        fs::remove_file(&newest.path).unwrap();
    }
    said.push_str("all segments of a class are gone\n");
    for problem in look(&directory.0).problems {
        said.push_str(&format!("  {problem}\n    {}\n", problem.wrong.meaning()));
    }
    insta::assert_snapshot!(said);
}

/// `cargo test --release -p outrigger-trail -- --ignored --nocapture entries_a_second`
#[test]
#[ignore = "a measurement: says how fast it is"]
fn entries_a_second() {
    let (directory, writer) = trail("speed", 1_000_000, 16 << 20);
    writer.finish();
    for _ in 0..3 {
        let began = std::time::Instant::now();
        let findings = look(&directory.0);
        let took = began.elapsed();
        assert!(findings.is_whole());
        let rate = findings.entries() as f64 / took.as_secs_f64();
        println!("{} entries in {took:?}: {rate:.0} entries/s", findings.entries());
        assert!(rate > 500_000.0, "{rate}");
    }
}
