//! The app's output as JSON lines, with `run.output = "json"`: otherwise it does not pass through Outrigger.
//!
//! A thread reads each stream. It waits while the log's queue has no room for the app's lines, and then the app waits, too: nothing is
//! dropped.

use std::io::{self, BufRead, BufReader, Read};

use serde_json::json;

use crate::mechanism::log::LogQueue;

/// A longer line is cut into several.
const LONGEST: u64 = 16 << 10;

/// Reads `stream` of the process `pid` until it ends.
///
/// # Errors
/// The system cannot create a thread.
pub fn pass_on(stream: impl Read + Send + 'static, name: &'static str, pid: i32, queue: LogQueue) -> io::Result<()> {
    let pass = move || {
        each_line(stream, |text| {
            if let Some(line) = json_line(text, name, pid, &format!("{:.6}", jiff::Timestamp::now())) {
                queue.send_patiently(line);
            }
        });
    };
    std::thread::Builder::new().name(format!("app-{name}")).spawn(pass).map(drop)
}

fn each_line(stream: impl Read, mut take: impl FnMut(&[u8])) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    // An error is as good as the end.
    while reader.by_ref().take(LONGEST).read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
        take(&line);
        line.clear();
    }
}

/// A line of the log; `None` for an empty one. A line that is a JSON object already stays as it is.
fn json_line(text: &[u8], name: &str, pid: i32, timestamp: &str) -> Option<Vec<u8>> {
    let text = text.trim_ascii_end();
    if text.is_empty() {
        return None;
    }
    let is_object = text.starts_with(b"{") && serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok();
    let mut line = if is_object {
        text.to_vec()
    } else {
        let message = String::from_utf8_lossy(text);
        let fields = json!({
            "timestamp": timestamp, "level": "INFO", "message": message, "event": "app_output", "stream": name, "pid": pid,
        });
        fields.to_string().into_bytes()
    };
    line.push(b'\n');
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_becomes_an_object_unless_it_is_one() {
        let line = |text: &[u8]| json_line(text, "stderr", 7, "T").map(|line| String::from_utf8(line).unwrap());
        let wrapped = line(b"a \"quoted\" \xff line\r\n").unwrap();
        let fields: serde_json::Value = serde_json::from_str(&wrapped).unwrap();
        assert_eq!(fields["message"], "a \"quoted\" \u{fffd} line");
        assert_eq!(
            (&fields["stream"], &fields["pid"], &fields["timestamp"]),
            (&"stderr".into(), &7.into(), &"T".into())
        );
        assert_eq!(line(b"{\"level\":\"info\"}\n").as_deref(), Some("{\"level\":\"info\"}\n"));
        assert!(line(b"{not json}\n").unwrap().contains("{not json}"));
        assert_eq!(line(b"\r\n"), None);
    }

    #[test]
    fn lines_are_cut_and_the_last_one_needs_no_end() {
        let longest = usize::try_from(LONGEST).unwrap();
        let text = [vec![b'x'; longest + 5], b"\nshort\nlast".to_vec()].concat();
        let mut lengths = Vec::new();
        each_line(&*text, |line| lengths.push(line.len()));
        assert_eq!(lengths, [longest, 6, 6, 4]);
    }
}
