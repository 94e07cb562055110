//! Answers of the proxy itself: JSON for programs, the texts that E2B's SDKs look for, a small page
//! for browsers. It also corrects the addresses in a guest's answer for the public name.

use super::preview;
use super::routes::Route;
use super::target::{SANDBOX_ID, Target};
use crate::auth::origin::Transport;
use crate::error::Error;
use hop::Body;
use http::header::{
    ACCEPT, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION,
    SET_COOKIE,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use types::CapsuleState;

/// Form of an answer that the client expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Json,
    /// The words of E2B's service.
    E2b,
    Page,
}

impl Form {
    /// Chooses the form by a request's headers.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        if headers.contains_key(&SANDBOX_ID) {
            return Self::E2b;
        }
        let accepts = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let page = accepts.flat_map(|value| value.split(',')).any(|kind| {
            kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/html"))
        });
        if page { Self::Page } else { Self::Json }
    }
}

/// Makes the answer for an error.
pub(crate) fn refuse(error: &Error, target: Option<Target>, form: Form) -> Response<Body> {
    let request_id = uuid::Uuid::new_v4().simple().to_string();
    error.log(&request_id);
    let (status, kind, body) = match (form, target) {
        (Form::E2b, Some(target)) => e2b(error, target),
        (Form::Page, _) => (error.status(), "text/html; charset=utf-8", page(error)),
        (Form::Json | Form::E2b, _) => {
            let (code, message) = (error.code().to_owned(), error.to_string());
            let detail = api::ErrorDetail { code, message, request_id: request_id.clone() };
            let body = serde_json::to_string(&api::ErrorBody { error: detail });
            (error.status(), "application/json", body.unwrap_or_default())
        }
    };
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    if let Some(wait) = error.retry_after() {
        headers.insert(http::header::RETRY_AFTER, wait.into());
    }
    if let Ok(id) = HeaderValue::from_str(&request_id) {
        headers.insert("x-request-id", id);
    }
    answer
}

/// Content security policy of an error page, which may use only its own style.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";

/// Makes an answer in the form and the words that E2B's SDKs read.
fn e2b(error: &Error, target: Target) -> (StatusCode, &'static str, String) {
    if matches!(error, Error::BadSignature(_)) {
        // The text is the same as envd's own, to the letter.
        let body = serde_json::json!({ "code": 401, "message": error.to_string() });
        return (error.status(), "application/json", body.to_string());
    }
    let missing = matches!(error, Error::NotFound("capsule"));
    let link = matches!(error, Error::LinkExpired | Error::LinkRevoked);
    let private = link || matches!(error, Error::PrivatePort | Error::AccessRevoked);
    let status = match (missing, private) {
        (true, _) => StatusCode::BAD_GATEWAY,
        (_, true) => StatusCode::FORBIDDEN,
        _ => error.status(),
    };
    let mut body = serde_json::json!({
        "sandboxId": target.capsule.to_string(),
        "message": if missing { "The sandbox was not found".to_owned() } else { error.to_string() },
        "code": status.as_u16(),
    });
    if let (Error::PortClosed(port), Some(fields)) = (error, body.as_object_mut()) {
        fields.insert("message".to_owned(), "The sandbox is running but port is not open".into());
        fields.insert("port".to_owned(), (*port).into());
    }
    (status, "application/json", body.to_string())
}

/// Reports whether E2B's service would not find the capsule of an error. E2B's service finds no
/// paused capsule, unless a request may resume it. A conflict means that the capsule is still
/// changing.
pub(crate) fn is_absent(error: &Error, route: &Route) -> bool {
    use CapsuleState::{Missing, Paused, Pausing, Resuming, Running, Starting, Stopped, Stopping};
    let state = match (route.state, error) {
        (gone @ (Stopping | Stopped), _) => gone,
        (_, Error::NotRunning(state)) => *state,
        _ => return false,
    };
    match state {
        Pausing | Paused => !route.auto_resume,
        CapsuleState::Error | Stopping | Stopped => true,
        Starting | Running | Resuming | Missing => false,
    }
}

/// Makes a page for an error. The page holds nothing that a client sent: errors name a port and a
/// state at most.
fn page(error: &Error) -> String {
    let (status, message) = (error.status(), error.to_string());
    let title = status.canonical_reason().unwrap_or("Error");
    let message = message.replace('&', "&amp;").replace('<', "&lt;");
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:36rem;margin:18vh auto;\
         padding:0 1.5rem;color:#222;background:#fff}}h1{{font-size:1.2rem}}p{{color:#555}}\
         @media(prefers-color-scheme:dark){{body{{color:#eee;background:#111}}p{{color:#aaa}}}}\
         </style><h1>{title}</h1><p>{message}</p><p>{} {}</p></html>",
        status.as_u16(),
        error.code(),
    )
}

/// Answers a CORS preflight for envd. Any page may call envd, since envd takes a token and no
/// cookie.
pub(crate) fn preflight() -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    for name in
        [ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_HEADERS]
    {
        answer.headers_mut().insert(name, HeaderValue::from_static("*"));
    }
    answer
}

/// Redirects a browser to the same place without the link's token. A cookie replaces the token.
pub(crate) fn enter(
    place: &str,
    token: &str,
    seconds: i64,
    transport: Transport,
) -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::SEE_OTHER;
    let headers = answer.headers_mut();
    // A path that begins with two slashes would name another host.
    let place = format!("/{}", place.trim_start_matches('/'));
    if let Ok(place) = HeaderValue::from_str(&place) {
        headers.insert(LOCATION, place);
    }
    headers.insert(SET_COOKIE, preview::cookie(token, seconds, transport));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// The name by which a client reached a capsule.
pub(crate) struct Public {
    pub scheme: &'static str,
    /// Host name with the port, as the client wrote it.
    pub host: HeaderValue,
    pub target: Target,
}

impl Public {
    /// Returns the host name; an empty one if it is no text.
    fn host(&self) -> &str {
        self.host.to_str().unwrap_or("")
    }
}

/// Corrects the addresses in a guest's answer, and confines its cookies.
pub(crate) fn rewrite_headers(headers: &mut HeaderMap, public: &Public) {
    preview::confine_cookies(headers);
    if let Some(right) = headers.get(LOCATION).and_then(|value| location(value, public)) {
        headers.insert(LOCATION, right);
    }
}

/// Rewrites a `Location` on the guest to a name that works from outside. Returns `None` for other
/// places.
fn location(value: &HeaderValue, public: &Public) -> Option<HeaderValue> {
    let text = value.to_str().ok()?;
    let (scheme, rest) = text.split_once("://").filter(|(s, _)| matches!(*s, "http" | "https"))?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.eq_ignore_ascii_case(public.host()) {
        // The guest does not know the scheme that its client used.
        let same = scheme == public.scheme;
        let right = format!("{}://{authority}{path}", public.scheme);
        return (!same).then(|| HeaderValue::from_str(&right).ok()).flatten();
    }
    let authority: http::uri::Authority = authority.parse().ok()?;
    if !is_guests_own(authority.host()) {
        return None;
    }
    let default = if scheme == "https" { 443 } else { 80 };
    let port = authority.port_u16().unwrap_or(default);
    let host = if port == public.target.port {
        public.host().to_owned()
    } else {
        let (_, domain) = public.host().split_once('.')?;
        format!("{port}-{}.{domain}", public.target.capsule)
    };
    HeaderValue::from_str(&format!("{}://{host}{path}", public.scheme)).ok()
}

/// Reports whether a host name is one that programs in a guest use for the guest.
fn is_guests_own(host: &str) -> bool {
    matches!(host, "localhost" | "0.0.0.0" | "[::1]" | "[::]" | "169.254.0.2" | "capsule")
        || host.starts_with("127.") && host.parse::<std::net::Ipv4Addr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::CapsuleId;

    #[test]
    fn guest_location_is_rewritten_to_public_host() {
        let capsule = CapsuleId(uuid::Uuid::nil());
        let zeros = "0".repeat(25);
        let host = format!("8080-cl-{zeros}.x.org:8443");
        let target = Target { capsule, port: 8080 };
        let public =
            Public { scheme: "https", host: HeaderValue::from_str(&host).unwrap(), target };
        let right = |place: &str| {
            let value = HeaderValue::from_str(place).unwrap();
            location(&value, &public).map(|v| v.to_str().unwrap().to_owned())
        };
        for own in ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "169.254.0.2:8080"] {
            let wanted = format!("https://{host}/a?b#c");
            assert_eq!(right(&format!("http://{own}/a?b#c")), Some(wanted), "{own}");
        }
        let other = format!("https://80-cl-{zeros}.x.org:8443/");
        assert_eq!(right("http://localhost/"), Some(other));
        assert_eq!(right(&format!("http://{host}/a")), Some(format!("https://{host}/a")));
        for as_it_is in [
            "/a",
            "a",
            "//x/y",
            "https://example.com/",
            "http://127.x.org/",
            "ftp://localhost/",
            "",
        ] {
            assert_eq!(right(as_it_is), None, "{as_it_is}");
        }
    }

    #[test]
    fn preview_link_never_redirects_to_another_host() {
        let answer = enter("//evil.example/x?y", "1.x", 5, Transport::Tls);
        assert_eq!(answer.headers()[LOCATION], "/evil.example/x?y");
        let cookie = answer.headers()[http::header::SET_COOKIE].to_str().unwrap();
        assert!(cookie.starts_with("__Host-wrenn-preview=1.x; ") && cookie.contains("; Secure"));
        assert!(!cookie.to_lowercase().contains("domain"));
    }

    #[test]
    fn error_is_html_for_browsers_e2b_for_sdks_and_json_otherwise() {
        let form = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            Form::of(&headers)
        };
        assert_eq!(form("accept", "application/xml, Text/HTML;q=0.9"), Form::Page);
        assert_eq!(form("accept", "*/*"), Form::Json);
        assert_eq!(form("e2b-sandbox-id", "x"), Form::E2b);
        assert!(page(&Error::Conflict("<b>&".to_owned())).contains("&lt;b>&amp;"));
    }
}
