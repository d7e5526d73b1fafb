//! On which TCP ports a group of processes listens, for the message about an app that does not listen where it should.

use std::collections::{BTreeSet, HashSet};
use std::fs;

use outrigger_rules::units::AppAddress;
use rustix::process::Pid;

/// The state `TCP_LISTEN` in /proc/net/tcp.
const LISTEN: &str = "0A";

/// The advice for an app that does not respond at `address`, with the ports on which it listens instead.
pub fn advice(address: &AppAddress, group: Option<Pid>) -> String {
    let AppAddress::Tcp(text) = address else {
        return "make it listen on this socket, or set app.address".to_owned();
    };
    let port = text.rsplit_once(':').map_or("", |(_, port)| port);
    let ports: Vec<String> = group.map(ports_of).unwrap_or_default().iter().map(u16::to_string).collect();
    let found = if ports.is_empty() { "on no port".to_owned() } else { format!("on {}", ports.join(", ")) };
    format!("it listens {found}; make it listen on the port in PORT, which is {port}, or set app.address")
}

/// The ports on which processes of this group listen, as far as /proc shows.
pub fn ports_of(group: Pid) -> BTreeSet<u16> {
    let sockets = sockets_of(group);
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .flat_map(|table| listeners(&table).collect::<Vec<_>>())
        .filter_map(|(port, inode)| sockets.contains(&inode).then_some(port))
        .collect()
}

/// The port and the inode of each listener in a table of /proc/net.
fn listeners(table: &str) -> impl Iterator<Item = (u16, u64)> {
    table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, local, _, state, _, _, _, _, _, inode, ..] = fields.as_slice() else { return None };
        let (_, port) = local.rsplit_once(':').filter(|_| *state == LISTEN)?;
        Some((u16::from_str_radix(port, 16).ok()?, inode.parse().ok()?))
    })
}

/// The inodes of all sockets that these processes have open.
fn sockets_of(group: Pid) -> HashSet<u64> {
    let mut sockets = HashSet::new();
    for process in super::process::all().filter(|process| process.group == group.as_raw_nonzero().get()) {
        let Ok(files) = fs::read_dir(format!("/proc/{}/fd", process.pid)) else { continue };
        sockets.extend(files.flatten().filter_map(|file| {
            let target = fs::read_link(file.path()).ok()?;
            target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok()
        }));
    }
    sockets
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn finds_the_ports_of_a_group() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = rustix::process::getpgrp();
        assert!(ports_of(own).contains(&listener.local_addr().unwrap().port()));
    }
}
