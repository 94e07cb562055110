//! Traces of requests: their ids, their spans, and the times of an operation's stages. All spans of
//! the process are made here.
//!
//! A trace has the form of W3C's Trace Context. A request continues the trace that its client
//! names, or begins a new one. Each log line of the request has the trace's id. [`stage`] measures
//! a part of an operation once, for a histogram and for a span. `otlp` exports spans.

use crate::otlp;
pub use crate::trace_parent::TraceParent;
use std::future::Future;
use std::time::{Duration, Instant};
use tracing::field::{self, display};
use tracing::{Instrument, Span};

/// Name of the header that carries a trace.
pub const TRACEPARENT: &str = "traceparent";

tokio::task_local! {
    /// Trace of the request that a task works for.
    static CURRENT: TraceParent;
}

impl TraceParent {
    /// Returns the trace of the request that this task works for, with the current span.
    #[must_use]
    pub fn current() -> Option<Self> {
        let known = CURRENT.try_with(|parent| *parent).ok()?;
        Some(otlp::parent(&Span::current()).unwrap_or(known))
    }
}

/// A request's span and trace, for the tasks that work for the request.
#[derive(Debug, Clone)]
pub struct Trace {
    span: Span,
    parent: TraceParent,
}

impl Trace {
    /// Begins the span `name` of a request, in the trace that its client gave or in a new one.
    /// Names must be few, so they hold no ids.
    #[must_use]
    pub fn begin(name: &str, given: Option<TraceParent>) -> Self {
        let span = tracing::info_span!("request", otel.name = name, trace_id = field::Empty);
        if let Some(given) = given {
            otlp::continue_trace(&span, given);
        }
        let parent = otlp::parent(&span).or(given).unwrap_or_else(TraceParent::random);
        span.record("trace_id", display(parent.trace_id()));
        Self { span, parent }
    }

    /// Returns the request that this task works for, to continue in another task.
    #[must_use]
    pub fn current() -> Option<Self> {
        let parent = CURRENT.try_with(|parent| *parent).ok()?;
        Some(Self { span: Span::current(), parent })
    }

    /// Does work for the request. Its log lines and spans belong to the request's.
    pub async fn scope<F: Future>(self, work: F) -> F::Output {
        CURRENT.scope(self.parent, work.instrument(self.span)).await
    }
}

/// Does the work of a request, if `trace` is one.
pub async fn scoped<F: Future>(trace: Option<Trace>, work: F) -> F::Output {
    match trace {
        Some(trace) => trace.scope(work).await,
        None => work.await,
    }
}

/// Does a stage of an operation. The stage is a span, and its time goes into the histogram `metric`
/// if it succeeds. Names must be few, since they are labels.
///
/// # Errors
/// Returns the error of the work.
pub async fn stage<T, E>(
    metric: &'static str,
    name: &'static str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let (done, took) = timed(name, work).await;
    if done.is_ok() {
        metrics::histogram!(metric, "stage" => name).record(took.as_secs_f64());
    }
    done
}

/// Does an operation, which is a span. Its time goes into the histogram `metric` if it succeeds. A
/// gauge counts the operations under way.
///
/// # Errors
/// Returns the error of the work.
pub async fn operation<T, E>(
    metric: &'static str,
    name: &'static str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let _under_way = UnderWay::begin(name);
    let (done, took) = timed(name, work).await;
    if done.is_ok() {
        metrics::histogram!(metric).record(took.as_secs_f64());
    }
    done
}

/// Measures work, in a span if a request waits for it.
async fn timed<T, E>(
    name: &'static str,
    work: impl Future<Output = Result<T, E>>,
) -> (Result<T, E>, Duration) {
    // Work of the platform's own has no trace, and its spans would each begin one.
    let span = match CURRENT.try_with(|_| ()) {
        Ok(()) => {
            tracing::info_span!("stage", otel.name = name, otel.status_code = field::Empty)
        }
        Err(_) => Span::none(),
    };
    let began = Instant::now();
    let done = work.instrument(span.clone()).await;
    if done.is_err() {
        span.record("otel.status_code", "ERROR");
    }
    (done, began.elapsed())
}

/// An operation under way, as the gauge counts it.
struct UnderWay(metrics::Gauge);

impl UnderWay {
    fn begin(operation: &'static str) -> Self {
        let gauge = metrics::gauge!("wrenn_operations_under_way", "operation" => operation);
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

#[cfg(test)]
mod tests;
