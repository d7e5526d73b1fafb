//! `outrigger check`: formats for people and for programs, and exit codes.

use std::{fs, process::Output};

use serde_json::{Value, json};

use crate::{backend::Backend, harness::Setup};

const SUSPICIOUS: &str = "[identity]\ntrusted = [\"0.0.0.0/0\"]\n";
const WRONG: &str =
    "[server]\nlisen = \"0.0.0.0:8080\"\n[[routes]]\nname = \"a\"\nmethods = [\"POSTT\"]\npath = \"/users/:id\"\n";

fn check(text: &str, options: &[&str]) -> Output {
    let setup = Setup::new(&Backend::start(), "");
    fs::write(setup.dir.join("checked.toml"), text).unwrap();
    setup.run(&[&["check", "checked.toml"], options].concat())
}

fn json_of(output: &Output) -> Value {
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn warnings_pass_unless_they_are_denied() {
    for (text, denied, code) in [(SUSPICIOUS, false, 0), (SUSPICIOUS, true, 78), ("", true, 0), (WRONG, false, 78)] {
        for format in ["text", "json", "sarif"] {
            let mut options = vec!["--format", format];
            options.extend(denied.then_some("--deny-warnings"));
            assert_eq!(check(text, &options).status.code(), Some(code), "{text} {options:?}");
        }
    }
    let said = String::from_utf8(check(SUSPICIOUS, &[]).stderr).unwrap();
    assert!(said.starts_with("warning: every sender is trusted") && said.contains("checked.toml:2:11"), "{said}");
    let said = String::from_utf8(check(SUSPICIOUS, &["--deny-warnings"]).stderr).unwrap();
    assert!(said.contains("--deny-warnings"), "{said}");
}

#[test]
fn programs_get_places_as_json() {
    let told = json_of(&check(WRONG, &["--json"]));
    assert_eq!((&told["valid"], &told["errors"], &told["warnings"]), (&json!(false), &json!(2), &json!(1)));
    let told: Vec<_> = told["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| {
            assert!(finding["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{finding}");
            json!([
                finding["severity"],
                finding["rule"],
                finding["line"],
                finding["column"],
                finding["end_column"],
                finding["key"]
            ])
        })
        .collect();
    assert_eq!(
        told,
        [
            json!(["error", "unknown-key", 2, 1, 6, "server.lisen"]),
            json!(["warning", "suspicious", 5, 12, 19, "routes[0].methods[0]"]),
            json!(["error", "invalid-setting", 6, 8, 20, "routes[0].path"]),
        ]
    );
    let valid = json_of(&check("", &["--json"]));
    assert_eq!((&valid["valid"], &valid["findings"]), (&json!(true), &json!([])));
}

#[test]
fn code_hosts_get_sarif() {
    let told = json_of(&check(WRONG, &["--format", "sarif"]));
    let results = told["runs"][0]["results"].as_array().unwrap();
    assert_eq!(results.len(), 3);
    assert_eq!(results[0]["level"], "error");
    assert_eq!(results[0]["ruleId"], "unknown-key");
    let place = &results[0]["locations"][0]["physicalLocation"];
    assert_eq!(place["artifactLocation"]["uri"], "checked.toml");
    assert_eq!(place["region"], json!({ "startLine": 2, "startColumn": 1, "endColumn": 6 }));
    assert!(results[0]["message"]["text"].as_str().unwrap().contains("did you mean `listen`?"));
}

#[test]
fn an_unknown_variable_of_the_environment_is_a_warning() {
    let setup = Setup::new(&Backend::start(), "").env("OUTRIGGER_LISTN", "127.0.0.1:1");
    let said = String::from_utf8(setup.run(&["check", "proxy.toml"]).stderr).unwrap();
    assert!(said.contains("OUTRIGGER_LISTN") && said.contains("did you mean OUTRIGGER_LISTEN?"), "{said}");
    assert_eq!(setup.run(&["check", "proxy.toml", "--deny-warnings"]).status.code(), Some(78));
}
