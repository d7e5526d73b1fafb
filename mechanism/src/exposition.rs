//! Merges the proxy's metrics and the app's into one page in Prometheus's text format 0.0.4. The page is always valid. Pure:
//! text in, text out.
//!
//! ```text
//! line.rs         parses one line, strictly
//! here            families: each once, with one type, its samples together, and a label for the process
//! openmetrics.rs  the page as OpenMetrics 1.0
//! ```
//!
//! A line of the app's page that is invalid or contradicts another one is left out and counted; the rest of the page stays.
//! The proxy's own families come first, and the app cannot change them.

pub mod line;
pub mod metrics;
pub mod openmetrics;

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

pub use crate::exposition::line::{Dialect, Dropped};
use crate::exposition::line::{FamilyType, Line, Sample, number};

/// The longest line of an app's page, in bytes.
const LINE_BYTES: usize = 16 << 10;
/// The most samples, and the most families, of an app's page.
const MOST_SAMPLES: usize = 100_000;
const MOST_FAMILIES: usize = 10_000;
/// The prefix of the proxy's metrics.
const RESERVED: &str = "outrigger_";
/// The label for the process.
const PROCESS: &str = "process";

/// How many lines were left out, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DroppedLines([u64; Dropped::ALL.len()]);

impl DroppedLines {
    /// The number of lines left out, by reason.
    pub fn each(&self) -> impl Iterator<Item = (Dropped, u64)> {
        Dropped::ALL.into_iter().zip(self.0)
    }

    fn count(&mut self, why: Dropped) {
        self.0[why as usize] += 1;
    }
}

/// A metric family.
#[derive(Debug, Default)]
struct Family {
    name: String,
    help: Option<String>,
    kind: FamilyType,
    /// It has a `TYPE`, or can no longer get one.
    is_typed: bool,
    /// The proxy exposes it.
    is_own: bool,
    /// The app declares another type than the proxy.
    contradicts: bool,
    samples: Vec<Written>,
}

/// A sample, as it is written.
#[derive(Debug)]
struct Written {
    line: String,
    /// Its name after the family's.
    suffix: &'static str,
    /// Its series, and the bound if it is a bucket; only for the app's histograms.
    place: Option<(String, f64)>,
}

/// The merged page.
#[derive(Debug, Default)]
pub struct Merged {
    families: Vec<Family>,
    /// The family of each name: its own name, and those of its samples.
    owners: HashMap<String, usize>,
    seen: HashSet<String>,
    samples_of_app: usize,
    dropped: DroppedLines,
}

impl Merged {
    /// Starts with the proxy's own page.
    pub fn new(own: &str) -> Self {
        let mut merged = Self::default();
        for line in own.lines() {
            // The proxy's own page is valid.
            let _ = merged.take(line.as_bytes(), Dialect::Text, Process::Proxy);
        }
        for family in &mut merged.families {
            family.is_own = true;
            family.is_typed = true;
        }
        merged
    }

    /// Adds the app's page. Returns how many lines were left out.
    pub fn add_app(&mut self, page: &[u8], dialect: Dialect) -> DroppedLines {
        for line in page.split(|byte| *byte == b'\n') {
            if let Err(why) = self.take(line, dialect, Process::App) {
                self.dropped.count(why);
            }
        }
        self.dropped
    }

    /// Renders the page.
    pub fn page(mut self) -> String {
        let bytes = |family: &Family| family.samples.iter().map(|sample| sample.line.len() + 1).sum::<usize>() + 200;
        let mut out = String::with_capacity(self.families.iter().map(bytes).sum());
        for family in &mut self.families {
            if family.kind == FamilyType::Histogram && !family.is_own {
                if family.has_whole_histograms() {
                    family.sort_buckets();
                } else {
                    family.write_untyped(&mut out);
                    continue;
                }
            }
            write_family(&mut out, &family.name, family.help.as_deref(), family.kind, family.samples.iter());
        }
        out
    }

    fn take(&mut self, line: &[u8], dialect: Dialect, process: Process) -> Result<(), Dropped> {
        if line.len() > LINE_BYTES && process == Process::App {
            return Err(Dropped::Size);
        }
        let line = line::read(line, dialect)?;
        let name = match &line {
            Line::Nothing => return Ok(()),
            Line::Help(name, _) | Line::Type(name, _) | Line::Sample(Sample { name, .. }) => *name,
        };
        if process == Process::App && name.starts_with(RESERVED) {
            return Err(Dropped::Reserved);
        }
        match line {
            Line::Nothing => Ok(()),
            Line::Help(name, text) => self.help(name, text),
            // OpenMetrics names a counter without its samples' suffix, `_total`.
            Line::Type(name, FamilyType::Counter) if dialect == Dialect::OpenMetrics && !name.ends_with("_total") => {
                self.total_of(name)
            }
            Line::Type(name, kind) => self.kind(name, kind),
            Line::Sample(sample) => self.sample(&sample, process),
        }
    }

    /// The family with this name, created if the name is new; `None` if the name belongs to another family's samples.
    fn family(&mut self, name: &str) -> Result<Option<&mut Family>, Dropped> {
        let at = match self.owners.get(name) {
            Some(at) => *at,
            None if self.families.len() >= MOST_FAMILIES => return Err(Dropped::Size),
            None => {
                self.owners.insert(name.to_owned(), self.families.len());
                self.families.push(Family { name: name.to_owned(), ..Family::default() });
                self.families.len() - 1
            }
        };
        Ok(self.families.get_mut(at).filter(|family| family.name == name))
    }

    fn help(&mut self, name: &str, text: &str) -> Result<(), Dropped> {
        // A name that a histogram or a summary uses for its samples has no help of its own.
        let family = self.family(name)?.ok_or(Dropped::Help)?;
        match &family.help {
            // Keep the proxy's help.
            Some(_) if family.is_own => Ok(()),
            Some(_) => Err(Dropped::Help),
            None => {
                family.help = Some(text.to_owned());
                Ok(())
            }
        }
    }

    fn kind(&mut self, name: &str, kind: FamilyType) -> Result<(), Dropped> {
        // If a sample's name already belonged to another family, it would be in two families.
        let at = self.owners.get(name).copied();
        let names: Vec<String> = kind.suffixes().iter().map(|suffix| format!("{name}{suffix}")).collect();
        let is_taken = names.iter().any(|name| self.owners.get(name).copied() != at && self.owners.contains_key(name));
        let family = self.family(name)?.ok_or(Dropped::Type)?;
        if family.is_own {
            family.contradicts |= family.kind != kind;
            return if family.contradicts { Err(Dropped::Type) } else { Ok(()) };
        }
        if family.is_typed || !family.samples.is_empty() || is_taken {
            return Err(Dropped::Type);
        }
        family.kind = kind;
        family.is_typed = true;
        if let Some(at) = self.owners.get(name).copied() {
            self.owners.extend(names.into_iter().map(|name| (name, at)));
        }
        Ok(())
    }

    /// Declares an OpenMetrics counter: its help moves to the name of its samples.
    fn total_of(&mut self, name: &str) -> Result<(), Dropped> {
        let total = format!("{name}_total");
        let help = match self.family(name)? {
            Some(family) if !family.is_own && family.samples.is_empty() && !family.is_typed => family.help.take(),
            _ => None,
        };
        self.kind(&total, FamilyType::Counter)?;
        match (help, self.family(&total)?) {
            (Some(help), Some(family)) if family.help.is_none() => family.help = Some(help),
            _ => {}
        }
        Ok(())
    }

    fn sample(&mut self, sample: &Sample<'_>, process: Process) -> Result<(), Dropped> {
        if !self.owners.contains_key(sample.name) {
            self.family(sample.name)?;
        }
        let at = self.owners.get(sample.name).copied().ok_or(Dropped::Size)?;
        let family = self.families.get_mut(at).ok_or(Dropped::Size)?;
        let suffix = sample.name.strip_prefix(&*family.name).ok_or(Dropped::Type)?;
        let suffix = family.kind.suffixes().iter().copied().find(|known| *known == suffix).ok_or(Dropped::Type)?;
        if process == Process::App {
            let label = |name| sample.labels.iter().find(|(label, _)| *label == name).map(|(_, value)| *value);
            let bound = match (family.kind, suffix) {
                (FamilyType::Histogram, "_bucket") => Some(label("le")),
                (FamilyType::Summary, "") => Some(label("quantile")),
                _ => None,
            };
            let bound = bound.map(|text| text.and_then(number).filter(|bound| !bound.is_nan()));
            if family.contradicts || bound == Some(None) {
                return Err(Dropped::Type);
            }
            if self.samples_of_app >= MOST_SAMPLES {
                return Err(Dropped::Size);
            }
        }
        // As they are written: renaming a label must not merge two series.
        let renamed = exported(&sample.labels);
        let as_written = |(name, value)| (if name == PROCESS { renamed.as_str() } else { name }, value);
        let mut sorted: Vec<_> = sample.labels.iter().copied().map(as_written).collect();
        sorted.sort_unstable();
        // "1" and "1.0" are the same bucket.
        let bounds = match (family.kind, suffix) {
            (FamilyType::Histogram, "_bucket") => Some("le"),
            (FamilyType::Summary, "") => Some("quantile"),
            _ => None,
        };
        let bound = bounds.and_then(|label| sorted.iter().position(|(name, _)| *name == label));
        let bound = bound.and_then(|at| number(sorted.remove(at).1)).unwrap_or(f64::INFINITY);
        let series = labels_of(&sorted);
        if !self.seen.insert(format!("{}{}{bound}{{{series}", process.name(), sample.name)) {
            return Err(Dropped::Duplicate);
        }
        let place = (process == Process::App && family.kind == FamilyType::Histogram).then_some((series, bound));
        self.samples_of_app += usize::from(process == Process::App);
        family.samples.push(Written { line: written(sample, process), suffix, place });
        Ok(())
    }
}

/// The process that a page comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Process {
    Proxy,
    App,
}

impl Process {
    const fn name(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::App => "app",
        }
    }
}

impl Family {
    /// Whether each series has the `+Inf` bucket and a count, which a histogram needs.
    fn has_whole_histograms(&self) -> bool {
        let mut series: HashMap<&str, (bool, bool)> = HashMap::new();
        for sample in &self.samples {
            let Some((labels, bound)) = &sample.place else { continue };
            let (has_all, has_count) = series.entry(labels).or_default();
            *has_all |= sample.suffix == "_bucket" && bound.is_infinite() && bound.is_sign_positive();
            *has_count |= sample.suffix == "_count";
        }
        series.values().all(|(has_all, has_count)| *has_all && *has_count)
    }

    /// Groups the samples of each series: the buckets by their bounds, then the sum, then the count.
    fn sort_buckets(&mut self) {
        let mut order: HashMap<String, usize> = HashMap::new();
        for sample in &self.samples {
            if let Some((labels, _)) = &sample.place
                && !order.contains_key(labels)
            {
                order.insert(labels.clone(), order.len());
            }
        }
        let place = |sample: &Written| {
            let (labels, bound) =
                sample.place.as_ref().map_or(("", f64::INFINITY), |(labels, bound)| (labels.as_str(), *bound));
            let suffix = self.kind.suffixes().iter().position(|suffix| *suffix == sample.suffix);
            (order.get(labels).copied(), suffix, bound)
        };
        self.samples.sort_by(|a, b| {
            let ((series, suffix, bound), (series_b, suffix_b, bound_b)) = (place(a), place(b));
            (series, suffix).cmp(&(series_b, suffix_b)).then(bound.total_cmp(&bound_b))
        });
    }

    /// Writes the samples of an invalid histogram as families without a type.
    fn write_untyped(&self, out: &mut String) {
        for suffix in self.kind.suffixes() {
            let samples = self.samples.iter().filter(|sample| sample.suffix == *suffix);
            write_family(out, &format!("{}{suffix}", self.name), None, FamilyType::Untyped, samples);
        }
    }
}

fn write_family<'s>(
    out: &mut String,
    name: &str,
    help: Option<&str>,
    kind: FamilyType,
    samples: impl Iterator<Item = &'s Written>,
) {
    let mut samples = samples.peekable();
    if samples.peek().is_none() {
        return;
    }
    let help = help.filter(|help| !help.is_empty()).unwrap_or("No help given.");
    // Writing to a string cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}");
    let _ = writeln!(out, "# TYPE {name} {}", kind.name());
    for sample in samples {
        out.push_str(&sample.line);
        out.push('\n');
    }
}

fn labels_of(labels: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for (name, value) in labels {
        let comma = if out.is_empty() { "" } else { "," };
        let _ = write!(out, "{comma}{name}=\"{value}\"");
    }
    out
}

/// The sample with `process` as its first label. A label of that name is renamed, as Prometheus does on conflicts.
fn written(sample: &Sample<'_>, process: Process) -> String {
    let mut out = format!("{}{{{PROCESS}=\"{}\"", sample.name, process.name());
    let renamed = exported(&sample.labels);
    for (name, value) in &sample.labels {
        let name = if *name == PROCESS { &renamed } else { *name };
        let _ = write!(out, ",{name}=\"{value}\"");
    }
    let _ = write!(out, "}} {}", sample.value);
    if let Some(timestamp) = &sample.timestamp {
        let _ = write!(out, " {timestamp}");
    }
    out
}

/// The name that the app's own label `process` gets, since every sample has one from the proxy.
fn exported(labels: &[(&str, &str)]) -> String {
    let mut name = format!("exported_{PROCESS}");
    while labels.iter().any(|(other, _)| *other == name) {
        name.insert_str(0, "exported_");
    }
    name
}

#[cfg(test)]
mod tests;
