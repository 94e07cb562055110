//! A `.dockerignore` and, after a NUL, paths of a context.
#![no_main]

use libfuzzer_sys::fuzz_target;
use recipe::ignore::Ignore;
use recipe::placement::{Sources, member};

/// Largest input, in bytes. Patterns times paths would be slow beyond it.
const INPUT_MAX: usize = 16 * 1024;

fuzz_target!(|data: &[u8]| {
    let Some(text) = std::str::from_utf8(data).ok().filter(|text| text.len() <= INPUT_MAX) else {
        return;
    };
    let (file, paths) = text.split_once('\0').unwrap_or((text, "a/b"));
    let sources: Vec<&str> = file.lines().take(8).collect();
    let sources = Sources::docker(&sources);
    let Ok(ignore) = Ignore::parse(file) else { return };
    for path in paths.lines().take(16).filter_map(member).filter(|path| !path.is_empty()) {
        let is_ignored = ignore.ignores(&path);
        if let Some((folder, _)) = path.rsplit_once('/')
            && ignore.ignores(folder)
            && !ignore.may_except_below(folder)
        {
            assert!(is_ignored, "a closed folder keeps {path}");
        }
        if let Ok(sources) = &sources {
            for placed in sources.places(&path) {
                assert!(path.starts_with(placed.top) && path.ends_with(placed.below));
            }
        }
    }
});
