//! `outrigger diff`: what changes between two files, and between a running proxy and a file.

use std::fs;

use serde_json::Value;
use xtask::http;

use crate::backend::Backend;
use crate::harness::{PATIENCE, Proxy, Setup, until};

const RULES: &str = "[[routes]]\nname = \"a\"\npath = \"/a\"\n[[routes]]\nname = \"b\"\npath = \"/b\"\n";

/// The exit code and the output of a comparison.
fn diff(setup: &Setup, args: &[&str]) -> (Option<i32>, String) {
    let named: Vec<&str> = ["--config", "proxy.toml", "diff"].into_iter().chain(args.iter().copied()).collect();
    let output = setup.run(&named);
    (
        output.status.code(),
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
    )
}

#[test]
fn two_files_are_compared_by_their_meaning() {
    let app = Backend::start();
    let setup = Setup::new(&app, "");
    let write = |name: &str, text: &str| fs::write(setup.dir.join(name), text).unwrap();
    write("old.toml", &format!("[app]\ntimeout = \"60s\"\n{RULES}"));
    write("same.toml", &format!("# moved\n[app]\ntimeout = \"1m\" # the default\n{RULES}"));
    write(
        "new.toml",
        &format!("[app]\ntimeout = \"5s\"\n[server]\nthreads = 3\n{}", RULES.replace("name = \"b\"", "name = \"c\"")),
    );
    write("wrong.toml", "[app]\ntimeout = \"5\"\n");

    assert_eq!(diff(&setup, &["old.toml", "same.toml"]), (Some(0), String::new()));
    let (code, text) = diff(&setup, &["old.toml", "new.toml"]);
    assert_eq!(code, Some(1), "{text}");
    for part in [
        "a, default: timeout: 1m → 5s",
        "+ c: path /b",
        "- b",
        "server.threads: 0 → 3  (needs a restart)",
        "breaker b: it is forgotten",
        "breaker c: it starts closed for route \"c\", which used \"b\"",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (code, json) = diff(&setup, &["old.toml", "new.toml", "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    let items = json["items"].as_array().unwrap();
    assert_eq!((code, &json["needs_restart"]), (Some(1), &serde_json::json!(["server.threads"])));
    assert!(items.iter().any(|item| item["kind"] == "route" && item["name"] == "c" && item["change"] == "added"));
    let (code, text) = diff(&setup, &["old.toml", "wrong.toml"]);
    assert!(code == Some(78) && text.contains("wrong.toml:2:11"), "{code:?} {text}");
    let (code, text) = diff(&setup, &["old.toml", "--admin", "127.0.0.1:1"]);
    assert!(code == Some(2) && text.contains("no proxy at 127.0.0.1:1"), "{code:?} {text}");
}

const SECRET: &str = "correct-horse-9z";

#[test]
fn the_running_proxy_is_compared_with_a_file_and_shows_no_secret() {
    let app = Backend::start();
    let token = "0123456789abcdef0123456789abcdef";
    let rules = format!(
        "{RULES}headers = {{ \"X-Token\" = \"${{SECRET}}\" }}\n\
         [rate_limits.redis]\nurl = \"redis://:${{file:secret}}@127.0.0.1\"\n\
         [[identity.keys]]\nname = \"ann\"\nsha256 = \"{}\"\n",
        "1".repeat(64)
    );
    let setup = Setup::new(&app, &rules).env("SECRET", SECRET).env("OUTRIGGER_ADMIN_TOKEN", token);
    fs::write(setup.dir.join("secret"), SECRET).unwrap();
    let proxy = setup.start();
    let (code, text) = diff(&proxy, &["proxy.toml"]);
    assert!(code == Some(0) && text.contains("not compared"), "{code:?} {text}");

    let changed = fs::read_to_string(&proxy.file).unwrap().replace("path = \"/b\"", "path = \"/b\"\ntimeout = \"7s\"");
    fs::write(proxy.dir.join("new.toml"), &changed).unwrap();
    let (code, text) = diff(&proxy, &["new.toml"]);
    assert!(code == Some(1) && text.contains("b: timeout: 1m → 7s") && !text.contains("horse"), "{code:?} {text}");
    fs::write(&proxy.file, &changed).unwrap();
    until("the change to be in force", || diff(&proxy, &["new.toml"]).0 == Some(0));
    is_closed_to_others(&proxy, token);
}

/// Only operators may read the configuration, and not even they see a secret.
fn is_closed_to_others(proxy: &Proxy, token: &str) {
    let ask = |lines: &[(&str, &str)]| http::send("GET", proxy.admin, "/config", lines, "", PATIENCE).unwrap();
    let refused = ask(&[]);
    assert!(refused.status == 401 || refused.status == 403, "{}", refused.status);
    assert!(!refused.body.contains("/b"), "{}", refused.body);
    let shown = ask(&[("authorization", &format!("Bearer {token}"))]);
    assert_eq!(shown.status, 200);
    for secret in ["horse", "1111111", token] {
        assert!(!shown.body.contains(secret), "{secret}: {}", shown.body);
    }
    assert!(shown.body.contains("\"/b\""), "{}", shown.body);
}
