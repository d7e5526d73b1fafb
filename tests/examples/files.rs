//! The files with which the examples are deployed: what cannot be run here is checked.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use toml::Table;
use xtask::{Tool, paths};
use yaml_rust2::{Yaml, YamlLoader};

use super::{EXAMPLES, file, words};
use crate::harness::fresh_dir;

fn directory(example: &str) -> PathBuf {
    paths::root().join("examples").join(example)
}

/// Nothing went wrong, and the tool had nothing to say.
#[track_caller]
fn is_silent(output: &Output) {
    let said = String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.is_empty(), "{}: {said}", output.status);
}

fn lines(dockerfile: &str) -> Vec<&str> {
    dockerfile.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

#[test]
fn hadolint_accepts_every_dockerfile() {
    let dockerfiles = EXAMPLES.map(|name| directory(name).join("Dockerfile"));
    is_silent(&Command::new(Tool::Hadolint.get().unwrap()).arg("--no-color").args(dockerfiles).output().unwrap());
}

#[test]
fn every_image_runs_one_process_of_an_ordinary_user() {
    let workspace: Table = fs::read_to_string(paths::root().join("Cargo.toml")).unwrap().parse().unwrap();
    let version = workspace["workspace"]["package"]["version"].as_str().unwrap();
    let own = fs::read_to_string(paths::root().join("Dockerfile")).unwrap();
    for example in EXAMPLES {
        let dockerfile = file(&format!("{example}/Dockerfile"));
        let lines = lines(&dockerfile);
        assert_eq!(lines[0], format!("FROM outrigger:{version} AS outrigger"), "{example}");
        for needed in [
            "COPY --from=outrigger /outrigger /usr/local/bin/outrigger",
            "ENV OUTRIGGER_CONFIG=/app/outrigger.toml \\",
            "USER 10001",
            "EXPOSE 8080 9091",
        ] {
            assert!(lines.contains(&needed), "{example} has no {needed}");
        }
        assert!(dockerfile.contains("install -d -o 10001 -m 0700 /data"), "{example}: the app's own directory");
        assert_eq!(words(example, "ENTRYPOINT"), ["outrigger", "run", "--"], "{example}");
        for base in lines.iter().filter(|line| line.starts_with("FROM debian:")) {
            assert!(own.contains(base), "{example}: another {base} than in the repository's Dockerfile");
        }
        for copied in lines.iter().filter(|line| line.starts_with("COPY ") && !line.contains("--from=")) {
            let files = copied.split(' ').skip(1).collect::<Vec<_>>();
            for name in &files[..files.len() - 1] {
                assert!(directory(example).join(name).exists(), "{example}: `{copied}`: there is no {name}");
            }
        }
    }
}

/// `outrigger check` as well: a mistake would show only in production.
#[test]
fn every_configuration_is_valid_and_says_what_its_readme_says() {
    for example in EXAMPLES {
        let rules = directory(example).join("outrigger.toml");
        let outrigger = xtask::programs::find("outrigger").unwrap();
        let checked = Command::new(outrigger).arg("check").arg(&rules).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
        let text: Table = file(&format!("{example}/outrigger.toml")).parse().unwrap();
        let health = text["health"]["path"].as_str().unwrap();
        let listed = if health == "none" { "none".to_owned() } else { format!("`{health}`") };
        let command = words(example, "CMD").join(" ");
        let row = |line: &&str| line.starts_with(&format!("| [{example}]"));
        let table = file("README.md");
        let row = table.lines().find(row).unwrap();
        assert!(row.ends_with(&format!("| {listed} | `{command}` |")), "examples/README.md: {row}");
        let readme = file(&format!("{example}/README.md"));
        assert!(readme.lines().count() <= 14, "{example}/README.md");
        let here = readme.split('`').find(|code| code.starts_with("outrigger run ")).unwrap();
        let (options, here) = here.split_once(" -- ").unwrap();
        assert_eq!(options, "outrigger run --config outrigger.toml");
        assert_eq!(without_directories(here), without_directories(&command), "{example}/README.md");
    }
}

/// The program without its directory, and its arguments.
fn without_directories(command: &str) -> String {
    let (program, arguments) = command.split_once(' ').unwrap_or((command, ""));
    format!("{} {arguments}", Path::new(program).file_name().unwrap().display())
}

/// tests/deploy_fly.rs has the keys.
#[test]
fn fly_finds_what_the_images_have() {
    let parsed = |example: &str| -> Table { file(&format!("{example}/fly.toml")).parse().unwrap() };
    for example in EXAMPLES {
        let mut fly = parsed(example);
        assert_eq!(fly.remove("app").unwrap().as_str().unwrap(), format!("notes-{example}"));
        let mut other = parsed(EXAMPLES[0]);
        other.remove("app");
        assert_eq!(fly, other, "they differ in their names only");
        assert_eq!(fly["http_service"]["internal_port"].as_integer(), Some(8080));
        assert_eq!(fly["http_service"]["checks"][0]["path"].as_str(), Some("/health"));
        assert_eq!(fly["metrics"][0]["port"].as_integer(), Some(9091));
        assert!(fly["kill_timeout"].as_integer().unwrap() > DRAIN);
    }
}

/// `server.lame_duck`, `server.drain_timeout` and `run.stop_grace`, in seconds, by default.
const DRAIN: i64 = 5 + 30 + 10;

#[test]
fn compose_files_fit_their_schema_and_wait_for_the_drain() {
    let files = EXAMPLES.map(|name| directory(name).join("compose.yml"));
    let checked = Command::new(Tool::CheckJsonschema.get().unwrap())
        .args(["--quiet", "--builtin-schema", "vendor.compose-spec"])
        .args(&files)
        .arg(paths::root().join("examples/compose.base.yml"))
        .output()
        .unwrap();
    is_silent(&checked);
    let texts: BTreeSet<String> = EXAMPLES.map(|name| file(&format!("{name}/compose.yml"))).into();
    assert_eq!(texts.len(), 1, "they are the same");
    let base = &YamlLoader::load_from_str(&file("compose.base.yml")).unwrap()[0]["services"]["app"];
    let grace = base["stop_grace_period"].as_str().and_then(|text| text.strip_suffix('s')?.parse::<i64>().ok());
    assert!(grace.is_some_and(|seconds| seconds > DRAIN), "{grace:?}");
    assert_eq!(base["read_only"], Yaml::Boolean(true));
    let ports: Vec<&str> = base["ports"].as_vec().unwrap().iter().filter_map(Yaml::as_str).collect();
    assert_eq!(ports, ["8080:8080", "127.0.0.1:9091:9091"], "operators only from the host itself");
}

/// systemd itself would have to be the first process here, so nothing starts the unit.
#[test]
fn systemd_accepts_the_unit_and_finds_it_hardened() {
    const NAME: &str = "systemd/outrigger@.service";
    let root = fresh_dir();
    let units = root.join("usr/lib/systemd/system");
    for dir in ["usr/bin", "bin"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for program in ["usr/bin/outrigger", "bin/kill"] {
        fs::copy("/bin/true", root.join(program)).unwrap();
    }
    fs::create_dir_all(units.parent().unwrap()).unwrap();
    let copied = Command::new("cp").args(["-r", "/usr/lib/systemd/system"]).arg(&units).status();
    assert!(copied.unwrap().success(), "systemd's own units are in the package that has systemd-analyze");
    fs::write(units.join("outrigger@.service"), file(NAME)).unwrap();
    let tool = Tool::SystemdAnalyze.get().unwrap();
    let arguments = [format!("--root={}", root.display()), "outrigger@node.service".to_owned()];
    is_silent(&Command::new(&tool).args(["verify", "--man=no"]).args(&arguments).output().unwrap());
    // 25: an exposure of 2.5.
    let instance = root.join("outrigger@node.service");
    fs::write(&instance, file(NAME)).unwrap();
    let scored = Command::new(&tool)
        .args(["security", "--offline=true", "--no-pager", "--threshold=25"])
        .arg(&instance)
        .output()
        .unwrap();
    assert!(scored.status.success(), "{}", String::from_utf8_lossy(&scored.stdout));
}

#[test]
fn the_unit_starts_the_command_of_the_image() {
    let unit = file("systemd/outrigger@.service");
    let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap();
    let start = value("ExecStart");
    assert_eq!(start, "/usr/bin/outrigger run --config /srv/%i/outrigger.toml -- $COMMAND");
    assert!(value("RestrictAddressFamilies").contains("AF_NETLINK"), "transport/src/witness.rs needs it");
    assert!(value("TimeoutStopSec").parse::<i64>().unwrap() > DRAIN);
    for example in EXAMPLES {
        let environment = file(&format!("{example}/systemd.env"));
        let value = |key: &str| environment.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let (command, image) = (value("COMMAND").unwrap(), words(example, "CMD").join(" "));
        assert_eq!(without_directories(command), without_directories(&image), "{example}/systemd.env");
        // `StateDirectory` makes it.
        assert_eq!(value("NOTES"), Some(format!("/var/lib/outrigger-{example}/notes.txt").as_str()));
    }
}
