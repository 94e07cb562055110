//! Platforms with real guests for benchmarks, and the processes of their machines.

use serde_json::{Value, json};
use tests::{Driver, Platform, processes_of};

/// Variable that names the driver of all guests: `tcg` or `kvm`.
const DRIVER: &str = "WRENN_BENCH_DRIVER";

/// Memory that a host may promise, in MiB. No benchmark measures the limit.
const MEMORY: (&str, &str) = ("WRENN_MEMORY_MIB", "100000");

/// Returns the driver of all guests: the named one, or the one of the whole system's tests.
pub(crate) fn driver() -> String {
    let other = if tests::firecracker().is_some() { "firecracker" } else { "tcg" };
    std::env::var(DRIVER).unwrap_or_else(|_| other.to_owned())
}

/// Returns the variables of a platform: memory, the driver, then further ones.
pub(crate) fn vars<'a>(driver: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut all = vec![MEMORY, ("WRENN_DRIVER", driver)];
    all.extend(more);
    all
}

/// Starts a platform with real guests and further variables.
pub(crate) async fn platform(more: &[(&str, &str)]) -> Platform {
    platform_by(&driver(), more).await
}

/// Starts a platform whose guests have this driver.
pub(crate) async fn platform_by(driver: &str, more: &[(&str, &str)]) -> Platform {
    Platform::start(Driver::Guests, &vars(driver, more)).await
}

/// Lifts the limits of all teams.
pub(crate) async fn lift_limits(platform: &Platform) {
    let limits = format!("/v1/admin/teams/team-{}/limits", "0".repeat(25));
    let none = json!({ "capsules": 0, "vcpus": 0, "memory_mib": 0, "creates_per_sec": 0,
        "requests_per_sec": 0 });
    platform.client().put(&limits, &none).await.expect(200);
}

/// Returns the process of a capsule's machine. A capsule from the pool of ready capsules has a
/// machine with another name, which the capsule's record tells.
pub(crate) fn machine_of(platform: &Platform, capsule: &str) -> i32 {
    let record = platform.dir().join(format!("capsules/{capsule}/capsule.json"));
    let record: Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    processes_of(record["name"].as_str().unwrap_or(capsule))[0]
}
