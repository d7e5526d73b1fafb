//! `outrigger audit verify`: whether the audit log is complete and unchanged, in the spool and in PostgreSQL.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use outrigger_policy::audit::{Class, EventType, Outcome, unhex};
use outrigger_trail::keys::PublicKeys;
use outrigger_trail::layout::{self, Heads, Shipped};
use outrigger_trail::store::anchors;
use outrigger_trail::verify::{Claim, Findings, Place, Progress, VerifyError, Wrong, spool};
use serde_json::{Map, Value, json};

use super::act::{Act, enter_first, is_written};
use super::database::Database;
use super::erase::Receipt;
use super::{AuditError, By, Context, Place as Where, now, text};

/// Options of `outrigger audit verify`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The location.
    #[command(flatten)]
    pub place: Where,
    /// Verify with public keys only, as `outrigger audit keys` prints them: for auditors without secrets. Adds no entry to
    /// the audit log.
    #[arg(long, value_name = "ID:KEY,…")]
    public_keys: Option<String>,
    /// Also verify a receipt of `outrigger audit erase` or `outrigger audit receipt`: the audit log must reach at least as
    /// far.
    #[arg(long, value_name = "FILE")]
    receipt: Option<PathBuf>,
    /// The operator.
    #[command(flatten)]
    by: By,
}

/// The result for one location of the audit log.
struct Looked {
    at: &'static str,
    findings: Findings,
}

/// Runs `outrigger audit verify`.
pub(super) fn run(context: &Context, options: &Options) -> Result<ExitCode, AuditError> {
    let keys = match &options.public_keys {
        Some(text) => {
            PublicKeys::parse(text).map_err(|source| AuditError::Keys { from: "--public-keys".to_owned(), source })?
        }
        None => context.keys()?.public(),
    };
    let database = context.database()?;
    let directory = context.directory.clone();
    if directory.is_none() && database.is_none() {
        return Err(AuditError::NoDirectory);
    }
    let (mut receipt, mut anchors) = (None, Vec::new());
    match options.receipt.as_deref().map(|path| read_receipt(path, &keys)).transpose()? {
        Some(Kept::Erasure(erasure, claim)) => receipt = Some((erasure, claim)),
        Some(Kept::Ends(heads)) => anchors.push(Anchor { heads, by: RECEIPT }),
        None => {}
    }

    let mut looked = Vec::new();
    let mut claims: Vec<(Class, Claim)> = Vec::new();
    let chain = directory.as_deref().and_then(|directory| std::fs::read_to_string(directory.join(layout::CHAIN)).ok());
    let chain = chain.map(|text| text.trim_end().to_owned()).unwrap_or_default();
    let mut unsound = Vec::new();
    if let Some(database) = &database {
        // Read before `HEAD` here, which must be at least as new as all anchors.
        for line in context.runtime.block_on(anchors::all(&database.client))? {
            match Heads::verified(line.as_bytes(), &keys) {
                Ok(heads) => anchors.push(Anchor { heads, by: ANCHOR }),
                Err(e) => unsound.push(e.to_string()),
            }
        }
        // Read before the database, which must have at least these entries.
        let shipped = directory.as_deref().map(|directory| (chain.clone(), shipped(directory)));
        for findings in in_database(context, database, &keys, shipped.as_ref())? {
            for found in findings.classes.iter().filter(|_| findings.chain == chain) {
                if let Some(hash) = found.hash.filter(|_| found.entries > 0) {
                    claims.push((found.class, Claim { seq: found.last, hash, by: "PostgreSQL".to_owned() }));
                }
            }
            looked.push(Looked { at: "postgres", findings });
        }
    }
    if let Some((_, claim)) = receipt.as_ref().filter(|(receipt, _)| receipt.chain == chain) {
        claims.extend(claim.clone());
    }
    let is_here = |anchor: &&Anchor| anchor.heads.chain == chain && !chain.is_empty();
    for Anchor { heads, by } in anchors.iter().filter(is_here) {
        claims.extend(heads.ends().map(|(class, seq, hash)| (class, Claim { seq, hash, by: (*by).to_owned() })));
    }
    if let Some(directory) = &directory {
        match in_spool(context, directory, &keys, &claims) {
            Ok(findings) => looked.insert(0, Looked { at: "spool", findings }),
            // PostgreSQL has an audit log, too, and can tell whether the spool should exist.
            Err(VerifyError::Nothing(_)) if looked.iter().any(|looked| looked.findings.chain != chain) => {}
            Err(e) => return Err(e.into()),
        }
    }
    check_anchors(context, database.as_ref(), directory.as_deref(), &keys, &chain, &anchors, unsound, &mut looked)?;
    if looked.is_empty() {
        return Err(AuditError::Verify(VerifyError::Nothing(directory.unwrap_or_else(|| PathBuf::from("PostgreSQL")))));
    }
    let found_receipt = match &receipt {
        Some((receipt, _)) => Some(find_receipt(context, database.as_ref(), &looked, &chain, receipt)?),
        None => None,
    };
    let problems: u64 = looked.iter().map(|looked| looked.findings.count()).sum();
    let is_whole = problems == 0 && !matches!(found_receipt, Some(Evidence::Contradicted));

    let shown = if context.place.json {
        show_json(&looked, is_whole, found_receipt)
    } else {
        show(&looked, is_whole, found_receipt)
    };
    let code =
        if crate::cli::say(&shown) == ExitCode::SUCCESS && is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    // Opening a spool repairs crash damage and signs again: the evidence has to stay as it was found.
    let is_evidence = !is_whole && directory.as_deref().is_some_and(|directory| !is_written(directory));
    if is_evidence && options.public_keys.is_none() {
        let _ = writeln!(
            io::stderr(),
            "outrigger audit: this verification is not recorded, to leave the audit log as it was found; copy it before the proxy starts"
        );
    }
    // No data was revealed, so the result is valid even if the entry cannot be added.
    if options.public_keys.is_none() && !is_evidence {
        let mut details = Map::new();
        details.insert("whole".to_owned(), is_whole.into());
        details.insert("problems".to_owned(), problems.into());
        details.insert("entries".to_owned(), looked.iter().map(|l| l.findings.entries()).sum::<u64>().into());
        let act = Act {
            event: EventType::AdminAction,
            action: "audit.verify",
            outcome: if is_whole { Outcome::Success } else { Outcome::Failure },
            by: &options.by,
            subject: None,
            details,
        };
        if let Err(AuditError::NotEntered(e)) = enter_first(context, &act) {
            let e = text::safe(&e.to_string());
            let _ = writeln!(io::stderr(), "outrigger audit: this verification could not be recorded: {e}");
        }
    }
    Ok(code)
}

fn shipped(directory: &Path) -> BTreeMap<String, u64> {
    // An unreadable file counts as empty.
    let text = std::fs::read(directory.join(layout::SHIPPED)).unwrap_or_default();
    serde_json::from_slice::<Shipped>(&text).unwrap_or_default().through
}

fn in_spool(
    context: &Context,
    directory: &Path,
    keys: &PublicKeys,
    claims: &[(Class, Claim)],
) -> Result<Findings, VerifyError> {
    let bar = text::progress(context.place.json, "verifying the spool");
    let result = spool(directory, keys, claims, &mut |Progress { bytes, of, .. }| {
        bar.set_length(of);
        bar.set_position(bytes);
    });
    bar.finish_and_clear();
    match result {
        // Without a directory, there is no audit log.
        Err(VerifyError::Read { path, source }) if source.kind() == io::ErrorKind::NotFound && path == directory => {
            Err(VerifyError::Nothing(path))
        }
        result => result,
    }
}

fn in_database(
    context: &Context,
    database: &Database,
    keys: &PublicKeys,
    shipped: Option<&(String, BTreeMap<String, u64>)>,
) -> Result<Vec<Findings>, AuditError> {
    let bar = text::progress(context.place.json, "verifying PostgreSQL");
    let mut told = |entries: u64| {
        bar.set_message(format!("verifying PostgreSQL: {} entries", text::grouped(entries)));
        bar.tick();
    };
    let result = context.runtime.block_on(database.verify(keys, shipped, &mut told));
    bar.finish_and_clear();
    result
}

/// Whether the entry of a receipt was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Evidence {
    There(&'static str),
    NotHere,
    Contradicted,
}

/// A statement that an operator has kept elsewhere.
enum Kept {
    Erasure(Receipt, Option<(Class, Claim)>),
    Ends(Heads),
}

/// A signed statement about the ends of chains, and its source.
struct Anchor {
    heads: Heads,
    by: &'static str,
}

fn read_receipt(path: &Path, keys: &PublicKeys) -> Result<Kept, AuditError> {
    let content = std::fs::read(path).map_err(AuditError::file(path))?;
    let line = content.trim_ascii();
    let refused = |problem: &str| AuditError::Refused(format!("{} {problem}", path.display()));
    if line.starts_with(b"{\"head\":") {
        let heads = Heads::verified(line, keys).map_err(|e| refused(&format!("is not as signed: {e}")))?;
        return Ok(Kept::Ends(heads));
    }
    let receipt: Receipt = serde_json::from_slice(line).map_err(|_| {
        refused("is not a receipt: give the line that `outrigger audit erase` or `outrigger audit receipt` printed")
    })?;
    layout::verify(line, &receipt.key, keys).map_err(|e| refused(&format!("is not as signed: {e}")))?;
    let class = Class::named(&receipt.class).zip(unhex(receipt.hash.as_bytes()));
    let claim = class.map(|(class, hash)| (class, Claim { seq: receipt.seq, hash, by: RECEIPT.to_owned() }));
    Ok(Kept::Erasure(receipt, claim))
}

/// Compares the chains here with statements kept elsewhere. Entries of the spool's own chain have been compared already.
#[expect(clippy::too_many_arguments, reason = "the results of the steps before")]
fn check_anchors(
    context: &Context,
    database: Option<&Database>,
    directory: Option<&Path>,
    keys: &PublicKeys,
    chain: &str,
    anchors: &[Anchor],
    unsound: Vec<String>,
    looked: &mut Vec<Looked>,
) -> Result<(), AuditError> {
    let mut findings = Findings::default();
    for problem in unsound {
        findings.add(Place::file(ANCHORS), Wrong::Anchor(format!("an anchor is not as signed: {problem}")));
    }
    let here = directory.and_then(|directory| layout::newest_head(directory, keys).ok().flatten());
    for Anchor { heads, by } in anchors {
        if heads.chain == chain && !chain.is_empty() {
            let number = here.as_ref().map_or(0, |(_, here)| here.number);
            if number < heads.number {
                let wrong = Wrong::OlderHead { here: number, known: heads.number, by: (*by).to_owned() };
                findings.add(Place::file(layout::HEAD), wrong);
            }
            continue;
        }
        let of_chain = looked.iter().find(|looked| looked.at == "postgres" && looked.findings.chain == heads.chain);
        let Some(Looked { findings: of_chain, .. }) = of_chain else {
            if *by == RECEIPT {
                let problem = format!(
                    "the receipt is of chain {} on Machine {}, and no entry of that chain is here",
                    heads.chain, heads.machine
                );
                findings.add(Place::file("the receipt"), Wrong::Anchor(problem));
            }
            continue;
        };
        let Some(database) = database else { continue };
        // Another Machine's chain: entries that it has not shipped yet are in its own spool.
        let age = heads.signed_at().map_or(i64::MAX, |at| now().0.saturating_sub(at.0));
        for (class, seq, hash) in heads.ends() {
            let place = Place { file: Some(ANCHORS.to_owned()), line: None, class: Some(class), entry: Some(seq) };
            let found = of_chain.classes.iter().find(|found| found.class == class);
            let (first, last) = found.map_or((1, 0), |found| (found.first, found.last));
            let stored = context.runtime.block_on(database.hash_of(&heads.chain, class, seq))?;
            match stored {
                Some(stored) if stored != hash => findings.add(place, Wrong::Contradicted { by: (*by).to_owned() }),
                None if last < seq && first <= seq && age > UNSHIPPED_US => {
                    findings.add(place, Wrong::Truncated { last, claimed: seq, by: (*by).to_owned() });
                }
                None if last < seq => findings.notes.push(format!(
                    "{}: Machine {} has signed for {seq} entries of chain {}, which are not all stored yet",
                    class.name(),
                    heads.machine,
                    heads.chain
                )),
                _ => {}
            }
        }
    }
    if findings.count() > 0 || !findings.notes.is_empty() {
        looked.push(Looked { at: "anchors", findings });
    }
    Ok(())
}

/// Runs `outrigger audit receipt`: prints the newest signed `HEAD`.
pub(super) fn receipt(context: &Context) -> Result<ExitCode, AuditError> {
    let directory = context.directory()?;
    let newest = layout::newest_head(directory, &context.keys()?.public());
    let newest = newest.map_err(AuditError::file(&directory.join(layout::HEAD)))?;
    let nothing = || AuditError::Verify(VerifyError::Nothing(directory.to_owned()));
    let (line, _) = newest.ok_or_else(nothing)?;
    Ok(crate::cli::say(&format!("{line}\n")))
}

/// How long entries that another Machine has signed may be in transit, in microseconds, as for checkpoints.
const UNSHIPPED_US: i64 = 3_600_000_000;
const ANCHOR: &str = "the anchor in PostgreSQL";
const ANCHORS: &str = "audit_anchors";
const RECEIPT: &str = "the receipt";

fn find_receipt(
    context: &Context,
    database: Option<&Database>,
    looked: &[Looked],
    chain: &str,
    receipt: &Receipt,
) -> Result<Evidence, AuditError> {
    let Some(class) = Class::named(&receipt.class) else { return Ok(Evidence::Contradicted) };
    if let Some(database) = database
        && let Some(hash) = context.runtime.block_on(database.hash_of(&receipt.chain, class, receipt.seq))?
    {
        let is_same = unhex(receipt.hash.as_bytes()) == Some(hash);
        return Ok(if is_same { Evidence::There("postgres") } else { Evidence::Contradicted });
    }
    if receipt.chain != chain {
        return Ok(Evidence::NotHere);
    }
    for Looked { findings, .. } in looked.iter().filter(|looked| looked.at == "spool") {
        // The receipt's claim was one of those that were compared.
        let by_receipt = |by: &str| by == RECEIPT;
        let is_contradicted = findings.problems.iter().any(|problem| match &problem.wrong {
            Wrong::Contradicted { by } => by_receipt(by),
            Wrong::Truncated { by, .. } => by_receipt(by),
            _ => false,
        });
        if is_contradicted {
            return Ok(Evidence::Contradicted);
        }
        let of_class = findings.classes.iter().find(|found| found.class == class);
        if of_class.is_some_and(|found| (found.first..=found.last).contains(&receipt.seq)) {
            return Ok(Evidence::There("spool"));
        }
    }
    Ok(Evidence::NotHere)
}

fn show(looked: &[Looked], is_whole: bool, receipt: Option<Evidence>) -> String {
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

fn show_json(looked: &[Looked], is_whole: bool, receipt: Option<Evidence>) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;
    use outrigger_trail::verify::{Found, Problem};

    fn looked() -> Vec<Looked> {
        let found = |class, entries, problems| Found {
            class,
            entries,
            first: 1,
            last: entries,
            hash: None,
            vouched: entries,
            problems,
        };
        let place = Place {
            file: Some("data-00000000000000000001.jsonl".to_owned()),
            line: Some(6),
            class: Some(Class::Data),
            entry: Some(5),
        };
        let findings = Findings {
            chain: "00112233aabbccdd".to_owned(),
            classes: vec![found(Class::Data, 1_234, 1), found(Class::Security, 7, 0)],
            problems: vec![Problem { place, wrong: Wrong::Changed { next: 6 } }],
            unlisted: 0,
            notes: vec!["not closed by a checkpoint: data-00000000000000000001.jsonl".to_owned()],
        };
        vec![Looked { at: "spool", findings }]
    }

    #[test]
    fn problems_are_reported_with_position_and_meaning() {
        insta::assert_snapshot!("not_whole", show(&looked(), false, Some(Evidence::NotHere)));
        insta::assert_snapshot!("not_whole_json", show_json(&looked(), false, Some(Evidence::There("spool"))));
        let mut whole = looked();
        whole[0].findings.problems.clear();
        insta::assert_snapshot!("whole", show(&whole, true, None));
    }
}
