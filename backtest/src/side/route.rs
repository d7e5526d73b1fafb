//! The route of each kind of request, under one file of rules.

use http::HeaderMap;
use outrigger_identity::hash::client_hash;
use outrigger_rules::config::Config;
use outrigger_wire::request::{Fields, Request};

use crate::past::PastShape;
use crate::side::Circumstances;

/// The route of a kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PastRoute {
    /// Its number.
    pub(super) route: usize,
    /// A number for the first segment of its path, where unrelated paths share a circuit breaker.
    pub(super) place: u64,
    /// It has the recorded name: the recorded path does not lead to the recorded route.
    pub(super) is_by_name: bool,
}

impl PastRoute {
    /// The route of `shape` in `config`.
    pub(super) fn of(shape: &PastShape, config: &Config, with: &Circumstances<'_>) -> Self {
        let first = shape.path.trim_start_matches('/').split('/').next().unwrap_or_default();
        let place = client_hash(b'p', first.as_bytes());
        let recorded = with.catalogue.name(shape.route);
        let named = |config: &Config| config.routes.all().iter().position(|route| route.name == *recorded);
        let is_of = |config: &Config, number: Option<usize>| {
            number.and_then(|number| config.routes.all().get(number)).is_some_and(|route| route.name == *recorded)
        };
        // The record can be trusted where the rules that were in force lead to the route that the request took.
        let is_exact = !shape.path.is_empty() && is_of(with.in_force, find(shape, &shape.headers, with.in_force));
        let found = if is_exact { find(shape, &shape.headers, config) } else { None };
        let (route, is_by_name) = match (found, named(config)) {
            (Some(found), _) => (found, false),
            (None, Some(named)) => (named, true),
            // The rules have no route of that name: the path is the best that there is.
            (None, None) => (find(shape, &shape.headers, config).unwrap_or(config.routes.all().len() - 1), true),
        };
        Self { route, place, is_by_name: is_by_name && !shape.path.is_empty() }
    }
}

fn find(shape: &PastShape, headers: &HeaderMap, config: &Config) -> Option<usize> {
    if shape.path.is_empty() {
        return None;
    }
    let request = Request {
        method: &shape.method,
        path: &shape.path,
        host: &shape.host,
        fields: Fields::Map(headers),
        is_http10: false,
        target: &shape.path,
        has_endless_body: false,
    };
    config.routes.find(&request).ok()
}
