//! A scripted app: it responds, and sometimes it does not.

use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::ledger::{Id, Ledger};
use crate::message::{Head, Reader, content};
use crate::random::Random;

/// The behaviour of an app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// It responds within a few milliseconds.
    #[default]
    Well,
    /// It takes long.
    Slow,
    /// It reads requests, and never responds.
    Hung,
    /// It responds 500 or 503.
    Failing,
    /// Each request meets something else: see [`Act`].
    Erratic,
}

/// The behaviour for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// It responds: with this status, after this time, a body of this length.
    Respond { status: u16, after: Duration, length: usize },
    /// As a response in chunks, with pauses.
    Stream { pause: Duration, pieces: u64 },
    /// It responds, and closes the connection without having said so.
    RespondAndClose,
    /// It responds, and sends the head of another response, for no request.
    RespondTwice,
    /// It closes the connection instead of a response.
    Close,
    /// It closes the connection within the head of its response.
    BreakHead,
    /// It closes the connection within the body of its response.
    BreakBody,
    /// It stops within the body of its response, and does not close.
    HangInBody,
    /// It sends 103 first.
    Hint,
    /// It never responds.
    Hang,
    /// Its response is not HTTP.
    Garble,
}

/// An app behind one Machine.
#[derive(Debug)]
pub struct App {
    machine: usize,
    path: PathBuf,
    ledger: Ledger,
    mood: Arc<Mutex<Mood>>,
    random: Random,
    running: Option<JoinHandle<()>>,
}

impl App {
    /// One that does not run yet.
    pub fn new(machine: usize, path: &Path, ledger: &Ledger, random: Random) -> Self {
        let mood = Arc::default();
        Self { machine, path: path.to_owned(), ledger: ledger.clone(), mood, random, running: None }
    }

    /// Listens and serves, unless it does.
    pub fn start(&mut self) {
        if self.running.is_some() {
            return;
        }
        let _ = std::fs::remove_file(&self.path);
        let listener = StdListener::bind(&self.path).expect("the directory is there");
        listener.set_nonblocking(true).expect("a socket can be non-blocking");
        let listener = UnixListener::from_std(listener).expect("there is a runtime");
        self.ledger.note(&format!("app m{} listens", self.machine));
        let serving = Serving {
            machine: self.machine,
            ledger: self.ledger.clone(),
            mood: Arc::clone(&self.mood),
            random: self.random.fork(),
        };
        self.running = Some(tokio::spawn(serving.accept(listener)));
    }

    /// Ends it, with all its connections.
    pub async fn crash(&mut self) {
        if let Some(running) = self.running.take() {
            self.ledger.note(&format!("app m{} crashes", self.machine));
            running.abort();
            let _ = running.await;
        }
    }

    /// Changes what it does with the next requests.
    pub fn set(&self, mood: Mood) {
        self.ledger.note(&format!("app m{} is {mood:?}", self.machine));
        *self.mood.lock().unwrap_or_else(PoisonError::into_inner) = mood;
    }
}

/// An app that listens.
struct Serving {
    machine: usize,
    ledger: Ledger,
    mood: Arc<Mutex<Mood>>,
    random: Random,
}

impl Serving {
    async fn accept(mut self, listener: UnixListener) {
        // Dropped with this task, and then all connections are.
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let mood = Arc::clone(&self.mood);
            let mood = move || *mood.lock().unwrap_or_else(PoisonError::into_inner);
            let (machine, ledger, random) = (self.machine, self.ledger.clone(), self.random.fork());
            connections.spawn(async move {
                Conversation { machine, ledger, random, stream, reader: Reader::default() }.serve(mood).await;
            });
            while connections.try_join_next().is_some() {}
        }
    }
}

/// A connection of the proxy.
struct Conversation {
    machine: usize,
    ledger: Ledger,
    random: Random,
    stream: UnixStream,
    reader: Reader,
}

impl Conversation {
    async fn serve(mut self, mood: impl Fn() -> Mood) {
        while let Ok(head) = self.reader.head(&mut self.stream).await {
            let Some(id) = head.number("x-simulated") else {
                // A probe of the app's health.
                if mood() == Mood::Hung {
                    self.wait_for_end().await;
                    return;
                }
                if self.stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.is_err() {
                    return;
                }
                continue;
            };
            let act = self.act(mood());
            let close_unread = act == Act::Close && self.random.percent(30);
            if close_unread {
                return;
            }
            let Ok(body) = self.reader.body(&mut self.stream, &head, false, false).await else { return };
            self.ledger.executed(id, self.machine);
            let length = head.number("x-length").unwrap_or(0) as usize;
            if body != content(id, '>', length) {
                self.ledger.violated(format!("the body of request {id} is not the one that was sent"));
            }
            if self.respond(id, &head, act).await.is_none() {
                return;
            }
        }
    }

    fn act(&mut self, mood: Mood) -> Act {
        let random = &mut self.random;
        let length = random.pick(&[0, 5, 300, 5_000, 90_000]);
        let well = Act::Respond { status: 200, after: random.ms(0, 20), length };
        match mood {
            Mood::Well => well,
            Mood::Slow => Act::Respond { status: 200, after: random.ms(50, 900), length },
            Mood::Hung => Act::Hang,
            Mood::Failing => Act::Respond { status: random.pick(&[500, 503, 502]), after: random.ms(0, 20), length: 5 },
            Mood::Erratic => match random.between(0, 15) {
                0 => Act::Stream { pause: random.ms(0, 700), pieces: random.between(1, 6) },
                1 => Act::RespondAndClose,
                2 => Act::RespondTwice,
                3 => Act::Close,
                4 => Act::BreakHead,
                5 => Act::BreakBody,
                6 => Act::HangInBody,
                7 => Act::Hint,
                8 => Act::Hang,
                9 => Act::Garble,
                10 => Act::Respond { status: 500, after: random.ms(0, 50), length: 5 },
                11 => Act::Respond { status: 200, after: random.ms(100, 1500), length },
                _ => well,
            },
        }
    }

    /// `None`: the connection ends.
    async fn respond(&mut self, id: Id, head: &Head, act: Act) -> Option<()> {
        let is_head = head.line.starts_with("HEAD ");
        match act {
            Act::Respond { status, after, length } => {
                tokio::time::sleep(after).await;
                self.send(&response(id, status, length, is_head)).await
            }
            Act::Stream { pause, pieces } => self.stream(id, is_head, pause, pieces).await,
            Act::RespondAndClose => {
                self.send(&response(id, 200, 100, is_head)).await?;
                None
            }
            Act::RespondTwice => {
                self.send(&response(id, 200, 100, is_head)).await?;
                tokio::time::sleep(Duration::from_millis(self.random.between(0, 8))).await;
                // Once the next request is there, nobody could tell it from the response to that.
                let has_next = tokio::time::timeout(Duration::ZERO, self.reader.wait(&mut self.stream)).await;
                if has_next.is_err() {
                    self.ledger.note(&format!("app m{} responds to {id} again", self.machine));
                    self.send(&response(id, 200, 9, is_head)).await?;
                }
                Some(())
            }
            Act::Close => None,
            Act::BreakHead => {
                self.send(b"HTTP/1.1 200 OK\r\nX-Simu").await?;
                None
            }
            Act::BreakBody => {
                self.ledger.change(id, |entry| entry.was_broken_off = true);
                let whole = response(id, 200, 70_000, is_head);
                self.send(&whole[..whole.len() - if is_head { 0 } else { 30_000 }]).await?;
                None
            }
            Act::HangInBody => {
                self.ledger.change(id, |entry| entry.was_broken_off = true);
                let whole = response(id, 200, 70_000, is_head);
                self.send(&whole[..whole.len() - if is_head { 0 } else { 30_000 }]).await?;
                self.wait_for_end().await
            }
            Act::Hint => {
                self.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
                self.send(&response(id, 200, 300, is_head)).await
            }
            Act::Hang => {
                self.ledger.change(id, |entry| entry.hung += 1);
                self.wait_for_end().await
            }
            Act::Garble => {
                self.ledger.change(id, |entry| entry.was_garbled = true);
                self.send(b"I am not HTTP\r\n\r\n").await?;
                None
            }
        }
    }

    async fn wait_for_end(&mut self) -> Option<()> {
        self.reader.wait(&mut self.stream).await;
        None
    }

    async fn stream(&mut self, id: Id, is_head: bool, pause: Duration, pieces: u64) -> Option<()> {
        let length = pieces as usize * 1000;
        let head =
            format!("HTTP/1.1 200 OK\r\nX-Simulated: {id}\r\nX-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n");
        self.send(head.as_bytes()).await?;
        if is_head {
            return Some(());
        }
        for piece in content(id, '<', length).chunks(1000) {
            tokio::time::sleep(pause).await;
            self.send(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
            self.send(piece).await?;
            self.send(b"\r\n").await?;
        }
        self.send(b"0\r\n\r\n").await
    }

    async fn send(&mut self, bytes: &[u8]) -> Option<()> {
        self.stream.write_all(bytes).await.ok()
    }
}

fn response(id: Id, status: u16, length: usize, is_head: bool) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status} Simulated\r\nX-Simulated: {id}\r\nX-Length: {length}\r\nContent-Length: {length}\r\n\r\n"
    );
    let mut bytes = head.into_bytes();
    if !is_head {
        bytes.extend(content(id, '<', length));
    }
    bytes
}
