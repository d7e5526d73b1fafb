//! The request that every check reads, borrowed from the protocol that received it.

use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// The headers of a request.
#[derive(Clone, Copy, Debug)]
pub enum Fields<'a> {
    /// A map, as for `outrigger explain`.
    Map(&'a HeaderMap),
    /// As received.
    Wire(&'a [httparse::Header<'a>]),
}

impl<'a> Fields<'a> {
    /// The first value of `name`.
    pub fn get(&self, name: &HeaderName) -> Option<&'a [u8]> {
        match self {
            Self::Map(map) => map.get(name).map(HeaderValue::as_bytes),
            Self::Wire(fields) => fields.iter().find(|field| is_named(field, name)).map(|field| field.value),
        }
    }

    /// All values of `name`, in order. Allocates: not for the hot path.
    pub fn all(&self, name: &HeaderName) -> Vec<&'a [u8]> {
        match self {
            Self::Map(map) => map.get_all(name).iter().map(HeaderValue::as_bytes).collect(),
            Self::Wire(fields) => {
                fields.iter().filter(|field| is_named(field, name)).map(|field| field.value).collect()
            }
        }
    }

    /// Calls `each` with all values of `name`, in order.
    pub fn each(&self, name: &HeaderName, mut each: impl FnMut(&'a [u8])) {
        match self {
            Self::Map(map) => map.get_all(name).iter().for_each(|value| each(value.as_bytes())),
            Self::Wire(fields) => {
                fields.iter().filter(|field| is_named(field, name)).for_each(|field| each(field.value));
            }
        }
    }

    /// Whether there is a header `name`.
    pub fn has(&self, name: &HeaderName) -> bool {
        self.get(name).is_some()
    }
}

fn is_named(field: &httparse::Header<'_>, name: &HeaderName) -> bool {
    field.name.len() == name.as_str().len() && field.name.eq_ignore_ascii_case(name.as_str())
}

/// The parts of a request that stages read, borrowed from the protocol that received it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path as sent, without the query.
    pub path: &'a str,
    /// `Host` or `:authority`; empty if missing.
    pub host: &'a str,
    /// The headers.
    pub fields: Fields<'a>,
    /// HTTP/1.0 clients support neither chunks nor interim responses.
    pub is_http10: bool,
    /// The path with the query.
    pub target: &'a str,
    /// It has a body of undeclared length.
    pub has_endless_body: bool,
}

impl Request<'_> {
    /// The declared length of its body.
    pub fn announced_bytes(&self) -> Option<u64> {
        let length = self.fields.get(&http::header::CONTENT_LENGTH)?;
        std::str::from_utf8(length).ok()?.parse().ok()
    }

    /// Whether its body has at most `most` bytes, or it has none.
    pub fn has_body_up_to(&self, most: u64) -> bool {
        !self.has_endless_body && self.announced_bytes().is_none_or(|bytes| bytes <= most)
    }
}

/// The kind of response that a request asks for, as far as timeouts differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// A response that ends.
    #[default]
    Plain,
    /// An event stream.
    Stream,
    /// Another protocol, such as WebSocket.
    Upgrade,
}
