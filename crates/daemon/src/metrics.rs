//! The process's metrics. All roles in a process share one recorder.

mod described;

pub use described::{DESCRIBED, Kind, Metric};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::sync::OnceLock;

/// Upper bounds of the buckets of all histograms, in seconds. All processes have the same ones, so
/// their histograms add up.
const BUCKETS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Handle of the recorder that the `metrics` macros write to.
#[derive(Clone, Debug)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// Installs the process's recorder, or returns the one that an earlier call installed.
    pub fn install() -> Self {
        static ONE: OnceLock<Metrics> = OnceLock::new();
        let make = || {
            let recorder = builder().build_recorder();
            let handle = recorder.handle();
            // This fails only when other code installed a recorder. Its metrics are not rendered
            // here.
            let _ = metrics::set_global_recorder(recorder);
            DESCRIBED.iter().for_each(Metric::describe);
            Self(handle)
        };
        ONE.get_or_init(make).clone()
    }

    /// Renders all metrics in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.run_upkeep();
        self.0.render()
    }
}

fn builder() -> PrometheusBuilder {
    let builder = PrometheusBuilder::new();
    // Only an empty list of bounds is refused.
    builder.set_buckets(&BUCKETS).unwrap_or_else(|_| PrometheusBuilder::new())
}

/// Sets the gauge of a certificate's end, in seconds since 1970.
pub fn report_expiry(certificate: &'static str, at: i64) {
    let gauge =
        metrics::gauge!("wrenn_certificate_expires_at_seconds", "certificate" => certificate);
    // A time has fewer digits than a float.
    gauge.set(at as f64);
}

#[cfg(test)]
mod tests;
