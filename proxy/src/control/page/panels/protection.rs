//! Circuit breakers, limits, bans, and the app.

use crate::control::page::html::{Html, facts, note, table};
use crate::control::status::headline::{number, time};
use crate::control::status::{Bans, Breaker, Breakers, Limit, Limits, Status, TopClient};
use crate::engine::state::State;
use outrigger_identity::clock;

/// Bans that are shown; `GET /bans` has all.
const MOST_BANS: usize = 100;
/// Changes of circuit breakers that are shown.
const MOST_CHANGES: usize = 10;

/// A button of the form `act`, which is outside of the panels.
fn button(html: &mut Html, id: &'static str, action: &'static str, name: &str, label: &'static str) {
    html.raw("<button form=\"act\" name=\"act\" id=\"").raw(id).text(name).raw("\" value=\"").raw(action).text(name);
    html.raw("\">").raw(label).raw("<span class=\"hidden\"> ").text(name).raw("</span></button> ");
}

/// Circuit breakers: those that are not closed first.
pub fn breakers(breakers: &Breakers, is_operator: bool) -> Html {
    let mut html = Html::new();
    if breakers.breakers.is_empty() {
        html.add(&note("No circuit breaker was used yet."));
    } else {
        let rows = breakers.breakers.iter().map(|breaker| breaker_row(breaker, is_operator)).collect();
        let heads: &[&'static str] = if is_operator {
            &["breaker", "state", "calls", "failed", "slow", "set it"]
        } else {
            &["breaker", "state", "calls", "failed", "slow"]
        };
        html.add(&table("Those that are not closed first", heads, rows));
    }
    if breakers.other_breakers > 0 {
        html.add(&note(format_args!("{} more: GET /breakers", breakers.other_breakers)));
    }
    let changes = breakers.changes.iter().take(MOST_CHANGES).map(|change| {
        let reason = change.reason.as_deref().filter(|_| change.to == "open").unwrap_or_default().replace('_', " ");
        let turn = format!("{} to {}", change.from, change.to).replace('_', " ");
        vec![Html::of(change.at.strftime("%H:%M:%S")), Html::of(&change.breaker), Html::of(turn), Html::of(reason)]
    });
    let changes: Vec<Vec<Html>> = changes.collect();
    if !changes.is_empty() {
        html.raw("<details id=\"d-changes\"><summary>Latest changes</summary>");
        html.add(&table("The newest first", &["at", "breaker", "change", "reason"], changes)).raw("</details>");
    }
    html
}

fn breaker_row(breaker: &Breaker, is_operator: bool) -> Vec<Html> {
    let mut state = Html::new();
    state.raw(if breaker.state == "closed" { "<span class=\"ok\">" } else { "<span class=\"bad\">" });
    state.text(breaker.state.replace('_', " ")).raw("</span>");
    if breaker.is_forced {
        state.raw(", forced");
    }
    if let Some(since) = breaker.since {
        state.raw(" since ").text(time(since));
    }
    let mut row =
        vec![Html::of(&breaker.name), state, Html::of(breaker.calls), Html::of(breaker.failed), Html::of(breaker.slow)];
    if is_operator {
        let mut buttons = Html::new();
        let is_automatic = !breaker.is_forced;
        if is_automatic || breaker.state == "closed" {
            button(&mut buttons, "b-open-", "open ", &breaker.name, "Open");
        }
        if is_automatic || breaker.state != "closed" {
            button(&mut buttons, "b-close-", "close ", &breaker.name, "Close");
        }
        if !is_automatic {
            button(&mut buttons, "b-auto-", "automatic ", &breaker.name, "Automatic");
        }
        row.push(buttons);
    }
    row
}

/// Rate limits: those with the most rejections first.
pub fn limits(limits: &Limits) -> Html {
    let rows = limits.limits.iter().map(|limit| {
        let mut name = Html::of(&limit.name);
        name.raw(" <small>").text(&limit.mode).raw(if limit.is_shared { ", shared</small>" } else { "</small>" });
        let (refused, all, monitored) = (limit.refused_per_s, limit.refused_total, limit.monitored_total);
        vec![name, Html::of(number(refused)), Html::of(all), Html::of(monitored)]
    });
    let heads = ["limit", "refused/s", "refused", "only counted"];
    let mut html = if limits.limits.is_empty() {
        note("There are no rate limits.")
    } else {
        table("Those with the most rejections first", &heads, rows.collect())
    };
    html.add(&top_clients(limits));
    if limits.other_limits > 0 {
        html.add(&note(format_args!("{} more: GET /limits", limits.other_limits)));
    }
    let mut sharing = Html::of(&limits.sharing);
    if let Some(reason) = &limits.sharing_reason {
        sharing.raw(": ").text(reason);
    }
    html.add(&facts(&[
        ("keys in use", Html::of(format_args!("{} of {}", limits.keys_used, limits.keys_room))),
        ("shared through Redis", sharing),
    ]));
    html
}

/// Rows of the table of clients.
const MOST_CLIENTS: usize = 20;

/// The clients that limits reject most often. They have pseudonyms: `GET /requests` has their requests.
fn top_clients(limits: &Limits) -> Html {
    let each = |limit: &Limit| {
        let row = |top: &TopClient| {
            let mut count = Html::of(top.refused);
            if top.error > 0 {
                count.raw(" <small>at most</small>");
            }
            vec![Html::of(&limit.name), Html::of(&top.client), count]
        };
        limit.top_clients.iter().map(row).collect::<Vec<_>>()
    };
    let rows: Vec<Vec<Html>> = limits.limits.iter().flat_map(each).take(MOST_CLIENTS).collect();
    if rows.is_empty() {
        return Html::new();
    }
    table("Clients that were rejected most, in the last minutes", &["limit", "client", "refused"], rows)
}

/// Bans; names are for operators.
pub fn bans(state: &State, bans: &Bans, is_operator: bool) -> Html {
    let mut html = facts(&[("banned", Html::of(bans.count)), ("mode", Html::of(&bans.mode))]);
    if !is_operator {
        if bans.count > 0 {
            html.add(&note("Names are shown after a login."));
        }
        return html;
    }
    let now = state.nanoseconds(clock::now());
    let rows = state.bans.list(now).into_iter().take(MOST_BANS).map(|banned| {
        let mut lift = Html::new();
        button(&mut lift, "b-lift-", "lift ", &banned.who, "Lift");
        // In minutes, so that the panel does not change each second.
        let left = banned.ban.left(now).as_secs().div_ceil(60);
        let left = Html::of(format_args!("{left} min"));
        vec![Html::of(&banned.who), Html::of(banned.ban.offence.name().replace('_', " ")), left, lift]
    });
    let rows: Vec<Vec<Html>> = rows.collect();
    if !rows.is_empty() {
        html.add(&table("Those that end first", &["client", "reason", "left", "lift it"], rows));
    }
    if bans.count > MOST_BANS {
        html.add(&note(format_args!("{} more: GET /bans", bans.count - MOST_BANS)));
    }
    html
}

/// The app, requests that wait for it, and retries.
pub fn app(status: &Status, is_operator: bool) -> Html {
    let app = &status.app;
    let mut reach = Html::new();
    match app.away_since {
        _ if app.is_reachable => reach.raw("<span class=\"ok\">reachable</span>"),
        Some(since) => reach.raw("<span class=\"bad\">away</span> since ").text(time(since)),
        None => reach.raw("<span class=\"bad\">away</span>"),
    };
    let mut pairs = vec![
        ("address", Html::of(&app.address)),
        ("state", reach),
        ("waiting for it", Html::of(app.held)),
        ("waited before", Html::of(app.held_total)),
        ("retries/s", Html::of(number(app.retries_per_s))),
        ("retries left", Html::of(format_args!("{:.0}", app.retry_budget))),
    ];
    if app.retries_denied_per_s > 0.0 {
        pairs.push(("retries denied/s", Html::of(number(app.retries_denied_per_s))));
    }
    if let Some(process) = &app.process {
        let mut shown = Html::of(process.state.as_deref().unwrap_or("not started"));
        if let Some(pid) = process.pid {
            shown.raw(", pid ").text(pid);
        }
        pairs.push(("process", shown));
        pairs.push(("starts", Html::of(process.starts)));
        if let Some(code) = process.last_exit_code {
            pairs.push(("last exit code", Html::of(code)));
        }
        if let Some(reason) = &process.last_restart {
            pairs.push(("last restart", Html::of(reason.replace('_', " "))));
        }
    }
    let mut html = facts(&pairs);
    if is_operator {
        html.raw("<p>");
        if app.process.is_some() {
            order(&mut html, "b-restart", "restart", "Restart the app");
        }
        if status.pause.is_some() {
            order(&mut html, "b-resume", "resume", "Resume requests");
        } else {
            order(&mut html, "b-pause", "pause", "Pause requests for 30 s");
        }
        if status.maintenance.is_some() {
            order(&mut html, "b-service", "maintenance off", "End maintenance");
        } else {
            order(&mut html, "b-maintenance", "maintenance on", "Begin maintenance");
        }
        html.raw("</p>");
    }
    html
}

/// A button that concerns all requests.
fn order(html: &mut Html, id: &'static str, action: &'static str, label: &'static str) {
    html.raw("<button form=\"act\" name=\"act\" id=\"").raw(id).raw("\" value=\"").raw(action);
    html.raw("\">").raw(label).raw("</button> ");
}
