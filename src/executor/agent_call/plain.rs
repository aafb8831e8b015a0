//! Plain HTTP agents: the input as JSON, the answer as JSON.

use serde_json::value::RawValue;

use super::{AgentError, CallErrorKind, Failure, Wire};
use crate::{
    egress::NotJson,
    executor::retry::RetryDecision,
    input::{member, object_of, text},
    usage::Usage,
};

/// Calls the agent. Any JSON is an output; no content is an empty object.
pub(super) async fn call(wire: &Wire<'_>) -> Result<Box<RawValue>, Failure> {
    let body = wire.post(wire.url()?, wire.request.input.get().to_owned(), explain).await?;
    if body.is_empty() {
        return Ok(object_of([]));
    }
    let output = wire.read(&body, |body| {
        let json = body.json()?;
        wire.used(Usage::of_answer(json));
        Ok::<_, NotJson>(json.to_owned())
    });
    let output = output.await;
    output.map_err(|fault| {
        Failure::new(
            CallErrorKind::Invalid,
            RetryDecision::Never,
            format!("the answer is not JSON that can be stored: {fault}"),
        )
    })
}

/// Error text from the members that usually have it.
fn explain(body: &RawValue) -> Option<AgentError> {
    let said = ["detail", "message", "error", "title"].into_iter().find_map(|name| member(body, name).and_then(text));
    said.map(AgentError::from)
}
