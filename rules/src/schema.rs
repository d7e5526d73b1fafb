//! How to read the JSON Schema of the file.

use serde_json::Value as Json;

/// The schema that `schema` refers to, or itself.
pub fn resolve<'a>(schema: &'a Json, root: &'a Json) -> &'a Json {
    // In draft 7, a documented key of a named type is `{ "allOf": [{ "$ref": … }], "description": … }`.
    let reference = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
    reference.and_then(|path| root.pointer(path.trim_start_matches('#'))).unwrap_or(schema)
}

/// The type, ignoring the `null` that an optional key adds.
pub fn type_name(schema: &Json) -> &str {
    match &schema["type"] {
        Json::Array(types) => types.iter().filter_map(Json::as_str).find(|t| *t != "null").unwrap_or("null"),
        other => other.as_str().unwrap_or_default(),
    }
}
