//! Parsed audit entries, for search, export, shipping and storage.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

/// The members of an entry. Strings with escapes are owned, all others borrow from the line.
#[derive(Clone, Debug, Deserialize)]
pub struct Entry<'a> {
    /// Its number in its chain; `None` if it is not chained.
    #[serde(default)]
    pub seq: Option<u64>,
    /// Its class.
    #[serde(borrow)]
    pub class: &'a str,
    /// Its id, a UUID.
    pub id: &'a str,
    /// When it happened, RFC 3339.
    pub time: &'a str,
    /// The Machine.
    #[serde(borrow)]
    pub machine: Cow<'a, str>,
    /// The request's id.
    #[serde(borrow, default)]
    pub request_id: Option<Cow<'a, str>>,
    /// The trace's id.
    #[serde(borrow, default)]
    pub trace_id: Option<Cow<'a, str>>,
    /// The event type.
    #[serde(rename = "type", borrow)]
    pub event: &'a str,
    /// The action.
    #[serde(borrow)]
    pub action: Cow<'a, str>,
    /// The method.
    #[serde(borrow, default)]
    pub method: Option<Cow<'a, str>>,
    /// The route.
    #[serde(borrow, default)]
    pub route: Option<Cow<'a, str>>,
    /// Path parameters, as an object.
    #[serde(borrow, default)]
    pub resource: Option<&'a RawValue>,
    /// Request headers, as an object.
    #[serde(borrow, default)]
    pub headers: Option<&'a RawValue>,
    /// The outcome.
    #[serde(borrow)]
    pub outcome: &'a str,
    /// The response's status.
    #[serde(default)]
    pub status: Option<u16>,
    /// Duration in microseconds.
    #[serde(default)]
    pub duration_us: Option<u64>,
    /// The actor.
    #[serde(borrow)]
    pub actor: Actor<'a>,
    /// The pseudonym of the client's address, unless the actor is the address.
    #[serde(borrow, default)]
    pub client: Option<&'a str>,
    /// Id of the data key that encrypts the actor's name and address.
    #[serde(borrow, default)]
    pub sealed: Option<&'a str>,
    /// The reason.
    #[serde(borrow, default)]
    pub reason: Option<Cow<'a, str>>,
    /// Further details.
    #[serde(borrow, default)]
    pub details: Option<&'a RawValue>,
    /// The hash of the previous entry, in hex.
    #[serde(borrow, default)]
    pub prev: Option<&'a str>,
}

/// The actor of an entry.
#[derive(Clone, Debug, Deserialize)]
pub struct Actor<'a> {
    /// A pseudonym, `operator`, `outrigger` or `anonymous`.
    #[serde(borrow)]
    pub id: &'a str,
    /// `user`, `key`, `address`, `operator` or `system`.
    #[serde(borrow)]
    pub kind: &'a str,
    /// The tier of the client's rate limits.
    #[serde(borrow, default)]
    pub tier: Option<Cow<'a, str>>,
}

impl<'a> Entry<'a> {
    /// Parses a line.
    ///
    /// # Errors
    /// The line is not an entry.
    pub fn parse(line: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(line)
    }
}
