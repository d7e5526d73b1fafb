//! OpenMetrics 1.0, for scrapers that ask for it: translates a page of the text format 0.0.4, which is valid. Pure: text in,
//! text out.
//!
//! The names of series and their values stay. A family of the app that OpenMetrics does not allow, such as one of two whose names
//! it takes for one, loses its type: the samples stay, as families of the type `unknown`.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

use crate::exposition::line::{Dialect, FamilyType, Line, Sample, number, read};

/// The content type.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The same in `Accept`, without parameters.
const MEDIA_TYPE: &str = "application/openmetrics-text";
const TEXT: &str = "text/plain";

/// Whether a scraper with these `Accept` headers wants OpenMetrics 1.0 at least as much as the text format.
pub fn is_wanted<'a>(accept: impl Iterator<Item = &'a str>) -> bool {
    let (mut open, mut text, mut any) = (0.0, None, 0.0);
    for range in accept.flat_map(|header| header.split(',')) {
        let mut parameters = range.split(';').map(str::trim);
        let media = parameters.next().unwrap_or_default();
        let (mut weight, mut version) = (1.0, None);
        for (name, value) in parameters.filter_map(|parameter| parameter.split_once('=')) {
            match name.trim().to_ascii_lowercase().as_str() {
                "q" => weight = value.trim().parse().unwrap_or(0.0),
                "version" => version = Some(value.trim().trim_matches('"')),
                _ => {}
            }
        }
        if media.eq_ignore_ascii_case(MEDIA_TYPE) && version.is_none_or(|version| version == "1.0.0") {
            open = f64::max(open, weight);
        } else if media.eq_ignore_ascii_case(TEXT) && version.is_none_or(|version| version == "0.0.4") {
            text = Some(f64::max(text.unwrap_or_default(), weight));
        } else if media == "*/*" || media.eq_ignore_ascii_case("text/*") {
            any = f64::max(any, weight);
        }
    }
    open > 0.0 && open >= text.unwrap_or(any)
}

/// A family of the page.
#[derive(Debug, Default)]
struct Family<'p> {
    name: &'p str,
    help: &'p str,
    kind: FamilyType,
    samples: Vec<Sample<'p>>,
}

/// Exemplars, by the samples to which they belong, as the page has them: `name{label="value"}`.
pub type Exemplars = HashMap<String, String>;

/// Translates a valid page of the text format 0.0.4.
pub fn translate(page: &str, exemplars: &Exemplars) -> String {
    let families = families(page);
    let mut claims: HashMap<String, u32> = HashMap::new();
    for name in families.iter().flat_map(Family::claims) {
        *claims.entry(name).or_default() += 1;
    }
    let mut out = String::with_capacity(page.len() + page.len() / 8);
    for family in &families {
        let is_alone = family.claims().all(|name| claims.get(&name) == Some(&1));
        match family.series().filter(|_| is_alone) {
            Some(series) => family.write(&mut out, &series, exemplars),
            None => family.write_unknown(&mut out),
        }
    }
    out.push_str("# EOF\n");
    out
}

fn families(page: &str) -> Vec<Family<'_>> {
    let mut families: Vec<Family<'_>> = Vec::new();
    for line in page.lines().filter_map(|line| read(line.as_bytes(), Dialect::Text).ok()) {
        let (name, is_sample) = match &line {
            Line::Nothing => continue,
            Line::Help(name, _) | Line::Type(name, _) => (*name, false),
            Line::Sample(sample) => (sample.name, true),
        };
        let is_new = match families.last() {
            Some(last) if is_sample => !last.has(name),
            Some(last) => last.name != name || !last.samples.is_empty(),
            None => true,
        };
        if is_new {
            families.push(Family { name, ..Family::default() });
        }
        let Some(family) = families.last_mut() else { continue };
        match line {
            Line::Nothing => {}
            Line::Help(_, help) => family.help = help,
            Line::Type(_, kind) => family.kind = kind,
            Line::Sample(sample) => family.samples.push(sample),
        }
    }
    families
}

impl<'p> Family<'p> {
    fn has(&self, sample: &str) -> bool {
        sample.strip_prefix(self.name).is_some_and(|suffix| self.kind.suffixes().contains(&suffix))
    }

    /// Its name in OpenMetrics: that of a counter lacks the suffix of its sample.
    fn shown_name(&self) -> &'p str {
        match self.kind {
            FamilyType::Counter => self.name.strip_suffix("_total").unwrap_or(self.name),
            _ => self.name,
        }
    }

    /// The names that belong to it in OpenMetrics, whether it has such samples or not.
    fn claims(&self) -> impl Iterator<Item = String> {
        let suffixes: &[&str] = match self.kind {
            FamilyType::Counter => &["", "_total", "_created"],
            FamilyType::Gauge | FamilyType::Untyped => &[""],
            FamilyType::Histogram => &["", "_bucket", "_sum", "_count", "_created"],
            FamilyType::Summary => &["", "_sum", "_count", "_created"],
        };
        let mut names: Vec<String> = suffixes.iter().map(|suffix| format!("{}{suffix}", self.shown_name())).collect();
        if !names.iter().any(|name| name == self.name) {
            names.push(self.name.to_owned());
        }
        names.into_iter()
    }

    /// Its samples by series, the label for the bound aside; `None` if OpenMetrics does not allow them for the type.
    fn series(&self) -> Option<Vec<Vec<&Sample<'p>>>> {
        if self.kind == FamilyType::Counter && !self.name.ends_with("_total") {
            return None;
        }
        let bound = match self.kind {
            FamilyType::Histogram => "le",
            FamilyType::Summary => "quantile",
            FamilyType::Counter if self.samples.iter().any(|sample| !is_count(sample)) => return None,
            _ => return Some(self.samples.iter().map(|sample| vec![sample]).collect()),
        };
        let mut order: HashMap<Vec<(&str, &str)>, usize> = HashMap::new();
        let mut all: Vec<Vec<&Sample<'p>>> = Vec::new();
        for sample in &self.samples {
            let mut labels: Vec<_> = sample.labels.iter().copied().filter(|(name, _)| *name != bound).collect();
            labels.sort_unstable();
            let at = *order.entry(labels).or_insert(all.len());
            if at == all.len() {
                all.push(Vec::new());
            }
            all.get_mut(at)?.push(sample);
        }
        all.iter().all(|series| self.is_whole(series)).then_some(all)
    }

    /// Whether a series is what OpenMetrics requires of its type.
    fn is_whole(&self, series: &[&Sample<'_>]) -> bool {
        let of = |suffix: &'static str| {
            series.iter().filter(move |sample| sample.name.strip_prefix(self.name) == Some(suffix))
        };
        let has_one_time = series.windows(2).all(|pair| pair[0].timestamp == pair[1].timestamp);
        let counts = || of("_count").chain(of("_bucket"));
        if !has_one_time || !counts().chain(of("_sum")).all(|sample| is_count(sample)) {
            return false;
        }
        if self.kind == FamilyType::Summary {
            return of("").all(|sample| {
                let value = number(sample.value).unwrap_or(f64::NAN);
                bound(sample, "quantile").is_some_and(|at| (0.0..=1.0).contains(&at))
                    && (value >= 0.0 || value.is_nan())
            });
        }
        let buckets: Vec<(f64, f64)> =
            of("_bucket").filter_map(|sample| Some((bound(sample, "le")?, number(sample.value)?))).collect();
        let ascends = buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
        let all = buckets.last().filter(|(bound, _)| *bound == f64::INFINITY).map(|(_, count)| *count);
        let is_positive = buckets.first().is_some_and(|(bound, _)| *bound >= 0.0);
        let is_whole = counts().all(|sample| number(sample.value).is_some_and(|count| count.fract() == 0.0));
        let count = of("_count").next().and_then(|sample| number(sample.value));
        is_whole && ascends && is_positive && all.is_some() && count == all && of("_sum").count() == 1
    }

    fn write(&self, out: &mut String, series: &[Vec<&Sample<'_>>], exemplars: &Exemplars) {
        write_head(out, self.shown_name(), self.kind, self.help);
        for sample in series.iter().flatten() {
            write_sample(out, sample, self.kind);
            if self.kind == FamilyType::Histogram && !exemplars.is_empty() {
                let exemplar = exemplars.get(&as_written(sample));
                exemplar.iter().for_each(|exemplar| out.extend([" # ", exemplar]));
            }
            out.push('\n');
        }
    }

    /// Each of its names as a family of the type `unknown`.
    fn write_unknown(&self, out: &mut String) {
        let mut names: BTreeMap<&str, Vec<&Sample<'_>>> = BTreeMap::new();
        for sample in &self.samples {
            names.entry(sample.name).or_default().push(sample);
        }
        for (name, samples) in names {
            write_head(out, name, FamilyType::Untyped, self.help);
            for sample in samples {
                write_sample(out, sample, FamilyType::Untyped);
                out.push('\n');
            }
        }
    }
}

/// Whether a sample's value is one of a counter, or of the sum of things that are not negative.
fn is_count(sample: &Sample<'_>) -> bool {
    number(sample.value).is_some_and(|value| value >= 0.0)
}

fn bound(sample: &Sample<'_>, label: &str) -> Option<f64> {
    sample.labels.iter().find(|(name, _)| *name == label).and_then(|(_, value)| number(value))
}

fn write_head(out: &mut String, name: &str, kind: FamilyType, help: &str) {
    let shown = if kind == FamilyType::Untyped { "unknown" } else { kind.name() };
    // Writing to a string cannot fail.
    let _ = writeln!(out, "# TYPE {name} {shown}");
    let unit = outrigger_metrics::unit(name);
    // Without its suffix, the name of a counter ends in its unit, as it must.
    if !unit.is_empty() && name.ends_with(unit) {
        let _ = writeln!(out, "# UNIT {name} {unit}");
    }
    if !help.is_empty() {
        // In the text format, a quotation mark is not escaped here.
        let _ = writeln!(out, "# HELP {name} {}", help.replace('"', "\\\""));
    }
}

fn write_sample(out: &mut String, sample: &Sample<'_>, kind: FamilyType) {
    out.push_str(sample.name);
    for (number, (name, value)) in sample.labels.iter().enumerate() {
        let is_bound = matches!((kind, *name), (FamilyType::Histogram, "le") | (FamilyType::Summary, "quantile"));
        let canonical = is_bound.then(|| canonical(value));
        let open = if number == 0 { '{' } else { ',' };
        let _ = write!(out, "{open}{name}=\"{}\"", canonical.as_deref().unwrap_or(value));
    }
    let close = if sample.labels.is_empty() { "" } else { "}" };
    let _ = write!(out, "{close} {}", sample.value);
    if let Some(milliseconds) = sample.timestamp.as_deref().and_then(|text| text.parse::<i64>().ok()) {
        let sign = if milliseconds < 0 { "-" } else { "" };
        let milliseconds = milliseconds.unsigned_abs();
        let _ = write!(out, " {sign}{}.{:03}", milliseconds / 1000, milliseconds % 1000);
    }
}

/// A sample's name and labels as in the page.
fn as_written(sample: &Sample<'_>) -> String {
    let labels: Vec<String> = sample.labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
    format!("{}{{{}}}", sample.name, labels.join(","))
}

/// A bound of a bucket or a quantile in the one form that OpenMetrics allows: `1.0`, `+Inf`, `1e-05`, `1e+06`.
fn canonical(text: &str) -> String {
    match number(text) {
        Some(bound) if bound == f64::INFINITY => "+Inf".to_owned(),
        Some(bound) if bound == f64::NEG_INFINITY => "-Inf".to_owned(),
        Some(bound) if bound != 0.0 && !(1e-4..1e6).contains(&bound.abs()) => {
            let text = format!("{bound:e}");
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
            format!("{digits}e{sign}{exponent:0>2}")
        }
        Some(bound) => format!("{bound:?}"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
