//! Machines, the audit log, the configuration, and the latest events.

use jiff::Timestamp;

use crate::control::page::html::{Html, facts, note, table};
use crate::control::status::{Audit, Event, Machines, Status};
use crate::engine::state::State;

/// Events that are shown; `GET /status` has more.
const MOST_EVENTS: usize = 40;

/// This Machine, and the others.
pub fn machines(machines: &Machines) -> Html {
    let sessions = match (&machines.sessions, &machines.sessions_via) {
        (Some(mode), Some(via)) => format!("{mode}, via {via}"),
        _ => "off".to_owned(),
    };
    let mut html = facts(&[
        ("this Machine", Html::of(machines.state.as_deref().unwrap_or("alone"))),
        ("ready", Html::of(format_args!("{} of {}", machines.ready, machines.known))),
        ("sticky sessions", Html::of(sessions)),
        ("appeared", Html::of(machines.scaled_up)),
        ("disappeared", Html::of(machines.scaled_down)),
    ]);
    let rows = machines.peers.iter().map(|peer| {
        let mut state = Html::new();
        state.raw(if matches!(peer.state.as_str(), "ready" | "busy") {
            "<span class=\"ok\">"
        } else {
            "<span class=\"bad\">"
        });
        state.text(&peer.state).raw("</span>");
        vec![Html::of(&peer.name), state, Html::of(&peer.address)]
    });
    let rows: Vec<Vec<Html>> = rows.collect();
    if !rows.is_empty() {
        html.add(&table("The other Machines", &["Machine", "state", "address"], rows));
    }
    html
}

/// The audit log.
pub fn audit(audit: Option<&Audit>) -> Html {
    let Some(audit) = audit else { return note("There is no audit log.") };
    let mut writable = Html::new();
    writable.raw(if audit.is_writable { "<span class=\"ok\">yes</span>" } else { "<span class=\"bad\">no</span>" });
    facts(&[
        ("mode", Html::of(&audit.mode)),
        ("writable", writable),
        ("not yet written", Html::of(audit.queued)),
        ("not yet shipped", Html::of(audit.unshipped)),
        ("lag", Html::of(format_args!("{:.0} s", audit.lag_s))),
        ("on disk", Html::of(format_args!("{:.1} MB", audit.bytes as f64 / 1e6))),
        ("lost", Html::of(audit.lost)),
        ("alarms", Html::of(audit.alarms)),
    ])
}

/// The configuration in force, and the last one if it was rejected.
pub fn configuration(state: &State, status: &Status, is_operator: bool) -> Html {
    let config = &status.config;
    let mut html = facts(&[
        ("version", Html::of(config.version)),
        ("in force since", Html::of(config.since.strftime("%Y-%m-%d %H:%M:%S"))),
        ("routes", Html::of(config.routes)),
    ]);
    if let Some(saved) = &status.saved {
        html.raw("<p>State that survives a restart: ");
        match (&saved.error, saved.age_s) {
            (Some(error), _) => html.raw("<span class=\"bad\">it cannot be written</span> (").text(error).raw(")"),
            (None, Some(age)) => html.text(format_args!("written {age:.0} s ago")),
            (None, None) => html.text("not written yet"),
        };
        html.text("; restored ").text(&saved.restored).raw("</p>");
    }
    if let Some(probation) = &config.probation {
        let at = |at: Timestamp| at.strftime("%H:%M:%S").to_string();
        if let Some(until) = probation.until {
            html.raw("<p>On probation until ").text(at(until)).raw(": taken back if requests fare worse.</p>");
        }
        if let Some(until) = probation.confirm_until {
            html.raw("<p class=\"bad\">Taken back at ").text(at(until)).raw(" unless it is confirmed.</p>");
        }
    }
    if let Some(undone) = &config.undone {
        html.raw("<p class=\"bad\">Version ").text(undone.version);
        html.raw(if undone.is_kept { " would have been taken back at " } else { " was taken back at " });
        html.text(undone.at.strftime("%H:%M:%S")).raw(": ").text(&undone.text).raw(".");
        html.raw(if undone.is_in_file {
            " The file still has it: a restart would bring it into force.</p>"
        } else {
            "</p>"
        });
    }
    if let Some(refused) = &config.refused {
        html.raw("<p class=\"bad\">The change at ")
            .text(refused.at.strftime("%H:%M:%S"))
            .raw(" was refused (")
            .text(refused.count);
        html.raw(if refused.count == 1 { " problem)." } else { " problems)." })
            .raw(" The previous version stays in force.</p><ul>");
        for problem in &refused.problems {
            html.raw("<li><code>").text(&problem.place).raw("</code>: ").text(&problem.message);
            if let Some(hint) = &problem.hint {
                html.raw(". Hint: ").text(hint);
            }
            html.raw("</li>");
        }
        html.raw("</ul>");
        // It has lines of the file.
        if let Some(full) = state.history.refused_reload().filter(|_| is_operator) {
            html.raw("<details id=\"d-refused\"><summary>With the lines of the file</summary><pre tabindex=\"0\">");
            html.text(&full.text).raw("</pre></details>");
        }
    }
    if !config.warnings.is_empty() {
        html.raw("<details id=\"d-warnings\"><summary>Warnings</summary><pre tabindex=\"0\">");
        for warning in &config.warnings {
            html.text(warning).raw("\n");
        }
        html.raw("</pre></details>");
    }
    let flags = config.flags.iter().map(|(flag, value)| vec![Html::of(flag.replace('_', " ")), Html::of(value)]);
    html.raw("<details id=\"d-flags\"><summary>Feature flags</summary>");
    html.add(&table("Feature flags", &["flag", "value"], flags.collect())).raw("</details>");
    html
}

/// The latest events.
pub fn events(events: &[Event]) -> Html {
    if events.is_empty() {
        return note("Nothing has changed since the start.");
    }
    let mut html = Html::new();
    html.raw("<ol class=\"events\">");
    for event in events.iter().take(MOST_EVENTS) {
        html.raw("<li><time>").text(event.at.strftime("%m-%d %H:%M:%S")).raw("</time> ").text(&event.text).raw("</li>");
    }
    html.raw("</ol>");
    html
}
