//! Access rules of routes, and the table in which the gate finds them. A route registers its rule
//! together with its handler (`http/routes.rs`).

use crate::policy::{Action, Resource};
use http::Method;
use std::collections::HashMap;

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
    /// Callers who may do this action in the team, to this resource. With `Resource::Capsules`, a
    /// key that is confined to some capsules may, too.
    Team(Action, Resource),
    /// As `Team`, for a route that clients ask many times a second. Its requests do not count
    /// against the limits per second, and must be cheap.
    Poll(Action, Resource),
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
            Self::Team(action, _) | Self::Poll(action, _) => action.as_str(),
            Self::Platform => "platform",
        }
    }

    /// Reports whether the route works inside a capsule.
    pub(crate) fn executes(self) -> bool {
        matches!(self, Self::Team(Action::CapsulesExec, _))
    }
}

/// Rules of all registered routes, by pattern and method.
#[derive(Debug, Default)]
pub(crate) struct Rules(HashMap<String, HashMap<Method, Rule>>);

impl Rules {
    pub(crate) fn insert(&mut self, method: Method, pattern: &str, rule: Rule) {
        self.0.entry(pattern.to_owned()).or_default().insert(method, rule);
    }

    /// Returns the rule of a route. The rule of `GET` covers `HEAD` too.
    pub(crate) fn of(&self, method: &Method, pattern: &str) -> Option<Rule> {
        let get = Method::GET;
        let method = if *method == Method::HEAD { &get } else { method };
        self.0.get(pattern)?.get(method).copied()
    }

    /// Lists the method and the pattern of each route, in no order.
    pub(crate) fn routes(&self) -> impl Iterator<Item = (&Method, &str)> {
        self.0
            .iter()
            .flat_map(|(pattern, rules)| rules.keys().map(move |method| (method, pattern.as_str())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_of_get_covers_head_and_no_other_method() {
        let mut rules = Rules::default();
        rules.insert(Method::GET, "/v1/capsules/{id}", Rule::User);
        rules.insert(Method::DELETE, "/v1/capsules/{id}", Rule::Platform);
        let of = |method| rules.of(&method, "/v1/capsules/{id}");
        assert_eq!((of(Method::GET), of(Method::HEAD)), (Some(Rule::User), Some(Rule::User)));
        assert_eq!(of(Method::DELETE), Some(Rule::Platform));
        assert_eq!((of(Method::POST), of(Method::OPTIONS)), (None, None));
        assert_eq!(rules.of(&Method::GET, "/v1/capsules"), None);
        assert_eq!(rules.routes().count(), 2);
    }
}
