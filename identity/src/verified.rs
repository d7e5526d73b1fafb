//! Who was verified, and why a credential was not.

use std::sync::Arc;

use outrigger_policy::tier::Tier;

use crate::hash::{client_hash, kind};

/// What was verified about who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// By which credential.
    pub kind: VerifiedKind,
    /// The user, or the name of the key.
    pub name: Arc<str>,
    /// From the key table or the token's claim.
    pub tier: Tier,
    /// [`client_hash`] of kind and name.
    pub hash: u64,
}

/// By which credential a client was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifiedKind {
    /// A token that somebody signed for this user.
    User,
    /// A key of the table.
    Key,
}

impl Verified {
    /// A client that was verified.
    pub fn new(kind: VerifiedKind, name: &str, tier: Tier) -> Self {
        let hashed_as = match kind {
            VerifiedKind::User => kind::USER,
            VerifiedKind::Key => kind::KEY,
        };
        Self { kind, name: name.into(), tier, hash: client_hash(hashed_as, name.as_bytes()) }
    }

    /// As operators name it: `user:ann`, `key:acme`.
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
    /// A key that is not in the table, longer than any, or sent twice.
    UnknownKey,
    /// No token of ours: signature, algorithm, issuer, audience, or a claim that must be there. Or two of them.
    BadToken,
    /// Longer than 8 KiB.
    LongToken,
    /// It was good once.
    ExpiredToken,
    /// It will be good one day.
    EarlyToken,
    /// Good, but it names no user.
    NamelessToken,
    /// Signed with a key that the issuer does not publish, or had not when we last asked.
    UnknownSigner,
    /// The issuer's keys have not come yet.
    NoSigners,
}

impl Ignored {
    /// All of them.
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

    /// Whether somebody made it who could not: not old, not unknown, but wrong.
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
