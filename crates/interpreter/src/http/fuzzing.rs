//! Bodies of requests for code, read as the route reads them. Only tests and the feature `fuzzing`
//! compile this module.

use super::body;
use super::execute::{Execute, Named};
use axum::body::Bytes;
use axum::response::IntoResponse as _;
use hyper::ext::ReasonPhrase;
use std::collections::BTreeMap;

/// Reads `data` as the body of `POST /execute`. Returns the variables that a kernel gets, unless
/// the body is refused.
///
/// # Panics
/// Panics when a refusal has no client's status or no reason phrase, or when a body with wrong
/// variables is accepted.
pub(crate) fn execute(data: &[u8]) -> Option<BTreeMap<String, String>> {
    let parsed = body::parse::<Execute>(&Bytes::copy_from_slice(data));
    match parsed.and_then(Execute::checked) {
        Ok((named, code)) => {
            assert_eq!(code.by_id, matches!(named, Named::Id(_)));
            assert_ne!(named, Named::Id(String::new()), "an empty id names a context");
            assert!(code.timeout.is_none_or(|limit| !limit.is_zero()), "a limit of no time");
            for (name, value) in &code.envs {
                let is_wrong = name.is_empty() || name.contains(['=', '\0']);
                assert!(!is_wrong && !value.contains('\0'), "a variable is wrong");
            }
            Some(code.envs)
        }
        Err(error) => {
            let answer = error.into_response();
            assert!(answer.status().is_client_error(), "{}", answer.status());
            assert!(answer.extensions().get::<ReasonPhrase>().is_some(), "no reason phrase");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bodies that use each field.
    const BODIES: [&str; 4] = [
        r#"{"code":"x = 1\n","context_id":null,"language":"python","env_vars":{"A":"é'\\"}}"#,
        r#"{"code":"1","context_id":"c0ffee","keep":true,"timeout_ms":5,"max_output_bytes":9}"#,
        r#"{"code":"\u0000\ud83d\ude00","env_vars":{"A=B":"1","":"2","C":"\u0000"}}"#,
        r#"{"code":"1","context_id":"a","language":"b"}"#,
    ];

    #[test]
    fn each_cut_or_changed_body_is_read_or_refused() {
        let (mut read, mut refused) = (0, 0);
        let mut count = |data: &[u8]| match execute(data) {
            Some(_) => read += 1,
            None => refused += 1,
        };
        for body in BODIES.map(str::as_bytes) {
            (0..=body.len()).for_each(|end| count(&body[..end]));
            for at in 0..body.len() {
                for byte in [0, b'"', b'\\', b'{', b'}', b':', b',', b'0', b'=', 0x80, 0xFF] {
                    let mut changed = body.to_vec();
                    changed[at] = byte;
                    count(&changed);
                }
            }
        }
        assert!(read > 100 && refused > 1000, "{read} were read and {refused} refused");
    }
}
