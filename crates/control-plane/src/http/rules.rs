//! Rules in a team that routes register with. `http.rs` has the routes.

use crate::auth::rule::Rule;
use crate::policy::{Action, Resource};

/// Rules of routes about single capsules. A key that is confined to some capsules passes.
pub(super) const READ: Rule = Rule::Team(Action::CapsulesRead, Resource::Capsules);
pub(super) const EXEC: Rule = Rule::Team(Action::CapsulesExec, Resource::Capsules);
pub(super) const CHANGE: Rule = Rule::Team(Action::CapsulesAdmin, Resource::Capsules);
/// Rule of the route that clients ask for a build's status, five times a second.
pub(super) const POLL: Rule = Rule::Poll(Action::CapsulesRead, Resource::Capsules);
/// Rules of routes about everything that a team has. No confined key passes.
pub(super) const READ_ALL: Rule = Rule::Team(Action::CapsulesRead, Resource::Team);
pub(super) const CHANGE_ALL: Rule = Rule::Team(Action::CapsulesAdmin, Resource::Team);
/// Rules of routes about the team itself.
pub(super) const TEAM: Rule = Rule::Team(Action::TeamRead, Resource::Team);
pub(super) const KEYS: Rule = Rule::Team(Action::KeysMake, Resource::Team);
pub(super) const ADMIN: Rule = Rule::Team(Action::TeamAdmin, Resource::Team);
pub(super) const OWNER: Rule = Rule::Team(Action::TeamOwn, Resource::Team);
