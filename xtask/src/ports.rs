//! Free ports, and who holds the others.

use std::{
    collections::HashSet,
    fmt, fs,
    hash::{BuildHasher, RandomState},
    net::{Ipv4Addr, TcpListener},
    sync::{LazyLock, Mutex, PoisonError},
};

use crate::{Error, Result};

/// Below 32768, where Linux takes the ports of outgoing connections from: one of those under load would take ours.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// Handed out by this process and perhaps not listened on yet.
static GIVEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

/// A TCP port that nobody on 127.0.0.1 listens on, below 32768, and never the same one twice in a process.
pub fn free() -> Result<u16> {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    // A random start keeps several test runs on one machine apart.
    let span = u64::from(RANGE.end - RANGE.start);
    let start = RandomState::new().hash_one(std::process::id()) % span;
    (0..span)
        .map(|step| RANGE.start + u16::try_from((start + step) % span).unwrap_or(0))
        .find(|port| !given.contains(port) && is_free(*port))
        .inspect(|port| {
            given.insert(*port);
        })
        .ok_or_else(|| Error::new(format_args!("no free port in {}..{}", RANGE.start, RANGE.end)))
}

/// The wanted port, or else a free one and who holds the wanted one.
pub fn prefer(wanted: u16) -> Result<(u16, Option<Holder>)> {
    if is_free(wanted) {
        return Ok((wanted, None));
    }
    Ok((free()?, Some(holder(wanted).unwrap_or_default())))
}

pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Who listens on a port: unknown parts are empty, as with another user's process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    pub pid: Option<u32>,
    pub command: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "process {pid} ({})", self.command),
            None => f.write_str("a process of another user"),
        }
    }
}

/// Who listens on this port on any address, as far as `/proc` tells us.
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
