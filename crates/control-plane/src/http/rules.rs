//! Access rules of all routes in one table. A route without a rule serves nobody. The OpenAPI
//! document shows each rule as `x-wrenn-access`.

use super::{compat_e2b, compat_wrenn_v0};
use crate::policy::Action;
use http::Method;

/// Callers that a route serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Anybody. Credentials, if any, are in the request's body.
    Open,
    /// A host, by its own token.
    Host,
    /// A user who has signed in.
    User,
    /// Any user or key with valid credentials.
    Anyone,
    /// Callers who may do this action in the team.
    Team(Action),
    /// The platform's admins, and keys of operators.
    Platform,
}

impl Rule {
    /// Returns the rule as the OpenAPI document writes it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Host => "host",
            Self::User => "user",
            Self::Anyone => "anyone",
            Self::Team(action) => action.as_str(),
            Self::Platform => "platform",
        }
    }
}

const READ: Rule = Rule::Team(Action::CapsulesRead);
const EXEC: Rule = Rule::Team(Action::CapsulesExec);
const CHANGE: Rule = Rule::Team(Action::CapsulesAdmin);
const TEAM: Rule = Rule::Team(Action::TeamRead);
const KEYS: Rule = Rule::Team(Action::KeysMake);
const ADMIN: Rule = Rule::Team(Action::TeamAdmin);
const OWNER: Rule = Rule::Team(Action::TeamOwn);

/// Method, pattern and access rule of each route.
const RULES: &[(&str, &str, Rule)] = &[
    ("GET", "/health", Rule::Open),
    ("GET", "/version", Rule::Open),
    ("GET", "/metrics", Rule::Platform),
    ("GET", "/openapi.json", Rule::Open),
    ("GET", "/docs", Rule::Open),
    ("POST", "/v1/capsules", CHANGE),
    ("GET", "/v1/capsules", READ),
    ("GET", "/v1/capsules/{id}", READ),
    ("DELETE", "/v1/capsules/{id}", CHANGE),
    ("GET", "/v1/capsules/{id}/logs", READ),
    ("POST", "/v1/capsules/{id}/pause", CHANGE),
    ("POST", "/v1/capsules/{id}/resume", CHANGE),
    ("POST", "/v1/capsules/{id}/fork", CHANGE),
    ("POST", "/v1/capsules/{id}/timeout", CHANGE),
    ("PUT", "/v1/capsules/{id}/network", CHANGE),
    ("POST", "/v1/capsules/{id}/ping", EXEC),
    ("POST", "/v1/capsules/{id}/exec", EXEC),
    ("GET", "/v1/capsules/{id}/exec/stream", EXEC),
    ("GET", "/v1/capsules/{id}/pty", EXEC),
    ("GET", "/v1/capsules/{id}/processes", EXEC),
    ("DELETE", "/v1/capsules/{id}/processes/{selector}", EXEC),
    ("GET", "/v1/capsules/{id}/processes/{selector}/stream", EXEC),
    ("GET", "/v1/capsules/{id}/files", EXEC),
    ("PUT", "/v1/capsules/{id}/files", EXEC),
    ("GET", "/v1/capsules/{id}/files/archive", EXEC),
    ("PUT", "/v1/capsules/{id}/files/archive", EXEC),
    ("POST", "/v1/capsules/{id}/files/read", EXEC),
    ("POST", "/v1/capsules/{id}/files/write", EXEC),
    ("POST", "/v1/capsules/{id}/files/stream/read", EXEC),
    ("POST", "/v1/capsules/{id}/files/stream/write", EXEC),
    ("POST", "/v1/capsules/{id}/files/list", EXEC),
    ("POST", "/v1/capsules/{id}/files/stat", EXEC),
    ("POST", "/v1/capsules/{id}/files/mkdir", EXEC),
    ("POST", "/v1/capsules/{id}/files/move", EXEC),
    ("POST", "/v1/capsules/{id}/files/remove", EXEC),
    ("GET", "/v1/capsules/{id}/ports", READ),
    ("GET", "/v1/capsules/{id}/ports/{port}", READ),
    ("PUT", "/v1/capsules/{id}/ports/{port}", CHANGE),
    ("POST", "/v1/capsules/{id}/ports/{port}/links", EXEC),
    ("GET", "/v1/capsules/{id}/ports/{port}/tcp", EXEC),
    ("POST", "/v1/capsules/{id}/traffic-token", CHANGE),
    ("POST", "/v1/capsules/{id}/links/rotate", CHANGE),
    ("POST", "/v1/snapshots", CHANGE),
    ("GET", "/v1/snapshots", READ),
    ("GET", "/v1/snapshots/{name}", READ),
    ("DELETE", "/v1/snapshots/{name}", CHANGE),
    ("GET", "/v1/templates", READ),
    ("PATCH", "/v1/templates/{name}", Rule::Platform),
    ("GET", "/v1/hosts", READ),
    ("POST", "/v1/hosts", Rule::Platform),
    ("GET", "/v1/hosts/{id}", Rule::Platform),
    ("DELETE", "/v1/hosts/{id}", Rule::Platform),
    ("POST", "/v1/hosts/{id}/token", Rule::Platform),
    ("POST", "/v1/hosts/{id}/drain", Rule::Platform),
    ("PUT", "/v1/hosts/{id}/tags", Rule::Platform),
    ("GET", "/v1/hosts/{id}/delete-preview", Rule::Platform),
    ("GET", "/v1/hosts/{id}/metrics", Rule::Platform),
    ("POST", "/v1/hosts/register", Rule::Open),
    ("POST", "/v1/hosts/refresh", Rule::Open),
    ("POST", "/v1/hosts/{id}/heartbeat", Rule::Host),
    ("POST", "/v1/auth/signup", Rule::Open),
    ("POST", "/v1/auth/activate", Rule::Open),
    ("POST", "/v1/auth/login", Rule::Open),
    ("POST", "/v1/auth/logout", Rule::User),
    ("POST", "/v1/auth/token", Rule::User),
    ("POST", "/v1/auth/password/reset", Rule::Open),
    ("POST", "/v1/auth/password/confirm", Rule::Open),
    ("GET", "/v1/auth/providers", Rule::Open),
    ("GET", "/v1/auth/oauth/{provider}", Rule::Open),
    ("GET", "/v1/auth/oauth/{provider}/callback", Rule::Open),
    ("GET", "/v1/me", Rule::User),
    ("PATCH", "/v1/me", Rule::User),
    ("DELETE", "/v1/me", Rule::User),
    ("POST", "/v1/me/password", Rule::User),
    ("GET", "/v1/me/sessions", Rule::User),
    ("DELETE", "/v1/me/sessions", Rule::User),
    ("DELETE", "/v1/me/sessions/{id}", Rule::User),
    ("POST", "/v1/me/providers/{provider}", Rule::User),
    ("DELETE", "/v1/me/providers/{provider}", Rule::User),
    ("GET", "/v1/teams", Rule::Anyone),
    ("POST", "/v1/teams", Rule::User),
    ("POST", "/v1/invitations/accept", Rule::User),
    ("GET", "/v1/teams/{id}", TEAM),
    ("PATCH", "/v1/teams/{id}", ADMIN),
    ("DELETE", "/v1/teams/{id}", OWNER),
    ("GET", "/v1/teams/{id}/members", TEAM),
    ("PATCH", "/v1/teams/{id}/members/{user}", ADMIN),
    ("DELETE", "/v1/teams/{id}/members/{user}", ADMIN),
    ("POST", "/v1/teams/{id}/leave", TEAM),
    ("POST", "/v1/teams/{id}/transfer", OWNER),
    ("GET", "/v1/teams/{id}/invitations", ADMIN),
    ("POST", "/v1/teams/{id}/invitations", ADMIN),
    ("DELETE", "/v1/teams/{id}/invitations/{invitation}", ADMIN),
    ("GET", "/v1/teams/{id}/limits", TEAM),
    ("GET", "/v1/api-keys", TEAM),
    ("POST", "/v1/api-keys", KEYS),
    ("DELETE", "/v1/api-keys/{id}", KEYS),
    ("GET", "/v1/audit-logs", ADMIN),
    ("GET", "/v1/audit-logs/export", ADMIN),
    ("GET", "/v1/usage", READ),
    ("GET", "/v1/events/stream", READ),
    ("GET", "/v1/channels", ADMIN),
    ("POST", "/v1/channels", ADMIN),
    ("GET", "/v1/channels/{id}", ADMIN),
    ("PATCH", "/v1/channels/{id}", ADMIN),
    ("DELETE", "/v1/channels/{id}", ADMIN),
    ("POST", "/v1/channels/{id}/secret", ADMIN),
    ("POST", "/v1/channels/{id}/test", ADMIN),
    ("GET", "/v1/channels/{id}/deliveries", ADMIN),
    ("GET", "/v1/admin/users", Rule::Platform),
    ("POST", "/v1/admin/users", Rule::Platform),
    ("PATCH", "/v1/admin/users/{id}", Rule::Platform),
    ("DELETE", "/v1/admin/users/{id}", Rule::Platform),
    ("GET", "/v1/admin/teams", Rule::Platform),
    ("GET", "/v1/admin/teams/{id}/limits", Rule::Platform),
    ("PUT", "/v1/admin/teams/{id}/limits", Rule::Platform),
    ("GET", "/v1/admin/audit-logs", Rule::Platform),
];

/// Returns the rule of a route.
pub(crate) fn of(method: &Method, pattern: &str) -> Option<Rule> {
    // The rule of `GET` covers `HEAD` too.
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    let rules = RULES.iter().chain(compat_e2b::RULES).chain(compat_wrenn_v0::RULES);
    let mut rules = rules.filter(|(of, at, _)| *of == method && *at == pattern);
    rules.next().map(|(.., rule)| *rule)
}

/// Lists the routes that are absent from the OpenAPI document, each as a method and a pattern.
pub(crate) fn of_others() -> Vec<String> {
    let rules = compat_e2b::RULES.iter().chain(compat_wrenn_v0::RULES);
    rules.map(|(method, pattern, _)| format!("{method} {pattern}")).collect()
}

/// Reports whether a path is about single capsules or templates, to some of which a key may be
/// confined.
pub(crate) fn is_of_capsules(path: &str) -> bool {
    let path = path.strip_prefix("/api").unwrap_or(path);
    let one_by_one = path.starts_with("/v1/capsules") && !compat_wrenn_v0::is_of_team(path);
    one_by_one || path == "/v1/templates" || compat_e2b::is_of_capsules(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_route_has_exactly_one_rule() {
        let document = super::super::openapi();
        let mut routes = BTreeSet::new();
        for (path, item) in &document.paths.paths {
            let operations = [
                ("GET", &item.get),
                ("PUT", &item.put),
                ("POST", &item.post),
                ("DELETE", &item.delete),
                ("PATCH", &item.patch),
            ];
            for (method, operation) in operations {
                if operation.is_some() {
                    routes.insert((method, path.as_str()));
                }
            }
        }
        let aliases = ["read", "write"].map(|to| format!("/v1/capsules/{{id}}/files/stream/{to}"));
        routes.extend(aliases.iter().map(|path| ("POST", path.as_str())));
        let rules: BTreeSet<_> = RULES.iter().map(|(method, path, _)| (*method, *path)).collect();
        assert_eq!(rules.len(), RULES.len(), "a route has two rules");
        let missing: Vec<_> = routes.symmetric_difference(&rules).collect();
        assert!(missing.is_empty(), "not in both: {missing:?}");
    }
}
