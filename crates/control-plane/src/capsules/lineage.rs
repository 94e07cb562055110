//! Lineage of a capsule: its origins, its copies and its snapshots.

use super::get::get_ever;
use crate::app::App;
use crate::auth::Caller;
use crate::db;
use crate::db::capsule_lineage::{DEPTH, Relative};
use crate::db::capsules::ParentKind;
use crate::error::Result;
use crate::policy::Confinement;
use types::CapsuleId;

/// Most copies and most snapshots of one answer.
const MOST: usize = 100;

/// Returns the lineage of a living or ended capsule, as far as the caller may see it.
pub(crate) async fn lineage(app: &App, caller: Caller, id: CapsuleId) -> Result<api::Lineage> {
    let capsule = get_ever(app, caller, id).await?;
    let (db, team, confinement) = (&app.db, caller.team, caller.confinement);
    let limit = i64::try_from(MOST + 1).unwrap_or(i64::MAX);
    let parents = db::capsule_lineage::parents(db, team, capsule.id).await?;
    let children = db::capsule_lineage::children(db, team, id, confinement, limit).await?;
    // Snapshots belong to the whole team.
    let snapshots = match confinement == Confinement::default() {
        true => db::capsule_lineage::snapshots(db, team, id, limit).await?,
        false => Vec::new(),
    };
    let deep = i32::try_from(parents.len()).is_ok_and(|count| count >= DEPTH);
    let truncated = deep || children.len() > MOST || snapshots.len() > MOST;
    Ok(api::Lineage {
        parents: shown(seen(confinement, parents)),
        children: shown(children),
        snapshots: shown(snapshots),
        truncated,
    })
}

fn shown(relatives: Vec<Relative>) -> Vec<api::LineageEntry> {
    relatives.into_iter().take(MOST).map(to_api).collect()
}

/// Returns the origins up to the first one that the caller may not see.
fn seen(confinement: Confinement, parents: Vec<Relative>) -> Vec<Relative> {
    if confinement == Confinement::default() {
        return parents;
    }
    let sees = |parent: &Relative| match parent.kind {
        ParentKind::Capsule => {
            confinement.capsule.is_none()
                && confinement.template.is_some_and(|own| Some(own.0) == parent.template_id)
        }
        ParentKind::Template => confinement.template.is_some_and(|own| own.0 == parent.id),
        ParentKind::Snapshot => false,
    };
    parents.into_iter().take_while(sees).collect()
}

fn to_api(relative: Relative) -> api::LineageEntry {
    let parent = relative.parent_kind.zip(relative.parent_id);
    api::LineageEntry {
        r#type: relative.kind.to_string(),
        id: relative.kind.id(relative.id),
        name: relative.name,
        status: relative.status.map(|status| status.to_string()),
        parent: parent.map(|(kind, id)| super::to_parent(kind, id)),
        created_at: relative.created_at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::TemplateId;
    use uuid::Uuid;

    fn relative(kind: ParentKind, template: Option<Uuid>) -> Relative {
        Relative {
            kind,
            id: template.unwrap_or_default(),
            name: None,
            status: None,
            parent_kind: None,
            parent_id: None,
            created_at: None,
            template_id: template,
        }
    }

    #[test]
    fn origins_end_where_the_confinement_does() {
        let template = TemplateId::new();
        let chain = || {
            vec![
                relative(ParentKind::Capsule, Some(template.0)),
                relative(ParentKind::Snapshot, None),
                relative(ParentKind::Template, Some(template.0)),
            ]
        };
        assert_eq!(seen(Confinement::default(), chain()).len(), 3);
        let of_template = Confinement { template: Some(template), capsule: None };
        assert_eq!(seen(of_template, chain()).len(), 1);
        let of_capsule = Confinement { template: None, capsule: Some(CapsuleId::new()) };
        assert!(seen(of_capsule, chain()).is_empty());
    }
}
