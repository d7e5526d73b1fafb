//! `[headers]`: which headers the proxy adds.

use outrigger_wire::forwarding;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which headers tell the app about the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedStyle {
    /// `X-Forwarded-For`, `-Proto`, `-Host` and `Forwarded` (RFC 7239).
    #[default]
    Both,
    /// `X-Forwarded-For`, `-Proto` and `-Host`.
    XForwarded,
    /// `Forwarded` (RFC 7239).
    Rfc7239,
    /// None of them.
    Off,
}

impl From<ForwardedStyle> for forwarding::ForwardedStyle {
    fn from(style: ForwardedStyle) -> Self {
        match style {
            ForwardedStyle::Both => Self::Both,
            ForwardedStyle::XForwarded => Self::XForwarded,
            ForwardedStyle::Rfc7239 => Self::Rfc7239,
            ForwardedStyle::Off => Self::Off,
        }
    }
}

/// Which headers the proxy adds.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Headers {
    /// Which headers tell the app about the client.
    pub forwarded: ForwardedStyle,
    /// `X-Request-Id`, in the request to the app and in the response.
    pub request_id: bool,
    /// `Via` (RFC 9110 section 7.6.3), to the app. Off: requests carry `CDN-Loop` (RFC 8586) instead, for loop detection.
    pub via: bool,
}

impl Default for Headers {
    fn default() -> Self {
        Self { forwarded: ForwardedStyle::Both, request_id: true, via: true }
    }
}
