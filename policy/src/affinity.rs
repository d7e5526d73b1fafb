//! Which Machine keeps a session: what its cookie says, and where a request with it goes.
//!
//! ```text
//! no cookie, or none that counts ── a new session, at home here
//! at home here ──────────────────── served here
//! at home on another Machine
//!   it is leaving, or gone ──────── served here, which is its home from now on
//!   its app is away ─────────────── served here, and it stays its home
//!   it is there ─────────────────── sent there once: by the edge (replay), or over the private network
//! ```
//!
//! Nothing is ever sent on twice: what came with a mark of having been sent here is served here, whatever its cookie says. So
//! there is no loop, however many Machines disagree about who is there.
//!
//! Nothing here knows keys or headers: the proxy checks signatures and tells what it saw.

use std::time::Duration;

/// The longest name of a Machine, in bytes.
pub const LONGEST_NAME: usize = 63;
/// The version of the cookie's layout.
const LAYOUT: u8 = 1;
/// Layout, two times, the session.
const FIXED_BYTES: usize = 1 + 4 + 4 + 8;
/// The largest text of a cookie before it is signed.
pub const LARGEST: usize = FIXED_BYTES + LONGEST_NAME;
/// By how much the clocks of two Machines may differ.
const SKEW_SECONDS: u32 = 60;

/// Whether a Machine may have this name: letters, digits, `-`, `_` and `.`, at most 63.
pub fn is_name(name: &[u8]) -> bool {
    (1..=LONGEST_NAME).contains(&name.len())
        && name.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// What a cookie says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session<'a> {
    /// The session's own number, which stays when its home changes.
    pub id: u64,
    /// When it began, in seconds since 1970.
    pub born: u32,
    /// When this cookie was written.
    pub written: u32,
    /// The name of the Machine that keeps it.
    pub home: &'a [u8],
}

impl<'a> Session<'a> {
    /// Writes what is signed, and gives its length.
    ///
    /// # Panics
    /// Never: a longer name than [`LONGEST_NAME`] is cut, and such a name is no Machine's.
    pub fn encode(&self, out: &mut [u8; LARGEST]) -> usize {
        let home = &self.home[..self.home.len().min(LONGEST_NAME)];
        out[0] = LAYOUT;
        out[1..5].copy_from_slice(&self.written.to_be_bytes());
        out[5..9].copy_from_slice(&self.born.to_be_bytes());
        out[9..17].copy_from_slice(&self.id.to_be_bytes());
        out[FIXED_BYTES..FIXED_BYTES + home.len()].copy_from_slice(home);
        FIXED_BYTES + home.len()
    }

    /// Reads what [`Session::encode`] wrote, once its signature is checked; `None` for anything else.
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

/// How long a session lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Without a request.
    pub idle: Duration,
    /// However many there are.
    pub most: Duration,
}

/// What the times in a cookie say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// It counts.
    Fresh,
    /// It counts, and should be written anew, for its session goes on.
    Due,
    /// It was idle for too long, or has lived for too long.
    Over,
    /// It was written in the future: nobody signs that.
    Future,
}

impl Lifetime {
    /// Judges a cookie by its times, `now` in seconds since 1970. A cookie is written anew once a tenth of its idle time is
    /// over: not with every answer, and early enough that its session never ends while it is used.
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

    /// For how long a client should keep a cookie that is written `now`, in seconds.
    pub fn left(&self, born: u32, now: u32) -> u64 {
        let most = self.most.as_secs().saturating_sub(now.saturating_sub(born).into());
        self.idle.as_secs().min(most)
    }
}

/// How requests get to another Machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// The edge is asked to send them there (`fly-replay`).
    Replay,
    /// Over the private network.
    Private,
    /// Not at all: sessions are only named.
    Off,
}

impl Via {
    /// The name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Replay => "replay",
            Self::Private => "private",
            Self::Off => "off",
        }
    }
}

/// What is known of the Machine that keeps the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// It is this one.
    Here,
    /// It answers over the private network.
    Alive,
    /// It is there, and its app cannot take requests now.
    Unready,
    /// It says that it is leaving.
    Leaving,
    /// The others are known, and it is not among them.
    Gone,
    /// It was there, and has not answered over the private network just now.
    Silent,
    /// It has not answered for a while, or refuses connections. The edge may still reach it.
    Lost,
    /// Nothing: there is no private network, or it has not been seen there yet.
    Unknown,
}

/// What a request says of having been sent on before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Nothing.
    None,
    /// A Machine of ours had it sent here: signed.
    Signed,
    /// It says so, and shows no signature of ours.
    Unsigned,
}

/// What is decided upon.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// How requests get to another Machine.
    pub via: Via,
    /// The Machine that keeps the session.
    pub home: Home,
    /// Whether it was sent here.
    pub mark: Mark,
    /// The edge says that it could not be sent to its home.
    pub was_refused: bool,
    /// The edge could send it on: it came through the edge, and its body is short and of known length.
    pub can_be_replayed: bool,
    /// It asks for another protocol, which only this connection can become: the private network is better.
    pub is_upgrade: bool,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is served here, and the session stays where it is.
    Here,
    /// It is served here, and the session with it from now on.
    Rehome,
    /// The edge sends it to its home.
    Replay,
    /// It goes to its home over the private network.
    Forward,
}

/// Where a request with a cookie that counts goes.
pub fn way(sight: Sight) -> Way {
    match sight.home {
        Home::Here => return Way::Here,
        _ if sight.via == Via::Off => return Way::Here,
        // Its session waits for it; what it would do with the request is sent somewhere else as well.
        Home::Unready => return Way::Here,
        Home::Leaving | Home::Gone => return Way::Rehome,
        Home::Alive | Home::Silent | Home::Lost | Home::Unknown => {}
    }
    // What becomes of it where no edge sends it on.
    let by_ourselves = match sight.home {
        // One that is only slow gets it; one that is not there refuses it, and then it is known to be lost.
        Home::Alive | Home::Silent => Way::Forward,
        // It cannot get there. Its home may only be slow to be seen, so the session keeps it.
        Home::Unknown => Way::Here,
        _ => Way::Rehome,
    };
    match (sight.mark, sight.was_refused) {
        // Ours, and it could not get there: it has had its one try.
        (Mark::Signed, _) => return Way::Rehome,
        // Whoever makes this up gives up his own session at the worst; but a home that is there keeps it.
        (_, true) => return if sight.home == Home::Alive { Way::Forward } else { Way::Rehome },
        // Never replayed again, for the edge would count it as a loop; and not believed, either.
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
    fn clocks_may_differ_by_a_minute_and_no_more() {
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
        fn what_was_sent_here_is_never_replayed(sight in sights()) {
            let was_sent = sight.mark != Mark::None || sight.was_refused;
            prop_assert!(!(was_sent && way(sight) == Way::Replay));
        }

        #[test]
        fn nothing_is_sent_to_a_home_that_is_leaving_or_gone(sight in sights()) {
            let is_off = matches!(sight.home, Home::Unready | Home::Leaving | Home::Gone | Home::Here) || sight.via == Via::Off;
            prop_assert!(!(is_off && matches!(way(sight), Way::Replay | Way::Forward)));
        }

        #[test]
        fn only_what_can_be_replayed_is_and_only_who_answers_is_forwarded_to(sight in sights()) {
            match way(sight) {
                Way::Replay => prop_assert!(sight.can_be_replayed && sight.via == Via::Replay),
                Way::Forward => prop_assert!(matches!(sight.home, Home::Alive | Home::Silent)),
                Way::Here | Way::Rehome => {}
            }
        }

        #[test]
        fn a_home_that_answers_keeps_its_sessions_unless_a_signed_try_failed(sight in sights()) {
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
