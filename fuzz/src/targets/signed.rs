//! Values behind a signature, which random bytes never have: cookies, replays, requests and probes of peers, and their summaries.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use http::Method;
use outrigger_identity::signing::{Keys, LARGEST_SIGNED, Purpose, VerifyBuffer};
use outrigger_mechanism::affinity::cookie::{self, Buffer, Found};
use outrigger_mechanism::affinity::replay;
use outrigger_mechanism::peers::answer::{Asked, Condition, ProbeAnswer};
use outrigger_mechanism::peers::hop::{Hop, Kind, Nonce, Receiver};
use outrigger_mechanism::peers::summary;
use outrigger_mechanism::peers::used::UsedHops;
use outrigger_policy::affinity::{LARGEST, Lifetime, Mark, is_name};
use outrigger_wire::cookies::NAME;
use outrigger_wire::request::{Fields, Request};

use super::with_choice;

const NOW: u32 = 1_800_000_000;
const PURPOSES: [Purpose; 6] =
    [Purpose::Cookie, Purpose::Replay, Purpose::Hop, Purpose::Probe, Purpose::Summary, Purpose::State];
/// Where the digest of the request is in a hop.
const DIGEST: std::ops::Range<usize> = 45..61;

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys::parse(&"k".repeat(32)).expect("a key").expect("one"));

/// A signed text is what was signed, for its purpose only, and no other text verifies. Any content behind a signature is read or
/// rejected.
pub fn signed(data: &[u8]) {
    let (choice, data) = with_choice(data);
    let text = &data[..data.len().min(LARGEST_SIGNED)];
    let purpose = PURPOSES[choice % PURPOSES.len()];
    let signed = sign(purpose, text);
    let mut buffer = [0; size_of::<VerifyBuffer>()];
    assert_eq!(KEYS.verified(purpose, &signed, &mut buffer), Some(text));
    assert_eq!(KEYS.verified(PURPOSES[(choice + 1) % PURPOSES.len()], &signed, &mut buffer), None, "another purpose");
    for change in [1, 0x20] {
        let mut changed = signed.clone();
        let at = (choice * 251 + text.len()) % signed.len();
        changed[at] ^= change;
        assert_eq!(KEYS.verified(purpose, &changed, &mut buffer), None, "changed at {at}");
    }
    // Text that somebody else made up.
    assert_eq!(KEYS.verified(purpose, data, &mut buffer), None);
    session(text);
    replayed(text);
    hop(text);
    probe(text);
    summary_of(data);
    used(data);
}

fn sign(purpose: Purpose, text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    KEYS.append_signed(purpose, text, &mut out);
    out
}

fn session(text: &[u8]) {
    let value = [NAME.as_bytes(), b"=", &sign(Purpose::Cookie, text)].concat();
    let lines = [httparse::Header { name: "cookie", value: &value }];
    let lifetime = Lifetime { idle: Duration::from_secs(3600), most: Duration::from_secs(86_400) };
    let mut buffer = Buffer::default();
    match cookie::find(&KEYS, &lifetime, Fields::Wire(&lines), NOW, &mut buffer) {
        Found::Session(session, _) => {
            let mut again = [0; LARGEST];
            let length = session.encode(&mut again);
            assert_eq!(&again[..length], text);
            assert!(is_name(session.home) && session.written <= NOW + 60 && session.born <= session.written);
            assert!(lifetime.left(session.born, NOW) <= 3600);
        }
        Found::Nothing => panic!("there is a cookie"),
        Found::Over | Found::Forged => {}
    }
}

fn replayed(text: &[u8]) {
    let read = |state: &[u8]| {
        let value = [b"instance=a;region=b;t=1;state=", state].concat();
        let lines = [httparse::Header { name: "fly-replay-src", value: &value }];
        replay::marks(&KEYS, Fields::Wire(&lines), NOW).mark
    };
    let sent = text.first_chunk::<4>().map(|sent| u32::from_be_bytes(*sent));
    let is_valid = sent.is_some_and(|sent| sent.abs_diff(NOW) <= 60);
    assert_eq!(read(&sign(Purpose::Replay, text)), if is_valid { Mark::Signed } else { Mark::Unsigned });
    assert_eq!(read(text), Mark::Unsigned);
}

/// A hop with this content and the digest of the request, so that all of it is read.
fn hop(text: &[u8]) {
    let fields = [httparse::Header { name: "a", value: b"b" }];
    let fields = Fields::Wire(&fields);
    let request = Request {
        method: &Method::GET,
        path: "/",
        host: "a",
        fields,
        is_http10: false,
        target: "/",
        has_endless_body: false,
    };
    let here = Receiver { name: "b", run: 5 };
    let own = Hop {
        kind: Kind::Session,
        client: "192.0.2.7".parse().expect("an address"),
        nonce: Nonce { run: 3, count: 7 },
        from: "a".into(),
    };
    let signed = own.sign(&KEYS, &request, here, NOW);
    assert_eq!(Hop::verify(&KEYS, &signed, &request, here, NOW), Ok(own));
    let mut buffer = [0; size_of::<VerifyBuffer>()];
    let valid = KEYS.verified(Purpose::Hop, &signed, &mut buffer).expect("it is signed");
    let mut content = text.to_vec();
    if let Some(digest) = content.get_mut(DIGEST) {
        digest.copy_from_slice(&valid[DIGEST]);
    }
    let Ok(read) = Hop::verify(&KEYS, &sign(Purpose::Hop, &content), &request, here, NOW) else { return };
    let sent = u32::from_be_bytes(*content[1..].first_chunk().expect("a time"));
    assert!(sent.abs_diff(NOW) <= 60, "{sent}");
    let is_probe = read.kind == Kind::Probe;
    // It is as this process would write it; a probe may name any receiver.
    let is_like = |to: Receiver<'_>| {
        let again = read.sign(&KEYS, &request, to, sent);
        let mut buffer = [0; size_of::<VerifyBuffer>()];
        KEYS.verified(Purpose::Hop, &again, &mut buffer).is_some_and(|again| again == content)
    };
    assert!(read.from.len() > 63 || is_like(here) || (is_probe && is_like(Receiver::ANY)), "{read:?}");
    let other = Receiver { name: "c", run: 5 };
    assert!(is_probe || Hop::verify(&KEYS, &sign(Purpose::Hop, &content), &request, other, NOW).is_err());
}

fn probe(text: &[u8]) {
    let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
    let (to, from, nonce) = (address("10.0.0.1:8083"), address("10.0.0.2:999"), Nonce { run: 3, count: 7 });
    let own = ProbeAnswer {
        condition: Condition::Busy,
        name: "b".into(),
        run: 5,
        nonce,
        asker: "a".into(),
        arrived_at: to,
        came_from: from,
    };
    let asked = Asked { nonce, asker: "a", address: to, from: Some(from) };
    assert_eq!(ProbeAnswer::verify(&KEYS, &own.sign(&KEYS), asked), Ok(own));
    let Ok(read) = ProbeAnswer::verify(&KEYS, &sign(Purpose::Probe, text), asked) else { return };
    assert!(read.nonce == nonce && *read.asker == *asked.asker && is_name(read.name.as_bytes()), "{read:?}");
    assert!((read.arrived_at, read.came_from) == (to, from), "{read:?}");
}

fn summary_of(text: &[u8]) {
    let nonce = Nonce { run: 3, count: 7 };
    let signed = summary::sign(&KEYS, Purpose::Summary, nonce, text);
    assert_eq!(summary::verify(&KEYS, Purpose::Summary, nonce, &signed).as_deref(), Some(text));
    assert_eq!(summary::verify(&KEYS, Purpose::State, nonce, &signed), None);
    assert_eq!(summary::verify(&KEYS, Purpose::Summary, Nonce { run: 3, count: 8 }, &signed), None);
    assert_eq!(summary::verify(&KEYS, Purpose::Summary, nonce, text), None);
}

/// Each hop is accepted at most once: three bytes are a sender, a run, and how far its number is from the one before.
fn used(data: &[u8]) {
    let (hops, mut accepted, mut count) = (UsedHops::default(), HashSet::new(), 0x1_0000_u64);
    for hop in data.as_chunks::<3>().0.iter().take(64) {
        let (sender, run) = (["a", "b", "c"][usize::from(hop[0] % 3)], u64::from(hop[1] % 6));
        let step = i64::from(hop[2].cast_signed());
        // A step of one byte is multiplied, so that some leave the window.
        count = count.saturating_add_signed(if hop[1] >= 0x80 { step * 1000 } else { step });
        let is_accepted = hops.accepts(sender, Nonce { run, count }, NOW + u32::from(hop[0] >> 2));
        assert!(!is_accepted || accepted.insert((sender, run, count)), "{sender} {run} {count} is accepted twice");
    }
}
