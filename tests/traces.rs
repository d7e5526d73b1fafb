//! OpenTelemetry traces of requests, as a real collector receives them.

mod collector;

use std::{
    net::{TcpListener, TcpStream},
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use rustix::process::Signal;

use self::collector::{Collector, Span};
use crate::{
    backend::{Backend, Play},
    h2c::{ask as ask_h2, with_h2},
    harness::{Proxy, get, post, until, with_fields},
    machines::pair,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const EDGE: &str = "00f067aa0ba902b7";

fn caller(flags: &str) -> String {
    format!("traceparent: 00-{TRACE}-{EDGE}-{flags}")
}

fn rules(collector: &str, more: &str) -> String {
    format!("traces.endpoint = \"http://{collector}\"\n{more}\n")
}

#[test]
fn one_trace_leads_from_the_edge_through_two_attempts_to_the_app() {
    let collector = Collector::start();
    let route = "[[routes]]\nname = \"users\"\npath = \"/{protocol}/{id}\"";
    for (protocol, address) in [("grpc", collector.grpc), ("http/protobuf", collector.http)] {
        let path = format!("/{}/7", &protocol[..4]);
        let app = Backend::start();
        app.at(&path, Play::CloseFirst(Arc::new(AtomicUsize::new(1))));
        let rules =
            rules(&address.to_string(), &format!("traces.sample = \"off\"\ntraces.protocol = \"{protocol}\"\n{route}"));
        let proxy = Proxy::with(&app, &rules);
        let answer = proxy.ask(&with_fields(&get(&format!("{path}?secret=1")), &[&caller("01")]));
        assert_eq!(answer.status, 200, "{answer:?}");

        let (request, attempts) = collector.request(&path);
        assert_eq!((request.is["Trace ID"].as_str(), request.parent()), (TRACE, EDGE));
        assert_eq!(
            (request.is["Name"].as_str(), request.is["Kind"].as_str()),
            ("GET /{protocol}/{id}", "SPAN_KIND_SERVER")
        );
        assert_eq!(request.is["Status code"], "STATUS_CODE_UNSET");
        let texts =
            [("http.request.method", "GET"), ("http.route", "/{protocol}/{id}"), ("outrigger.outcome", "success")];
        texts.iter().for_each(|(name, value)| assert_eq!(request.text(name), Some(*value), "{name}: {request:?}"));
        assert_eq!(request.number("http.response.status_code"), Some(200));
        assert_eq!(request.text("outrigger.request_id"), answer.header("x-request-id"));

        let [first, second] = attempts.as_slice() else { panic!("two attempts: {attempts:?}") };
        assert!(attempts.iter().all(|attempt| attempt.is["Kind"] == "SPAN_KIND_CLIENT"), "{attempts:?}");
        assert_eq!(
            (first.text("error.type"), first.is["Status code"].as_str()),
            (Some("app_closed"), "STATUS_CODE_ERROR")
        );
        assert_eq!(second.number("http.request.resend_count"), Some(1));
        assert_eq!((second.number("http.response.status_code"), second.text("error.type")), (Some(200), None));
        assert_eq!(second.text("server.address"), Some("127.0.0.1"));
        assert_eq!(answer.seen("traceparent"), Some(format!("00-{TRACE}-{}-01", second.id())), "the app's caller");

        // From a metric and a log line to the trace.
        let metrics = proxy.openmetrics("/metrics");
        let exemplar = format!("# {{trace_id=\"{TRACE}\",span_id=\"{}\"}}", request.id());
        let line = metrics.lines().find(|line| line.contains(&exemplar)).expect("an exemplar");
        assert!(
            line.starts_with("outrigger_request_duration_seconds_bucket{outcome=\"success\",route=\"users\""),
            "{line}"
        );
        proxy.says(&format!("\"trace_id\":\"{TRACE}\",\"span_id\":\"{}\"", request.id()));
    }
}

#[test]
fn one_trace_leads_through_two_machines() {
    let collector = Collector::start();
    let (mut a, b) = pair(&rules(&collector.grpc.to_string(), "traces.sample = \"off\""));
    a.app.stop();
    let answer = a.proxy.ask(&with_fields(&get("/moved"), &[&caller("01")]));
    assert_eq!((answer.status, b.app.requests_to("/moved")), (200, 1), "{answer:?}");
    let requests = || {
        let spans = collector.spans();
        spans.iter().filter(|span| span.text("url.path") == Some("/moved")).cloned().collect::<Vec<_>>()
    };
    until("the spans of both Machines", || requests().len() == 2);
    let spans = collector.spans();
    let parts = |of: &Span| spans.iter().filter(|span| span.parent() == of.id()).cloned().collect::<Vec<_>>();
    let here = requests().into_iter().find(|span| span.parent() == EDGE).expect("that of the edge's Machine");
    let to_peer =
        parts(&here).into_iter().find(|part| part.text("outrigger.peer").is_some()).expect("an attempt at a peer");
    let there =
        requests().into_iter().find(|span| span.parent() == to_peer.id()).expect("the peer's belongs to that attempt");
    let [attempt] = &parts(&there)[..] else { panic!("one attempt there: {:?}", parts(&there)) };
    assert_eq!(answer.seen("traceparent"), Some(format!("00-{TRACE}-{}-01", attempt.id())));
}

#[test]
fn the_callers_decision_is_kept_and_without_one_the_sample_decides() {
    let collector = Collector::start();
    let app = Backend::start();
    let rules = |more: &str| rules(&collector.grpc.to_string(), more);
    let off = Proxy::with(&app, &rules("traces.sample = \"off\""));
    let all = Proxy::with(&app, &rules("traces.sample = \"100%\""));
    let alone = Proxy::with(&app, &rules("traces.sample = \"100%\"\ntraces.follow_parent = false"));
    let parent = |flags| caller(flags)["traceparent: ".len()..].to_owned();

    // Not recorded: what the caller sent passes unchanged, and nothing is added.
    for (proxy, path, lines) in [
        (&off, "/off", vec![]),
        (&off, "/off-unsampled", vec![caller("00")]),
        (&all, "/unsampled", vec![caller("00")]),
        (&off, "/off-invalid", vec![format!("{}-more", caller("01"))]),
        (&off, "/off-repeated", vec![caller("01"), caller("01")]),
    ] {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let answer = proxy.ask(&with_fields(&get(path), &lines));
        let sent = lines.first().map(|line| line["traceparent: ".len()..].to_owned());
        let seen = answer.seen("traceparent").map(|seen| seen.split(", ").next().unwrap_or_default().to_owned());
        assert_eq!(seen, sent, "{path}");
    }

    // Recorded.
    let answer = all.ask(&with_fields(&post("/root", "hello"), &["tracestate: a=1"]));
    let (root, attempts) = collector.request("/root");
    assert_eq!((root.parent(), root.number("http.request.body.size")), ("", Some(5)));
    assert_eq!(answer.seen("traceparent"), Some(format!("00-{}-{}-01", root.is["Trace ID"], attempts[0].id())));
    assert_eq!(answer.seen("tracestate").as_deref(), Some("a=1"));
    let answer = alone.ask(&with_fields(&get("/alone"), &[&caller("00")]));
    let (alone, _) = collector.request("/alone");
    assert_eq!((alone.is["Trace ID"].as_str(), alone.parent()), (TRACE, EDGE), "it is still the caller's trace");
    assert_ne!(answer.seen("traceparent"), Some(parent("00")));

    with_h2(&all, async |mut sender| {
        let request = ::http::Request::builder().uri("http://h2.test/h2").body(()).expect("a request");
        assert_eq!(ask_h2(&mut sender, request, b"").await.1, 200);
    });
    assert_eq!(collector.request("/h2").0.text("network.protocol.version"), Some("2"));

    let paths: Vec<String> =
        collector.spans().iter().filter_map(|span| span.text("url.path").map(str::to_owned)).collect();
    assert_eq!(paths, ["/root", "/alone", "/h2"], "and no other");
}

#[test]
fn waits_and_refusals_have_spans() {
    let collector = Collector::start();
    let mut app = Backend::start();
    let gate = app.gate("/slow");
    let limits = "admission.max = 1\nadmission.min = 1\nrate_limits.rules = [{ name = \"one\", rate = \"1/1m\", routes = [\"strict\"] }]\n\
                  [[routes]]\nname = \"strict\"\npath = \"/strict\"";
    let proxy = Proxy::with(&app, &rules(&collector.grpc.to_string(), &format!("traces.sample = \"100%\"\n{limits}")));

    let mut slow = proxy.connect();
    slow.send(get("/slow"));
    app.gets(1, "/slow");
    let mut queued = proxy.connect();
    queued.send(get("/queued"));
    until("it is in the queue", || proxy.metric("outrigger_admission_queue", &[]) >= 1.0);
    gate.add_permits(1);
    assert_eq!((slow.answer().status, queued.answer().status), (200, 200));
    let (_, parts) = collector.request("/queued");
    let names: Vec<&str> = parts.iter().map(|part| part.is["Name"].as_str()).collect();
    assert_eq!(names, ["queue", "GET"]);

    assert_eq!(proxy.get("/strict").status, 200);
    assert_eq!(proxy.ask(&with_fields(&get("/strict"), &[&caller("01")])).status, 429);
    until("the refusal", || collector.spans().iter().any(|span| span.number("http.response.status_code") == Some(429)));
    let spans = collector.spans();
    let refused = spans.iter().find(|span| span.number("http.response.status_code") == Some(429)).expect("it is there");
    assert_eq!(
        (refused.text("outrigger.reason"), refused.text("outrigger.route")),
        (Some("quota_exceeded"), Some("strict"))
    );
    assert_eq!(refused.is["Status code"], "STATUS_CODE_UNSET", "a client's error is none of the server");
    assert!(!spans.iter().any(|span| span.parent() == refused.id()), "the app was not asked");

    app.stop();
    let mut held = proxy.connect();
    held.send(get("/held"));
    until("it is held", || proxy.metric("outrigger_admission_queue", &[]) >= 1.0);
    app.resume();
    assert_eq!(held.answer().status, 200);
    let (_, parts) = collector.request("/held");
    assert!(parts.iter().any(|part| part.is["Name"] == "hold"), "{parts:?}");
}

#[test]
fn the_last_traces_are_sent_before_the_process_ends() {
    let collector = Collector::start();
    let app = Backend::start();
    let mut proxy =
        Proxy::with(&app, &rules(&collector.grpc.to_string(), "traces.sample = \"100%\"\nserver.lame_duck = \"0s\""));
    assert_eq!(proxy.get("/last").status, 200);
    proxy.signal(Signal::TERM);
    proxy.ends_within(Duration::from_secs(10));
    assert_eq!(collector.request("/last").1.len(), 1);
}

#[test]
fn a_burst_is_sent_as_it_comes() {
    let collector = Collector::start();
    let app = Backend::start();
    let proxy = Proxy::with(&app, &rules(&collector.grpc.to_string(), "traces.sample = \"100%\"\ntraces.queue = 512"));
    let mut client = proxy.connect();
    for _ in 0..2000 {
        assert_eq!(client.send(get("/burst")).answer().status, 200);
    }
    proxy.counts("outrigger_trace_spans_sent_total", &[], 4000);
    assert_eq!(proxy.metric("outrigger_trace_spans_dropped_total", &[]), 0.0);
}

#[test]
fn a_collector_that_is_away_or_hangs_costs_nothing() {
    // Never accepts: connections wait in its backlog.
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (address, reason) in [(closed, "not_sent"), (hanging.local_addr().unwrap(), "queue_full")] {
        for protocol in ["grpc", "http/protobuf"] {
            let app = Backend::start();
            let more = format!("traces.sample = \"100%\"\ntraces.queue = 4\ntraces.protocol = \"{protocol}\"");
            let proxy = Proxy::with(&app, &rules(&address.to_string(), &more));
            let mut client = proxy.connect();
            until(&format!("spans are dropped: {reason}, {protocol}"), || {
                (0..20).for_each(|_| assert_eq!(client.send(get("/a")).answer().status, 200));
                let lost = proxy.metric("outrigger_trace_spans_dropped_total", &[("reason", reason)]);
                lost > 0.0 || (reason == "queue_full" && client.send(get("/b")).answer().seen("traceparent").is_none())
            });
            if reason == "not_sent" {
                proxy.says("traces cannot be sent");
            }
            let warnings = proxy.log().matches("traces cannot be sent").count();
            assert!(warnings <= 1, "{warnings} warnings");
        }
    }
}

#[test]
fn a_collector_that_comes_back_gets_the_next_traces() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let collector = Collector::start();
    let app = Backend::start();
    let rules = rules(&address.to_string(), "traces.sample = \"100%\"");
    let proxy = Proxy::with(&app, &rules);
    assert_eq!(proxy.get("/lost").status, 200);
    proxy.says("traces cannot be sent");
    // The collector is at another port: bytes pass between the two.
    let listener = TcpListener::bind(address).unwrap();
    std::thread::spawn(move || {
        while let Ok((from, _)) = listener.accept() {
            let Ok(to) = TcpStream::connect(collector.grpc) else { continue };
            for (mut a, mut b) in [(from.try_clone().unwrap(), to.try_clone().unwrap()), (to, from)] {
                std::thread::spawn(move || std::io::copy(&mut a, &mut b));
            }
        }
    });
    until("the collector accepts traces again", || {
        assert_eq!(proxy.get("/found").status, 200);
        proxy.log().contains("the collector accepts traces again")
    });
    assert!(proxy.metric("outrigger_trace_spans_sent_total", &[]) >= 2.0);
}
