//! Finds free ports, and the processes that use others.

use std::{
    collections::HashMap,
    fmt, fs,
    hash::{BuildHasher, RandomState},
    net::{Ipv4Addr, SocketAddrV4},
    sync::{LazyLock, Mutex, PoisonError},
};

use crate::{Error, Result};

/// Below 32768, where Linux's range of ephemeral ports begins: under load, an outgoing connection could take the
/// port.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// Ports handed out by this process, possibly not listened on yet, each with its reservation against other processes.
static GIVEN: LazyLock<Mutex<HashMap<u16, Option<Reservation>>>> = LazyLock::new(Mutex::default);

/// A TCP port on 127.0.0.1 that no process listens on, below 32768. Until this process ends, no other call, in any
/// process, returns the same port.
pub fn free() -> Result<u16> {
    // A random start: most ports are free, so the first candidate nearly always succeeds.
    let span = u64::from(RANGE.end - RANGE.start);
    let start = RandomState::new().hash_one(std::process::id()) % span;
    (0..span)
        .map(|step| RANGE.start + u16::try_from((start + step) % span).unwrap_or(0))
        .find(|port| take(*port))
        .ok_or_else(|| Error::new(format_args!("no free port in {}..{}", RANGE.start, RANGE.end)))
}

/// The wanted port, or a free one and the process that uses the wanted one.
pub fn prefer(wanted: u16) -> Result<(u16, Option<Holder>)> {
    let is_ours = GIVEN.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&wanted);
    if (is_ours && is_free(wanted)) || take(wanted) {
        return Ok((wanted, None));
    }
    Ok((free()?, Some(holder(wanted).unwrap_or_default())))
}

/// Reserves a port for this process, unless it is in use or reserved.
fn take(port: u16) -> bool {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    if given.contains_key(&port) {
        return false;
    }
    // Reserved first: to look whether it is free takes it for a moment, in which its owner may want to listen.
    match reserve(port) {
        Ok(reservation) if is_free(port) => given.insert(port, reservation).is_none(),
        _ => false,
    }
}

#[cfg(target_os = "linux")]
type Reservation = std::os::unix::net::UnixListener;

/// Reserves a port against other processes of any user until it is listened on: binds a name in the abstract socket
/// namespace, which leaves no file and is released when the process ends.
#[cfg(target_os = "linux")]
fn reserve(port: u16) -> std::io::Result<Option<Reservation>> {
    use std::os::{linux::net::SocketAddrExt, unix::net::SocketAddr};
    let name = SocketAddr::from_abstract_name(format!("outrigger-xtask-port-{port}"))?;
    Reservation::bind_addr(&name).map(Some)
}

#[cfg(not(target_os = "linux"))]
type Reservation = ();

#[cfg(not(target_os = "linux"))]
fn reserve(_port: u16) -> std::io::Result<Option<Reservation>> {
    Ok(None)
}

/// Whether no process listens on this port now.
///
/// Binds the port without listening: a child process started concurrently by another thread inherits the socket until
/// its exec, and a listening socket would block the port meanwhile.
pub fn is_free(port: u16) -> bool {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
    let bound = || {
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
    };
    bound().is_ok()
}

/// The process that listens on a port. Unknown parts are empty, for example for another user's process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    pub pid: Option<u32>,
    pub command: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "process {pid} ({})", self.command),
            None => f.write_str("a process of another user, or one that is just starting"),
        }
    }
}

/// The process that listens on this port on any address, as far as `/proc` shows.
pub fn holder(port: u16) -> Option<Holder> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .find_map(|table| listening_inode(&table, port))?;
    let wanted = format!("socket:[{inode}]");
    let pid = fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid = process.file_name().to_str()?.parse::<u32>().ok()?;
        let sockets = fs::read_dir(process.path().join("fd")).ok()?;
        let holds = |fd: fs::DirEntry| fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str());
        sockets.flatten().any(holds).then_some(pid)
    });
    let command = pid.and_then(command_line).unwrap_or_default();
    Some(Holder { pid, command })
}

fn command_line(pid: u32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
    Some(text.trim().chars().take(80).collect())
}

/// The socket's inode from a line such as `0: 0100007F:1F90 00000000:0000 0A … UID TIMEOUT INODE …`.
fn listening_inode(table: &str, port: u16) -> Option<String> {
    const LISTENING: &str = "0A";
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, hex) = fields.get(1)?.rsplit_once(':')?;
        let here = u16::from_str_radix(hex, 16).ok()? == port && *fields.get(3)? == LISTENING;
        if here { fields.get(9).map(|inode| (*inode).to_owned()) } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_free_port_is_below_the_ephemeral_range_and_not_given_twice() {
        let (one, two) = (free().unwrap(), free().unwrap());
        assert!(RANGE.contains(&one) && RANGE.contains(&two) && one != two);
    }

    #[test]
    fn a_port_in_use_is_replaced_and_its_holder_named() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, free().unwrap())).unwrap();
        let wanted = taken.local_addr().unwrap().port();
        let (port, holder) = prefer(wanted).unwrap();
        assert_ne!(port, wanted);
        assert_eq!(holder.unwrap().pid, Some(std::process::id()));
        drop(taken);
        assert_eq!(prefer(wanted).unwrap(), (wanted, None));
    }
}
