//! Keys and tables that a file has twice.

use std::ops::Range;

use super::Names;
use super::line::{Mistake, header, split_key};

/// Reports the second one, and where the first one is.
pub(super) fn diagnose(lines: &[String], line: usize, columns: Range<usize>, names: &Names) -> Mistake {
    let text = lines[line].as_str();
    match header(text) {
        Some(table) => table_twice(lines, line, columns, table, names),
        None => key_twice(lines, line, columns),
    }
}

fn table_twice(lines: &[String], line: usize, columns: Range<usize>, table: &str, names: &Names) -> Mistake {
    let first = lines[..line].iter().position(|text| header(text) == Some(table));
    if names.lists.iter().any(|list| list == table) {
        let message = format!("[{table}] is not the only one of its kind, so its brackets are double");
        let fixed = lines[line].replacen('[', "[[", 1).replacen(']', "]]", 1);
        return Mistake { columns, message, hint: format!("write [[{table}]], for each of them"), fixed: Some(fixed) };
    }
    let keys = || {
        let prefix = format!("{table}.");
        lines[..line].iter().position(|text| header(text).is_none() && text.trim_start().starts_with(&prefix))
    };
    let place = first.or_else(keys).map_or_else(|| "above".to_owned(), |first| format!("in line {}", first + 1));
    Mistake {
        columns,
        message: format!("the table [{table}] is defined twice; the first time {place}"),
        hint: format!("move its keys to the first one, {place}, and remove this one"),
        // The parser adds its keys to the first one.
        fixed: Some(lines[line].clone()),
    }
}

fn key_twice(lines: &[String], line: usize, columns: Range<usize>) -> Mistake {
    let key = lines[line].get(columns.clone()).unwrap_or_default().trim_matches('"').to_owned();
    let own = |text: &str| split_key(text.trim_start()).map(|(key, _)| key.trim_matches('"').to_owned());
    let whole = own(&lines[line]);
    let above = lines[..line].iter().enumerate().rev().take_while(|(_, text)| header(text).is_none());
    let first = above.filter(|(_, text)| own(text).is_some() && own(text) == whole).map(|(at, _)| at).last();
    let place = match first {
        Some(first) => format!("in line {}", first + 1),
        None if whole.as_deref() == Some(&key) => "above".to_owned(),
        None => "in the same line or above".to_owned(),
    };
    Mistake {
        columns,
        message: format!("the key `{key}` is set twice; the first time {place}"),
        hint: format!("remove one of the two; a list has several values: {key} = [\"…\", \"…\"]"),
        fixed: Some(String::new()),
    }
}
