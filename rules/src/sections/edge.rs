//! `identity.edge` and `identity.trusted`: which senders may name the client.

use std::fmt;
use std::str::FromStr;

use http::HeaderName;
use outrigger_policy::flags::Network;
use outrigger_wire::client_address::{AddressSource, Edge};
use outrigger_wire::names::{FLY_CLIENT_IP, X_FORWARDED_FOR};

use crate::complaints::Builder;
use crate::environment::FLY_APP_NAME;
use crate::tree::Step;
use crate::units::{Text, WrongText, text_schema};

/// Addresses of Fly's edge as a Machine sees it: private IPv4. Other Machines use IPv6. The edge was observed in
/// 172.16.0.0/12, which Fly does not document. Loopback is the Machine itself.
const FLY_NETWORKS: [&str; 5] = ["172.16.0.0/12", "10.0.0.0/8", "192.168.0.0/16", "127.0.0.0/8", "::1"];

/// An observed address of Fly's edge.
const FLY_SEEN: [u8; 4] = [172, 16, 0, 1];

/// The proxy in front, as written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum EdgeName {
    /// Fly's edge on Fly, else a proxy that sends `X-Forwarded-For`.
    #[default]
    Auto,
    /// Fly's edge.
    Fly,
    /// No proxy is trusted.
    None,
    /// A proxy that names the client in this header.
    Header(HeaderName),
}

impl FromStr for EdgeName {
    type Err = WrongText;

    fn from_str(text: &str) -> Result<Self, WrongText> {
        Ok(match text {
            "auto" => Self::Auto,
            "fly" => Self::Fly,
            "none" => Self::None,
            // All such headers but one contain a dash; a misspelt keyword has none.
            header if header.contains('-') || header.eq_ignore_ascii_case("forwarded") => {
                Self::Header(header.parse().map_err(|_| WrongText)?)
            }
            _ => return Err(WrongText),
        })
    }
}

impl fmt::Display for EdgeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fly => f.write_str("fly"),
            Self::None => f.write_str("none"),
            Self::Header(name) => name.fmt(f),
        }
    }
}

text_schema! {
    EdgeName => "edge",
}

impl Builder<'_> {
    /// Checks which senders may name the client.
    pub fn edge(&mut self, written: &EdgeName, trusted: &[Text<Network>]) -> Edge {
        let trusted: Vec<Network> = trusted.iter().map(|network| network.0).collect();
        let on_fly = (self.environment)(FLY_APP_NAME).is_some_and(|name| !name.trim().is_empty());
        let source = match written {
            EdgeName::Auto if on_fly => AddressSource::Header(FLY_CLIENT_IP.clone()),
            EdgeName::Auto if trusted.is_empty() => AddressSource::Connection,
            EdgeName::Auto => AddressSource::ForwardedFor,
            EdgeName::Fly => AddressSource::Header(FLY_CLIENT_IP.clone()),
            EdgeName::None => AddressSource::Connection,
            EdgeName::Header(name) => AddressSource::of(name.clone()),
        };
        let is_fly = (on_fly && *written != EdgeName::None) || *written == EdgeName::Fly;
        if let (EdgeName::Header(name), true) = (written, trusted.is_empty()) {
            let message = format!("`edge` is {name}, but no sender is trusted to set it");
            self.complain(&EDGE, message, "name the networks of the proxy in front in identity.trusted");
        }
        let networks = match written {
            EdgeName::None => Vec::new(),
            _ if is_fly && trusted.is_empty() => {
                FLY_NETWORKS.iter().filter_map(|network| network.parse().ok()).collect()
            }
            _ => trusted.clone(),
        };
        let edge = Edge { source, networks, is_fly };
        self.warn_of_merged_clients(written, &trusted, on_fly, &edge);
        edge
    }

    /// Warns of valid settings that merge all clients into one, or let clients impersonate each other.
    fn warn_of_merged_clients(&mut self, written: &EdgeName, trusted: &[Network], on_fly: bool, edge: &Edge) {
        if *written == EdgeName::None && on_fly {
            let message =
                "on Fly every connection comes from the edge: with `edge = \"none\"` all clients count as one";
            self.warn(&EDGE, message, "leave it out, or write edge = \"fly\"");
        } else if *written == EdgeName::None && !trusted.is_empty() {
            let message = "`trusted` has no effect with `edge = \"none\"`: no sender is trusted";
            self.warn(&TRUSTED, message, "leave one of the two out");
        }
        if on_fly && edge.source == AddressSource::ForwardedFor {
            let message = "on Fly X-Forwarded-For ends with the app's own address: all clients count as one";
            self.warn(&EDGE, message, "leave `edge` out, or write edge = \"fly\"");
        }
        let is_edge_trusted = edge.networks.iter().any(|network| network.contains(FLY_SEEN.into()));
        let is_loopback = |network: &Network| network.contains([127, 0, 0, 1].into());
        if on_fly && !edge.networks.is_empty() && !is_edge_trusted && !trusted.iter().any(is_loopback) {
            let message = "`trusted` has no network from which Fly's edge connects: all clients may count as one";
            self.warn(&TRUSTED, message, "leave it out, or add \"172.16.0.0/12\"");
        }
        let is_everybody = |network: &Network| network.to_string().ends_with("/0");
        if trusted.iter().any(is_everybody) && *written != EdgeName::None {
            let name = edge.source.header().unwrap_or(&X_FORWARDED_FOR);
            let message = format!("every sender is trusted: any client can claim another address in {name}");
            self.warn(&TRUSTED, message, "name only the networks of the proxy in front, such as \"10.0.0.0/8\"");
        }
    }
}

const EDGE: [Step<'static>; 2] = [Step::Key("identity"), Step::Key("edge")];
const TRUSTED: [Step<'static>; 2] = [Step::Key("identity"), Step::Key("trusted")];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use outrigger_wire::client_address::Sender;
    use std::path::Path;

    fn load(identity: &str, on_fly: bool) -> Result<Config, String> {
        let environment = |name: &str| (on_fly && name == FLY_APP_NAME).then(|| "shop".to_owned());
        let source = format!("[identity]\n{identity}\n");
        Config::parse(Path::new("proxy.toml"), &source, &environment).map_err(|e| e.to_string())
    }

    fn read(identity: &str, on_fly: bool) -> (Option<String>, bool) {
        let edge = load(identity, on_fly).unwrap().edge;
        (edge.source.header().map(ToString::to_string), edge.is_fly)
    }

    #[test]
    fn auto_is_fly_on_fly_and_the_list_elsewhere() {
        let trusted = "trusted = [\"10.0.0.0/8\"]";
        let header = |name: &str| Some(name.to_owned());
        assert_eq!(read("", false), (None, false));
        assert_eq!(read(trusted, false), (header("x-forwarded-for"), false));
        assert_eq!(read("", true), (header("fly-client-ip"), true));
        assert_eq!(read(trusted, true), (header("fly-client-ip"), true));
        assert_eq!(read("edge = \"fly\"", false), (header("fly-client-ip"), true));
        assert_eq!(read("edge = \"none\"", true), (None, false));
        assert_eq!(
            read(&format!("edge = \"CF-Connecting-IP\"\n{trusted}"), false),
            (header("cf-connecting-ip"), false)
        );
        assert_eq!(read(&format!("edge = \"Forwarded\"\n{trusted}"), true), (header("forwarded"), true));
        for wrong in ["edge = \"flyy\"", "edge = \"X-Real-IP\"", "edge = \"a b-c\""] {
            assert!(load(wrong, false).is_err(), "{wrong}");
        }
    }

    #[test]
    fn on_fly_the_edge_has_a_private_ipv4_address() {
        let edge = load("", true).unwrap().edge;
        for (address, sender) in [
            ("172.16.3.4", Sender::Fly),
            ("172.31.255.1", Sender::Fly),
            ("10.1.1.1", Sender::Fly),
            ("127.0.0.1", Sender::Fly),
            // The private network between Machines, and other addresses.
            ("fdaa:0:1::3", Sender::Stranger),
            ("203.0.113.1", Sender::Stranger),
        ] {
            assert_eq!(edge.sender(address.parse().unwrap()), sender, "{address}");
        }
        let told = load("trusted = [\"172.16.0.0/12\"]", true).unwrap().edge;
        assert_eq!(told.sender("10.1.1.1".parse().unwrap()), Sender::Stranger, "what is written counts alone");
    }

    #[test]
    fn warns_if_all_clients_count_as_one() {
        let warnings = |identity: &str, on_fly| {
            load(identity, on_fly).unwrap().warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        for (identity, on_fly, needle) in [
            ("edge = \"none\"", true, "all clients count as one"),
            ("edge = \"X-Forwarded-For\"\ntrusted = [\"172.16.0.0/12\"]", true, "all clients count as one"),
            ("trusted = [\"192.0.2.0/24\"]", true, "all clients may count as one"),
            ("trusted = [\"0.0.0.0/0\"]", false, "every sender is trusted"),
            ("edge = \"none\"\ntrusted = [\"10.0.0.0/8\"]", false, "has no effect"),
        ] {
            let said = warnings(identity, on_fly);
            assert!(said.contains(needle) && said.contains("hint: "), "{identity}: {said}");
        }
        for (identity, on_fly) in
            [("", true), ("", false), ("trusted = [\"172.16.0.0/12\"]", true), ("trusted = [\"10.0.0.0/8\"]", false)]
        {
            assert_eq!(warnings(identity, on_fly), "", "{identity}");
        }
    }
}
