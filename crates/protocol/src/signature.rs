//! Signed links to a file in a capsule, as E2B's SDKs make them from envd's token. A link's holder
//! may do a single operation on a single file.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use sha2::{Digest, Sha256};

/// Operation that a link allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
}

/// Contents of a link, without its signature.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SignedFile<'a> {
    pub path: &'a str,
    pub user: Option<&'a str>,
    /// Expiry, in seconds since 1970.
    pub until: Option<i64>,
}

impl SignedFile<'_> {
    /// Signs the link for an operation.
    #[must_use]
    pub fn sign(&self, operation: Operation, token: &str) -> String {
        let operation = match operation {
            Operation::Read => "read",
            Operation::Write => "write",
        };
        let user = self.user.unwrap_or("");
        let mut text = format!("{}:{operation}:{user}:{token}", self.path);
        if let Some(until) = self.until {
            text.push_str(&format!(":{until}"));
        }
        format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_signature_covers_path_operation_user_and_expiry() {
        let link = SignedFile { path: "/a", ..SignedFile::default() };
        let base = link.sign(Operation::Read, "t");
        assert!(base.starts_with("v1_") && !base.ends_with('='));
        assert_ne!(base, link.sign(Operation::Write, "t"));
        assert_ne!(base, link.sign(Operation::Read, "u"));
        let timed = SignedFile { until: Some(5), ..link };
        assert_ne!(base, timed.sign(Operation::Read, "t"));
        // SHA-256 of "/a:read::t", computed independently.
        assert_eq!(base, "v1_JoRdqlk+vPpFDod7BWD3WYzaByL1n9Wq0flHHjoIpmE");
    }
}
