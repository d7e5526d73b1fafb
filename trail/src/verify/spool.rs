//! Verifies a spool directory, from `HEAD` to the last line of each chain.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;

use outrigger_policy::audit::{Class, Hash, unhex};
use serde::de::DeserializeOwned;

use super::heads::{HeadFile, read_heads};
use super::walk::{Step, Walk, hash_of};
use super::{Claim, Findings, Found, Place, Progress, VerifyError, Wrong};
use crate::keys::PublicKeys;
use crate::layout::{self, Checkpoint, HEAD, Header, Heads, Segment};
use crate::lines::Lines;

/// How often progress is reported, in lines.
const TOLD_EVERY: u64 = 4096;

/// Verifies the spool in `directory`. `more` are claims from other sources, such as a database or a receipt.
/// `progress` is called from time to time.
///
/// # Errors
/// There is no audit log, or it cannot be read. Problems of a readable audit log are in the findings.
pub fn spool(
    directory: &Path,
    keys: &PublicKeys,
    more: &[(Class, Claim)],
    progress: &mut dyn FnMut(Progress),
) -> Result<Findings, VerifyError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| VerifyError::Read { path, source }
    };
    // The order matters. Entries named by HEAD or a checkpoint were on disk before it, so they are in files listed
    // afterwards. Retention raises the floor before it removes files, so a floor read last explains files that are
    // not listed.
    let heads = read_heads(directory, keys).map_err(unreadable(&directory.join(HEAD)))?;
    let mut closing = Vec::new();
    for segment in layout::segments(directory).map_err(unreadable(directory))? {
        if let Some(last) = layout::last_checkpoint(&segment.path).map_err(unreadable(&segment.path))? {
            closing.push((segment, last));
        }
    }
    let segments = layout::segments(directory).map_err(unreadable(directory))?;
    let after = read_heads(directory, keys).map_err(unreadable(&directory.join(HEAD)))?;
    let chain_file = match std::fs::read_to_string(directory.join(layout::CHAIN)) {
        Ok(text) => Some(text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) if e.kind() == io::ErrorKind::InvalidData => Some(String::new()),
        Err(source) => return Err(VerifyError::Read { path: directory.join(layout::CHAIN), source }),
    };
    if segments.is_empty() && heads.is_blank {
        return Err(VerifyError::Nothing(directory.to_owned()));
    }

    let mut findings = Findings::default();
    for wrong in heads.wrong {
        findings.add(Place::file(HEAD), wrong);
    }
    findings.chain = name_chain(chain_file.as_deref(), heads.newest.as_ref(), &mut findings);
    // Closed before and after the verification, so no program has written meanwhile.
    let is_closed = [&heads.newest, &after.newest].iter().all(|heads| heads.as_ref().is_some_and(|heads| heads.closed));
    let floors = after.newest.or_else(|| heads.newest.clone()).map(|heads| heads.classes).unwrap_or_default();
    let mut pass = Pass {
        directory,
        keys,
        floors: floors.into_iter().map(|(class, span)| (class, span.first)).collect(),
        of: segments.iter().filter_map(|segment| segment.path.metadata().ok()).map(|file| file.len()).sum(),
        bytes: 0,
        entries: 0,
        progress,
        findings,
        open: Vec::new(),
    };
    let mut claims: BTreeMap<Class, Vec<Claim>> = BTreeMap::new();
    for (class, claim) in heads.claims.into_iter().chain(more.iter().cloned()) {
        claims.entry(class).or_default().push(claim);
    }
    let closed = closed_by(&closing, keys, &pass.findings.chain, &mut claims);
    for class in Class::ALL {
        let of_class: Vec<&Segment> = segments.iter().filter(|segment| segment.class == class).collect();
        let claims = claims.remove(&class).unwrap_or_default();
        let closed = closed.get(&class).copied().unwrap_or_default();
        if !of_class.is_empty() || claims.iter().any(|claim| claim.seq > 0) {
            pass.class(class, &of_class, claims, closed)?;
        }
    }
    let Pass { mut findings, open, .. } = pass;
    overruns(directory, keys, heads.newest.as_ref(), &mut findings).map_err(unreadable(directory))?;
    if is_closed {
        for name in &open {
            findings.add(Place::file(name), Wrong::Unclosed);
        }
    } else if !open.is_empty() {
        let open = open.join(", ");
        findings
            .notes
            .push(format!("not closed by a checkpoint: {open}; a program writes there, or was ended by force"));
    }
    Ok(findings)
}

/// By class, the last entry that the class's own checkpoints cover. Adds what they say about other classes to `claims`.
fn closed_by(
    closing: &[(Segment, (Vec<u8>, Checkpoint))],
    keys: &PublicKeys,
    chain: &str,
    claims: &mut BTreeMap<Class, Vec<Claim>>,
) -> BTreeMap<Class, u64> {
    let mut closed = BTreeMap::new();
    for (segment, (line, checkpoint)) in closing {
        if layout::verify(line, &checkpoint.key, keys).is_err() || checkpoint.chain != chain {
            continue;
        }
        closed.insert(segment.class, checkpoint.last);
        for (class, end) in &checkpoint.heads {
            if let (Some(class), Some(hash)) = (Class::named(class), unhex(end.hash.as_bytes()))
                && class != segment.class
            {
                let by = format!("the checkpoint of {}", name(segment));
                claims.entry(class).or_default().push(Claim { seq: end.last, hash, by });
            }
        }
    }
    closed
}

/// Finds entries further ahead of `HEAD` than the writer allows: an older `HEAD` was restored.
fn overruns(directory: &Path, keys: &PublicKeys, heads: Option<&Heads>, findings: &mut Findings) -> io::Result<()> {
    let Some(heads) = heads else { return Ok(()) };
    let segments = layout::segments(directory)?;
    let mut tails = Vec::new();
    for class in Class::ALL {
        let found = findings.classes.iter().find(|found| found.class == class);
        if found.is_some_and(|found| found.last > heads.last(class)) {
            let own: Vec<Segment> = segments.iter().filter(|segment| segment.class == class).cloned().collect();
            tails.push((class, layout::entries_behind(&own, heads.last(class))?));
        }
    }
    if tails.is_empty() {
        return Ok(());
    }
    // A program may be writing: entries in the files are within the bound of a `HEAD` read after them.
    let Some(heads) = read_heads(directory, keys)?.newest else { return Ok(()) };
    for (class, tail) in tails {
        if let Some((seq, time)) = heads.overrun(class, &tail) {
            let wrong = Wrong::Overrun { time: time.to_string(), head_time: heads.time.clone() };
            findings.add(Place { file: None, line: None, class: Some(class), entry: Some(seq) }, wrong);
            if let Some(found) = findings.classes.iter_mut().find(|found| found.class == class) {
                found.problems += 1;
            }
        }
    }
    Ok(())
}

/// The chain's id. Reports problems of the file that contains it.
fn name_chain(file: Option<&str>, heads: Option<&Heads>, findings: &mut Findings) -> String {
    let id = file.and_then(|text| text.strip_suffix('\n'));
    let id = id.filter(|id| id.len() == 16 && id.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')));
    let wrong = match (file, id, heads) {
        (None, ..) => Some("it is missing"),
        (_, None, _) => Some("it is not 16 hexadecimal digits and a newline"),
        (_, Some(id), Some(heads)) if id != heads.chain => Some("HEAD names another one"),
        _ => None,
    };
    if let Some(wrong) = wrong {
        findings.add(Place::file(layout::CHAIN), Wrong::Chain(wrong));
    }
    heads.map(|heads| heads.chain.clone()).or(id.map(str::to_owned)).unwrap_or_default()
}

fn name(segment: &Segment) -> String {
    segment.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Parses a line, with or without a signature.
fn parse<T: DeserializeOwned>(line: &[u8]) -> Option<T> {
    serde_json::from_slice(line).ok()
}

/// The state of a verification.
struct Pass<'a> {
    directory: &'a Path,
    keys: &'a PublicKeys,
    /// By class: entries before this one may have been removed.
    floors: BTreeMap<String, u64>,
    of: u64,
    bytes: u64,
    entries: u64,
    progress: &'a mut dyn FnMut(Progress),
    findings: Findings,
    /// Segments without a checkpoint.
    open: Vec<String>,
}

/// How a segment ends.
enum Closing {
    Not,
    Checkpoint,
    Torn,
}

impl Pass<'_> {
    fn floor(&self, class: Class) -> u64 {
        self.floors.get(class.name()).copied().unwrap_or(1).max(1)
    }

    fn class(
        &mut self,
        class: Class,
        segments: &[&Segment],
        claims: Vec<Claim>,
        closed: u64,
    ) -> Result<(), VerifyError> {
        let vouched = claims.iter().map(|claim| claim.seq).max().unwrap_or_default().max(closed);
        let problems = self.findings.count();
        let mut claims = Some(claims);
        let mut walk: Option<(Walk, u64)> = None;
        let mut last_file = None;
        for (at, segment) in segments.iter().enumerate() {
            let file = match File::open(&segment.path) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    // Retention may have removed the file meanwhile, and then raised the floor before.
                    if let Ok(HeadFile { newest: Some(heads), .. }) = read_heads(self.directory, self.keys) {
                        self.floors.extend(heads.classes.into_iter().map(|(class, span)| (class, span.first)));
                    }
                    continue;
                }
                Err(source) => return Err(VerifyError::Read { path: segment.path.clone(), source }),
            };
            let begin = segment.first.min(self.floor(class));
            let (walk, _) =
                walk.get_or_insert_with(|| (Walk::new(class, begin, None, claims.take().unwrap_or_default()), begin));
            let is_newest = at + 1 == segments.len();
            let torn_after = is_newest.then_some(vouched);
            self.segment(segment, file, walk, torn_after)
                .map_err(|source| VerifyError::Read { path: segment.path.clone(), source })?;
            last_file = Some(name(segment));
        }
        let floor = self.floor(class);
        let (walk, first) =
            walk.unwrap_or_else(|| (Walk::new(class, floor, None, claims.take().unwrap_or_default()), floor));
        if let Some(claim) = walk.unmet(floor) {
            let wrong = Wrong::Truncated { last: walk.last(), claimed: claim.seq, by: claim.by.clone() };
            self.findings.add(Place { file: last_file, line: None, class: Some(class), entry: None }, wrong);
        }
        if walk.last() > vouched {
            let (from, to) = (vouched + 1, walk.last());
            let which = if from == to { format!("entry {from} is") } else { format!("entries {from} to {to} are") };
            self.findings.notes.push(format!("{}: {which} chained, but not signed yet", class.name()));
        }
        self.findings.classes.push(Found {
            class,
            entries: walk.entries,
            first,
            last: walk.last(),
            hash: walk.hash(),
            vouched,
            problems: self.findings.count() - problems,
        });
        Ok(())
    }

    /// Verifies one segment. Invalid lines after entry `torn_after` are a torn tail.
    fn segment(&mut self, segment: &Segment, file: File, walk: &mut Walk, torn_after: Option<u64>) -> io::Result<()> {
        let file_name = name(segment);
        let class = segment.class;
        let place = |line, entry| Place { file: Some(file_name.clone()), line: Some(line), class: Some(class), entry };
        let mut lines = Lines::new(file);
        let is_torn_at = |last: u64| torn_after.is_some_and(|after| last >= after);
        let mut header_hash = Hash::default();
        let mut closing = Closing::Not;
        let before = self.bytes;
        let entries_before = walk.entries;

        match lines.take()? {
            Some(line) if line.is_whole => {
                header_hash = hash_of(line.bytes);
                self.header(segment, line.bytes, walk, &place(1, None));
            }
            // The program was killed while it created the segment.
            _ if is_torn_at(segment.first.saturating_sub(1)) => closing = Closing::Torn,
            _ => self.findings.add(place(1, None), Wrong::Header("is missing or cut off".to_owned())),
        }
        while let Some(line) = lines.take()? {
            let number = line.number;
            if line.bytes.starts_with(b"{\"checkpoint\":") && line.is_whole {
                self.checkpoint(segment, line.bytes, walk, &header_hash, &place(number, None));
                closing = Closing::Checkpoint;
                if lines.take()?.is_some() {
                    self.findings.add(place(number + 1, None), Wrong::AfterCheckpoint);
                }
                break;
            }
            if !line.is_whole && is_torn_at(walk.last()) {
                closing = Closing::Torn;
                break;
            }
            let (last, hash) = (walk.last(), walk.hash());
            match walk.step(line.bytes) {
                Step::Due if line.is_whole => {}
                Step::Due => self
                    .findings
                    .add(place(number, Some(walk.last())), Wrong::Unreadable("it does not end with a newline")),
                Step::Wrong(_, Wrong::Unreadable(_)) if is_torn_at(last) && line.bytes.contains(&0) => {
                    // A block that was not written before a power failure: lines after it do not count.
                    walk.jump(last + 1, hash);
                    closing = Closing::Torn;
                    break;
                }
                Step::Wrong(entry, wrong) => {
                    let line = if matches!(wrong, Wrong::Changed { .. }) && number > 2 { number - 1 } else { number };
                    self.findings.add(place(line, entry), wrong);
                }
            }
            if let Some((seq, action)) = walk.alarm() {
                self.findings.add(place(number, Some(seq)), Wrong::Alarm(action));
            }
            if number % TOLD_EVERY == 0 {
                let entries = self.entries + (walk.entries - entries_before);
                (self.progress)(Progress { bytes: before + lines.read(), of: self.of, entries });
            }
        }
        match closing {
            Closing::Checkpoint => {}
            Closing::Not | Closing::Torn if torn_after.is_none() => {
                self.findings.add(Place::file(&file_name), Wrong::NoCheckpoint);
            }
            // A segment without entries is not reported.
            Closing::Not if walk.entries == entries_before => {}
            Closing::Not => self.open.push(file_name),
            Closing::Torn => {
                self.findings.notes.push(format!(
                    "{file_name}: its last line is torn, after what is signed; the program cuts it off when it starts next, and enters that"
                ));
                self.open.push(file_name);
            }
        }
        self.bytes = before + lines.read();
        self.entries += walk.entries - entries_before;
        (self.progress)(Progress { bytes: self.bytes, of: self.of.max(self.bytes), entries: self.entries });
        Ok(())
    }

    fn header(&mut self, segment: &Segment, line: &[u8], walk: &mut Walk, place: &Place) {
        let header = parse::<Header>(line).filter(|header| serde_json::to_vec(header).is_ok_and(|same| same == line));
        let prev = header.as_ref().and_then(|header| unhex(header.prev.as_bytes()));
        let wrong = match &header {
            None => Some("cannot be read".to_owned()),
            Some(header) if header.segment != 1 => Some(format!("has version {}", header.segment)),
            Some(header) if header.chain != self.findings.chain => Some("names another chain".to_owned()),
            Some(header) if header.class != segment.class.name() => Some("names another class".to_owned()),
            Some(header) if header.first != segment.first => Some(format!(
                "says that the first entry is {}, and the file's name says {}",
                header.first, segment.first
            )),
            Some(_) if prev.is_none() => Some("has no hash of the entry before".to_owned()),
            Some(_) => None,
        };
        if let Some(wrong) = wrong {
            self.findings.add(place.clone(), Wrong::Header(wrong));
        }
        let due = walk.next();
        if segment.first < due {
            let place = Place { entry: Some(segment.first), ..place.clone() };
            self.findings.add(place, Wrong::OutOfPlace { expected: due });
            return;
        }
        if segment.first > due {
            if segment.first > self.floor(segment.class) {
                let from = due.max(self.floor(segment.class));
                self.findings.add(place.clone(), Wrong::Missing { from, to: segment.first - 1 });
            }
            walk.jump(segment.first, prev);
        } else if walk.hash().is_none() {
            walk.jump(segment.first, prev);
        } else if prev.is_some() && walk.hash() != prev {
            let wrong = "names another entry before it than the last one of the segment before".to_owned();
            self.findings.add(place.clone(), Wrong::Header(wrong));
        }
        if let Some((entry, wrong)) = walk.begin() {
            self.findings.add(Place { entry: Some(entry), ..place.clone() }, wrong);
        }
    }

    fn checkpoint(&mut self, segment: &Segment, line: &[u8], walk: &Walk, header: &Hash, place: &Place) {
        let Some(checkpoint) = parse::<Checkpoint>(line) else {
            return self.findings.add(place.clone(), Wrong::Checkpoint("cannot be read".to_owned()));
        };
        if let Err(e) = layout::verify(line, &checkpoint.key, self.keys) {
            return self.findings.add(place.clone(), Wrong::Checkpoint(Wrong::signature(&e)));
        }
        let mut wrong = Vec::new();
        if checkpoint.chain != self.findings.chain || checkpoint.class != segment.class.name() {
            wrong.push("belongs to another chain".to_owned());
        } else if checkpoint.first != segment.first {
            wrong.push(format!("is of the segment that begins with entry {}", checkpoint.first));
        }
        if unhex(checkpoint.header.as_bytes()) != Some(*header) {
            wrong.push("was made for another header".to_owned());
        }
        if checkpoint.last != walk.last() {
            wrong.push(format!("says that the last entry is {}, and it is {}", checkpoint.last, walk.last()));
        } else if walk.hash().is_some_and(|hash| unhex(checkpoint.hash.as_bytes()) != Some(hash)) {
            wrong.push(format!("confirms another entry {}", checkpoint.last));
        }
        for wrong in wrong {
            self.findings.add(place.clone(), Wrong::Checkpoint(wrong));
        }
    }
}
