//! Rejected requests, and the story of one.

use serde_json::Value;

use crate::control::page::html::{Html, note, table};
use crate::engine::state::State;
use crate::mechanism::outcome::Outcome;

/// Rejected requests that are shown.
const MOST: usize = 20;
/// Requests of one id that are shown: clients may choose the same.
const MOST_OF_ID: usize = 5;

/// The latest rejected requests.
pub fn refused(state: &State) -> Html {
    let rows: Vec<Vec<Html>> = recent(state).iter().take(MOST).map(row).collect();
    if rows.is_empty() {
        return note("No request was rejected lately.");
    }
    table("The latest", &["at", "request", "status", "rule", "client"], rows)
}

fn row(receipt: &Value) -> Vec<Html> {
    let text = |key: &str| receipt[key].as_str().unwrap_or("–").to_owned();
    let mut link = Html::new();
    link.raw("<a href=\"/?request=").text(encoded(&text("request_id"))).raw("\">").text(text("request_id")).raw("</a>");
    let rule = receipt["rule"].as_str().or_else(|| receipt["reason"].as_str()).unwrap_or("–").to_owned();
    let at = text("at");
    // The time of the day, without its fraction.
    let at = at.get(11..19).unwrap_or(&at).to_owned();
    vec![Html::of(at), link, Html::of(&receipt["status"]), Html::of(rule), Html::of(text("client"))]
}

/// The story of a request.
pub fn story(state: &State, id: &str) -> Html {
    let mut html = Html::new();
    for receipt in of(state, id).iter().take(MOST_OF_ID) {
        html.raw("<ol class=\"story\">");
        for sentence in receipt["story"].as_array().into_iter().flatten() {
            html.raw("<li>").text(sentence.as_str().unwrap_or_default()).raw("</li>");
        }
        html.raw("</ol>");
    }
    if html == Html::new() {
        html.add(&note("No receipt of this request is here: it is too old, another Machine served it, or it passed without an event."));
    }
    html
}

fn encoded(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
    text.bytes()
        .map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

fn recent(state: &State) -> Vec<Value> {
    let keep = state.rules.load().config.receipts.keep;
    let found = state.receipts.recent(MOST, keep, |receipt| receipt.outcome == Outcome::Rejected);
    found.iter().map(|receipt| receipt.shown(false)).collect()
}

/// Never with the subject: an operator who needs it leaves a trace, with `outrigger why --reveal`.
fn of(state: &State, id: &str) -> Vec<Value> {
    let keep = state.rules.load().config.receipts.keep;
    state.receipts.of(id, keep).iter().map(|receipt| receipt.shown(false)).collect()
}
