//! Requests with a body to apps that answer early, or that break off after they have begun to answer.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::harness::{Setup, fresh_dir, socket};

/// Reads a header section in small pieces, and leaves the body unread.
fn head(from: &mut impl Read) -> Vec<u8> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && from.read(&mut byte).is_ok_and(|read| read == 1) {
        head.push(byte[0]);
    }
    head
}

/// Everything that the proxy sends until it closes.
fn answer(mut client: TcpStream) -> String {
    let mut all = Vec::new();
    client.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    let _ = client.read_to_end(&mut all);
    String::from_utf8(all).unwrap()
}

/// The app need not read the rest of a body that it has answered already: its response goes on for as long as it sends.
#[test]
fn an_early_event_stream_outlives_an_upload_that_the_app_does_not_read() {
    let app = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = app.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for mut from in app.incoming().flatten() {
            if !head(&mut from).starts_with(b"POST") {
                continue;
            }
            from.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").unwrap();
            for event in 0..6 {
                // At once: `write!` would send it in pieces, each of which can become a chunk.
                let _ = from.write_all(format!("data: {event}\n\n").as_bytes());
                thread::sleep(Duration::from_millis(600));
            }
        }
    });
    let rules = "[[routes]]\nname = \"events\"\npath = \"/**\"\ntimeout = \"2s\"\n";
    let proxy = Setup::before(address, rules).start();
    let client = TcpStream::connect(proxy.address).unwrap();
    let mut upload = client.try_clone().unwrap();
    thread::spawn(move || {
        let _ = write!(upload, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 64 << 20);
        let _ = upload.write_all(&vec![b'x'; 64 << 20]);
    });
    let answer = answer(client);
    assert!(answer.contains("data: 5"), "{answer}");
}

/// After an interim response, a reset of the connection does not show that the request was not read.
#[test]
fn a_post_that_got_an_interim_response_is_not_sent_again() {
    let path = socket(&fresh_dir());
    let app = UnixListener::bind(&path).unwrap();
    let posts = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&posts);
    thread::spawn(move || {
        for mut from in app.incoming().flatten() {
            let count = Arc::clone(&count);
            thread::spawn(move || {
                let mut request = head(&mut from);
                while request.starts_with(b"GET") {
                    from.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
                    request = head(&mut from);
                }
                // A connection may also end without another request.
                if !request.starts_with(b"POST") {
                    return;
                }
                count.fetch_add(1, Ordering::Relaxed);
                let _ = from.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n");
                thread::sleep(Duration::from_millis(100));
            });
        }
    });
    let proxy = Setup::before(format!("unix:{}", path.display()), "").start();
    assert_eq!(proxy.get("/").status, 200);
    let mut client = TcpStream::connect(proxy.address).unwrap();
    let body = "x".repeat(2000);
    let post = format!("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2000\r\n\r\n{body}");
    client.write_all(post.as_bytes()).unwrap();
    let answer = answer(client);
    assert!(answer.starts_with("HTTP/1.1 103") && answer.contains("HTTP/1.1 502"), "{answer}");
    assert_eq!(posts.load(Ordering::Relaxed), 1);
}
