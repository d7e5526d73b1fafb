//! Looks up the names of the configuration, off the hot path, and again for as long as they are in force.
//!
//! The system's resolver is asked (`getaddrinfo`: `/etc/hosts`, `nsswitch.conf`, DNS), on a thread where it may block. A
//! name that is unknown is no mistake in the configuration: the app may not be deployed yet. A lookup that fails changes
//! nothing: the name server may be away, and the addresses that are known may still be right.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use outrigger_rules::own::OwnListeners;

use crate::engine::state::State;
use crate::transport::upstream::{Addresses, Name, Upstream, Upstreams};

/// How often a name that is known is looked up.
const REFRESH: Duration = Duration::from_secs(5);
/// How often one that is unknown is, or one at whose addresses nobody takes connections.
const RETRY: Duration = Duration::from_millis(500);
/// How long a lookup may take before the log says that it does. It goes on: there is never a second one beside it.
const SLOW: Duration = Duration::from_secs(5);
/// More addresses of one name are not looked at.
const MOST_ADDRESSES: usize = 16;

impl Name {
    /// Asks the system for the addresses. Blocks.
    fn look_up(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let found = (host, port).to_socket_addrs().map(Vec::from_iter);
        // Both loopback addresses, whatever /etc/hosts has of them (RFC 6761 section 6.3): servers listen on either.
        let mut all = if is_localhost(host) {
            let mut all = found.unwrap_or_default();
            let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
            all.extend(loopback.map(|ip| SocketAddr::new(ip, port)));
            all
        } else {
            found?
        };
        let mut seen = HashSet::new();
        all.retain(|address| seen.insert(*address));
        all.truncate(MOST_ADDRESSES);
        Ok(all)
    }

    /// Looks the name up on a thread of its own; `None` when that takes longer than `patience`, or nothing is found.
    pub fn look_up_within(&self, patience: Duration) -> Option<Vec<SocketAddr>> {
        let (send, receive) = std::sync::mpsc::sync_channel(1);
        let (host, port) = (self.host.clone(), self.port);
        // Whoever has waited long enough hears nothing of it any more.
        let look_up = move || drop(send.send(Self::look_up(&host, port)));
        std::thread::Builder::new().name("lookup".to_owned()).spawn(look_up).ok()?;
        receive.recv_timeout(patience).ok()?.ok().filter(|found| !found.is_empty())
    }

    /// Takes over what was found. True if the addresses have changed.
    pub fn set(&self, found: Vec<SocketAddr>, own: &OwnListeners) -> bool {
        let mut leads_here = None;
        let mut others = found;
        others.retain(|address| {
            let reached = own.reached_by(*address);
            leads_here = leads_here.or(reached);
            reached.is_none()
        });
        let before = self.found.load();
        // Name servers answer in turning order: that is no change.
        let as_set = |all: &[SocketAddr]| all.iter().copied().collect::<HashSet<_>>();
        if as_set(&others) == as_set(&before.all) && before.leads_here == leads_here {
            return false;
        }
        let worked = before.all.get(before.preferred.load(Ordering::Relaxed));
        let preferred = worked.and_then(|worked| others.iter().position(|address| address == worked)).unwrap_or(0);
        self.found.store(Arc::new(Addresses::new(others, preferred, leads_here)));
        true
    }

    /// No address is known.
    pub fn is_unknown(&self) -> bool {
        self.found.load().all.is_empty()
    }

    /// The addresses, for people.
    fn listed(&self) -> String {
        let found = self.found.load();
        found.all.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// RFC 6761 section 6.3.
fn is_localhost(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

/// Which of the configuration's upstreams a task looks after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// `app.address`
    App,
    /// `app.metrics`
    Metrics,
}

impl Which {
    const fn key(self) -> &'static str {
        match self {
            Self::App => "app.address",
            Self::Metrics => "app.metrics",
        }
    }

    /// The upstream; `None` when there is no name to look up, or another task does.
    fn of(self, upstreams: &Upstreams) -> Option<Arc<Upstream>> {
        let upstream = match self {
            Self::App => &upstreams.app,
            Self::Metrics if Arc::ptr_eq(&upstreams.metrics, &upstreams.app) => return None,
            Self::Metrics => &upstreams.metrics,
        };
        upstream.name().map(|_| Arc::clone(upstream))
    }
}

/// Keeps the addresses of a name up to date, for the life of the process.
pub async fn keep_looked_up(state: Arc<State>, which: Which) {
    let mut has_failed = false;
    loop {
        let moved = state.app_moved.notified();
        let rules = state.rules.load_full();
        let upstream = which.of(&rules.upstreams);
        let Some(name) = upstream.as_ref().and_then(|upstream| upstream.name()) else {
            moved.await;
            continue;
        };
        let own = OwnListeners::of(&rules.config);
        drop(rules);
        let found = look_up_off_the_runtime(name).await;
        let ends = tell(&state, which, name, found, &own, &mut has_failed);
        let pause = if has_failed || name.is_unknown() { RETRY } else { REFRESH };
        if ends {
            // Requests that are connecting to where the app was try again where it is.
            state.app_moved.notify_waiters();
        }
        // A connection that fails asks for it sooner, but not more often than that.
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = async { tokio::time::sleep(RETRY).await; name.doubted.notified().await } => {}
            () = until_replaced(&state, which, &upstream) => has_failed = false,
        }
    }
}

async fn look_up_off_the_runtime(name: &Name) -> io::Result<Vec<SocketAddr>> {
    let (host, port) = (name.host.clone(), name.port);
    let mut looking = tokio::task::spawn_blocking(move || Name::look_up(&host, port));
    let found = match tokio::time::timeout(SLOW, &mut looking).await {
        Ok(found) => found,
        Err(_) => {
            tracing::warn!(name = name.shown(), "the name {} takes long to be looked up", name.shown());
            looking.await
        }
    };
    found.unwrap_or_else(|e| Err(io::Error::other(e)))
}

/// Ends when the rules have another upstream.
async fn until_replaced(state: &State, which: Which, upstream: &Option<Arc<Upstream>>) {
    loop {
        let moved = state.app_moved.notified();
        let now = which.of(&state.rules.load().upstreams);
        let is_same = match (&now, upstream) {
            (Some(now), Some(upstream)) => Arc::ptr_eq(now, upstream),
            (now, upstream) => now.is_none() == upstream.is_none(),
        };
        if !is_same {
            return;
        }
        moved.await;
    }
}

/// Takes over what a lookup found, and says what has changed. True if the addresses have.
fn tell(
    state: &State,
    which: Which,
    name: &Name,
    found: io::Result<Vec<SocketAddr>>,
    own: &OwnListeners,
    has_failed: &mut bool,
) -> bool {
    let (key, shown) = (which.key(), name.shown());
    let found = match found {
        Ok(found) if !found.is_empty() => found,
        nothing => {
            if !std::mem::replace(has_failed, true) {
                let why = nothing.err().map_or_else(|| "it has none".to_owned(), |e| e.to_string());
                let stays = if name.is_unknown() { "" } else { "; those known stay" };
                tracing::warn!(
                    event = "name",
                    key,
                    name = shown,
                    "no address is found for {shown} ({key}): {why}{stays}"
                );
            }
            state.metrics.names_failed.inc();
            return false;
        }
    };
    let recovered = std::mem::replace(has_failed, false);
    let has_changed = name.set(found, own);
    if has_changed || recovered {
        let listed = name.listed();
        match name.found.load().leads_here {
            Some(own) => tracing::error!(
                event = "name",
                key,
                name = shown,
                addresses = listed,
                "{shown} ({key}) is also the address of {own}, this proxy itself: that one is not used"
            ),
            None => {
                tracing::info!(event = "name", key, name = shown, addresses = listed, "{shown} ({key}) is at {listed}");
            }
        }
    }
    has_changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use outrigger_rules::config::Config;

    fn addresses(all: &[&str]) -> Vec<SocketAddr> {
        all.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn fresh(text: &str) -> Upstream {
        Upstream::new(&text.parse().unwrap())
    }

    fn nothing_own() -> OwnListeners {
        own("server.listen = \"192.0.2.1:1\"\nadmin.listen = \"192.0.2.1:2\"\n")
    }

    fn own(source: &str) -> OwnListeners {
        OwnListeners::of(&Config::parse(std::path::Path::new("test"), source, &|_| None).unwrap())
    }

    #[test]
    fn localhost_is_both_loopback_addresses_whatever_the_system_says() {
        for host in ["localhost", "LOCALHOST", "localhost.", "app.localhost"] {
            let found = Name::look_up(host, 7).unwrap();
            for address in addresses(&["127.0.0.1:7", "[::1]:7"]) {
                assert_eq!(found.iter().filter(|other| **other == address).count(), 1, "{host}: {found:?}");
            }
        }
    }

    #[test]
    fn another_order_is_no_change_and_the_address_that_worked_stays_first() {
        let upstream = fresh("app.test:1");
        let name = upstream.name().unwrap();
        assert!(name.set(addresses(&["10.0.0.1:1", "10.0.0.2:1"]), &nothing_own()));
        assert!(!name.set(addresses(&["10.0.0.2:1", "10.0.0.1:1"]), &nothing_own()));
        name.found.load().preferred.store(1, Ordering::Relaxed);
        assert!(name.set(addresses(&["10.0.0.3:1", "10.0.0.2:1"]), &nothing_own()));
        assert_eq!(name.found.load().preferred.load(Ordering::Relaxed), 1);
        assert!(name.set(addresses(&["10.0.0.4:1"]), &nothing_own()));
        assert_eq!(name.found.load().preferred.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn addresses_of_this_proxy_are_not_used() {
        let own = own("server.listen = \"127.0.0.1:7\"\n");
        let upstream = fresh("app.test:7");
        upstream.name().unwrap().set(addresses(&["127.0.0.1:7", "10.0.0.1:7"]), &own);
        assert_eq!(upstream.name().unwrap().listed(), "10.0.0.1:7");
        upstream.name().unwrap().set(addresses(&["127.0.0.1:7"]), &own);
        assert!(matches!(upstream.connect().await, Err(super::super::ConnectError::Loop { .. })));
    }
}
