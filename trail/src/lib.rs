//! The audit trail as it is kept: what both programs and the commands must agree about. docs/audit.md has the format.
//!
//! Read in this order: [`keys`] (pseudonyms, sealed values, signatures), [`entry`] (an entry as it is read), [`layout`] (the files of
//! a spool), [`spool`] (how entries get there).

pub mod entry;
pub mod keys;
pub mod layout;
pub mod spool;
pub mod verify;
