//! Messages: fragments, sizes, floods, and frames that break the rules, which are the ends' business.

use std::{io, thread, time::Duration};

use super::{
    Case, Dialer,
    app::{echo, switch},
    end::{BINARY, CLOSE, End, Head, PING, PONG, TEXT, encode},
    handshakes::finish,
};
use crate::backend::PATTERN;

const MANY: usize = 3000;

pub const CASES: &[Case] = &[
    // First, as it takes longest.
    Case { name: "16-mib", client: |d| echoed(d, BINARY, &pattern(16 << 20)), app: echo },
    Case { name: "a-text", client: |d| echoed(d, TEXT, "Gr\u{fc}\u{df}e".as_bytes()), app: echo },
    Case { name: "an-empty-message", client: |d| echoed(d, TEXT, b""), app: echo },
    Case {
        name: "lengths-at-the-boundaries",
        client: |d| {
            let mut end = d.open()?;
            for len in [1, 124, 125, 126, 127, 128, 4095, 4096, 16383, 16384, 65534, 65535, 65536, 65537] {
                end.say(BINARY, pattern(len))?;
                end.expect(BINARY, pattern(len))?;
            }
            finish(d, end)
        },
        app: echo,
    },
    Case {
        name: "text-that-looks-like-http",
        client: |d| echoed(d, TEXT, b"0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        app: echo,
    },
    Case {
        name: "three-fragments",
        client: |d| {
            let mut end = d.open()?;
            for (first, part) in [(0x01, "one "), (0x00, "two "), (0x80, "three")] {
                end.send(end.frame(first, part))?;
            }
            (0..3).try_for_each(|_| end.hear().map(drop))?;
            finish(d, end)
        },
        app: echo,
    },
    Case {
        name: "a-thousand-fragments-of-one-byte",
        client: |d| {
            let mut end = d.open()?;
            for n in 0..1000 {
                let first = if n == 0 {
                    0x02
                } else if n == 999 {
                    0x80
                } else {
                    0x00
                };
                end.send(end.frame(first, [n as u8]))?;
            }
            (0..1000).try_for_each(|_| end.hear().map(drop))?;
            finish(d, end)
        },
        app: echo,
    },
    Case {
        name: "control-frames-between-fragments",
        client: |d| {
            let mut end = d.open()?;
            for (first, part) in [(0x01, "a"), (0x89, "ping 1"), (0x00, "b"), (0x8a, "pong"), (0x89, ""), (0x80, "c")] {
                end.send(end.frame(first, part))?;
            }
            (0..5).try_for_each(|_| end.hear().map(drop))?;
            finish(d, end)
        },
        app: echo,
    },
    Case {
        name: "frames-of-the-client-byte-by-byte",
        client: |d| {
            let mut end = d.open()?;
            end.send_bytewise(&[end.frame(0x81, "slowly"), end.frame(0x89, "p"), end.frame(0x82, [9; 130])].concat())?;
            (0..3).try_for_each(|_| end.hear().map(drop))?;
            finish(d, end)
        },
        app: echo,
    },
    Case {
        name: "frames-of-the-app-byte-by-byte",
        client: |d| {
            let mut end = d.open()?;
            (0..3).try_for_each(|_| end.hear().map(drop))?;
            finish(d, end)
        },
        app: |end, head| {
            switch(end, head)?;
            end.send_bytewise(&[end.frame(0x81, "slowly"), end.frame(0x89, "p"), end.frame(0x82, [9; 130])].concat())?;
            super::app::echo_frames(end)
        },
    },
    Case {
        name: "a-clients-frame-split-at-each-byte-of-its-header",
        client: |d| {
            let mut end = d.open()?;
            let frame = end.frame(0x82, pattern(70_000));
            for at in 1..=15 {
                split(&mut end, &frame, at)?;
                end.expect(BINARY, pattern(70_000))?;
            }
            finish(d, end)
        },
        app: echo,
    },
    Case {
        name: "an-apps-frame-split-at-each-byte-of-its-header",
        client: |d| {
            let mut end = d.open()?;
            (1..=11).try_for_each(|_| end.expect(BINARY, pattern(70_000)))?;
            finish(d, end)
        },
        app: |end, head| {
            switch(end, head)?;
            let frame = end.frame(0x82, pattern(70_000));
            (1..=11).try_for_each(|at| split(end, &frame, at))?;
            super::app::echo_frames(end)
        },
    },
    Case { name: "many-small-messages", client: |d| flood(d, TEXT, TEXT), app: echo },
    Case { name: "a-flood-of-pings", client: |d| flood(d, PING, PONG), app: echo },
    Case {
        name: "a-flood-of-pings-from-the-app",
        client: |d| {
            let mut end = d.open()?;
            for n in 0..MANY {
                end.expect(PING, format!("{n}"))?;
                end.say(PONG, format!("{n}"))?;
            }
            end.note_end();
            d.done(end);
            Ok(())
        },
        app: |end, head| {
            switch(end, head)?;
            let frames: Vec<u8> = (0..MANY).flat_map(|n| end.frame(0x89, format!("{n}"))).collect();
            end.send(frames)?;
            (0..MANY).try_for_each(|n| end.expect(PONG, format!("{n}")))
        },
    },
    Case {
        name: "pongs-that-were-not-asked-for",
        client: |d| {
            let mut end = d.open()?;
            (0..10).try_for_each(|n| end.say(PONG, format!("{n}")))?;
            end.say(TEXT, "and a text")?;
            end.hear()?;
            finish(d, end)
        },
        app: echo,
    },
    Case {
        name: "both-talk-at-once",
        client: |d| {
            let mut end = d.open()?;
            both_at_once(&mut end)?;
            d.done(end);
            Ok(())
        },
        app: |end, head| {
            switch(end, head)?;
            both_at_once(end)
        },
    },
    Case {
        name: "only-the-app-talks",
        client: |d| {
            let mut end = d.open()?;
            (0..20).try_for_each(|_| end.hear().map(drop))?;
            end.note_end();
            d.done(end);
            Ok(())
        },
        app: |end, head| {
            switch(end, head)?;
            (0..20).try_for_each(|n| {
                thread::sleep(Duration::from_millis(10));
                end.say(TEXT, format!("event {n}"))
            })
        },
    },
    Case {
        name: "text-of-the-client-that-is-not-utf-8",
        client: |d| broken(d, |end| end.frame(0x81, b"a\xff\xfe")),
        app: echo,
    },
    Case {
        name: "text-of-the-app-that-is-not-utf-8",
        client: |d| {
            let mut end = d.open()?;
            let frame = end.next()?;
            end.note(format!("{:?}", frame.payload));
            end.close(1007, "")?;
            end.hear()?;
            end.note_end();
            d.done(end);
            Ok(())
        },
        app: |end, head| {
            switch(end, head)?;
            end.say(TEXT, b"\xc0\xaf\xed\xa0\x80")?;
            super::app::echo_frames(end)
        },
    },
    Case {
        name: "a-frame-of-the-client-without-a-mask",
        client: |d| broken(d, |_| encode(0x81, false, b"bare")),
        app: echo,
    },
    Case {
        name: "a-masked-frame-of-the-app",
        client: hears_one,
        app: |end, head| says(end, head, &encode(0x81, true, b"masked")),
    },
    Case { name: "a-reserved-opcode", client: |d| broken(d, |end| end.frame(0x83, "x")), app: echo },
    Case { name: "a-reserved-control-opcode", client: |d| broken(d, |end| end.frame(0x8f, "x")), app: echo },
    Case { name: "reserved-bits", client: |d| broken(d, |end| end.frame(0xb1, "x")), app: echo },
    Case { name: "a-ping-that-is-too-long", client: |d| broken(d, |end| end.frame(0x89, [1; 126])), app: echo },
    Case { name: "a-fragmented-ping", client: |d| broken(d, |end| end.frame(0x09, "x")), app: echo },
    Case {
        name: "a-compressed-message-keeps-its-bit",
        client: |d| {
            let mut end = d.open()?;
            end.send(end.frame(0xc1, b"\xf2\x48\xcd\xc9\xc9\x07\x00"))?;
            let frame = end.next()?;
            end.note(format!("{frame:?}"));
            finish(d, end)
        },
        app: echo,
    },
    Case {
        name: "a-length-in-more-bytes-than-it-needs",
        client: |d| {
            let mut end = d.open()?;
            end.send([&[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0], &b"hello"[..]].concat())?;
            end.hear()?;
            finish(d, end)
        },
        app: echo,
    },
];

/// Bytes in which a lost or repeated piece shows.
pub fn pattern(len: usize) -> Vec<u8> {
    PATTERN.iter().copied().cycle().take(len.min(PATTERN.len())).collect::<Vec<_>>().repeat(len / PATTERN.len() + 1)
        [..len]
        .to_vec()
}

fn echoed(dialer: &mut Dialer, opcode: u8, payload: &[u8]) -> io::Result<()> {
    let mut end = dialer.open()?;
    let mut writer = end.other_half()?;
    thread::scope(|scope| {
        let sent = scope.spawn(move || writer.say(opcode, payload));
        end.expect(opcode, payload)?;
        sent.join().expect("it does not panic")
    })?;
    finish(dialer, end)
}

fn split(end: &mut End, frame: &[u8], at: usize) -> io::Result<()> {
    end.send(&frame[..at])?;
    thread::sleep(Duration::from_millis(3));
    end.send(&frame[at..])
}

/// Many small frames in one burst.
fn flood(dialer: &mut Dialer, opcode: u8, answer: u8) -> io::Result<()> {
    let mut end = dialer.open()?;
    let frames: Vec<u8> = (0..MANY).flat_map(|n| end.frame(0x80 | opcode, format!("{n}"))).collect();
    let mut writer = end.other_half()?;
    thread::scope(|scope| {
        let sent = scope.spawn(move || writer.send(frames));
        (0..MANY).try_for_each(|n| end.expect(answer, format!("{n}")))?;
        sent.join().expect("it does not panic")
    })?;
    finish(dialer, end)
}

/// Sends 4 MiB in small frames while it reads as much.
fn both_at_once(end: &mut End) -> io::Result<()> {
    const FRAMES: usize = 256;
    let mut writer = end.other_half()?;
    let piece = pattern(16 << 10);
    thread::scope(|scope| {
        let sent = scope.spawn(|| {
            (0..FRAMES).try_for_each(|_| writer.say(BINARY, &piece))?;
            writer.say(CLOSE, b"")
        });
        (0..FRAMES).try_for_each(|_| end.expect(BINARY, &piece))?;
        end.expect(CLOSE, b"")?;
        sent.join().expect("it does not panic")
    })?;
    end.finish()?;
    end.note_end();
    Ok(())
}

/// A frame that the app rejects: the client must get the app's close frame.
fn broken(dialer: &mut Dialer, frame: impl Fn(&End) -> Vec<u8>) -> io::Result<()> {
    let mut end = dialer.open()?;
    end.send(frame(&end))?;
    let close = end.next()?;
    end.note(format!("{close:?}"));
    end.note_end();
    dialer.done(end);
    Ok(())
}

pub fn hears_one(dialer: &mut Dialer) -> io::Result<()> {
    let mut end = dialer.open()?;
    let frame = end.next()?;
    end.note(format!("{frame:?}"));
    end.note_end();
    dialer.done(end);
    Ok(())
}

pub fn says(end: &mut End, head: &Head, bytes: &[u8]) -> io::Result<()> {
    switch(end, head)?;
    end.send(bytes)?;
    end.finish()?;
    end.note_end();
    Ok(())
}
