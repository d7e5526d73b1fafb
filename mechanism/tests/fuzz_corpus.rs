//! The fuzz targets of `fuzz/` with the committed inputs, and with a fixed number of changes of each: the same in each run.

#[path = "../../fuzz/src/lib.rs"]
mod fuzz;

use std::{fs, path::Path};

use fuzz::targets::{ALL, Target};

/// The next number (xorshift).
fn next(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    usize::try_from(*state >> 33).expect("31 bits")
}

/// Flips, removes, repeats or inserts a few bytes.
fn change(data: &mut Vec<u8>, state: &mut u64) {
    const BYTES: [u8; 14] = *b"\0\r\n\t :;,0/\x7f\x80\xffA";
    for _ in 0..=next(state) % 4 {
        let at = next(state) % (data.len() + 1);
        let end = (at + next(state) % 8).min(data.len());
        match next(state) % 4 {
            0 if at < data.len() => data[at] ^= 1 << (next(state) % 8),
            1 => drop(data.drain(at..end)),
            2 => data.splice(at..at, data[at..end].to_vec()).for_each(drop),
            _ => data.insert(at, BYTES[next(state) % BYTES.len()]),
        }
    }
}

#[test]
fn committed_inputs_and_changes_of_them_fulfil_each_target() {
    // The slow ones at the same time as the others.
    let (slow, fast): (Vec<&Target>, Vec<&Target>) = ALL.iter().partition(|target| target.changes < 100);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| slow.into_iter().for_each(fulfils));
        fast.into_iter().for_each(fulfils);
        slow.join().expect("a property that does not hold");
    });
}

fn fulfils(target: &Target) {
    let Target { name, run, changes } = *target;
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
    let files = fs::read_dir(corpus).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut files: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{name}");
    for file in files {
        let seed = fs::read(&file).expect("a file");
        run(&seed);
        for number in 1..=changes {
            let (mut data, mut state) = (seed.clone(), number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            change(&mut data, &mut state);
            let outcome = std::panic::catch_unwind(|| run(&data));
            let (file, data) = (file.display(), data.escape_ascii());
            assert!(outcome.is_ok(), "{name}: change {number} of {file}: \"{data}\"");
        }
    }
}
