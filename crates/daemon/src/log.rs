//! The process's log on standard error, and the exporter of its spans.

use crate::otlp::{Exporter, SpanExport};
use crate::trace_parent::TARGET;
use std::io::{self, IsTerminal};
use tracing::Subscriber;
use tracing_subscriber::filter::{Directive, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, registry};

/// Directive that keeps the spans of requests, whatever else the filter hides. Each log line of a
/// request then has the trace's id.
const SPANS: &str = "daemon::trace=info";

/// The process's logs and spans. The last spans are sent when the value is dropped.
#[must_use = "the exporter of spans ends with it"]
pub struct Logs {
    _exporter: Option<Exporter>,
}

/// Sends logs to standard error, as text or, when `json`, as JSON. `filter` has the form of
/// tracing's `EnvFilter`. Spans go to the collector of `spans`, if there is one.
///
/// # Errors
/// Fails when spans cannot be exported, for example to an endpoint that is no URL.
pub fn log_to_stderr(filter: &str, json: bool, spans: Option<&SpanExport>) -> anyhow::Result<Logs> {
    let exporter = spans.map(Exporter::start).transpose()?;
    // All filters hold for all layers. Filters of single layers lose lines, since code between a
    // filter's answer and its event may ask the filter again.
    let ours = filter_fn(|metadata| metadata.is_event() || metadata.target() == TARGET);
    let lines = registry().with(ours).with(line_filter(filter)).with(line_layer(json));
    // A second call, as in tests, changes nothing.
    let _ = match &exporter {
        None => lines.try_init(),
        Some(exporter) => {
            let spans = exporter.layer();
            lines.with(spans).try_init()
        }
    };
    Ok(Logs { _exporter: exporter })
}

/// Returns the filter of lines, which admits the spans of requests too.
fn line_filter(filter: &str) -> EnvFilter {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    match SPANS.parse::<Directive>() {
        Ok(spans) => filter.add_directive(spans),
        Err(_) => filter,
    }
}

/// Returns the layer that writes lines.
fn line_layer<S>(json: bool) -> impl Layer<S> + Send + Sync + use<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let layer = fmt::layer::<S>().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    // On a full disk the layer would report its own failure on standard error. It would panic if
    // that failed too.
    let layer = layer.log_internal_errors(false);
    if json { layer.json().boxed() } else { layer.boxed() }
}
