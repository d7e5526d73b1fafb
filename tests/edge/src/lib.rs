//! A stand-in for Fly's edge: what fly-proxy does to the requests of one app with many Machines, on one computer.
//!
//! It exists to test the software *behind* Fly's edge. Each behaviour names its source: `docs:` is the repository superfly/docs,
//! `flyctl:` superfly/flyctl, `c/N` a thread of community.fly.io, and "facts" a section of the project's fact sheet on Fly.
//! Unknown behaviour of Fly is a setting marked *not established*, and our product has to be right with every value of it.
//!
//! ```text
//! client ──► server.rs     connections and their limits; idle.rs
//!              exchange.rs THE life of a request: replays, fallback, the edge's own responses
//!                headers.rs  the edge's headers about the client                    (pure)
//!                replay.rs   parses fly-replay                                      (pure)
//!                reach.rs    waiting, starting, retrying
//!                  routing.rs  the choice among available Machines                  (pure)
//!                  pick.rs     the registry's choice: capacity, a start, a wait
//!                  registry.rs all Machines, and routing's view of them
//!                  tape.rs     the body, buffered as far as it may be needed again
//!                  upstream.rs connections ──► a Machine
//! checks.rs    out of routing, and back
//! deploy.rs    rolling and blue-green            ┐ through the caller's `Fleet`,
//! autostop.rs  stops and starts by load          ┘ which has the real processes
//! dns.rs       <app>.internal
//! ```
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use outrigger_edge::{Edge, Machine, Settings, State};
//!
//! let edge = Edge::start(Settings::default(), None).await?;
//! let machine = Machine {
//!     id: "a".into(),
//!     region: "ams".into(),
//!     version: 1,
//!     public: "127.0.0.2:8080".parse()?,
//!     private: "127.0.0.2".parse()?,
//! };
//! edge.add(machine, State::Started);
//! println!("{} routes to {:?}", edge.address(), edge.snapshot());
//! # Ok(())
//! # }
//! ```
//!
//! [`Edge::start`] uses the runtime it is called in; [`Background::start`] brings its own, for callers that are not async.
//! Everything ends when the [`Edge`] is dropped.
//!
//! Deliberately absent: TLS, HTTP/2, the replay cache, Flycast and `Fly-Src`, `[[statics]]`, compression, more than one app.

mod autostop;
mod checks;
mod code;
mod deploy;
mod dns;
mod edge;
mod exchange;
mod headers;
mod idle;
mod machine;
mod pick;
mod reach;
mod registry;
mod replay;
mod routing;
mod server;
pub mod settings;
mod shared;
mod snapshot;
mod tape;
mod upstream;

pub use code::{Code, EDGE_ERROR};
pub use deploy::{DeployError, Strategy};
pub use dns::DnsFault;
pub use edge::{Background, Edge};
pub use machine::{Fleet, FleetError, Health, Machine, State};
pub use settings::Settings;
pub use snapshot::{Counts, MachineSnapshot, Snapshot};

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
