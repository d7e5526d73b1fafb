//! Starts the app, waits for a signal and drains. Exit codes: 0 stopped as asked, 1 failed, 78 invalid configuration.

use std::io::IsTerminal;
use std::process::ExitCode;

use outrigger_app::config::{self, ConfigError, LogFormat, Settings};
use outrigger_app::serve::{ListenError, Listeners};
use outrigger_app::{App, postgres, router};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

/// The configuration is invalid (`EX_CONFIG` of sysexits.h): a supervisor need not restart.
const EX_CONFIG: u8 = 78;

/// Why the process ends, other than as asked.
#[derive(Debug, thiserror::Error)]
enum Fatal {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("a system resource is not available")]
    System(#[from] std::io::Error),
}

fn main() -> ExitCode {
    // Must precede any use of TLS, which panics without a provider.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("the TLS provider is already installed");
    }
    let settings = match Settings::read(std::env::args_os()) {
        Ok(settings) => settings,
        Err(error) => {
            // clap returns the texts of help and version as errors, too.
            let code = if error.use_stderr() { EX_CONFIG } else { 0 };
            return if error.print().is_ok() { ExitCode::from(code) } else { ExitCode::FAILURE };
        }
    };
    let outcome = start_logging(&settings).map_err(Fatal::from).and_then(|()| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let outcome = runtime.block_on(run(&settings));
        // Does not wait for blocking tasks: a hanging DNS lookup must not keep a drained process alive.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => {
            let text = postgres::describe(&fatal);
            tracing::error!("{text}");
            if !tracing::event_enabled!(tracing::Level::ERROR) {
                // Logging failed or is off; the reason must still be shown.
                use std::io::Write as _;
                let _ = writeln!(std::io::stderr(), "outrigger-app: {text}");
            }
            ExitCode::from(if matches!(fatal, Fatal::Config(_)) { EX_CONFIG } else { 1 })
        }
    }
}

async fn run(settings: &Settings) -> Result<(), Fatal> {
    let flags = config::flags(|name| std::env::var(name).ok())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let app = App::start(settings, &flags)?;
    let listeners = Listeners::open(settings.listen, settings.socket.as_deref()).await?;
    if app.auth.is_off() {
        tracing::warn!("APP_AUTH=off: any client may read and write documents");
    }
    let (listen, version) = (settings.listen, env!("CARGO_PKG_VERSION"));
    tracing::info!(%listen, socket = ?settings.socket, version, "outrigger-app {version} listens on {listen}");

    let (stop, stopped) = watch::channel(false);
    let serving = tokio::spawn(listeners.serve(router(&app), stopped, settings.drain_timeout.get()));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    app.drain();
    let lame_duck = settings.lame_duck.get();
    tracing::info!(lame_duck_ms = lame_duck.as_millis(), "draining");
    tokio::time::sleep(lame_duck).await;
    stop.send_replace(true);
    tokio::select! {
        left = serving => match left {
            Ok(0) => tracing::info!("drained"),
            Ok(left) => tracing::warn!(left, "closing {left} connections that did not end in time"),
            Err(error) => tracing::error!(error = %error, "the server ended early: {error}"),
        },
        // A second signal skips draining.
        _ = terminate.recv() => tracing::warn!("second signal: exiting at once"),
        _ = interrupt.recv() => tracing::warn!("second signal: exiting at once"),
    }
    Ok(())
}

fn start_logging(settings: &Settings) -> Result<(), ConfigError> {
    let filter = EnvFilter::try_new(&settings.log).map_err(|error| {
        ConfigError::setting("APP_LOG", error.to_string(), "write \"info\" or \"outrigger_app=debug,info\"")
    })?;
    let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours);
    match settings.log_format {
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
        LogFormat::Text => subscriber.init(),
    }
    // A panic's default message goes to stderr as plain text; this one is logged like all others.
    std::panic::set_hook(Box::new(|panic| tracing::error!("panic: {panic}")));
    Ok(())
}
