//! The names of the private network, over UDP and TCP.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_resolver::Resolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use outrigger_edge::{DnsFault, Edge, Machine, Settings, State};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::fake::PATIENCE;

fn machine(id: &str, region: &str, host: u8) -> Machine {
    let private = IpAddr::from([127, 0, 0, host]);
    Machine { id: id.to_owned(), region: region.to_owned(), version: 1, public: SocketAddr::new(private, 1), private }
}

async fn edge_with(machines: &[(&str, &str, u8)]) -> Edge {
    let settings = Settings { dns: Some("127.0.0.1:0".parse().unwrap()), ..Settings::default() };
    let edge = Edge::start(settings, None).await.unwrap();
    for (id, region, host) in machines {
        edge.add(machine(id, region, *host), State::Started);
    }
    edge
}

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

async fn over_udp(edge: &Edge, name: &str, kind: RecordType, patience: Duration) -> Option<Message> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&question(name, kind), edge.dns().unwrap()).await.unwrap();
    let mut answer = vec![0; 4096];
    let length = tokio::time::timeout(patience, socket.recv(&mut answer)).await.ok()?.unwrap();
    let answer = Message::from_vec(&answer[..length]).unwrap();
    assert_eq!(answer.metadata.id, 77);
    Some(answer)
}

async fn over_tcp(edge: &Edge, name: &str, kind: RecordType) -> Message {
    let mut stream = TcpStream::connect(edge.dns().unwrap()).await.unwrap();
    let question = question(name, kind);
    stream.write_u16(question.len() as u16).await.unwrap();
    stream.write_all(&question).await.unwrap();
    let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut answer).await.unwrap();
    Message::from_vec(&answer).unwrap()
}

async fn ask(edge: &Edge, name: &str, kind: RecordType) -> Message {
    let udp = over_udp(edge, name, kind, PATIENCE).await.expect("an answer");
    let tcp = over_tcp(edge, name, kind).await;
    assert_eq!((&udp.answers, udp.metadata.response_code), (&tcp.answers, tcp.metadata.response_code));
    udp
}

/// The addresses of a name, or the response code instead.
async fn addresses(edge: &Edge, name: &str) -> Result<Vec<Ipv6Addr>, ResponseCode> {
    let answer = ask(edge, name, RecordType::AAAA).await;
    match answer.metadata.response_code {
        ResponseCode::NoError => Ok(answer.answers.iter().map(address).collect()),
        code => Err(code),
    }
}

fn address(record: &hickory_proto::rr::Record) -> Ipv6Addr {
    match &record.data {
        RData::AAAA(address) => address.0,
        other => panic!("{other:?}"),
    }
}

fn of(hosts: &[u8]) -> Result<Vec<Ipv6Addr>, ResponseCode> {
    Ok(hosts.iter().map(|host| format!("::ffff:127.0.0.{host}").parse().unwrap()).collect())
}

#[tokio::test]
async fn names_have_the_addresses_of_started_machines() {
    let edge = edge_with(&[("a", "ams", 2), ("b", "ams", 3), ("c", "syd", 4)]).await;
    assert_eq!(addresses(&edge, "app.internal.").await, of(&[2, 3, 4]));
    assert_eq!(addresses(&edge, "GLOBAL.app.Internal.").await, of(&[2, 3, 4]));
    assert_eq!(addresses(&edge, "ams.app.internal.").await, of(&[2, 3]));
    assert_eq!(addresses(&edge, "b.vm.app.internal.").await, of(&[3]));
    edge.cordon("a");
    edge.set_state("b", State::Stopped);
    edge.set_state("c", State::Destroyed);
    assert_eq!(addresses(&edge, "app.internal.").await, of(&[2]), "a cordon does not reach the private network");
    for unknown in ["b.vm.app.internal.", "syd.app.internal.", "other.internal.", "example.com."] {
        assert_eq!(addresses(&edge, unknown).await, Err(ResponseCode::NXDomain), "{unknown}");
    }
}

#[tokio::test]
async fn other_record_types_of_a_known_name_are_empty() {
    let edge = edge_with(&[("a", "ams", 2)]).await;
    let answer = ask(&edge, "app.internal.", RecordType::A).await;
    assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
}

#[tokio::test]
async fn the_list_of_machines_is_a_text_however_long() {
    let text = async |edge: &Edge, name: &str| {
        let answer = over_tcp(edge, name, RecordType::TXT).await;
        let RData::TXT(txt) = &answer.answers[0].data else { panic!("{answer:?}") };
        txt.txt_data.iter().map(|part| String::from_utf8(part.to_vec()).unwrap()).collect::<String>()
    };
    let edge = edge_with(&[("a", "ams", 2), ("b", "syd", 3)]).await;
    assert_eq!(text(&edge, "vms.app.internal.").await, "a ams,b syd");
    assert_eq!(text(&edge, "regions.app.internal.").await, "ams,syd");
    for host in 4..100 {
        edge.add(machine(&format!("machine{host:03}"), "ams", host), State::Started);
    }
    let long = text(&edge, "vms.app.internal.").await;
    assert!(long.split(',').count() == 98 && long.ends_with("machine099 ams"), "{long}");
    let short = over_udp(&edge, "app.internal.", RecordType::AAAA, PATIENCE).await.unwrap();
    assert!(short.metadata.truncation, "more than a datagram holds is asked for again over TCP");
    assert_eq!(over_tcp(&edge, "app.internal.", RecordType::AAAA).await.answers.len(), 98);
}

#[tokio::test]
async fn a_stop_that_has_not_propagated_is_not_in_the_dns() {
    let mut settings = Settings { dns: Some("127.0.0.1:0".parse().unwrap()), ..Settings::default() };
    settings.routing.propagation = Duration::from_secs(3600);
    let edge = Edge::start(settings, None).await.unwrap();
    edge.add(machine("a", "ams", 2), State::Started);
    edge.settle();
    edge.set_state("a", State::Stopped);
    assert_eq!(addresses(&edge, "app.internal.").await, of(&[2]), "it has not been heard of");
    edge.settle();
    assert_eq!(addresses(&edge, "app.internal.").await, of(&[]));
}

#[tokio::test]
async fn it_can_be_made_to_fail() {
    let edge = edge_with(&[("a", "ams", 2)]).await;
    edge.dns_fails(DnsFault::ServFail);
    assert_eq!(addresses(&edge, "app.internal.").await, Err(ResponseCode::ServFail));
    edge.dns_fails(DnsFault::Silent);
    assert!(over_udp(&edge, "app.internal.", RecordType::AAAA, Duration::from_millis(100)).await.is_none());
    edge.dns_fails(DnsFault::None);
    assert_eq!(addresses(&edge, "app.internal.").await, of(&[2]));
}

#[tokio::test]
async fn malformed_queries_are_ignored_without_harm() {
    let edge = edge_with(&[("a", "ams", 2)]).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for nonsense in [&b""[..], b"x", &[0xff; 600]] {
        socket.send_to(nonsense, edge.dns().unwrap()).await.unwrap();
    }
    assert_eq!(addresses(&edge, "app.internal.").await, of(&[2]));
}

/// The proxy's own resolver, with the stand-in as its server.
#[tokio::test]
async fn a_resolver_finds_machines_and_learns_of_those_that_are_not_there() {
    let edge = edge_with(&[("a", "ams", 2), ("b", "syd", 3)]).await;
    let dns = edge.dns().unwrap();
    let mut server = NameServerConfig::udp_and_tcp(dns.ip());
    server.connections.iter_mut().for_each(|connection| connection.port = dns.port());
    let config = ResolverConfig::from_name_servers(vec![server]);
    let builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
    let resolver = builder.build().unwrap();
    let addresses = async |name: &str| {
        let found = resolver.lookup(name, RecordType::AAAA).await?;
        let mut addresses: Vec<_> = found.answers().iter().map(address).collect();
        addresses.sort();
        Ok::<_, NetError>(addresses)
    };
    assert_eq!(addresses("app.internal.").await.ok(), of(&[2, 3]).ok());
    assert_eq!(addresses("b.vm.app.internal.").await.ok(), of(&[3]).ok());
    assert!(addresses("c.vm.app.internal.").await.is_err_and(|e| e.is_nx_domain()));
    for host in 4..100 {
        edge.add(machine(&format!("machine{host:03}"), "gru", host), State::Started);
    }
    let many = addresses("gru.app.internal.").await.unwrap();
    assert_eq!(many.len(), 96, "over TCP");
    edge.dns_fails(DnsFault::ServFail);
    assert!(addresses("a.vm.app.internal.").await.is_err_and(|e| !e.is_nx_domain()));
}
