//! Warnings about settings that are valid, but probably not intended.

use crate::complaints::Builder;
use crate::sections::route_table::{unusual_method, unusual_path};
use crate::tree::Step;
use crate::units::{Span, Text};
use crate::written::Raw;

impl Builder<'_> {
    /// Warns of such settings.
    pub fn warn_of_settings(&mut self, raw: &Raw) {
        for (index, route) in raw.routes.iter().enumerate() {
            if let Some(hint) = unusual_path(&route.path) {
                let path = [Step::Key("routes"), Step::Index(index), Step::Key("path")];
                self.warn(&path, format!("`path` {:?} matches only this literal text", route.path), &hint);
            }
            for (number, method) in route.methods.iter().enumerate() {
                if let Some(hint) = unusual_method(method) {
                    let path = [Step::Key("routes"), Step::Index(index), Step::Key("methods"), Step::Index(number)];
                    self.warn(&path, format!("{method:?} is no method that is in use"), &hint);
                }
            }
        }
        for (index, network) in raw.abuse.allow.iter().enumerate() {
            if network.0.to_string().ends_with("/0") {
                let path = [Step::Key("abuse"), Step::Key("allow"), Step::Index(index)];
                self.warn(&path, "no client is ever banned", "name the networks of your own clients");
            }
        }
        let app = &raw.app;
        self.warn_if_longer(["app", "connect_timeout"], &app.connect_timeout, ("app.timeout", &app.timeout));
        self.warn_if_longer(["admission", "max_wait"], &raw.admission.max_wait, ("app.timeout", &app.timeout));
        let (retry, run) = (&raw.retry, &raw.run);
        self.warn_if_longer(["retry", "backoff"], &retry.backoff, ("retry.max_backoff", &retry.max_backoff));
        self.warn_if_longer(["run", "backoff"], &run.backoff, ("run.max_backoff", &run.max_backoff));
        let affinity = &raw.affinity;
        self.warn_if_longer(["affinity", "idle"], &affinity.idle, ("affinity.max_life", &affinity.max_life));
    }

    fn warn_if_longer(&mut self, key: [&str; 2], span: &Text<Span>, (bound, most): (&str, &Text<Span>)) {
        if span.0 > most.0 && !most.0.0.is_zero() {
            let message = format!("`{}` ({}) is longer than `{bound}` ({})", key[1], span.0, most.0);
            let hint = format!("it has no effect beyond `{bound}`: write \"{}\" or less", most.0);
            self.warn(&key.map(Step::Key), message, &hint);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::Config;

    #[test]
    fn suspicious_settings_are_warnings_with_a_place_and_a_hint() {
        for (source, place, message) in [
            (
                "[[routes]]\nname = \"a\"\nmethods = [\"GET\", \"POSTT\"]\n",
                "3:19",
                "\"POSTT\" is no method that is in use",
            ),
            ("[[routes]]\nname = \"a\"\npath = \"/a/$id\"\n", "3:8", "matches only this literal text"),
            ("[abuse]\nallow = [\"::/0\"]\n", "2:10", "no client is ever banned"),
            ("[app]\nconnect_timeout = \"2m\"\n", "2:19", "is longer than `app.timeout`"),
            ("[admission]\nmax_wait = \"2m\"\n", "2:12", "is longer than `app.timeout`"),
            ("[retry]\nbackoff = \"1s\"\n", "2:11", "is longer than `retry.max_backoff`"),
            ("[affinity]\nidle = \"2d\"\n", "2:8", "is longer than `affinity.max_life`"),
        ] {
            let warnings = Config::parse(Path::new("proxy.toml"), source, &|_| None).unwrap().warnings;
            let [warning] = &warnings[..] else { panic!("{source}: {warnings:?}") };
            assert!(warning.message.contains(message) && warning.text.contains(place), "{source}: {warning}");
            assert!(!warning.hint.is_empty());
        }
    }
}
