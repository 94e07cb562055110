//! Finds the capsule that a request is for, by its host name `{port}-{capsule}.{domain}`, or by
//! E2B's two headers. The headers serve clients that have no such host names. Pure.
//!
//! Some of E2B's SDKs (Python 2.7 to 2.26) also send the two headers to the API. So two kinds of
//! request go to the API before the headers are read. The first has the host name `api.{domain}`.
//! The second names envd's port, with a path that is E2B's API and none of envd's. SDKs up to 2.25
//! send envd no header but its token, once they have connected. So the token names its capsule.

use crate::domains::{Domains, plain_name};
use crate::e2b;
use http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use protocol::{ACCESS_TOKEN, ENVD_PORT};
use types::CapsuleId;

/// Headers that name a capsule and its port, where the host name does not.
pub(crate) const SANDBOX_ID: HeaderName = HeaderName::from_static("e2b-sandbox-id");
pub(crate) const SANDBOX_PORT: HeaderName = HeaderName::from_static("e2b-sandbox-port");

/// Longest name of a host, in bytes (RFC 1035, 2.3.4).
const NAME_MAX: usize = 253;

/// A port of a capsule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    pub capsule: CapsuleId,
    pub port: u16,
}

/// Destination of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Addressee {
    /// The API, since the request names no capsule.
    Api,
    Capsule(Target),
    /// A capsule whose name cannot exist, with the error.
    Malformed(&'static str),
}

const PORT: &str = "the port must be 1 to 65535, without leading zeros";
const ID: &str = "the capsule's id must be `cl-` and 25 digits and lower-case letters";
const HOST: &str = "the request must name one host";

/// Returns the destination of a request.
pub(crate) fn of<B>(request: &Request<B>, domains: &Domains) -> Addressee {
    let host = match host(request) {
        Ok(host) => host.unwrap_or(""),
        Err(wrong) => return Addressee::Malformed(wrong),
    };
    match by_name(host, domains) {
        Addressee::Api if domains.name_api(host) => Addressee::Api,
        Addressee::Api => by_headers(request.headers(), request.uri().path()),
        named @ (Addressee::Capsule(_) | Addressee::Malformed(_)) => named,
    }
}

/// Returns the host that a request names. A host in the request line or HTTP/2's `:authority` takes
/// precedence over the header (RFC 9112, 3.2.2).
pub(crate) fn host<B>(request: &Request<B>) -> Result<Option<&str>, &'static str> {
    let mut named = request.headers().get_all(header::HOST).iter();
    let (first, second) = (named.next(), named.next());
    if second.is_some() {
        return Err(HOST);
    }
    if let Some(authority) = request.uri().authority() {
        return Ok(Some(authority.as_str()));
    }
    first.map(HeaderValue::to_str).transpose().map_err(|_| HOST)
}

/// Finds the destination by a host name, with or without a port and a final dot, in any case.
fn by_name(host: &str, domains: &Domains) -> Addressee {
    let name = plain_name(host);
    let Some((label, domain)) = name.split_once('.').filter(|_| name.len() <= NAME_MAX) else {
        return Addressee::Api;
    };
    let Some((port, id)) = label.split_once('-') else { return Addressee::Api };
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let capsule = id.get(..3).is_some_and(|prefix| prefix.eq_ignore_ascii_case("cl-"));
    if !digits || !capsule || domain.is_empty() || !domains.hold(&domain.to_ascii_lowercase()) {
        return Addressee::Api;
    }
    target(port, &id.to_ascii_lowercase())
}

fn by_headers(headers: &HeaderMap, path: &str) -> Addressee {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or(""));
    let envd = |port: &str| port.parse() == Ok(ENVD_PORT);
    match (text(SANDBOX_ID), text(SANDBOX_PORT)) {
        (None, _) => by_token(headers, path),
        (Some(_), Some(port)) if envd(port) && e2b::serves(path) => Addressee::Api,
        (Some(id), Some(port)) => target(port, id),
        (Some(_), None) => Addressee::Malformed("the header E2b-Sandbox-Port is missing"),
    }
}

/// Finds a capsule by envd's token, at a path of envd's. An older token does not name its capsule
/// and leads nowhere.
fn by_token(headers: &HeaderMap, path: &str) -> Addressee {
    match headers.get(ACCESS_TOKEN).and_then(named_by) {
        Some(capsule) if is_envds(path) => Addressee::Capsule(Target { capsule, port: ENVD_PORT }),
        Some(_) | None => Addressee::Api,
    }
}

/// Returns the capsule that a token of envd's names. The token is not checked.
pub(super) fn named_by(token: &HeaderValue) -> Option<CapsuleId> {
    token.to_str().ok()?.rsplit_once('-')?.0.parse().ok()
}

/// Reports whether a path is one at which SDKs call envd.
fn is_envds(path: &str) -> bool {
    matches!(path, "/files" | "/health" | "/metrics" | "/envs")
        || path.starts_with("/process.Process/")
        || path.starts_with("/filesystem.Filesystem/")
}

fn target(port: &str, id: &str) -> Addressee {
    let plain = port.bytes().all(|b| b.is_ascii_digit()) && !port.starts_with('0');
    let Some(port) = port.parse().ok().filter(|_| plain) else {
        return Addressee::Malformed(PORT);
    };
    match id.parse() {
        Ok(capsule) => Addressee::Capsule(Target { capsule, port }),
        Err(_) => Addressee::Malformed(ID),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any() -> Domains {
        Domains::default()
    }

    #[test]
    fn capsule_host_name_is_parsed_in_every_notation() {
        let capsule = CapsuleId::new();
        let wanted = Addressee::Capsule(Target { capsule, port: 8080 });
        let upper = capsule.to_string().to_uppercase();
        for host in [
            format!("8080-{capsule}.localhost"),
            format!("8080-{capsule}.localhost:8000"),
            format!("8080-{capsule}.sandbox.example.com."),
            format!("8080-{capsule}.sandbox.example.com.:443"),
            format!("8080-{upper}.EXAMPLE.com"),
        ] {
            assert_eq!(by_name(&host, &any()), wanted, "{host}");
        }
    }

    #[test]
    fn host_name_of_no_capsule_goes_to_the_api() {
        let id = CapsuleId::new();
        let long = format!("80-{id}.{}", "a".repeat(250));
        for host in [
            "",
            ".",
            "..",
            "localhost",
            "localhost:8000",
            "127.0.0.1:8000",
            "[::1]:8000",
            "[::1",
            "api.example.com",
            "80.example.com",
            "-cl-x.example.com",
            "x-cl-x.example.com",
            "80-",
            "80-c.x",
            "80-cl.x",
            "é-cl-é.x",
            "80-é.x",
            &format!("80-{id}"),
            &format!("80-{id}."),
            &format!("{id}.example.com"),
            &format!("80-80-{id}.x"),
            &format!("a.80-{id}.x"),
            &long,
        ] {
            assert_eq!(by_name(host, &any()), Addressee::Api, "{host}");
        }
    }

    #[test]
    fn malformed_capsule_host_name_is_refused_with_its_fault() {
        let id = CapsuleId::new();
        for port in ["0", "65536", "080", "99999999999999999999"] {
            let host = format!("{port}-{id}.x");
            assert_eq!(by_name(&host, &any()), Addressee::Malformed(PORT), "{host}");
        }
        for id in
            ["cl-", "cl-0", &"cl-".repeat(9), &format!("{id}0"), &format!("cl-{}", "z".repeat(25))]
        {
            let host = format!("80-{id}.x");
            assert_eq!(by_name(&host, &any()), Addressee::Malformed(ID), "{host}");
        }
    }

    #[test]
    fn only_configured_domains_serve_capsules() {
        let id = CapsuleId::new();
        let domains = Domains::new(&["Sandbox.Example.com.".to_owned(), String::new()]);
        let is_api = |host: String| by_name(&host, &domains) == Addressee::Api;
        assert!(!is_api(format!("80-{id}.sandbox.example.COM:8443")));
        assert!(is_api(format!("80-{id}.example.com")));
        assert!(is_api(format!("80-{id}.x.sandbox.example.com")));
    }

    fn request(uri: &str, headers: &[(&str, &str)]) -> Addressee {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        of(&request.body(()).unwrap(), &any())
    }

    #[test]
    fn headers_select_capsule_where_host_name_does_not() {
        let (id, other) = (CapsuleId::new().to_string(), CapsuleId::new().to_string());
        let wanted =
            |id: &str, port| Addressee::Capsule(Target { capsule: id.parse().unwrap(), port });
        let port = ("e2b-sandbox-port", "49983");
        let named = format!("80-{other}.localhost");
        for host in ["localhost", "127.0.0.1:8000", "[::1]:1", "sandbox.example.com"] {
            let asked = request("/", &[("host", host), ("e2b-sandbox-id", &id), port]);
            assert_eq!(asked, wanted(&id, 49983));
        }
        let both = request("/", &[("host", &named), ("e2b-sandbox-id", &id), port]);
        assert_eq!(both, wanted(&other, 80), "the name goes first");
        let plain = ("host", "localhost");
        let missing = Addressee::Malformed("the header E2b-Sandbox-Port is missing");
        assert_eq!(request("/", &[plain, ("e2b-sandbox-id", &id)]), missing);
        let bad = [plain, ("e2b-sandbox-id", "i1"), port];
        assert_eq!(request("/", &bad), Addressee::Malformed(ID));
        let bad = [plain, ("e2b-sandbox-id", &id), ("e2b-sandbox-port", "+80")];
        assert_eq!(request("/", &bad), Addressee::Malformed(PORT));
        assert_eq!(request("/", &[plain, port]), Addressee::Api);
        assert_eq!(request("/", &[]), Addressee::Api);
    }

    #[test]
    fn e2b_api_path_with_envd_headers_goes_to_the_api() {
        let id = CapsuleId::new();
        let wanted = |port| Addressee::Capsule(Target { capsule: id, port });
        let text = id.to_string();
        let asked = |path: &str, port: &str| {
            let headers = [("host", "127.0.0.1:8000"), ("e2b-sandbox-id", &text)];
            request(path, &[headers[0], headers[1], ("e2b-sandbox-port", port)])
        };
        for path in [
            &format!("/sandboxes/{id}/connect"),
            &format!("/v2/sandboxes/{id}/connect"),
            "/sandboxes",
            "/v2/sandboxes?state=paused",
            "/templates/base",
            "/teams",
        ] {
            assert_eq!(asked(path, "49983"), Addressee::Api, "{path}");
            assert_eq!(asked(path, "3000"), wanted(3000), "{path} is the program's own");
        }
        for path in [
            "/files?path=/sandboxes",
            "/process.Process/Start",
            "/filesystem.Filesystem/Stat",
            "/health",
            "/metrics",
            "/envs",
            "/init",
            "/sandboxes2",
            "/",
        ] {
            assert_eq!(asked(path, "49983"), wanted(49983), "{path} is envd's");
        }
        let bad = [("e2b-sandbox-id", "i1"), ("e2b-sandbox-port", "49983")];
        assert_eq!(request("/sandboxes/i1/connect", &bad), Addressee::Api);
    }

    #[test]
    fn envd_token_selects_capsule_where_nothing_else_does() {
        let capsule = CapsuleId::new();
        let token = crate::secret::new_envd_token(capsule);
        assert_eq!(token.len(), capsule.to_string().len() + 1 + 64);
        let wanted = Addressee::Capsule(Target { capsule, port: ENVD_PORT });
        let asked = |path: &str, token: &str| request(path, &[("x-access-token", token)]);
        for path in ["/files?path=x", "/health", "/metrics", "/envs", "/process.Process/Start"] {
            assert_eq!(asked(path, &token), wanted, "{path}");
            for other in ["", "x", "-", "cl-0-1", &"f".repeat(64)] {
                assert_eq!(asked(path, other), Addressee::Api, "{path} {other}");
            }
        }
        for path in ["/", "/v1/capsules", "/sandboxes", "/init", "/files/x", "/version"] {
            assert_eq!(asked(path, &token), Addressee::Api, "{path}");
        }
        let other = CapsuleId::new();
        let named = format!("80-{other}.x");
        let both = request("/files", &[("host", &named), ("x-access-token", &token)]);
        assert_eq!(both, Addressee::Capsule(Target { capsule: other, port: 80 }));
    }

    #[test]
    fn api_host_name_of_a_configured_domain_wins_over_headers() {
        let id = CapsuleId::new().to_string();
        let domains = Domains::new(&["sandbox.test".to_owned()]);
        let asked = |host: &str, domains: &Domains| {
            let request = Request::builder().uri("/files").header("host", host);
            let request = request.header("e2b-sandbox-id", &id).header("e2b-sandbox-port", "49983");
            of(&request.body(()).unwrap(), domains)
        };
        for host in ["api.sandbox.test", "API.Sandbox.test.:8443"] {
            assert_eq!(asked(host, &domains), Addressee::Api, "{host}");
            let without = asked(host, &any());
            assert!(matches!(without, Addressee::Capsule(_)), "{host} without a domain");
        }
        for host in ["sandbox.test", "sandbox.sandbox.test", "api.other.test", "api."] {
            assert!(matches!(asked(host, &domains), Addressee::Capsule(_)), "{host}");
        }
    }

    #[test]
    fn uri_host_overrides_host_header_and_two_host_headers_are_refused() {
        let (one, two) = (CapsuleId::new(), CapsuleId::new());
        let wanted = Addressee::Capsule(Target { capsule: one, port: 80 });
        let uri = format!("http://80-{one}.x/a");
        assert_eq!(request(&uri, &[("host", &format!("81-{two}.x"))]), wanted);
        let twice = [("host", "a"), ("host", "b")];
        assert_eq!(request("/", &twice), Addressee::Malformed(HOST));
    }

    proptest! {
        #[test]
        fn capsule_host_name_round_trips(value: u128, port in 1u16.., domain in "[a-z][a-z0-9.-]{0,60}[a-z]") {
            let capsule = CapsuleId(uuid::Uuid::from_u128(value));
            let name = format!("{port}-{capsule}.{domain}");
            prop_assert_eq!(by_name(&name, &any()), Addressee::Capsule(Target { capsule, port }));
        }

        #[test]
        fn parser_never_panics_and_accepts_only_canonical_prefixes(text in "\\PC{0,80}") {
            if let Addressee::Capsule(Target { capsule, port }) = by_name(&text, &any()) {
                let begin = format!("{port}-{capsule}.");
                prop_assert!(text.to_ascii_lowercase().starts_with(&begin));
            }
        }

        #[test]
        fn parser_never_panics_on_near_valid_host_names(
            text in "[0-9]{0,6}-{0,2}(cl|CL|c|é)?-?[0-9a-zA-Zé]{0,30}[.:]{0,2}[a-z.:\\[\\]0-9-]{0,20}"
        ) {
            let parsed = by_name(&text, &any());
            if let Addressee::Capsule(target) = parsed {
                prop_assert!(target.port > 0);
            }
        }
    }
}
