//! Declares metrics, for both programs: one expression has the name, the help text and the labels of a metric, and registers it.
//!
//! A mechanism has a struct of its metrics beside it, which it declares with [`Declare`]. The program composes these structs and ends
//! with [`Declare::finish`].

use std::cell::RefCell;
use std::sync::Arc;

use prometheus::core::{Collector, Metric};
use prometheus::process_collector::ProcessCollector;
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

    /// A counter without labels.
    pub fn counter(&self, name: &str, help: &str) -> Result<IntCounter> {
        self.add(IntCounter::new(name, help)?)
    }

    /// A family of counters.
    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
        self.add(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    /// A family with one label, and its counters, in the order of `values`. All exist from the start: the first increment of a new
    /// series would not be seen as an increase.
    pub fn counter_for_each<const N: usize>(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: [&str; N],
    ) -> Result<[IntCounter; N]> {
        let family = self.counters(name, help, &[label])?;
        Ok(values.map(|value| family.with_label_values(&[value])))
    }

    /// A gauge without labels.
    pub fn gauge(&self, name: &str, help: &str) -> Result<IntGauge> {
        self.add(IntGauge::new(name, help)?)
    }

    /// A gauge that is 1 at the start.
    pub fn gauge_at_one(&self, name: &str, help: &str) -> Result<IntGauge> {
        let gauge = self.gauge(name, help)?;
        gauge.set(1);
        Ok(gauge)
    }

    /// A family of gauges.
    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec> {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    /// A gauge with fractions.
    pub fn real(&self, name: &str, help: &str) -> Result<Gauge> {
        self.add(Gauge::new(name, help)?)
    }

    /// A family of gauges with fractions.
    pub fn reals(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec> {
        self.add(GaugeVec::new(Opts::new(name, help), labels)?)
    }

    /// A histogram without labels.
    pub fn histogram(&self, name: &str, help: &str) -> Result<Histogram> {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(self.buckets.to_vec()))?)
    }

    /// A family of histograms.
    pub fn histograms(&self, name: &str, help: &str, labels: &[&str]) -> Result<HistogramVec> {
        self.histograms_in(self.buckets, name, help, labels)
    }

    /// A family of histograms with upper bounds of its own.
    pub fn histograms_in(&self, buckets: &[f64], name: &str, help: &str, labels: &[&str]) -> Result<HistogramVec> {
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)?)
    }

    /// The metric that shows the program's version, and those of its process.
    pub fn program(&self, name: &str, version: &str) -> Result<()> {
        let build = self.gauges(name, "Always 1; the label has the version.", &["version"])?;
        build.with_label_values(&[version]).set(1);
        let process = ProcessCollector::for_self();
        self.describe(&process);
        self.registry.register(Box::new(process))
    }

    /// The catalogue of everything declared.
    #[must_use]
    pub fn finish(self) -> Catalogue {
        Catalogue { registry: self.registry, reference: self.reference.into_inner().into() }
    }

    fn add<C: Collector + Clone + 'static>(&self, collector: C) -> Result<C> {
        self.describe(&collector);
        self.registry.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn describe(&self, collector: &dyn Collector) {
        let families = collector.collect();
        let kind =
            |name: &str| families.iter().find(|family| family.name() == name).map(|family| family.get_field_type());
        let lines = collector.desc().into_iter().map(|metric| {
            let kind = kind(&metric.fq_name).map_or_else(String::new, |kind| format!("{kind:?}").to_lowercase());
            format!("{}\t{kind}\t{}\t{}\n", metric.fq_name, metric.variable_labels.join(", "), metric.help)
        });
        self.reference.borrow_mut().extend(lines);
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
    /// The name, type, labels and help of each metric, one line each, separated by tabs: the source of docs/metrics.md.
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
