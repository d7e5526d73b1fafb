//! Sessions of operators who use the page, and what a form must contain.
//!
//! A session is a random id in a cookie; its digest is kept, in memory only. The token of a form is an HMAC of the cookie, with a
//! key that this process makes at its start. While no token of operators is configured, there are no sessions: the cookie only
//! binds forms to a browser.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, header};
use outrigger_identity::clock;
use outrigger_policy::audit::hex;
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use subtle::ConstantTimeEq;

/// The name of the cookie.
pub const COOKIE: &str = "outrigger_admin";
/// The number of sessions. One more ends the one that was not used for longest.
const MOST_SESSIONS: usize = 64;
/// A session that was not used for this long ends.
const IDLE: Duration = Duration::from_secs(8 * 3600);
/// Failed logins of an address (IPv6: of a /64) within [`FAILURE_WINDOW`]; then it has to wait.
const MOST_FAILURES: u32 = 5;
const FAILURE_WINDOW: Duration = Duration::from_secs(60);
/// Addresses whose failures are remembered. If there are more, the others share one count.
const MOST_ADDRESSES: usize = 1024;
/// The length of an id in the cookie: 32 bytes in hex.
const ID_LENGTH: usize = 64;

#[derive(Debug)]
struct Open {
    digest: [u8; SHA256_OUTPUT_LEN],
    last_used: Instant,
}

/// Failed logins of an address.
#[derive(Clone, Copy, Debug)]
struct Failures {
    since: Instant,
    count: u32,
}

/// The sessions, and failed logins.
#[derive(Debug)]
pub struct Sessions {
    random: SystemRandom,
    /// `None`: the system has no random bytes, so the page has no actions.
    key: Option<hmac::Key>,
    open: Mutex<Vec<Open>>,
    /// By address; the unspecified one stands for all that do not fit.
    failures: Mutex<HashMap<IpAddr, Failures>>,
}

impl Default for Sessions {
    fn default() -> Self {
        let random = SystemRandom::new();
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &random).ok();
        Self { random, key, open: Mutex::default(), failures: Mutex::default() }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Entries are added and removed as a whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn digest_of(id: &str) -> [u8; SHA256_OUTPUT_LEN] {
    let mut bytes = [0; SHA256_OUTPUT_LEN];
    bytes.copy_from_slice(digest(&SHA256, id.as_bytes()).as_ref());
    bytes
}

fn hexed(bytes: &[u8]) -> String {
    let mut text = Vec::with_capacity(2 * bytes.len());
    hex(&mut text, bytes);
    String::from_utf8_lossy(&text).into_owned()
}

impl Sessions {
    /// A new id for a cookie. `None`: the system has no random bytes.
    pub fn fresh_id(&self) -> Option<String> {
        let mut bytes = [0; ID_LENGTH / 2];
        self.random.fill(&mut bytes).ok()?;
        Some(hexed(&bytes))
    }

    /// Begins a session.
    pub fn begin(&self, id: &str, now: Instant) {
        let mut open = lock(&self.open);
        open.retain(|session| now.saturating_duration_since(session.last_used) < IDLE);
        if open.len() >= MOST_SESSIONS
            && let Some(oldest) = (0..open.len()).min_by_key(|number| open[*number].last_used)
        {
            open.swap_remove(oldest);
        }
        open.push(Open { digest: digest_of(id), last_used: now });
    }

    /// Ends a session.
    pub fn end(&self, id: &str) {
        let digest = digest_of(id);
        lock(&self.open).retain(|session| !bool::from(session.digest.ct_eq(&digest)));
    }

    /// Whether there is such a session, which is then used at `now`. Takes the same time for all ids.
    pub fn knows(&self, id: &str, now: Instant) -> bool {
        let digest = digest_of(id);
        let mut found = false;
        for session in lock(&self.open).iter_mut() {
            let is_fresh = now.saturating_duration_since(session.last_used) < IDLE;
            if bool::from(session.digest.ct_eq(&digest)) && is_fresh {
                (found, session.last_used) = (true, now);
            }
        }
        found
    }

    /// Whether there is such a session; that is no use of it.
    pub fn is_open(&self, id: &str) -> bool {
        let digest = digest_of(id);
        lock(&self.open)
            .iter()
            .any(|session| session.digest.ct_eq(&digest).into() && clock::since(session.last_used) < IDLE)
    }

    /// The token of the forms of a cookie.
    pub fn form_token(&self, id: &str) -> Option<String> {
        Some(hexed(hmac::sign(self.key.as_ref()?, id.as_bytes()).as_ref()))
    }

    /// Whether `sent` is the token of this cookie's forms, compared in constant time.
    pub fn is_form_token(&self, id: &str, sent: &str) -> bool {
        self.form_token(id).is_some_and(|token| token.as_bytes().ct_eq(sent.as_bytes()).into())
    }

    /// Whether an address may try to log in.
    ///
    /// # Errors
    /// How long it has to wait.
    pub fn may_log_in(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let failures = lock(&self.failures);
        let place = place_of(&failures, address);
        match failures.get(&place) {
            Some(failed) if failed.count >= MOST_FAILURES => {
                let left = FAILURE_WINDOW.saturating_sub(now.saturating_duration_since(failed.since));
                if left.is_zero() { Ok(()) } else { Err(left) }
            }
            _ => Ok(()),
        }
    }

    /// Counts a failed login.
    pub fn failed(&self, address: IpAddr, now: Instant) {
        let mut failures = lock(&self.failures);
        failures.retain(|_, failed| now.saturating_duration_since(failed.since) < FAILURE_WINDOW);
        let place = place_of(&failures, address);
        failures.entry(place).or_insert(Failures { since: now, count: 0 }).count += 1;
    }
}

/// Under which address failures count.
fn place_of(failures: &HashMap<IpAddr, Failures>, address: IpAddr) -> IpAddr {
    if failures.contains_key(&address) || failures.len() < MOST_ADDRESSES {
        address
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    }
}

/// The cookie of a request, if it looks like one of ours.
pub fn cookie(headers: &HeaderMap) -> Option<String> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    lines
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, id)| *name == COOKIE && id.len() == ID_LENGTH && id.bytes().all(|b| b.is_ascii_hexdigit()))
        .map(|(_, id)| id.to_owned())
}

/// The line that sets the cookie. Without `Secure`: the listener speaks plain HTTP, and does not know who adds TLS in front of
/// it.
pub fn set_cookie(id: &str) -> String {
    format!("{COOKIE}={id}; Path=/; HttpOnly; SameSite=Lax")
}

/// The line that removes the cookie.
pub fn remove_cookie() -> String {
    format!("{COOKIE}=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_few_and_end() {
        let (sessions, start) = (Sessions::default(), Instant::now());
        let ids: Vec<String> = (0..MOST_SESSIONS + 1).map(|_| sessions.fresh_id().unwrap()).collect();
        for (second, id) in (0..).zip(&ids) {
            assert_eq!(id.len(), ID_LENGTH);
            sessions.begin(id, start + Duration::from_secs(second));
        }
        let soon = start + Duration::from_secs(100);
        assert!(!sessions.knows(&ids[0], soon), "the oldest made room");
        assert!(sessions.knows(&ids[1], soon) && !sessions.knows("", soon));
        assert!(!sessions.knows(&ids[2], soon + IDLE));
        sessions.end(&ids[1]);
        assert!(!sessions.knows(&ids[1], soon));
    }

    #[test]
    fn a_form_belongs_to_its_cookie_and_its_process() {
        let (sessions, other) = (Sessions::default(), Sessions::default());
        let token = sessions.form_token("a").unwrap();
        assert!(sessions.is_form_token("a", &token));
        assert!(!sessions.is_form_token("b", &token) && !other.is_form_token("a", &token));
        assert!(!sessions.is_form_token("a", "") && !sessions.is_form_token("a", &token[1..]));
    }

    #[test]
    fn an_address_that_guesses_has_to_wait_and_no_other_one() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let address = |last: u32| IpAddr::from(last.to_be_bytes());
        for _ in 0..MOST_FAILURES {
            assert_eq!(sessions.may_log_in(address(1), now), Ok(()));
            sessions.failed(address(1), now);
        }
        assert_eq!(sessions.may_log_in(address(1), now), Err(FAILURE_WINDOW));
        assert_eq!(sessions.may_log_in(address(2), now), Ok(()));
        assert_eq!(sessions.may_log_in(address(1), now + FAILURE_WINDOW), Ok(()));
        (10..5000).for_each(|last| sessions.failed(address(last), now));
        assert_eq!(lock(&sessions.failures).len(), MOST_ADDRESSES + 1);
        assert_eq!(sessions.may_log_in(address(2), now), Err(FAILURE_WINDOW), "those that do not fit share one count");
        assert_eq!(sessions.may_log_in(address(11), now), Ok(()));
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let id = "0123456789abcdef".repeat(4);
        let found = |line: &str| {
            let headers = HeaderMap::from_iter([(header::COOKIE, line.parse().unwrap())]);
            cookie(&headers)
        };
        assert_eq!(found(&format!("a=b; {COOKIE}={id}; c")).as_ref(), Some(&id));
        assert_eq!(found(&format!("{COOKIE}=short")), None);
        assert_eq!(found(&format!("x{COOKIE}={id}")), None);
    }
}
