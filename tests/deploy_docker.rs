//! The Dockerfile passes hadolint and matches the workspace and `supervisord.conf`.

use std::{collections::BTreeSet, fs, path::Path, process::Command, time::Duration};

use xtask::{Program, Signal, Tool, http, paths, process, programs, wait};

fn file(name: &str) -> String {
    fs::read_to_string(paths::root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Instructions with their continued lines joined, without comments.
fn instructions() -> Vec<String> {
    let lines = file("Dockerfile");
    let lines: Vec<&str> = lines.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    let joined = lines.join("\n").replace("\\\n", " ");
    joined.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn hadolint_accepts_the_dockerfiles() {
    let hadolint = Tool::Hadolint.get().unwrap();
    let files = ["--no-color", "Dockerfile", "Dockerfile.sidecar"];
    let output = Command::new(hadolint).args(files).current_dir(paths::root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn bases_are_pinned_and_the_compiler_is_the_repository_s() {
    let bases: Vec<String> = instructions()
        .iter()
        .filter_map(|line| line.strip_prefix("FROM ")?.split(' ').next().map(str::to_owned))
        .collect();
    let channel: toml::Table = file("rust-toolchain.toml").parse().unwrap();
    let channel = channel["toolchain"]["channel"].as_str().unwrap();
    assert_eq!(bases[0], format!("rust:{channel}-slim-bookworm"));
    let date = bases[1].strip_prefix("debian:bookworm-").and_then(|tag| tag.strip_suffix("-slim"));
    assert!(date.is_some_and(|date| date.len() == 8 && date.parse::<u32>().is_ok()), "{bases:?}");
    assert_eq!(bases[1..], [bases[1].as_str(), &bases[1]], "the images have the same base");
    assert!(file("Dockerfile.sidecar").contains(&format!("\nFROM {}\n", bases[1])), "and so has the sidecar's");
}

/// The instructions of the smaller image.
fn single_process_image() -> Vec<String> {
    let instructions = instructions();
    let stage = |line: &String| line.starts_with("FROM ");
    let rest = instructions.into_iter().skip_while(|line| !line.ends_with(" AS run")).skip(1);
    rest.take_while(|line| !stage(line)).collect()
}

#[test]
fn the_smaller_image_has_one_process_of_an_ordinary_user_and_no_python() {
    let image = single_process_image();
    assert_eq!(image.last().unwrap(), r#"CMD ["outrigger", "run", "--", "outrigger-app"]"#);
    assert!(image.contains(&"USER 10001".to_owned()), "{image:?}");
    assert!(!image.iter().any(|line| line.contains("supervisor") || line.contains("python")), "{image:?}");
}

/// With its variables, below a directory of the test. The app starts without its databases.
#[test]
fn the_command_of_the_smaller_image_serves_the_app() {
    let dir = crate::harness::fresh_dir();
    let (address, admin, app) = (crate::house::local(), crate::house::local(), crate::house::local());
    let socket = crate::harness::socket(&dir);
    let program = |name: &str| programs::find(name).unwrap();
    let image = single_process_image();
    let env = image.iter().find_map(|line| line.strip_prefix("ENV ")).unwrap();
    let mut outrigger = Program::new(program("outrigger")).args(["run", "--"]).arg(program("outrigger-app"));
    for (name, value) in env.split_whitespace().map(|pair| pair.split_once('=').unwrap()) {
        let value = match name {
            "OUTRIGGER_CONFIG" => paths::root().join("config/proxy.toml").display().to_string(),
            "OUTRIGGER_LISTEN" => address.to_string(),
            "OUTRIGGER_ADMIN_LISTEN" => admin.to_string(),
            _ => value
                .replace("/var/lib/outrigger/app.sock", &socket.display().to_string())
                .replace("127.0.0.1:8081", &app.to_string()),
        };
        outrigger = outrigger.env(name, value);
    }
    let outrigger = outrigger
        .env("DATABASE_URL", "postgres://nobody@127.0.0.1:9/none")
        .env("CHROMA_URL", "http://127.0.0.1:9")
        .env("APP_AUTH", "off")
        .when_orphaned("TERM");
    let mut outrigger = outrigger.start("outrigger", &dir.join("outrigger.log")).unwrap();
    let limit = Duration::from_secs(30);
    outrigger
        .ready(limit, || http::get(address, "/health/live", limit).is_ok_and(|answer| answer.status == 200))
        .unwrap();
    let children = process::children(outrigger.pid());
    // The second signal ends the lame duck.
    outrigger.signal(Signal::TERM);
    let said = || outrigger_log(&dir).contains("draining");
    wait::until("the drain", limit, said).unwrap();
    let status = outrigger.stop(Signal::TERM, limit).unwrap();
    assert!(status.success(), "{status}\n{}", outrigger.log_tail(20));
    assert!(!children.iter().any(|pid| process::exists(*pid)), "{children:?}");
}

fn outrigger_log(dir: &Path) -> String {
    fs::read_to_string(dir.join("outrigger.log")).unwrap_or_default()
}

/// The image's user of a program: name, uid and gid.
fn user_of(program: &str) -> (String, u32, u32) {
    let instructions = instructions();
    let user = match program {
        "app" => {
            // The build stage has its own variables.
            let env = instructions.iter().filter(|line| line.starts_with("ENV "));
            let mut words = env.flat_map(|line| line.split_whitespace());
            words.find_map(|word| word.strip_prefix("OUTRIGGER_APP_USER=")).unwrap().to_owned()
        }
        _ => {
            let users = file("deploy/users.conf");
            let (_, section) = users.split_once(&format!("[program:{program}]")).unwrap();
            section.lines().find_map(|line| line.strip_prefix("user=")).unwrap().to_owned()
        }
    };
    let made = instructions.iter().find_map(|line| {
        let made = line
            .split("useradd ")
            .skip(1)
            .find(|made| made.split("&&").next().is_some_and(|made| made.trim().ends_with(&format!(" {user}"))))?;
        let number = |flag: &str| made.split(flag).nth(1)?.split_whitespace().next()?.parse().ok();
        Some((number("--uid ")?, number("--gid ")?))
    });
    let (uid, gid) = made.unwrap_or_else(|| panic!("the image has no user {user}"));
    (user, uid, gid)
}

#[test]
fn the_programs_run_as_ordinary_users_of_their_own_under_supervisord() {
    let instructions = instructions();
    let ((_, app, app_group), (_, proxy, proxy_group)) = (user_of("app"), user_of("proxy"));
    assert!(app != 0 && proxy != 0 && app != proxy && app_group != proxy_group);
    let copied = "COPY deploy/users.conf /etc/outrigger/supervisor/users.conf";
    assert!(instructions.iter().any(|line| line == copied), "{copied}");
    assert!(file("supervisord.conf").contains("[include]\nfiles=/etc/outrigger/supervisor/*.conf\n"));
    // The app creates the socket, and the proxy's group can reach it; no other user can.
    let run = format!("install -d -o {app} -g {proxy_group} -m 2750 /var/lib/outrigger/run");
    assert!(instructions.iter().any(|line| line.contains(&run)), "{run}");
    assert_eq!(instructions.last().unwrap(), r#"CMD ["supervisord", "-c", "/etc/supervisord.conf"]"#);
    assert!(!instructions.iter().any(|line| line.starts_with("ENTRYPOINT")));
}

#[test]
fn the_dependency_layer_knows_every_member_of_the_workspace() {
    let workspace: toml::Table = file("Cargo.toml").parse().unwrap();
    let instructions = instructions();
    for member in workspace["workspace"]["members"].as_array().unwrap() {
        let member = member.as_str().unwrap();
        let copy = format!("COPY {member}/Cargo.toml {member}/");
        assert!(instructions.contains(&copy), "the Dockerfile needs `{copy}`");
    }
}

/// Runs the commands before the first `cargo build`: cargo must see a complete workspace.
#[test]
fn the_dependency_layer_s_empty_sources_make_a_workspace() {
    let dir = paths::state("deploy-docker").unwrap().join(format!("layer-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let instructions = instructions();
    let start = instructions.iter().position(|line| line.starts_with("COPY Cargo.toml")).unwrap();
    for line in &instructions[start..] {
        let script = if let Some(copied) = line.strip_prefix("COPY ") {
            let (sources, place) = copied.rsplit_once(' ').unwrap();
            let sources: Vec<_> = sources.split(' ').map(|file| paths::root().join(file)).collect();
            let sources: Vec<_> = sources.iter().map(|file| format!("'{}'", file.display())).collect();
            format!("mkdir -p '{place}' && cp {} '{place}'", sources.join(" "))
        } else {
            let (before, build) = line.strip_prefix("RUN ").unwrap().split_once("&& cargo build").unwrap();
            assert!(build.contains("--locked"));
            format!("{before} && cargo metadata --no-deps --locked --offline --format-version 1 > metadata.json")
        };
        let output = Command::new("sh").args(["-ec", &script]).current_dir(&dir).output().unwrap();
        assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
        if line.starts_with("RUN ") {
            break;
        }
    }
    let metadata: serde_json::Value = serde_json::from_slice(&fs::read(dir.join("metadata.json")).unwrap()).unwrap();
    let targets = metadata["packages"].as_array().unwrap().iter().flat_map(|package| package["targets"].as_array());
    let names: BTreeSet<&str> = targets.flatten().filter_map(|target| target["name"].as_str()).collect();
    assert!(names.contains("outrigger") && names.contains("outrigger-app"), "{names:?}");
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn everything_that_is_copied_exists() {
    for line in instructions().iter().filter(|line| line.starts_with("COPY ") && !line.contains("--from=")) {
        let words: Vec<&str> = line.split_whitespace().skip(1).filter(|word| !word.starts_with("--")).collect();
        let (_, sources) = words.split_last().unwrap();
        for source in sources {
            assert!(paths::root().join(source).exists(), "`{line}`: there is no {source}");
        }
    }
}

/// supervisord does not start when its file names a variable that is not set.
#[test]
fn every_variable_of_supervisord_is_set() {
    let supervisord = file("supervisord.conf");
    let named: BTreeSet<&str> =
        supervisord.split("%(ENV_").skip(1).filter_map(|rest| Some(rest.split_once(")s")?.0)).collect();
    assert!(named.contains("BIN_DIR"));
    let env = instructions().into_iter().filter(|line| line.starts_with("ENV ")).collect::<Vec<_>>().join(" ");
    for name in named {
        assert!(env.contains(&format!(" {name}=")), "the Dockerfile sets no {name}");
    }
}

/// The proxy could not create it: it is not root, and the parent directory belongs to root.
#[test]
fn only_the_writing_user_can_read_the_audit_directory() {
    let instructions = instructions();
    let variable = "OUTRIGGER_AUDIT_DIRECTORY=";
    let env = instructions.iter().find(|line| line.starts_with("ENV ") && line.contains(variable)).unwrap();
    let directory = env.split_whitespace().find_map(|word| word.strip_prefix(variable)).unwrap();
    let (_, user, group) = user_of("proxy");
    let made = format!("install -d -o {user} -g {group} -m 0700 {directory}");
    let is_made = |line: &String| line.starts_with("RUN ") && line.contains(&made);
    assert!(instructions.iter().any(is_made), "the Dockerfile needs `{made}`");
}
