//! Sticky sessions: the content of the session cookie, and the Machine that serves a request with one.
//!
//! ```text
//! no valid cookie ─────────── a new session, pinned to this Machine
//! pinned to this Machine ──── served here
//! pinned to another Machine
//!   leaving, or gone ──────── served here, and the session is pinned here from now on
//!   its app is down ───────── served here, and the session stays pinned there
//!   available ─────────────── sent there once: by the edge (replay), or over the private network
//! ```
//!
//! A request with a signed mark of having been sent here is served here, regardless of its cookie, and a request with any
//! mark is never replayed again. So there are no loops, even if Machines disagree about which peers are alive.
//!
//! This module knows no keys or headers: the proxy verifies signatures and passes in the results.
//!
//! # Examples
//!
//! ```
//! use std::time::Duration;
//!
//! use outrigger_policy::affinity::{Age, Home, LARGEST, Lifetime, Mark, Session, Sight, Via, Way, way};
//!
//! let now = 1_800_000_000;
//! let session = Session { id: 7, born: now, written: now, home: b"148e21eea46589" };
//! let mut text = [0; LARGEST];
//! let length = session.encode(&mut text);
//! assert_eq!(Session::decode(&text[..length]), Some(session));
//!
//! let lifetime = Lifetime { idle: Duration::from_secs(3600), most: Duration::from_secs(86_400) };
//! assert_eq!(lifetime.judge(&session, now + 400), Age::Due);
//!
//! let sight = Sight {
//!     via: Via::Replay,
//!     home: Home::Alive,
//!     mark: Mark::None,
//!     was_refused: false,
//!     can_be_replayed: true,
//!     is_upgrade: false,
//! };
//! assert_eq!(way(sight), Way::Replay);
//! assert_eq!(way(Sight { home: Home::Gone, ..sight }), Way::Rehome);
//! ```

use std::time::Duration;

/// The maximum length of a Machine's name, in bytes.
pub const LONGEST_NAME: usize = 63;
/// The version of the cookie's layout.
const LAYOUT: u8 = 1;
/// Layout, two times, session id.
const FIXED_BYTES: usize = 1 + 4 + 4 + 8;
/// The maximum size of a cookie's content before it is signed, in bytes.
pub const LARGEST: usize = FIXED_BYTES + LONGEST_NAME;
/// The maximum difference between the clocks of two Machines.
const SKEW_SECONDS: u32 = 60;

/// Returns whether `name` is a valid name of a Machine: 1 to 63 ASCII letters, digits, `-`, `_` and `.`.
pub fn is_name(name: &[u8]) -> bool {
    (1..=LONGEST_NAME).contains(&name.len())
        && name.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// The content of a session cookie. Times are seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session<'a> {
    /// The session's id, which stays the same when the session moves.
    pub id: u64,
    /// When the session began.
    pub born: u32,
    /// When this cookie was written.
    pub written: u32,
    /// The name of the Machine to which the session is pinned.
    pub home: &'a [u8],
}

impl<'a> Session<'a> {
    /// Writes the content to be signed to `out` and returns its length. Truncates names longer than [`LONGEST_NAME`].
    pub fn encode(&self, out: &mut [u8; LARGEST]) -> usize {
        let home = &self.home[..self.home.len().min(LONGEST_NAME)];
        out[0] = LAYOUT;
        out[1..5].copy_from_slice(&self.written.to_be_bytes());
        out[5..9].copy_from_slice(&self.born.to_be_bytes());
        out[9..17].copy_from_slice(&self.id.to_be_bytes());
        out[FIXED_BYTES..FIXED_BYTES + home.len()].copy_from_slice(home);
        FIXED_BYTES + home.len()
    }

    /// Reads the output of [`Session::encode`], after its signature was verified. Returns `None` for anything else.
    pub fn decode(text: &'a [u8]) -> Option<Self> {
        let (layout, rest) = text.split_first()?;
        let (written, rest) = rest.split_first_chunk::<4>()?;
        let (born, rest) = rest.split_first_chunk::<4>()?;
        let (id, home) = rest.split_first_chunk::<8>()?;
        (*layout == LAYOUT && is_name(home)).then_some(Self {
            id: u64::from_be_bytes(*id),
            born: u32::from_be_bytes(*born),
            written: u32::from_be_bytes(*written),
            home,
        })
    }
}

/// The lifetime of sessions, in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Maximum time without a request.
    pub idle: Duration,
    /// Maximum total time.
    pub most: Duration,
}

/// The validity of a cookie by its times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// Valid.
    Fresh,
    /// Valid, and due to be rewritten to extend the session.
    Due,
    /// Expired: idle for too long, or too old.
    Over,
    /// Invalid: written more than 60 s in the future, or before the session began.
    Future,
}

impl Lifetime {
    /// Checks a cookie's times against `now`, in seconds since 1970. A cookie is due after a tenth of the idle time: not
    /// with every response, but early enough that a session in use does not expire.
    pub fn judge(&self, session: &Session<'_>, now: u32) -> Age {
        let latest = now.saturating_add(SKEW_SECONDS);
        if session.written > latest || session.born > latest || session.born > session.written {
            return Age::Future;
        }
        let (idle, age) = (now.saturating_sub(session.written), now.saturating_sub(session.born));
        let is_over = |seconds: u32, most: Duration| u64::from(seconds) >= most.as_secs();
        if is_over(idle, self.idle) || is_over(age, self.most) {
            Age::Over
        } else if u64::from(idle) >= self.idle.as_secs() / 10 {
            Age::Due
        } else {
            Age::Fresh
        }
    }

    /// Returns the `Max-Age` of a cookie that is written at `now`, in seconds.
    pub fn left(&self, born: u32, now: u32) -> u64 {
        let most = self.most.as_secs().saturating_sub(now.saturating_sub(born).into());
        self.idle.as_secs().min(most)
    }
}

/// How requests reach another Machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// The edge sends them there (`fly-replay`).
    Replay,
    /// Over the private network.
    Private,
    /// Not at all: the app is only told the session's Machine.
    Off,
}

impl Via {
    /// Returns the name used in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Replay => "replay",
            Self::Private => "private",
            Self::Off => "off",
        }
    }
}

/// The state of the Machine to which the session is pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// This Machine.
    Here,
    /// It responds over the private network.
    Alive,
    /// It is running, but its app cannot take requests now.
    Unready,
    /// It announced that it is shutting down.
    Leaving,
    /// It is not in the complete list of peers.
    Gone,
    /// It responded before, but not to the latest probes over the private network.
    Silent,
    /// It has not responded for a while, or refuses connections. The edge may still reach it.
    Lost,
    /// Unknown: there is no private network, or this peer may have started after the last look at DNS.
    Unknown,
}

/// Whether a request is marked as already sent on by another Machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// No mark.
    None,
    /// A valid signature of one of our Machines.
    Signed,
    /// A mark without a valid signature; a client may have forged it.
    Unsigned,
}

/// The input of [`way`].
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// How requests reach another Machine.
    pub via: Via,
    /// The Machine to which the session is pinned.
    pub home: Home,
    /// Whether the request was sent here by another Machine.
    pub mark: Mark,
    /// The edge reports that it could not reach the session's Machine. Not signed.
    pub was_refused: bool,
    /// The edge can replay it: it came through the edge, and its body is short and of known length.
    pub can_be_replayed: bool,
    /// It is an upgrade request (WebSocket), for which the private network is preferred.
    pub is_upgrade: bool,
}

/// Where a request is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Here; the session stays pinned to its Machine.
    Here,
    /// Here; the session is pinned to this Machine from now on.
    Rehome,
    /// On the session's Machine, replayed by the edge.
    Replay,
    /// On the session's Machine, over the private network.
    Forward,
}

/// Decides where a request with a valid cookie is served.
pub fn way(sight: Sight) -> Way {
    match sight.home {
        Home::Here => return Way::Here,
        _ if sight.via == Via::Off => return Way::Here,
        // The session stays pinned, but its Machine could not serve the request now.
        Home::Unready => return Way::Here,
        Home::Leaving | Home::Gone => return Way::Rehome,
        Home::Alive | Home::Silent | Home::Lost | Home::Unknown => {}
    }
    // The decision if the edge does not replay the request.
    let by_ourselves = match sight.home {
        // A slow Machine serves it; one that is down refuses the connection, and is then known to be lost.
        Home::Alive | Home::Silent => Way::Forward,
        // The Machine cannot be reached, but may only not be discovered yet: the session stays pinned.
        Home::Unknown => Way::Here,
        _ => Way::Rehome,
    };
    match (sight.mark, sight.was_refused) {
        // One of our Machines sent it on, and it did not reach its target: there is no second attempt.
        (Mark::Signed, _) => return Way::Rehome,
        // A client that forges this only loses its own session; a Machine that is alive keeps it.
        (_, true) => return if sight.home == Home::Alive { Way::Forward } else { Way::Rehome },
        // Not trusted, but not replayed again either: the edge could treat that as a loop.
        (Mark::Unsigned, false) => return by_ourselves,
        (Mark::None, false) => {}
    }
    let is_replayed = sight.via == Via::Replay && sight.can_be_replayed;
    let prefers_private = sight.is_upgrade && sight.home == Home::Alive;
    if is_replayed && !prefers_private { Way::Replay } else { by_ourselves }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: Lifetime = Lifetime { idle: Duration::from_secs(3600), most: Duration::from_secs(86_400) };
    const NOW: u32 = 1_800_000_000;

    fn session(written: u32, born: u32) -> Session<'static> {
        Session { id: 7, born, written, home: b"148e21eea46589" }
    }

    #[test]
    fn a_cookie_lives_for_an_hour_after_its_last_request_and_a_day_in_all() {
        let age = |idle, born| HOUR.judge(&session(NOW - idle, NOW - born), NOW);
        assert_eq!(age(0, 0), Age::Fresh);
        assert_eq!(age(359, 359), Age::Fresh);
        assert_eq!(age(360, 360), Age::Due);
        assert_eq!(age(3599, 3599), Age::Due);
        assert_eq!(age(3600, 3600), Age::Over);
        assert_eq!(age(10, 86_399), Age::Fresh);
        assert_eq!(age(10, 86_400), Age::Over);
        assert_eq!(HOUR.left(NOW, NOW), 3600);
        assert_eq!(HOUR.left(NOW - 86_000, NOW), 400);
    }

    #[test]
    fn an_app_that_restarts_does_not_lose_its_sessions() {
        let sight = Sight {
            via: Via::Replay,
            home: Home::Unready,
            mark: Mark::Signed,
            was_refused: true,
            can_be_replayed: true,
            is_upgrade: false,
        };
        assert_eq!(way(sight), Way::Here);
    }

    #[test]
    fn clock_skew_of_up_to_a_minute_is_accepted() {
        assert_eq!(HOUR.judge(&session(NOW + 60, NOW + 60), NOW), Age::Fresh);
        assert_eq!(HOUR.judge(&session(NOW + 61, NOW), NOW), Age::Future);
        assert_eq!(HOUR.judge(&session(NOW, NOW + 1), NOW), Age::Future);
    }

    fn sights() -> impl Strategy<Value = Sight> {
        let via = prop_oneof![Just(Via::Replay), Just(Via::Private), Just(Via::Off)];
        let home = prop_oneof![
            Just(Home::Here),
            Just(Home::Alive),
            Just(Home::Unready),
            Just(Home::Leaving),
            Just(Home::Gone),
            Just(Home::Silent),
            Just(Home::Lost),
            Just(Home::Unknown)
        ];
        let mark = prop_oneof![Just(Mark::None), Just(Mark::Signed), Just(Mark::Unsigned)];
        (via, home, mark, any::<[bool; 3]>()).prop_map(
            |(via, home, mark, [was_refused, can_be_replayed, is_upgrade])| Sight {
                via,
                home,
                mark,
                was_refused,
                can_be_replayed,
                is_upgrade,
            },
        )
    }

    proptest! {
        #[test]
        fn a_replayed_request_is_not_replayed_again(sight in sights()) {
            let was_sent = sight.mark != Mark::None || sight.was_refused;
            prop_assert!(!(was_sent && way(sight) == Way::Replay));
        }

        #[test]
        fn no_request_is_sent_to_a_draining_or_stopped_home(sight in sights()) {
            let is_off = matches!(sight.home, Home::Unready | Home::Leaving | Home::Gone | Home::Here) || sight.via == Via::Off;
            prop_assert!(!(is_off && matches!(way(sight), Way::Replay | Way::Forward)));
        }

        #[test]
        fn only_repeatable_requests_are_replayed_and_only_to_reachable_homes_forwarded(sight in sights()) {
            match way(sight) {
                Way::Replay => prop_assert!(sight.can_be_replayed && sight.via == Via::Replay),
                Way::Forward => prop_assert!(matches!(sight.home, Home::Alive | Home::Silent)),
                Way::Here | Way::Rehome => {}
            }
        }

        #[test]
        fn a_reachable_home_keeps_its_sessions_unless_a_signed_replay_failed(sight in sights()) {
            let sight = Sight { home: Home::Alive, ..sight };
            prop_assert!(way(sight) != Way::Rehome || sight.mark == Mark::Signed);
        }

        #[test]
        fn a_session_comes_back_as_it_was_written(id: u64, born: u32, written: u32, home in "[A-Za-z0-9._-]{1,63}") {
            let session = Session { id, born, written, home: home.as_bytes() };
            let mut text = [0; LARGEST];
            let length = session.encode(&mut text);
            prop_assert_eq!(Session::decode(&text[..length]), Some(session));
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            if let Some(session) = Session::decode(&bytes) {
                prop_assert!(is_name(session.home));
            }
        }
    }
}
