//! Alerts, dashboard and scaling rules use only metrics and labels that the two programs export.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use xtask::tools::Tool;
use yaml_rust2::{Yaml, YamlLoader};

use crate::backend::{Backend, Play};
use crate::harness::{Proxy, Setup, fresh_dir, get, until};
use crate::house::{House, document};
use crate::promtool;

/// Labels that a platform adds to every series, and the one that the merged exposition adds.
const ADDED: [&str; 5] = ["app", "region", "host", "instance", "process"];

/// Values that exist but that this test cannot cause: an internal error (`Outcome::Internal`), and a pool whose connections are
/// all in use for longer than a request waits (see tests/databases.rs).
const NOT_SEEN: [(&str, &str); 2] = [("outcome", "internal"), ("reason", "exhausted")];

/// Fly's own metrics, which fly-autoscaler reads.
const OF_FLY: &[(&str, &[&str])] = &[
    ("fly_instance_up", &[]),
    ("fly_instance_cpu", &["cpu_id", "mode"]),
    ("fly_instance_memory_mem_total", &[]),
    ("fly_instance_memory_mem_available", &[]),
];

fn text(name: &str) -> String {
    let path = xtask::paths::root().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(name: &str) -> Yaml {
    YamlLoader::load_from_str(&text(name)).unwrap().remove(0)
}

/// One `name{label="value"}` of an expression.
#[derive(Debug, Default, PartialEq, Eq)]
struct Selector {
    metric: String,
    /// Label and compared value.
    matchers: Vec<(String, String)>,
}

/// The selectors of an expression in PromQL, and the labels that it groups by.
fn selectors(expr: &str) -> (Vec<Selector>, Vec<String>) {
    const WORDS: [&str; 5] = ["and", "or", "unless", "bool", "offset"];
    const LISTS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
    let (mut found, mut grouping) = (Vec::<Selector>::new(), vec![]);
    let mut rest = expr;
    while let Some(c) = rest.chars().next() {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':').unwrap_or(rest.len());
        let (word, after) = rest.split_at(end.max(c.len_utf8()));
        let next = after.trim_start();
        rest = after;
        match c {
            '[' | '"' => {
                let close = if c == '[' { ']' } else { '"' };
                rest = after.split_once(close).map_or("", |(_, rest)| rest);
            }
            '#' => rest = after.split_once('\n').map_or("", |(_, rest)| rest),
            _ if !(c.is_ascii_alphabetic() || c == '_') || WORDS.contains(&word) => {}
            _ if LISTS.contains(&word) => {
                let (list, after) = next.trim_start_matches('(').split_once(')').unwrap_or_default();
                let names = list.split(',').map(|label| label.trim().to_owned());
                grouping.extend(names.filter(|label| !label.is_empty()));
                rest = after;
            }
            _ if next.starts_with('(') => {}
            _ => {
                let mut selector = Selector { metric: word.to_owned(), ..Selector::default() };
                if let Some(inside) = next.strip_prefix('{') {
                    let (matchers, after) = inside.split_once('}').unwrap_or((inside, ""));
                    for matcher in matchers.split("\",") {
                        let (label, value) = matcher.split_once('"').unwrap_or_default();
                        let label = label.trim().trim_end_matches(['=', '!', '~']);
                        selector.matchers.push((label.to_owned(), value.trim_end_matches('"').to_owned()));
                    }
                    rest = after;
                }
                // `sum by (x)(…)` and `sum(…) by (x)`: the function comes without its parenthesis in the first.
                if !LISTS.iter().any(|list| next.starts_with(&format!("{list} ("))) {
                    found.push(selector);
                }
            }
        }
    }
    (found, grouping)
}

/// Every series' name, with its labels and their values.
type Catalogue = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

fn catalogue(expositions: &[String]) -> Catalogue {
    let mut catalogue = Catalogue::new();
    for line in expositions.iter().flat_map(|text| text.lines()).filter(|line| !line.starts_with('#')) {
        let series = line.rsplit_once(' ').map_or("", |(series, _)| series);
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let known = catalogue.entry(name.to_owned()).or_default();
        for (label, value) in labels.trim_end_matches('}').split("\",").filter_map(|label| label.split_once("=\"")) {
            known.entry(label.to_owned()).or_default().insert(value.trim_end_matches('"').to_owned());
        }
    }
    for (name, labels) in OF_FLY {
        let labels = labels.iter().map(|label| ((*label).to_owned(), BTreeSet::new()));
        catalogue.entry((*name).to_owned()).or_insert_with(|| labels.collect());
    }
    catalogue
}

/// The metrics, labels and values in an expression that no program exports.
fn unknown(catalogue: &Catalogue, expr: &str) -> Vec<String> {
    let (selectors, grouping) = selectors(expr);
    let mut unknown = vec![];
    let mut labels: HashSet<&str> = ADDED.into();
    for Selector { metric, matchers } in &selectors {
        let Some(known) = catalogue.get(metric) else {
            unknown.push(metric.clone());
            continue;
        };
        labels.extend(known.keys().map(String::as_str));
        for (label, value) in matchers.iter().filter(|(label, _)| !ADDED.contains(&label.as_str())) {
            let Some(values) = known.get(label) else {
                unknown.push(format!("{metric}{{{label}}}"));
                continue;
            };
            // A dashboard variable, or a label without known values.
            let is_free = value.contains(['$', '*']) || values.is_empty();
            let missing = value
                .split('|')
                .filter(|value| !is_free && !values.contains(*value) && !NOT_SEEN.contains(&(label.as_str(), *value)));
            unknown.extend(missing.map(|value| format!("{metric}{{{label}=\"{value}\"}}")));
        }
    }
    unknown.extend(grouping.into_iter().filter(|label| !labels.contains(label.as_str())).map(|l| format!("by ({l})")));
    unknown
}

/// All series of both programs, after every event that the rules refer to.
fn everything_that_is_said() -> Catalogue {
    // The real app with both databases, then without PostgreSQL.
    let mut house = House::start();
    assert_eq!(house.send("POST", "/api/v1/documents", &document("one")).unwrap().status, 201);
    until("the limit to be reached", || house.send("GET", "/", "").is_ok_and(|answer| answer.status == 429));
    let metrics = |house: &House| xtask::http::get(house.admin, "/metrics/all", crate::house::LIMIT).unwrap().body;
    let well = metrics(&house);
    house.postgres.stop().unwrap();
    until("a request to find no connection", || {
        let _ = house.send("POST", "/api/v1/documents", &document("two"));
        metrics(&house).contains("app_pool_acquire_failures_total{")
    });
    let unwell = metrics(&house);

    // An app that fails in every way.
    let mut app = Backend::start();
    app.says("/500", "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n");
    app.says("/404", "HTTP/1.1 404 Gone\r\nContent-Length: 0\r\n\r\n");
    app.says("/302", "HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n");
    app.says("/stream", "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 0\r\n\r\n");
    app.says("/invalid", "nonsense\r\n\r\n");
    app.at("/truncated", Play::SayAndClose(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf".to_vec()));
    app.at("/hangs", Play::Hang);
    app.at("/waits", Play::Hang);
    let rules = "breaker.mode = \"monitor\"\napp.hold = \"0s\"\n[[routes]]\nname = \"short\"\npath = \"/hangs\"\ntimeout = \"100ms\"\n";
    let key = format!("[[identity.keys]]\nname = \"acme\"\nsha256 = \"{}\"\n", "0".repeat(64));
    let proxy = Proxy::with(&app, &format!("{rules}{key}"));
    proxy.ask("GET / HTTP/1.1\r\nHost: a\r\nX-Api-Key: unknown\r\n\r\n");
    for path in ["/", "/health", "/302", "/404", "/500", "/invalid", "/hangs"] {
        proxy.get(path);
    }
    proxy.ask("GET / HTTP/1.1\r\n\r\n");
    let mut stream = proxy.connect();
    stream.send(get("/stream")).answer();
    drop(stream);
    let _ = proxy.connect().send(get("/truncated")).try_answer();
    let mut client = proxy.connect();
    client.send(get("/waits"));
    until("the request to be with the app", || app.requests_to("/waits") > 0);
    proxy.comes_to_rest_after(client);
    app.says("/health", "HTTP/1.1 503 Unwell\r\nContent-Length: 0\r\n\r\n");
    proxy.get("/health");
    app.stop();
    proxy.get("/health");
    proxy.comes_to_rest();

    // An audit log that cannot be written: a file is in place of its directory.
    let app = Backend::start();
    let setup = Setup::new(&app, "audit.directory = \"trail\"\naudit.default = \"data\"\naudit.queue = 16\n");
    fs::write(setup.dir.join("trail"), "in the way").unwrap();
    let unwritten = setup.start();
    until("entries to be lost", || {
        unwritten.get("/");
        unwritten.metric("outrigger_audit_lost_total", &[]) > 0.0
    });

    // A Machine with a peer.
    let port = xtask::ports::free().unwrap();
    let peers = format!(
        "server.machine = \"a\"\npeers.listen = \"127.0.0.1:{port}\"\npeers.list = [\"127.0.0.9:{port}\"]\npeers.interval = \"100ms\"\n"
    );
    let machine = Setup::new(&app, &peers).env("OUTRIGGER_AFFINITY_KEYS", &"k".repeat(32)).start();
    until("the peer to be known", || machine.admin("/metrics").body.contains("outrigger_peers{"));
    let pages = [&proxy, &unwritten, &machine].map(|proxy| proxy.admin("/metrics/all").body);
    catalogue(&[vec![well, unwell], pages.into()].concat())
}

/// Place and text of each expression.
fn all_expressions() -> Vec<(String, String)> {
    let mut all = vec![];
    for (name, expr) in alerts() {
        all.push((format!("alert {name}"), expr));
    }
    for (panel, expr) in dashboard_expressions(&dashboard()) {
        all.push((format!("panel {panel}"), expr));
    }
    for collector in yaml("config/autoscaler/fly-autoscaler.yml")["metric-collectors"].as_vec().unwrap() {
        let text = |key: &str| collector[key].as_str().unwrap().to_owned();
        all.push((format!("collector {}", text("metric-name")), text("query")));
    }
    all
}

fn alerts() -> Vec<(String, String)> {
    let file = yaml("config/prometheus/alerts.yml");
    let groups = file["groups"].as_vec().unwrap();
    let rules = groups.iter().flat_map(|group| group["rules"].as_vec().unwrap());
    let text = |rule: &Yaml, key: &str| rule[key].as_str().unwrap().to_owned();
    rules.map(|rule| (text(rule, "alert"), text(rule, "expr"))).collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&text("config/grafana/outrigger.json")).unwrap()
}

/// Panels, without the rows between them.
fn panels(dashboard: &Value) -> Vec<&Value> {
    dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row").collect()
}

fn dashboard_expressions(dashboard: &Value) -> Vec<(String, String)> {
    let of_panel = |panel: &Value| -> Vec<(String, String)> {
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array().unwrap();
        targets.iter().map(|target| (title.to_owned(), target["expr"].as_str().unwrap().to_owned())).collect()
    };
    panels(dashboard).into_iter().flat_map(of_panel).collect()
}

#[test]
fn every_metric_and_label_in_a_query_exists() {
    let catalogue = everything_that_is_said();
    let mut missing = vec![];
    for (place, expr) in all_expressions() {
        missing.extend(unknown(&catalogue, &expr).into_iter().map(|what| format!("{place}: {what}")));
    }
    assert!(missing.is_empty(), "{missing:#?}\nknown: {:#?}", catalogue.keys());
}

#[test]
fn unknown_metrics_and_labels_are_found() {
    let said = "# TYPE a counter\na{state=\"open\",reason=\"x, y\"} 1\nb_bucket{le=\"+Inf\"} 2\n".to_owned();
    let catalogue = catalogue(&[said]);
    let unknown = |expr: &str| unknown(&catalogue, expr);
    let fine = "sum by (app, state) (rate(a{state=~\"open\",app=\"x\"}[2m])) > bool 0 and on (instance) max(b_bucket{le=\"+Inf\"}) unless a # c";
    assert_eq!(unknown(fine), Vec::<String>::new());
    assert_eq!(unknown("sum(rate(c[1m])) or vector(0)"), ["c"]);
    assert_eq!(unknown("a{stat=\"open\"}"), ["a{stat}"]);
    assert_eq!(unknown("a{state!~\"open|opened\"} == 1"), ["a{state=\"opened\"}"]);
    assert_eq!(unknown("histogram_quantile(0.99, sum(rate(b_bucket[2m])) by (le, route))"), ["by (route)"]);
    assert_eq!(unknown("min_over_time((count(d) or vector(0))[5m:15s])"), ["d"]);
}

#[test]
fn alerts_do_what_their_tests_say() {
    let dir = xtask::paths::root().join("config/prometheus");
    promtool::check_rules(&dir.join("alerts.yml")).unwrap();
    promtool::test_rules(&dir.join("alerts.test.yml")).unwrap();
}

#[test]
fn every_alert_has_a_test_that_it_fires_and_is_in_the_handbook() {
    let file = yaml("config/prometheus/alerts.test.yml");
    let tests = file["tests"].as_vec().unwrap();
    let rule_tests = tests.iter().filter_map(|test| test["alert_rule_test"].as_vec()).flatten();
    let fires = |test: &&Yaml| test["exp_alerts"].as_vec().is_some_and(|alerts| !alerts.is_empty());
    let fired: Vec<&str> = rule_tests.filter(fires).filter_map(|test| test["alertname"].as_str()).collect();
    let handbook = text("docs/operations.md");
    for (name, _) in alerts() {
        assert!(fired.contains(&name.as_str()), "no test makes {name} fire");
        assert!(handbook.contains(&format!("`{name}`")), "docs/operations.md does not say what to do about {name}");
    }
}

#[test]
fn the_dashboard_can_be_imported_anywhere() {
    let dashboard = dashboard();
    let panels = panels(&dashboard);
    let rows = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = rows.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), rows.len(), "an id is there twice");
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let source = variables.iter().find(|variable| variable["type"] == "datasource").unwrap();
    assert_eq!((&source["name"], &source["query"]), (&"datasource".into(), &"prometheus".into()));
    assert_eq!(dashboard["id"], Value::Null, "an id of some Grafana would overwrite another's dashboard");
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title} has no unit");
        assert!(!panel["description"].as_str().unwrap_or_default().is_empty(), "{title} does not say what it shows");
        let targets = panel["targets"].as_array().unwrap();
        let letters: BTreeSet<_> = targets.iter().map(|target| target["refId"].as_str().unwrap()).collect();
        assert!(!targets.is_empty() && letters.len() == targets.len(), "{title}");
        let position = &panel["gridPos"];
        assert!(position["x"].as_u64().unwrap() + position["w"].as_u64().unwrap() <= 24, "{title} is too wide");
    }
}

/// The dashboard as constants of the types that Grafana publishes for it. The last one is none of them.
fn typescript(dashboard: &Value) -> String {
    let mut rest = dashboard.clone();
    let panels = rest["panels"].take();
    rest.as_object_mut().unwrap().remove("panels");
    let mut code = format!("{GRAFANA_TYPES}const dashboard: Json<Dashboard> = {rest};\n");
    for mut panel in panels.as_array().unwrap().clone() {
        let id = panel["id"].clone();
        let options = match panel["type"].as_str().unwrap() {
            "row" => None,
            "stat" => Some("Stat"),
            "timeseries" => Some("TimeSeries"),
            other => panic!("import the type of the options of {other}"),
        };
        if let Some(options) = options {
            code += &format!("const options{id}: Json<Options{options}> = {};\n", panel["options"].take());
            panel["options"] = json!({});
            let field = panel["fieldConfig"]["defaults"].as_object_mut().unwrap().remove("custom");
            code += &format!("const field{id}: Json<GraphFieldConfig> = {};\n", field.unwrap_or_else(|| json!({})));
        }
        let kind = if options.is_some() { "Json<Panel>" } else { "RowPanel" };
        code += &format!("const panel{id}: {kind} = {panel};\n");
    }
    code + "// @ts-expect-error\nconst wrong: Json<Panel> = {\"type\": \"stat\", \"descripton\": \"\"};\n"
}

/// `Json` turns the enumerations into their values.
const GRAFANA_TYPES: &str = "\
import type { GraphFieldConfig } from \"@grafana/schema/dist/types/common/common.gen\";
import type { Dashboard, Panel, RowPanel } from \"@grafana/schema/dist/types/veneer/dashboard.types\";
import type { Options as OptionsStat } from \"@grafana/schema/dist/types/raw/composable/stat/panelcfg/x/types.gen\";
import type { Options as OptionsTimeSeries } from \"@grafana/schema/dist/types/raw/composable/timeseries/panelcfg/x/types.gen\";
type Json<T> = T extends string ? `${T}` : T extends number | boolean | null | undefined ? T
  : T extends Array<infer U> ? Array<Json<U>> : T extends object ? { [K in keyof T]: Json<T[K]> } : T;
";

#[test]
fn the_dashboard_has_the_types_that_grafana_publishes() {
    let compiler = Tool::GrafanaSchema.get().unwrap();
    let modules = compiler.ancestors().find(|dir| dir.ends_with("node_modules")).unwrap();
    let dir = fresh_dir();
    std::os::unix::fs::symlink(modules, dir.join("node_modules")).unwrap();
    fs::write(dir.join("dashboard.ts"), typescript(&dashboard())).unwrap();
    let options = json!({"noEmit": true, "strict": true, "skipLibCheck": true, "target": "es2020", "moduleResolution": "node", "types": []});
    let project = json!({"compilerOptions": options, "files": ["dashboard.ts"]});
    fs::write(dir.join("tsconfig.json"), project.to_string()).unwrap();
    let said = Command::new(Tool::Node.get().unwrap()).arg(&compiler).arg("-p").arg(&dir).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
}

/// Other apps have no metric that begins with `app_`.
#[test]
fn only_its_own_row_needs_the_example_app() {
    let dashboard = dashboard();
    let mut row = "";
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        if panel["type"] == "row" {
            row = title;
            continue;
        }
        let targets = panel["targets"].as_array().unwrap().iter().map(|target| target["expr"].as_str().unwrap());
        let (of_example, others): (Vec<&str>, Vec<&str>) =
            targets.partition(|expr| selectors(expr).0.iter().any(|selector| selector.metric.starts_with("app_")));
        let stands_alone = |expr: &&str| {
            expr.matches("(sum(app_").count() == expr.matches("app_").count() && expr.contains(" or vector(0))")
        };
        let works = !others.is_empty() || of_example.iter().all(stands_alone);
        assert!(works || row.starts_with("The example app"), "{row}, {title}: {of_example:?}");
    }
    for (name, expr) in alerts() {
        let (metrics, _) = selectors(&expr);
        let of_example = metrics.iter().filter(|selector| selector.metric.starts_with("app_")).count();
        assert!(of_example == 0 || of_example == metrics.len(), "{name} needs the example app and the proxy: {expr}");
    }
}

#[test]
fn prometheus_takes_every_expression_of_the_dashboard() {
    let dashboard = dashboard();
    let expressions = dashboard_expressions(&dashboard);
    // Values for Grafana's variables.
    let rules: Vec<Value> = expressions
        .iter()
        .enumerate()
        .map(|(n, (_, expr))| json!({"record": format!("panel:{n}"), "expr": expr.replace("$__rate_interval", "1m")}))
        .collect();
    let file = fresh_dir().join("dashboard.yml");
    fs::write(&file, json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string()).unwrap();
    promtool::check_rules(&file).unwrap();
    for (panel, expr) in expressions {
        assert!(expr.contains("app=~\"$app\""), "{panel} mixes apps: {expr}");
    }
}
