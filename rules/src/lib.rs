//! Reads the configuration from the TOML file and the environment: returns valid types, or *all* problems with their places.
//!
//! ```text
//! load → syntax    the file's TOML; after a mistake it goes on with what was probably meant
//!      → include    further files, merged into one tree; sources leads from a place in it to its file, inputs knows their versions
//!      → references `${NAME}` and `${file:…}` in values; scrub keeps what they stand for out of messages
//!      → written   the file as written, section by section (sections/), and the JSON Schema generated from it
//!      → check     validates the file with that schema: unknown keys, wrong types, unreadable text (kinds, units, advice, foreign)
//!      → repair    makes it fit the schema, so that the rest is checked in the same run
//!      → build     each section's own check, with its errors and warnings (complaints, error, suspicious)
//!      → config    the configuration in force
//! finding          problems as JSON and SARIF                      published  the JSON Schema for editors
//! environment      variables that replace keys, and secrets        own   which addresses are this proxy's own listeners
//! explain          what the configuration does with a request             effective  its values, and where they are from
//! diff             what changes in meaning between two configurations
//! ```

pub mod acting;
mod advice;
mod build;
mod check;
mod complaints;
pub mod config;
pub mod diff;
pub mod effective;
pub mod environment;
pub mod error;
pub mod explain;
pub mod finding;
mod foreign;
mod include;
pub mod inputs;
mod kinds;
pub mod load;
pub mod own;
pub mod published;
mod references;
mod repair;
mod schema;
mod scrub;
pub mod sections;
mod sources;
mod suspicious;
mod syntax;
pub mod target;
mod tree;
pub mod units;
pub mod written;
