//! `outrigger explain`: shows what the configuration does with a request.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use outrigger_identity::client::Client;
use outrigger_policy::flags::{Feature, Mode, Subject};
use outrigger_wire::client_address::Sender;
use outrigger_wire::path::Unreadable;
use outrigger_wire::request::{Fields, Request};

use crate::config::Config;
use crate::sections::route_table::{BUILT_IN, PathRefused, Route};
use crate::units::{AutoSpan, CallWindow, OrOff, Share, Size, Span};

/// The input is not a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// Invalid method.
    #[error("{0:?} is not a method; write it in capitals, such as GET")]
    Method(String),
    /// Invalid path.
    #[error("{0:?} is not a path; it begins with a slash, and has no blanks and no fragment")]
    Path(String),
    /// Invalid header.
    #[error("{0:?} is not a header; write -H 'Name: value'")]
    Field(String),
}

/// Reads `Name: value`.
///
/// # Errors
/// [`ExplainError::Field`]
pub fn field(text: &str) -> Result<(HeaderName, HeaderValue), ExplainError> {
    let bad = || ExplainError::Field(text.to_owned());
    let (name, value) = text.split_once(':').ok_or_else(bad)?;
    let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| bad())?;
    let value = HeaderValue::from_str(value.trim()).map_err(|_| bad())?;
    Ok((name, value))
}

/// Why a request is rejected before it is routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It repeats a credential.
    RepeatedCredential,
    /// Its path.
    Path(PathRefused),
}

/// Why the file refuses the request, by the client's address or for maintenance.
fn closed(config: &Config, route: &Route, address: IpAddr, path: &str) -> Option<String> {
    if route.is_health {
        return None;
    }
    if let Some(key) = config.server.addresses.as_ref().and_then(|list| list.refused_by(address)) {
        return Some(format!("with 403, by server.{key}"));
    }
    if let Some((list, mode)) = &route.addresses
        && let Some(key) = list.refused_by(address)
    {
        let would = if *mode == Mode::Enforce { "" } else { "would be, " };
        return Some(format!("{would}with 403, by {key} of the route"));
    }
    let is_refused = config.maintenance.is_on && !config.maintenance.lets_pass(address, path);
    is_refused.then(|| "with 503, by [maintenance]".to_owned())
}

/// A rejection as the client sees it. The caller supplies it: the table of responses is not part of this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Status code.
    pub status: u16,
    /// The label in metrics and logs.
    pub label: &'static str,
    /// The remedy.
    pub detail: &'static str,
}

/// Explains the request in one paragraph. `told` gives the response to a rejected request.
///
/// # Errors
/// The input is not a request.
pub fn explain(
    config: &Config,
    from: IpAddr,
    method: &str,
    target: &str,
    headers: &HeaderMap,
    told: impl FnOnce(Refused) -> Told,
) -> Result<String, ExplainError> {
    let method = Method::from_bytes(method.as_bytes())
        .ok()
        .filter(|m| !m.as_str().bytes().any(|b| b.is_ascii_lowercase()))
        .ok_or_else(|| ExplainError::Method(method.to_owned()))?;
    let path = target.split('?').next().unwrap_or_default();
    if !path.starts_with('/') || target.contains(|c: char| c == '#' || c == ' ' || c.is_ascii_control()) {
        return Err(ExplainError::Path(target.to_owned()));
    }
    let host = headers.get(http::header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let request = Request {
        method: &method,
        path,
        host,
        fields: Fields::Map(headers),
        is_http10: false,
        target: path,
        has_endless_body: false,
    };
    if config.credentials.are_repeated(request.fields) {
        let told = told(Refused::RepeatedCredential);
        return Ok(refusal(told, "its credentials name different clients"));
    }
    let number = match config.routes.find(&request) {
        Ok(number) => number,
        Err(refused) => return Ok(refusal(told(Refused::Path(refused)), &why(refused, config))),
    };
    let route = &config.routes.all()[number];
    let address = config.edge.client(config.edge.sender(from), request.fields).unwrap_or(from);
    let shown = Client::shown_address(address);
    let subject = Subject { id: &shown, user: None, address };

    let mut out = String::new();
    let mut line = |key: &str, value: &str| {
        // Writing into a string cannot fail.
        let _ = writeln!(out, "{key:<14} {value}");
    };
    line("client", &client(config, from, request.fields));
    line("route", &route.name);
    line("because", &because(&route.name, number, config));
    if let Some(refusal) = closed(config, route, address, path) {
        line("refused", &refusal);
    }
    line("priority", route.priority.name());
    line("timeout", &Span(route.timeout).to_string());
    let max_body = (route.max_body_bytes < u64::MAX).then_some(Size(route.max_body_bytes));
    line("max_body", &OrOff(max_body).to_string());
    line("app", &config.app.address.to_string());
    line("cost", &route.cost.to_string());
    for (_, limit) in config.limits.of(number) {
        line("limit", &limit.to_string());
    }
    let gate = if route.is_health { "never waits for a permit".to_owned() } else { gate(config) };
    line("admission", &gate);
    if !route.is_health {
        line("hold", &hold(config));
        line("breaker", &breaker(config, route));
        line("retry", &retry(config, route));
        line("session", &session(config));
        line("failover", &failover(config));
    }
    if let Some(fallback) = &route.fallback {
        line("fallback", &format!("{} {}", fallback.status.as_u16(), fallback.content_type));
    }
    for feature in Feature::ALL {
        line("flag", &flag(config, feature, subject));
    }
    Ok(out)
}

/// A feature flag, its mode for the client, and whether that is the same for all clients.
fn flag(config: &Config, feature: Feature, subject: Subject<'_>) -> String {
    let flag = config.flag(feature);
    let who = if flag.mode_for_everybody().is_some() {
        "for everybody".to_owned()
    } else {
        format!("for {}; depends on the client", subject.id.trim_start_matches("address:"))
    };
    let mode = flag.mode_for(feature, subject).name();
    format!("{} = {} ({mode} {who})", feature.key(), flag.switch)
}

/// The client's address, and the header or connection that it comes from.
fn client(config: &Config, from: IpAddr, fields: Fields<'_>) -> String {
    let edge = &config.edge;
    let sender = edge.sender(from);
    let networks = || edge.networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let Some(header) = edge.source.header() else {
        return format!("{from}: the connection; no proxy in front is trusted (identity.edge, identity.trusted)");
    };
    match edge.client(sender, fields) {
        Some(client) => format!("{client}: from {header}, which {from} may set"),
        None if sender == Sender::Stranger => {
            format!("{from}: the connection; {header} is trusted from {} only", networks())
        }
        None => format!("{from}: the connection; {from} may set {header}, but the header has no address"),
    }
}

/// The text for a request that is rejected before it is routed.
fn refusal(Told { status, label, detail }: Told, because: &str) -> String {
    format!("{:<14} {status} {label}\n{:<14} {because}\n{:<14} {}\n", "refused", "because", "hint", detail)
}

fn why(refused: PathRefused, config: &Config) -> String {
    let name = |number: usize| config.routes.all().get(number).map_or("default", |route| &*route.name);
    match refused {
        PathRefused::Unreadable(Unreadable::DotSegment) => "an app may read a segment \".\" or \"..\" in it".to_owned(),
        PathRefused::Unreadable(Unreadable::ControlCharacter) => "it has a control character".to_owned(),
        PathRefused::Unreadable(Unreadable::TooManyReadings) => "it has too many readings".to_owned(),
        PathRefused::Ambiguous(one, other) => {
            format!("one app may read a path of route {:?} in it, another a path of route {:?}", name(one), name(other))
        }
        PathRefused::NotPublic => "it is the path of the app's metrics, and no route names it".to_owned(),
    }
}

fn gate(config: &Config) -> String {
    let settings = config.gate.settings;
    let wait = Span(settings.max_wait);
    let concurrency = settings.concurrency;
    format!("{}: {} to {} at a time, waits up to {wait}", config.gate.mode.name(), concurrency.min, concurrency.max)
}

fn hold(config: &Config) -> String {
    match config.app.hold {
        Duration::ZERO => "never waits for an app that is down".to_owned(),
        hold => format!("waits up to {} for an app that is down", Span(hold)),
    }
}

fn breaker(config: &Config, route: &Route) -> String {
    let Some(rules) = route.breaker.and_then(|number| config.breakers.get(usize::from(number))) else {
        return "none".to_owned();
    };
    let settings = &rules.settings;
    let share = |rate: Option<f64>, what: &str| {
        rate.map(|rate| format!(", at {} {what} over {}", Share(rate), CallWindow(settings.window)))
    };
    format!(
        "{} ({}): opens after {} failures in a row{}{}, {}for {}",
        rules.name,
        rules.mode.name(),
        settings.consecutive,
        share(settings.failure_rate, "failures").unwrap_or_default(),
        share(settings.slow_rate.filter(|_| settings.slow_after.is_some()), "slow responses").unwrap_or_default(),
        match settings.min_clients {
            0 | 1 => String::new(),
            clients => format!("seen by {clients} clients, "),
        },
        Span(settings.open_for)
    )
}

fn session(config: &Config) -> String {
    match config.affinity.filter(|rules| rules.mode != Mode::Off) {
        None => "not sticky".to_owned(),
        Some(rules) => format!(
            "{}: sticky by {}, for {} without a request",
            rules.mode.name(),
            rules.via.name(),
            Span(rules.lifetime.idle)
        ),
    }
}

fn failover(config: &Config) -> String {
    match &config.peers {
        Some(peers) if peers.failover == Mode::Enforce => "to a ready peer, once".to_owned(),
        _ => "none".to_owned(),
    }
}

fn retry(config: &Config, route: &Route) -> String {
    if route.attempts < 2 {
        return "never".to_owned();
    }
    let statuses: Vec<String> = route.retry_statuses.iter().map(u16::to_string).collect();
    let statuses = if statuses.is_empty() { String::new() } else { format!(" and statuses {}", statuses.join(", ")) };
    let rules = &config.retry;
    let attempts = match rules.attempt_timeout {
        AutoSpan::Off => String::new(),
        AutoSpan::Auto => ", and after an attempt timeout by the route's own latency".to_owned(),
        AutoSpan::Fixed(span) => format!(", and after an attempt timeout of {span}"),
    };
    format!(
        "up to {} attempts after broken connections{statuses}{attempts}, within {} of all requests",
        route.attempts,
        Share(rules.budget.share)
    )
}

fn because(name: &str, number: usize, config: &Config) -> String {
    match name {
        "health" => "the health endpoints come before every route of the file".to_owned(),
        "default" => "no route of the file matches".to_owned(),
        _ => {
            let before = BUILT_IN.len();
            format!(
                "it is number {} of {} in the file, and the first that matches",
                number - before + 1,
                config.routes.all().len() - before - 1
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Panics: these requests are not rejected.
    fn nothing(refused: Refused) -> Told {
        panic!("{refused:?}")
    }

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn config() -> Config {
        let source = r#"
            [flags]
            audit_trail = "10%"
            [[routes]]
            name = "search"
            path = "/api/v1/documents/search"
            methods = ["POST"]
            priority = "low"
            timeout = "10s"
        "#;
        Config::parse(Path::new("test.toml"), source, &|_| None).unwrap()
    }

    #[test]
    fn explains_the_route() {
        let text =
            explain(&config(), HERE, "POST", "/api/v1/documents/search?x=1", &HeaderMap::new(), nothing).unwrap();
        insta::assert_snapshot!(text);
    }

    #[test]
    fn explains_the_client() {
        let fields = [("x-forwarded-for", "6.6.6.6, 203.0.113.9"), ("fly-client-ip", "198.51.100.1")];
        let client = |identity: &str, from: &str, on_fly: bool, fields: &[(&'static str, &'static str)]| {
            let environment = |name: &str| (on_fly && name == "FLY_APP_NAME").then(|| "shop".to_owned());
            let source = format!("[identity]\n{identity}");
            let config = Config::parse(Path::new("test.toml"), &source, &environment).unwrap();
            let fields = fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)));
            let text = explain(&config, from.parse().unwrap(), "GET", "/", &fields.collect(), nothing).unwrap();
            text.lines().next().unwrap().trim_start_matches("client").trim().to_owned()
        };
        let trusted = "trusted = [\"10.0.0.0/8\"]";
        assert_eq!(
            [
                client("", "10.0.0.1", false, &fields),
                client(trusted, "10.0.0.1", false, &fields),
                client(trusted, "10.0.0.1", false, &[]),
                client(trusted, "192.0.2.1", false, &fields),
                client("", "172.16.0.5", true, &fields),
                client("edge = \"none\"", "172.16.0.5", true, &fields),
            ],
            [
                "10.0.0.1: the connection; no proxy in front is trusted (identity.edge, identity.trusted)",
                "203.0.113.9: from x-forwarded-for, which 10.0.0.1 may set",
                "10.0.0.1: the connection; 10.0.0.1 may set x-forwarded-for, but the header has no address",
                "192.0.2.1: the connection; x-forwarded-for is trusted from 10.0.0.0/8 only",
                "198.51.100.1: from fly-client-ip, which 172.16.0.5 may set",
                "172.16.0.5: the connection; no proxy in front is trusted (identity.edge, identity.trusted)",
            ]
        );
    }

    #[test]
    fn rejects_invalid_requests() {
        let error =
            |method, path| explain(&config(), HERE, method, path, &HeaderMap::new(), nothing).unwrap_err().to_string();
        assert_eq!(error("get", "/"), "\"get\" is not a method; write it in capitals, such as GET");
        assert_eq!(error("GET", "x"), "\"x\" is not a path; it begins with a slash, and has no blanks and no fragment");
        assert_eq!(field("no colon").unwrap_err().to_string(), "\"no colon\" is not a header; write -H 'Name: value'");
    }
}
