//! Files that the proxy reads at its next start: the snapshot of the state, and the traffic record.

use outrigger_policy::saved::Saved;
use outrigger_traffic::decode::{Dictionary, Reader};
use outrigger_traffic::encode::{self, BLOCK_HEADER_BYTES};
use outrigger_traffic::request::RecordedRequest;
use outrigger_traffic::{MOST_SHAPES, MOST_TEXTS, checksum};

/// A snapshot of the state is refused, or read as it would be written: no bytes make it panic, also those with a right checksum.
pub fn snapshot(data: &[u8]) {
    let _ = Saved::decode(data);
    let Ok(saved) = Saved::decode(&Saved::seal(1, 2, data)) else { return };
    assert!(
        saved.limits.len() * 16 + saved.bans.len() * 23 + saved.breakers.len() * 33 <= data.len(),
        "more than there was"
    );
    let written = saved.encode();
    let again = Saved::decode(&written).expect("it was read before");
    assert_eq!(again.encode(), written);
    let mut small = saved;
    let _ = small.fit(1 << 16);
    assert!(small.encode().len() <= 1 << 16 || data.len() < 1 << 16);
}

/// Any bytes are a traffic record, or the beginning of one. They are read as a file, and as the entries of a block.
pub fn traffic_record(data: &[u8]) {
    read_record(data);
    let mut file = encode::header(1_700_000_000_000_000_000).to_vec();
    file.extend((data.len() as u32).to_le_bytes());
    file.extend(checksum(data).to_le_bytes());
    file.extend_from_slice(data);
    read_record(&file);
}

/// Each request refers to a shape and to texts that were there before it, and takes at least some bytes.
fn read_record(file: &[u8]) {
    let Ok(Some(mut reader)) = Reader::open(file) else { return };
    let mut requests = 0;
    let mut each = |request: &RecordedRequest, dictionary: &Dictionary| {
        requests += 1;
        assert!((request.shape as usize) < dictionary.shapes().len().min(MOST_SHAPES));
        assert!(request.reason.is_none_or(|text| (text as usize) < MOST_TEXTS));
    };
    while matches!(reader.block(&mut each), Ok(true)) {}
    assert!(requests <= file.len() / BLOCK_HEADER_BYTES);
}
