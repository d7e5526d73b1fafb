use outrigger_identity::signing::KEYS;
use serde::Deserialize;

use super::*;
use crate::config::testing::load;
use crate::sections::identity;
use crate::sections::route_table::BUILT_IN;
use crate::tree;
use crate::written::schema;

#[test]
fn an_empty_file_is_all_defaults() {
    let config = load("", &[]).unwrap();
    assert_eq!(config.server.listen.port(), 8080);
    assert_eq!(config.client.max_head_bytes, 32 << 10);
    assert_eq!(config.routes.all().len(), route_count(0));
}

#[test]
fn rate_limits_are_in_monitor_until_configured() {
    let mode = |source: &str, environment: &[(&str, &str)]| {
        let config = load(source, environment).unwrap();
        let limit = config.limits.all.first().map_or(Mode::Off, |limit| limit.mode);
        (limit, config.flag(Feature::PrioritizedRateLimit).switch.to_string(), config.limits_unset)
    };
    let all = "true".to_owned();
    for silent in ["", "# nothing\n", "[client]\nmax_fields = 50\n", "[flags]\naudit_trail = false\n"] {
        assert_eq!(mode(silent, &[]), (Mode::Monitor, all.clone(), true), "{silent}");
    }
    for speaks in [
        "[rate_limits]\n",
        "rate_limits.high = \"5/1m\"\n",
        "[rate_limits.redis]\n",
        "[[rate_limits.rules]]\nname = \"a\"\nrate = \"1/1m\"\n",
        "[flags]\nprioritized_rate_limit = true\n",
    ] {
        assert_eq!(mode(speaks, &[]), (Mode::Enforce, all.clone(), false), "{speaks}");
    }
    let flag = |value| [("FF_ENABLE_PRIORITIZED_RATE_LIMIT", value)];
    assert_eq!(mode("", &flag("true")), (Mode::Enforce, all.clone(), false));
    assert_eq!(mode("", &flag("10%")), (Mode::Enforce, "10%".to_owned(), false));
    assert_eq!(mode("", &flag("monitor")).1, "monitor");
    assert_eq!(mode("[rate_limits]\nmode = \"monitor\"\n", &[]), (Mode::Monitor, all, false));
    assert_eq!(mode(include_str!("../../../config/proxy.toml"), &[]).0, Mode::Enforce, "the shipped file enforces");
}

#[test]
fn a_key_that_is_gone_is_accepted_with_a_warning() {
    let config = load("[headers]\nrequest_id = false\ntraceparent = true\n", &[]).unwrap();
    assert!(!config.headers.request_id);
    insta::assert_snapshot!(config.warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"), @"
    warning: `traceparent` has no effect any more
     --> proxy.toml:3:1
      |
    3 | traceparent = true
      | ^^^^^^^^^^^
      |
      = hint: remove it: a client's traceparent is always forwarded, unless [traces] records the request
    ");
    assert!(load("", &[]).unwrap().warnings.is_empty());
}

fn route_count(in_file: usize) -> usize {
    BUILT_IN.len() + in_file + 1
}

#[test]
fn the_shipped_file_has_the_defaults_of_the_code() {
    let shipped = include_str!("../../../config/proxy.toml");
    // Uncomments every key: each must be known, readable and equal to the default.
    let uncommented: String = shipped
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.split_once(" = ").is_some_and(|(key, _)| is_key(key)) => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .filter(|line| {
            !["h2c_listen", "metrics", "keys_file", "list =", "resolver", "directory", "database", "address = \"203"]
                .iter()
                .any(|unset| line.starts_with(unset))
        })
        .collect();
    let machine = [
        (KEYS, "0123456789abcdef0123456789abcdef"),
        ("OUTRIGGER_MACHINE", "a"),
        ("FLY_APP_NAME", "myapp"),
        ("OUTRIGGER_AUDIT_DIRECTORY", "/trail"),
        ("OUTRIGGER_STATE_DIRECTORY", "/state"),
    ];
    let spelled_out = load(&uncommented, &machine).unwrap_or_else(|e| panic!("{e}"));
    let silent = load(shipped, &machine).unwrap_or_else(|e| panic!("{e}"));
    let without_routes = |config: &Config| {
        let Config { server, client, app, admin, log, breakers, retry, affinity, audit, state, .. } = config;
        format!(
            "{server:?}{client:?}{app:?}{admin:?}{log:?}{:?}{retry:?}{affinity:?}{audit:?}{state:?}",
            breakers.last().map(|b| (b.mode, b.settings, b.counts_429))
        )
    };
    assert_eq!(without_routes(&spelled_out), without_routes(&silent));
    assert_eq!(without_routes(&silent), without_routes(&load("", &machine).unwrap()));
    let peers = load("[peers]\nlisten = \"[::]:8083\"\n", &machine).unwrap().peers;
    assert_eq!(spelled_out.peers, peers);
}

fn is_key(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// The comment lines about a table without a default, from the one that names it to the next empty line.
fn described<'a>(shipped: &'a str, table: &str) -> Vec<&'a str> {
    let start = shipped.lines().position(|line| line.starts_with('#') && line.contains(table));
    shipped.lines().skip(start.unwrap()).take_while(|line| !line.is_empty()).collect()
}

#[test]
fn the_shipped_file_names_the_defaults_of_absent_tables() {
    let shipped = include_str!("../../../config/proxy.toml");
    let mut source = String::from("[identity.jwt]\n");
    let mut key = "";
    for line in described(shipped, "[identity.jwt]") {
        let named = line.strip_prefix("#   ").and_then(|rest| rest.split_once(' ')).map(|(named, _)| named);
        key = named.filter(|named| is_key(named)).unwrap_or(key);
        if let Some((_, default)) = line.split_once("Default: ") {
            source.push_str(&format!("{key} = {default}\n"));
        }
    }
    assert_eq!(source.lines().count(), 7, "{source}");
    let root = tree::parse(&source).0.to_json();
    let spelled_out = identity::Jwt::deserialize(&root["identity"]["jwt"]).unwrap();
    assert_eq!(format!("{spelled_out:?}"), format!("{:?}", identity::Jwt::default()));
}

#[test]
fn the_shipped_file_names_every_key() {
    let shipped = include_str!("../../../config/proxy.toml");
    let schema = schema();
    let definitions = schema["definitions"].as_object().unwrap();
    for section in ["Server", "Client", "App", "Admin", "Identity", "Headers", "Log", "Flags", "RateLimits", "Tiers"]
        .into_iter()
        .chain(["Redis", "Admission", "Abuse", "Breaker", "Retry"])
    {
        for key in definitions[section]["properties"].as_object().unwrap().keys() {
            let is_table = matches!(
                (section, key.as_str()),
                ("Identity", "keys" | "jwt") | ("RateLimits", "rules" | "redis") | ("Breaker", "groups")
            );
            let has_key = shipped.contains(&format!("\n# {key} = "));
            assert!(has_key || is_table, "{section}.{key} is not in config/proxy.toml");
        }
    }
    let tables = [
        ("ApiKey", "[[identity.keys]]"),
        ("Jwt", "[identity.jwt]"),
        ("Rule", "[[rate_limits.rules]]"),
        ("Group", "[[breaker.groups]]"),
        ("Fault", "[[faults]]"),
    ];
    for (section, intro) in tables {
        let described = described(shipped, intro);
        for key in definitions[section]["properties"].as_object().unwrap().keys() {
            let has_key = described.iter().any(|line| line.starts_with(&format!("#   {key} ")));
            assert!(has_key, "{section}.{key} is not in config/proxy.toml");
        }
    }
    for key in definitions["Route"]["properties"].as_object().unwrap().keys() {
        assert!(shipped.contains(&format!("\n#   {key} ")), "routes.{key} is not in config/proxy.toml");
    }
}

#[test]
fn reports_all_mistakes_at_once() {
    let source = r#"
[server]
lisen = "0.0.0.0:8080"
lame_duck = "30"
max_connections = 0

[limits]
per_minute = 3

[rate_limits]
low = "0/1m"
strict = "10 a minute"

[[rate_limits.rules]]
name = "x"
rate = "5/1m"
burst = 0
by = "cleint"

[log]
level = "inof"
access = "yes"

[[routes]]
name = "Login"
path = "/api/**"
priority = "criticl"
timeout = 5
cost = 0

[[routes]]
path = "/api/login"
"#;
    insta::assert_snapshot!(load(source, &[]).unwrap_err());
}

#[test]
fn reports_contradictory_settings() {
    let source = r#"
[server]
listen = "0.0.0.0:9091"

[client]
max_head = "16B"
idle_timeout = "0s"

[app]
address = "127.0.0.1:8081"
metrics = "http://127.0.0.1:9091/metrics"

[[routes]]
name = "all"
path = "/api/**"

[[routes]]
name = "login"
path = "/api/login"

[admission]
min = 10
max = 5

[abuse]
ban = "1h"
max_ban = "1m"

[[rate_limits.rules]]
name = "high"
rate = "5/1m"
routes = ["lgin", "health"]

[[routes]]
name = "dear"
path = "/dear"
priority = "strict"
cost = 11

[[routes]]
name = "all"
path = "/other//x"

[[routes]]
name = "health"
methods = ["get"]
"#;
    insta::assert_snapshot!(load(source, &[]).unwrap_err());
}

#[test]
fn the_environment_wins_and_its_mistakes_name_it() {
    let config = load(
        "[server]\nlisten = \"127.0.0.1:1\"\n[flags]\naudit_trail = false\n",
        &[
            ("OUTRIGGER_LISTEN", "127.0.0.1:2"),
            ("OUTRIGGER_TRUSTED", "10.0.0.0/8, ::1"),
            ("FF_ENABLE_AUDIT_TRAIL", "10%"),
        ],
    )
    .unwrap();
    assert_eq!(config.server.listen.port(), 2);
    assert_eq!(config.edge.networks.len(), 2);
    assert_eq!(config.flag(Feature::AuditTrail).switch.to_string(), "10%");
    let wrong = [("OUTRIGGER_LISTEN", "8080"), ("OUTRIGGER_THREADS", "many"), ("FF_ENABLE_AUDIT_TRAIL_IPS", "x")];
    insta::assert_snapshot!(load("", &wrong).unwrap_err());
    insta::assert_snapshot!(load("", &wrong[2..]).unwrap_err());
}

#[test]
fn reports_mistakes_in_breakers_retries_and_faults() {
    let source = r#"
[breaker]
failure_rate = "150%"
window = "0 calls"
slow_after = "2"

[retry]
attempts = 0
budget = "off"
"#;
    insta::assert_snapshot!(load(source, &[]).unwrap_err());
    let source = r#"
[breaker]
max_open = "1s"

[[breaker.groups]]
name = "payments"
window = "5 calls"

[retry]
statuses = [404]

[[routes]]
name = "pay"
path = "/pay"
breaker = "paymens"
fallback = { body = "x", status = 204 }

[[faults]]
routes = ["pai"]
abort = 500
reset = true

[[faults]]
headers = { "a b" = "1" }
"#;
    insta::assert_snapshot!(load(source, &[]).unwrap_err());
    let allowed = [("OUTRIGGER_ALLOW_FAULTS", "1")];
    assert_eq!(load("[[faults]]\nabort = 503\nshare = \"5%\"\n", &allowed).unwrap().faults.len(), 1);
}

#[test]
fn the_breakers_defaults_may_come_from_the_environment() {
    let environment = [("CIRCUIT_BREAKER_FAILURE_THRESHOLD", "7"), ("CIRCUIT_BREAKER_TIMEOUT", "1500")];
    let settings = |source| load(source, &environment).unwrap().breakers[0].settings;
    assert_eq!((settings("").consecutive, settings("").open_for), (7, Duration::from_millis(1500)));
    assert_eq!(settings("[breaker]\nfailures = 3\n").consecutive, 3, "the file wins");
    let wrong = [("CIRCUIT_BREAKER_FAILURE_THRESHOLD", "many"), ("CIRCUIT_BREAKER_TIMEOUT", "0")];
    insta::assert_snapshot!(load("", &wrong[..1]).unwrap_err());
    insta::assert_snapshot!(load("", &wrong[1..]).unwrap_err());
}

#[test]
fn broken_toml_is_shown_where_it_breaks() {
    insta::assert_snapshot!(load("[server\nlisten = \n[log]\nlevel = \"inof\"\n", &[]).unwrap_err());
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(\\[|\\]|=|\"|\n| |server|listen|routes|name|1|true|#|é){0,40}") {
        let _ = load(&text, &[]);
    }
}
