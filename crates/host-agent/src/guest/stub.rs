//! A stand-in of envd for unit tests: it takes identities, and runs programs by rules on their text.
//!
//! | last argument | course |
//! |---|---|
//! | `serve` | writes a line and goes on for ever |
//! | `exit N` | writes a line to standard error and ends with N |
//! | `after N` | ends with 1 for N times, then with 0 |
//! | `true` | ends with 0 |
//! | `refuse` | is refused |

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use connectrpc::{
    ConnectError, InboundStream, RequestContext, Response, ServiceRequest, ServiceResult,
    ServiceStream,
};
use daemon::{Tasks, lock};
use futures::StreamExt;
use protocol::process::__buffa::oneof::process_event::{Event, data_event};
use protocol::process::process_event::{DataEvent, EndEvent, StartEvent};
use protocol::process::{self as wire, ProcessExt};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

/// Requests that a stub has had.
#[derive(Default)]
pub(crate) struct Seen {
    /// Programs that were to start, with the token that came with each.
    pub starts: Mutex<Vec<(wire::StartRequest, String)>>,
    /// Identities, with the token that came with each.
    pub identities: Mutex<Vec<(serde_json::Value, String)>>,
    fails: Mutex<u32>,
}

impl Seen {
    /// Returns the last argument of each program that was to start.
    pub(crate) fn commands(&self) -> Vec<String> {
        let last = |(request, _): &(wire::StartRequest, String)| text(request);
        lock(&self.starts).iter().map(last).collect()
    }
}

/// Starts a stub, and returns its address.
pub(crate) async fn start() -> (SocketAddr, Arc<Seen>) {
    let seen = Arc::<Seen>::default();
    let service = Arc::new(Stub(Arc::clone(&seen)));
    let service = service.register(connectrpc::Router::new()).into_axum_service();
    let router = axum::Router::new()
        .route("/health", get(async || StatusCode::NO_CONTENT))
        .route("/snapshot/prepare", post(async || StatusCode::NO_CONTENT))
        .route("/helpers", post(async || axum::Json(serde_json::json!({ "path": "/run/h" }))))
        .route("/init", post(init))
        .with_state(Arc::clone(&seen))
        .fallback_service(service);
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    Tasks::default().spawn(async move { axum::serve(listener, router).await.unwrap() });
    (at, seen)
}

async fn init(State(seen): State<Arc<Seen>>, headers: HeaderMap, body: bytes::Bytes) -> StatusCode {
    let Ok(body) = serde_json::from_slice::<serde_json::Value>(&body) else {
        return StatusCode::BAD_REQUEST;
    };
    if body.get("accessToken").is_some() {
        lock(&seen.identities).push((body, token(&headers)));
    }
    StatusCode::NO_CONTENT
}

fn token(headers: &HeaderMap) -> String {
    let token = headers.get(protocol::ACCESS_TOKEN).and_then(|token| token.to_str().ok());
    token.unwrap_or_default().to_owned()
}

fn text(request: &wire::StartRequest) -> String {
    let config = request.process.as_option().cloned().unwrap_or_default();
    config.args.last().unwrap_or(&config.cmd).lines().last().unwrap_or_default().to_owned()
}

struct Stub(Arc<Seen>);

impl Stub {
    fn exit(status: i32) -> Event {
        EndEvent { exit_code: status, exited: true, ..Default::default() }.into()
    }

    fn events(&self, text: &str) -> Result<(Vec<Event>, bool), ConnectError> {
        let output =
            |output| -> Event { DataEvent { output: Some(output), ..Default::default() }.into() };
        let mut events: Vec<Event> = vec![StartEvent { pid: 7, ..Default::default() }.into()];
        match text.split_once(' ') {
            Some(("exit", status)) => {
                events.push(output(data_event::Output::Stderr(b"bad \x1b[1mthing".to_vec())));
                events.push(Self::exit(status.parse().unwrap()));
            }
            Some(("after", most)) => {
                let mut fails = lock(&self.0.fails);
                *fails += 1;
                events.push(Self::exit(i32::from(*fails <= most.parse().unwrap())));
            }
            _ if text == "true" => events.push(Self::exit(0)),
            _ if text == "refuse" => return Err(ConnectError::unauthenticated("no such user")),
            _ => {
                events.push(output(data_event::Output::Stdout(b"up\n".to_vec())));
                return Ok((events, true));
            }
        }
        Ok((events, false))
    }
}

#[allow(refining_impl_trait, reason = "concrete types read better than the trait's opaque ones")]
impl wire::Process for Stub {
    async fn start(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, wire::StartRequest>,
    ) -> ServiceResult<ServiceStream<wire::StartResponse>> {
        let request = request.to_owned_message();
        let text = text(&request);
        lock(&self.0.starts).push((request, token(ctx.headers())));
        let (events, goes_on) = self.events(&text)?;
        let events = events.into_iter().map(|event| {
            let event = wire::ProcessEvent { event: Some(event), ..Default::default() };
            Ok(wire::StartResponse { event: event.into(), ..Default::default() })
        });
        let events = futures::stream::iter(events);
        match goes_on {
            true => Response::stream_ok(events.chain(futures::stream::pending()).boxed()),
            false => Response::stream_ok(events.boxed()),
        }
    }

    async fn list(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, wire::ListRequest>,
    ) -> ServiceResult<wire::ListResponse> {
        Err(ConnectError::unimplemented("list"))
    }

    async fn connect(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, wire::ConnectRequest>,
    ) -> ServiceResult<ServiceStream<wire::ConnectResponse>> {
        Err(ConnectError::unimplemented("connect"))
    }

    async fn update(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, wire::UpdateRequest>,
    ) -> ServiceResult<wire::UpdateResponse> {
        Err(ConnectError::unimplemented("update"))
    }

    async fn stream_input(
        &self,
        _ctx: RequestContext,
        _requests: InboundStream<wire::StreamInputRequest>,
    ) -> ServiceResult<wire::StreamInputResponse> {
        Err(ConnectError::unimplemented("stream_input"))
    }

    async fn send_input(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, wire::SendInputRequest>,
    ) -> ServiceResult<wire::SendInputResponse> {
        Err(ConnectError::unimplemented("send_input"))
    }

    async fn send_signal(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, wire::SendSignalRequest>,
    ) -> ServiceResult<wire::SendSignalResponse> {
        Err(ConnectError::unimplemented("send_signal"))
    }

    async fn close_stdin(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, wire::CloseStdinRequest>,
    ) -> ServiceResult<wire::CloseStdinResponse> {
        Err(ConnectError::unimplemented("close_stdin"))
    }
}
