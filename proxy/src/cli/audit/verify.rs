//! `outrigger audit verify`: whether the audit log is complete and unchanged, in the spool and in PostgreSQL.

mod evidence;
mod show;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use outrigger_policy::audit::{Class, EventType, Outcome};
use outrigger_trail::keys::PublicKeys;
use outrigger_trail::layout::{self, Heads, Shipped};
use outrigger_trail::store::anchors;
use outrigger_trail::verify::{Claim, Findings, Progress, VerifyError, spool};
use serde_json::Map;

use self::evidence::{ANCHOR, Anchor, Evidence, Kept, RECEIPT, check_anchors, find_receipt, read_receipt};
use self::show::{show, show_json};
use super::act::{Act, is_written, record_first};
use super::database::Database;
use super::{AuditError, By, Context, Place as Where, text};

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
            claims.extend(claims_of(&findings).filter(|_| findings.chain == chain));
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
    if options.public_keys.is_none() {
        enter(context, options, directory.as_deref(), &looked, is_whole);
    }
    Ok(code)
}

/// Adds an entry about the verification. The result is valid even if that fails: no data was revealed.
fn enter(context: &Context, options: &Options, directory: Option<&Path>, looked: &[Looked], is_whole: bool) {
    // Opening a spool repairs crash damage and signs again: the evidence has to stay as it was found.
    if !is_whole && directory.is_some_and(|directory| !is_written(directory)) {
        let _ = writeln!(
            io::stderr(),
            "outrigger audit: this verification is not recorded, to leave the audit log as it was found; copy it before the proxy starts"
        );
        return;
    }
    let mut details = Map::new();
    details.insert("whole".to_owned(), is_whole.into());
    details.insert("problems".to_owned(), looked.iter().map(|l| l.findings.count()).sum::<u64>().into());
    details.insert("entries".to_owned(), looked.iter().map(|l| l.findings.entries()).sum::<u64>().into());
    let act = Act {
        event: EventType::AdminAction,
        action: "audit.verify",
        outcome: if is_whole { Outcome::Success } else { Outcome::Failure },
        by: &options.by,
        subject: None,
        details,
    };
    if let Err(AuditError::NotRecorded(e)) = record_first(context, &act) {
        let e = text::safe(&e.to_string());
        let _ = writeln!(io::stderr(), "outrigger audit: this verification could not be recorded: {e}");
    }
}

/// The claims about the chains in PostgreSQL's last entries.
fn claims_of(findings: &Findings) -> impl Iterator<Item = (Class, Claim)> {
    findings.classes.iter().filter(|found| found.entries > 0).filter_map(|found| {
        Some((found.class, Claim { seq: found.last, hash: found.hash?, by: "PostgreSQL".to_owned() }))
    })
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

/// Runs `outrigger audit receipt`: prints the newest signed `HEAD`.
pub(super) fn receipt(context: &Context) -> Result<ExitCode, AuditError> {
    let directory = context.directory()?;
    let newest = layout::newest_head(directory, &context.keys()?.public());
    let newest = newest.map_err(AuditError::file(&directory.join(layout::HEAD)))?;
    let nothing = || AuditError::Verify(VerifyError::Nothing(directory.to_owned()));
    let (line, _) = newest.ok_or_else(nothing)?;
    Ok(crate::cli::say(&format!("{line}\n")))
}

#[cfg(test)]
mod tests;
