//! `/ports`: lists the guest's servers, and connects the host to servers on the guest's loopback.

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

/// Time that the switch of protocols may take after its answer.
const SWITCH: Duration = Duration::from_secs(10);

/// Query of a connection to a server.
#[derive(serde::Deserialize)]
pub(super) struct Server {
    port: u16,
}

/// Lists the servers of the guest.
pub(super) async fn list(State(guest): State<Arc<Guest>>) -> Result<Json<Vec<Listener>>> {
    let own = guest.ports.own();
    guest.jobs.looks.run(jobs::LIMIT, move || Ok(ports::listeners(own))).await.map(Json)
}

/// Switches the connection to a connection to a server on the loopback.
pub(super) async fn connect(
    State(guest): State<Arc<Guest>>,
    Query(server): Query<Server>,
    mut request: Request,
) -> Result<Response> {
    if request.headers().get(header::UPGRADE).is_none_or(|protocol| protocol != "tcp") {
        return Err(Error::invalid("the request must ask for a switch to `tcp`"));
    }
    let (program, place) = guest.ports.connect(server.port).await?;
    let switch = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let _place = place;
        // The switch fails when the host has gone.
        if let Ok(Ok(host)) = tokio::time::timeout(SWITCH, switch).await {
            ports::relay(host, program).await;
        }
    });
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, "tcp")];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

#[cfg(test)]
mod tests {
    use crate::guest::Guest;
    use crate::http::{Server, router};
    use std::net::Ipv4Addr;
    use std::sync::Arc;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn upgraded_connection_reaches_the_server() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = server.local_addr().unwrap().port();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        let envd = Server::new(router(Arc::new(Guest::new(None, 0))), None);
        tokio::spawn(envd.serve(listener));
        let mut host = TcpStream::connect(at).await.unwrap();
        let path = protocol::CONNECT_PORT;
        let ask = format!(
            "POST {path}?port={port} HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\nearly"
        );
        host.write_all(ask.as_bytes()).await.unwrap();
        let (mut program, _) = server.accept().await.unwrap();
        let mut early = [0; 5];
        program.read_exact(&mut early).await.unwrap();
        assert_eq!(&early, b"early");
        program.write_all(b"answer").await.unwrap();
        drop(program);
        let mut answer = String::new();
        host.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 101") && answer.ends_with("answer"), "{answer}");
    }
}
