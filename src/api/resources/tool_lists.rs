//! What a health check has read of an MCP server is kept, so that definitions can be held against it before the agent is
//! called for the first time.

use super::agent_health::ReadTools;
use crate::{
    access::OrganizationId,
    api::vocabulary::app::App,
    db::{
        self,
        agent_cards::{self, CardOwner, Checked},
        agents::AgentRow,
    },
};

/// Stores the tools. That they cannot be stored is no failure of the check.
pub async fn keep(app: &App, organization: &OrganizationId, agent: &AgentRow, read: ReadTools) {
    let owner = CardOwner {
        agent_id: agent.id,
        url: url::Url::parse(&agent.url).map_or_else(|_| String::new(), String::from),
        name: agent.name.clone(),
        organization: organization.clone(),
    };
    let (pool, audit) = (app.pool.clone(), app.config.audit);
    let write = async move {
        let checked = Checked::Card { card: read.list, etag: None, signature: None };
        agent_cards::record(&pool, &owner, checked, None, audit).await?;
        agent_cards::record_version(&pool, &owner, read.revision).await
    };
    if let Err(error) = db::bounded(write).await {
        tracing::debug!(error = &error as &dyn std::error::Error, "a list of tools is not stored: {error}");
    }
}
