use super::*;
use proptest::prelude::*;

const FRAME: Frame<'static> = Frame {
    is_head_request: false,
    is_upgrade: false,
    request_id: Some(b"id-1"),
    date: b"now",
    limits: None,
    session: b"",
    closes: false,
    takes_chunks: true,
};

fn relay(answer: &str, frame: Frame<'_>) -> Result<Option<(AnswerHead, String)>, InvalidAnswer> {
    let mut out = BytesMut::new();
    let head = relay_answer(answer.as_bytes(), &mut out, frame)?;
    Ok(head.map(|head| (head, String::from_utf8(out.to_vec()).unwrap())))
}

#[test]
fn an_event_stream_is_known_by_its_media_type() {
    for is in ["text/event-stream", "Text/Event-Stream; charset=utf-8", "text/event-stream ;x=y"] {
        assert!(is_event_stream_type(is.as_bytes()), "{is}");
    }
    for is_not in ["", "text/event-streams", "application/json; x=text/event-stream"] {
        assert!(!is_event_stream_type(is_not.as_bytes()), "{is_not}");
    }
}

#[test]
fn the_remaining_time_is_updated_if_it_is_the_last_header() {
    let anew = |head: &str| {
        let mut head = BytesMut::from(head);
        set_timeout(&mut head, Duration::from_millis(250));
        String::from_utf8(head.to_vec()).unwrap()
    };
    let line = "GET / HTTP/1.1\r\nhost: a\r\n";
    assert_eq!(
        anew(&format!("{line}x-request-timeout-ms: 30000\r\n\r\n")),
        format!("{line}x-request-timeout-ms: 250\r\n\r\n")
    );
    for other in [format!("{line}\r\n"), format!("{line}x-request-timeout-ms: 1\r\nb: c\r\n\r\n"), String::new()] {
        assert_eq!(anew(&other), other);
    }
}

#[test]
fn forwards_end_to_end_headers() {
    let answer = "HTTP/1.1 200 Fine\r\nContent-Length: 2\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\nConnection: keep-alive, X-Hop\r\n\
                  X-Request-Id: theirs\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\nok";
    let (head, written) = relay(answer, FRAME).unwrap().unwrap();
    assert_eq!(
        written,
        "HTTP/1.1 200 Fine\r\nContent-Length: 2\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Request-Id: id-1\r\nDate: now\r\n\r\n"
    );
    assert_eq!((head.status, head.body, head.keeps_connection), (200, AnswerBody::Framed(Framing::Length(2)), true));
    assert_eq!(head.len, answer.len() - 2);
}

#[test]
fn knows_how_a_response_ends() {
    let body = |answer: &str, frame| relay(answer, frame).unwrap().unwrap().0.body;
    let nothing = AnswerBody::Framed(Framing::Length(0));
    assert_eq!(body("HTTP/1.1 200 OK\r\n\r\n", FRAME), AnswerBody::UntilClose);
    assert_eq!(
        body("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", FRAME),
        AnswerBody::Framed(Framing::Chunked)
    );
    assert_eq!(body("HTTP/1.1 204 No Content\r\n\r\n", FRAME), nothing);
    assert_eq!(body("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", FRAME), nothing);
    assert_eq!(body("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", FRAME), nothing);
    assert_eq!(body("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", Frame { is_head_request: true, ..FRAME }), nothing);
}

#[test]
fn a_body_that_must_not_exist_ends_the_connection_and_is_not_announced() {
    for (answer, keeps) in [
        ("HTTP/1.1 204 No Content\r\n\r\n", true),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", true),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\n", false),
        ("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", false),
        ("HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", true),
        ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n", false),
        ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\n", true),
    ] {
        for is_head_request in [false, true] {
            let (head, written) = relay(answer, Frame { is_head_request, ..FRAME }).unwrap().unwrap();
            assert_eq!(head.keeps_connection, keeps, "{answer}");
            let is_framed = written.contains("Content-Length") || written.contains("Transfer-Encoding");
            assert_eq!(is_framed, head.status == 200, "{written}");
        }
    }
}

#[test]
fn only_an_upgrade_switches_protocols() {
    let switches = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade, X-Hop\r\nX-Hop: 1\r\n\
                    Content-Length: 0\r\nX-A: b\r\n\r\nbytes";
    assert_eq!(relay(switches, FRAME), Err(InvalidAnswer));
    let (head, written) = relay(switches, Frame { is_upgrade: true, closes: true, ..FRAME }).unwrap().unwrap();
    assert_eq!(written, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nX-A: b\r\nConnection: Upgrade\r\n\r\n");
    assert!(head.is_final() && head.len == switches.len() - 5);
    let (early, _) = relay("HTTP/1.1 103 Early Hints\r\n\r\n", FRAME).unwrap().unwrap();
    assert!(!early.is_final());
}

#[test]
fn a_426_keeps_its_upgrade() {
    let refuses =
        |upgrade: &str| format!("HTTP/1.1 426 Upgrade Required\r\n{upgrade}Content-Length: 0\r\nDate: d\r\n\r\n");
    let frame = Frame { request_id: None, ..FRAME };
    let (with, without) = (refuses("Upgrade: x\r\nConnection: upgrade\r\n"), refuses(""));
    for (answer, closes, connection) in [
        (&with, false, "Connection: Upgrade\r\n"),
        (&with, true, "Connection: Upgrade, close\r\n"),
        (&without, false, ""),
        (&without, true, "Connection: close\r\n"),
    ] {
        let (_, written) = relay(answer, Frame { closes, ..frame }).unwrap().unwrap();
        let upgrade = if answer == &with { "Upgrade: x\r\n" } else { "" };
        let head = "HTTP/1.1 426 Upgrade Required\r\n";
        assert_eq!(written, format!("{head}{upgrade}Content-Length: 0\r\nDate: d\r\n{connection}\r\n"));
    }
    let (_, written) = relay("HTTP/1.1 200 OK\r\nUpgrade: h2\r\nContent-Length: 0\r\n\r\n", frame).unwrap().unwrap();
    assert!(!written.contains("pgrade"), "{written}");
}

#[test]
fn whitespace_before_a_colon_is_removed() {
    let answer = "HTTP/1.1 200 OK\r\nX-A \t: b\r\nContent-Length : 2\r\n\r\nhi";
    let (head, written) = relay(answer, FRAME).unwrap().unwrap();
    assert_eq!(head.body, AnswerBody::Framed(Framing::Length(2)));
    assert!(written.contains("\r\nX-A: b\r\nContent-Length: 2\r\n"), "{written}");
}

#[test]
fn a_response_without_a_length_is_forwarded_in_chunks() {
    let (_, written) = relay("HTTP/1.0 200 OK\r\n\r\n", FRAME).unwrap().unwrap();
    assert!(written.contains("Transfer-Encoding: chunked\r\n"), "{written}");
}

#[test]
fn rejects_contradictory_framing() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3, 3\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        "garbage garbage\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
    ] {
        assert_eq!(relay(answer, FRAME).unwrap_err(), InvalidAnswer, "{answer:?}");
    }
    assert_eq!(relay("HTTP/1.1 200 OK\r\nContent-Le", FRAME), Ok(None));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), status in 0..1000_u32) {
        let mut answer = format!("HTTP/1.1 {status} x\r\n").into_bytes();
        answer.extend(bytes);
        let _ = relay_answer(&answer, &mut BytesMut::new(), FRAME);
    }
}
