//! Warnings about steps that call a tool of an MCP server: the server was seen without the tool, or the input does not fit
//! it. What is known of a server comes from calls of the agent and from its health checks; nothing is requested here.

use std::collections::HashMap;

use crate::{
    access::OrganizationId,
    api::vocabulary::app::App,
    db::{self, agent_cards::KnownTool},
    input::{FieldError, MAX_ERRORS, shorten},
    mcp::tools,
    workflow::{Content, Steps},
};

/// Warnings about the steps, in their order.
pub async fn of_steps(app: &App, organization: &OrganizationId, steps: &Steps) -> Result<Vec<FieldError>, db::Error> {
    let names: Vec<String> = steps.agent_names().into_iter().map(str::to_owned).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let known = db::agent_cards::known_tools(&app.pool, organization, &names).await?;
    Ok(warnings(steps, known))
}

/// Warnings about a plan that was stored. They are not worth an error.
pub async fn of_stored(app: &App, organization: &OrganizationId, content: &Content) -> Vec<FieldError> {
    of_steps(app, organization, content.steps()).await.unwrap_or_else(|error| {
        tracing::debug!(error = &error as &dyn std::error::Error, "tools of agents cannot be read: {error}");
        Vec::new()
    })
}

fn warnings(steps: &Steps, known: Vec<KnownTool>) -> Vec<FieldError> {
    let known: HashMap<String, KnownTool> = known.into_iter().map(|tool| (tool.agent.clone(), tool)).collect();
    let of_step = |step: &crate::workflow::Step| {
        let found = step.agent_name.as_ref().and_then(|name| known.get(name));
        let problems = match found {
            None => Vec::new(),
            Some(tool) if !tool.is_there => {
                if tool.is_complete {
                    vec![tools::missing(&tool.tool, &tool.names)]
                } else {
                    Vec::new()
                }
            }
            Some(tool) if tool.needs_task => vec![tools::needs_task(&tool.tool)],
            Some(tool) => {
                let given: Vec<&str> = step.mapping().iter().map(|(name, _)| name.as_str()).collect();
                let schema = tool.input_schema.as_ref().map(|schema| &*schema.0);
                schema.map(|schema| tools::check_input(&tool.tool, schema, &given)).unwrap_or_default()
            }
        };
        let id = shorten(&step.id).into_owned();
        problems.into_iter().map(move |problem| {
            let member = if problem.is_of_input { "input_mapping" } else { "agent_name" };
            FieldError::new(format!("body.steps.{id}.{member}"), problem.kind, problem.message)
        })
    };
    steps.iter().flat_map(of_step).take(MAX_ERRORS).collect()
}
