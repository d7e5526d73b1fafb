//! `cargo xtask bench`: compares the cost of a request in Outrigger, HAProxy and NGINX, the latter two as packaged by
//! Debian.
//!
//! Each proxy gets one thread and, with two CPUs, a CPU of its own; the load generator and the upstream share the
//! other. CPU time per request is the main result: unlike requests per second, it hardly depends on how busy or small
//! the machine is.

mod websocket;

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

pub use websocket::{echo, run as run_websocket, talk};
use xtask::{Error, Process, Program, Result, Tool, error::While, http, paths, ports, process, programs, say, tools};

const ROUNDS: usize = 3;
const CONNECTIONS: &str = "64";
const WARM_UP: &str = "1s";
/// One of the routes in `ours-full.toml`.
const PATH: &str = "/b100";
const SECOND: Duration = Duration::from_secs(1);

const HAPROXY: &str = "\
global
    nbthread 1
    maxconn 4000
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    http-reuse always
frontend f
    bind 127.0.0.1:@PORT@
    default_backend b
backend b
    server s1 @APP@
";

const NGINX: &str = "\
worker_processes 1;
pid @DIR@/nginx.pid;
error_log @DIR@/error.log warn;
daemon off;
events { worker_connections 4000; }
http {
    access_log off;
    client_body_temp_path @DIR@/t1;
    proxy_temp_path @DIR@/t2;
    fastcgi_temp_path @DIR@/t3;
    uwsgi_temp_path @DIR@/t4;
    scgi_temp_path @DIR@/t5;
    keepalive_requests 100000000;
    upstream app { server @APP@; keepalive 256; keepalive_requests 100000000; }
    server {
        listen 127.0.0.1:@PORT@;
        location / {
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_set_header Host $host;
        }
    }
}
";

/// A proxy, its configuration with placeholders, and its command line.
struct Candidate {
    name: &'static str,
    program: PathBuf,
    config: String,
    /// May contain `@CONFIG@` and `@DIR@`.
    args: &'static [&'static str],
}

/// The result of one run of one candidate.
#[derive(Clone, Copy)]
struct Run {
    cpu_us_per_request: f64,
    requests_per_second: f64,
    p99_ms: f64,
    resident_mib: f64,
}

pub fn run(seconds: Option<&str>) -> Result<()> {
    let seconds: u32 = seconds
        .unwrap_or("4")
        .parse()
        .map_err(|_| Error::new(format_args!("`{}` is not a number of seconds", seconds.unwrap_or_default())))?;
    tools::install(&Tool::BENCH)?;
    say("building the programs with all optimisations, which takes minutes");
    programs::build(true)?;
    let dir = paths::state("bench")?;
    let wrk = Tool::Wrk.get()?;
    let candidates = candidates()?;
    let backend = Backend::start("bench-backend", &dir)?;
    let mut runs: BTreeMap<usize, Vec<Run>> = BTreeMap::new();
    for round in 1..=ROUNDS {
        for (index, candidate) in candidates.iter().enumerate() {
            say(format_args!("round {round} of {ROUNDS}: {}", candidate.name));
            let run = candidate.measure(&dir, backend.address, &wrk, seconds)?;
            runs.entry(index).or_default().push(run);
        }
    }
    let table = table(&candidates, &runs, seconds);
    let path = paths::target().join("bench.md");
    fs::write(&path, &table).while_(format_args!("writing {}", path.display()))?;
    println!("\n{table}");
    say(format_args!("the table is in {}", path.display()));
    Ok(())
}

fn candidates() -> Result<Vec<Candidate>> {
    let template = |name: &str| {
        let path = paths::root().join("bench/measure").join(name);
        fs::read_to_string(&path).while_(format_args!("reading {}", path.display()))
    };
    let outrigger = paths::target().join("release/outrigger");
    let run: &[&str] = &["run", "--config", "@CONFIG@"];
    Ok(vec![
        Candidate {
            name: "Outrigger, everything off",
            program: outrigger.clone(),
            config: template("ours-plain.toml")?,
            args: run,
        },
        Candidate {
            name: "Outrigger, everything on",
            program: outrigger,
            config: template("ours-full.toml")?,
            args: run,
        },
        Candidate {
            name: "HAProxy, plain",
            program: Tool::Haproxy.get()?,
            config: HAPROXY.to_owned(),
            args: &["-f", "@CONFIG@"],
        },
        Candidate {
            name: "NGINX, plain",
            program: Tool::Nginx.get()?,
            config: NGINX.to_owned(),
            args: &["-p", "@DIR@", "-e", "@DIR@/error.log", "-c", "@CONFIG@"],
        },
    ])
}

impl Candidate {
    fn measure(&self, dir: &Path, app: SocketAddr, wrk: &Path, seconds: u32) -> Result<Run> {
        let (address, mut proxy) = self.start(dir, app, PATH)?;
        let load = |duration: &str| {
            pinned(Side::Load, wrk)
                .args(["-t1", "-c", CONNECTIONS, "--latency", "-d", duration, &format!("http://{address}{PATH}")])
                .output()
        };
        load(WARM_UP)?;
        let before = cpu_seconds(proxy.pid());
        let report = load(&format!("{seconds}s"))?;
        let cpu = cpu_seconds(proxy.pid()) - before;
        let resident_mib = resident_mib(proxy.pid());
        let hint = || format!("wrk said:\n{report}");
        if let Some(ended) = proxy.ended() {
            return Err(Error::new(format_args!("{} ended: {ended}", self.name)).hint(proxy.log_tail(10)));
        }
        if report.contains("Non-2xx") || report.contains("Socket errors") {
            return Err(
                Error::new(format_args!("{} did not respond to every request with 200", self.name)).hint(hint())
            );
        }
        let read = || {
            let requests = report.lines().find(|line| line.contains(" requests in "))?.split_whitespace().next()?;
            let rate = report.lines().find_map(|line| line.strip_prefix("Requests/sec:"))?.trim();
            let p99 = report.lines().find_map(|line| line.trim().strip_prefix("99%"))?.trim();
            Some((requests.parse::<f64>().ok()?, rate.parse::<f64>().ok()?, milliseconds(p99)?))
        };
        let (requests, requests_per_second, p99_ms) =
            read().ok_or_else(|| Error::new("cannot read wrk's report").hint(hint()))?;
        Ok(Run { cpu_us_per_request: cpu * 1e6 / requests, requests_per_second, p99_ms, resident_mib })
    }

    /// Starts it and waits until the app responds to `path` through it.
    fn start(&self, dir: &Path, app: SocketAddr, path: &str) -> Result<(SocketAddr, Process)> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()?));
        let fill = |text: &str| {
            text.replace("@PORT@", &address.port().to_string())
                .replace("@APP@", &app.to_string())
                .replace("@THREADS@", "1")
                .replace("@DIR@", &dir.to_string_lossy())
        };
        let config = dir.join("config");
        let text = fill(&self.config).replace("@METRICS@", &ports::free()?.to_string());
        fs::write(&config, text).while_(format_args!("writing {}", config.display()))?;
        let args = self.args.iter().map(|arg| fill(arg).replace("@CONFIG@", &config.to_string_lossy()));
        let mut proxy =
            pinned(Side::Proxy, &self.program).args(args).dir(dir).start(self.name, &dir.join("proxy.log"))?;
        proxy.ready(Duration::from_secs(20), || http::get(address, path, SECOND).is_ok_and(|a| a.status == 200))?;
        Ok((address, proxy))
    }
}

/// Selects the CPU, if there are two.
#[derive(Clone, Copy)]
enum Side {
    Proxy,
    Load,
}

fn pinned(side: Side, program: &Path) -> Program {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    match paths::in_path("taskset").filter(|_| cpus > 1) {
        Some(taskset) => {
            Program::new(taskset).args(["-c", if matches!(side, Side::Proxy) { "0" } else { "1" }]).arg(program)
        }
        None => Program::new(program),
    }
}

/// User and system time of a process and its children, from the 14th and 15th field of `/proc/PID/stat`.
fn cpu_seconds(pid: u32) -> f64 {
    /// Per second, on every Linux that Rust supports.
    const TICKS: f64 = 100.0;
    let ticks = |pid: u32| -> f64 {
        let fields = process::stat(pid).unwrap_or_default();
        let number = |at: usize| fields.get(at - 3).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
        number(14) + number(15)
    };
    family(pid).map(ticks).sum::<f64>() / TICKS
}

fn resident_mib(pid: u32) -> f64 {
    let kib = |pid: u32| -> f64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0.0)
    };
    family(pid).map(kib).sum::<f64>() / 1024.0
}

fn family(pid: u32) -> impl Iterator<Item = u32> {
    std::iter::once(pid).chain(process::children(pid))
}

/// Parses wrk's times: `950.00us`, `1.20ms`, `1.03s`.
fn milliseconds(text: &str) -> Option<f64> {
    let units = [("us", 0.001), ("ms", 1.0), ("s", 1000.0)];
    units.iter().find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor))
}

fn table(candidates: &[Candidate], runs: &BTreeMap<usize, Vec<Run>>, seconds: u32) -> String {
    let mut text = format!(
        "Median [lowest–highest] of {ROUNDS} runs of {seconds} s, {CONNECTIONS} connections, one thread for each \
         proxy, 100-byte responses over loopback.\n\n\
         | proxy | CPU µs/request | requests/s | p99 ms | resident MiB |\n|---|---|---|---|---|\n"
    );
    for (index, candidate) in candidates.iter().enumerate() {
        let of = |field: fn(&Run) -> f64, digits: usize| {
            let mut values: Vec<f64> = runs.get(&index).into_iter().flatten().map(field).collect();
            values.sort_by(f64::total_cmp);
            let middle = values.get(values.len() / 2).copied().unwrap_or(f64::NAN);
            let (lowest, highest) = (values.first().unwrap_or(&middle), values.last().unwrap_or(&middle));
            format!("{middle:.digits$} [{lowest:.digits$}–{highest:.digits$}]")
        };
        let (cpu, rate) = (of(|run| run.cpu_us_per_request, 1), of(|run| run.requests_per_second, 0));
        let (p99, resident) = (of(|run| run.p99_ms, 1), of(|run| run.resident_mib, 0));
        text.push_str(&format!("| {} | {cpu} | {rate} | {p99} | {resident} |\n", candidate.name));
    }
    text
}

/// The upstream: a separate process, so that its CPU time is not counted as the load generator's.
struct Backend {
    address: SocketAddr,
    _process: Process,
}

impl Backend {
    /// Starts `xtask COMMAND ADDRESS`.
    fn start(command: &str, dir: &Path) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()?));
        // Not `current_exe`, which is deleted if this crate is rebuilt meanwhile.
        let us = PathBuf::from(format!("/proc/{}/exe", std::process::id()));
        let mut process = pinned(Side::Load, &us)
            .args([command, &address.to_string()])
            .start("the back end", &dir.join("backend.log"))?;
        process.ready(Duration::from_secs(10), || TcpStream::connect(address).is_ok())?;
        Ok(Self { address, _process: process })
    }
}

/// `xtask bench-backend ADDRESS`: one thread per connection, which is cheapest for few busy ones.
pub fn backend(args: &[String]) -> Result<()> {
    let address = args.first().map(String::as_str).unwrap_or_default();
    let listener = TcpListener::bind(address).while_(format_args!("listening on {address:?}"))?;
    for stream in listener.incoming().flatten() {
        thread::spawn(move || answer_all(stream));
    }
    Ok(())
}

/// Responds until the peer disconnects. Requests have no body and, behind a proxy, are sequential.
fn answer_all(mut stream: TcpStream) -> Option<()> {
    const END: &[u8] = b"\r\n\r\n";
    stream.set_nodelay(true).ok()?;
    let answer =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 100\r\n\r\n{}", "x".repeat(100));
    let (mut buffer, mut held) = ([0; 8192], 0);
    loop {
        let read = stream.read(buffer.get_mut(held..)?).ok().filter(|read| *read > 0)?;
        held += read;
        if buffer[..held].ends_with(END) {
            stream.write_all(answer.as_bytes()).ok()?;
            held = 0;
        }
    }
}
