//! A real collector for OpenTelemetry, Rotel, which writes what it receives to its log.

use std::{
    collections::HashMap,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use xtask::{Process, Program, Tool, ports};

use crate::harness::{PATIENCE, fresh_dir, until};

/// Its package has the program beside its Python code.
const PROGRAM: &str = "import importlib.util, os, sys
package = importlib.util.find_spec('rotel').submodule_search_locations[0]
program = os.path.join(package, 'rotel-agent')
os.chmod(program, 0o755)
os.execv(program, [program] + sys.argv[1:])";

/// A collector.
pub struct Collector {
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    log: PathBuf,
    _process: Process,
}

/// A span as it was received.
#[derive(Clone, Debug, Default)]
pub struct Span {
    /// `Trace ID`, `Parent ID`, `ID`, `Name`, `Kind`, `Status code`.
    pub is: HashMap<String, String>,
    /// Its attributes, with their types: `Str(GET)`.
    pub has: HashMap<String, String>,
}

impl Span {
    pub fn id(&self) -> &str {
        &self.is["ID"]
    }

    pub fn parent(&self) -> &str {
        &self.is["Parent ID"]
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.has.get(name)?.strip_prefix("Str(")?.strip_suffix(')')
    }

    pub fn number(&self, name: &str) -> Option<u64> {
        self.has.get(name)?.strip_prefix("Int(")?.strip_suffix(')')?.parse().ok()
    }
}

impl Collector {
    pub fn start() -> Self {
        let local = || SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free().expect("a free port")));
        let (grpc, http, dir) = (local(), local(), fresh_dir());
        let log = dir.join("collector.log");
        let python = Tool::Rotel.get().expect("the collector is installed: run `cargo xtask test`");
        let mut process = Program::new(python)
            .args(["-c", PROGRAM, "start", "--exporter", "blackhole"])
            .args(["--debug-log", "traces", "--debug-log-verbosity", "detailed"])
            .args(["--otlp-grpc-endpoint", &grpc.to_string(), "--otlp-http-endpoint", &http.to_string()])
            .args(["--pid-file", &dir.join("pid").to_string_lossy()])
            .start("the collector", &log)
            .expect("the collector can be started");
        let accepts = || [grpc, http].iter().all(|address| std::net::TcpStream::connect(address).is_ok());
        process.ready(PATIENCE, accepts).expect("the collector serves");
        Self { grpc, http, log, _process: process }
    }

    /// The spans so far.
    pub fn spans(&self) -> Vec<Span> {
        let text = fs::read_to_string(&self.log).expect("its log can be read");
        let mut spans: Vec<Span> = Vec::new();
        for line in text.lines().map(str::trim) {
            if line.starts_with("Span #") {
                spans.push(Span::default());
            }
            let Some(span) = spans.last_mut() else { continue };
            if let Some((name, value)) = line.strip_prefix("-> ").and_then(|line| line.split_once(": ")) {
                span.has.insert(name.to_owned(), value.to_owned());
            } else if let Some((name, value)) = line.split_once(':') {
                span.is.entry(name.trim().to_owned()).or_insert_with(|| value.trim().to_owned());
            }
        }
        spans
    }

    /// Waits until there is a request's span with this path, and returns it and those of its parts.
    #[track_caller]
    pub fn request(&self, path: &str) -> (Span, Vec<Span>) {
        let is_it = |span: &Span| span.text("url.path") == Some(path);
        until(&format!("a span of {path}"), || self.spans().iter().any(is_it));
        let spans = self.spans();
        let request = spans.iter().find(|span| is_it(span)).expect("it is there").clone();
        let parts = spans.into_iter().filter(|span| span.parent() == request.id()).collect();
        (request, parts)
    }
}
