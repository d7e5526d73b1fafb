//! The programs start on what the previous version wrote: configuration, sticky sessions, audit log, database.
//!
//! `fixtures/previous/` has what that version left: a configuration with every section, a session cookie, a spool that was
//! shipped and closed, and the database. All secrets are those of this file. Only a release replaces it (RELEASE.md), with
//! `UPDATE_FIXTURES=1 cargo test -p outrigger-tests --test e2e
//! compatibility::the_fixture_is_written_anew`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use xtask::postgres::Postgres;
use xtask::{Program, Signal, Tool};

use crate::audit::is_chained;
use crate::audit_store::start_app;
use crate::backend::Backend;
use crate::harness::{Answer, Client, Form, Proxy, Setup, every_form, fresh_dir, get, post, until, with_fields};
use crate::house::{document, local, postgres_in};

/// The secrets of the fixture.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("OUTRIGGER_AFFINITY_KEYS", "a-key-of-the-tests-that-nobody-can-guess"),
    ("OUTRIGGER_AUDIT_KEYS", "k1:fedcba9876543210fedcba9876543210"),
    ("OUTRIGGER_JWT_SECRET", "0123456789abcdef0123456789abcdef"),
    ("OUTRIGGER_KEY_SECRET", "0123456789abcdef0123456789abcdef"),
    ("OUTRIGGER_ALLOW_FAULTS", "1"),
];
/// The client of the fixture.
const ANN: [&str; 3] = ["X-Api-Key: secret", "Fly-Client-IP: 192.0.2.7", "Content-Type: application/json"];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/previous")
}

fn fixture(name: &str) -> String {
    fs::read_to_string(fixtures().join(name)).unwrap()
}

/// The previous version's configuration, with this test's addresses.
fn setup(app: &str) -> Setup {
    let setup = Setup::before(app.to_owned(), "");
    let addresses = [
        ("127.0.0.1:8080", setup.address.to_string()),
        ("127.0.0.1:8082", setup.h2c.to_string()),
        ("127.0.0.1:9091", setup.admin.to_string()),
        ("127.0.0.1:8083", local().to_string()),
        ("127.0.0.1:8084", local().to_string()),
        ("127.0.0.1:8081", app.to_owned()),
    ];
    let text = addresses.iter().fold(fixture("proxy.toml"), |text, (old, new)| text.replace(old, new));
    fs::write(&setup.file, text).unwrap();
    ENVIRONMENT.iter().fold(setup, |setup, (name, value)| setup.env(name, value))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap().flatten() {
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

fn stop(mut proxy: Proxy) -> Setup {
    let setup = Setup::clone(&proxy);
    proxy.signal(Signal::TERM);
    assert!(proxy.ends_within(Duration::from_secs(20)).success());
    setup
}

/// Runs `outrigger audit`, and returns what it prints.
#[track_caller]
fn audit(setup: &Setup, args: &[&str]) -> String {
    let output = setup.run(&[&["audit"], args, &["--config", setup.file.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_proxy_goes_on_with_its_configuration_sessions_and_audit_log() {
    let app = Backend::start();
    let setup = setup(&app.address());
    copy(&fixtures().join("trail"), &setup.dir.join("trail"));
    let before = is_chained(&setup);
    let proxy = setup.start();
    proxy.says("outrigger serves");
    let warnings: Vec<String> =
        proxy.log().lines().filter(|line| line.contains("\"WARN\"")).map(str::to_owned).collect();
    assert!(warnings.is_empty(), "the old configuration is warned of: {warnings:#?}");

    let session = format!("Cookie: {}", fixture("cookie").trim());
    for request in every_form("/cart") {
        let answer = proxy.ask(&with_fields(&request, &[&session, ANN[0], ANN[1]]));
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.seen("x-outrigger-machine").as_deref(), Some("a"));
    }
    // A session lives for at most 400 days, and the fixture may be older. Its signature counts all the same.
    let event = |name: &str| proxy.metric("outrigger_affinity_total", &[("event", name)]);
    until("the sessions to be counted", || event("pinned") + event("expired") + event("forged") == Form::NUMBER as f64);
    assert_eq!(event("forged"), 0.0);

    let setup = stop(proxy);
    assert!(is_chained(&setup) >= before + Form::NUMBER, "the chains go on");
    assert!(audit(&setup, &["verify"]).contains("whole: "));
    let found = audit(&setup, &["search", "--subject", "address:192.0.2.7", "--reveal", "--json"]);
    let found: Vec<Value> = found.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let paths: Vec<&str> = found.iter().filter_map(|entry| entry["type"].as_str()).collect();
    assert!(paths.contains(&"data.delete"), "the previous version's entries are found: {found:?}");
    assert!(found.iter().all(|entry| entry.to_string().contains("192.0.2.7")), "and are decrypted: {found:?}");
}

#[test]
fn the_app_goes_on_with_its_database() {
    let dir = fresh_dir();
    let postgres = postgres_in(&dir);
    postgres.sql("app", &fixture("database.sql")).unwrap();
    let address = local();
    let _app = start_app(&dir, &postgres, address, &[]);
    let ask = |request: &str| Client::connect(address).unwrap().send(with_fields(request, &ANN)).answer();
    until("the migrations", || ask(&get("/api/v1/documents")).status == 200);
    let migrations = ["app", "trail"].map(|of| {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../{of}/migrations"));
        fs::read_dir(directory).unwrap().count()
    });
    // The first versions of the app had those of the audit log among their own.
    let applied = "select (select count(*) from refinery_schema_history), (select count(*) from audit_schema_history)";
    let applied = postgres.sql("app", applied).unwrap();
    assert_eq!(applied, format!("{}|{}", migrations[0] + 2, migrations[1]));

    let listed: Answer = ask(&get("/api/v1/documents"));
    let old = listed.json()["documents"][0]["id"].as_str().unwrap().to_owned();
    let read = ask(&get(&format!("/api/v1/documents/{old}")));
    assert!(read.status == 200 && read.text().contains("keeps a canoe upright"), "{read:?}");
    let created = ask(&post("/api/v1/documents", &document("two")));
    assert!(matches!(created.status, 201 | 202), "{created:?}");
    let deleted = ask(&get(&format!("/api/v1/documents/{old}")).replacen("GET", "DELETE", 1));
    assert_eq!(deleted.status, 204, "{deleted:?}");

    // PostgreSQL and the spool of that version vouch for each other.
    let setup = setup("127.0.0.1:1");
    copy(&fixtures().join("trail"), &setup.dir.join("trail"));
    let verified = audit(&setup, &["verify", "--database", &postgres.url("app")]);
    assert!(verified.contains("whole: ") && verified.contains("postgres"), "{verified}");
}

/// Does nothing unless a release asks for it.
#[test]
fn the_fixture_is_written_anew() {
    if std::env::var_os("UPDATE_FIXTURES").is_none() {
        return;
    }
    let dir = fresh_dir();
    let postgres = postgres_in(&dir);
    let address = local();
    let _app = start_app(&dir, &postgres, address, &[]);
    let proxy = setup(&address.to_string()).env("OUTRIGGER_AUDIT_DATABASE_URL", &postgres.url("app")).start();
    let ask = |request: &str| proxy.ask(&with_fields(request, &ANN));
    until("the migrations", || ask(&get("/api/v1/documents")).status == 200);
    let cookie = ask(&get("/api/v1/documents")).header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    for _ in 0..2 {
        assert!(matches!(ask(&post("/api/v1/documents", &document("one"))).status, 201 | 202));
    }
    let id = ask(&get("/api/v1/documents")).json()["documents"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(ask(&get(&format!("/api/v1/documents/{id}")).replacen("GET", "DELETE", 1)).status, 204);
    ask(&post("/login", "{}"));
    let setup = stop(proxy);
    let trail = fixtures().join("trail");
    fs::remove_dir_all(&trail).unwrap();
    copy(&setup.dir.join("trail"), &trail);
    fs::remove_file(trail.join("LOCK")).unwrap();
    fs::write(fixtures().join("cookie"), cookie + "\n").unwrap();
    fs::write(fixtures().join("database.sql"), dump(&postgres)).unwrap();
}

/// The database, without settings and comments of this version of PostgreSQL.
fn dump(postgres: &Postgres) -> String {
    let program = Program::new(Tool::Postgres.get().unwrap().join("pg_dump"));
    let program = program.args(["--inserts", "--no-owner", "--no-privileges", "--no-comments"]);
    let text = program.args(["--dbname", &postgres.url("app")]).output().unwrap();
    let is_data = |line: &&str| {
        !line.is_empty()
            && !["--", "\\", "SET ", "SELECT pg_catalog.set_config"].iter().any(|start| line.starts_with(start))
    };
    text.lines().filter(is_data).flat_map(|line| [line, "\n"]).collect()
}
