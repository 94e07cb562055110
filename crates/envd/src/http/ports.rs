//! `/ports`: what listens in the guest, and the host's way to what listens on the loopback alone.

use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::jobs;
use crate::ports::{self, Listener};
use axum::Json;
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use std::sync::Arc;
use std::time::Duration;

/// Time that the switch of protocols may take once it is answered.
const SWITCH: Duration = Duration::from_secs(10);

/// The server that is asked for.
#[derive(serde::Deserialize)]
pub(super) struct Server {
    port: u16,
}

/// Lists the servers of the guest.
pub(super) async fn list(State(guest): State<Arc<Guest>>) -> Result<Json<Vec<Listener>>> {
    let own = guest.ports.own();
    guest.jobs.looks.run(jobs::LIMIT, move || Ok(ports::listeners(own))).await.map(Json)
}

/// Switches the connection to one of a server on the loopback.
pub(super) async fn connect(
    State(guest): State<Arc<Guest>>,
    Query(server): Query<Server>,
    mut request: Request,
) -> Result<Response> {
    if request.headers().get(header::UPGRADE).is_none_or(|protocol| protocol != "tcp") {
        return Err(Error::invalid("the request must ask to switch to `tcp`"));
    }
    let (program, place) = guest.ports.connect(server.port).await?;
    let switch = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let _place = place;
        // The switch fails when the host has left.
        if let Ok(Ok(host)) = tokio::time::timeout(SWITCH, switch).await {
            ports::relay(host, program).await;
        }
    });
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, "tcp")];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}
