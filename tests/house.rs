//! All components: the proxy, the app, PostgreSQL and ChromaDB, real, on their own ports.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use xtask::chroma::Chroma;
use xtask::http::{self, Answer};
use xtask::postgres::Postgres;
use xtask::{Process, Program, paths, ports, programs, wait};

use crate::harness::fresh_dir;

/// Time within which health must report a change.
pub const TRUTH: Duration = Duration::from_secs(2);
/// Longest duration of a request in these tests, set by the route's timeout, and an allowance for a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(2);
pub const SLACK: Duration = Duration::from_millis(700);
pub const LIMIT: Duration = Duration::from_secs(10);

pub fn local() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free().expect("a free port")))
}

pub fn postgres_in(dir: &Path) -> Postgres {
    let postgres = Postgres::start(&dir.join("postgres")).unwrap();
    postgres.create_database("app").unwrap();
    postgres
}

/// All components, running.
pub struct House {
    pub dir: PathBuf,
    pub postgres: Postgres,
    pub chroma: Chroma,
    pub app: Process,
    /// The app's own port, and the proxy's two.
    pub app_address: SocketAddr,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    _proxy: Process,
}

impl House {
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// With these environment variables for the app.
    pub fn with(env: &[(&str, &str)]) -> Self {
        Self::with_rules(env, "rate_limits.mode = \"enforce\"\n")
    }

    /// And with these lines at the end of the proxy's file.
    pub fn with_rules(env: &[(&str, &str)], rules: &str) -> Self {
        let more = rules;
        let dir = fresh_dir();
        let postgres = postgres_in(&dir);
        let chroma = Chroma::start(&dir.join("chroma")).unwrap();
        let (app_address, address, admin) = (local(), local(), local());
        let app = start_app(&dir, "app", &postgres, &chroma, app_address, env);
        let rules = dir.join("proxy.toml");
        let text = format!(
            "server.listen = \"{address}\"\nserver.lame_duck = \"0s\"\nadmin.listen = \"{admin}\"\n\
             app.address = \"unix:{}\"\napp.timeout = \"{}s\"\nbreaker.open = \"1s\"\n{more}",
            paths::socket(&dir, "app.sock").unwrap().display(),
            DEADLINE.as_secs()
        );
        fs::write(&rules, text).unwrap();
        let mut proxy = Program::new(programs::find("outrigger").unwrap())
            .args(["run", "--config", rules.to_str().unwrap()])
            .start("outrigger", &dir.join("proxy.log"))
            .unwrap();
        let house_is_up = || http::get(address, "/health/detailed", LIMIT).is_ok_and(|answer| answer.status == 200);
        proxy.ready(Duration::from_secs(30), house_is_up).unwrap();
        Self { dir, postgres, chroma, app, app_address, address, admin, _proxy: proxy }
    }

    pub fn restart_app(&mut self) {
        self.app = start_app(&self.dir, "app", &self.postgres, &self.chroma, self.app_address, &[]);
    }

    pub fn send(&self, method: &str, path: &str, body: &str) -> xtask::Result<Answer> {
        let fields = [("x-api-key", "secret"), ("content-type", "application/json")];
        http::send(method, self.address, path, &fields, body, LIMIT)
    }

    pub fn health(&self, path: &str) -> (u16, Value) {
        let answer = http::get(self.address, path, LIMIT).unwrap();
        (answer.status, serde_json::from_str(&answer.body).unwrap_or_default())
    }

    /// Waits until health reports PostgreSQL as `status`, for at most [`TRUTH`].
    #[track_caller]
    pub fn health_says(&self, status: &str) {
        let says_so = || self.health("/health/detailed").1["data"]["services"]["postgresql"]["status"] == status;
        if let Err(e) = wait::until(&format!("health to say that postgresql is {status}"), TRUTH, says_so) {
            panic!("{e}; it says {}", self.health("/health/detailed").1);
        }
    }

    pub fn ids_in_postgres(&self) -> BTreeSet<String> {
        let rows = self.postgres.sql("app", "select id from documents").unwrap();
        rows.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
    }

    pub fn ids_in_chroma(&self) -> BTreeSet<String> {
        let base = "/api/v2/tenants/default_tenant/databases/default_database/collections";
        let found = http::get(self.chroma.address(), &format!("{base}/documents"), LIMIT).unwrap();
        let collection: Value = serde_json::from_str(&found.body).unwrap();
        let path = format!("{base}/{}/get", collection["id"].as_str().unwrap());
        let json_body = [("content-type", "application/json")];
        let got = http::send("POST", self.chroma.address(), &path, &json_body, r#"{"include":[]}"#, LIMIT).unwrap();
        let got: Value = serde_json::from_str(&got.body).unwrap();
        got["ids"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
    }

    pub fn nothing_is_pending(&self) -> bool {
        self.postgres.sql("app", "select count(*) from outbox").is_ok_and(|count| count.trim() == "0")
    }
}

pub fn start_app(
    dir: &Path,
    name: &str,
    postgres: &Postgres,
    chroma: &Chroma,
    address: SocketAddr,
    env: &[(&str, &str)],
) -> Process {
    // SHA-256 of "secret".
    let key = "test:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let program = Program::new(programs::find("outrigger-app").unwrap())
        .env("DATABASE_URL", postgres.url("app"))
        .env("CHROMA_URL", chroma.url())
        .env("APP_SOCKET", paths::socket(dir, &format!("{name}.sock")).unwrap())
        .env("APP_LISTEN", address.to_string())
        .env("APP_API_KEYS", key)
        .env("APP_VECTOR_DIMENSION", "3");
    // The test's variables take precedence.
    let program = env.iter().fold(program, |program, (name, value)| program.env(name, value));
    let mut app = program.start("outrigger-app", &dir.join(format!("{name}.log"))).unwrap();
    app.ready(Duration::from_secs(20), || http::get(address, "/health/live", LIMIT).is_ok()).unwrap();
    app
}

pub fn document(title: &str) -> String {
    json!({ "title": title, "content": "An outrigger keeps a canoe upright.", "embedding": [1.0, 0.5, 0.25] })
        .to_string()
}
