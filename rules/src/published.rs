//! The JSON Schema for editors and other validators: that of [`crate::written`] with only what JSON Schema defines.
//!
//! Validators do not know our formats, or know others of the same name (`duration` is that of ISO 8601 in JSON Schema), so each becomes
//! a pattern with examples. A pattern accepts each value that Outrigger accepts; it cannot compare two keys. Numbers, `true` and `false`,
//! choices and texts of a kind may also be references such as `${PORT}`, whose value no editor knows.

use serde_json::{Map, Value as Json, json};

use crate::advice::kind_of;
use crate::check::width_limit;
use crate::written;

/// The file of the repository that has it.
pub const FILE: &str = "config/proxy.schema.json";

/// The schema, draft 7.
pub fn schema() -> Json {
    let mut schema = written::schema();
    portable(&mut schema);
    schema["definitions"]["Reference"] = json!({
        "description": "A variable of the environment, `${NAME}` or `${NAME:-default}`, or a file, `${file:/run/secrets/name}`.",
        "type": "string",
        "pattern": format!("^{REFERENCE}$"),
    });
    schema["title"] = json!("The configuration of Outrigger");
    schema
}

/// A reference, as a pattern.
const REFERENCE: &str = r"\$\{([A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?|file:[^}]+)\}";

/// The schema as the text of [`FILE`].
pub fn text() -> String {
    format!("{:#}\n", schema())
}

fn portable(schema: &mut Json) {
    match schema {
        Json::Object(keywords) => {
            if keywords.get("format").is_some_and(Json::is_string) {
                let before = Json::Object(keywords.clone());
                keywords.remove("format");
                if let Some(kind) = kind_of(&before) {
                    keywords.insert("pattern".to_owned(), json!(kind.pattern));
                    keywords.insert("examples".to_owned(), json!(kind.examples));
                }
                if let Some(limit) = width_limit(&before) {
                    keywords.entry("maximum").or_insert(json!(limit));
                }
            }
            keywords.retain(|keyword, _| !keyword.starts_with("x-"));
            // Those are values, not schemas.
            let schemas =
                keywords.iter_mut().filter(|(keyword, _)| !matches!(keyword.as_str(), "default" | "examples"));
            schemas.for_each(|(_, schema)| portable(schema));
            allow_references(keywords);
        }
        Json::Array(items) => items.iter_mut().for_each(portable),
        _ => {}
    }
}

/// Lets a value be a reference, too.
fn allow_references(keywords: &mut Map<String, Json>) {
    if let Some(Json::String(pattern)) = keywords.get_mut("pattern") {
        *pattern = format!("{pattern}|{REFERENCE}");
        return;
    }
    let reference = json!({ "$ref": "#/definitions/Reference" });
    if let Some(Json::Array(choices)) = keywords.get_mut("oneOf") {
        choices.push(reference);
        return;
    }
    let has_type = |name: &str| match keywords.get("type") {
        Some(Json::Array(types)) => types.iter().any(|one| one == name),
        Some(one) => one == name,
        None => false,
    };
    if has_type("integer") || has_type("boolean") || keywords.contains_key("enum") {
        let is_about_all = |keyword: &str| matches!(keyword, "description" | "default" | "title");
        let own = keywords.iter().filter(|(keyword, _)| !is_about_all(keyword));
        let own: Map<String, Json> = own.map(|(keyword, value)| (keyword.clone(), value.clone())).collect();
        keywords.retain(|keyword, _| is_about_all(keyword));
        keywords.insert("anyOf".to_owned(), json!([own, reference]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::KINDS;

    #[test]
    fn the_repository_has_it() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/proxy.schema.json");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, text()).unwrap();
        }
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert!(found == text(), "{FILE} is not current: run this test once with UPDATE_DOCS=1");
    }

    #[test]
    fn it_has_only_what_every_validator_knows() {
        let text = text();
        let formats = KINDS.iter().map(|kind| kind.format).chain(["uint8", "uint16", "uint32"]);
        for format in formats {
            assert!(!text.contains(&format!("\"format\": \"{format}\"")), "{format}");
        }
        assert!(!text.contains("\"x-secret\""));
        assert_eq!(schema()["properties"]["log"]["default"]["format"], "json");
    }

    #[test]
    fn every_example_is_of_its_kind() {
        for kind in KINDS {
            for example in kind.examples {
                assert!((kind.check)(example), "{kind:?}: {example}");
            }
        }
    }
}
