//! Ports of capsules, and links to ports.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// Access to a port of a capsule over HTTP.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Port {
    /// Number of the port.
    pub port: u16,
    /// True if anyone may reach the port.
    pub public: bool,
    /// URL with the port's own host name.
    pub url: String,
    /// Token that admits clients to every port of the capsule except envd's, in the header
    /// `E2b-Traffic-Access-Token`. Programs without a key can use the token. Absent for callers
    /// without `capsules:exec`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub traffic_token: Option<String>,
}

/// A server that listens in a capsule, as `GET /v1/capsules/{id}/ports` lists it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ListeningPort {
    /// Number of the port.
    pub port: u16,
    /// Address that the server listens on, such as `0.0.0.0`, `127.0.0.1` or `::1`. The port's URL
    /// reaches a server on any of these addresses.
    pub address: String,
    /// Name of the program, if the guest reports it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub program: Option<String>,
    /// Process id of the program in the guest, if the guest reports it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pid: Option<u32>,
    /// True if anyone may reach the port.
    pub public: bool,
    /// URL with the port's own host name.
    pub url: String,
}

/// Answer to `POST /v1/capsules/{id}/traffic-token`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TrafficToken {
    /// New token. The old token admits nobody.
    pub traffic_token: String,
}

/// Request body of `PUT /v1/capsules/{id}/ports/{port}`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetPort {
    /// True to let anyone reach the port.
    pub public: bool,
}

/// Request body of `POST /v1/capsules/{id}/ports/{port}/links`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct MakeLink {
    /// Seconds until the link and its cookie expire, at most 30 days. The default is one hour.
    pub expires_in: Option<u32>,
}

/// A link that gives a browser access to a port.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Link {
    /// URL of the link, for a browser.
    pub url: String,
    /// Expiry of the link.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}
