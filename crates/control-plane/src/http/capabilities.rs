//! `GET /v1/capabilities`: the abilities and limits of this platform, for clients that show only
//! what there is. The answer tells nothing of teams or hosts, and anybody may ask for it.

use crate::app::App;
use crate::capsules::BULK_MAX;
use crate::limits::{METADATA_MAX, PUBLIC_PORTS_MAX};
use axum::Json;
use axum::extract::State;
use std::sync::Arc;
use types::resources::{MAX_TIMEOUT_SEC, Resources};

/// Parts of the API that every platform of this version has.
const FEATURES: [&str; 16] = [
    "audit",
    "builds",
    "capsules.bulk",
    "capsules.code",
    "capsules.lineage",
    "capsules.logs",
    "capsules.names",
    "capsules.passive",
    "capsules.ports",
    "capsules.processes",
    "capsules.summary",
    "capsules.terminals",
    "channels",
    "events.history",
    "snapshots",
    "usage",
];
/// Part of the API that is absent when the platform keeps no metrics.
const METRICS: &str = "capsules.metrics";

/// Returns the abilities and limits of the platform.
#[utoipa::path(
    operation_id = "get_capabilities",
    get, path = "/v1/capabilities", tag = "platform", security(()),
    responses((status = 200, body = api::Capabilities))
)]
pub(crate) async fn get(State(app): State<Arc<App>>) -> Json<api::Capabilities> {
    let metrics = (app.metrics_days > 0).then_some(METRICS);
    let public = app.public.authority().to_owned();
    let others = app.domains.names().iter().filter(|name| **name != public).cloned();
    Json(api::Capabilities {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        features: FEATURES.into_iter().chain(metrics).map(str::to_owned).collect(),
        domains: std::iter::once(public.clone()).chain(others).collect(),
        https: app.public.is_https(),
        signup: app.accounts.sign_up.as_str().to_owned(),
        providers: app.accounts.providers.iter().map(|provider| provider.name.clone()).collect(),
        mail: app.mailer.check().is_ok(),
        limits: limits(&app),
    })
}

fn limits(app: &App) -> api::CapabilityLimits {
    let size = |size: Resources| {
        let Resources { vcpus, memory_mib, disk_mib } = size;
        api::CapabilitySize { vcpus, memory_mib, disk_mib }
    };
    let wide = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    api::CapabilityLimits {
        smallest: size(Resources::MIN),
        largest: size(Resources::MAX),
        lifetime: MAX_TIMEOUT_SEC,
        metadata_bytes: wide(METADATA_MAX),
        public_ports: wide(PUBLIC_PORTS_MAX),
        bulk: wide(BULK_MAX),
        metrics_days: app.metrics_days,
    }
}
