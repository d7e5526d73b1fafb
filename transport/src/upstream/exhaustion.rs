//! Connections that fail because this host is out of descriptors, local ports or memory.
//!
//! Such a failure says nothing about the app: no request waits for the app, no circuit breaker counts it, and the app is not
//! reported as down. Outrigger rejects the request with 503 `out-of-resources`, logs at most once a second what to raise,
//! and closes idle client connections to make room.

use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use outrigger_identity::clock;
use outrigger_rules::target::Target;
use rustix::io::Errno;
use tokio::sync::Notify;

/// A resource of this host that a connection needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Descriptors of this process (`EMFILE`).
    OpenFiles,
    /// Descriptors of the whole system (`ENFILE`).
    SystemFiles,
    /// Local ports for another connection to the same address (`EADDRNOTAVAIL`).
    LocalPorts,
    /// The kernel's memory (`ENOBUFS`, `ENOMEM`).
    Memory,
}

impl Resource {
    /// All resources.
    pub const ALL: [Self; 4] = [Self::OpenFiles, Self::SystemFiles, Self::LocalPorts, Self::Memory];

    /// The resource that a connection to `target` lacks, by the system's error; `None` for any other error.
    pub fn of(error: &io::Error, target: &Target) -> Option<Self> {
        match (Self::of_process_by(error)?, target) {
            // Also the error for a family of addresses that this host does not have: then the target is unreachable.
            (Self::LocalPorts, Target::Tcp(address)) => has_route(*address).then_some(Self::LocalPorts),
            (Self::LocalPorts, Target::Unix(_)) => None,
            (resource, _) => Some(resource),
        }
    }

    /// Like [`Self::of`], for calls without a target, such as accepting a connection.
    pub fn of_process_by(error: &io::Error) -> Option<Self> {
        match Errno::from_io_error(error)? {
            Errno::MFILE => Some(Self::OpenFiles),
            Errno::NFILE => Some(Self::SystemFiles),
            Errno::ADDRNOTAVAIL => Some(Self::LocalPorts),
            Errno::NOBUFS | Errno::NOMEM => Some(Self::Memory),
            _ => None,
        }
    }

    /// Like [`Self::of_process_by`], for any cause of a library's error; local ports do not count.
    pub fn behind(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        let errors = std::iter::successors(Some(error), |error| error.source());
        errors.filter_map(|error| error.downcast_ref()).find_map(Self::of_process_by).filter(|own| own.is_of_process())
    }

    /// Whether every connection lacks it, not only those to one address.
    pub fn is_of_process(self) -> bool {
        self != Self::LocalPorts
    }

    /// The metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OpenFiles => "open_files",
            Self::SystemFiles => "system_files",
            Self::LocalPorts => "local_ports",
            Self::Memory => "memory",
        }
    }

    const fn advice(self) -> &'static str {
        match self {
            Self::OpenFiles => {
                "raise the limit of open files (ulimit -Hn, LimitNOFILE= of the unit, --ulimit of the container), or lower \
                 server.max_connections"
            }
            Self::SystemFiles => {
                "raise the sysctl fs.file-max, or find the process that has so many files open on this host"
            }
            Self::LocalPorts => {
                "widen the sysctl net.ipv4.ip_local_port_range, reach the app by a Unix socket, or raise app.max_idle and \
                 app.idle_timeout so that more connections are used again"
            }
            Self::Memory => "give this host more memory, or raise the sysctls net.core.*mem_max and net.ipv4.tcp_mem",
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenFiles => "this process has reached its limit of open files",
            Self::SystemFiles => "this host has reached its limit of open files",
            Self::LocalPorts => "this host has no local port left for the address",
            Self::Memory => "the kernel has no memory for another connection",
        })
    }
}

/// Whether this host has a route to the address. A datagram socket needs a route as well, and has ports of its own.
fn has_route(address: SocketAddr) -> bool {
    let any: SocketAddr = if address.is_ipv4() { ([0_u8; 4], 0).into() } else { ([0_u8; 16], 0).into() };
    UdpSocket::bind(any).and_then(|socket| socket.connect(address)).is_ok()
}

/// How many descriptors are reserved and not given to clients; at most an eighth of all.
const MOST_RESERVED_FILES: u64 = 64;

/// The shortest interval between log lines about one resource.
const LOG_EVERY_MS: u64 = 1000;

/// The resources that this process has been seen to lack.
#[derive(Debug)]
pub struct Exhaustion {
    began: Instant,
    /// When each was last logged, in milliseconds since `began`; 0: never.
    logged: [AtomicU64; Resource::ALL.len()],
    /// How often each was lacking since it was last logged.
    unsaid: [AtomicU64; Resource::ALL.len()],
    /// Tells workers to close idle connections to the app.
    pub sweep: Notify,
    /// A descriptor with at least this number is reserved.
    last_files: AtomicU64,
}

impl Default for Exhaustion {
    fn default() -> Self {
        Self {
            began: clock::now(),
            logged: Default::default(),
            unsaid: Default::default(),
            sweep: Notify::new(),
            last_files: AtomicU64::new(u64::MAX),
        }
    }
}

impl Exhaustion {
    /// Sets how many files may be open.
    pub fn set_files_allowed(&self, allowed: u64) {
        self.last_files.store(allowed - (allowed / 8).min(MOST_RESERVED_FILES), Ordering::Relaxed);
    }

    /// Whether nearly all descriptors are in use. The system assigns the lowest free number (POSIX), so `newest` is high
    /// then.
    pub fn is_nearly_out_of_files(&self, newest: &impl AsFd) -> bool {
        u64::try_from(newest.as_fd().as_raw_fd()).is_ok_and(|number| number >= self.last_files.load(Ordering::Relaxed))
    }

    /// Records that `resource` was lacking: logs it, and asks workers to close idle connections to the app.
    pub fn note(&self, resource: Resource) {
        if resource.is_of_process() {
            self.sweep.notify_waiters();
        }
        let (logged, unsaid) = (&self.logged[resource as usize], &self.unsaid[resource as usize]);
        let times = unsaid.fetch_add(1, Ordering::Relaxed) + 1;
        let now = u64::try_from(clock::since(self.began).as_millis()).unwrap_or(u64::MAX).max(1);
        let last = logged.load(Ordering::Relaxed);
        let is_due = last == 0 || now.saturating_sub(last) >= LOG_EVERY_MS;
        if is_due && logged.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            unsaid.store(0, Ordering::Relaxed);
            tracing::error!(
                event = "out_of_resources",
                resource = resource.name(),
                times,
                "{resource}, so it makes no more connections: {}",
                resource.advice()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant(code: i32, target: &str) -> Option<Resource> {
        let target = match target.strip_prefix("unix:") {
            Some(path) => Target::Unix(std::path::Path::new(path).into()),
            None => Target::Tcp(target.parse().unwrap()),
        };
        Resource::of(&io::Error::from_raw_os_error(code), &target)
    }

    #[test]
    fn local_exhaustion_is_distinguished_from_errors_of_the_app() {
        let raw = |errno: Errno| errno.raw_os_error();
        for target in ["127.0.0.1:1", "unix:/tmp/x"] {
            assert_eq!(meant(raw(Errno::MFILE), target), Some(Resource::OpenFiles));
            assert_eq!(meant(raw(Errno::NFILE), target), Some(Resource::SystemFiles));
            assert_eq!(meant(raw(Errno::NOBUFS), target), Some(Resource::Memory));
            assert_eq!(meant(raw(Errno::NOMEM), target), Some(Resource::Memory));
            for of_app in [Errno::CONNREFUSED, Errno::NOENT, Errno::HOSTUNREACH, Errno::NETUNREACH, Errno::ACCESS] {
                assert_eq!(meant(raw(of_app), target), None, "{of_app}");
            }
        }
        assert_eq!(meant(raw(Errno::ADDRNOTAVAIL), "127.0.0.1:1"), Some(Resource::LocalPorts));
        assert_eq!(meant(raw(Errno::ADDRNOTAVAIL), "unix:/tmp/x"), None);
    }
}
