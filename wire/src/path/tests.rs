use super::*;
use proptest::prelude::*;

fn readings(path: &str) -> Result<Vec<String>, Unreadable> {
    let mut all = Vec::new();
    each_reading(path.as_bytes(), |reading| {
        let reading = String::from_utf8_lossy(reading).into_owned();
        if !all.contains(&reading) {
            all.push(reading);
        }
        ControlFlow::Continue(())
    })?;
    Ok(all)
}

#[test]
fn an_unambiguous_path_is_plain() {
    for path in ["/", "/api/v1/documents", "/a/b-c_d~e", "/a.b/c.txt", "/@scope/name", "/a:b,c=d+e!", "/café", "*", ""]
    {
        assert_eq!(scan(path.as_bytes()), Scan { is_plain: true, has_capitals: false }, "{path}");
    }
    assert_eq!(scan(b"/Api"), Scan { is_plain: true, has_capitals: true });
    for path in ["//", "/a//b", "/%61", "/a;b", "/a\\b", "/.", "/./a", "/a/..", "/a.", "/a./b", "/.a", "/a\0", "/a\x7f"]
    {
        assert!(!scan(path.as_bytes()).is_plain, "{path}");
    }
}

#[test]
fn a_dot_segment_is_rejected_in_every_spelling() {
    for path in [
        "/..",
        "/.",
        "/./",
        "/a/../b",
        "/a/./b",
        "/a/..",
        "/a/.",
        "/%2e%2e/a",
        "/.%2E/a",
        "/%2e/a",
        "/a%2f..%2fb",
        "/a/..%2Fb",
        "/a\\..\\b",
        "/a%5c..%5cb",
        "/a/..;/b",
        "/a/..;x=1/b",
        "/..%3bx/a",
        "/%252e%252e/a",
        "/a%252f..%252fb",
        "/%c0%ae%c0%ae/a",
        "/%e0%80%ae./a",
        "/a/..%3Fx",
        "/a/..%23",
        "/a/.. /b",
        "/a/..%20/b",
        "/;x/../a",
        "//../a",
        "/a/%2e%2e%5Cb",
    ] {
        assert_eq!(readings(path), Err(Unreadable::DotSegment), "{path}");
    }
    for path in ["/.well-known/x", "/a/...", "/a..b", "/a/..b", "/a/b..", "/%2ea"] {
        assert!(readings(path).is_ok(), "{path}: {:?}", readings(path));
    }
}

#[test]
fn a_control_character_is_rejected() {
    for path in ["/a%00", "/%0d%0aa", "/a%1f/b", "/a%7F", "/a%c0%80", "/a%09b"] {
        assert_eq!(readings(path), Err(Unreadable::ControlCharacter), "{path}");
    }
    assert!(readings("/fetch/http:%2F%2Fx%2F%250a").is_ok());
}

#[test]
fn every_interpretation_of_a_path_by_an_app_is_among_its_readings() {
    for (path, expected) in [
        // Decoded as a whole; segment by segment; not at all; twice.
        ("/api%2Flogin", "/api/login"),
        ("/api%2F%6Cogin", "/api%2flogin"),
        ("/api/%6Cogin", "/api/%6cogin"),
        ("/api%252Flogin", "/api/login"),
        ("/api/%256Cogin", "/api/login"),
        ("//api///login", "/api/login"),
        ("/api/login;x=1", "/api/login"),
        ("/api;a/login;b", "/api/login"),
        // Parameters before decoding, and after.
        ("/api%2Flogin;%2Fx", "/api/login"),
        ("/api/login%3Bx", "/api/login"),
        ("/api\\login", "/api/login"),
        ("/api%5Clogin", "/api/login"),
        ("/api%c0%aflogin", "/api/login"),
        ("/api/login%3Fx", "/api/login"),
        ("/api/login%23x", "/api/login"),
        ("/api/login.", "/api/login"),
        ("/api/login%20", "/api/login"),
        ("/api./login", "/api/login"),
        ("/api/;x/login", "/api/login"),
        ("/API/LOGIN%20", "/api/login"),
    ] {
        assert!(readings(path).unwrap().iter().any(|reading| reading == expected), "{path}: {:?}", readings(path));
        let as_it_came = path.to_ascii_lowercase();
        assert!(readings(path).unwrap().contains(&as_it_came), "{path}");
    }
}

#[test]
fn the_work_has_a_bound() {
    assert_eq!(readings("/a//b;c%2F%5C%3F.%20/%25252F;"), Err(Unreadable::TooManyReadings));
    assert_eq!(readings(&format!("/{}", "%20".repeat(30_000))), Err(Unreadable::TooManyReadings));
    assert_eq!(readings(&format!("/{};//%5C./../", "%20".repeat(5_000))), Err(Unreadable::DotSegment));
    assert!(readings(&format!("/{}", "%20".repeat(5_000))).is_ok());
}

proptest! {
    #[test]
    fn a_plain_path_has_no_other_reading(path in "/[-a-z/.%;A-Z]{0,12}") {
        if scan(path.as_bytes()).is_plain {
            prop_assert_eq!(readings(&path), Ok(vec![path.to_ascii_lowercase()]));
        }
    }

    #[test]
    fn any_bytes_are_read_without_panic_in_bounded_time(path in prop::collection::vec(prop::sample::select(&b"/.;\\%25cfae0?# A\xc0\xaf\x80"[..]), 0..200)) {
        let mut number = 0;
        let _ = each_reading(&path, |_| {
            number += 1;
            ControlFlow::Continue(())
        });
        prop_assert!(number <= MOST_READINGS);
    }
}
