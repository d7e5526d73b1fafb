//! The rules: from the TOML file and the environment to types that cannot be wrong, or to *all* problems with their places.
//!
//! ```text
//! load → written   the file as written, section by section (sections/), and the JSON Schema that is made of it
//!      → check     holds the file against that schema: unknown keys, wrong types, unreadable text (kinds, units)
//!      → build     each section's own check, with what it complains about (complaints, error)
//!      → config    what is in force
//! environment      variables that replace keys, and secrets        own   which addresses are this proxy's own listeners
//! explain          what the rules would do with a request
//! ```

pub mod acting;
mod build;
mod check;
mod complaints;
pub mod config;
pub mod environment;
pub mod error;
pub mod explain;
mod kinds;
pub mod load;
pub mod own;
pub mod sections;
pub mod target;
mod tree;
pub mod units;
pub mod written;
