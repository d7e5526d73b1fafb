use std::path::{Path, PathBuf};
use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use outrigger_metrics::Declare;
use outrigger_rules::config::Config;
use outrigger_traffic::decode::Reader;
use outrigger_traffic::files;
use outrigger_traffic::request::RecordedRequest;
use outrigger_wire::request::{Fields, Request};

use super::*;

/// A directory of its own, removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let number = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
        Self(std::env::temp_dir().join(format!("outrigger-traffic-{name}-{}-{number}", std::process::id())))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const ROUTES: &str = r#"
    [[routes]]
    name = "users"
    path = "/api/users/{id}"
    [[routes]]
    name = "beta"
    path = "/beta/**"
    hosts = ["shop.example.com", "*.example.com"]
    headers = { "X-Beta" = "1", "X-Any" = "*" }
"#;

fn config(directory: &Path, more: &str) -> Config {
    let source = format!("[traffic]\nrecord = true\ndirectory = {directory:?}\n{more}\n{ROUTES}");
    Config::parse(Path::new("test"), &source, &|_| None).unwrap()
}

fn recorder() -> Arc<Recorder> {
    Arc::new(Recorder::new(1, TrafficMetrics::new(&Declare::new(&[])).unwrap()))
}

fn seen(route: usize, client: u64) -> Seen {
    Seen {
        started: Instant::now(),
        total: Duration::from_millis(12),
        queued: Duration::ZERO,
        service: Some(Duration::from_millis(11)),
        method: 0,
        route,
        is_routed: true,
        hints: Hints::default(),
        status: 200,
        reason: None,
        limit: None,
        tier: 0,
        kind: ClientKind::Address,
        client,
        address: client,
        admission: Applied::Enforce,
        resilience: Applied::Enforce,
        facts: Facts::ANSWERED,
        attempts: 1,
        body_class: 0,
    }
}

fn route(config: &Config, name: &str) -> usize {
    config.routes.all().iter().position(|route| &*route.name == name).unwrap()
}

/// All requests of a record, each with method, host, path, route and headers.
fn read(directory: &Path) -> Vec<(RecordedRequest, [String; 5])> {
    let mut all = Vec::new();
    for file in files::all(directory).unwrap() {
        let Some(mut reader) = Reader::open(std::fs::File::open(file.path).unwrap()).unwrap() else { continue };
        let mut each = |request: &RecordedRequest, dictionary: &outrigger_traffic::decode::Dictionary| {
            let shape = dictionary.shapes()[request.shape as usize];
            let texts = [shape.method, shape.host, shape.path, shape.route, shape.headers];
            all.push((*request, texts.map(|text| dictionary.text(text).to_owned())));
        };
        while reader.block(&mut each).unwrap() {}
    }
    all
}

#[test]
fn a_record_has_templates_and_pseudonyms() {
    let directory = Directory::new("templates");
    let config = config(&directory.0, "");
    let basis = Arc::new(TrafficBasis::of(&config).unwrap());
    let recorder = recorder();
    let (users, beta, default) = (route(&config, "users"), route(&config, "beta"), route(&config, "default"));
    for (number, path, client) in
        [(users, "/api/users/ann", 1), (beta, "/beta/orders/4711", 1), (default, "/shop/cart/x1", 2)]
    {
        recorder.push(&basis, seen(number, client), path);
    }
    recorder.push(&basis, Seen { status: 404, ..seen(default, 2) }, "/wp-admin/setup.php");
    recorder.close(Duration::from_secs(10));
    let read = read(&directory.0);
    let paths: Vec<_> =
        read.iter().map(|(_, [method, _, path, route, _])| format!("{method} {path} {route}")).collect();
    assert_eq!(
        paths,
        ["GET /api/users/~ users", "GET /beta/orders/~ beta", "GET /shop/cart/~ default", "GET  default"]
    );
    let clients: Vec<u64> = read.iter().map(|(request, _)| request.client).collect();
    assert!(clients[0] == clients[1] && clients[2] == clients[3] && clients[0] != clients[2]);
    assert!(clients.iter().all(|client| *client > 2), "the hashes themselves are not recorded: {clients:?}");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    assert!(read.iter().all(|(request, _)| now - u128::from(request.started_ns) < 60_000_000_000));
    assert_eq!((read[0].0.total_us, read[0].0.service_us), (12_000, Some(11_000)));
}

#[test]
fn hosts_and_headers_are_recorded_as_routes_name_them() {
    let config = config(Path::new("unused"), "");
    let basis = TrafficBasis::of(&config).unwrap();
    let described = |host: &str, headers: &[(&'static str, &'static str)]| {
        let headers = headers.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)));
        let (headers, method): (HeaderMap, _) = (headers.collect(), Method::GET);
        let request = Request {
            method: &method,
            path: "/beta/x",
            host,
            fields: Fields::Map(&headers),
            is_http10: false,
            target: "/beta/x",
            has_endless_body: false,
        };
        let hints = basis.hints(&request);
        let (mut host, mut conditions) = (String::new(), String::new());
        basis.host(hints, &mut host);
        basis.headers(hints, &mut conditions);
        (host, conditions)
    };
    let pair = |host: &str, headers: &str| (host.to_owned(), headers.to_owned());
    assert_eq!(described("shop.example.com:8080", &[]), pair("shop.example.com", ""));
    assert_eq!(described("customer.example.com", &[("x-beta", "2")]), pair("~.example.com", ""));
    let both = [("x-beta", "1"), ("x-any", "secret")];
    assert_eq!(described("other.org", &both), pair("", "x-any\nx-beta #6b86b273ff34fce1"));
}

#[test]
fn a_full_queue_counts_and_does_not_wait() {
    let config = config(Path::new("unused"), "");
    let basis = Arc::new(TrafficBasis::of(&config).unwrap());
    let recorder = recorder();
    let default = route(&config, "default");
    // Without the writer.
    for _ in 0..ROOM + 3 {
        recorder.enqueue(&basis, seen(default, 1), "/");
    }
    assert_eq!(recorder.metrics.losses(Loss::QueueFull), 3);
    // Long paths are bounded by their bytes.
    let recorder = self::recorder();
    let path = format!("/{}", "x".repeat(4 * LONGEST_PATH));
    for _ in 0..=PATH_ROOM / LONGEST_PATH {
        recorder.enqueue(&basis, seen(default, 1), &path);
    }
    assert_eq!(recorder.metrics.losses(Loss::QueueFull), 1);
}

#[test]
fn a_directory_that_cannot_be_written_costs_the_record_only() {
    let directory = Directory::new("not-writable");
    std::fs::write(&directory.0, "a file, no directory").unwrap();
    let config = config(&directory.0, "");
    let basis = Arc::new(TrafficBasis::of(&config).unwrap());
    let recorder = recorder();
    for _ in 0..5 {
        recorder.push(&basis, seen(route(&config, "users"), 1), "/api/users/1");
    }
    recorder.close(Duration::from_secs(10));
    assert_eq!((recorder.metrics.losses(Loss::NotWritten), recorder.metrics.recorded.get()), (5, 0));
    std::fs::remove_file(&directory.0).unwrap();
}

#[test]
fn the_files_stay_within_their_bytes_and_the_oldest_go_first() {
    let directory = Directory::new("bounded");
    let config = config(&directory.0, "max_bytes = \"1MiB\"");
    let basis = Arc::new(TrafficBasis::of(&config).unwrap());
    let recorder = recorder();
    std::fs::create_dir_all(&directory.0).unwrap();
    std::fs::write(directory.0.join("notes.txt"), "of somebody else").unwrap();
    let users = route(&config, "users");
    const REQUESTS: u64 = 60_000;
    for client in 0..REQUESTS {
        recorder.push(&basis, seen(users, client), "/api/users/1");
    }
    recorder.close(Duration::from_secs(30));
    let files = files::all(&directory.0).unwrap();
    let total: u64 = files.iter().map(|file| file.bytes).sum();
    assert!(total <= 1 << 20, "{total}");
    assert!(total > 1 << 19, "as much is kept as there is room for: {total}");
    assert_eq!(recorder.metrics.recorded.get() + recorder.metrics.losses(Loss::QueueFull), REQUESTS);
    assert_eq!(recorder.metrics.bytes.get(), total as i64);
    assert!(directory.0.join("notes.txt").exists());
    assert!(!read(&directory.0).is_empty());
}
