//! Why a message is rejected, and advice for the client.

use std::fmt;

/// Why a head is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Malformed {
    /// Not a method, target and version, separated by single spaces.
    RequestLine,
    /// The target is neither a path, an absolute URL nor `*`.
    Target,
    /// The version is neither HTTP/1.0 nor HTTP/1.1.
    Version,
    /// `CONNECT`: Outrigger is not a forward proxy.
    Connect,
    /// A header name or value contains an invalid character.
    Field,
    /// A line that ends in LF alone.
    BareLineFeed,
    /// A line continues the previous one (`obs-fold`).
    FoldedField,
    /// HTTP/1.1 without `Host`, with several, or with an invalid one.
    Host,
    /// `Host` differs from the host of an absolute target.
    HostMismatch,
    /// `Content-Length` is not a number, or is repeated.
    Length,
    /// A `Transfer-Encoding` other than `chunked`, or any in HTTP/1.0.
    Encoding,
    /// Both `Content-Length` and `Transfer-Encoding`.
    LengthAndEncoding,
    /// A chunk violates the grammar.
    Chunk,
    /// HTTP/2: a request violates RFC 9113, which resets its stream.
    Stream,
    /// HTTP/2: frames or header compression violate RFC 9113, or are a flood, which ends the connection.
    Frame,
}

impl Malformed {
    /// All variants, for tests and the list of metrics.
    pub const ALL: [Self; 15] = [
        Self::RequestLine,
        Self::Target,
        Self::Version,
        Self::Connect,
        Self::Field,
        Self::BareLineFeed,
        Self::FoldedField,
        Self::Host,
        Self::HostMismatch,
        Self::Length,
        Self::Encoding,
        Self::LengthAndEncoding,
        Self::Chunk,
        Self::Stream,
        Self::Frame,
    ];

    /// Advice for the client.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::RequestLine => "send a method, a target and HTTP/1.1, with one space between them",
            Self::Target => "send a path that begins with a slash, or an absolute http URL",
            Self::Version => "speak HTTP/1.1",
            Self::Connect => "this is not a forward proxy: CONNECT is not supported",
            Self::Field => "send header names of letters, digits and hyphens, and values without control characters",
            Self::BareLineFeed => "end every line of the head with CR LF",
            Self::FoldedField => "send every header on one line",
            Self::Host => "send exactly one Host header with a host and an optional port",
            Self::HostMismatch => "send the same host in the target and in Host",
            Self::Length => "send one Content-Length, in digits",
            Self::Encoding => "send Transfer-Encoding: chunked, or none; in HTTP/1.0 send none",
            Self::LengthAndEncoding => "send either Content-Length or Transfer-Encoding, not both",
            Self::Chunk => "send each chunk as its size in hexadecimal, CR LF, the bytes, CR LF",
            Self::Stream => "send requests as RFC 9113 section 8 says",
            Self::Frame => "send frames as RFC 9113 says, and no floods of them",
        }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.advice())
    }
}
