//! Close frames of both sides.

use std::io;

use super::{
    Case, Dialer,
    app::{echo, echo_frames, switch},
    end::{CLOSE, End, Head, TEXT},
    messages::{hears_one, says},
};

/// Codes that an endpoint may send (RFC 6455 section 7.4, and the registry).
const VALID: [u16; 15] = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4000, 4999];
const INVALID: [u16; 9] = [0, 1, 999, 1004, 1005, 1006, 1015, 2999, 65535];

pub const CASES: &[Case] = &[
    Case {
        name: "each-valid-code-of-the-client",
        client: |d| VALID.iter().try_for_each(|code| closes(d, *code)),
        app: echo,
    },
    Case {
        name: "each-invalid-code-of-the-client",
        client: |d| INVALID.iter().try_for_each(|code| closes(d, *code)),
        app: echo,
    },
    Case { name: "each-valid-code-of-the-app", client: |d| asks_for(d, &VALID), app: closes_as_told },
    Case { name: "each-invalid-code-of-the-app", client: |d| asks_for(d, &INVALID), app: closes_as_told },
    Case { name: "an-empty-close", client: |d| closes_with(d, b""), app: echo },
    Case {
        name: "an-empty-close-of-the-app",
        client: hears_one,
        app: |end, head| says(end, head, &end.frame(0x88, "")),
    },
    Case { name: "a-close-of-one-byte", client: |d| closes_with(d, b"x"), app: echo },
    Case { name: "a-reason-of-123-bytes", client: |d| closes_with(d, &reason(123)), app: echo },
    Case {
        name: "a-reason-of-123-bytes-of-the-app",
        client: hears_one,
        app: |end, head| says(end, head, &end.frame(0x88, reason(123))),
    },
    Case { name: "a-reason-that-is-too-long", client: |d| closes_with(d, &reason(124)), app: echo },
    Case { name: "a-reason-that-is-not-utf-8", client: |d| closes_with(d, b"\x03\xe8\xff\xfe"), app: echo },
    Case {
        name: "data-behind-the-close",
        client: |d| {
            let mut end = d.open()?;
            let bytes = [end.frame(0x88, 1000_u16.to_be_bytes()), end.frame(0x81, "too late")].concat();
            end.send(bytes)?;
            end.hear()?;
            end.finish()?;
            end.note_end();
            d.done(end);
            Ok(())
        },
        app: echo,
    },
    Case {
        name: "both-close-at-once",
        client: |d| {
            let mut end = d.open()?;
            end.close(1000, "client")?;
            end.hear()?;
            end.finish()?;
            end.note_end();
            d.done(end);
            Ok(())
        },
        app: |end, head| {
            switch(end, head)?;
            end.close(1001, "app")?;
            end.hear()?;
            end.finish()?;
            end.note_end();
            Ok(())
        },
    },
    Case {
        name: "a-message-and-the-close-in-one-write",
        client: |d| {
            let mut end = d.open()?;
            end.send([end.frame(0x81, "last words"), end.frame(0x88, 1001_u16.to_be_bytes())].concat())?;
            end.hear()?;
            end.hear()?;
            end.note_end();
            d.done(end);
            Ok(())
        },
        app: echo,
    },
];

fn reason(len: usize) -> Vec<u8> {
    [&1000_u16.to_be_bytes()[..], "r".repeat(len).as_bytes()].concat()
}

fn closes(dialer: &mut Dialer, code: u16) -> io::Result<()> {
    closes_with(dialer, &code.to_be_bytes())
}

/// Closes a new connection, and notes how the app responds.
fn closes_with(dialer: &mut Dialer, payload: &[u8]) -> io::Result<()> {
    let mut end = dialer.open()?;
    end.say(CLOSE, payload)?;
    let close = end.next()?;
    end.note(format!("{close:?}"));
    end.note_end();
    dialer.done(end);
    Ok(())
}

/// Has the app close a connection with each code.
fn asks_for(dialer: &mut Dialer, codes: &[u16]) -> io::Result<()> {
    codes.iter().try_for_each(|code| {
        let mut end = dialer.open()?;
        end.say(TEXT, code.to_string())?;
        let close = end.next()?;
        end.note(format!("{close:?}"));
        end.say(CLOSE, &close.payload)?;
        end.note_end();
        dialer.done(end);
        Ok(())
    })
}

fn closes_as_told(end: &mut End, head: &Head) -> io::Result<()> {
    switch(end, head)?;
    let code = String::from_utf8_lossy(&end.hear()?.payload).parse().unwrap_or_default();
    end.close(code, "as told")?;
    echo_frames(end)
}
