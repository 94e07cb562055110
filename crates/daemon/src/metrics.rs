//! The process's metrics: one recorder, whatever roles share the process.

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::sync::OnceLock;

/// Where the `metrics` macros write to.
#[derive(Clone, Debug)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// Makes the process's recorder, or finds the one that an earlier call made.
    pub fn install() -> Self {
        static ONE: OnceLock<Metrics> = OnceLock::new();
        let make = || {
            let recorder = PrometheusBuilder::new().build_recorder();
            let handle = recorder.handle();
            // Fails only when something else installed one, whose metrics are then not ours.
            let _ = metrics::set_global_recorder(recorder);
            Self(handle)
        };
        ONE.get_or_init(make).clone()
    }

    /// All of them in Prometheus' text form.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.run_upkeep();
        self.0.render()
    }
}
