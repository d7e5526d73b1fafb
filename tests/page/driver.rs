//! A browser, driven through WebDriver's protocol (W3C) by hand.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};
use xtask::{Process, Program, Tool, ports};

use crate::harness::{fresh_dir, until};

/// A command may have to wait for a browser whose processor is taken away.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one window.
pub struct Browser {
    _driver: Process,
    address: SocketAddr,
    session: String,
}

impl Browser {
    pub fn start(width: u32, height: u32) -> Self {
        let dir = fresh_dir();
        let port = ports::free().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let driver = Program::new(Tool::Chromedriver.get().unwrap())
            .arg(format!("--port={port}"))
            .start("chromedriver", &dir.join("driver.log"))
            .unwrap();
        until("the driver to listen", || ask(address, "GET", "/status", "").is_ok_and(|(status, _)| status == 200));
        let profile = format!("--user-data-dir={}", dir.join("profile").display());
        let args = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            &profile,
        ];
        let binary = Tool::Chromium.get().unwrap();
        let options = json!({ "args": args, "binary": binary });
        let wanted = json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": options } } });
        let mut browser = Self { _driver: driver, address, session: String::new() };
        let made = browser.send("POST", "/session", &wanted);
        browser.session = made["sessionId"].as_str().unwrap_or_else(|| panic!("no session: {made}")).to_owned();
        browser.post("/window/rect", &json!({ "width": width, "height": height }));
        browser
    }

    fn send(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let (status, answer) = ask(self.address, method, path, &body).unwrap();
        let value: Value = serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{e}: {answer:?}"));
        assert_eq!(status, 200, "{method} {path}: {value}");
        value["value"].clone()
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        self.send("POST", &format!("/session/{}{path}", self.session), body)
    }

    pub fn open(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    /// The value of a script's `return`.
    pub fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// The result that a script gives to `arguments[0]`.
    pub fn run_async(&self, script: &str) -> Value {
        self.post("/execute/async", &json!({ "script": script, "args": [] }))
    }

    /// A command of Chrome's own protocol.
    pub fn chrome(&self, command: &str, params: &Value) {
        self.post("/goog/cdp/execute", &json!({ "cmd": command, "params": params }));
    }

    /// Presses one key. Special keys are characters of Unicode's private use area.
    pub fn press(&self, key: char) {
        let actions = json!([{ "type": "keyDown", "value": key }, { "type": "keyUp", "value": key }]);
        self.post("/actions", &json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": actions }] }));
    }

    /// Waits until the page shows this text.
    pub fn shows(&self, text: &str) {
        let script = format!("return document.body.innerText.includes({})", json!(text));
        until(&format!("the page to show {text:?}"), || self.run(&script) == true);
    }

    /// Saves a picture of the whole page.
    pub fn picture(&self, file: &Path) -> PathBuf {
        let value = self.send("GET", &format!("/session/{}/screenshot", self.session), &Value::Null);
        let png = decoded(value.as_str().unwrap());
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, png).unwrap();
        file.to_owned()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends the browser with the driver's session.
        let path = format!("/session/{}", self.session);
        let _ = ask(self.address, "DELETE", &path, "");
    }
}

/// One request to the driver, which keeps the connection open in any case. Returns status and body.
fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut reader = BufReader::new(stream);
    let (mut line, mut status, mut length) = (String::new(), 0, 0);
    while reader.read_line(&mut line)? > 0 && line != "\r\n" {
        if status == 0 {
            status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        }
        let (name, value) = line.split_once(':').unwrap_or_default();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap_or(0);
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// Base64, as WebDriver writes pictures.
fn decoded(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'=').map(digit).collect();
    let groups = digits.chunks(4).flat_map(|group| {
        let bits = group.iter().fold(0_u32, |bits, digit| bits << 6 | u32::from(*digit)) << (6 * (4 - group.len()));
        bits.to_be_bytes()[1..group.len()].to_vec()
    });
    groups.collect()
}
