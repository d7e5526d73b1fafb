//! Reads the configuration from the TOML file and the environment: returns valid types, or *all* problems with their places.
//!
//! ```text
//! load → written   the file as written, section by section (sections/), and the JSON Schema generated from it
//!      → check     validates the file with that schema: unknown keys, wrong types, unreadable text (kinds, units)
//!      → build     each section's own check, with its errors and warnings (complaints, error)
//!      → config    the configuration in force
//! environment      variables that replace keys, and secrets        own   which addresses are this proxy's own listeners
//! explain          what the configuration does with a request
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
