//! Streamed tasks: the text of the answer in pieces, spread over the duration of the task.

use std::{convert::Infallible, time::Duration};

use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::{Stream, stream};
use serde_json::{Value, json};

use super::{rpc, wire};
use crate::a2a::Version;

/// Maximum number of pieces.
const MAX_PIECES: usize = 50;

/// Events of a task that is completed after that time.
pub(super) fn answer(
    id: &Value,
    submitted: Value,
    completed: &Value,
    time: Duration,
    version: Version,
) -> Sse<impl Stream<Item = Result<Event, Infallible>> + use<>> {
    let parts = completed["artifacts"][0]["parts"].as_array().cloned().unwrap_or_default();
    let text = parts.first().and_then(|part| part["text"].as_str()).unwrap_or_default();
    let pieces = pieces(text);
    let pause = time / u32::try_from(pieces.len()).unwrap_or(1).max(1);
    let mut events = vec![(Duration::ZERO, wire::sent(submitted, version))];
    for (index, piece) in pieces.into_iter().enumerate() {
        let part = json!({"kind": "text", "text": piece});
        events.push((pause, wire::artifact_update(completed, &part, index > 0, version)));
    }
    for part in parts.iter().skip(1) {
        events.push((Duration::ZERO, wire::artifact_update(completed, part, true, version)));
    }
    events.push((Duration::ZERO, wire::status_update(completed, version)));
    let id = id.clone();
    let events = stream::unfold(events.into_iter(), move |mut left| {
        let id = id.clone();
        async move {
            let (pause, event) = left.next()?;
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            Some((Ok(Event::default().data(rpc::result(&id, &event).to_string())), left))
        }
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

/// Events of a task that is in this state, and does not go on by itself.
pub(super) fn state(
    id: &Value,
    task: Value,
    version: Version,
) -> Sse<impl Stream<Item = Result<Event, Infallible>> + use<>> {
    let update = wire::status_update(&task, version);
    let events = [wire::sent(task, version), update].map(|event| rpc::result(id, &event).to_string());
    Sse::new(stream::iter(events.map(|event| Ok(Event::default().data(event)))))
}

/// The words of a text, or, of a long one, longer pieces.
fn pieces(text: &str) -> Vec<String> {
    let words: Vec<&str> = text.split_inclusive(' ').collect();
    words.chunks(words.len().div_ceil(MAX_PIECES).max(1)).map(<[&str]>::concat).collect()
}
