//! Tunnels and the proxy's own limits: `app.stream_timeout`, the drain, permits, connections, memory.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use xtask::Signal;

use super::{
    Dialer,
    app::{App, switch},
    end::{End, TEXT},
    messages::pattern,
};
use crate::harness::{PATIENCE, Proxy, Setup, until};

fn proxy_before(app: &App, rules: &str) -> Proxy {
    Setup::before(app.address.to_string(), rules).start()
}

fn dialer(address: SocketAddr) -> Dialer {
    Dialer { address, path: "/ws".to_owned(), notes: Vec::new() }
}

#[test]
fn silence_ends_a_tunnel_after_stream_timeout_without_a_byte() {
    let app = App::running(|end, head| {
        switch(end, head)?;
        end.note_end();
        Ok(())
    });
    let proxy = proxy_before(&app, "app.stream_timeout = \"400ms\"");
    let began = Instant::now();
    let mut end = dialer(proxy.address).open().unwrap();
    let (bytes, how) = end.rest();
    assert!(began.elapsed() >= Duration::from_millis(400), "{:?}", began.elapsed());
    assert_eq!((bytes.len(), how.as_str()), (0, "end"));
    drop(end);
    let seen = app.seen("/ws");
    assert_eq!(seen.len(), 1, "no handshake is repeated");
    assert!(seen[0].1[0].ends_with("after \"\""), "{seen:?}");
    proxy.comes_to_rest();
    assert_eq!(proxy.metric("outrigger_app_failures_total", &[]), 0.0);
}

#[test]
fn one_sided_traffic_is_not_silence() {
    let app = App::running(|end, head| {
        switch(end, head)?;
        if head.field("x-key").is_some() {
            for n in 0..20 {
                thread::sleep(Duration::from_millis(200));
                end.say(TEXT, format!("{n}"))?;
            }
            return end.finish();
        }
        (0..20).try_for_each(|_| end.hear().map(drop))
    });
    let proxy = proxy_before(&app, "app.stream_timeout = \"3s\"");
    let app_talks = || {
        let dialer = dialer(proxy.address);
        let mut end = dialer.connect().unwrap();
        let key = format!("Sec-WebSocket-Key: {}", super::KEY);
        let lines = [&key, "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"];
        end.send(dialer.request(&lines)).unwrap();
        super::switched(&end.head().unwrap()).unwrap();
        (0..20).for_each(|n| end.expect(TEXT, format!("{n}")).unwrap());
    };
    let client_talks = || {
        let mut end = dialer(proxy.address).open().unwrap();
        for n in 0..20 {
            thread::sleep(Duration::from_millis(200));
            end.say(TEXT, format!("{n}")).unwrap();
        }
        assert_eq!(end.rest().1, "end");
    };
    thread::scope(|scope| {
        scope.spawn(app_talks);
        scope.spawn(client_talks);
    });
    let seen = app.seen("/ws");
    assert!(seen.len() == 2 && seen.iter().all(|(outcome, _)| outcome.is_ok()), "{seen:?}");
}

#[test]
fn a_draining_process_carries_tunnels_until_they_end() {
    let app = App::echoing();
    let mut proxy = proxy_before(&app, "server.lame_duck = \"0s\"\nserver.drain_timeout = \"20s\"");
    let mut end = dialer(proxy.address).open().unwrap();
    proxy.signal(Signal::TERM);
    until("the listener to close", || End::connect(proxy.address).is_err());
    for n in 0..5 {
        end.say(TEXT, format!("{n}")).unwrap();
        end.expect(TEXT, format!("{n}")).unwrap();
    }
    assert!(proxy.is_running());
    end.close(1001, "going away").unwrap();
    end.next().unwrap();
    assert_eq!(end.rest(), (Vec::new(), "end".to_owned()));
    drop(end);
    let began = Instant::now();
    assert!(proxy.ends_within(PATIENCE).success());
    assert!(began.elapsed() < Duration::from_secs(3), "it exits with its last tunnel: {:?}", began.elapsed());
}

#[test]
fn drain_timeout_ends_tunnels_without_a_byte() {
    let app = App::echoing();
    let mut proxy = proxy_before(&app, "server.lame_duck = \"0s\"\nserver.drain_timeout = \"4s\"");
    let mut end = dialer(proxy.address).open().unwrap();
    proxy.signal(Signal::TERM);
    until("the listener to close", || End::connect(proxy.address).is_err());
    end.say(TEXT, "still here").unwrap();
    end.expect(TEXT, "still here").unwrap();
    let (bytes, how) = end.rest();
    assert!(bytes.is_empty() && matches!(how.as_str(), "end" | "ConnectionReset"), "{how}: {bytes:?}");
    assert!(proxy.ends_within(PATIENCE).success());
}

#[test]
fn tunnels_hold_a_connection_each_and_no_permit() {
    let app = App::echoing();
    let rules = "admission.min = 1\nadmission.max = 1\nadmission.max_wait = \"2s\"";
    let proxy = proxy_before(&app, rules);
    let mut ends: Vec<_> = (0..20).map(|_| dialer(proxy.address).open().unwrap()).collect();
    for (n, end) in ends.iter_mut().enumerate() {
        end.say(TEXT, format!("{n}")).unwrap();
    }
    for (n, end) in ends.iter_mut().enumerate() {
        end.expect(TEXT, format!("{n}")).unwrap();
    }
    until("all permits to be free", || proxy.metric("outrigger_requests_in_flight", &[]) == 20.0);
    assert_eq!(proxy.metric("outrigger_open_connections", &[]), 20.0);
    assert_eq!(app.requests("/ws"), 20);
    drop(ends);
    proxy.comes_to_rest();
    proxy.counts("outrigger_stream_duration_seconds_count", &[("kind", "upgrade")], 20);
    proxy.counts("outrigger_requests_total", &[("outcome", "success")], 20);
    assert_eq!(app.requests("/ws"), 20, "no handshake is repeated");
}

#[test]
fn beyond_max_connections_a_handshake_gets_503() {
    let app = App::echoing();
    let proxy = proxy_before(&app, "server.max_connections = 3");
    let mut ends: Vec<_> = (0..3).map(|_| dialer(proxy.address).open().unwrap()).collect();
    proxy.get("/ws").is_problem(503, "too_many_connections");
    // A tunnel is not idle: none of them was closed to make room.
    for end in &mut ends {
        end.say(TEXT, "here").unwrap();
        end.expect(TEXT, "here").unwrap();
    }
    drop(ends.pop());
    until("a connection to be free", || dialer(proxy.address).open().is_ok());
}

#[test]
fn slow_readers_cost_no_memory() {
    const TUNNELS: usize = 4;
    let app = App::running(|end, head| {
        switch(end, head)?;
        let how = end.next()?.payload;
        if how == b"send" {
            let sent = end.send_until_blocked(&pattern(1 << 20), Duration::from_millis(250))?;
            end.note(sent.to_string());
            return end.finish();
        }
        thread::sleep(Duration::from_millis(900));
        let (bytes, _) = end.rest();
        end.note(bytes.len().to_string());
        Ok(())
    });
    let proxy = proxy_before(&app, "");
    let reads_slowly = || {
        let mut end = dialer(proxy.address).open().unwrap();
        end.say(TEXT, "send").unwrap();
        thread::sleep(Duration::from_millis(900));
        end.rest().0.len()
    };
    let has_a_slow_app = || {
        let mut end = dialer(proxy.address).open().unwrap();
        end.say(TEXT, "read").unwrap();
        end.send_until_blocked(&pattern(1 << 20), Duration::from_millis(250)).unwrap()
    };
    let (started_with, _) = proxy.memory_kib();
    let mut arrived = 0;
    let mut peaks = [0, 0];
    for peak in &mut peaks {
        arrived += thread::scope(|scope| {
            let run = |n: usize| if n.is_multiple_of(2) { reads_slowly() } else { has_a_slow_app() };
            let threads: Vec<_> = (0..2 * TUNNELS).map(|n| scope.spawn(move || run(n))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
        });
        proxy.comes_to_rest();
        *peak = proxy.memory_kib().1;
    }
    let notes = app.seen("/ws");
    let noted: usize = notes.iter().flat_map(|(_, notes)| notes).filter_map(|note| note.parse::<usize>().ok()).sum();
    assert_eq!(noted, arrived, "every byte arrived");
    let [first, second] = peaks.map(|peak| peak.saturating_sub(started_with));
    println!(
        "{} KiB waited for {} tunnels, twice; the proxy grew by {first} KiB, {second} KiB",
        noted >> 11,
        2 * TUNNELS
    );
    assert!(noted > 64 << 20 && second < 40 << 10, "{first} KiB, then {second} KiB");
}
