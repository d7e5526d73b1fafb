//! Merges Prometheus expositions into one that is valid: no family twice, and a label tells the processes apart.
//! Pure: text in, text out.

use std::collections::HashMap;
use std::fmt::Write;

/// One family: its help, its type, and its samples.
#[derive(Debug, Default)]
struct Family {
    help: Option<String>,
    kind: Option<String>,
    samples: Vec<String>,
}

/// Merges `(process, exposition)` pairs. A family that several processes have appears once, with the first one's help.
/// What is no sample, and families whose type differs from the first one's, are left out.
pub fn merge(parts: &[(&str, &str)]) -> String {
    let mut order: Vec<String> = Vec::new();
    let mut families: HashMap<String, Family> = HashMap::new();
    for (process, text) in parts {
        let mut current = String::new();
        let mut skipped = String::new();
        for line in text.lines().map(str::trim) {
            if let Some((keyword, name, rest)) = comment(line) {
                let family = family(&mut families, &mut order, name);
                match keyword {
                    "HELP" => drop(family.help.get_or_insert_with(|| rest.to_owned())),
                    _ if family.kind.as_deref().is_some_and(|kind| kind != rest) => skipped = name.to_owned(),
                    _ => family.kind = Some(rest.to_owned()),
                }
                current = name.to_owned();
            } else if let Some(sample) = sample(line, process) {
                let name = sample_name(line);
                let owner = if belongs_to(name, &current) { &current } else { name };
                if owner != skipped {
                    let owner = owner.to_owned();
                    family(&mut families, &mut order, &owner).samples.push(sample);
                }
            }
        }
    }
    let mut out = String::with_capacity(parts.iter().map(|(_, text)| text.len() * 5 / 4).sum());
    for name in &order {
        let Some(family) = families.get(name).filter(|family| !family.samples.is_empty()) else { continue };
        // Writing into a string cannot fail.
        let _ = writeln!(out, "# HELP {name} {}", family.help.as_deref().unwrap_or("No help given."));
        let _ = writeln!(out, "# TYPE {name} {}", family.kind.as_deref().unwrap_or("untyped"));
        for sample in &family.samples {
            out.push_str(sample);
            out.push('\n');
        }
    }
    out
}

fn family<'f>(families: &'f mut HashMap<String, Family>, order: &mut Vec<String>, name: &str) -> &'f mut Family {
    if !families.contains_key(name) {
        order.push(name.to_owned());
    }
    families.entry(name.to_owned()).or_default()
}

/// `# HELP name text` or `# TYPE name type`.
fn comment(line: &str) -> Option<(&str, &str, &str)> {
    let rest = line.strip_prefix("# ")?;
    let (keyword, rest) = rest.split_once(' ')?;
    let (name, text) = rest.split_once(' ').unwrap_or((rest, ""));
    (matches!(keyword, "HELP" | "TYPE") && is_name(name)).then_some((keyword, name, text))
}

fn sample_name(line: &str) -> &str {
    &line[..line.find(['{', ' ']).unwrap_or(line.len())]
}

/// A histogram's and a summary's samples carry suffixes.
fn belongs_to(name: &str, family: &str) -> bool {
    name.strip_prefix(family).is_some_and(|suffix| matches!(suffix, "" | "_bucket" | "_sum" | "_count"))
}

/// The sample with `process` as its first label; `None` for what is no sample.
fn sample(line: &str, process: &str) -> Option<String> {
    let name = sample_name(line);
    if !is_name(name) {
        return None;
    }
    let rest = &line[name.len()..];
    let (labels, value) = match rest.strip_prefix('{') {
        Some(inner) => inner.split_at(end_of_labels(inner)?),
        None => ("", rest),
    };
    let value = value.trim_start_matches('}').trim();
    value.split(' ').next()?.parse::<f64>().ok()?;
    let labels = labels.trim().trim_end_matches(',');
    // A label of that name is the app's own: it keeps its value under another name, as Prometheus does on conflicts.
    let labels = match labels.strip_prefix("process=") {
        Some(own) => format!("exported_process={own}"),
        None => labels.replace(",process=", ",exported_process="),
    };
    let comma = if labels.is_empty() { "" } else { "," };
    Some(format!("{name}{{process=\"{process}\"{comma}{labels}}} {value}"))
}

/// Where the closing brace is, outside quotes.
fn end_of_labels(inner: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in inner.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_family_appears_twice_and_a_label_tells_the_process() {
        let proxy = "# HELP process_open_fds Open.\n# TYPE process_open_fds gauge\nprocess_open_fds 7\n\
                     # HELP a_seconds A.\n# TYPE a_seconds histogram\na_seconds_bucket{le=\"+Inf\"} 1\na_seconds_sum 2\na_seconds_count 1\n";
        let app = "# HELP process_open_fds Other words.\n# TYPE process_open_fds gauge\nprocess_open_fds 9\n\
                   # HELP b B.\n# TYPE b counter\nb{path=\"/x}y\",process=\"mine\"} 3 1700000000\n";
        insta::assert_snapshot!(merge(&[("proxy", proxy), ("app", app)]), @r#"
        # HELP process_open_fds Open.
        # TYPE process_open_fds gauge
        process_open_fds{process="proxy"} 7
        process_open_fds{process="app"} 9
        # HELP a_seconds A.
        # TYPE a_seconds histogram
        a_seconds_bucket{process="proxy",le="+Inf"} 1
        a_seconds_sum{process="proxy"} 2
        a_seconds_count{process="proxy"} 1
        # HELP b B.
        # TYPE b counter
        b{process="app",path="/x}y",exported_process="mine"} 3 1700000000
        "#);
    }

    #[test]
    fn what_is_no_sample_is_left_out() {
        let merged =
            merge(&[("proxy", "# TYPE a counter\na 1\n"), ("app", "<html>\na b c\n1x 2\nb{x=\"1\" 2\nc{} NaN\n")]);
        assert_eq!(
            merged,
            "# HELP a No help given.\n# TYPE a counter\na{process=\"proxy\"} 1\n# HELP c No help given.\n# TYPE c untyped\nc{process=\"app\"} NaN\n"
        );
    }

    #[test]
    fn a_family_of_another_type_does_not_spoil_the_first() {
        let merged = merge(&[("proxy", "# TYPE a counter\na 1\n"), ("app", "# TYPE a gauge\na 2\n")]);
        assert_eq!(merged, "# HELP a No help given.\n# TYPE a counter\na{process=\"proxy\"} 1\n");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(# TYPE |# HELP |a|\\{|\\}|\"|=|,| |1|\n){0,60}") {
            let _ = merge(&[("proxy", &text), ("app", &text)]);
        }
    }
}
