//! The interpreter as a whole: its parts, its port, and its planned end.

use crate::agent;
use crate::contexts::Contexts;
use crate::http;
use crate::kernel::launch::Launcher;
use crate::process::{self, User};
use crate::services::Services;
use crate::settings::{Capsule, Settings};
use crate::state::State;
use anyhow::Context as _;
use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Time between two looks for executions that are too old.
const ROUND: Duration = Duration::from_secs(60);
/// Mode of the run folder: the user may enter its own folder below.
const MODE: u32 = 0o711;
/// Value of this process's `oom_score_adj`. Programs of users end first when memory runs out.
const OOM_SCORE: &str = "-900";

/// Serves until a signal asks for the end, or envd hangs up. Kernels live on.
///
/// # Errors
/// When the run folder cannot be made, the user is unknown, or the port is taken.
pub(crate) async fn run(settings: Settings, port: Option<u16>) -> anyhow::Result<()> {
    let mut ends = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    make_folder(&settings.run)?;
    let listener = match port {
        Some(port) => TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await,
        None => agent::listener(),
    };
    let listener = listener.context("cannot listen on the port")?;
    let (state, records) = State::open(&settings.run);
    process::end_strays(records.iter().filter_map(|record| record.kernel.as_ref()));
    let user = User::of(settings.user.as_deref()).context("user")?;
    let settings = Arc::new(settings);
    let launch = Arc::new(Launcher::new(Arc::clone(&settings)));
    let services = Arc::new(Services::new(settings, user, launch, state));
    let contexts = Arc::new(Contexts::new(services));
    let envd = if port.is_some() {
        contexts.set_capsule(Capsule { envs: own_variables(), ..Capsule::default() });
        None
    } else {
        // A guest that forbids this is no reason to end.
        let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
        // Kernels need the capsule's variables, so the first order comes before all contexts.
        Some(agent::connect(&contexts).await?)
    };
    contexts.begin(records);
    tokio::spawn(forget_old(Arc::clone(&contexts)));
    let [terminate, interrupt] = &mut ends;
    tokio::select! {
        () = http::serve(listener, Arc::clone(&contexts)) => {}
        () = end_of(envd) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    contexts.services.executions.cut().await;
    contexts.release().await;
    Ok(())
}

/// Makes the run folder, or takes an earlier interpreter's.
fn make_folder(path: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(MODE).create(path);
    made.with_context(|| format!("cannot make {}", path.display()))?;
    let mode = std::fs::Permissions::from_mode(MODE);
    std::fs::set_permissions(path, mode).with_context(|| format!("cannot open {}", path.display()))
}

/// Returns the variables of this process. Variables that are no text are left out.
fn own_variables() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Waits for the end of the talk with envd, which starts another interpreter. Without a talk, waits
/// for ever.
async fn end_of(talk: Option<JoinHandle<()>>) {
    match talk {
        Some(talk) => _ = talk.await,
        None => std::future::pending().await,
    }
}

async fn forget_old(contexts: Arc<Contexts>) {
    loop {
        tokio::time::sleep(ROUND).await;
        contexts.services.executions.forget(Instant::now());
    }
}
