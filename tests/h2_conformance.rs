//! HTTP/2 conformance on raw frames, by the sections of RFC 9113 and RFC 7541: malformed input must end the connection or only its
//! stream, as the RFC says, and everything else must be served.
//!
//! To add a case, add a line to its section's table. [`KNOWN`] lists the cases that fail today.

mod case;
mod floods;
mod flow;
mod framing;
mod hpack;
mod messages;
mod wire;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use case::{Case, Connection};

use crate::{
    backend::{Backend, Play},
    harness::{PATIENCE, Proxy},
};

/// Time limit of a case that is known to time out.
const KNOWN_PATIENCE: Duration = Duration::from_secs(1);

/// Cases that fail today in the same way.
struct Known {
    reason: &'static str,
    /// A part of what happens instead, as the failure says it.
    instead: &'static str,
    times_out: bool,
    cases: &'static [&'static str],
}

/// Cases that fail today. A case that passes, or fails in another way, must be removed from here.
const KNOWN: &[Known] = &[
    Known {
        reason: "h2 reports every malformed frame as PROTOCOL_ERROR",
        instead: "closed with GOAWAY Some(1), not [6]",
        times_out: false,
        cases: &[
            "HEADERS too short for their priority",
            "PING of 7 bytes",
            "PING of 9 bytes",
            "RST_STREAM of 3 bytes",
            "RST_STREAM of 5 bytes",
            "GOAWAY of 7 bytes",
            "SETTINGS of 5 bytes",
            "SETTINGS ACK with a payload",
            "WINDOW_UPDATE of 3 bytes",
            "WINDOW_UPDATE of 5 bytes",
        ],
    },
    Known {
        reason: "h2 reports every malformed SETTINGS as PROTOCOL_ERROR",
        instead: "closed with GOAWAY Some(1), not [3]",
        times_out: false,
        cases: &["INITIAL_WINDOW_SIZE over 2^31-1"],
    },
    Known {
        reason: "h2 reports HPACK errors as PROTOCOL_ERROR",
        instead: "closed with GOAWAY Some(1), not [9]",
        times_out: false,
        cases: &[
            "index 0",
            "large index",
            "index beyond both tables",
            "name index beyond both tables",
            "integer that is too large",
            "integer that does not end",
            "literal without a value",
            "name beyond the block",
            "value beyond the block",
            "Huffman EOS",
            "Huffman padding of 8 bits",
            "Huffman padding of zeros",
            "table size at the end of a block",
            "table size over the limit",
            "table size within a block",
            "index of an entry evicted by a table size",
            "entry that is larger than the table",
        ],
    },
    Known {
        reason: "h2 reports frames on a half-closed stream as PROTOCOL_ERROR",
        instead: "closed with GOAWAY Some(1), not [5]",
        times_out: false,
        cases: &["DATA on a half-closed stream", "HEADERS on a half-closed stream", "DATA after trailers"],
    },
    Known {
        reason: "h2 ends the connection where a stream error is enough",
        instead: "reset None, GOAWAY Some(1)",
        times_out: false,
        cases: &[
            "PRIORITY of 4 bytes",
            "PRIORITY of 6 bytes",
            "increment of 0 for a stream",
            "unknown pseudo-header",
            "method with a space",
            "empty method",
            "name in upper case",
            "empty name",
            "name with a space",
            "name with a colon",
            "name with a control character",
            "name with DEL",
            "name with a byte over 0x7f",
            "value with NUL",
            "value with CR",
            "value with LF",
            "upper case in trailers",
            "entry after an upper-case name",
            "entry after a name that is not one",
        ],
    },
    Known {
        reason: "neither h2 nor Outrigger checks for it",
        instead: "statuses [200]",
        times_out: false,
        cases: &[
            "empty scheme",
            "asterisk without OPTIONS",
            "path with a fragment",
            "value that starts with a space",
            "value that ends with a tab",
            "pseudo-header in trailers",
        ],
    },
    Known {
        reason: "`client.max_fields` does not hold for HTTP/2",
        instead: "statuses [200]",
        times_out: false,
        cases: &["200 headers"],
    },
    Known {
        reason: "h2 does not require SETTINGS first",
        instead: "not closed in time; GOAWAY None",
        times_out: true,
        cases: &["HEADERS before SETTINGS", "PING before SETTINGS"],
    },
    Known {
        reason: "Pingora drops interim responses over HTTP/2",
        instead: "served differently: statuses [200], 4 bytes",
        times_out: false,
        cases: &["interim response"],
    },
    Known {
        reason: "Pingora drops interim responses over HTTP/2, so a client that waits for 100 waits in vain",
        instead: "timed out between two steps",
        times_out: true,
        cases: &["100 before the body"],
    },
];

/// Plays the cases on `clients` connections at a time; returns a line for each that does not end as [`KNOWN`] says.
fn problems(app: &Backend, address: SocketAddr, cases: &[Case], clients: usize) -> Vec<String> {
    let (next, problems) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let play = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
            if let Some(problem) = problem(app, address, case) {
                problems.lock().unwrap().push(problem);
            }
        }
    };
    thread::scope(|scope| (0..clients).for_each(|_| _ = scope.spawn(play)));
    problems.into_inner().unwrap()
}

fn problem(app: &Backend, address: SocketAddr, case: &Case) -> Option<String> {
    let known = KNOWN.iter().find(|known| known.cases.contains(&case.name));
    let patience = if known.is_some_and(|known| known.times_out) { KNOWN_PATIENCE } else { PATIENCE };
    let mut connection =
        if case.is_raw { Connection::open(address, patience) } else { Connection::greeted(address, patience) };
    let is_hidden = |path: &String| match app.requests_to(path) {
        0 => Ok(()),
        _ => Err("the app got the request".to_owned()),
    };
    let outcome = connection.fulfils(case).and_then(|()| case.hidden.as_ref().map_or(Ok(()), is_hidden));
    let Case { name, section, .. } = case;
    match (outcome, known) {
        (Err(what), None) => Some(format!("{section}: {name}: {what}")),
        (Ok(()), Some(_)) => Some(format!("{section}: {name}: passes; remove it from KNOWN")),
        (Err(what), Some(known)) if !what.contains(known.instead) => {
            Some(format!("{section}: {name}: {what}; KNOWN says: {}", known.reason))
        }
        (Err(_), Some(_)) | (Ok(()), None) => None,
    }
}

#[track_caller]
fn report(problems: &[String]) {
    assert!(problems.is_empty(), "{} cases:\n{}", problems.len(), problems.join("\n"));
}

fn quick_cases() -> Vec<Case> {
    [
        framing::preface(),
        framing::frames(),
        framing::data_frames(),
        framing::headers_frames(),
        framing::small_frames(),
        framing::settings_frames(),
        framing::stream_ids(),
        messages::pseudo_headers(),
        messages::header_rules(),
        messages::lengths(),
        messages::trailers(),
        messages::open_neighbours(),
        messages::responses(),
        hpack::errors(),
        hpack::encodings(),
        hpack::tables(),
        flow::window_updates(),
        flow::windows(),
        flow::uploads(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[test]
fn frames_and_messages_are_handled_as_the_rfcs_say() {
    let app = Backend::start();
    app.at("/hang", Play::Hang);
    app.at("/ignore", Play::Ignore);
    app.at("/100", Play::Continue);
    app.at("/large", Play::Stream(200_000));
    app.says("/204", "HTTP/1.1 204 No Content\r\n\r\n");
    app.says("/304", "HTTP/1.1 304 Not Modified\r\n\r\n");
    app.says("/103", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone");
    app.says("/chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    app.at("/cut", Play::SayAndClose(b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\ndone".into()));
    let proxy = Proxy::start(&app);
    report(&problems(&app, proxy.h2c, &quick_cases(), 16));
}

#[test]
fn each_case_has_its_own_name_and_those_known_to_fail_exist() {
    let cases: Vec<Case> = quick_cases().into_iter().chain(floods::floods()).collect();
    let mut names = BTreeSet::new();
    for case in &cases {
        assert!(names.insert(case.name), "two cases have the name {:?}", case.name);
    }
    assert!(cases.len() >= 100, "{}", cases.len());
    let known: Vec<_> = KNOWN.iter().flat_map(|known| known.cases).collect();
    for name in &known {
        assert!(names.contains(*name), "no case has the name {name:?}");
    }
    println!("{} cases, of which {} are known to fail", cases.len(), known.len());
}
