//! Decides which caller may do which action; pure, and the only place that does. A caller has
//! permissions, from a role or from a key's scopes. A caller may be confined to one template or one
//! capsule.

use types::{CapsuleId, TemplateId};

/// Role of a user in a team. Each role includes the rights of the roles before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Viewer,
    Member,
    Admin,
    Owner,
}

/// Kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// See capsules, snapshots, templates, events and usage.
    CapsulesRead,
    /// Run commands in capsules, touch their files, reach their ports.
    CapsulesExec,
    /// Make, change and end capsules and snapshots.
    CapsulesAdmin,
    /// See the team, its members and its keys.
    TeamRead,
    /// Make keys, and revoke keys of one's own.
    KeysMake,
    /// Change members, invitations, channels and all keys, and see the audit log.
    TeamAdmin,
    /// Transfer the team, or delete it.
    TeamOwn,
}

impl Action {
    pub(crate) const ALL: [Self; 7] = [
        Self::CapsulesRead,
        Self::CapsulesExec,
        Self::CapsulesAdmin,
        Self::TeamRead,
        Self::KeysMake,
        Self::TeamAdmin,
        Self::TeamOwn,
    ];

    /// Returns the action's name, as messages to people show it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::CapsulesRead => "capsules:read",
            Self::CapsulesExec => "capsules:exec",
            Self::CapsulesAdmin => "capsules:admin",
            Self::TeamRead => "team:read",
            Self::KeysMake => "keys:make",
            Self::TeamAdmin => "team:admin",
            Self::TeamOwn => "team:own",
        }
    }
}

/// Set of actions that a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Permissions(u8);

impl Permissions {
    pub(crate) const ALL: Self = Self(u8::MAX);

    const fn of(actions: &[Action]) -> Self {
        let (mut bits, mut i) = (0, 0);
        while i < actions.len() {
            bits |= 1 << actions[i] as u8;
            i += 1;
        }
        Self(bits)
    }

    pub(crate) fn allow(self, action: Action) -> bool {
        self.0 & (1 << action as u8) != 0
    }

    /// Returns the actions that both sets allow.
    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Reports whether this set is a part of the other.
    pub(crate) fn within(self, other: Self) -> bool {
        self.and(other) == self
    }
}

types::text_enum!(Role, "role", {
    Viewer = "viewer",
    Member = "member",
    Admin = "admin",
    Owner = "owner",
});

impl Role {
    pub(crate) fn permissions(self) -> Permissions {
        use Action::{CapsulesAdmin, CapsulesExec, CapsulesRead, KeysMake, TeamAdmin, TeamRead};
        match self {
            Self::Viewer => Permissions::of(&[CapsulesRead, TeamRead]),
            Self::Member => {
                Permissions::of(&[CapsulesRead, TeamRead, CapsulesExec, CapsulesAdmin, KeysMake])
            }
            Self::Admin => Permissions::of(&[
                CapsulesRead,
                TeamRead,
                CapsulesExec,
                CapsulesAdmin,
                KeysMake,
                TeamAdmin,
            ]),
            Self::Owner => Permissions::of(&Action::ALL),
        }
    }
}

/// Scope of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyScope {
    CapsulesRead,
    CapsulesExec,
    CapsulesAdmin,
    TeamRead,
    TeamAdmin,
}

types::text_enum!(KeyScope, "scopes", {
    CapsulesRead = "capsules:read",
    CapsulesExec = "capsules:exec",
    CapsulesAdmin = "capsules:admin",
    TeamRead = "team:read",
    TeamAdmin = "team:admin",
});

impl KeyScope {
    fn permissions(self) -> Permissions {
        use Action::{CapsulesAdmin, CapsulesExec, CapsulesRead, KeysMake, TeamAdmin, TeamRead};
        match self {
            Self::CapsulesRead => Permissions::of(&[CapsulesRead]),
            Self::CapsulesExec => Permissions::of(&[CapsulesRead, CapsulesExec]),
            Self::CapsulesAdmin => Permissions::of(&[CapsulesRead, CapsulesExec, CapsulesAdmin]),
            Self::TeamRead => Permissions::of(&[TeamRead]),
            Self::TeamAdmin => Permissions::of(&[TeamRead, KeysMake, TeamAdmin]),
        }
    }
}

/// Returns the actions that a key's scopes allow. A key without scopes may do everything with
/// capsules, and see its team.
pub(crate) fn scoped(scopes: impl IntoIterator<Item = KeyScope>) -> Permissions {
    use Action::{CapsulesAdmin, CapsulesExec, CapsulesRead, TeamRead};
    let mut scopes = scopes.into_iter().peekable();
    if scopes.peek().is_none() {
        return Permissions::of(&[CapsulesRead, CapsulesExec, CapsulesAdmin, TeamRead]);
    }
    let permissions = scopes.map(KeyScope::permissions);
    permissions.fold(Permissions::default(), |all, one| Permissions(all.0 | one.0))
}

/// Capsule and template that a key is confined to. A key's scopes are another thing: they name its
/// actions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Confinement {
    pub capsule: Option<CapsuleId>,
    pub template: Option<TemplateId>,
}

/// Object of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resource {
    /// The team as a whole, or an object that belongs to no capsule.
    Team,
    /// A capsule of the team, with the template that it was made from.
    Capsule(CapsuleId, Option<TemplateId>),
    /// A template, to create a capsule from.
    Template(TemplateId),
    /// Capsules as a whole. The caller sees only the capsules that they may see.
    Capsules,
}

/// Reason of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied {
    /// The caller sees the resource, but may not do this action.
    Forbidden(Action),
    /// The caller may not see the resource.
    Hidden,
}

/// Decides whether a caller may do an action to a resource of their own team.
pub(crate) fn decide(
    permissions: Permissions,
    confinement: Confinement,
    action: Action,
    resource: Resource,
) -> Result<(), Denied> {
    if !permissions.allow(action) {
        return Err(Denied::Forbidden(action));
    }
    let seen = match resource {
        Resource::Capsules => true,
        Resource::Team => confinement == Confinement::default(),
        Resource::Template(id) => {
            confinement.capsule.is_none() && confinement.template.is_none_or(|own| own == id)
        }
        Resource::Capsule(id, template) => {
            confinement.capsule.is_none_or(|own| own == id)
                && confinement.template.is_none_or(|own| Some(own) == template)
        }
    };
    match (seen, resource) {
        (true, _) => Ok(()),
        (false, Resource::Team) => Err(Denied::Forbidden(action)),
        (false, _) => Err(Denied::Hidden),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Action::{
        CapsulesAdmin, CapsulesExec, CapsulesRead, KeysMake, TeamAdmin, TeamOwn, TeamRead,
    };

    /// Each caller, with a flag for each action in the order of `Action::ALL`.
    const TABLE: [(&str, [bool; 7]); 10] = [
        // read, exec, admin of capsules; team read, keys, team admin, team own
        ("viewer", [true, false, false, true, false, false, false]),
        ("member", [true, true, true, true, true, false, false]),
        ("admin", [true, true, true, true, true, true, false]),
        ("owner", [true, true, true, true, true, true, true]),
        ("", [true, true, true, true, false, false, false]),
        ("capsules:read", [true, false, false, false, false, false, false]),
        ("capsules:exec", [true, true, false, false, false, false, false]),
        ("capsules:admin", [true, true, true, false, false, false, false]),
        ("team:read", [false, false, false, true, false, false, false]),
        ("team:admin", [false, false, false, true, true, true, false]),
    ];

    fn permissions(who: &str) -> Permissions {
        match who.parse::<Role>() {
            Ok(role) => role.permissions(),
            Err(_) => scoped(who.split_whitespace().map(|scope| scope.parse().unwrap())),
        }
    }

    #[test]
    fn each_role_allows_exactly_the_actions_of_the_table() {
        for (who, may) in TABLE {
            for (action, may) in Action::ALL.into_iter().zip(may) {
                let decided =
                    decide(permissions(who), Confinement::default(), action, Resource::Team);
                let wanted = if may { Ok(()) } else { Err(Denied::Forbidden(action)) };
                assert_eq!(decided, wanted, "{who} {action:?}");
            }
        }
    }

    #[test]
    fn scopes_combine_and_key_scopes_stay_within_their_maker() {
        let both = permissions("capsules:read team:read");
        assert!(both.allow(CapsulesRead) && both.allow(TeamRead) && !both.allow(CapsulesExec));
        let left = permissions("").and(permissions("viewer"));
        assert!(left.allow(CapsulesRead) && !left.allow(CapsulesExec));
        assert!(permissions("capsules:exec").within(permissions("member")));
        assert!(!permissions("team:admin").within(permissions("member")));
        assert!(!permissions("owner").within(permissions("admin")));
        assert!(KeyScope::ALL.iter().all(|scope| scoped([*scope]) != Permissions::default()));
        assert!(!Permissions::of(&[KeysMake]).allow(TeamOwn));
    }

    #[test]
    fn roles_and_scopes_have_names_and_refuse_other_texts() {
        assert_eq!(Role::ALL.map(Role::as_str), ["viewer", "member", "admin", "owner"]);
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
        }
        for scope in KeyScope::ALL {
            assert_eq!(scope.as_str().parse(), Ok(scope));
        }
        assert!("capsules:own".parse::<KeyScope>().is_err() && "Owner".parse::<Role>().is_err());
    }

    #[test]
    fn key_confined_to_one_resource_sees_no_other() {
        let (capsule, other) = (CapsuleId::new(), CapsuleId::new());
        let (template, strange) = (TemplateId::new(), TemplateId::new());
        let capsules = Confinement { capsule: Some(capsule), template: None };
        let templates = Confinement { capsule: None, template: Some(template) };
        let of = Resource::Capsule;
        let cases = [
            (capsules, CapsulesExec, of(capsule, None), Ok(())),
            (capsules, CapsulesExec, of(other, None), Err(Denied::Hidden)),
            (capsules, CapsulesAdmin, Resource::Template(template), Err(Denied::Hidden)),
            (capsules, CapsulesRead, Resource::Capsules, Ok(())),
            (capsules, TeamRead, Resource::Team, Err(Denied::Forbidden(TeamRead))),
            (templates, CapsulesAdmin, Resource::Template(template), Ok(())),
            (templates, CapsulesAdmin, Resource::Template(strange), Err(Denied::Hidden)),
            (templates, CapsulesExec, of(other, Some(template)), Ok(())),
            (templates, CapsulesExec, of(other, Some(strange)), Err(Denied::Hidden)),
            (templates, CapsulesExec, of(other, None), Err(Denied::Hidden)),
            (templates, TeamAdmin, Resource::Team, Err(Denied::Forbidden(TeamAdmin))),
        ];
        for (confinement, action, resource, wanted) in cases {
            assert_eq!(
                decide(Permissions::ALL, confinement, action, resource),
                wanted,
                "{confinement:?} {resource:?}"
            );
        }
        let not = decide(permissions("viewer"), capsules, CapsulesExec, of(other, None));
        assert_eq!(not, Err(Denied::Forbidden(CapsulesExec)));
    }
}
