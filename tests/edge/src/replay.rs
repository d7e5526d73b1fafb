//! The request in a `fly-replay` response, in either of its two forms.
//!
//! Source: docs:networking/dynamic-request-routing.html.markerb (facts: 2.1). The replay cache (facts: 2.2) is deliberately
//! absent: its fields are accepted without effect, which Fly allows ("an optimisation, never a guarantee").

use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use crate::headers::{REPLAY, list};
use crate::routing::Wish;

const JSON: &str = "application/vnd.fly.replay+json";
/// Size limit of a JSON response; a larger one is malformed.
pub(crate) const MAX_JSON: usize = 64 << 10;

/// One `fly-replay`, checked.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Instruction {
    pub(crate) instance: Option<String>,
    pub(crate) prefer_instance: Option<String>,
    /// A comma-separated list.
    pub(crate) region: Option<String>,
    pub(crate) app: Option<String>,
    pub(crate) state: Option<String>,
    pub(crate) elsewhere: bool,
    #[serde(deserialize_with = "duration_from_text")]
    pub(crate) timeout: Option<Duration>,
    pub(crate) fallback: Option<Fallback>,
    pub(crate) transform: Transform,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fallback {
    ForceSelf,
    PreferSelf,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Transform {
    pub(crate) path: Option<String>,
    pub(crate) delete_headers: Vec<String>,
    pub(crate) set_headers: Vec<NewHeader>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct NewHeader {
    name: String,
    value: String,
}

/// PA03.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed fly-replay: {0}")]
pub(crate) struct Malformed(String);

/// The form of a response's replay, if it is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Header,
    Json,
}

impl Form {
    pub(crate) fn of(fields: &HeaderMap) -> Option<Self> {
        let content_type = fields.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let is_json = content_type.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(JSON);
        if fields.contains_key(REPLAY) { Some(Self::Header) } else { is_json.then_some(Self::Json) }
    }
}

impl Instruction {
    /// Reads all `fly-replay` headers of a response.
    pub(crate) fn from_fields(fields: &HeaderMap) -> Result<Self, Malformed> {
        let mut instruction = Self::default();
        for value in fields.get_all(REPLAY) {
            let text = value.to_str().map_err(|_| Malformed("not text".to_owned()))?;
            for (key, value) in pairs(text)? {
                instruction.set(&key, value)?;
            }
        }
        instruction.checked()
    }

    pub(crate) fn from_json(body: &[u8]) -> Result<Self, Malformed> {
        serde_json::from_slice::<Self>(body).map_err(|e| Malformed(e.to_string()))?.checked()
    }

    fn set(&mut self, key: &str, value: String) -> Result<(), Malformed> {
        let wrong = || Malformed(format!("`{value}` is no value of `{key}`"));
        match key {
            "elsewhere" => self.elsewhere = value.parse().map_err(|_| wrong())?,
            "timeout" => self.timeout = Some(duration(&value).ok_or_else(wrong)?),
            "fallback" => {
                self.fallback = Some(match value.as_str() {
                    "force_self" => Fallback::ForceSelf,
                    "prefer_self" => Fallback::PreferSelf,
                    _ => return Err(wrong()),
                });
            }
            "instance" => self.instance = Some(value),
            "prefer_instance" => self.prefer_instance = Some(value),
            "region" => self.region = Some(value),
            "app" => self.app = Some(value),
            "state" => self.state = Some(value),
            _ => return Err(Malformed(format!("unknown field `{key}`"))),
        }
        Ok(())
    }

    /// Requires a target.
    fn checked(self) -> Result<Self, Malformed> {
        let has_target = self.instance.is_some()
            || self.prefer_instance.is_some()
            || self.region.is_some()
            || self.app.is_some()
            || self.elsewhere;
        if has_target { Ok(self) } else { Err(Malformed("it names no target".to_owned())) }
    }

    /// The constraints for the next choice, after a response of `origin`.
    pub(crate) fn wish(&self, origin: &str, reaches_cordoned: bool) -> Wish {
        Wish {
            instance: self.instance.clone(),
            prefer: self.prefer_instance.clone(),
            regions: list(self.region.as_deref().unwrap_or_default()),
            only_regions: self.region.is_some(),
            elsewhere: self.elsewhere.then(|| origin.to_owned()),
            reaches_cordoned,
        }
    }
}

impl Transform {
    /// Leaves out invalid headers.
    pub(crate) fn apply(&self, fields: &mut HeaderMap) {
        for name in &self.delete_headers {
            fields.remove(name.as_str());
        }
        for NewHeader { name, value } in &self.set_headers {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                fields.insert(name, value);
            }
        }
    }
}

/// `k=v;k="v"`: a quoted value may contain `;`, and `"` after a backslash.
fn pairs(text: &str) -> Result<Vec<(String, String)>, Malformed> {
    let mut pairs = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').ok_or_else(|| Malformed(format!("no `=` in `{rest}`")))?;
        let after = after.trim_start();
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let (value, next) = after.split_once(';').unwrap_or((after, ""));
                (value.trim().to_owned(), next)
            }
        };
        pairs.push((key.trim().to_ascii_lowercase(), value));
        rest = next.trim_start();
    }
    Ok(pairs)
}

/// The text before the closing quote, and the text after the `;` that follows.
fn unquote(text: &str) -> Result<(String, &str), Malformed> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => {
                let rest = text[at + 1..].trim_start();
                return match rest.strip_prefix(';') {
                    Some(next) => Ok((value, next)),
                    None if rest.is_empty() => Ok((value, rest)),
                    None => Err(Malformed(format!("`{rest}` after a quoted value"))),
                };
            }
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    Err(Malformed("a quoted value does not end".to_owned()))
}

/// `10s`, `800ms`, `1m`.
fn duration(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit_at);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        _ => None,
    }
}

fn duration_from_text<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let Some(text) = Option::<String>::deserialize(from)? else { return Ok(None) };
    duration(&text).map(Some).ok_or_else(|| serde::de::Error::custom(format!("`{text}` is no duration")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Instruction, Malformed> {
        Instruction::from_fields(&HeaderMap::from_iter([(REPLAY, HeaderValue::from_str(text).unwrap())]))
    }

    #[test]
    fn all_fields_are_read_quoted_or_not() {
        let read = parse(r#"instance="a;b"; region="iad,ord" ;state="say \"x\"";timeout=800ms;fallback=prefer_self"#);
        let read = read.unwrap();
        assert_eq!(read.instance.as_deref(), Some("a;b"));
        assert_eq!(read.wish("o", false).regions, ["iad", "ord"]);
        assert_eq!(read.state.as_deref(), Some("say \"x\""));
        assert_eq!(read.timeout, Some(Duration::from_millis(800)));
        assert_eq!(read.fallback, Some(Fallback::PreferSelf));
    }

    #[test]
    fn json_says_the_same() {
        let json =
            br#"{"instance":"a;b","region":"iad,ord","state":"say \"x\"","timeout":"800ms","fallback":"prefer_self"}"#;
        let header = r#"instance="a;b";region="iad,ord";state="say \"x\"";timeout=800ms;fallback=prefer_self"#;
        assert_eq!(Instruction::from_json(json), parse(header));
    }

    #[test]
    fn mistakes_are_reported() {
        for text in ["", "instance", "instance=a;colour=red", "timeout=soon;app=x", "state=x", r#"region="iad"#] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert!(Instruction::from_json(b"{\"timeout\":\"10\"}").is_err());
        assert!(Instruction::from_json(b"[]").is_err());
    }
}
