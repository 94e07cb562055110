//! The long-lived roles `up` (everything in one process), `control-plane` and `agent`, and the
//! commands that end them. This module decides which parts start in which order. The crates of the
//! roles do the work.

mod members;
pub(crate) mod pki;
mod postgres;
mod tls;
mod up;

pub(crate) use up::{Up, clean, stop, up};

use crate::output;
use crate::settings::{Agent, ControlPlane, Listening, Plaintext};
use anyhow::Context;
use control_plane::App;
use daemon::Tasks;
use host_agent::membership::{Membership, Registration};
use std::net::SocketAddr;
use std::path::Path;
use tls::Https;
use tokio::net::TcpListener;

/// Settings for the registration of a host with a platform.
pub(crate) struct Register {
    pub token: String,
    /// Address at which control planes reach the host. Default: the listener's address.
    pub address: Option<String>,
    pub control_plane: String,
}

/// Runs a host agent until a signal stops it. Its capsules keep running.
pub(crate) async fn agent(
    dir: &Path,
    settings: &Agent,
    register: Option<Register>,
    plaintext: Plaintext,
) -> anyhow::Result<()> {
    let tasks = Tasks::default();
    // The credentials are loaded first, so that an unregistered host fails before any other work.
    let before = match &register {
        Some(_) => None,
        None => Membership::load(dir)?.listens(),
    };
    let listener = listen(settings.listens(before), "WRENN_AGENT_LISTEN_ADDR").await?;
    let agent = host_agent::start(settings.config(dir)?, &tasks).await?;
    let member = match register {
        None => Membership::load(dir)?,
        Some(Register { token, address, control_plane }) => {
            members::check_url(&control_plane, plaintext)?;
            let address = address.map_or_else(|| members::own_address(&listener), Ok)?;
            let asked = Registration { token, address, control_plane };
            Membership::register(dir, &asked, &agent.about(), &listener).await?
        }
    };
    let address = listener.local_addr()?;
    let about = agent.about();
    members::serve(listener, agent, &member, plaintext, &tasks)?;
    member.spawn(about, None, &tasks);
    tracing::info!(%address, "the host agent serves");
    daemon::terminated().await?;
    tasks.finish().await;
    Ok(())
}

/// Runs a control plane until a signal stops it.
pub(crate) async fn control_plane(
    settings: &ControlPlane,
    plaintext: Plaintext,
    client_file: &Path,
) -> anyhow::Result<()> {
    let tasks = Tasks::default();
    let database = settings.database()?.context("set DATABASE_URL to a PostgreSQL URL")?;
    let authority = settings.ca.read()?;
    let listener = listen(settings.listen, "WRENN_CP_LISTEN_ADDR").await?;
    let https = Https::listen(&settings.tls).await?;
    let listens = Listening::of(&listener, https.as_ref())?;
    let settings = settings.to_settings(database, authority, plaintext, listens, None)?;
    let app = App::start(settings, &tasks).await?;
    let url = up::reachable(listener.local_addr()?);
    up::introduce(&app, &url, client_file).await?;
    if let Some(https) = https {
        https.serve(&app, &tasks)?;
    }
    hop::serve(listener, app.clone().server(), app.limits(), &tasks);
    output::line(&format!("Wrenn serves {url}"));
    daemon::terminated().await?;
    tasks.finish().await;
    Ok(())
}

impl Listening {
    /// Returns the addresses of the listeners that exist.
    fn of(plain: &TcpListener, https: Option<&Https>) -> anyhow::Result<Self> {
        let https = https.map(Https::address).transpose()?;
        Ok(Self { plain: plain.local_addr()?, https })
    }
}

async fn listen(at: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    let what = || format!("cannot listen on {at}; choose another address with {setting}");
    TcpListener::bind(at).await.with_context(what)
}
