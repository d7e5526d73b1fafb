//! The stored audit log: code shared by both programs and the commands. docs/audit.md describes the format.
//!
//! Read in this order: [`keys`] (pseudonyms, encryption, signatures), [`entry`] (parsed entries), [`layout`] (the
//! files of a spool), [`spool`] (writing them), [`local`] (the generated master key), `store` (entries in
//! PostgreSQL), [`holds`] (exceptions from retention), [`verify`] (checking that the log is complete and unchanged),
//! [`follow`] (verified entries, as they are written).

pub mod entry;
pub mod follow;
pub mod holds;
pub mod keys;
pub mod layout;
pub mod lines;
pub mod local;
pub mod spool;
#[cfg(feature = "postgres")]
pub mod store;
pub mod verify;
