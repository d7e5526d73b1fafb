//! Tables in the documentation that are generated from the programs.

use std::collections::BTreeMap;
use std::fs;

use crate::{Error, Result, error::While, paths};

/// If set, tables are rewritten instead of compared.
pub const UPDATE: &str = "UPDATE_DOCS";

/// Compares the part of `file` (a path in the repository) between `<!-- NAME -->` and `<!-- end of NAME -->` with
/// tables of these metrics: one line each, with area, name, type, unit, labels, help and when to look at it, separated by
/// tabs. Writes them if [`UPDATE`] is set.
pub fn metrics(file: &str, name: &str, lines: &str) -> Result<()> {
    let path = paths::root().join(file);
    let text = fs::read_to_string(&path).while_(format_args!("reading {file}"))?;
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let (before, rest) =
        text.split_once(&begin).ok_or_else(|| Error::new(format_args!("{file} has no line {begin:?}")))?;
    let (found, after) = rest.split_once(&end).ok_or_else(|| Error::new(format_args!("{file} has no line {end:?}")))?;
    let table = tables(lines);
    if found == table {
        return Ok(());
    }
    if std::env::var_os(UPDATE).is_some() {
        return fs::write(&path, [before, &begin, &table, &end, after].concat()).while_(format_args!("writing {file}"));
    }
    Err(Error::new(format_args!("{file} does not have the {name} as they are"))
        .hint(format_args!("run the tests once with {UPDATE}=1, and look at what changed in {file}")))
}

/// A table for each area, in alphabetical order, and so are its rows.
fn tables(lines: &str) -> String {
    let mut areas: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for line in lines.lines() {
        let (area, rest) = line.split_once('\t').unwrap_or(("", line));
        let mut columns = rest.split('\t').map(|column| column.replace('|', "\\|"));
        let mut next = || columns.next().unwrap_or_default();
        let (name, kind, unit, labels, help, when) = (next(), next(), next(), next(), next(), next());
        let row = format!("| `{name}` | {kind} | {unit} | {labels} | {help} | {when} |\n");
        areas.entry(area).or_default().push(row);
    }
    let tables = areas.into_iter().map(|(area, mut rows)| {
        rows.sort();
        format!("### {area}\n\n{HEADER}{}\n", rows.concat())
    });
    ["\n".to_owned()].into_iter().chain(tables).collect()
}

const HEADER: &str =
    "| metric | type | unit | labels and their values | meaning | when to look at it |\n|---|---|---|---|---|---|\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_in_order_and_leave_no_column_out() {
        let lines = "Later\tz\tgauge\t\t\tNow.\tAlways.\n\
                     Area\tb_total\tcounter\t\t`route`: a name\tAll of it | or not.\tIt rises.\n\
                     Area\ta_seconds\tgauge\tseconds\t\tNow.\tIt falls.\n";
        let expected = "\n### Area\n\n| metric | type | unit | labels and their values | meaning | when to look at it |\n\
                        |---|---|---|---|---|---|\n| `a_seconds` | gauge | seconds |  | Now. | It falls. |\n\
                        | `b_total` | counter |  | `route`: a name | All of it \\| or not. | It rises. |\n\n\
                        ### Later\n\n| metric | type | unit | labels and their values | meaning | when to look at it |\n\
                        |---|---|---|---|---|---|\n| `z` | gauge |  |  | Now. | Always. |\n\n";
        assert_eq!(tables(lines), expected);
    }

    #[test]
    fn a_table_that_differs_from_the_document_is_an_error() {
        if std::env::var_os(UPDATE).is_none() {
            let error = metrics("docs/metrics.md", "proxy metrics", "Area\ta\tgauge\t\t\tNow.\tAlways.\n").unwrap_err();
            assert!(error.to_string().contains("docs/metrics.md"), "{error}");
        }
    }
}
