//! Checks of recipes of unknown origin: counts, sizes, indices of stages, and forms of hashes.

use super::{
    Action, Error, Recipe, STAGE_NAME_MAX, STAGES_MAX, STEPS_MAX, Source, Step, TEXT_MAX,
    TEXTS_MAX, TOTAL_MAX, is_hash,
};
use crate::prepare;

impl Recipe {
    /// Checks a recipe of unknown origin: counts, sizes, indices of stages, and forms of hashes.
    ///
    /// # Errors
    /// Names the place and the limit.
    pub fn check(&self) -> Result<(), Error> {
        let fail = |place: String, message: &str| Err(Error { place, message: message.to_owned() });
        if self.stages.is_empty() || self.stages.len() > STAGES_MAX {
            return fail("stages".to_owned(), &format!("a recipe has 1 to {STAGES_MAX} stages"));
        }
        if self.stages.iter().map(|stage| stage.steps.len()).sum::<usize>() > STEPS_MAX {
            return fail("stages".to_owned(), &format!("a recipe has at most {STEPS_MAX} steps"));
        }
        let mut total = 0;
        for (index, stage) in self.stages.iter().enumerate() {
            let place = format!("stages[{index}]");
            if stage.name.as_ref().is_some_and(|name| name.len() > STAGE_NAME_MAX) {
                let rule = format!("a stage's name has at most {STAGE_NAME_MAX} bytes");
                return fail(format!("{place}.name"), &rule);
            }
            check_source(&stage.source, index)
                .map_err(|message| Error { place: format!("{place}.source"), message })?;
            for (number, step) in stage.steps.iter().enumerate() {
                let check = check_step(step, index, &mut total);
                let place = format!("{place}.steps[{number}]");
                check.map_err(|message| Error { place, message })?;
            }
        }
        Ok(())
    }
}

fn check_source(source: &Source, stage: usize) -> Result<(), String> {
    match source {
        Source::Stage(index) if *index >= stage => Err("a stage comes before its use".to_owned()),
        Source::Image(name) | Source::Template(name) if !prepare::is_reference(name) => {
            Err("a reference has 1 to 512 bytes, no blanks and no control characters".to_owned())
        }
        Source::Capsule(id) if id.parse::<types::CapsuleId>().is_err() => {
            Err("a capsule is named by its id, such as `cl-` and 25 characters".to_owned())
        }
        Source::Stage(_)
        | Source::Image(_)
        | Source::Template(_)
        | Source::Capsule(_)
        | Source::Scratch => Ok(()),
    }
}

fn check_step(step: &Step, stage: usize, total: &mut usize) -> Result<(), String> {
    let (mut count, mut problem) = (0, None);
    step.action.texts(&mut |text| {
        count += 1;
        *total += text.len();
        if text.contains('\0') {
            problem = Some("a text holds a NUL".to_owned());
        } else if text.len() > TEXT_MAX {
            problem = Some(format!("a text has over {TEXT_MAX} bytes"));
        }
    });
    if count > TEXTS_MAX {
        return Err(format!("a step has at most {TEXTS_MAX} texts"));
    }
    if *total > TOTAL_MAX {
        return Err(format!("all texts together have over {TOTAL_MAX} bytes"));
    }
    if let Some(problem) = problem {
        return Err(problem);
    }
    let Action::Copy(copy) = &step.action else { return Ok(()) };
    if let Some(from) = &copy.from {
        check_source(from, stage)?;
    }
    match &copy.files {
        Some(hash) if !is_hash(hash) => {
            Err("`files` has 64 lower-case hexadecimal digits".to_owned())
        }
        Some(_) if copy.from.is_some() => Err("`files` and `from` exclude each other".to_owned()),
        _ if copy.sources.is_empty() && copy.inline.is_empty() => {
            Err("a copy has a source".to_owned())
        }
        _ => Ok(()),
    }
}
