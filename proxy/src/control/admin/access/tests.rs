use super::*;
use outrigger_wire::authority::is_host;
use proptest::prelude::*;

fn rules(hosts: &[&str], is_on_fly: bool) -> AdminRules {
    AdminRules {
        listen: "192.0.2.1:9091".parse().unwrap(),
        hosts: hosts.iter().map(|host| (*host).into()).collect(),
        max_connections: 64,
        is_on_fly,
    }
}

/// The status of the response to a request with these headers that arrives at 198.51.100.7.
fn verdict(needs: Needs, rules: &AdminRules, target: &str, lines: &[(&str, &str)], token: Option<&str>) -> u16 {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
    }
    let arrival = Arrival { from: "127.0.0.1:4000".parse().unwrap(), at: "198.51.100.7:9091".parse().unwrap() };
    let uri: Uri = target.parse().unwrap();
    let asked = Asked { uri: &uri, headers: &headers, arrival };
    match asked.verdict(needs, rules, token, false) {
        Ok(()) => 200,
        Err(denied) => denied.into_response().status().as_u16(),
    }
}

fn with_host(host: &str, rules: &AdminRules) -> u16 {
    verdict(Needs::OwnHost, rules, "/breakers", &[("host", host)], None)
}

#[test]
fn host_must_name_this_listener() {
    let here = rules(&[], false);
    for own in [
        "localhost",
        "LocalHost:9091",
        "localhost.",
        "localhost.:9091",
        "localhost:",
        "127.0.0.1",
        "127.9.9.9:1",
        "[::1]:9091",
        "[::ffff:127.0.0.1]",
        "192.0.2.1:9091",
        "198.51.100.7",
    ] {
        assert_eq!(with_host(own, &here), 200, "{own}");
    }
    for foreign in [
        "attacker.example",
        "attacker.example:9091",
        "localhost.attacker.example",
        "attacker-localhost",
        "x.localhost",
        "192.0.2.2",
        "0.0.0.0",
        "[::]",
        "[2001:db8::1]:9091",
        "m1.vm.shop.internal",
        "127.0.0.1.attacker.example",
    ] {
        assert_eq!(with_host(foreign, &here), 421, "{foreign}");
    }
    for broken in [
        "",
        ".",
        "user@localhost",
        "localhost@attacker.example",
        "localhost/",
        "localhost:80:80",
        "localhost:x",
        "localhost:99999",
        "localhost..",
        "[::1",
        "[localhost]",
        "::1",
        "localhost attacker.example",
        "localhost,attacker.example",
    ] {
        let status = with_host(broken, &here);
        assert!(matches!(status, 400 | 421), "{broken}: {status}");
    }
}

#[test]
fn more_names_can_be_listed_and_fly_has_its_own() {
    let listed = rules(&["admin.example", "203.0.113.9", "2001:db8::1"], false);
    for own in ["Admin.Example.", "admin.example:443", "203.0.113.9:1", "[2001:DB8:0::1]:9091"] {
        assert_eq!(with_host(own, &listed), 200, "{own}");
    }
    let fly = rules(&[], true);
    for own in ["148e21eea46589.vm.shop.internal:9091", "shop.internal.", "ams.SHOP.INTERNAL", "fly-local-6pn:9091"] {
        assert_eq!(with_host(own, &fly), 200, "{own}");
    }
    for foreign in ["internal", ".internal", "shop.internal.attacker.example", "attackerinternal"] {
        assert_ne!(with_host(foreign, &fly), 200, "{foreign}");
    }
    for (host, can_be_listed) in
        [("admin.example", true), ("::1", true), ("10.0.0.1", true), ("a:80", false), ("http://a", false), ("", false)]
    {
        assert_eq!(is_host(host), can_be_listed, "{host}");
    }
}

#[test]
fn there_is_one_host_and_an_absolute_target_has_the_same_rules() {
    let rules = rules(&[], false);
    let ask = |target, lines: &[(&str, &str)]| verdict(Needs::OwnHost, &rules, target, lines, None);
    assert_eq!(ask("/bans", &[]), 400, "also with HTTP/1.0");
    assert_eq!(ask("/bans", &[("host", "localhost"), ("host", "localhost")]), 400);
    assert_eq!(ask("/bans", &[("host", "localhost"), ("host", "attacker.example")]), 400);
    assert_eq!(ask("http://localhost:9091/bans", &[("host", "localhost")]), 200);
    assert_eq!(ask("http://attacker.example/bans", &[("host", "localhost")]), 421);
    assert_eq!(ask("http://localhost/bans", &[("host", "attacker.example")]), 421);
    assert_eq!(ask("http://localhost/bans", &[]), 400);
}

#[test]
fn requests_of_other_sites_pages_are_rejected() {
    let rules = rules(&[], false);
    let ask = |lines: &[(&str, &str)]| {
        let lines = [&[("host", "localhost:9091")], lines].concat();
        let all = [Needs::OwnHost, Needs::Operator].map(|needs| verdict(needs, &rules, "/bans", &lines, None));
        assert_eq!(all[0], all[1], "{lines:?}");
        all[0]
    };
    for own in [
        &[("origin", "http://localhost:9091")][..],
        &[("origin", "http://LOCALHOST.:9091"), ("sec-fetch-site", "same-origin")],
        &[("sec-fetch-site", "none")],
    ] {
        assert_eq!(ask(own), 200, "{own:?}");
    }
    for foreign in [
        &[("origin", "http://attacker.example")][..],
        &[("origin", "http://attacker.example:9091")],
        &[("origin", "http://localhost:3000")],
        &[("origin", "http://localhost")],
        &[("origin", "null")],
        &[("origin", "")],
        &[("origin", "http://localhost:9091/")],
        &[("origin", "file://localhost:9091")],
        &[("origin", "http://localhost:9091@attacker.example")],
        &[("origin", "http://localhost:9091"), ("origin", "http://attacker.example")],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-site")],
        &[("origin", "http://localhost:9091"), ("sec-fetch-site", "cross-site")],
    ] {
        assert_eq!(ask(foreign), 403, "{foreign:?}");
    }
}

#[test]
fn operators_need_the_token_or_without_one_a_local_connection() {
    let rules = rules(&[], false);
    let ask = |needs, lines: &[(&str, &str)]| {
        verdict(needs, &rules, "/bans", &[&[("host", "localhost")], lines].concat(), Some("secret"))
    };
    for right in ["Bearer secret", "bearer secret", "BEARER secret"] {
        assert_eq!(ask(Needs::Operator, &[("authorization", right)]), 200, "{right}");
    }
    let wrong = ["Bearer secre", "Bearer secrets", "Bearer  secret", "Basic secret", "secret", "Bearer", "Bearer ", ""];
    for wrong in wrong {
        assert_eq!(ask(Needs::Operator, &[("authorization", wrong)]), 401, "{wrong}");
    }
    let twice = [("authorization", "Bearer secret"), ("authorization", "Bearer secret")];
    assert_eq!((ask(Needs::Operator, &twice), ask(Needs::Operator, &[])), (401, 401));
    assert_eq!((ask(Needs::OwnHost, &[]), ask(Needs::Nothing, &[])), (200, 200));
    let response = Denied::NoToken.into_response();
    assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer realm=\"outrigger\"");

    let (uri, mut headers) = (Uri::from_static("/bans"), HeaderMap::new());
    headers.insert(header::HOST, "198.51.100.7".parse().unwrap());
    let from = |from: &str| Asked {
        uri: &uri,
        headers: &headers,
        arrival: Arrival { from: from.parse().unwrap(), at: "198.51.100.7:9091".parse().unwrap() },
    };
    for (address, verdict) in [
        ("198.51.100.8:4000", Err(Denied::NotHere)),
        ("[fdaa::1]:4000", Err(Denied::NotHere)),
        ("127.0.0.2:4000", Ok(())),
        ("[::1]:4000", Ok(())),
        ("[::ffff:127.0.0.1]:4000", Ok(())),
    ] {
        assert_eq!(from(address).verdict(Needs::Operator, &rules, None, false), verdict, "{address}");
    }
    assert_eq!(from("198.51.100.8:4000").verdict(Needs::OwnHost, &rules, None, false), Ok(()));
}

/// Without a token, a connection from this machine is an operator's, unless a proxy has made it for somebody else.
#[test]
fn a_forwarded_request_is_no_operators_without_the_token() {
    let here = rules(&[], false);
    let act = |line: (&str, &str), token: Option<&str>| {
        let bearer = ("authorization", "Bearer a-token");
        verdict(Needs::Operator, &here, "/app/restart", &[("host", "localhost"), bearer, line], token)
    };
    for line in [
        ("forwarded", "for=192.0.2.7"),
        ("via", "1.1 edge"),
        ("x-forwarded-for", "192.0.2.7"),
        ("x-forwarded-host", "a"),
        ("x-forwarded-proto", "https"),
        ("x-real-ip", "192.0.2.7"),
    ] {
        assert_eq!(act(line, None), 403, "{line:?}");
        assert_eq!(act(line, Some("a-token")), 200, "{line:?}");
    }
    assert_eq!(act(("accept", "*/*"), None), 200);
}

/// Whether `authority` names the listener of [`rules`], read without the parser under test.
fn is_ours(authority: &str) -> bool {
    let digits = authority.rsplit(':').next().filter(|port| port.bytes().all(|digit| digit.is_ascii_digit()));
    let is_bare = authority.ends_with(']') || !authority.contains(':');
    let host = match digits.filter(|_| !is_bare) {
        Some(port) => &authority[..authority.len() - port.len() - 1],
        None => authority,
    };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let name = host.strip_suffix('.').unwrap_or(host);
    match bracketed {
        Some(address) => address.parse() == Ok(std::net::Ipv6Addr::LOCALHOST),
        None => name.eq_ignore_ascii_case("localhost") || name == "127.0.0.1",
    }
}

proptest! {
    /// Neither a name that resolves to this machine nor a page of another site is ours, in any spelling.
    #[test]
    fn a_foreign_host_or_origin_is_never_accepted(
        host in "(localhost|LOCALHOST|127[.]0[.]0[.]1|\\[::1\\]|attacker[.]example|[.:@/,%?#]|:9091|:80){1,4}",
        scheme in "(http://|https://|file://|)",
        origin in "(localhost|127[.]0[.]0[.]1|\\[::1\\]|attacker[.]example|[.:@/,%?#]|:9091|:80){1,4}",
    ) {
        let here = rules(&[], false);
        if with_host(&host, &here) == 200 {
            prop_assert!(is_ours(&host), "{}", host);
        }
        for host in ["localhost", "localhost:9091", "127.0.0.1:80", "[::1]:9091"] {
            let sent = format!("{scheme}{origin}");
            let lines = [("host", host), ("origin", sent.as_str())];
            if verdict(Needs::Operator, &here, "/bans", &lines, None) == 200 {
                prop_assert!(scheme.starts_with("http") && is_ours(&origin), "{}", sent);
            }
        }
    }
}
