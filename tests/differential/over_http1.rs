//! Requests over HTTP/1.1, in each form in which their bytes can arrive.

use std::{thread, time::Duration};

use super::{Dice, Outcome, each, over_http2, requests};
use crate::{
    backend::{Backend, Play},
    differential::requests::{Body, Request},
    harness::{Client, Proxy},
};

/// The request behind each of them.
const NEXT: &str = "GET /next HTTP/1.1\r\nHost: next.test\r\n\r\n";

/// How the bytes of a request arrive.
#[derive(Clone, Copy, Debug)]
enum Form {
    Whole,
    ByteByByte,
    /// Behind another request, in one piece with it.
    Pipelined,
    /// In two pieces.
    Cut(usize),
}

/// A difference that depends on how the bytes arrive: what it is about, when it applies, and whether the outcomes in one piece
/// and in another form are right.
type Difference = (&'static str, fn(&Request) -> bool, fn(&Exchange, &Exchange) -> bool);

const DIFFERENCES: [Difference; 2] = [
    ("a request whose body ends early gets its rejection or nothing", Request::is_incomplete, |one, other| {
        [one, other].iter().all(|exchange| !matches!(exchange.outcome, Outcome::Served(..)))
    }),
    (
        "after a rejection, a connection closes unless the end of a chunked body has arrived",
        |request| matches!(request.body, Body::Chunked(..)),
        |one, other| {
            let is_one_closed = [one, other].iter().any(|exchange| exchange.next == Outcome::Closed);
            is_one_closed && one.outcome == other.outcome && matches!(one.outcome, Outcome::Refused(..))
        },
    ),
];

/// The outcome of a request, and of the one behind it.
#[derive(Debug, PartialEq)]
struct Exchange {
    outcome: Outcome,
    next: Outcome,
}

fn exchange(proxy: &Proxy, request: &Request, form: Form) -> Exchange {
    let mut bytes = request.bytes();
    let mut client = proxy.connect();
    match form {
        Form::Whole => _ = client.send([&bytes, rest(request)].concat()),
        Form::Pipelined => {
            let first = b"POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nfirst";
            let first = client.send([first, &*bytes, rest(request)].concat()).answer();
            assert_eq!((first.status, &first.json()["target"]), (200, &"/first".into()));
        }
        Form::ByteByByte => {
            // The rest of a large one tells nothing more.
            let last = bytes.split_off(bytes.len().min(1000));
            let is_sent = bytes.iter().all(|byte| client.try_send([*byte]).is_ok());
            _ = is_sent && client.try_send([&last, rest(request)].concat()).is_ok();
        }
        Form::Cut(at) => {
            let (first, last) = bytes.split_at(at);
            client.send(first);
            thread::sleep(Duration::from_millis(2));
            client.send([last, rest(request)].concat());
        }
    }
    if request.is_incomplete() {
        client.finish_sending();
    }
    let outcome = answer(&mut client, request.method == "HEAD");
    Exchange { outcome, next: answer(&mut client, false) }
}

fn rest(request: &Request) -> &'static [u8] {
    if request.is_incomplete() { b"" } else { NEXT.as_bytes() }
}

fn answer(client: &mut Client, is_head: bool) -> Outcome {
    let answer = if is_head { client.head() } else { client.try_answer() };
    answer.map_or(Outcome::Closed, |answer| Outcome::of(answer.status, &answer.body, is_head))
}

fn problems(proxy: &Proxy, request: &Request, forms: &[Form], expected: &Exchange) -> Vec<String> {
    let differs = |form: &Form| {
        let found = exchange(proxy, request, *form);
        let brief = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(400)]).into_owned();
        let is_same = found == *expected
            || DIFFERENCES.iter().any(|(_, applies, is_right)| applies(request) && is_right(expected, &found));
        (!is_same).then(|| format!("{form:?}: {:?}\n  {found:?}\n  whole: {expected:?}", brief(&request.bytes())))
    };
    forms.iter().filter_map(differs).collect()
}

#[test]
fn a_request_is_the_same_in_every_form() {
    let app = Backend::start();
    app.at("/100", Play::Continue);
    let proxy = Proxy::start(&app);
    let mut dice = Dice(0x5eed_0001);
    let mut requests = requests::singles();
    requests.extend((0..200).map(|_| requests::generate(&mut dice)));
    let tally = over_http2::Tally::default();
    each(&requests, |request| {
        let whole = exchange(&proxy, request, Form::Whole);
        let mut problems = problems(&proxy, request, &[Form::ByteByByte, Form::Pipelined], &whole);
        problems.extend(over_http2::problem(&proxy, request, &whole.outcome, &tally));
        problems
    });
    tally.check();
}

#[test]
fn a_request_can_be_cut_anywhere() {
    let app = Backend::start();
    let proxy = Proxy::start(&app);
    let mut dice = Dice(0x5eed_0002);
    let short = |request: &Request| (100..400).contains(&request.bytes().len()) && !request.is_incomplete();
    let requests: Vec<Request> =
        std::iter::repeat_with(|| requests::generate(&mut dice)).filter(short).take(12).collect();
    each(&requests, |request| {
        let whole = exchange(&proxy, request, Form::Whole);
        let cuts: Vec<Form> = (1..request.bytes().len()).map(Form::Cut).collect();
        problems(&proxy, request, &cuts, &whole)
    });
}
