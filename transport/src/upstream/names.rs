//! Resolves the names of the configuration off the hot path, repeatedly while the configuration is in force.
//!
//! Uses the system's resolver (`getaddrinfo`: `/etc/hosts`, `nsswitch.conf`, DNS) on a thread where it may block. An unknown
//! name is not a mistake in the configuration: the app may not be deployed yet. A failed lookup changes nothing: the name
//! server may be down, and the known addresses may still be right.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use outrigger_metrics::IntCounter;
use outrigger_rules::own::OwnListeners;
use tokio::sync::Notify;

use crate::upstream::{Addresses, Name, Upstream, Upstreams};

/// Interval between lookups of a known name.
const REFRESH: Duration = Duration::from_secs(5);
/// Interval for an unknown name, or for one whose addresses refuse connections.
const RETRY: Duration = Duration::from_millis(500);
/// After this time, the log warns about a slow lookup. It continues; there is never a second one at the same time.
const SLOW: Duration = Duration::from_secs(5);
/// Further addresses of a name are ignored.
const MOST_ADDRESSES: usize = 16;

impl Name {
    /// Asks the system's resolver for the addresses. Blocks.
    fn look_up(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let found = (host, port).to_socket_addrs().map(Vec::from_iter);
        // Both loopback addresses, regardless of /etc/hosts (RFC 6761 section 6.3): servers listen on either.
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

    /// Resolves the name on a thread of its own; `None` if that takes longer than `patience` or finds no address.
    pub fn look_up_within(&self, patience: Duration) -> Option<Vec<SocketAddr>> {
        let (send, receive) = std::sync::mpsc::sync_channel(1);
        let (host, port) = (self.host.clone(), self.port);
        // After the timeout, the result is dropped.
        let look_up = move || drop(send.send(Self::look_up(&host, port)));
        std::thread::Builder::new().name("lookup".to_owned()).spawn(look_up).ok()?;
        receive.recv_timeout(patience).ok()?.ok().filter(|found| !found.is_empty())
    }

    /// Stores the addresses that were found. Returns true if they have changed.
    pub fn set(&self, found: Vec<SocketAddr>, own: &OwnListeners) -> bool {
        let mut leads_here = None;
        let mut others = found;
        others.retain(|address| {
            let reached = own.reached_by(*address);
            leads_here = leads_here.or(reached);
            reached.is_none()
        });
        let before = self.found.load();
        // Name servers rotate their responses: another order is not a change.
        let as_set = |all: &[SocketAddr]| all.iter().copied().collect::<HashSet<_>>();
        if as_set(&others) == as_set(&before.all) && before.leads_here == leads_here {
            return false;
        }
        let worked = before.all.get(before.preferred.load(Ordering::Relaxed));
        let preferred = worked.and_then(|worked| others.iter().position(|address| address == worked)).unwrap_or(0);
        self.found.store(Arc::new(Addresses::new(others, preferred, leads_here)));
        true
    }

    /// Whether no address is known.
    pub fn is_unknown(&self) -> bool {
        self.found.load().all.is_empty()
    }

    /// The addresses, as text for the log.
    fn listed(&self) -> String {
        let found = self.found.load();
        found.all.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// Whether this is `localhost` or a name below it (RFC 6761 section 6.3).
fn is_localhost(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

/// The upstream of the configuration that a task resolves.
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

/// Keeps the addresses of a name up to date, for the life of the process. `rules` returns the upstreams in force and this
/// proxy's listeners; `moved` is notified when either, or an address, has changed. `failures` counts failed lookups.
pub async fn keep_looked_up(
    which: Which,
    moved: Arc<Notify>,
    failures: IntCounter,
    rules: impl Fn() -> (Upstreams, OwnListeners),
) {
    let mut has_failed = false;
    loop {
        let has_moved = moved.notified();
        let (upstreams, own) = rules();
        let upstream = which.of(&upstreams);
        let Some(name) = upstream.as_ref().and_then(|upstream| upstream.name()) else {
            has_moved.await;
            continue;
        };
        let found = look_up_off_the_runtime(name).await;
        let ends = tell(&failures, which, name, found, &own, &mut has_failed);
        let pause = if has_failed || name.is_unknown() { RETRY } else { REFRESH };
        if ends {
            // Requests that are connecting to the old addresses try again with the new ones.
            moved.notify_waiters();
        }
        // A failed connection causes an earlier lookup, but at most one per [`RETRY`].
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = async { tokio::time::sleep(RETRY).await; name.doubted.notified().await } => {}
            () = until_replaced(&moved, || which.of(&rules().0), &upstream) => has_failed = false,
        }
    }
}

async fn look_up_off_the_runtime(name: &Name) -> io::Result<Vec<SocketAddr>> {
    let (host, port) = (name.host.clone(), name.port);
    let mut looking = tokio::task::spawn_blocking(move || Name::look_up(&host, port));
    let found = match tokio::time::timeout(SLOW, &mut looking).await {
        Ok(found) => found,
        Err(_) => {
            tracing::warn!(name = name.shown(), "the lookup of {} takes long", name.shown());
            looking.await
        }
    };
    found.unwrap_or_else(|e| Err(io::Error::other(e)))
}

/// Ends when the configuration has another upstream.
async fn until_replaced(moved: &Notify, current: impl Fn() -> Option<Arc<Upstream>>, upstream: &Option<Arc<Upstream>>) {
    loop {
        let has_moved = moved.notified();
        let now = current();
        let is_same = match (&now, upstream) {
            (Some(now), Some(upstream)) => Arc::ptr_eq(now, upstream),
            (now, upstream) => now.is_none() == upstream.is_none(),
        };
        if !is_same {
            return;
        }
        has_moved.await;
    }
}

/// Stores the result of a lookup and logs changes. Returns true if the addresses have changed.
fn tell(
    failures: &IntCounter,
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
                let stays = if name.is_unknown() { "" } else { "; keeping the known ones" };
                tracing::warn!(
                    event = "name",
                    key,
                    name = shown,
                    "no address is found for {shown} ({key}): {why}{stays}"
                );
            }
            failures.inc();
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
    fn localhost_is_always_both_loopback_addresses() {
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
