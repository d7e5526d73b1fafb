//! The upstream: an address, a Unix socket, or a name whose addresses change.
//!
//! ```text
//! upstream/names.rs        looks names up off the hot path, and again for as long as the process lives
//! upstream/checked.rs      rules that may come into force: the names in them are looked up as well
//! upstream/own.rs          which addresses are this proxy's own listeners: connecting to them would be a loop
//! upstream/exhaustion.rs   connections that fail because this host is out of descriptors, ports or memory
//! ```
//!
//! All addresses of a name are tried: the one that worked last, then the others in the order of the system's resolver (RFC
//! 6724), a quarter of a second apart or as soon as one fails (RFC 8305). Reusing an idle connection costs one atomic load.

pub mod checked;
pub mod connect_error;
pub mod exhaustion;
pub mod metrics;
pub mod names;

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;
use outrigger_rules::config::App;
use outrigger_rules::own;
use outrigger_rules::target::Target;
use outrigger_rules::units::AppAddress;
use tokio::sync::Notify;

use crate::app_pool::AppStream;
pub use crate::upstream::connect_error::ConnectError;
pub use crate::upstream::exhaustion::Resource;

/// After this time without a connection, the next address is tried as well (RFC 8305 section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// The target of connections to the app.
#[derive(Debug)]
pub enum Upstream {
    /// An address or a Unix socket.
    Fixed(Target),
    /// A name to resolve.
    Named(Name),
}

/// The configured upstreams.
#[derive(Clone, Debug)]
pub struct Upstreams {
    /// The app.
    pub app: Arc<Upstream>,
    /// Where the app shows its metrics: the same as `app` unless the file says otherwise.
    pub metrics: Arc<Upstream>,
}

impl Upstreams {
    /// Those of the configuration. Names have no addresses yet.
    pub fn new(app: &App) -> Self {
        let (address, metrics) = (&app.address, app.metrics_address.as_ref());
        let app = Arc::new(Upstream::new(address));
        let metrics = metrics.map_or_else(|| Arc::clone(&app), |address| Arc::new(Upstream::new(address)));
        Self { app, metrics }
    }

    /// Keeps what was found for names that are still the same.
    pub fn adopt(&mut self, before: &Self) {
        let metrics_are_the_apps = Arc::ptr_eq(&self.metrics, &self.app);
        for (upstream, before) in [(&mut self.app, &before.app), (&mut self.metrics, &before.metrics)] {
            if upstream.is_same(before) {
                *upstream = Arc::clone(before);
            }
        }
        if metrics_are_the_apps {
            self.metrics = Arc::clone(&self.app);
        }
    }

    /// The names whose addresses are not known.
    pub fn unknown_names(&self) -> Vec<String> {
        let mut names: Vec<_> = [&self.app, &self.metrics].iter().filter_map(|upstream| upstream.name()).collect();
        names.retain(|name| name.is_unknown());
        let mut names: Vec<_> = names.into_iter().map(Name::shown).collect();
        names.dedup();
        names
    }
}

/// A name, and the addresses that were found for it.
#[derive(Debug)]
pub struct Name {
    host: Box<str>,
    port: u16,
    found: ArcSwap<Addresses>,
    /// Notified when a connection fails: the name may have other addresses by now.
    doubted: Notify,
}

/// The addresses of a name.
#[derive(Debug)]
struct Addresses {
    all: Box<[SocketAddr]>,
    /// The index of the one that worked last.
    preferred: AtomicUsize,
    /// Set if addresses were left out because they are this proxy's own.
    leads_here: Option<own::Own>,
}

impl Upstream {
    /// The upstream with this address. A name has not been resolved yet.
    pub fn new(address: &AppAddress) -> Self {
        if let Some(target) = address.target() {
            return Self::Fixed(target);
        }
        // It was checked when the file was read: what is no port is no address.
        let text = address.to_string();
        let (host, port) = text.rsplit_once(':').unwrap_or((&text, ""));
        Self::Named(Name {
            host: host.into(),
            port: port.parse().unwrap_or_default(),
            found: ArcSwap::from_pointee(Addresses::new(Vec::new(), 0, None)),
            doubted: Notify::new(),
        })
    }

    /// Whether `target` is this upstream or one of its addresses.
    pub fn has(&self, target: &Target) -> bool {
        match (self, target) {
            (Self::Fixed(fixed), target) => fixed == target,
            (Self::Named(name), Target::Tcp(address)) => name.found.load().all.contains(address),
            (Self::Named(_), Target::Unix(_)) => false,
        }
    }

    /// Its name, if it has one.
    pub fn name(&self) -> Option<&Name> {
        match self {
            Self::Fixed(_) => None,
            Self::Named(name) => Some(name),
        }
    }

    /// Whether both are the same address or name.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Fixed(a), Self::Fixed(b)) => a == b,
            (Self::Named(a), Self::Named(b)) => a.host == b.host && a.port == b.port,
            _ => false,
        }
    }

    /// Opens a connection. The caller limits how long that may take.
    ///
    /// # Errors
    /// See [`ConnectError`]; for a name, the most informative error of its addresses.
    pub async fn connect(&self) -> Result<AppStream, ConnectError> {
        match self {
            Self::Fixed(target) => AppStream::connect(target).await,
            Self::Named(name) => name.connect().await,
        }
    }
}

impl Name {
    /// `HOST:PORT`.
    pub fn shown(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    async fn connect(&self) -> Result<AppStream, ConnectError> {
        let found = self.found.load_full();
        let connected = match (&*found.all, &found.leads_here) {
            ([], Some(own)) => Err(ConnectError::Loop { name: self.host.clone(), own: *own }),
            ([], None) => Err(ConnectError::Unknown(self.host.clone())),
            ([only], _) => AppStream::connect(&Target::Tcp(*only)).await,
            _ => found.connect().await,
        };
        if connected.as_ref().is_err_and(|e| e.exhausted().is_none()) {
            self.doubted.notify_one();
        }
        connected
    }
}

/// One of the connection attempts of [`Addresses::connect`].
type Attempt<'a> = (usize, Pin<Box<dyn Future<Output = Result<AppStream, ConnectError>> + Send + 'a>>);

impl Addresses {
    fn new(all: Vec<SocketAddr>, preferred: usize, leads_here: Option<own::Own>) -> Self {
        Self { all: all.into(), preferred: AtomicUsize::new(preferred), leads_here }
    }

    /// Tries all addresses until one connects.
    async fn connect(&self) -> Result<AppStream, ConnectError> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut untried = std::iter::once(first).chain((0..self.all.len()).filter(|at| *at != first));
        let mut tried: Vec<Attempt<'_>> = Vec::new();
        let mut worst = None;
        loop {
            let next = untried.next().and_then(|at| self.all.get(at).map(|address| (at, *address)));
            if let Some((at, address)) = next {
                tried.push((at, Box::pin(async move { AppStream::connect(&Target::Tcp(address)).await })));
            } else if tried.is_empty() {
                return Err(worst.unwrap_or_else(|| ConnectError::Refused(io::ErrorKind::NotFound.into())));
            }
            let one_ends = poll_fn(|cx| {
                let ended =
                    tried.iter_mut().enumerate().find_map(|(index, (at, attempt))| match attempt.as_mut().poll(cx) {
                        Poll::Ready(result) => Some((index, *at, result)),
                        Poll::Pending => None,
                    });
                ended.map_or(Poll::Pending, Poll::Ready)
            });
            let patience = if next.is_some() { ATTEMPT_DELAY } else { Duration::MAX };
            match tokio::time::timeout(patience, one_ends).await {
                Err(_) => {}
                Ok((_, at, Ok(stream))) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return Ok(stream);
                }
                Ok((index, _, Err(error))) => {
                    drop(tried.swap_remove(index));
                    // Without descriptors, no other address can do better.
                    if error.exhausted().is_some_and(Resource::is_of_process) {
                        return Err(error);
                    }
                    worst = Some(said_more(worst, error));
                }
            }
        }
    }
}

/// The more informative of two errors: a refused connection rather than an unreachable network.
fn said_more(earlier: Option<ConnectError>, later: ConnectError) -> ConnectError {
    let is_refusal = |error: &ConnectError| matches!(error, ConnectError::Refused(source) if source.kind() == io::ErrorKind::ConnectionRefused);
    match earlier {
        Some(earlier) if is_refusal(&earlier) || !is_refusal(&later) => earlier,
        _ => later,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn named(all: Vec<SocketAddr>) -> Upstream {
        let upstream = Upstream::new(&"app.test:1".parse().unwrap());
        upstream.name().unwrap().found.store(Arc::new(Addresses::new(all, 0, None)));
        upstream
    }

    fn listen() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    fn nobody() -> SocketAddr {
        listen().1
    }

    #[tokio::test]
    async fn every_address_is_tried_and_the_one_that_worked_comes_first() {
        let (_listener, there) = listen();
        let upstream = named(vec![nobody(), nobody(), there]);
        assert_eq!(upstream.connect().await.unwrap().target(), &Target::Tcp(there));
        let found = upstream.name().unwrap().found.load_full();
        assert_eq!(found.preferred.load(Ordering::Relaxed), 2);
        assert!(upstream.has(&Target::Tcp(there)) && !upstream.has(&Target::Tcp(nobody())));
    }

    #[tokio::test]
    async fn a_silent_address_delays_the_next_one_only_briefly() {
        // Its queue is full, so the kernel drops new connections, as if the host were down.
        let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        full.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        full.listen(0).unwrap();
        let silent = full.local_addr().unwrap().as_socket().unwrap();
        let mut fillers = Vec::new();
        for _ in 0..8 {
            let filler = tokio::time::timeout(Duration::from_millis(50), tokio::net::TcpStream::connect(silent)).await;
            fillers.push(filler);
        }
        assert!(fillers.last().unwrap().is_err(), "the queue is not full");
        let (_listener, there) = listen();
        let began = std::time::Instant::now();
        let stream = named(vec![silent, there]).connect().await.unwrap();
        assert_eq!(stream.target(), &Target::Tcp(there));
        assert!(began.elapsed() >= ATTEMPT_DELAY, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn the_most_specific_reason_is_reported() {
        let upstream = named(vec![nobody(), nobody()]);
        let error = upstream.connect().await.unwrap_err();
        assert!(matches!(&error, ConnectError::Refused(e) if e.kind() == io::ErrorKind::ConnectionRefused), "{error}");
        assert!(matches!(named(Vec::new()).connect().await, Err(ConnectError::Unknown(_))));
    }
}
