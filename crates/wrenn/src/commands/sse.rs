//! Reader of server-sent events. It is pure: bytes in, events out, in any division of the bytes.

/// Largest event, in bytes. Lines of logs are far shorter.
const EVENT_MAX: usize = 4 << 20;

/// An event of the stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::commands) struct Event {
    /// Name of the event; empty if the server gave none.
    pub name: String,
    /// Data of the event, its lines joined by newlines.
    pub data: String,
}

/// An event that is too large.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the platform sent an event of over {EVENT_MAX} bytes")]
pub(in crate::commands) struct TooLarge;

/// State between two parts of a stream.
#[derive(Default)]
pub(in crate::commands) struct Reader {
    /// Begin of a line whose end did not come yet.
    line: Vec<u8>,
    event: Event,
    has_data: bool,
}

impl Reader {
    /// Takes the next bytes and appends the events that they complete.
    ///
    /// # Errors
    /// Refuses an event over the limit.
    pub(in crate::commands) fn feed(
        &mut self,
        bytes: &[u8],
        events: &mut Vec<Event>,
    ) -> Result<(), TooLarge> {
        let mut parts = bytes.split(|byte| *byte == b'\n').peekable();
        while let Some(part) = parts.next() {
            if self.line.len() + part.len() + self.event.data.len() > EVENT_MAX {
                return Err(TooLarge);
            }
            self.line.extend_from_slice(part);
            if parts.peek().is_some() {
                let line = std::mem::take(&mut self.line);
                let text = String::from_utf8_lossy(&line);
                events.extend(self.line(text.strip_suffix('\r').unwrap_or(&text)));
            }
        }
        Ok(())
    }

    /// Takes a whole line. An empty one ends the event.
    fn line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            return std::mem::take(&mut self.has_data).then_some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.name),
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
                self.has_data = true;
            }
            // Data of logs has the id, too. Comments have an empty field.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, data: &str) -> Event {
        Event { name: name.to_owned(), data: data.to_owned() }
    }

    #[test]
    fn events_are_the_same_in_any_division_of_the_bytes() {
        let text =
            ": wait\n\nid: 7\ndata: {\"a\": 1}\r\n\r\nevent: end\ndata:x\ndata: ü\n\nid: 8\n\n";
        let expected = [event("", "{\"a\": 1}"), event("end", "x\nü")];
        for size in 1..text.len() {
            let (mut reader, mut events) = (Reader::default(), Vec::new());
            for part in text.as_bytes().chunks(size) {
                reader.feed(part, &mut events).unwrap();
            }
            assert_eq!(events, expected, "parts of {size} bytes");
        }
    }

    #[test]
    fn endless_event_is_refused() {
        let (mut reader, mut events) = (Reader::default(), Vec::new());
        let part = vec![b'x'; 1 << 20];
        let fed = (0..8).try_for_each(|_| reader.feed(&part, &mut events));
        assert_eq!(fed, Err(TooLarge));
        let (mut reader, line) = (Reader::default(), [&b"data: "[..], &part, b"\n"].concat());
        let fed = (0..8).try_for_each(|_| reader.feed(&line, &mut events));
        assert_eq!(fed, Err(TooLarge));
    }
}
