//! `outrigger run -- COMMAND`: the command's environment, and the defaults that it changes.

use std::ffi::OsString;

use clap::Args;
use outrigger_rules::environment::{
    GIVEN_ADDRESS, GIVEN_HOLD, GIVEN_LISTEN, Given, PROXY_SECRETS, process_environment,
};
use outrigger_rules::units::AppAddress;
use outrigger_trail::keys::{KEYS, MasterKeys, PSEUDONYM_KEY};

use crate::run::port;
use crate::run::process::Command;

/// The variable that names the port to listen on: for the app, and from the platform for Outrigger.
const PORT: &str = "PORT";
/// The public port without it.
const DEFAULT_PORT: u16 = 8080;
/// A port that is never chosen for the app, for as long as it has none.
const UNUSED: u16 = 1;
/// How long requests wait for an app that Outrigger starts itself: many need longer than the usual 5 s.
const HOLD: &str = "30s";

/// Options of `outrigger run`.
#[derive(Debug, Default, Args)]
pub struct Options {
    /// Another variable for the app's port, in addition to PORT; may be given several times.
    #[arg(long = "port-env", value_name = "NAME", requires = "command")]
    port_variables: Vec<OsString>,
    /// The app's command and its arguments, after `--`: Outrigger starts it, restarts it when it ends or hangs, and stops it.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Why the command cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The platform's port.
    #[error("PORT is {0:?}, and needs a port from 1 to 65535: set it, or server.listen")]
    Port(String),
    /// There is no port for the app.
    #[error("no port for the app: {0}")]
    NoPort(#[from] std::io::Error),
}

impl Options {
    /// Whether there is a command.
    pub fn has_command(&self) -> bool {
        !self.command.is_empty()
    }

    /// The defaults that a command changes: the address of the app is a port that is free, and the public port is what the platform says.
    /// `listeners` are the ports of Outrigger's own listeners with these defaults; they are bound later.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn given(&self, listeners: impl FnOnce(&Given) -> Vec<u16>) -> Result<Given, LaunchError> {
        if !self.has_command() {
            return Ok(Given::default());
        }
        let public = match process_environment(PORT).filter(|text| !text.trim().is_empty()) {
            Some(text) => match text.trim().parse() {
                Ok(port) if port > 0 => port,
                _ => return Err(LaunchError::Port(text)),
            },
            None => DEFAULT_PORT,
        };
        // Both loopback addresses are tried.
        let given = |app: u16| {
            let address = format!("localhost:{app}");
            Given(vec![
                (GIVEN_LISTEN, format!("0.0.0.0:{public}")),
                (GIVEN_ADDRESS, address),
                (GIVEN_HOLD, HOLD.to_owned()),
            ])
        };
        let own = listeners(&given(UNUSED));
        Ok(given(port::free(&own)?))
    }

    /// The command, for an app at this address.
    pub fn command(&self, address: &AppAddress) -> Option<Command> {
        let (program, arguments) = self.command.split_first()?;
        let port = match address {
            AppAddress::Tcp(text) => text.rsplit_once(':').map(|(_, port)| OsString::from(port)),
            // The platform's port is not the app's.
            AppAddress::Unix(_) => None,
        };
        let ports = std::iter::once(OsString::from(PORT)).chain(self.port_variables.iter().cloned());
        let mut environment: Vec<_> = ports.map(|name| (name, port.clone())).collect();
        environment.extend(PROXY_SECRETS.map(|secret| (secret.into(), None)));
        // The app's part of the keys: as `outrigger audit keys exec` does it. Invalid keys were reported before.
        let keys = process_environment(KEYS).and_then(|text| MasterKeys::parse(&text).ok().flatten());
        environment.extend(keys.map(|keys| (PSEUDONYM_KEY.into(), Some(keys.pseudonym_key().expose().into()))));
        Some(Command::new(program.clone(), arguments.to_vec(), environment))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_apps_port_is_none_of_the_own_listeners() {
        let options = Options { command: vec!["app".into()], ..Options::default() };
        let even = |_: &Given| (0..=u16::MAX).filter(|port| port % 2 == 0).collect();
        for _ in 0..50 {
            let Given(given) = options.given(even).unwrap();
            let (_, address) = given.iter().find(|(name, _)| *name == GIVEN_ADDRESS).unwrap();
            let port: u16 = address.rsplit_once(':').unwrap().1.parse().unwrap();
            assert_eq!(port % 2, 1, "{address}");
        }
    }
}
