use super::*;
use crate::finding::Finding;

/// One of `tests/fixtures/mistakes.toml`.
#[derive(Deserialize)]
struct Mistake {
    kind: String,
    input: String,
    #[serde(default)]
    place: String,
    #[serde(default)]
    what: String,
    #[serde(default)]
    hint: String,
    #[serde(default)]
    others: usize,
    severity: Option<String>,
}

#[derive(Deserialize)]
struct Mistakes {
    mistake: Vec<Mistake>,
}

fn findings(source: &str) -> Vec<Finding> {
    match Config::parse(Path::new("proxy.toml"), source, &|_| None) {
        Ok(config) => config.warnings,
        Err(e) => e.findings(),
    }
}

/// 3: the place, the mistake and the remedy are told.
fn score(mistake: &Mistake, finding: &Finding) -> u8 {
    let place = format!("{}:{}", finding.line.unwrap_or(0), finding.column.unwrap_or(0));
    let is_right = mistake.severity.as_deref().unwrap_or("error") == finding.severity;
    let parts = [
        place == mistake.place && is_right,
        finding.message.contains(&mistake.what),
        finding.hint.contains(&mistake.hint),
    ];
    parts.into_iter().map(u8::from).sum()
}

#[test]
fn every_typical_mistake_has_a_place_a_cause_and_a_remedy() {
    let Mistakes { mistake: mistakes } = toml::from_str(include_str!("../../../tests/fixtures/mistakes.toml")).unwrap();
    let mut low = Vec::new();
    for mistake in &mistakes {
        let found = findings(&mistake.input);
        let best = found.iter().map(|finding| score(mistake, finding)).max();
        let expected = if mistake.what.is_empty() { None } else { Some(3) };
        let number = if mistake.what.is_empty() { 0 } else { mistake.others + 1 };
        if best != expected || found.len() != number {
            let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
            low.push(format!("{}: {best:?}, {} problems:\n{}", mistake.kind, found.len(), texts.join("\n")));
        }
        for finding in &found {
            assert!(!finding.hint.is_empty(), "{}", mistake.kind);
            let said = format!("{finding:?}");
            assert!(!said.contains("horse"), "{} shows a secret: {said}", mistake.kind);
        }
    }
    assert!(mistakes.len() > 90 && low.is_empty(), "{} of {}:\n{}", low.len(), mistakes.len(), low.join("\n"));
}

#[test]
fn one_run_reports_mistakes_of_all_sorts() {
    let source = r#"
[server]
lisen = "0.0.0.0:8080"
threads = 1;

[client]
max_head = "10MiB"
max_fields = 1000

[app]
timeout: "0s"
connect_timeout = 5

[[rate_limits.rules]]
name = "x"
rate = "5/1m"
routes = ["nope", "a"]

[[routes]]
name = "a"
path = "b"

[[routes]]
name = "R"
path = "/users/:id"
methods = ["get", "POSTT"]
priority = "urgent"

[identity]
trusted = ["0.0.0.0/0"]
"#;
    let told: Vec<(usize, String)> =
        findings(source).into_iter().map(|finding| (finding.line.unwrap(), finding.message)).collect();
    for (line, part) in [
        (3, "unknown key `lisen`"),
        (4, "a semicolon after the value"),
        (7, "`max_head` needs 1KiB to 1MiB"),
        (8, "`max_fields` needs a whole number"),
        (11, "a value follows `=`, not `:`"),
        (11, "`timeout` must be longer than zero"),
        (12, "`connect_timeout` needs a duration"),
        (17, "there is no route \"nope\""),
        (21, "does not begin with a slash"),
        (24, "`name` needs 1 to 64"),
        (25, "after a colon"),
        (26, "\"get\" is not a method"),
        (26, "\"POSTT\" is no method that is in use"),
        (27, "`priority` needs one of"),
        (30, "every sender is trusted"),
    ] {
        assert!(told.iter().any(|(at, message)| *at == line && message.contains(part)), "{line} {part}: {told:#?}");
    }
    assert_eq!(told.len(), 15, "{told:#?}");
}

#[test]
fn consequences_of_a_mistake_are_left_out() {
    for (source, lines) in [
        // The default of `max` is lower than `min`.
        ("[admission]\nmin = 2000\nmax = \"5000\"\n", &[3][..]),
        ("[breaker]\nopen = \"20m\"\nmax_open = 5\n", &[3]),
        ("[rate_limits]\nstrict = \"many\"\n[[routes]]\nname = \"a\"\npriority = \"strict\"\ncost = 50\n", &[2]),
        ("[[route]]\nname = \"a\"\n[[rate_limits.rules]]\nname = \"x\"\nrate = \"1/1m\"\nroutes = [\"a\"]\n", &[1]),
        ("[[routes]]\nnmae = \"a\"\n[[rate_limits.rules]]\nname = \"x\"\nrate = \"1/1m\"\nroutes = [\"a\"]\n", &[2]),
        ("[[routes]]\nname = \"a\"\npath = 5\n[[routes]]\nname = \"b\"\npath = \"/b\"\n", &[3]),
        ("[[routes]]\nname = \"a\"\npath = \":id\"\n[[routes]]\nname = \"b\"\nmethods = [5]\n", &[3, 6]),
        ("[[routes]]\npath = \"/a\"\n", &[1]),
    ] {
        let told: Vec<usize> = findings(source).iter().map(|finding| finding.line.unwrap()).collect();
        assert_eq!(told, lines, "{source}: {:#?}", findings(source));
    }
}

#[test]
fn problems_name_their_keys() {
    let keys: Vec<_> =
        findings("[[routes]]\nname = \"R\"\nmethods = [\"GET\", \"get\"]\n[server]\nlisen = \"0.0.0.0:1\"\n")
            .into_iter()
            .map(|finding| finding.key.unwrap_or_default())
            .collect();
    assert_eq!(keys, ["routes[0].name", "routes[0].methods[1]", "server.lisen"]);
}

#[test]
fn no_password_is_shown() {
    for source in [
        "[server]\nurl = \"redis://:horse@h\"\n",
        "[app]\naddress = \"http://u:horse@h:80\"\n",
        "[audit]\ndatabase = postgres://u:horse@h/d\n",
        "[audit]\ndatabase = [\"postgres://u:horse@h/d\"]\n",
        "[identity]\nkeys = \"horse\"\n",
        "[identity.jwt]\nsecret = \"horse\"\n",
        "[[identity.keys]]\nname = \"a\"\nsha256 = horse\n",
        "[[identity.keys]]\nname = \"a\"\nsha256 = 5 # horse\n",
        "[rate_limits.redis]\nurl: redis://:horse@h\n",
        "[rate_limits.redis]\nurl = \"redis://:horse@h\nprefix = 5\n",
    ] {
        let found = findings(source);
        assert!(!found.is_empty() && !format!("{found:?}").contains("horse"), "{source}: {found:#?}");
    }
}
