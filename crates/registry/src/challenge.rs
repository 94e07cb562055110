//! Challenges of `WWW-Authenticate` headers (RFC 9110, section 11.6.1). Pure.
//!
//! A header may hold several challenges, and an answer several headers. Parsing ends at the first
//! malformed part and keeps the challenges before it.

/// Most bytes of a header that are read.
const HEADER_MAX: usize = 8 * 1024;
/// Most challenges of an answer.
const CHALLENGES_MAX: usize = 16;
/// Most parameters of a challenge.
const PARAMETERS_MAX: usize = 32;

/// A scheme that the registry offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A token of the server at `realm`.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
    /// User and password with each request.
    Basic,
}

/// Returns the challenges of an answer that this crate can meet, `Bearer` before `Basic`.
pub(crate) fn parse<'a>(headers: impl IntoIterator<Item = &'a [u8]>) -> Vec<Challenge> {
    let mut found = Vec::new();
    for header in headers {
        let header = header.get(..header.len().min(HEADER_MAX)).unwrap_or_default();
        Parser { rest: header }.header(&mut found);
    }
    found.sort_by_key(|challenge| match challenge {
        Challenge::Bearer { .. } => 0,
        Challenge::Basic => 1,
    });
    found
}

struct Parser<'a> {
    rest: &'a [u8],
}

impl Parser<'_> {
    fn header(mut self, found: &mut Vec<Challenge>) {
        let mut next = self.scheme();
        while let Some(scheme) = next {
            if found.len() >= CHALLENGES_MAX {
                return;
            }
            let mut parameters = Vec::new();
            next = self.parameters(&mut parameters);
            let take = |name: &str| {
                let named = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                named.map(|(_, value)| value.clone())
            };
            if scheme.eq_ignore_ascii_case("bearer") {
                if let Some(realm) = take("realm") {
                    let (service, scope) = (take("service"), take("scope"));
                    found.push(Challenge::Bearer { realm, service, scope });
                }
            } else if scheme.eq_ignore_ascii_case("basic") {
                found.push(Challenge::Basic);
            }
        }
    }

    /// Reads a scheme's name, after separators.
    fn scheme(&mut self) -> Option<String> {
        self.skip(|byte| matches!(byte, b' ' | b'\t' | b','));
        self.token()
    }

    /// Reads the parameters of a challenge. Returns the name of the next scheme, which only its
    /// missing `=` tells from a parameter.
    fn parameters(&mut self, into: &mut Vec<(String, String)>) -> Option<String> {
        loop {
            self.skip(|byte| matches!(byte, b' ' | b'\t' | b','));
            let name = self.token()?;
            self.spaces();
            if self.rest.first() != Some(&b'=') {
                return Some(name);
            }
            self.advance(1);
            self.spaces();
            let value = if self.rest.first() == Some(&b'"') { self.quoted() } else { self.token() };
            if let Some(value) = value {
                if into.len() < PARAMETERS_MAX {
                    into.push((name, value));
                }
            } else {
                // The padding of a token68, such as the one of `Negotiate`, has no meaning here.
                self.skip(|byte| byte == b'=');
                if !matches!(self.rest.first(), None | Some(b' ' | b'\t' | b',')) {
                    self.rest = &[];
                    return None;
                }
            }
        }
    }

    fn token(&mut self) -> Option<String> {
        let is_token =
            |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/:".contains(byte);
        let length = self.rest.iter().take_while(|byte| is_token(byte)).count();
        let token = self.rest.get(..length).filter(|token| !token.is_empty())?;
        let token = String::from_utf8_lossy(token).into_owned();
        self.advance(length);
        Some(token)
    }

    /// Reads a quoted string. Returns `None` without its end, or if it is not UTF-8.
    fn quoted(&mut self) -> Option<String> {
        self.advance(1);
        let mut value = Vec::new();
        loop {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            match byte {
                b'"' => return String::from_utf8(value).ok(),
                b'\\' => {
                    let (&escaped, rest) = self.rest.split_first()?;
                    self.rest = rest;
                    value.push(escaped);
                }
                byte => value.push(byte),
            }
        }
    }

    fn spaces(&mut self) {
        self.skip(|byte| matches!(byte, b' ' | b'\t'));
    }

    fn skip(&mut self, is_skipped: impl Fn(u8) -> bool) {
        self.advance(self.rest.iter().take_while(|byte| is_skipped(**byte)).count());
    }

    fn advance(&mut self, bytes: usize) {
        self.rest = self.rest.get(bytes..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(header: &str) -> Vec<Challenge> {
        parse([header.as_bytes()])
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer { realm: realm.into(), service: owned(service), scope: owned(scope) }
    }

    #[test]
    fn parameters_of_a_bearer_challenge_are_read() {
        let header = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let want = bearer(
            "https://auth.docker.io/token",
            Some("registry.docker.io"),
            Some("repository:a/b:pull,push"),
        );
        assert_eq!(one(header), [want]);
        let bare = "bearer realm=https://a.example/t , error=\"invalid_token\"";
        assert_eq!(one(bare), [bearer("https://a.example/t", None, None)]);
        assert_eq!(one(r#"Bearer realm="a\"b\\c""#), [bearer("a\"b\\c", None, None)]);
    }

    #[test]
    fn bearer_comes_before_basic_in_whatever_form() {
        let want = [bearer("r", Some("s"), None), Challenge::Basic];
        let both = r#"Basic realm="x", Bearer realm="r", service="s""#;
        assert_eq!(one(both), want);
        let two: [&[u8]; 2] = [br#"Basic realm="x""#, br#"BEARER realm="r",service="s""#];
        assert_eq!(parse(two), want);
        let third = r#"Negotiate abc==, Basic, Bearer realm="r", service="s""#;
        assert_eq!(one(third), want);
        assert_eq!(one("Negotiate, Basic"), [Challenge::Basic]);
    }

    #[test]
    fn malformed_header_keeps_the_challenges_before_the_fault() {
        assert_eq!(one(r#"Basic realm="x", Bearer realm="r"#), [Challenge::Basic]);
        assert_eq!(one("Bearer"), []);
        assert_eq!(one("Bearer service=x"), []);
        assert_eq!(one(""), []);
        assert_eq!(one("=,=,\"\""), []);
        let many = "Basic,".repeat(1000);
        assert_eq!(one(&many).len(), CHALLENGES_MAX);
    }

    proptest! {
        #[test]
        fn any_header_is_parsed_without_panic(header in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(parse([header.as_slice()]).len() <= CHALLENGES_MAX);
        }

        #[test]
        fn any_text_of_separators_is_parsed(header in "(Bearer|Basic|[a-c=\", \\\\]){0,40}") {
            prop_assert!(one(&header).len() <= CHALLENGES_MAX);
        }
    }
}
