//! Reads the file, overlays the environment and checks everything. Returns a [`Config`], or *all* problems with their
//! places.

use std::path::Path;

use serde::Deserialize;

use crate::check::against_schema;
use crate::complaints::Builder;
use crate::config::Config;
use crate::environment::{Environment, monitor_unset_limits, overlay_environment, take_removed};
use crate::error::{ConfigError, Place, Problem};
use crate::tree::{self, Node, Step};
use crate::written::{Raw, schema};

impl Config {
    /// Reads and checks `file`.
    ///
    /// # Errors
    /// Every problem of the file and of the environment, with its place.
    pub fn load(file: &Path, environment: Environment<'_>) -> Result<Self, ConfigError> {
        let source = read(file)?;
        Self::parse(file, &source, environment)
    }

    /// Checks `source`; `file` is its name in messages.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(file: &Path, source: &str, environment: Environment<'_>) -> Result<Self, ConfigError> {
        Self::parse_with_places(file, source, environment).map(|(config, _)| config)
    }

    /// Like [`Config::parse`], with the places of upstream addresses: names are looked up later, and errors about them need
    /// the place.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse_with_places(
        file: &Path,
        source: &str,
        environment: Environment<'_>,
    ) -> Result<(Self, UpstreamPlaces), ConfigError> {
        let (mut root, mut problems) = tree::parse(source);
        overlay_environment(&mut root, environment);
        let warnings = take_removed(&mut root, environment);
        let limits_unset = monitor_unset_limits(&mut root, environment);
        problems.extend(against_schema(&root, &schema()));
        if problems.is_empty() {
            match Raw::deserialize(root.to_json()) {
                Ok(raw) => {
                    let mut builder = Builder { root: &root, environment, problems: Vec::new(), warnings };
                    let config = builder.build(&raw);
                    if builder.problems.is_empty() {
                        let shown = |warning| ConfigError::new(file, source, vec![warning]).as_warnings();
                        let warnings = builder.warnings.into_iter().map(shown).collect();
                        return Ok((Self { warnings, limits_unset, ..config }, UpstreamPlaces::of(&root)));
                    }
                    problems = builder.problems;
                }
                Err(e) => problems.push(Problem::new(Place::Whole, e.to_string())),
            }
        }
        Err(ConfigError::new(file, source, problems))
    }
}

/// The places in the file or the environment that configure upstream addresses.
#[derive(Clone, Debug)]
pub struct UpstreamPlaces {
    /// `app.address`
    pub address: Place,
    /// `app.metrics`
    pub metrics: Place,
}

impl UpstreamPlaces {
    fn of(root: &Node) -> Self {
        let place = |key| root.nearest(&[Step::Key("app"), Step::Key(key)]).1.place.clone();
        Self { address: place("address"), metrics: place("metrics") }
    }
}

/// Reads `file`.
///
/// # Errors
/// The file cannot be read; the error contains a remedy.
pub fn read(file: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(file).map_err(|e| {
        let problem = Problem::new(Place::Whole, format!("cannot be read: {e}"))
            .hint("name the file with --config or OUTRIGGER_CONFIG; config/proxy.toml of the repository is a start");
        ConfigError::new(file, "", vec![problem])
    })
}
