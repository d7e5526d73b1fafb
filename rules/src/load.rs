//! Reads the file, overlays the environment and checks everything. Returns a [`Config`], or *all* problems with their
//! places.

use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;

use crate::check::against_schema;
use crate::complaints::Builder;
use crate::config::Config;
use crate::environment::{Environment, monitor_unset_limits, overlay_environment, take_removed};
use crate::error::{ConfigError, Place, Problem};
use crate::finding::Rule;
use crate::repair::{Repaired, repair};
use crate::syntax::{self, Names};
use crate::tree::{Node, Step};
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
        let schema = schema();
        let syntax::Parsed { mut root, mut problems, is_partial } = syntax::parse(source, &Names::of(&schema));
        overlay_environment(&mut root, environment);
        let mut warnings = take_removed(&mut root, environment);
        let limits_unset = monitor_unset_limits(&mut root, environment);
        let mut found = against_schema(&root, &schema);
        // A missing key may be in a line that was left out.
        found.problems.retain(|problem| !is_partial || problem.rule != Rule::MissingKey);
        problems.append(&mut found.problems);
        let is_broken = !problems.is_empty();
        let fitting = repair(root.clone(), &found, &schema);
        let mut valid = None;
        match Raw::deserialize(fitting.to_json()) {
            Ok(raw) => {
                let mut builder = Builder { root: &fitting, environment, problems: Vec::new(), warnings };
                let config = builder.build(&raw);
                builder.warn_of_settings(&raw);
                (warnings, valid) = (builder.warnings, Some(config));
                let repaired = Repaired::of(&found, is_partial);
                let own = |mut problem: Problem| {
                    problem.key = fitting.path_of(&problem.place);
                    (!is_broken || !repaired.leads_to(&problem)).then_some(problem)
                };
                problems.extend(builder.problems.into_iter().filter_map(own));
                warnings = warnings.into_iter().filter_map(own).collect();
            }
            // The repair is for everything that the schema finds.
            Err(_) if is_broken => {}
            Err(e) => problems.push(Problem::new(Place::Whole, e.to_string(), "this is a bug in Outrigger: report it")),
        }
        let is_valid = problems.is_empty();
        problems.extend(warnings.into_iter().map(|warning| warning.of(Rule::Suspicious)));
        for problem in &mut problems {
            problem.key = root.path_of(&problem.place);
        }
        let report = ConfigError::new(file, source, problems);
        match valid.filter(|_| is_valid) {
            Some(config) => {
                Ok((Self { warnings: report.findings(), limits_unset, ..config }, UpstreamPlaces::of(&root)))
            }
            None => Err(report),
        }
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
        let hint = match e.kind() {
            ErrorKind::InvalidData => "save it as UTF-8",
            ErrorKind::IsADirectory => "name a file, not a directory",
            ErrorKind::PermissionDenied => "let the user of this process read it",
            _ => "name the file with --config or OUTRIGGER_CONFIG; config/proxy.toml of the repository is a start",
        };
        let problem = Problem::new(Place::Whole, format!("cannot be read: {e}"), hint).of(Rule::UnreadableFile);
        ConfigError::new(file, "", vec![problem])
    })
}

#[cfg(test)]
mod tests;
