//! The process's metrics. All roles in a process share one recorder.

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::sync::OnceLock;

/// Handle of the recorder that the `metrics` macros write to.
#[derive(Clone, Debug)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// Installs the process's recorder, or returns the one that an earlier call installed.
    pub fn install() -> Self {
        static ONE: OnceLock<Metrics> = OnceLock::new();
        let make = || {
            let recorder = PrometheusBuilder::new().build_recorder();
            let handle = recorder.handle();
            // This fails only when other code installed a recorder. Its metrics are not rendered
            // here.
            let _ = metrics::set_global_recorder(recorder);
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
