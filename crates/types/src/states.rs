//! States of snapshots, hosts and users, as the database holds them.

use crate::text_enum;

/// State of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SnapshotState {
    /// A host takes the snapshot.
    Making,
    /// The snapshot is complete.
    Ready,
    /// The snapshot is being removed. No capsule starts from it any more.
    Removing,
}

text_enum!(SnapshotState, "status", {
    Making = "making",
    Ready = "ready",
    Removing = "removing",
});

/// State of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HostState {
    /// The host has yet to enrol.
    Pending,
    /// The host sends heartbeats.
    Online,
    /// The host has sent no heartbeat for some time.
    Unreachable,
}

text_enum!(HostState, "status", {
    Pending = "pending",
    Online = "online",
    Unreachable = "unreachable",
});

/// State of a user's account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UserState {
    /// The user has yet to activate the account.
    Inactive,
    /// The user may sign in.
    Active,
    /// An admin has disabled the account.
    Disabled,
    /// The user was erased.
    Deleted,
}

text_enum!(UserState, "status", {
    Inactive = "inactive",
    Active = "active",
    Disabled = "disabled",
    Deleted = "deleted",
});
