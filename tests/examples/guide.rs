//! docs/your-app.md: its commands work as pasted, and the README's picture shows them.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use xtask::{Process, Program, Signal, http, paths, programs, reference, wait};

use super::{Copied, file};
use crate::harness::PATIENCE;
use crate::house::local;

const GUIDE: &str = "docs/your-app.md";
const PICTURE: &str = "docs/pictures/your-app.svg";

/// Blocks that begin with one of these comments are not run: nothing here has these programs, or another test covers them.
const NEEDS: [&str; 4] = ["# needs flyctl", "# needs Docker", "# needs systemd", "# needs a clone"];

/// The commands, in order, and a part of their output. Those whose last value is true are in the picture.
const COMMANDS: [(&str, &str, bool); 16] = [
    ("npm ci", "", false),
    ("outrigger run -- node server.js", "outrigger serves", false),
    ("curl -i localhost:8080/api/notes", "200 OK", false),
    ("curl -s localhost:9091/app", "\"serving\"", false),
    ("curl -s localhost:9091/metrics", "outrigger_requests_total{", false),
    ("outrigger check outrigger.toml", "valid", false),
    ("outrigger run --config outrigger.toml", "outrigger serves", true),
    ("for i in", " 429", true),
    ("curl -si -d hello", "Retry-After: ", true),
    ("kill -9", "", true),
    ("curl -s -w", " 200 after", true),
    ("kill -STOP", "", false),
    ("curl -s -w", " 200 after", false),
    ("outrigger restart", "the app is restarted", true),
    ("curl -si localhost:8080/health", "200 OK", false),
    ("outrigger explain", "writing: 20 at once", false),
];

fn guide() -> String {
    fs::read_to_string(paths::root().join(GUIDE)).unwrap()
}

/// The code blocks, each with its language.
fn blocks(text: &str) -> Vec<(String, String)> {
    let fenced = text.split("\n```").skip(1).step_by(2);
    fenced.map(|block| block.split_once('\n').unwrap()).map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
}

/// A terminal in a copy of the Node example, and another in which Outrigger runs.
struct Terminal {
    copied: Copied,
    address: SocketAddr,
    admin: SocketAddr,
    server: Option<Process>,
}

impl Terminal {
    fn open() -> Self {
        let copied = Copied::of("node");
        copied.has("outrigger", &programs::find("outrigger").unwrap(), "");
        // The packages are there already: xtask has installed them, from the same lock file.
        copied.has("npm", "/bin/true".as_ref(), "");
        fs::remove_file(copied.dir.join("outrigger.toml")).unwrap();
        Self { copied, address: local(), admin: local(), server: None }
    }

    /// A command with this test's addresses.
    fn here(&self, command: &str) -> String {
        let (address, admin) = (self.address.to_string(), self.admin.to_string());
        command.replace("localhost:8080", &address).replace("localhost:9091", &admin)
    }

    /// An output with the addresses of the guide.
    fn there(&self, output: &str) -> String {
        let (address, admin) = (self.address.to_string(), self.admin.to_string());
        output.replace(&address, "127.0.0.1:8080").replace(&admin, "127.0.0.1:9091")
    }

    fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("PATH", self.copied.path()),
            ("OUTRIGGER_LISTEN", self.address.to_string()),
            ("OUTRIGGER_ADMIN_LISTEN", self.admin.to_string()),
            ("OUTRIGGER_LOG_FORMAT", "text".to_owned()),
        ]
    }

    /// In the other terminal, where it replaces the one before. Returns what it says at its start.
    fn serve(&mut self, command: &str) -> String {
        self.interrupt();
        let log = self.copied.dir.join("server.log");
        let _ = fs::remove_file(&log);
        let program = Program::new("sh").args(["-c", &format!("exec {}", self.here(command))]).dir(&self.copied.dir);
        let program = self.environment().into_iter().fold(program, |program, (name, value)| program.env(name, value));
        let mut server = program.without_env("PORT").when_orphaned("TERM").start(command, &log).unwrap();
        let said = || fs::read_to_string(&log).unwrap_or_default();
        server.ready(Duration::from_secs(60), || self.serves() && said().contains("app_serves")).unwrap();
        self.server = Some(server);
        self.there(&said())
    }

    /// Ctrl-C, twice: the second one ends the wait for traffic to move elsewhere.
    fn interrupt(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        let log = server.log().to_owned();
        server.signal(Signal::INT);
        wait::until("the drain", PATIENCE, || fs::read_to_string(&log).unwrap().contains("draining")).unwrap();
        assert!(server.stop(Signal::INT, PATIENCE).unwrap().success());
    }

    fn serves(&self) -> bool {
        http::get(self.admin, "/app", PATIENCE).is_ok_and(|app| app.body.contains("\"serving\""))
    }

    /// What the command says, once it contains `expected`.
    fn run(&self, command: &str, expected: &str) -> String {
        // A process that hangs before its first response has until `run.start_timeout`.
        if command.starts_with("kill") {
            wait::until("the app to serve", PATIENCE, || self.serves()).unwrap();
        }
        let run = || {
            let mut shell = Command::new("sh");
            shell.args(["-c", &self.here(command)]).current_dir(&self.copied.dir).envs(self.environment());
            let output = shell.output().unwrap();
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(output.status.success(), "{command}\n{said}");
            said
        };
        let mut said = run();
        // The app's health is asked once a second, and the limit admits a request every 3 s.
        if command.contains("/health") || command.contains("-si -d") {
            let _ = wait::until(command, PATIENCE, || {
                said = run();
                said.contains(expected)
            });
        }
        assert!(said.contains(expected), "{command}\nshould show {expected} and says:\n{said}");
        self.there(&said)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.stop(Signal::TERM, PATIENCE * 3);
        }
    }
}

#[test]
fn the_guide_works_as_pasted() {
    let mut terminal = Terminal::open();
    let mut expected = COMMANDS.iter();
    let mut shown = Vec::new();
    for (language, block) in blocks(&guide()) {
        match language.as_str() {
            // Quicker than an operator's patience.
            "toml" => {
                let text = format!("run.hang_timeout = \"2s\"\n{block}");
                fs::write(terminal.copied.dir.join("outrigger.toml"), text).unwrap();
            }
            "sh" if NEEDS.iter().any(|needs| block.starts_with(needs)) => {}
            "sh" => {
                for line in block.lines().filter(|line| !line.starts_with('#')) {
                    let (command, part, is_shown) = expected.next().unwrap_or_else(|| panic!("not expected: {line}"));
                    assert!(line.starts_with(command), "{line}: expected {command}");
                    let said = if command.contains(" run ") { terminal.serve(line) } else { terminal.run(line, part) };
                    assert!(said.contains(part), "{line}\nshould show {part} and says:\n{said}");
                    if *is_shown {
                        shown.push((line.split("  #").next().unwrap().to_owned(), said));
                    }
                }
            }
            "dockerfile" => {}
            other => panic!("{GUIDE} has a block of {other}, which nothing checks"),
        }
    }
    assert_eq!(expected.next(), None, "the guide has lost a command");
    terminal.interrupt();
    has_the_picture(&shown);
}

/// The picture is drawn from a run of this test, with `UPDATE_DOCS=1`.
fn has_the_picture(shown: &[(String, String)]) {
    let path = paths::root().join(PICTURE);
    if std::env::var_os(reference::UPDATE).is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, picture(shown)).unwrap();
    }
    let drawn = fs::read_to_string(&path).unwrap_or_default();
    for (command, _) in shown {
        let line = escaped(&cut(&format!("$ {command}")));
        assert!(drawn.contains(&line), "{PICTURE} does not show `{line}`: run the test with {}=1", reference::UPDATE);
    }
}

/// As wide as the picture.
const COLUMNS: usize = 118;

fn cut(line: &str) -> String {
    if line.chars().count() <= COLUMNS {
        return line.to_owned();
    }
    line.chars().take(COLUMNS - 1).chain(['…']).collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Commands and their output, as a terminal shows them.
fn picture(shown: &[(String, String)]) -> String {
    const LINE: usize = 17;
    let mut lines = Vec::new();
    for (command, said) in shown {
        lines.push(("command", format!("$ {command}")));
        // A log line begins with its time, without the day here. The limit of open files is that of the machine which draws this.
        let said = said.lines().filter(|line| !line.is_empty() && !line.contains("the limit of open files"));
        let said = said.map(|line| if line.starts_with("20") { &line[11..] } else { line });
        lines.extend(said.map(|line| ("output", line.to_owned())));
    }
    let height = (lines.len() + 2) * LINE;
    let mut drawn = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 900 {height}\" width=\"900\" height=\"{height}\" \
         role=\"img\" aria-label=\"A terminal: the commands of docs/your-app.md and their output\">\n\
         <style>text {{ font: 12px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace; white-space: pre }} \
         .command {{ fill: #7ee787 }} .output {{ fill: #d0d7de }}</style>\n\
         <rect width=\"900\" height=\"{height}\" rx=\"8\" fill=\"#0d1117\"/>\n"
    );
    for (number, (class, line)) in lines.iter().enumerate() {
        let y = (number + 2) * LINE - 4;
        let text = escaped(&cut(line.trim_end()));
        drawn.push_str(&format!("<text class=\"{class}\" x=\"16\" y=\"{y}\">{text}</text>\n"));
    }
    drawn + "</svg>\n"
}

/// The additions that the guide shows are those of the example.
#[test]
fn the_guide_s_lines_for_an_image_are_those_of_the_examples() {
    let dockerfile = file("node/Dockerfile");
    let (_, lines) = blocks(&guide()).into_iter().find(|(language, _)| language == "dockerfile").unwrap();
    let lines: Vec<&str> = lines.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines.len(), 5);
    for line in lines {
        let part = line.strip_prefix("ENV ").unwrap_or(line);
        assert!(dockerfile.contains(part), "examples/node/Dockerfile has no {part}");
    }
}

/// Without the comments, and with the further route, the file of an example is that of the guide.
#[test]
fn the_guide_s_file_is_that_of_the_examples() {
    let (_, shown) = blocks(&guide()).into_iter().find(|(language, _)| language == "toml").unwrap();
    let example: toml::Table = file("node/outrigger.toml").parse().unwrap();
    let shown: toml::Table = shown.parse().unwrap();
    assert_eq!(shown["health"], example["health"]);
    assert_eq!(shown["rate_limits"], example["rate_limits"]);
    assert_eq!(shown["routes"][0], example["routes"][0]);
}
