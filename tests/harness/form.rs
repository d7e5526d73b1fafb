//! The forms that a request can have. The proxy's promises hold for each of them.

use std::thread;

use super::{Answer, Proxy};

/// The form of a request: its protocol version, and how its body is framed.
///
/// As text, a request over HTTP/2 is written like one over HTTP/1, with `HTTP/2` in its first line: [`Client::send`] sends it as
/// frames. So tests can add headers to a request of any form.
///
/// [`Client::send`]: super::Client::send
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// HTTP/1.1 without a body.
    Bare,
    /// HTTP/1.1 with `Content-Length`.
    Sized,
    /// HTTP/1.1 with a body in chunks.
    Chunked,
    /// HTTP/1.0, without a body. Its connection closes after the response, and it gets no interim responses.
    Http10,
    /// HTTP/2 without a body.
    Http2,
    /// HTTP/2 with a body, whose length it does not announce.
    Http2Body,
}

impl Form {
    pub const ALL: [Self; 6] = [Self::Bare, Self::Sized, Self::Chunked, Self::Http10, Self::Http2, Self::Http2Body];
    /// How many there are.
    pub const NUMBER: usize = Self::ALL.len();
    /// Those without a body; they are repeatable.
    pub const WITHOUT_BODY: [Self; 3] = [Self::Bare, Self::Http10, Self::Http2];
    /// Those that HTTP/1.1 has, for what only its bytes show.
    pub const HTTP11: [Self; 3] = [Self::Bare, Self::Sized, Self::Chunked];

    /// All of them in turn, for the `n`th request.
    pub fn nth(n: usize) -> Self {
        Self::ALL[n % Self::NUMBER]
    }

    pub fn has_body(self) -> bool {
        !Self::WITHOUT_BODY.contains(&self)
    }

    /// The version as `Via` writes it.
    pub fn version(self) -> &'static str {
        match self {
            Self::Bare | Self::Sized | Self::Chunked => "1.1",
            Self::Http10 => "1.0",
            Self::Http2 | Self::Http2Body => "2",
        }
    }

    /// A request for `path`: `GET`, or `POST` with `hello`.
    pub fn request(self, path: &str) -> String {
        self.with_body(path, "hello")
    }

    /// The same with another body, if it has one.
    pub fn with_body(self, path: &str, body: &str) -> String {
        let method = if self.has_body() { "POST" } else { "GET" };
        let head = format!("{method} {path} HTTP/{}\r\nHost: outrigger.test\r\n", self.version());
        match self {
            Self::Bare | Self::Http10 | Self::Http2 => format!("{head}\r\n"),
            Self::Sized => format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()),
            Self::Chunked => {
                format!("{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len())
            }
            Self::Http2Body => format!("{head}\r\n{body}"),
        }
    }

    /// Sends a request for `path` on a connection of its own.
    #[track_caller]
    pub fn ask(self, proxy: &Proxy, path: &str) -> Answer {
        proxy.ask(&self.request(path))
    }

    /// Runs a test once for each of `forms`, all at the same time: for tests that wait, each with a proxy or a client of its own.
    #[track_caller]
    pub fn at_once(forms: &[Self], test: impl Fn(Self) + Sync) {
        let (name, test) = (thread::current().name().unwrap_or("main").to_owned(), &test);
        thread::scope(|scope| {
            for form in forms {
                let thread = thread::Builder::new().name(format!("{name}-{form:?}"));
                thread.spawn_scoped(scope, move || test(*form)).expect("a thread");
            }
        });
    }
}

/// A request for `path` in every form.
pub fn every_form(path: &str) -> [String; Form::NUMBER] {
    Form::ALL.map(|form| form.request(path))
}
