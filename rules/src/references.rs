//! References in text values: `${NAME}` and `${NAME:-default}` to the environment, `${file:/run/secrets/x}` to a file. `$${` is the text
//! `${`.
//!
//! The values that they stand for may be secrets. They are kept beside the tree, by the place of the text, and [`crate::scrub`] keeps
//! them out of messages.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use serde_json::Value as Json;

use crate::environment::Environment;
use crate::error::{Place, Problem, names_secret};
use crate::inputs::{Inputs, STRANGE, STRANGE_HINT, Trust};
use crate::schema::{resolve, type_name};
use crate::sources::Sources;
use crate::tree::{Node, Value};

/// Maximum bytes of a file that a value refers to.
const MOST_BYTES: usize = 64 << 10;

/// Maximum bytes of all values that references stand for.
const MOST_VALUES: usize = 1 << 20;

const FORMS: &str = "write ${NAME}, ${NAME:-default} or ${file:/run/secrets/name}; $${ is the text ${ itself";

/// The target of a reference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reference {
    /// A variable of the environment.
    Variable(String),
    /// A file, as it is written.
    File(String),
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => write!(f, "${{{name}}}"),
            Self::File(path) => write!(f, "${{file:{path}}}"),
        }
    }
}

/// A text that had references.
#[derive(Clone)]
pub struct Expanded {
    /// Their targets, each once.
    pub references: Vec<Reference>,
    /// The text is one reference, and nothing else.
    pub is_whole: bool,
    /// A reference could not be followed, so there is no value.
    pub is_failed: bool,
    /// The values from outside of the file. Never display them.
    values: Vec<String>,
}

impl fmt::Debug for Expanded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expanded").field("references", &self.references).finish_non_exhaustive()
    }
}

impl Expanded {
    fn name(&mut self, reference: Reference) {
        if !self.references.contains(&reference) {
            self.references.push(reference);
        }
    }

    /// The references, for messages.
    pub fn names(&self) -> String {
        self.references.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
    }
}

/// All texts that had references, by the place where each begins.
#[derive(Clone, Debug, Default)]
pub struct References(BTreeMap<usize, Expanded>);

impl References {
    /// The references of the value at `place`.
    pub fn at(&self, place: &Place) -> Option<&Expanded> {
        self.0.get(&place.span()?.start)
    }

    /// Whether no text had any.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The values from outside of the files. Never display them.
    pub fn values(&self) -> impl Iterator<Item = &str> {
        self.0.values().flat_map(|expanded| expanded.values.iter().map(String::as_str))
    }

    /// The names of all variables.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        self.0.values().flat_map(|expanded| &expanded.references).filter_map(|reference| match reference {
            Reference::Variable(name) => Some(name.as_str()),
            Reference::File(_) => None,
        })
    }
}

/// Replaces the references in all texts of `root`.
pub fn expand(
    root: &mut Node,
    environment: Environment<'_>,
    sources: &Sources,
    inputs: &mut Inputs,
    trust: Trust,
) -> (References, Vec<Problem>) {
    let mut expander =
        Expander { environment, trust, sources, inputs, found: References::default(), problems: Vec::new(), bytes: 0 };
    expander.node("", root);
    (expander.found, expander.problems)
}

struct Expander<'a> {
    environment: Environment<'a>,
    trust: Trust,
    sources: &'a Sources,
    inputs: &'a mut Inputs,
    found: References,
    problems: Vec<Problem>,
    /// The length of all values so far.
    bytes: usize,
}

impl Expander<'_> {
    fn node(&mut self, key: &str, node: &mut Node) {
        match &mut node.value {
            Value::Text(text) if text.contains("${") => {
                let (value, expanded) = self.text(key, text, &node.place);
                *text = value;
                if let (Some(span), false) = (node.place.span(), expanded.references.is_empty() && !expanded.is_failed)
                {
                    self.found.0.insert(span.start, expanded);
                }
            }
            Value::List(items) => items.iter_mut().for_each(|item| self.node(key, item)),
            // The files are read already.
            Value::Table(entries) => entries
                .iter_mut()
                .filter(|(name, ..)| !(key.is_empty() && name == "include"))
                .for_each(|(name, _, node)| self.node(name, node)),
            _ => {}
        }
    }

    fn text(&mut self, key: &str, text: &str, place: &Place) -> (String, Expanded) {
        let mut value = String::new();
        let mut expanded = Expanded { references: Vec::new(), is_whole: false, is_failed: false, values: Vec::new() };
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            if let Some(before) = rest[..at].strip_suffix('$') {
                value.push_str(before);
                value.push_str("${");
                rest = &rest[at + 2..];
                continue;
            }
            value.push_str(&rest[..at]);
            let followed = match rest[at + 2..].split_once('}') {
                Some((body, after)) => {
                    expanded.is_whole = text.len() == body.len() + 3;
                    rest = after;
                    self.follow(body, place, &mut expanded)
                }
                None => {
                    rest = "";
                    Err(("a reference has no `}` at its end".to_owned(), FORMS.to_owned()))
                }
            };
            match followed {
                Ok(found) => value.push_str(&found),
                Err((message, hint)) => {
                    expanded.is_failed = true;
                    let place = if names_secret(key) { place.clone().hidden() } else { place.clone() };
                    self.problems.push(Problem::new(place, message, hint));
                }
            }
        }
        value.push_str(rest);
        (value, expanded)
    }

    /// The value of one reference, or the message and the hint.
    fn follow(&mut self, body: &str, place: &Place, expanded: &mut Expanded) -> Result<String, (String, String)> {
        if self.trust == Trust::Stranger {
            return Err((STRANGE.to_owned(), STRANGE_HINT.to_owned()));
        }
        let found = if let Some(path) = body.strip_prefix("file:").filter(|path| !path.is_empty()) {
            expanded.name(Reference::File(path.to_owned()));
            self.file(path, place)?
        } else {
            let (name, default) = match body.split_once(":-") {
                Some((name, default)) => (name, Some(default)),
                None => (body, None),
            };
            if !is_variable(name) || default.is_some_and(|default| default.contains("${")) {
                let name: String = name.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                return Err((
                    format!("the reference `${{{name}…` has another form than the known ones"),
                    FORMS.to_owned(),
                ));
            }
            expanded.name(Reference::Variable(name.to_owned()));
            match ((self.environment)(name), default) {
                (Some(found), None) => found,
                (Some(found), Some(_)) if !found.is_empty() => found,
                // It is in the file.
                (_, Some(default)) => return Ok(default.to_owned()),
                (None, None) => {
                    let message = format!("the variable {name} is not set in the environment");
                    return Err((message, format!("set {name}, or write ${{{name}:-default}}")));
                }
            }
        };
        self.bytes = self.bytes.saturating_add(found.len());
        if self.bytes > MOST_VALUES {
            let message = format!("all references together stand for more than {}MiB", MOST_VALUES >> 20);
            return Err((message, "refer to shorter values, or to fewer".to_owned()));
        }
        expanded.values.push(found.clone());
        Ok(found)
    }

    fn file(&mut self, path: &str, place: &Place) -> Result<String, (String, String)> {
        let from = place.span().map_or(self.sources.main(), |span| self.sources.at(span).file);
        let file = from.parent().unwrap_or(Path::new("")).join(path);
        self.inputs.add(file.clone());
        let refused = |why: String, hint: &str| (format!("the file {path} {why}"), hint.to_owned());
        let mut text = read(&file).map_err(|e| {
            let hint = "correct its path, which is relative to this file, or let the user of this process read it";
            refused(format!("cannot be read: {e}"), hint)
        })?;
        if text.last() == Some(&b'\n') {
            text.pop();
            if text.last() == Some(&b'\r') {
                text.pop();
            }
        }
        if text.len() > MOST_BYTES {
            return Err(refused(format!("has more than {}KiB", MOST_BYTES >> 10), "name a file with one value"));
        }
        String::from_utf8(text).map_err(|_| refused("is not UTF-8".to_owned(), "name a file with text"))
    }
}

/// Reads a file, up to a little more than it may have.
fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    // A pipe could keep the reader waiting.
    if !fs::metadata(file)?.is_file() {
        return Err(std::io::Error::other("it is not a file"));
    }
    let mut text = Vec::new();
    let most = u64::try_from(MOST_BYTES).unwrap_or(u64::MAX).saturating_add(3);
    File::open(file)?.take(most).read_to_end(&mut text)?;
    Ok(text)
}

fn is_variable(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Converts the texts that are one reference to numbers, `true` and `false` where the schema asks for these.
pub fn convert(node: &mut Node, schema: &Json, root: &Json, references: &References) {
    let schema = resolve(schema, root);
    let choices = schema["anyOf"].as_array().map_or(std::slice::from_ref(schema), Vec::as_slice);
    let choices: Vec<&Json> = choices.iter().map(|choice| resolve(choice, root)).collect();
    match &mut node.value {
        Value::Text(text) if references.at(&node.place).is_some_and(|expanded| expanded.is_whole) => {
            let wants = |name| choices.iter().any(|choice| type_name(choice) == name);
            let number = text.trim().parse().ok().filter(|_| wants("integer")).map(Value::Integer);
            let switch = text.trim().parse().ok().filter(|_| wants("boolean")).map(Value::Boolean);
            if let Some(value) = number.or(switch) {
                node.value = value;
            }
        }
        Value::List(items) => {
            let Some(list) = choices.iter().find(|choice| type_name(choice) == "array") else { return };
            items.iter_mut().for_each(|item| convert(item, &list["items"], root, references));
        }
        Value::Table(entries) => {
            let Some(table) = choices.iter().find(|choice| type_name(choice) == "object") else { return };
            for (key, _, node) in entries {
                let inner = match &table["properties"][key.as_str()] {
                    Json::Null => &table["additionalProperties"],
                    inner => inner,
                };
                convert(node, inner, root, references);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
