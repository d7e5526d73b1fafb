//! Tables in the documentation that are generated from the programs.

use std::fs;

use crate::{Error, Result, error::While, paths};

/// If set, tables are rewritten instead of compared.
pub const UPDATE: &str = "UPDATE_DOCS";

/// Compares the part of `file` (a path in the repository) between `<!-- NAME -->` and `<!-- end of NAME -->` with a
/// table of these metrics: one line each, with name, type, labels and help separated by tabs. Writes it if [`UPDATE`]
/// is set.
pub fn metrics(file: &str, name: &str, lines: &str) -> Result<()> {
    let path = paths::root().join(file);
    let text = fs::read_to_string(&path).while_(format_args!("reading {file}"))?;
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let (before, rest) =
        text.split_once(&begin).ok_or_else(|| Error::new(format_args!("{file} has no line {begin:?}")))?;
    let (found, after) = rest.split_once(&end).ok_or_else(|| Error::new(format_args!("{file} has no line {end:?}")))?;
    let table = table(lines);
    if found == table {
        return Ok(());
    }
    if std::env::var_os(UPDATE).is_some() {
        return fs::write(&path, [before, &begin, &table, &end, after].concat()).while_(format_args!("writing {file}"));
    }
    Err(Error::new(format_args!("{file} does not have the {name} as they are"))
        .hint(format_args!("run the tests once with {UPDATE}=1, and look at what changed in {file}")))
}

fn table(lines: &str) -> String {
    let mut rows: Vec<String> = lines
        .lines()
        .map(|line| {
            let mut columns = line.split('\t').map(|column| column.replace('|', "\\|"));
            let mut next = || columns.next().unwrap_or_default();
            let (name, kind, labels, help) = (next(), next(), next(), next());
            let labels = labels.split(", ").filter(|label| !label.is_empty()).map(|label| format!("`{label}`"));
            format!("| `{name}` | {kind} | {} | {help} |\n", labels.collect::<Vec<_>>().join(", "))
        })
        .collect();
    rows.sort();
    format!("| metric | type | labels | meaning |\n|---|---|---|---|\n{}", rows.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_in_order_and_leaves_no_column_out() {
        let lines = "b_total\tcounter\troute, outcome\tAll of it | or not.\na\tgauge\t\tNow.\n";
        let expected = "| metric | type | labels | meaning |\n|---|---|---|---|\n| `a` | gauge |  | Now. |\n\
                        | `b_total` | counter | `route`, `outcome` | All of it \\| or not. |\n";
        assert_eq!(table(lines), expected);
    }

    #[test]
    fn a_table_that_differs_from_the_document_is_an_error() {
        if std::env::var_os(UPDATE).is_none() {
            let error = metrics("docs/metrics.md", "proxy metrics", "a\tgauge\t\tNow.\n").unwrap_err();
            assert!(error.to_string().contains("docs/metrics.md"), "{error}");
        }
    }
}
