//! The signed response to a probe: the name and condition of a Machine, and the addresses between which it was probed.
//!
//! The response proves that its sender has the keys, and that the probe arrived there at the address that was probed,
//! from the address that sent it. So a program at a peer's address that forwards probes to a real Machine is not
//! mistaken for it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use outrigger_identity::signing::{Keys, Purpose, VerifyBuffer};
use outrigger_policy::affinity::is_name;

use crate::peers::hop::Nonce;

/// A Machine's condition, as it reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It accepts requests that its peers cannot serve.
    Ready = 1,
    /// Its app is not ready; it keeps its sessions.
    Unready = 2,
    /// It is draining.
    Leaving = 3,
    /// Requests are queued there: it has no capacity to spare.
    Busy = 4,
}

/// A response to a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeAnswer {
    /// The condition of the Machine.
    pub condition: Condition,
    /// The name of the Machine.
    pub name: Box<str>,
    /// The run of its process.
    pub run: u64,
    /// The nonce of the probe.
    pub nonce: Nonce,
    /// The Machine that sent the probe.
    pub asker: Box<str>,
    /// The address at which the probe arrived.
    pub arrived_at: SocketAddr,
    /// The source address of the probe.
    pub came_from: SocketAddr,
}

/// The probe to which a response belongs.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The nonce of the probe.
    pub nonce: Nonce,
    /// The Machine that sends the probe.
    pub asker: &'a str,
    /// The address that it has connected to.
    pub address: SocketAddr,
    /// The address that it has connected from; `None` if addresses are translated on the way.
    pub from: Option<SocketAddr>,
}

/// Why a response proves no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerRefused {
    /// It is not a response to a probe, or not signed with any of the keys.
    #[error("does not prove that it is a peer: do all Machines have the same keys and the same version?")]
    Unsigned,
    /// It is the response to another probe.
    #[error("is the response to another probe")]
    OtherProbe,
    /// A peer was probed at another address than this one.
    #[error(
        "forwards the probe to a peer at {0}: it is not a peer itself. If addresses are translated between the Machines, set \
         peers.address of each to the address at which the others reach it"
    )]
    OtherAddress(SocketAddr),
    /// A peer was probed from another address than ours.
    #[error(
        "is between this Machine and a peer, which was probed from {0}: it is not a peer itself. If addresses are translated \
         between the Machines, set peers.address of each to the address at which the others reach it"
    )]
    OtherOrigin(SocketAddr),
}

impl ProbeAnswer {
    /// Encodes and signs the response.
    pub fn sign(&self, keys: &Keys) -> Vec<u8> {
        let name = self.name.as_bytes();
        let mut text = vec![self.condition as u8];
        text.extend_from_slice(&self.run.to_be_bytes());
        text.extend_from_slice(&self.nonce.run.to_be_bytes());
        text.extend_from_slice(&self.nonce.count.to_be_bytes());
        put_address(&mut text, self.arrived_at);
        put_address(&mut text, self.came_from);
        // At most 63 bytes.
        text.push(name.len() as u8);
        text.extend_from_slice(name);
        text.extend_from_slice(self.asker.as_bytes());
        let mut out = Vec::new();
        keys.append_signed(Purpose::Probe, &text, &mut out);
        out
    }

    /// Verifies and decodes the output of [`ProbeAnswer::sign`], and checks that it belongs to this probe.
    ///
    /// # Errors
    /// [`AnswerRefused`]
    pub fn verify(keys: &Keys, signed: &[u8], asked: Asked<'_>) -> Result<Self, AnswerRefused> {
        let mut buffer = [0; size_of::<VerifyBuffer>()];
        let answer =
            keys.verified(Purpose::Probe, signed, &mut buffer).and_then(Self::read).ok_or(AnswerRefused::Unsigned)?;
        if answer.nonce != asked.nonce || *answer.asker != *asked.asker {
            return Err(AnswerRefused::OtherProbe);
        }
        if canonical(answer.arrived_at) != canonical(asked.address) {
            return Err(AnswerRefused::OtherAddress(answer.arrived_at));
        }
        if asked.from.is_some_and(|from| canonical(from) != canonical(answer.came_from)) {
            return Err(AnswerRefused::OtherOrigin(answer.came_from));
        }
        Ok(answer)
    }

    fn read(text: &[u8]) -> Option<Self> {
        let (condition, rest) = text.split_first()?;
        let (run, rest) = rest.split_first_chunk::<8>()?;
        let (asker_run, rest) = rest.split_first_chunk::<8>()?;
        let (count, rest) = rest.split_first_chunk::<8>()?;
        let (arrived_at, rest) = take_address(rest)?;
        let (came_from, rest) = take_address(rest)?;
        let (length, rest) = rest.split_first()?;
        let (name, asker) = rest.split_at_checked(usize::from(*length))?;
        let all = [Condition::Ready, Condition::Unready, Condition::Leaving, Condition::Busy];
        let text = |name: &[u8]| std::str::from_utf8(name).ok().filter(|name| is_name(name.as_bytes())).map(Box::from);
        Some(Self {
            condition: all.into_iter().find(|known| *known as u8 == *condition)?,
            name: text(name)?,
            run: u64::from_be_bytes(*run),
            nonce: Nonce { run: u64::from_be_bytes(*asker_run), count: u64::from_be_bytes(*count) },
            asker: text(asker)?,
            arrived_at,
            came_from,
        })
    }
}

/// Removes differences between the two ends: an IPv4 address in IPv6 form, scope and flow.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn put_address(text: &mut Vec<u8>, address: SocketAddr) {
    let ip = match address.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    text.extend_from_slice(&ip.octets());
    text.extend_from_slice(&address.port().to_be_bytes());
}

fn take_address(text: &[u8]) -> Option<(SocketAddr, &[u8])> {
    let (ip, rest) = text.split_first_chunk::<16>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let ip = IpAddr::V6(Ipv6Addr::from(*ip)).to_canonical();
    Some((SocketAddr::new(ip, u16::from_be_bytes(*port)), rest))
}

#[cfg(test)]
mod tests {
    use outrigger_policy::affinity::LONGEST_NAME;

    use super::*;

    fn keys(letter: &str) -> Keys {
        Keys::parse(&letter.repeat(32)).unwrap().unwrap()
    }

    fn answer() -> ProbeAnswer {
        ProbeAnswer {
            condition: Condition::Busy,
            name: "b".into(),
            run: 5,
            nonce: Nonce { run: 3, count: 7 },
            asker: "a".into(),
            arrived_at: "192.0.2.1:8083".parse().unwrap(),
            came_from: "192.0.2.9:40000".parse().unwrap(),
        }
    }

    fn asked(answer: &ProbeAnswer) -> Asked<'_> {
        let ProbeAnswer { nonce, asker, arrived_at, came_from, .. } = answer;
        Asked { nonce: *nonce, asker, address: *arrived_at, from: Some(*came_from) }
    }

    #[test]
    fn an_answer_is_valid_for_one_probe_between_two_addresses() {
        let answer = answer();
        let signed = answer.sign(&keys("k"));
        let opened = |asked| ProbeAnswer::verify(&keys("k"), &signed, asked);
        let right = asked(&answer);
        assert_eq!(opened(right), Ok(answer.clone()));
        assert_eq!(opened(Asked { from: None, ..right }), Ok(answer.clone()));
        let mapped = "[::ffff:192.0.2.1]:8083".parse().unwrap();
        assert_eq!(opened(Asked { address: mapped, ..right }), Ok(answer.clone()));
        let refused = |asked| opened(asked).unwrap_err();
        assert_eq!(refused(Asked { nonce: Nonce { run: 3, count: 8 }, ..right }), AnswerRefused::OtherProbe);
        assert_eq!(refused(Asked { asker: "c", ..right }), AnswerRefused::OtherProbe);
        for other in ["192.0.2.2:8083", "192.0.2.1:8084"] {
            let asked = Asked { address: other.parse().unwrap(), ..right };
            assert_eq!(refused(asked), AnswerRefused::OtherAddress(answer.arrived_at));
        }
        let asked = Asked { from: Some("192.0.2.9:40001".parse().unwrap()), ..right };
        assert_eq!(refused(asked), AnswerRefused::OtherOrigin(answer.came_from));
        assert_eq!(ProbeAnswer::verify(&keys("x"), &signed, right), Err(AnswerRefused::Unsigned));
        assert_eq!(ProbeAnswer::verify(&keys("k"), b"ready", right), Err(AnswerRefused::Unsigned));
    }

    #[test]
    fn the_longest_names_fit() {
        let answer = ProbeAnswer {
            name: "n".repeat(LONGEST_NAME).into(),
            asker: "a".repeat(LONGEST_NAME).into(),
            arrived_at: "[2001:db8::1]:65535".parse().unwrap(),
            ..answer()
        };
        assert_eq!(ProbeAnswer::verify(&keys("k"), &answer.sign(&keys("k")), asked(&answer)), Ok(answer.clone()));
    }
}
