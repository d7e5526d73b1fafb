//! Exemplars: for each bucket of a histogram, the latest recorded request in it (OpenMetrics 1.0, "Exemplars").

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_wire::trace_context::{SpanId, TraceId};

use crate::engine::metrics::BUCKETS;

/// The exemplars of one histogram. Only recorded requests come here, so a lock serves.
#[derive(Debug, Default)]
pub struct Exemplars(Mutex<[Option<Exemplar>; BUCKETS.len() + 1]>);

#[derive(Clone, Copy, Debug)]
struct Exemplar {
    seconds: f64,
    at: Duration,
    trace_id: TraceId,
    span_id: SpanId,
}

impl Exemplars {
    /// Replaces the exemplar of the bucket.
    pub fn add(&self, duration: Duration, (trace_id, span_id): (TraceId, SpanId)) {
        let seconds = duration.as_secs_f64();
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut exemplars = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        exemplars[bucket] = Some(Exemplar { seconds, at, trace_id, span_id });
    }

    /// Calls `each` with the upper bound of each bucket that has an exemplar, and the exemplar as OpenMetrics has it.
    pub fn each(&self, mut each: impl FnMut(String, String)) {
        let exemplars = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (bucket, exemplar) in exemplars.iter().enumerate() {
            let Some(Exemplar { seconds, at, trace_id, span_id }) = exemplar else { continue };
            let bound = BUCKETS.get(bucket).map_or_else(|| "+Inf".to_owned(), f64::to_string);
            let labels = format!("{{trace_id=\"{trace_id}\",span_id=\"{span_id}\"}}");
            each(bound, format!("{labels} {seconds} {}.{:03}", at.as_secs(), at.subsec_millis()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_has_its_latest_exemplar() {
        let exemplars = Exemplars::default();
        for (milliseconds, trace) in [(2, 1), (2, 2), (500, 3), (130_000, 4)] {
            exemplars.add(Duration::from_millis(milliseconds), (TraceId(trace), SpanId(9)));
        }
        let mut shown = Vec::new();
        exemplars.each(|bound, exemplar| {
            let (labels, rest) = exemplar.split_once("} ").unwrap();
            let trace: u128 = labels[11..43].parse().unwrap();
            shown.push((bound, trace, rest.split(' ').next().unwrap().to_owned()));
        });
        let expected = [("0.0025", 2, "0.002"), ("0.5", 3, "0.5"), ("+Inf", 4, "130")];
        assert_eq!(shown, expected.map(|(bound, trace, value)| (bound.to_owned(), trace, value.to_owned())));
    }
}
