//! Reads the files, overlays the environment and checks everything. Returns a [`Config`], or *all* problems with their
//! places.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::{Arc, LazyLock};

use serde::Deserialize;
use serde_json::Value as Json;

use crate::check::against_schema;
use crate::complaints::Builder;
use crate::config::Config;
use crate::effective::Effective;
use crate::environment::{Environment, monitor_unset_limits, overlay_environment, take_removed};
use crate::error::{ConfigError, Place, Problem};
use crate::finding::Rule;
use crate::include::{MOST_BYTES, Reading, include};
use crate::inputs::{Inputs, Trust};
use crate::references::{References, convert, expand};
use crate::repair::{Repaired, repair};
use crate::scrub::Scrubber;
use crate::sources::Sources;
use crate::syntax::{self, Names};
use crate::tree::{Node, Step};
use crate::written::{Raw, schema};

/// Generated once.
static SCHEMA: LazyLock<Json> = LazyLock::new(schema);

impl Config {
    /// Reads and checks `file`, and the files that it includes.
    ///
    /// # Errors
    /// Every problem of the files and of the environment, with its place.
    pub fn load(file: &Path, environment: Environment<'_>) -> Result<Self, ConfigError> {
        Loaded::read(file, environment).map(|loaded| loaded.config)
    }

    /// Checks `source`; `file` is its name in messages, and files that it includes are relative to it.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(file: &Path, source: &str, environment: Environment<'_>) -> Result<Self, ConfigError> {
        let inputs = Inputs::default();
        Loaded::of(Sources::of(file, source), inputs, environment, Trust::Operator).map(|loaded| loaded.config)
    }
}

/// A configuration, and what is needed to report more problems of it.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Names are looked up later, and errors about them need the place.
    pub places: UpstreamPlaces,
    sources: Sources,
    scrubber: Scrubber,
}

impl Loaded {
    /// As [`Config::load`].
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn read(file: &Path, environment: Environment<'_>) -> Result<Self, ConfigError> {
        let inputs = Inputs::of(file);
        match read(file) {
            Ok(source) => Self::of(Sources::of(file, source), inputs, environment, Trust::Operator),
            Err(e) => Err(e.after(inputs, Vec::new())),
        }
    }

    /// As [`Config::parse`].
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn of_text(file: &Path, text: String, environment: Environment<'_>, trust: Trust) -> Result<Self, ConfigError> {
        Self::of(Sources::of(file, text), Inputs::of(file), environment, trust)
    }

    /// All that was read: the texts of the files, and the values that they refer to, which may be secrets. The same bytes are the same
    /// configuration.
    pub fn content(&self) -> Vec<u8> {
        let mut content = Vec::new();
        for text in self.sources.contents().chain(self.scrubber.references().values()) {
            content.extend(text.len().to_le_bytes());
            content.extend(text.as_bytes());
        }
        content
    }

    /// All defaults, as changed by the environment: for a process without a file. `file`: where it would be.
    ///
    /// # Errors
    /// Every problem of the environment.
    pub fn without_file(file: &Path, environment: Environment<'_>) -> Result<Self, ConfigError> {
        Self::of(Sources::of("no file", ""), Inputs::without(file), environment, Trust::Operator)
    }

    /// These values, without the variables that replace keys: they are effective values already.
    ///
    /// # Errors
    /// Every problem of the values, without places.
    pub fn of_values(values: &Json, environment: Environment<'_>) -> Result<Self, ConfigError> {
        let files = Files {
            root: Node::of_json(values),
            problems: Vec::new(),
            warnings: Vec::new(),
            references: References::default(),
            is_partial: false,
        };
        let secrets = |name: &str| environment(name).filter(|_| !name.starts_with("FF_ENABLE_"));
        Self::check(files, (Sources::of("the running configuration", ""), Inputs::default()), &secrets, false)
    }

    fn of(
        mut sources: Sources,
        mut inputs: Inputs,
        environment: Environment<'_>,
        trust: Trust,
    ) -> Result<Self, ConfigError> {
        let mut files = Files::read((&mut sources, &mut inputs), environment, &SCHEMA, trust);
        overlay_environment(&mut files.root, environment);
        files.warnings.append(&mut take_removed(&mut files.root, environment));
        let limits_unset = monitor_unset_limits(&mut files.root, environment);
        Self::check(files, (sources, inputs), environment, limits_unset)
    }

    fn check(
        files: Files,
        (sources, inputs): (Sources, Inputs),
        environment: Environment<'_>,
        limits_unset: bool,
    ) -> Result<Self, ConfigError> {
        let Files { root, mut problems, mut warnings, references, is_partial } = files;
        let mut found = against_schema(&root, &SCHEMA, &references);
        // A missing key may be in a line that was left out.
        found.problems.retain(|problem| !is_partial || problem.rule != Rule::MissingKey);
        problems.append(&mut found.problems);
        let is_broken = !problems.is_empty();
        let fitting = repair(root.clone(), &found, &SCHEMA);
        let mut valid = None;
        match Raw::deserialize(fitting.to_json()) {
            Ok(raw) => {
                let mut builder = Builder { root: &fitting, environment, problems: Vec::new(), warnings };
                let config = builder.build(&raw);
                builder.warn_of_settings(&raw);
                (warnings, valid) = (builder.warnings, Some((config, raw)));
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
        let scrubber = Scrubber::new(references, || sources.texts().chain([SCHEMA.to_string()]).collect());
        for problem in &mut problems {
            problem.key = root.path_of(&problem.place);
            scrubber.scrub(problem);
        }
        let Some((config, raw)) = valid.filter(|_| is_valid) else {
            let variables = scrubber.references().variables().map(str::to_owned).collect();
            return Err(ConfigError::of(sources, problems).after(inputs, variables));
        };
        let references = scrubber.references().clone();
        let effective = Effective::new(raw, root.clone(), sources.clone(), references, (&config.flags, environment));
        let warnings = ConfigError::of(sources.clone(), problems).findings();
        let config = Config { warnings, limits_unset, inputs, effective: Some(Arc::new(effective)), ..config };
        Ok(Self { config, places: UpstreamPlaces::of(&root), sources, scrubber })
    }

    /// The errors of a configuration that has more problems.
    pub fn refused(self, mut problems: Vec<Problem>) -> ConfigError {
        problems.iter_mut().for_each(|problem| self.scrubber.scrub(problem));
        let variables = self.scrubber.references().variables().map(str::to_owned).collect();
        ConfigError::of(self.sources, problems).after(self.config.inputs, variables)
    }
}

/// The files as one tree.
struct Files {
    root: Node,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    references: References,
    /// Lines were left out.
    is_partial: bool,
}

impl Files {
    fn read(
        (sources, inputs): (&mut Sources, &mut Inputs),
        environment: Environment<'_>,
        schema: &Json,
        trust: Trust,
    ) -> Self {
        let names = Names::of(schema);
        let syntax::Parsed { mut root, mut problems, mut is_partial } = syntax::parse(sources.at(&(0..0)).text, &names);
        let mut warnings = Vec::new();
        let mut reading = Reading { sources, inputs, problems: &mut problems, warnings: &mut warnings, trust };
        is_partial |= include(&mut root, &names, &mut reading);
        let (references, mut unfollowed) = expand(&mut root, environment, sources, inputs, trust);
        problems.append(&mut unfollowed);
        if !references.is_empty() {
            convert(&mut root, schema, schema, &references);
        }
        Self { root, problems, warnings, references, is_partial }
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
    read_bounded(file).map_err(|e| {
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

/// Reads at most as much as all files together may have.
fn read_bounded(file: &Path) -> std::io::Result<String> {
    let most = u64::try_from(MOST_BYTES).unwrap_or(u64::MAX);
    let mut text = String::new();
    File::open(file)?.take(most + 1).read_to_string(&mut text)?;
    if text.len() > MOST_BYTES {
        return Err(std::io::Error::other(format!("a configuration has at most {}MiB", MOST_BYTES >> 20)));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
