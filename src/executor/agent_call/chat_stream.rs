//! Streamed chat completions: the pieces are passed on, and put together to the completion that the API would have
//! answered without a stream.

use serde_json::{json, value::RawValue};
use url::Url;

use super::{AgentError, CallErrorKind, Failure, LARGE_ANSWER_BYTES, MAX_ANSWER_BYTES, Request, Wire, json_post};
use crate::{
    egress::{Body, EventReader, StreamEnd},
    executor::{memory::COUNTED_BYTES, retry::RetryDecision},
    input::{check_json, elements, member, members, object_of, text, to_raw},
};

/// Data of the event after the last piece.
const DONE: &str = "[DONE]";

/// Answer to a request for a stream.
pub(super) enum Streamed {
    /// The completion, put together; or the error that the stream ended with.
    Completion(Box<RawValue>),
    /// The endpoint does not stream.
    Body(Body),
}

/// Sends the request, and reads the stream to its end.
pub(super) async fn complete(
    wire: &Wire<'_>,
    url: Url,
    request: &RawValue,
    explain: impl Fn(&RawValue) -> Option<AgentError>,
) -> Result<Streamed, Failure> {
    let (stream, options) = (to_raw(&true), to_raw(&json!({"include_usage": true})));
    let given = members(request).unwrap_or_default();
    // What the parameters of the agent say about the options stays.
    let options = Some(("stream_options", &*options)).filter(|_| member(request, "stream_options").is_none());
    let own = [("stream", &*stream)].into_iter().chain(options);
    let body = object_of(given.iter().map(|(name, value)| (name.as_str(), *value)).chain(own));
    let mut request = json_post(url, body.get().to_owned());
    request.accept = "text/event-stream, application/json";
    let (response, _span) = wire.open_stream(request, explain).await?;
    if !EventReader::is_stream(&response) {
        return wire.read_answer(response).await.map(Streamed::Body);
    }
    let Request { executor, organization, .. } = wire.request;
    let mut events = EventReader::of_large_events(response, &executor.clock, MAX_ANSWER_BYTES);
    let (mut deltas, mut completion) = (wire.deltas(), Completion::default());
    let mut has_memory = false;
    loop {
        let pulled = events.pull().await;
        if !has_memory && events.held().max(completion.content.len()) >= COUNTED_BYTES {
            wire.reserve_answer().await?;
            has_memory = true;
        }
        let event = match pulled {
            Ok(None) => continue,
            Ok(Some(event)) if event.data.trim() != DONE => event,
            Ok(Some(_)) => break,
            // Some endpoints end the stream without a mark.
            Err(_) if completion.finish_reason.is_some() => break,
            Err(StreamEnd::TooLarge) => return Err(too_large()),
            Err(StreamEnd::Complete | StreamEnd::Broken) => {
                let text = "the event stream ended before the completion";
                return Err(Failure::new(CallErrorKind::Network, RetryDecision::Later, text));
            }
        };
        let is_long = event.data.len() > LARGE_ANSWER_BYTES;
        match executor.work(organization, is_long, || completion.read(&event.data)).await? {
            Chunk::Piece(piece) => deltas.text(None, true, &piece),
            Chunk::Error(error) => return Ok(Streamed::Completion(error)),
            Chunk::Nothing => {}
        }
    }
    Ok(Streamed::Completion(completion.done()))
}

/// Failure because of a stream that is larger than an answer may be.
pub(super) fn too_large() -> Failure {
    let text = format!("the event stream is larger than {MAX_ANSWER_BYTES} bytes");
    Failure::new(CallErrorKind::Invalid, RetryDecision::Never, text)
}

/// What a chunk is.
enum Chunk {
    /// It adds this text to the content.
    Piece(String),
    /// The error that the stream ends with.
    Error(Box<RawValue>),
    Nothing,
}

/// Completion so far.
#[derive(Default)]
struct Completion {
    id: Option<Box<RawValue>>,
    model: Option<Box<RawValue>>,
    usage: Option<Box<RawValue>>,
    finish_reason: Option<Box<RawValue>>,
    content: String,
    refusal: String,
}

impl Completion {
    /// Adds the chunk of an event.
    fn read(&mut self, data: &str) -> Result<Chunk, Failure> {
        let chunk = check_json(data.as_bytes()).map_err(|fault| {
            let text = format!("an event of the stream is not JSON: {fault}");
            Failure::new(CallErrorKind::Invalid, RetryDecision::Never, text)
        })?;
        if member(chunk, "error").is_some_and(|error| error.get() != "null") {
            return Ok(Chunk::Error(chunk.to_owned()));
        }
        Ok(self.add(chunk).map_or(Chunk::Nothing, Chunk::Piece))
    }

    /// Adds a chunk. Returns the text that it adds to the content.
    fn add(&mut self, chunk: &RawValue) -> Option<String> {
        let given = |holder: &RawValue, name: &str| {
            member(holder, name).filter(|value| value.get() != "null").map(ToOwned::to_owned)
        };
        self.id = given(chunk, "id").or_else(|| self.id.take());
        self.model = given(chunk, "model").or_else(|| self.model.take());
        self.usage = given(chunk, "usage").or_else(|| self.usage.take());
        // The chunk with the usage has no choices.
        let choice = *member(chunk, "choices").and_then(elements)?.first()?;
        self.finish_reason = given(choice, "finish_reason").or_else(|| self.finish_reason.take());
        let delta = member(choice, "delta")?;
        let piece = |name: &str| member(delta, name).and_then(text).filter(|piece| !piece.is_empty());
        self.refusal += piece("refusal").as_deref().unwrap_or_default();
        let said = piece("content")?;
        self.content += &said;
        Some(said)
    }

    /// The completion in the form of an answer without a stream.
    fn done(self) -> Box<RawValue> {
        let message = json!({"role": "assistant", "content": self.content,
            "refusal": Some(self.refusal).filter(|refusal| !refusal.is_empty())});
        let or_null = |value: Option<Box<RawValue>>| value.unwrap_or_else(|| RawValue::NULL.to_owned());
        let (message, finish_reason) = (to_raw(&message), or_null(self.finish_reason));
        let choice = object_of([("index", &*to_raw(&0)), ("message", &*message), ("finish_reason", &*finish_reason)]);
        object_of([
            ("id", &*or_null(self.id)),
            ("model", &*or_null(self.model)),
            ("choices", &*to_raw(&[choice])),
            ("usage", &*or_null(self.usage)),
        ])
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn chunks_become_the_completion_that_there_would_be_without_a_stream() {
        let mut completion = Completion::default();
        let mut pieces = String::new();
        for chunk in [
            r#"{"id":"c","model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"usage":null}"#,
            r#"{"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]}"#,
            r#"{"id":"c","choices":[{"index":0,"delta":{"content":"lo"}}]}"#,
            r#"{"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
            r#"{"id":"c","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#,
            "{}",
        ] {
            pieces += &completion.add(check_json(chunk.as_bytes()).expect(chunk)).unwrap_or_default();
        }
        assert_eq!(pieces, "Hello");
        let done: Value = serde_json::from_str(completion.done().get()).expect("JSON");
        let message = json!({"role": "assistant", "content": "Hello", "refusal": null});
        let expected = json!({"id": "c", "model": "m", "usage": {"prompt_tokens": 1, "completion_tokens": 2},
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]});
        assert_eq!(done, expected);
    }
}
