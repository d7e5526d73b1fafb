//! The metrics page: a client that controls an app's label, or the app's whole page, must not hide the proxy's metrics.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    backend::{Backend, Play},
    harness::{Proxy, sum},
    openmetrics, promtool,
};

const VICTIM: &str = "# HELP victim_total V.\n# TYPE victim_total counter\nvictim_total{x=\"1\"} 2\n";

fn page(headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

#[test]
fn the_proxys_metrics_are_served_with_any_app_metrics() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    proxy.get("/");
    let series = || {
        let own = proxy.admin("/metrics").body;
        own.lines().filter(|line| !line.starts_with('#')).count()
    };
    let before = series();
    // Lines that one client of the app may have caused, around the samples of another one.
    let hostile: [&[u8]; 14] = [
        b"b 3 1700000000 more\n",
        b"b{x} 4\n",
        b"b{x=\"\\q\"} 6\n",
        b"b{le=\"a\\\"} 7\n",
        b"b{x=\"\xff\xfe\"} 8\n",
        b"b{x=\"1\",x=\"2\"} 9\n",
        b"# TYPE outrigger_requests_total gauge\noutrigger_requests_total 1\n",
        b"# TYPE victim_total gauge\n# TYPE b counter\n# TYPE b gauge\nb 1\nb 1\n",
        b"# TYPE process_open_fds counter\nprocess_open_fds 1\n",
        b"victim_total{x=\"1\"} 99\n",
        b"# TYPE h histogram\nh_bucket{le=\"2\"} 1\nh_bucket{le=\"1\"} 1\nh_sum 1\n",
        b"\0\x01\x02\x1b[2J\r\n<html>",
        b"b{x=\"unfinished",
        b"victim_more 1\r\njobs_total 7 # {trace_id=\"ab12\"} 0.5 1700000000.5\n# EOF",
    ];
    let (mut valid, mut there, mut pages) = (0, 0, Vec::new());
    for lines in hostile {
        app.at("/metrics", Play::Say(page("Content-Type: text/plain\r\n", &[VICTIM.as_bytes(), lines].concat())));
        let all = proxy.admin("/metrics/all").body;
        let verdict = promtool::parses(&all);
        assert_eq!(verdict, Ok(()), "{}", String::from_utf8_lossy(lines));
        pages.push(proxy.openmetrics("/metrics/all"));
        valid += 1;
        there += usize::from(all.contains("victim_total{process=\"app\",x=\"1\"} 2\n"));
        assert!(
            all.contains("# TYPE victim_total counter\n") && all.contains("# TYPE outrigger_requests_total counter\n")
        );
        assert!(sum(&all, "outrigger_requests_total", &[("process", "proxy")]) >= 1.0);
    }
    let families = openmetrics::families(&pages).unwrap();
    let of_victim = families.iter().filter(|family| *family == "counter victim").count();
    assert_eq!(of_victim, hostile.len(), "{families:#?}");
    let dropped = proxy.metric("outrigger_app_metrics_lines_dropped_total", &[]);
    // Whole responses that are not a metrics page.
    let endless = [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), b"a 1\n".repeat(3 << 20)].concat();
    let plays = [
        ("gzip", Play::Say(page("Content-Encoding: gzip\r\n", b"\x1f\x8b\x08nonsense"))),
        ("html", Play::Say(page("Content-Type: Text/HTML; charset=utf-8\r\n", b"<html>a 1\n</html>"))),
        ("an error", Play::SayAndClose(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n".into())),
        ("no HTTP", Play::SayAndClose(b"a 1\n".into())),
        ("12 MiB", Play::SayAndClose(endless)),
        ("a drip", Play::Drip(page("", &VICTIM.as_bytes().repeat(50)), Duration::from_millis(100))),
        ("a hang", Play::Hang),
    ];
    let mut slowest = Duration::ZERO;
    for (name, play) in plays {
        app.at("/metrics", play);
        // Concurrent scrapes reach the app one after the other, and each takes at most the time of two.
        let began = Instant::now();
        let pages: Vec<String> = thread::scope(|scope| {
            let scrapes: Vec<_> = (0..4).map(|_| scope.spawn(|| proxy.admin("/metrics/all").body)).collect();
            scrapes.into_iter().map(|scrape| scrape.join().unwrap()).collect()
        });
        slowest = slowest.max(began.elapsed());
        for page in pages {
            assert_eq!(promtool::parses(&page), Ok(()), "{name}");
            assert_eq!(sum(&page, "outrigger_app_metrics_up", &[]), 0.0, "{name}");
            let own = page.lines().filter(|line| line.contains("process=\"proxy\"")).count();
            assert!(own >= before, "{name}: {own} of {before} series");
        }
    }
    println!(
        "metrics page: {valid} of {} hostile pages valid, the other client's sample in {there}, {dropped} lines dropped; 7 pages that \
         are none: all series of the proxy, 4 scrapes at once in at most {slowest:?}",
        hostile.len()
    );
    assert_eq!(there, hostile.len());
    assert!(slowest < Duration::from_secs(9), "{slowest:?}");
}
