//! RFC 9113 sections 5.2 and 6.9: flow control, in both directions.

use super::case::{Case, Expect, Frame, OK, Response, Step, any, case, steps};
use super::wire::*;

const FLOW_CONTROL: Expect = Expect::Connection(&[FLOW_CONTROL_ERROR]);
const PROTOCOL: Expect = Expect::Connection(&[PROTOCOL_ERROR]);
const MOST: u32 = 0x7fff_ffff;

/// The response's body on stream 1 has as many bytes.
fn has(frames: &[Frame], bytes: usize) -> bool {
    Response::of(frames, 1).body.len() == bytes
}

/// Frames of the server are no larger than it may send by default.
fn in_small_frames(response: &Response) -> bool {
    response.body.len() == 200_000 && response.frames.iter().all(|frame| frame.payload.len() <= 16_384)
}

fn whole(response: &Response) -> bool {
    response.body.len() == 200_000
}

pub fn window_updates() -> Vec<Case> {
    let open = post(1, "/", &[]);
    let sized = |stream, size| frame(WINDOW_UPDATE, 0, stream, &vec![1; size]);
    vec![
        case("6.9", "increment of 0 for the connection", PROTOCOL, &[window_update(0, 0)]),
        case(
            "6.9",
            "increment of 0 for a stream",
            Expect::Stream(1, &[PROTOCOL_ERROR]),
            &[open.clone(), window_update(1, 0)],
        ),
        case("6.9", "increment for an idle stream", PROTOCOL, &[window_update(1, 9)]),
        case("6.9", "WINDOW_UPDATE of 3 bytes", Expect::Connection(&[FRAME_SIZE_ERROR]), &[sized(0, 3)]),
        case("6.9", "WINDOW_UPDATE of 5 bytes", Expect::Connection(&[FRAME_SIZE_ERROR]), &[sized(0, 5)]),
        case("6.9", "reserved bit of an increment", OK, &[window_update(0, 0x8000_0009), get(1, "/")]),
        case("6.9.1", "window of the connection over 2^31-1", FLOW_CONTROL, &[window_update(0, MOST)]),
        case(
            "6.9.1",
            "window of a stream over 2^31-1",
            Expect::Stream(1, &[FLOW_CONTROL_ERROR]),
            &[open.clone(), window_update(1, MOST)],
        ),
        case(
            "6.9.1",
            "largest windows",
            OK,
            &[window_update(0, MOST - 65_535), get(1, "/"), window_update(1, MOST - 65_535)],
        ),
        case(
            "6.9.2",
            "SETTINGS that overflow a window",
            FLOW_CONTROL,
            &[get(1, "/hang"), window_update(1, 9), settings(&[(4, MOST)])],
        ),
        case("6.9", "increment for a half-closed stream", OK, &[get(1, "/"), window_update(1, 9)]),
        case(
            "6.9",
            "increment for a stream that was reset",
            Expect::Served(3, 200, any),
            &[open, reset(1), window_update(1, 9), get(3, "/")],
        ),
    ]
}

pub fn windows() -> Vec<Case> {
    let served = Expect::Served(1, 200, whole);
    vec![
        case(
            "4.2",
            "frames of the server are of the default size",
            Expect::Served(1, 200, in_small_frames),
            &[window_update(0, 1 << 20), settings(&[(4, 1 << 20)]), get(1, "/large")],
        ),
        steps(
            "6.9.1",
            "window of the connection",
            served,
            vec![
                Step::Send([settings(&[(4, 1 << 20)]), get(1, "/large")].concat()),
                Step::Until(|frames| has(frames, 65_535)),
                Step::Sync,
                Step::Until(|frames| has(frames, 65_535)),
                Step::Send(window_update(0, 1 << 20)),
            ],
        ),
        steps(
            "6.9.1",
            "window of a stream",
            Expect::Served(1, 200, whole),
            vec![
                Step::Send([window_update(0, 1 << 20), get(1, "/large")].concat()),
                Step::Until(|frames| has(frames, 65_535)),
                Step::Sync,
                Step::Until(|frames| has(frames, 65_535)),
                Step::Send(window_update(1, 1 << 20)),
            ],
        ),
        steps(
            "6.9.2",
            "initial window of 10 bytes",
            Expect::Served(1, 200, whole),
            vec![
                Step::Send([settings(&[(4, 10)]), window_update(0, 1 << 20), get(1, "/large")].concat()),
                Step::Until(|frames| has(frames, 10)),
                Step::Send(window_update(1, 1)),
                Step::Until(|frames| has(frames, 11)),
                Step::Send(settings(&[(4, 1 << 20)])),
            ],
        ),
        steps(
            "6.9.2",
            "initial window of 0 that grows by SETTINGS",
            Expect::Served(1, 200, whole),
            vec![
                Step::Send([settings(&[(4, 0)]), window_update(0, 1 << 20), get(1, "/large")].concat()),
                Step::Until(|frames| Response::of(frames, 1).statuses == [200]),
                Step::Send(settings(&[(4, 1 << 20)])),
            ],
        ),
        steps(
            "6.9.2",
            "window that becomes negative",
            Expect::Served(1, 200, whole),
            vec![
                Step::Send([window_update(0, 1 << 20), get(1, "/large")].concat()),
                Step::Until(|frames| has(frames, 65_535)),
                Step::Send([settings(&[(4, 0)]), window_update(1, 65_535)].concat()),
                Step::Sync,
                Step::Until(|frames| has(frames, 65_535)),
                Step::Send(settings(&[(4, 1 << 20)])),
            ],
        ),
        steps(
            "5.2.2",
            "a stream without a window holds up no other",
            Expect::Served(3, 200, any),
            vec![
                Step::Send([window_update(0, 1 << 20), get(1, "/large")].concat()),
                Step::Until(|frames| has(frames, 65_535)),
                Step::Send(get(3, "/")),
            ],
        ),
    ]
}

pub fn uploads() -> Vec<Case> {
    vec![
        steps(
            "6.9.1",
            "DATA beyond the server's windows",
            Expect::Error(1, &[FLOW_CONTROL_ERROR]),
            vec![Step::Send(post(1, "/ignore", &[])), Step::Repeat(data(1, &[0; 16_384]), 1024)],
        ),
        steps(
            "6.9.1",
            "padding beyond the server's windows",
            Expect::Error(1, &[FLOW_CONTROL_ERROR]),
            vec![
                Step::Send(post(1, "/ignore", &[])),
                Step::Repeat(frame(DATA, PADDED, 1, &[&[250][..], &[0; 16_000]].concat()), 1024),
            ],
        ),
        upload_within_the_windows(),
    ]
}

/// A body of several windows is accepted when the client waits for WINDOW_UPDATE.
fn upload_within_the_windows() -> Case {
    let piece = data(1, &[0; 16_384]);
    let mut all = vec![Step::Send([post(1, "/", &[]), piece.repeat(3)].concat())];
    let updates: [fn(&[Frame]) -> bool; 4] =
        [|f| granted(f) >= 16_384, |f| granted(f) >= 32_768, |f| granted(f) >= 49_152, |f| granted(f) >= 65_536];
    for update in updates {
        all.push(Step::Until(update));
        all.push(Step::Send(piece.clone()));
    }
    all.push(Step::Send(last_data(1, b"")));
    steps(
        "6.9.1",
        "body of more than a window",
        Expect::Served(1, 200, |r| r.seen()["body"]["bytes"] == 7 * 16_384),
        all,
    )
}

/// Bytes by which the server has enlarged both windows.
fn granted(frames: &[Frame]) -> u32 {
    let of = |stream| -> u32 {
        let updates = frames.iter().filter(|frame| frame.kind == WINDOW_UPDATE && frame.stream == stream);
        updates.map(|frame| u32::from_be_bytes(frame.payload[..4].try_into().expect("4 bytes"))).sum()
    };
    of(0).min(of(1))
}
