//! `wrenn capsule ports`, `url`, `publish`, `unpublish`, `forward`, `rotate-token` and
//! `rotate-links`: ports of capsules.

use super::capsule::path;
use crate::cli;
use crate::client::Client;
use crate::output::{self, Form};
use anyhow::Context;
use daemon::Tasks;
use reqwest::{Method, header};
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};

fn port_path(capsule: &str, port: u16, rest: &str) -> anyhow::Result<String> {
    path(capsule, &format!("/ports/{port}{rest}"))
}

pub(super) async fn list(capsule: &str, client: &Client, form: Form) -> anyhow::Result<()> {
    let path = path(capsule, "/ports?passive=true")?;
    let ports: Vec<api::ListeningPort> = client.get(&path).await?;
    if form == Form::Json {
        return output::json(&ports);
    }
    let row = |port: api::ListeningPort| {
        let public = if port.public { "yes" } else { "no" };
        vec![
            port.port.to_string(),
            port.address,
            port.program.unwrap_or_default(),
            port.pid.map(|pid| pid.to_string()).unwrap_or_default(),
            public.to_owned(),
            port.url,
        ]
    };
    let header = ["PORT", "ADDRESS", "PROGRAM", "PID", "PUBLIC", "URL"];
    output::table(&header, ports.into_iter().map(row).collect());
    Ok(())
}

pub(super) async fn url(url: &cli::Url, client: &Client, form: Form) -> anyhow::Result<()> {
    let Some(expires) = url.expires else {
        let path = port_path(&url.capsule, url.port, "")?;
        return render(&client.get::<api::Port>(&path).await?, form);
    };
    let seconds = u32::try_from(expires.as_secs()).context("--expires must be at most 30 days")?;
    let body = api::MakeLink { expires_in: Some(seconds) };
    let path = port_path(&url.capsule, url.port, "/links")?;
    let link: api::Link = client.post(&path, &body).await?;
    if form == Form::Json {
        return output::json(&link);
    }
    output::line(&link.url);
    Ok(())
}

pub(super) async fn publish(
    capsule: &str,
    port: u16,
    public: bool,
    client: &Client,
    form: Form,
) -> anyhow::Result<()> {
    let request = client.request(Method::PUT, &port_path(capsule, port, "")?);
    let answer = client.send(request.json(&api::SetPort { public })).await?;
    render(&answer.json().await?, form)
}

fn render(port: &api::Port, form: Form) -> anyhow::Result<()> {
    if form == Form::Json {
        return output::json(port);
    }
    output::line(&port.url);
    Ok(())
}

pub(super) async fn rotate_token(capsule: &str, client: &Client, form: Form) -> anyhow::Result<()> {
    let rotated: api::TrafficToken =
        client.post(&path(capsule, "/traffic-token")?, &serde_json::json!({})).await?;
    if form == Form::Json {
        return output::json(&rotated);
    }
    output::line(&rotated.traffic_token);
    Ok(())
}

pub(super) async fn rotate_links(capsule: &str, client: &Client, form: Form) -> anyhow::Result<()> {
    client.post_empty(&path(capsule, "/links/rotate")?).await?;
    if form == Form::Json { output::json(&serde_json::json!({})) } else { Ok(()) }
}

pub(super) async fn forward(
    forward: &cli::Forward,
    client: &Client,
    form: Form,
) -> anyhow::Result<()> {
    let cli::Forward { capsule, port, local, bind } = forward;
    // A wrong capsule or key fails here, before the port opens.
    let _: api::Port = client.get(&port_path(capsule, *port, "")?).await?;
    let at = (*bind, local.unwrap_or(*port));
    let listener = TcpListener::bind(at).await;
    let why =
        || format!("cannot listen on {}:{}; give another local port after {port}", at.0, at.1);
    let listener = listener.with_context(why)?;
    output::line(&listener.local_addr()?.to_string());
    let path: Arc<str> = port_path(capsule, *port, "/tcp")?.into();
    let tasks = Tasks::default();
    let accepting = async {
        loop {
            let (stream, _) = listener.accept().await.context("cannot accept a connection")?;
            let (client, path) = (client.clone(), Arc::clone(&path));
            tasks.spawn(async move {
                if let Err(error) = join(stream, &client, &path).await {
                    output::error(&error, form);
                }
            });
        }
    };
    tokio::select! {
        failed = accepting => failed,
        ended = daemon::terminated() => ended,
    }
}

/// Joins a local connection with a connection to the capsule's port.
async fn join(mut stream: TcpStream, client: &Client, path: &str) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let request = client.request(Method::GET, path);
    let request = request.header(header::CONNECTION, "upgrade").header(header::UPGRADE, "tcp");
    let answer = client.switch(request).await?;
    let mut there = answer.upgrade().await.context("cannot connect to the port")?;
    // Each side sees the end of its connection itself, so the outcome is not reported.
    let _ = tokio::io::copy_bidirectional(&mut stream, &mut there).await;
    Ok(())
}
