use super::*;

fn names() -> Names {
    Names { switches: vec!["access".to_owned()], lists: vec!["routes".to_owned()] }
}

/// Line and column of each mistake, its message and its hint.
fn told(source: &str) -> Vec<String> {
    let parsed = parse(source, &names());
    let place = |place: &Place| match place {
        Place::File(span) | Place::Secret(span) => {
            let before = &source[..span.start];
            let line_start = before.rfind('\n').map_or(0, |at| at + 1);
            format!("{}:{}", before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
        }
        other => format!("{other:?}"),
    };
    parsed
        .problems
        .iter()
        .map(|problem| format!("{} {} [{}]", place(&problem.place), problem.message, problem.hint))
        .collect()
}

#[test]
fn each_mistake_is_reported_once_with_its_likely_meaning() {
    for (source, expected) in [
        ("a = 127.0.0.1:8081\n", "1:5 text must be in quotes [write a = \"127.0.0.1:8081\"]"),
        ("a = 10s;\n", "1:5 a semicolon after the value [write a = \"10s\"]"),
        ("a = 1 // old\n", "1:5 a comment begins with #, not with `//` [write a = 1]"),
        ("a = \"x\" // old\n", "1:5 a comment begins with #, not with `//` [write a = \"x\"]"),
        ("// old\n", "1:1 a comment begins with #, not with `//` [write # old]"),
        ("a: \"10s\"\n", "1:2 a value follows `=`, not `:` [write a = \"10s\"]"),
        ("a: 10s\n", "1:2 a value follows `=`, not `:` [write a = \"10s\"]"),
        ("access = True\n", "1:10 `True` is not a value of TOML, which has true and false [write access = true]"),
        ("access = yes\n", "1:10 `yes` is not a value of TOML, which has true and false [write access = true]"),
        ("mode = off\n", "1:8 text must be in quotes [write mode = \"off\"]"),
        ("a = \"x\n", "1:7 the text has no closing quote [write a = \"x\"]"),
        ("a = “x”\n", "1:5 these quotes are not the plain \" of TOML [write a = \"x\"]"),
        (
            "a = [GET, POST]\n",
            "1:5 the elements of a list are text in quotes, with commas between them [write a = [\"GET\", \"POST\"]]",
        ),
        (
            "a = [\"GET\" \"POST\"]\n",
            "1:5 the elements of a list are text in quotes, with commas between them [write a = [\"GET\", \"POST\"]]",
        ),
        ("a = [\"GET\"\nb = 1\n", "1:11 the list has no closing bracket [write ] at its end]"),
        ("a = \"\\d+\"\n", "1:5 a backslash in \"…\" begins an escape [write a = '\\d+']"),
        ("a = { \"X\": 1 }\n", "1:5 an inline table has = between key and value [write a = { \"X\" = 1 }]"),
        ("a = 010\n", "1:5 a number has digits only, and no zero before them [write a = 10]"),
        ("a = null\n", "1:5 TOML has no `null` [leave `a` out: then it is unset]"),
        ("listen 8080;\n", "1:8 there is no = between `listen` and its value [write listen = 8080]"),
        ("max fields = 5\n", "1:1 a key has no blanks [write max_fields = 5]"),
        ("a =\n", "1:1 `a` has no value [write a = …, or remove the line: then the default applies]"),
        ("[a\nb = 1\n", "1:3 the name of the table has no closing bracket [write [a]]"),
        ("[[routes]\n", "1:1 the brackets around the name of the table differ [write [[routes]]]"),
        ("[app]]\n", "1:1 the brackets around the name of the table differ [write [app]]"),
        ("server {\n", "1:1 TOML has no blocks in braces [write [server]]"),
        ("server:\n", "1:7 a table begins with its name in brackets [write [server]]"),
        (
            "a = 1\na = 2\n",
            "2:1 the key `a` is set twice; the first time in line 1 [remove one of the two; a list has several values: a = [\"…\", \"…\"]]",
        ),
        (
            "[b]\na = 1\n[b]\n",
            "3:2 the table [b] is defined twice; the first time in line 1 [move its keys to the first one, in line 1, and remove this one]",
        ),
        (
            "[routes]\nname = \"a\"\n[routes]\nname = \"b\"\n",
            "3:2 [routes] is not the only one of its kind, so its brackets are double [write [[routes]], for each of them]",
        ),
        (
            "a = [\n\"x\"\n\"y\"\n]\n",
            "3:1 there is no comma before this element [write a comma after the element above]",
        ),
        ("a = [\n  x,\n]\n", "2:3 text must be in quotes [write \"x\"]"),
        ("a = \"\"\"x\nb = 1\n", "1:9 the text over several lines is not closed [write \"\"\" at its end]"),
    ] {
        let said = told(source);
        assert_eq!(said.first().map(String::as_str), Some(expected), "{source}: {said:?}");
        assert!(said.len() == 1 || source.starts_with("[routes]\nname"), "{source}: {said:?}");
    }
}

#[test]
fn the_rest_after_a_mistake_is_read() {
    let source = "a: 1\nb = 2\n[c\nd = x\n[e]\nf = \"y\"\n";
    let parsed = parse(source, &names());
    assert_eq!(parsed.problems.len(), 3);
    assert_eq!(parsed.root.to_json(), serde_json::json!({ "a": 1, "b": 2, "c": { "d": "x" }, "e": { "f": "y" } }));
    let (_, node) = parsed.root.nearest(&[tree::Step::Key("e"), tree::Step::Key("f")]);
    assert_eq!(node.place, Place::File(source.find("\"y\"").unwrap()..source.len() - 1));
}

#[test]
fn secrets_stay_hidden() {
    for source in ["url = redis://:horse@h\n", "sha256 = horse\n", "[identity.jwt]\nx = horse\n", "password: horse\n"] {
        let parsed = parse(source, &names());
        for problem in &parsed.problems {
            assert!(matches!(problem.place, Place::Secret(_)), "{source}: {problem:?}");
            assert!(!source.contains("url") || !format!("{problem:?}").contains("horse"), "{problem:?}");
        }
        assert_eq!(parsed.problems.len(), 1, "{source}");
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_parsed(text in "([\\[\\]{}=:;,\"'\n#\\\\ ]|a|server|routes|1|0s|//|- |\"\"\"|é|\r\n){0,30}") {
        let parsed = parse(&text, &names());
        for problem in &parsed.problems {
            let (Place::File(span) | Place::Secret(span)) = &problem.place else { panic!("{problem:?}") };
            proptest::prop_assert!(span.end <= text.len());
        }
    }
}
