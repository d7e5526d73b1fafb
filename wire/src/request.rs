//! The request that every check reads, borrowed from whichever protocol it came by.

use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// The fields of a request, parsed by Pingora or as they came off the wire.
#[derive(Clone, Copy, Debug)]
pub enum Fields<'a> {
    /// Pingora's.
    Map(&'a HeaderMap),
    /// Ours.
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

    /// All values of `name`, in order. Allocates: not for the way of every request.
    pub fn all(&self, name: &HeaderName) -> Vec<&'a [u8]> {
        match self {
            Self::Map(map) => map.get_all(name).iter().map(HeaderValue::as_bytes).collect(),
            Self::Wire(fields) => {
                fields.iter().filter(|field| is_named(field, name)).map(|field| field.value).collect()
            }
        }
    }

    /// Gives `each` all values of `name`, in order.
    pub fn each(&self, name: &HeaderName, mut each: impl FnMut(&'a [u8])) {
        match self {
            Self::Map(map) => map.get_all(name).iter().for_each(|value| each(value.as_bytes())),
            Self::Wire(fields) => {
                fields.iter().filter(|field| is_named(field, name)).for_each(|field| each(field.value));
            }
        }
    }

    /// Whether there is a `name`.
    pub fn has(&self, name: &HeaderName) -> bool {
        self.get(name).is_some()
    }
}

fn is_named(field: &httparse::Header<'_>, name: &HeaderName) -> bool {
    field.name.len() == name.as_str().len() && field.name.eq_ignore_ascii_case(name.as_str())
}

/// What the stages read of a request. Borrowed from whichever protocol it came by.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path as sent, without the query.
    pub path: &'a str,
    /// `Host` or `:authority`; empty when there is none.
    pub host: &'a str,
    /// The fields.
    pub fields: Fields<'a>,
    /// HTTP/1.0 clients know neither chunks nor interim answers.
    pub is_http10: bool,
    /// The path with the query.
    pub target: &'a str,
    /// It has a body, and says nothing about its length.
    pub has_endless_body: bool,
}

impl Request<'_> {
    /// The length that its body has, as it says.
    pub fn announced_bytes(&self) -> Option<u64> {
        let length = self.fields.get(&http::header::CONTENT_LENGTH)?;
        std::str::from_utf8(length).ok()?.parse().ok()
    }

    /// Whether its body is no longer than this, or it has none.
    pub fn has_body_up_to(&self, most: u64) -> bool {
        !self.has_endless_body && self.announced_bytes().is_none_or(|bytes| bytes <= most)
    }
}

/// What a request asks for, as far as time limits care.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// An answer that ends.
    #[default]
    Plain,
    /// An event stream.
    Stream,
    /// Another protocol, such as WebSocket.
    Upgrade,
}
