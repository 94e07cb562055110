//! Rules for a capsule's outbound connections.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Rules for a capsule's outbound connections. A rule in `allow` has priority over `deny`.
/// Destinations without a rule are reachable. Private ranges are never reachable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// False to deny every destination that is not allowed, as `0.0.0.0/0` in `deny` does. The
    /// default is true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internet: Option<bool>,
    /// Allowed destinations, at most 256.
    /// - Addresses are IPv4; ranges have the form `10.0.0.0/8`; names have the form `example.com`
    ///   or `*.example.com`.
    /// - Names are read from TLS on port 443 and from HTTP on port 80.
    /// - An allowed name opens only the addresses that the capsule's name server answered for it.
    /// - Names need a rule that denies something.
    #[serde(default)]
    pub allow: Vec<String>,
    /// Denied destinations, at most 256, in the form of `allow`.
    #[serde(default)]
    pub deny: Vec<String>,
}
