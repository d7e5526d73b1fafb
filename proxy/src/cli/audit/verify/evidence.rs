//! Signed statements about the ends of chains that are kept elsewhere: receipts of operators, and anchors in PostgreSQL.

use std::path::Path;

use outrigger_policy::audit::{Class, unhex};
use outrigger_trail::keys::PublicKeys;
use outrigger_trail::layout::{self, Heads};
use outrigger_trail::verify::{Claim, Findings, Place, Wrong};

use super::Looked;
use crate::cli::audit::database::Database;
use crate::cli::audit::erase::Receipt;
use crate::cli::audit::{AuditError, Context, now};

/// How long entries that another Machine has signed may be in transit, in microseconds, as for checkpoints.
const UNSHIPPED_US: i64 = 3_600_000_000;
pub(super) const ANCHOR: &str = "the anchor in PostgreSQL";
const ANCHORS: &str = "audit_anchors";
pub(super) const RECEIPT: &str = "the receipt";

/// Whether the entry of a receipt was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evidence {
    There(&'static str),
    NotHere,
    Contradicted,
}

/// A statement that an operator has kept elsewhere.
pub(super) enum Kept {
    Erasure(Receipt, Option<(Class, Claim)>),
    Ends(Heads),
}

/// A signed statement about the ends of chains, and its source.
pub(super) struct Anchor {
    pub(super) heads: Heads,
    pub(super) by: &'static str,
}

pub(super) fn read_receipt(path: &Path, keys: &PublicKeys) -> Result<Kept, AuditError> {
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
pub(super) fn check_anchors(
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

pub(super) fn find_receipt(
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
