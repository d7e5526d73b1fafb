//! Evidence: the rule that decided about a request, and the numbers that it compared, for receipts and the audit log.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

/// The most numbers of one rule.
const MOST: usize = 8;

/// The rule that decided about a request, and the numbers that it compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    section: &'static str,
    name: Option<Arc<str>>,
    key: Option<&'static str>,
    numbers: [(&'static str, f64); MOST],
    len: u8,
    /// The version of the configuration that decided.
    pub config_version: u64,
}

impl Evidence {
    /// A rule of a section of the configuration, without numbers.
    pub const fn of(section: &'static str, config_version: u64) -> Self {
        Self { section, name: None, key: None, numbers: [("", 0.0); MOST], len: 0, config_version }
    }

    /// The name of the item in its section, such as a route or a rate limit.
    #[must_use]
    pub fn named(mut self, name: &Arc<str>) -> Self {
        self.name = Some(Arc::clone(name));
        self
    }

    /// The key in its section.
    #[must_use]
    pub const fn key(mut self, key: &'static str) -> Self {
        self.key = Some(key);
        self
    }

    /// Adds a number. Its name ends with its unit, unless it is a count.
    #[must_use]
    pub fn with(mut self, name: &'static str, number: f64) -> Self {
        if let Some(place) = self.numbers.get_mut(usize::from(self.len)) {
            *place = (name, number);
            self.len += 1;
        }
        self
    }

    /// Adds a count.
    #[must_use]
    pub fn count(self, name: &'static str, count: usize) -> Self {
        self.with(name, count as f64)
    }

    /// Adds a time in milliseconds. Its name ends with `_ms`.
    #[must_use]
    pub fn time(self, name: &'static str, time: Duration) -> Self {
        self.with(name, (time.as_secs_f64() * 1e6).round() / 1e3)
    }

    /// The name of the rule in the configuration, such as `rate_limits.search` or `client.max_head`.
    pub fn rule(&self) -> String {
        let parts = [Some(self.section), self.name.as_deref(), self.key];
        parts.into_iter().flatten().collect::<Vec<_>>().join(".")
    }

    /// The numbers.
    pub fn numbers(&self) -> &[(&'static str, f64)] {
        &self.numbers[..usize::from(self.len)]
    }

    /// The numbers as JSON: counts without a fraction.
    pub fn shown_numbers(&self) -> Map<String, Value> {
        self.numbers().iter().map(|(name, number)| ((*name).to_owned(), shown(*number))).collect()
    }

    /// Rule, numbers and version, as in the audit log.
    pub fn shown(&self) -> Map<String, Value> {
        let members = [
            ("rule", self.rule().into()),
            ("numbers", self.shown_numbers().into()),
            ("config_version", self.config_version.into()),
        ];
        members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

fn shown(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() < 1e15 { (number as i64).into() } else { number.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_named_as_in_the_file() {
        assert_eq!(Evidence::of("client", 1).key("max_head").rule(), "client.max_head");
        let limit = Evidence::of("rate_limits", 3)
            .named(&"search".into())
            .count("used", 10)
            .time("wait_ms", Duration::from_micros(1_500));
        assert_eq!(limit.rule(), "rate_limits.search");
        assert_eq!(
            Value::from(limit.shown()).to_string(),
            r#"{"config_version":3,"numbers":{"used":10,"wait_ms":1.5},"rule":"rate_limits.search"}"#
        );
    }

    #[test]
    fn there_is_a_bound_for_numbers() {
        let many = (0..20).fold(Evidence::of("a", 1), |evidence, n| evidence.count("n", n));
        assert_eq!(many.numbers().len(), MOST);
    }
}
