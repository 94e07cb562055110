//! The machines that images are made for.

use serde::Deserialize;

/// Platform that a manifest is chosen for. The operating system is always Linux.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Platform {
    /// Architecture by the names of Go, such as `amd64` or `arm64`.
    pub architecture: String,
    /// Highest level of the instruction set, for `amd64` 1 to 4. Other architectures ignore it.
    #[serde(default = "lowest")]
    pub level: u8,
}

fn lowest() -> u8 {
    1
}

impl Platform {
    /// Returns the platform of this machine.
    #[must_use]
    pub fn current() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { architecture: architecture.to_owned(), level: level() }
    }

    /// Ranks an image's platform. Returns `None` where the image does not run; else a higher
    /// number is a better fit.
    pub(crate) fn rank(&self, os: &str, architecture: &str, variant: &str) -> Option<u8> {
        if os != "linux" || architecture != self.architecture {
            return None;
        }
        match (architecture, variant) {
            (_, "") => Some(1),
            ("amd64", variant) => {
                let level: u8 = variant.strip_prefix('v')?.parse().ok()?;
                (1..=self.level).contains(&level).then_some(level)
            }
            ("arm64", "v8") => Some(2),
            _ => None,
        }
    }
}

/// Finds the level of an x86-64 processor, by the psABI's table of microarchitecture levels.
#[cfg(target_arch = "x86_64")]
fn level() -> u8 {
    use std::arch::is_x86_feature_detected as has;
    let second = has!("cmpxchg16b") && has!("popcnt") && has!("sse4.2") && has!("ssse3");
    let third = has!("avx2") && has!("bmi1") && has!("bmi2") && has!("f16c") && has!("fma");
    let third = third && has!("lzcnt") && has!("movbe");
    match (second, third) {
        (true, true) => 3,
        (true, false) => 2,
        (false, _) => 1,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn level() -> u8 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_variant_that_runs_has_the_highest_rank() {
        let amd64 = Platform { architecture: "amd64".into(), level: 2 };
        assert_eq!(amd64.rank("linux", "amd64", ""), Some(1));
        assert_eq!(amd64.rank("linux", "amd64", "v2"), Some(2));
        for (os, architecture, variant) in [
            ("linux", "amd64", "v3"),
            ("linux", "amd64", "v0"),
            ("linux", "amd64", "x"),
            ("linux", "arm64", ""),
            ("windows", "amd64", ""),
            ("unknown", "unknown", ""),
        ] {
            assert_eq!(amd64.rank(os, architecture, variant), None, "{os} {architecture}");
        }
        let arm64 = Platform { architecture: "arm64".into(), level: 1 };
        assert!(arm64.rank("linux", "arm64", "v8") > arm64.rank("linux", "arm64", ""));
        assert_eq!(arm64.rank("linux", "arm64", "v9"), None);
    }

    #[test]
    fn current_platform_has_a_name_that_registries_use() {
        assert!(["amd64", "arm64"].contains(&Platform::current().architecture.as_str()));
    }
}
