//! Warnings about steps and the agents that they call: a member of the step has no effect on agents of that kind, or the
//! MCP server was seen without the tool, or the input does not fit it. What is known of a server comes from calls of the
//! agent and from its health checks; nothing is requested here.

use std::collections::HashMap;

use crate::{
    access::OrganizationId,
    agent::AgentKind,
    api::vocabulary::app::App,
    db::{self, agent_cards::KnownTool},
    input::{FieldError, MAX_ERRORS, shorten},
    mcp::tools,
    workflow::{Content, OnQuestion, Step, StepKind, Steps},
};

/// Warnings about the steps, in their order.
pub async fn of_steps(app: &App, organization: &OrganizationId, steps: &Steps) -> Result<Vec<FieldError>, db::Error> {
    let names: Vec<String> = steps.agent_names().into_iter().map(str::to_owned).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let known = db::agent_cards::known_tools(&app.pool, organization, &names).await?;
    let kinds: HashMap<String, Vec<String>> =
        db::agents::kinds(&app.pool, organization, &names).await?.into_iter().collect();
    let mut found: Vec<_> = without_effect(steps, &kinds).take(MAX_ERRORS).collect();
    found.extend(warnings(steps, known));
    Ok(found)
}

/// Warnings about members that no agent of the step can obey: neither the one that it names nor a fallback of it.
fn without_effect(steps: &Steps, kinds: &HashMap<String, Vec<String>>) -> impl Iterator<Item = FieldError> {
    let of_step = move |step: &Step| {
        let kinds = step.agent_name.as_ref().filter(|_| step.kind == StepKind::Agent).and_then(|name| kinds.get(name));
        let Some(kinds) = kinds else { return Vec::new() };
        let has_effect = |member: &str| {
            kinds.iter().any(|kind| match AgentKind::parse(kind) {
                Some(AgentKind::A2a) => true,
                Some(AgentKind::Mcp) => match member {
                    "on_question" => step.on_question != Some(OnQuestion::Output),
                    member => member == "question_config",
                },
                _ => step.on_question == Some(OnQuestion::Fail) && member == "on_question",
            })
        };
        let useless = step.conversation_members().filter(|member| !has_effect(member));
        let id = shorten(&step.id);
        let warning = |member: &str| {
            let of = kinds.first().map_or("", String::as_str);
            let why = if member == "on_question" && of == AgentKind::Mcp.as_str() {
                "a question of a tool is no output, so the step fails then"
            } else {
                "agents of this kind have no such questions and conversations"
            };
            let message = format!("The member has no effect, since the agent is of kind {of}: {why}");
            FieldError::new(format!("body.steps.{id}.{member}"), "member_without_effect", message)
        };
        useless.map(warning).collect()
    };
    steps.iter().flat_map(of_step)
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
    let of_step = |step: &Step| {
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
