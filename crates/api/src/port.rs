//! Ports of capsules, and the links to them.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// How a port of a capsule is reached over HTTP.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Port {
    pub port: u16,
    /// Whether anyone may reach it.
    pub public: bool,
    /// The port's own host name, as a URL.
    pub url: String,
    /// Token that admits to every port of the capsule but envd's, in the header
    /// `E2b-Traffic-Access-Token`. Meant for programs that should not have a key. Absent for
    /// callers without `capsules:exec`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub traffic_token: Option<String>,
}

/// A server in a capsule: `GET /v1/capsules/{id}/ports` lists them.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ListeningPort {
    pub port: u16,
    /// Address that the server listens on, as `0.0.0.0`, `127.0.0.1` or `::1`. Every server is
    /// reached by the port's URL.
    pub address: String,
    /// Name of the program, where the guest tells one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub program: Option<String>,
    /// Set when anyone may reach the port.
    pub public: bool,
    /// The port's own host name, as a URL.
    pub url: String,
}

/// `POST /v1/capsules/{id}/traffic-token`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TrafficToken {
    /// The new token. The old one admits to nothing.
    pub traffic_token: String,
}

/// `PUT /v1/capsules/{id}/ports/{port}`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetPort {
    /// Whether anyone may reach it.
    pub public: bool,
}

/// `POST /v1/capsules/{id}/ports/{port}/links`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MakeLink {
    /// Seconds until the link and its cookie expire: at most 30 days; an hour when left out.
    pub expires_sec: Option<u32>,
}

/// A link that lets a browser in.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Link {
    pub url: String,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}
