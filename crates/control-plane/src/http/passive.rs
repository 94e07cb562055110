//! The query of passive reads.

/// Query of a read without further fields.
#[derive(Debug, Clone, Copy, Default, serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Passive {
    /// True to read without side effects. The request then does not resume a paused capsule: the
    /// answer is 409 `capsule_paused`. A passive request does not count as activity.
    #[serde(default)]
    pub passive: bool,
}
