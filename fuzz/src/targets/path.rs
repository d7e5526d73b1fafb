//! Paths: all readings of one, and the route that must hold for each of them.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::LazyLock;

use http::{HeaderMap, Method};
use outrigger_rules::config::Config;
use outrigger_rules::sections::route_table::{PathRefused, RouteTable};
use outrigger_wire::path::{self, Slashes};
use outrigger_wire::request::{Fields, Request};

/// As `wire/src/path.rs` has them.
const MOST_READINGS: usize = 64;
const MOST_BYTES: usize = 128 << 10;

static ROUTES: LazyLock<RouteTable> = LazyLock::new(|| {
    let text = r#"
        [app]
        metrics = "http://127.0.0.1:1/metrics"
        [[routes]]
        name = "login"
        path = "/a/login"
        [[routes]]
        name = "item"
        path = "/b/{id}"
        [[routes]]
        name = "part"
        path = "/b/{id}/part"
        [[routes]]
        name = "files"
        path = "/c/**"
        [[routes]]
        name = "rest"
        path = "/a/**"
    "#;
    let text = text.lines().map(|line| format!("{}\n", line.trim())).collect::<String>();
    Config::parse(Path::new("proxy.toml"), &text, &|_| None).unwrap_or_else(|e| panic!("{e}")).routes
});

/// A path has a bounded number of readings, and one if it is plain. It takes a route only if each way in which an application may
/// read it, written here a second time, takes the same route.
pub fn path(data: &[u8]) {
    // As in a request: without query and fragment, and UTF-8.
    let data = data.split(|byte| matches!(byte, b'?' | b'#')).next().unwrap_or_default();
    let Ok(text) = std::str::from_utf8(data) else { return };
    let scan = path::scan(data);
    let (mut readings, mut bytes, mut all) = (0, 0, Vec::new());
    let result = path::each_reading(data, |reading| {
        (readings, bytes) = (readings + 1, bytes + reading.len());
        assert!(!reading.iter().any(u8::is_ascii_uppercase));
        assert!(!reading.split(|byte| *byte == b'/').any(|segment| matches!(segment, b"." | b"..")), "a dot segment");
        all.push(reading.to_vec());
        ControlFlow::Continue(())
    });
    assert!(readings <= MOST_READINGS && bytes <= MOST_BYTES, "{readings} readings of {bytes} bytes");
    if result.is_ok() {
        assert_eq!(all.first(), Some(&data.to_ascii_lowercase()), "the path itself is a reading");
    }
    if scan.is_plain {
        assert_eq!((result, readings), (Ok(()), 1));
    }
    let Ok(route) = find(text) else { return };
    if is_health(route) {
        assert!(text.starts_with("/health"), "health endpoints have their literal paths only");
        return;
    }
    for reading in readings_of_apps(data) {
        let Ok(reading) = String::from_utf8(reading) else { continue };
        match find(&reading) {
            Ok(other) => {
                assert!(other == route || is_health(other), "{text:?} read as {reading:?}: {route} and {other}");
            }
            Err(PathRefused::NotPublic) if path::scan(reading.as_bytes()).is_plain => {
                panic!("{text:?} is public, and {reading:?} is not");
            }
            Err(_) => {}
        }
    }
}

fn find(path: &str) -> Result<usize, PathRefused> {
    let headers = HeaderMap::new();
    let fields = Fields::Map(&headers);
    let request = Request {
        method: &Method::GET,
        path,
        host: "a",
        fields,
        is_http10: false,
        target: path,
        has_endless_body: false,
    };
    ROUTES.find(&request)
}

fn is_health(route: usize) -> bool {
    ROUTES.all()[route].is_health
}

/// How applications may read a path: undecoded, decoded as a whole or by segments, twice behind another server; and then cut at a
/// decoded `?` or `#`, with backslashes as slashes, without parameters, without dots and blanks at the ends of segments, and with
/// slashes merged, each of these or not.
fn readings_of_apps(path: &[u8]) -> Vec<Vec<u8>> {
    let (once, by_segments) = (decoded(path, Slashes::Decoded), decoded(path, Slashes::Kept));
    let mut texts =
        vec![path.to_vec(), decoded(&once, Slashes::Decoded), decoded(&once, Slashes::Kept), once, by_segments];
    let bare = without_parameters(path);
    texts.extend([decoded(&bare, Slashes::Decoded), decoded(&bare, Slashes::Kept)]);
    texts.sort();
    texts.dedup();
    let mut readings = Vec::new();
    for text in texts {
        for steps in 0..32_u8 {
            let mut reading = text.clone();
            if steps & 1 != 0 {
                reading = reading.split(|byte| matches!(byte, b'?' | b'#')).next().unwrap_or_default().to_vec();
            }
            if steps & 2 != 0 {
                reading.iter_mut().filter(|byte| **byte == b'\\').for_each(|byte| *byte = b'/');
            }
            if steps & 4 != 0 {
                reading = without_parameters(&reading);
            }
            if steps & 8 != 0 {
                let ends = |byte: &u8| matches!(byte, b'.' | b' ');
                let segments = reading.split(|byte| *byte == b'/');
                let kept = segments
                    .map(|segment| &segment[..segment.len() - segment.iter().rev().take_while(|b| ends(b)).count()]);
                reading = kept.collect::<Vec<_>>().join(&b'/');
            }
            if steps & 16 != 0 {
                while let Some(at) = reading.windows(2).position(|pair| pair == b"//") {
                    reading.remove(at);
                }
            }
            readings.push(reading);
        }
    }
    readings.sort();
    readings.dedup();
    readings
}

fn decoded(text: &[u8], slashes: Slashes) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let digits = text.get(at + 1..at + 3).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let byte = digits.filter(|_| text[at] == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        match byte.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if byte != b'/' || slashes == Slashes::Decoded => {
                out.push(byte);
                at += 3;
            }
            _ => {
                out.push(text[at]);
                at += 1;
            }
        }
    }
    out
}

fn without_parameters(text: &[u8]) -> Vec<u8> {
    let segments = text.split(|byte| *byte == b'/');
    segments
        .map(|segment| segment.split(|byte| *byte == b';').next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join(&b'/')
}
