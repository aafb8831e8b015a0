//! Reader of an event stream that an agent answers with, within limits.

use std::time::Duration;

use http::header;
use reqwest::Response;

use crate::{
    clock::Clock,
    event_stream::{Event, Parser},
};

/// Maximum size of one event.
const MAX_EVENT_BYTES: usize = 1 << 20;
/// Time without a byte after which a stream counts as broken.
const MAX_SILENCE: Duration = Duration::from_secs(30);

/// Reason why there is no further event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// The agent has ended the stream.
    Complete,
    /// The connection broke or is silent, or a limit is exceeded.
    Broken,
}

/// Event stream of one answer.
pub(super) struct EventReader<'a> {
    response: Response,
    parser: Parser,
    clock: &'a Clock,
    /// Bytes that may still be read.
    left: usize,
}

impl<'a> EventReader<'a> {
    /// `limit` is the maximum size of the stream.
    pub(super) fn new(response: Response, clock: &'a Clock, limit: usize) -> Self {
        Self { response, parser: Parser::default(), clock, left: limit }
    }

    /// Whether the answer is an event stream.
    pub(super) fn is_stream(response: &Response) -> bool {
        let media_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = media_type.and_then(|value| value.split(';').next()).unwrap_or_default();
        media_type.trim().eq_ignore_ascii_case("text/event-stream")
    }

    /// The next event.
    pub(super) async fn next(&mut self) -> Result<Event, StreamEnd> {
        loop {
            if let Some(event) = self.parser.next_event() {
                return Ok(event);
            }
            let chunk = tokio::select! {
                chunk = self.response.chunk() => chunk,
                () = self.clock.sleep(MAX_SILENCE) => return Err(StreamEnd::Broken),
            };
            let Ok(chunk) = chunk else { return Err(StreamEnd::Broken) };
            let Some(bytes) = chunk else {
                return Err(if self.parser.held() == 0 { StreamEnd::Complete } else { StreamEnd::Broken });
            };
            if bytes.len() > self.left || self.parser.held() + bytes.len() > MAX_EVENT_BYTES {
                return Err(StreamEnd::Broken);
            }
            self.left -= bytes.len();
            self.parser.push(&bytes);
        }
    }
}
