//! Streamed responses: pieces of the text are passed on. The truth is the whole response in the last event.

use serde_json::value::RawValue;
use url::Url;

use super::{
    CallErrorKind, Failure, LARGE_ANSWER_BYTES, MAX_ANSWER_BYTES, Request, Wire,
    chat::{as_failure, explain},
    chat_stream::too_large,
    json_post,
};
use crate::{
    egress::{Body, EventReader, StreamEnd},
    executor::{memory::COUNTED_BYTES, retry::RetryDecision},
    input::{check_json, member, members, object_of, text, to_raw},
};

/// Data of the event after the last one.
const DONE: &str = "[DONE]";

/// Answer to a request for a stream.
pub(super) enum Streamed {
    /// The output of the step, from the response of the last event.
    Output(Box<RawValue>),
    /// The endpoint does not stream.
    Body(Body),
}

/// Sends the request, and reads the stream to its end. `read` makes the output of the whole response.
pub(super) async fn complete(
    wire: &Wire<'_>,
    url: Url,
    request: &RawValue,
    read: impl Fn(&RawValue) -> Result<Box<RawValue>, Failure>,
) -> Result<Streamed, Failure> {
    let on = to_raw(&true);
    let given = members(request).unwrap_or_default();
    let body = object_of(given.iter().map(|(name, value)| (name.as_str(), *value)).chain([("stream", &*on)]));
    let mut request = json_post(url, body.get().to_owned());
    request.accept = "text/event-stream, application/json";
    let (response, _span) = wire.open_stream(request, explain).await?;
    if !EventReader::is_stream(&response) {
        return wire.read_answer(response).await.map(Streamed::Body);
    }
    // The last event contains the whole response.
    let Request { executor, organization, .. } = wire.request;
    let mut events = EventReader::of_large_events(response, &executor.clock, MAX_ANSWER_BYTES);
    let (mut deltas, mut has_memory) = (wire.deltas(), false);
    loop {
        let event = match events.pull().await {
            Ok(Some(event)) if event.data.trim() != DONE => event,
            Ok(None) => {
                if !has_memory && events.held() >= COUNTED_BYTES {
                    wire.reserve_answer().await?;
                    has_memory = true;
                }
                continue;
            }
            Err(StreamEnd::TooLarge) => return Err(too_large()),
            Ok(Some(_)) | Err(_) => {
                let text = "the event stream ended before the response";
                return Err(Failure::new(CallErrorKind::Network, RetryDecision::Later, text));
            }
        };
        let is_long = event.data.len() > LARGE_ANSWER_BYTES;
        match executor.work(organization, is_long, || seen(&event.data, &read)).await? {
            Seen::Piece(piece) => deltas.text(None, true, &piece),
            Seen::Ended(output) => return Ok(Streamed::Output(output)),
            Seen::Nothing => {}
        }
    }
}

/// What an event of a stream is.
enum Seen {
    Piece(String),
    /// The last one, with the output of the step.
    Ended(Box<RawValue>),
    Nothing,
}

fn seen(data: &str, read: impl Fn(&RawValue) -> Result<Box<RawValue>, Failure>) -> Result<Seen, Failure> {
    let json = check_json(data.as_bytes()).map_err(|fault| {
        let text = format!("an event of the stream is not JSON: {fault}");
        Failure::new(CallErrorKind::Invalid, RetryDecision::Never, text)
    })?;
    match member(json, "type").and_then(text).as_deref() {
        Some("response.output_text.delta") => {
            Ok(member(json, "delta").and_then(text).map_or(Seen::Nothing, Seen::Piece))
        }
        Some("response.completed" | "response.incomplete" | "response.failed") => {
            read(member(json, "response").unwrap_or(RawValue::NULL)).map(Seen::Ended)
        }
        // The error is the event itself, or a member of it.
        Some("error") => {
            let error = member(json, "error").filter(|error| error.get() != "null").unwrap_or(json);
            Err(as_failure(error))
        }
        _ => Ok(Seen::Nothing),
    }
}
