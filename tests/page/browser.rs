//! The page in a real browser.

use std::fs;

use serde_json::{Value, json};
use xtask::{Tool, paths};

use super::driver::Browser;
use crate::{
    backend::Backend,
    harness::{Client, Proxy, get, until},
};

const TAB: char = '\u{e004}';
const ENTER: char = '\u{e007}';

/// Presses Tab until the element with this id has the focus, then Enter.
pub fn press_button(browser: &Browser, id: &str) {
    browser.run("document.activeElement.blur(); window.getSelection().removeAllRanges(); document.getElementById('main').focus()");
    let has_focus = format!("return document.activeElement.id === {}", json!(id));
    let found = (0..200).any(|_| {
        browser.press(TAB);
        browser.run(&has_focus) == true
    });
    assert!(found, "{id} cannot be reached with the keyboard");
    let outline = browser.run("return getComputedStyle(document.activeElement).outlineStyle");
    assert_ne!(outline, "none", "the focus is not visible");
    browser.press(ENTER);
}

/// Violations of accessibility that axe-core finds.
fn violations(browser: &Browser) -> Value {
    // Through the debugger, which the page's policy does not concern.
    browser.chrome("Page.setBypassCSP", &json!({ "enabled": true }));
    let axe = fs::read_to_string(Tool::Axe.get().unwrap()).unwrap();
    browser.run(&axe);
    browser.run_async(
        "const done = arguments[0]; axe.run().then((result) => done(result.violations.map((v) => \
         v.id + ': ' + v.nodes.map((n) => n.html.slice(0, 200) + ' ' + n.failureSummary).join(' | '))))",
    )
}

fn scheme(browser: &Browser, scheme: &str) {
    let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
    browser.chrome("Emulation.setEmulatedMedia", &json!({ "features": features }));
}

fn size(browser: &Browser, width: u32, height: u32) {
    let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
    browser.chrome("Emulation.setDeviceMetricsOverride", &metrics);
}

/// More requests than the app can take are a headline.
fn overload(browser: &Browser, app: &Backend, proxy: &Proxy) {
    let held = app.gate("/search");
    let clients: Vec<Client> = (0..60)
        .map(|_| {
            let mut client = proxy.connect();
            client.send(get("/search"));
            client
        })
        .collect();
    browser.shows("requests wait for one of");
    held.add_permits(clients.len());
    drop(clients);
}

#[test]
fn the_page_is_live_and_needs_no_mouse() {
    let app = Backend::start();
    let rules = "[[routes]]\nname = \"search\"\npath = \"/search\"\npriority = \"low\"\n\
                 [[routes]]\nname = \"login\"\npath = \"/login\"\npriority = \"high\"\n";
    let proxy = Proxy::with(&app, rules);
    for path in ["/search", "/login", "/"] {
        proxy.ask(&get(path));
    }
    let browser = Browser::start(1280, 1700);
    size(&browser, 1280, 1700);
    browser.open(&format!("http://{}/", proxy.admin));
    browser.shows("All is well");
    browser.shows("live, ");
    browser.run("window.sameLoad = true");
    overload(&browser, &app, &proxy);
    // Changes are shown without a reload.
    let post = |path: &str, body: &str| {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        assert!(Client::connect(proxy.admin).unwrap().send(request).answer().status < 300);
    };
    post("/breakers/search", "{\"force\":\"open\"}");
    browser.shows("Breaker \"search\" is open");
    post("/breakers/login", "{\"force\":\"closed\"}");
    post("/bans", "{\"client\":\"address:192.0.2.7\"}");
    browser.shows("address:192.0.2.7");
    fs::write(&proxy.file, format!("{}\napp.hold = \"30\"\n", proxy_text(&proxy))).unwrap();
    browser.shows("The last reload was refused");
    assert_eq!(browser.run("return window.sameLoad === true"), true, "it did not reload");
    // Pictures, and accessibility.
    let pictures = paths::root().join("target/page");
    for theme in ["light", "dark"] {
        scheme(&browser, theme);
        browser.picture(&pictures.join(format!("{theme}.png")));
    }
    size(&browser, 400, 1400);
    let is_wide = browser.run("return document.documentElement.scrollWidth > 400");
    assert_eq!(is_wide, false, "it scrolls sideways at 400 px");
    browser.picture(&pictures.join("narrow.png"));
    size(&browser, 1280, 1700);
    keyboard(&browser, &proxy);
    only_this_host(&browser, &proxy);
    for theme in ["light", "dark"] {
        scheme(&browser, theme);
        let found = violations(&browser);
        assert_eq!(found, json!([]), "{theme}");
    }
}

fn proxy_text(proxy: &Proxy) -> String {
    fs::read_to_string(&proxy.file).unwrap()
}

/// All that an operator may do works by keyboard alone.
fn keyboard(browser: &Browser, proxy: &Proxy) {
    let is = |name: &str, state: &str, is_forced: bool| {
        let shown = proxy.shows("/breakers")["breakers"].clone();
        let mut breakers = shown.as_array().unwrap().iter();
        // One that was neither used nor forced is not listed.
        breakers
            .find(|breaker| breaker["name"] == name)
            .map_or(!is_forced, |breaker| breaker["state"] == state && breaker["forced"] == is_forced)
    };
    press_button(browser, "b-auto-search");
    until("the breaker to be automatic", || is("search", "closed", false));
    browser.shows("The breaker is set.");
    browser.shows("live, ");
    press_button(browser, "b-open-login");
    until("the breaker to be open", || is("login", "open", true));
    browser.shows("live, ");
    press_button(browser, "b-lift-address:192.0.2.7");
    until("the ban to be lifted", || proxy.shows("/bans")["bans"] == json!([]));
    browser.shows("live, ");
}

/// No request went anywhere else.
fn only_this_host(browser: &Browser, proxy: &Proxy) {
    let names = browser.run("return performance.getEntriesByType('resource').map((entry) => entry.name)");
    let own = format!("http://{}/", proxy.admin);
    let names = names.as_array().unwrap();
    assert!(names.len() >= 2 && names.iter().all(|name| name.as_str().unwrap().starts_with(&own)), "{names:?}");
}
