//! What a capsule may reach outside.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Rules for what a capsule may reach: what is allowed goes before what is denied, and what neither
/// speaks of may be reached. Private ranges may not, whatever is allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// False denies all that is not allowed, as `0.0.0.0/0` in `deny` does; true when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internet: Option<bool>,
    /// IPv4 addresses, ranges as 10.0.0.0/8, and names as example.com or *.example.com, at most
    /// 256. Names are those of TLS and HTTP on ports 443 and 80, and must be what the capsule's
    /// name server answered; they are of use where something is denied.
    #[serde(default)]
    pub allow: Vec<String>,
    /// The same.
    #[serde(default)]
    pub deny: Vec<String>,
}
