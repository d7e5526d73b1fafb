//! WebSocket: each case runs over a direct connection to the app and through the proxy, and both ends must see the same.
//! There is no failure that a direct connection does not show, Outrigger writes nothing into a tunnel, and no handshake is
//! repeated.

mod app;
mod closes;
mod declined;
mod end;
mod endings;
mod handshakes;
mod messages;
mod tunnels;

use std::{
    fmt::Write as _,
    io,
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use app::App;
use end::{End, Head, KEY};

use crate::harness::Setup;

/// Cases that fail through the proxy, each with its reason. A case that passes must be removed from this list.
const KNOWN: &[(&str, &str)] = &[];

/// The scripts of a client and an app. Both must succeed over a direct connection, and what they note must be the same both times.
struct Case {
    name: &'static str,
    client: fn(&mut Dialer) -> io::Result<()>,
    app: fn(&mut End, &Head) -> io::Result<()>,
}

fn all() -> impl Iterator<Item = &'static Case> {
    [messages::CASES, handshakes::CASES, declined::CASES, closes::CASES, endings::CASES].into_iter().flatten()
}

/// The client of a case: connects to the app, or to the proxy in front of it.
struct Dialer {
    address: SocketAddr,
    path: String,
    /// The notes of ended connections.
    notes: Vec<String>,
}

impl Dialer {
    /// A new connection, on which nothing was sent yet.
    fn connect(&self) -> io::Result<End> {
        End::connect(self.address)
    }

    /// A handshake request with these lines in place of the usual ones, if there are any.
    fn request(&self, lines: &[&str]) -> String {
        let usual = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"];
        let lines = if lines.is_empty() { &usual } else { lines };
        let key = format!("Sec-WebSocket-Key: {KEY}");
        let has_key = lines.iter().any(|line| line.to_ascii_lowercase().starts_with("sec-websocket-key"));
        let key = if has_key { "X-Key: own" } else { &key };
        format!("GET {} HTTP/1.1\r\nHost: ws.test\r\n{}\r\n{key}\r\n\r\n", self.path, lines.join("\r\n"))
    }

    /// A tunnel.
    fn open(&self) -> io::Result<End> {
        let mut end = self.connect()?;
        end.send(self.request(&[]))?;
        switched(&end.head()?)?;
        Ok(end)
    }

    /// Keeps the notes of a connection that the case is done with.
    fn done(&mut self, end: End) {
        self.notes.extend(end.notes);
    }
}

/// Fails unless this is a complete 101 response to [`KEY`].
fn switched(head: &Head) -> io::Result<()> {
    let accepts = head.field("sec-websocket-accept") == Some(app::accept(KEY));
    if head.status() == 101 && head.is_handshake() && accepts {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("no switch: {head:?}")))
    }
}

/// The observations of both ends of a case.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    client: (Result<(), String>, Vec<String>),
    /// Each connection of the app, in order.
    app: Vec<(Result<(), String>, Vec<String>)>,
}

impl Seen {
    fn is_good(&self) -> bool {
        self.client.0.is_ok() && !self.app.is_empty() && self.app.iter().all(|(outcome, _)| outcome.is_ok())
    }
}

fn run(case: &Case, app: &App, way: &str, address: SocketAddr) -> Seen {
    let path = format!("/{way}/{}", case.name);
    let mut dialer = Dialer { address, path: path.clone(), notes: Vec::new() };
    let outcome = (case.client)(&mut dialer).map_err(|e| e.to_string());
    Seen { client: (outcome, dialer.notes), app: app.seen(&path) }
}

/// Runs a case over a direct connection and through the proxy; says how they differ.
fn compare(case: &Case, app: &App, proxy: SocketAddr) -> Result<(), String> {
    let direct = run(case, app, "direct", app.address);
    assert!(direct.is_good(), "{}: it fails over a direct connection: {direct:#?}", case.name);
    let through = run(case, app, "proxy", proxy);
    if direct == through {
        Ok(())
    } else {
        Err(format!(
            "direct:  {direct:?}
through: {through:?}"
        ))
    }
}

#[test]
fn through_the_proxy_a_websocket_is_as_over_a_direct_connection() {
    let app = App::start();
    let proxy = Setup::before(app.address.to_string(), "").start();
    let cases: Vec<_> = all().collect();
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(String::new()));
    let work = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let known = KNOWN.iter().find(|(name, _)| *name == case.name);
            let mut wrong = match (compare(case, &app, proxy.address), known) {
                (Err(why), None) => (wrong.lock().unwrap_or_else(PoisonError::into_inner), why),
                (Ok(()), Some((_, reason))) => {
                    let why = format!("it passes, so remove it from KNOWN: {reason}");
                    (wrong.lock().unwrap_or_else(PoisonError::into_inner), why)
                }
                _ => continue,
            };
            writeln!(wrong.0, "--- {}\n{}", case.name, wrong.1).unwrap();
        }
    };
    thread::scope(|scope| (0..12).for_each(|_| _ = scope.spawn(work)));
    let wrong = wrong.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert!(wrong.is_empty(), "{wrong}");
    println!("{} cases, {} of them known to fail", cases.len(), KNOWN.len());
    proxy.comes_to_rest();
}

#[test]
fn names_of_cases_are_unique_and_known() {
    let mut names: Vec<_> = all().map(|case| case.name).collect();
    assert!(KNOWN.iter().all(|(name, reason)| names.contains(name) && !reason.is_empty()));
    assert!(names.len() >= 60, "{}", names.len());
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
}
