//! `[affinity]`: sticky sessions, and this Machine's name and keys.

use std::time::Duration;

use outrigger_identity::signing::{KEYS, Keys};
use outrigger_identity::this::This;
use outrigger_policy::affinity::{Lifetime, Via, is_name};
use outrigger_policy::flags::Mode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::acting::Acting;
use crate::complaints::Builder;
use crate::environment::FLY_MACHINE_ID;
use crate::error::{Place, Problem};
use crate::tree::Step;
use crate::units::{Span, Text};

const fn span(duration: Duration) -> Text<Span> {
    Text(Span(duration))
}

/// How requests reach the home Machine of their session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// By `fly-replay`; requests that the edge cannot replay use the private network.
    #[default]
    Replay,
    /// By the private network.
    Private,
    /// Not at all: Outrigger only informs the app, which decides.
    Off,
}

/// Sticky sessions. Needs a name for this Machine and OUTRIGGER_AFFINITY_KEYS in the environment.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Affinity {
    /// Whether sessions are sticky. Unset: "enforce" if there are keys, else "off".
    pub mode: Option<Acting>,
    /// How requests reach the home Machine of their session.
    pub via: Transport,
    /// How long a session lives without a request.
    pub idle: Text<Span>,
    /// Maximum life of a session.
    pub max_life: Text<Span>,
    /// How long the edge may try to reach the home Machine before another Machine takes over the session.
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

/// Sticky sessions, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AffinityRules {
    /// Whether sessions are sticky.
    pub mode: Mode,
    /// How requests reach another Machine.
    pub via: Via,
    /// How long a session lives.
    pub lifetime: Lifetime,
    /// How long the edge may try to reach the home Machine.
    pub replay_timeout: Duration,
}

impl Builder<'_> {
    /// This Machine, if it has a name and keys.
    pub fn this_machine(&mut self, machine: Option<&str>) -> Option<This> {
        let keys = match (self.environment)(KEYS).map(|text| Keys::parse(&text)) {
            Some(Ok(keys)) => keys,
            Some(Err(e)) => {
                let hint = "make one with `openssl rand -base64 32`; the first signs, all verify";
                self.problems.push(Problem::new(Place::Variable(KEYS.to_owned()), e.to_string(), hint));
                None
            }
            None => None,
        };
        let from_fly = (self.environment)(FLY_MACHINE_ID).filter(|id| !id.trim().is_empty());
        let name = machine.map(str::to_owned).or(from_fly);
        if let Some(name) = name.as_ref().filter(|name| !is_name(name.as_bytes())) {
            let message = format!("`machine` needs 1 to 63 letters, digits, - _ and ., got {name:?}");
            self.complain(&[Step::Key("server"), Step::Key("machine")], message, "on Fly, leave it to FLY_MACHINE_ID");
            return None;
        }
        Some(This { name: name?.into(), keys: keys? })
    }

    /// Whether sticky sessions are off on Fly only because there are no keys.
    pub fn lacks_keys(&self, written: &Affinity, this: Option<&This>) -> bool {
        let is_on_fly = (self.environment)(FLY_MACHINE_ID).is_some();
        is_on_fly && this.is_none() && written.mode != Some(Acting::Off)
    }

    /// Checks the section; `None` if the feature is unavailable.
    pub fn affinity(&mut self, written: &Affinity, this: Option<&This>) -> Option<AffinityRules> {
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
}
