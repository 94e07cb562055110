//! Decides which steps of a plan run, and on which folders. Pure.
//!
//! Each stage begins at the longest prefix of its steps that the cache knows. Stages that nothing
//! needs any more do not run. A version has a limit of disks below it; beyond, shorter prefixes are
//! chosen, so that more steps run anew on the build's own disk.

use super::layer::Part;
use protocol::lower::FOLDERS_MAX;
use recipe::cache::known_prefix;
use recipe::resolve::{PlannedStage, Prepared, Work};
use recipe::{Key, Plan, Source};
use std::collections::BTreeSet;
use types::BuildId;

/// Sizes of what lies below a stage's first step: disks of a base template, and their folders.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct BaseSize {
    pub disks: usize,
    pub folders: usize,
}

/// Begin of a stage's folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Begin {
    /// The base itself, or the end of another stage.
    Base,
    /// Folders of the cache, above the base.
    Cached(Vec<Part>),
}

/// A stage that the build needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stretch {
    pub stage: usize,
    /// Steps that need not run.
    pub from: usize,
    pub begin: Begin,
}

/// The needed stages in order. The last one is the template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Schedule {
    pub stretches: Vec<Stretch>,
    /// Tells that a step needs a guest.
    pub needs_guest: bool,
    /// Layers of the cache that the build lies on.
    pub layers: BTreeSet<BuildId>,
}

/// Facts about bases, and the cache.
pub(super) struct Known<'a> {
    /// Size of a stage's base, or of another origin of files.
    pub base: &'a dyn Fn(&Source) -> BaseSize,
    /// Finished steps.
    pub find: &'a dyn Fn(&Key) -> Option<Vec<Part>>,
    /// Most disks below a version.
    pub most_disks: usize,
    /// Reports whether a schedule's drives fit into one guest.
    pub fits: &'a dyn Fn(&Schedule) -> bool,
}

/// Reports whether a step writes to a folder of its own.
pub(super) fn needs_folder(step: &Prepared) -> bool {
    match &step.work {
        Work::Run(_) | Work::Copy(_) | Work::Workdir { .. } => true,
        Work::User { create, .. } => *create,
        Work::Nothing => false,
    }
}

/// Returns the stage at the bottom of a stage's sources: the one with a base of its own.
pub(super) fn root(plan: &Plan, mut stage: usize) -> usize {
    while let Some(Source::Stage(below)) = plan.stages.get(stage).map(|stage| &stage.source) {
        stage = *below;
    }
    stage
}

/// Decides on the steps.
///
/// # Errors
/// Tells the limit that no choice keeps.
pub(super) fn schedule(plan: &Plan, known: &Known<'_>) -> Result<Schedule, String> {
    let mut problem = "a build has at least one stage".to_owned();
    for most in (0..=known.most_disks).rev() {
        let schedule = choose(plan, known, most);
        match check(plan, known, &schedule) {
            Ok(()) => return Ok(schedule),
            Err(why) => problem = why,
        }
    }
    Err(problem)
}

/// Chooses prefixes whose chains have at most `most` disks.
fn choose(plan: &Plan, known: &Known<'_>, most: usize) -> Schedule {
    let find = |key: &Key| (known.find)(key).filter(|chain| chain.len() <= most);
    let mut needed = BTreeSet::from([plan.stages.len().saturating_sub(1)]);
    let (mut stretches, mut layers) = (Vec::new(), BTreeSet::new());
    for (index, stage) in plan.stages.iter().enumerate().rev() {
        if !needed.contains(&index) {
            continue;
        }
        let from = known_prefix(&stage.base, &stage.lookups(), |key| find(key).is_some());
        let last = from.checked_sub(1).and_then(|at| stage.steps.get(at));
        let cached = last.filter(|step| step.key != stage.base).and_then(|step| find(&step.key));
        let begin = cached.map_or(Begin::Base, Begin::Cached);
        match &begin {
            Begin::Cached(chain) => layers.extend(chain.iter().map(|part| part.layer)),
            Begin::Base => needed.extend(below(&stage.source)),
        }
        let rest = stage.steps.iter().skip(from);
        needed.extend(rest.filter_map(|step| copied(step)).filter_map(below));
        stretches.push(Stretch { stage: index, from, begin });
    }
    stretches.reverse();
    let runs = |stretch: &Stretch| left(plan, stretch).any(needs_folder);
    let needs_guest = stretches.iter().any(runs);
    Schedule { stretches, needs_guest, layers }
}

fn below(source: &Source) -> Option<usize> {
    if let Source::Stage(index) = source { Some(*index) } else { None }
}

/// Returns the origin of a step's files, if it is not the context.
pub(super) fn copied(step: &Prepared) -> Option<&Source> {
    if let Work::Copy(copy) = &step.work { copy.from.as_ref() } else { None }
}

/// Lists the steps of a stretch that run.
pub(super) fn left<'a>(plan: &'a Plan, stretch: &Stretch) -> impl Iterator<Item = &'a Prepared> {
    let steps = plan.stages.get(stretch.stage).map_or(&[][..], |stage| &stage.steps[..]);
    steps.iter().skip(stretch.from)
}

/// Disks and folders at the end of a stage.
#[derive(Debug, Clone, Default)]
struct End {
    disks: BTreeSet<BuildId>,
    folders: usize,
    own: bool,
}

fn check(plan: &Plan, known: &Known<'_>, schedule: &Schedule) -> Result<(), String> {
    let mut ends: Vec<Option<End>> = vec![None; plan.stages.len()];
    for stretch in &schedule.stretches {
        let Some(stage) = plan.stages.get(stretch.stage) else { continue };
        let mut end = match &stretch.begin {
            Begin::Cached(chain) => End {
                disks: chain.iter().map(|part| part.layer).collect(),
                folders: chain.iter().map(|part| part.folders.len()).sum(),
                own: false,
            },
            Begin::Base => {
                let end = below(&stage.source).and_then(|index| ends.get(index).cloned().flatten());
                end.unwrap_or_default()
            }
        };
        let runs = left(plan, stretch).filter(|step| needs_folder(step)).count();
        end.folders += runs;
        end.own |= runs > 0;
        check_end(known, &base_size(plan, known, stretch.stage), &end)?;
        if let Some(place) = ends.get_mut(stretch.stage) {
            *place = Some(end);
        }
    }
    if !(known.fits)(schedule) {
        return Err("the build needs more images and disks at once than a guest can have; \
                    use fewer images"
            .to_owned());
    }
    Ok(())
}

fn base_size(plan: &Plan, known: &Known<'_>, stage: usize) -> BaseSize {
    let stage: Option<&PlannedStage> = plan.stages.get(root(plan, stage));
    stage.map(|stage| (known.base)(&stage.source)).unwrap_or_default()
}

fn check_end(known: &Known<'_>, base: &BaseSize, end: &End) -> Result<(), String> {
    let folders = base.folders + end.folders;
    if folders > FOLDERS_MAX {
        return Err(format!(
            "{folders} steps change files, counting those of the base template, and at most \
             {FOLDERS_MAX} can; join some RUN steps"
        ));
    }
    let disks = base.disks + end.disks.len() + usize::from(end.own);
    if disks > known.most_disks {
        return Err(format!(
            "the template lies on {disks} disks, counting those of its base template, and at most \
             {} can be; build the base anew from its image",
            known.most_disks
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use recipe::{Base, Recipe};
    use serde_json::{Value, json};
    use std::collections::HashMap;
    use uuid::Uuid;

    fn plan(stages: Value) -> Plan {
        let recipe = json!({"dialect": "steps", "stages": stages});
        let recipe: Recipe = serde_json::from_value(recipe).unwrap();
        recipe.check().unwrap();
        let base = Base { identity: "sha256:1".to_owned(), ..Base::default() };
        recipe::resolve(&recipe, "amd64", &|_| Some(&base)).unwrap()
    }

    fn run(text: &str) -> Value {
        json!({"run": {"command": text}})
    }

    fn image(steps: &[Value]) -> Value {
        json!({"source": {"image": "debian"}, "steps": steps})
    }

    fn part(layer: u128, folders: u32) -> Part {
        Part { layer: BuildId(Uuid::from_u128(layer)), folders: (1..=folders).collect() }
    }

    fn decide(
        plan: &Plan,
        cached: &HashMap<Key, Vec<Part>>,
        base: BaseSize,
        most_disks: usize,
    ) -> Result<Schedule, String> {
        schedule(
            plan,
            &Known {
                base: &|_| base,
                find: &|key| cached.get(key).cloned(),
                most_disks,
                fits: &|_| true,
            },
        )
    }

    #[test]
    fn build_begins_after_the_longest_known_prefix() {
        let plan = plan(json!([image(&[run("a"), json!({"env": {"A": "b"}}), run("c")])]));
        let keys: Vec<Key> = plan.stages[0].steps.iter().map(|step| step.key).collect();
        let none = decide(&plan, &HashMap::new(), BaseSize::default(), 6).unwrap();
        assert_eq!((none.stretches[0].from, none.needs_guest), (0, true));
        let cached = HashMap::from([(keys[0], vec![part(1, 1)])]);
        let some = decide(&plan, &cached, BaseSize::default(), 6).unwrap();
        assert_eq!((some.stretches[0].from, some.needs_guest), (1, true));
        assert_eq!(some.stretches[0].begin, Begin::Cached(vec![part(1, 1)]));
        let cached = HashMap::from([(keys[2], vec![part(1, 2)])]);
        let all = decide(&plan, &cached, BaseSize::default(), 6).unwrap();
        assert_eq!((all.stretches[0].from, all.needs_guest), (3, false));
        assert_eq!(all.layers.len(), 1);
    }

    #[test]
    fn chain_at_its_limit_begins_at_a_shorter_prefix() {
        let plan = plan(json!([image(&[run("a"), run("b"), run("c")])]));
        let keys: Vec<Key> = plan.stages[0].steps.iter().map(|step| step.key).collect();
        let two = vec![part(1, 1), part(2, 1)];
        let cached = HashMap::from([(keys[0], vec![part(1, 1)]), (keys[1], two.clone())]);
        let of = |most| decide(&plan, &cached, BaseSize::default(), most).unwrap();
        assert_eq!(of(3).stretches[0].begin, Begin::Cached(two));
        assert_eq!((of(2).stretches[0].from, of(1).stretches[0].from), (1, 0));
        let full = BaseSize { disks: 6, folders: 6 };
        let error = decide(&plan, &cached, full, 6).unwrap_err();
        assert!(error.contains("7 disks") && error.contains("at most 6"), "{error}");
        let deep = BaseSize { disks: 1, folders: FOLDERS_MAX - 2 };
        let error = decide(&plan, &HashMap::new(), deep, 6).unwrap_err();
        assert!(error.contains("201 steps"), "{error}");
    }

    #[test]
    fn only_stages_that_are_needed_run() {
        let copy = json!({"copy": {"from": {"stage": 0}, "sources": ["/x"], "dest": "/x"}});
        let plan = plan(json!([
            image(&[run("a")]),
            image(&[run("unused")]),
            image(&[run("b"), copy, run("c")]),
        ]));
        let keys: Vec<Key> = plan.stages[2].steps.iter().map(|step| step.key).collect();
        let stages = |cached: &HashMap<Key, Vec<Part>>| -> Vec<usize> {
            let schedule = decide(&plan, cached, BaseSize::default(), 6).unwrap();
            schedule.stretches.iter().map(|stretch| stretch.stage).collect()
        };
        assert_eq!(stages(&HashMap::new()), [0, 2]);
        assert_eq!(stages(&HashMap::from([(keys[0], vec![part(1, 1)])])), [0, 2]);
        assert_eq!(stages(&HashMap::from([(keys[1], vec![part(1, 2)])])), [2]);
    }

    #[test]
    fn stage_over_a_stage_needs_it_unless_its_first_step_is_known() {
        let over = json!({"source": {"stage": 0}, "steps": [run("b")]});
        let plan = plan(json!([image(&[run("a")]), over]));
        assert_eq!(root(&plan, 1), 0);
        let none = decide(&plan, &HashMap::new(), BaseSize::default(), 6).unwrap();
        assert_eq!(none.stretches.len(), 2);
        let first = plan.stages[0].steps[0].key;
        let cached = HashMap::from([(first, vec![part(1, 1)])]);
        let below = decide(&plan, &cached, BaseSize::default(), 6).unwrap();
        assert_eq!((below.stretches[0].from, below.stretches[1].from), (1, 0));
        let one = decide(&plan, &cached, BaseSize::default(), 1).unwrap();
        assert_eq!((one.stretches[0].from, one.needs_guest), (0, true));
        let own = plan.stages[1].steps[0].key;
        let cached = HashMap::from([(own, vec![part(1, 2)])]);
        let all = decide(&plan, &cached, BaseSize::default(), 6).unwrap();
        assert_eq!((all.stretches.len(), all.needs_guest), (1, false));
    }
}
