use proptest::prelude::*;

use super::*;
use crate::abuse::Offence;
use crate::breaker::{Reason, SavedClient, SavedPosition, SavedSwitch};

fn switch() -> SavedSwitch {
    SavedSwitch { position: SavedPosition::Open { until: 9, length: 5, is_brief: false }, trips: 2, closed_at: 1 }
}

fn ban(who: &str, until: u64) -> SavedBan {
    SavedBan { who: who.to_owned(), ban: Ban { offence: Offence::NotFound, times: 3, since: 1, until } }
}

fn whole() -> Saved {
    let client = SavedClient { key: 7, failures: 3, is_for_probe: true, switch: switch() };
    let ramp = SavedSwitch { position: SavedPosition::Ramp { since: 3 }, ..switch() };
    let place = SavedBreaker { switch: ramp, clients: vec![client], ..SavedBreaker::default() };
    let breaker = SavedBreaker {
        switch: switch(),
        reason: Some(Reason::Probe),
        clients: vec![client; 2],
        places: vec![(4, place)],
    };
    Saved {
        machine: "m1".to_owned(),
        version: "0.1.0".to_owned(),
        unix_ns: 1_800_000_000_000_000_000,
        clock_ns: 1 << 50,
        fingerprint: 11,
        seed: Some([5; 16]),
        concurrency: Some(41.5),
        retries: Some(SavedBudget { tokens: -3.0, second: 8, retries: 3 }),
        breakers: vec![("default".to_owned(), breaker), ("reports".to_owned(), SavedBreaker::default())],
        bans: vec![ban("address:192.0.2.1", 70), ban("user:änn", 60)],
        limits: (1..100).map(|n| SavedKey { tag: n * 1_000_003, tat: n }).collect(),
    }
}

#[test]
fn the_checksum_is_crc_32() {
    assert_eq!(format::checksum(b"1234", b"56789"), 0xcbf4_3926);
}

#[test]
fn a_snapshot_is_read_as_it_was_written() {
    for saved in [whole(), Saved::default()] {
        assert_eq!(Saved::decode(&saved.encode()), Ok(saved));
    }
}

#[test]
fn a_later_version_may_add_a_part() {
    let saved = Saved { limits: Vec::new(), ..whole() };
    let payload = [Saved::payload(&saved.encode()), &[200, 3, 0, 0, 0, 1, 2, 3]].concat();
    assert_eq!(Saved::decode(&Saved::seal(saved.unix_ns, saved.clock_ns, &payload)), Ok(saved));
}

#[test]
fn a_torn_or_foreign_snapshot_is_refused_for_its_reason() {
    let bytes = whole().encode();
    for end in 1..bytes.len() {
        assert!(matches!(Saved::decode(&bytes[..end]), Err(Unusable::Torn(..))), "{end}");
    }
    let longer = [&bytes[..], b"x"].concat();
    assert!(matches!(Saved::decode(&longer), Err(Unusable::Torn(..))));
    assert_eq!(Saved::decode(b""), Err(Unusable::NotASnapshot));
    assert_eq!(Saved::decode(b"{\"bans\": []}"), Err(Unusable::NotASnapshot));
    let mut other = bytes.clone();
    other[8] = 9;
    assert_eq!(Saved::decode(&other), Err(Unusable::OtherFormat(9)));
    // Every changed byte is noticed, the times included.
    for at in (0..bytes.len()).filter(|at| !(8..10).contains(at)) {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        assert!(Saved::decode(&changed).is_err(), "{at}");
    }
    let saved = whole();
    assert_eq!(saved.check_machine("m1"), Ok(()));
    assert_eq!(saved.check_machine(""), Err(Unusable::OtherMachine("m1".to_owned(), String::new())));
}

#[test]
fn a_snapshot_has_an_age_unless_it_is_from_the_future() {
    let saved = whole();
    let age = |ns: i64| saved.age(saved.unix_ns.saturating_add_signed(ns));
    assert_eq!(age(5_000_000_000), Ok(Duration::from_secs(5)));
    assert_eq!(age(-5_000_000_000), Ok(Duration::ZERO), "a clock that was set back a little");
    assert_eq!(age(-61_000_000_000), Err(Unusable::Future(Duration::from_secs(61))));
}

#[test]
fn keys_never_push_out_bans_and_what_ends_first_is_left_out() {
    let mut saved = whole();
    saved.bans = (0..500).map(|n| ban(&format!("address:192.0.2.{n}"), n)).collect();
    saved.limits = (0..1_000_000).map(|tat| SavedKey { tag: tat + 1, tat }).collect();
    let left_out = saved.fit(SMALLEST);
    let bytes = saved.encode().len();
    assert!(bytes <= SMALLEST && bytes > SMALLEST - 64, "{bytes}");
    assert_eq!((left_out.bans, saved.bans.len()), (0, 500));
    assert_eq!(left_out.limits + saved.limits.len() as u64, 1_000_000);
    assert!(saved.limits.iter().all(|key| key.tat >= left_out.limits));

    saved.bans = (0..5000).map(|n| ban(&format!("address:192.0.2.{n}"), n)).collect();
    let left_out = saved.fit(SMALLEST);
    assert!(saved.encode().len() <= SMALLEST && left_out.bans > 0 && !saved.limits.is_empty());
    assert!(saved.bans.iter().all(|ban| ban.ban.until >= left_out.bans));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Saved::decode(&bytes);
    }

    #[test]
    fn no_payload_with_a_right_checksum_makes_it_panic(
        cut in 0..200_usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
    ) {
        let mut payload = Saved::payload(&whole().encode()).to_vec();
        payload.truncate(payload.len().saturating_sub(cut));
        for (at, byte) in changes {
            let at = at.index(payload.len() + 1);
            if let Some(changed) = payload.get_mut(at) {
                *changed = byte;
            }
        }
        let bytes = Saved::seal(1, 2, &payload);
        if let Ok(saved) = Saved::decode(&bytes) {
            prop_assert_eq!(Saved::decode(&saved.encode()).map(|again| again.limits.len()), Ok(saved.limits.len()));
            prop_assert!(saved.limits.capacity() * 16 <= bytes.len());
        }
    }

    #[test]
    fn a_moved_time_is_as_far_away_as_it_was(at in (1_u64 << 49)..(1 << 51), was in (1_u64 << 49)..(1 << 51), age in 0..(1_u64 << 40)) {
        let now = 1 << 52;
        let moved = Shift { was, now, age }.moved(at);
        prop_assert_eq!(i128::from(moved) - i128::from(now), i128::from(at) - i128::from(was) - i128::from(age));
    }

    #[test]
    fn no_time_makes_it_panic(at: u64, was: u64, now: u64, age: u64) {
        let _ = Shift { was, now, age }.moved(at);
    }
}
