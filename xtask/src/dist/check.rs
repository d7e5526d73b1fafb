//! `cargo xtask dist --check`: starts what was built in directories without the libraries of this system, and installs the Debian
//! package in a new Debian.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::{Image, Release, Root, image};
use crate::{Error, Process, Program, Result, Signal, Tool, error::While, http, paths, ports, say, tools, wait};

const LIMIT: Duration = Duration::from_secs(30);
/// From the start of `outrigger run -- COMMAND` to the first response of a small app.
const FIRST_RESPONSE: Duration = Duration::from_secs(1);
/// The response of the app.
const TEXT: &str = "served by the app\n";

/// Checks the results for this machine.
///
/// # Errors
/// One of them does not work.
pub(super) fn check(release: &Release, directory: &Path) -> Result<()> {
    tools::install(&[Tool::Busybox, Tool::Debootstrap])?;
    let dir = paths::state("dist-check")?.join(std::process::id().to_string());
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).while_(format_args!("creating {}", dir.display()))?;
    let program = dir.join("outrigger");
    super::archive::write(&program, &release.program)?;
    let app = backend()?;
    in_an_empty_root(&program, &dir.join("empty"))?;
    in_the_image(&image(release)?, app, &dir)?;
    beside_a_command(&program, &dir.join("busybox"))?;
    let package = directory.join(format!("outrigger_{}_{}.deb", release.version, release.target.debian));
    in_debian(&package, app, &dir.join("debian"))?;
    fs::remove_dir_all(&dir).while_(format_args!("removing {}", dir.display()))
}

/// An app that responds with [`TEXT`] to every request, for the life of this process.
fn backend() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).while_("listening")?;
    let address = listener.local_addr().while_("listening")?;
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut head = [0; 4096];
            let _ = client.read(&mut head);
            let response =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{TEXT}", TEXT.len());
            let _ = client.write_all(response.as_bytes());
        }
    });
    Ok(address)
}

fn local() -> Result<SocketAddr> {
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()?)))
}

/// Starts a proxy on free ports, and returns it and the public one.
fn start(program: &Program, log: &Path) -> Result<(Process, SocketAddr)> {
    let (address, admin) = (local()?, local()?);
    let program = program.clone().env("OUTRIGGER_LISTEN", address.to_string());
    let program = program.env("OUTRIGGER_ADMIN_LISTEN", admin.to_string()).when_orphaned("TERM");
    Ok((program.start("outrigger", log)?, address))
}

/// Waits for the app's response, and returns how long that took.
fn served(process: &mut Process, address: SocketAddr, text: &str) -> Result<Duration> {
    let start = Instant::now();
    process.ready(LIMIT, || {
        http::get(address, "/", LIMIT).is_ok_and(|answer| answer.status == 200 && answer.body == text)
    })?;
    Ok(start.elapsed())
}

fn stop(mut process: Process) -> Result<()> {
    process.signal(Signal::TERM);
    wait::until("the drain", LIMIT, || process.log_tail(20).contains("draining"))?;
    // The second signal ends the lame duck.
    let status = process.stop(Signal::TERM, LIMIT)?;
    if status.success() { Ok(()) } else { Err(Error::new(format_args!("{status}\n{}", process.log_tail(20)))) }
}

fn in_an_empty_root(program: &Path, dir: &Path) -> Result<()> {
    let root = Root::new(dir)?;
    root.add_program("outrigger", program)?;
    let files: Vec<_> =
        fs::read_dir(dir).while_("reading the root")?.flatten().map(|entry| entry.file_name()).collect();
    if files != ["outrigger"] {
        return Err(Error::new(format_args!("the program is not static: it needs {files:?}")));
    }
    let version = root.program("/outrigger").arg("--version").output()?;
    say(format_args!("empty root: {}", version.trim()));
    Ok(())
}

/// As `nonroot`, read-only. The app's name is in the hosts file of the container.
fn in_the_image(image: &Image, app: SocketAddr, dir: &Path) -> Result<()> {
    let manifest = image.files.iter().find(|(path, _)| path == "manifest.json").map(|(_, content)| content.as_slice());
    let manifest: serde_json::Value =
        serde_json::from_slice(manifest.unwrap_or_default()).while_("reading the manifest")?;
    let layer = manifest[0]["Layers"][0].as_str().unwrap_or_default();
    let blob =
        image.files.iter().find(|(path, _)| path == layer).ok_or_else(|| Error::new("the image has no layer"))?;
    let file = dir.join("layer.tar.gz");
    super::archive::write(&file, &blob.1)?;
    let root = Root::unpacked(&dir.join("image"), &file)?.read_only().with_user(65_532);
    root.add("etc/hosts", b"127.0.0.1 app.test\n")?;
    let program =
        root.program("/outrigger").arg("run").env("OUTRIGGER_APP_ADDRESS", format!("app.test:{}", app.port()));
    let (mut process, address) = start(&program, &dir.join("image.log"))?;
    let took = served(&mut process, address, TEXT)?;
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).while_("reading its status")?;
    let users = status.lines().find(|line| line.starts_with("Uid:")).unwrap_or_default().replace('\t', " ");
    say(format_args!(
        "image, read-only, {users}: serves an app that the hosts file names, after {} ms",
        took.as_millis()
    ));
    stop(process)
}

/// `outrigger run -- COMMAND` where there is no glibc.
fn beside_a_command(program: &Path, dir: &Path) -> Result<()> {
    let root = Root::with_busybox(dir)?;
    root.add_program("usr/local/bin/outrigger", program)?;
    root.add("srv/index.html", TEXT.as_bytes())?;
    let app = ["sh", "-c", r#"exec httpd -f -p "127.0.0.1:$PORT" -h /srv"#];
    let program =
        root.program("/usr/local/bin/outrigger").args(["run", "--"]).args(app).env("PATH", "/usr/local/bin:/bin");
    let (mut process, address) = start(&program, &dir.join("outrigger.log"))?;
    let took = served(&mut process, address, TEXT)?;
    say(format_args!("BusyBox root: `outrigger run -- httpd` serves after {} ms", took.as_millis()));
    stop(process)?;
    if took > FIRST_RESPONSE {
        return Err(Error::new(format_args!("the first response took {took:?}, more than {FIRST_RESPONSE:?}")));
    }
    Ok(())
}

/// A new Debian with systemd, which is not running.
fn in_debian(package: &Path, app: SocketAddr, dir: &Path) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        say("Debian: not checked, debootstrap needs root");
        return Ok(());
    }
    let (mirror, suite) = archive_of_debian()?;
    say(format_args!("Debian {suite}: debootstrap …"));
    let bootstrap = Program::new(Tool::Debootstrap.get()?).args(["--variant=minbase", "--include=systemd"]);
    bootstrap.arg(&suite).arg(dir).arg(mirror).output()?;
    let root = Root::new(dir)?;
    fs::copy(package, root.path("tmp/outrigger.deb")).while_("copying the package")?;
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let shell = root.program("/bin/sh").env("LC_ALL", "C").env("PATH", path);
    let run = |command: &str| shell.clone().args(["-ec", command]).output();
    run("dpkg -i /tmp/outrigger.deb")?;
    for (command, expected) in [
        ("dpkg --verify outrigger", ""),
        ("systemctl is-enabled outrigger.service", "enabled\n"),
        ("stat -c '%a %U' /etc/default/outrigger", "640 root\n"),
        (
            "echo '# ours' >> /etc/outrigger/proxy.toml; dpkg -i /tmp/outrigger.deb >/dev/null; tail -n1 /etc/outrigger/proxy.toml",
            "# ours\n",
        ),
    ] {
        let said = run(command)?;
        if said != expected {
            return Err(Error::new(format_args!("`{command}` printed {said:?}, not {expected:?}")));
        }
    }
    say(format_args!("Debian {suite}: {}", run("outrigger check /etc/outrigger/proxy.toml")?.trim()));
    let program = root.program("/usr/bin/outrigger").args(["--config", "/etc/outrigger/proxy.toml", "run"]);
    let (mut process, address) =
        start(&program.env("OUTRIGGER_APP_ADDRESS", app.to_string()), &dir.join("outrigger.log"))?;
    served(&mut process, address, TEXT)?;
    stop(process)?;
    let is_left = |path: &str| fs::symlink_metadata(root.path(path)).is_ok();
    run(
        "rm -rf /var/lib/outrigger && mkdir -p /var/lib/private/outrigger && ln -s private/outrigger /var/lib/outrigger && dpkg -r outrigger",
    )?;
    let removed =
        !is_left("usr/bin/outrigger") && is_left("etc/outrigger/proxy.toml") && is_left("var/lib/private/outrigger");
    run("dpkg -P outrigger")?;
    let left: Vec<&str> = ["etc/outrigger", "etc/default/outrigger", "var/lib/outrigger", "var/lib/private/outrigger"]
        .into_iter()
        .filter(|path| is_left(path))
        .collect();
    if !removed || !left.is_empty() {
        return Err(Error::new(format_args!("removed as expected: {removed}; left after purge: {left:?}")));
    }
    say(format_args!("Debian {suite}: installed, verified, served, installed again, removed, purged"));
    Ok(())
}

/// Where this system gets its packages, and the name of its release.
fn archive_of_debian() -> Result<(String, String)> {
    let release = fs::read_to_string("/etc/os-release").while_("reading /etc/os-release")?;
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or("stable").to_owned();
    let targets = ["indextargets", "--format", "$(ORIGIN) $(RELEASE) $(REPO_URI)", "Created-By: Packages"];
    let targets = Program::new("apt-get").args(targets).output()?;
    let mirror = ["Debian", "Ubuntu"].iter().find_map(|origin| {
        let is_of = format!("{origin} {suite} ");
        let mirror = targets.lines().find_map(|line| line.strip_prefix(&is_of))?;
        // apt takes one of a list; debootstrap cannot.
        match mirror.strip_prefix("mirror+file:") {
            Some(list) => {
                fs::read_to_string(list.trim_end_matches('/')).ok()?.split_whitespace().next().map(str::to_owned)
            }
            None => Some(mirror.to_owned()),
        }
    });
    let mirror = mirror.ok_or_else(|| Error::new(format_args!("apt has no source for {suite}")))?;
    Ok((mirror, suite))
}
