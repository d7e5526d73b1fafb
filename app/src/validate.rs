//! Validates documents and vectors, with error texts for clients.

use serde_json::Value;

use crate::error::ApiError;

/// Maximum length of a title, in characters.
pub const TITLE_CHARS: usize = 512;
/// Maximum size of metadata, in bytes of JSON.
pub const METADATA_BYTES: usize = 16 * 1024;

/// The configurable bounds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Dimension of an embedding.
    pub dimension: usize,
    /// Maximum size of a document's content, in bytes.
    pub content_bytes: usize,
}

impl Limits {
    /// Maximum size of a request's body in bytes: content with every other character escaped, the vector, metadata
    /// and title.
    pub const fn body_bytes(&self) -> usize {
        2 * self.content_bytes + 32 * self.dimension + METADATA_BYTES + 16 * 1024
    }

    /// Validates a vector and converts it to 32-bit floats.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] with the expected and the actual value.
    pub fn embedding(&self, numbers: &[f64]) -> Result<Vec<f32>, ApiError> {
        let (expected, got) = (self.dimension, numbers.len());
        if got != expected {
            return Err(ApiError::Invalid(format!("embedding needs {expected} numbers, got {got}")));
        }
        let vector: Vec<f32> = numbers.iter().map(|number| *number as f32).collect();
        // Numbers that overflow 32 bits became infinite.
        if let Some(at) = vector.iter().position(|number| !number.is_finite()) {
            let number = numbers.get(at).copied().unwrap_or_default();
            return Err(ApiError::Invalid(format!("embedding[{at}] does not fit a 32-bit float: {number:e}")));
        }
        if vector.iter().all(|number| *number == 0.0) {
            let problem = "embedding is all zeros, which has no direction to compare; send a vector with a length";
            return Err(ApiError::Invalid(problem.to_owned()));
        }
        Ok(vector)
    }

    /// Validates a document's content.
    ///
    /// # Errors
    /// [`ApiError::TooLarge`] or [`ApiError::Invalid`] with the expected and the actual value.
    pub fn content(&self, text: &str) -> Result<(), ApiError> {
        let (limit, got) = (self.content_bytes, text.len());
        if got > limit {
            let problem = format!("content has {got} bytes and may have {limit}; split it into several documents");
            return Err(ApiError::TooLarge(problem));
        }
        if text.trim().is_empty() {
            return Err(ApiError::Invalid("content is empty; send the document's text".to_owned()));
        }
        no_control_characters("content", text, &['\n', '\r', '\t', '\u{c}'])
    }
}

/// Validates a title, which must be a single line.
///
/// # Errors
/// [`ApiError::Invalid`] with the expected and the actual value.
pub fn title(text: &str) -> Result<(), ApiError> {
    let got = text.chars().count();
    if got > TITLE_CHARS {
        return Err(ApiError::Invalid(format!("title has {got} characters and may have {TITLE_CHARS}")));
    }
    no_control_characters("title", text, &[])
}

/// Validates metadata: an object that PostgreSQL can store, not too large and without NUL.
///
/// # Errors
/// [`ApiError::Invalid`] with the expected and the actual value.
pub fn metadata(value: &Value) -> Result<(), ApiError> {
    if !value.is_object() {
        return Err(ApiError::Invalid("metadata needs to be a JSON object".to_owned()));
    }
    let got = value.to_string().len();
    if got > METADATA_BYTES {
        return Err(ApiError::Invalid(format!("metadata has {got} bytes as JSON and may have {METADATA_BYTES}")));
    }
    if contains_nul(value) {
        return Err(ApiError::Invalid("metadata contains a NUL character, which cannot be stored".to_owned()));
    }
    Ok(())
}

fn contains_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(contains_nul),
        Value::Object(fields) => fields.iter().any(|(key, value)| key.contains('\0') || contains_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn no_control_characters(field: &str, text: &str, allowed: &[char]) -> Result<(), ApiError> {
    match text.chars().find(|c| c.is_control() && !allowed.contains(c)) {
        None => Ok(()),
        Some(found) => {
            let code = u32::from(found);
            Err(ApiError::Invalid(format!("{field} contains the control character U+{code:04X}; remove it")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const LIMITS: Limits = Limits { dimension: 3, content_bytes: 10 };

    fn problem<T: std::fmt::Debug>(result: Result<T, ApiError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn a_wrong_dimension_says_both_numbers() {
        assert_eq!(problem(LIMITS.embedding(&[1.0, 2.0])), "embedding needs 3 numbers, got 2");
        assert!(LIMITS.embedding(&[1.0, 2.0, 3.0]).is_ok());
    }

    #[test]
    fn a_number_too_large_for_the_store_is_named() {
        assert_eq!(problem(LIMITS.embedding(&[1.0, 1e39, 0.0])), "embedding[1] does not fit a 32-bit float: 1e39");
    }

    #[test]
    fn a_vector_without_direction_is_rejected() {
        assert!(problem(LIMITS.embedding(&[0.0, -0.0, 0.0])).starts_with("embedding is all zeros"));
        assert!(problem(LIMITS.embedding(&[0.0, 1e-60, 0.0])).starts_with("embedding is all zeros"));
    }

    #[test]
    fn content_is_counted_in_bytes() {
        assert!(LIMITS.content("ääääá").is_ok());
        assert!(matches!(LIMITS.content("äääääa"), Err(ApiError::TooLarge(_))));
        assert!(problem(LIMITS.content(" \n")).starts_with("content is empty"));
    }

    #[test]
    fn control_characters_are_named() {
        assert_eq!(problem(LIMITS.content("a\0b")), "content contains the control character U+0000; remove it");
        assert_eq!(problem(title("a\nb")), "title contains the control character U+000A; remove it");
        assert!(LIMITS.content("a\tb\r\nc").is_ok());
    }

    #[test]
    fn metadata_is_an_object_of_bounded_size_without_nul() {
        assert!(metadata(&json!({"a": [1, {"b": null}]})).is_ok());
        assert!(metadata(&json!([])).is_err());
        assert!(metadata(&json!({"a": ["x\0"]})).is_err());
        assert!(metadata(&json!({"x\0": 1})).is_err());
        assert!(metadata(&json!({"a": "x".repeat(METADATA_BYTES)})).is_err());
    }
}
