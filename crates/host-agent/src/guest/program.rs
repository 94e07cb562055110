//! Programs that the agent itself runs in a guest, by envd's process service: start and ready
//! commands of a version. Their output is a guest's text, so it is bounded and never trusted.

use super::Guest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use connectrpc::client::{CallOptions, ClientBody, ClientConfig, ClientTransport};
use connectrpc::{CompressionRegistry, ConnectError};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, Uri, header};
use protocol::process as wire;
use protocol::process::__buffa::oneof::process_event::{Event as Wire, data_event::Output};
use std::collections::BTreeMap;
use std::time::Duration;

/// Time limit for envd to start a program.
const BEGIN: Duration = Duration::from_secs(30);
/// Most bytes of a line; a longer line is cut into several.
const LINE_MAX: usize = 4096;

/// A program to start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Program {
    /// Program and arguments.
    pub argv: Vec<String>,
    pub envs: BTreeMap<String, String>,
    /// User, with a group after a colon; `None` for the guest's default.
    pub user: Option<String>,
    /// Working directory; `None` for the guest's default.
    pub cwd: Option<String>,
    /// Name by which callers of envd find the program.
    pub tag: Option<String>,
    /// Time after which the guest ends the program and its children.
    pub limit: Option<Duration>,
}

/// Output and end of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    /// Exit code, as a shell counts: 128 and the signal's number when a signal ended the program.
    Exit(i32),
}

/// Events of a program. The stream ends after the program's end.
pub(crate) type Events = BoxStream<'static, Result<Event, ConnectError>>;

impl Guest {
    /// Starts a program, and returns its events. The program goes on when they are dropped.
    ///
    /// # Errors
    /// Fails with envd's refusal, and when envd does not start the program in time.
    pub(crate) async fn start(
        &self,
        token: &str,
        program: Program,
    ) -> Result<Events, ConnectError> {
        let config = ClientConfig::new(Uri::from_static("http://envd"))
            .with_compression(CompressionRegistry::new())
            .with_default_header(protocol::ACCESS_TOKEN, token);
        let client = wire::ProcessClient::new(Transport(self.clone()), config);
        let mut options = CallOptions::default();
        if let Some(limit) = program.limit {
            options = options.with_timeout(limit);
        }
        if let Some(user) = &program.user {
            let basic = format!("Basic {}", STANDARD.encode(format!("{user}:")));
            options = options.with_header(header::AUTHORIZATION, basic);
        }
        let begin = async {
            let stream = client.start_with_options(request(program), options).await?;
            let mut events = futures::stream::unfold(stream, |mut stream| async move {
                let message = stream.message::<wire::StartResponse>().await;
                let event = message.map(|m| Some(m?.to_owned_message().event.into_option()));
                Some((event.transpose()?, stream))
            })
            .boxed();
            match events.next().await.transpose()?.flatten().and_then(|event| event.event) {
                Some(Wire::Start(_)) => Ok(events),
                _ => Err(ConnectError::internal("the program's events begin without a start")),
            }
        };
        let begun = tokio::time::timeout(BEGIN, Box::pin(begin)).await;
        let late = || ConnectError::unavailable("envd did not start the program in time");
        let events = begun.unwrap_or_else(|_| Err(late()))?;
        let events = events.filter_map(async |event| match event {
            Ok(event) => Some(Ok(read(event?.event?)?)),
            Err(error) => Some(Err(error)),
        });
        Ok(events.boxed())
    }
}

fn request(program: Program) -> wire::StartRequest {
    let mut argv = program.argv.into_iter();
    let config = wire::ProcessConfig {
        cmd: argv.next().unwrap_or_default(),
        args: argv.collect(),
        envs: program.envs.into_iter().collect(),
        cwd: program.cwd,
        ..Default::default()
    };
    wire::StartRequest {
        process: config.into(),
        tag: program.tag,
        stdin: Some(false),
        ..Default::default()
    }
}

fn read(event: Wire) -> Option<Event> {
    match event {
        Wire::Data(data) => match data.output? {
            Output::Stdout(data) | Output::Pty(data) => Some(Event::Stdout(data)),
            Output::Stderr(data) => Some(Event::Stderr(data)),
        },
        Wire::End(end) => Some(Event::Exit(end.exit_code)),
        Wire::Start(_) | Wire::Keepalive(_) => None,
    }
}

/// Connections to a guest's envd, for clients of its services.
#[derive(Clone)]
struct Transport(Guest);

impl ClientTransport for Transport {
    type ResponseBody = hop::Body;
    type Error = hop::Error;

    fn send(
        &self,
        request: Request<ClientBody>,
    ) -> BoxFuture<'static, Result<Response<hop::Body>, hop::Error>> {
        let this = self.clone();
        async move {
            let mut request = request.map(hop::Body::boxed);
            let path = request.uri().path_and_query().cloned();
            *request.uri_mut() = path.unwrap_or_else(|| PathAndQuery::from_static("/")).into();
            request.headers_mut().insert(header::HOST, HeaderValue::from_static("envd"));
            let sent = this.0.pool().send(&protocol::ENVD_PORT, request).await;
            sent.map(|sent| sent.answer).map_err(|failed| failed.error)
        }
        .boxed()
    }
}

/// Cuts output into lines. Bytes that are no UTF-8 are replaced.
#[derive(Debug, Default)]
pub(crate) struct Lines(Vec<u8>);

impl Lines {
    /// Adds output, and returns the lines that are complete now.
    pub(crate) fn add(&mut self, output: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for byte in output {
            match byte {
                b'\n' => lines.push(self.take()),
                byte => self.0.push(*byte),
            }
            if self.0.len() == LINE_MAX {
                lines.push(self.take());
            }
        }
        lines
    }

    /// Returns the last line, which has no end; `None` if it is empty.
    pub(crate) fn rest(&mut self) -> Option<String> {
        (!self.0.is_empty()).then(|| self.take())
    }

    fn take(&mut self) -> String {
        let line = std::mem::take(&mut self.0);
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        String::from_utf8_lossy(line).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_cut_into_lines_of_bounded_length() {
        let mut lines = Lines::default();
        assert_eq!(lines.add(b"a\r\n\nb"), ["a", ""]);
        assert_eq!(lines.add(b"c\xff\n"), ["bc\u{fffd}"]);
        let long = lines.add(&[b'x'; LINE_MAX + 1]);
        assert_eq!((long.len(), long[0].len()), (1, LINE_MAX));
        assert_eq!((lines.rest().as_deref(), lines.rest()), (Some("x"), None));
    }

    #[test]
    fn request_has_program_arguments_and_tag() {
        let program = Program {
            argv: ["/bin/sh", "-c", "x"].map(str::to_owned).into(),
            envs: BTreeMap::from([("A".to_owned(), "1".to_owned())]),
            tag: Some("start".to_owned()),
            limit: None,
            ..Program::default()
        };
        let request = request(program);
        let config = request.process.into_option().unwrap();
        assert_eq!((config.cmd.as_str(), config.args.len()), ("/bin/sh", 2));
        assert_eq!(config.envs["A"], "1");
        assert_eq!((request.tag.as_deref(), request.stdin), (Some("start"), Some(false)));
    }
}
