//! The stand-in for Fly's edge as a program.

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use clap::Parser;
use outrigger_edge::settings::{Check, ConcurrencyKind};
use outrigger_edge::{Edge, Machine, Settings, State};
use tokio::signal::unix::{SignalKind, signal};

/// Stands in for Fly's edge in front of Machines on this computer, until SIGINT or SIGTERM.
#[derive(Debug, Parser)]
#[command(name = "outrigger-edge", version)]
struct Arguments {
    /// Address to listen on for clients.
    #[arg(long, default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
    /// The app's name, for `fly-replay` and the DNS.
    #[arg(long, default_value = "app")]
    app: String,
    /// Address on which the DNS of `<app>.internal` listens, over UDP and TCP; no DNS without this.
    #[arg(long)]
    dns: Option<SocketAddr>,
    /// The edge's own region, and that of Machines without one.
    #[arg(long, default_value = "ams")]
    region: String,
    /// A started Machine: `id,public address,private IP[,region]`. Can be given more than once.
    #[arg(long, required = true, value_name = "ID,ADDR,IP[,REGION]")]
    machine: Vec<String>,
    /// `connections` opens one to a Machine for each request, `requests` keeps them for about 4 s.
    #[arg(long, default_value = "connections", value_parser = ["connections", "requests"])]
    concurrency: String,
    /// At this load a Machine gets requests only if all have reached it.
    #[arg(long, default_value_t = 20)]
    soft_limit: usize,
    /// At this load a Machine gets no requests; unlimited without this.
    #[arg(long)]
    hard_limit: Option<usize>,
    /// Path of the service check; no check without this.
    #[arg(long)]
    check_path: Option<String>,
    /// Sets X-Forwarded-Proto to `http`, which clients really use here.
    #[arg(long)]
    http: bool,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("outrigger-edge: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let machines =
        arguments.machine.iter().map(|text| machine(text, &arguments.region)).collect::<Result<Vec<_>, _>>()?;
    let mut settings = Settings {
        app: arguments.app,
        region: arguments.region,
        listen: arguments.listen,
        dns: arguments.dns,
        check: arguments.check_path.as_deref().map(Check::of),
        ..Settings::default()
    };
    if arguments.concurrency == "requests" {
        settings.concurrency.kind = ConcurrencyKind::Requests;
    }
    settings.concurrency.soft_limit = arguments.soft_limit;
    settings.concurrency.hard_limit = arguments.hard_limit;
    settings.headers.is_https = !arguments.http;
    tokio::runtime::Runtime::new()?.block_on(async {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let listen = settings.listen;
        let edge = Edge::start(settings, None).await.map_err(|e| format!("cannot listen on {listen}: {e}"))?;
        for machine in machines {
            edge.add(machine, State::Started);
        }
        eprintln!("outrigger-edge: listening on {}", edge.address());
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        Ok(())
    })
}

fn machine(text: &str, region: &str) -> Result<Machine, String> {
    let wrong = || {
        format!(
            "--machine {text}: expected `id,public address,private IP[,region]`, such as `a,127.0.0.2:8080,127.0.0.2`"
        )
    };
    let parts: Vec<_> = text.split(',').map(str::trim).collect();
    let (id, public, private, region) = match parts[..] {
        [id, public, private] => (id, public, private, region),
        [id, public, private, region] => (id, public, private, region),
        _ => return Err(wrong()),
    };
    let public: SocketAddr = public.parse().map_err(|_| wrong())?;
    let private: IpAddr = private.parse().map_err(|_| wrong())?;
    Ok(Machine { id: id.to_owned(), region: region.to_owned(), version: 1, public, private })
}
