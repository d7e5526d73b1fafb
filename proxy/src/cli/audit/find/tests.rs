use super::*;
use outrigger_policy::audit::{Draft, Head, Time, uuid_v7};

fn hit(number: u64, draft: &dyn Fn(Draft<'static>) -> Draft<'static>) -> Hit {
    let time = Time(1_795_528_800_000_000 + number as i64 * 1_000_000);
    let who = r#""actor":{"id":"u_aaaaaaaaaaaaaaaaaaaaaa","kind":"user"}"#;
    let plain = Draft::new(uuid_v7(time, (number, 0)), time, "m1", EventType::Read, Outcome::Success, who);
    let mut line = Vec::new();
    draft(plain).write(Class::Data, &Head { last: number, hash: [7; 32] }, &mut line);
    let line = String::from_utf8(line).unwrap();
    let entry = Entry::parse(line.as_bytes()).unwrap();
    Hit { time: entry.time.parse().unwrap(), id: entry.id.to_owned(), line: line.clone() }
}

#[test]
fn results_are_a_table_or_json_lines_without_terminal_controls() {
    let hits = [
        hit(1, &|draft| Draft {
            request_id: Some("r-1"),
            route: Some("documents"),
            resource: &[("id", b"42"), ("name", b"\x1b]0;owned\x07\xc2\x9b31m")],
            status: Some(200),
            ..draft
        }),
        hit(2, &|draft| Draft {
            event: EventType::AdminAction,
            action: Some("audit.search"),
            reason: Some("\u{202e}because\u{200b}"),
            ..draft
        }),
    ];
    insta::assert_snapshot!("table", show(&hits, None, false));
    insta::assert_snapshot!("lines", show(&hits, None, true));
    insta::assert_snapshot!("nothing", show(&[], None, false));
}

#[test]
fn a_time_is_absolute_or_relative() {
    assert_eq!(moment("2026-11-24T14:00:00Z").unwrap().to_string(), "2026-11-24T14:00:00Z");
    let then = moment("2h").unwrap();
    let ago = Timestamp::now().duration_since(then);
    assert!((7200..7260).contains(&ago.as_secs()), "{ago:?}");
    assert!(moment("yesterday").is_err());
}

#[test]
fn a_query_matches_exactly_its_conditions() {
    let hit = hit(1, &|draft| Draft { request_id: Some("r-1"), route: Some("documents"), ..draft });
    let entry = Entry::parse(hit.line.as_bytes()).unwrap();
    let some = |text: &str| Some(text.to_owned());
    let fitting = Query {
        since: Some(hit.time),
        types: vec![EventType::Read, EventType::Write],
        classes: vec![Class::Data],
        subjects: vec!["u_aaaaaaaaaaaaaaaaaaaaaa".to_owned()],
        request_id: some("r-1"),
        outcome: Some(Outcome::Success),
        machine: some("m1"),
        route: some("documents"),
        ..Query::default()
    };
    assert!(fitting.fits(&entry, hit.time) && Query::default().fits(&entry, hit.time));
    let others = [
        Query { until: Some(hit.time), since: None, ..fitting.clone() },
        Query { types: vec![EventType::Write], ..fitting.clone() },
        Query { classes: vec![Class::Security], ..fitting.clone() },
        Query { subjects: vec!["u_b".to_owned()], ..fitting.clone() },
        Query { request_id: some("r-2"), ..fitting.clone() },
        Query { outcome: Some(Outcome::Error), ..fitting.clone() },
        Query { machine: some("m2"), ..fitting.clone() },
        Query { route: some("other"), ..fitting },
    ];
    for other in others {
        assert!(!other.fits(&entry, hit.time), "{other:?}");
    }
}
