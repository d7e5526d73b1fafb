//! The fuzz targets of `fuzz/` with the committed inputs, and with a fixed number of changes of each: the same in each run.

#[path = "../../fuzz/src/targets.rs"]
mod targets;

use std::{fs, path::Path};

/// Changed inputs made of each committed one.
const CHANGES: u64 = 300;

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
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    for (name, target) in targets::ALL {
        let files = fs::read_dir(corpus.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut files: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
        files.sort();
        assert!(!files.is_empty(), "{name}");
        for file in files {
            let seed = fs::read(&file).expect("a file");
            target(&seed);
            for number in 1..=CHANGES {
                let (mut data, mut state) = (seed.clone(), number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
                change(&mut data, &mut state);
                let outcome = std::panic::catch_unwind(|| target(&data));
                assert!(
                    outcome.is_ok(),
                    "{name}: change {number} of {}: {:?}",
                    file.display(),
                    data.escape_ascii().to_string()
                );
            }
        }
    }
}
