//! Reader of Server-Sent Events.

use reqwest::Response;

use super::CallError;

/// Largest event that is read; those of the API are a few kilobytes.
const MAX_EVENT_BYTES: usize = 4 << 20;

/// An event.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Event {
    /// Name, empty without one.
    pub(super) name: String,
    pub(super) data: String,
}

/// Event stream of one response.
pub(super) struct Events {
    response: Response,
    parser: Parser,
}

impl Events {
    pub(super) fn new(response: Response) -> Self {
        Self { response, parser: Parser::default() }
    }

    /// Next event with the id to reconnect with; `None` at the end of the stream.
    pub(super) async fn next(&mut self) -> Result<Option<(Event, String)>, CallError> {
        loop {
            if let Some(event) = self.parser.next() {
                return Ok(Some((event, self.parser.last_id.clone())));
            }
            match self.response.chunk().await? {
                Some(bytes) if self.parser.held() + bytes.len() <= MAX_EVENT_BYTES => {
                    self.parser.unread.extend_from_slice(&bytes);
                }
                // Too long an event ends the stream; the caller reads the run instead.
                _ => return Ok(None),
            }
        }
    }
}

/// The format of event streams, on bytes as they arrive.
#[derive(Default)]
struct Parser {
    /// Bytes after the last complete line.
    unread: Vec<u8>,
    /// The event so far.
    event: Event,
    last_id: String,
}

impl Parser {
    /// Bytes of the event so far.
    fn held(&self) -> usize {
        self.unread.len() + self.event.data.len()
    }

    /// Takes complete lines up to the end of an event. Events without data, such as comments, do not count.
    fn next(&mut self) -> Option<Event> {
        while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unread.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                let event = std::mem::take(&mut self.event);
                if !event.data.is_empty() {
                    return Some(event);
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "id" => value.clone_into(&mut self.last_id),
                "event" => value.clone_into(&mut self.event.name),
                "data" => {
                    if !self.event.data.is_empty() {
                        self.event.data.push('\n');
                    }
                    self.event.data.push_str(value);
                }
                // Comments, the pause before a reconnect, unknown fields.
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_however_their_bytes_are_cut() {
        let text = "retry: 1000\n\n: comment\n\nid: 0\ndata: {\"a\":\ndata:1}\r\n\r\nid: 0-end\nevent: end\ndata: x\n\nid: 9\nda";
        let expected = [("", "{\"a\":\n1}", "0"), ("end", "x", "0-end")];
        for size in [1, 2, 3, text.len()] {
            let mut parser = Parser::default();
            let mut found = Vec::new();
            for bytes in text.as_bytes().chunks(size) {
                parser.unread.extend_from_slice(bytes);
                while let Some(event) = parser.next() {
                    found.push((event, parser.last_id.clone()));
                }
            }
            let found: Vec<_> =
                found.iter().map(|(event, id)| (event.name.as_str(), event.data.as_str(), id.as_str())).collect();
            assert_eq!(found, expected, "{size}");
        }
    }
}
