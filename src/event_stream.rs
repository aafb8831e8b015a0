//! Reader of Server-Sent Events, the format of event streams. Pure: it is given bytes as they arrive.

/// An event.
#[derive(Debug, Default, PartialEq)]
pub struct Event {
    /// Name, empty without one.
    pub name: String,
    /// Data, its lines joined.
    pub data: String,
}

/// Parser of the bytes of one stream.
#[derive(Default)]
pub struct Parser {
    /// Bytes after the last complete line.
    unread: Vec<u8>,
    /// Number of these in which there is no end of a line, so that no byte is looked at twice.
    searched: usize,
    /// The event so far.
    event: Event,
    last_id: String,
}

impl Parser {
    /// Adds bytes of the stream. The caller limits [`Self::held`].
    pub fn push(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
    }

    /// Bytes that are held: those of the event so far, and those that are not read yet.
    #[must_use]
    pub fn held(&self) -> usize {
        self.unread.len() + self.event.data.len()
    }

    /// Id to reconnect with.
    #[must_use]
    pub fn last_id(&self) -> &str {
        &self.last_id
    }

    /// The next complete event. Events without data, such as comments, do not count.
    pub fn next_event(&mut self) -> Option<Event> {
        let (mut at, mut found) = (0, None);
        let mut from = std::mem::take(&mut self.searched);
        while let Some(length) = self.unread[from..].iter().position(|byte| *byte == b'\n') {
            let length = length + from - at;
            let line = String::from_utf8_lossy(&self.unread[at..at + length]);
            at += length + 1;
            from = at;
            let line = line.trim_end_matches('\r');
            if line.is_empty() {
                let event = std::mem::take(&mut self.event);
                if !event.data.is_empty() {
                    found = Some(event);
                    break;
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
        self.unread.drain(..at);
        self.searched = if found.is_some() { 0 } else { self.unread.len() };
        found
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
                parser.push(bytes);
                while let Some(event) = parser.next_event() {
                    found.push((event, parser.last_id().to_owned()));
                }
            }
            let found: Vec<_> =
                found.iter().map(|(event, id)| (event.name.as_str(), event.data.as_str(), id.as_str())).collect();
            assert_eq!(found, expected, "{size}");
            assert_eq!(parser.held(), 2, "{size}");
        }
    }
}
