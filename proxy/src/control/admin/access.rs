//! Access control of the admin listener.
//!
//! Every endpoint declares what it [`Needs`]. This prevents two attacks. From the network: an endpoint that names clients or
//! changes state requires the token or, if there is no token, a connection from this machine. From web pages that an
//! operator has open: the `Host` header must name this listener, so that a page whose name resolves to it (DNS rebinding) is
//! rejected, and the `Origin` and `Sec-Fetch-Site` headers must not name another site.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State as Shared};
use axum::handler::Handler;
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use axum::{Json, Router};
use outrigger_identity::clock;
use outrigger_rules::config::AdminRules;
use outrigger_rules::environment::ADMIN_TOKEN;
use outrigger_wire::authority::Authority;
use ring::digest::{SHA256, digest};
use serde_json::json;
use subtle::ConstantTimeEq;

use crate::control::admin::sessions::{self, Sessions};
use crate::engine::state::State;

static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The access that an endpoint requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Open to all: it names no clients, changes no state, and is requested under any name (Prometheus, health checks).
    Nothing,
    /// A `Host` header that names this listener; it names no clients and changes no state.
    OwnHost,
    /// As [`Self::OwnHost`] for a browser, which gets a page, also by a link on another site; open to others, who get a list.
    Page,
    /// An operator who has logged in: the cookie of a session, or as [`Self::Operator`]. Such endpoints check the form's token.
    Session,
    /// An operator, as it names clients or changes state: the token or, without one, a connection from this machine; and a
    /// `Host` header that names this listener.
    Operator,
}

impl Needs {
    /// The name in the table of docs/operations.md.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::OwnHost => "own host",
            Self::Page => "nothing; for HTML own host",
            Self::Session => "session",
            Self::Operator => "operator",
        }
    }
}

/// The endpoints, each with the access that it requires.
#[derive(Debug)]
pub struct Endpoints {
    router: Router<Arc<State>>,
    state: Arc<State>,
    sessions: Arc<Sessions>,
    /// Method, path and required access of each.
    listed: Vec<(&'static str, &'static str, Needs)>,
}

impl Endpoints {
    /// Without endpoints.
    pub fn new(state: &Arc<State>, sessions: Arc<Sessions>) -> Self {
        Self { router: Router::new(), state: Arc::clone(state), sessions, listed: Vec::new() }
    }

    /// Adds an endpoint that reads.
    #[must_use]
    pub fn get<T: 'static>(self, needs: Needs, path: &'static str, handler: impl Handler<T, Arc<State>>) -> Self {
        self.add(MethodFilter::GET, "GET", needs, path, handler)
    }

    /// Adds an endpoint that changes state, for operators.
    #[must_use]
    pub fn post<T: 'static>(self, path: &'static str, handler: impl Handler<T, Arc<State>>) -> Self {
        self.add(MethodFilter::POST, "POST", Needs::Operator, path, handler)
    }

    /// Adds an endpoint for a form of the page.
    #[must_use]
    pub fn form<T: 'static>(self, needs: Needs, path: &'static str, handler: impl Handler<T, Arc<State>>) -> Self {
        self.add(MethodFilter::POST, "POST", needs, path, handler)
    }

    /// Adds an endpoint that removes something, for operators.
    #[must_use]
    pub fn delete<T: 'static>(self, path: &'static str, handler: impl Handler<T, Arc<State>>) -> Self {
        self.add(MethodFilter::DELETE, "DELETE", Needs::Operator, path, handler)
    }

    fn add<T: 'static>(
        mut self,
        filter: MethodFilter,
        method: &'static str,
        needs: Needs,
        path: &'static str,
        handler: impl Handler<T, Arc<State>>,
    ) -> Self {
        let guard = Guard { state: Arc::clone(&self.state), sessions: Arc::clone(&self.sessions), needs };
        let guarded = on(filter, handler).route_layer(middleware::from_fn_with_state(guard, only_if_allowed));
        self.listed.push((method, path, needs));
        Self { router: self.router.route(path, guarded), ..self }
    }

    /// Method, path and required access of each endpoint.
    pub fn listed(&self) -> &[(&'static str, &'static str, Needs)] {
        &self.listed
    }

    /// The router; any other request goes to `otherwise`.
    pub fn router<T: 'static>(self, otherwise: impl Handler<T, Arc<State>>) -> Router {
        self.router.fallback(otherwise).with_state(self.state)
    }
}

/// The addresses of a request's connection.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// The address at the other end of the connection.
    pub from: SocketAddr,
    /// The local address.
    pub at: SocketAddr,
}

/// Why a request is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The `Host` header is missing, repeated, or not `host[:port]`.
    #[error("a request needs one `Host`, as host[:port]")]
    NoHost,
    /// The `Host` header does not name this listener.
    #[error("`Host` does not name this listener: use localhost or its address, or add the name to admin.hosts")]
    ForeignHost,
    /// The request comes from a web page of another site.
    #[error("`Origin` or `Sec-Fetch-Site` shows that a page of another site sent this")]
    ForeignOrigin,
    /// A token is configured, and the request does not have it.
    #[error("this needs `Authorization: Bearer` with {ADMIN_TOKEN} of the proxy's environment")]
    NoToken,
    /// A token is configured, and the request has no session.
    #[error("this needs a session: open / and log in")]
    NoSession,
    /// No token is configured, and the request comes from another machine.
    #[error(
        "this needs a connection from the proxy's own machine, or {ADMIN_TOKEN} in the proxy's environment and the request"
    )]
    NotHere,
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        let status = match self {
            Self::NoHost => StatusCode::BAD_REQUEST,
            Self::ForeignHost => StatusCode::MISDIRECTED_REQUEST,
            Self::ForeignOrigin | Self::NotHere => StatusCode::FORBIDDEN,
            Self::NoToken | Self::NoSession => StatusCode::UNAUTHORIZED,
        };
        let mut response = (status, Json(json!({ "error": self.to_string() }))).into_response();
        if self == Self::NoToken {
            let challenge = header::HeaderValue::from_static("Bearer realm=\"outrigger\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

#[derive(Clone, Debug)]
struct Guard {
    state: Arc<State>,
    sessions: Arc<Sessions>,
    needs: Needs,
}

/// The sender of a request, for endpoints that show more to operators.
#[derive(Clone, Debug)]
pub struct Viewer {
    /// It may do what operators may.
    pub is_operator: bool,
    /// Operators need the token, so they log in.
    pub has_login: bool,
    /// The cookie that it sent, if it looks like one of ours.
    pub cookie: Option<String>,
    /// It is a browser that wants a page.
    pub wants_html: bool,
}

async fn only_if_allowed(
    Shared(Guard { state, sessions, needs }): Shared<Guard>,
    mut request: Request,
    next: Next,
) -> Response {
    let mut viewer = None;
    let verdict = match request.extensions().get::<Arrival>() {
        Some(arrival) => {
            let token = std::env::var(ADMIN_TOKEN).ok().filter(|token| !token.is_empty());
            let rules = state.rules.load();
            let asked = Asked { uri: request.uri(), headers: request.headers(), arrival: *arrival };
            let cookie = sessions::cookie(request.headers());
            let has_session = cookie.as_ref().is_some_and(|cookie| sessions.knows(cookie, clock::now()));
            viewer = Some(Viewer {
                is_operator: asked.is_operator(token.as_deref()).is_ok() || (token.is_some() && has_session),
                has_login: token.is_some(),
                cookie,
                wants_html: asked.wants_html(),
            });
            asked.verdict(needs, &rules.config.admin, token.as_deref(), has_session)
        }
        // Every connection has this extension.
        None => Err(Denied::NotHere),
    };
    match verdict {
        Ok(()) => {
            if let Some(viewer) = viewer {
                request.extensions_mut().insert(viewer);
            }
            next.run(request).await
        }
        Err(denied) => denied.into_response(),
    }
}

/// The parts of a request that decide about its access.
#[derive(Clone, Copy, Debug)]
struct Asked<'a> {
    uri: &'a Uri,
    headers: &'a HeaderMap,
    arrival: Arrival,
}

impl Asked<'_> {
    fn verdict(self, needs: Needs, rules: &AdminRules, token: Option<&str>, has_session: bool) -> Result<(), Denied> {
        if needs == Needs::Nothing || (needs == Needs::Page && !self.wants_html()) {
            return Ok(());
        }
        let host = self.host()?;
        let is_own = |authority: Authority<'_>| is_own(authority, rules, self.arrival.at.ip());
        // An absolute target is what counts (RFC 9112 section 3.2.2), and its host has to be one of ours as well.
        let target = match self.uri.authority() {
            Some(authority) => Some(Authority::parse(authority.as_str()).ok_or(Denied::NoHost)?),
            None => None,
        };
        if !is_own(host) || !target.is_none_or(is_own) {
            return Err(Denied::ForeignHost);
        }
        if !(self.is_of_this_site(host) || (needs == Needs::Page && self.is_followed_link())) {
            return Err(Denied::ForeignOrigin);
        }
        match needs {
            Needs::Operator => self.is_operator(token),
            Needs::Session if token.is_some() && has_session => Ok(()),
            Needs::Session => self.is_operator(token).map_err(|denied| match denied {
                Denied::NoToken => Denied::NoSession,
                denied => denied,
            }),
            Needs::Nothing | Needs::OwnHost | Needs::Page => Ok(()),
        }
    }

    fn is_operator(&self, token: Option<&str>) -> Result<(), Denied> {
        match token {
            Some(token) if !self.has_token(token) => Err(Denied::NoToken),
            // A proxy on this machine connects for people on others.
            None if !self.arrival.from.ip().to_canonical().is_loopback() || self.is_forwarded() => Err(Denied::NotHere),
            _ => Ok(()),
        }
    }

    fn is_forwarded(&self) -> bool {
        let names = ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"];
        names.iter().any(|name| self.headers.contains_key(*name))
    }

    fn wants_html(&self) -> bool {
        let accepted = self.headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        accepted.flat_map(|value| value.split(',')).any(|kind| {
            let mut parts = kind.split(';').map(str::trim);
            let is_html = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("text/html"));
            is_html && !parts.any(|part| matches!(part, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
        })
    }

    /// A person follows a link on another site, such as in an alert: the other site cannot read the page.
    fn is_followed_link(&self) -> bool {
        let is = |name: &str, value: &[u8]| self.headers.get(name).is_some_and(|sent| sent.as_bytes() == value);
        is("sec-fetch-mode", b"navigate")
            && is("sec-fetch-dest", b"document")
            && !self.headers.contains_key(header::ORIGIN)
    }

    fn host(&self) -> Result<Authority<'_>, Denied> {
        let mut hosts = self.headers.get_all(header::HOST).iter();
        match (hosts.next(), hosts.next()) {
            (Some(host), None) => host.to_str().ok().and_then(Authority::parse).ok_or(Denied::NoHost),
            _ => Err(Denied::NoHost),
        }
    }

    /// Browsers send the origin of a page in these headers. Other clients do not send them, and pass.
    fn is_of_this_site(&self, host: Authority<'_>) -> bool {
        let sites = self.headers.get_all(&SEC_FETCH_SITE).iter();
        let origins = self.headers.get_all(header::ORIGIN).iter();
        let is_same = |origin: &str| {
            let (scheme, origin) = origin.split_once("://").unwrap_or_default();
            let default = match scheme {
                "http" => 80,
                "https" => 443,
                _ => return false,
            };
            Authority::parse(origin).is_some_and(|origin| {
                origin.is_named_like(host) && origin.port.unwrap_or(default) == host.port.unwrap_or(default)
            })
        };
        sites.into_iter().all(|site| matches!(site.as_bytes(), b"same-origin" | b"none"))
            && origins.into_iter().all(|origin| origin.to_str().is_ok_and(is_same))
    }

    /// Compares digests in constant time.
    fn has_token(&self, token: &str) -> bool {
        let mut values = self.headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return false };
        let Some((scheme, sent)) = value.as_bytes().split_at_checked(7) else { return false };
        let hash = |bytes: &[u8]| digest(&SHA256, bytes);
        scheme.eq_ignore_ascii_case(b"bearer ") && hash(sent).as_ref().ct_eq(hash(token.as_bytes()).as_ref()).into()
    }
}

/// Whether `authority` is a name or an address of the listener, on which the connection arrived at `at`.
fn is_own(authority: Authority<'_>, rules: &AdminRules, at: IpAddr) -> bool {
    let named = |name: &str| authority.is_named_like(Authority { host: name, port: None });
    let is_listed = rules.hosts.iter().any(|host| named(host));
    match authority.address() {
        Some(address) => {
            let is_ours = [at, rules.listen.ip()].iter().any(|ours| ours.to_canonical() == address);
            address.is_loopback() || (is_ours && !address.is_unspecified()) || is_listed
        }
        // Others in Fly's private network cannot make such a name resolve to another address.
        None => {
            let host = authority.host;
            let is_internal =
                host.len() > 9 && host.get(host.len() - 9..).is_some_and(|end| end.eq_ignore_ascii_case(".internal"));
            named("localhost") || is_listed || (rules.is_on_fly && (is_internal || named("fly-local-6pn")))
        }
    }
}

#[cfg(test)]
mod tests;
