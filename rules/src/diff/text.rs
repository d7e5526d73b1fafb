//! The changes for people: the same change of many things is one line.

use std::collections::BTreeMap;
use std::fmt;

use super::{Change, Diff, Item, Kind, ValueChange};

/// Maximum number of names in a line.
const MOST_NAMES: usize = 5;

impl Kind {
    const ALL: [Self; 5] = [Self::Route, Self::Limit, Self::Breaker, Self::Client, Self::Setting];

    const fn title(self) -> &'static str {
        match self {
            Self::Route => "routes",
            Self::Limit => "rate limits",
            Self::Breaker => "circuit breakers",
            Self::Client => "clients",
            Self::Setting => "settings",
        }
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for kind in Kind::ALL {
            let items: Vec<&Item> = self.items.iter().filter(|item| item.kind == kind).collect();
            if items.is_empty() {
                continue;
            }
            writeln!(f, "{}", kind.title())?;
            if kind == Kind::Setting {
                items.iter().try_for_each(|item| write_setting(f, item))?;
            } else {
                items.iter().try_for_each(|item| write_whole(f, item))?;
                write_changed(f, &items)?;
            }
        }
        if !self.losses.is_empty() {
            writeln!(f, "state that is lost")?;
        }
        for loss in &self.losses {
            writeln!(f, "  ! {} {}: {}", loss.of, loss.name, loss.what)?;
        }
        if !self.not_compared.is_empty() {
            writeln!(f, "not compared, because the values are hidden: {}", self.not_compared.join(", "))?;
        }
        if !self.needs_restart.is_empty() {
            writeln!(
                f,
                "in force after a restart: {}; everything else when the file is saved",
                self.needs_restart.join(", ")
            )?;
        }
        Ok(())
    }
}

fn write_setting(f: &mut fmt::Formatter<'_>, item: &Item) -> fmt::Result {
    let sign = sign(item.change);
    let restart = if item.needs_restart { "  (needs a restart)" } else { "" };
    for value in &item.values {
        writeln!(f, "  {sign} {}{restart}", turned(value))?;
    }
    Ok(())
}

fn sign(change: Change) -> char {
    match change {
        Change::Added => '+',
        Change::Removed => '-',
        Change::Moved | Change::Changed => '~',
    }
}

/// `timeout: 30s → 1m`
fn turned(value: &ValueChange) -> String {
    let text = |text: &Option<String>| match text.as_deref() {
        None | Some("") => "none".to_owned(),
        Some(text) => text.to_owned(),
    };
    match (&value.old, &value.new) {
        (None, Some(new)) => format!("{}: {new}", value.key),
        (old, new) => format!("{}: {} → {}", value.key, text(old), text(new)),
    }
}

/// Things that are added, removed or moved.
fn write_whole(f: &mut fmt::Formatter<'_>, item: &Item) -> fmt::Result {
    let sign = sign(item.change);
    match item.change {
        Change::Added => {
            let is_whole = |value: &&ValueChange| !value.key.contains('.');
            let values =
                item.values.iter().filter(is_whole).filter_map(|value| Some((&value.key, value.new.as_ref()?)));
            let values: Vec<String> = values.map(|(key, value)| format!("{key} {value}")).collect();
            writeln!(f, "  {sign} {}: {}", item.name, values.join(", "))
        }
        Change::Removed => writeln!(f, "  {sign} {}", item.name),
        Change::Moved => {
            item.values.iter().try_for_each(|value| writeln!(f, "  {sign} {}: {}", item.name, turned(value)))
        }
        Change::Changed => Ok(()),
    }
}

/// Each change of a value once, with the names of all that have it.
fn write_changed(f: &mut fmt::Formatter<'_>, items: &[&Item]) -> fmt::Result {
    let mut groups: BTreeMap<&ValueChange, Vec<&str>> = BTreeMap::new();
    for item in items.iter().filter(|item| item.change == Change::Changed) {
        // The limits that a route gets or loses are lines of their own.
        let whole = item.values.iter().filter(|value| value.old.is_none() || value.new.is_none());
        let whole: Vec<&str> = whole.map(|value| value.key.as_str()).collect();
        let is_part = |value: &&ValueChange| {
            value.key.split_once('.').is_some_and(|(above, _)| above.starts_with("limit ") && whole.contains(&above))
        };
        for value in item.values.iter().filter(|value| !is_part(value)) {
            groups.entry(value).or_default().push(&item.name);
        }
    }
    for (value, names) in groups {
        let shown = names.iter().take(MOST_NAMES).copied().collect::<Vec<_>>().join(", ");
        let others = names.len().saturating_sub(MOST_NAMES);
        let others = if others == 0 { String::new() } else { format!(" and {others} others") };
        writeln!(f, "  ~ {shown}{others}: {}", turned(value))?;
    }
    Ok(())
}
