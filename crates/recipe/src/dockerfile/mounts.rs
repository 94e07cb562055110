//! The mounts of RUN. Kinds that the engine cannot give are refused by name.

use crate::fault::shorten;
use crate::steps::Mount;

/// Reads the value of `--mount`.
///
/// # Errors
/// Names the kind or option that is not supported.
pub(super) fn read(value: &str) -> Result<Mount, String> {
    let (mut kind, mut target, mut id, mut size) = ("bind", None, None, None);
    let mut others = Vec::new();
    for option in value.split(',') {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        match name.trim().to_ascii_lowercase().as_str() {
            "type" => kind = value,
            "target" | "dst" | "destination" => target = Some(value),
            "id" => id = Some(value.to_owned()),
            "size" => size = Some(bytes(value)?),
            other => others.push(other.to_owned()),
        }
    }
    let options: &[&str] = match kind {
        "tmpfs" => &[],
        // The platform's caches belong to root and are never used by two builds at once.
        "cache" => &["sharing", "mode", "uid", "gid"],
        "bind" | "secret" | "ssh" => {
            return Err(format!("--mount=type={kind} is not supported"));
        }
        other => return Err(format!("--mount has the unknown type `{}`", shorten(other))),
    };
    if let Some(other) = others.iter().find(|name| !options.contains(&name.as_str())) {
        let other = shorten(other);
        return Err(format!("--mount=type={kind} with the option `{other}` is not supported"));
    }
    let target = target.filter(|target| !target.is_empty());
    let target = target.ok_or_else(|| format!("--mount=type={kind} has no target"))?.to_owned();
    match (kind, id, size) {
        ("tmpfs", None, size) => Ok(Mount::Tmpfs { target, size }),
        ("tmpfs", Some(_), _) => Err("--mount=type=tmpfs takes no id".to_owned()),
        (_, id, None) => Ok(Mount::Cache { target, id }),
        (_, _, Some(_)) => Err("--mount=type=cache takes no size".to_owned()),
    }
}

/// Reads a size: digits with an optional unit `k`, `m` or `g`, in powers of 1024.
fn bytes(text: &str) -> Result<u64, String> {
    let bad = || format!("`{}` is no size", shorten(text));
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let (digits, shift) = match lower.chars().last() {
        Some('k') => (lower.strip_suffix('k'), 10),
        Some('m') => (lower.strip_suffix('m'), 20),
        Some('g') => (lower.strip_suffix('g'), 30),
        _ => (Some(lower), 0),
    };
    let count: u64 = digits.and_then(|digits| digits.parse().ok()).ok_or_else(bad)?;
    count.checked_mul(1 << shift).filter(|size| *size > 0).ok_or_else(bad)
}
