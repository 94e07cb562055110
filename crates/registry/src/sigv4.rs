//! Signatures of AWS requests (Signature Version 4), as far as one call of ECR needs them. Pure.
//!
//! Source: AWS, "Create a signed AWS API request".

use crate::secret::Secret;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use time::OffsetDateTime;
use time::macros::format_description;
use types::hex;
use zeroize::Zeroizing;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Parts of a request that are signed. Its path is `/`, and it has no query.
pub(crate) struct Request<'a> {
    pub method: &'a str,
    /// Headers by lower-case name, sorted, with `host` and `x-amz-date`.
    pub headers: &'a [(&'a str, &'a str)],
    pub body: &'a [u8],
}

/// Place and time that a signature is for.
pub(crate) struct Scope<'a> {
    pub region: &'a str,
    pub service: &'a str,
    pub at: OffsetDateTime,
}

impl Scope<'_> {
    /// Returns the value of `x-amz-date`, such as `20150830T123600Z`.
    pub(crate) fn date_time(&self) -> String {
        let form = format_description!("[year][month][day]T[hour][minute][second]Z");
        self.at.to_offset(time::UtcOffset::UTC).format(form).unwrap_or_default()
    }

    fn date(&self) -> String {
        self.date_time().chars().take(8).collect()
    }

    fn text(&self) -> String {
        format!("{}/{}/{}/aws4_request", self.date(), self.region, self.service)
    }
}

/// Returns the value of `Authorization` for a request.
pub(crate) fn authorization(
    request: &Request<'_>,
    scope: &Scope<'_>,
    key_id: &Secret,
    key: &Secret,
) -> Secret {
    let names: Vec<&str> = request.headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let signature =
        hex::encode(&hmac(&signing_key(scope, key), to_sign(request, scope, &names).as_bytes()));
    Secret::from(format!(
        "{ALGORITHM} Credential={}/{}, SignedHeaders={names}, Signature={signature}",
        key_id.expose(),
        scope.text()
    ))
}

/// Derives the key of one day, region and service.
fn signing_key(scope: &Scope<'_>, key: &Secret) -> Zeroizing<Vec<u8>> {
    let first = Zeroizing::new(format!("AWS4{}", key.expose()).into_bytes());
    let date = scope.date();
    [date.as_str(), scope.region, scope.service, "aws4_request"]
        .iter()
        .fold(first, |key, part| hmac(&key, part.as_bytes()))
}

fn to_sign(request: &Request<'_>, scope: &Scope<'_>, names: &str) -> String {
    let mut canonical = Zeroizing::new(format!("{}\n/\n\n", request.method));
    for (name, value) in request.headers {
        // A write to a string cannot fail.
        let _ = writeln!(canonical, "{name}:{value}");
    }
    let _ = write!(canonical, "\n{names}\n{}", hex::encode(&Sha256::digest(request.body)));
    let hash = hex::encode(&Sha256::digest(canonical.as_bytes()));
    format!("{ALGORITHM}\n{}\n{}\n{hash}", scope.date_time(), scope.text())
}

fn hmac(key: &[u8], text: &[u8]) -> Zeroizing<Vec<u8>> {
    // HMAC takes keys of every length, so there is always a code.
    let Ok(mut code) = Hmac::<Sha256>::new_from_slice(key) else { return Zeroizing::default() };
    code.update(text);
    Zeroizing::new(code.finalize().into_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const KEY: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

    fn scope(service: &'static str) -> Scope<'static> {
        Scope { region: "us-east-1", service, at: datetime!(2015-08-30 12:36:00 UTC) }
    }

    /// The example of AWS's documentation.
    #[test]
    fn signing_key_is_the_published_one() {
        let key = signing_key(&scope("iam"), &KEY.into());
        let want = "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9";
        assert_eq!(hex::encode(&key), want);
    }

    /// The cases `get-vanilla` and `post-vanilla` of AWS's test suite.
    #[test]
    fn signature_is_the_published_one() {
        let headers = [("host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")];
        for (method, want) in [
            ("GET", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
            ("POST", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
        ] {
            let request = Request { method, headers: &headers, body: b"" };
            let header =
                authorization(&request, &scope("service"), &"AKIDEXAMPLE".into(), &KEY.into());
            let text = header.expose();
            assert!(text.ends_with(&format!("Signature={want}")), "{method}: {text}");
            assert!(
                text.contains("Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, ")
            );
        }
    }
}
