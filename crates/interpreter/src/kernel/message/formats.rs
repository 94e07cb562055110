//! Values in several formats. A kernel decides how large they are, so each is read only up to a
//! limit, and named with its size when it is left out.

use crate::kernel::OMITTED;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::fmt;

/// Most formats of a value.
const FORMATS_MAX: usize = 64;
/// Most bytes of a text or of base64.
const TEXT_MAX: usize = 40 << 20;
/// Most bytes of other JSON, which needs up to 16 times as many in memory.
const TREE_MAX: usize = 8 << 20;
/// Deepest nesting of a format. Many readers of lines stop at 127 levels, of which a line has some.
const LEVELS_MAX: usize = 100;

/// The field `data` of a display or a result, by MIME type.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Formats(pub Map<String, Value>);

/// Content of a display or a result.
#[derive(Debug, Default, Deserialize)]
struct Content {
    #[serde(default)]
    data: Formats,
}

impl Formats {
    /// Reads a value out of a message.
    ///
    /// # Errors
    /// Returns an error if the content is no JSON object.
    pub(crate) fn of(message: &super::Incoming) -> Result<Self, String> {
        message.parse::<Content>().map(|content| content.data)
    }
}

impl<'de> Deserialize<'de> for Formats {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Formats;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object of MIME types")
    }

    fn visit_unit<E>(self) -> Result<Formats, E> {
        Ok(Formats::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Formats, A::Error> {
        let (mut formats, mut omitted) = (Map::new(), Map::new());
        while formats.len() + omitted.len() < FORMATS_MAX {
            let Some((kind, raw)) = entries.next_entry::<String, &RawValue>()? else { break };
            match read(raw.get()) {
                Ok(value) => formats.insert(kind, value),
                Err(note) => omitted.insert(kind, note),
            };
        }
        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        match formats.get_mut(OMITTED) {
            // Our own formatters leave formats out too.
            Some(Value::Object(known)) => known.extend(omitted),
            _ if omitted.is_empty() => {}
            _ => _ = formats.insert(OMITTED.to_owned(), Value::Object(omitted)),
        }
        Ok(Formats(formats))
    }
}

/// Reads a format. Returns a note if the format is too large, or is nested too deeply.
fn read(raw: &str) -> Result<Value, Value> {
    let is_text = raw.starts_with('"');
    let max = if is_text { TEXT_MAX } else { TREE_MAX };
    if raw.len() > max {
        return Err(json!({ "bytes": raw.len(), "limit": max }));
    }
    let levels = if is_text { 0 } else { levels(raw) };
    if levels > LEVELS_MAX {
        return Err(json!({ "levels": levels, "limit": LEVELS_MAX }));
    }
    let repaired = |_| serde_json::from_str(&super::lossy::repair(raw.as_bytes()));
    // A number may be beyond the range of the reader.
    let unread = |_| json!({ "bytes": raw.len(), "limit": 0 });
    serde_json::from_str(raw).or_else(repaired).map_err(unread)
}

/// Returns the depth of the nesting of valid JSON.
fn levels(raw: &str) -> usize {
    let (mut depth, mut deepest, mut within_text, mut escaped) = (0_usize, 0, false, false);
    for byte in raw.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => within_text = !within_text,
            b'[' | b'{' if !within_text => depth += 1,
            b']' | b'}' if !within_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn formats(content: &str) -> Map<String, Value> {
        serde_json::from_str::<Content>(content).unwrap().data.0
    }

    #[test]
    fn formats_are_read_by_type() {
        let map = formats(r#"{"data": {"text/plain": "1", "e2b/chart": {"a": null}}, "x": 1}"#);
        assert_eq!(Value::Object(map), json!({"text/plain": "1", "e2b/chart": {"a": null}}));
        assert!(formats("{}").is_empty());
        assert!(formats(r#"{"data": null}"#).is_empty());
    }

    #[test]
    fn large_or_deep_format_is_named_with_its_size() {
        let array = format!("[{}1]", "1,".repeat(TREE_MAX / 2));
        let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
        let map = formats(&format!(r#"{{"data":{{"a/a":{array},"b/b":{deep},"c/c":"t"}}}}"#));
        assert_eq!(map["c/c"], "t");
        assert_eq!(map["omitted"]["a/a"], json!({ "bytes": array.len(), "limit": TREE_MAX }));
        assert_eq!(map["omitted"]["b/b"], json!({ "levels": 1000, "limit": LEVELS_MAX }));
        assert!(!map.contains_key("a/a") && !map.contains_key("b/b"));
    }

    #[test]
    fn notes_of_the_kernel_and_of_the_reader_stand_together() {
        let array = format!("[{}1]", "1,".repeat(TREE_MAX / 2));
        let known = r#"{"e2b/data":{"cells":9,"limit":8}}"#;
        for order in [[0, 1], [1, 0]] {
            let entries = [format!("\"a/a\":{array}"), format!("\"omitted\":{known}")];
            let entries = order.map(|at| entries[at].as_str()).join(",");
            let map = formats(&format!(r#"{{"data":{{{entries}}}}}"#));
            assert_eq!(map["omitted"]["e2b/data"], json!({ "cells": 9, "limit": 8 }));
            assert_eq!(map["omitted"]["a/a"]["limit"], TREE_MAX);
        }
    }

    #[test]
    fn depth_counts_no_brackets_of_texts() {
        for (raw, depth) in [("1", 0), ("[]", 1), (r#"{"[\"[": [[1], [2]]}"#, 3), (r#""\\[""#, 0)] {
            assert_eq!(levels(raw), depth, "{raw}");
        }
        assert!(read(&format!("{}{}", "[".repeat(LEVELS_MAX), "]".repeat(LEVELS_MAX))).is_ok());
        let deeper = read(&format!("{}{}", "[".repeat(LEVELS_MAX + 1), "]".repeat(LEVELS_MAX + 1)));
        assert_eq!(deeper, Err(json!({ "levels": LEVELS_MAX + 1, "limit": LEVELS_MAX })));
        assert_eq!(read("1e999"), Err(json!({ "bytes": 5, "limit": 0 })));
    }

    #[test]
    fn text_with_half_a_surrogate_pair_is_repaired() {
        let map = formats(r#"{"data": {"text/plain": "a\ud800"}}"#);
        assert_eq!(map["text/plain"], "a\u{fffd}");
    }

    #[test]
    fn formats_beyond_the_limit_are_ignored() {
        let entries: Vec<String> = (0..1000).map(|n| format!("\"a/{n}\":1")).collect();
        let map = formats(&format!(r#"{{"data":{{{}}}}}"#, entries.join(",")));
        assert_eq!(map.len(), FORMATS_MAX);
    }
}
