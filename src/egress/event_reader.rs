//! Reader of event streams that agents answer with, within limits.

use std::time::Duration;

use http::header;
use reqwest::Response;

use crate::{
    clock::Clock,
    event_stream::{Event, Parser},
};

/// Maximum size of one event, unless the reader is made for larger ones.
const MAX_EVENT_BYTES: usize = 1 << 20;
/// Reason why there is no further event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// The agent has ended the stream.
    Complete,
    /// The connection broke, or is silent for too long.
    Broken,
    /// An event, or the stream, is too large.
    TooLarge,
}

/// Event stream of one answer.
pub struct EventReader<'a> {
    response: Response,
    parser: Parser,
    clock: &'a Clock,
    /// Bytes that may still be read.
    left: usize,
    /// Maximum size of one event.
    max_event: usize,
    /// Time without a byte after which the stream counts as broken; `None`: the time-out of the call is the limit.
    max_silence: Option<Duration>,
}

impl<'a> EventReader<'a> {
    /// `limit` is the maximum size of the stream. However long it is silent, it counts as under way.
    #[must_use]
    pub fn new(response: Response, clock: &'a Clock, limit: usize) -> Self {
        Self { response, parser: Parser::default(), clock, left: limit, max_event: MAX_EVENT_BYTES, max_silence: None }
    }

    /// As [`Self::new`], if one event may be as large as the stream.
    #[must_use]
    pub fn of_large_events(response: Response, clock: &'a Clock, limit: usize) -> Self {
        Self { max_event: limit, ..Self::new(response, clock, limit) }
    }

    /// The same, but the stream counts as broken after this time without a byte.
    #[must_use]
    pub fn broken_by_silence(self, max_silence: Duration) -> Self {
        Self { max_silence: Some(max_silence), ..self }
    }

    /// Whether the answer is an event stream.
    #[must_use]
    pub fn is_stream(response: &Response) -> bool {
        let media_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = media_type.and_then(|value| value.split(';').next()).unwrap_or_default();
        media_type.trim().eq_ignore_ascii_case("text/event-stream")
    }

    /// The next event.
    pub async fn next(&mut self) -> Result<Event, StreamEnd> {
        loop {
            if let Some(event) = self.pull().await? {
                return Ok(event);
            }
        }
    }

    /// The next event, or nothing if there is none yet after the next bytes.
    pub async fn pull(&mut self) -> Result<Option<Event>, StreamEnd> {
        if let Some(event) = self.parser.next_event() {
            return Ok(Some(event));
        }
        let silence = async {
            match self.max_silence {
                Some(most) => self.clock.sleep(most).await,
                None => std::future::pending().await,
            }
        };
        let chunk = tokio::select! {
            chunk = self.response.chunk() => chunk,
            () = silence => return Err(StreamEnd::Broken),
        };
        let Ok(chunk) = chunk else { return Err(StreamEnd::Broken) };
        let Some(bytes) = chunk else {
            return Err(if self.parser.held() == 0 { StreamEnd::Complete } else { StreamEnd::Broken });
        };
        if bytes.len() > self.left || self.parser.held() + bytes.len() > self.max_event {
            return Err(StreamEnd::TooLarge);
        }
        self.left -= bytes.len();
        self.parser.push(&bytes);
        Ok(self.parser.next_event())
    }

    /// Bytes that are held for the next event.
    #[must_use]
    pub fn held(&self) -> usize {
        self.parser.held()
    }
}
