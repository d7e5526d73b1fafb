//! Settings as TOML, with the origin of each value as a comment.

use serde_json::Value as Json;

use super::Setting;

/// A table as it is written.
#[derive(Debug, Default)]
pub struct Shown {
    values: Vec<(String, Setting)>,
    tables: Vec<(String, Shown)>,
    lists: Vec<(String, Vec<(usize, Shown)>)>,
}

impl Shown {
    /// The table of this name.
    pub fn table(&mut self, key: &str) -> &mut Self {
        let index = self.tables.iter().position(|(name, _)| name == key).unwrap_or_else(|| {
            self.tables.push((key.to_owned(), Self::default()));
            self.tables.len() - 1
        });
        &mut self.tables[index].1
    }

    fn element(&mut self, key: &str, number: usize) -> &mut Self {
        let index = self.lists.iter().position(|(name, _)| name == key).unwrap_or_else(|| {
            self.lists.push((key.to_owned(), Vec::new()));
            self.lists.len() - 1
        });
        let items = &mut self.lists[index].1;
        if items.last().is_none_or(|(last, _)| *last != number) {
            items.push((number, Self::default()));
        }
        let last = items.len() - 1;
        &mut items[last].1
    }

    /// Adds a value.
    pub fn add(&mut self, path: &[Json], setting: &Setting) {
        match path {
            [Json::String(key)] => self.values.push((key.clone(), setting.clone())),
            [Json::String(key), Json::Number(number), rest @ ..] => {
                let number = number.as_u64().and_then(|number| usize::try_from(number).ok()).unwrap_or(usize::MAX);
                self.element(key, number).add(rest, setting);
            }
            [Json::String(key), rest @ ..] => self.table(key).add(rest, setting),
            _ => {}
        }
    }

    fn has_hidden(&self) -> bool {
        self.values.iter().any(|(_, setting)| setting.hidden)
            || self.tables.iter().any(|(_, table)| table.has_hidden())
            || self.lists.iter().any(|(_, items)| items.iter().any(|(_, item)| item.has_hidden()))
    }

    /// Writes the table, whose name is `header`.
    pub fn write(&self, header: &mut Vec<String>, text: &mut String) {
        for (key, setting) in &self.values {
            // It could not be read again.
            let comment = if setting.hidden { "# " } else { "" };
            text.push_str(&format!("{comment}{} = {}  # {}\n", toml_key(key), toml(&setting.value), setting.origin));
        }
        for (key, table) in &self.tables {
            header.push(toml_key(key));
            if !table.values.is_empty() || (table.tables.is_empty() && table.lists.is_empty()) {
                text.push_str(&format!("\n[{}]\n", header.join(".")));
            }
            table.write(header, text);
            header.pop();
        }
        for (key, items) in &self.lists {
            header.push(toml_key(key));
            for (_, item) in items {
                let mut inner = format!("\n[[{}]]\n", header.join("."));
                item.write(header, &mut inner);
                if item.has_hidden() {
                    // Without the hidden value it may be wrong.
                    let comment = |line: &str| match line {
                        "" => "\n".to_owned(),
                        line if line.starts_with('#') => format!("{line}\n"),
                        line => format!("# {line}\n"),
                    };
                    inner = inner.lines().map(comment).collect();
                }
                text.push_str(&inner);
            }
            header.pop();
        }
    }
}

fn toml_key(key: &str) -> String {
    let is_bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if is_bare { key.to_owned() } else { toml_text(key) }
}

/// A value as TOML; `${` becomes `$${`, so that it is read as text again.
fn toml(value: &Json) -> String {
    match value {
        Json::String(text) => toml_text(&text.replace("${", "$${")),
        Json::Array(items) => format!("[{}]", items.iter().map(toml).collect::<Vec<_>>().join(", ")),
        Json::Object(entries) => {
            let shown = entries.iter().filter(|(_, value)| !value.is_null());
            let shown: Vec<String> = shown.map(|(key, value)| format!("{} = {}", toml_key(key), toml(value))).collect();
            format!("{{ {} }}", shown.join(", "))
        }
        other => other.to_string(),
    }
}

fn toml_text(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}
