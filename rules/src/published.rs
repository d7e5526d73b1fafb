//! The JSON Schema for editors and other validators: that of [`crate::written`] with only what JSON Schema defines.
//!
//! Validators do not know our formats, or know others of the same name (`duration` is that of ISO 8601 in JSON Schema), so each becomes
//! a pattern with examples. A pattern accepts each value that Outrigger accepts; it cannot compare two keys.

use serde_json::{Value as Json, json};

use crate::advice::kind_of;
use crate::check::width_limit;
use crate::written;

/// The file of the repository that has it.
pub const FILE: &str = "config/proxy.schema.json";

/// The schema, draft 7.
pub fn schema() -> Json {
    let mut schema = written::schema();
    portable(&mut schema);
    schema["title"] = json!("The configuration of Outrigger");
    schema
}

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
        }
        Json::Array(items) => items.iter_mut().for_each(portable),
        _ => {}
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
