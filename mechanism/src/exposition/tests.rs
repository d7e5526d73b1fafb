use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use crate::exposition::*;

const OWN: &str = "# HELP outrigger_requests_total Requests.\n# TYPE outrigger_requests_total counter\n\
                   outrigger_requests_total{route=\"a\"} 3\n# HELP process_open_fds Open.\n# TYPE process_open_fds gauge\n\
                   process_open_fds 7\n";

fn merge(own: &str, app: impl AsRef<[u8]>) -> (String, BTreeMap<&'static str, u64>) {
    merge_as(own, app.as_ref(), Dialect::Text)
}

fn merge_as(own: &str, app: &[u8], dialect: Dialect) -> (String, BTreeMap<&'static str, u64>) {
    let mut merged = Merged::new(own);
    let dropped = merged.add_app(app, dialect);
    let dropped = dropped.each().filter(|(_, lines)| *lines > 0).map(|(why, lines)| (why.name(), lines)).collect();
    let page = merged.page();
    if let Err(problem) = strictly_valid(&page) {
        panic!("{problem}\n{page}");
    }
    (page, dropped)
}

/// Merges the app's page with an empty page of the proxy.
fn of_app(app: impl AsRef<[u8]>) -> (String, BTreeMap<&'static str, u64>) {
    merge("", app)
}

#[test]
fn no_family_appears_twice_and_a_label_has_the_process() {
    let proxy = "# HELP process_open_fds Open.\n# TYPE process_open_fds gauge\nprocess_open_fds 7\n\
                 # HELP a_seconds A.\n# TYPE a_seconds histogram\na_seconds_bucket{le=\"+Inf\"} 1\na_seconds_sum 2\na_seconds_count 1\n";
    let app = "# HELP process_open_fds Other words.\n# TYPE process_open_fds gauge\nprocess_open_fds 9\n\
               # HELP b B.\n# TYPE b counter\nb{path=\"/x}y\",process=\"mine\"} 3 1700000000\n";
    let (page, dropped) = merge(proxy, app);
    assert!(dropped.is_empty(), "{dropped:?}");
    insta::assert_snapshot!(page, @r#"
    # HELP process_open_fds Open.
    # TYPE process_open_fds gauge
    process_open_fds{process="proxy"} 7
    process_open_fds{process="app"} 9
    # HELP a_seconds A.
    # TYPE a_seconds histogram
    a_seconds_bucket{process="proxy",le="+Inf"} 1
    a_seconds_sum{process="proxy"} 2
    a_seconds_count{process="proxy"} 1
    # HELP b B.
    # TYPE b counter
    b{process="app",path="/x}y",exported_process="mine"} 3 1700000000
    "#);
}

#[test]
fn invalid_lines_are_dropped_and_counted() {
    let (page, dropped) = of_app(b"<html>\na b c\n1x 2\nb{x=\"1\" 2\nc{} NaN\n\xff\n\n# just words");
    assert_eq!(page, "# HELP c No help given.\n# TYPE c untyped\nc{process=\"app\"} NaN\n");
    assert_eq!(dropped, BTreeMap::from([("encoding", 1), ("label", 1), ("name", 2), ("value", 1)]));
}

#[test]
fn the_app_cannot_change_the_proxys_metrics() {
    let app = "# TYPE outrigger_requests_total gauge\noutrigger_requests_total 1\noutrigger_else 2\n# HELP outrigger_else E.\n\
               # TYPE process_open_fds counter\nprocess_open_fds 9\n# HELP process_open_fds Else.\nok 1\n";
    let (page, dropped) = merge(OWN, app);
    let own = Merged::new(OWN).page();
    assert_eq!(page, format!("{own}# HELP ok No help given.\n# TYPE ok untyped\nok{{process=\"app\"}} 1\n"));
    assert_eq!(dropped, BTreeMap::from([("reserved", 4), ("type", 2)]));
}

#[test]
fn a_type_counts_once_and_before_its_samples() {
    let (page, dropped) =
        of_app("# TYPE a counter\n# TYPE a gauge\na 1\nb 2\n# TYPE b gauge\n# HELP b B.\n# HELP b C.\n");
    assert_eq!(
        page,
        "# HELP a No help given.\n# TYPE a counter\na{process=\"app\"} 1\n\
         # HELP b B.\n# TYPE b untyped\nb{process=\"app\"} 2\n"
    );
    assert_eq!(dropped, BTreeMap::from([("help", 1), ("type", 2)]));
}

#[test]
fn samples_of_a_family_are_brought_together_and_none_comes_twice() {
    let (page, dropped) =
        of_app("a{x=\"1\",y=\"2\"} 1\nb 2\na{x=\"3\"} 4\na{y=\"2\",x=\"1\"} 5\nb{} 6\r\na{x=\"4\"} 7");
    insta::assert_snapshot!(page, @r#"
    # HELP a No help given.
    # TYPE a untyped
    a{process="app",x="1",y="2"} 1
    a{process="app",x="3"} 4
    a{process="app",x="4"} 7
    # HELP b No help given.
    # TYPE b untyped
    b{process="app"} 2
    "#);
    assert_eq!(dropped, BTreeMap::from([("duplicate", 2)]));
}

#[test]
fn histograms_are_whole_and_in_order_or_none() {
    let whole = "# TYPE h histogram\nh_count 3\nh_bucket{le=\"+Inf\"} 3\nh_bucket{le=\"0.5\",x=\"1\"} 1\nh_bucket{le=\"10\"} 2\n\
                 h_bucket{le=\"2\"} 1\nh_bucket{x=\"1\",le=\"+Inf\"} 1\nh_count{x=\"1\"} 1\nh_sum 4\nh 5\nh_bucket 6\nh_bucket{le=\"x\"} 7\n";
    let (page, dropped) = of_app(whole);
    insta::assert_snapshot!(page, @r#"
    # HELP h No help given.
    # TYPE h histogram
    h_bucket{process="app",le="2"} 1
    h_bucket{process="app",le="10"} 2
    h_bucket{process="app",le="+Inf"} 3
    h_sum{process="app"} 4
    h_count{process="app"} 3
    h_bucket{process="app",le="0.5",x="1"} 1
    h_bucket{process="app",x="1",le="+Inf"} 1
    h_count{process="app",x="1"} 1
    "#);
    assert_eq!(dropped, BTreeMap::from([("type", 3)]));
    let (page, _) = of_app("# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_sum 2\nh_count 1\n");
    insta::assert_snapshot!(page, @r#"
    # HELP h_bucket No help given.
    # TYPE h_bucket untyped
    h_bucket{process="app",le="1"} 1
    # HELP h_sum No help given.
    # TYPE h_sum untyped
    h_sum{process="app"} 2
    # HELP h_count No help given.
    # TYPE h_count untyped
    h_count{process="app"} 1
    "#);
}

#[test]
fn no_name_belongs_to_two_families() {
    let (_, dropped) = of_app(
        "h_count 1\n# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\n# TYPE g summary\n# TYPE g_sum gauge\ng_sum 2\n",
    );
    assert_eq!(dropped, BTreeMap::from([("type", 2)]));
}

#[test]
fn openmetrics_is_said_in_the_text_format() {
    let app = "# HELP jobs Jobs done.\n# TYPE jobs counter\n# UNIT jobs jobs\njobs_total{q=\"mail\"} 7 # {trace_id=\"ab\"} 0.5 1700000000.5\n\
               jobs_created{q=\"mail\"} 1.7e9\n# TYPE lag gauge\nlag 2 1700000000.250\n# EOF\n";
    let (page, dropped) = merge_as("", app.as_bytes(), Dialect::OpenMetrics);
    insta::assert_snapshot!(page, @r#"
    # HELP jobs_total Jobs done.
    # TYPE jobs_total counter
    jobs_total{process="app",q="mail"} 7
    # HELP jobs_created No help given.
    # TYPE jobs_created untyped
    jobs_created{process="app",q="mail"} 1.7e9
    # HELP lag No help given.
    # TYPE lag gauge
    lag{process="app"} 2 1700000000250
    "#);
    assert!(dropped.is_empty(), "{dropped:?}");
}

#[test]
fn sizes_are_bounded() {
    let long = format!("a{{x=\"{}\"}} 1\nb 2\n", "x".repeat(LINE_BYTES));
    let (page, dropped) = of_app(long);
    assert_eq!((page.lines().count(), dropped), (3, BTreeMap::from([("size", 1)])));
    let many: String = (0..MOST_SAMPLES + 5).map(|n| format!("a{{n=\"{n}\"}} 1\n")).collect();
    assert_eq!(of_app(many).1, BTreeMap::from([("size", 5)]));
    let many: String = (0..MOST_FAMILIES + 5).map(|n| format!("# TYPE a{n} gauge\n")).collect();
    assert_eq!(of_app(many).1, BTreeMap::from([("size", 5)]));
    let labels: Vec<String> = (0..1000).map(|n| format!("l{n}=\"\"")).collect();
    assert_eq!(of_app(format!("a{{{}}} 1", labels.join(","))).1, BTreeMap::from([("label", 1)]));
}

/// An independent checker for text format 0.0.4 as documented. It shares no code with what it checks.
fn strictly_valid(page: &str) -> Result<(), String> {
    let problem = |line: &str, text: &str| Err(format!("{text}: {line:?}"));
    let name = |text: &str, more: &str| {
        let is_first = |c: char| c.is_ascii_alphabetic() || c == '_' || more.contains(c);
        text.chars().enumerate().all(|(at, c)| is_first(c) || (at > 0 && c.is_ascii_digit())) && !text.is_empty()
    };
    let (mut types, mut helps, mut series) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    let (mut current, mut left) = (String::new(), BTreeSet::new());
    let mut bounds: BTreeMap<String, f64> = BTreeMap::new();
    let mut wholes: BTreeMap<String, (bool, bool)> = BTreeMap::new();
    if !page.is_empty() && !page.ends_with('\n') {
        return problem(page, "the last line does not end");
    }
    for line in page.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (keyword, family, text) =
                (words.next().unwrap(), words.next().unwrap_or(""), words.next().unwrap_or(""));
            if !name(family, ":") {
                return problem(line, "not a name");
            }
            if family != current {
                left.insert(std::mem::replace(&mut current, family.to_owned()));
                if left.contains(family) {
                    return problem(line, "the family was left before");
                }
            }
            let is_right = match keyword {
                "HELP" => {
                    helps.insert(family.to_owned()) && !text.replace("\\\\", "").replace("\\n", "").contains('\\')
                }
                "TYPE" => {
                    let known = ["counter", "gauge", "histogram", "summary", "untyped"].contains(&text);
                    known && types.insert(family.to_owned(), text.to_owned()).is_none()
                }
                _ => false,
            };
            if !is_right {
                return problem(line, "a comment that is wrong, or comes twice");
            }
            continue;
        }
        let at = line.find(['{', ' ']).ok_or_else(|| format!("no value: {line:?}"))?;
        let sample = &line[..at];
        let mut rest = &line[at..];
        let mut labels = BTreeMap::new();
        if let Some(inner) = rest.strip_prefix('{') {
            rest = inner;
            loop {
                if let Some(after) = rest.strip_prefix('}') {
                    rest = after;
                    break;
                }
                let (label, after) = rest.split_once("=\"").ok_or_else(|| format!("no label: {line:?}"))?;
                let (mut value, mut characters) = (String::new(), after.char_indices());
                let end = loop {
                    match characters.next() {
                        Some((at, '"')) => break at,
                        Some((_, '\\')) => match characters.next() {
                            Some((_, c @ ('\\' | 'n' | '"'))) => value.push(if c == 'n' { '\n' } else { c }),
                            _ => return problem(line, "an unknown escape"),
                        },
                        Some((_, c)) if c.is_control() && c != '\t' => return problem(line, "a control character"),
                        Some((_, c)) => value.push(c),
                        None => return problem(line, "a value without an end"),
                    }
                };
                if !name(label, "") || label == "__name__" || labels.insert(label.to_owned(), value).is_some() {
                    return problem(line, "a label that is wrong, or comes twice");
                }
                rest = &after[end + 1..];
                match rest.strip_prefix(',') {
                    Some(after) => rest = after,
                    None if rest.starts_with('}') => {}
                    None => return problem(line, "no comma"),
                }
            }
        }
        let words: Vec<&str> = rest.strip_prefix(' ').unwrap_or("").split(' ').collect();
        let is_number = |text: &str| {
            let digits = text.trim_start_matches(['+', '-']);
            let special = ["inf", "infinity", "nan"].contains(&digits.to_lowercase().as_str());
            let is_plain = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
            text.parse::<f64>().is_ok_and(|number| special || (is_plain && number.is_finite()))
        };
        if !is_number(words[0]) || words.len() > 2 || words.get(1).is_some_and(|text| text.parse::<i64>().is_err()) {
            return problem(line, "not a value and a timestamp");
        }
        if !name(sample, ":") || !series.insert((sample.to_owned(), labels.clone())) {
            return problem(line, "a name that is wrong, or a series that comes twice");
        }
        let suffix = sample.strip_prefix(&*current).ok_or_else(|| format!("outside its family: {line:?}"))?;
        let kind = types.get(&current).map_or("untyped", String::as_str);
        let belongs = match kind {
            "histogram" => ["_bucket", "_sum", "_count"].contains(&suffix),
            "summary" => ["_sum", "_count"].contains(&suffix) || labels.contains_key("quantile"),
            _ => suffix.is_empty(),
        };
        if !belongs || (suffix.is_empty() && left.contains(sample)) {
            return problem(line, "not a sample of its family");
        }
        if kind == "histogram" {
            let bound = (suffix == "_bucket").then(|| labels.remove("le").and_then(|le| le.parse::<f64>().ok()));
            let key = format!("{current}{labels:?}");
            let whole = wholes.entry(key.clone()).or_default();
            whole.1 |= suffix == "_count";
            if let Some(bound) = bound {
                let bound = bound.ok_or_else(|| format!("a bucket without a bound: {line:?}"))?;
                whole.0 |= bound == f64::INFINITY;
                if bounds.insert(key, bound).is_some_and(|before| before >= bound) {
                    return problem(line, "buckets out of order");
                }
            }
        }
    }
    match wholes.iter().find(|(_, whole)| **whole != (true, true)) {
        Some((key, _)) => Err(format!("a histogram without its last bucket or its count: {key}")),
        None => Ok(()),
    }
}

/// Pages whose lines are nearly valid.
fn pages() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        "[abh]",
        "[ah]_(bucket|sum|count|total)",
        Just("outrigger_x".to_owned()),
        Just("process_open_fds".to_owned()),
        Just("1a".to_owned()),
    ];
    let label = prop_oneof![
        4 => "(x|y|le|quantile|process|exported_process)=\"[a1\\\\n\"+.]{0,3}\"",
        2 => "le=\"(1|2|0.5|[+]Inf|NaN|x)\"",
        1 => "[a-z=\",{}\\\\ ]{0,6}",
    ];
    let labels = proptest::collection::vec(label, 0..4).prop_map(|labels| format!("{{{}}}", labels.join(",")));
    let value = prop_oneof![
        6 => "[0-9]{1,3}",
        2 => "(NaN|[+]Inf|-Inf|1e3|1e999|0x1|1_0|[.]5)( [0-9]{1,4})?",
        1 => "[a-z0-9.+# {}=\"]{0,8}",
    ];
    let kind = "(counter|gauge|histogram|summary|untyped|unknown|info)";
    let line = prop_oneof![
        5 => (name.clone(), labels, value.clone()).prop_map(|(name, labels, value)| format!("{name}{labels} {value}")),
        3 => (name.clone(), value).prop_map(|(name, value)| format!("{name} {value}")),
        3 => (name.clone(), kind).prop_map(|(name, kind)| format!("# TYPE {name} {kind}")),
        1 => (name, "[a-z\\\\ \"]{0,6}").prop_map(|(name, text)| format!("# HELP {name} {text}")),
        1 => "[^\n]{0,20}",
    ];
    let end = prop_oneof![8 => Just("\n"), 1 => Just("\r\n"), 1 => Just("\n\n")];
    proptest::collection::vec((line, end), 0..30)
        .prop_map(|lines| lines.into_iter().map(|(line, end)| line + end).collect())
}

/// Valid pages with distinct names, so that no line contradicts another.
fn right_pages() -> impl Strategy<Value = Vec<String>> {
    let labels = proptest::collection::btree_map("[xyz]", "([a-z /{},#=é]|\\\\\\\\|\\\\n|\\\\\"){0,4}", 0..3);
    let value = "(0|-?[1-9][0-9]{0,5}([.][0-9]{1,3})?(e[+-]?[0-9])?|NaN|[+-]Inf)( -?[0-9]{1,13})?";
    proptest::collection::vec((labels, value), 0..20).prop_map(|samples| {
        let line = |(number, (labels, value)): (usize, (BTreeMap<String, String>, String))| {
            let labels: Vec<String> = labels.into_iter().map(|(name, text)| format!("{name}=\"{text}\"")).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            format!("m{number}{labels} {value}")
        };
        samples.into_iter().enumerate().map(line).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_app_metrics_give_a_valid_page_with_the_proxys_metrics(page in pages(), is_openmetrics: bool) {
        let dialect = if is_openmetrics { Dialect::OpenMetrics } else { Dialect::Text };
        // Panics if the page is invalid.
        let (merged, _) = merge_as(OWN, page.as_bytes(), dialect);
        for line in Merged::new(OWN).page().lines() {
            prop_assert!(merged.lines().any(|other| other == line), "{line}");
        }
    }

    #[test]
    fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        merge(OWN, bytes);
    }

    #[test]
    fn valid_samples_stay_as_they_are(lines in right_pages()) {
        let (page, dropped) = of_app(lines.join("\n"));
        prop_assert!(dropped.is_empty(), "{:?}", dropped);
        for line in &lines {
            let at = line.find(['{', ' ']).unwrap();
            let (name, rest) = line.split_at(at);
            let expected = match rest.strip_prefix('{') {
                Some(rest) => format!("{name}{{process=\"app\",{rest}"),
                None => format!("{name}{{process=\"app\"}}{rest}"),
            };
            prop_assert!(page.lines().any(|line| line == expected), "{expected}\n{page}");
        }
    }
}
