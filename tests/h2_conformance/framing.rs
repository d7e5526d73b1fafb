//! RFC 9113 sections 3.4, 4 and 6: the preface, frame sizes and each type of frame but WINDOW_UPDATE.

use super::case::{Case, Expect, NEIGHBOUR, OK, Response, Step, case, raw, settings_acks, steps};
use super::wire::*;

const PROTOCOL: Expect = Expect::Connection(&[PROTOCOL_ERROR]);
const FRAME_SIZE: Expect = Expect::Connection(&[FRAME_SIZE_ERROR]);

fn three_bytes(response: &Response) -> bool {
    response.seen()["body"]["bytes"] == 3
}

fn no_bytes(response: &Response) -> bool {
    response.seen()["body"]["bytes"] == 0
}

/// `get` with other flags and a payload around its header block.
fn odd_get(flags: u8, stream: u32, path: &str, before: &[u8], after: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM | flags, stream, &[before, &block(&with(path, &[])), after].concat())
}

pub fn preface() -> Vec<Case> {
    let empty = settings(&[(1, 0)]);
    let get = get(1, "/");
    let ping = frame(PING, 0, 0, &[0; 8]);
    vec![
        raw("3.4", "preface, SETTINGS and a request at once", OK, &[PREFACE, &empty, &get]),
        raw("3.4", "HTTP/1 instead of a preface", Expect::Closed, &[b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"]),
        raw("3.4", "preface with another end", Expect::Closed, &[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r", &empty]),
        raw("3.4", "PING before SETTINGS", PROTOCOL, &[PREFACE, &ping]),
        raw("3.4", "HEADERS before SETTINGS", PROTOCOL, &[PREFACE, &get]),
        raw(
            "3.4",
            "second preface",
            Expect::Connection(&[PROTOCOL_ERROR, FRAME_SIZE_ERROR]),
            &[PREFACE, &empty, PREFACE],
        ),
    ]
}

pub fn frames() -> Vec<Case> {
    let unknown = |size, stream| frame(0x7f, 0xff, stream, &vec![7; size]);
    let big = "x".repeat(17_000);
    let post = post(1, "/", &[]);
    let mut reserved = get(1, "/");
    reserved[5] |= 0x80;
    vec![
        case("4.1", "unknown type on stream 0", OK, &[unknown(9, 0), get(1, "/")]),
        case("4.1", "unknown type on an idle stream", OK, &[unknown(9, 1), get(1, "/")]),
        case("4.1", "unknown type between HEADERS and DATA", OK, &[post.clone(), unknown(9, 1), last_data(1, b"abc")]),
        case("4.1", "undefined flags of HEADERS", OK, &[odd_get(0xd2 & !PADDED & !WITH_PRIORITY, 1, "/", &[], &[])]),
        case("4.1", "undefined flags of PING", OK, &[frame(PING, 0xfe, 0, &[1; 8]), get(1, "/")]),
        case("4.1", "reserved bit of a stream id", OK, &[reserved]),
        case("4.2", "DATA of 16384 bytes", OK, &[post.clone(), last_data(1, &[0; 16384])]),
        case("4.2", "DATA of 16385 bytes", Expect::Error(1, &[FRAME_SIZE_ERROR]), &[post, last_data(1, &[0; 16385])]),
        case("4.2", "HEADERS over the size", FRAME_SIZE, &[headers(1, &with("/", &[("x", &big)]))]),
        case("4.2", "SETTINGS over the size", FRAME_SIZE, &[frame(SETTINGS, 0, 0, &vec![0; 16386])]),
        case("4.2", "unknown type over the size", FRAME_SIZE, &[unknown(16385, 0)]),
    ]
}

pub fn data_frames() -> Vec<Case> {
    let post = post(1, "/", &[]);
    let padded = |flags, payload: &[u8]| frame(DATA, PADDED | flags, 1, payload);
    let after_body = |bytes: &[u8]| [post.clone(), bytes.to_vec()];
    let check = |check| Expect::Served(1, 200, check);
    vec![
        case("6.1", "DATA on stream 0", PROTOCOL, &[data(0, b"abc")]),
        case("6.1", "DATA with padding", check(three_bytes), &after_body(&padded(END_STREAM, b"\x04abc\0\0\0\0"))),
        case("6.1", "DATA with a pad length of 0", check(three_bytes), &after_body(&padded(END_STREAM, b"\0abc"))),
        case("6.1", "DATA of padding only", check(no_bytes), &after_body(&padded(END_STREAM, b"\x03\0\0\0"))),
        case("6.1", "DATA with as much padding as payload", PROTOCOL, &after_body(&padded(0, b"\x04abc"))),
        case("6.1", "DATA with more padding than payload", PROTOCOL, &after_body(&padded(0, b"\xffabc"))),
        case(
            "6.1",
            "padded DATA without a pad length",
            Expect::Error(1, &[FRAME_SIZE_ERROR, PROTOCOL_ERROR]),
            &after_body(&padded(0, b"")),
        ),
        case(
            "6.1",
            "body in one-byte frames",
            check(three_bytes),
            &[post.clone(), data(1, b"a"), data(1, b"b"), data(1, b"c"), last_data(1, b"")],
        ),
    ]
}

pub fn headers_frames() -> Vec<Case> {
    let half = block(&with("/", &[]));
    let (first, second) = half.split_at(20);
    let open = |flags| frame(HEADERS, flags, 1, first);
    let rest = |stream| frame(CONTINUATION, END_HEADERS, stream, second);
    let between = |bytes: Vec<u8>| [open(END_STREAM), bytes, rest(1)];
    let bytes_apart: Vec<u8> = second.iter().take(4).flat_map(|byte| frame(CONTINUATION, 0, 1, &[*byte])).collect();
    let last = frame(CONTINUATION, END_HEADERS, 1, &second[4..]);
    vec![
        case("6.2", "HEADERS on stream 0", PROTOCOL, &[get(0, "/")]),
        case("6.2", "HEADERS with padding", OK, &[odd_get(PADDED, 1, "/", &[2], &[0, 0])]),
        case("6.2", "HEADERS with too much padding", PROTOCOL, &[odd_get(PADDED, 1, "/", &[255], &[])]),
        case(
            "6.2",
            "padded HEADERS without a pad length",
            Expect::Connection(&[FRAME_SIZE_ERROR, PROTOCOL_ERROR]),
            &[frame(HEADERS, PADDED | END_HEADERS, 1, &[])],
        ),
        case("6.2", "HEADERS with a priority", OK, &[odd_get(WITH_PRIORITY, 1, "/", &[0, 0, 0, 0, 16], &[])]),
        case(
            "6.2",
            "HEADERS with padding and a priority",
            OK,
            &[odd_get(WITH_PRIORITY | PADDED, 1, "/", &[1, 0x80, 0, 0, 3, 255], &[0])],
        ),
        case(
            "6.2",
            "HEADERS too short for their priority",
            FRAME_SIZE,
            &[frame(HEADERS, END_HEADERS | END_STREAM | WITH_PRIORITY, 1, &[0, 0, 0])],
        ),
        case("6.10", "header block in two frames", OK, &[open(END_STREAM), rest(1)]),
        case("6.10", "header block in several frames", OK, &[open(END_STREAM), bytes_apart, last]),
        case("6.10", "empty CONTINUATION", OK, &between(frame(CONTINUATION, 0, 1, &[]))),
        case("6.10", "CONTINUATION without HEADERS", PROTOCOL, &[rest(1)]),
        case("6.10", "CONTINUATION after END_HEADERS", PROTOCOL, &[post(1, "/", &[]), rest(1)]),
        case("6.10", "CONTINUATION on stream 0", PROTOCOL, &[open(END_STREAM), rest(0)]),
        case("6.10", "CONTINUATION on another stream", PROTOCOL, &[open(END_STREAM), rest(3)]),
        case("6.10", "PING within a header block", PROTOCOL, &between(frame(PING, 0, 0, &[0; 8]))),
        case("6.10", "DATA within a header block", PROTOCOL, &between(data(1, b"abc"))),
        case("6.10", "HEADERS within a header block", PROTOCOL, &between(get(3, "/"))),
        case("6.10", "SETTINGS within a header block", PROTOCOL, &between(settings(&[]))),
        case("6.10", "unknown type within a header block", PROTOCOL, &between(frame(0x7f, 0, 1, b"abc"))),
    ]
}

pub fn small_frames() -> Vec<Case> {
    let priority = |stream, payload: &[u8]| frame(PRIORITY, 0, stream, payload);
    let sized = |kind, stream, size| frame(kind, 0, stream, &vec![0; size]);
    let goaway =
        |stream, code: u8, more: &[u8]| frame(GOAWAY, 0, stream, &[&[0, 0, 0, 0, 0, 0, 0, code], more].concat());
    let open = post(1, "/", &[]);
    vec![
        case("6.3", "PRIORITY on an idle stream", OK, &[priority(1, &[0, 0, 0, 0, 9]), get(1, "/")]),
        case(
            "6.3",
            "PRIORITY on a closed stream",
            Expect::Served(3, 200, super::case::any),
            &[get(1, "/"), reset(1), priority(1, &[0, 0, 0, 0, 9]), get(3, "/")],
        ),
        case("6.3", "PRIORITY on stream 0", PROTOCOL, &[priority(0, &[0, 0, 0, 0, 9])]),
        case(
            "6.3",
            "PRIORITY of 4 bytes",
            Expect::Stream(1, &[FRAME_SIZE_ERROR]),
            &[open.clone(), sized(PRIORITY, 1, 4)],
        ),
        case(
            "6.3",
            "PRIORITY of 6 bytes",
            Expect::Stream(1, &[FRAME_SIZE_ERROR]),
            &[open.clone(), sized(PRIORITY, 1, 6)],
        ),
        case(
            "6.4",
            "RST_STREAM of an open stream",
            Expect::Served(3, 200, super::case::any),
            &[open.clone(), reset(1), get(3, "/")],
        ),
        case(
            "6.4",
            "RST_STREAM twice",
            Expect::Served(3, 200, super::case::any),
            &[open.clone(), reset(1), reset(1), get(3, "/")],
        ),
        case(
            "6.4",
            "RST_STREAM with an unknown code",
            Expect::Served(3, 200, super::case::any),
            &[open.clone(), frame(RST_STREAM, 0, 1, &[0xff; 4]), get(3, "/")],
        ),
        case("6.4", "RST_STREAM on stream 0", PROTOCOL, &[reset(0)]),
        case("6.4", "RST_STREAM on an idle stream", PROTOCOL, &[reset(1)]),
        case("6.4", "RST_STREAM of 3 bytes", FRAME_SIZE, &[open.clone(), sized(RST_STREAM, 1, 3)]),
        case("6.4", "RST_STREAM of 5 bytes", FRAME_SIZE, &[open.clone(), sized(RST_STREAM, 1, 5)]),
        case(
            "8.4",
            "PUSH_PROMISE of a client",
            PROTOCOL,
            &[
                open.clone(),
                frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2], &block(&with("/", &[]))[..]].concat()),
            ],
        ),
        steps("6.7", "PING is acknowledged", OK, vec![Step::Sync, Step::Sync, Step::Send(get(1, "/"))]),
        case("6.7", "PING ACK without a PING", OK, &[frame(PING, ACK, 0, &[9; 8]), get(1, "/")]),
        case("6.7", "PING on a stream", PROTOCOL, &[open.clone(), frame(PING, 0, 1, &[0; 8])]),
        case("6.7", "PING of 7 bytes", FRAME_SIZE, &[sized(PING, 0, 7)]),
        case("6.7", "PING of 9 bytes", FRAME_SIZE, &[sized(PING, 0, 9)]),
        case("6.8", "GOAWAY on a stream", PROTOCOL, &[open, goaway(1, 0, &[])]),
        case("6.8", "GOAWAY of 7 bytes", FRAME_SIZE, &[sized(GOAWAY, 0, 7)]),
        steps(
            "6.8",
            "response after the client's GOAWAY",
            Expect::Closed,
            vec![
                Step::Send([get(1, "/"), goaway(0, 0, b"debug data")].concat()),
                Step::Until(|frames| Response::of(frames, 1).statuses == [200]),
            ],
        ),
    ]
}

pub fn settings_frames() -> Vec<Case> {
    let then_get = |pairs: &[(u16, u32)]| [settings(pairs), get(1, "/")];
    vec![
        steps(
            "6.5",
            "SETTINGS are acknowledged",
            OK,
            vec![
                Step::Send(settings(&[]).repeat(2)),
                Step::Until(|frames| settings_acks(frames) == 3),
                Step::Send(get(1, "/")),
            ],
        ),
        case("6.5", "SETTINGS on a stream", PROTOCOL, &[frame(SETTINGS, 0, 1, &[])]),
        case("6.5", "SETTINGS of 5 bytes", FRAME_SIZE, &[frame(SETTINGS, 0, 0, &[0; 5])]),
        case("6.5", "SETTINGS ACK with a payload", FRAME_SIZE, &[frame(SETTINGS, ACK, 0, &[0, 3, 0, 0, 0, 9])]),
        case("6.5.2", "unknown settings", OK, &then_get(&[(0xabcd, u32::MAX), (0, 1)])),
        case("6.5.2", "ENABLE_PUSH of 2", PROTOCOL, &then_get(&[(2, 2)])),
        case("6.5.2", "ENABLE_PUSH of 0 and 1", OK, &then_get(&[(2, 0), (2, 1)])),
        case(
            "6.5.2",
            "INITIAL_WINDOW_SIZE over 2^31-1",
            Expect::Connection(&[FLOW_CONTROL_ERROR]),
            &then_get(&[(4, 1 << 31)]),
        ),
        case("6.5.2", "MAX_FRAME_SIZE of 16383", PROTOCOL, &then_get(&[(5, 16383)])),
        case("6.5.2", "MAX_FRAME_SIZE of 2^24", PROTOCOL, &then_get(&[(5, 1 << 24)])),
        case("6.5.2", "MAX_FRAME_SIZE of 2^24-1", OK, &then_get(&[(5, (1 << 24) - 1)])),
        case("6.5.2", "HEADER_TABLE_SIZE of 2^32-1", OK, &then_get(&[(1, u32::MAX), (1, 0)])),
        case("6.5.2", "MAX_CONCURRENT_STREAMS of 0", OK, &then_get(&[(3, 0)])),
        case("6.5.2", "SETTINGS twice in one frame", OK, &then_get(&[(4, 0), (4, 65_535)])),
    ]
}

pub fn stream_ids() -> Vec<Case> {
    vec![
        case("5.1.1", "even stream id", PROTOCOL, &[get(2, "/")]),
        case(
            "5.1.1",
            "decreasing stream id",
            Expect::Connection(&[PROTOCOL_ERROR, STREAM_CLOSED]),
            &[get(5, "/"), get(3, "/")],
        ),
        case("5.1.1", "skipped stream ids", Expect::Served(9, 200, super::case::any), &[get(1, "/"), get(9, "/")]),
        case(
            "5.1.1",
            "largest stream id",
            Expect::Connection(&[PROTOCOL_ERROR, STREAM_CLOSED]),
            &[get(0x7fff_ffff, "/"), get(NEIGHBOUR, "/")],
        ),
        case("5.1", "DATA on an idle stream", PROTOCOL, &[data(1, b"abc")]),
        case(
            "5.1",
            "DATA on a stream that was skipped",
            Expect::Error(1, &[PROTOCOL_ERROR, STREAM_CLOSED]),
            &[get(5, "/"), data(1, b"abc")],
        ),
        case(
            "5.1",
            "DATA on a half-closed stream",
            Expect::Error(1, &[STREAM_CLOSED]),
            &[get(1, "/hang"), data(1, b"abc")],
        ),
        case(
            "5.1",
            "HEADERS on a half-closed stream",
            Expect::Error(1, &[STREAM_CLOSED]),
            &[get(1, "/hang"), last_headers(1, &[("x", "y")])],
        ),
        steps(
            "5.1",
            "DATA on a closed stream",
            Expect::Error(1, &[STREAM_CLOSED]),
            vec![Step::Send(get(1, "/")), Step::End(1), Step::Send(data(1, b"abc"))],
        ),
        steps(
            "5.1",
            "HEADERS on a closed stream",
            Expect::Error(1, &[STREAM_CLOSED, PROTOCOL_ERROR]),
            vec![Step::Send(get(1, "/")), Step::End(1), Step::Send(get(1, "/"))],
        ),
        case(
            "5.1",
            "DATA after RST_STREAM",
            Expect::Error(1, &[STREAM_CLOSED]),
            &[post(1, "/", &[]), reset(1), data(1, b"abc")],
        ),
        case(
            "5.1",
            "HEADERS after RST_STREAM",
            Expect::Error(1, &[STREAM_CLOSED, PROTOCOL_ERROR]),
            &[post(1, "/", &[]), reset(1), last_headers(1, &[("x", "y")])],
        ),
        steps(
            "5.1",
            "WINDOW_UPDATE on a closed stream",
            OK,
            vec![Step::Send(get(1, "/")), Step::End(1), Step::Send(window_update(1, 9)), Step::Sync],
        ),
        steps(
            "5.1",
            "RST_STREAM on a closed stream",
            OK,
            vec![Step::Send(get(1, "/")), Step::End(1), Step::Send(reset(1)), Step::Sync],
        ),
    ]
}
