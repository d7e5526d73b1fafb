//! HTTP/2 conformance on raw frames, by the sections of RFC 9113 and RFC 7541: malformed input must end the connection or only its
//! stream, as the RFC says, and everything else must be served.
//!
//! To add a case, add a line to its section's table.

pub(crate) mod case;
mod floods;
mod flow;
mod framing;
mod hpack;
mod messages;
pub(crate) mod wire;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use case::{Case, Connection};

use crate::{
    backend::{Backend, Play},
    harness::{PATIENCE, Proxy},
};

/// Plays the cases on `clients` connections at a time; returns a line for each that fails.
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
    let mut connection =
        if case.is_raw { Connection::open(address, PATIENCE) } else { Connection::greeted(address, PATIENCE) };
    let is_hidden = |path: &String| match app.requests_to(path) {
        0 => Ok(()),
        _ => Err("the app got the request".to_owned()),
    };
    let outcome = connection.fulfils(case).and_then(|()| case.hidden.as_ref().map_or(Ok(()), is_hidden));
    let Case { name, section, .. } = case;
    outcome.err().map(|what| format!("{section}: {name}: {what}"))
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
fn each_case_has_its_own_name() {
    let cases: Vec<Case> = quick_cases().into_iter().chain(floods::floods()).collect();
    let mut names = BTreeSet::new();
    for case in &cases {
        assert!(names.insert(case.name), "two cases have the name {:?}", case.name);
    }
    assert!(cases.len() >= 100, "{}", cases.len());
    println!("{} cases", cases.len());
}
