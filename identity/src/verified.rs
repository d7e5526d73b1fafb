//! Verified identities, and why a credential was ignored.

use std::sync::Arc;

use outrigger_policy::tier::Tier;

use crate::hash::{client_hash, kind};

/// The verified identity of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The kind of credential.
    pub kind: VerifiedKind,
    /// The user, or the name of the key.
    pub name: Arc<str>,
    /// From the key table or the token's claim.
    pub tier: Tier,
    /// [`client_hash`] of kind and name.
    pub hash: u64,
}

/// The kind of credential that verified a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifiedKind {
    /// A token signed for this user.
    User,
    /// A key of the table.
    Key,
}

impl Verified {
    /// Creates the identity.
    pub fn new(kind: VerifiedKind, name: &str, tier: Tier) -> Self {
        let hashed_as = match kind {
            VerifiedKind::User => kind::USER,
            VerifiedKind::Key => kind::KEY,
        };
        Self { kind, name: name.into(), tier, hash: client_hash(hashed_as, name.as_bytes()) }
    }

    /// The name for operators: `user:ann`, `key:acme`.
    pub fn shown(&self) -> String {
        match self.kind {
            VerifiedKind::User => format!("user:{}", self.name),
            VerifiedKind::Key => format!("key:{}", self.name),
        }
    }
}

/// Why a credential was ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ignored {
    /// A key that is not in the table, is too long, or was sent twice.
    UnknownKey,
    /// An invalid token: signature, algorithm, issuer, audience, or a missing claim. Or two tokens.
    BadToken,
    /// Longer than 8 KiB.
    LongToken,
    /// No longer valid.
    ExpiredToken,
    /// Not valid yet.
    EarlyToken,
    /// Valid, but without a user's name.
    NamelessToken,
    /// Signed with a key that the issuer did not publish, as of the last fetch.
    UnknownSigner,
    /// The issuer's keys have not been fetched yet.
    NoSigners,
}

impl Ignored {
    /// All variants.
    pub const ALL: [Self; 8] = [
        Self::UnknownKey,
        Self::BadToken,
        Self::LongToken,
        Self::ExpiredToken,
        Self::EarlyToken,
        Self::NamelessToken,
        Self::UnknownSigner,
        Self::NoSigners,
    ];

    /// Whether the credential is forged, rather than old or unknown.
    pub const fn is_forgery(self) -> bool {
        matches!(self, Self::BadToken | Self::UnknownSigner)
    }

    /// The metric's label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::UnknownKey => "unknown_key",
            Self::BadToken => "bad_token",
            Self::LongToken => "long_token",
            Self::ExpiredToken => "expired_token",
            Self::EarlyToken => "early_token",
            Self::NamelessToken => "nameless_token",
            Self::UnknownSigner => "unknown_signer",
            Self::NoSigners => "no_signers",
        }
    }
}
