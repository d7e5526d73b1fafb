//! How connections end without a close handshake: half-closes, resets, ends in the middle of a message; and slow readers.

use std::{io, thread, time::Duration};

use super::{
    Case, Dialer,
    app::{echo, switch, switching},
    end::{BINARY, End, Head, TEXT},
    messages::pattern,
};

const LARGE: usize = 1 << 20;

pub const CASES: &[Case] = &[
    Case {
        name: "the-client-half-closes-and-reads-on",
        client: |d| {
            let mut end = d.open()?;
            end.say(TEXT, "my last")?;
            end.finish()?;
            end.hear()?;
            end.note_end();
            d.done(end);
            Ok(())
        },
        app: |end, head| {
            switch(end, head)?;
            end.note_end();
            thread::sleep(Duration::from_millis(50));
            end.say(BINARY, pattern(LARGE))
        },
    },
    Case {
        name: "the-app-half-closes-and-reads-on",
        client: |d| {
            let mut end = d.open()?;
            end.note_end();
            thread::sleep(Duration::from_millis(50));
            let outcome = end.say(BINARY, pattern(LARGE));
            d.done(end);
            outcome
        },
        app: |end, head| {
            switch(end, head)?;
            end.say(TEXT, "my last")?;
            end.finish()?;
            end.note_end();
            Ok(())
        },
    },
    Case {
        name: "the-client-half-closes-in-a-message",
        client: |d| {
            let mut end = d.open()?;
            let frame = end.frame(0x82, pattern(LARGE));
            end.send(&frame[..LARGE / 2])?;
            end.finish()?;
            end.note_end();
            d.done(end);
            Ok(())
        },
        app: notes_end,
    },
    Case {
        name: "the-app-half-closes-in-a-message",
        client: |d| {
            let mut end = d.open()?;
            end.note_end();
            d.done(end);
            Ok(())
        },
        app: |end, head| {
            switch(end, head)?;
            let frame = end.frame(0x82, pattern(LARGE));
            end.send(&frame[..LARGE / 2])?;
            end.finish()?;
            end.note_end();
            Ok(())
        },
    },
    Case { name: "the-client-resets", client: |d| resets(d, b""), app: notes_gone },
    Case { name: "the-client-resets-in-a-message", client: |d| resets(d, &pattern(50_000)), app: notes_gone },
    Case { name: "a-reset-of-the-client-reaches-the-app-as-one", client: |d| resets(d, b""), app: notes_end },
    Case { name: "the-app-resets", client: is_left, app: |end, head| app_resets(end, head, b"") },
    Case {
        name: "the-app-resets-in-a-message",
        client: is_left,
        app: |end, head| app_resets(end, head, &pattern(50_000)),
    },
    Case {
        name: "a-reset-of-the-app-reaches-the-client-as-one",
        client: |d| {
            let mut end = d.open()?;
            end.say(TEXT, "go")?;
            end.note_end();
            d.done(end);
            Ok(())
        },
        app: |end, head| app_resets(end, head, b""),
    },
    Case {
        name: "the-client-leaves-in-a-message",
        client: |d| {
            let mut end = d.open()?;
            end.send(&end.frame(0x82, pattern(LARGE))[..LARGE / 2])
        },
        app: notes_end,
    },
    Case {
        name: "the-app-is-killed-in-a-message",
        client: |d| {
            let mut end = d.open()?;
            end.note_end();
            d.done(end);
            Ok(())
        },
        app: |end, head| {
            switch(end, head)?;
            end.send(&end.frame(0x82, pattern(LARGE))[..LARGE / 2])
        },
    },
    Case {
        name: "the-app-leaves-with-unread-data",
        client: |d| {
            let mut end = d.open()?;
            end.say(TEXT, "unread")?;
            end.note_gone();
            d.done(end);
            Ok(())
        },
        app: |end, head| {
            switch(end, head)?;
            thread::sleep(Duration::from_millis(100));
            Ok(())
        },
    },
    Case { name: "the-client-leaves-after-the-handshake", client: |d| d.open().map(drop), app: notes_end },
    Case {
        name: "the-app-leaves-with-the-101",
        client: |d| {
            let mut end = d.open()?;
            end.note_end();
            d.done(end);
            Ok(())
        },
        app: |end, head| {
            end.is_tunnel = true;
            end.send(switching(head, ""))
        },
    },
    Case {
        name: "the-app-sends-much-and-leaves",
        client: |d| {
            let mut end = d.open()?;
            thread::sleep(Duration::from_millis(100));
            end.note_end();
            d.done(end);
            Ok(())
        },
        app: |end, head| {
            switch(end, head)?;
            end.send(pattern(4 * LARGE))
        },
    },
    Case {
        name: "the-client-sends-much-and-leaves",
        client: |d| d.open()?.send(pattern(4 * LARGE)),
        app: |end, head| {
            switch(end, head)?;
            thread::sleep(Duration::from_millis(100));
            end.note_end();
            Ok(())
        },
    },
    Case {
        name: "a-slow-client",
        client: |d| {
            let mut end = d.open()?;
            reads_slowly(&mut end)?;
            d.done(end);
            Ok(())
        },
        app: |end, head| {
            switch(end, head)?;
            end.send(pattern(8 * LARGE))
        },
    },
    Case {
        name: "a-slow-app",
        client: |d| d.open()?.send(pattern(8 * LARGE)),
        app: |end, head| {
            switch(end, head)?;
            reads_slowly(end)
        },
    },
    Case {
        name: "a-client-that-leaves-before-the-101",
        client: |d| {
            let mut end = d.connect()?;
            end.send(d.request(&[]))?;
            thread::sleep(Duration::from_millis(50));
            Ok(())
        },
        app: |end, head| {
            thread::sleep(Duration::from_millis(200));
            switch(end, head)?;
            end.note_gone();
            Ok(())
        },
    },
    Case {
        name: "a-second-tunnel-after-the-first",
        client: |d| {
            for n in 0..3 {
                let mut end = d.open()?;
                end.say(TEXT, format!("tunnel {n}"))?;
                end.expect(TEXT, format!("tunnel {n}"))?;
                end.finish()?;
                end.note_end();
                d.done(end);
            }
            Ok(())
        },
        app: echo,
    },
];

fn notes_end(end: &mut End, head: &Head) -> io::Result<()> {
    switch(end, head)?;
    end.note_end();
    Ok(())
}

fn notes_gone(end: &mut End, head: &Head) -> io::Result<()> {
    switch(end, head)?;
    end.note_gone();
    Ok(())
}

/// The client sends these bytes of a message and resets.
fn resets(dialer: &mut Dialer, bytes: &[u8]) -> io::Result<()> {
    let mut end = dialer.open()?;
    end.send(bytes)?;
    // Some of them are on their way; the reset drops the others.
    thread::sleep(Duration::from_millis(20));
    end.will_reset()
}

fn app_resets(end: &mut End, head: &Head, bytes: &[u8]) -> io::Result<()> {
    switch(end, head)?;
    end.next()?;
    end.send(bytes)?;
    thread::sleep(Duration::from_millis(20));
    end.will_reset()
}

fn is_left(dialer: &mut Dialer) -> io::Result<()> {
    let mut end = dialer.open()?;
    end.say(TEXT, "go")?;
    end.note_gone();
    dialer.done(end);
    Ok(())
}

/// Reads a little, pauses, and reads the rest.
fn reads_slowly(end: &mut End) -> io::Result<()> {
    for _ in 0..10 {
        end.take(1000)?;
        thread::sleep(Duration::from_millis(20));
    }
    end.note_end();
    Ok(())
}
