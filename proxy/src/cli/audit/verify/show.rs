//! The result of verifying, as text and as JSON.

use std::fmt::Write as _;

use outrigger_policy::audit::Class;
use serde_json::{Value, json};

use super::Looked;
use super::evidence::Evidence;
use crate::cli::audit::text;

pub(super) fn show(looked: &[Looked], is_whole: bool, receipt: Option<Evidence>) -> String {
    let mut rows = Vec::new();
    let mut out = String::new();
    for Looked { at, findings } in looked {
        for found in &findings.classes {
            rows.push(vec![
                (*at).to_owned(),
                findings.chain.clone(),
                found.class.name().to_owned(),
                text::grouped(found.entries),
                found.first.to_string(),
                found.last.to_string(),
                found.vouched.to_string(),
                text::grouped(found.problems),
            ]);
        }
    }
    if !rows.is_empty() {
        let header = ["WHERE", "CHAIN", "CLASS", "ENTRIES", "FIRST", "LAST", "SIGNED TO", "PROBLEMS"];
        out.push_str(&text::table(&header, &rows));
        out.push('\n');
    }
    // Writing to a string cannot fail.
    for Looked { at, findings } in looked {
        for problem in &findings.problems {
            let _ = writeln!(out, "{at}: {}", text::safe(&problem.to_string()));
            let _ = writeln!(out, "    {}", problem.wrong.meaning());
        }
        if findings.unlisted > 0 {
            let _ = writeln!(out, "{at}: {} more problems", text::grouped(findings.unlisted));
        }
    }
    for Looked { at, findings } in looked {
        for note in &findings.notes {
            let _ = writeln!(out, "{at}: note: {}", text::safe(note));
        }
    }
    if let Some(evidence) = receipt {
        let _ = match evidence {
            Evidence::There(at) => {
                writeln!(out, "receipt: signed by a key of the audit log, and its entry is there ({at})")
            }
            Evidence::NotHere => writeln!(
                out,
                "receipt: signed by a key of the audit log; its entry is not here: it is in another spool, or has expired"
            ),
            Evidence::Contradicted => {
                writeln!(out, "receipt: signed by a key of the audit log, but the entry there is a different one")
            }
        };
    }
    let entries = looked.iter().map(|looked| looked.findings.entries()).sum();
    let chains: usize = looked.iter().map(|looked| looked.findings.classes.len()).sum();
    let problems = looked.iter().map(|looked| looked.findings.count()).sum();
    let _ = match (is_whole, problems) {
        (true, _) => writeln!(out, "whole: {} entries in {chains} chains", text::grouped(entries)),
        (false, 0) => writeln!(out, "NOT WHOLE: the receipt is contradicted"),
        (false, 1) => writeln!(out, "NOT WHOLE: 1 problem in {} entries", text::grouped(entries)),
        (false, n) => writeln!(out, "NOT WHOLE: {} problems in {} entries", text::grouped(n), text::grouped(entries)),
    };
    out
}

pub(super) fn show_json(looked: &[Looked], is_whole: bool, receipt: Option<Evidence>) -> String {
    let mut chains = Vec::new();
    let mut problems = Vec::new();
    let mut notes = Vec::new();
    for Looked { at, findings } in looked {
        for found in &findings.classes {
            chains.push(json!({
                "where": at, "chain": findings.chain, "class": found.class.name(), "entries": found.entries,
                "first": found.first, "last": found.last, "signed_to": found.vouched, "problems": found.problems,
            }));
        }
        for problem in &findings.problems {
            let place = &problem.place;
            problems.push(json!({
                "where": at, "file": place.file, "line": place.line, "class": place.class.map(Class::name),
                "entry": place.entry, "what": problem.wrong.to_string(), "meaning": problem.wrong.meaning(),
            }));
        }
        notes.extend(findings.notes.iter().map(|note| json!({ "where": at, "note": note })));
    }
    let receipt = receipt.map(|evidence| match evidence {
        Evidence::There(at) => at,
        Evidence::NotHere => "not here",
        Evidence::Contradicted => "contradicted",
    });
    let unlisted: u64 = looked.iter().map(|looked| looked.findings.unlisted).sum();
    let all: Value = json!({
        "whole": is_whole, "chains": chains, "problems": problems, "unlisted_problems": unlisted, "notes": notes, "receipt": receipt,
    });
    text::safe_json(&all.to_string()) + "\n"
}
