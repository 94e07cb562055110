//! The long-lived roles: `up` (everything in one process), `control-plane`, `agent`; and what
//! ends them. Decides what is started in which order; the roles' own crates do the work.

mod postgres;
mod up;

pub(crate) use up::{Up, clean, stop, up};

use crate::output;
use crate::settings::{Agent, ControlPlane};
use anyhow::Context;
use axum::Router;
use control_plane::{App, Settings};
use daemon::Tasks;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::net::TcpListener;

/// How long requests under way may take once a shutdown began.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs a host agent until it is told to stop; its capsules run on.
pub(crate) async fn agent(dir: &Path, settings: &Agent) -> anyhow::Result<()> {
    let tasks = Tasks::default();
    let listener = listen(settings.listen, "WRENN_AGENT_LISTEN_ADDR").await?;
    let router = host_agent::start(settings.config(dir)?, &tasks).await?;
    let address = listener.local_addr()?;
    serve(listener, router, &tasks);
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
    let settings = Settings { database, agent_url: agent.to_owned() };
    let app = App::start(settings, &tasks).await?;
    let url = up::reachable(listener.local_addr()?);
    up::introduce(&app, &url, client_file).await?;
    serve(listener, app.router(), &tasks);
    output::line(&format!("Wrenn serves {url}"));
    daemon::terminated().await?;
    tasks.finish().await;
    Ok(())
}

async fn listen(at: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    let what = || format!("listening on {at}; choose another address with {setting}");
    TcpListener::bind(at).await.with_context(what)
}

/// Serves until the shutdown, and then what is under way for a while.
fn serve(listener: TcpListener, router: Router, tasks: &Tasks) {
    let stopping = tasks.clone();
    let until = tasks.clone();
    tasks.spawn(async move {
        let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
            let _ = stream.set_nodelay(true);
        });
        let serving = axum::serve(listener, router)
            .with_graceful_shutdown(async move { stopping.stopping().await });
        let limit = async {
            until.stopping().await;
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! {
            served = serving => {
                if let Err(error) = served {
                    tracing::error!(%error, "serving");
                }
            }
            () = limit => {}
        }
    });
}
