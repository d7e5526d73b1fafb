//! A recorded request.

/// How the client was identified: by this value limits count it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ClientKind {
    /// By its address.
    #[default]
    Address,
    /// By a verified API key.
    Key,
    /// By a verified user.
    User,
    /// By an API key that the configuration does not know.
    UnknownKey,
}

impl ClientKind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Address, Self::Key, Self::User, Self::UnknownKey];

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Key => "key",
            Self::User => "user",
            Self::UnknownKey => "unknown-key",
        }
    }
}

/// The mode of a feature for the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Applied {
    /// It was off.
    #[default]
    Off,
    /// It only counted.
    Monitor,
    /// It was enforced.
    Enforce,
}

impl Applied {
    /// All modes, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Off, Self::Monitor, Self::Enforce];
}

/// Facts about a request that are true or false.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Facts(pub u16);

impl Facts {
    /// Outrigger rejected it.
    pub const REJECTED: Self = Self(1);
    /// The response came from the app or a peer.
    pub const ANSWERED: Self = Self(1 << 1);
    /// The response had `Retry-After`.
    pub const SAYS_WHEN: Self = Self(1 << 2);
    /// It had less time than its route allows.
    pub const HAD_LESS_TIME: Self = Self(1 << 3);
    /// Its client disconnected.
    pub const CLIENT_LEFT: Self = Self(1 << 4);
    /// Rate limits and bans counted it on this Machine.
    pub const COUNTED_HERE: Self = Self(1 << 5);
    /// It was for the app of this Machine.
    pub const FOR_APP: Self = Self(1 << 6);
    /// The response was an event stream or a tunnel.
    pub const STREAM: Self = Self(1 << 7);

    /// Whether all of `other` are true.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These, and `other` if `holds`.
    #[must_use]
    pub const fn with(self, other: Self, holds: bool) -> Self {
        if holds { Self(self.0 | other.0) } else { self }
    }
}

/// The number of a text of the file, if there is one.
pub type OptionalText = Option<u32>;

/// A recorded request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordedRequest {
    /// When its head was complete: nanoseconds since 1970.
    pub started_ns: u64,
    /// Until its end, in microseconds.
    pub total_us: u64,
    /// How long it waited in the queue, in microseconds.
    pub queued_us: u64,
    /// How long the app took for the head of its response, in microseconds; `None` if it was not asked.
    pub service_us: Option<u64>,
    /// The number of its shape.
    pub shape: u32,
    /// The status of its response.
    pub status: u16,
    /// The label of the rejection or of the app's failure.
    pub reason: OptionalText,
    /// The name of the rate limit that rejected it.
    pub limit: OptionalText,
    /// The client's tier, by its number in the policy's list.
    pub tier: u8,
    /// How the client was identified.
    pub kind: ClientKind,
    /// The client's pseudonym.
    pub client: u64,
    /// The pseudonym of the client's address; the same as `client` if that was identified by its address.
    pub address: u64,
    /// The mode of rate limits, bans and the concurrency limit for this client.
    pub admission: Applied,
    /// The mode of circuit breakers for this client.
    pub resilience: Applied,
    /// Facts.
    pub facts: Facts,
    /// Attempts at the app or a peer.
    pub attempts: u8,
    /// The size of its body: 0 is an empty one, `n` is less than 2 to the power of `n` bytes.
    pub body_class: u8,
}

impl RecordedRequest {
    /// The class of a body's size.
    pub const fn class_of(bytes: u64) -> u8 {
        (u64::BITS - bytes.leading_zeros()) as u8
    }
}

/// The kind of a request: everything that the choice of its route depends on. Texts by their numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Shape {
    /// The method; `OTHER` for unusual ones.
    pub method: u32,
    /// The host, if the file had routes by host and one of them fits; else empty.
    pub host: u32,
    /// The path as a template; empty if only the route is known.
    pub path: u32,
    /// The name of the route that it took.
    pub route: u32,
    /// The conditions on headers that held, among those of the file: `name: value`, one a line; no value is any value.
    pub headers: u32,
}
