use super::*;
use crate::config::Config;
use crate::finding::Finding;

fn lookup(environment: &[(&str, &str)], name: &str) -> Option<String> {
    environment.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
}

fn load(source: &str, environment: &[(&str, &str)]) -> Result<Config, Vec<Finding>> {
    Config::parse(Path::new("proxy.toml"), source, &|name| lookup(environment, name)).map_err(|e| e.findings())
}

fn expanded(text: &str, environment: &[(&str, &str)]) -> Result<String, Vec<String>> {
    let mut node = Node { place: Place::File(0..1), value: Value::Text(text.to_owned()) };
    let sources = Sources::of("proxy.toml", "");
    let (_, problems) =
        expand(&mut node, &|name| lookup(environment, name), &sources, &mut Inputs::default(), Trust::Operator);
    let Value::Text(text) = node.value else { panic!("a text stays one") };
    if problems.is_empty() { Ok(text) } else { Err(problems.into_iter().map(|problem| problem.message).collect()) }
}

#[test]
fn references_are_replaced_wherever_they_are_in_a_text() {
    let environment = [("A", "one"), ("B", "two"), ("EMPTY", ""), ("NESTED", "${A}")];
    for (text, value) in [
        ("${A}", "one"),
        ("x${A}-${B}y", "xone-twoy"),
        ("${A}${A}", "oneone"),
        ("${C:-three}", "three"),
        ("${EMPTY:-three}", "three"),
        ("${EMPTY}", ""),
        ("${C:-}", ""),
        ("${C:-a:-b}", "a:-b"),
        ("$${A}", "${A}"),
        ("$$${A}", "$${A}"),
        ("$A ${A}", "$A one"),
        ("${NESTED}", "${A}"),
        ("no reference", "no reference"),
    ] {
        assert_eq!(expanded(text, &environment).as_deref(), Ok(value), "{text}");
    }
}

#[test]
fn a_malformed_reference_is_an_error() {
    for text in
        ["${", "${}", "${A", "${1A}", "${A-b}", "${A:b}", "${A:?b}", "${ A }", "${file:}", "${A:-${B}}", "${env.A}"]
    {
        assert!(expanded(text, &[("A", "one"), ("B", "two")]).is_err(), "{text}");
    }
    assert_eq!(expanded("${A} ${B}", &[]).unwrap_err().len(), 2, "all that are not set");
}

#[test]
fn a_value_takes_the_type_that_its_key_has() {
    let environment = [("N", "7"), ("ON", "true"), ("SHARE", "10%"), ("T", "90s"), ("M", "GET"), ("S", "503")];
    let source = r#"
[server]
threads = "${N}"
[headers]
request_id = "${ON}"
[flags]
audit_trail = "${ON}"
session_affinity = "${SHARE}"
[app]
timeout = "${T}"
[retry]
attempts = "${N}"
statuses = ["${S}", 502]
[[routes]]
name = "a"
path = "/a"
methods = ["${M}"]
attempts = "${N}"
fallback = { status = "${S}", body = "${N}" }
"#;
    let config = load(source, &environment).unwrap_or_else(|e| panic!("{e:#?}"));
    assert_eq!((config.server.threads, config.app.timeout.as_secs()), (7, 90));
    let route = config.routes.all().iter().find(|route| &*route.name == "a").unwrap();
    assert_eq!((route.attempts, route.fallback.as_ref().unwrap().status.as_u16()), (7, 503));
    let wrong = load("[server]\nthreads = \"1${N}\"\n", &environment).unwrap_err();
    assert_eq!(wrong[0].message, "`threads` needs a whole number; its value comes from ${N}", "no number is in a text");
}

#[test]
fn each_mistake_is_reported_once_with_the_name_and_a_remedy() {
    let source = r#"
[server]
listen = "${LISTEN}"
threads = "${THREADS}"
[app]
timeout = "${TIMEOUT}"
address = "${file:/nowhere/address}"
[log]
level = "${LEVEL}"
[headers]
request_id = "${ON}"
[[routes]]
name = "a"
path = "${PATH_A"
"#;
    let environment = [("THREADS", "many"), ("TIMEOUT", "30"), ("LEVEL", "correct-horse"), ("ON", "battery")];
    let found = load(source, &environment).unwrap_err();
    let told: Vec<_> = found.iter().map(|finding| finding.to_string()).collect();
    assert!(!told.concat().contains("horse") && !told.concat().contains("battery"), "{told:#?}");
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn a_file_is_relative_to_the_file_that_names_it_and_loses_one_newline() {
    let directory = std::env::temp_dir().join(format!("outrigger-references-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let write = |name: &str, text: &[u8]| fs::write(directory.join(name), text).unwrap();
    write("timeout", b"90s\n");
    write("two", b"90s\n\n");
    write("large", &vec![b'1'; 65 * 1024]);
    write("binary", &[0xff, 0xfe]);
    let load = |name: &str| {
        let source = format!("[app]\ntimeout = \"${{file:{name}}}\"\n");
        Config::parse(&directory.join("proxy.toml"), &source, &|_| None).map_err(|e| e.findings()[0].message.clone())
    };
    let config = load("timeout").unwrap();
    assert_eq!(config.app.timeout.as_secs(), 90);
    assert!(config.inputs.versions().keys().any(|file| file.ends_with("timeout")), "it is watched");
    assert_eq!(load("two").unwrap_err(), "`timeout` needs a duration with a unit; its value comes from ${file:two}");
    assert_eq!(load("large").unwrap_err(), "the file large has more than 64KiB");
    assert_eq!(load("binary").unwrap_err(), "the file binary is not UTF-8");
    assert_eq!(load(".").unwrap_err(), "the file . cannot be read: it is not a file");
    fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn a_stranger_gets_no_value() {
    let secret = |name: &str| (name == "SECRET").then(|| "correct-horse".to_owned());
    for text in [
        "log.level = \"${SECRET}\"\n",
        "[[routes]]\nname = \"a\"\npath = \"/${file:/etc/hostname}\"\n",
        "include = [\"/etc/hostname\"]\n",
        "include = [\"../*.toml\"]\n",
    ] {
        let file = std::path::Path::new("proxy.toml");
        let refused = crate::load::Loaded::of_text(file, text.to_owned(), &secret, Trust::Stranger).unwrap_err();
        let shown = refused.to_string();
        assert!(shown.contains("without a token") && !shown.contains("horse"), "{shown}");
        assert_eq!(refused.errors(), 1, "{shown}");
    }
    let file = std::path::Path::new("proxy.toml");
    let own = "[[routes]]\nname = \"a\"\npath = \"/a\"\nfallback = { body = \"$${SECRET}\", status = 503 }\n";
    assert!(crate::load::Loaded::of_text(file, own.to_owned(), &secret, Trust::Stranger).is_ok());
}

#[test]
fn the_values_of_all_references_are_bounded() {
    let long = |name: &str| (name == "LONG").then(|| "x".repeat(60_000));
    let route = |n: usize| {
        format!("[[routes]]\nname = \"r{n}\"\npath = \"/r{n}\"\nfallback = {{ body = \"${{LONG}}\", status = 503 }}\n")
    };
    let text: String = (0..40).map(route).collect();
    let refused = Config::parse(std::path::Path::new("proxy.toml"), &text, &long).unwrap_err().to_string();
    assert!(refused.contains("all references together stand for more than 1MiB"), "{}", &refused[..500]);
}
