//! Tests of the recorder, and of the names that the tree uses.

use super::*;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Files that may use described metrics alone.
const USERS: [&str; 2] = ["deploy/grafana/wrenn.json", "deploy/prometheus/rules.yml"];
/// Names of other things in the code.
const OTHERS: [&str; 3] = ["wrenn_adoption", "wrenn_changed", "wrenn_kernel"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Returns the names of metrics in a text.
fn names(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let words = text.split(|c: char| !is_part(c)).filter(|word| word.starts_with("wrenn_"));
    words.map(str::to_owned).collect()
}

/// Returns the name of the metric that a series belongs to. Histograms have series of their own.
fn described(series: &str) -> Option<&'static Metric> {
    let of = |name: &str| DESCRIBED.iter().find(|metric| metric.name == name);
    let ends = ["_bucket", "_sum", "_count"];
    let histogram = ends.iter().find_map(|end| of(series.strip_suffix(*end)?));
    let histogram = histogram.filter(|metric| metric.kind == Kind::Histogram);
    // A histogram has no series of its bare name.
    let plain = of(series).filter(|metric| metric.kind != Kind::Histogram);
    histogram.or(plain)
}

/// Collects the sources below a folder that are no tests.
fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() && name != "tests" {
            sources(&path, out);
        } else if name.ends_with(".rs") && name != "tests.rs" && name != "described.rs" {
            out.push(path);
        }
    }
}

/// Returns the names of metrics that a source has as string literals.
fn literals(source: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let ends = source.split("\"wrenn_").skip(1).filter_map(|rest| rest.split('"').next());
    let ends = ends.filter(|end| !end.is_empty() && end.chars().all(is_part));
    let names = ends.map(|end| format!("wrenn_{end}"));
    names.filter(|name| !OTHERS.contains(&name.as_str())).collect()
}

#[test]
fn histogram_is_rendered_with_the_same_buckets_everywhere() {
    let recorder = builder().build_recorder();
    let handle = recorder.handle();
    metrics::with_local_recorder(&recorder, || {
        metrics::histogram!("wrenn_capsule_create_seconds").record(0.02);
    });
    handle.run_upkeep();
    let text = handle.render();
    for line in [
        "wrenn_capsule_create_seconds_bucket{le=\"0.01\"} 0",
        "wrenn_capsule_create_seconds_bucket{le=\"0.025\"} 1",
        "wrenn_capsule_create_seconds_bucket{le=\"60\"} 1",
        "wrenn_capsule_create_seconds_bucket{le=\"+Inf\"} 1",
        "wrenn_capsule_create_seconds_count 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
    }
    assert!(!text.contains("quantile"), "{text}");
}

#[test]
fn descriptions_are_sorted_and_names_have_the_unit_of_their_kind() {
    assert!(DESCRIBED.is_sorted_by(|one, two| one.name < two.name));
    for Metric { name, kind, .. } in DESCRIBED {
        let fits = match kind {
            Kind::Counter => name.ends_with("_total"),
            Kind::Histogram => name.ends_with("_seconds"),
            Kind::Gauge => !name.ends_with("_total"),
        };
        assert!(fits, "{name}");
    }
}

#[test]
fn dashboard_and_alerts_use_described_metrics_alone() {
    for file in USERS {
        let used = names(&fs::read_to_string(root().join(file)).unwrap());
        assert!(used.len() > 10, "{file} uses only {used:?}");
        for name in used {
            assert!(described(&name).is_some(), "{file} uses {name}, which is not described");
        }
    }
}

#[test]
fn every_metric_in_the_code_is_described_and_the_other_way_round() {
    let mut files = Vec::new();
    for entry in fs::read_dir(root().join("crates")).unwrap().flatten() {
        let src = entry.path().join("src");
        if src.is_dir() {
            sources(&src, &mut files);
        }
    }
    let read = |path: &PathBuf| literals(&fs::read_to_string(path).unwrap());
    let used: BTreeSet<String> = files.iter().flat_map(read).collect();
    let known = DESCRIBED.iter().map(|metric| metric.name.to_owned()).collect::<BTreeSet<_>>();
    let missing: Vec<_> = used.difference(&known).collect();
    assert!(missing.is_empty(), "describe {missing:?} in metrics/described.rs");
    let unused: Vec<_> = known.difference(&used).collect();
    assert!(unused.is_empty(), "nothing sets {unused:?}");
}
