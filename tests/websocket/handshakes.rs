//! Handshakes.

use std::{io, thread, time::Duration};

use super::{
    Case, Dialer,
    app::{accept, echo, echo_frames, switch, switching},
    declined::{asks, note_response, plain_or_echo},
    end::{End, Head, TEXT, shown},
    switched,
};

pub const USUAL: [&str; 3] = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"];

pub const CASES: &[Case] = &[
    Case { name: "plain-handshake", client: |d| with(d, &[]), app: noting_echo },
    Case { name: "header-names-in-lower-case", client: |d| with(d, &lower()), app: noting_echo },
    Case { name: "header-names-in-upper-case", client: |d| with(d, &upper()), app: noting_echo },
    Case {
        name: "connection-with-several-options",
        client: |d| with(d, &["Connection: keep-alive, Upgrade", USUAL[1], USUAL[2]]),
        app: noting_echo,
    },
    Case {
        name: "two-connection-headers",
        client: |d| with(d, &["Connection: keep-alive", "Connection: upgrade", USUAL[1], USUAL[2]]),
        app: noting_echo,
    },
    Case {
        name: "own-header-among-the-connection-options",
        client: |d| with(d, &["Connection: upgrade, x-hop", "X-Kept: 1", USUAL[1], USUAL[2]]),
        app: noting_echo,
    },
    Case {
        name: "one-subprotocol-of-several",
        client: |d| with(d, &also("Sec-WebSocket-Protocol: chat, v2.chat")),
        app: picks,
    },
    Case {
        name: "subprotocols-on-two-lines",
        client: |d| {
            with(d, &["Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Protocol: v2.chat", USUAL[0], USUAL[1], USUAL[2]])
        },
        app: picks,
    },
    Case {
        name: "an-extension",
        client: |d| with(d, &also("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x-more; q=1")),
        app: |end, head| {
            note_request(end, head);
            end.is_tunnel = true;
            end.send(switching(head, "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover\r\n"))?;
            echo_frames(end)
        },
    },
    Case {
        name: "origin-cookies-authorization-and-query",
        client: |d| {
            d.path.push_str("?room=a%20b&x=1");
            let more = ["Origin: https://a.test", "Cookie: a=1; b=2", "Authorization: Bearer x", "Pragma: no-cache"];
            with(d, &[&more[..], &USUAL].concat())
        },
        app: noting_echo,
    },
    Case {
        name: "a-large-cookie",
        client: |d| {
            let cookie = format!("Cookie: a={}", "x".repeat(8000));
            with(d, &also(&cookie))
        },
        app: noting_echo,
    },
    Case {
        name: "headers-of-the-101",
        client: |d| with(d, &[]),
        app: |end, head| {
            end.is_tunnel = true;
            end.send(switching(head, "Set-Cookie: a=1\r\nSet-Cookie: b=2; Path=/\r\nServer: app\r\nX-Own: 1\r\n"))?;
            echo_frames(end)
        },
    },
    Case {
        name: "a-101-in-lower-case-with-another-reason",
        client: |d| with(d, &[]),
        app: |end, head| {
            end.is_tunnel = true;
            let accept = accept(&head.field("sec-websocket-key").unwrap_or_default());
            end.send(format!(
                "HTTP/1.1 101 Web Socket Protocol Handshake\r\nupgrade: WebSocket\r\nconnection: upgrade\r\n\
                 sec-websocket-accept: {accept}\r\n\r\n"
            ))?;
            echo_frames(end)
        },
    },
    Case {
        name: "a-101-with-content-length-0",
        client: |d| with(d, &[]),
        app: |end, head| {
            end.is_tunnel = true;
            end.send(switching(head, "Content-Length: 0\r\n"))?;
            echo_frames(end)
        },
    },
    Case {
        name: "a-101-with-another-accept",
        client: |d| asks(d, &d.request(&[])),
        app: |end, _| {
            end.is_tunnel = true;
            let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
            end.send(format!("{head}Sec-WebSocket-Accept: wrong\r\n\r\n"))?;
            end.note_end();
            Ok(())
        },
    },
    Case {
        name: "a-101-byte-by-byte",
        client: |d| with(d, &[]),
        app: |end, head| {
            end.is_tunnel = true;
            end.send_bytewise(switching(head, "").as_bytes())?;
            echo_frames(end)
        },
    },
    Case {
        name: "a-slow-101",
        client: |d| with(d, &[]),
        app: |end, head| {
            thread::sleep(Duration::from_millis(400));
            echo(end, head)
        },
    },
    Case {
        name: "103-before-the-101",
        client: |d| {
            let mut end = d.connect()?;
            end.send(d.request(&[]))?;
            let early = end.head()?;
            end.note(format!("{} {:?}", early.status(), early.field("link")));
            switched(&end.head()?)?;
            d.done(end);
            Ok(())
        },
        app: |end, head| {
            end.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n")?;
            switch(end, head)?;
            end.note_end();
            Ok(())
        },
    },
    Case {
        name: "frames-right-behind-the-101",
        client: |d| {
            let mut end = d.open()?;
            (0..3).try_for_each(|_| end.hear().map(drop))?;
            finish(d, end)
        },
        app: |end, head| {
            end.is_tunnel = true;
            let frames: Vec<u8> = (0..3).flat_map(|n| end.frame(0x81, format!("early {n}"))).collect();
            end.send([switching(head, "").as_bytes(), &frames].concat())?;
            echo_frames(end)
        },
    },
    Case {
        name: "much-data-right-behind-the-101",
        client: |d| {
            let mut end = d.open()?;
            end.hear()?;
            finish(d, end)
        },
        app: |end, head| {
            end.is_tunnel = true;
            end.send([switching(head, "").as_bytes(), &end.frame(0x82, vec![7; 300_000])].concat())?;
            echo_frames(end)
        },
    },
    Case {
        name: "frames-right-behind-the-request",
        client: |d| {
            let mut end = d.connect()?;
            let frames: Vec<u8> = (0..3).flat_map(|n| end.frame(0x81, format!("early {n}"))).collect();
            end.send([d.request(&[]).as_bytes(), &frames].concat())?;
            switched(&end.head()?)?;
            (0..3).try_for_each(|_| end.hear().map(drop))?;
            finish(d, end)
        },
        app: echo,
    },
    Case {
        name: "much-data-right-behind-the-request",
        client: |d| {
            let mut end = d.connect()?;
            end.send([d.request(&[]).as_bytes(), &end.frame(0x82, vec![7; 300_000])].concat())?;
            switched(&end.head()?)?;
            end.hear()?;
            finish(d, end)
        },
        app: |end, head| {
            thread::sleep(Duration::from_millis(50));
            echo(end, head)
        },
    },
    Case {
        name: "data-before-the-101",
        client: |d| {
            let mut end = d.connect()?;
            end.send(d.request(&[]))?;
            thread::sleep(Duration::from_millis(20));
            end.say(TEXT, "impatient")?;
            switched(&end.head()?)?;
            end.hear()?;
            finish(d, end)
        },
        app: |end, head| {
            thread::sleep(Duration::from_millis(60));
            echo(end, head)
        },
    },
    Case {
        name: "a-request-byte-by-byte",
        client: |d| {
            let mut end = d.connect()?;
            end.send_bytewise(d.request(&[]).as_bytes())?;
            switched(&end.head()?)?;
            talk(&mut end)?;
            finish(d, end)
        },
        app: echo,
    },
    Case {
        name: "a-handshake-after-another-request",
        client: |d| {
            let mut end = d.connect()?;
            end.send(format!("GET {} HTTP/1.1\r\nHost: ws.test\r\n\r\n", d.path))?;
            note_response(&mut end)?;
            end.send(d.request(&[]))?;
            switched(&end.head()?)?;
            talk(&mut end)?;
            finish(d, end)
        },
        app: plain_or_echo,
    },
];

pub fn also(line: &str) -> [&str; 4] {
    let [a, b, c] = USUAL;
    [a, line, b, c]
}

fn lower() -> [&'static str; 4] {
    [
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
}

fn upper() -> [&'static str; 4] {
    [
        "CONNECTION: UPGRADE",
        "UPGRADE: WebSocket",
        "SEC-WEBSOCKET-VERSION: 13",
        "SEC-WEBSOCKET-KEY: dGhlIHNhbXBsZSBub25jZQ==",
    ]
}

/// A handshake with these lines, whose response is noted, and some messages.
fn with(dialer: &mut Dialer, lines: &[&str]) -> io::Result<()> {
    let mut end = dialer.connect()?;
    end.send(dialer.request(lines))?;
    let head = end.head()?;
    switched(&head)?;
    for name in ["sec-websocket-protocol", "sec-websocket-extensions", "set-cookie", "server", "x-own"] {
        end.note(format!("{name}: {:?}", head.field(name)));
    }
    talk(&mut end)?;
    finish(dialer, end)
}

pub fn talk(end: &mut End) -> io::Result<()> {
    (0..3).try_for_each(|n| {
        end.say(TEXT, format!("message {n}"))?;
        end.expect(TEXT, format!("message {n}"))
    })
}

/// The close handshake.
pub fn finish(dialer: &mut Dialer, mut end: End) -> io::Result<()> {
    end.close(1000, "done")?;
    end.hear()?;
    end.note_end();
    dialer.done(end);
    Ok(())
}

fn note_request(end: &mut End, head: &Head) {
    let names = ["key", "version", "protocol", "extensions"].map(|name| format!("sec-websocket-{name}"));
    let names =
        names.iter().map(String::as_str).chain(["origin", "cookie", "authorization", "pragma", "x-kept", "x-key"]);
    for name in names {
        end.note(format!(
            "{name}: {}",
            head.field(name).map_or_else(|| "none".to_owned(), |value| shown(value.as_bytes()))
        ));
    }
    end.note(head.first_line.split_once('?').map_or("", |(_, query)| query));
}

fn noting_echo(end: &mut End, head: &Head) -> io::Result<()> {
    note_request(end, head);
    echo(end, head)
}

/// Takes the last subprotocol that the client offers.
fn picks(end: &mut End, head: &Head) -> io::Result<()> {
    note_request(end, head);
    let offers = head.field("sec-websocket-protocol").unwrap_or_default();
    let last = offers.rsplit(',').next().unwrap_or_default().trim();
    end.is_tunnel = true;
    end.send(switching(head, &format!("Sec-WebSocket-Protocol: {last}\r\n")))?;
    echo_frames(end)
}
