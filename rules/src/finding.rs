//! Problems for programs: as JSON, and as SARIF for code hosts and editors. They contain no text of the file.

use std::fmt;

use serde::Serialize;
use serde_json::{Value as Json, json};

/// The kind of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// The file cannot be read.
    UnreadableFile,
    /// It is not TOML.
    Syntax,
    /// A key or a table that does not exist.
    UnknownKey,
    /// A required key is missing.
    MissingKey,
    /// A value of another type, or not of its key's form.
    WrongValue,
    /// A value that does not fit others, or cannot work.
    InvalidSetting,
    /// Valid, but probably not intended: a warning.
    Suspicious,
}

impl Rule {
    /// All of them, with a description.
    const ALL: [(Self, &'static str); 7] = [
        (Self::UnreadableFile, "The file cannot be read."),
        (Self::Syntax, "The file is not valid TOML."),
        (Self::UnknownKey, "A key or a table does not exist."),
        (Self::MissingKey, "A required key is missing."),
        (Self::WrongValue, "A value has the wrong type or form."),
        (Self::InvalidSetting, "A value contradicts others, or cannot work."),
        (Self::Suspicious, "A valid value is probably not intended."),
    ];

    /// Whether it is a warning.
    pub fn is_warning(self) -> bool {
        self == Self::Suspicious
    }
}

/// A problem and its place, as JSON has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `error` or `warning`.
    pub severity: &'static str,
    /// Its kind.
    pub rule: Rule,
    /// The file.
    pub file: String,
    /// Line, from 1; unset for the environment and for the file as a whole.
    pub line: Option<usize>,
    /// Column in characters, from 1.
    pub column: Option<usize>,
    /// The column after the last character in the same line.
    pub end_column: Option<usize>,
    /// The variable of the environment.
    pub variable: Option<String>,
    /// The key, such as `routes[2].path`.
    pub key: Option<String>,
    /// The mistake.
    pub message: String,
    /// The remedy.
    pub hint: String,
    /// The problem as people read it, with the line of the file.
    #[serde(skip)]
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn warnings(findings: &[Finding]) -> usize {
    findings.iter().filter(|finding| finding.rule.is_warning()).count()
}

/// The result of a check as JSON.
pub fn to_json(file: &str, findings: &[Finding]) -> Json {
    let warnings = warnings(findings);
    let errors = findings.len() - warnings;
    json!({ "file": file, "valid": errors == 0, "errors": errors, "warnings": warnings, "findings": findings })
}

/// The result of a check as SARIF 2.1.0.
pub fn to_sarif(findings: &[Finding]) -> Json {
    let rules = Rule::ALL.map(|(rule, text)| json!({ "id": rule, "shortDescription": { "text": text } }));
    let results: Vec<Json> = findings.iter().map(sarif_result).collect();
    let driver = json!({
        "name": "outrigger",
        "version": env!("CARGO_PKG_VERSION"),
        "rules": rules,
    });
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{ "tool": { "driver": driver }, "columnKind": "unicodeCodePoints", "results": results }],
    })
}

fn sarif_result(finding: &Finding) -> Json {
    let mut physical = json!({ "artifactLocation": { "uri": uri(&finding.file) } });
    if let Some(line) = finding.line {
        let mut region = json!({ "startLine": line, "startColumn": finding.column });
        if finding.end_column > finding.column {
            region["endColumn"] = json!(finding.end_column);
        }
        physical["region"] = region;
    }
    let mut location = json!({ "physicalLocation": physical });
    if let Some(name) = finding.key.as_ref().or(finding.variable.as_ref()) {
        location["logicalLocations"] = json!([{ "fullyQualifiedName": name }]);
    }
    let environment = finding.variable.as_ref().map_or_else(String::new, |name| format!("environment, {name}: "));
    json!({
        "ruleId": finding.rule,
        "level": finding.severity,
        "message": { "text": format!("{environment}{}; hint: {}", finding.message, finding.hint) },
        "locations": [location],
    })
}

/// A path as a reference: relative paths stay relative to where the command runs.
fn uri(path: &str) -> String {
    let mut uri = String::from(if path.starts_with('/') { "file://" } else { "" });
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            uri.push_str(&format!("%{byte:02X}"));
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(line: Option<usize>) -> Finding {
        Finding {
            severity: "error",
            rule: Rule::UnknownKey,
            file: "a b/proxy.toml".to_owned(),
            line,
            column: line,
            end_column: line.map(|column| column + 5),
            variable: line.is_none().then(|| "OUTRIGGER_LISTEN".to_owned()),
            key: line.map(|_| "server.lisen".to_owned()),
            message: "unknown key `lisen` in `server`".to_owned(),
            hint: "did you mean `listen`?".to_owned(),
            text: "not in JSON".to_owned(),
        }
    }

    #[test]
    fn json_has_each_problem_with_its_place() {
        let json = to_json("proxy.toml", &[finding(Some(2)), finding(None)]);
        assert_eq!((&json["valid"], &json["errors"], &json["warnings"]), (&json!(false), &json!(2), &json!(0)));
        assert_eq!(json["findings"][0]["rule"], "unknown-key");
        assert_eq!((&json["findings"][0]["line"], &json["findings"][0]["column"]), (&json!(2), &json!(2)));
        assert_eq!(json["findings"][1]["variable"], "OUTRIGGER_LISTEN");
        assert!(!json.to_string().contains("not in JSON"));
    }

    #[test]
    fn sarif_has_regions_and_rules() {
        let sarif = to_sarif(&[finding(Some(2)), finding(None)]);
        let results = &sarif["runs"][0]["results"];
        let place = &results[0]["locations"][0]["physicalLocation"];
        assert_eq!(place["artifactLocation"]["uri"], "a%20b/proxy.toml");
        assert_eq!(place["region"], json!({ "startLine": 2, "startColumn": 2, "endColumn": 7 }));
        assert_eq!(results[1]["locations"][0]["physicalLocation"]["region"], Json::Null);
        for result in results.as_array().unwrap() {
            let rules = sarif["runs"][0]["tool"]["driver"]["rules"].as_array().unwrap();
            assert!(rules.iter().any(|rule| rule["id"] == result["ruleId"]));
        }
    }
}
