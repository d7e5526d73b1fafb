//! Log in, log out, and act. Each form has the token of its cookie; actions are those of the JSON API, audited as there.

use std::sync::Arc;

use axum::Extension;
use axum::Form;
use axum::extract::State as Shared;
use axum::extract::rejection::FormRejection;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use outrigger_identity::clock;
use outrigger_rules::environment::ADMIN_TOKEN;
use ring::digest::{SHA256, digest};
use serde::Deserialize;
use subtle::ConstantTimeEq;

use crate::control::admin::access::{Endpoints, Needs, Viewer};
use crate::control::admin::app::note_restart;
use crate::control::admin::connections::Place;
use crate::control::admin::control::{Force, force_breaker, lift_ban};
use crate::control::admin::pausing::set_maintenance;
use crate::control::admin::sessions::{self, Sessions};
use crate::control::page::layout::message;
use crate::control::page::{page, with_cookie};
use crate::control::status::gather::Board;
use crate::engine::notices;
use crate::engine::pause::{self, End, USUAL};
use crate::engine::state::State;
use crate::run::Handle;

/// Adds the endpoints.
pub fn endpoints(endpoints: Endpoints) -> Endpoints {
    endpoints
        .get(Needs::OwnHost, "/login", || async { page(StatusCode::OK, message("Log in", "", true)) })
        .form(Needs::OwnHost, "/login", log_in)
        .form(Needs::Session, "/logout", log_out)
        .form(Needs::Session, "/act", act)
}

#[derive(Deserialize)]
struct Login {
    token: String,
}

#[derive(Debug, Deserialize)]
struct Logout {
    form_token: String,
}

#[derive(Debug, Deserialize)]
struct Action {
    form_token: String,
    /// `open NAME`, `close NAME`, `automatic NAME`, `lift CLIENT`, `restart`, `pause`, `resume`, `maintenance on` or
    /// `maintenance off`.
    act: String,
}

fn back(done: &'static str) -> Response {
    let location = match done {
        "breaker" => "/?done=breaker#h-breakers",
        "lift" => "/?done=lift#h-bans",
        "restart" => "/?done=restart#h-app",
        "pause" => "/?done=pause#h-app",
        "resume" => "/?done=resume#h-app",
        "maintenance" => "/?done=maintenance#h-app",
        "service" => "/?done=service#h-app",
        "login" => "/?done=login",
        _ => "/?done=logout",
    };
    (StatusCode::SEE_OTHER, [(header::LOCATION, location), (header::CACHE_CONTROL, "no-store")]).into_response()
}

fn refused(status: StatusCode, text: &str) -> Response {
    page(status, message("Not done", text, false))
}

/// A form that cannot be read, or that does not belong to this browser and this process.
fn stale() -> Response {
    refused(StatusCode::BAD_REQUEST, "This form is not of this session: go back, reload the page, and try again.")
}

async fn log_in(
    Shared(state): Shared<Arc<State>>,
    Extension(place): Extension<Arc<Place>>,
    Extension(sessions): Extension<Arc<Sessions>>,
    form: Result<Form<Login>, FormRejection>,
) -> Response {
    let Ok(Form(Login { token: sent })) = form else { return stale() };
    let Some(token) = std::env::var(ADMIN_TOKEN).ok().filter(|token| !token.is_empty()) else {
        return refused(StatusCode::CONFLICT, "No token is configured, so there is no login.");
    };
    let now = clock::now();
    if let Err(left) = sessions.may_log_in(place.client, now) {
        let seconds = left.as_secs() + 1;
        let text = format!("Too many failed logins from your address: wait {seconds} s.");
        let mut response = page(StatusCode::TOO_MANY_REQUESTS, message("Log in", &text, true));
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        return response;
    }
    let hash = |text: &str| digest(&SHA256, text.as_bytes());
    let is_right: bool = hash(&sent).as_ref().ct_eq(hash(&token).as_ref()).into();
    notices::logged_in(&state, is_right, place.client);
    if !is_right {
        sessions.failed(place.client, now);
        return page(StatusCode::FORBIDDEN, message("Log in", "This is not the token.", true));
    }
    // A new id: one that was known before the login is worth nothing.
    let Some(id) = sessions.fresh_id() else {
        return refused(StatusCode::INTERNAL_SERVER_ERROR, "The system has no random bytes.");
    };
    sessions.begin(&id, now);
    with_cookie(back("login"), &sessions::set_cookie(&id))
}

async fn log_out(
    Extension(viewer): Extension<Viewer>,
    Extension(sessions): Extension<Arc<Sessions>>,
    form: Result<Form<Logout>, FormRejection>,
) -> Response {
    let Ok(Form(Logout { form_token })) = form else { return stale() };
    let Some(id) = viewer.cookie.filter(|id| sessions.is_form_token(id, &form_token)) else { return stale() };
    sessions.end(&id);
    with_cookie(back("logout"), &sessions::remove_cookie())
}

async fn act(
    Shared(state): Shared<Arc<State>>,
    Extension(viewer): Extension<Viewer>,
    Extension(sessions): Extension<Arc<Sessions>>,
    Extension(board): Extension<Arc<Board>>,
    Extension(app): Extension<Option<Handle>>,
    form: Result<Form<Action>, FormRejection>,
) -> Response {
    let Ok(Form(Action { form_token, act })) = form else { return stale() };
    if !viewer.cookie.is_some_and(|id| sessions.is_form_token(&id, &form_token)) {
        return stale();
    }
    let (verb, name) = act.split_once(' ').unwrap_or((&act, ""));
    let force = match verb {
        "open" => Some(Force::Open),
        "close" => Some(Force::Closed),
        "automatic" => Some(Force::Automatic),
        _ => None,
    };
    let response = match (force, verb) {
        (Some(force), _) => match force_breaker(&state, name, force) {
            Ok(_) => back("breaker"),
            Err(e) => refused(StatusCode::NOT_FOUND, &e.to_string()),
        },
        (None, "lift") => match lift_ban(&state, name) {
            Ok(()) => back("lift"),
            Err(e) => refused(StatusCode::NOT_FOUND, &e.to_string()),
        },
        (None, "restart") => match app {
            Some(app) => {
                note_restart(&state);
                // The page shows how it goes; the response does not wait for the app.
                tokio::spawn(async move { app.restart().await });
                back("restart")
            }
            None => refused(StatusCode::CONFLICT, "Outrigger has not started the app, so it cannot restart it."),
        },
        (None, "pause" | "resume" | "maintenance") => order(&state, verb, name),
        _ => stale(),
    };
    board.refresh();
    response
}

/// Pause and maintenance.
fn order(state: &Arc<State>, verb: &str, name: &str) -> Response {
    match (verb, name) {
        ("pause", _) => {
            pause::pause(state, USUAL);
            back("pause")
        }
        ("resume", _) => match pause::resume(state, End::Operator) {
            Some(_) => back("resume"),
            None => refused(StatusCode::CONFLICT, "Requests are not paused: the pause has ended."),
        },
        (_, "on" | "off") => match set_maintenance(state, name == "on") {
            Ok(_) => back(if name == "on" { "maintenance" } else { "service" }),
            Err(e) => refused(StatusCode::CONFLICT, &e.to_string()),
        },
        _ => stale(),
    }
}
