//! `[affinity]` and `[peers]`: sessions that keep their Machine, and the Machines that know each other.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_identity::signing::{KEYS, Keys};
use outrigger_identity::this::This;
use outrigger_policy::affinity::{Lifetime, Via, is_name};
use outrigger_policy::flags::Mode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Builder;
use super::admission::Acting;
use super::check::Step;
use super::error::{Place, Problem};
use super::raw::Raw;
use super::units::{Span, Text};

/// The name of this Machine on Fly.
pub const FLY_MACHINE_ID: &str = "FLY_MACHINE_ID";
/// The name of the app on Fly.
pub const FLY_APP_NAME: &str = "FLY_APP_NAME";

const fn span(duration: Duration) -> Text<Span> {
    Text(Span(duration))
}

/// How requests get to the Machine that keeps their session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// Fly's edge sends them there; what it cannot send goes over the private network.
    #[default]
    Replay,
    /// Over the private network.
    Private,
    /// Not at all: the app is told, and does what it wants.
    Off,
}

/// Sessions that keep their Machine. Needs a name for this Machine and OUTRIGGER_AFFINITY_KEYS in the environment.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Affinity {
    /// What is done. Unset: enforced where there are keys, else off.
    pub mode: Option<Acting>,
    /// How requests get to the Machine that keeps their session.
    pub via: Transport,
    /// How long a session lives without a request.
    pub idle: Text<Span>,
    /// How long it lives in all.
    pub max_life: Text<Span>,
    /// How long the edge may try to reach the session's Machine before another one takes the session over.
    pub replay_timeout: Text<Span>,
}

impl Default for Affinity {
    fn default() -> Self {
        Self {
            mode: None,
            via: Transport::Replay,
            idle: span(Duration::from_secs(3600)),
            max_life: span(Duration::from_secs(86_400)),
            replay_timeout: span(Duration::from_secs(5)),
        }
    }
}

/// The other Machines of the same app. Changes need a restart, `failover` excepted.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Peers {
    /// Where they reach this one: a listener of its own, on the private network. Unset: there are no peers.
    /// Environment: OUTRIGGER_PEERS_LISTEN.
    pub listen: Option<Text<SocketAddr>>,
    /// A name whose addresses (AAAA, A) are theirs. Unset: `<FLY_APP_NAME>.internal`. Environment: OUTRIGGER_PEERS_DNS.
    pub dns: Option<String>,
    /// The port at these addresses. Unset: that of `listen`.
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// Their addresses, instead of a name. Environment: OUTRIGGER_PEERS_LIST, comma-separated.
    pub list: Vec<Text<SocketAddr>>,
    /// The name server. Unset: the system's. Environment: OUTRIGGER_PEERS_RESOLVER.
    pub resolver: Option<Text<SocketAddr>>,
    /// The address at which the others reach this Machine, where it is not the one that connections arrive at: addresses are
    /// translated on the way. Environment: OUTRIGGER_PEERS_ADDRESS.
    pub address: Option<Text<SocketAddr>>,
    /// How often the name is looked up.
    pub refresh: Text<Span>,
    /// How often each of them is asked how it is.
    pub interval: Text<Span>,
    /// How long it may take to answer that, or to take a connection.
    pub timeout: Text<Span>,
    /// Whether requests go to a peer while the app here is away, unready or left alone by a breaker.
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

/// Sessions, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AffinityRules {
    /// What is done.
    pub mode: Mode,
    /// How requests get to another Machine.
    pub via: Via,
    /// How long a session lives.
    pub lifetime: Lifetime,
    /// How long the edge may try.
    pub replay_timeout: Duration,
}

/// Peers, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRules {
    /// The listener for them.
    pub listen: SocketAddr,
    /// Where they are.
    pub found_by: FoundBy,
    /// The address at which they reach this Machine; `None`: the one that connections arrive at.
    pub address: Option<SocketAddr>,
    /// How often they are looked for.
    pub refresh: Duration,
    /// How often each is asked how it is.
    pub interval: Duration,
    /// How long that may take.
    pub timeout: Duration,
    /// Whether requests go to them when the app here cannot take them.
    pub failover: Mode,
}

/// How peers are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundBy {
    /// By a name.
    Dns {
        /// The name.
        name: String,
        /// The port at its addresses.
        port: u16,
        /// Who is asked; `None`: the system's name servers.
        resolver: Option<SocketAddr>,
    },
    /// They are known.
    List(Vec<SocketAddr>),
}

impl Builder<'_> {
    /// This Machine, if it has a name and keys.
    pub(super) fn this_machine(&mut self, raw: &Raw) -> Option<This> {
        let keys = match (self.environment)(KEYS).map(|text| Keys::parse(&text)) {
            Some(Ok(keys)) => keys,
            Some(Err(e)) => {
                let problem = Problem::new(Place::Variable(KEYS.to_owned()), e.to_string())
                    .hint("make one with `openssl rand -base64 32`; the first signs, all verify");
                self.problems.push(problem);
                None
            }
            None => None,
        };
        let from_fly = (self.environment)(FLY_MACHINE_ID).filter(|id| !id.trim().is_empty());
        let name = raw.server.machine.clone().or(from_fly);
        if let Some(name) = name.as_ref().filter(|name| !is_name(name.as_bytes())) {
            let message = format!("`machine` needs 1 to 63 letters, digits, - _ and ., got {name:?}");
            self.complain(&[Step::Key("server"), Step::Key("machine")], message, "on Fly, leave it to FLY_MACHINE_ID");
            return None;
        }
        Some(This { name: name?.into(), keys: keys? })
    }

    /// Whether sessions keep no Machine on Fly only because there are no keys.
    pub(super) fn lacks_keys(&self, raw: &Raw, this: Option<&This>) -> bool {
        let is_on_fly = (self.environment)(FLY_MACHINE_ID).is_some();
        is_on_fly && this.is_none() && raw.affinity.mode != Some(Acting::Off)
    }

    /// What is done with sessions; `None` when nothing can be.
    pub(super) fn affinity(&mut self, raw: &Raw, this: Option<&This>) -> Option<AffinityRules> {
        let written = &raw.affinity;
        let at = |key| [Step::Key("affinity"), Step::Key(key)];
        for (key, span) in
            [("idle", &written.idle), ("max_life", &written.max_life), ("replay_timeout", &written.replay_timeout)]
        {
            if span.0.0 < Duration::from_secs(1) {
                self.complain(&at(key), format!("`{key}` needs at least a second"), "write \"1h\", for example");
            }
        }
        if written.max_life.0.0 > Duration::from_secs(400 * 86_400) {
            let hint = "clients keep no cookie for longer (RFC 6265bis section 5.5)";
            self.complain(&at("max_life"), "`max_life` is longer than 400 days", hint);
        }
        let asked_for = !matches!(written.mode, None | Some(Acting::Off));
        if asked_for && this.is_none() {
            let hint = format!(
                "set {KEYS} (`openssl rand -base64 32`), the same on all Machines, and OUTRIGGER_MACHINE unless on Fly"
            );
            self.complain(&at("mode"), "sessions need a name for this Machine, and keys", &hint);
        }
        this?;
        Some(AffinityRules {
            mode: written.mode.unwrap_or_default().into(),
            via: match written.via {
                Transport::Replay => Via::Replay,
                Transport::Private => Via::Private,
                Transport::Off => Via::Off,
            },
            lifetime: Lifetime { idle: written.idle.0.0, most: written.max_life.0.0 },
            replay_timeout: written.replay_timeout.0.0,
        })
    }

    /// The other Machines; `None` when this one is alone.
    pub(super) fn peers(&mut self, raw: &Raw, this: Option<&This>) -> Option<PeerRules> {
        let written = &raw.peers;
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
                self.complain(&at("list"), "there are `dns` and `list`", "keep one of them");
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
                    self.complain(&at("dns"), format!("{name:?} is no name"), "on Fly: \"<app>.internal\"");
                    return None;
                }
                None => {
                    let hint = "set `dns` or `list`; on Fly, FLY_APP_NAME gives the name";
                    self.complain(&at("listen"), "nothing says where the peers are", hint);
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
    use crate::config::Config;
    use std::path::Path;

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    fn load(source: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let lookup = |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        Config::parse(Path::new("proxy.toml"), source, &lookup).map_err(|e| e.to_string())
    }

    #[test]
    fn sessions_keep_their_machine_wherever_there_are_keys_and_a_name() {
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
    fn what_cannot_be_is_refused_with_its_place() {
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
