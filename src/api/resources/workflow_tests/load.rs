//! Loading what a simulated run needs besides its plan: the definitions of its sub-workflows, and settings of agents.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use uuid::Uuid;

use super::parse_plan;
use crate::{
    agent::{AgentStatus, RetryConfig},
    api::vocabulary::{app::App, caller::Caller, error::ApiError},
    db::{self, workflows::PinnedDefinition},
    executor::{AgentSettings, Definitions},
    input::{FieldError, shorten},
    usage::{Price, Usage},
    workflow::{Callee, Plan},
};

/// Maximum number of definitions of sub-workflows.
const MAX_DEFINITIONS: usize = 20;

/// Result of loading.
pub struct Loaded {
    /// Definitions of the sub-workflows.
    pub definitions: Definitions,
    /// Settings of the agents, by name.
    pub agents: HashMap<String, AgentSettings>,
    /// Warnings about agents.
    pub warnings: Vec<FieldError>,
}

/// Loads what a plan needs.
pub async fn load(app: &App, caller: &Caller, plan: &Arc<Plan>) -> Result<Loaded, ApiError> {
    let definitions = load_definitions(app, caller, plan).await?;
    let plans = definitions.by_id.values().filter_map(|(_, plan)| plan.as_ref().ok());
    let mut fields: BTreeMap<String, String> = BTreeMap::new();
    for (is_own, plan) in [(true, plan)].into_iter().chain(plans.map(|plan| (false, plan))) {
        for step in plan.steps.iter() {
            if let Some(agent) = &step.agent_name {
                let field = if is_own { format!("steps.{}.agent_name", step.id) } else { "sub_workflow".to_owned() };
                fields.entry(agent.clone()).or_insert(field);
            }
        }
    }
    let names: Vec<String> = fields.keys().cloned().collect();
    let mut found = db::agents::settings(&app.pool, caller.organization(), &names).await?;
    let mut fallbacks: Vec<String> = found.iter().flat_map(|row| row.fallbacks.iter().cloned()).collect();
    fallbacks.retain(|name| !fields.contains_key(name));
    if !fallbacks.is_empty() {
        let more = db::agents::settings(&app.pool, caller.organization(), &fallbacks).await?;
        found.extend(more.into_iter().filter(|row| row.status == AgentStatus::Active.as_str()));
    }
    // A fallback that cannot be called is passed over. The validation warns of it.
    let active = found.iter().filter(|row| row.status == AgentStatus::Active.as_str());
    let active: HashSet<String> = active.map(|row| row.name.clone()).collect();
    let (mut agents, mut warnings) = (HashMap::new(), Vec::new());
    for row in found {
        if row.status != AgentStatus::Active.as_str() {
            let field = fields.get(&row.name).cloned().unwrap_or_default();
            let message = format!("Agent {:?} is {}, so a run would fail", shorten(&row.name), shorten(&row.status));
            warnings.push(FieldError::new(field, "agent_not_active", message));
        }
        let timeout = Duration::from_millis(u64::try_from(row.timeout_ms).unwrap_or_default().max(1));
        let retry = RetryConfig::from_stored(row.retry_config.as_ref().map(|config| &*config.0));
        let fallbacks = row.fallbacks.into_iter().filter(|name| active.contains(name)).collect();
        let config = row.config.as_ref().map(|config| &*config.0);
        let (price, expected) = (Price::of_config(config), Usage::expected(config));
        agents.insert(row.name, AgentSettings { retry, timeout, fallbacks, price, expected });
    }
    for (name, field) in fields {
        if !agents.contains_key(&name) {
            let message = format!("Agent {:?} does not exist, so a run would fail", shorten(&name));
            warnings.push(FieldError::new(field, "agent_not_found", message));
        }
    }
    Ok(Loaded { definitions, agents, warnings })
}

/// Loads the definitions of all sub-workflows, nested ones included. Those that the caller may not see do not exist for
/// the test.
async fn load_definitions(app: &App, caller: &Caller, plan: &Arc<Plan>) -> Result<Definitions, ApiError> {
    let mut definitions = Definitions::default();
    let mut known: HashSet<Callee> = HashSet::new();
    let mut open: Vec<Callee> = workflows(plan).collect();
    while let Some(callee) = open.pop() {
        if !known.insert(callee.clone()) {
            continue;
        }
        let Some(found) = find(app, caller, &callee).await? else { continue };
        if let Callee::Workflow(name) = callee {
            definitions.by_name.insert(name, found.id);
        }
        if definitions.by_id.contains_key(&found.id) {
            continue;
        }
        if definitions.by_id.len() == MAX_DEFINITIONS {
            let message = format!("A test may run at most {MAX_DEFINITIONS} definitions of sub-workflows");
            return Err(FieldError::new("body", "too_many_definitions", message).into());
        }
        let plan = parse_plan(app, caller, found.workflow_data.0.clone()).await?.map(Arc::new);
        open.extend(plan.iter().flat_map(|plan| workflows(plan)));
        definitions.by_id.insert(found.id, (found, plan));
    }
    Ok(definitions)
}

fn workflows(plan: &Plan) -> impl Iterator<Item = Callee> {
    let callees = plan.steps.iter().filter(|step| step.sub_workflow_config.is_some()).flat_map(Callee::of);
    callees.filter(|callee| !matches!(callee, Callee::Agent(_))).collect::<Vec<_>>().into_iter()
}

async fn find(app: &App, caller: &Caller, callee: &Callee) -> Result<Option<PinnedDefinition>, ApiError> {
    let organization = caller.organization();
    let id = match callee {
        Callee::Agent(_) => None,
        Callee::WorkflowId(id) => Uuid::try_parse(id).ok(),
        Callee::Workflow(name) => {
            db::workflows::find_active(&app.pool, organization, name).await?.map(|definition| definition.id)
        }
    };
    let Some(id) = id else { return Ok(None) };
    let found = db::workflows::startable(&app.pool, organization, id).await?;
    let is_visible = |found: &PinnedDefinition| {
        caller.grant.workflows.as_ref().is_none_or(|workflows| workflows.contains(&found.name))
    };
    Ok(found.filter(is_visible))
}
