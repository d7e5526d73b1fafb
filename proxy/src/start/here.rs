//! Serves on the caller's runtime instead of threads of its own: for the simulation, which has one thread and a clock of its own.

use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use outrigger_rules::environment::Given;
use outrigger_rules::inputs::Trust;
use outrigger_rules::own::OwnListeners;
use tokio::sync::watch;

use crate::accept::Protocol;
use crate::control::reload::{Cause, Reloader, Watched};
use crate::engine::exchange::Listener;
use crate::engine::state::State;
use crate::mechanism::log::LevelSwitch;
use crate::start::{accept_all, start_background_tasks};
use crate::transport::upstream::checked::Checked;

/// A Machine that serves.
#[derive(Debug)]
pub struct Serving {
    reloader: Reloader,
    /// They keep the accept loops going: nothing is sent.
    _signals: [watch::Sender<bool>; 2],
}

/// Serves these listeners, and starts what runs in the background. Needs a runtime with one thread.
///
/// # Errors
/// A listener that the runtime cannot take.
pub fn serve(state: &Arc<State>, public: TcpListener, peers: Option<TcpListener>) -> io::Result<Serving> {
    let (leaving, _) = watch::channel(false);
    let (closing, at_closing) = watch::channel(false);
    let public = Some((public, Protocol::Http1, Listener::Public));
    let peers = peers.map(|listener| (listener, Protocol::Http1, Listener::Peers));
    drop(accept_all(public.into_iter().chain(peers), state, &leaving.subscribe(), &at_closing)?);
    start_background_tasks(state);
    let watched = Watched { file: PathBuf::from("proxy.toml"), given: Given::default() };
    let reloader = Reloader::new(watched, Arc::clone(state), LevelSwitch::none());
    Ok(Serving { reloader, _signals: [leaving, closing] })
}

impl Serving {
    /// Brings a configuration into force, without probation.
    ///
    /// # Errors
    /// Its problems.
    pub fn reload(&self, text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<(), String> {
        let (path, own) = (Path::new("proxy.toml"), OwnListeners::default());
        let text = Some((text.to_owned(), Trust::Operator));
        let (checked, _) =
            Checked::read(path, text, environment, Duration::ZERO, &own).map_err(|error| error.to_string())?;
        let (_, next) = self.reloader.put_in_force(checked, Cause::Change);
        self.reloader.state.metrics.config.show_version(next.version);
        Ok(())
    }
}
