use super::*;
use crate::entry::Entry;
use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

const SECRET: &str = "k1:0123456789abcdef0123456789abcdef";
pub(super) const NOW: Time = Time(1_795_528_800_000_000);

/// A directory per test, removed at its end.
pub(super) struct Place(pub(super) PathBuf);

impl Place {
    pub(super) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("outrigger-spool-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Self(std::env::temp_dir().join(name))
    }

    pub(super) fn open(&self) -> Spool {
        self.open_with(Settings::default())
    }

    pub(super) fn open_with(&self, settings: Settings) -> Spool {
        Spool::open(&self.0, keys(), "m1", settings, NOW).unwrap()
    }

    fn lines(&self, class: Class) -> Vec<String> {
        let segments = layout::segments(&self.0).unwrap().into_iter().filter(|segment| segment.class == class);
        segments
            .flat_map(|s| fs::read_to_string(s.path).unwrap().lines().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }

    fn entries(&self, class: Class) -> Vec<String> {
        self.lines(class).into_iter().filter(|line| line.starts_with("{\"seq\":")).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) fn keys() -> MasterKeys {
    MasterKeys::parse(SECRET).unwrap().unwrap()
}

fn read(number: u128, time: Time) -> Draft<'static> {
    Draft::new(number, time, "m1", EventType::Read, Outcome::Success, SYSTEM)
}

fn append(spool: &mut Spool, count: u128) {
    for number in 0..count {
        spool.append(&read(number, NOW));
    }
    assert!(spool.commit(NOW).is_empty());
}

/// Asserts that every entry has the hash of the previous one, also across segments.
fn assert_chained(entries: &[String]) {
    let mut hash = hex(&[0; 32]);
    for (at, line) in entries.iter().enumerate() {
        let entry = Entry::parse(line.as_bytes()).unwrap();
        assert_eq!((entry.seq, entry.prev), (Some(at as u64 + 1), Some(hash.as_str())), "{line}");
        hash = hex(&sha256(line.as_bytes()));
    }
}

#[test]
fn a_chain_continues_across_restarts_and_segments() {
    let place = Place::new();
    let small = Settings { segment_bytes: 2000, ..Settings::default() };
    let mut spool = place.open_with(small);
    for _ in 0..5 {
        append(&mut spool, 5);
    }
    spool.close(NOW).unwrap();
    let mut spool = place.open_with(small);
    append(&mut spool, 1);
    let entries = place.entries(Class::Data);
    assert_eq!(entries.len(), 26);
    assert_chained(&entries);
    assert!(place.entries(Class::Administration).is_empty(), "nothing had to be recovered");
    let lines = place.lines(Class::Data);
    let checkpoints: Vec<_> = lines.iter().filter(|line| line.starts_with("{\"checkpoint\"")).collect();
    assert!(checkpoints.len() >= 2);
    for line in checkpoints {
        layout::verify(line.as_bytes(), "k1", &keys().public()).unwrap();
    }
}

#[test]
fn two_processes_never_write_to_one_spool() {
    let place = Place::new();
    let spool = place.open();
    let second = Spool::open(&place.0, keys(), "m1", Settings::default(), NOW);
    assert!(matches!(second, Err(SpoolError::Locked(_))));
    drop(spool);
    place.open();
}

#[test]
fn a_torn_end_is_cut_off_and_recorded() {
    let place = Place::new();
    let mut spool = place.open();
    append(&mut spool, 3);
    let path = layout::segments(&place.0).unwrap()[0].path.clone();
    drop(spool);
    let whole = fs::read(&path).unwrap();
    for torn in [&b"{\"seq\":4,\"cla"[..], b"{\"seq\":4,\"class\":\"data\"}\n", b"\0\0\0\0", b"\xff\xfe\n"] {
        fs::write(&path, [whole.as_slice(), torn].concat()).unwrap();
        // HEAD as it was; everything else as a crash leaves it.
        for segment in layout::segments(&place.0).unwrap().into_iter().filter(|segment| segment.path != path) {
            fs::remove_file(segment.path).unwrap();
        }
        fs::remove_file(place.0.join(layout::HEAD)).unwrap();
        let mut spool = place.open();
        assert!(spool.commit(NOW).is_empty());
        append(&mut spool, 1);
        drop(spool);
        let entries = place.entries(Class::Data);
        assert_eq!(entries.len(), 4, "{torn:?}");
        assert_chained(&entries);
        let notes = place.entries(Class::Administration).join("\n");
        assert!(notes.contains("audit.recovered") && notes.contains("\"after_seq\":3"), "{notes}");
    }
}

#[test]
fn an_empty_new_segment_is_no_loss() {
    let place = Place::new();
    let small = Settings { segment_bytes: 1, ..Settings::default() };
    let mut spool = place.open_with(small);
    append(&mut spool, 2);
    append(&mut spool, 2);
    drop(spool);
    for begun in ["", "{\"segment\":1,\"cha"] {
        fs::write(Segment::new(&place.0, Class::Data, 5).path, begun).unwrap();
        let mut spool = place.open_with(small);
        assert!(spool.commit(NOW).is_empty());
        assert_eq!(spool.committed(Class::Data).last, 4);
        drop(spool);
    }
    let mut spool = place.open_with(small);
    append(&mut spool, 1);
    assert_chained(&place.entries(Class::Data));
    assert_eq!(place.entries(Class::Data).len(), 5);
}

#[test]
fn missing_signed_entries_leave_a_permanent_gap() {
    let place = Place::new();
    let mut spool = place.open();
    append(&mut spool, 5);
    spool.sign_heads(NOW).unwrap();
    let path = layout::segments(&place.0).unwrap()[0].path.clone();
    drop(spool);
    let text = fs::read_to_string(&path).unwrap();
    let shorter: String = text.split_inclusive('\n').take(4).collect();
    fs::write(&path, &shorter).unwrap();
    let mut spool = place.open();
    append(&mut spool, 1);
    drop(spool);
    let entries = place.entries(Class::Data);
    let numbers: Vec<_> = entries.iter().map(|line| Entry::parse(line.as_bytes()).unwrap().seq.unwrap()).collect();
    assert_eq!(numbers, [1, 2, 3, 6]);
    assert_eq!(fs::read_to_string(&path).unwrap(), shorter, "the evidence is as it was found");
    let notes = place.entries(Class::Administration).join("\n");
    assert!(notes.contains("audit.missing") && notes.contains("\"first\":4,\"last\":5"), "{notes}");
}

#[test]
fn entries_added_to_a_closed_chain_are_not_part_of_it() {
    let place = Place::new();
    let mut spool = place.open();
    append(&mut spool, 3);
    spool.close(NOW).unwrap();
    let path = layout::segments(&place.0).unwrap()[0].path.clone();
    let text = fs::read_to_string(&path).unwrap();
    let open: String = text.split_inclusive('\n').take(4).collect();
    let last = place.entries(Class::Data).pop().unwrap();
    let mut forged = Vec::new();
    read(9, NOW).write(Class::Data, &Head { last: 3, hash: sha256(last.as_bytes()) }, &mut forged);
    fs::write(&path, [open.as_bytes(), &forged, b"\n"].concat()).unwrap();
    let findings = crate::verify::spool(&place.0, &keys().public(), &[], &mut |_| {}).unwrap();
    assert!(!findings.problems.is_empty());
    let mut spool = place.open();
    append(&mut spool, 1);
    drop(spool);
    assert!(place.entries(Class::Administration).join("").contains("audit.reopened"));
    let findings = crate::verify::spool(&place.0, &keys().public(), &[], &mut |_| {}).unwrap();
    assert!(!findings.problems.is_empty(), "what was forged is not signed by the next start");
}

/// A crash between the header of a segment and its first entry.
#[test]
fn a_segment_without_entries_is_continued() {
    let place = Place::new();
    let small = Settings { segment_bytes: 1, ..Settings::default() };
    let mut spool = place.open_with(small);
    append(&mut spool, 2);
    append(&mut spool, 2);
    drop(spool);
    let path = Segment::new(&place.0, Class::Data, 3).path;
    let header = fs::read_to_string(&path).unwrap().split_inclusive('\n').next().unwrap().to_owned();
    fs::write(&path, header).unwrap();
    // As if the crash had happened before HEAD was signed again.
    fs::remove_file(place.0.join(layout::HEAD)).unwrap();
    for _ in 0..2 {
        let spool = place.open_with(small);
        assert_eq!(spool.committed(Class::Data).last, 2);
        spool.close(NOW).unwrap();
    }
    let mut spool = place.open_with(small);
    spool.shipped(Class::Data, 2, 0, NOW).unwrap();
    append(&mut spool, 3);
    append(&mut spool, 1);
    assert_chained(&place.entries(Class::Data));
    assert_eq!(place.entries(Class::Data).len(), 6);
}

#[test]
fn a_chain_without_segments_continues_without_head() {
    let place = Place::new();
    let mut spool = place.open();
    spool.append(&read(1, Time(NOW.0 - 400 * 86_400_000_000)));
    assert!(spool.commit(NOW).is_empty());
    spool.close(NOW).unwrap();
    let mut spool = place.open();
    let oldest = |_| Time(NOW.0 - 86_400_000_000);
    let expired = spool.expired(NOW, oldest, |_, _| Ok(false)).unwrap();
    spool.drop_expired(&expired, NOW).unwrap();
    assert!(place.entries(Class::Data).is_empty());
    drop(spool);
    fs::remove_file(place.0.join(layout::HEAD)).unwrap();
    let spool = place.open();
    assert_eq!(spool.committed(Class::Data).last, 1);
}

#[test]
fn unverifiable_segments_are_not_dropped_as_expired() {
    let place = Place::new();
    let mut spool = place.open_with(Settings { segment_bytes: 1, ..Settings::default() });
    for _ in 0..3 {
        spool.append(&read(1, Time(NOW.0 - 400 * 86_400_000_000)));
        assert!(spool.commit(NOW).is_empty());
    }
    let first = Segment::new(&place.0, Class::Data, 1).path;
    for spoilt in [String::new(), fs::read_to_string(&first).unwrap().replace("data.read", "data.reaD")] {
        fs::write(&first, spoilt).unwrap();
        assert_eq!(spool.expired(NOW, |_| NOW, |_, _| Ok(false)).unwrap(), []);
    }
}

#[test]
fn only_the_oldest_shipped_segment_is_dropped() {
    let place = Place::new();
    let small = Settings { segment_bytes: 1, max_bytes: 20_000 };
    let mut spool = place.open_with(small);
    let mut written = 0;
    let full = loop {
        spool.append(&read(written, NOW));
        let failed = spool.commit(NOW);
        if let Some((_, e)) = failed.into_iter().next() {
            break e;
        }
        written += 1;
    };
    assert!(matches!(full, SpoolError::Full), "{full}");
    assert!(written > 5 && spool.bytes() <= small.max_bytes);
    spool.shipped(Class::Data, 3, 0, NOW).unwrap();
    append(&mut spool, 1);
    assert!(spool.floor(Class::Data) > 1 && spool.floor(Class::Data) <= 4);
    let floor = spool.floor(Class::Data);
    spool.close(NOW).unwrap();
    let spool = place.open_with(small);
    assert_eq!(spool.floor(Class::Data), floor);
    assert_eq!(spool.committed(Class::Data).last, u64::try_from(written).unwrap() + 1);
}

#[test]
fn unauthenticated_clients_fill_at_most_half_of_the_spool() {
    let place = Place::new();
    let mut spool = place.open_with(Settings { segment_bytes: 1000, max_bytes: 10_000 });
    let shed = Draft { event: EventType::Shed, ..read(1, NOW) };
    while spool.commit(NOW).is_empty() {
        spool.append(&shed);
    }
    assert!(spool.bytes() <= 5_000);
    append(&mut spool, 3);
}

#[test]
fn a_failed_commit_has_no_effect() {
    let place = Place::new();
    let mut spool = place.open();
    append(&mut spool, 2);
    let path = layout::segments(&place.0).unwrap()[0].path.clone();
    let away = place.0.join("away");
    fs::rename(&path, &away).unwrap();
    spool.append(&read(9, NOW));
    let failed = spool.commit(NOW);
    assert!(matches!(failed.as_slice(), [(Class::Data, SpoolError::Gone(_))]), "{failed:?}");
    assert_eq!(spool.committed(Class::Data).last, 2);
    append(&mut spool, 1);
    fs::rename(&away, &path).unwrap();
    assert_chained(&place.entries(Class::Data));
}

#[test]
fn retention_drops_only_older_entries_at_the_beginning() {
    let place = Place::new();
    let mut spool = place.open_with(Settings { segment_bytes: 1, ..Settings::default() });
    let day = 86_400_000_000;
    for age in [40, 35, 31, 29, 1] {
        let then = Time(NOW.0 - age * day);
        spool.append(&Draft { event: EventType::Shed, ..read(1, then) });
        spool.append(&read(1, then));
        assert!(spool.commit(then).is_empty());
    }
    let oldest = |class| Time(NOW.0 - if class == Class::Security { 30 * day } else { 365 * day });
    let expired = spool.expired(NOW, oldest, |_, _| Ok(false)).unwrap();
    assert_eq!(
        expired.iter().map(|d| (d.class, d.first, d.last)).collect::<Vec<_>>(),
        [(Class::Security, 1, 1), (Class::Security, 2, 2), (Class::Security, 3, 3)]
    );
    let held =
        spool.expired(NOW, oldest, |_, path| Ok(fs::read_to_string(path).unwrap().contains("\"seq\":2,"))).unwrap();
    assert_eq!(held.len(), 1, "what is held is kept, and what follows it");
    spool.drop_expired(&expired, NOW).unwrap();
    assert_eq!(place.entries(Class::Security).len(), 2);
    assert_eq!(place.entries(Class::Data).len(), 5);
    spool.close(NOW).unwrap();
    assert_eq!(place.open().floor(Class::Security), 4);
}

#[test]
fn an_erased_subject_has_no_keys_on_disk() {
    let place = Place::new();
    let mut spool = place.open();
    let keys = keys();
    let (_, ann) = keys.new_data_key("u_ann").unwrap();
    let (_, bob) = keys.new_data_key("u_bob").unwrap();
    spool.add_key(Class::Data, &ann);
    append(&mut spool, 1);
    spool.add_key(Class::Data, &bob);
    append(&mut spool, 1);
    spool.add_key(Class::Data, &ann);
    assert_eq!(spool.forget(&["u_ann".to_owned()]).unwrap(), 2);
    append(&mut spool, 1);
    let kept = fs::read_to_string(layout::segments(&place.0).unwrap()[0].keys()).unwrap();
    assert!(!kept.contains(&ann.wrapped) && kept.contains(&bob.wrapped), "{kept}");
}
