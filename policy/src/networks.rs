//! Which addresses may connect: lists of networks, as sorted ranges.

use std::net::IpAddr;

use crate::flags::Network;

/// A set of addresses: a lookup costs the logarithm of the number of its networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    v4: Ranges,
    v6: Ranges,
}

/// First and last address of each range, sorted, without overlaps.
type Ranges = Box<[(u128, u128)]>;

impl FromIterator<Network> for Networks {
    fn from_iter<I: IntoIterator<Item = Network>>(networks: I) -> Self {
        let (v4, v6): (Vec<_>, Vec<_>) =
            networks.into_iter().map(|network| network.range()).partition(|range| range.0.is_ipv4());
        Self { v4: merged(v4), v6: merged(v6) }
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn merged(networks: Vec<(IpAddr, IpAddr)>) -> Ranges {
    let mut ranges: Vec<(u128, u128)> = networks.into_iter().map(|(first, last)| (bits(first), bits(last))).collect();
    ranges.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged.into()
}

impl Networks {
    /// Whether it has no address.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Whether one of the networks contains `address`. IPv4-mapped IPv6 addresses count as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let ranges = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        let address = bits(address);
        let after = ranges.partition_point(|(first, _)| *first <= address);
        after.checked_sub(1).is_some_and(|at| address <= ranges[at].1)
    }
}

/// Allowed and denied addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressList {
    allow: Networks,
    deny: Networks,
}

impl AddressList {
    /// Only addresses in `allow`, unless it is empty, without those in `deny`.
    pub fn new(allow: Networks, deny: Networks) -> Self {
        Self { allow, deny }
    }

    /// Whether all addresses are allowed.
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// The list that refuses this address: `deny`, which has it, or `allow`, which lacks it.
    pub fn refused_by(&self, address: IpAddr) -> Option<&'static str> {
        if self.deny.contains(address) {
            return Some("deny");
        }
        (!self.allow.is_empty() && !self.allow.contains(address)).then_some("allow")
    }

    /// Whether this address is allowed.
    pub fn allows(&self, address: IpAddr) -> bool {
        self.refused_by(address).is_none()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn networks(list: &[&str]) -> Networks {
        list.iter().map(|network| network.parse::<Network>().unwrap()).collect()
    }

    #[test]
    fn deny_wins_and_an_empty_allow_list_allows_all() {
        let list = AddressList::new(networks(&["10.0.0.0/8", "fd00::/8"]), networks(&["10.1.0.0/16"]));
        let allows = |address: &str| list.allows(address.parse().unwrap());
        assert!(allows("10.0.0.1") && allows("::ffff:10.0.0.1") && allows("fd00::1"));
        assert!(!allows("10.1.0.1") && !allows("::ffff:10.1.2.3") && !allows("11.0.0.1") && !allows("::1"));
        let list = AddressList::new(Networks::default(), networks(&["0.0.0.0/0"]));
        assert!(!list.allows([127, 0, 0, 1].into()) && list.allows("::1".parse().unwrap()));
        assert!(AddressList::default().allows([127, 0, 0, 1].into()) && AddressList::default().is_empty());
        assert!(networks(&["::/0"]).contains("2001:db8::1".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn it_contains_what_one_of_its_networks_contains(
            list in proptest::collection::vec((any::<[u8; 4]>(), 0_u8..=32), 0..20),
            address: [u8; 4],
        ) {
            let parsed: Vec<Network> =
                list.iter().map(|(ip, bits)| format!("{}/{bits}", IpAddr::from(*ip)).parse().unwrap()).collect();
            let set: Networks = parsed.iter().copied().collect();
            let is_in_one = |address: [u8; 4]| parsed.iter().any(|network| network.contains(address.into()));
            for address in list.iter().map(|(ip, _)| *ip).chain([address]) {
                prop_assert_eq!(set.contains(address.into()), is_in_one(address));
            }
        }
    }
}
