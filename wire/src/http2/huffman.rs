//! The Huffman code of header compression (RFC 7541 section 5.2 and appendix B).

/// The length of each symbol's code; the last one is EOS. The code is canonical: symbols in the order of length and value have
/// consecutive codes.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28,
    28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15,
    6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20,
    20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23,
    24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22,
    22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27,
    24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26,
    26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

const SHORTEST: usize = 5;
const LONGEST: usize = 30;
const EOS: u16 = 256;
/// Codes up to this length are found by one lookup.
const QUICK: usize = 8;

/// The canonical code, computed from [`LENGTHS`].
struct Code {
    /// Symbols in the order of their codes.
    symbols: [u16; 257],
    /// For each length: the first code, and the position of its symbol.
    first: [(u32, u16); LONGEST + 2],
    /// For each byte: the symbol whose code it begins with, and the code's length; zero for longer codes.
    quick: [(u8, u8); 1 << QUICK],
}

static CODE: Code = code();

#[expect(clippy::cast_possible_truncation, reason = "there are 257 symbols, and quick ones are bytes")]
const fn code() -> Code {
    let mut code = Code { symbols: [0; 257], first: [(0, 0); LONGEST + 2], quick: [(0, 0); 1 << QUICK] };
    let (mut next, mut position, mut length) = (0_u32, 0_u16, 1);
    while length <= LONGEST + 1 {
        next <<= 1;
        code.first[length] = (next, position);
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                code.symbols[position as usize] = symbol as u16;
                if length <= QUICK {
                    let start = (next as usize) << (QUICK - length);
                    let mut at = start;
                    while at < start + (1 << (QUICK - length)) {
                        code.quick[at] = (symbol as u8, length as u8);
                        at += 1;
                    }
                }
                next += 1;
                position += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    code
}

/// Decodes `bytes` to the end of `out`; `None` if they are no encoding.
pub(super) fn decode(bytes: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (mut bits, mut len) = (0_u64, 0_usize);
    let mut rest = bytes.iter();
    loop {
        while len <= 56 {
            let Some(byte) = rest.next() else { break };
            bits |= u64::from(*byte) << (56 - len);
            len += 8;
        }
        let quick = CODE.quick[(bits >> (64 - QUICK)) as usize];
        if quick.1 > 0 && usize::from(quick.1) <= len {
            out.push(quick.0);
            bits <<= quick.1;
            len -= usize::from(quick.1);
            continue;
        }
        if len < QUICK {
            // Fewer bits than a byte are padding, the most significant bits of EOS.
            let padding = u64::MAX.checked_shl(u32::try_from(64 - len).ok()?).unwrap_or(0);
            return (bits == padding).then_some(());
        }
        let (symbol, length) = long(bits, len)?;
        out.push(u8::try_from(symbol).ok()?);
        bits <<= length;
        len -= length;
    }
}

/// The symbol at the start of `bits`, whose code is longer than [`QUICK`].
fn long(bits: u64, len: usize) -> Option<(u16, usize)> {
    let mut length = QUICK + 1;
    while length <= LONGEST && length <= len {
        let code = u32::try_from(bits >> (64 - length)).ok()?;
        let (first, position) = CODE.first[length];
        let count = u32::from(CODE.first[length + 1].1 - position);
        if code >= first && code - first < count {
            let symbol = CODE.symbols[usize::from(position) + (code - first) as usize];
            return (symbol != EOS).then_some((symbol, length));
        }
        length += 1;
    }
    None
}

const _: () = assert!(LENGTHS[EOS as usize] as usize == LONGEST && LENGTHS[b'0' as usize] as usize == SHORTEST);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Encodes by the definition: the slow counterpart of `decode`.
    fn encode(text: &[u8]) -> Vec<u8> {
        let mut bits = Vec::new();
        for byte in text {
            let length = usize::from(LENGTHS[usize::from(*byte)]);
            let position = CODE.symbols.iter().position(|symbol| *symbol == u16::from(*byte)).unwrap();
            let (first, start) = CODE.first[length];
            let code = first + u32::try_from(position).unwrap() - u32::from(start);
            bits.extend((0..length).rev().map(|bit| code >> bit & 1));
        }
        while bits.len() % 8 > 0 {
            bits.push(1);
        }
        bits.chunks(8).map(|byte| byte.iter().fold(0, |all, bit| all << 1 | *bit as u8)).collect()
    }

    fn decoded(bytes: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        decode(bytes, &mut out).map(|()| out)
    }

    #[test]
    fn examples_of_the_rfc() {
        for (text, bytes) in [
            ("www.example.com", &[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff][..]),
            ("no-cache", &[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]),
            ("302", &[0x64, 0x02]),
            ("private", &[0xae, 0xc3, 0x77, 0x1a, 0x4b]),
        ] {
            assert_eq!(decoded(bytes).unwrap(), text.as_bytes());
            assert_eq!(encode(text.as_bytes()), bytes);
        }
        assert_eq!(decoded(b"").unwrap(), b"");
    }

    #[test]
    fn wrong_padding_and_eos_are_errors() {
        for bytes in [&[0x1f, 0xff][..], &[0x18], &[0xff; 4], &[0xff], &[0xff, 0xff], &[0x00]] {
            assert_eq!(decoded(bytes), None, "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn every_text_is_decoded_as_it_was_encoded(text in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(decoded(&encode(&text)), Some(text));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = decoded(&bytes);
        }
    }
}
