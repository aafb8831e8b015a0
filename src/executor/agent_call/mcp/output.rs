//! Results of tools of MCP servers as outputs of steps.

use serde_json::value::RawValue;

use super::{
    super::{CallErrorKind, Failure, Request, Wire},
    invalid,
};
use crate::{
    executor::{agents::Protocol, retry::RetryDecision},
    input::member,
    mcp::reply::ToolResult,
    usage::Usage,
};

/// Output of a tool.
pub(super) struct ToolOutput {
    output: Box<RawValue>,
    /// Whether its `data` is the structured output, and not only JSON in its text.
    is_structured: bool,
}

/// Tokens that a response says the call took: those in `_meta` of its result, or of the result of its task.
pub(super) fn usage(response: &RawValue) -> Option<Usage> {
    let result = member(response, "result")?;
    let of = |result: &RawValue| member(member(result, "_meta")?, "usage").and_then(Usage::read);
    of(result).or_else(|| of(member(result, "result")?))
}

/// Output of the step.
pub(super) fn output(result: ToolResult<'_>) -> Result<ToolOutput, Failure> {
    if !result.is_error() {
        return Ok(ToolOutput { output: result.output(), is_structured: result.is_structured() });
    }
    let said = result.text();
    let words = if said.trim().is_empty() { String::new() } else { format!(": {said}") };
    Err(Failure::new(CallErrorKind::Refused, RetryDecision::Never, format!("the tool failed{words}")))
}

/// The output, if it is what the tool has promised, as far as that is known.
pub(super) async fn checked(wire: &Wire<'_>, done: ToolOutput) -> Result<Box<RawValue>, Failure> {
    let Request { executor, agent, organization, .. } = &wire.request;
    let ToolOutput { output, is_structured } = done;
    let structured = member(&output, "data").filter(|_| is_structured);
    let (Some(structured), Protocol::Mcp(config)) = (structured, &agent.protocol) else { return Ok(output) };
    let Some(schema) = executor.mcp_servers.output_schema(agent, organization, config).await else {
        return Ok(output);
    };
    match schema.violation(&executor.offload, organization, structured).await {
        Some(violation) => Err(invalid(format!("the outputSchema of the tool does not allow it: {violation}"))),
        None => Ok(output),
    }
}
