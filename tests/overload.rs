//! Overload: important requests get through, the app stays as fast as before, and Outrigger rejects the rest immediately.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::sleep_until;

use crate::backend::{Backend, Play, Workers};
use crate::harness::{Answer, Client, Form, PATIENCE, Proxy, every_form, get, until, with_fields};

/// A route for each priority, and no rate limits.
fn routes() -> String {
    let route = |name: &str| format!("[[routes]]\nname = \"{name}\"\npath = \"/{name}\"\npriority = \"{name}\"\n");
    ["critical", "high", "medium", "low", "strict"].map(route).concat()
}

const PATHS: [&str; 5] = ["/critical", "/high", "/medium", "/low", "/strict"];

/// One permit, and a queue of this length.
fn one_slot(places: usize) -> String {
    format!(
        "admission.min = 1\nadmission.max = 1\nadmission.max_wait = \"1m\"\nadmission.max_queue = {places}\n{}",
        routes()
    )
}

/// Number of requests that wait for a permit.
fn waiting(proxy: &Proxy, priority: &str) -> u64 {
    proxy.shows("/admission")["queue"][priority].as_u64().expect("a number")
}

fn in_flight(proxy: &Proxy) -> u64 {
    proxy.shows("/admission")["in_flight"].as_u64().expect("a number")
}

#[track_caller]
fn is_shed(answer: &Answer) {
    answer.is_problem(503, "temporary_reduced_capacity");
    assert_eq!(answer.number("retry-after"), 1);
    assert!(answer.stays_open(), "{answer:?}");
}

/// A proxy with one permit, which a request holds until the gate opens.
struct Full {
    app: Backend,
    proxy: Proxy,
    gate: Arc<Semaphore>,
    first: Client,
}

impl Full {
    fn new(places: usize) -> Self {
        let app = Backend::start();
        let gate = app.gate("/medium");
        PATHS.iter().for_each(|path| app.at(path, Play::EchoAfter(Arc::clone(&gate))));
        let proxy = Proxy::with(&app, &one_slot(places));
        let mut first = proxy.connect();
        first.send(get("/medium"));
        app.gets(1, "/medium");
        Self { app, proxy, gate, first }
    }

    /// Sends one more request; it is in the queue when this returns.
    fn waits(&self, path: &str, form: Form) -> Client {
        let (priority, before) = (&path[1..], waiting(&self.proxy, &path[1..]));
        let mut client = self.proxy.connect();
        client.send(form.request(path));
        until("the request to wait", || waiting(&self.proxy, priority) == before + 1);
        client
    }

    /// Lets the app respond to the next request.
    fn open(&self) {
        self.gate.add_permits(1);
    }

    #[track_caller]
    fn comes_to_rest(self) {
        drop(self.first);
        self.proxy.comes_to_rest();
        let shown = self.proxy.shows("/admission");
        assert_eq!((&shown["in_flight"], &shown["queue"]["medium"]), (&0.into(), &0.into()), "{shown}");
    }
}

#[test]
fn queued_requests_are_served_by_priority_then_by_arrival() {
    Form::at_once(&Form::ALL, |form| {
        let mut full = Full::new(10);
        let mut waiting: Vec<(&str, Client)> =
            ["/low", "/medium", "/medium", "/critical"].map(|path| (path, full.waits(path, form))).into();
        full.open();
        assert_eq!(full.first.answer().status, 200);
        for next in [3, 1, 2, 0] {
            let (path, client) = &mut waiting[next];
            full.app.gets(if *path == "/medium" { next + 1 } else { 1 }, path);
            full.open();
            assert_eq!(client.answer().status, 200, "{path}");
        }
        drop(waiting);
        full.comes_to_rest();
    });
}

#[test]
fn a_critical_request_displaces_a_low_one_which_gets_503_at_once() {
    Form::at_once(&Form::ALL, |form| {
        let mut full = Full::new(1);
        let mut low = full.waits("/low", form);
        let mut critical = full.waits("/critical", form);
        is_shed(&low.answer());
        assert_eq!(waiting(&full.proxy, "low"), 0);
        full.open();
        full.open();
        assert_eq!((full.first.answer().status, critical.answer().status), (200, 200));
        assert_eq!(low.send(get("/health/live")).answer().status, 200);
        assert_eq!(full.app.requests_to("/low"), 0);
        full.proxy.counts_rejections("temporary_reduced_capacity", 1);
        let labels = [("reason", "temporary_reduced_capacity"), ("priority", "low"), ("mode", "enforce")];
        full.proxy.counts("outrigger_refusals_total", &labels, 1);
        drop((low, critical));
        full.comes_to_rest();
    });
}

#[test]
fn hopeless_requests_get_503_at_once_and_health_needs_no_permit() {
    Form::at_once(&Form::ALL, |form| {
        let full = Full::new(1);
        let waits = full.waits("/medium", form);
        let mut client = full.proxy.connect();
        let mut took: Vec<Duration> = (0..41)
            .map(|n| {
                let asked = Instant::now();
                // No more important than the requests in the queue.
                is_shed(&client.send(form.request(["/medium", "/low", "/strict"][n % 3])).answer());
                asked.elapsed()
            })
            .collect();
        took.sort_unstable();
        assert!(took[20] < Duration::from_millis(50), "half of the refusals took longer than {:?}", took[20]);
        assert_eq!(client.send(get("/health/live")).answer().status, 200);
        assert_eq!(waiting(&full.proxy, "medium"), 1);
        full.proxy.counts_rejections("temporary_reduced_capacity", 41);
        full.open();
        full.open();
        drop((waits, client));
        full.comes_to_rest();
    });
}

#[test]
fn no_request_waits_longer_than_max_wait() {
    let app = Backend::start();
    app.gate("/medium");
    let rules = "admission.min = 1\nadmission.max = 1\nadmission.max_wait = \"700ms\"\n".to_owned() + &routes();
    let proxy = Proxy::with(&app, &rules);
    let mut first = proxy.connect();
    first.send(get("/medium"));
    app.gets(1, "/medium");
    Form::at_once(&Form::ALL, |form| {
        let asked = Instant::now();
        is_shed(&form.ask(&proxy, "/critical"));
        assert!(asked.elapsed() >= Duration::from_millis(700), "{:?}", asked.elapsed());
    });
    assert_eq!(waiting(&proxy, "critical"), 0);
    assert_eq!(app.requests_to("/critical"), 0);
}

#[test]
fn a_client_that_disconnects_while_queued_is_removed_from_the_queue() {
    Form::at_once(&Form::ALL, |form| {
        let mut full = Full::new(1);
        drop(full.waits("/medium", form));
        until("the place to be free", || waiting(&full.proxy, "medium") == 0);
        let mut next = full.waits("/medium", form);
        full.open();
        full.open();
        assert_eq!((full.first.answer().status, next.answer().status), (200, 200));
        assert_eq!(full.app.requests(), 2, "the app never hears of who has left");
        drop(next);
        full.proxy.counts("outrigger_requests_total", &[("outcome", "client_closed")], 1);
        full.comes_to_rest();
    });
}

#[test]
fn a_stream_releases_its_permit_with_its_response_head() {
    let app = Backend::start();
    app.at("/ws", Play::Upgrade);
    let proxy = Proxy::with(&app, &one_slot(1));
    let upgrade = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let asks_for_it = with_fields(&get("/events"), &["Accept: text/event-stream"]);
    let mut open = Vec::new();
    let plain = every_form("/events").map(|request| (request, 200));
    for (request, status) in plain.into_iter().chain([(asks_for_it, 200), (upgrade.to_owned(), 101)]) {
        let events = app.events("/events");
        let mut client = proxy.connect();
        assert_eq!(client.send(request).head().unwrap().status, status);
        open.push((client, events));
        let what = format!("the slot to be free after {status}, with {} others open", open.len() - 1);
        until(&what, || in_flight(&proxy) == 0);
        for other in every_form("/other") {
            assert_eq!(proxy.ask(&other).status, 200, "while {} are open", open.len());
        }
    }
    drop(open);
    proxy.comes_to_rest();
}

#[test]
fn a_client_that_reads_slowly_holds_no_permit() {
    const LARGE: usize = 32 << 20;
    let app = Backend::start();
    app.at("/sized", Play::Stream(LARGE as u64));
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunks = [format!("{head}{LARGE:x}\r\n").into_bytes(), vec![b'x'; LARGE], b"\r\n0\r\n\r\n".to_vec()].concat();
    app.at("/unsized", Play::Say(chunks));
    let proxy = Proxy::with(&app, &one_slot(1));
    let mut slow = Vec::new();
    for path in ["/sized", "/unsized"] {
        for request in every_form(path) {
            let mut client = proxy.connect();
            client.send(&request);
            assert_eq!(client.head().unwrap().status, 200);
            slow.push(client);
            let what = format!("the slot of {} {path} to be free", request.split(' ').next().unwrap_or_default());
            until(&what, || in_flight(&proxy) == 0);
            assert_eq!(proxy.get("/other").status, 200);
        }
    }
    drop(slow);
    proxy.comes_to_rest();
}

#[test]
fn a_new_proxy_does_not_reject_a_burst_that_a_fast_app_can_serve() {
    let app = Backend::start();
    app.works(&["/"], 100, Duration::from_millis(20));
    let proxy = Proxy::start(&app);
    let mut clients: Vec<Client> = (0..120).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        client.send(get("/"));
    }
    let refused = clients.iter_mut().filter_map(|client| (client.answer().status != 200).then_some(())).count();
    assert_eq!(refused, 0, "of {}, although each may wait for a second", clients.len());
}

#[test]
fn a_page_with_many_parts_after_a_slow_report_is_no_overload() {
    let app = Backend::start();
    let report = app.works(&["/report", "/part"], 100, Duration::from_secs(1));
    let proxy = Proxy::start(&app);
    let at_once = |requests: Vec<String>| -> usize {
        let mut clients: Vec<Client> = requests
            .iter()
            .map(|request| {
                let mut client = proxy.connect();
                client.send(request);
                client
            })
            .collect();
        clients.iter_mut().filter_map(|client| (client.answer().status != 200).then_some(())).count()
    };
    assert_eq!(at_once((0..12).map(|n| Form::nth(n).request("/report")).collect()), 0);
    report.need(Duration::from_millis(10));
    // The same route and another.
    for path in ["/report", "/part"] {
        for form in Form::ALL {
            let refused = at_once((0..100).map(|_| form.request(path)).collect());
            assert_eq!(refused, 0, "of 100 to {path}, {form:?}, although the app responds to all within 50 ms");
        }
    }
    proxy.comes_to_rest();
}

/// Result of one request.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub status: u16,
    pub asked: Instant,
    pub took: Duration,
}

/// Requests at fixed times, however long earlier ones take.
#[derive(Debug)]
pub struct Load {
    proxy: std::net::SocketAddr,
    idle: RefCell<Vec<TcpStream>>,
    /// Responses so far, to all requests.
    outcomes: RefCell<Vec<Outcome>>,
}

impl Load {
    pub fn on(proxy: &Proxy) -> Rc<Self> {
        Rc::new(Self { proxy: proxy.address, idle: RefCell::default(), outcomes: RefCell::default() })
    }

    pub async fn ask(&self, request: &str) -> Outcome {
        let asked = Instant::now();
        let kept = self.idle.borrow_mut().pop();
        let mut stream = match kept {
            Some(kept) => kept,
            None => TcpStream::connect(self.proxy).await.expect("the proxy takes connections"),
        };
        stream.write_all(request.as_bytes()).await.expect("the proxy takes requests");
        let mut answer = Vec::new();
        let end = |answer: &[u8]| answer.windows(4).position(|window| window == b"\r\n\r\n");
        let length = |head: &[u8]| {
            let head = String::from_utf8_lossy(head).to_ascii_lowercase();
            let value = head.split("content-length: ").nth(1).expect("a length");
            value.split("\r\n").next().and_then(|value| value.parse::<usize>().ok()).expect("a number")
        };
        while end(&answer).is_none_or(|at| answer.len() < at + 4 + length(&answer[..at])) {
            let read = stream.read_buf(&mut answer).await.expect("an answer");
            assert!(read > 0, "the connection ended in {:?}", String::from_utf8_lossy(&answer));
        }
        let head = &answer[..end(&answer).unwrap_or_default()];
        if !String::from_utf8_lossy(head).to_ascii_lowercase().contains("connection: close") {
            self.idle.borrow_mut().push(stream);
        }
        let status = std::str::from_utf8(&answer[9..12]).ok().and_then(|status| status.parse().ok()).expect("a status");
        let outcome = Outcome { status, asked, took: asked.elapsed() };
        self.outcomes.borrow_mut().push(outcome);
        outcome
    }

    /// Sends these requests in turn, at this rate, for this time.
    pub fn flow(self: &Rc<Self>, requests: Vec<String>, per_second: f64, time: Duration) -> JoinHandle<Vec<Outcome>> {
        let load = Rc::clone(self);
        spawn_local(async move {
            let began = Instant::now();
            let number = (time.as_secs_f64() * per_second) as usize;
            let requests = Rc::new(requests);
            let mut asked = Vec::with_capacity(number);
            for n in 0..number {
                sleep_until((began + Duration::from_secs_f64(n as f64 / per_second)).into()).await;
                let (load, requests) = (Rc::clone(&load), Rc::clone(&requests));
                asked.push(spawn_local(async move { load.ask(&requests[n % requests.len()]).await }));
            }
            let mut outcomes = Vec::with_capacity(number);
            for one in asked {
                outcomes.push(one.await.expect("no request panics"));
            }
            outcomes
        })
    }
}

pub fn run<T>(load: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, load)
}

/// Requests of kept connections in each form of HTTP/1.1: thousands of them are a flood of requests, not of connections, as
/// those of HTTP/1.0 would be. The other forms get the same place in the queue, as other tests show.
pub fn mixed(path: &str) -> Vec<String> {
    [Form::Bare, Form::Chunked, Form::Bare, Form::Sized].map(|form| form.request(path)).into()
}

pub fn served(outcomes: &[Outcome]) -> usize {
    outcomes.iter().filter(|outcome| outcome.status == 200).count()
}

fn mean(stays: &[(String, Duration)]) -> Duration {
    stays.iter().map(|(_, stay)| *stay).sum::<Duration>() / stays.len().max(1) as u32
}

/// A capacity of eighty requests a second.
fn four_workers(app: &Backend) -> Arc<Workers> {
    app.works(&PATHS, 4, Duration::from_millis(50))
}

#[track_caller]
fn everything_has_returned(proxy: &Proxy) {
    proxy.comes_to_rest();
    let shown = proxy.shows("/admission");
    assert_eq!(shown["in_flight"], 0, "{shown}");
    assert!(shown["queue"].as_object().unwrap().values().all(|waiting| *waiting == 0), "{shown}");
    let text = proxy.admin("/metrics").body;
    for name in ["outrigger_admission_in_flight", "outrigger_admission_queue"] {
        assert_eq!(crate::harness::sum(&text, name, &[]), 0.0, "{name}");
    }
    assert_eq!(proxy.ask(&get("/low")).status, 200);
}

/// Waits until the mean time with the app over the last forty requests is at most `bound`; returns how many were completed by
/// then. How fast the control algorithm gets there is tested without other programs running.
async fn settles(workers: &Workers, bound: Duration) -> usize {
    let settled = async {
        loop {
            let stays = workers.stays();
            if stays.len() >= 80 && mean(&stays[stays.len() - 40..]) <= bound {
                return stays.len();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let settled = tokio::time::timeout(PATIENCE - Duration::from_secs(4), settled).await;
    settled.unwrap_or_else(|_| {
        let stays = workers.stays();
        panic!("with the app for {:?} instead of {bound:?} at the most", mean(&stays[stays.len().saturating_sub(40)..]))
    })
}

#[test]
fn a_flood_of_low_priority_fails_no_critical_request() {
    let app = Backend::start();
    let workers = four_workers(&app);
    let proxy = Proxy::with(&app, &routes());
    let bound = Duration::from_millis(75);
    let (critical, flood, stays) = run(async {
        let (critical, flood) = (Load::on(&proxy), Load::on(&proxy));
        // Twelve times the app's capacity.
        flood.flow(mixed("/low"), 960.0, PATIENCE);
        critical.flow(mixed("/critical"), 24.0, PATIENCE);
        let settled = settles(&workers, bound).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        (critical.outcomes.take(), flood.outcomes.take(), workers.stays().split_off(settled))
    });
    let lost = critical.len() - served(&critical);
    assert_eq!(lost, 0, "of {} critical requests", critical.len());
    let stay = mean(&stays);
    assert!(stay <= bound, "with the app for {stay:?} instead of 50 ms");
    let done = stays.len() as f64 / 3.0;
    let capacity = workers.capacity();
    assert!(done >= 0.9 * capacity, "the app could have done {capacity:.1} a second, and did {done:.1}");
    let mut refusals: Vec<Duration> = flood.iter().filter(|one| one.status == 503).map(|one| one.took).collect();
    refusals.sort_unstable();
    let median = refusals[refusals.len() / 2];
    assert!(median < Duration::from_millis(50), "half of the refusals took longer than {median:?}");
    everything_has_returned(&proxy);
}

#[test]
fn a_greedy_client_delays_none_of_many_modest_ones() {
    let app = Backend::start();
    let workers = four_workers(&app);
    let proxy = Proxy::with(&app, &format!("identity.unknown_keys = \"count\"\n{}", routes()));
    let of = |client: &str| -> Vec<String> {
        mixed("/medium").iter().map(|request| with_fields(request, &[&format!("X-Api-Key: {client}")])).collect()
    };
    let time = Duration::from_secs(4);
    let (modest, greedy) = run(async {
        let load = Load::on(&proxy);
        let greedy = load.flow(of("greedy"), 400.0, time);
        // A hundred of them, in turn, use half of the app's capacity.
        let modest = load.flow((0..100).map(|n| of(&format!("modest-{n}"))[n % 4].clone()).collect(), 40.0, time);
        (modest.await.unwrap(), greedy.await.unwrap())
    });
    let share = served(&modest) as f64 / modest.len() as f64;
    println!("{share:.3} of the modest, {} of the greedy", served(&greedy));
    assert!(share >= 0.95, "{share:.3} of {} were served", modest.len());
    let done = workers.stays().len() as f64 / time.as_secs_f64();
    let capacity = workers.capacity();
    assert!(done >= 0.9 * capacity, "what the modest leave is the greedy one's: {done:.1} a second of {capacity:.1}");
    everything_has_returned(&proxy);
}

#[test]
fn monitor_changes_no_response_and_counts_what_enforce_would_reject() {
    let (app, other) = (Backend::start(), Backend::start());
    let workers = [&app, &other].map(four_workers);
    let enforcing = Proxy::with(&app, &routes());
    let monitoring = Proxy::with(&other, &format!("admission.mode = \"monitor\"\n{}", routes()));
    let refusals = |proxy: &Proxy, mode| {
        let labels = [("reason", "temporary_reduced_capacity"), ("mode", mode), ("priority", "low")];
        proxy.metric("outrigger_refusals_total", &labels)
    };
    // Nearly three times the app's capacity, some of it important. That the prediction is right within a few percent is tested in
    // simulated time (mechanism/tests/gate_prediction.rs).
    run(async {
        let loads = [&enforcing, &monitoring].map(|proxy| {
            let load = Load::on(proxy);
            load.flow(mixed("/low"), 160.0, PATIENCE);
            load.flow(mixed("/high"), 60.0, PATIENCE);
            load
        });
        let both = async {
            while refusals(&enforcing, "enforce") < 300.0 || refusals(&monitoring, "monitor") < 300.0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, both).await.expect("many requests are rejected, and predicted to be");
        let answers = loads[1].outcomes.borrow();
        assert_eq!((served(&answers), answers.len()), (answers.len(), answers.len()), "monitor refuses nobody");
        assert!(answers.len() <= workers[1].stays().len() && !answers.is_empty(), "{}", answers.len());
    });
    assert_eq!(refusals(&monitoring, "enforce") + monitoring.metric("outrigger_rejections_total", &[]), 0.0);
    everything_has_returned(&enforcing);
    everything_has_returned(&monitoring);
}

#[test]
fn an_app_that_becomes_twice_as_slow_is_found_again_under_load() {
    let app = Backend::start();
    let workers = four_workers(&app);
    let proxy = Proxy::with(&app, &routes());
    let critical = run(async {
        let (critical, flood) = (Load::on(&proxy), Load::on(&proxy));
        flood.flow(mixed("/low"), 400.0, 2 * PATIENCE);
        critical.flow(mixed("/critical"), 20.0, 2 * PATIENCE);
        settles(&workers, Duration::from_millis(75)).await;
        workers.need(Duration::from_millis(100));
        // Requests completed from here on are slow: all of the last forty are.
        let changed = workers.stays().len();
        while workers.stays().len() < changed + 40 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        settles(&workers, Duration::from_millis(150)).await;
        critical.outcomes.take()
    });
    assert_eq!(served(&critical), critical.len(), "critical requests are half of what the slower app can do");
    everything_has_returned(&proxy);
}

#[test]
fn an_app_that_does_two_slow_requests_at_a_time_is_kept_busy() {
    let app = Backend::start();
    let workers = app.works(&PATHS, 2, Duration::from_millis(500));
    let proxy = Proxy::with(&app, &routes());
    let done = run(async {
        let load = Load::on(&proxy);
        // Four times the app's capacity.
        load.flow(mixed("/medium"), 16.0, PATIENCE);
        while workers.stays().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let before = workers.stays().len();
        tokio::time::sleep(Duration::from_millis(4250)).await;
        workers.stays().len() - before
    });
    // Eight times two in four seconds.
    println!("{done} of 16");
    assert!((16..=18).contains(&done), "{done} instead of 16");
    everything_has_returned(&proxy);
}
