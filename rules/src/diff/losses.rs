//! State that does not survive a change. Each mechanism keeps its state under a key: another key is another state.
//!
//! | state | its key | so it is lost when |
//! |---|---|---|
//! | usage of a limit | the limit's name, `by` and `count`, the client, the route for `by` "route" and "client-and-route" | one of them changes, or where it is counted |
//! | circuit breaker | its name | no route uses it any more |
//! | calls that a breaker counted | its name | `window` changes |
//! | session | the cookie | it is older than `idle` or `max_life`, or sessions end |
//! | ban | the client | the client is recognised as another one |
//!
//! Rates, bursts, tiers and the order of routes are no part of a key.

use std::collections::{HashMap, VecDeque};

use super::facts::{Facts, keeps_window};
use super::{Change, Diff, Kind, Loss, Side};
use crate::config::Config;
use crate::sections::limits::{By, Limit};
use crate::units::Span;
use outrigger_policy::flags::Mode;

/// The keys that say who a client is.
const WHO: [&str; 6] = [
    "identity.edge",
    "identity.trusted",
    "identity.key_field",
    "identity.unknown_keys",
    "identity.keys_file",
    "identity.jwt.",
];

/// Everything that is lost.
pub fn losses(old: &Side<'_>, new: &Side<'_>, (before, after): (&Facts, &Facts), diff: &Diff) -> Vec<Loss> {
    let renamed = |kind| renamed(kind, before, after, diff);
    let (routes, limits) = (renamed(Kind::Route), renamed(Kind::Limit));
    let mut losses = limit_losses(old.config, new.config, &limits, &routes);
    losses.extend(breaker_losses(old.config, new.config, &routes));
    losses.extend(client_losses(&renamed(Kind::Client), diff));
    losses.extend(session_losses(old.config, new.config));
    if old.config.abuse.mode == Mode::Enforce && new.config.abuse.mode != Mode::Enforce {
        let what = "bans are remembered, and not enforced".to_owned();
        losses.push(Loss { of: "ban", name: "all".to_owned(), what });
    }
    if !diff.needs_restart.is_empty() {
        let keys = diff.needs_restart.join(", ");
        let kept = if new.config.state.is_some() { ", but for what [state] keeps" } else { "" };
        let what = format!("a restart for {keys} ends what only this process remembers{kept}");
        losses.push(Loss { of: "process", name: "all".to_owned(), what });
    }
    losses
}

/// Things that are gone while another one with the same values is new: the old and the new name.
fn renamed(kind: Kind, before: &Facts, after: &Facts, diff: &Diff) -> Vec<(String, String)> {
    let of = |change| {
        let items = diff.items.iter().filter(move |item| item.kind == kind && item.change == change);
        items.map(|item| item.name.as_str()).collect::<Vec<_>>()
    };
    // The values that make it the same thing.
    let is_identity = |key: &str| match kind {
        Kind::Route => ["path", "methods", "hosts", "headers"].contains(&key),
        Kind::Client => key == "digest",
        _ => key != "routes",
    };
    let values = |facts: &Facts, name: &str| {
        let facts = facts.find(kind, name).unwrap_or_default().iter().filter(|fact| is_identity(&fact.key));
        facts.map(|fact| format!("{}={}", fact.key, fact.meaning)).collect::<Vec<_>>()
    };
    let mut added: HashMap<Vec<String>, VecDeque<&str>> = HashMap::new();
    for name in of(Change::Added) {
        added.entry(values(after, name)).or_default().push_back(name);
    }
    let gone = of(Change::Removed).into_iter();
    gone.filter_map(|old| Some((old.to_owned(), added.get_mut(&values(before, old))?.pop_front()?.to_owned())))
        .collect()
}

fn limit_losses(old: &Config, new: &Config, renamed: &[(String, String)], routes: &[(String, String)]) -> Vec<Loss> {
    let loss = |name: &str, what: String| Loss { of: "limit", name: name.to_owned(), what };
    let mut losses: Vec<Loss> = renamed
        .iter()
        .map(|(from, to)| {
            loss(to, format!("all clients start anew: it was {from:?}, and its name is part of its keys"))
        })
        .collect();
    for limit in &new.limits.all {
        let Some(before) = old.limits.all.iter().find(|before| before.name == limit.name) else { continue };
        if let Some(why) = other_keys(before, limit, old, new) {
            losses.push(loss(&limit.name, format!("all clients start anew: {why}")));
        } else if matches!(limit.by, By::Route | By::ClientAndRoute) {
            for (from, to) in routes {
                let applies = |config: &Config, limit: &Limit, route: &str| {
                    let number = config.routes.all().iter().position(|one| *one.name == *route);
                    number.is_some_and(|number| config.limits.of(number).any(|(_, one)| one.name == limit.name))
                };
                if applies(old, before, from) && applies(new, limit, to) {
                    let what = format!("route {to:?} starts anew: it was {from:?}, and its name is part of the keys");
                    losses.push(loss(&limit.name, what));
                }
            }
        }
    }
    losses
}

/// Why the keys of a limit, or where they are counted, are others.
fn other_keys(before: &Limit, limit: &Limit, old: &Config, new: &Config) -> Option<&'static str> {
    if before.by != limit.by {
        return Some("`by` is part of its keys");
    }
    if before.count != limit.count {
        return Some("`count` is part of its keys");
    }
    match (before.is_shared, limit.is_shared) {
        (false, true) => Some("it is counted in Redis from now on"),
        (true, false) => Some("it is counted on each Machine from now on"),
        (false, false) => None,
        (true, true) => {
            let (a, b) = (old.limits.sharing.as_ref()?, new.limits.sharing.as_ref()?);
            if a.prefix != b.prefix {
                Some("the prefix of the keys in Redis is another one")
            } else if a.source != b.source {
                Some("it is counted in another Redis")
            } else {
                None
            }
        }
    }
}

fn breaker_losses(old: &Config, new: &Config, routes: &[(String, String)]) -> Vec<Loss> {
    let loss = |name: &str, what: String| Loss { of: "breaker", name: name.to_owned(), what };
    let mut losses = Vec::new();
    for before in &old.breakers {
        match new.breakers.iter().find(|after| after.name == before.name) {
            None => losses.push(loss(&before.name, "it is forgotten, also if it is open".to_owned())),
            Some(after) if !keeps_window(before.settings.window, after.settings.window) => {
                losses.push(loss(&after.name, "its counts are forgotten: `window` changes".to_owned()));
            }
            Some(after) if before.settings.is_shared && !after.settings.is_shared => {
                let what = "its state for single paths is forgotten: it is one breaker from now on";
                losses.push(loss(&after.name, what.to_owned()));
            }
            Some(_) => {}
        }
    }
    let of_route = |config: &Config, name: &str| {
        let route = config.routes.all().iter().find(|route| *route.name == *name)?;
        config.breakers.get(usize::from(route.breaker?)).map(|rules| rules.name.clone())
    };
    for route in new.routes.all() {
        let was = routes.iter().find(|(_, to)| **to == *route.name).map_or(&*route.name, |(from, _)| from.as_str());
        let (Some(before), Some(after)) = (of_route(old, was), of_route(new, &route.name)) else { continue };
        if before != after {
            let what = if old.breakers.iter().any(|rules| rules.name == after) {
                format!("route {:?} uses it from now on, with the state that it has", route.name)
            } else {
                format!("it starts closed for route {:?}, which used {before:?}", route.name)
            };
            losses.push(loss(&after, what));
        }
    }
    losses
}

fn client_losses(renamed: &[(String, String)], diff: &Diff) -> Vec<Loss> {
    let loss = |name: &str, what: String| Loss { of: "client", name: name.to_owned(), what };
    let mut losses: Vec<Loss> = renamed
        .iter()
        .map(|(from, to)| loss(to, format!("its limits start anew, and its bans do not apply: it was {from:?}")))
        .collect();
    for item in diff.items.iter().filter(|item| item.kind == Kind::Client) {
        let is_renamed = renamed.iter().any(|(from, to)| *from == item.name || *to == item.name);
        match item.change {
            Change::Removed if !is_renamed => {
                losses.push(loss(&item.name, "its key is unknown from now on, so it is another client".to_owned()));
            }
            Change::Changed if item.values.iter().any(|value| value.key == "tier") => {
                losses.push(loss(&item.name, "it has the limits of another tier; its usage stays".to_owned()));
            }
            _ => {}
        }
    }
    let is_who = |key: &str| {
        WHO.iter().any(|who| key == *who || (who.ends_with('.') && key.starts_with(who)))
            && !["leeway", "jwks_refresh"].iter().any(|end| key.ends_with(end))
    };
    for item in diff.items.iter().filter(|item| item.kind == Kind::Setting && is_who(&item.name)) {
        let what = "clients may be recognised as others: then their limits start anew, and their bans do not apply";
        losses.push(loss(&item.name, what.to_owned()));
    }
    losses
}

fn session_losses(old: &Config, new: &Config) -> Vec<Loss> {
    let loss = |what: String| Loss { of: "session", name: "all".to_owned(), what };
    let Some(before) = old.affinity.filter(|rules| rules.mode != Mode::Off) else { return Vec::new() };
    let Some(after) = new.affinity.filter(|rules| rules.mode != Mode::Off) else {
        return vec![loss("sessions are not sticky from now on".to_owned())];
    };
    let mut losses = Vec::new();
    if after.lifetime.idle < before.lifetime.idle {
        losses.push(loss(format!("those without a request for {} end", Span(after.lifetime.idle))));
    }
    if after.lifetime.most < before.lifetime.most {
        losses.push(loss(format!("those that are {} old end", Span(after.lifetime.most))));
    }
    if old.machine() != new.machine() {
        losses.push(loss("they name a Machine that is no more: it has another name after the restart".to_owned()));
    }
    losses
}
