//! Recovery after a crash: finds the end of each chain, truncates torn lines, and records all of it.
//!
//! Entries missing before the end that `HEAD` records were durable, so no crash explains that. The files are left
//! unchanged, the chain continues after the recorded end, and `outrigger audit verify` reports the gap.
//!
//! An end further ahead of `HEAD` than a crash explains, and a chain shorter than a checkpoint states, mean that an
//! older state was restored. That is an alarm: it is recorded before `HEAD` is signed again, and
//! `outrigger audit verify` reports the entry.

use std::collections::BTreeMap;
use std::fs;

use outrigger_policy::audit::{Class, Draft, EventType, Head, NO_HASH, Outcome, Time, unhex, uuid_v7};

use super::files::{self, Open};
use super::{Alarm, Closed, Spool, SpoolError, at, heads_of, hex, sha256, system};
use crate::layout::{self, Checkpoint, Header, Heads, Segment};

/// A finding from opening a spool.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    class: Option<Class>,
    action: &'static str,
    details: String,
    is_alarm: bool,
}

/// The valid part of a segment.
#[derive(Debug)]
struct Scan {
    header: Option<(Header, [u8; 32])>,
    head: Head,
    /// Length of the valid part in bytes.
    length: usize,
    is_closed: bool,
}

impl Spool {
    /// Finds the ends of all chains.
    pub(super) fn recover(&mut self, now: Time) -> Result<(), SpoolError> {
        let mut findings = Vec::new();
        let vouched = self.read_heads(&mut findings)?;
        if let Some(vouched) = &vouched {
            self.number = vouched.number;
        }
        let segments = layout::segments(&self.directory).map_err(at(&self.directory))?;
        findings.extend(self.find_rollback(vouched.as_ref(), &segments)?);
        for class in Class::ALL {
            let span = vouched.as_ref().and_then(|heads| heads.classes.get(class.name()));
            let floor = span.map_or(1, |span| span.first);
            let mut own: Vec<Segment> = segments.iter().filter(|segment| segment.class == class).cloned().collect();
            // After a crash between recording a removal and removing the files.
            while own.get(1).map_or_else(|| own.len() == 1 && is_below(&own[0], floor), |next| next.first <= floor) {
                let gone = own.remove(0);
                files::remove(&gone.path)?;
                files::remove(&gone.keys())?;
            }
            let end = span.map(|span| Head { last: span.last, hash: unhex(span.hash.as_bytes()).unwrap_or(NO_HASH) });
            self.chains[class as usize].floor = floor;
            let was_closed = vouched.as_ref().is_some_and(|heads| heads.closed);
            let end = Vouched { head: end.unwrap_or_default(), was_closed };
            self.recover_class(class, &own, end, now, &mut findings)?;
        }
        let machine = self.machine.clone();
        for (at, finding) in findings.iter().enumerate() {
            let id = uuid_v7(now, (at as u64, u64::from_be_bytes(random())));
            let mut draft = system(id, now, &machine, finding.action, &finding.details);
            if finding.is_alarm {
                draft.outcome = Outcome::Error;
                self.alarms.push(Alarm { action: finding.action, details: finding.details.clone() });
                // In `security`, which operators watch, and in `administration`, which is kept longer.
                let id = uuid_v7(now, (at as u64, u64::from_be_bytes(random())));
                self.append(&Draft { id, event: EventType::Forged, ..draft });
            }
            self.append(&draft);
        }
        Ok(())
    }

    /// Detects that an older `HEAD` was restored, or a chain shorter than a signed checkpoint states.
    fn find_rollback(&self, vouched: Option<&Heads>, segments: &[Segment]) -> Result<Vec<Finding>, SpoolError> {
        let mut findings = Vec::new();
        let rolled_back =
            |details: String| Finding { class: None, action: "audit.rolled_back", details, is_alarm: true };
        let mut ends = BTreeMap::new();
        for class in Class::ALL {
            let own: Vec<Segment> = segments.iter().filter(|segment| segment.class == class).cloned().collect();
            let last = vouched.map_or(0, |heads| heads.last(class));
            let tail = layout::entries_behind(&own, last).map_err(at(&self.directory))?;
            ends.insert(class, tail.iter().map(|(seq, _)| *seq).max().unwrap_or_default().max(last));
            let overrun = vouched.and_then(|heads| Some((heads, heads.overrun(class, &tail)?)));
            if let Some((heads, (seq, time))) = overrun {
                findings.push(rolled_back(format!(
                    r#"{{"class":"{}","entry":{seq},"time":"{time}","head":{},"head_time":"{}","problem":"the entry is later than HEAD by more than a crash explains: an older HEAD was put back"}}"#,
                    class.name(), heads.number, heads.time
                )));
            }
        }
        let public = self.keys.public();
        for class in Class::ALL {
            // The newest segment may still be open.
            let mut closing = None;
            for segment in segments.iter().rev().filter(|segment| segment.class == class).take(2) {
                if closing.is_none() {
                    closing = layout::last_checkpoint(&segment.path).map_err(at(&segment.path))?;
                }
            }
            let Some((line, checkpoint)) = closing else { continue };
            if checkpoint.chain != self.chain || layout::verify(&line, &checkpoint.key, &public).is_err() {
                continue;
            }
            for (other, end) in &checkpoint.heads {
                let Some(last) = Class::named(other).and_then(|other| ends.get(&other)) else { continue };
                if end.last > *last {
                    findings.push(rolled_back(format!(
                        r#"{{"class":"{other}","last":{last},"signed":{},"checkpoint_of":"{}","problem":"a checkpoint confirms more entries of this class: its chain was rolled back or removed"}}"#,
                        end.last, class.name()
                    )));
                }
            }
        }
        Ok(findings)
    }

    /// The newer of the two slots with a valid signature.
    fn read_heads(&self, findings: &mut Vec<Finding>) -> Result<Option<Heads>, SpoolError> {
        let path = self.directory.join(layout::HEAD);
        let content = fs::read(&path).map_err(at(&path))?;
        let newest = layout::newest_head(&self.directory, &self.keys.public()).map_err(at(&path))?;
        let newest = newest.map(|(_, heads)| heads).filter(|heads| heads.chain == self.chain);
        let has_entries = !layout::segments(&self.directory).map_err(at(&self.directory))?.is_empty();
        if newest.is_none() && (has_entries || !content.trim_ascii().is_empty()) {
            let details = r#"{"file":"HEAD","problem":"it is missing, or no key given verifies it"}"#.to_owned();
            findings.push(Finding { class: None, action: "audit.unvouched", details, is_alarm: true });
        }
        Ok(newest)
    }

    fn recover_class(
        &mut self,
        class: Class,
        segments: &[Segment],
        vouched: Vouched,
        now: Time,
        findings: &mut Vec<Finding>,
    ) -> Result<(), SpoolError> {
        let Vouched { head: vouched, was_closed } = vouched;
        let Some((newest, earlier)) = segments.split_last() else {
            let chain = &mut self.chains[class as usize];
            (chain.head, chain.committed) = (vouched, vouched);
            if vouched.last >= chain.floor {
                findings.push(missing(class, chain.floor, vouched.last));
            }
            return Ok(());
        };
        let closed = earlier.iter().zip(&segments[1..]).map(|(segment, next)| followed(segment, next));
        self.chains[class as usize].closed = closed.collect::<Result<_, _>>()?;
        let content = fs::read(&newest.path).map_err(at(&newest.path))?;
        let scan = scan(&content, newest.first);
        let is_short = scan.head.last < vouched.last || scan.header.is_none() && newest.first <= vouched.last;
        let has_entries = scan.head.last >= newest.first;
        let is_reopened = was_closed && !scan.is_closed && has_entries;
        if is_reopened && newest.first > vouched.last {
            // All of it came after the recorded end: continues without the segment, which is kept for investigation.
            findings.push(reopened(class, vouched.last));
            let aside = newest.path.with_extension("aside");
            fs::rename(&newest.path, &aside).map_err(at(&aside))?;
            self.chains[class as usize].closed.clear();
            return self.recover_class(class, earlier, Vouched { head: vouched, was_closed }, now, findings);
        }
        if is_short || is_reopened {
            findings.push(if is_short {
                missing(class, scan.head.last.max(newest.first.saturating_sub(1)) + 1, vouched.last)
            } else {
                reopened(class, vouched.last)
            });
            let bytes = content.len() as u64;
            let chain = &mut self.chains[class as usize];
            // Leaves the segment unchanged; the next entries go to a new file.
            let keys_bytes = files::size(&newest.keys());
            chain.closed.push(Closed { segment: newest.clone(), last: vouched.last, bytes, keys_bytes });
            (chain.head, chain.committed) = (vouched, vouched);
            return Ok(());
        }
        let torn = &content[scan.length..];
        if !torn.is_empty() {
            let details = format!(
                r#"{{"class":"{}","after_seq":{},"bytes":{},"sha256":"{}"}}"#,
                class.name(),
                scan.head.last,
                torn.len(),
                hex(&sha256(torn))
            );
            findings.push(Finding { class: Some(class), action: "audit.recovered", details, is_alarm: false });
        }
        let Some((header, hash)) = scan.header else {
            // The segment was created, but none of it was durable.
            files::remove(&newest.path)?;
            files::remove(&newest.keys())?;
            self.chains[class as usize].closed.clear();
            return self.recover_class(class, earlier, Vouched { head: vouched, was_closed }, now, findings);
        };
        let heads = heads_of(&self.chains, class);
        let chain = &mut self.chains[class as usize];
        (chain.head, chain.committed) = (scan.head, scan.head);
        if scan.is_closed {
            if !torn.is_empty() {
                Open::reopen(newest.clone(), scan.length as u64, hash, now)?;
            }
            let (bytes, keys_bytes) = (scan.length as u64, files::size(&newest.keys()));
            chain.closed.push(Closed { segment: newest.clone(), last: scan.head.last, bytes, keys_bytes });
            return Ok(());
        }
        let created = header.created.parse::<jiff::Timestamp>().map_or(now, |time| Time(time.as_microsecond()));
        chain.open = Some(Open::reopen(newest.clone(), scan.length as u64, hash, created)?);
        chain.close(&self.chain, &heads, &self.keys, now)
    }
}

/// A segment that another one follows.
fn followed(segment: &Segment, next: &Segment) -> Result<Closed, SpoolError> {
    let bytes = fs::metadata(&segment.path).map_err(at(&segment.path))?.len();
    let (last, keys_bytes) = (next.first.saturating_sub(1), files::size(&segment.keys()));
    Ok(Closed { segment: segment.clone(), last, bytes, keys_bytes })
}

/// Whether a single segment is to be removed as a whole, which only its checkpoint tells.
fn is_below(segment: &Segment, floor: u64) -> bool {
    segment.first < floor
        && fs::read(&segment.path).is_ok_and(|content| {
            let scan = scan(&content, segment.first);
            scan.is_closed && scan.head.last < floor
        })
}

/// The end of a chain as recorded in `HEAD`.
#[derive(Clone, Copy, Debug)]
struct Vouched {
    head: Head,
    /// The program stopped in order.
    was_closed: bool,
}

fn reopened(class: Class, last: u64) -> Finding {
    let problem = "it was closed, and its checkpoint is gone: what stands behind the last entry is not the program's";
    let details = format!(r#"{{"class":"{}","last":{last},"problem":"{problem}"}}"#, class.name());
    Finding { class: Some(class), action: "audit.reopened", details, is_alarm: true }
}

fn missing(class: Class, first: u64, last: u64) -> Finding {
    let details = format!(
        r#"{{"class":"{}","first":{first},"last":{last},"problem":"these entries were promised and are not there"}}"#,
        class.name()
    );
    Finding { class: Some(class), action: "audit.missing", details, is_alarm: true }
}

/// Reads a segment up to its first invalid line.
fn scan(content: &[u8], first: u64) -> Scan {
    let mut scan =
        Scan { header: None, head: Head { last: first.saturating_sub(1), hash: NO_HASH }, length: 0, is_closed: false };
    for line in content.split_inclusive(|b| *b == b'\n') {
        let Some(text) = line.strip_suffix(b"\n") else { break };
        if scan.header.is_none() {
            let Ok(header) = serde_json::from_slice::<Header>(text) else { break };
            let Some(prev) = unhex(header.prev.as_bytes()).filter(|_| header.first == first) else { break };
            scan.head.hash = prev;
            scan.header = Some((header, sha256(text)));
        } else if let Some((seq, prev)) = link(text) {
            if seq != scan.head.last + 1 || prev != scan.head.hash {
                break;
            }
            scan.head = Head { last: seq, hash: sha256(text) };
        } else {
            let checkpoint = serde_json::from_slice::<serde_json::Value>(text).is_ok()
                && serde_json::from_slice::<Checkpoint>(&layout::unsigned(text)).is_ok();
            if !checkpoint {
                break;
            }
            scan.is_closed = true;
            scan.length += line.len();
            break;
        }
        scan.length += line.len();
    }
    scan
}

/// The number of an entry and the hash of the previous one: its first and last member.
fn link(line: &[u8]) -> Option<(u64, [u8; 32])> {
    let rest = line.strip_prefix(b"{\"seq\":")?;
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    let seq = layout::number(&rest[..digits])?;
    let end = line.strip_suffix(b"\"}")?;
    let (before, hash) = end.split_at_checked(end.len().checked_sub(64)?)?;
    before.ends_with(b",\"prev\":\"").then_some(())?;
    Some((seq, unhex(hash)?))
}

fn random() -> [u8; 8] {
    use ring::rand::SecureRandom;
    let mut bytes = [0; 8];
    // Without random bytes, the finding's number and the time still make ids unique.
    let _ = ring::rand::SystemRandom::new().fill(&mut bytes);
    bytes
}
