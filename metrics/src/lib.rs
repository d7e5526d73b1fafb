//! Declares metrics, for both programs: one expression has the name, the help text, the labels of a metric with their values, and
//! when an operator looks at it, and registers it.
//!
//! A mechanism has a struct of its metrics beside it, which it declares with [`Declare`]: `declare.area("Bans")` is the part of the
//! documentation, `.when("…")` begins a family, `.of(…)` and `.named(…)` give it labels, and the last call its type. The program
//! composes these structs and ends with [`Declare::finish`]. docs/metrics.md is generated from all of it.

use std::cell::RefCell;
use std::sync::Arc;

use prometheus::core::{Collector, Metric};
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::MetricFamily;
use prometheus::{Encoder, HistogramOpts, Opts, Registry, TextEncoder};
pub use prometheus::{
    Error, Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, TEXT_FORMAT,
};

/// A metric, or Prometheus's reason to reject its declaration: a duplicate or invalid name, which is a bug.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Registers metrics and records their descriptions.
#[derive(Debug)]
pub struct Declare {
    registry: Registry,
    reference: RefCell<String>,
    buckets: &'static [f64],
}

impl Declare {
    /// Starts a catalogue. `buckets` are the upper bounds of its histograms, in seconds.
    #[must_use]
    pub fn new(buckets: &'static [f64]) -> Self {
        Self { registry: Registry::new(), reference: RefCell::default(), buckets }
    }

    /// The part of the documentation to which the metrics belong that are declared with it.
    pub const fn area(&self, name: &'static str) -> Area<'_> {
        Area { declare: self, name }
    }

    /// The metric that shows the program's version, and those of its process.
    ///
    /// # Errors
    /// The names are taken: a bug.
    pub fn program(&self, name: &str, version: &str) -> Result<()> {
        let area = self.area("Process");
        let build =
            area.when("After a deploy: does each Machine run the new version?").named("version", "of the program");
        build.gauges(name, "Always 1; the label has the version.")?.with_label_values(&[version]).set(1);
        let process = ProcessCollector::for_self();
        let when = |name: &str| match name {
            "process_cpu_seconds_total" => "Slow without a slow app: is a processor busy?",
            "process_open_fds" | "process_max_fds" => "Before connections fail for want of descriptors.",
            "process_start_time_seconds" => "A counter began again: has the process restarted?",
            "process_threads" => "It grows: threads are leaked.",
            _ => "It grows for days: memory is leaked, or the Machine is too small.",
        };
        for family in process.collect() {
            self.describe(&family, area.name, when(family.name()), &[]);
        }
        self.registry.register(Box::new(process))
    }

    /// The catalogue of everything declared.
    #[must_use]
    pub fn finish(self) -> Catalogue {
        Catalogue { registry: self.registry, reference: self.reference.into_inner().into() }
    }

    fn describe(&self, family: &MetricFamily, area: &str, when: &str, labels: &[Label]) {
        let kind = format!("{:?}", family.get_field_type()).to_lowercase();
        let labels: Vec<String> = labels.iter().map(|Label { name, values }| format!("`{name}`: {values}")).collect();
        let (name, help) = (family.name(), family.help());
        let line = [area, name, &kind, unit(name), &labels.join("; "), help, when].join("\t");
        self.reference.borrow_mut().extend([&line, "\n"]);
    }
}

/// The unit of a metric's values, as its name has it; empty for a number of things.
#[must_use]
pub fn unit(name: &str) -> &'static str {
    let name = name.strip_suffix("_total").unwrap_or(name);
    ["seconds", "bytes"]
        .into_iter()
        .find(|unit| name.strip_suffix(unit).is_some_and(|rest| rest.ends_with('_')))
        .unwrap_or("")
}

/// See [`Declare::area`].
#[derive(Clone, Copy, Debug)]
pub struct Area<'d> {
    declare: &'d Declare,
    name: &'static str,
}

impl<'d> Area<'d> {
    /// Begins a family: when an operator looks at it.
    #[must_use = "a family is declared by its last call, such as `counter`"]
    pub const fn when(self, text: &'static str) -> Family<'d> {
        Family { area: self, when: text, labels: Vec::new() }
    }
}

/// A label, and the values that it may have, in words.
#[derive(Debug)]
struct Label {
    name: &'static str,
    values: String,
}

/// A family that is being declared.
#[derive(Debug)]
#[must_use = "a family is declared by its last call, such as `counter`"]
pub struct Family<'d> {
    area: Area<'d>,
    when: &'static str,
    labels: Vec<Label>,
}

impl Family<'_> {
    /// Adds a label that has one of these values.
    pub fn of(mut self, name: &'static str, values: impl IntoIterator<Item = &'static str>) -> Self {
        let values: Vec<String> = values.into_iter().map(|value| format!("`{value}`")).collect();
        self.labels.push(Label { name, values: values.join(", ") });
        self
    }

    /// Adds a label whose values come from `source`, such as the configuration.
    pub fn named(mut self, name: &'static str, source: &str) -> Self {
        self.labels.push(Label { name, values: source.to_owned() });
        self
    }

    /// A counter without labels.
    pub fn counter(self, name: &str, help: &str) -> Result<IntCounter> {
        self.add(IntCounter::new(name, help)?)
    }

    /// A family of counters.
    pub fn counters(self, name: &str, help: &str) -> Result<IntCounterVec> {
        let family = IntCounterVec::new(Opts::new(name, help), &self.names())?;
        self.add(family)
    }

    /// A family with one label, and its counters, in the order of `values`. All exist from the start: the first increment of a new
    /// series would not be seen as an increase.
    pub fn counter_for_each<const N: usize>(
        self,
        name: &str,
        help: &str,
        label: &'static str,
        values: [&'static str; N],
    ) -> Result<[IntCounter; N]> {
        let family = self.of(label, values).counters(name, help)?;
        Ok(values.map(|value| family.with_label_values(&[value])))
    }

    /// A gauge without labels.
    pub fn gauge(self, name: &str, help: &str) -> Result<IntGauge> {
        self.add(IntGauge::new(name, help)?)
    }

    /// A gauge that is 1 at the start.
    pub fn gauge_at_one(self, name: &str, help: &str) -> Result<IntGauge> {
        let gauge = self.gauge(name, help)?;
        gauge.set(1);
        Ok(gauge)
    }

    /// A family of gauges.
    pub fn gauges(self, name: &str, help: &str) -> Result<IntGaugeVec> {
        let family = IntGaugeVec::new(Opts::new(name, help), &self.names())?;
        self.add(family)
    }

    /// A gauge with fractions.
    pub fn real(self, name: &str, help: &str) -> Result<Gauge> {
        self.add(Gauge::new(name, help)?)
    }

    /// A family of gauges with fractions.
    pub fn reals(self, name: &str, help: &str) -> Result<GaugeVec> {
        let family = GaugeVec::new(Opts::new(name, help), &self.names())?;
        self.add(family)
    }

    /// A histogram without labels.
    pub fn histogram(self, name: &str, help: &str) -> Result<Histogram> {
        let buckets = self.area.declare.buckets.to_vec();
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))?)
    }

    /// A family of histograms.
    pub fn histograms(self, name: &str, help: &str) -> Result<HistogramVec> {
        let buckets = self.area.declare.buckets;
        self.histograms_in(buckets, name, help)
    }

    /// A family of histograms with upper bounds of its own.
    pub fn histograms_in(self, buckets: &[f64], name: &str, help: &str) -> Result<HistogramVec> {
        let family = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), &self.names())?;
        self.add(family)
    }

    fn names(&self) -> Vec<&str> {
        self.labels.iter().map(|label| label.name).collect()
    }

    fn add<C: Collector + Clone + 'static>(self, collector: C) -> Result<C> {
        let Area { declare, name: area } = self.area;
        declare.registry.register(Box::new(collector.clone()))?;
        collector.collect().iter().for_each(|family| declare.describe(family, area, self.when, &self.labels));
        Ok(collector)
    }
}

/// How many observations of a histogram are at most each of its first `N` upper bounds, and how many there are in all.
pub fn cumulative<const N: usize>(histogram: &Histogram) -> ([u64; N], u64) {
    let shown = histogram.metric();
    let shown = shown.get_histogram();
    let mut counts = [0; N];
    for (count, bucket) in counts.iter_mut().zip(shown.get_bucket()) {
        *count = bucket.cumulative_count();
    }
    (counts, shown.get_sample_count())
}

/// The sum of a family's counters.
pub fn sum(family: &IntCounterVec) -> u64 {
    let families = family.collect();
    // Counters are whole numbers, and exact up to 2^53.
    families.iter().flat_map(|family| family.get_metric()).map(|metric| metric.get_counter().get_value() as u64).sum()
}

/// All metrics of a program. Clones show the same metrics.
#[derive(Clone, Debug)]
pub struct Catalogue {
    registry: Registry,
    reference: Arc<str>,
}

impl Catalogue {
    /// Area, name, type, unit, labels, help of each metric, and when to look at it: one line each, separated by tabs. docs/metrics.md is
    /// made from it.
    #[must_use]
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// The exposition, in Prometheus's text format.
    ///
    /// # Errors
    /// The encoder's error: a bug.
    pub fn render(&self) -> Result<String> {
        let mut text = Vec::with_capacity(16 << 10);
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        String::from_utf8(text).map_err(|e| Error::Msg(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declaration_is_documentation() {
        let declare = Declare::new(&[1.0]);
        let area = declare.area("Area");
        let [one, _] = area.when("It rises.").counter_for_each("a_total", "All.", "kind", ["one", "two"]).unwrap();
        one.inc();
        area.when("It is slow.").named("route", "a route's name").histograms("b_seconds", "How long.").unwrap();
        area.when("Twice.").gauge("c", "A number.").unwrap();
        assert!(area.when("Twice.").gauge("c", "A number.").is_err());
        let catalogue = declare.finish();
        assert_eq!(
            catalogue.reference(),
            "Area\ta_total\tcounter\t\t`kind`: `one`, `two`\tAll.\tIt rises.\n\
             Area\tb_seconds\thistogram\tseconds\t`route`: a route's name\tHow long.\tIt is slow.\n\
             Area\tc\tgauge\t\t\tA number.\tTwice.\n"
        );
        assert!(catalogue.render().unwrap().contains("a_total{kind=\"one\"} 1\na_total{kind=\"two\"} 0\n"));
    }

    #[test]
    fn a_name_ends_in_its_unit() {
        for (name, known) in [
            ("a_seconds", "seconds"),
            ("a_bytes_total", "bytes"),
            ("a_timestamp_seconds", "seconds"),
            ("seconds", ""),
            ("a_total", ""),
            ("a_seconds_ago", ""),
        ] {
            assert_eq!(unit(name), known, "{name}");
        }
    }
}
