//! The kernel's knowledge of the app's end of a TCP connection, if the app is on this host.
//!
//! A reset says that the app closed the connection with bytes unread, or that it read them and then aborted (`SO_LINGER` 0). Our
//! end of the connection cannot tell which. But the kernel has the other end as well: `sock_diag(7)` finds the app's socket
//! ([`find`]), and says when it is destroyed how many bytes it got and how many of them were unread ([`Watch`]). Both work
//! without privileges, within a network namespace.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use socket2::SockFilter;
use tokio::sync::Notify;

/// `SOCK_DIAG_BY_FAMILY`: the type of both messages.
const BY_FAMILY: u16 = 20;
/// The groups `SKNLGRP_INET_TCP_DESTROY` and `SKNLGRP_INET6_TCP_DESTROY`.
const DESTROYED: u32 = 1 << 0 | 1 << 2;
/// The length of `struct nlmsghdr`; `struct inet_diag_msg` follows.
const HEADER: usize = 16;
/// Where the fields of `struct inet_diag_msg` are in a message, and where its attributes begin.
const STATE: usize = HEADER + 1;
const LOCAL_PORT: usize = HEADER + 4;
const REMOTE_PORT: usize = HEADER + 6;
const COOKIE: usize = HEADER + 44;
const UNREAD: usize = HEADER + 56;
const INODE: usize = HEADER + 68;
const ATTRIBUTES: usize = HEADER + 72;
/// The attribute `INET_DIAG_INFO`, and where `tcpi_bytes_received` is in it.
const INFO: u16 = 2;
const BYTES_RECEIVED: usize = 128;
/// `TCP_ESTABLISHED`, `TCP_SYN_RECV` and `TCP_LISTEN`. With `TCP_DEFER_ACCEPT` a connection is in the second one until data come.
const ESTABLISHED: u8 = 1;
const SYN_RECV: u8 = 3;
const LISTEN: u8 = 10;

/// The sockets of the whole host that are remembered: one may end between [`find`] and [`Watch::new`].
const MOST: usize = 256;
/// A socket that could not be opened, for lack of descriptors or memory, is tried again after this time.
const AGAIN: Duration = Duration::from_secs(10);

/// The cookie of a socket: the kernel gives no other socket the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cookie(u64);

/// The app's socket of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Its cookie.
    pub cookie: Cookie,
    /// It is in the listener's queue: the app has not accepted it.
    pub is_queued: bool,
    /// The app has closed it, after it had read everything.
    pub is_closed: bool,
    /// The bytes that the app has not read.
    pub unread: u32,
}

/// How a socket ended: the bytes that the app had read from it; `None` if it was aborted.
type End = Option<u64>;

#[derive(Debug)]
struct Ends {
    /// The last ones of all sockets of the host.
    last: VecDeque<(Cookie, End)>,
    /// Those of the sockets that are watched, once they have ended. No other process can make them forgotten.
    watched: BTreeMap<Cookie, Option<End>>,
}

static ENDS: Mutex<Ends> = Mutex::new(Ends { last: VecDeque::new(), watched: BTreeMap::new() });
static NEWS: Notify = Notify::const_new();

/// The thread runs that takes the kernel's messages.
static IS_LISTENING: AtomicBool = AtomicBool::new(false);
static LISTENING: Mutex<Opened<()>> = Mutex::new(Opened::NEW);

thread_local! {
    static QUESTIONS: RefCell<Opened<OwnedFd>> = const { RefCell::new(Opened::NEW) };
}

/// Opened when it is first needed, and after a failure again, at most once in [`AGAIN`].
#[derive(Debug)]
struct Opened<T> {
    value: Option<T>,
    failed: Option<Instant>,
}

impl<T> Opened<T> {
    const NEW: Self = Self { value: None, failed: None };

    fn get(&mut self, open: impl FnOnce() -> io::Result<T>) -> Option<&T> {
        if self.value.is_none() && self.failed.is_none_or(|at| at.elapsed() >= AGAIN) {
            match open() {
                Ok(value) => self.value = Some(value),
                Err(error) => {
                    // A host that lacks it altogether would repeat it for ever.
                    if self.failed.replace(Instant::now()).is_none() {
                        tracing::info!(%error, "the kernel does not tell what an app has read");
                    }
                }
            }
        }
        self.value.as_ref()
    }
}

/// A socket of the app whose end is noted, until this is dropped.
#[derive(Debug)]
pub struct Watch(Cookie);

impl Watch {
    /// Watches the socket with this cookie.
    pub fn new(socket: Cookie) -> Self {
        let mut ends = ends();
        let end = ends.last.iter().rev().find(|(cookie, _)| *cookie == socket).map(|(_, end)| *end);
        ends.watched.insert(socket, end);
        Self(socket)
    }

    /// Whether it has this cookie.
    pub fn is_of(&self, socket: Cookie) -> bool {
        self.0 == socket
    }

    /// Waits until the socket is destroyed; returns how many bytes the app had read from it, since its connection was opened.
    /// `None`: it was aborted, so nobody knows. A socket that was closed after everything was read is never reported.
    pub async fn bytes_read(&self) -> Option<u64> {
        loop {
            let news = NEWS.notified();
            let end = ends().watched.get(&self.0).copied().flatten();
            if let Some(read) = end {
                return read;
            }
            news.await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        ends().watched.remove(&self.0);
    }
}

fn ends() -> MutexGuard<'static, Ends> {
    ENDS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_listening() -> bool {
    IS_LISTENING.load(Ordering::Relaxed) || begins_to_listen()
}

#[cold]
fn begins_to_listen() -> bool {
    let is_listening = LISTENING.lock().unwrap_or_else(PoisonError::into_inner).get(listen).is_some();
    IS_LISTENING.store(is_listening, Ordering::Relaxed);
    is_listening
}

/// Finds the app's socket of the connection from `own` to `app`. `None` if it is not in this network namespace, or gone.
pub fn find(app: SocketAddr, own: SocketAddr) -> Option<Found> {
    if !is_listening() {
        return None;
    }
    QUESTIONS.with_borrow_mut(|socket| {
        let socket = socket.get(|| netlink(0))?;
        rustix::net::send(socket, &question(app, own), SendFlags::empty()).ok()?;
        let mut answer = [0; 512];
        // The kernel has put its answer into the socket's buffer before `send` returns.
        let (_, len) = rustix::net::recv(socket, &mut answer, RecvFlags::DONTWAIT).ok()?;
        let answer = answer.get(..len)?;
        (u16::from_ne_bytes(at(answer, 4)?) == BY_FAMILY).then_some(())?;
        // For a connection that does not exist, the kernel gives the socket that listens.
        let ports = (at(answer, LOCAL_PORT)?, at(answer, REMOTE_PORT)?);
        let [state] = at(answer, STATE)?;
        (ports == (app.port().to_be_bytes(), own.port().to_be_bytes()) && state != LISTEN).then_some(())?;
        let has_owner = at(answer, INODE)? != [0; 4];
        let is_queued = state == ESTABLISHED && !has_owner;
        let is_closed = state != ESTABLISHED && state != SYN_RECV && !has_owner;
        let unread = u32::from_ne_bytes(at(answer, UNREAD)?);
        Some(Found { cookie: cookie(answer)?, is_queued, is_closed, unread })
    })
}

fn netlink(groups: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(SOCK_DIAG))?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// Starts the thread that notes which sockets are destroyed with unread bytes, or aborted.
fn listen() -> io::Result<()> {
    /// Operations of classic BPF: load a word, load half a word, jump if equal, return.
    const LOAD: u16 = 0x20;
    const LOAD_HALF: u16 = 0x28;
    const EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let unread_or_aborted = [
        SockFilter::new(LOAD, 0, 0, UNREAD as u32),
        SockFilter::new(EQUAL, 0, 3, 0),
        // An abort clears the address of the other end.
        SockFilter::new(LOAD_HALF, 0, 0, REMOTE_PORT as u32),
        SockFilter::new(EQUAL, 1, 0, 0),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ];
    let socket = netlink(DESTROYED)?;
    let options = socket2::SockRef::from(&socket);
    options.attach_filter(&unread_or_aborted)?;
    options.set_recv_buffer_size(1 << 20)?;
    std::thread::Builder::new().name("witness".into()).spawn(move || {
        let mut message = [0; 2048];
        loop {
            // An error says that messages were lost, for lack of memory. The requests concerned get no proof.
            let Ok((_, len, from)) = rustix::net::recvfrom(&socket, &mut message, RecvFlags::empty()) else { continue };
            // Other processes may send messages, too, if they are privileged. The kernel's port is 0.
            let is_kernel =
                from.is_some_and(|from| SocketAddrNetlink::try_from(from).is_ok_and(|from| from.pid() == 0));
            if let Some((socket, end)) = message.get(..len).filter(|_| is_kernel).and_then(ended) {
                note(socket, end);
            }
        }
    })?;
    Ok(())
}

fn note(socket: Cookie, end: End) {
    let mut ends = ends();
    if ends.last.len() == MOST {
        ends.last.pop_front();
    }
    ends.last.push_back((socket, end));
    let is_watched = ends.watched.get_mut(&socket).map(|known| *known = Some(end)).is_some();
    drop(ends);
    if is_watched {
        NEWS.notify_waiters();
    }
}

/// The request for the socket whose own address is `app`, and whose remote one `own`.
fn question(app: SocketAddr, own: SocketAddr) -> [u8; HEADER + 56] {
    const REQUEST: u16 = 1;
    const INET: u8 = 2;
    const INET6: u8 = 10;
    const TCP: u8 = 6;
    let mut question = [0; HEADER + 56];
    let mut put = |at: usize, bytes: &[u8]| question[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &72_u32.to_ne_bytes());
    put(4, &BY_FAMILY.to_ne_bytes());
    put(6, &REQUEST.to_ne_bytes());
    put(HEADER, &[if app.is_ipv4() { INET } else { INET6 }, TCP]);
    // Sockets in any state, with any cookie.
    put(HEADER + 4, &[0xff; 4]);
    put(HEADER + 48, &[0xff; 8]);
    for (address, port_at, ip_at) in [(app, 8, 12), (own, 10, 28)] {
        put(HEADER + port_at, &address.port().to_be_bytes());
        match address.ip() {
            IpAddr::V4(ip) => put(HEADER + ip_at, &ip.octets()),
            IpAddr::V6(ip) => put(HEADER + ip_at, &ip.octets()),
        }
    }
    question
}

fn ended(message: &[u8]) -> Option<(Cookie, End)> {
    let cookie = cookie(message)?;
    if at(message, REMOTE_PORT)? == [0; 2] {
        return Some((cookie, None));
    }
    let unread = u32::from_ne_bytes(at(message, UNREAD)?);
    let mut attributes = message.get(ATTRIBUTES..)?;
    loop {
        let len = usize::from(u16::from_ne_bytes(at(attributes, 0)?));
        if u16::from_ne_bytes(at(attributes, 2)?) == INFO {
            let received = u64::from_ne_bytes(at(attributes.get(4..len)?, BYTES_RECEIVED)?);
            return Some((cookie, Some(received.saturating_sub(unread.into()))));
        }
        attributes = attributes.get(len.next_multiple_of(4).max(4)..)?;
    }
}

fn cookie(message: &[u8]) -> Option<Cookie> {
    Some(Cookie(u64::from_ne_bytes(at(message, COOKIE)?)))
}

fn at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_could_not_be_opened_is_tried_again() {
        let mut opened = Opened::NEW;
        let out_of_files = || Err(io::Error::from_raw_os_error(24));
        assert!(opened.get(out_of_files).is_none());
        assert!(opened.get(|| Ok(1)).is_none(), "not at once");
        opened.failed = Instant::now().checked_sub(AGAIN);
        assert_eq!(opened.get(|| Ok(2)), Some(&2));
        assert_eq!(opened.get(|| Ok(3)), Some(&2));
    }
}
