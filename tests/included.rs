//! A configuration of several files, and values from outside of them: included files, variables, secrets.

use std::fs;
use std::process::Output;

use crate::backend::Backend;
use crate::harness::{Proxy, Setup, until};

fn route(name: &str) -> String {
    format!("[[routes]]\nname = \"{name}\"\npath = \"/{name}\"\n")
}

const INCLUDE: &str = "include = [\"rules.d/*.toml\"]\n";

fn is_version(proxy: &Proxy, version: f64) {
    until("the new version", || proxy.metric("outrigger_config_version", &[]) == version);
}

fn rejected(proxy: &Proxy, count: f64) {
    until("the refusal", || proxy.metric("outrigger_config_reloads_total", &[("result", "refused")]) == count);
}

#[track_caller]
fn takes(proxy: &Proxy, name: &str) {
    until("the route to count", || {
        proxy.get(&format!("/{name}"));
        proxy.metric("outrigger_requests_total", &[("route", name)]) > 0.0
    });
}

fn output(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_change_of_any_file_is_in_force_and_a_mistake_is_reported_in_its_file() {
    let app = Backend::start();
    let setup = Setup::new(&app, INCLUDE);
    let (file, secret) = (|name: &str| setup.dir.join("rules.d").join(name), setup.dir.join("timeout"));
    fs::create_dir(setup.dir.join("rules.d")).unwrap();
    fs::write(file("a.toml"), route("first")).unwrap();
    fs::write(&secret, "7s\n").unwrap();
    let proxy = setup.clone().start();
    takes(&proxy, "first");

    fs::write(file("b.toml"), format!("[app]\nhold = \"${{file:../timeout}}\"\n{}", route("added"))).unwrap();
    is_version(&proxy, 2.0);
    takes(&proxy, "added");

    fs::write(file("b.toml"), "[app]\nhold = \"30\"\n").unwrap();
    rejected(&proxy, 1.0);
    let line = proxy.says("the changed configuration is rejected");
    assert!(line.contains("rules.d/b.toml:2:8") && line.contains("`hold` needs a duration"), "{line}");
    fs::write(file("b.toml"), format!("[app]\nhold = \"${{file:../timeout}}\"\n{}", route("again"))).unwrap();
    is_version(&proxy, 3.0);
    takes(&proxy, "again");

    fs::write(&secret, "8s\n").unwrap();
    is_version(&proxy, 4.0);
    assert!(proxy.run(&["--config", "proxy.toml", "explain", "GET", "/x"]).status.success());

    fs::remove_file(file("b.toml")).unwrap();
    is_version(&proxy, 5.0);
    assert!(!proxy.run(&["--config", "proxy.toml", "config"]).stdout.is_empty());
}

/// A file that was refused says which files are watched.
#[test]
fn a_refused_load_is_repaired_by_the_file_with_the_mistake() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    fs::create_dir(proxy.dir.join("rules.d")).unwrap();
    fs::write(&proxy.file, proxy.text("include = [\"rules.d/*.toml\", \"later.toml\"]\n")).unwrap();
    rejected(&proxy, 1.0);
    fs::write(proxy.dir.join("later.toml"), route("later")).unwrap();
    is_version(&proxy, 2.0);
    takes(&proxy, "later");
    fs::write(&proxy.file, proxy.text("app.hold = \"${file:hold}\"\n")).unwrap();
    rejected(&proxy, 2.0);
    fs::write(proxy.dir.join("hold"), "3s").unwrap();
    is_version(&proxy, 3.0);
}

const SECRET: &str = "correct-horse-9z";

/// Nothing that Outrigger writes has a value of a reference: not a check, a log, a page or a status.
#[test]
fn no_secret_is_in_any_message() {
    let app = Backend::start();
    let rules = "[admin]\nhosts = [\"${file:secret}\"]\n[log]\nlevel = \"${LEVEL}\"\n[[routes]]\nname = \"${NAME}\"\npath = \"x${NAME}\"\n";
    let setup = Setup::new(&app, "").env("LEVEL", SECRET).env("NAME", SECRET);
    fs::write(setup.dir.join("secret"), format!("http://u:{SECRET}@h\n")).unwrap();
    fs::write(setup.dir.join("wrong.toml"), rules).unwrap();
    for form in ["text", "json", "sarif"] {
        let checked = setup.run(&["check", "wrong.toml", "--format", form]);
        let said = output(&checked);
        assert!(checked.status.code() == Some(78) && said.contains("LEVEL") && !said.contains("horse"), "{said}");
    }
    let proxy = setup.start();
    let text = fs::read_to_string(&proxy.file).unwrap();
    let wrong = text.replace("admin.listen", "admin.hosts = [\"${file:secret}\"]\nadmin.listen");
    fs::write(&proxy.file, wrong.replace("log.level = \"debug\"", "log.level = \"${LEVEL}\"")).unwrap();
    rejected(&proxy, 1.0);
    let line = proxy.says("the changed configuration is rejected");
    assert!(line.contains("${LEVEL}"), "{line}");
    for path in ["/status", "/", "/metrics"] {
        let shown = proxy.admin(path).body;
        assert!(!shown.contains("horse"), "{path}: {shown}");
    }
    assert!(!proxy.log().contains("horse"));
}

#[test]
fn the_configuration_in_force_is_printed_with_the_origin_of_each_value() {
    let app = Backend::start();
    let setup = Setup::new(&app, "include = [\"rules.d/*.toml\"]\nrate_limits.redis.url = \"${REDIS_PASSWORD}\"\n")
        .env("HOLD", "7s")
        .env("REDIS_PASSWORD", SECRET)
        .env("OUTRIGGER_LOG_FORMAT", "text");
    fs::create_dir(setup.dir.join("rules.d")).unwrap();
    fs::write(setup.dir.join("rules.d/a.toml"), format!("[app]\nhold = \"${{HOLD}}\"\n{}", route("first"))).unwrap();
    let printed = setup.run(&["--config", "proxy.toml", "config"]);
    let text = output(&printed);
    for line in [
        "# hold = \"***\"  # ${HOLD} at rules.d/a.toml:2",
        "name = \"first\"  # rules.d/a.toml:4",
        "format = \"text\"  # environment, OUTRIGGER_LOG_FORMAT",
        "timeout = \"60s\"  # default",
        "# url = \"***\"  # ${REDIS_PASSWORD} at proxy.toml:",
    ] {
        let shown = text.lines().any(|shown| shown.starts_with(line) || shown.starts_with(&line.replace("60s", "1m")));
        assert!(shown, "{line}: {text}");
    }
    assert!(!text.contains("horse"), "{text}");
    fs::write(setup.dir.join("printed.toml"), &printed.stdout).unwrap();
    let checked = setup.run(&["check", "printed.toml"]);
    assert!(checked.status.success(), "{}", output(&checked));
    let changed = output(&setup.run(&["--config", "proxy.toml", "config", "--changed", "--json"]));
    let json: serde_json::Value = serde_json::from_str(&changed).unwrap();
    let settings = json["settings"].as_array().unwrap();
    assert!(settings.iter().all(|setting| setting["from"] != "default") && !changed.contains("horse"), "{changed}");
}
