//! The whole page, and the page to log in.

use crate::control::admin::access::Viewer;
use crate::control::page::html::Html;
use crate::control::page::panels::Panel;
use crate::control::status::Status;

/// The parts for one viewer, around the panels that all share.
#[derive(Debug)]
pub struct Frame<'f> {
    /// The viewer.
    pub viewer: &'f Viewer,
    /// The token of its forms; without one, it cannot act.
    pub form_token: Option<&'f str>,
    /// The request that it looked for, and its story.
    pub request: Option<(&'f str, &'f Html)>,
    /// The last action, as this page named it.
    pub done: Option<&'f str>,
}

/// Seconds between two loads of the page by a browser without JavaScript.
const REFRESH: &str = "<noscript><meta http-equiv=\"refresh\" content=\"10\"></noscript>";

fn begin(html: &mut Html, title: &str, refreshes: bool) {
    html.raw("<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\">")
        .raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">")
        .raw("<meta name=\"color-scheme\" content=\"light dark\">")
        .raw(if refreshes { REFRESH } else { "" })
        .raw("<title>")
        .text(title)
        .raw("</title><link rel=\"stylesheet\" href=\"/assets/page.css\">");
}

/// The page.
pub fn whole(status: &Status, panels: &[Panel], frame: &Frame<'_>) -> Html {
    let mut html = Html::new();
    let name = status.machine.as_deref().unwrap_or("Outrigger");
    begin(&mut html, &format!("{name}: {}", status.headline.text), frame.request.is_none());
    html.raw("<script src=\"/assets/page.js\" defer></script></head><body>");
    html.raw("<a class=\"skip\" href=\"#main\">Skip to the panels</a><header><h1>Outrigger</h1><p class=\"who\">");
    if let Some(machine) = &status.machine {
        html.text(machine).raw(" · ");
    }
    html.raw("version ")
        .text(&status.version)
        .raw(" · <span id=\"live\">")
        .text(status.at.strftime("%Y-%m-%d %H:%M:%S UTC"));
    html.raw("</span></p>");
    log_in_or_out(&mut html, frame);
    html.raw("</header>");
    for panel in panels.iter().filter(|panel| panel.title.is_empty()) {
        body(&mut html, panel);
    }
    html.raw("<p class=\"did\" role=\"status\">").raw(did(frame.done)).raw("</p>");
    html.raw("<main id=\"main\" tabindex=\"-1\">");
    for panel in panels.iter().filter(|panel| !panel.title.is_empty()) {
        html.raw("<section class=\"panel\" aria-labelledby=\"h-")
            .raw(panel.id)
            .raw("\"><h2 tabindex=\"-1\" id=\"h-")
            .raw(panel.id);
        html.raw("\">").raw(panel.title).raw("</h2>");
        if panel.id == "refused" {
            search(&mut html, frame);
        }
        body(&mut html, panel);
        html.raw("</section>");
    }
    html.raw("</main><footer><p>Times are UTC. Rates are of the last 10 s, rejections of the last 60 s. ");
    html.raw("The same as JSON: <a href=\"/status\">/status</a>; for Prometheus: <a href=\"/metrics\">/metrics</a>.</p></footer>");
    // One form for all buttons of the panels, so that panels are the same for all operators.
    if let Some(token) = frame.form_token {
        html.raw(
            "<form id=\"act\" method=\"post\" action=\"/act\"><input type=\"hidden\" name=\"form_token\" value=\"",
        );
        html.text(token).raw("\"></form>");
    }
    html.raw("</body></html>");
    html
}

fn body(html: &mut Html, panel: &Panel) {
    html.raw("<div class=\"body\" id=\"")
        .raw(panel.id)
        .raw("\" data-hash=\"")
        .text(format_args!("{:016x}", panel.hash));
    html.raw("\"")
        .raw(if panel.title.is_empty() { " role=\"status\"" } else { "" })
        .raw(">")
        .add(&panel.html)
        .raw("</div>");
}

fn log_in_or_out(html: &mut Html, frame: &Frame<'_>) {
    match (frame.viewer.has_login, frame.form_token) {
        (true, Some(token)) => {
            html.raw("<form method=\"post\" action=\"/logout\" class=\"log\"><input type=\"hidden\" name=\"form_token\" value=\"");
            html.text(token).raw("\"><button>Log out</button></form>");
        }
        (true, None) => {
            html.raw("<p class=\"log\"><a href=\"/login\">Log in to act</a></p>");
        }
        (false, None) => {
            html.raw("<p class=\"log\">To act, open this page on this machine, or set a token.</p>");
        }
        (false, Some(_)) => {}
    }
}

/// The texts are ours, so that a link cannot put others here.
fn did(done: Option<&str>) -> &'static str {
    match done {
        Some("breaker") => "The breaker is set.",
        Some("lift") => "The ban is lifted.",
        Some("restart") => "The app restarts; requests wait.",
        Some("pause") => "Requests wait.",
        Some("resume") => "Requests go on.",
        Some("maintenance") => "Requests are refused.",
        Some("service") => "Requests are served again.",
        Some("login") => "You are logged in.",
        Some("logout") => "You are logged out.",
        _ => "",
    }
}

fn search(html: &mut Html, frame: &Frame<'_>) {
    html.raw("<form method=\"get\" action=\"/\" role=\"search\"><label for=\"request\">Request id</label> ");
    html.raw(
        "<input id=\"request\" name=\"request\" autocomplete=\"off\" spellcheck=\"false\" maxlength=\"200\" value=\"",
    );
    html.text(frame.request.map_or("", |(id, _)| id)).raw("\"> <button>Look</button></form>");
    if let Some((_, story)) = frame.request {
        html.add(story).raw("<p><a href=\"/\">Back to the live page</a></p>");
    }
}

/// A page with one message, and the form to log in if it is wanted.
pub fn message(title: &'static str, text: &str, has_login_form: bool) -> Html {
    let mut html = Html::new();
    begin(&mut html, title, false);
    html.raw("</head><body class=\"small\"><main><h1>").raw(title).raw("</h1>");
    if !text.is_empty() {
        html.raw("<p role=\"alert\">").text(text).raw("</p>");
    }
    if has_login_form {
        html.raw("<form method=\"post\" action=\"/login\"><p><label for=\"token\">Token of the operators (OUTRIGGER_ADMIN_TOKEN)</label></p>");
        html.raw("<p><input id=\"token\" name=\"token\" type=\"password\" autocomplete=\"current-password\" required autofocus></p>");
        html.raw("<p><button>Log in</button></p></form>");
    }
    html.raw("<p><a href=\"/\">Back to the page</a></p></main></body></html>");
    html
}
