//! The configuration: any file, and values of their own form.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use outrigger_identity::signing;
use outrigger_policy::flags::{Network, Switch};
use outrigger_rules::diff::{Side, diff};
use outrigger_rules::inputs::Trust;
use outrigger_rules::load::Loaded;
use outrigger_rules::sections::pages::{PageValues, Template};
use outrigger_rules::units::{
    AppAddress, AutoSpan, CallWindow, FieldName, JwksUrl, MetricsUrl, OptionalRate, Share, Size, Span,
};
use outrigger_trail::follow::Position;
use outrigger_trail::keys::{MasterKeys, PseudonymKey, PublicKeys};
use outrigger_trail::store::address::Address;
use outrigger_wire::authority;

/// Any text is a configuration, or has problems with a place in it, each said in one line. A configuration reads back as it is shown.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let loaded = match load(text) {
        Ok(loaded) => loaded,
        Err(e) => {
            assert!(e.errors() > 0, "refused without an error");
            for problem in &e.problems {
                assert!(!problem.message.is_empty() && !problem.hint.is_empty());
                if let Some(span) = problem.place.span() {
                    assert!(span.start <= span.end && span.end <= text.len(), "{problem:?} in {} bytes", text.len());
                }
            }
            for finding in e.findings() {
                let line = finding.line.unwrap_or(1);
                assert!(line >= 1 && line <= text.split('\n').count() + 1, "line {line}");
            }
            let shown = e.to_string();
            assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
            return;
        }
    };
    let effective = loaded.config.effective.as_deref().expect("it was loaded");
    let side = Side::of(&loaded.config);
    assert!(diff(&side, &side, &BTreeSet::new(), &|_| None).is_empty(), "it differs from itself");
    let shown = effective.to_toml(true);
    if shown.contains("***") {
        return;
    }
    let again = load(&shown).unwrap_or_else(|e| panic!("{e}\n{shown}"));
    let again = again.config.effective.as_deref().expect("it was loaded").values();
    assert_eq!(again, effective.values(), "{shown}");
}

/// A stranger's, so that no file is read.
fn load(text: &str) -> Result<Loaded, outrigger_rules::error::ConfigError> {
    Loaded::of_text(Path::new("proxy.toml"), text.to_owned(), &|_| None, Trust::Stranger)
}

/// A value that is accepted is accepted again as it is displayed, with the same meaning.
pub fn config_values(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    reads_back::<Span>(text);
    reads_back::<Size>(text);
    reads_back::<Share>(text);
    reads_back::<OptionalRate>(text);
    reads_back::<AppAddress>(text);
    reads_back::<AutoSpan>(text);
    reads_back::<CallWindow>(text);
    reads_back::<MetricsUrl>(text);
    reads_back::<FieldName>(text);
    reads_back::<JwksUrl>(text);
    reads_back::<Switch>(text);
    reads_back::<Network>(text);
    reads_back::<Position>(text);
    if let Ok(network) = text.parse::<Network>() {
        let (first, last) = network.range();
        assert!(network.contains(first) && network.contains(last) && first <= last);
        let is_all = |address: IpAddr| address.is_unspecified();
        assert!(!network.contains("198.51.100.1".parse().expect("an address")) || first.is_ipv4() || is_all(first));
    }
    let _ = (authority::is_host(text), Address::parse(text));
    let _ = (signing::Keys::parse(text), MasterKeys::parse(text), PseudonymKey::parse(text), PublicKeys::parse(text));
    template(text);
}

fn reads_back<T: std::str::FromStr + std::fmt::Display>(text: &str) {
    let Ok(value) = text.parse::<T>() else { return };
    let shown = value.to_string();
    let Ok(again) = shown.parse::<T>() else { panic!("{text:?} is shown as {shown:?}, which is not accepted") };
    assert_eq!(again.to_string(), shown, "{text:?}");
}

/// No value of a request becomes markup.
fn template(text: &str) {
    let Ok(template) = Template::parse(text) else { return };
    let values = |mark: &'static str| PageValues {
        status: 503,
        title: mark,
        detail: mark,
        request_id: mark,
        retry_after: Some(7),
    };
    let (plain, hostile) = (template.page(&values("x")), template.page(&values("<script>\"'&")));
    for mark in ['<', '>', '"', '\''] {
        assert_eq!(plain.matches(mark).count(), hostile.matches(mark).count(), "{hostile:?}");
    }
}
