//! Types that every part of Wrenn shares: ids, capsule states and their legal transitions, names
//! and limits. This crate does no I/O. Its only wire formats are the texts of ids, of closed sets
//! and hexadecimal digits. With the feature `sqlx`, ids and closed sets are columns of PostgreSQL.

mod address;
pub mod capsule;
pub mod client_network;
pub mod egress;
pub mod hex;
pub mod ids;
pub mod isolation;
pub mod logs;
pub mod names;
pub mod resources;
pub mod states;
pub mod text_enum;

pub use address::{NoPublicAddress, is_private_literal, is_public, only_public};
pub use capsule::{CapsuleState, OnTimeout};
pub use client_network::ClientNetwork;
pub use egress::Egress;
pub use ids::{
    ApiKeyId, AuditLogId, BuildId, CapsuleId, ChannelId, DeliveryId, HostId, HostTokenId,
    InvitationId, PLATFORM_TEAM, SessionId, SnapshotId, TeamId, TemplateId, UserId,
};
pub use isolation::Isolation;
pub use logs::LogPolicy;
pub use states::{HostState, SnapshotState, UserState};

/// Crates that the macros of this crate name.
#[doc(hidden)]
pub mod export {
    pub use serde;
    #[cfg(feature = "sqlx")]
    pub use sqlx;
}
