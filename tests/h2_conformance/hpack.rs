//! RFC 7541: header compression. A decoding error ends the connection with `COMPRESSION_ERROR` (RFC 9113 section 4.3).

use super::case::{Case, Expect, OK, Response, any, case};
use super::wire::*;

const COMPRESSION: Expect = Expect::Connection(&[COMPRESSION_ERROR]);

/// `:method: GET`, `:scheme: http` and `:path: /` of the static table, and an authority without indexing.
fn start() -> Vec<u8> {
    [vec![0x82, 0x86, 0x84], literal(0x00, ":authority", "h2.test")].concat()
}

fn request(stream: u32, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, block)
}

/// A request with `more` at the end of its header block.
fn ending(more: &[u8]) -> [Vec<u8>; 1] {
    [request(1, &[start(), more.to_vec()].concat())]
}

/// The same with `more` at the beginning.
fn beginning(more: &[u8]) -> [Vec<u8>; 1] {
    [request(1, &[more.to_vec(), start()].concat())]
}

pub fn errors() -> Vec<Case> {
    let wrong = |section, name, bytes: &[Vec<u8>]| case(section, name, COMPRESSION, bytes);
    let with_value = |value: &[u8]| ending(&[&[0x00][..], &string("x"), value].concat());
    vec![
        wrong("hpack 6.1", "index 0", &ending(&[0x80])),
        wrong("hpack 2.3.3", "index beyond both tables", &ending(&[0x80 | 62])),
        wrong("hpack 2.3.3", "large index", &ending(&integer(7, 0x80, 100_000))),
        wrong("hpack 2.3.3", "name index beyond both tables", &ending(&[integer(6, 0x40, 70), string("y")].concat())),
        wrong("hpack 5.1", "integer that is too large", &ending(&[&[0xff][..], &[0xff; 12], &[0x01]].concat())),
        wrong("hpack 5.1", "integer that does not end", &ending(&[0xff, 0x80])),
        wrong("hpack 5.2", "name beyond the block", &ending(&[0x00, 0x7e, b'x'])),
        wrong("hpack 5.2", "value beyond the block", &with_value(&[0x05, b'a'])),
        wrong("hpack 5.2", "literal without a value", &ending(&[0x00, 0x01, b'x'])),
        wrong("hpack 5.2", "Huffman padding of 8 bits", &with_value(&huffman(&[0x1f, 0xff]))),
        wrong("hpack 5.2", "Huffman padding of zeros", &with_value(&huffman(&[0x18]))),
        wrong("hpack 5.2", "Huffman EOS", &with_value(&huffman(&[0xff, 0xff, 0xff, 0xff]))),
        wrong("hpack 4.2", "table size over the limit", &beginning(&integer(5, 0x20, 4097))),
        wrong("hpack 4.2", "table size at the end of a block", &ending(&[0x20])),
        wrong("hpack 4.2", "table size within a block", &[request(1, &[&[0x82, 0x20][..], &start()[1..]].concat())]),
        wrong(
            "hpack 4.3",
            "index of an entry evicted by a table size",
            &[
                request(1, &[start(), literal(0x40, "x-a", "y")].concat()),
                request(3, &[vec![0x20], start(), vec![0x80 | 62]].concat()),
            ],
        ),
        wrong(
            "hpack 4.4",
            "entry that is larger than the table",
            &[request(1, &[start(), literal(0x40, "x-a", &"y".repeat(4096)), vec![0x80 | 62]].concat())],
        ),
    ]
}

fn seen_on(stream: u32) -> Expect {
    Expect::Served(stream, 200, |r| r.seen()["headers"]["x-a"] == "y")
}

pub fn encodings() -> Vec<Case> {
    let value = |r: &Response| r.seen()["headers"]["host"] == "www.example.com";
    let custom = |r: &Response| r.seen()["headers"]["custom-key"] == "custom-value";
    let example = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
    let custom_key = [0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f];
    let custom_value = [0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf];
    vec![
        case(
            "hpack C.4.1",
            "Huffman-coded authority",
            Expect::Served(1, 200, value),
            &[request(1, &[&[0x82, 0x86, 0x84, 0x41][..], &huffman(&example)].concat())],
        ),
        case(
            "hpack C.4.3",
            "Huffman-coded name and value",
            Expect::Served(1, 200, custom),
            &ending(&[&[0x40][..], &huffman(&custom_key), &huffman(&custom_value)].concat()),
        ),
        case("hpack 6.2.3", "literal never indexed", seen_on(1), &ending(&literal(0x10, "x-a", "y"))),
        case(
            "hpack 5.1",
            "integer with needless zeros",
            OK,
            &ending(&[&[0x00, 0x01, b'x', 0x7f, 0x80, 0x00][..], &[b'y'; 127]].concat()),
        ),
        case("hpack 6.1", "static entry without a value", OK, &ending(&[0x80 | 19])),
    ]
}

pub fn tables() -> Vec<Case> {
    let adding = |stream| request(stream, &[start(), literal(0x40, "x-a", "y")].concat());
    let using = |stream, index: u8| request(stream, &[start(), vec![0x80 | index]].concat());
    let bad = |block: Vec<u8>| request(1, &block);
    vec![
        case(
            "hpack 6.2.1",
            "entry of the dynamic table in the same block",
            seen_on(1),
            &ending(&[literal(0x40, "x-b", "y"), literal(0x40, "x-a", "y"), vec![0x80 | 63]].concat()),
        ),
        case("hpack 6.2.1", "entry of the dynamic table in the next request", seen_on(3), &[adding(1), using(3, 62)]),
        case(
            "hpack 2.3.2",
            "newest entry comes first",
            seen_on(3),
            &[request(1, &[start(), literal(0x40, "x-a", "y"), literal(0x40, "x-b", "z")].concat()), using(3, 63)],
        ),
        case(
            "hpack 2.2",
            "entry of a request that was malformed",
            seen_on(3),
            &[bad([start(), literal(0x00, "connection", "close"), literal(0x40, "x-a", "y")].concat()), using(3, 62)],
        ),
        case(
            "hpack 2.2",
            "entry after an upper-case name",
            seen_on(3),
            &[bad([start(), literal(0x00, "X-Upper", "y"), literal(0x40, "x-a", "y")].concat()), using(3, 62)],
        ),
        case(
            "hpack 2.2",
            "entry after a name that is not one",
            seen_on(3),
            &[bad([start(), literal(0x00, "x y", "y"), literal(0x40, "x-a", "y")].concat()), using(3, 62)],
        ),
        case("hpack 2.2", "entry of a stream that was reset", seen_on(3), &[adding(1), reset(1), using(3, 62)]),
        case(
            "hpack 2.2",
            "entry of trailers",
            seen_on(3),
            &[post(1, "/", &[]), request(1, &literal(0x40, "x-a", "y")), using(3, 62)],
        ),
        case(
            "hpack 2.2",
            "entry of a header list that is too large",
            seen_on(3),
            &[
                frame(HEADERS, END_STREAM, 1, &[start(), literal(0x00, "a", &"x".repeat(16_000))].concat()),
                frame(CONTINUATION, 0, 1, &literal(0x00, "b", &"x".repeat(16_000))),
                frame(CONTINUATION, 0, 1, &literal(0x00, "c", &"x".repeat(16_000))),
                frame(CONTINUATION, END_HEADERS, 1, &literal(0x40, "x-a", "y")),
                using(3, 62),
            ],
        ),
        case(
            "hpack 4.2",
            "table size of 0 and 4096 in front",
            OK,
            &beginning(&[integer(5, 0x20, 0), integer(5, 0x20, 4096)].concat()),
        ),
        case(
            "hpack 4.2",
            "table size after an entry",
            Expect::Served(3, 200, any),
            &[adding(1), request(3, &[integer(5, 0x20, 100), start(), vec![0x80 | 62]].concat())],
        ),
        case(
            "hpack 4.4",
            "entry that is larger than the table empties it",
            OK,
            &ending(&literal(0x40, "x-a", &"y".repeat(5000))),
        ),
    ]
}
