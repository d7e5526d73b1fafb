//! The position in the list of documents, as an opaque text that a client sends back for the next page.

use jiff::Timestamp;
use ring::digest;
use uuid::Uuid;

/// The last document of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub created_at: Timestamp,
    pub id: Uuid,
}

/// The text is not a cursor of this app, or is truncated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cursor is damaged; leave it out to start from the newest document, or send `next_cursor` back unchanged")]
pub struct BadCursor;

const CHECK_BYTES: usize = 4;
/// The start of year 1. The app never returns an earlier date, and PostgreSQL rejects dates before 4714 BC. No upper
/// bound is needed: PostgreSQL accepts [`Timestamp`]'s maximum, in the year 9999.
const EARLIEST_MICROS: i64 = -62_135_596_800_000_000;

impl Cursor {
    /// The opaque text: microseconds, id and a checksum against typos, in hex.
    pub fn encode(&self) -> String {
        let mut bytes = self.created_at.as_microsecond().to_be_bytes().to_vec();
        bytes.extend_from_slice(self.id.as_bytes());
        bytes.extend_from_slice(&check(&bytes));
        hex(&bytes)
    }

    /// Parses the text.
    ///
    /// # Errors
    /// [`BadCursor`] if [`Self::encode`] did not write it.
    pub fn decode(text: &str) -> Result<Self, BadCursor> {
        let bytes = unhex(text).ok_or(BadCursor)?;
        let (micros, rest) = bytes.split_first_chunk::<8>().ok_or(BadCursor)?;
        let (id, sum) = rest.split_first_chunk::<16>().ok_or(BadCursor)?;
        let covered = bytes.get(..24).ok_or(BadCursor)?;
        if sum != check(covered) {
            return Err(BadCursor);
        }
        // The checksum has no secret, so a client can forge a cursor with any date.
        let micros = i64::from_be_bytes(*micros);
        if micros < EARLIEST_MICROS {
            return Err(BadCursor);
        }
        let created_at = Timestamp::from_microsecond(micros).map_err(|_| BadCursor)?;
        Ok(Self { created_at, id: Uuid::from_bytes(*id) })
    }
}

fn check(bytes: &[u8]) -> [u8; CHECK_BYTES] {
    let digest = digest::digest(&digest::SHA256, bytes);
    digest.as_ref().first_chunk().copied().unwrap_or_default()
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Decodes hex, or returns `None` if the text is not hex.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    digits.chunks_exact(2).map(|pair| Some(nibble(*pair.first()?)? << 4 | nibble(*pair.last()?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cursor(micros: i64, id: u128) -> Cursor {
        Cursor { created_at: Timestamp::from_microsecond(micros).unwrap(), id: Uuid::from_u128(id) }
    }

    fn forged(micros: i64, id: [u8; 16]) -> String {
        let mut bytes = micros.to_be_bytes().to_vec();
        bytes.extend_from_slice(&id);
        bytes.extend_from_slice(&check(&bytes));
        hex(&bytes)
    }

    proptest! {
        /// Every forged date is rejected or valid in PostgreSQL (4713 BC to 294276).
        #[test]
        fn a_forged_date_is_rejected_or_can_be_queried(micros: i64, near in -1000_i64..1000, id: [u8; 16]) {
            // The last whole second is the latest time that `from_microsecond` accepts.
            let (earliest, latest) = (EARLIEST_MICROS, Timestamp::MAX.as_second() * 1_000_000);
            for micros in [micros, micros >> 4, micros >> 8, earliest + near, latest.saturating_add(near)] {
                let is_ours = (earliest..=latest).contains(&micros);
                prop_assert_eq!(Cursor::decode(&forged(micros, id)).is_ok(), is_ours, "{}", micros);
            }
        }

        #[test]
        fn reads_back_what_it_wrote(micros in -1_000_000_000_000_000_i64..4_000_000_000_000_000, id: u128) {
            let cursor = cursor(micros, id);
            prop_assert_eq!(Cursor::decode(&cursor.encode()), Ok(cursor));
        }

        #[test]
        fn rejects_every_other_text(text in ".{0,80}") {
            prop_assert_eq!(Cursor::decode(&text), Err(BadCursor));
        }
    }

    #[test]
    fn one_wrong_digit_is_found() {
        let good = cursor(1_700_000_000_000_000, 7).encode();
        for at in 0..good.len() {
            let mut bad = good.clone().into_bytes();
            bad[at] = if bad[at] == b'0' { b'1' } else { b'0' };
            assert_eq!(Cursor::decode(std::str::from_utf8(&bad).unwrap()), Err(BadCursor));
        }
        assert_eq!(Cursor::decode(&good[..good.len() - 2]), Err(BadCursor));
    }
}
