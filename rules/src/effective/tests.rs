use super::*;
use crate::config::Config;
use crate::config::testing;

fn load(source: &str, environment: &[(&str, &str)]) -> Config {
    testing::load(source, environment).unwrap_or_else(|e| panic!("{e}"))
}

const SOURCE: &str = r#"
[server]
listen = "127.0.0.1:${PORT}"
threads = "${THREADS:-2}"

[app]
timeout = "90s"

[rate_limits]
shared = "redis"

[rate_limits.redis]
url = "redis://:correct-horse@127.0.0.1"

[[identity.keys]]
name = "ann"
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"

[[routes]]
name = "api"
path = "/api/**"
methods = ["GET", "POST"]
headers = { "X-Kind" = "${KIND}" }
fallback = { body = "a \"quoted\" line\n$${X}", status = 503 }

[[routes]]
name = "secret"
path = "/${API_TOKEN}"
"#;

const ENVIRONMENT: &[(&str, &str)] = &[
    ("PORT", "4000"),
    ("KIND", "a"),
    ("API_TOKEN", "battery"),
    ("OUTRIGGER_LOG_LEVEL", "debug"),
    ("FF_ENABLE_CIRCUIT_BREAKER", "10%"),
    ("FF_ENABLE_CIRCUIT_BREAKER_USERS", "ann"),
];

#[test]
fn each_value_has_its_origin() {
    let text = load(SOURCE, ENVIRONMENT).effective.unwrap().to_toml(true);
    assert!(!text.contains("horse") && !text.contains("battery") && !text.contains("0000000"), "{text}");
    insta::assert_snapshot!(text);
}

#[test]
fn the_printed_configuration_means_the_same() {
    let source =
        SOURCE.replace("shared = \"redis\"", "").replace("[[identity.keys]]\nname = \"ann\"\nsha256 = \"", "#");
    // Hidden values are comments in the text.
    let source = source.replace("${API_TOKEN}", "open").replace("${PORT}", "4000").replace("${KIND}", "a");
    let shipped = include_str!("../../../config/proxy.toml");
    for (source, environment) in [(source.as_str(), ENVIRONMENT), ("", &[]), (shipped, &[]), ("[rate_limits]\n", &[])] {
        let config = load(source, environment);
        for only_changed in [false, true] {
            let text = config.effective.as_ref().unwrap().to_toml(only_changed);
            let again = load(&text, &[]);
            let values = |config: &Config| {
                let mut values = config.effective.as_ref().unwrap().values();
                values["rate_limits"]["redis"]["url"] = Json::Null;
                values
            };
            assert_eq!(values(&again), values(&config), "{text}");
            let compiled =
                |config: &Config| format!("{:?}{:?}{:?}", config.routes.all(), config.limits.all, config.flags);
            assert_eq!(compiled(&again), compiled(&config), "{text}");
        }
    }
}

#[test]
fn json_has_the_same() {
    let json = load(SOURCE, ENVIRONMENT).effective.unwrap().to_json(true);
    let text = json.to_string();
    assert!(!text.contains("horse") && !text.contains("battery"), "{text}");
    let find = |path: Json| {
        json["settings"].as_array().unwrap().iter().find(|setting| setting["path"] == path).cloned().unwrap_or_default()
    };
    let listen = find(json!(["server", "listen"]));
    assert_eq!((&listen["value"], &listen["from"]), (&json!(HIDDEN), &json!("reference")));
    assert_eq!(find(json!(["server", "threads"]))["value"], 2, "a number is no secret");
    assert_eq!(listen["references"], json!(["${PORT}"]));
    assert_eq!(find(json!(["log", "level"]))["variable"], "OUTRIGGER_LOG_LEVEL");
    assert_eq!(find(json!(["routes", 0, "path"]))["line"], 21);
    assert_eq!(find(json!(["routes", 1, "path"]))["value"], HIDDEN);
}

#[test]
fn a_secret_of_the_environment_is_named_and_not_shown() {
    let source = "[rate_limits]\nshared = \"redis\"\n";
    let environment = [("OUTRIGGER_REDIS_URL", "redis://:correct-horse@127.0.0.1")];
    let text = load(source, &environment).effective.unwrap().to_toml(true);
    assert!(text.contains("# url = \"***\"  # environment, OUTRIGGER_REDIS_URL"), "{text}");
    assert!(!text.contains("horse"), "{text}");
}

#[test]
fn a_password_in_any_form_of_an_address_is_hidden() {
    let redis = |url: &str| {
        let config = load(&format!("[rate_limits.redis]\nurl = \"{url}\"\n"), &[]);
        config.effective.unwrap().to_toml(true)
    };
    assert!(redis("redis://localhost:6379").contains("\nurl = \"redis://localhost:6379\""));
    assert!(redis("redis://:correct-horse@localhost:6379").contains("# url = \"***\""));
    for database in [
        "host=localhost user=ann password=correct-horse dbname=app",
        "postgres://localhost/app?user=ann&password=correct-horse",
        "postgres://ann:correct-horse@localhost/app",
    ] {
        let config =
            load(&format!("[audit]\ndatabase = \"{database}\"\ndirectory = \"/trail\"\n"), &[("FLY_MACHINE_ID", "a")]);
        let text = config.effective.unwrap().to_toml(true);
        assert!(!text.contains("horse"), "{text}");
        assert!(text.contains("# database = \"***\""), "{text}");
    }
    for name in ["ORIGIN_KEY", "DB_PASS", "SIGNING_KEYS", "ANYTHING"] {
        let source = format!("[[routes]]\nname = \"a\"\npath = \"/a\"\nheaders = {{ x-origin = \"${{{name}}}\" }}\n");
        let text = load(&source, &[(name, "correct-horse")]).effective.unwrap().to_toml(true);
        assert!(!text.contains("horse"), "{text}");
    }
}
