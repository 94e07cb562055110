//! `pgrep NAME`: lists the processes whose name holds a text. `^` and `$` at its ends stand for the
//! begin and the end of the name.

use super::print;
use std::fs;

pub(super) fn run(args: &[String]) -> i32 {
    let [pattern] = args else {
        print("pgrep: this helper knows only: pgrep NAME\n", true);
        return 2;
    };
    let own = std::process::id();
    let mut found: Vec<u32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != own && name(*pid).is_some_and(|name| matches(pattern, &name)))
        .collect();
    found.sort_unstable();
    for pid in &found {
        print(&format!("{pid}\n"), false);
    }
    i32::from(found.is_empty())
}

/// Returns the name of a process, at most 15 bytes long.
fn name(pid: u32) -> Option<String> {
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end_matches('\n').to_owned())
}

fn matches(pattern: &str, name: &str) -> bool {
    let (begins, text) = pattern.strip_prefix('^').map_or((false, pattern), |text| (true, text));
    let (ends, text) = text.strip_suffix('$').map_or((false, text), |text| (true, text));
    match (begins, ends) {
        (true, true) => name == text,
        (true, false) => name.starts_with(text),
        (false, true) => name.ends_with(text),
        (false, false) => name.contains(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_found_by_a_part_of_their_name() {
        for (pattern, yes, no) in [
            ("ngin", "nginx", "x"),
            ("^ng", "nginx", "xng"),
            ("x$", "nginx", "xy"),
            ("^a$", "a", "ab"),
        ] {
            assert!(matches(pattern, yes) && !matches(pattern, no), "{pattern}");
        }
        assert_eq!(run(&["no such process".to_owned()]), 1);
        assert_eq!(run(&[]), 2);
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert_eq!(run(&["^sleep$".to_owned()]), 0);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
