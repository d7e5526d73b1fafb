//! How a request ended, in metrics and logs.

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The app responded with 1xx or 2xx.
    Success,
    /// The app responded with 3xx.
    Redirect,
    /// The app responded with 4xx.
    ClientError,
    /// The app responded with 5xx.
    ServerError,
    /// Outrigger rejected it.
    Rejected,
    /// 502: the app could not be reached or did not speak HTTP.
    BadGateway,
    /// 503: the app could not be reached, and Outrigger responded in its place.
    Unavailable,
    /// 504: the app was too slow.
    GatewayTimeout,
    /// 499: the client disconnected early.
    ClientClosed,
    /// The response was cut off.
    Truncated,
    /// 500: an error of Outrigger itself.
    Internal,
}

impl Outcome {
    /// All outcomes.
    pub const ALL: [Self; 11] = [
        Self::Success,
        Self::Redirect,
        Self::ClientError,
        Self::ServerError,
        Self::Rejected,
        Self::BadGateway,
        Self::Unavailable,
        Self::GatewayTimeout,
        Self::ClientClosed,
        Self::Truncated,
        Self::Internal,
    ];

    /// The label in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Redirect => "redirect",
            Self::ClientError => "client_error",
            Self::ServerError => "server_error",
            Self::Rejected => "rejected",
            Self::BadGateway => "bad_gateway",
            Self::Unavailable => "unavailable",
            Self::GatewayTimeout => "gateway_timeout",
            Self::ClientClosed => "client_closed",
            Self::Truncated => "truncated",
            Self::Internal => "internal",
        }
    }
}
