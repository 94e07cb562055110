//! The watches of `filesystem.Filesystem`: streamed, or collected until a caller fetches them.

use super::filesystem::shown;
use super::stream::{Tick, Timing, stream};
use crate::filesystem::watch::{Change, Event, Events, Options, Watch};
use crate::guest::Guest;
use crate::{jobs, paths, users};
use buffa::Message;
use bytes::{Bytes, BytesMut};
use connectrpc::{
    CodecFormat, ConnectError, Encodable, RequestContext, Response, ServiceResult, ServiceStream,
};
use futures::StreamExt;
use protocol::filesystem as wire;
use protocol::filesystem::__buffa::oneof::watch_dir_response::Event as WatchEvent;
use serde::{Serialize, Serializer};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Events that a stream's caller may be behind before more events wait in the watch.
const STREAM_BUFFER: usize = 64;
/// Events that are encoded at once.
const CHUNK: usize = 256;

/// A caller's request for a watch.
pub(super) struct Wish {
    pub path: String,
    pub recursive: bool,
    pub include_entry: bool,
    pub allow_network: bool,
}

/// Streams a watch's events. The reason for the watch's end becomes the stream's error.
pub(super) async fn stream_events(
    guest: &Guest,
    ctx: &RequestContext,
    wish: Wish,
) -> ServiceResult<ServiceStream<wire::WatchDirResponse>> {
    let watch = Arc::new(begin(guest, ctx, wish).await?);
    let (sender, events) = mpsc::channel(STREAM_BUFFER);
    tokio::spawn(carry(Arc::clone(&watch), sender));
    let wrap = |event| wire::WatchDirResponse { event: Some(event), ..Default::default() };
    let first = wrap(wire::watch_dir_response::StartEvent::default().into());
    let render = move |tick| match tick {
        Tick::Event(event) => (wrap(WatchEvent::Filesystem(Box::new(event))), false),
        Tick::KeepAlive => (wrap(wire::watch_dir_response::KeepAlive::default().into()), false),
    };
    let messages = stream(first, events, Timing::of(ctx), render);
    // The messages end with the watch, or with an error of their own while the watch goes on.
    let end = futures::stream::once(async move { watch.ended() });
    let end = end.filter_map(|error| std::future::ready(error.map(|e| Err(ConnectError::from(e)))));
    Response::stream_ok(messages.chain(end))
}

/// Begins a watch whose events wait to be fetched.
pub(super) async fn create(
    guest: &Guest,
    ctx: &RequestContext,
    wish: Wish,
) -> ServiceResult<wire::CreateWatcherResponse> {
    let watch = begin(guest, ctx, wish).await?;
    let watcher_id = guest.watchers.insert(watch)?;
    Response::ok(wire::CreateWatcherResponse { watcher_id, ..Default::default() })
}

/// Returns the events since the last call. Removes an ended watch once its error was returned.
pub(super) async fn fetch(guest: &Guest, id: &str) -> ServiceResult<Fetched> {
    let watch = guest.watchers.get(id)?;
    match watch.fetch(jobs::LIMIT).await {
        Ok(events) => Response::ok(Fetched(events)),
        Err(error) => {
            if watch.ended().is_some() {
                let _ = guest.watchers.remove(id);
            }
            Err(error.into())
        }
    }
}

/// Begins a watch. The watch's thread looks up the user and the folder.
async fn begin(guest: &Guest, ctx: &RequestContext, wish: Wish) -> crate::error::Result<Watch> {
    let settings = guest.settings();
    let name = paths::requested_user(ctx.headers()).unwrap_or(settings.default_user);
    let workdir = settings.default_workdir;
    let options = Options {
        recursive: wish.recursive,
        include_entry: wish.include_entry,
        allow_network: wish.allow_network,
    };
    let locate = move || {
        let user = users::get(&name)?;
        paths::resolve(&wish.path, &user, workdir.as_deref())
    };
    guest.watchers.start(locate, options, jobs::LIMIT).await
}

/// Carries a watch's events until the watch ends or its reader goes away.
async fn carry(watch: Arc<Watch>, sender: mpsc::Sender<wire::FilesystemEvent>) {
    loop {
        let events = tokio::select! {
            () = sender.closed() => return,
            events = watch.next() => events,
        };
        let Some(events) = events else { return };
        for event in events.iter() {
            if sender.send(told(event)).await.is_err() {
                return;
            }
        }
    }
}

fn told(event: Event<'_>) -> wire::FilesystemEvent {
    let kind = match event.change {
        Change::Create => wire::EventType::EVENT_TYPE_CREATE,
        Change::Write => wire::EventType::EVENT_TYPE_WRITE,
        Change::Remove => wire::EventType::EVENT_TYPE_REMOVE,
        Change::Rename => wire::EventType::EVENT_TYPE_RENAME,
        Change::Chmod => wire::EventType::EVENT_TYPE_CHMOD,
    };
    wire::FilesystemEvent {
        name: event.name.to_owned(),
        r#type: kind.into(),
        entry: event.entry.cloned().map(shown).into(),
        ..Default::default()
    }
}

/// Events as a `GetWatcherEventsResponse`. They are encoded in small parts, since a wire event is
/// many times larger than a stored event.
pub(super) struct Fetched(Vec<Events>);

impl Fetched {
    fn events(&self) -> impl Iterator<Item = wire::FilesystemEvent> {
        self.0.iter().flat_map(Events::iter).map(told)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Fetched {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.events())
    }
}

/// The answer in JSON, which leaves an empty list out.
#[derive(Serialize)]
struct Answer<'a> {
    #[serde(skip_serializing_if = "Fetched::is_empty")]
    events: &'a Fetched,
}

impl Encodable<wire::GetWatcherEventsResponse> for Fetched {
    fn encode(&self, codec: CodecFormat) -> Result<Bytes, ConnectError> {
        if codec == CodecFormat::Json {
            let text = serde_json::to_vec(&Answer { events: self });
            let text =
                text.map_err(|e| ConnectError::internal(format!("cannot encode events: {e}")));
            return text.map(Bytes::from);
        }
        // Concatenated messages with a repeated field decode as a single message.
        let mut out = BytesMut::new();
        let mut events = self.events().peekable();
        while events.peek().is_some() {
            let events: Vec<_> = events.by_ref().take(CHUNK).collect();
            let part = wire::GetWatcherEventsResponse { events, ..Default::default() };
            out.extend_from_slice(&part.encode_to_bytes());
        }
        Ok(out.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn fetched_events_encode_as_wire_message_in_both_codecs() {
        let batch = |numbers: std::ops::Range<usize>| {
            let mut events = Events::default();
            for n in numbers {
                events.push("dir/", OsStr::new(&n.to_string()), Change::Write, None);
            }
            events
        };
        let fetched = Fetched(vec![batch(0..600), batch(600..1000)]);
        let message = wire::GetWatcherEventsResponse {
            events: fetched.events().collect(),
            ..Default::default()
        };
        assert_eq!((message.events.len(), message.events[999].name.as_str()), (1000, "dir/999"));
        for codec in [CodecFormat::Json, CodecFormat::Proto] {
            let whole = Encodable::<wire::GetWatcherEventsResponse>::encode(&message, codec);
            assert_eq!(fetched.encode(codec).unwrap(), whole.unwrap(), "{codec}");
        }
        let none = Fetched(Vec::new());
        assert_eq!(none.encode(CodecFormat::Json).unwrap(), "{}");
        assert!(none.encode(CodecFormat::Proto).unwrap().is_empty());
    }
}
