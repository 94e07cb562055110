//! The warm step of a machine that copies are made of: a first execution in each context of the
//! start, after which the contexts are as new. Files, fonts and code are then in memory.

use crate::context::{Context, Request};
use crate::contexts::Contexts;
use crate::error::{Error, Result};
use crate::execution::{Next, Options};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Longest warm step. envd waits for two minutes, after which the machine may be copied.
const LIMIT: Duration = Duration::from_secs(110);
/// Longest first execution.
const FIRST: Duration = Duration::from_secs(60);
/// A value, a table and a figure, as far as the image has their modules.
const PYTHON: &str = "\
try:
    import pandas
    display(pandas.DataFrame({'a': [1.5], 'b': ['x']}))
except ImportError:
    pass
try:
    import matplotlib.pyplot
    matplotlib.pyplot.plot([1, 2], [3, 4])
    matplotlib.pyplot.show()
except ImportError:
    pass
1
";
/// An expression of the other languages.
const OTHERS: &str = "1 + 1";

/// Runs the warm step. A context that fails keeps no other one cold. The last failure is told.
pub(crate) async fn run(contexts: &Contexts) -> Result<()> {
    let until = Instant::now() + LIMIT;
    let ready = Arc::clone(&contexts.services.launch).ready();
    let ready = async { ready.await.map_err(|error| Error::from(&error)) };
    let mut result = within(until, ready).await;
    for context in contexts.warm() {
        if let Err(error) = warm(&context, until).await {
            result = Err(error);
        }
    }
    result
}

/// Runs the first execution of a context, and makes the context as new.
async fn warm(context: &Context, until: Instant) -> Result<()> {
    within(until, context.started()).await?;
    let code = match context.language.as_str() {
        "python" => PYTHON,
        "bash" => "true",
        _ => OTHERS,
    };
    let ran = within(until, run_first(context, code)).await;
    // Without the restart, all copies of the machine would draw the same random numbers. A restart
    // that has no time left is begun all the same.
    within(until, context.restart(true)).await?;
    ran
}

async fn within<T>(until: Instant, step: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_| Error::internal("the first executions took too long");
    tokio::time::timeout_at(until, step).await.map_err(late)?
}

/// Runs code to its end. Its output is dropped.
async fn run_first(context: &Context, code: &str) -> Result<()> {
    let mut stream = context.execute(Request {
        code: code.to_owned(),
        envs: BTreeMap::new(),
        timeout: Some(FIRST),
        options: Options::default(),
        by_id: false,
        _permit: None,
    })?;
    while let Next::Lines(_) = stream.next().await {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::script::Script;

    #[tokio::test(start_paused = true)]
    async fn code_that_hangs_leaves_contexts_as_new_within_the_limit() {
        let mut script = Script::default();
        let contexts = Contexts::new(script.services());
        contexts.begin(Vec::new());
        let _hang = [script.kernel().await, script.kernel().await];
        let began = Instant::now();
        assert!(run(&contexts).await.is_err());
        assert!(began.elapsed() < LIMIT + Duration::from_secs(1), "{:?}", began.elapsed());
        let _fresh = [script.kernel().await, script.kernel().await];
        for context in contexts.list() {
            assert_eq!(context.view().await.executions, 0);
        }
    }
}
