//! The audit trail as it is kept: what both programs and the commands must agree about. docs/audit.md has the format.
//!
//! Read in this order: [`keys`] (pseudonyms, sealed values, signatures), [`entry`] (an entry as it is read), [`layout`] (the files of
//! a spool), [`spool`] (how entries get there), [`local`] (a key for whoever gives none),
//! `store` (how they are kept in PostgreSQL), [`holds`] (what retention must leave
//! alone), [`verify`] (whether it is all still there).

pub mod entry;
pub mod holds;
pub mod keys;
pub mod layout;
pub mod lines;
pub mod local;
pub mod spool;
#[cfg(feature = "postgres")]
pub mod store;
pub mod verify;
