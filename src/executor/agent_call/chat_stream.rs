//! Streamed chat completions: the pieces are passed on, and put together to the completion that the API would have
//! answered without a stream.

use serde_json::{json, value::RawValue};
use url::Url;

use super::{AgentError, CallErrorKind, Failure, MAX_ANSWER_BYTES, Wire, json_post};
use crate::{
    egress::{Body, EventReader},
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
    let mut events = EventReader::new(response, &wire.request.executor.clock, MAX_ANSWER_BYTES);
    let (mut deltas, mut completion) = (wire.deltas(), Completion::default());
    let mut has_memory = false;
    loop {
        let event = match events.next().await {
            Ok(event) if event.data.trim() != DONE => event,
            // Some endpoints end the stream without a mark.
            Err(_) if completion.finish_reason.is_none() => {
                let text = "the event stream ended before the completion";
                return Err(Failure::new(CallErrorKind::Network, RetryDecision::Later, text));
            }
            _ => break,
        };
        let chunk = check_json(event.data.as_bytes()).map_err(|fault| {
            let text = format!("an event of the stream is not JSON: {fault}");
            Failure::new(CallErrorKind::Invalid, RetryDecision::Never, text)
        })?;
        if member(chunk, "error").is_some_and(|error| error.get() != "null") {
            return Ok(Streamed::Completion(chunk.to_owned()));
        }
        if let Some(piece) = completion.add(chunk) {
            deltas.text(None, true, &piece);
        }
        if !has_memory && completion.content.len() >= COUNTED_BYTES {
            wire.reserve_answer().await?;
            has_memory = true;
        }
    }
    Ok(Streamed::Completion(completion.done()))
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
