//! Finds the addresses of the other Machines: by DNS queries, repeated regularly, or from a list.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use outrigger_identity::clock;
use outrigger_rules::sections::peers::FoundBy;
use pingora_core::{Error, ErrorType, Result};
use pingora_load_balancing::Backend;
use pingora_load_balancing::discovery::ServiceDiscovery;

/// Maximum number of Machines; further ones in a name server's response are ignored.
pub const MOST_PEERS: usize = 256;
/// The timeout of one DNS query.
const PATIENCE: Duration = Duration::from_secs(1);

/// Finds the addresses of peers.
pub struct Finder {
    by: FoundBy,
    refresh: Duration,
    last: Arc<Last>,
}

/// The last result, and when it was found.
#[derive(Debug, Default)]
pub struct Last(Mutex<Option<(Instant, BTreeSet<Backend>)>>);

impl Last {
    fn get(&self) -> Option<(Instant, BTreeSet<Backend>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the age of the result; `None` before the first.
    pub fn age(&self) -> Option<Duration> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(at, _)| clock::since(*at))
    }

    fn set(&self, found: BTreeSet<Backend>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((clock::now(), found));
    }
}

impl std::fmt::Debug for Finder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Finder").field("by", &self.by).finish_non_exhaustive()
    }
}

impl Finder {
    /// Creates a finder.
    pub fn new(by: FoundBy, refresh: Duration) -> Self {
        Self { by, refresh, last: Arc::default() }
    }

    /// Returns the last result.
    pub fn last(&self) -> Arc<Last> {
        Arc::clone(&self.last)
    }

    async fn look_up(name: &str, port: u16, server: Option<SocketAddr>) -> Result<BTreeSet<Backend>> {
        let failed = |text: String| Error::explain(ErrorType::InternalError, text);
        // Created for each lookup: /etc/resolv.conf and /etc/hosts may not have been there at the start, and may
        // change.
        let Some(resolver) = resolver_for(server) else {
            return Err(failed("the system has no name server; set peers.resolver".to_owned()));
        };
        // An absolute name: the system's search domains are not tried.
        let name = if name.ends_with('.') { name.to_owned() } else { format!("{name}.") };
        let found = tokio::time::timeout(PATIENCE * 2, resolver.lookup_ip(name.as_str())).await;
        let found = match found {
            Ok(Ok(found)) => found,
            Ok(Err(e)) => return Err(failed(format!("{name} has no address: {e}"))),
            Err(_) => return Err(failed(format!("no name server responded for {name}"))),
        };
        Ok(found.iter().take(MOST_PEERS).filter_map(|ip| backend(SocketAddr::new(ip.to_canonical(), port))).collect())
    }
}

#[async_trait]
impl ServiceDiscovery for Finder {
    async fn discover(&self) -> Result<(BTreeSet<Backend>, HashMap<u64, bool>)> {
        let found = match (&self.by, self.last.get()) {
            (FoundBy::Dns { .. }, Some((at, found))) if clock::since(at) < self.refresh => {
                return Ok((found, HashMap::new()));
            }
            (FoundBy::Dns { name, port, resolver }, _) => Self::look_up(name, *port, *resolver).await?,
            (FoundBy::List(list), _) => list.iter().filter_map(|address| backend(*address)).collect(),
        };
        self.last.set(found.clone());
        Ok((found, HashMap::new()))
    }
}

fn backend(address: SocketAddr) -> Option<Backend> {
    Backend::new(&address.to_string()).ok()
}

fn resolver_for(server: Option<SocketAddr>) -> Option<TokioResolver> {
    let mut options = ResolverOpts::default();
    options.timeout = PATIENCE;
    options.attempts = 2;
    // No cache: a Machine that has gone must not be remembered, so each refresh sends a query.
    options.cache_size = 0;
    options.ip_strategy = hickory_resolver::config::LookupIpStrategy::Ipv6thenIpv4;
    let builder = match server {
        None => TokioResolver::builder_tokio().ok()?,
        Some(server) => {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = server.port();
                connection
            });
            let server = NameServerConfig::new(server.ip(), true, connections.into());
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    builder.with_options(options).build().ok()
}
