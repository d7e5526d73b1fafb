//! A checked configuration with its names resolved: upstreams that are this proxy itself are rejected.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use outrigger_rules::config::Config;
use outrigger_rules::environment::Environment;
use outrigger_rules::error::{ConfigError, Place, Problem};
use outrigger_rules::inputs::Trust;
use outrigger_rules::load::{Loaded, UpstreamPlaces};
use outrigger_rules::own::{HINT, OwnListeners};
use outrigger_rules::target::Target;

use crate::upstream::{Upstream, Upstreams};

/// A configuration and its upstreams.
#[derive(Debug)]
pub struct Checked {
    /// The configuration.
    pub config: Config,
    /// With the resolved addresses of names.
    pub upstreams: Upstreams,
}

impl Checked {
    /// Reads and checks `file`, and resolves its names for at most `patience`. An unknown name is not an error: it is looked
    /// up again later. Blocks. `own`: listeners of the running process, in addition to those in the file.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load(
        file: &Path,
        environment: Environment<'_>,
        patience: Duration,
        own: &OwnListeners,
    ) -> Result<Self, ConfigError> {
        Self::of(Loaded::read(file, environment)?, patience, own)
    }

    /// All defaults, as changed by the environment: for a process without a file. `file`: where it would be.
    ///
    /// # Errors
    /// Every problem of the environment.
    pub fn without_file(file: &Path, environment: Environment<'_>, patience: Duration) -> Result<Self, ConfigError> {
        Self::of(Loaded::without_file(file, environment)?, patience, &OwnListeners::default())
    }

    /// As [`Self::load`], for a text instead of the file, if there is one. Also returns what was read.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn read(
        file: &Path,
        text: Option<(String, Trust)>,
        environment: Environment<'_>,
        patience: Duration,
        own: &OwnListeners,
    ) -> Result<(Self, Vec<u8>), ConfigError> {
        let loaded = match text {
            Some((text, trust)) => Loaded::of_text(file, text, environment, trust)?,
            None => Loaded::read(file, environment)?,
        };
        let content = loaded.content();
        Ok((Self::of(loaded, patience, own)?, content))
    }

    fn of(loaded: Loaded, patience: Duration, own: &OwnListeners) -> Result<Self, ConfigError> {
        let mut own_listeners = OwnListeners::of(&loaded.config);
        own_listeners.extend(own);
        let upstreams = Upstreams::new(&loaded.config.app);
        let problems = upstreams.lead_here(&loaded.places, patience, &own_listeners);
        if problems.is_empty() { Ok(Self { config: loaded.config, upstreams }) } else { Err(loaded.refused(problems)) }
    }
}

impl Upstreams {
    /// Returns an error for each upstream that is a listener of this proxy. Resolves names, and keeps the results.
    fn lead_here(&self, places: &UpstreamPlaces, patience: Duration, own: &OwnListeners) -> Vec<Problem> {
        let mut upstreams = vec![("app.address", &self.app, &places.address)];
        if !Arc::ptr_eq(&self.app, &self.metrics) {
            upstreams.push(("app.metrics", &self.metrics, &places.metrics));
        }
        let leads_here = |(key, upstream, place): (&str, &Arc<Upstream>, &Place)| {
            let (shown, reached) = match &**upstream {
                Upstream::Fixed(Target::Unix(_)) => return None,
                Upstream::Fixed(Target::Tcp(address)) => (address.to_string(), own.reached_by(*address)),
                Upstream::Named(name) => {
                    let found = name.look_up_within(patience)?;
                    let reached = found.iter().find_map(|address| own.reached_by(*address));
                    name.set(found, own);
                    (name.shown(), reached)
                }
            };
            let message = format!("`{key}` is {shown}, which is {}: this proxy itself", reached?);
            Some(Problem::new(place.clone(), message, HINT))
        };
        upstreams.into_iter().filter_map(leads_here).collect()
    }
}
