use std::sync::atomic::AtomicUsize;

use http::{HeaderMap, HeaderValue};
use outrigger_tokens::Rules;
use outrigger_tokens::mint::{KeyPair, LATER};
use outrigger_wire::request::Fields;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::credentials::{Credentials, Identified, Keys, LOOK_EVERY, Who, keep_fresh};
use crate::jwt::{ClaimNames, Signers, Users};
use crate::keys::KeyTable;
use crate::verified::Ignored;

const NOW: u64 = 1_800_000_000;

/// An issuer that gives the configured response to every request, and counts requests.
struct Issuer {
    url: String,
    answer: Arc<Mutex<Vec<u8>>>,
    asked: Arc<AtomicUsize>,
}

impl Issuer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
        let (answer, asked) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let (shown, count) = (Arc::clone(&answer), Arc::clone(&asked));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (shown, count) = (Arc::clone(&shown), Arc::clone(&count));
                tokio::spawn(async move {
                    let mut head = [0; 2048];
                    let _ = stream.read(&mut head).await;
                    count.fetch_add(1, Ordering::SeqCst);
                    let answer = shown.lock().unwrap().clone();
                    let _ = stream.write_all(&answer).await;
                });
            }
        });
        let issuer = Self { url, answer, asked };
        issuer.says(500, "");
        issuer
    }

    fn says(&self, status: u16, body: &str) {
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\nLocation: /elsewhere\r\n\r\n",
            body.len()
        );
        *self.answer.lock().unwrap() = (head + body).into_bytes();
    }

    fn publishes(&self, keys: &[Value]) {
        self.says(200, &json!({"keys": keys}).to_string());
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn source(&self, refresh: Duration, floor: Duration) -> Source {
        Source::new(self.url.parse().unwrap(), Algorithm::EdDsa, refresh).unwrap().with_floor(floor)
    }
}

fn credentials(source: Source) -> Arc<Credentials> {
    let names = ClaimNames { user: "sub".to_owned(), tier: "tier".to_owned() };
    let rules = Rules::new(source.algorithm, None, None, 30);
    let users = Users::new(rules, Signers::Fetched(Arc::new(source)), names, 1000);
    let field = http::HeaderName::from_static("x-api-key");
    Arc::new(Credentials::new(Keys { field, table: KeyTable::default(), counts_unknown: false }, Some(users)))
}

fn identify(credentials: &Credentials, token: &str) -> Identified {
    let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
    let map = HeaderMap::from_iter([(http::header::AUTHORIZATION, value)]);
    credentials.identify(Fields::Map(&map), || NOW)
}

fn counts(credentials: &Credentials, token: &str) -> bool {
    matches!(identify(credentials, token).who, Who::Verified(_))
}

fn token(pair: &KeyPair, kid: &str) -> String {
    pair.token(Some(kid), &json!({"sub": "ann", "exp": LATER}))
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn keys_come_and_go_as_the_issuer_publishes_them() {
    let issuer = Issuer::start().await;
    let (old, new) = (KeyPair::ed25519(), KeyPair::ed25519());
    let credentials = credentials(issuer.source(Duration::from_secs(600), FLOOR));
    let source = credentials.jwks().unwrap();
    let (old_token, new_token) = (token(&old, "old"), token(&new, "new"));
    assert_eq!(identify(&credentials, &old_token).token, Some(Ignored::NoSigners));
    assert_eq!(source.fetched_at(), None);
    issuer.publishes(&[old.jwk("old")]);
    assert_eq!(source.refresh().await, Ok(Fetched { keys: 1, has_changed: true }));
    assert!(counts(&credentials, &old_token) && source.fetched_at().is_some());
    assert_eq!(identify(&credentials, &new_token).token, Some(Ignored::UnknownSigner));
    assert_eq!(source.refresh().await, Ok(Fetched { keys: 1, has_changed: false }));
    // Both, during the issuer's key rotation.
    issuer.publishes(&[old.jwk("old"), new.jwk("new")]);
    assert_eq!(source.refresh().await, Ok(Fetched { keys: 2, has_changed: true }));
    assert!(counts(&credentials, &old_token) && counts(&credentials, &new_token));
    // Withdrawing a key invalidates tokens that were verified with it before.
    issuer.publishes(&[new.jwk("new")]);
    source.refresh().await.unwrap();
    assert!(counts(&credentials, &new_token));
    assert_eq!(identify(&credentials, &old_token).token, Some(Ignored::UnknownSigner));
    // The same id for another key.
    issuer.publishes(&[old.jwk("new")]);
    assert!(source.refresh().await.unwrap().has_changed);
    assert_eq!(identify(&credentials, &new_token).token, Some(Ignored::BadToken));
    assert!(counts(&credentials, &token(&old, "new")));
}

#[tokio::test]
async fn the_last_good_keys_stay_after_any_failed_fetch() {
    let issuer = Issuer::start().await;
    let pair = KeyPair::ed25519();
    let credentials = credentials(issuer.source(Duration::from_secs(600), FLOOR));
    let source = credentials.jwks().unwrap();
    issuer.publishes(&[pair.jwk("k")]);
    source.refresh().await.unwrap();
    let token = token(&pair, "k");
    let too_large = format!("{{\"keys\": [{}", " ".repeat(MOST_BYTES));
    for (status, body, expected) in [
        (500, "", "the response has status 500 instead of 200"),
        (302, "", "the response has status 302 instead of 200"),
        (200, "not JSON", "the response is not a JSON Web Key Set"),
        (200, "[]", "the response is not a JSON Web Key Set"),
        (200, "{\"keys\": []}", "none of its 0 keys can be used"),
        (200, "{\"keys\": [{\"kty\": \"oct\", \"k\": \"c2VjcmV0\"}, 7]}", "none of its 2 keys can be used"),
        (200, &too_large, "the response is larger than 1024 KiB"),
    ] {
        issuer.says(status, body);
        let error = source.refresh().await.unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
        assert!(counts(&credentials, &token));
    }
    *issuer.answer.lock().unwrap() = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{".to_vec();
    assert!(matches!(source.refresh().await, Err(FetchError::Http(_))));
    assert!(counts(&credentials, &token));
}

#[tokio::test]
async fn only_keys_that_fit_what_is_pinned_are_taken() {
    let issuer = Issuer::start().await;
    let (ed, ec) = (KeyPair::ed25519(), KeyPair::p256());
    let credentials = credentials(issuer.source(Duration::from_secs(600), FLOOR));
    let source = credentials.jwks().unwrap();
    let mut encrypts = KeyPair::ed25519().jwk("encrypts");
    encrypts["use"] = json!("enc");
    issuer.publishes(&[ec.jwk("ec"), ed.jwk("ed"), encrypts, json!({"kty": "oct", "k": "c2VjcmV0", "kid": "s"})]);
    assert_eq!(source.refresh().await, Ok(Fetched { keys: 1, has_changed: true }));
    assert!(counts(&credentials, &token(&ed, "ed")));
    assert_eq!(identify(&credentials, &token(&ec, "ec")).token, Some(Ignored::UnknownSigner));
    assert_eq!(identify(&credentials, &token(&ec, "ed")).token, Some(Ignored::BadToken));
    // A set with one key: a token need not name it.
    assert!(counts(&credentials, &ed.token(None, &json!({"sub": "ann", "exp": LATER}))));
}

#[tokio::test]
async fn an_unknown_key_id_triggers_a_fetch_at_most_once_per_minimum_interval() {
    let issuer = Issuer::start().await;
    let (old, new) = (KeyPair::ed25519(), KeyPair::ed25519());
    let floor = Duration::from_millis(400);
    let credentials = credentials(issuer.source(Duration::from_secs(600), floor));
    issuer.publishes(&[old.jwk("old")]);
    let current = Arc::clone(&credentials);
    let keeping = tokio::spawn(keep_fresh(move || Arc::clone(&current), |_| {}));
    until("the first keys", || counts(&credentials, &token(&old, "old"))).await;
    issuer.publishes(&[old.jwk("old"), new.jwk("new")]);
    let began = Instant::now();
    until("the new key", || counts(&credentials, &token(&new, "new"))).await;
    assert!(began.elapsed() < Duration::from_secs(10), "not the refresh interval");
    assert_eq!(issuer.asked(), 2);
    // A flood of unknown keys.
    let began = Instant::now();
    let mut number = 0;
    while began.elapsed() < 3 * floor {
        number += 1;
        assert!(!counts(&credentials, &token(&old, &format!("forged-{number}"))));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let fetches = issuer.asked() - 2;
    let most = began.elapsed().as_millis() / floor.as_millis() + 1;
    assert!(fetches as u128 <= most, "{fetches} fetches for {number} keys");
    assert!(counts(&credentials, &token(&old, "old")));
    keeping.abort();
}

#[tokio::test]
async fn the_same_unknown_key_id_triggers_one_fetch() {
    let issuer = Issuer::start().await;
    let source = issuer.source(Duration::from_secs(600), FLOOR);
    let is_asked = || async { tokio::time::timeout(Duration::from_millis(20), source.asked.notified()).await.is_ok() };
    source.ask_for("a", NOW);
    assert!(is_asked().await);
    source.ask_for("a", NOW + 1);
    assert!(!is_asked().await);
    source.ask_for("b", NOW + 1);
    assert!(is_asked().await);
    source.ask_for("a", NOW + UNKNOWN_FOR_S);
    assert!(is_asked().await, "after a while it may");
    source.ask_for("a", NOW - 1);
    assert!(is_asked().await, "a clock that was set back blocks nothing");
    for n in 0..100_000 {
        source.ask_for(&n.to_string(), NOW);
    }
    assert!(source.unknown.lock().unwrap().len() <= 2 * UNKNOWN_KEYS);
}

#[tokio::test]
async fn keys_are_fetched_again_after_a_failure_and_after_the_interval() {
    let issuer = Issuer::start().await;
    let (a, b) = (KeyPair::ed25519(), KeyPair::ed25519());
    let credentials = credentials(issuer.source(Duration::from_millis(100), Duration::from_millis(50)));
    let outcomes = Arc::new(Mutex::new((0, 0)));
    let (current, counted) = (Arc::clone(&credentials), Arc::clone(&outcomes));
    let keeping = tokio::spawn(keep_fresh(
        move || Arc::clone(&current),
        move |outcome| {
            let mut counted = counted.lock().unwrap();
            if outcome.is_ok() { counted.0 += 1 } else { counted.1 += 1 }
        },
    ));
    until("two failures", || outcomes.lock().unwrap().1 >= 2).await;
    issuer.publishes(&[a.jwk("a")]);
    until("the keys", || counts(&credentials, &token(&a, "a"))).await;
    issuer.publishes(&[b.jwk("b")]);
    until("the next keys", || counts(&credentials, &token(&b, "b"))).await;
    assert!(outcomes.lock().unwrap().0 >= 2);
    keeping.abort();
}

#[tokio::test]
async fn a_reload_keeps_the_keys_of_the_same_url_and_fetches_from_a_new_one() {
    let (issuer, other) = (Issuer::start().await, Issuer::start().await);
    let (ours, theirs) = (KeyPair::ed25519(), KeyPair::ed25519());
    issuer.publishes(&[ours.jwk("k")]);
    other.publishes(&[theirs.jwk("k")]);
    let refresh = Duration::from_secs(600);
    let before = credentials(issuer.source(refresh, FLOOR));
    let in_force = Arc::new(ArcSwap::new(Arc::clone(&before)));
    let current = Arc::clone(&in_force);
    let keeping = tokio::spawn(keep_fresh(move || current.load_full(), |_| {}));
    until("the keys", || counts(&before, &token(&ours, "k"))).await;

    let reload = |source: Source| {
        let mut next = credentials(source);
        Arc::get_mut(&mut next).unwrap().adopt(&in_force.load());
        in_force.store(Arc::clone(&next));
        next
    };
    let same = reload(issuer.source(Duration::from_secs(60), FLOOR));
    assert!(counts(&same, &token(&ours, "k")), "at once");
    assert_eq!(same.jwks().unwrap().refresh_every(), Duration::from_secs(60));
    assert!(Arc::ptr_eq(same.jwks().unwrap(), before.jwks().unwrap()));
    tokio::time::sleep(2 * LOOK_EVERY).await;
    assert_eq!(issuer.asked(), 1);

    let elsewhere = reload(other.source(refresh, FLOOR));
    assert_eq!(identify(&elsewhere, &token(&ours, "k")).token, Some(Ignored::NoSigners));
    until("the other's keys", || counts(&elsewhere, &token(&theirs, "k"))).await;
    assert!(!counts(&elsewhere, &token(&ours, "k")));
    assert_eq!(issuer.asked(), 1);
    in_force.store(Arc::new(Credentials::default()));
    tokio::time::sleep(2 * LOOK_EVERY).await;
    in_force.store(before);
    until("the first place again", || issuer.asked() == 2).await;
    keeping.abort();
}

#[tokio::test]
async fn an_issuer_that_hangs_does_not_delay_the_next() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap()).parse().unwrap();
    let hanging = credentials(Source::new(url, Algorithm::EdDsa, Duration::from_secs(600)).unwrap());
    let in_force = Arc::new(ArcSwap::new(hanging));
    let current = Arc::clone(&in_force);
    let keeping = tokio::spawn(keep_fresh(move || current.load_full(), |_| {}));
    let _connected = silent.accept().await.unwrap();
    let (issuer, pair) = (Issuer::start().await, KeyPair::ed25519());
    issuer.publishes(&[pair.jwk("k")]);
    let next = credentials(issuer.source(Duration::from_secs(600), FLOOR));
    in_force.store(Arc::clone(&next));
    let began = Instant::now();
    until("the keys", || counts(&next, &token(&pair, "k"))).await;
    assert!(began.elapsed() < FETCH_TIMEOUT / 2);
    keeping.abort();
}

#[test]
fn https_without_ca_certificates_is_an_error() {
    let url = "https://login.example.com/jwks.json".parse().unwrap();
    match Source::new(url, Algorithm::Rs256, Duration::from_secs(600)) {
        Ok(source) => assert!(source.keys().is_empty()),
        Err(e) => assert_eq!(e, ClientError::NoRoots),
    }
}
