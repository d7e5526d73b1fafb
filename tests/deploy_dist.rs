//! The files that `cargo xtask dist` publishes, made here of the program for tests: archive, Debian package, image, bill of
//! materials, unit.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use serde_json::Value;
use xtask::dist::{self, Release, Root, Target};
use xtask::{Process, Program, Signal, Tool, http, paths, programs};

use crate::backend::Backend;
use crate::harness::{PATIENCE, fresh_dir, until};
use crate::house::local;

/// Maximum size of an image, compressed.
const IMAGE_BYTES: usize = 30_000_000;
/// Maximum of what `systemd-analyze security` says, of 10.
const EXPOSURE: f64 = 2.5;

/// All that is published, in a directory.
struct Packed {
    release: Release,
    directory: PathBuf,
}

static PACKED: LazyLock<Packed> = LazyLock::new(|| {
    let directory = fresh_dir();
    let program = programs::find("outrigger").unwrap();
    let stripped = directory.join("program");
    dist::stripped(&program, &stripped).unwrap();
    // By this name although it is not static: only `cargo xtask dist` builds one that is.
    let release = Release::new(Target::here().unwrap(), &stripped, &program).unwrap();
    fs::remove_file(stripped).unwrap();
    dist::pack(&release, &directory, None).unwrap();
    Packed { release, directory }
});

impl Packed {
    fn file(&self, end: &str) -> PathBuf {
        self.directory.join(format!("{}{end}", self.release.name()))
    }

    fn package(&self) -> PathBuf {
        let Release { version, target, .. } = &self.release;
        self.directory.join(format!("outrigger_{version}_{}.deb", target.debian))
    }
}

fn said(program: impl Into<PathBuf>, args: &[&str]) -> String {
    Program::new(program).args(args).env("LC_ALL", "C").output().unwrap()
}

fn repository(file: &str) -> String {
    fs::read_to_string(paths::root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The proxy in a root directory, in front of `app`.
fn start(program: Program, app: &str, dir: &Path) -> Process {
    let (address, admin) = (local(), local());
    let program = program
        .env("OUTRIGGER_LISTEN", address.to_string())
        .env("OUTRIGGER_ADMIN_LISTEN", admin.to_string())
        .env("OUTRIGGER_APP_ADDRESS", app)
        .when_orphaned("TERM");
    let mut process = program.start("outrigger", &dir.join("outrigger.log")).unwrap();
    let serves = || http::get(address, "/", PATIENCE).is_ok_and(|answer| answer.status == 200);
    process.ready(PATIENCE, serves).unwrap();
    process
}

/// The second signal ends the lame duck.
fn stop(mut process: Process) {
    process.signal(Signal::TERM);
    until("the drain", || process.log_tail(20).contains("draining"));
    let status = process.stop(Signal::TERM, PATIENCE).unwrap();
    assert!(status.success(), "{status}\n{}", process.log_tail(20));
}

#[test]
fn checksums_are_those_of_all_files() {
    let directory = &PACKED.directory;
    let said = Program::new("sha256sum").args(["--check", "--strict", "SHA256SUMS"]).dir(directory).output().unwrap();
    let listed: BTreeSet<&str> = said.lines().map(|line| line.strip_suffix(": OK").unwrap()).collect();
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let files: BTreeSet<String> = files.filter(|name| name != "SHA256SUMS").collect();
    assert_eq!(listed, files.iter().map(String::as_str).collect());
    assert_eq!(listed.len(), 4, "{listed:?}");
}

#[test]
fn the_archive_has_everything_in_one_directory_and_is_reproducible() {
    let Packed { release, .. } = &*PACKED;
    let listed =
        said("tar", &["--list", "--verbose", "--numeric-owner", "--utc", "--file", text(&PACKED.file(".tar.gz"))]);
    let top = format!("{}/", release.name());
    for line in listed.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[1], "0/0", "{line}");
        assert!(words[5].starts_with(&top), "{line}");
    }
    let names: BTreeSet<&str> = listed.lines().map(|line| &line[line.find(&top).unwrap() + top.len()..]).collect();
    for name in [
        "outrigger",
        "LICENSE",
        "THIRD-PARTY-LICENSES",
        "README.md",
        "CHANGELOG.md",
        "config/proxy.toml",
        "config/proxy.schema.json",
        "completions/outrigger.bash",
        "completions/_outrigger",
        "completions/outrigger.fish",
        "man/man1/outrigger.1",
        "man/man1/outrigger-audit-verify.1",
    ] {
        assert!(names.contains(name), "{name} is missing: {names:?}");
    }
    assert_eq!(dist::tarball(release).unwrap(), fs::read(PACKED.file(".tar.gz")).unwrap());
    assert_eq!(dist::debian_package(release).unwrap(), fs::read(PACKED.package()).unwrap());
}

/// The subcommands and options that `--help` lists, and those of its subcommands.
fn commands(path: &[&str], found: &mut Vec<(Vec<String>, Vec<String>)>) {
    let help = Command::new(programs::find("outrigger").unwrap()).args(path).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let lines: Vec<&str> = help.lines().collect();
    let is_option = |word: &&str| word.starts_with("--") && word.len() > 2;
    let options = lines.iter().filter(|line| line.trim_start().starts_with('-'));
    let options = options.filter_map(|line| line.split([' ', ',', '=']).find(is_option)).map(str::to_owned).collect();
    found.push((path.iter().map(|part| (*part).to_owned()).collect(), options));
    let below = lines.iter().skip_while(|line| **line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let below = below.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    for name in below.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help") {
        commands(&[path, &[name]].concat(), found);
    }
}

#[test]
fn manual_pages_and_completions_have_every_command_and_option() {
    let release = &PACKED.release;
    let mut all = Vec::new();
    commands(&[], &mut all);
    assert!(all.len() > 12, "{all:?}");
    for (path, options) in &all {
        let page = [&["outrigger".to_owned()], path.as_slice()].concat().join("-");
        let found = release.pages.iter().find(|(name, _)| *name == format!("{page}.1"));
        let (_, content) = found.unwrap_or_else(|| panic!("there is no page {page}.1"));
        let content = String::from_utf8_lossy(content).replace("\\-", "-");
        for option in options {
            // `--help` and `--version` are on the first page only.
            let is_on_page = content.contains(option.as_str());
            assert!(is_on_page || option == "--help", "{page}.1 does not have {option}");
            for (shell, script) in ["bash", "zsh", "fish"].iter().zip(&release.completions) {
                let name = if *shell == "fish" { option.trim_start_matches('-') } else { option };
                assert!(String::from_utf8_lossy(script).contains(name), "{shell} does not complete {option}");
            }
        }
        for (shell, script) in ["bash", "zsh", "fish"].iter().zip(&release.completions) {
            let name = path.last().map_or("outrigger", String::as_str);
            assert!(String::from_utf8_lossy(script).contains(name), "{shell} does not complete {path:?}");
        }
    }
}

#[test]
fn the_package_says_what_it_installs() {
    let package = PACKED.package();
    let field = |name: &str| said("dpkg-deb", &["--field", text(&package), name]).trim().to_owned();
    assert_eq!(field("Package"), "outrigger");
    assert_eq!(field("Version"), PACKED.release.version);
    assert_eq!(field("Depends"), "", "the program is static");
    let size: u64 = field("Installed-Size").parse().unwrap();
    assert!(size * 1024 > PACKED.release.program.len() as u64);
    let listed = said("dpkg-deb", &["--contents", text(&package)]);
    let line = |path: &str| listed.lines().find(|line| line.ends_with(&format!(" .{path}")));
    for (path, mode) in [
        ("/usr/bin/outrigger", "-rwxr-xr-x 0/0"),
        ("/etc/outrigger/proxy.toml", "-rw-r--r-- 0/0"),
        ("/etc/default/outrigger", "-rw-r----- 0/0"),
        ("/usr/lib/systemd/system/outrigger.service", "-rw-r--r-- 0/0"),
        ("/usr/share/man/man1/outrigger.1.gz", "-rw-r--r-- 0/0"),
        ("/usr/share/doc/outrigger/copyright", "-rw-r--r-- 0/0"),
    ] {
        assert!(line(path).is_some_and(|line| line.starts_with(mode)), "{path}: {:?}", line(path));
    }
    let conffiles = said("dpkg-deb", &["--info", text(&package), "conffiles"]);
    let in_etc = listed.lines().filter(|line| line.starts_with('-') && line.contains(" ./etc/"));
    let in_etc: Vec<&str> = in_etc.map(|line| &line[line.find(" ./").unwrap() + 2..]).collect();
    assert_eq!(conffiles.lines().collect::<Vec<_>>(), in_etc);
}

/// In a root with BusyBox in place of Debian; `cargo xtask dist --check` does it in Debian.
#[test]
fn the_package_installs_serves_and_purges() {
    if !dist::can_change_root() {
        println!("not tested: this process may not change its root directory");
        return;
    }
    let app = Backend::start();
    let dir = fresh_dir();
    let directory = dir.join("root");
    let root = Root::with_busybox(&directory).unwrap();
    for name in ["status", "available", "info/format"] {
        root.add(&format!("var/lib/dpkg/{name}"), if name == "info/format" { b"1\n" } else { b"" }).unwrap();
    }
    fs::create_dir_all(root.path("var/lib/dpkg/updates")).unwrap();
    fs::create_dir_all(root.path("var/lib/dpkg/triggers")).unwrap();
    let dpkg = |args: &[&str]| {
        let namespace: &[&str] = if rustix::process::geteuid().is_root() { &[] } else { &["--map-root-user"] };
        let dpkg = Program::new("unshare").args(namespace).args(["--mount", "dpkg", "--root"]).arg(&directory);
        // Scripts find their tools in the root.
        dpkg.args(["--log=/dev/null", "--force-not-root"]).args(args).env("LC_ALL", "C").output().unwrap()
    };
    let package = PACKED.package();
    dpkg(&["--install", text(&package)]);
    assert_eq!(dpkg(&["--verify", "outrigger"]), "");
    assert_eq!(fs::metadata(root.path("etc/default/outrigger")).unwrap().mode() & 0o777, 0o640);
    // The program of the real package is static; this one needs its libraries.
    root.add_program("usr/bin/outrigger", &programs::find("outrigger").unwrap()).unwrap();
    let outrigger = root.program("/usr/bin/outrigger");
    let check = outrigger.clone().args(["check", "/etc/outrigger/proxy.toml"]).output().unwrap();
    assert_eq!(check, "/etc/outrigger/proxy.toml: valid, 0 routes\n");
    stop(start(outrigger.args(["--config", "/etc/outrigger/proxy.toml", "run"]), &app.address(), &dir));
    // An upgrade leaves a file that has been changed.
    let changed = format!("{}# ours\n", fs::read_to_string(root.path("etc/outrigger/proxy.toml")).unwrap());
    root.add("etc/outrigger/proxy.toml", changed.as_bytes()).unwrap();
    dpkg(&["--install", text(&package)]);
    assert_eq!(fs::read_to_string(root.path("etc/outrigger/proxy.toml")).unwrap(), changed);
    // Started without systemd, it has made the directory of its state itself; systemd makes a link instead.
    fs::remove_dir_all(root.path("var/lib/outrigger")).unwrap();
    root.add("var/lib/private/outrigger/audit/HEAD", b"x").unwrap();
    std::os::unix::fs::symlink("private/outrigger", root.path("var/lib/outrigger")).unwrap();
    dpkg(&["--remove", "outrigger"]);
    assert!(!root.path("usr/bin/outrigger").exists());
    assert!(root.path("etc/outrigger/proxy.toml").exists() && root.path("var/lib/outrigger/audit/HEAD").exists());
    dpkg(&["--purge", "outrigger"]);
    for left in ["etc/outrigger", "etc/default/outrigger", "var/lib/outrigger", "var/lib/private/outrigger"] {
        assert!(fs::symlink_metadata(root.path(left)).is_err(), "{left} is left");
    }
}

/// Validates it with CycloneDX's own schema, strictly, and prints the error if there is one.
const VALIDATE: &str = "\
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read())
print(getattr(error.data, 'message', error) if error else 'valid')
";

#[test]
fn the_sbom_is_valid_and_complete() {
    let file = PACKED.file(".cdx.json");
    let said = said(Tool::Cyclonedx.get().unwrap(), &["-c", VALIDATE, text(&file)]);
    assert_eq!(said, "valid\n");
    let bill: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let digest = dist::sha256(&PACKED.release.program).unwrap();
    assert_eq!(bill["metadata"]["component"]["hashes"][0]["content"], digest);
    let components = bill["components"].as_array().unwrap();
    let names: BTreeSet<&str> = components.iter().map(|component| component["name"].as_str().unwrap()).collect();
    for name in ["tokio", "ring", "outrigger-policy", "pingora-load-balancing", "libmimalloc-sys", "rust-std"] {
        assert!(names.contains(name), "{name} is missing");
    }
    for name in ["serde_derive", "syn", "cc", "xtask", "proptest", "outrigger-app", "rcgen"] {
        assert!(!names.contains(name), "{name} is not in the program");
    }
    for component in components.iter().filter(|component| component["name"] != "rust-std") {
        let is_ours = component["name"].as_str().unwrap().starts_with("outrigger");
        assert!(
            is_ours || component["hashes"][0]["content"].as_str().is_some_and(|digest| digest.len() == 64),
            "{component}"
        );
        assert!(component["licenses"][0]["expression"].is_string(), "{component}");
    }
    let notices = String::from_utf8(PACKED.release.bill.notices().unwrap()).unwrap();
    let (listed, texts) = notices.split_once("musl is under").unwrap();
    assert!(listed.contains("\ntokio 1.") && texts.contains("Permission is hereby granted"));
    // The C libraries that packages contain.
    assert!(texts.contains("Microsoft Corporation, Daan Leijen"), "mimalloc's licence is missing");
}

#[test]
fn the_image_is_what_its_manifest_says() {
    let dir = fresh_dir();
    said("tar", &["--extract", "--file", text(&PACKED.file(".oci.tar")), "--directory", text(&dir)]);
    let json = |path: &str| -> Value { serde_json::from_slice(&fs::read(dir.join(path)).unwrap()).unwrap() };
    let mut blobs = BTreeSet::new();
    let mut blob = |described: &Value, kind: &str| {
        assert_eq!(described["mediaType"], format!("application/vnd.oci.image.{kind}"));
        let digest = described["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let path = format!("blobs/sha256/{digest}");
        let content = fs::read(dir.join(&path)).unwrap();
        assert_eq!(described["size"], content.len());
        assert_eq!(dist::sha256(&content).unwrap(), digest);
        blobs.insert(digest.to_owned());
        path
    };
    assert_eq!(json("oci-layout")["imageLayoutVersion"], "1.0.0");
    let index = json("index.json");
    assert_eq!(index["schemaVersion"], 2);
    let described = &index["manifests"][0];
    assert_eq!(described["annotations"]["org.opencontainers.image.ref.name"], PACKED.release.version);
    let manifest = json(&blob(described, "manifest.v1+json"));
    let configuration = json(&blob(&manifest["config"], "config.v1+json"));
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 1);
    let layer = blob(&manifest["layers"][0], "layer.v1.tar+gzip");
    assert_eq!(described["platform"]["architecture"], configuration["architecture"]);
    assert_eq!(configuration["config"]["User"], "65532:65532");
    assert_eq!(configuration["config"]["Entrypoint"], serde_json::json!(["/outrigger"]));
    let sum = said("sh", &["-c", &format!("gzip -dc '{}' | sha256sum", dir.join(&layer).display())]);
    let expected = format!("sha256:{}", sum.split(' ').next().unwrap());
    assert_eq!(configuration["rootfs"]["diff_ids"], serde_json::json!([expected]));
    let files =
        fs::read_dir(dir.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(files.collect::<BTreeSet<_>>(), blobs);
    let size: u64 = fs::metadata(PACKED.file(".oci.tar")).unwrap().len();
    assert!(size < IMAGE_BYTES as u64, "{size}");
    // Another implementation reads it, as a directory, as an archive, and as Docker's archive.
    let skopeo = Tool::Skopeo.get().unwrap();
    let archive = PACKED.file(".oci.tar");
    for source in [
        format!("oci:{}:{}", dir.display(), PACKED.release.version),
        format!("oci-archive:{}", archive.display()),
        format!("docker-archive:{}", archive.display()),
    ] {
        let seen = said(&skopeo, &["inspect", "--config", &source]);
        let seen: Value = serde_json::from_str(&seen).unwrap();
        assert_eq!(seen["config"]["Entrypoint"], configuration["config"]["Entrypoint"], "{source}");
        let copy = format!("dir:{}", fresh_dir().display());
        said(&skopeo, &["--insecure-policy", "--tmpdir", text(&fresh_dir()), "copy", "--quiet", &source, &copy]);
    }
}

#[test]
fn the_image_serves_read_only_as_an_ordinary_user() {
    if !dist::can_change_root() {
        println!("not tested: this process may not change its root directory");
        return;
    }
    let app = Backend::start();
    let dir = fresh_dir();
    let image = dist::image(&PACKED.release).unwrap();
    let layer = dir.join("layer.tar.gz");
    let (_, largest) = image.files.iter().max_by_key(|(_, content)| content.len()).unwrap();
    fs::write(&layer, largest).unwrap();
    let root = Root::unpacked(&dir.join("root"), &layer).unwrap().read_only().with_user(65_532);
    for path in ["etc/passwd", "etc/group", "etc/ssl/certs/ca-certificates.crt"] {
        assert!(fs::metadata(root.path(path)).unwrap().len() > 0, "{path}");
    }
    root.add_program("outrigger", &programs::find("outrigger").unwrap()).unwrap();
    let process = start(root.program("/outrigger").arg("run"), &app.address(), &dir);
    if rustix::process::geteuid().is_root() {
        let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
        assert!(status.contains("\nUid:\t65532\t65532\t65532\t65532\n"), "{status}");
    }
    stop(process);
}

/// A root without glibc's files, apart from those that the program for tests needs.
#[test]
fn a_command_is_served_beside_busybox() {
    if !dist::can_change_root() {
        println!("not tested: this process may not change its root directory");
        return;
    }
    let dir = fresh_dir();
    let root = Root::with_busybox(&dir.join("root")).unwrap();
    root.add_program("usr/bin/outrigger", &programs::find("outrigger").unwrap()).unwrap();
    root.add("srv/index.html", b"a page\n").unwrap();
    let app = ["run", "--", "sh", "-c", r#"exec httpd -f -p "127.0.0.1:$PORT" -h /srv"#];
    let (address, admin) = (local(), local());
    let program = root.program("/usr/bin/outrigger").args(app).env("PATH", "/usr/bin:/bin").when_orphaned("TERM");
    let program = program.env("OUTRIGGER_LISTEN", address.to_string()).env("OUTRIGGER_ADMIN_LISTEN", admin.to_string());
    let mut process = program.without_env("PORT").start("outrigger", &dir.join("outrigger.log")).unwrap();
    let serves = || http::get(address, "/", PATIENCE).is_ok_and(|answer| answer.body == "a page\n");
    process.ready(PATIENCE, serves).unwrap();
    stop(process);
}

#[test]
fn the_unit_is_hardened() {
    let unit = paths::root().join("deploy/debian/outrigger.service");
    let analyze = Tool::SystemdAnalyze.get().unwrap();
    let said = said(analyze, &["security", "--no-pager", "--offline=true", text(&unit)]);
    let level = said.lines().find_map(|line| line.split_once("Overall exposure level for outrigger.service: "));
    let level: f64 =
        level.and_then(|(_, level)| level.split(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("{said}"));
    assert!(level <= EXPOSURE, "{level}\n{said}");
}

/// The drain, and the end of an app: with less, systemd kills requests.
#[test]
fn the_unit_waits_for_the_whole_drain() {
    let unit = repository("deploy/debian/outrigger.service");
    let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap();
    let defaults = repository("config/proxy.toml");
    let seconds = |key: &str| -> u64 {
        let line = defaults.lines().find_map(|line| line.strip_prefix(&format!("# {key} = \""))).unwrap();
        line.strip_suffix("s\"").unwrap().parse().unwrap()
    };
    let needed = seconds("lame_duck") + seconds("drain_timeout") + 2 * seconds("stop_grace");
    let given: u64 = value("TimeoutStopSec").parse().unwrap();
    assert!(given > needed, "{given} s for {needed} s");
    assert_eq!(value("RestartPreventExitStatus"), "78", "an invalid configuration");
    assert!(value("RestrictAddressFamilies").contains("AF_NETLINK"), "transport/src/witness.rs needs it");
}

#[test]
fn the_workflow_builds_every_target() {
    let actionlint = Tool::Actionlint.get().unwrap();
    let workflow = ".github/workflows/release.yml";
    let output = Command::new(actionlint)
        .args(["-no-color", "-shellcheck=", "-pyflakes=", workflow])
        .current_dir(paths::root())
        .output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let text = repository(workflow);
    let targets: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix("- target: ")).collect();
    assert_eq!(targets, ["x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl"]);
    assert!(text.contains("cargo xtask dist --check"));
}

/// As docker runs it, apart from the base.
#[test]
fn the_sidecar_s_command_serves_its_app() {
    let dockerfile = repository("Dockerfile.sidecar");
    let words = |name: &str| -> Vec<String> {
        serde_json::from_str(dockerfile.lines().find_map(|line| line.strip_prefix(name)).unwrap()).unwrap()
    };
    let (entrypoint, command) = (words("ENTRYPOINT "), words("CMD "));
    assert!(dockerfile.contains("\nCOPY --from=outrigger /outrigger /usr/local/bin/\n"));
    assert_eq!(entrypoint[0], "outrigger");
    let dir = fresh_dir();
    let (address, admin) = (local(), local());
    let program = Program::new(programs::find("outrigger").unwrap()).args(&entrypoint[1..]).args(&command);
    let program = program.env("OUTRIGGER_LISTEN", address.to_string()).env("OUTRIGGER_ADMIN_LISTEN", admin.to_string());
    let program = program.without_env("PORT").dir(&dir).when_orphaned("TERM");
    fs::write(dir.join("page.txt"), "a page\n").unwrap();
    let mut process = program.start("outrigger", &dir.join("outrigger.log")).unwrap();
    let serves = || http::get(address, "/page.txt", PATIENCE).is_ok_and(|answer| answer.body == "a page\n");
    process.ready(Duration::from_secs(30), serves).unwrap();
    stop(process);
}
