use super::*;
use outrigger_policy::lease::{self, UsageReport};
use outrigger_policy::tier::Multiplier;
use std::time::Duration;

const SECOND: u64 = 1_000_000_000;

fn quota(rate: &str, burst: u32) -> Quota {
    Quota::new(rate.parse().unwrap(), burst, Multiplier::ONE).unwrap()
}

fn law(mode: Mode, machines: u32, now: u64) -> Law {
    Law { mode, machines, now }
}

fn cell_of(cells: &Cells, tag: u64) -> usize {
    cells.find_or_claim(tag, || Some([tag, 1])).unwrap()
}

fn asking(cells: &Cells) -> Vec<usize> {
    let mut all = Vec::new();
    cells.asking(|index| all.push(index));
    all
}

#[test]
fn spending_requests_one_sync_and_half_a_lease_an_urgent_one() {
    let cells = Cells::new(100);
    let (quota, law) = (quota("60/1m", 20), law(Mode::Shared, 2, SECOND));
    let index = cell_of(&cells, 7 << 32);
    assert_eq!(cells.find(7 << 32), Some(index));
    for _ in 0..5 {
        cells.spend(index, quota, 1, law).unwrap();
    }
    assert_eq!((cells.cell(index).asks(), asking(&cells), asking(&cells)), (Asks::Soon, vec![index], vec![]));
    cells.spend(index, quota, 1, law).unwrap();
    assert_eq!((cells.cell(index).asks(), asking(&cells)), (Asks::Now, vec![index]));
    // The lease is half of what remains.
    for _ in 0..4 {
        cells.spend(index, quota, 1, law).unwrap();
    }
    assert_eq!(cells.spend(index, quota, 1, law).unwrap_err().retry_after, lease::SETTLES_IN);
    // A sync reads the usage of others; usage in the meantime remains debt.
    let cell = cells.cell(index);
    cell.heard();
    cells.spend(index, quota, 1, law).map(drop).unwrap_err();
    cell.settled(10, SECOND + 18 * SECOND);
    assert_eq!(cells.standing_of(index, quota, law).remaining, 2);
    cells.spend(index, quota, 1, law).unwrap().take_back();
    assert_eq!(cell.account().debt, 0);
    assert_eq!(cell.quota(), Some(quota));
}

#[test]
fn a_machine_without_redis_continues_from_its_last_known_state() {
    let cells = Cells::new(100);
    let quota = quota("60/1m", 60);
    let index = cell_of(&cells, 7 << 32);
    let cell = cells.cell(index);
    let mut spent = 0;
    while cells.spend(index, quota, 1, law(Mode::Shared, 3, SECOND)).is_ok() {
        spent += 1;
    }
    assert_eq!(spent, 20);
    // Others have spent 25, and the sync has read that.
    cell.settled(15, SECOND + 40 * SECOND);
    cell.stand_alone(3, SECOND);
    let alone = law(Mode::Degraded, 3, SECOND);
    let mut count = 0;
    while cells.spend(index, quota, 1, alone).is_ok() {
        count += 1;
    }
    // Of the 20 that remain, three times the debt leaves five; the share is a third of five.
    assert_eq!(count, 1);
    assert_eq!(cells.look(index, quota, 1, alone).unwrap_err().retry_after, Duration::from_secs(1));
    assert_eq!(cell.remaining_debt(quota, 3, SECOND), 6);
    // A key does not wait for longer than its lowered quota says.
    let lower = Quota::from_parts(SECOND, 2);
    cell.keep_within(lower, 3, SECOND);
    assert!(cell.account().told <= SECOND + 7 * SECOND);
}

#[test]
fn only_idle_cells_are_evicted_and_reused() {
    let cells = Cells::new(8);
    let quota = quota("60/1m", 60);
    let index = cell_of(&cells, 7 << 32);
    cells.spend(index, quota, 1, law(Mode::Shared, 1, SECOND)).unwrap();
    let cell = cells.cell(index);
    cell.heard();
    assert!(!cell.is_idle(SECOND), "it owes");
    cell.settled(1, 2 * SECOND);
    assert!(!cell.is_idle(SECOND) && cell.is_idle(2 * SECOND));
    cells.leave(index);
    assert_eq!(cells.find(7 << 32), None);
    cells.free(index);
    assert_eq!((cell.account(), cell.name(), cell.quota().is_some()), (Account::default(), None, true));
    // As many others as fit have a cell each; the next ones get an error.
    let tag = |n: u64| outrigger_identity::hash::mix(n);
    let fitted = (1..1000).filter(|n| cells.find_or_claim(tag(*n), || Some([*n, *n])).is_ok()).count();
    assert_eq!(fitted, cells.room());
    assert_eq!(cells.find_or_claim(tag(5000), || Some([1, 1])), Err(NoCell::Full));
    assert_eq!(cells.find_or_claim(tag(5000), || None), Err(NoCell::Nameless));
}

#[test]
fn two_threads_on_one_key_spend_no_more_than_the_lease_and_lose_nothing() {
    let cells = Cells::new(100);
    let quota = quota("1000000/1s", 1_000_000);
    let index = cell_of(&cells, 7 << 32);
    let hammer = || (0..200_000).filter(|_| cells.spend(index, quota, 1, law(Mode::Shared, 5, SECOND)).is_ok()).count();
    let mut settled = 0;
    let mut told = None;
    let admitted = std::thread::scope(|scope| {
        let threads = [scope.spawn(hammer), scope.spawn(hammer)];
        while threads.iter().any(|thread| !thread.is_finished()) {
            let cell = cells.cell(index);
            let debt = cell.account().debt;
            let after = lease::settle(told, UsageReport { debt, ..UsageReport::default() }, quota, 5, SECOND);
            cell.settled(debt, after);
            (settled, told) = (settled + debt, Some(after));
        }
        threads.map(|thread| thread.join().unwrap()).iter().sum::<usize>()
    });
    let debt = cells.cell(index).account().debt;
    assert_eq!(i64::from(settled + debt), admitted as i64);
    // Syncs are sequential, so at most one lease of two hundred thousand is spent between two of them.
    assert!(admitted <= 1_200_000 && admitted > 100_000, "{admitted}");
}

#[test]
fn a_key_takes_ninety_bytes() {
    let cells = Cells::new(100_000);
    let bytes = size_of_val(&*cells.tags) + size_of_val(&*cells.cells) + size_of_val(&*cells.dirty);
    assert!(bytes <= 91 * 100_000, "{bytes}");
}
