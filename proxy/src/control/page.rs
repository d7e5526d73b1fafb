//! The page for operators at `GET /` of the admin listener: complete without JavaScript, live with it.
//!
//! ```text
//! html.rs      text that is escaped wherever it does not come from this program's source
//! panels.rs    the parts of the page, each replaced alone; panels/: traffic.rs, protection.rs, changes.rs
//! layout.rs    the whole page, and the page to log in
//! live.rs      server-sent events: one rendering each second for all viewers
//! forms.rs     log in, log out, act
//! requests.rs  rejected requests, and the story of one
//! ```
//!
//! docs/page.md describes it.

mod forms;
mod html;
mod layout;
pub mod live;
mod panels;
mod requests;

use std::sync::Arc;

use axum::extract::{Query, State as Shared};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, body::Body};
use outrigger_identity::clock;
use serde::Deserialize;

use crate::control::admin::access::{Endpoints, Needs, Viewer};
use crate::control::admin::connections::Place;
use crate::control::admin::sessions::{self, Sessions};
use crate::control::page::html::Html;
use crate::control::page::layout::{Frame, whole};
use crate::control::page::live::Live;
use crate::control::status::gather::Board;
use crate::engine::state::State;

const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// The page may use its own script and style sheet only, and send forms to this listener only.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'self'; \
                      base-uri 'none'; frame-ancestors 'none'";

/// Adds the endpoints. `index` is for those that do not ask for HTML.
pub fn endpoints(endpoints: Endpoints, index: &'static str) -> Endpoints {
    let root = move |viewer: Option<Extension<Viewer>>, query, state, board, sessions, live| {
        root(index, viewer.map(|Extension(viewer)| viewer), query, state, board, sessions, live)
    };
    forms::endpoints(endpoints)
        .get(Needs::Page, "/", root)
        .get(Needs::OwnHost, "/events", events)
        .get(Needs::Nothing, "/assets/page.css", |headers: HeaderMap| async move { asset(&headers, "text/css", STYLE) })
        .get(Needs::Nothing, "/assets/page.js", |headers: HeaderMap| async move {
            asset(&headers, "text/javascript", SCRIPT)
        })
}

/// A page with the headers that all pages have.
pub fn page(status: StatusCode, html: Html) -> Response {
    let headers: [(HeaderName, &str); 6] = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // With `no-referrer`, browsers send `Origin: null` with forms of this page, too.
        (header::REFERRER_POLICY, "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
        (header::VARY, "accept"),
    ];
    (status, headers, html.finish()).into_response()
}

/// Adds a cookie to a response.
pub fn with_cookie(mut response: Response, line: &str) -> Response {
    if let Ok(line) = HeaderValue::from_str(line) {
        response.headers_mut().append(header::SET_COOKIE, line);
    }
    response
}

#[derive(Debug, Default, Deserialize)]
struct Asked {
    /// The id of a request to look for.
    request: Option<String>,
    /// The last action was done.
    done: Option<String>,
}

async fn root(
    index: &'static str,
    viewer: Option<Viewer>,
    asked: Result<Query<Asked>, axum::extract::rejection::QueryRejection>,
    Shared(state): Shared<Arc<State>>,
    Extension(board): Extension<Arc<Board>>,
    Extension(sessions): Extension<Arc<Sessions>>,
    Extension(live): Extension<Arc<Live>>,
) -> Response {
    let Some(viewer) = viewer.filter(|viewer| viewer.wants_html) else {
        return ([(header::VARY, "accept")], index).into_response();
    };
    let Query(asked) = asked.unwrap_or_default();
    // Without a login, the cookie binds forms to this browser.
    let fresh =
        (viewer.is_operator && !viewer.has_login && viewer.cookie.is_none()).then(|| sessions.fresh_id()).flatten();
    let has_session = viewer.cookie.as_ref().is_some_and(|id| !viewer.has_login || sessions.knows(id, clock::now()));
    let cookie = viewer.cookie.as_deref().filter(|_| has_session).or(fresh.as_deref());
    let form_token = cookie.filter(|_| viewer.is_operator).and_then(|id| sessions.form_token(id));
    let found = asked.request.as_deref().map(|id| requests::story(&state, id));
    let status = board.status();
    let panels = live.panels(&state, &status, viewer.is_operator);
    let frame = Frame {
        viewer: &viewer,
        form_token: form_token.as_deref(),
        request: asked.request.as_deref().zip(found.as_ref()),
        done: asked.done.as_deref(),
    };
    let response = page(StatusCode::OK, whole(&status, &panels, &frame));
    match fresh {
        Some(id) => with_cookie(response, &sessions::set_cookie(&id)),
        None => response,
    }
}

async fn events(
    Extension(viewer): Extension<Viewer>,
    Extension(place): Extension<Arc<Place>>,
    Extension(live): Extension<Arc<Live>>,
    Extension(sessions): Extension<Arc<Sessions>>,
    Shared(state): Shared<Arc<State>>,
) -> Response {
    let most = live::most_viewers(state.rules.load().config.admin.max_connections);
    let session = viewer.cookie.filter(|_| viewer.has_login && viewer.is_operator).map(|id| (sessions, id));
    match live.feed(place, most, viewer.is_operator, session) {
        Some(feed) => {
            let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
            (headers, Body::new(feed)).into_response()
        }
        None => {
            let text = "too many viewers: close another page, or reload this one\n";
            (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "10")], text).into_response()
        }
    }
}

fn asset(headers: &HeaderMap, kind: &'static str, text: &'static str) -> Response {
    let tag = format!("\"{:016x}\"", html::hash(text));
    let is_known = headers.get_all(header::IF_NONE_MATCH).iter().any(|known| known.as_bytes() == tag.as_bytes());
    let headers = [
        (header::CONTENT_TYPE, format!("{kind}; charset=utf-8")),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::CACHE_CONTROL, "no-cache".to_owned()),
        (header::ETAG, tag),
    ];
    if is_known { (StatusCode::NOT_MODIFIED, headers).into_response() } else { (headers, text).into_response() }
}

#[cfg(test)]
mod tests;
