//! Compares the statements of `diff` about state with the mechanisms themselves.

use std::sync::Arc;

use outrigger_identity::client::Client;
use outrigger_identity::hash::client_hash;

use super::*;
use crate::mechanism::breakers::Registry;

fn load(source: &str) -> Config {
    Config::parse(Path::new("proxy.toml"), source, &|_| None).unwrap_or_else(|e| panic!("{e}"))
}

fn losses(old: &Config, new: &Config, of: &str) -> usize {
    let changes = diff(&Side::of(old), &Side::of(new), &BTreeSet::new(), &|_| None);
    changes.losses.iter().filter(|loss| loss.of == of).count()
}

const ROUTE: &str = "[[routes]]\nname = \"a\"\npath = \"/a\"\n";

#[test]
fn usage_of_a_limit_starts_anew_exactly_where_its_keys_change() {
    let limit =
        |more: &str| format!("{ROUTE}[[rate_limits.rules]]\nname = \"l\"\nrate = \"5/1m\"\nroutes = [\"a\"]\n{more}");
    let renamed = |text: String| text.replace("name = \"a\"", "name = \"b\"").replace("[\"a\"]", "[\"b\"]");
    let by_route = "by = \"route\"\n";
    for (old, new, is_lost) in [
        (limit(""), limit("burst = 3\n"), false),
        (limit(""), limit("mode = \"monitor\"\n"), false),
        (limit(""), limit("tiers = false\n"), false),
        (limit(""), limit("count = \"failures\"\n"), true),
        (limit(""), limit("").replace("5/1m", "9/1h"), false),
        (limit(""), format!("[tiers]\nfree = \"3x\"\n{}", limit("")), false),
        (limit(""), limit("by = \"address\"\n"), true),
        (limit(""), limit("by = \"client-and-route\"\n"), true),
        (limit(""), limit("").replace("name = \"l\"", "name = \"m\""), true),
        (limit(""), renamed(limit("")), false),
        (limit(by_route), renamed(limit(by_route)), true),
        (limit("by = \"machine\"\n"), renamed(limit("by = \"machine\"\n")), false),
    ] {
        // The key of a client on the route that the limit applies to.
        let client = Client { id: 7, address_id: 8, ..Client::UNKNOWN };
        let tag = |config: &Config| {
            let limit = config.limits.all.last().unwrap();
            let routes = config.routes.all();
            let route = routes.iter().find(|route| ["a", "b"].contains(&&*route.name)).unwrap();
            limit.tag(&client, client_hash(b'r', route.name.as_bytes()))
        };
        let (before, after) = (load(&old), load(&new));
        assert_eq!(tag(&before) != tag(&after), is_lost, "{new}");
        assert_eq!(losses(&before, &after, "limit") > 0, is_lost, "{new}");
    }
}

#[test]
fn a_circuit_breaker_is_forgotten_exactly_where_its_name_goes() {
    let group = "[[breaker.groups]]\nname = \"g\"\nopen = \"5s\"\n";
    let shared = ROUTE.replace("path", "breaker = \"g\"\npath") + group;
    for (old, new, is_lost) in [
        (ROUTE.to_owned(), format!("{ROUTE}timeout = \"5s\"\n"), false),
        (ROUTE.to_owned(), format!("[breaker]\nopen = \"5s\"\nfailures = 9\nmode = \"monitor\"\n{ROUTE}"), false),
        (ROUTE.to_owned(), ROUTE.replace("\"/a\"", "\"/b\""), false),
        (ROUTE.to_owned(), ROUTE.replace("\"a\"", "\"b\""), true),
        (ROUTE.to_owned(), shared.clone(), true),
        (shared.clone(), shared.replace("5s", "9s"), false),
        (shared.clone(), shared.replace("name = \"a\"", "name = \"b\""), false),
        (shared.clone(), shared.replace("\"g\"", "\"h\""), true),
    ] {
        let (before, after) = (load(&old), load(&new));
        let registry = Registry::default();
        let of_route = |config: &Config| {
            let cells = registry.prepare(&config.breakers);
            let routes = config.routes.all();
            let route = routes.iter().find(|route| ["a", "b"].contains(&&*route.name)).unwrap();
            Arc::clone(&cells[usize::from(route.breaker.unwrap())])
        };
        let cell = of_route(&before);
        let same = Arc::ptr_eq(&cell, &of_route(&after));
        let mut gone = Vec::new();
        registry.forget(&after.breakers, |name| gone.push(name.to_owned()));
        assert_eq!(!same, is_lost, "{new}");
        assert_eq!(!gone.is_empty(), is_lost, "{new}: {gone:?}");
        assert_eq!(losses(&before, &after, "breaker") > 0, is_lost, "{new}");
    }
}
