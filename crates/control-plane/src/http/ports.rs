//! `/v1/capsules/{id}/ports/…`: access to ports from outside, and raw connections to them.

use super::extract::{Json as Body, Path, Query, capsule_id};
use super::passive::Passive;
use crate::app::App;
use crate::audit::Principal;
use crate::auth::Caller;
use crate::auth::admission::Admission;
use crate::capsules;
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use crate::proxy::{self, Link, Maker, Target};
use axum::Json;
use axum::extract::{Request, State};
use axum::response::Response;
use hop::{Outgoing, headers};
use http::{HeaderValue, StatusCode, header};
use protocol::{REFUSAL, Refusal, is_agent_port};
use std::sync::Arc;
use time::{Duration, OffsetDateTime};
use types::resources::{MAX_TIMEOUT_SEC, in_range};

/// Default validity of a link, in seconds.
const LINK: u32 = 3600;

/// Reads a path. A text that is no port leads to 404.
fn target((id, port): (String, String)) -> Result<Target> {
    let port = port.parse().ok().filter(|port| *port != 0).ok_or(Error::NotFound("port"))?;
    Ok(Target { capsule: capsule_id(&id)?, port })
}

fn to_api(app: &App, caller: Caller, capsule: Capsule, target: Target) -> Json<api::Port> {
    Json(api::Port {
        port: target.port,
        public: is_public(&capsule, target.port),
        url: app.public.of(target.capsule, target.port),
        traffic_token: caller.executes(&capsule).then_some(capsule.traffic_token),
    })
}

/// Reports whether anyone may reach a port. The ports of envd and the code interpreter never are
/// public.
fn is_public(capsule: &Capsule, port: u16) -> bool {
    let listed = || capsule.public_ports.contains(&i32::from(port));
    !is_agent_port(port) && (capsule.public_traffic || listed())
}

/// Lists the servers that listen in a running capsule, on any address. The request is always
/// passive: it resumes no capsule and does not count as activity.
#[utoipa::path(
    operation_id = "list_ports",
    get, path = "/v1/capsules/{id}/ports", tag = "ports",
    params(("id" = String, Path, description = "Id or name of the capsule"), Passive),
    responses(
        (status = 200, body = Vec<api::ListeningPort>),
        (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    _passive: Query<Passive>,
) -> Result<Json<Vec<api::ListeningPort>>> {
    let (capsule, listeners) = capsules::listeners(&app, caller, capsule_id(&id)?).await?;
    let to_api = |listener: capsules::Listener| api::ListeningPort {
        port: listener.port,
        address: listener.address.to_string(),
        program: listener.program,
        pid: listener.pid,
        public: is_public(&capsule, listener.port),
        url: app.public.of(capsule.id, listener.port),
    };
    Ok(Json(listeners.into_iter().map(to_api).collect()))
}

/// Returns the access to a port.
#[utoipa::path(
    operation_id = "get_port",
    get, path = "/v1/capsules/{id}/ports/{port}", tag = "ports",
    params(
        ("id" = String, Path, description = "Id or name of the capsule"),
        ("port" = u16, Path, description = "Port from 1 to 65535"),
    ),
    responses((status = 200, body = api::Port), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(path): Path<(String, String)>,
) -> Result<Json<api::Port>> {
    let target = target(path)?;
    let capsule = capsules::get(&app, caller, target.capsule).await?;
    Ok(to_api(&app, caller, capsule, target))
}

/// Makes a port public, or restricts the port to authorized callers.
#[utoipa::path(
    operation_id = "set_port",
    put, path = "/v1/capsules/{id}/ports/{port}", tag = "ports", request_body = api::SetPort,
    params(
        ("id" = String, Path, description = "Id or name of the capsule"),
        ("port" = u16, Path, description = "Port from 1 to 65535, except 49983 (envd) and 49999 (code interpreter)"),
    ),
    responses((status = 200, body = api::Port), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn set(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(path): Path<(String, String)>,
    Body(wanted): Body<api::SetPort>,
) -> Result<Json<api::Port>> {
    let target = target(path)?;
    let Target { capsule, port } = target;
    let capsule = capsules::set_public(&app, caller, capsule, port, wanted.public).await?;
    Ok(to_api(&app, caller, capsule, target))
}

/// Creates a link that lets a browser reach a port. The link ends at its expiry, or with the key or
/// membership that created the link.
#[utoipa::path(
    operation_id = "create_link",
    post, path = "/v1/capsules/{id}/ports/{port}/links", tag = "ports",
    request_body = api::MakeLink,
    params(
        ("id" = String, Path, description = "Id or name of the capsule"),
        ("port" = u16, Path, description = "Port from 1 to 65535, except 49983 (envd) and 49999 (code interpreter)"),
    ),
    responses((status = 201, body = api::Link), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn link(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(path): Path<(String, String)>,
    Body(wanted): Body<api::MakeLink>,
) -> Result<(StatusCode, Json<api::Link>)> {
    let target = target(path)?;
    let capsule = capsules::get(&app, caller, target.capsule).await?;
    capsules::check_exposed("port", target.port)?;
    let seconds = wanted.expires_in.unwrap_or(LINK);
    in_range("expires_in", seconds, 1, MAX_TIMEOUT_SEC)?;
    let until = OffsetDateTime::now_utc() + Duration::seconds(seconds.into());
    // The link holds whole seconds.
    let expires_at = until.replace_nanosecond(0).unwrap_or(until);
    let maker = match caller.by.principal {
        Principal::User(id) => Maker::User(id),
        Principal::Key(id) => Maker::Key(id),
        Principal::Host(_) | Principal::System | Principal::Nobody => {
            return Err(Error::Unauthenticated);
        }
    };
    let (until, generation) = (expires_at.unix_timestamp(), capsule.link_generation);
    let field = proxy::link(&app, target, &Link { until, generation, maker });
    capsules::record_link(&app, caller, target.capsule, target.port, seconds).await?;
    let url = format!("{}/?{field}", app.public.of(target.capsule, target.port));
    Ok((StatusCode::CREATED, Json(api::Link { url, expires_at })))
}

/// Replaces the token that admits clients to a capsule's ports. The old token and its open
/// connections end at once.
#[utoipa::path(
    operation_id = "rotate_traffic_token",
    post, path = "/v1/capsules/{id}/traffic-token", tag = "ports",
    params(("id" = String, Path, description = "Id or name of the capsule")),
    responses((status = 200, body = api::TrafficToken), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn rotate_token(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<api::TrafficToken>> {
    let traffic_token = capsules::rotate_token(&app, caller, capsule_id(&id)?).await?;
    Ok(Json(api::TrafficToken { traffic_token }))
}

/// Ends every preview link of a capsule. The cookies of the links and their open connections end
/// too.
#[utoipa::path(
    operation_id = "rotate_links",
    post, path = "/v1/capsules/{id}/links/rotate", tag = "ports",
    params(("id" = String, Path, description = "Id or name of the capsule")),
    responses((status = 204), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn rotate_links(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode> {
    capsules::rotate_links(&app, caller, capsule_id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Connects to a port. The request asks for a switch to `tcp`. The connection then carries the
/// port's raw bytes.
#[utoipa::path(
    operation_id = "connect_port",
    get, path = "/v1/capsules/{id}/ports/{port}/tcp", tag = "ports",
    params(
        ("id" = String, Path, description = "Id or name of the capsule"),
        ("port" = u16, Path, description = "Port from 1 to 65535, except 49983 (envd) and 49999 (code interpreter)"),
        ("upgrade" = String, Header, description = "Must be `tcp`, together with `Connection: upgrade`"),
    ),
    responses(
        (status = 101, description = "The connection carries the port's raw bytes"),
        (status = 429, body = api::ErrorBody), (status = 502, body = api::ErrorBody),
        (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn connect(
    State(app): State<Arc<App>>,
    caller: Caller,
    admission: Admission,
    Path(path): Path<(String, String)>,
    mut request: Request,
) -> Result<Response> {
    let target = target(path)?;
    let Target { capsule, port } = target;
    let row = capsules::awake(&app, caller, capsule).await?;
    capsules::check_exposed("port", port)?;
    if headers::upgrade(request.headers()).is_none_or(|protocol| protocol != "tcp") {
        return Err(Error::invalid("upgrade", "must request a switch to `tcp`"));
    }
    // The agent needs only the switch of protocols from this request.
    let mut asked = header::HeaderMap::new();
    asked.insert(header::HOST, HeaderValue::from_static("agent"));
    headers::set_upgrade(&mut asked, HeaderValue::from_static("tcp"));
    *request.headers_mut() = asked;
    *request.uri_mut() = format!("/tcp/{capsule}/{port}").parse().unwrap_or_default();
    let mut outgoing = Outgoing::of(request.map(hop::Body::boxed));
    outgoing.until = Some(admission.until());
    let host = row.host_id.ok_or(Error::HostUnavailable)?;
    let sent = outgoing.send(app.agents.pool(), &host, || None, &app.tasks).await;
    let answer = sent.map_err(|_| Error::HostUnavailable)?;
    match answer.headers().get(REFUSAL).map(|why| Refusal::parse(why.as_bytes())) {
        Some(refusal) => Err(Error::from_refusal(refusal, port)),
        None => Ok(answer.map(axum::body::Body::new)),
    }
}
