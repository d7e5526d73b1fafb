//! Headers about the client in requests to Machines, and headers in responses to the client.

use outrigger_edge::Settings;

use crate::fake::{Fake, edge, get, get_with};

#[tokio::test]
async fn the_edge_adds_its_headers_to_requests() {
    let a = Fake::running("a").await;
    let edge = edge(Settings { region: "lhr".to_owned(), ..Settings::default() }, &[&a]).await;
    let fields = [
        ("fly-client-ip", "6.6.6.6"),
        ("x-forwarded-for", "1.1.1.1, 2.2.2.2"),
        ("x-forwarded-proto", "gopher"),
        ("x-forwarded-port", "70"),
        ("fly-region", "mars"),
        ("fly-request-id", "mine"),
        ("via", "1.1 cache"),
    ];
    let answer = get_with(&edge, "/", &fields).await;
    let seen = a.last();
    let told = |name: &str| seen.field(name).unwrap();
    assert_eq!(told("fly-client-ip"), "127.0.0.1");
    assert_eq!(told("x-forwarded-for"), "1.1.1.1, 2.2.2.2, 127.0.0.1, 66.241.124.1");
    assert_eq!((told("x-forwarded-proto"), told("fly-forwarded-proto")), ("https".to_owned(), "https".to_owned()));
    assert_eq!((told("fly-forwarded-port"), told("fly-forwarded-ssl")), ("443".to_owned(), "on".to_owned()));
    assert_eq!(told("x-forwarded-port"), "70", "a client's own survives");
    assert_eq!(told("fly-region"), "lhr");
    assert_eq!(told("via"), "1.1 cache, 1.1 fly.io");
    let start: u64 = told("x-request-start").strip_prefix("t=").unwrap().parse().unwrap();
    assert!(start > 1_600_000_000_000_000, "microseconds: {start}");
    let id = told("fly-request-id");
    let (ulid, region) = id.split_once('-').unwrap();
    assert!(ulid.len() == 26 && ulid.starts_with("01") && region == "lhr", "{id}");
    assert_eq!(answer.field("fly-request-id"), Some(id.as_str()));
    assert_eq!(answer.field("via"), Some("1.1 fly.io"));
    get(&edge, "/").await;
    assert_ne!(a.last().field("fly-request-id").unwrap(), id);
}

#[tokio::test]
async fn errors_of_the_edge_have_the_request_id_too() {
    let edge = edge(Settings { time_scale: 0.001, ..Settings::default() }, &[]).await;
    let answer = get(&edge, "/").await;
    answer.is_error(503, "PR01");
    assert!(answer.field("fly-request-id").unwrap().ends_with("-ams"));
}

#[tokio::test]
async fn plain_http_is_reported_if_configured() {
    let a = Fake::running("a").await;
    let mut settings = Settings::default();
    settings.headers.is_https = false;
    let edge = edge(settings, &[&a]).await;
    get(&edge, "/").await;
    let seen = a.last();
    for (name, value) in [("x-forwarded-proto", "http"), ("fly-forwarded-proto", "http"), ("fly-forwarded-port", "80")]
    {
        assert_eq!(seen.field(name).as_deref(), Some(value), "{name}");
    }
}

#[tokio::test]
async fn a_test_may_set_the_client_address_only_if_configured() {
    let a = Fake::running("a").await;
    let fields = [("x-test-client-ip", "203.0.113.7")];
    let strict = edge(Settings::default(), &[&a]).await;
    get_with(&strict, "/", &fields).await;
    assert_eq!(a.last().field("fly-client-ip").as_deref(), Some("127.0.0.1"));

    let mut settings = Settings::default();
    settings.headers.client_address_field = Some(http::HeaderName::from_static("x-test-client-ip"));
    let edge = edge(settings, &[&a]).await;
    get_with(&edge, "/", &fields).await;
    let seen = a.last();
    assert_eq!(seen.field("fly-client-ip").as_deref(), Some("203.0.113.7"));
    assert_eq!(seen.field("x-forwarded-for").as_deref(), Some("203.0.113.7, 66.241.124.1"));
    assert_eq!(seen.field("x-test-client-ip"), None);
    get(&edge, "/").await;
    assert_eq!(a.last().field("fly-client-ip").as_deref(), Some("127.0.0.1"));
}

#[tokio::test]
async fn forwarding_a_clients_replay_headers_is_a_setting() {
    for strips in [true, false] {
        let a = Fake::running("a").await;
        let mut settings = Settings::default();
        settings.headers.strips_replay_fields = strips;
        let edge = edge(settings, &[&a]).await;
        let names = ["fly-replay-src", "fly-replay-failed", "fly-preferred-instance-unavailable"];
        get_with(&edge, "/", &names.map(|name| (name, "forged"))).await;
        for name in names {
            assert_eq!(a.last().field(name).is_none(), strips, "{name}");
        }
    }
}

#[tokio::test]
async fn hop_by_hop_headers_are_not_forwarded() {
    let a = Fake::running("a").await;
    let edge = edge(Settings::default(), &[&a]).await;
    let fields =
        [("connection", "close, x-secret"), ("x-secret", "1"), ("keep-alive", "timeout=5"), ("te", "trailers")];
    get_with(&edge, "/", &fields).await;
    for name in ["connection", "x-secret", "keep-alive", "te", "upgrade"] {
        assert_eq!(a.last().field(name), None, "{name}");
    }
}
