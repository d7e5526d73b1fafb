//! Blocks of a file to requests, for any bytes: a damaged file ends early, and says why.

use std::io::{self, Read};

use crate::encode::{BLOCK_HEADER_BYTES, HEADER_BYTES, entry};
use crate::request::{Applied, ClientKind, Facts, RecordedRequest, Shape};
use crate::{MAGIC, MOST_BLOCK_BYTES, MOST_SHAPES, MOST_TEXTS, checksum, varint};

/// Why a file cannot be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum TrafficError {
    /// The system's error.
    #[error("{0}")]
    Read(#[from] io::Error),
    /// The file has another header.
    #[error("it is no traffic record, or one of another version")]
    Foreign,
    /// A block is damaged.
    #[error("the block at byte {at} is damaged: {what}")]
    Damaged {
        /// Where the block begins.
        at: u64,
        /// The kind of damage.
        what: &'static str,
    },
}

/// Texts and shapes of a file, as far as it is read.
#[derive(Debug, Default)]
pub struct Dictionary {
    texts: Vec<Box<str>>,
    shapes: Vec<Shape>,
}

impl Dictionary {
    /// A text; empty if the number is unknown.
    pub fn text(&self, number: u32) -> &str {
        self.texts.get(number as usize).map_or("", |text| text)
    }

    /// All shapes so far.
    pub fn shapes(&self) -> &[Shape] {
        &self.shapes
    }
}

/// Reads a file, block by block.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    base_ns: u64,
    at: u64,
    block: Vec<u8>,
    dictionary: Dictionary,
}

impl<R: Read> Reader<R> {
    /// Reads the header. `None`: the file ends within it, as a file does that has just been made.
    ///
    /// # Errors
    /// [`TrafficError::Read`], [`TrafficError::Foreign`]
    pub fn open(mut from: R) -> Result<Option<Self>, TrafficError> {
        let mut header = [0; HEADER_BYTES];
        if !fill(&mut from, &mut header)? {
            return Ok(None);
        }
        let (magic, base) = header.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(TrafficError::Foreign);
        }
        let base_ns = base.try_into().map(u64::from_le_bytes).unwrap_or_default();
        let dictionary = Dictionary::default();
        Ok(Some(Self { from, base_ns, at: HEADER_BYTES as u64, block: Vec::new(), dictionary }))
    }

    /// Texts and shapes so far.
    pub const fn dictionary(&self) -> &Dictionary {
        &self.dictionary
    }

    /// Reads the next block and calls `each` with its requests. Returns false at the end of the file, or if the last block is incomplete.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub fn block(&mut self, mut each: impl FnMut(&RecordedRequest, &Dictionary)) -> Result<bool, TrafficError> {
        let mut header = [0; BLOCK_HEADER_BYTES];
        if !fill(&mut self.from, &mut header)? {
            return Ok(false);
        }
        let damaged = |at, what| Err(TrafficError::Damaged { at, what });
        let (length, sum) = header.split_at(4);
        let length = length.try_into().map_or(0, |bytes| u32::from_le_bytes(bytes) as usize);
        if length > MOST_BLOCK_BYTES {
            return damaged(self.at, "it is too long");
        }
        self.block.resize(length, 0);
        if !fill(&mut self.from, &mut self.block)? {
            return Ok(false);
        }
        if sum.try_into().map(u64::from_le_bytes).ok() != Some(checksum(&self.block)) {
            return damaged(self.at, "its checksum is wrong");
        }
        let mut rest = &self.block[..];
        let mut before_ns = self.base_ns;
        while !rest.is_empty() {
            match entry_of(&mut rest, &mut before_ns, &mut self.dictionary) {
                Some(Some(request)) => each(&request, &self.dictionary),
                Some(None) => {}
                None => return damaged(self.at, "an entry is invalid"),
            }
        }
        self.at += (BLOCK_HEADER_BYTES + length) as u64;
        Ok(true)
    }
}

/// Fills `buffer`; false if the input ends before.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

/// Takes an entry; `Some(None)` is a text or a shape, `None` an invalid one.
#[inline]
fn entry_of(rest: &mut &[u8], before_ns: &mut u64, dictionary: &mut Dictionary) -> Option<Option<RecordedRequest>> {
    let (&kind, after) = rest.split_first()?;
    *rest = after;
    match kind {
        entry::TEXT => {
            let (&length, after) = rest.split_first()?;
            let (text, after) = after.split_at_checked(length.into())?;
            if dictionary.texts.len() >= MOST_TEXTS {
                return None;
            }
            dictionary.texts.push(std::str::from_utf8(text).ok()?.into());
            *rest = after;
            Some(None)
        }
        entry::SHAPE => {
            let mut text = || {
                let number = varint::take(rest)?;
                (number < dictionary.texts.len() as u64).then_some(number as u32)
            };
            let shape = Shape { method: text()?, host: text()?, path: text()?, route: text()?, headers: text()? };
            if dictionary.shapes.len() >= MOST_SHAPES {
                return None;
            }
            dictionary.shapes.push(shape);
            Some(None)
        }
        entry::REQUEST => request_of(rest, before_ns, dictionary).map(Some),
        _ => None,
    }
}

fn request_of(rest: &mut &[u8], before_ns: &mut u64, dictionary: &Dictionary) -> Option<RecordedRequest> {
    let shape = varint::take(rest)?;
    let started_ns = before_ns.wrapping_add(varint::take_signed(rest)? as u64);
    *before_ns = started_ns;
    let (total_us, queued_us) = (varint::take(rest)?, varint::take(rest)?);
    let service_us = varint::take(rest)?.checked_sub(1);
    let status = u16::from_le_bytes(bytes(rest)?);
    let [modes, tier] = bytes(rest)?;
    let facts = Facts(u16::from_le_bytes(bytes(rest)?));
    let mut text = || {
        let number = varint::take(rest)?;
        (number <= dictionary.texts.len() as u64).then(|| (number as u32).checked_sub(1))
    };
    let (reason, limit) = (text()?, text()?);
    let [attempts, body_class] = bytes(rest)?;
    let client = u64::from_le_bytes(bytes(rest)?);
    let address = if modes & 1 << 6 == 0 { client } else { u64::from_le_bytes(bytes(rest)?) };
    let mode = |bits: u8| Applied::ALL.get(usize::from(bits & 3)).copied();
    (shape < dictionary.shapes.len() as u64).then_some(RecordedRequest {
        started_ns,
        total_us,
        queued_us,
        service_us,
        shape: shape as u32,
        status,
        reason,
        limit,
        tier,
        kind: ClientKind::ALL[usize::from(modes >> 4 & 3)],
        client,
        address,
        admission: mode(modes)?,
        resilience: mode(modes >> 2)?,
        facts,
        attempts,
        body_class,
    })
}

fn bytes<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::{Encoder, header};
    use crate::request::OptionalText;
    use crate::shapes::{Described, Shapes};
    use proptest::prelude::*;

    const BASE: u64 = 1_700_000_000_000_000_000;

    fn read(file: &[u8]) -> Result<Vec<RecordedRequest>, TrafficError> {
        let mut all = Vec::new();
        let Some(mut reader) = Reader::open(file)? else { return Ok(all) };
        while reader.block(|request, _| all.push(*request))? {}
        Ok(all)
    }

    fn file(requests: &[RecordedRequest]) -> Vec<u8> {
        let (mut out, mut shapes, mut encoder) = (header(BASE).to_vec(), Shapes::default(), Encoder::new(BASE));
        for block in requests.chunks(3) {
            for request in block {
                let described = Described { method: "GET", host: "", path: "/a/~", route: "a", headers: "x-beta: 1" };
                let shape = shapes.shape(described, None, &mut encoder).unwrap();
                let reason = request.reason.and_then(|_| shapes.text("quota_exceeded", &mut encoder));
                let limit = request.limit.and_then(|_| shapes.text("medium", &mut encoder));
                encoder.request(&RecordedRequest { shape, reason, limit, ..*request });
            }
            out.extend_from_slice(encoder.finish());
            encoder.clear();
        }
        out
    }

    prop_compose! {
        fn any_request()(
            offset in -100_000_000_000_i64..100_000_000_000, times: (u32, u32, Option<u32>), status: u16, tier in 0..5_u8,
            kind in 0..4_usize, client: u64, address: Option<u64>, modes in (0..3_usize, 0..3_usize), facts in 0..256_u16,
            rest: (u8, u8, bool, bool),
        ) -> RecordedRequest {
            RecordedRequest {
                started_ns: BASE.wrapping_add(offset as u64),
                total_us: times.0.into(),
                queued_us: times.1.into(),
                service_us: times.2.map(u64::from),
                shape: 0,
                status,
                // Numbers as `file` gives them: five texts of the shape come first.
                reason: rest.2.then_some(5),
                limit: (rest.2 && rest.3).then_some(6),
                tier,
                kind: ClientKind::ALL[kind],
                client,
                address: address.unwrap_or(client),
                admission: Applied::ALL[modes.0],
                resilience: Applied::ALL[modes.1],
                facts: Facts(facts),
                attempts: rest.0,
                body_class: rest.1,
            }
        }
    }

    fn without_texts(request: &RecordedRequest) -> RecordedRequest {
        let there = |text: OptionalText| text.map(|_| 0);
        RecordedRequest { shape: 0, reason: there(request.reason), limit: there(request.limit), ..*request }
    }

    proptest! {
        #[test]
        fn requests_read_back_as_they_were(requests in proptest::collection::vec(any_request(), 0..20)) {
            let read = read(&file(&requests)).unwrap();
            let plain = |all: &[RecordedRequest]| all.iter().map(without_texts).collect::<Vec<_>>();
            prop_assert_eq!(plain(&read), plain(&requests));
        }

        #[test]
        fn a_file_that_ends_anywhere_has_its_first_requests(
            requests in proptest::collection::vec(any_request(), 1..12), share in 0.0..1.0,
        ) {
            let file = file(&requests);
            let cut = &file[..(file.len() as f64 * share) as usize];
            let read = read(cut).unwrap();
            prop_assert!(read.len() <= requests.len());
            prop_assert!(read.iter().zip(&requests).all(|(read, written)| read.client == written.client));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, requests in proptest::collection::vec(any_request(), 1..4)) {
            let _ = read(&bytes);
            // With a valid header and checksum, the entries themselves are read.
            let mut block = header(BASE).to_vec();
            block.extend((bytes.len() as u32).to_le_bytes());
            block.extend(checksum(&bytes).to_le_bytes());
            block.extend(&bytes);
            let _ = read(&block);
            let mut file = file(&requests);
            for (at, byte) in bytes.iter().enumerate() {
                let place = (at * 7919 + usize::from(*byte)) % file.len();
                file[place] ^= byte;
            }
            let _ = read(&file);
        }
    }

    #[test]
    fn a_damaged_block_is_named() {
        let mut file = file(&[RecordedRequest { started_ns: BASE, ..RecordedRequest::default() }]);
        let last = file.len() - 1;
        file[last] ^= 1;
        assert_eq!(read(&file).unwrap_err().to_string(), "the block at byte 16 is damaged: its checksum is wrong");
        assert!(matches!(read(b"something else, longer"), Err(TrafficError::Foreign)));
        assert!(read(b"OUTR").unwrap().is_empty());
    }

    #[test]
    fn a_request_takes_few_bytes() {
        let request = RecordedRequest {
            started_ns: BASE + 5_000_000,
            total_us: 12_345,
            service_us: Some(12_000),
            client: u64::MAX,
            address: u64::MAX,
            ..RecordedRequest::default()
        };
        let (one, many) = (file(&[request]).len(), file(&[request; 3]).len());
        assert!((many - one) / 2 <= 40, "{} bytes", (many - one) / 2);
    }
}
