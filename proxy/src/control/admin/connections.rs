//! Connections to the admin listener: few, shared fairly, and closed after some time without a request.
//!
//! ```text
//! all               admin.max_connections; the last eighth is reserved for this machine
//! per address       a quarter of that
//! at a limit        one connection is closed for the new one: those without a request in progress first, then those of the
//!                   address with the most connections; among equals, the one whose last request is longest ago. So a client
//!                   that fills the listener closes its own connections, and a new connection is always accepted.
//! ```
//!
//! A stream of the page counts as idle: it is closed before a request is.
//!
//! The public listeners keep their descriptors in any case, except that idle connections close when no descriptor is left.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use http::StatusCode;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use outrigger_identity::clock;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::control::admin::access::Arrival;
use crate::engine::state::State;
use crate::transport::upstream::Resource;

/// How long a connection may take until a complete head has arrived. Prometheus sends a request every 15 s.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a request may take, including its body.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take to read a response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client may leave a response unacknowledged, at the TCP level.
const SILENCE: Duration = Duration::from_secs(15);
/// The largest head, in bytes. hyper needs at least 8 KiB.
const HEAD_BYTES: usize = 16 << 10;

/// The open connections.
#[derive(Debug, Default)]
struct Table(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    next: u64,
    by_number: HashMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    /// The client's address, or the /64 for IPv6.
    client: IpAddr,
    /// When it last became idle or busy.
    since: Instant,
    /// A request is in progress.
    is_busy: bool,
    /// Notified when it has to make room.
    evicted: Arc<Notify>,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection; at a limit, evicts another one for it. Returns its number, and the notification of its own
    /// eviction.
    fn take(&self, client: IpAddr, most: usize, now: Instant) -> (u64, Arc<Notify>) {
        let mut open = self.lock();
        let client = network_of(client);
        let is_here = client.is_loopback();
        let (share, from_elsewhere) = ((most / 4).max(1), (most - most / 8).max(1));
        let of_client = open.by_number.values().filter(|other| other.client == client).count();
        let elsewhere = open.by_number.values().filter(|other| !other.client.is_loopback()).count();
        if of_client >= share {
            open.evict(|other| other.client == client);
        } else if !is_here && elsewhere >= from_elsewhere {
            open.evict(|other| !other.client.is_loopback());
        } else if open.by_number.len() >= most {
            open.evict(|_| true);
        }
        open.next += 1;
        let (number, evicted) = (open.next, Arc::new(Notify::new()));
        let connection = Connection { client, since: now, is_busy: false, evicted: Arc::clone(&evicted) };
        open.by_number.insert(number, connection);
        (number, evicted)
    }

    fn set_busy(&self, number: u64, is_busy: bool) {
        if let Some(connection) = self.lock().by_number.get_mut(&number) {
            connection.is_busy = is_busy;
            connection.since = clock::now();
        }
    }

    /// When it last became idle or busy; `None` if it has been closed or evicted.
    fn since(&self, number: u64) -> Option<Instant> {
        self.lock().by_number.get(&number).map(|connection| connection.since)
    }
}

impl Open {
    fn evict(&mut self, may_go: impl Fn(&Connection) -> bool) {
        let mut of_client: HashMap<IpAddr, usize> = HashMap::new();
        for connection in self.by_number.values() {
            *of_client.entry(connection.client).or_default() += 1;
        }
        let rank = |connection: &Connection| {
            let most_first = usize::MAX - of_client.get(&connection.client).copied().unwrap_or_default();
            (connection.is_busy, most_first, connection.since)
        };
        let may_go = self.by_number.iter().filter(|(_, connection)| may_go(connection));
        let goes = may_go.min_by_key(|(_, connection)| rank(connection)).map(|(number, _)| *number);
        if let Some(connection) = goes.and_then(|number| self.by_number.remove(&number)) {
            connection.evicted.notify_one();
        }
    }
}

/// The address, or the /64 for IPv6: a subscriber can use any address in it.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
        address => address,
    }
}

/// A connection's entry in the table; removed when dropped.
#[derive(Debug)]
pub struct Place {
    number: u64,
    table: Arc<Table>,
    /// The client's address, or the /64 for IPv6.
    pub client: IpAddr,
}

impl Place {
    /// Its client has read a part of a long response: such a connection is closed for others as an idle one, and stays open as
    /// long as its client reads.
    pub fn is_read(&self) {
        self.table.set_busy(self.number, false);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.table.lock().by_number.remove(&self.number);
    }
}

/// Accepts connections and serves them until the process ends.
pub async fn serve(listener: TcpListener, router: Router, state: Arc<State>) {
    let table = Arc::new(Table::default());
    let router = router.layer(middleware::from_fn(in_time));
    let mut has_failed = false;
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            // The client has disconnected already.
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionAborted => continue,
            Err(e) => {
                if !std::mem::replace(&mut has_failed, true) {
                    tracing::error!("the admin listener cannot accept a connection: {e}");
                }
                // Idle clients may hold all descriptors, and close only if another connection needs one: ask them to.
                let made_room = Resource::of_process_by(&e).is_some_and(|resource| state.note_exhaustion(resource));
                tokio::time::sleep(Duration::from_millis(if made_room { 1 } else { 100 })).await;
                continue;
            }
        };
        has_failed = false;
        let most = state.rules.load().config.admin.max_connections;
        let (number, evicted) = table.take(from.ip(), most, clock::now());
        let place = Arc::new(Place { number, table: Arc::clone(&table), client: network_of(from.ip()) });
        tokio::spawn(converse(stream, from, router.clone(), place, evicted));
        // Lets it read its request before the next connection can evict it.
        tokio::task::yield_now().await;
    }
}

/// Serves one connection until it ends.
async fn converse(stream: TcpStream, from: SocketAddr, router: Router, place: Arc<Place>, evicted: Arc<Notify>) {
    let Ok(at) = stream.local_addr() else { return };
    // The client may read slowly, but must acknowledge data. An error means that the connection has ended.
    let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(SILENCE));
    let router = router.layer(Extension(Arc::clone(&place))).layer(Extension(Arrival { from, at }));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES).half_close(false);
    let served = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let lingers = async {
        // After the end of a request, the client has this long to read the response; if idle, hyper's timeout comes first.
        while let Some(since) = place.table.since(place.number) {
            let end = since + HEAD_TIMEOUT.max(REQUEST_TIMEOUT) + RESPONSE_TIMEOUT;
            if end <= clock::now() {
                return;
            }
            tokio::time::sleep_until(end.into()).await;
        }
    };
    tokio::select! {
        // Any error is the client's: it has disconnected, or does not speak HTTP.
        _ = served => {}
        () = evicted.notified() => tracing::debug!(%from, "closed an idle connection to the admin listener to make room"),
        () = lingers => tracing::debug!(%from, "closed a connection to the admin listener after its timeout"),
    }
}

/// Marks the connection as busy while its request is served, and limits how long that takes.
async fn in_time(Extension(place): Extension<Arc<Place>>, request: Request, next: Next) -> Response {
    place.table.set_busy(place.number, true);
    let response = tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await;
    place.table.set_busy(place.number, false);
    // A client that pipelines requests waits for others after each one.
    tokio::task::yield_now().await;
    let late =
        |_| (StatusCode::REQUEST_TIMEOUT, [("connection", "close")], "the request took too long\n").into_response();
    response.unwrap_or_else(late)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 16;

    fn client(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn here() -> IpAddr {
        IpAddr::from([127, 0, 0, 1])
    }

    /// The number of connections of each client.
    fn counts<const N: usize>(table: &Table, clients: [IpAddr; N]) -> [usize; N] {
        clients.map(|client| table.lock().by_number.values().filter(|open| open.client == client).count())
    }

    #[test]
    fn one_address_has_its_share_and_evicts_itself() {
        let (table, start) = (Table::default(), Instant::now());
        let second = |n| start + Duration::from_secs(n);
        let (scraper, _) = table.take(client(2), MOST, start);
        for n in 0..100 {
            table.take(client(1), MOST, second(n));
        }
        assert_eq!(counts(&table, [client(1), client(2)]), [MOST / 4, 1]);
        assert!(table.since(scraper).is_some());
        // The oldest were evicted; the newest are there.
        assert!(table.since(101).is_some() && table.since(98).is_some() && table.since(97).is_none());
    }

    #[test]
    fn many_addresses_leave_connections_for_local_clients() {
        let (table, start) = (Table::default(), Instant::now());
        for n in 0..100 {
            table.take(client(n), MOST, start);
        }
        assert_eq!(table.lock().by_number.len(), MOST - MOST / 8);
        let operators: Vec<u64> = (0..2).map(|_| table.take(here(), MOST, start).0).collect();
        (100..200).for_each(|n| drop(table.take(client(n), MOST, start)));
        assert_eq!(table.lock().by_number.len(), MOST);
        assert!(operators.iter().all(|number| table.since(*number).is_some()));
        // More connections from here evict each other.
        (0..100).for_each(|_| drop(table.take(here(), MOST, start)));
        assert_eq!((counts(&table, [here()]), table.lock().by_number.len()), ([MOST / 8], MOST));
    }

    #[test]
    fn idle_connections_are_closed_before_active_ones() {
        let (table, start) = (Table::default(), Instant::now());
        let numbers: Vec<u64> = (0..4).map(|_| table.take(client(1), MOST, start).0).collect();
        table.set_busy(numbers[0], true);
        let (_, evicted) = table.take(client(1), MOST, start + Duration::from_secs(1));
        assert!(table.since(numbers[0]).is_some());
        assert_eq!(numbers.iter().filter(|number| table.since(**number).is_some()).count(), 3);
        drop(evicted);
        // A new connection is accepted even if all others are busy.
        let all: Vec<u64> = table.lock().by_number.keys().copied().collect();
        all.into_iter().for_each(|number| table.set_busy(number, true));
        let (last, _) = table.take(client(1), MOST, start + Duration::from_secs(2));
        assert!(table.since(last).is_some() && counts(&table, [client(1)]) == [4]);
    }

    #[test]
    fn the_smallest_bound_serves_one_after_the_other() {
        let (table, now) = (Table::default(), Instant::now());
        for from in [client(1), here(), client(2)] {
            let (number, _) = table.take(from, 1, now);
            assert!(table.since(number).is_some() && table.lock().by_number.len() == 1);
        }
    }

    #[test]
    fn a_subscriber_with_ipv6_is_one_client() {
        let (a, b): (IpAddr, IpAddr) = ("2001:db8:1:2::1".parse().unwrap(), "2001:db8:1:2:3::4".parse().unwrap());
        assert_eq!(network_of(a), network_of(b));
        assert!(
            network_of("::ffff:127.0.0.1".parse().unwrap()).is_loopback()
                && network_of(IpAddr::from(Ipv6Addr::LOCALHOST)).is_loopback()
        );
    }
}
