//! An entry as it is read: by whoever searches, exports, ships or stores it.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

/// The members of an entry. What is escaped is owned, everything else borrowed from the line.
#[derive(Clone, Debug, Deserialize)]
pub struct Entry<'a> {
    /// Its number in its chain; `None` for what is in no chain.
    #[serde(default)]
    pub seq: Option<u64>,
    /// Its class.
    #[serde(borrow)]
    pub class: &'a str,
    /// Its name, a UUID.
    pub id: &'a str,
    /// When, RFC 3339.
    pub time: &'a str,
    /// Where.
    #[serde(borrow)]
    pub machine: Cow<'a, str>,
    /// The request.
    #[serde(borrow, default)]
    pub request_id: Option<Cow<'a, str>>,
    /// The trace.
    #[serde(borrow, default)]
    pub trace_id: Option<Cow<'a, str>>,
    /// The type.
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
    /// Fields, as an object.
    #[serde(borrow, default)]
    pub headers: Option<&'a RawValue>,
    /// How it ended.
    #[serde(borrow)]
    pub outcome: &'a str,
    /// The answer's status.
    #[serde(default)]
    pub status: Option<u16>,
    /// How long it took.
    #[serde(default)]
    pub duration_us: Option<u64>,
    /// Who.
    #[serde(borrow)]
    pub actor: Actor<'a>,
    /// The pseudonym of the address, where the actor is another one.
    #[serde(borrow, default)]
    pub client: Option<&'a str>,
    /// The data key with which the actor's name and address are sealed.
    #[serde(borrow, default)]
    pub sealed: Option<&'a str>,
    /// Why.
    #[serde(borrow, default)]
    pub reason: Option<Cow<'a, str>>,
    /// What else there is.
    #[serde(borrow, default)]
    pub details: Option<&'a RawValue>,
    /// The hash of the entry before, in hexadecimal.
    #[serde(borrow, default)]
    pub prev: Option<&'a str>,
}

/// Who did it.
#[derive(Clone, Debug, Deserialize)]
pub struct Actor<'a> {
    /// A pseudonym, `operator` or `outrigger`.
    #[serde(borrow)]
    pub id: &'a str,
    /// `user`, `key`, `address`, `operator` or `system`.
    #[serde(borrow)]
    pub kind: &'a str,
    /// What it may multiply.
    #[serde(borrow, default)]
    pub tier: Option<Cow<'a, str>>,
}

impl<'a> Entry<'a> {
    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(line: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(line)
    }
}
