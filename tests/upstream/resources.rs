//! A host without free descriptors or local ports: this does not count as a failure of the app.

use std::{fs, net::SocketAddr, process::Command, thread, time::Duration};

use crate::{
    backend::{Backend, Play},
    harness::{Client, Form, Proxy, Setup, every_form, get, socket, until},
};

/// Checks a proxy that has recovered from a shortage.
fn blames_nobody(proxy: &Proxy) {
    let log = proxy.log();
    assert!(!log.contains("app_away") && !log.contains("the app failed a request"), "{log}");
    assert_eq!(proxy.metric("outrigger_app_failures_total", &[]), 0.0);
    assert_eq!(proxy.metric("outrigger_app_reachable", &[]), 1.0);
}

#[test]
fn exhausted_descriptors_are_reported_as_such_and_recovered_from() {
    for unix in [false, true] {
        let dir = crate::harness::fresh_dir();
        let app = if unix { Backend::start_unix(&socket(&dir)) } else { Backend::start() };
        app.at("/hang", Play::Hang);
        let rules = "app.hold = \"5s\"\nbreaker.failures = 3\nadmission.min = 100\napp.idle_timeout = \"100ms\"";
        let proxy = Setup::new(&app, rules).through(&["prlimit", "--nofile=80:80"]).start();
        assert_eq!(proxy.get("/").status, 200);
        // All connect before any of them sends a request, and none has been idle long enough to make room: most find no
        // connection to the app.
        let mut busy: Vec<_> = (0..60).filter_map(|_| Client::connect(proxy.address).ok()).collect();
        // Excess connections were rejected and closed.
        busy.iter_mut().for_each(|client| drop(client.try_send(get("/hang"))));
        let reason = [("reason", "out_of_resources")];
        let refusals = || {
            let text = xtask::http::get(proxy.admin, "/metrics", Duration::from_secs(1)).map(|answer| answer.body);
            text.map_or(0.0, |text| crate::harness::sum(&text, "outrigger_rejections_total", &reason))
        };
        until("requests to be refused", || refusals() > 0.0);
        let mut answers = Vec::new();
        for client in &mut busy {
            if !client.stays_silent_for(Duration::from_millis(20)) {
                answers.extend(client.try_answer().ok());
            }
        }
        assert!(!answers.is_empty() && answers.iter().all(|answer| answer.status == 503), "{answers:?}");
        let said = |words: &str| answers.iter().any(|answer| answer.text().contains(words));
        assert!(said("urn:outrigger:problem:out-of-resources"), "{answers:?}");
        let line = proxy.says("out_of_resources");
        proxy.has_receipt("out_of_resources", "host.open_files");
        assert!(line.contains("open_files") && line.contains("LimitNOFILE"), "{line}");
        drop(busy);
        for request in every_form("/") {
            until("requests to be served again", || {
                Client::connect(proxy.address).is_ok_and(|client| {
                    let mut client = client.with_h2c(proxy.h2c);
                    client.try_send(&request).is_ok() && client.try_answer().is_ok_and(|answer| answer.status == 200)
                })
            });
        }
        assert!(proxy.metric("outrigger_own_resources_exhausted_total", &[("resource", "open_files")]) > 0.0);
        blames_nobody(&proxy);
    }
}

/// Set when this test runs itself again, in its own network namespace.
const INSIDE: &str = "OUTRIGGER_TEST_IN_A_NETWORK_NAMESPACE";

#[test]
fn exhausted_local_ports_are_reported_as_such_and_recovered_from() {
    if std::env::var_os(INSIDE).is_some() {
        return out_of_local_ports();
    }
    let prepared = "ip link set lo up && echo '40000 40031' > /proc/sys/net/ipv4/ip_local_port_range && exec \"$@\"";
    let can = Command::new("unshare").args(["-n", "sh", "-c", prepared, "sh", "true"]).status();
    if !can.is_ok_and(|status| status.success()) {
        println!("no network namespace can be made: not tried");
        return;
    }
    let inside = Command::new("unshare")
        .args(["-n", "sh", "-c", prepared, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args([
            "upstream::resources::exhausted_local_ports_are_reported_as_such_and_recovered_from",
            "--exact",
            "--nocapture",
        ])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = |output: &[u8]| String::from_utf8_lossy(output).into_owned();
    assert!(inside.status.success(), "{}{}", said(&inside.stdout), said(&inside.stderr));
}

fn out_of_local_ports() {
    let app = Backend::start();
    let gate = app.gate("/wait");
    let rules = "app.hold = \"5s\"\nbreaker.failures = 3\nadmission.min = 100";
    let setup = Setup::new(&app, rules);
    let anywhere = fs::read_to_string(&setup.file)
        .unwrap()
        .replace(
            &format!("server.listen = \"{}\"", setup.address),
            &format!("server.listen = \"0.0.0.0:{}\"", setup.address.port()),
        )
        .replace("server.threads = 2", "server.threads = 1");
    fs::write(&setup.file, anywhere).unwrap();
    let proxy = setup.start();
    // Local ports are counted per destination address: the clients use three, the proxy has one.
    let clients: Vec<_> = (0..60)
        .map(|number: usize| {
            let port = proxy.address.port();
            thread::spawn(move || {
                let address = SocketAddr::from(([127, 0, 0, 1 + (number % 3) as u8], port));
                let mut client = Client::connect(address).unwrap();
                // HTTP/2 has a listener of its own, at one address only.
                let forms = [Form::Bare, Form::Sized, Form::Chunked, Form::Http10];
                client.send(forms[number % forms.len()].request("/wait"));
                client.answer()
            })
        })
        .collect();
    until("some to be refused", || proxy.metric("outrigger_rejections_total", &[("reason", "out_of_resources")]) > 0.0);
    gate.add_permits(1000);
    let answers: Vec<_> = clients.into_iter().filter_map(|client| client.join().ok()).collect();
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 503).collect();
    refused.iter().for_each(|answer| answer.is_problem(503, "out_of_resources"));
    assert!(!refused.is_empty() && answers.iter().all(|answer| matches!(answer.status, 200 | 503)));
    let line = proxy.says("out_of_resources");
    assert!(line.contains("local_ports") && line.contains("ip_local_port_range"), "{line}");
    for request in every_form("/") {
        // This client needs a local port as well.
        let ask = |client: Client| client.with_h2c(proxy.h2c).send(&request).try_answer();
        let is_served = |client: Client| ask(client).is_ok_and(|answer| answer.status == 200);
        until("requests to be served again", || Client::connect(proxy.address).is_ok_and(is_served));
    }
    blames_nobody(&proxy);
}
