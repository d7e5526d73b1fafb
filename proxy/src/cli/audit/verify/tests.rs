use super::*;
use outrigger_trail::verify::{Found, Place, Problem, Wrong};

fn looked() -> Vec<Looked> {
    let found = |class, entries, problems| Found {
        class,
        entries,
        first: 1,
        last: entries,
        hash: None,
        vouched: entries,
        problems,
    };
    let place = Place {
        file: Some("data-00000000000000000001.jsonl".to_owned()),
        line: Some(6),
        class: Some(Class::Data),
        entry: Some(5),
    };
    let findings = Findings {
        chain: "00112233aabbccdd".to_owned(),
        classes: vec![found(Class::Data, 1_234, 1), found(Class::Security, 7, 0)],
        problems: vec![Problem { place, wrong: Wrong::Changed { next: 6 } }],
        unlisted: 0,
        notes: vec!["not closed by a checkpoint: data-00000000000000000001.jsonl".to_owned()],
    };
    vec![Looked { at: "spool", findings }]
}

#[test]
fn problems_are_reported_with_position_and_meaning() {
    insta::assert_snapshot!("not_whole", show(&looked(), false, Some(Evidence::NotHere)));
    insta::assert_snapshot!("not_whole_json", show_json(&looked(), false, Some(Evidence::There("spool"))));
    let mut whole = looked();
    whole[0].findings.problems.clear();
    insta::assert_snapshot!("whole", show(&whole, true, None));
}
