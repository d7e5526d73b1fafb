//! Memory of idle connections and of bodies in transfer.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::backend::Backend;
use crate::harness::{Client, Form, Proxy, get, until};

/// Number of idle connections.
const RESTING: usize = 2_000;
/// Most memory per connection. The design's limit is 24 KiB; this build is not the release's, and its limit is lower.
const KIB_EACH: u64 = 16;

/// Raises our limit of open files, which the proxy inherits, to the system's maximum.
pub(crate) fn allow_many_files() {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
    let enough = most.is_none_or(|most| most > 3 * RESTING as u64);
    assert!(enough, "this test needs 6000 open files, and the system's hard bound is {most:?}: see `ulimit -H -n`");
}

#[test]
fn an_idle_connection_uses_little_memory() {
    allow_many_files();
    let app = Backend::start();
    // A connection of HTTP/1.0 is never idle; after a request with a body, one is the same in each framing.
    for form in [Form::Bare, Form::Chunked, Form::Http2] {
        let (proxy, request) = (Proxy::start(&app), form.request("/"));
        // The memory of the first requests does not belong to the connections.
        for _ in 0..50 {
            assert_eq!(proxy.ask(&request).status, 200);
        }
        proxy.comes_to_rest();
        let (before, _) = proxy.memory_kib();
        let mut resting: Vec<Client> = Vec::with_capacity(RESTING);
        for _ in 0..RESTING {
            let mut client = proxy.connect();
            assert_eq!(client.send(&request).answer().status, 200);
            resting.push(client);
        }
        let open = || proxy.metric("outrigger_open_connections", &[]);
        until("all to rest", || open() == RESTING as f64);
        let (now, _) = proxy.memory_kib();
        let each = now.saturating_sub(before) / RESTING as u64;
        println!("{form:?}: {each} KiB each, from {before} to {now}");
        assert!(each < KIB_EACH, "{form:?}: {each} KiB each, from {before} to {now}");
        drop(resting);
        proxy.comes_to_rest();
    }
}

#[test]
fn a_disconnect_frees_everything_and_is_counted() {
    let app = Backend::start();
    let _gate = app.gate("/never");
    let proxy = Proxy::with(&app, "app.timeout = \"60s\"\n");
    for (request, number) in
        [(get("/never"), 1), ("POST /never HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx".into(), 2)]
    {
        let mut client = proxy.connect();
        client.send(request);
        app.gets(number, "/never");
        drop(client);
        proxy.counts("outrigger_requests_total", &[("outcome", "client_closed")], number);
        until("the app to be told", || app.abandoned() == number);
    }
    proxy.comes_to_rest();
    assert!(proxy.log().contains("\"status\":499"));
}
