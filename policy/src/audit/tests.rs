use super::*;
use proptest::prelude::*;

const WHO: &str = r#""actor":{"id":"u_a","kind":"user"}"#;

fn line(draft: &Draft<'_>, head: &Head) -> String {
    let mut out = Vec::new();
    draft.write(draft.event.class(), head, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn a_line_has_its_members_in_the_order_that_the_docs_give() {
    let draft = Draft {
        request_id: Some("r-1"),
        trace_id: Some(0xabc),
        method: Some("GET"),
        route: Some("documents"),
        resource: &[("id", b"42")],
        headers: &[("user-agent", b"curl\n\"\xff")],
        status: Some(404),
        duration_us: Some(1234),
        reason: Some("not_found"),
        details: Some("{\"a\":1}"),
        ..Draft::new(
            uuid_v7(Time(1_764_000_000_123_456), (1, 2)),
            Time(1_764_000_000_123_456),
            "m1",
            EventType::Read,
            Outcome::Failure,
            WHO,
        )
    };
    insta::assert_snapshot!(line(&draft, &Head { last: 11, hash: [0xab; 32] }));
    let mut out = Vec::new();
    Draft::new(1, Time(0), "m1", EventType::Delete, Outcome::Success, WHO).write_unchained(Class::Deletion, &mut out);
    insta::assert_snapshot!(String::from_utf8(out).unwrap());
}

#[test]
fn method_and_status_refine_the_type_of_a_route() {
    let event =
        |declared: &str, method, status| Declared::named(declared).unwrap().event(method, status).map(EventType::name);
    let rows = [
        ("data", "GET", 200, Some("data.read")),
        ("data", "PATCH", 204, Some("data.write")),
        ("data", "DELETE", 204, Some("data.delete")),
        ("data", "GET", 401, Some("auth.failed")),
        ("data", "GET", 403, Some("data.read")),
        ("authentication", "POST", 200, Some("auth.login")),
        ("authentication", "POST", 422, Some("auth.failed")),
        ("authentication", "DELETE", 204, Some("auth.logout")),
        ("authentication", "POST", 502, Some("auth.login")),
        ("auth.token_refresh", "POST", 401, Some("auth.failed")),
        ("auth.logout", "POST", 403, Some("auth.logout")),
        ("administration", "POST", 200, Some("admin.action")),
        ("deletion", "DELETE", 202, Some("subject.erasure_request")),
        ("deletion", "GET", 200, Some("subject.access_request")),
        ("subject.consent", "PUT", 200, Some("subject.consent")),
        ("off", "GET", 200, None),
    ];
    for (declared, method, status, wanted) in rows {
        assert_eq!(event(declared, method, status), wanted, "{declared} {method} {status}");
    }
    assert_eq!(Declared::named("security"), None);
    assert_eq!(Declared::named("security.shed"), None);
}

#[test]
fn every_name_reads_back_as_its_value() {
    for event in EventType::ALL {
        assert_eq!(EventType::named(event.name()), Some(event));
    }
    for class in Class::ALL {
        assert_eq!(Class::named(class.name()), Some(class));
    }
}

#[test]
fn a_time_reads_as_the_date_that_it_is() {
    assert_eq!(Time(0).to_string(), "1970-01-01T00:00:00.000000Z");
    assert_eq!(Time(951_782_400_000_001).to_string(), "2000-02-29T00:00:00.000001Z");
    assert_eq!(Time(1_795_528_799_999_999).to_string(), "2026-11-24T13:59:59.999999Z");
    assert_eq!(Time(-5).to_string(), "1970-01-01T00:00:00.000000Z");
    assert_eq!(Time(i64::MAX).to_string(), "9999-12-31T23:59:59.999999Z");
}

proptest! {
    /// Text from a client never ends a line or its string.
    #[test]
    fn any_request_makes_exactly_one_line_of_json(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let mut out = Vec::new();
        text(&mut out, &bytes);
        let shown = String::from_utf8(out).unwrap();
        prop_assert!(shown.len() <= 6 * LONGEST_TEXT + 8, "{}", shown.len());
        prop_assert!(!shown.chars().any(char::is_control));
        let inside = &shown[1..shown.len() - 1];
        let unescaped = inside.replace("\\\\", "").replace("\\\"", "");
        prop_assert!(!unescaped.contains('"'));
    }

    #[test]
    fn a_hash_reads_as_it_was_written(hash in any::<[u8; 32]>()) {
        let mut out = Vec::new();
        hex(&mut out, &hash);
        prop_assert_eq!(unhex(&out), Some(hash));
    }
}
