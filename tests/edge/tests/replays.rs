//! `fly-replay`: the Machine that gets the request, the headers that it gets, and failures.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Response;
use outrigger_edge::{Edge, Settings, State};

use tokio::io::AsyncWriteExt;

use crate::fake::{Answer, Fake, Fakes, Play, edge, edge_of, full, get, get_with, post, raw, shows, until};

/// An edge with `origin`, which gets every request first because the others are in another region.
async fn with_origin(settings: Settings, fly_replay: &str, others: &[&Fake]) -> (Edge, Fake) {
    let origin = Fake::running("origin").await;
    origin.replays(fly_replay);
    let edge = edge(settings, &[&origin]).await;
    for other in others {
        edge.add(other.machine.clone(), State::Started);
    }
    (edge, origin)
}

async fn far(id: &str) -> Fake {
    Fake::running(id).await.in_region("syd")
}

/// Retries and waits take almost no time.
fn hasty() -> Settings {
    Settings { time_scale: 0.001, ..Settings::default() }
}

#[tokio::test]
async fn the_whole_request_is_sent_again_to_the_machine_that_is_named() {
    let target = far("target").await;
    let (edge, origin) = with_origin(Settings::default(), "instance=target;state=signed", &[&target]).await;
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
    let answer = post(&edge, "/?q=1", b"the body").await;
    assert_eq!(answer.machine(), "target");
    assert_eq!(answer.field("fly-replay"), None);
    let (first, second) = (origin.last(), target.last());
    assert_eq!(first.field("fly-replay-src"), None);
    assert_eq!((second.method.as_str(), second.target.as_str(), &second.body[..]), ("POST", "/?q=1", &b"the body"[..]));
    assert_eq!(second.part("fly-replay-src", "instance").as_deref(), Some("origin"));
    assert_eq!(second.part("fly-replay-src", "region").as_deref(), Some("ams"));
    assert_eq!(second.part("fly-replay-src", "state").as_deref(), Some("signed"));
    let t: u64 = second.part("fly-replay-src", "t").unwrap().parse().unwrap();
    assert!((before..before + 10_000_000).contains(&t), "microseconds: {t}");
    assert_eq!(first.field("fly-request-id"), second.field("fly-request-id"), "it is one request");
    assert_eq!(edge.snapshot().counts.replays, 1);
}

#[tokio::test]
async fn region_and_elsewhere_narrow_the_choice() {
    let (syd, gru) = (far("syd1").await, Fake::running("gru1").await.in_region("gru"));
    let (edge, origin) = with_origin(hasty(), "region=\"sa,apac\"", &[&syd, &gru]).await;
    assert_eq!(get(&edge, "/").await.machine(), "gru1");
    origin.replays("region=iad");
    get(&edge, "/").await.is_error(503, "PR01");
    origin.replays("elsewhere=true");
    assert_ne!(get(&edge, "/").await.machine(), "origin");
    edge.remove("syd1");
    edge.remove("gru1");
    get(&edge, "/").await.is_error(503, "PR01");
}

#[tokio::test]
async fn the_json_form_does_the_same_and_can_transform() {
    let target = far("target").await;
    let (edge, origin) = with_origin(Settings::default(), "", &[&target]).await;
    origin.says("/", |_| {
        let text = r#"{"instance": "target", "state": "s", "timeout": "1s", "fallback": "force_self", "transform":
            {"path": "/new?p=1", "delete_headers": ["cookie"], "set_headers": [{"name": "x-new", "value": "v"}]}}"#;
        Response::builder().header("content-type", "application/vnd.fly.replay+json").body(full(text)).unwrap()
    });
    assert_eq!(get_with(&edge, "/", &[("cookie", "a=b")]).await.machine(), "target");
    let seen = target.last();
    assert_eq!(seen.target, "/new?p=1");
    assert_eq!((seen.field("cookie"), seen.field("x-new").as_deref()), (None, Some("v")));
    assert_eq!(seen.part("fly-replay-src", "state").as_deref(), Some("s"));
}

/// `target` cannot be reached; `origin` prefers it, so it gets the request itself, with a header that says so.
async fn is_unavailable(edge: &Edge, origin: &Fake) {
    assert_eq!(post(edge, "/", b"body").await.machine(), "origin");
    let seen = origin.last();
    assert_eq!(seen.field("fly-preferred-instance-unavailable").as_deref(), Some("target"));
    assert_eq!(seen.part("fly-replay-src", "instance").as_deref(), Some("origin"), "it was replayed all the same");
    assert_eq!(&seen.body[..], b"body");
}

#[tokio::test]
async fn an_unavailable_preferred_machine_is_replaced_by_another() {
    let (edge, origin) = with_origin(Settings::default(), "prefer_instance=target", &[]).await;
    is_unavailable(&edge, &origin).await;
    let target = Fake::new("target").await;
    edge.add(target.machine.clone(), State::Started);
    edge.cordon("target");
    is_unavailable(&edge, &origin).await;
    edge.uncordon("target");
    edge.remove("target");
    edge.add(target.in_region("syd").machine, State::Started);
    is_unavailable(&edge, &origin).await;
}

#[tokio::test]
async fn a_target_at_its_hard_limit_is_unavailable_by_preference() {
    let target = far("target").await;
    let gate = target.gate("/slow");
    let mut settings = Settings::default();
    settings.concurrency.hard_limit = Some(1);
    let (edge, origin) = with_origin(settings, "prefer_instance=target", &[&target]).await;
    let address = edge.address();
    let slow = crate::fake::request("GET", "/slow", &[("fly-force-instance-id", "target")], b"");
    let slow = tokio::spawn(crate::fake::send(address, slow));
    shows(&edge, "the target to be full", |now| now.machine("target").unwrap().load == 1).await;
    is_unavailable(&edge, &origin).await;
    gate.add_permits(1);
    slow.await.unwrap();
    shows(&edge, "the target to be free", |now| now.machine("target").unwrap().load == 0).await;
    assert_eq!(post(&edge, "/", b"").await.machine(), "target");
}

#[tokio::test]
async fn a_stopped_target_is_started_if_the_app_allows_it_and_unavailable_otherwise() {
    for starts in [true, false] {
        let fleet = Fakes::of(&["origin", "target"]).await;
        let mut settings = Settings::default();
        settings.autostop.starts = starts;
        let edge = edge_of(settings, &fleet, &["origin"]).await;
        let (origin, target) = (fleet.get("origin"), fleet.get("target"));
        target.halt().await;
        edge.add(target.machine.clone(), State::Stopped);
        origin.replays("prefer_instance=target");
        if starts {
            assert_eq!(post(&edge, "/", b"").await.machine(), "target");
            assert_eq!(target.last().field("fly-preferred-instance-unavailable"), None);
            assert_eq!(fleet.log(), ["start target v1"]);
        } else {
            is_unavailable(&edge, &origin).await;
            assert!(fleet.log().is_empty());
        }
    }
}

#[tokio::test]
async fn a_replay_reaches_a_cordoned_machine_only_if_the_setting_says_so() {
    for reaches in [true, false] {
        let target = far("target").await;
        let mut settings = hasty();
        settings.replay.reaches_cordoned = reaches;
        let (edge, origin) = with_origin(settings, "instance=target", &[&target]).await;
        edge.cordon("target");
        let strict = get(&edge, "/").await;
        origin.replays("prefer_instance=target");
        let preferred = get(&edge, "/").await;
        if reaches {
            assert_eq!((strict.machine(), preferred.machine()), ("target", "target"));
        } else {
            strict.is_error(502, "PR02");
            assert_eq!(preferred.machine(), "origin");
        }
        assert_ne!(get(&edge, "/other").await.machine(), "target", "without a replay nobody reaches it");
    }
}

#[tokio::test]
async fn exactly_this_machine_or_an_error() {
    let down = Fake::new("down").await;
    let (edge, origin) = with_origin(hasty(), "instance=gone", &[&down]).await;
    get(&edge, "/").await.is_error(502, "PR02");
    origin.replays("instance=down");
    get(&edge, "/").await.is_error(502, "PR03");
    assert_eq!(origin.seen().len(), 2, "nobody asked the origin again");
}

/// Checks the header that the origin gets when the request returns.
async fn comes_back(edge: &Edge, origin: &Fake, reason: &str) {
    assert_eq!(post(edge, "/", b"body").await.machine(), "origin");
    let seen = origin.last();
    assert_eq!(&seen.body[..], b"body");
    let part = |key| seen.part("fly-replay-failed", key);
    assert_eq!(part("reason").as_deref(), Some(reason), "{seen:?}");
    assert_eq!((part("instance").as_deref(), part("app").as_deref()), (Some("target"), Some("app")));
    assert_eq!((part("region").as_deref(), part("replay_source").as_deref()), (Some(""), Some("origin")));
    let _: u64 = part("elapsed_ms").unwrap().parse().unwrap();
    assert_eq!(seen.field("fly-preferred-instance-unavailable"), None);
}

#[tokio::test]
async fn a_replay_that_fails_comes_back_with_the_reason() {
    for fallback in ["force_self", "prefer_self"] {
        let (edge, origin) = with_origin(hasty(), &format!("instance=target;fallback={fallback}"), &[]).await;
        comes_back(&edge, &origin, "no_candidate").await;
        edge.add(Fake::new("target").await.machine.clone(), State::Started);
        comes_back(&edge, &origin, "retries_exhausted").await;
        assert_eq!(edge.snapshot().counts.fallbacks, 2);
    }
}

#[tokio::test]
async fn a_timeout_ends_the_search_early() {
    let target = Fake::new("target").await;
    let mut settings = Settings::default();
    settings.routing.retry_pause = Duration::from_secs(3600);
    let (edge, origin) = with_origin(settings, "instance=target;timeout=80ms;fallback=force_self", &[&target]).await;
    let began = std::time::Instant::now();
    comes_back(&edge, &origin, "timeout").await;
    assert!(began.elapsed() >= Duration::from_millis(80));
    let elapsed: u64 = origin.last().part("fly-replay-failed", "elapsed_ms").unwrap().parse().unwrap();
    assert!(elapsed >= 80, "{elapsed}");
    origin.replays("instance=target;timeout=80ms");
    get(&edge, "/").await.is_error(502, "PR03");
}

#[tokio::test]
async fn without_the_origin_force_self_fails_and_prefer_self_finds_another() {
    for (fallback, survives) in [("force_self", false), ("prefer_self", true)] {
        let other = far("other").await;
        let value = format!("instance=target;timeout=1s;fallback={fallback}");
        let mut settings = hasty();
        // The target refuses connections until the origin is gone.
        settings.time_scale = 1.0;
        let target = Fake::new("target").await.in_region("syd");
        let (edge, origin) = with_origin(settings, &value, &[&other, &target]).await;
        let request = crate::fake::in_background(&edge, "/");
        until("the origin to ask", || !origin.seen().is_empty()).await;
        edge.remove("origin");
        let answer: Answer = request.await.unwrap();
        if survives {
            assert_eq!(answer.machine(), "other");
            let seen = other.last();
            assert_eq!(seen.part("fly-replay-failed", "reason").as_deref(), Some("timeout"));
            assert_eq!(seen.field("fly-preferred-instance-unavailable"), None);
        } else {
            answer.is_error(502, "PR02");
        }
    }
}

#[tokio::test]
async fn whether_a_request_that_comes_back_says_that_it_was_replayed_is_a_setting() {
    for says in [true, false] {
        let mut settings = hasty();
        settings.replay.src_on_fallback = says;
        let (edge, origin) = with_origin(settings, "instance=target;fallback=force_self;state=s", &[]).await;
        get(&edge, "/").await;
        assert_eq!(origin.last().field("fly-replay-src").is_some(), says);
        assert!(origin.last().field("fly-replay-failed").is_some());
    }
}

#[tokio::test]
async fn a_request_that_came_back_cannot_be_replayed_again() {
    let (edge, origin) = with_origin(hasty(), "", &[]).await;
    let always = || Response::builder().header("fly-replay", "instance=target;fallback=force_self").body(full(""));
    origin.says("/", move |_| always().unwrap());
    get(&edge, "/").await.is_error(502, "PA02");
    assert_eq!(origin.seen().len(), 2);
}

#[tokio::test]
async fn an_error_of_the_target_is_a_success_of_the_replay() {
    let target = far("target").await;
    target.says("/", |_| Response::builder().status(503).body(full("own words")).unwrap());
    let (edge, origin) = with_origin(Settings::default(), "instance=target;fallback=force_self", &[&target]).await;
    let answer = get(&edge, "/").await;
    assert_eq!((answer.status, answer.machine(), &answer.body[..]), (503, "target", &b"own words"[..]));
    target.plays("/", Play::BreakOff);
    get(&edge, "/").await.is_error(502, "PU02");
    assert_eq!(origin.seen().len(), 2, "begun is begun: it never came back");
}

#[tokio::test]
async fn bodies_up_to_the_limit_are_replayed_and_larger_ones_are_not() {
    let target = far("target").await;
    let (edge, _origin) = with_origin(Settings::default(), "instance=target", &[&target]).await;
    let largest = vec![b'x'; 1 << 20];
    let answer = post(&edge, "/", &largest).await;
    assert_eq!(answer.machine(), "target");
    assert!(target.last().body == largest);
    post(&edge, "/", &[largest.clone(), vec![b'y']].concat()).await.is_error(502, "PA01");

    // Fly's other page says 10 MB.
    let mut settings = Settings::default();
    settings.replay.max_body = 10 << 20;
    let (large, _large_origin) = with_origin(settings, "instance=target", &[&target]).await;
    assert_eq!(post(&large, "/", &vec![b'x'; 10 << 20]).await.machine(), "target");
    post(&large, "/", &vec![b'x'; (10 << 20) + 1]).await.is_error(502, "PA01");

    // The same without `Content-Length`, and from a Machine that responds before it has read the body.
    let (edge, origin) = with_origin(Settings::default(), "", &[&target]).await;
    origin.plays("/", Play::SayEarly("fly-replay", "instance=target".to_owned()));
    for (size, fits) in [(largest.len(), true), (largest.len() + 1, false)] {
        let pieces = vec![b'z'; size];
        let pieces: Vec<_> = pieces.chunks(10_000).map(bytes::Bytes::copy_from_slice).collect();
        let pieces = pieces.into_iter().map(|piece| Ok::<_, std::io::Error>(hyper::body::Frame::data(piece)));
        let body = http_body_util::StreamBody::new(futures_util::stream::iter(pieces));
        let request = http::Request::post("/").header("host", "app.test").body(body).unwrap();
        let answer = crate::fake::send(edge.address(), request).await;
        if fits {
            assert_eq!((answer.machine(), target.last().body.len()), ("target", size));
        } else {
            answer.is_error(502, "PA01");
        }
    }
}

#[tokio::test]
async fn a_replay_that_is_asked_for_early_waits_for_the_rest_of_the_body() {
    let target = far("target").await;
    let (edge, origin) = with_origin(Settings::default(), "", &[&target]).await;
    origin.plays("/", Play::SayEarly("fly-replay", "instance=target".to_owned()));
    let mut client = tokio::net::TcpStream::connect(edge.address()).await.unwrap();
    let head = b"POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 30\r\n\r\n0123456789";
    client.write_all(head).await.unwrap();
    until("the origin to be asked", || !origin.seen().is_empty()).await;
    // Time for the replay to begin, and for more of the body to arrive meanwhile.
    for _ in 0..19 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        client.write_all(b"x").await.unwrap();
    }
    assert!(target.seen().is_empty());
    let answer = raw(&mut client, b"y", "\r\n\r\n").await;
    assert!(answer.contains("x-machine: target"), "{answer}");
    assert_eq!(&target.last().body[..], b"0123456789xxxxxxxxxxxxxxxxxxxy");
}

#[tokio::test]
async fn ten_replays_are_followed_and_an_eleventh_is_not() {
    let (edge, origin) = with_origin(Settings::default(), "", &[]).await;
    for (wanted, is_ok) in [(10, true), (11, false)] {
        let before = origin.seen().len();
        let left = std::sync::atomic::AtomicI32::new(wanted);
        origin.says("/", move |_| {
            let again = left.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) > 0;
            let answer = Response::builder();
            let answer = if again { answer.header("fly-replay", "instance=origin") } else { answer };
            answer.body(full("")).unwrap()
        });
        let answer = get(&edge, "/").await;
        if is_ok {
            assert_eq!((answer.status, answer.machine()), (200, "origin"));
        } else {
            answer.is_error(502, "PA02");
        }
        assert_eq!(origin.seen().len() - before, 11);
    }
}

#[tokio::test]
async fn malformed_replays_and_other_apps_are_errors() {
    let mut settings = Settings::default();
    settings.replay.forbidden_apps = vec!["foreign".to_owned()];
    let (edge, origin) = with_origin(settings, "", &[]).await;
    for (value, code) in [
        ("instance", "PA03"),
        ("colour=red", "PA03"),
        ("instance=origin;timeout=soon", "PA03"),
        ("instance=origin;fallback=maybe", "PA03"),
        ("app=nobody", "PA04"),
        ("app=foreign", "PA05"),
    ] {
        origin.says("/", move |_| Response::builder().header("fly-replay", value).body(full("")).unwrap());
        get(&edge, "/").await.is_error(502, code);
    }
    origin.replays("app=app;elsewhere=false");
    assert_eq!(get(&edge, "/").await.status, 200, "its own app it may name");
}
