//! Export of spans by OTLP, as protobuf over HTTP. Without an endpoint there is no thread, no layer
//! and no client.
//!
//! The exporter has a thread and a bounded queue of its own. When the queue is full, further spans
//! are dropped. So a collector that is away costs nothing else.

use crate::trace_parent::TraceParent;
use anyhow::Context;
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider,
};
use opentelemetry_otlp::{Protocol, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::registry::LookupSpan;

/// Time limit of the last export, at the end of the process.
const LAST: Duration = Duration::from_secs(2);
/// Path of spans below a collector's endpoint.
const PATH: &str = "/v1/traces";

/// Destination of a process's spans.
#[derive(Debug, Clone)]
pub struct SpanExport {
    /// URL of the collector, without the path of spans.
    pub endpoint: String,
    /// Name of the process's role, as the attribute `service.name`.
    pub service: String,
}

/// Running exporter.
pub(crate) struct Exporter(SdkTracerProvider);

impl Exporter {
    /// Starts the exporter. The queue's size and the times between exports are the library's
    /// defaults, unless `OTEL_BSP_…` sets others.
    ///
    /// # Errors
    /// Fails when the endpoint is no URL.
    pub(crate) fn start(to: &SpanExport) -> anyhow::Result<Self> {
        let is_url = to.endpoint.starts_with("http://") || to.endpoint.starts_with("https://");
        anyhow::ensure!(
            is_url,
            "OTEL_EXPORTER_OTLP_ENDPOINT must be a URL such as http://127.0.0.1:4318"
        );
        // The exporter's client needs it, also for plain HTTP.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let url = format!("{}{PATH}", to.endpoint.trim_end_matches('/'));
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(url)
            .build()
            .context("cannot export spans to OTEL_EXPORTER_OTLP_ENDPOINT")?;
        let resource = Resource::builder().with_service_name(to.service.clone()).build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(Watched { exporter, is_away: AtomicBool::new(false) })
            .with_resource(resource)
            .build();
        Ok(Self(provider))
    }

    /// Returns the layer that gives spans to the exporter. The lines of a request become events of its
    /// spans.
    pub(crate) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        tracing_opentelemetry::layer::<S>()
            .with_tracer(self.0.tracer("wrenn"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        // A collector that does not answer may lose the last spans.
        let _ = self.0.shutdown_with_timeout(LAST);
    }
}

/// Exporter whose failures are counted, and logged when they begin and when they end.
#[derive(Debug)]
struct Watched {
    exporter: opentelemetry_otlp::SpanExporter,
    /// True after an export failed.
    is_away: AtomicBool,
}

impl SpanExporter for Watched {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        let sent = self.exporter.export(batch).await;
        let outcome = if sent.is_ok() { "sent" } else { "lost" };
        metrics::counter!("wrenn_spans_total", "outcome" => outcome).increment(count);
        let was_away = self.is_away.swap(sent.is_err(), Ordering::Relaxed);
        match &sent {
            Ok(()) if was_away => tracing::info!("the collector of spans answers again"),
            Err(error) if !was_away => tracing::warn!(%error, "cannot export spans"),
            Ok(()) | Err(_) => {}
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Makes a new span part of a trace that another process began. Does nothing without an exporter.
pub(crate) fn continue_trace(span: &Span, parent: TraceParent) {
    let (trace, id, sampled) = parent.parts();
    let context = SpanContext::new(
        TraceId::from_bytes(trace.to_be_bytes()),
        SpanId::from_bytes(id.to_be_bytes()),
        if sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED },
        true,
        TraceState::NONE,
    );
    // Without an exporter the span has no context that could be set.
    let _ = span.set_parent(opentelemetry::Context::new().with_remote_span_context(context));
}

/// Returns the trace and id of a span; `None` without an exporter.
pub(crate) fn parent(span: &Span) -> Option<TraceParent> {
    let context = span.context();
    let span = context.span();
    let ids = span.span_context();
    let trace = u128::from_be_bytes(ids.trace_id().to_bytes());
    TraceParent::new(trace, u64::from_be_bytes(ids.span_id().to_bytes()), ids.is_sampled())
}
