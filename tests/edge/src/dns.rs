//! The DNS of the private network: `<app>.internal` and the names below it.
//!
//! Source: docs:networking/private-networking.html.md (facts: 4). Machines of one computer have 127.0.0.N, returned as
//! `::ffff:127.0.0.N`.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{AAAA, TXT};
use hickory_proto::rr::{RData, Record};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::{sleep, timeout};

use crate::machine::Machine;
use crate::shared::Shared;

/// How long DNS answers may be cached, in seconds. *Not established.*
const TTL: u32 = 5;
const TCP_PATIENCE: Duration = Duration::from_secs(5);

/// How the DNS stand-in fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsFault {
    None = 0,
    /// Receives every query and answers none.
    Silent = 1,
    ServFail = 2,
}

#[derive(Debug)]
pub(crate) struct Dns {
    udp: UdpSocket,
    tcp: TcpListener,
    address: SocketAddr,
}

impl Dns {
    /// The same port for UDP and TCP.
    pub(crate) async fn bind(address: SocketAddr) -> io::Result<Self> {
        let mut tries = 0;
        loop {
            let tcp = TcpListener::bind(address).await?;
            let address_of_both = tcp.local_addr()?;
            match UdpSocket::bind(address_of_both).await {
                Ok(udp) => return Ok(Self { udp, tcp, address: address_of_both }),
                // A port that is free for TCP may be taken for UDP.
                Err(_) if address.port() == 0 && tries < 20 => tries += 1,
                Err(e) => return Err(e),
            }
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) async fn serve(self, shared: Arc<Shared>) {
        tokio::join!(serve_udp(&shared, &self.udp), serve_tcp(&shared, &self.tcp));
    }
}

async fn serve_udp(shared: &Shared, socket: &UdpSocket) {
    let mut buffer = vec![0; 4096];
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
            // An earlier DNS answer bounced because its resolver has gone; go on.
            tokio::task::yield_now().await;
            continue;
        };
        let Some((question, answer)) = answer(shared, &buffer[..length]) else { continue };
        let Ok(mut bytes) = answer.to_vec() else { continue };
        if bytes.len() > usize::from(question.max_payload()) {
            // The resolver asks again over TCP.
            let Ok(truncated) = answer.truncate().to_vec() else { continue };
            bytes = truncated;
        }
        // A resolver that has gone needs no answer.
        let _ = socket.send_to(&bytes, peer).await;
    }
}

async fn serve_tcp(shared: &Arc<Shared>, listener: &TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        let task_shared = Arc::clone(shared);
        shared.spawn(async move {
            // A resolver that is slow or does not speak DNS is dropped.
            let _ = timeout(TCP_PATIENCE, converse(&task_shared, stream)).await;
        });
    }
}

async fn converse(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let mut question = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut question).await?;
        let Some((_, answer)) = answer(shared, &question) else { continue };
        let bytes = answer.to_vec().map_err(io::Error::other)?;
        stream.write_u16(u16::try_from(bytes.len()).map_err(io::Error::other)?).await?;
        stream.write_all(&bytes).await?;
    }
}

/// The query and its answer; `None` if it gets none.
fn answer(shared: &Shared, question: &[u8]) -> Option<(Message, Message)> {
    let fault = shared.dns_fault.load(Ordering::Relaxed);
    let question = Message::from_vec(question).ok().filter(|q| q.metadata.message_type == MessageType::Query)?;
    if fault == DnsFault::Silent as u8 {
        return None;
    }
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.metadata.recursion_desired = question.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_queries(question.queries.iter().cloned());
    answer.edns.clone_from(&question.edns);
    let Some(query) = question.queries.first() else {
        answer.metadata.response_code = ResponseCode::FormErr;
        return Some((question, answer));
    };
    if fault == DnsFault::ServFail as u8 {
        answer.metadata.response_code = ResponseCode::ServFail;
        return Some((question, answer));
    }
    let name = query.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
    match look_up(&shared.settings.app, &name, &shared.registry.heard_started()) {
        None => answer.metadata.response_code = ResponseCode::NXDomain,
        Some(found) => {
            let data = found.into_iter().filter(|data| data.record_type() == query.query_type());
            answer.add_answers(data.map(|data| Record::from_rdata(query.name().clone(), TTL, data)));
        }
    }
    Some((question, answer))
}

/// All records of a name, or `None` if there is no such name.
fn look_up(app: &str, name: &str, started: &[Machine]) -> Option<Vec<RData>> {
    let below = name.strip_suffix(".internal")?;
    let addresses = |is_wanted: &dyn Fn(&Machine) -> bool| -> Vec<RData> {
        started.iter().filter(|machine| is_wanted(machine)).map(|machine| aaaa(machine.private)).collect()
    };
    if below == app {
        return Some(addresses(&|_| true));
    }
    let which = below.strip_suffix(app)?.strip_suffix('.')?;
    let found = match which {
        "global" => return Some(addresses(&|_| true)),
        "vms" => {
            let pairs: Vec<_> = started.iter().map(|machine| format!("{} {}", machine.id, machine.region)).collect();
            return Some(vec![txt(&pairs)]);
        }
        "regions" => {
            let mut regions: Vec<_> = started.iter().map(|machine| machine.region.clone()).collect();
            regions.sort();
            regions.dedup();
            return Some(vec![txt(&regions)]);
        }
        _ => match which.strip_suffix(".vm") {
            Some(id) => addresses(&|machine| machine.id.eq_ignore_ascii_case(id)),
            None => addresses(&|machine| machine.region == which),
        },
    };
    (!found.is_empty()).then_some(found)
}

fn aaaa(address: IpAddr) -> RData {
    let address: Ipv6Addr = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    RData::AAAA(AAAA(address))
}

/// One text, in pieces of 255 bytes as DNS requires.
fn txt(parts: &[String]) -> RData {
    let text = parts.join(",");
    RData::TXT(TXT::from_bytes(text.as_bytes().chunks(255).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_app_are_known() {
        for name in
            ["other.internal", "internal", "app.example.com", "x.vm.app.internal", "lhr.app.internal", "myapp.internal"]
        {
            assert_eq!(look_up("app", name, &[]), None, "{name}");
        }
        assert_eq!(look_up("app", "app.internal", &[]), Some(vec![]));
    }
}
