//! Continues after mistakes: makes a tree that fits the schema from one that does not, so that the values in it can be checked against
//! each other in the same run; and tells which of the problems found then are only consequences of the repair.

use serde_json::Value as Json;

use crate::advice::kind_of;
use crate::check::{At, Checked};
use crate::error::Problem;
use crate::schema::resolve;
use crate::tree::{Node, Value};

/// Keys of a route without which it would match more requests.
const CONDITIONS: [&str; 4] = ["path", "methods", "hosts", "headers"];

/// Removes what is unusable, renames what is misspelled, and adds what is required and missing.
pub fn repair(mut root: Node, found: &Checked, schema: &Json) -> Node {
    // Backwards: an element's number stays right until it is removed.
    for path in found.unusable.iter().rev() {
        remove(&mut root, path);
        if let [At::Key(routes), At::Index(index), At::Key(key), ..] = path.as_slice()
            && routes == "routes"
            && CONDITIONS.contains(&key.as_str())
        {
            let route = [At::Key(routes.clone()), At::Index(*index)];
            set(&mut root, &route, "path", Value::Text(format!("/~unusable-{index}")));
        }
    }
    for (path, name) in found.misspelled.iter().rev() {
        if let Some((At::Key(old), above)) = path.split_last()
            && let Some(Node { value: Value::Table(entries), .. }) = at(&mut root, above)
            && let Some(entry) = entries.iter_mut().find(|(key, ..)| key == old)
        {
            entry.0.clone_from(name);
        }
    }
    let mut number = 0;
    add_required(&mut root, schema, schema, &mut number);
    root
}

fn at<'n>(node: &'n mut Node, path: &[At]) -> Option<&'n mut Node> {
    path.iter().try_fold(node, |node, step| match (step, &mut node.value) {
        (At::Key(key), Value::Table(entries)) => entries.iter_mut().find(|(k, ..)| k == key).map(|(_, _, node)| node),
        (At::Index(index), Value::List(items)) => items.get_mut(*index),
        _ => None,
    })
}

fn remove(root: &mut Node, path: &[At]) {
    let Some((last, above)) = path.split_last() else { return };
    match (last, at(root, above).map(|node| &mut node.value)) {
        (At::Key(key), Some(Value::Table(entries))) => entries.retain(|(k, ..)| k != key),
        (At::Index(index), Some(Value::List(items))) if *index < items.len() => drop(items.remove(*index)),
        _ => {}
    }
}

fn set(root: &mut Node, path: &[At], key: &str, value: Value) {
    if let Some(Node { place, value: Value::Table(entries) }) = at(root, path) {
        entries.retain(|(k, ..)| k != key);
        entries.push((key.to_owned(), place.clone(), Node { place: place.clone(), value }));
    }
}

fn add_required(node: &mut Node, schema: &Json, root: &Json, number: &mut usize) {
    let schema = resolve(schema, root);
    if let Some(choices) = schema["anyOf"].as_array() {
        for choice in choices {
            add_required(node, choice, root, number);
        }
        return;
    }
    match &mut node.value {
        Value::List(items) if schema["type"] == "array" => {
            items.iter_mut().for_each(|item| add_required(item, &schema["items"], root, number));
        }
        Value::Table(entries) => {
            for key in schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str) {
                if entries.iter().all(|(name, ..)| name != key) {
                    *number += 1;
                    let text = match kind_of(&schema["properties"][key]) {
                        // No other limit should seem too small for it.
                        Some(kind) if kind.format == "rate" => "1000000/1s".to_owned(),
                        Some(kind) => kind.example().to_owned(),
                        None => format!("{UNNAMED}{number}"),
                    };
                    let place = node.place.clone();
                    entries.push((key.to_owned(), place.clone(), Node { place, value: Value::Text(text) }));
                }
            }
            for (name, _, value) in entries {
                add_required(value, &schema["properties"][name.as_str()], root, number);
            }
        }
        _ => {}
    }
}

/// The beginning of a name that is missing in the file.
const UNNAMED: &str = "unnamed-";

/// The repairs: a problem may be the consequence of one.
#[derive(Debug)]
pub struct Repaired {
    /// The path of the table, such as `routes[1]`, and the key.
    unusable: Vec<(String, String)>,
    /// Lines of the file were left out.
    is_partial: bool,
}

impl Repaired {
    /// The changes that [`repair`] makes.
    pub fn of(found: &Checked, is_partial: bool) -> Self {
        let named = |path: &Vec<At>| {
            let last_key = path.iter().rposition(|step| matches!(step, At::Key(_)))?;
            let At::Key(key) = &path[last_key] else { return None };
            Some((joined(&path[..last_key]), key.clone()))
        };
        Self { unusable: found.unusable.iter().filter_map(named).collect(), is_partial }
    }

    /// Whether `problem` is probably only the consequence of a repair.
    pub fn leads_to(&self, problem: &Problem) -> bool {
        let text = format!("{} {}", problem.message, problem.hint);
        if text.contains(UNNAMED) {
            return true;
        }
        let key = problem.key.as_deref().unwrap_or_default();
        let is_gone = |message: &str| message.starts_with("there is no ") || message.starts_with("no route ");
        if is_gone(&problem.message)
            && (self.is_partial || self.unusable.iter().any(|(table, key)| table.is_empty() || key == "breaker"))
        {
            return true;
        }
        self.unusable.iter().any(|(table, name)| {
            let is_own = !table.is_empty()
                && key.strip_prefix(table.as_str()).is_some_and(|rest| rest.starts_with(['.', '[']) || rest.is_empty());
            let is_limit = (table.starts_with("rate_limits") || table == "tiers") && key.ends_with(".cost");
            let whole = if table.is_empty() { format!("`{name}.") } else { format!("`{table}.{name}`") };
            let mentioned = text.contains(&format!("`{name}`")) && text.contains(&format!("[{table}]"));
            // A secret that is misplaced is not where it belongs.
            let is_secret = table.starts_with("identity.") && key.starts_with(table.as_str());
            is_limit || is_secret || mentioned || text.contains(&whole) || (is_own && has_word(&text, name))
        })
    }
}

fn joined(path: &[At]) -> String {
    path.iter().fold(String::new(), |joined, step| match step {
        At::Key(key) if joined.is_empty() => key.clone(),
        At::Key(key) => format!("{joined}.{key}"),
        At::Index(index) => format!("{joined}[{index}]"),
    })
}

fn has_word(text: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(word)
        .any(|(at, _)| !text[..at].ends_with(is_part) && !text[at + word.len()..].starts_with(is_part))
}
