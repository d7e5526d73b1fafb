//! An app that records traces with the OpenTelemetry SDK records the same through the proxy as without it.

use std::{net::SocketAddr, path::Path};

use serde_json::Value;
use xtask::{Process, Program, Tool, http, ports};

use crate::{
    backend::Backend,
    h2c::{ask as ask_h2, with_h2},
    harness::{Client, PATIENCE, Setup, fresh_dir, get, post, until, with_fields},
};

const REQUESTS: usize = 5;

/// The app, in Python.
struct Traced {
    address: SocketAddr,
    _process: Process,
}

impl Traced {
    fn start() -> Self {
        let python = Tool::OpenTelemetry.get().expect("the OpenTelemetry SDK is installed: run `cargo xtask test`");
        let address = SocketAddr::from(([127, 0, 0, 1], ports::free().expect("a free port")));
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tracing/app.py");
        let log = fresh_dir().join("app.log");
        let program = Program::new(python).arg(program).args([&address.port().to_string()]);
        let mut process = program.start("the traced app", &log).expect("the app can be started");
        process.ready(PATIENCE, || http::get(address, "/spans", PATIENCE).is_ok()).expect("the app serves");
        Self { address, _process: process }
    }

    fn spans(&self) -> Vec<Value> {
        let answer = http::get(self.address, "/spans", PATIENCE).expect("the app responds");
        serde_json::from_str(&answer.body).expect("a list of spans")
    }

    /// Waits for this many more spans than `before`, and returns them.
    #[track_caller]
    fn records(&self, before: usize, more: usize) -> Vec<Value> {
        until(&format!("{more} spans"), || self.spans().len() >= before + more);
        let spans = self.spans();
        assert_eq!(spans.len(), before + more, "{spans:?}");
        spans[before..].to_vec()
    }
}

#[test]
fn an_app_with_opentelemetry_keeps_all_of_its_spans() {
    let app = Traced::start();
    let unused = Backend::start();
    let proxy = Setup::new(&unused, "").env("OUTRIGGER_APP_ADDRESS", &app.address.to_string()).start();
    let mut before = 0;
    for request in [get("/"), post("/", "hello")] {
        for (place, address) in [("direct", app.address), ("through the proxy", proxy.address)] {
            for _ in 0..REQUESTS {
                let answer = Client::connect(address).unwrap().send(&request).answer();
                assert_eq!(answer.status, 200, "{place}: {answer:?}");
            }
            let spans = app.records(before, REQUESTS);
            assert!(spans.iter().all(|span| span["parent"].is_null()), "each is a trace of its own: {spans:?}");
            before += REQUESTS;
        }
    }
    with_h2(&proxy, async |mut sender| {
        for _ in 0..REQUESTS {
            let request = http_request("http://h2.test/");
            assert_eq!(ask_h2(&mut sender, request, b"").await.1, 200);
        }
    });
    app.records(before, REQUESTS);
    before += REQUESTS;

    // A caller's trace continues, and its decision not to sample is kept.
    let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    for request in [get("/"), post("/", "hello")] {
        for (flags, recorded) in [("01", 1), ("00", 0)] {
            let line = format!("traceparent: 00-{trace}-{parent}-{flags}");
            assert_eq!(proxy.ask(&with_fields(&request, &[&line])).status, 200);
            for span in app.records(before, recorded) {
                assert_eq!((span["trace"].as_str(), span["parent"].as_str()), (Some(trace), Some(parent)));
            }
            before += recorded;
        }
    }
}

fn http_request(uri: &str) -> ::http::Request<()> {
    ::http::Request::builder().uri(uri).body(()).expect("a request")
}
