//! The long-lived roles: `up` (everything in one process), `control-plane`, `agent`; and what
//! ends them. Decides what is started in which order; the roles' own crates do the work.

mod postgres;
mod up;

pub(crate) use up::{Up, clean, stop, up};

use crate::output;
use crate::settings::{Agent, ControlPlane};
use anyhow::Context;
use control_plane::App;
use daemon::Tasks;
use hop::Limits;
use std::net::SocketAddr;
use std::path::Path;
use tokio::net::TcpListener;

/// Runs a host agent until it is told to stop; its capsules run on.
pub(crate) async fn agent(dir: &Path, settings: &Agent) -> anyhow::Result<()> {
    let tasks = Tasks::default();
    let listener = listen(settings.listen, "WRENN_AGENT_LISTEN_ADDR").await?;
    let agent = host_agent::start(settings.config(dir)?, &tasks).await?;
    let address = listener.local_addr()?;
    hop::serve(listener, agent, Limits::default(), &tasks);
    tracing::info!(%address, "the host agent serves");
    daemon::terminated().await?;
    tasks.finish().await;
    Ok(())
}

/// Runs a control plane until it is told to stop.
pub(crate) async fn control_plane(
    settings: &ControlPlane,
    agent: &str,
    client_file: &Path,
) -> anyhow::Result<()> {
    let tasks = Tasks::default();
    let database = settings.database()?.context("set DATABASE_URL to a PostgreSQL URL")?;
    let listener = listen(settings.listen, "WRENN_CP_LISTEN_ADDR").await?;
    let settings = settings.told(database, agent.to_owned(), listener.local_addr()?);
    let app = App::start(settings, &tasks).await?;
    let url = up::reachable(listener.local_addr()?);
    up::introduce(&app, &url, client_file).await?;
    hop::serve(listener, app.server(), Limits::default(), &tasks);
    output::line(&format!("Wrenn serves {url}"));
    daemon::terminated().await?;
    tasks.finish().await;
    Ok(())
}

async fn listen(at: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    let what = || format!("listening on {at}; choose another address with {setting}");
    TcpListener::bind(at).await.with_context(what)
}
