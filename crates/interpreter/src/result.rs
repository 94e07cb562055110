//! Results of the wire, made from values in several formats. Pure.

use crate::kernel::{Bundle, OMITTED};
use serde_json::{Map, Value, json};

/// Largest value of one format, in bytes.
const VALUE_MAX: usize = 32 << 20;
/// Most cells of a table.
const CELLS_MAX: usize = 100_000;
/// Type of a table's columns.
const DATA: &str = "e2b/data";
/// Largest notes of a kernel on values that it left out, in bytes.
const NOTES_MAX: usize = 64 << 10;
/// MIME types that have a key of their own.
const KEYS: [(&str, &str); 12] = [
    ("text/plain", "text"),
    ("text/html", "html"),
    ("text/markdown", "markdown"),
    ("image/svg+xml", "svg"),
    ("image/png", "png"),
    ("image/jpeg", "jpeg"),
    ("text/latex", "latex"),
    ("application/json", "json"),
    ("application/javascript", "javascript"),
    ("application/pdf", "pdf"),
    (DATA, "data"),
    ("e2b/chart", "chart"),
];

/// Makes the fields of a result, except for its `type`. The key `omitted` of `extra` names each
/// format that the kernel, the reader of its messages or this function left out.
pub(crate) fn fields(mut bundle: Bundle) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut extra = Map::new();
    let mut omitted = notes(bundle.data.remove(OMITTED));
    for (kind, value) in bundle.data {
        if value.is_null() {
            continue;
        }
        if let Some(note) = excess(&kind, &value) {
            omitted.insert(kind, note);
            continue;
        }
        match key_of(&kind) {
            Some(key) => _ = fields.insert(key.to_owned(), wire(key, value)),
            None => _ = extra.insert(kind, value),
        }
    }
    if !omitted.is_empty() {
        extra.insert(OMITTED.to_owned(), Value::Object(omitted));
    }
    // JavaScript's SDK collects unknown keys here and ignores `extra`. Python's does the reverse.
    for (kind, value) in &extra {
        if kind.contains('/') || kind == OMITTED {
            fields.insert(kind.clone(), value.clone());
        }
    }
    fields.insert("extra".to_owned(), Value::Object(extra));
    fields.insert("is_main_result".to_owned(), Value::Bool(bundle.main));
    fields
}

/// Returns the notes on values that were left out before. A program can write there too, so
/// anything but notes is dropped.
fn notes(before: Option<Value>) -> Map<String, Value> {
    match before {
        Some(Value::Object(notes)) if notes.values().map(size).sum::<usize>() <= NOTES_MAX => {
            notes.into_iter().filter(|(_, note)| note["limit"].is_u64()).collect()
        }
        _ => Map::new(),
    }
}

fn key_of(kind: &str) -> Option<&'static str> {
    KEYS.iter().find(|(mime, _)| *mime == kind).map(|(_, key)| *key)
}

/// Returns a note on a value that is too large: its size and the limit.
fn excess(kind: &str, value: &Value) -> Option<Value> {
    let bytes = size(value);
    if bytes > VALUE_MAX {
        return Some(json!({ "bytes": bytes, "limit": VALUE_MAX }));
    }
    let cells = if kind == DATA { cells(value) } else { 0 };
    (cells > CELLS_MAX).then(|| json!({ "cells": cells, "limit": CELLS_MAX }))
}

/// Returns the size of a value in bytes: of a text itself, of other values as JSON.
fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(values) => 1 + values.iter().map(|v| 1 + size(v)).sum::<usize>(),
        Value::Object(map) => 1 + map.iter().map(|(k, v)| 4 + k.len() + size(v)).sum::<usize>(),
        Value::Number(number) => number.to_string().len(),
        Value::Bool(_) | Value::Null => 4,
    }
}

fn cells(table: &Value) -> usize {
    let columns = table.as_object().into_iter().flat_map(Map::values);
    columns.map(|column| column.as_array().map_or(1, Vec::len)).sum()
}

/// Returns a value in the form that clients expect.
fn wire(key: &str, value: Value) -> Value {
    if matches!(key, "json" | "data" | "chart") {
        return value;
    }
    let text = match (value.as_str(), value.as_array()) {
        (Some(text), _) => text.to_owned(),
        // Notebooks write texts as lists of lines.
        (None, Some(lines)) => lines.iter().filter_map(Value::as_str).collect(),
        (None, None) => return value,
    };
    Value::String(if key == "text" { unquoted(text) } else { text })
}

/// Removes the quotes of a text that begins and ends with the same one.
fn unquoted(text: String) -> String {
    for quote in ['\'', '"'] {
        if let Some(inner) = text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)) {
            return inner.to_owned();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(data: Value) -> Value {
        let Value::Object(data) = data else { panic!("no object") };
        Value::Object(fields(Bundle { main: true, data }))
    }

    #[test]
    fn known_types_have_keys_of_their_own() {
        let data: Map<String, Value> =
            KEYS.iter().map(|(kind, _)| ((*kind).to_owned(), json!({"a": null}))).collect();
        let Value::Object(wire) = of(Value::Object(data)) else { panic!("no object") };
        for (_, key) in KEYS {
            assert_eq!(wire[key], json!({"a": null}), "{key}");
        }
        assert_eq!(wire["extra"], json!({}));
        assert_eq!(wire["is_main_result"], true);
        assert_eq!(wire.len(), KEYS.len() + 2);
    }

    #[test]
    fn unknown_types_are_in_extra_and_at_the_top() {
        let wire = of(json!({"application/vnd.plotly.v1+json": {"x": 1}, "extra": 5, "type": "x"}));
        assert_eq!(wire["application/vnd.plotly.v1+json"], json!({"x": 1}));
        assert_eq!(wire["extra"]["application/vnd.plotly.v1+json"], json!({"x": 1}));
        assert_eq!(wire["extra"]["type"], "x");
        assert_eq!(wire["type"], Value::Null);
    }

    #[test]
    fn display_without_text_has_only_its_format() {
        let Value::Object(wire) = of(json!({"text/latex": "$x$", "text/html": null})) else {
            panic!("no object")
        };
        assert_eq!((wire.len(), &wire["latex"], &wire["extra"]), (3, &json!("$x$"), &json!({})));
    }

    #[test]
    fn text_loses_a_pair_of_equal_quotes() {
        for (given, shown) in [
            ("'it'", "it"),
            ("\"it\"", "it"),
            ("'it\"", "'it\""),
            ("'", "'"),
            ("''", ""),
            ("''it''", "'it'"),
            ("it", "it"),
        ] {
            assert_eq!(of(json!({"text/plain": given}))["text"], shown, "{given}");
        }
        assert_eq!(of(json!({"text/html": "'it'"}))["html"], "'it'");
        assert_eq!(of(json!({"text/plain": ["a\n", "b"]}))["text"], "a\nb");
    }

    #[test]
    fn value_above_the_limit_is_named_in_extra_with_its_size() {
        let wire = of(json!({"text/html": "x".repeat(VALUE_MAX + 1), "text/plain": "y"}));
        assert_eq!(wire["html"], Value::Null);
        assert_eq!(wire["text"], "y");
        let note = json!({"text/html": {"bytes": VALUE_MAX + 1, "limit": VALUE_MAX}});
        assert_eq!(wire["extra"], json!({"omitted": note}));
        assert_eq!(wire["omitted"], note);
        assert_eq!(of(json!({"text/html": "x".repeat(VALUE_MAX)}))["extra"], json!({}));
    }

    #[test]
    fn table_with_too_many_cells_is_omitted() {
        let column = vec![1; CELLS_MAX / 2];
        let fits = of(json!({"e2b/data": {"a": column, "b": column}}));
        assert!(fits["data"].is_object());
        let mut longer = column.clone();
        longer.push(1);
        let wire = of(json!({"e2b/data": {"a": column, "b": longer}}));
        assert_eq!(wire["data"], Value::Null);
        let note = json!({"cells": CELLS_MAX + 1, "limit": CELLS_MAX});
        assert_eq!(wire["extra"]["omitted"]["e2b/data"], note);
    }

    #[test]
    fn notes_of_the_kernel_stay_beside_those_of_the_result() {
        let known = json!({"e2b/chart": {"points": 9, "limit": 8}, "a/b": "no note"});
        let wire = of(json!({"omitted": known, "text/html": "x".repeat(VALUE_MAX + 1)}));
        let omitted = json!({
            "e2b/chart": {"points": 9, "limit": 8},
            "text/html": {"bytes": VALUE_MAX + 1, "limit": VALUE_MAX},
        });
        assert_eq!(wire["extra"], json!({"omitted": omitted}));
        assert_eq!(wire["omitted"], omitted);
        for other in [json!("text"), json!({"a/b": {"limit": 1, "x": "y".repeat(NOTES_MAX)}})] {
            assert_eq!(of(json!({"omitted": other}))["extra"], json!({}));
        }
    }
}
