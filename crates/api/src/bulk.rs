//! Bulk changes of capsules.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Request body of `POST /v1/capsules/bulk`. Either `ids` or `filter` selects the capsules.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BulkChange {
    /// Change of each capsule: `pause`, `resume` or `delete`.
    pub action: String,
    /// Ids of at most 100 capsules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<String>>,
    /// Conditions that the capsules meet. A request changes the newest 100 of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<BulkFilter>,
    /// True to return the selected capsules, and to change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// Conditions on capsules, with the meanings of the parameters of `GET /v1/capsules`. An empty
/// filter selects all capsules of the team that the action can change.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BulkFilter {
    /// Accepted states. The default is `running` for a pause, `paused` for a resume, and any state
    /// for a deletion.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub status: Vec<String>,
    /// Name or id of a template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Id of the user or key that created the capsules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Key-value pairs that the metadata has, at most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Begin of a name or of an id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub q: Option<String>,
}

/// Answer to `POST /v1/capsules/bulk`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BulkResult {
    /// Result for each selected capsule.
    pub items: Vec<BulkItem>,
    /// True if further capsules meet the conditions. A repeated request changes the next ones.
    pub more: bool,
}

/// Result of a bulk change for one capsule.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BulkItem {
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// State after the change or, in a dry run, the present state. Absent after an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Reason why the change failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<BulkError>,
}

/// Reason why a change of one capsule failed.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BulkError {
    /// Stable code for programs, as in `ErrorDetail`.
    pub code: String,
    /// Message for people.
    pub message: String,
}
