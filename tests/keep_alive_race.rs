//! POSTs to an app that closes kept connections at any moment: none is lost, none executed twice, and none answered 502 unless
//! the app read it and then left.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};
use xtask::ports;

use crate::harness::{Proxy, Setup, fresh_dir, post, socket, until};

/// Numbers that are the same in each run.
#[derive(Clone, Copy, Debug)]
struct Seed(u64);

impl Seed {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn time(&mut self, most: Duration) -> Duration {
        Duration::from_micros(self.below(most.as_micros() as u64 + 1))
    }
}

#[derive(Clone, Debug)]
enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Place {
    fn tcp() -> Self {
        Self::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free().unwrap())))
    }

    fn unix() -> Self {
        Self::Unix(socket(&fresh_dir()))
    }

    fn name(&self) -> String {
        match self {
            Self::Tcp(address) => address.to_string(),
            Self::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    fn listen(&self) -> Socket {
        let (listener, address) = match self {
            Self::Tcp(address) => {
                let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                listener.set_reuse_address(true).unwrap();
                (listener, SockAddr::from(*address))
            }
            Self::Unix(path) => {
                let _ = std::fs::remove_file(path);
                (Socket::new(Domain::UNIX, Type::STREAM, None).unwrap(), SockAddr::unix(path).unwrap())
            }
        };
        // A process that is just being started still has the previous listener, until it executes its program.
        until("the address is free", || listener.bind(&address).is_ok());
        listener.listen(1024).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    }
}

/// How the app treats its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// It closes some of them after a response, at any moment, whether or not a request has come; and restarts now and then.
    Closes,
    /// It reads some requests, acts, and aborts the connection instead of a response.
    Aborts,
}

struct App {
    place: Place,
    manner: Manner,
    /// How often each request was executed.
    rows: Mutex<HashMap<u64, u32>>,
    /// A restart ends the connections of the life before.
    life: AtomicU64,
    is_over: AtomicBool,
}

impl App {
    fn start(place: Place, manner: Manner) -> Arc<Self> {
        let app =
            Self { place, manner, rows: Mutex::default(), life: AtomicU64::new(0), is_over: AtomicBool::new(false) };
        let app = Arc::new(app);
        let running = Arc::clone(&app);
        let listener = app.place.listen();
        thread::spawn(move || running.run(listener));
        app
    }

    fn run(self: Arc<Self>, mut listener: Socket) {
        let mut seed = Seed(0x9e37_79b9);
        while !self.is_over.load(Ordering::Relaxed) {
            let restarts_at = Instant::now() + Duration::from_millis(30) + seed.time(Duration::from_millis(200));
            while self.manner == Manner::Aborts || Instant::now() < restarts_at {
                match listener.accept() {
                    Ok((from, _)) => {
                        let (app, mut seed) = (Arc::clone(&self), Seed(seed.below(u64::MAX) | 1));
                        thread::spawn(move || app.serve(from, &mut seed));
                    }
                    Err(_) if self.is_over.load(Ordering::Relaxed) => return,
                    Err(_) => thread::sleep(Duration::from_micros(200)),
                }
            }
            self.life.fetch_add(1, Ordering::Relaxed);
            drop(listener);
            thread::sleep(seed.time(Duration::from_millis(10)));
            listener = self.place.listen();
        }
    }

    fn serve(&self, mut from: Socket, seed: &mut Seed) {
        let life = self.life.load(Ordering::Relaxed);
        from.set_nonblocking(false).unwrap();
        from.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        loop {
            if !self.has_request(&from, life) {
                return half_close(&from, seed);
            }
            let Ok(row) = request(&mut from) else { return };
            *self.rows.lock().unwrap().entry(row).or_default() += 1;
            if self.manner == Manner::Aborts && seed.below(4) == 0 {
                from.set_linger(Some(Duration::ZERO)).unwrap();
                return;
            }
            from.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
            if self.manner == Manner::Closes && seed.below(3) == 0 {
                thread::sleep(seed.time(Duration::from_millis(5)));
                return half_close(&from, seed);
            }
        }
    }

    /// Waits until there is a request. False: the other end has closed, or the app restarts.
    fn has_request(&self, from: &Socket, life: u64) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        while self.life.load(Ordering::Relaxed) == life {
            match from.peek(&mut byte) {
                Ok(bytes) => return bytes > 0,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(_) => return false,
            }
        }
        false
    }
}

/// Half of the connections close in two steps, as those of hyper do: the sending side first.
fn half_close(from: &Socket, seed: &mut Seed) {
    if seed.below(2) == 0 {
        let _ = from.shutdown(Shutdown::Write);
    }
}

/// Reads a request; returns the number in its body.
fn request(from: &mut Socket) -> io::Result<u64> {
    let (mut read, mut piece) = (Vec::new(), [0; 16 << 10]);
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => read.extend_from_slice(&piece[..bytes]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
        let text = String::from_utf8_lossy(&read);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = |line: &str| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok();
        if head.lines().find_map(length) == Some(body.len()) {
            return Ok(body.trim().parse().unwrap());
        }
    }
}

/// Sends this many POSTs, each with a row of its own; returns how often each status came.
fn write_rows(proxy: &Proxy, rows: u64, most_bytes: u64) -> HashMap<u16, u64> {
    const CLIENTS: u64 = 8;
    let statuses = Mutex::new(HashMap::new());
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let statuses = &statuses;
            scope.spawn(move || {
                let mut seed = Seed(client + 1);
                let mut connection = proxy.connect();
                for row in (client..rows).step_by(CLIENTS as usize) {
                    let length = 20 + seed.below(most_bytes) as usize;
                    let answer = connection.send(post("/", &format!("{row:length$}"))).answer();
                    *statuses.lock().unwrap().entry(answer.status).or_default() += 1;
                    if answer.closes() {
                        connection = proxy.connect();
                    }
                }
            });
        }
    });
    statuses.into_inner().unwrap()
}

fn race(place: Place, rows: u64, most_bytes: u64) {
    let app = App::start(place, Manner::Closes);
    let proxy = Setup::before(app.place.name(), "retry.budget_min = 1000\n").start();
    let statuses = write_rows(&proxy, rows, most_bytes);
    app.is_over.store(true, Ordering::Relaxed);
    let executed = app.rows.lock().unwrap();
    let twice = executed.values().filter(|times| **times > 1).count();
    let attempts = |connection| proxy.metric("outrigger_app_attempts_total", &[("connection", connection)]);
    println!(
        "{rows} POSTs: {statuses:?}, {twice} executed twice, {} connections new, {} reused, {} of them replaced",
        attempts("new"),
        attempts("reused"),
        proxy.metric("outrigger_app_reconnects_total", &[]),
    );
    assert_eq!(statuses, HashMap::from([(200, rows)]));
    assert_eq!((executed.len() as u64, twice), (rows, 0));
    assert!(proxy.metric("outrigger_app_reconnects_total", &[]) > 0.0, "there were races");
}

#[test]
fn posts_over_tcp_survive_an_app_that_closes_kept_connections() {
    race(Place::tcp(), 3000, 20_000);
}

#[test]
fn posts_over_unix_sockets_survive_an_app_that_closes_kept_connections() {
    race(Place::unix(), 3000, 2000);
}

#[test]
#[ignore = "minutes: cargo xtask soak --tests"]
fn a_hundred_thousand_posts_survive_an_app_that_closes_kept_connections() {
    race(Place::tcp(), 100_000, 20_000);
    race(Place::unix(), 100_000, 2000);
}

/// A request that the app has read may have been executed: it is never sent again, whichever way the connection ends.
#[test]
fn a_post_that_was_read_before_an_abort_is_not_sent_again() {
    for place in [Place::tcp(), Place::unix()] {
        let app = App::start(place, Manner::Aborts);
        let proxy = Setup::before(app.place.name(), "").start();
        let statuses = write_rows(&proxy, 400, 2000);
        app.is_over.store(true, Ordering::Relaxed);
        let executed = app.rows.lock().unwrap();
        assert_eq!(executed.len(), 400);
        assert!(executed.values().all(|times| *times == 1), "{executed:?}");
        assert!(statuses[&200] > 200 && statuses[&502] > 50 && statuses.len() == 2, "{statuses:?}");
    }
}
