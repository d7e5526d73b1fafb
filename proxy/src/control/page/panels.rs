//! The parts of the page. All operators see the same ones: buttons belong to a form outside of them.

mod changes;
mod protection;
mod traffic;

use crate::control::page::html::{Html, hash};
use crate::control::page::requests;
use crate::control::status::{Headline, Level, Status};
use crate::engine::state::State;

/// A part of the page, which is replaced alone.
#[derive(Clone, Debug)]
pub struct Panel {
    /// The id of its element.
    pub id: &'static str,
    /// Its title; the headline has none.
    pub title: &'static str,
    /// Its content.
    pub html: Html,
    /// Tells versions of the content apart.
    pub hash: u64,
}

/// All panels, in order.
pub fn all(state: &State, status: &Status, is_operator: bool) -> Vec<Panel> {
    let panels = [
        ("headline", "", headline(&status.headline)),
        ("traffic", "Traffic", traffic::routes(&status.traffic)),
        ("app", "App", protection::app(status, is_operator)),
        ("concurrency", "Concurrency", traffic::concurrency(status)),
        ("breakers", "Circuit breakers", protection::breakers(&status.breakers, is_operator)),
        ("limits", "Rate limits", protection::limits(&status.limits)),
        ("refused", "Refused requests", refused(state, status)),
        ("bans", "Bans", protection::bans(state, &status.bans, is_operator)),
        ("machines", "Machines", changes::machines(&status.machines)),
        ("audit", "Audit log", changes::audit(status.audit.as_ref())),
        ("config", "Configuration", changes::configuration(state, status, is_operator)),
        ("events", "What changed", changes::events(&status.events)),
    ];
    panels.map(|(id, title, html)| Panel { id, title, hash: hash(html.as_str()), html }).into()
}

fn headline(headline: &Headline) -> Html {
    let mut html = Html::new();
    // The word says it, too: not everyone sees colours.
    let (class, word) = match headline.level {
        Level::Ok => ("<p class=\"headline ok\"><b>OK</b> ", "ok"),
        Level::Warn => ("<p class=\"headline warn\"><b>Warning</b> ", "warn"),
        Level::Bad => ("<p class=\"headline bad\"><b>Problem</b> ", "bad"),
    };
    html.raw(class).text(&headline.text).raw("</p>");
    if !headline.others.is_empty() {
        html.raw("<ul class=\"others ").raw(word).raw("\">");
        for other in &headline.others {
            html.raw("<li>").text(other).raw("</li>");
        }
        html.raw("</ul>");
    }
    html
}

fn refused(state: &State, status: &Status) -> Html {
    let mut html = traffic::reasons("Refused by Outrigger, by reason", &status.traffic.rejections);
    html.add(&traffic::reasons("Failed at the app, by reason", &status.traffic.failures));
    html.add(&requests::refused(state));
    html
}
