//! Restores parts of a spool to an earlier state, like an attacker who can write to the directory but has no key.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use outrigger_policy::audit::{Draft, EventType, Outcome};

use super::tests::{NOW, Place, keys};
use super::*;
use crate::verify::{self, Findings};

/// One type of each class.
const TYPES: [EventType; 5] =
    [EventType::Shed, EventType::Login, EventType::Read, EventType::AdminAction, EventType::Delete];

type Files = BTreeMap<String, Vec<u8>>;

fn files(directory: &Path) -> Files {
    let named = |file: fs::DirEntry| (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap());
    fs::read_dir(directory).unwrap().map(|file| named(file.unwrap())).collect()
}

fn put(directory: &Path, files: &Files) {
    for file in fs::read_dir(directory).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    for (name, content) in files {
        fs::write(directory.join(name), content).unwrap();
    }
}

fn look(place: &Place) -> Findings {
    verify::spool(&place.0, &keys().public(), &[], &mut |_| ()).unwrap()
}

fn write(spool: &mut Spool, class: Class, now: Time) {
    let event = TYPES[class as usize];
    spool.append(&Draft::new(now.0 as u128, now, "m1", event, Outcome::Success, SYSTEM));
    assert!(spool.commit(now).is_empty());
}

/// A spool whose program was killed after some seconds of writing, and its files after each step.
fn history(place: &Place, segment_bytes: u64) -> (Vec<(Time, Files)>, Time) {
    let settings = Settings { segment_bytes, ..Settings::default() };
    let mut spool = place.open_with(settings);
    let mut steps = Vec::new();
    let mut now = NOW;
    for step in 0..40 {
        now.0 += 100_000;
        // Deletions start late, so that their chain can be removed as a whole.
        let classes = if step < 20 { 4 } else { 5 };
        write(&mut spool, Class::ALL[step % classes], now);
        write(&mut spool, Class::Administration, now);
        steps.push((now, files(&place.0)));
    }
    drop(spool);
    (steps, now)
}

/// Returns whether it is detected. Checks that verification before the next start, the start itself, and later
/// verification agree.
fn is_noticed(place: &Place, now: Time) -> bool {
    let is_found = !look(place).is_whole();
    let spool = Spool::open(&place.0, keys(), "m1", Settings::default(), Time(now.0 + 10_000_000)).unwrap();
    let is_alarm = !spool.alarms().is_empty();
    spool.close(Time(now.0 + 10_000_000)).unwrap();
    let is_found_later = !look(place).is_whole();
    assert_eq!((is_found, is_found_later), (is_alarm, is_alarm), "at once, at the start, after it");
    is_alarm
}

#[test]
fn rolled_back_chains_are_detected_while_another_continues() {
    for segment_bytes in [600, 1 << 20] {
        let place = Place::new();
        let (steps, now) = history(&place, segment_bytes);
        let last = steps.last().unwrap().1.clone();
        assert!(look(&place).is_whole());
        for (then, earlier) in [5, 22, 29].map(|step| &steps[step]) {
            // Keeps each subset of the five chains at its current state.
            for stays in 1..1u32 << Class::ALL.len() {
                let is_of = |name: &str| Class::ALL.into_iter().find(|class| name.starts_with(class.name()));
                let stays = |name: &str| is_of(name).is_some_and(|class| stays & (1 << class as u32) != 0);
                let mut mixed: Files = earlier.clone();
                mixed.retain(|name, _| !stays(name));
                mixed.extend(last.iter().filter(|(name, _)| stays(name)).map(|(n, c)| (n.clone(), c.clone())));
                let goes_on = Class::ALL.into_iter().filter(|class| stays(class.name())).any(|class| {
                    let own = |files: &Files| {
                        let of_class = files.iter().filter(|(name, _)| is_of(name) == Some(class));
                        of_class.map(|(_, content)| content.len()).sum::<usize>()
                    };
                    own(&last) > own(earlier)
                });
                if goes_on {
                    put(&place.0, &mixed);
                    assert!(is_noticed(&place, now), "{then} {:?}", mixed.keys());
                }
            }
        }
    }
}

#[test]
fn an_older_copy_of_everything_is_not_detectable_from_the_directory_alone() {
    let place = Place::new();
    let (steps, now) = history(&place, 1 << 20);
    put(&place.0, &steps[20].1);
    assert!(!is_noticed(&place, now), "docs/audit.md says that only anchors outside can tell");
}

#[test]
fn an_alarm_that_cannot_be_recorded_is_kept() {
    let place = Place::new();
    let (steps, now) = history(&place, 1 << 20);
    let last = steps.last().unwrap().1.clone();
    let mut mixed = last;
    mixed.insert(layout::HEAD.to_owned(), steps[10].1[layout::HEAD].clone());
    mixed.retain(|name, _| !name.starts_with("deletion"));
    put(&place.0, &mixed);
    // A directory blocks the path of the security chain's next segment.
    let spool = || Spool::open(&place.0, keys(), "m1", Settings::default(), Time(now.0 + 1_000_000));
    let security = layout::segments(&place.0).unwrap().into_iter().rfind(|s| s.class == Class::Security).unwrap();
    let count = layout::entries_behind(std::slice::from_ref(&security), 0).unwrap().len() as u64;
    let next = Segment::new(&place.0, Class::Security, count + 1).path;
    fs::create_dir(&next).unwrap();
    assert!(spool().is_err(), "and HEAD is as it was");
    fs::remove_dir(&next).unwrap();
    assert!(!spool().unwrap().alarms().is_empty());
    assert!(!look(&place).is_whole());
}

/// The bound on entries ahead of `HEAD` holds on disk at all times, for any pace of commits and any clock.
#[test]
fn the_disk_is_ahead_of_head_by_at_most_the_bound() {
    let place = Place::new();
    let mut spool = place.open();
    let mut now = NOW;
    for (step, ahead) in
        (0..400i64).zip([0, 10, 49_000, 60_000, 240_000, 251_000, 4_000_000, -2_000_000].into_iter().cycle())
    {
        now.0 += ahead;
        // Entries are created shortly before their commit, or shortly after the writer read the clock.
        let event = TYPES[step as usize % TYPES.len()];
        let time = Time(now.0 + (step % 7 - 3) * 100_000);
        spool.append(&Draft::new(step as u128, time, "m1", event, Outcome::Success, SYSTEM));
        assert!(spool.commit(now).is_empty());
        let findings = look(&place);
        assert!(findings.is_whole(), "step {step}: {:?}", findings.problems);
    }
}
