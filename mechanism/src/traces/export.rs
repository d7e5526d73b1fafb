//! Sends recorded requests to a collector, off the way of requests.

use std::time::Duration;

use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use outrigger_identity::http_client::{self, ClientError};
use outrigger_rules::sections::traces::{Export, Protocol};
use tokio::time::Instant;

use crate::traces::metrics::{Loss, TraceMetrics};
use crate::traces::spans::spans;
use crate::traces::{Queue, Queued};

/// The most requests in one message.
const MOST_IN_BATCH: usize = 256;
/// How long requests are gathered.
const GATHER: Duration = Duration::from_secs(1);
/// How often the queue is looked into meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The pause after a failure; doubles with each failure up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Why no exporter can be made.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The library for gRPC or OTLP.
    #[error(transparent)]
    Otlp(#[from] ExporterBuildError),
    /// The library for HTTP.
    #[error(transparent)]
    Http(#[from] ClientError),
}

/// Sends recorded requests to a collector.
#[derive(Debug)]
pub struct Exporter {
    queue: Queue,
    exporter: SpanExporter,
    url: String,
    scope: InstrumentationScope,
    metrics: TraceMetrics,
}

impl Exporter {
    /// An exporter of `queue`, inside of a runtime. `machine` is the name of this Machine. Connects later.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn new(
        queue: Queue,
        export: &Export,
        machine: Option<&str>,
        metrics: TraceMetrics,
    ) -> Result<Self, ExportError> {
        let mut exporter = exporter(export)?;
        let mut resource = Resource::builder()
            .with_service_name(export.service.clone())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        if let Some(machine) = machine {
            resource = resource.with_attribute(KeyValue::new("service.instance.id", machine.to_owned()));
        }
        exporter.set_resource(&resource.build());
        let scope = InstrumentationScope::builder("outrigger").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok(Self { queue, exporter, url: export.url.clone(), scope, metrics })
    }

    /// Sends until the queue is closed and empty. Spans of a message that fails are dropped and counted.
    pub async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        let mut is_failing = false;
        let mut gathered = Vec::new();
        loop {
            if !self.queue.gather(&mut gathered).await {
                return;
            }
            let batch: Vec<SpanData> =
                gathered.drain(..).flat_map(|queued| spans(&queued.finished, &self.scope)).collect();
            let number = batch.len() as u64;
            match self.exporter.export(batch).await {
                Ok(()) => {
                    self.metrics.sent.inc_by(number);
                    if std::mem::take(&mut is_failing) {
                        tracing::info!(collector = self.url, "the collector accepts traces again");
                    }
                    pause = FIRST_PAUSE;
                }
                Err(error) => {
                    self.metrics.lost(Loss::NotSent, number);
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(
                            collector = self.url,
                            "traces cannot be sent: {error}; they are dropped until the collector accepts them. Check \
                             traces.endpoint, traces.protocol and OTEL_EXPORTER_OTLP_HEADERS"
                        );
                    }
                    let Queue { requests, closing } = &mut self.queue;
                    if requests.is_closed() {
                        return;
                    }
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = closing.notified() => requests.close(),
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }
}

impl Queue {
    /// Waits for a request, then for others until there are enough or their time is over. False: it is closed and empty.
    async fn gather(&mut self, gathered: &mut Vec<Queued>) -> bool {
        let Self { requests, closing } = self;
        let taken = tokio::select! {
            taken = requests.recv_many(gathered, MOST_IN_BATCH) => taken,
            () = closing.notified() => {
                requests.close();
                requests.recv_many(gathered, MOST_IN_BATCH).await
            }
        };
        let until = Instant::now() + GATHER;
        while gathered.len() < MOST_IN_BATCH && Instant::now() < until && !requests.is_closed() {
            // Nobody waits at the queue meanwhile, so a request that is put into it wakes no thread.
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = closing.notified() => requests.close(),
            }
            while gathered.len() < MOST_IN_BATCH
                && let Ok(queued) = requests.try_recv()
            {
                gathered.push(queued);
            }
        }
        taken > 0
    }
}

fn exporter(export: &Export) -> Result<SpanExporter, ExportError> {
    let has_tls = export.url.starts_with("https:");
    match export.protocol {
        Protocol::Grpc => {
            let mut builder =
                SpanExporter::builder().with_tonic().with_endpoint(&export.url).with_timeout(export.timeout);
            if has_tls {
                builder = builder.with_tls_config(ClientTlsConfig::new().with_enabled_roots());
            }
            Ok(builder.build()?)
        }
        Protocol::HttpProtobuf => {
            let client = http_client::client(has_tls, export.timeout)?;
            let builder = SpanExporter::builder()
                .with_http()
                .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
                .with_endpoint(&export.url)
                .with_timeout(export.timeout)
                .with_http_client(client);
            Ok(builder.build()?)
        }
    }
}
