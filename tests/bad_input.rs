//! Bad input is refused with a reason, before the app hears of it. Every byte here is sent as written.

use std::time::{Duration, Instant};

use crate::{
    backend::Backend,
    harness::{Client, PATIENCE, Proxy, get, post},
};

/// What would be served if the bytes before it were read differently by two parties.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// Sends each of these, with another request behind, and expects one refusal, a closed connection and a count; the app
/// must hear of none.
#[track_caller]
fn refused(status: u16, reason: &str, requests: &[&str]) {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    for (sent, request) in requests.iter().enumerate() {
        println!("sending {request:?}");
        let mut client = proxy.connect();
        let answer = client.send(request).send(SMUGGLED).answer();
        answer.is_problem(status, reason);
        assert!(answer.closes(), "{answer:?}");
        client.is_closed();
        assert_eq!(proxy.rejections(reason), (sent + 1) as f64);
    }
    assert_eq!(app.connections(), 0, "the app was contacted");
}

/// A `POST` with these fields.
fn with(fields: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n")
}

#[test]
fn a_length_beside_an_encoding_is_refused() {
    refused(
        400,
        "malformed_length_and_encoding",
        &[
            &with("Content-Length: 5\r\nTransfer-Encoding: chunked"),
            &with("Transfer-Encoding: chunked\r\nContent-Length: 5"),
            &with("transfer-encoding: CHUNKED\r\ncontent-length: 0"),
        ],
    );
}

#[test]
fn an_encoding_that_two_parsers_may_read_differently_is_refused() {
    refused(
        400,
        "malformed_encoding",
        &[
            &with("Transfer-Encoding: gzip, chunked"),
            &with("Transfer-Encoding: chunked, identity"),
            &with("Transfer-Encoding: xchunked"),
            &with("Transfer-Encoding: \"chunked\""),
            &with("Transfer-Encoding: identity"),
            &with("Transfer-Encoding:"),
            &with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
            &with("Transfer-Encoding: chunked\r\nTransfer-Encoding: x"),
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        ],
    );
}

#[test]
fn a_length_that_is_no_single_number_is_refused() {
    refused(
        400,
        "malformed_length",
        &[
            &with("Content-Length: 5\r\nContent-Length: 6"),
            &with("Content-Length: 5, 5"),
            &with("Content-Length: +5"),
            &with("Content-Length: -5"),
            &with("Content-Length: 0x5"),
            &with("Content-Length: 5 5"),
            &with("Content-Length:"),
            &with("Content-Length: 99999999999999999999999"),
        ],
    );
}
