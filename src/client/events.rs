//! Event stream of a response of the API.

use reqwest::Response;

use super::CallError;
use crate::event_stream::{Event, Parser};

/// Largest event that is read; those of the API are a few kilobytes.
const MAX_EVENT_BYTES: usize = 4 << 20;

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
            if let Some(event) = self.parser.next_event() {
                return Ok(Some((event, self.parser.last_id().to_owned())));
            }
            match self.response.chunk().await? {
                Some(bytes) if self.parser.held() + bytes.len() <= MAX_EVENT_BYTES => self.parser.push(&bytes),
                // Too long an event ends the stream; the caller reads the run instead.
                _ => return Ok(None),
            }
        }
    }
}
