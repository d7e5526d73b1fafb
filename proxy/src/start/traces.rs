//! Starts and ends the export of traces.

use std::time::Duration;

use outrigger_rules::config::Config;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::engine::metrics::Metrics;
use crate::engine::state::State;
use crate::mechanism::traces::Traces;
use crate::mechanism::traces::export::Exporter;

/// How long the last traces may take.
const LAST_TRACES: Duration = Duration::from_secs(2);

/// The queue of traces and their exporter, if there is a collector. Without an exporter, no request is recorded.
pub(super) fn begin(config: &Config, metrics: &Metrics, runtime: &Runtime) -> Option<(Traces, Exporter)> {
    let export = &config.traces.as_ref()?.export;
    let (traces, queue) = Traces::new(export, metrics.traces.clone());
    let _context = runtime.enter();
    match Exporter::new(queue, export, config.machine(), metrics.traces.clone()) {
        Ok(exporter) => Some((traces, exporter)),
        Err(error) => {
            tracing::error!(collector = export.url, "no traces are sent: {error}; check [traces] and restart");
            None
        }
    }
}

/// Sends the last traces.
pub(super) async fn end(state: &State, exporting: Option<JoinHandle<()>>) {
    if let (Some(traces), Some(exporting)) = (&state.traces, exporting) {
        traces.close();
        let _ = tokio::time::timeout(LAST_TRACES, exporting).await;
    }
}
