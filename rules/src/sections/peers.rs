//! `[peers]`: the other Machines of the same app.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_identity::signing::KEYS;
use outrigger_identity::this::This;
use outrigger_policy::flags::Mode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::acting::Acting;
use crate::complaints::Builder;
use crate::environment::FLY_APP_NAME;
use crate::tree::Step;
use crate::units::{Span, Text};

const fn span(duration: Duration) -> Text<Span> {
    Text(Span(duration))
}

/// The other Machines of the same app. Changes need a restart, except of `failover`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Peers {
    /// The address at which peers reach this Machine: a separate listener, on the private network. Unset: there are no
    /// peers. Environment: OUTRIGGER_PEERS_LISTEN.
    pub listen: Option<Text<SocketAddr>>,
    /// A name that resolves to their addresses (AAAA, A). Unset: `<FLY_APP_NAME>.internal`. Environment:
    /// OUTRIGGER_PEERS_DNS.
    pub dns: Option<String>,
    /// The port at these addresses. Unset: that of `listen`.
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// Their addresses, instead of a name. Environment: OUTRIGGER_PEERS_LIST, comma-separated.
    pub list: Vec<Text<SocketAddr>>,
    /// The name server to use. Unset: the system's. Environment: OUTRIGGER_PEERS_RESOLVER.
    pub resolver: Option<Text<SocketAddr>>,
    /// The address at which peers reach this Machine, if address translation makes it differ from the one at which
    /// connections arrive. Environment: OUTRIGGER_PEERS_ADDRESS.
    pub address: Option<Text<SocketAddr>>,
    /// How often the name is looked up.
    pub refresh: Text<Span>,
    /// Interval of health probes to each peer.
    pub interval: Text<Span>,
    /// Timeout of a probe, and of connecting to a peer.
    pub timeout: Text<Span>,
    /// Whether peers get requests while the app here is down or not ready, or its circuit breaker is open.
    pub failover: Acting,
}

impl Default for Peers {
    fn default() -> Self {
        Self {
            listen: None,
            dns: None,
            port: None,
            list: Vec::new(),
            resolver: None,
            address: None,
            refresh: span(Duration::from_secs(5)),
            interval: span(Duration::from_secs(1)),
            timeout: span(Duration::from_millis(500)),
            failover: Acting::Enforce,
        }
    }
}

/// Peers, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRules {
    /// The listener for peers.
    pub listen: SocketAddr,
    /// How peers are discovered.
    pub found_by: FoundBy,
    /// The address at which they reach this Machine; `None`: the one at which connections arrive.
    pub address: Option<SocketAddr>,
    /// How often they are discovered anew.
    pub refresh: Duration,
    /// Interval of probes to each peer.
    pub interval: Duration,
    /// Timeout of a probe.
    pub timeout: Duration,
    /// Whether peers get requests that the app here cannot take.
    pub failover: Mode,
}

/// How peers are discovered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundBy {
    /// By a name.
    Dns {
        /// The name.
        name: String,
        /// The port at its addresses.
        port: u16,
        /// The name server; `None`: the system's.
        resolver: Option<SocketAddr>,
    },
    /// A fixed list.
    List(Vec<SocketAddr>),
}

impl Builder<'_> {
    /// Checks the section; `None` without peers.
    pub fn peers(&mut self, written: &Peers, this: Option<&This>) -> Option<PeerRules> {
        let at = |key| [Step::Key("peers"), Step::Key(key)];
        let Some(listen) = written.listen.as_ref().map(|listen| listen.0) else {
            for (key, is_set) in [("dns", written.dns.is_some()), ("list", !written.list.is_empty())] {
                if is_set {
                    let hint = "name an address of the private network, such as \"[::]:8083\"";
                    self.complain(&at(key), "peers need `peers.listen`, where they reach this Machine", hint);
                }
            }
            return None;
        };
        if this.is_none() {
            let hint = format!("set {KEYS}, the same on all Machines, and OUTRIGGER_MACHINE unless on Fly");
            self.complain(&at("listen"), "peers need a name for this Machine, and keys", &hint);
        }
        let spans = [
            ("refresh", &written.refresh, Duration::from_millis(100)),
            ("interval", &written.interval, Duration::from_millis(50)),
            ("timeout", &written.timeout, Duration::from_millis(1)),
        ];
        for (key, span, least) in spans {
            if span.0.0 < least {
                let message = format!("`{key}` needs at least {}ms", least.as_millis());
                self.complain(&at(key), message, "write \"1s\", for example");
            }
        }
        let of_app = || (self.environment)(FLY_APP_NAME).map(|app| format!("{app}.internal"));
        let found_by = match (&written.dns, written.list.as_slice()) {
            (Some(_), [_, ..]) => {
                self.complain(&at("list"), "`dns` and `list` are both set", "keep one of them");
                return None;
            }
            (None, list @ [_, ..]) => FoundBy::List(list.iter().map(|address| address.0).collect()),
            (name, []) => match name.clone().or_else(of_app) {
                Some(name) if hickory_resolver::proto::rr::Name::from_utf8(&name).is_ok() => FoundBy::Dns {
                    name,
                    port: written.port.unwrap_or_else(|| listen.port()),
                    resolver: written.resolver.as_ref().map(|resolver| resolver.0),
                },
                Some(name) => {
                    self.complain(&at("dns"), format!("{name:?} is not a name"), "on Fly: \"<app>.internal\"");
                    return None;
                }
                None => {
                    let hint = "set `dns` or `list`; on Fly, FLY_APP_NAME gives the name";
                    self.complain(&at("listen"), "the peers have no address", hint);
                    return None;
                }
            },
        };
        this?;
        Some(PeerRules {
            listen,
            found_by,
            address: written.address.as_ref().map(|address| address.0),
            refresh: written.refresh.0.0,
            interval: written.interval.0.0,
            timeout: written.timeout.0.0,
            failover: written.failover.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::load;
    use crate::environment::FLY_MACHINE_ID;
    use outrigger_policy::affinity::Via;
    const KEY: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn sessions_are_sticky_if_there_are_keys_and_a_name() {
        assert!(load("", &[]).unwrap().affinity.is_none());
        assert!(load("", &[(FLY_MACHINE_ID, "148e21eea46589")]).unwrap().affinity.is_none());
        let rules = load("", &[(FLY_MACHINE_ID, "148e21eea46589"), (KEYS, KEY)]).unwrap();
        assert_eq!(rules.affinity.map(|rules| (rules.mode, rules.via)), Some((Mode::Enforce, Via::Replay)));
        assert_eq!(rules.this.map(|this| this.name.to_string()).as_deref(), Some("148e21eea46589"));
        let named = load("[server]\nmachine = \"a\"\n[affinity]\nmode = \"off\"\n", &[(KEYS, KEY)]).unwrap();
        assert_eq!(named.affinity.map(|rules| rules.mode), Some(Mode::Off));
    }

    #[test]
    fn peers_are_found_by_the_name_of_the_app() {
        let environment = [(FLY_MACHINE_ID, "m1"), (KEYS, KEY), (FLY_APP_NAME, "shop")];
        let rules = load("[peers]\nlisten = \"[::]:8083\"\n", &environment).unwrap();
        let name = FoundBy::Dns { name: "shop.internal".to_owned(), port: 8083, resolver: None };
        assert_eq!(rules.peers.map(|rules| rules.found_by), Some(name));
        let rules = load("[peers]\nlisten = \"[::]:8083\"\nlist = [\"127.0.0.2:8083\"]\n", &environment).unwrap();
        let list = FoundBy::List(vec!["127.0.0.2:8083".parse().unwrap()]);
        assert_eq!(rules.peers.map(|rules| rules.found_by), Some(list));
    }

    #[test]
    fn invalid_settings_are_reported_with_position() {
        let (named, keyed) = ([(FLY_MACHINE_ID, "m1")], [(FLY_MACHINE_ID, "m1"), (KEYS, KEY)]);
        let errors = [
            load("[affinity]\nmode = \"enforce\"\n", &named),
            load("[affinity]\nmax_life = \"500d\"\nidle = \"1ms\"\n", &keyed),
            load("[server]\nmachine = \"a b\"\n", &keyed),
            load("", &[(FLY_MACHINE_ID, "m1"), (KEYS, "short")]),
            load("[peers]\nlisten = \"[::]:8083\"\n", &keyed),
            load("[peers]\nlist = [\"127.0.0.2:8083\"]\n", &keyed),
            load("[peers]\nlisten = \"[::]:8083\"\nlist = [\"127.0.0.2:8083\"]\ndns = \"a.internal\"\n", &keyed),
            load("[peers]\nlisten = \"[::]:8083\"\ndns = \"a..internal\"\ninterval = \"1ms\"\n", &keyed),
            load("[peers]\nlisten = \"[::]:8083\"\ndns = \"a.internal\"\n", &named),
        ];
        let text: Vec<String> = errors.into_iter().map(|error| error.unwrap_err()).collect();
        insta::assert_snapshot!(text.join("\n"));
    }
}
