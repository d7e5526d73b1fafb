//! Responses other than 101, and requests that are no handshake.

use std::io;

use super::{
    Case, Dialer,
    app::{decline, echo},
    end::{End, Head, KEY, shown},
    handshakes::{USUAL, also, finish, talk},
    switched,
};

pub const CASES: &[Case] = &[
    Case {
        name: "426-with-its-upgrade-header",
        client: |d| asks(d, &d.request(&old_version())),
        app: declines_version,
    },
    Case {
        name: "401-and-then-101-on-the-same-connection",
        client: |d| {
            let mut end = d.connect()?;
            end.send(d.request(&[]))?;
            note_response(&mut end)?;
            end.send(d.request(&also("Authorization: Basic YTpi")))?;
            switched(&end.head()?)?;
            talk(&mut end)?;
            finish(d, end)
        },
        app: |end, head| match head.field("authorization") {
            None => decline(end, "401 Unauthorized", "WWW-Authenticate: Basic realm=\"a\"\r\n", "who are you?"),
            Some(_) => echo(end, head),
        },
    },
    Case {
        name: "403-with-a-body",
        client: |d| asks(d, &d.request(&[])),
        app: |end, _| decline(end, "403 Forbidden", "", "not you"),
    },
    Case {
        name: "404-with-a-chunked-body",
        client: |d| asks(d, &d.request(&[])),
        app: |end, _| end.send("HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nnone\r\n0\r\n\r\n"),
    },
    Case {
        name: "302-with-location",
        client: |d| asks(d, &d.request(&[])),
        app: |end, _| decline(end, "302 Found", "Location: wss://b.test/\r\n", "there"),
    },
    Case {
        name: "400-without-a-body",
        client: |d| asks(d, &d.request(&[])),
        app: |end, _| decline(end, "400 Bad Request", "Sec-WebSocket-Version: 13, 8\r\n", ""),
    },
    Case {
        name: "503-of-the-app",
        client: |d| asks(d, &d.request(&[])),
        app: |end, _| decline(end, "503 Service Unavailable", "Retry-After: 7\r\n", "later"),
    },
    Case {
        name: "200-instead-of-101",
        client: |d| asks(d, &d.request(&[])),
        app: |end, _| decline(end, "200 OK", "", "a page"),
    },
    Case {
        name: "a-missing-key",
        client: |d| asks(d, &format!("GET {} HTTP/1.1\r\nHost: a\r\n{}\r\n\r\n", d.path, USUAL.join("\r\n"))),
        app: |end, head| {
            end.note(format!("{:?} {}", head.field("sec-websocket-key"), head.is_handshake()));
            decline(end, "400 Bad Request", "", "no key")
        },
    },
    Case {
        name: "post-with-upgrade",
        client: |d| asks(d, &d.request(&also("Content-Length: 0")).replacen("GET", "POST", 1)),
        app: |end, head| {
            end.note(head.first_line.split(' ').next().unwrap_or_default());
            decline(end, "405 Method Not Allowed", "Allow: GET\r\n", "GET only")
        },
    },
    Case {
        name: "upgrade-without-its-connection-option",
        client: |d| asks(d, &d.request(&["Connection: keep-alive", USUAL[1], USUAL[2]])),
        app: plain_or_echo,
    },
    Case {
        name: "connection-option-without-upgrade",
        client: |d| asks(d, &d.request(&[USUAL[0], USUAL[2]])),
        app: plain_or_echo,
    },
    Case {
        name: "an-h2c-offer-is-ignored",
        client: |d| {
            let offer =
                ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"];
            asks(d, &d.request(&offer))
        },
        app: plain_or_echo,
    },
    Case {
        name: "upgrade-over-http-1.0",
        client: |d| asks(d, &d.request(&[]).replacen("HTTP/1.1", "HTTP/1.0", 1)),
        app: |end, _| decline(end, "200 OK", "", "plain"),
    },
];

/// A request whose response is noted, with another one on the same connection if it stays open.
pub fn asks(dialer: &mut Dialer, request: &str) -> io::Result<()> {
    let mut end = dialer.connect()?;
    end.send(request)?;
    note_response(&mut end)?;
    dialer.done(end);
    Ok(())
}

pub fn note_response(end: &mut End) -> io::Result<()> {
    let head = end.head()?;
    end.note(head.status().to_string());
    for name in [
        "upgrade",
        "sec-websocket-version",
        "sec-websocket-accept",
        "www-authenticate",
        "location",
        "allow",
        "retry-after",
    ] {
        end.note(format!("{name}: {:?}", head.field(name)));
    }
    let has_option = head.field("connection").is_some_and(|value| value.to_ascii_lowercase().contains("upgrade"));
    end.note(format!("connection: upgrade: {has_option}"));
    let body = match head.field("content-length").and_then(|length| length.parse().ok()) {
        Some(length) => end.take(length)?,
        None if head.status() == 101 => Vec::new(),
        None => {
            let size = end.take(3)?;
            let length = usize::from(size[0] - b'0');
            let body = end.take(length)?;
            end.take(7)?;
            body
        }
    };
    end.note(shown(&body));
    Ok(())
}

fn declines_version(end: &mut End, head: &Head) -> io::Result<()> {
    end.note(format!("{:?}", head.field("sec-websocket-version")));
    let lines = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
    decline(end, "426 Upgrade Required", lines, "version 13 only")
}

/// A page for a request that is no handshake.
pub fn plain_or_echo(end: &mut End, head: &Head) -> io::Result<()> {
    let is_handshake = head.is_handshake() && head.field("sec-websocket-key").as_deref() == Some(KEY);
    if is_handshake { echo(end, head) } else { decline(end, "200 OK", "", "a page") }
}

fn old_version() -> [&'static str; 3] {
    [USUAL[0], USUAL[1], "Sec-WebSocket-Version: 8"]
}
