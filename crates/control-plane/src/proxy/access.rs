//! Decides which requests may reach a port of a capsule, and removes their credentials. The
//! decision is pure: it uses the request's credentials and the cached facts about the capsule.

use super::links::{Checked, Links};
use super::preview::{self, Link};
use super::routes::Route;
use super::signed::Signed;
use super::target::{self, Target};
use crate::auth::authorize::TEAM;
use crate::auth::origin::Transport;
use crate::auth::{Caller, session};
use crate::error::Error;
use crate::policy::{Action, Resource};
use crate::secret;
use http::header::{ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, TRAILER};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use protocol::{ACCESS_TOKEN, ENVD_PORT, is_agent_port};
use subtle::ConstantTimeEq;

/// Header of the platform's keys, and the two headers of a capsule's own tokens.
pub(crate) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const ENVD_TOKEN: HeaderName = HeaderName::from_static(ACCESS_TOKEN);
const TRAFFIC_TOKEN: HeaderName = HeaderName::from_static("e2b-traffic-access-token");
/// Mark of the platform's own requests.
const PASSIVE: HeaderName = HeaderName::from_static(protocol::PASSIVE);
/// Longest key, in bytes.
const KEY_MAX: usize = 200;

/// Paths of envd that are closed to outside requests. Only the platform uses them.
const ENVD_CLOSED: [&str; 8] = [
    "/init",
    "/snapshot/prepare",
    protocol::PORTS,
    protocol::CONNECT_PORT,
    protocol::PROCESSES,
    protocol::SIGNAL,
    protocol::TERMINALS,
    protocol::log::PATH,
];

/// Credentials that a request presents.
pub(crate) struct Presented<'a> {
    headers: &'a HeaderMap,
    path: &'a str,
    signed: Option<Signed>,
    transport: Transport,
    /// The token of a preview link.
    pub link: Option<String>,
}

/// Grounds on which a request is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admitted {
    /// A key of the owner's.
    Owner,
    /// A credential or setting of the capsule itself.
    Guest(GuestAccess),
    /// A preview link, to be exchanged for a cookie with this lifetime in seconds.
    Link(i64),
}

/// Credential or setting of the capsule that lets a request in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GuestAccess {
    /// The port is public.
    Public,
    TrafficToken,
    EnvdToken,
    /// A signed link to one of envd's files.
    Signed,
    /// A cookie that a link was exchanged for.
    Cookie(Link),
}

impl<'a> Presented<'a> {
    /// Collects the credentials of a request.
    pub(crate) fn new(
        method: &Method,
        headers: &'a HeaderMap,
        (path, query): (&'a str, &'a str),
        transport: Transport,
    ) -> Self {
        let link = match query.contains(preview::FIELD) {
            true => preview::from_link(&format!("?{query}")).map(|(token, _)| token),
            false => None,
        };
        let signed = Signed::of(method, path, query);
        Self { headers, path, signed, link, transport }
    }

    /// Returns the key, unless it is too long to be one.
    pub(crate) fn key(&self) -> Option<&'a str> {
        let key = self.headers.get(&API_KEY)?.to_str().ok()?;
        Some(key).filter(|key| key.len() <= KEY_MAX)
    }

    /// Returns the tokens of links: first the query's, then those in cookies.
    pub(crate) fn link_tokens(&self) -> (Option<&str>, Vec<&'a str>) {
        (self.link.as_deref(), preview::from_cookies(self.headers, self.transport))
    }

    /// Decides whether a request is let in. A capsule of another team and a wrong token get the
    /// same answer as a missing capsule.
    pub(crate) fn decide(
        &self,
        target: Target,
        route: Option<&Route>,
        owner: Option<&Caller>,
        links: &Links,
        now: i64,
    ) -> Result<Admitted, Error> {
        if target.port == ENVD_PORT && ENVD_CLOSED.contains(&self.path) {
            return Err(Error::NotFound("route"));
        }
        if let Some(route) = route {
            if let Some(Checked::Good(link, _)) = &links.query {
                return Ok(Admitted::Link(link.until.saturating_sub(now)));
            }
            let access = match route.is_public(target.port) {
                true => Some(GuestAccess::Public),
                false => self.token(target, route),
            };
            let cookie = links.cookie.as_ref().map(|(link, _)| GuestAccess::Cookie(*link));
            if let Some(access) = access.or(cookie) {
                return Ok(Admitted::Guest(access));
            }
            match &links.query {
                Some(Checked::Expired) => return Err(Error::LinkExpired),
                Some(Checked::Revoked) => return Err(Error::LinkRevoked),
                Some(Checked::Good(..) | Checked::Bad) | None => {}
            }
        }
        if let (ENVD_PORT, Some(signed)) = (target.port, &self.signed) {
            return signed.check(route, now).map(|()| Admitted::Guest(GuestAccess::Signed));
        }
        match (self.headers.contains_key(&API_KEY), owner) {
            (true, None) => Err(Error::Unauthenticated),
            (true, Some(caller)) => {
                let route = route.filter(|route| route.team == caller.team);
                let route = route.ok_or(Error::NotFound("capsule"))?;
                let capsule = Resource::Capsule(target.capsule, route.template);
                caller.may(Action::CapsulesExec, capsule).map(|()| Admitted::Owner)
            }
            (false, _) if !self.presents_token(target) || answers_private(target, route) => {
                Err(Error::PrivatePort)
            }
            (false, _) => Err(Error::NotFound("capsule")),
        }
    }

    /// Returns the capsule's own token that the request presents.
    fn token(&self, target: Target, route: &Route) -> Option<GuestAccess> {
        if self.equals(&TRAFFIC_TOKEN, &route.traffic_token) {
            return Some(GuestAccess::TrafficToken);
        }
        let envd = is_agent_port(target.port) && self.equals(&ENVD_TOKEN, &route.envd_token);
        envd.then_some(GuestAccess::EnvdToken)
    }

    fn equals(&self, name: &HeaderName, secret: &str) -> bool {
        let value = self.headers.get(name).map(HeaderValue::as_bytes);
        value.is_some_and(|value| value.ct_eq(secret.as_bytes()).into())
    }

    fn presents_token(&self, target: Target) -> bool {
        self.headers.contains_key(&TRAFFIC_TOKEN)
            || self.link.is_some()
            || is_agent_port(target.port) && self.headers.contains_key(&ENVD_TOKEN)
    }
}

/// Reports whether a wrong token at this port gets the answer that the port is private. Capsules
/// made by E2B's API do so, as E2B's service does.
fn answers_private(target: Target, route: Option<&Route>) -> bool {
    !is_agent_port(target.port) && route.is_some_and(|route| route.e2b)
}

/// Removes the platform's keys, tokens and cookies from a request. At a port that needed no key, an
/// `X-API-Key` without the form of the platform's keys stays. A program in the guest may use it. A
/// request of the owner to envd or the code interpreter gets envd's token. Trailers are dropped, since one may be a key,
/// and so is the header that announces them. No client may mark its request as a look.
pub(crate) fn strip(headers: &mut HeaderMap, target: Target, route: &Route, admitted: &Admitted) {
    let ours = |value: &HeaderValue| secret::is_api_key(value.as_bytes());
    if *admitted == Admitted::Owner || headers.get_all(&API_KEY).iter().any(ours) {
        headers.remove(&API_KEY);
    }
    let is_ours =
        |token: &str| token.starts_with(session::PREFIX) || secret::is_api_key(token.as_bytes());
    if session::bearer(headers).is_some_and(is_ours) {
        headers.remove(AUTHORIZATION);
    }
    for name in [&TRAFFIC_TOKEN, &TRAILER, &PASSIVE] {
        headers.remove(name);
    }
    headers.remove(TEAM);
    // The session's cookies identify the proof, so the proof is removed before them.
    session::strip_csrf(headers);
    preview::strip_cookies(headers);
    if !is_agent_port(target.port) {
        // A token of another capsule is removed, too. An older token names no capsule.
        let is_envds = |value: &HeaderValue| {
            value.as_bytes() == route.envd_token.as_bytes() || target::named_by(value).is_some()
        };
        if headers.get_all(&ENVD_TOKEN).iter().any(is_envds) {
            headers.remove(&ENVD_TOKEN);
        }
    } else if *admitted == Admitted::Owner
        && let Ok(token) = HeaderValue::from_str(&route.envd_token)
    {
        headers.insert(ENVD_TOKEN, token);
    }
}

/// Reports whether a request is a browser's CORS preflight to envd or the code interpreter. The answer is the same
/// for every capsule, existing or not.
pub(super) fn is_preflight(method: &Method, headers: &HeaderMap, target: Target) -> bool {
    let asks = headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    method == Method::OPTIONS && asks && is_agent_port(target.port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::revocations::Basis;
    use http::header::COOKIE;
    use protocol::INTERPRETER_PORT;
    use types::{CapsuleId, CapsuleState, TeamId};

    const TEAM: u128 = 1;
    const NOW: i64 = 1000;

    fn route() -> Route {
        Route {
            team: TeamId(uuid::Uuid::from_u128(TEAM)),
            template: None,
            state: CapsuleState::Running,
            host: None,
            envd_token: "envd".into(),
            traffic_token: "traffic".into(),
            link_generation: 1,
            auto_resume: false,
            public_ports: [3000].into(),
            public_traffic: false,
            host_header: None,
            e2b: false,
        }
    }

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    fn guest(access: GuestAccess) -> Result<Admitted, &'static str> {
        Ok(Admitted::Guest(access))
    }

    /// Returns the decision on a request, with an error as its code.
    fn decide(
        port: u16,
        url: &str,
        headers: &[(&str, &str)],
        key_team: Option<u128>,
        known: bool,
    ) -> Result<Admitted, &'static str> {
        decide_with(port, url, headers, key_team, known.then(Links::default))
    }

    /// Decides on a request with the given results of its links and cookies. Without `links`, the
    /// capsule is not known.
    fn decide_with(
        port: u16,
        url: &str,
        headers: &[(&str, &str)],
        key_team: Option<u128>,
        links: Option<Links>,
    ) -> Result<Admitted, &'static str> {
        let target = Target { capsule: CapsuleId(uuid::Uuid::nil()), port };
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let headers = map(headers);
        let presented = Presented::new(&Method::GET, &headers, (path, query), Transport::Plain);
        let of = |team| Caller::of(TeamId(uuid::Uuid::from_u128(team)));
        let (route, owner) = (route(), key_team.map(of));
        let (known, links) = (links.is_some(), links.unwrap_or_default());
        let route = known.then_some(&route);
        let decided = presented.decide(target, route, owner.as_ref(), &links, NOW);
        decided.map_err(|error| error.code())
    }

    #[test]
    fn only_owners_key_opens_private_ports() {
        let key = [("x-api-key", "e2b_x")];
        for port in [80, 3001, ENVD_PORT, INTERPRETER_PORT] {
            assert_eq!(decide(port, "/", &key, Some(TEAM), true), Ok(Admitted::Owner));
            assert_eq!(decide(port, "/", &key, Some(2), true), Err("not_found"));
            assert_eq!(decide(port, "/", &key, None, true), Err("unauthorized"));
            assert_eq!(decide(port, "/", &[], None, true), Err("private_port"));
        }
    }

    #[test]
    fn missing_capsule_and_capsule_of_another_team_look_the_same() {
        let key = [("x-api-key", "e2b_x")];
        let token = [("x-access-token", "wrong")];
        let traffic = [("e2b-traffic-access-token", "wrong")];
        for known in [true, false] {
            assert_eq!(decide(80, "/", &key, Some(2), known), Err("not_found"));
            assert_eq!(decide(80, "/", &key, None, known), Err("unauthorized"));
            assert_eq!(decide(80, "/", &[], None, known), Err("private_port"));
            assert_eq!(decide(80, "/", &traffic, None, known), Err("not_found"));
            assert_eq!(decide(ENVD_PORT, "/", &token, None, known), Err("not_found"));
            assert_eq!(decide(80, "/?wrenn-preview=1.x", &[], None, known), Err("not_found"));
        }
    }

    #[test]
    fn envd_token_opens_only_envd_and_never_its_control_routes() {
        let token = [("x-access-token", "envd")];
        assert_eq!(decide(ENVD_PORT, "/files", &token, None, true), guest(GuestAccess::EnvdToken));
        let code = decide(INTERPRETER_PORT, "/execute", &token, None, true);
        assert_eq!(code, guest(GuestAccess::EnvdToken));
        assert_eq!(decide(80, "/", &token, None, true), Err("private_port"));
        let all = [("x-access-token", "envd"), ("x-api-key", "e2b_x")];
        for path in [
            "/init",
            "/snapshot/prepare",
            "/ports",
            "/ports/connect?port=80",
            "/processes",
            "/processes/signal",
            "/terminals",
            "/log?most=1",
        ] {
            assert_eq!(decide(ENVD_PORT, path, &all, Some(TEAM), true), Err("not_found"), "{path}");
        }
    }

    #[test]
    fn file_signature_opens_one_file_and_its_errors_are_specific() {
        let link = |until: i64, token: &str| {
            let signed = protocol::SignedFile { path: "/a", user: None, until: Some(until) };
            let signature = signed.sign(protocol::Operation::Read, token);
            let signature = signature.replace('+', "%2B").replace('/', "%2F");
            format!("/files?path=%2Fa&signature={signature}&signature_expiration={until}")
        };
        let good = link(NOW, "envd");
        assert_eq!(decide(ENVD_PORT, &good, &[], None, true), guest(GuestAccess::Signed));
        assert_eq!(decide(80, &good, &[], None, true), Err("private_port"));
        let wrong = Err("bad_signature");
        assert_eq!(
            decide(ENVD_PORT, &good, &[], None, false),
            wrong,
            "as of one that is not there"
        );
        let other = good.replace("path=%2Fa", "path=%2Fb");
        for bad in [&link(NOW, "other"), &link(NOW - 1, "envd"), &other] {
            assert_eq!(decide(ENVD_PORT, bad, &[], None, true), wrong, "{bad}");
        }
        let elsewhere = good.replace("/files?", "/envs?");
        assert_eq!(decide(ENVD_PORT, &elsewhere, &[], None, true), Err("private_port"));
    }

    #[test]
    fn traffic_token_preview_link_cookie_and_public_port_give_access() {
        let traffic = [("e2b-traffic-access-token", "traffic")];
        assert_eq!(decide(80, "/", &traffic, None, true), guest(GuestAccess::TrafficToken));
        assert_eq!(decide(3000, "/", &[], None, true), guest(GuestAccess::Public));
        // A program's own use of the header does not close a public port.
        assert_eq!(
            decide(3000, "/", &[("x-api-key", "app")], None, true),
            guest(GuestAccess::Public)
        );
        let maker = preview::Maker::User(types::UserId::new());
        let link = Link { until: NOW + 60, generation: 1, maker };
        let url = "/a?x=1&wrenn-preview=1.x";
        let by_link =
            |checked| decide_with(80, url, &[], None, Some(Links::of(Some(checked), None)));
        assert_eq!(by_link(Checked::Good(link, Basis::default())), Ok(Admitted::Link(60)));
        assert_eq!(by_link(Checked::Expired), Err("link_expired"));
        assert_eq!(by_link(Checked::Revoked), Err("link_revoked"));
        assert_eq!(by_link(Checked::Bad), Err("not_found"));
        let cookie = Links::of(None, Some((link, Basis::default())));
        assert_eq!(decide_with(80, "/", &[], None, Some(cookie)), guest(GuestAccess::Cookie(link)));
        let cookie = Links::of(Some(Checked::Revoked), Some((link, Basis::default())));
        assert_eq!(decide_with(80, url, &[], None, Some(cookie)), guest(GuestAccess::Cookie(link)));
    }

    #[test]
    fn platform_credentials_are_stripped_before_the_guest() {
        let key = "e2b_0000000000000000000000000000000000000000";
        let csrf = session::csrf("wrs_1");
        let all = [
            ("x-api-key", key),
            ("x-access-token", "envd"),
            ("x-csrf-token", csrf.as_str()),
            ("x-wrenn-team", "t"),
            ("x-wrenn-passive", "1"),
            ("trailer", "x-api-key"),
            ("e2b-traffic-access-token", "traffic"),
            ("cookie", "a=1; wrenn-preview=x; wrenn-session=wrs_1"),
            ("authorization", "Bearer app"),
        ];
        let at = |port, headers: &[(&str, &str)], admitted| {
            let mut headers = map(headers);
            let target = Target { capsule: CapsuleId::new(), port };
            strip(&mut headers, target, &route(), &admitted);
            headers
        };
        let left = map(&[("cookie", "a=1"), ("authorization", "Bearer app")]);
        let public = Admitted::Guest(GuestAccess::Public);
        for admitted in [Admitted::Owner, public, Admitted::Link(1)] {
            assert_eq!(at(80, &all, admitted), left);
        }
        let session = [("authorization", "Bearer wrs_1"), ("x-api-key", "wrn_1")];
        assert!(at(80, &session, public).is_empty());
        let apps = [("x-api-key", "app"), ("x-access-token", "a-p-p"), ("x-csrf-token", "app")];
        assert_eq!(at(80, &apps, public), map(&apps));
        assert_eq!(at(80, &apps, Admitted::Owner), map(&apps[1..]));
        let others = crate::secret::new_envd_token(CapsuleId::new());
        assert!(at(80, &[("x-access-token", &others)], public).is_empty());
        let marked = [("x-api-key", key), ("x-wrenn-passive", "1")];
        let to_envd = at(ENVD_PORT, &marked, Admitted::Owner);
        assert_eq!(to_envd, map(&[("x-access-token", "envd")]));
        assert!(!at(80, &[("cookie", "wrenn-preview=x")], public).contains_key(COOKIE));
    }
}
