//! All `fly.toml` files use only keys that exist, since Fly drops others silently, and match the files that they name. No text
//! of ours names a command that flyctl does not have.

use std::{fs, path::PathBuf};

use toml::{Table, Value};

use crate::examples::EXAMPLES;

/// Every table that we may use, with all keys that Fly knows in it. `*` is a name of our own choice.
///
/// Taken from the structures that flyctl reads the file into. The test rejects a table that is not listed: look it up before
/// adding it.
const KEYS: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "app",
            "primary_region",
            "kill_signal",
            "kill_timeout",
            "swap_size_mb",
            "console_command",
            "build",
            "deploy",
            "env",
            "processes",
            "mounts",
            "http_service",
            "checks",
            "files",
            "host_dedication_id",
            "restart",
            "vm",
            "statics",
            "metrics",
        ],
    ),
    (
        "build",
        &[
            "image",
            "dockerfile",
            "builder",
            "buildpacks",
            "args",
            "build-target",
            "ignorefile",
            "compose",
            "compression",
            "compression_level",
        ],
    ),
    (
        "deploy",
        &[
            "strategy",
            "max_unavailable",
            "wait_timeout",
            "release_command",
            "release_command_timeout",
            "release_command_vm",
            "seed_command",
        ],
    ),
    ("env", &["*"]),
    ("processes", &["*"]),
    (
        "http_service",
        &[
            "internal_port",
            "force_https",
            "auto_stop_machines",
            "auto_start_machines",
            "min_machines_running",
            "processes",
            "concurrency",
            "http_options",
            "tls_options",
            "checks",
            "machine_checks",
        ],
    ),
    ("http_service.concurrency", &["type", "soft_limit", "hard_limit"]),
    (
        "http_service.http_options",
        &["h2_backend", "idle_timeout", "headers_read_timeout", "compress", "response", "replay_cache"],
    ),
    ("http_service.http_options.response", &["headers", "pristine"]),
    ("http_service.http_options.response.headers", &["*"]),
    ("http_service.http_options.replay_cache", &["path_prefix", "ttl_seconds", "type", "name", "allow_bypass"]),
    ("http_service.tls_options", &["alpn", "versions", "default_self_signed"]),
    (
        "http_service.checks",
        &[
            "interval",
            "timeout",
            "grace_period",
            "method",
            "path",
            "protocol",
            "headers",
            "tls_skip_verify",
            "tls_server_name",
        ],
    ),
    ("http_service.checks.headers", &["*"]),
    ("http_service.machine_checks", &["command", "image", "entrypoint", "kill_signal", "kill_timeout"]),
    ("checks", &["*"]),
    (
        "checks.*",
        &[
            "interval",
            "timeout",
            "grace_period",
            "method",
            "path",
            "protocol",
            "headers",
            "tls_skip_verify",
            "tls_server_name",
            "port",
            "type",
            "processes",
        ],
    ),
    ("checks.*.headers", &["*"]),
    ("files", &["guest_path", "local_path", "raw_value", "secret_name", "processes"]),
    (
        "mounts",
        &[
            "source",
            "destination",
            "initial_size",
            "snapshot_retention",
            "scheduled_snapshots",
            "auto_extend_size_threshold",
            "auto_extend_size_increment",
            "auto_extend_size_limit",
            "processes",
        ],
    ),
    ("restart", &["policy", "retries", "processes"]),
    (
        "vm",
        &[
            "size",
            "memory",
            "memory_mb",
            "cpus",
            "cpu_kind",
            "kernel_args",
            "host_dedication_id",
            "persist_rootfs",
            "processes",
        ],
    ),
    ("statics", &["guest_path", "url_prefix", "tigris_bucket", "index_document"]),
    ("metrics", &["port", "path", "https", "processes"]),
];

/// The flyctl commands that our docs use, with the flags that they use. From flyctl's own reference; look a command up there
/// before adding it.
const COMMANDS: &[(&str, &[&str])] = &[
    ("apps create", &["-o"]),
    ("checks list", &["-a"]),
    ("config validate", &["--strict"]),
    ("deploy", &["-a", "--ha", "--image", "--strategy"]),
    ("logs", &["-a", "--machine", "--no-tail"]),
    ("machine list", &["-a"]),
    ("machine start", &["-a"]),
    ("machine stop", &["-a", "--signal", "--timeout"]),
    ("releases", &["-a", "--image"]),
    ("scale count", &["-a", "--region"]),
    ("secrets list", &["-a"]),
    ("secrets set", &["-a", "--stage"]),
    ("secrets unset", &["-a", "--stage"]),
    ("ssh console", &["-a", "--machine", "-C"]),
    ("status", &["-a"]),
    ("tokens create deploy", &["-a"]),
    ("tokens create readonly", &["-o"]),
];

/// The mistake in a command, if it is one of flyctl's.
fn fault(command: &str) -> Option<String> {
    let words = command.trim().strip_prefix("fly ")?.trim();
    let is_it = |name: &str| words.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '));
    let Some((name, flags)) = COMMANDS.iter().find(|(name, _)| is_it(name)) else {
        return Some(format!("`{command}`: flyctl has no such command, or it is not in the list"));
    };
    // Quoted text is always a value.
    let unquoted: String = words[name.len()..].split('"').step_by(2).collect();
    let flag = |word: &&str| word.starts_with('-');
    let known = |word: &&str| flags.contains(&word.split('=').next().unwrap_or_default());
    let unknown = unquoted.split_whitespace().filter(flag).find(|word| !known(word))?;
    Some(format!("`{command}`: `fly {name}` has no flag {unknown}, or it is not in the list"))
}

/// Every flyctl command in a text: lines of shell blocks, comments that show one, and `fly …` between backticks.
fn commands(text: &str) -> Vec<String> {
    let mut found = vec![];
    for line in text.lines() {
        let line = line.trim_start_matches(['#', ' ']);
        // A trailing comment is not part of the command.
        let command = line.split("  #").next().unwrap_or_default();
        if command.starts_with("fly ") && !command.contains('`') {
            found.extend(command.split("&&").map(|part| part.trim().to_owned()));
        }
        let quoted = line.split('`').skip(1).step_by(2).filter(|part| part.starts_with("fly "));
        found.extend(quoted.map(str::to_owned));
    }
    found
}

/// The keys, with their path, that Fly would drop.
fn unknown_keys(path: &str, table: &Table) -> Vec<String> {
    let known = KEYS.iter().find(|(name, _)| *name == path).map_or(&[][..], |(_, keys)| keys);
    let is_free = known == ["*"];
    let mut unknown = vec![];
    for (key, value) in table {
        if !is_free && !known.contains(&key.as_str()) {
            unknown.push(format!("{path}.{key}").trim_start_matches('.').to_owned());
            continue;
        }
        let inner = format!("{path}.{}", if is_free { "*" } else { key });
        let inner = inner.trim_start_matches('.');
        match value {
            Value::Table(table) => unknown.extend(unknown_keys(inner, table)),
            Value::Array(items) => {
                let tables = items.iter().filter_map(Value::as_table);
                unknown.extend(tables.flat_map(|table| unknown_keys(inner, table)));
            }
            _ => {}
        }
    }
    unknown
}

fn file(name: &str) -> String {
    let path: PathBuf = xtask::paths::root().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn fly() -> Table {
    file("fly.toml").parse().unwrap()
}

/// `at(&fly, "http_service.checks.0.path")`
fn at<'a>(table: &'a Table, path: &str) -> &'a Value {
    let (first, rest) = path.split_once('.').unwrap_or((path, ""));
    let start = table.get(first).unwrap_or_else(|| panic!("fly.toml has no {path}"));
    rest.split('.').filter(|key| !key.is_empty()).fold(start, |value, key| {
        let inner = key.parse::<usize>().ok().map_or_else(|| value.get(key), |index| value.get(index));
        inner.unwrap_or_else(|| panic!("fly.toml has no {path}"))
    })
}

fn number(path: &str) -> i64 {
    at(&fly(), path).as_integer().unwrap_or_else(|| panic!("{path} is not a whole number"))
}

fn text(path: &str) -> String {
    at(&fly(), path).as_str().unwrap_or_else(|| panic!("{path} is not text")).to_owned()
}

/// The value of `NAME=value` in the Dockerfile's `ENV`.
fn image_variable(name: &str) -> String {
    let dockerfile = file("Dockerfile");
    let found = dockerfile.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    found.unwrap_or_else(|| panic!("the Dockerfile sets no {name}")).to_owned()
}

fn port_of(address: &str) -> i64 {
    address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or_else(|| panic!("no port in {address}"))
}

#[test]
fn every_key_exists() {
    let examples = EXAMPLES.map(|name| format!("examples/{name}/fly.toml"));
    for name in ["fly.toml", "config/autoscaler/fly.toml"].into_iter().chain(examples.iter().map(String::as_str)) {
        assert_eq!(unknown_keys("", &file(name).parse().unwrap()), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn every_command_of_flyctl_exists() {
    let texts = [
        "fly.toml",
        "config/autoscaler/fly.toml",
        "config/autoscaler/fly-autoscaler.yml",
        "config/prometheus/alerts.yml",
        "docs/fly.md",
        "docs/operations.md",
        "docs/your-app.md",
        "README.md",
    ];
    let examples = EXAMPLES.map(|name| format!("examples/{name}/README.md"));
    for name in texts.into_iter().chain(examples.iter().map(String::as_str)) {
        let faults: Vec<String> = commands(&file(name)).iter().filter_map(|command| fault(command)).collect();
        assert!(faults.is_empty(), "{name}: {faults:#?}");
    }
    assert!(commands(&file("docs/fly.md")).len() > 30, "the commands of docs/fly.md are not found any more");
}

#[test]
fn commands_that_flyctl_does_not_have_are_found() {
    let text = "#   fly deploy --ha=false  # and a word\nfly scale max 10 && fly deploy\nsay `fly status --sticky`, or fly away\n";
    let found = commands(text);
    assert_eq!(found, ["fly deploy --ha=false", "fly scale max 10", "fly deploy", "fly status --sticky"]);
    let faults: Vec<bool> = found.iter().map(|command| fault(command).is_some()).collect();
    assert_eq!(faults, [false, true, false, true]);
    assert_eq!(fault("fly ssh console -C \"outrigger --help\""), None);
    assert!(fault("fly ssh console -c x").is_some());
}

/// Two autoscalers would work against each other, and one without its rules would not start.
#[test]
fn the_autoscaler_gets_the_rules_that_lie_beside_it() {
    let autoscaler: Table = file("config/autoscaler/fly.toml").parse().unwrap();
    let local = at(&autoscaler, "files.0.local_path").as_str().unwrap();
    assert!(!file(&format!("config/autoscaler/{local}")).is_empty());
    let guest = at(&autoscaler, "files.0.guest_path").as_str().unwrap();
    assert_eq!(at(&autoscaler, "processes.app").as_str().unwrap(), format!("serve -config {guest}"));
    let shown = commands(&file("config/autoscaler/fly.toml"));
    assert!(shown.contains(&"fly deploy --ha=false".to_owned()), "{shown:?}");
}

#[test]
fn keys_that_do_not_exist_are_found_at_any_depth() {
    let wrong = r#"
        [scaling]
        max = 10
        [scaling.cpu]
        [http_service]
        max_machines_running = 10
        [http_service.sticky_session]
        [http_service.concurrency]
        softlimit = 1
        [[http_service.checks]]
        failure_threshold = 3
        [checks.mine]
        port = 8080
        kind = "informational"
        [[metrics]]
        interval = "15s"
        [env]
        ANYTHING = "goes"
        [[services]]
    "#;
    let expected = [
        "checks.*.kind",
        "http_service.checks.failure_threshold",
        "http_service.concurrency.softlimit",
        "http_service.max_machines_running",
        "http_service.sticky_session",
        "metrics.interval",
        "scaling",
        "services",
    ];
    let mut found = unknown_keys("", &wrong.parse().unwrap());
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn every_enumerated_value_is_known_to_fly() {
    assert!(["off", "stop", "suspend"].contains(&text("http_service.auto_stop_machines").as_str()));
    assert!(["connections", "requests"].contains(&text("http_service.concurrency.type").as_str()));
    assert!(["rolling", "canary", "bluegreen", "immediate"].contains(&text("deploy.strategy").as_str()));
    assert!(at(&fly(), "deploy.max_unavailable").is_integer() || at(&fly(), "deploy.max_unavailable").is_float());
    assert!(number("http_service.concurrency.soft_limit") < number("http_service.concurrency.hard_limit"));
    assert!(number("http_service.min_machines_running") >= 2);
    for (name, _) in at(&fly(), "env").as_table().unwrap() {
        assert!(!name.starts_with("FLY_"), "{name}: Fly keeps these names for itself");
    }
}

#[test]
fn ports_are_those_that_the_image_listens_on_for_the_edge_to_reach() {
    let (public, admin) = (image_variable("OUTRIGGER_LISTEN"), image_variable("OUTRIGGER_ADMIN_LISTEN"));
    assert!(public.starts_with("0.0.0.0:") && admin.starts_with("0.0.0.0:"), "Fly comes over private IPv4");
    assert_eq!(number("http_service.internal_port"), port_of(&public));
    assert_eq!(number("checks.detailed.port"), port_of(&public));
    assert_eq!(number("metrics.0.port"), port_of(&admin));
    assert!(image_variable("APP_LISTEN").starts_with("127.0.0.1:"), "only the proxy may reach the app");
    let exposed = format!("EXPOSE {} {}", port_of(&public), port_of(&admin));
    assert!(file("Dockerfile").contains(&exposed), "{exposed}");
}

#[test]
fn the_service_check_needs_no_database_and_the_other_never_routes() {
    let fly = fly();
    let checks = at(&fly, "http_service.checks").as_array().unwrap();
    let paths: Vec<_> = checks.iter().filter_map(|check| check.get("path")?.as_str()).collect();
    assert_eq!(paths, ["/health"]);
    assert_eq!(text("checks.detailed.path"), "/health/detailed");
    assert_eq!(text("metrics.0.path"), "/metrics/all");
}

/// supervisord must not kill a proxy that is still draining.
#[test]
fn supervisord_waits_for_the_proxy_s_own_drain() {
    let config = file("config/proxy.toml");
    let seconds = |key: &str| -> i64 {
        let value = config.lines().find_map(|line| line.trim_start_matches(['#', ' ']).strip_prefix(key));
        let value = value.and_then(|rest| rest.strip_prefix(" = \"")?.strip_suffix("s\"")?.parse().ok());
        value.unwrap_or_else(|| panic!("config/proxy.toml shows no {key} in seconds"))
    };
    let supervisord = file("supervisord.conf");
    let (_, proxy) = supervisord.split_once("[program:proxy]").unwrap();
    let wait = proxy.lines().find_map(|line| line.strip_prefix("stopwaitsecs=")?.parse::<i64>().ok()).unwrap();
    assert!(wait > seconds("lame_duck") + seconds("drain_timeout"));
}

#[test]
fn the_machine_waits_for_every_drain() {
    let supervisord = file("supervisord.conf");
    let waits = supervisord.lines().filter_map(|line| line.strip_prefix("stopwaitsecs="));
    let waits: Vec<i64> = waits.map(|seconds| seconds.trim().parse().unwrap()).collect();
    assert_eq!(waits.len(), 3, "the app, the proxy and the watchdog");
    let total: i64 = waits.iter().sum();
    let allowed = number("kill_timeout");
    assert!(allowed > total && allowed <= 300, "{allowed} s against {total} s, and Fly's limit of 300 s");
    assert_eq!(text("kill_signal"), "SIGTERM");
}

/// See tests/deploy_supervisor.rs: supervisord exits with an error if a program gave up, and successfully if it was stopped.
#[test]
fn a_failed_machine_restarts_and_a_stopped_one_does_not() {
    assert_eq!(text("restart.0.policy"), "on-failure");
}
