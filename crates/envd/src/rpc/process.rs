//! `process.Process`: starts programs, attaches to them, feeds them and signals them.

use super::stream::{Tick, Timing, stream};
use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::paths;
use crate::process::exit::Exit;
use crate::process::hub::{Event, Output};
use crate::process::registry::Selector;
use crate::process::{self, Process, Spec};
use connectrpc::{
    InboundStream, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use futures::StreamExt;
use protocol::process as wire;
use protocol::process::__buffa::oneof;
use rustix::process::Signal;
use std::sync::Arc;
use wire::process_event::{DataEvent, EndEvent, KeepAlive, StartEvent};

/// The service of a guest.
pub(super) struct Processes(pub Arc<Guest>);

#[allow(refining_impl_trait, reason = "concrete types read better than the trait's opaque ones")]
impl wire::Process for Processes {
    async fn list(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, wire::ListRequest>,
    ) -> ServiceResult<wire::ListResponse> {
        let processes = self.0.processes.running().iter().map(|p| info(p)).collect();
        Response::ok(wire::ListResponse { processes, ..Default::default() })
    }

    async fn connect(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, wire::ConnectRequest>,
    ) -> ServiceResult<ServiceStream<wire::ConnectResponse>> {
        let request = request.to_owned_message();
        let process = self.find(request.process)?;
        let (events, replayed) = match request.replay {
            true => process.hub.subscribe_with_replay()?,
            false => (process.hub.subscribe()?, 0),
        };
        let wrap = |event: oneof::process_event::Event| wire::ConnectResponse {
            event: message(event).into(),
            ..Default::default()
        };
        let first = wrap(started(process.pid, replayed));
        let render = move |tick| {
            let (event, last) = render(tick);
            (wrap(event), last)
        };
        Response::stream_ok(stream(first, events, Timing::of(&ctx), render))
    }

    async fn start(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, wire::StartRequest>,
    ) -> ServiceResult<ServiceStream<wire::StartResponse>> {
        let named = paths::requested_user(ctx.headers());
        let account = named.unwrap_or_else(|| self.0.settings().default_user);
        let spec = spec(request.to_owned_message())?;
        let timing = Timing::of(&ctx);
        let vars = self.0.metadata.vars().await;
        let start = process::run::start(&self.0, account, spec, vars, timing.deadline);
        let (process, events) = start.await?;
        let wrap = |event: oneof::process_event::Event| wire::StartResponse {
            event: message(event).into(),
            ..Default::default()
        };
        let first = wrap(started(process.pid, 0));
        let render = move |tick| {
            let (event, last) = render(tick);
            (wrap(event), last)
        };
        Response::stream_ok(stream(first, events, timing, render))
    }

    async fn update(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::UpdateRequest>,
    ) -> ServiceResult<wire::UpdateResponse> {
        let request = request.to_owned_message();
        let process = self.find(request.process)?;
        if let Some(size) = size(request.pty.into_option())? {
            process.resize(size)?;
        }
        Response::ok(wire::UpdateResponse::default())
    }

    async fn stream_input(
        &self,
        _ctx: RequestContext,
        mut requests: InboundStream<wire::StreamInputRequest>,
    ) -> ServiceResult<wire::StreamInputResponse> {
        use oneof::stream_input_request::Event;
        let mut process = None;
        while let Some(request) = requests.next().await {
            match request?.to_owned_message().event {
                Some(Event::Start(start)) => process = Some(self.find(start.process)?),
                Some(Event::Data(data)) => {
                    let process = process.as_ref();
                    let process =
                        process.ok_or_else(|| Error::invalid("the first message must be start"))?;
                    feed(process, data.input.into_option()).await?;
                }
                Some(Event::Keepalive(_)) | None => {}
            }
        }
        Response::ok(wire::StreamInputResponse::default())
    }

    async fn send_input(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::SendInputRequest>,
    ) -> ServiceResult<wire::SendInputResponse> {
        let request = request.to_owned_message();
        let process = self.find(request.process)?;
        feed(&process, request.input.into_option()).await?;
        Response::ok(wire::SendInputResponse::default())
    }

    async fn send_signal(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::SendSignalRequest>,
    ) -> ServiceResult<wire::SendSignalResponse> {
        let request = request.to_owned_message();
        let signal = match request.signal.as_known() {
            Some(wire::Signal::SIGNAL_SIGTERM) => Signal::TERM,
            Some(wire::Signal::SIGNAL_SIGKILL) => Signal::KILL,
            Some(wire::Signal::SIGNAL_UNSPECIFIED) | None => {
                return Err(Error::invalid("signal must be SIGTERM or SIGKILL").into());
            }
        };
        self.find(request.process)?.signal(signal)?;
        Response::ok(wire::SendSignalResponse::default())
    }

    async fn close_stdin(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::CloseStdinRequest>,
    ) -> ServiceResult<wire::CloseStdinResponse> {
        self.find(request.to_owned_message().process)?.close_stdin().await?;
        Response::ok(wire::CloseStdinResponse::default())
    }
}

impl Processes {
    fn find(&self, selector: impl Into<Option<wire::ProcessSelector>>) -> Result<Arc<Process>> {
        use oneof::process_selector::Selector as Wire;
        let selector = match selector.into().and_then(|s| s.selector) {
            Some(Wire::Pid(pid)) => Selector::Pid(pid),
            Some(Wire::Tag(tag)) => Selector::Tag(tag),
            None => return Err(Error::invalid("process must be a pid or a tag")),
        };
        self.0.processes.get(&selector)
    }
}

async fn feed(process: &Process, input: Option<wire::ProcessInput>) -> Result<()> {
    use oneof::process_input::Input;
    match input.and_then(|i| i.input) {
        Some(Input::Stdin(data)) => process.write_stdin(&data).await?,
        Some(Input::Pty(data)) => process.write_pty(&data).await?,
        None => return Err(Error::invalid("input must be stdin or pty")),
    }
    Ok(())
}

fn spec(request: wire::StartRequest) -> Result<Spec> {
    let config = request.process.into_option();
    let config = config.ok_or_else(|| Error::invalid("process is required"))?;
    Ok(Spec {
        cmd: config.cmd,
        args: config.args,
        envs: config.envs.into_iter().collect(),
        cwd: config.cwd,
        tag: request.tag,
        terminal: size(request.pty.into_option())?,
        stdin: request.stdin.unwrap_or(true),
    })
}

fn size(pty: Option<wire::PTY>) -> Result<Option<(u16, u16)>> {
    let Some(pty) = pty else { return Ok(None) };
    let size = pty.size.into_option().unwrap_or_default();
    let bad = |_| Error::invalid("pty.size must be at most 65535 by 65535");
    let (cols, rows) =
        (u16::try_from(size.cols).map_err(bad)?, u16::try_from(size.rows).map_err(bad)?);
    Ok(Some(if cols == 0 || rows == 0 { (80, 24) } else { (cols, rows) }))
}

fn info(process: &Process) -> wire::ProcessInfo {
    let spec = &process.spec;
    let config = wire::ProcessConfig {
        cmd: spec.cmd.clone(),
        args: spec.args.clone(),
        envs: spec.envs.clone().into_iter().collect(),
        cwd: spec.cwd.clone(),
        ..Default::default()
    };
    wire::ProcessInfo {
        config: config.into(),
        pid: process.pid,
        tag: spec.tag.clone(),
        ..Default::default()
    }
}

fn message(event: oneof::process_event::Event) -> wire::ProcessEvent {
    wire::ProcessEvent { event: Some(event), ..Default::default() }
}

fn started(pid: u32, replayed: usize) -> oneof::process_event::Event {
    let replayed = u64::try_from(replayed).unwrap_or(u64::MAX);
    StartEvent { pid, replayed, ..Default::default() }.into()
}

/// Returns the wire's event. The flag is set for the last event.
fn render(tick: Tick<Event>) -> (oneof::process_event::Event, bool) {
    match tick {
        Tick::Event(Event::Data(output, data)) => {
            let data = data.to_vec();
            let output = match output {
                Output::Stdout => oneof::process_event::data_event::Output::Stdout(data),
                Output::Stderr => oneof::process_event::data_event::Output::Stderr(data),
                Output::Pty => oneof::process_event::data_event::Output::Pty(data),
            };
            (DataEvent { output: Some(output), ..Default::default() }.into(), false)
        }
        Tick::Event(Event::End(exit)) => (ended(exit).into(), true),
        Tick::KeepAlive => (KeepAlive::default().into(), false),
    }
}

fn ended(exit: Exit) -> EndEvent {
    EndEvent {
        exit_code: exit.code,
        exited: exit.exited,
        status: exit.status,
        error: exit.error,
        ..Default::default()
    }
}
