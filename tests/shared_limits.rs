//! Shared rate limits, which several Machines count together in Redis: how many requests they admit, and the behaviour while
//! Redis does not respond.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use xtask::Redis;

use crate::backend::Backend;
use crate::harness::{Proxy, Setup, fresh_dir, from_address, get, post, until};
use crate::limits::{EDGE, NO_DEFAULTS, is_refused_by, left, route, rule};

/// The time limit for a change "within a second".
const SECOND: Duration = Duration::from_secs(1);

/// Config for limits shared by this many Machines.
fn sharing(machines: usize) -> String {
    format!("{NO_DEFAULTS}rate_limits.shared = \"redis\"\nrate_limits.redis.machines = {machines}\n")
}

fn machine(app: &Backend, url: &str, rules: &str) -> Proxy {
    Setup::new(app, rules).env("OUTRIGGER_REDIS_URL", url).start()
}

fn is_in_state(proxy: &Proxy, state: &str) -> bool {
    proxy.metric("outrigger_shared_limits_state", &[("state", state)]) == 1.0
}

#[track_caller]
fn gets_shared(proxy: &Proxy) {
    until("limits to be shared", || is_in_state(proxy, "shared"));
}

/// Waits until every Machine reports this state, in its metrics and its health, and returns how long that took.
#[track_caller]
fn all_become(fleet: &[Proxy], state: &str) -> Duration {
    let began = Instant::now();
    let health = format!("shared limits: {state}");
    for proxy in fleet {
        until("everybody to say so", || is_in_state(proxy, state) && proxy.admin("/healthz").body.contains(&health));
    }
    began.elapsed()
}

/// This many Machines with the same rules.
fn fleet(app: &Backend, redis: &Redis, machines: usize, rules: &str) -> Vec<Proxy> {
    let rules = format!("{}{rules}", sharing(machines));
    let fleet: Vec<Proxy> = (0..machines).map(|_| machine(app, &redis.url(), &rules)).collect();
    fleet.iter().for_each(gets_shared);
    fleet
}

/// One client's results at one Machine.
#[derive(Debug, Default)]
struct Log {
    /// For each admitted request: time sent, time of the response.
    admitted: Vec<(Instant, Instant)>,
    refused: usize,
    latencies: Vec<Duration>,
}

/// Sends requests to a Machine at this pace until `stop`.
fn ask(address: SocketAddr, pace: Duration, stop: &AtomicBool) -> Log {
    let mut client = crate::harness::Client::connect(address).expect("the proxy takes connections");
    let (mut log, mut next) = (Log::default(), Instant::now());
    while !stop.load(Ordering::Relaxed) {
        let sent = Instant::now();
        let status = client.send(get("/")).answer().status;
        let answered = Instant::now();
        log.latencies.push(answered - sent);
        match status {
            200 => log.admitted.push((sent, answered)),
            429 => log.refused += 1,
            other => panic!("an answer {other}"),
        }
        next += pace;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    log
}

/// All Machines under load, one client at each, while `meanwhile` runs.
fn under_load(fleet: &[Proxy], pace: Duration, meanwhile: impl FnOnce()) -> Vec<Log> {
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = fleet
        .iter()
        .map(|proxy| {
            let (address, stop) = (proxy.address, Arc::clone(&stop));
            thread::spawn(move || ask(address, pace, &stop))
        })
        .collect();
    meanwhile();
    stop.store(true, Ordering::Relaxed);
    clients.into_iter().map(|client| client.join().expect("every answer was 200 or 429")).collect()
}

/// All admitted requests, in order of their responses.
fn admitted(logs: &[Log]) -> Vec<(Instant, Instant)> {
    let mut all: Vec<_> = logs.iter().flat_map(|log| log.admitted.iter().copied()).collect();
    all.sort_by_key(|(_, answered)| *answered);
    all
}

#[test]
fn five_machines_admit_one_quota_under_ten_times_the_load() {
    let (app, redis) = (Backend::start(), Redis::start(&fresh_dir()).unwrap());
    // 30 a second with a burst of 60; each of the 5 Machines gets 60 a second.
    let fleet = fleet(&app, &redis, 5, &rule("all", "60/2s", "by = \"client\""));
    let began = Instant::now();
    let logs = under_load(&fleet, Duration::from_millis(16), || thread::sleep(Duration::from_secs(20)));
    let took = began.elapsed().as_secs_f64();
    let all = admitted(&logs);
    let first = all[0].0;
    // The quota at the time of each response, and at most one lease per Machine more: a fifth of the burst.
    for (count, (_, answered)) in all.iter().enumerate() {
        let due = 60.0 + 30.0 * (*answered - first).as_secs_f64() + 5.0 * 12.0;
        assert!((count + 1) as f64 <= due, "{count} after {:?}", *answered - first);
    }
    let due = 60.0 + 30.0 * took;
    let refused: usize = logs.iter().map(|log| log.refused).sum();
    println!("admitted {} of {due:.1} due in {took:.1} s, refused {refused}", all.len());
    assert!(refused as f64 > 5.0 * due, "ten times the load: {refused}");
    // In the long run the quota holds: overspending is made up for by waiting. At the end, some usage is not synced yet.
    assert!((due - 5.0..=due + 10.0).contains(&(all.len() as f64)), "{} of {due}", all.len());
    for log in &logs {
        assert!(log.admitted.len() > all.len() / 20, "nobody starves: {}", log.admitted.len());
    }
    let spent: f64 = fleet.iter().map(|proxy| proxy.metric("outrigger_shared_limits_tokens_total", &[])).sum();
    assert!(spent >= all.len() as f64 - 5.0, "{spent} settled of {}", all.len());
}

/// Start and end of an outage.
struct Outage {
    begin: fn(&mut Redis),
    end: fn(&mut Redis),
}

/// Five Machines under ten times the load of 30 a second, before, during and after an outage.
#[track_caller]
fn keeps_the_quota_through(outage: &Outage) {
    let (app, mut redis) = (Backend::start(), Redis::start(&fresh_dir()).unwrap());
    let fleet = fleet(&app, &redis, 5, &rule("all", "60/2s", "by = \"client\""));
    let (mut gone, mut back) = (Instant::now(), Instant::now());
    let began = Instant::now();
    let logs = under_load(&fleet, Duration::from_millis(16), || {
        thread::sleep(Duration::from_secs(4));
        gone = Instant::now();
        (outage.begin)(&mut redis);
        let took = all_become(&fleet, "degraded");
        assert!(took < SECOND, "{took:?}");
        thread::sleep(Duration::from_secs(7));
        back = Instant::now();
        (outage.end)(&mut redis);
        let took = all_become(&fleet, "shared");
        assert!(took < 2 * SECOND, "{took:?}");
        thread::sleep(Duration::from_secs(5));
    });
    let ended = Instant::now();
    let all = admitted(&logs);
    let between = |from: Instant, to: Instant| {
        let count = all.iter().filter(|(_, answered)| *answered >= from && *answered < to).count() as f64;
        (count, 30.0 * (to - from).as_secs_f64())
    };
    let (count, due) = between(gone, back);
    println!("in the outage: {count} of {due:.1}");
    assert!((0.9 * due..=1.1 * due).contains(&count), "{count} of {due} in the outage");
    // The transitions into and out of the outage do not grant the quota twice.
    let (count, due) = between(back, ended);
    println!("after it: {count} of {due:.1}");
    assert!((0.9 * due..=1.1 * due).contains(&count), "{count} of {due} after it");
    let due = 60.0 + 30.0 * (ended - began).as_secs_f64();
    println!("in all: {} of {due:.1}", all.len());
    assert!((0.95 * due..=1.05 * due).contains(&(all.len() as f64)), "{} of {due}", all.len());
    for proxy in &fleet {
        proxy.says("shared_limits_degraded");
        assert!(proxy.metric("outrigger_shared_limits_errors_total", &[]) >= 1.0);
    }
}

#[test]
fn a_redis_that_crashes_without_its_data_changes_no_quota() {
    keeps_the_quota_through(&Outage { begin: |redis| redis.crash(), end: |redis| redis.start_again().unwrap() });
}

#[test]
fn a_redis_that_freezes_and_resumes_changes_no_quota() {
    keeps_the_quota_through(&Outage { begin: |redis| redis.pause(), end: |redis| redis.resume() });
}

#[test]
#[ignore = "cargo xtask soak --tests: five minutes"]
fn for_five_minutes_the_quota_is_kept_and_redis_is_killed_half_way() {
    let (app, mut redis) = (Backend::start(), Redis::start(&fresh_dir()).unwrap());
    let fleet = fleet(&app, &redis, 5, &rule("all", "600/1m", "by = \"client\""));
    let half = Duration::from_secs(150);
    let began = Instant::now();
    let mut crashed = began;
    let logs = under_load(&fleet, Duration::from_millis(50), || {
        thread::sleep(half);
        crashed = Instant::now();
        redis.crash();
        thread::sleep(half);
    });
    let ended = Instant::now();
    let all = admitted(&logs);
    let before = all.iter().filter(|(_, answered)| *answered < crashed).count() as f64;
    let due = 600.0 + 10.0 * (crashed - began).as_secs_f64();
    println!("with Redis: {before} of {due:.1}");
    assert!((due - 5.0..=due + 5.0 * 120.0).contains(&before), "{before} of {due}");
    let without = all.len() as f64 - before;
    let due = 10.0 * (ended - crashed).as_secs_f64();
    println!("without: {without} of {due:.1}");
    assert!((0.9 * due..=1.1 * due).contains(&without), "{without} of {due}");
}

fn percentile(latencies: impl Iterator<Item = Duration>, share: f64) -> Duration {
    let mut all: Vec<Duration> = latencies.collect();
    all.sort();
    all[((all.len() - 1) as f64 * share) as usize]
}

#[test]
fn a_redis_that_hangs_makes_no_request_wait() {
    let (app, mut redis) = (Backend::start(), Redis::start(&fresh_dir()).unwrap());
    let fleet = fleet(&app, &redis, 2, &rule("all", "100000/1s", "by = \"client\""));
    let measured = |redis: &mut Redis, pauses: bool| {
        let logs = under_load(&fleet, Duration::from_millis(2), || {
            if pauses {
                redis.pause();
                let took = all_become(&fleet, "degraded");
                assert!(took < SECOND, "{took:?}");
            } else {
                // The check itself costs the proxy time, too.
                let began = Instant::now();
                while began.elapsed() < SECOND.mul_f64(0.6) {
                    all_become(&fleet, "shared");
                    thread::sleep(Duration::from_millis(10));
                }
            }
            thread::sleep(Duration::from_secs(4));
        });
        assert_eq!(logs.iter().map(|log| log.refused).sum::<usize>(), 0);
        let latencies = || logs.iter().flat_map(|log| log.latencies.iter().copied());
        (percentile(latencies(), 0.99), percentile(latencies(), 1.0))
    };
    let (usual, _) = measured(&mut redis, false);
    let (p99, longest) = measured(&mut redis, true);
    println!("p99 {usual:?}, paused {p99:?}, longest {longest:?}");
    // A busy machine adds delay; a request that waited for Redis would take 250 ms.
    assert!(p99 < usual.mul_f64(1.05) + Duration::from_millis(20), "{p99:?}, and {usual:?} without");
    assert!(longest < Duration::from_millis(200), "{longest:?}");
    redis.resume();
    let took = all_become(&fleet, "shared");
    assert!(took < 2 * SECOND, "{took:?}");
    // Once Redis resumes, it processes the requests from the pause, without an operator.
    assert_eq!(fleet[0].get("/").status, 200);
}

/// Sends one request after the other to each Machine in turn, until all reject; returns how many were admitted.
fn used_up(fleet: &[Proxy], request: &str) -> usize {
    let mut clients: Vec<_> = fleet.iter().map(Proxy::connect).collect();
    let mut count = 0;
    let mut refused = 0;
    for turn in 0.. {
        match clients[turn % fleet.len()].send(request).answer().status {
            429 => refused += 1,
            _ => (count, refused) = (count + 1, 0),
        }
        if refused > 2 * fleet.len() {
            break;
        }
        // Time to sync with Redis: this measures the quota, not the lease.
        thread::sleep(Duration::from_millis(40));
    }
    count
}

#[test]
fn a_quota_is_shared_by_all_machines_and_survives_data_loss_in_redis() {
    let (app, mut redis) = (Backend::start(), Redis::start(&fresh_dir()).unwrap());
    let rules = format!("{EDGE}{}", rule("all", "20/1h", "by = \"client\""));
    let fleet = fleet(&app, &redis, 2, &rules);
    let of = |client: &str| from_address(&get("/"), client);
    // All but three at the first Machine, then the other Machine's count.
    let mut one = fleet[0].connect();
    for _ in 0..17 {
        assert_eq!(one.send(of("192.0.2.1")).answer().status, 200);
        thread::sleep(Duration::from_millis(40));
    }
    until("the first to have settled", || fleet[0].metric("outrigger_shared_limits_tokens_total", &[]) == 17.0);
    // The other Machine learns of them with its first request.
    assert_eq!(fleet[1].ask(&of("192.0.2.1")).status, 200);
    until("the other to have settled", || fleet[1].metric("outrigger_shared_limits_tokens_total", &[]) == 1.0);
    let answer = fleet[1].ask(&of("192.0.2.1"));
    assert_eq!((answer.status, left(&answer, "all")), (200, 1));
    // One is left, and the first Machine has not synced the last two.
    assert!((1..=2).contains(&used_up(&fleet, &of("192.0.2.1"))));
    let refused = fleet[1].ask(&of("192.0.2.1"));
    is_refused_by(&refused, "all");
    // One returns every three minutes, and the quota was used up, or slightly exceeded, a moment ago.
    assert!((150..=360).contains(&refused.number("retry-after")), "{refused:?}");
    // Another client has its own quota.
    assert_eq!(fleet[1].ask(&of("192.0.2.2")).status, 200);
    // Key names in Redis do not reveal clients.
    let keys = redis.command("KEYS *").unwrap();
    assert!(!keys.contains("192.0.2"), "{keys}");

    // Redis loses its data while it runs: the Machines still have the counts and report them again.
    redis.command("FLUSHALL").unwrap();
    assert_eq!(used_up(&fleet, &of("192.0.2.1")), 0);
    // Redis is replaced by an empty one.
    redis.crash();
    all_become(&fleet, "degraded");
    assert_eq!(used_up(&fleet, &of("192.0.2.1")), 0);
    redis.start_again().unwrap();
    all_become(&fleet, "shared");
    assert_eq!(used_up(&fleet, &of("192.0.2.1")), 0);
    assert!((20..=25).contains(&used_up(&fleet, &of("192.0.2.3"))));
}

#[test]
fn tokens_spent_in_an_outage_stay_spent_after_it() {
    let (app, mut redis) = (Backend::start(), Redis::start(&fresh_dir()).unwrap());
    let fleet = fleet(&app, &redis, 2, &rule("all", "20/1h", "by = \"client\""));
    redis.crash();
    all_become(&fleet, "degraded");
    // Each Machine has half of the quota.
    assert_eq!(used_up(&fleet[..1], &get("/")), 10);
    assert_eq!(used_up(&fleet[1..], &post("/", "hello")), 10);
    redis.start_again().unwrap();
    all_become(&fleet, "shared");
    // The Machine that synced first got only its own half back: it has at most one lease until it learns the rest.
    let lease = 5;
    assert!(used_up(&fleet, &get("/")) <= lease);
    assert_eq!(used_up(&fleet, &get("/")), 0);
}

#[test]
fn failures_are_shared_and_a_rejection_is_not_charged_to_a_shared_limit() {
    let (app, redis) = (Backend::start(), Redis::start(&fresh_dir()).unwrap());
    app.says("/401", "HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n");
    let rules = [
        rule("failures", "4/1h", "by = \"address\"\ncount = \"failures\"\nroutes = [\"login\"]"),
        rule("all", "50/1h", "by = \"client\"\nroutes = [\"a\"]"),
        rule("here", "3/1h", "by = \"machine\"\nroutes = [\"a\"]"),
        rule("watched", "2/1h", "mode = \"monitor\"\nroutes = [\"a\"]"),
        "[[routes]]\nname = \"login\"\npath = \"/401\"\n".to_owned(),
        route("a", ""),
    ];
    let fleet = fleet(&app, &redis, 2, &rules.concat());
    // Two at each Machine make four.
    for _ in 0..2 {
        for proxy in &fleet {
            assert_eq!(proxy.get("/401").status, 401);
            thread::sleep(Duration::from_millis(100));
        }
    }
    for proxy in &fleet {
        // The Machine that synced before the last failure learns of it with its next one.
        until("the fifth to be refused", || proxy.get("/401").status == 429);
        is_refused_by(&proxy.get("/401"), "failures");
    }
    // Each Machine admits three, and returns the tokens of rejected requests.
    for proxy in &fleet {
        assert_eq!(used_up(std::slice::from_ref(proxy), &get("/a")), 3);
    }
    thread::sleep(Duration::from_millis(500));
    let shown = fleet[0].get("/a");
    is_refused_by(&shown, "here");
    let watched: f64 = fleet.iter().map(|p| p.metric("outrigger_limit_refusals_total", &[("limit", "watched")])).sum();
    assert!(watched >= 4.0, "two of six, and what was refused: {watched}");
    let limits = fleet[0].shows("/limits");
    let shared = |name: &str| {
        limits["limits"].as_array().unwrap().iter().find(|limit| limit["name"] == name).unwrap()["shared"].clone()
    };
    assert_eq!((shared("all"), shared("here")), (true.into(), false.into()));
    assert_eq!(limits["sharing"]["state"], "shared");
    assert_eq!(limits["sharing"]["machines"], 2);
    let told = fleet[0].run(&["explain", "--config", "proxy.toml", "GET", "/a"]);
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("for each client (enforce, shared by all Machines)"), "{told}");
    assert!(told.contains("for this Machine (enforce)"), "{told}");
}

#[test]
fn a_server_with_invalid_replies_is_not_used() {
    let app = Backend::start();
    let said: [&[u8]; 6] = [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"+OK\r\n+OK\r\n+OK\r\n+OK\r\n+OK\r\n+OK\r\n",
        b"$99999999999999999999\r\n",
        b"*-7\r\n",
        b"\0\0\0\0\xff\xfe\r\n",
        b"$40\r\n0123456789012345678901234567890123456789\r\n+PONG\r\n:-5\r\n:9223372036854775807\r\n",
    ];
    for nonsense in said {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let mut stream = stream;
                    let mut piece = [0; 1024];
                    while stream.read(&mut piece).is_ok_and(|read| read > 0) {
                        if stream.write_all(nonsense).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        let rules = format!("{}{}", sharing(2), rule("all", "10/1h", "by = \"client\""));
        let proxy = machine(&app, &format!("redis://:{PASSWORD}@{address}"), &rules);
        let line = proxy.says("shared_limits_degraded");
        assert!(line.contains(&address.to_string()), "{line}");
        // Its half of the quota, immediately and for as long as it takes.
        assert_eq!(used_up(std::slice::from_ref(&proxy), &get("/")), 5, "{nonsense:?}");
        assert!(is_in_state(&proxy, "degraded"));
        assert!(!proxy.log().contains(PASSWORD));
        assert!(!proxy.admin("/healthz").body.contains(PASSWORD));
    }
}

const PASSWORD: &str = "correct-horse";

#[test]
fn redis_may_want_a_password_tls_ipv6_or_a_socket() {
    let app = Backend::start();
    let dir = fresh_dir();
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let (cert_file, key_file) = (dir.join("cert.pem"), dir.join("key.pem"));
    std::fs::write(&cert_file, key.cert.pem()).unwrap();
    std::fs::write(&key_file, key.signing_key.serialize_pem()).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (tls_port, socket) =
        (xtask::ports::free().unwrap().to_string(), xtask::paths::socket(&dir, "redis.sock").unwrap());
    let (cert, key, socket) = (text(&cert_file), text(&key_file), text(&socket));
    let tls = ["--tls-port", &tls_port, "--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-auth-clients", "no"];
    let more = ["--requirepass", PASSWORD, "--unixsocket", &socket];
    let redis = Redis::start_with(&dir, &[&tls[..], &more].concat()).unwrap();
    let limit = rule("all", "20/1h", "by = \"client\"");
    let rules = format!("{}{limit}", sharing(2));
    let with_ca = format!("{}rate_limits.redis.ca_file = \"{cert}\"\n{limit}", sharing(2));
    let plain = redis.port();
    let mut count = 20;
    for (url, rules) in [
        (format!("redis://:{PASSWORD}@[::1]:{plain}"), &rules),
        (format!("redis://default:{PASSWORD}@localhost:{plain}/0"), &rules),
        (format!("rediss://:{PASSWORD}@localhost:{tls_port}"), &with_ca),
        (format!("rediss://:{PASSWORD}@127.0.0.1:{tls_port}/0"), &with_ca),
        (format!("redis+unix://{socket}?pass={PASSWORD}"), &rules),
    ] {
        // Each URL reaches the same quota.
        let proxy = machine(&app, &url, rules);
        gets_shared(&proxy);
        assert_eq!(proxy.get("/").status, 200);
        until("it to be settled", || proxy.metric("outrigger_shared_limits_tokens_total", &[]) == 1.0);
        count -= 1;
        assert_eq!(left(&proxy.get("/"), "all"), count - 1, "{url}");
        count -= 1;
        until("it to be settled", || proxy.metric("outrigger_shared_limits_tokens_total", &[]) == 2.0);
        assert!(!proxy.log().contains(PASSWORD));
    }
    // An unknown signer or a wrong password: the proxy logs it and does not use the server.
    for (url, reason) in [
        (format!("rediss://:{PASSWORD}@localhost:{tls_port}"), "certificate"),
        (format!("redis://:wrong-{PASSWORD}@localhost:{plain}"), "assword"),
    ] {
        let proxy = machine(&app, &url, &rules);
        let line = proxy.says("shared_limits_degraded");
        assert!(line.contains(reason), "{line}");
        assert!(!proxy.log().contains(PASSWORD), "{line}");
    }
}

#[test]
fn a_read_only_redis_is_not_used_until_it_accepts_writes() {
    let (app, redis) = (Backend::start(), Redis::start(&fresh_dir()).unwrap());
    let fleet = fleet(&app, &redis, 2, &rule("all", "20/1h", "by = \"client\""));
    assert_eq!(fleet[0].get("/").status, 200);
    // Failed over: it is a replica of another server now.
    redis.command("REPLICAOF 127.0.0.1 1").unwrap();
    until("the first to notice", || {
        fleet[0].get("/");
        is_in_state(&fleet[0], "degraded")
    });
    assert!(fleet[0].says("shared_limits_degraded").contains("read only replica"));
    assert!(fleet[0].admin("/healthz").body.contains("it refuses"));
    redis.command("REPLICAOF NO ONE").unwrap();
    all_become(&fleet, "shared");
    // Full, and not allowed to evict.
    redis.command("CONFIG SET maxmemory 1").unwrap();
    until("the other to notice", || {
        fleet[1].get("/");
        is_in_state(&fleet[1], "degraded")
    });
    redis.command("CONFIG SET maxmemory 0").unwrap();
    all_become(&fleet, "shared");
    // A script that was flushed is loaded again.
    redis.command("SCRIPT FLUSH").unwrap();
    let errors = || fleet[1].metric("outrigger_shared_limits_errors_total", &[]);
    let (before, settled) = (errors(), || fleet[1].metric("outrigger_shared_limits_tokens_total", &[]));
    let was = settled();
    until("it to be settled", || {
        fleet[1].get("/");
        settled() > was
    });
    assert_eq!(errors(), before);
}

#[test]
fn sharing_is_switched_on_off_and_elsewhere_while_it_runs() {
    let (app, one, other) =
        (Backend::start(), Redis::start(&fresh_dir()).unwrap(), Redis::start(&fresh_dir()).unwrap());
    let limit = rule("all", "20/1h", "by = \"client\"");
    let proxy = Proxy::with(&app, &format!("{NO_DEFAULTS}{limit}"));
    assert_eq!(proxy.get("/").status, 200);
    assert!(is_in_state(&proxy, "off"));
    assert_eq!(proxy.admin("/healthz").body, "serving\n");
    for redis in [&one, &other] {
        let rules = format!("{}rate_limits.redis.url = \"{}\"\n{limit}", sharing(2), redis.url());
        proxy.changes_to(&rules);
        gets_shared(&proxy);
        until("this one to have it", || {
            proxy.get("/");
            redis.command("DBSIZE").unwrap() == "1"
        });
    }
    let before = one.command("INFO commandstats").unwrap();
    proxy.changes_to(&format!("{NO_DEFAULTS}{limit}"));
    until("nothing to be shared", || is_in_state(&proxy, "off"));
    assert_eq!(proxy.get("/").status, 200);
    let evals = |info: &str| info.lines().find(|line| line.contains("evalsha")).map(str::to_owned);
    assert_eq!(evals(&before), evals(&one.command("INFO commandstats").unwrap()), "the first was left alone");
    // An invalid URL is rejected with its place, and the password never shows.
    let wrong = format!("{}rate_limits.redis.url = \"http://:{PASSWORD}@x\"\n{limit}", sharing(2));
    std::fs::write(&proxy.file, proxy.text(&wrong)).unwrap();
    let line = proxy.says("this is not an address of Redis");
    assert!(!proxy.log().contains(PASSWORD), "{line}");
}

#[test]
fn a_client_that_obeys_retry_after_is_admitted_on_any_machine() {
    let (app, redis) = (Backend::start(), Redis::start(&fresh_dir()).unwrap());
    let fleet = fleet(&app, &redis, 3, &rule("all", "3/3s", "by = \"client\""));
    used_up(&fleet, &get("/"));
    for proxy in &fleet {
        let answer = loop {
            let answer = proxy.get("/");
            if answer.status == 429 {
                break answer;
            }
            thread::sleep(Duration::from_millis(20));
        };
        thread::sleep(Duration::from_secs(answer.number("retry-after")));
        assert_eq!(proxy.get("/").status, 200);
    }
}
