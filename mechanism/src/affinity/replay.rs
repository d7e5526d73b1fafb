//! Fly's replays: the response header that requests one, and the headers of a replayed request.
//!
//! The header `fly-replay` in a response asks the edge to send the request to another Machine. That Machine gets
//! `fly-replay-src`, with a state that must have our signature. `fly-preferred-instance-unavailable` and
//! `fly-replay-failed` say that the request could not be sent there. Whether the edge removes them from requests of
//! clients is not established, so they are not trusted as proof.

use std::time::Duration;

use http::HeaderName;
use outrigger_identity::signing::{Keys, Purpose, VerifyBuffer};
use outrigger_identity::this::This;
use outrigger_policy::affinity::Mark;
use outrigger_wire::request::Fields;

static FLY_REPLAY_SRC: HeaderName = HeaderName::from_static("fly-replay-src");
static FLY_REPLAY_FAILED: HeaderName = HeaderName::from_static("fly-replay-failed");
static UNAVAILABLE: HeaderName = HeaderName::from_static("fly-preferred-instance-unavailable");

/// How long a state is valid, including the difference between clocks.
const VALID_SECONDS: u32 = 60;

/// The headers about a replay in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Whether it was sent here.
    pub mark: Mark,
    /// It could not be sent to its destination.
    pub was_refused: bool,
}

impl Marks {
    /// There are no such headers.
    pub const NONE: Self = Self { mark: Mark::None, was_refused: false };
}

/// Reads the headers about a replay, at `now` in seconds since 1970.
pub fn marks(keys: &Keys, fields: Fields<'_>, now: u32) -> Marks {
    let mut marks = Marks { was_refused: fields.has(&UNAVAILABLE) || fields.has(&FLY_REPLAY_FAILED), ..Marks::NONE };
    fields.each(&FLY_REPLAY_SRC, |value| {
        let state =
            value.split(|b| matches!(b, b';' | b',')).find_map(|pair| pair.trim_ascii().strip_prefix(b"state="));
        let is_ours = state.is_some_and(|state| is_valid(keys, state, now));
        if marks.mark != Mark::Signed {
            marks.mark = if is_ours { Mark::Signed } else { Mark::Unsigned };
        }
    });
    marks
}

fn is_valid(keys: &Keys, state: &[u8], now: u32) -> bool {
    let mut buffer = [0; size_of::<VerifyBuffer>()];
    let text = keys.verified(Purpose::Replay, state, &mut buffer);
    let sent = text.and_then(|text| text.first_chunk::<4>()).map(|sent| u32::from_be_bytes(*sent));
    sent.is_some_and(|sent| sent.abs_diff(now) <= VALID_SECONDS)
}

/// Returns the `fly-replay` value that sends a request to `home`, and back here if the edge does not reach it within
/// `timeout`.
pub fn field(this: &This, home: &str, timeout: Duration, now: u32) -> Vec<u8> {
    let text = [&now.to_be_bytes()[..], this.name.as_bytes()].concat();
    let mut value =
        format!("prefer_instance={home};timeout={}ms;fallback=force_self;state=", timeout.as_millis()).into_bytes();
    this.keys.append_signed(Purpose::Replay, &text, &mut value);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u32 = 1_800_000_000;

    fn this() -> This {
        let keys = Keys::parse("0123456789abcdef0123456789abcdef").unwrap().unwrap();
        This { name: "m1".into(), keys }
    }

    fn read(fields: &[(&'static str, &str)], now: u32) -> Marks {
        let fields: Vec<_> =
            fields.iter().map(|(name, value)| httparse::Header { name, value: value.as_bytes() }).collect();
        marks(&this().keys, Fields::Wire(&fields), now)
    }

    #[test]
    fn only_a_signed_state_counts_as_our_replay() {
        let field = String::from_utf8(field(&this(), "m2", Duration::from_secs(5), NOW)).unwrap();
        let (asked, state) = field.rsplit_once("state=").unwrap();
        assert_eq!(asked, "prefer_instance=m2;timeout=5000ms;fallback=force_self;");
        let source =
            |separator: &str| format!("instance=m1{separator}region=ams{separator}t=1{separator}state={state}");
        for separator in [";", ",", "; "] {
            let marks = read(&[("fly-replay-src", &source(separator))], NOW + 60);
            assert_eq!(marks.mark, Mark::Signed, "{separator:?}");
        }
        let late = read(&[("fly-replay-src", &source(";"))], NOW + 61);
        assert_eq!(late.mark, Mark::Unsigned);
        let own = read(&[("fly-replay-src", "instance=m1;region=ams;t=1;state=the-apps-own")], NOW);
        assert_eq!(own.mark, Mark::Unsigned);
        let none = read(&[("fly-replay-src", "instance=m1;region=ams;t=1")], NOW);
        assert_eq!(none.mark, Mark::Unsigned);
        let both = read(&[("fly-replay-src", "state=forged"), ("fly-replay-src", &source(";"))], NOW);
        assert_eq!(both.mark, Mark::Signed);
    }

    #[test]
    fn headers_of_failed_replays_are_recognised() {
        assert_eq!(read(&[], NOW), Marks::NONE);
        assert!(read(&[("fly-preferred-instance-unavailable", "m2")], NOW).was_refused);
        assert!(read(&[("fly-replay-failed", "instance=m2;reason=timeout")], NOW).was_refused);
    }
}
