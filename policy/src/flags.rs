//! Feature flags: on, off, on for a share of clients, or `monitor`.
//!
//! [`Flag::mode_for`] returns the mode of a feature for a client. Percentages are sticky: a client's result changes only
//! with the percentage, and a client that has the feature keeps it when the percentage grows. The formula is Unleash's
//! (`normalizedStrategyValue` of its client specification): `murmur3_32("group:id", seed 0) % 100 + 1` gives a number from
//! 1 to 100; the client has the feature if that number is at most the percentage. The group is the name of the flag's
//! environment variable, so two flags at 10 % select different clients.
//!
//! Environment variables:
//!
//! | variable | values |
//! |---|---|
//! | `FF_ENABLE_X` | `true`, `false`, `monitor` or a percentage such as `10%` |
//! | `FF_ENABLE_X_PERCENTAGE` | `0` to `100`: narrows an enabled flag, or enables an unset one for that share |
//! | `FF_ENABLE_X_USERS` | comma-separated user ids that always get the feature, unless the flag is `false` |
//! | `FF_ENABLE_X_IPS` | the same for addresses and networks (`10.0.0.0/8`) |
//!
//! # Examples
//!
//! ```
//! use std::net::IpAddr;
//!
//! use outrigger_policy::flags::{Feature, Flag, Mode, Subject, bucket};
//!
//! let flag = Flag { users: vec!["ann".to_owned()], ..Flag::always("20%".parse().unwrap()) };
//! let mode = |id| {
//!     let subject = Subject { id, user: Some(id), address: IpAddr::from([192, 0, 2, 7]) };
//!     flag.mode_for(Feature::AuditTrail, subject)
//! };
//! assert_eq!(mode("ann"), Mode::Enforce, "an allow-listed user");
//! assert_eq!(bucket("FF_ENABLE_AUDIT_TRAIL", "user-1"), 16);
//! assert_eq!(mode("user-1"), Mode::Enforce, "16 is within 20 %");
//! assert_eq!(mode("bob"), Mode::Off);
//! ```

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A feature that a flag controls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Feature {
    /// Circuit breakers around the app and its dependencies.
    CircuitBreaker,
    /// Connection pools in the demo app that are kept warm, recycled with jitter and monitored.
    EnhancedPooling,
    /// Rate limits by priority, bans and the concurrency limit.
    PrioritizedRateLimit,
    /// The audit log.
    AuditTrail,
    /// Sticky sessions.
    SessionAffinity,
}

impl Feature {
    /// All features, in the order of the documentation.
    pub const ALL: [Self; 5] = [
        Self::CircuitBreaker,
        Self::EnhancedPooling,
        Self::PrioritizedRateLimit,
        Self::AuditTrail,
        Self::SessionAffinity,
    ];

    /// Returns the key in `[flags]`, also used as label in metrics.
    pub const fn key(self) -> &'static str {
        match self {
            Self::CircuitBreaker => "circuit_breaker",
            Self::EnhancedPooling => "enhanced_pooling",
            Self::PrioritizedRateLimit => "prioritized_rate_limit",
            Self::AuditTrail => "audit_trail",
            Self::SessionAffinity => "session_affinity",
        }
    }

    /// Returns the name of the environment variable, also used as group of the rollout.
    pub const fn variable(self) -> &'static str {
        match self {
            Self::CircuitBreaker => "FF_ENABLE_CIRCUIT_BREAKER",
            Self::EnhancedPooling => "FF_ENABLE_ENHANCED_POOLING",
            Self::PrioritizedRateLimit => "FF_ENABLE_PRIORITIZED_RATE_LIMIT",
            Self::AuditTrail => "FF_ENABLE_AUDIT_TRAIL",
            Self::SessionAffinity => "FF_ENABLE_SESSION_AFFINITY",
        }
    }
}

/// The mode of a feature for one request. Default: [`Mode::Off`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// The feature's decisions apply.
    Enforce,
    /// Shadow mode: decisions are counted and logged, but not applied.
    Monitor,
    /// The feature does not run.
    #[default]
    Off,
}

impl Mode {
    /// Returns the name used in configuration, metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Monitor => "monitor",
            Self::Off => "off",
        }
    }
}

/// A share of all clients, 0 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percentage(u8);

impl Percentage {
    /// 100 %.
    pub const ALL: Self = Self(100);

    /// Returns `None` above 100.
    pub const fn new(percent: u8) -> Option<Self> {
        if percent <= 100 { Some(Self(percent)) } else { None }
    }

    /// Returns the number, 0 to 100.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Returns whether the rollout of `group` to this share includes `id`.
    pub fn includes(self, group: &str, id: &str) -> bool {
        self == Self::ALL || bucket(group, id) <= self.0
    }
}

/// The state of a flag, without its allow-lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// On for this share of clients; `true` means 100 %.
    On(Percentage),
    /// `monitor` for all clients that are not on an allow-list.
    Monitor,
    /// Off for all clients, including those on the allow-lists.
    Off,
}

/// Error: the text is not a switch. Contains the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadSwitch(pub String);

impl fmt::Display for BadSwitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "needs true, false, \"monitor\" or a percentage such as \"10%\", got {:?}", self.0)
    }
}

impl std::error::Error for BadSwitch {}

impl FromStr for Switch {
    type Err = BadSwitch;

    fn from_str(text: &str) -> Result<Self, BadSwitch> {
        let bad = || BadSwitch(text.to_owned());
        match text.trim() {
            "true" => Ok(Self::On(Percentage::ALL)),
            "false" => Ok(Self::Off),
            "monitor" => Ok(Self::Monitor),
            share => {
                let number = share.strip_suffix('%').ok_or_else(bad)?;
                let percent = number.trim().parse().ok().and_then(Percentage::new).ok_or_else(bad)?;
                Ok(Self::On(percent))
            }
        }
    }
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::On(Percentage::ALL) => f.write_str("true"),
            Self::On(share) => write!(f, "{}%", share.get()),
            Self::Monitor => f.write_str("monitor"),
            Self::Off => f.write_str("false"),
        }
    }
}

/// An address or a network in CIDR notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix_bits: u8,
}

impl Network {
    /// Returns whether the network contains `address`. IPv4-mapped IPv6 addresses (`::ffff:1.2.3.4`) count as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                same_prefix(net.to_bits().into(), ip.to_bits().into(), self.prefix_bits, 32)
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => same_prefix(net.to_bits(), ip.to_bits(), self.prefix_bits, 128),
            _ => false,
        }
    }

    /// The first and the last address, of the same family.
    pub fn range(&self) -> (IpAddr, IpAddr) {
        match self.address {
            IpAddr::V4(net) => {
                let host = u32::MAX.checked_shr(self.prefix_bits.into()).unwrap_or(0);
                (Ipv4Addr::from_bits(net.to_bits() & !host).into(), Ipv4Addr::from_bits(net.to_bits() | host).into())
            }
            IpAddr::V6(net) => {
                let host = u128::MAX.checked_shr(self.prefix_bits.into()).unwrap_or(0);
                (Ipv6Addr::from_bits(net.to_bits() & !host).into(), Ipv6Addr::from_bits(net.to_bits() | host).into())
            }
        }
    }
}

fn same_prefix(a: u128, b: u128, prefix_bits: u8, width: u32) -> bool {
    // A prefix of 0 matches everything; shifting by the full width would overflow.
    let host_bits = width.saturating_sub(u32::from(prefix_bits));
    host_bits >= width || (a ^ b) >> host_bits == 0
}

/// Error: the text is neither an address nor a network. Contains the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadNetwork(pub String);

impl fmt::Display for BadNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "needs an address or a network such as \"10.0.0.0/8\" or \"fdaa::/16\", got {:?}", self.0)
    }
}

impl std::error::Error for BadNetwork {}

impl FromStr for Network {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let bad = || BadNetwork(text.to_owned());
        let (address, prefix) = match text.trim().split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text.trim(), None),
        };
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let prefix_bits = match prefix {
            None => width,
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= width).ok_or_else(bad)?,
        };
        Ok(Self { address, prefix_bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_bits)
    }
}

/// The client, as far as flags need to know it.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Identifies the client for percentages: the user, else the API key, else the address.
    pub id: &'a str,
    /// The verified user, if any.
    pub user: Option<&'a str>,
    /// The client's address.
    pub address: IpAddr,
}

/// A feature's switch and allow-lists. Default: on for all clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// The state for clients that are not on an allow-list.
    pub switch: Switch,
    /// Users that get the feature unless the switch is off.
    pub users: Vec<String>,
    /// Networks that get the feature unless the switch is off.
    pub networks: Vec<Network>,
}

impl Default for Flag {
    fn default() -> Self {
        Self::always(Switch::On(Percentage::ALL))
    }
}

impl Flag {
    /// Creates a flag without allow-lists.
    pub const fn always(switch: Switch) -> Self {
        Self { switch, users: Vec::new(), networks: Vec::new() }
    }

    /// Returns the mode if it is the same for all clients, else `None`. Lets the hot path skip the client's identity.
    pub fn mode_for_everybody(&self) -> Option<Mode> {
        match self.switch {
            Switch::Off => Some(Mode::Off),
            Switch::On(Percentage::ALL) => Some(Mode::Enforce),
            Switch::On(Percentage(0)) if self.users.is_empty() && self.networks.is_empty() => Some(Mode::Off),
            Switch::Monitor if self.users.is_empty() && self.networks.is_empty() => Some(Mode::Monitor),
            Switch::On(_) | Switch::Monitor => None,
        }
    }

    /// Returns the mode of `feature` for `subject`.
    pub fn mode_for(&self, feature: Feature, subject: Subject<'_>) -> Mode {
        if let Some(mode) = self.mode_for_everybody() {
            return mode;
        }
        let listed = subject.user.is_some_and(|user| self.users.iter().any(|u| u == user))
            || self.networks.iter().any(|network| network.contains(subject.address));
        match self.switch {
            Switch::Off => Mode::Off,
            _ if listed => Mode::Enforce,
            Switch::Monitor => Mode::Monitor,
            Switch::On(share) if share.includes(feature.variable(), subject.id) => Mode::Enforce,
            Switch::On(_) => Mode::Off,
        }
    }

    /// Applies the environment: each variable that is set and not blank replaces that part of the flag. `variable` looks
    /// up a variable by name.
    ///
    /// # Errors
    /// [`FlagError`] with the name of the variable that could not be parsed, and the expected form.
    pub fn overridden_by(
        mut self,
        feature: Feature,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, FlagError> {
        let name = feature.variable();
        let read = |suffix: &str| {
            let name = format!("{name}{suffix}");
            variable(&name).filter(|value| !value.trim().is_empty()).map(|value| (name, value))
        };
        let switch = read("");
        if let Some((name, value)) = &switch {
            self.switch = value.parse().map_err(|e| FlagError::new(name, e))?;
        }
        if let Some((name, value)) = read("_PERCENTAGE") {
            let percent = value.trim().trim_end_matches('%').parse().ok().and_then(Percentage::new);
            let share = percent.ok_or_else(|| FlagError::new(&name, format!("needs 0 to 100, got {value:?}")))?;
            // `10%`, `monitor` or `false` in the main variable takes precedence over the separate percentage.
            if matches!(self.switch, Switch::On(Percentage::ALL)) || switch.is_none() {
                self.switch = Switch::On(share);
            }
        }
        if let Some((_, value)) = read("_USERS") {
            self.users = list(&value).map(str::to_owned).collect();
        }
        if let Some((name, value)) = read("_IPS") {
            self.networks =
                list(&value).map(str::parse).collect::<Result<_, _>>().map_err(|e| FlagError::new(&name, e))?;
        }
        Ok(self)
    }
}

fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// Error: an environment variable could not be parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlagError {
    /// The name of the variable.
    pub variable: String,
    /// The expected form and the actual value.
    pub problem: String,
}

impl FlagError {
    fn new(variable: &str, problem: impl fmt::Display) -> Self {
        Self { variable: variable.to_owned(), problem: problem.to_string() }
    }
}

impl fmt::Display for FlagError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.variable, self.problem)
    }
}

impl std::error::Error for FlagError {}

/// Returns the client's bucket in the rollout of `group`, 1 to 100.
pub fn bucket(group: &str, id: &str) -> u8 {
    let hash = murmur3_32(group.bytes().chain([b':']).chain(id.bytes()));
    // At most 100, so the cast keeps the value.
    (hash % 100 + 1) as u8
}

/// MurmurHash3, x86, 32 bit, seed 0 (Austin Appleby's `MurmurHash3_x86_32`, public domain).
fn murmur3_32(bytes: impl Iterator<Item = u8>) -> u32 {
    let scramble = |k: u32| k.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    let (mut hash, mut length, mut block) = (0_u32, 0_u32, 0_u32);
    for byte in bytes {
        block |= u32::from(byte) << (8 * (length % 4));
        length = length.wrapping_add(1);
        if length.is_multiple_of(4) {
            hash = (hash ^ scramble(block)).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64);
            block = 0;
        }
    }
    hash ^= scramble(block);
    hash ^= length;
    hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

#[cfg(test)]
mod tests;
