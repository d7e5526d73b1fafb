use super::*;
use crate::config::testing;

fn load(source: &str, environment: &[(&str, &str)]) -> Config {
    testing::load(source, environment).unwrap_or_else(|e| panic!("{e}"))
}

fn lookup(environment: &[(&str, &str)], name: &str) -> Option<String> {
    environment.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
}

const MACHINE: &[(&str, &str)] =
    &[("OUTRIGGER_AFFINITY_KEYS", "0123456789abcdef0123456789abcdef"), ("OUTRIGGER_MACHINE", "a")];

fn compared(old: &str, new: &str) -> Diff {
    let (old, new) = (load(old, MACHINE), load(new, MACHINE));
    diff(&Side::of(&old), &Side::of(&new), &BTreeSet::new(), &|name| lookup(MACHINE, name))
}

fn route(name: &str, more: &str) -> String {
    format!("[[routes]]\nname = \"{name}\"\npath = \"/{name}\"\n{more}\n")
}

#[test]
fn another_spelling_is_no_change() {
    let a = route("a", "methods = [\"GET\", \"POST\"]");
    for (old, new) in [
        ("[app]\ntimeout = \"60s\"\n", "[app]\ntimeout = \"1m\"\n"),
        ("[app]\ntimeout = \"60s\"\n", "# the default\n"),
        ("[client]\nmax_body = \"1024KiB\"\n", "client.max_body = \"1MiB\"\n"),
        ("[server]\nthreads = 2\n[app]\nhold = \"5s\"\n", "[app]\nhold = \"5s\"\n[server]\nthreads = 2\n"),
        (a.as_str(), &a.replace("\"GET\", \"POST\"", "\"POST\", \"GET\"")),
        (&a, &a.replace("\"/a\"", "\"/A/\"")),
        ("[identity]\ntrusted = [\"10.0.0.0/8\", \"::1\"]\n", "[identity]\ntrusted = [\"::1\", \"10.0.0.0/8\"]\n"),
        ("[app]\ntimeout = \"60s\"\n", "[app]\ntimeout = \"${T:-60s}\"\n"),
        ("[flags]\naudit_trail = \"true\"\n", "[flags]\naudit_trail = true\n"),
    ] {
        let diff = compared(old, new);
        assert!(diff.is_empty() && diff.losses.is_empty(), "{old}{new}{diff}");
    }
}

/// Each kind of change, as people read it.
#[test]
fn each_kind_of_change_is_reported() {
    let two = route("a", "") + &route("b", "");
    let limit = |more: &str| format!("[[rate_limits.rules]]\nname = \"l\"\nrate = \"5/1m\"\nroutes = [\"a\"]\n{more}");
    let key = |name: &str, tier: &str, digest: &str| {
        format!("[[identity.keys]]\nname = \"{name}\"\ntier = \"{tier}\"\nsha256 = \"{}\"\n", digest.repeat(64))
    };
    let cases: &[(&str, String, String)] = &[
        ("a route is added", two.clone(), two.clone() + &route("c", "cost = 2")),
        ("a route is removed", two.clone(), route("a", "")),
        ("routes change places", two.clone(), route("b", "") + &route("a", "")),
        (
            "a route has other values",
            two.clone(),
            route("a", "timeout = \"5s\"\npriority = \"high\"") + &route("b", ""),
        ),
        (
            "all inherit",
            two.clone(),
            format!("[app]\ntimeout = \"5s\"\n[retry]\nattempts = 5\n[breaker]\nopen = \"2m\"\n{two}"),
        ),
        ("a limit is added", two.clone(), two.clone() + &limit("")),
        ("a limit has another rate", two.clone() + &limit(""), two.clone() + &limit("burst = 9\n")),
        ("a limit counts otherwise", two.clone() + &limit(""), two.clone() + &limit("by = \"address\"\n")),
        ("a tier has another factor", String::new(), "[tiers]\npro = \"9x\"\n".to_owned()),
        ("a route is renamed", route("a", ""), route("z", "").replace("/z", "/a")),
        ("a breaker is shared", two.clone(), route("a", "breaker = \"b\"") + &route("b", "")),
        ("a breaker has another window", two.clone(), format!("[breaker]\nwindow = \"20s\"\n{two}")),
        ("a client has another tier", key("ann", "free", "0"), key("ann", "pro", "0")),
        ("a client is renamed", key("ann", "free", "0"), key("eve", "free", "0")),
        ("a client has another key", key("ann", "free", "0"), key("ann", "free", "1")),
        ("a restart is needed", String::new(), "[server]\nthreads = 3\nmax_connections = 9\n".to_owned()),
        ("only a part needs a restart", AUDIT.to_owned(), format!("{AUDIT}queue = 99\ndefault = \"data\"\n")),
        ("sessions end earlier", String::new(), "[affinity]\nidle = \"1m\"\n".to_owned()),
        ("clients are others", String::new(), "[identity]\ntrusted = [\"10.0.0.0/8\"]\n".to_owned()),
        ("a flag", String::new(), "[flags]\ncircuit_breaker = \"10%\"\n".to_owned()),
    ];
    let told: Vec<String> = cases.iter().map(|(what, old, new)| format!("# {what}\n{}", compared(old, new))).collect();
    insta::assert_snapshot!(told.join("\n"));
}

const AUDIT: &str = "[audit]\ndirectory = \"/trail\"\n";

#[test]
fn as_few_routes_as_possible_are_moved() {
    let names = |order: &[&str]| order.iter().map(|name| route(name, "")).collect::<String>();
    let moved = |old: &[&str], new: &[&str]| {
        let items = compared(&names(old), &names(new)).items;
        items.into_iter().filter(|item| item.change == Change::Moved).map(|item| item.name).collect::<Vec<_>>()
    };
    assert_eq!(moved(&["a", "b", "c", "d"], &["d", "a", "b", "c"]), ["d"]);
    assert_eq!(moved(&["a", "b", "c", "d"], &["a", "x", "b", "d"]), [""; 0]);
    assert_eq!(moved(&["a", "b", "c"], &["c", "b", "a"]).len(), 2);
}

#[test]
fn no_secret_is_shown_and_its_change_is() {
    let source = |secret: &str| {
        format!(
            "[rate_limits]\nshared = \"redis\"\n[rate_limits.redis]\nurl = \"redis://:{secret}@127.0.0.1\"\n\
             [[routes]]\nname = \"a\"\npath = \"/a\"\nheaders = {{ \"X-Token\" = \"{secret}\" }}\n"
        )
    };
    let diff = compared(&source("correct-horse"), &source("battery-horse"));
    let (text, json) = (diff.to_string(), serde_json::to_string(&diff).unwrap());
    assert!(!text.contains("horse") && !json.contains("horse"), "{text}");
    assert!(text.contains("rate_limits.redis.url: *** → ***") && text.contains("a: headers: *** → ***"), "{text}");
    assert!(diff.losses.iter().any(|loss| loss.what.contains("another Redis")), "{text}");
}

#[test]
fn the_running_configuration_is_compared_without_its_secrets() {
    let source = "[app]\ntimeout = \"5s\"\n[log]\nlevel = \"info\"\n[rate_limits]\nshared = \"redis\"\n\
                  [rate_limits.redis]\nurl = \"redis://:correct-horse@127.0.0.1\"\n\
                  [[identity.keys]]\nname = \"ann\"\nsha256 = \"1111111111111111111111111111111111111111111111111111111111111111\"\n\
                  [[routes]]\nname = \"a\"\npath = \"/a\"\n";
    let environment = [("OUTRIGGER_LOG_LEVEL", "debug"), ("FF_ENABLE_CIRCUIT_BREAKER", "10%")];
    let shown = load(source, &environment).effective.unwrap().to_json(true);
    assert!(!shown.to_string().contains("horse") && !shown.to_string().contains("1111111"), "{shown}");
    let compared = |source: &str| {
        let new = load(source, &environment);
        let (values, unknown) = running(&shown, &new).unwrap();
        let old =
            Loaded::of_values(&values, &|name| lookup(&environment, name)).unwrap_or_else(|e| panic!("{e}")).config;
        diff(&Side::of(&old), &Side::of(&new), &unknown, &|name| lookup(&environment, name))
    };
    let same = compared(source);
    assert!(same.is_empty() && same.losses.is_empty(), "{same}");
    assert_eq!(same.not_compared, ["identity.keys[0].sha256", "rate_limits.redis.url"]);
    let other = compared(&source.replace("5s", "6s").replace("correct", "battery"));
    assert!(
        other
            .items
            .iter()
            .all(|item| item.values.iter().all(|value| value.key == "timeout" || value.key == "app.timeout")),
        "{other}"
    );
    assert_eq!(other.items.len(), 3, "the route, the default route and the key: {other}");
}
