//! Which route needs what: the one table. It decides every request, and goes from here into the OpenAPI document and,
//! by `workflow-api access`, into `docs/access.md`.

use axum::extract::{FromRequestParts, MatchedPath, RawPathParams};
use http::{Method, StatusCode, request::Parts};
use uuid::Uuid;

use super::auth::{self, Caller, Proof};
use crate::{
    access::{
        Permission::{
            self, AgentsRead, AgentsSecrets, AgentsWrite, AuditRead, DeadLettersManage, KeysManage,
            OrganizationsManage, RunsRead, RunsWrite, WorkflowsRead, WorkflowsWrite,
        },
        Role,
    },
    api::{
        App,
        resources::{runs, workflows},
        vocabulary::error::ApiError,
    },
    db,
};

/// A route below the prefix, and all the permissions that it needs. None is for everybody who is let in.
type Rule = (Method, &'static str, &'static [Permission]);

/// A route that is not here is for nobody, and fails a test. What a route asks for beyond this, it says where it is.
const RULES: [Rule; 52] = [
    (Method::GET, "/agents", &[AgentsRead]),
    (Method::POST, "/agents", &[AgentsWrite]),
    (Method::GET, "/agents/{agent_id}", &[AgentsRead]),
    (Method::PUT, "/agents/{agent_id}", &[AgentsWrite]),
    (Method::DELETE, "/agents/{agent_id}", &[AgentsWrite]),
    (Method::GET, "/agents/{agent_id}/health", &[AgentsRead]),
    (Method::GET, "/workflows", &[WorkflowsRead]),
    (Method::POST, "/workflows", &[WorkflowsWrite]),
    (Method::GET, "/workflows/{workflow_id}", &[WorkflowsRead]),
    (Method::PUT, "/workflows/{workflow_id}", &[WorkflowsWrite]),
    (Method::DELETE, "/workflows/{workflow_id}", &[WorkflowsWrite]),
    (Method::GET, "/workflows/{workflow_id}/versions", &[WorkflowsRead]),
    (Method::GET, "/workflows/{workflow_id}/versions/{version}", &[WorkflowsRead]),
    (Method::GET, "/workflows/{workflow_id}/versions/{version}/diff/{other}", &[WorkflowsRead]),
    (Method::POST, "/workflows/{workflow_id}/rollback", &[WorkflowsWrite]),
    (Method::GET, "/workflows/{workflow_id}/graph", &[WorkflowsRead]),
    (Method::POST, "/workflows/{workflow_id}/execute", &[RunsWrite]),
    (Method::POST, "/workflows/validate", &[WorkflowsRead]),
    (Method::GET, "/workflows/by-name/{name}", &[WorkflowsRead]),
    (Method::PUT, "/workflows/by-name/{name}", &[WorkflowsWrite]),
    (Method::POST, "/workflows/by-name/{name}/execute", &[RunsWrite]),
    // With `include_secrets` AgentsSecrets too.
    (Method::GET, "/export", &[AgentsRead, WorkflowsRead]),
    (Method::POST, "/import", &[AgentsWrite, WorkflowsWrite]),
    (Method::GET, "/runs", &[RunsRead]),
    (Method::GET, "/runs/{run_id}", &[RunsRead]),
    (Method::GET, "/runs/{run_id}/steps", &[RunsRead]),
    (Method::GET, "/runs/{run_id}/logs", &[RunsRead]),
    (Method::GET, "/runs/{run_id}/events", &[RunsRead]),
    // It lets nobody do more than the caller may.
    (Method::POST, "/runs/{run_id}/events/ticket", &[RunsRead]),
    (Method::GET, "/runs/{run_id}/graph", &[RunsRead]),
    (Method::POST, "/runs/{run_id}/retry", &[RunsWrite]),
    (Method::POST, "/runs/{run_id}/cancel", &[RunsWrite]),
    (Method::POST, "/runs/{run_id}/pause", &[RunsWrite]),
    (Method::POST, "/runs/{run_id}/resume", &[RunsWrite]),
    // It shows addresses by which the run can be made to go on.
    (Method::GET, "/runs/{run_id}/callbacks", &[RunsWrite]),
    // The address is the permission, unless the callback wants a role.
    (Method::POST, "/callbacks/{token}", &[]),
    (Method::GET, "/api-keys", &[KeysManage]),
    (Method::POST, "/api-keys", &[KeysManage]),
    (Method::GET, "/api-keys/{key_id}", &[KeysManage]),
    (Method::DELETE, "/api-keys/{key_id}", &[KeysManage]),
    (Method::GET, "/audit-logs", &[AuditRead]),
    (Method::GET, "/audit-logs/export", &[AuditRead]),
    (Method::GET, "/audit-logs/verify", &[AuditRead]),
    (Method::GET, "/dead-letters", &[DeadLettersManage]),
    (Method::GET, "/dead-letters/{dead_letter_id}", &[DeadLettersManage]),
    (Method::POST, "/dead-letters/{dead_letter_id}/redrive", &[DeadLettersManage, RunsWrite]),
    (Method::DELETE, "/dead-letters/{dead_letter_id}", &[DeadLettersManage]),
    (Method::GET, "/organizations", &[OrganizationsManage]),
    (Method::POST, "/organizations", &[OrganizationsManage]),
    (Method::GET, "/organizations/{organization_id}", &[OrganizationsManage]),
    (Method::PUT, "/organizations/{organization_id}", &[OrganizationsManage]),
    // For whoever has an API key, as its handler sees to.
    (Method::POST, "/auth/token", &[]),
];

/// What a route below the prefix needs; `None` if it is not in the table.
#[must_use]
pub fn needs(method: &Method, path: &str) -> Option<&'static [Permission]> {
    RULES.iter().find(|(of, at, _)| of == method && *at == path).map(|(.., needs)| *needs)
}

/// The roles that have all of these permissions.
fn roles_with(needs: &[Permission]) -> impl Iterator<Item = Role> {
    Role::ALL.into_iter().filter(|role| needs.iter().all(|permission| role.permissions().contains(permission)))
}

/// The names of the roles that may use a route which needs these permissions.
#[must_use]
pub fn roles(needs: &[Permission]) -> Vec<&'static str> {
    roles_with(needs).map(Role::as_str).collect()
}

impl Caller {
    /// Whether the caller may do that.
    #[must_use]
    pub fn may(&self, permission: Permission) -> bool {
        self.grant.allows(permission)
    }

    /// 403 unless the caller may do that.
    pub fn must(&self, permission: Permission) -> Result<(), ApiError> {
        if self.may(permission) {
            return Ok(());
        }
        let detail = format!("The caller may not do this: it needs {}", permission.as_str());
        Err(forbidden(detail))
    }

    /// Whether the caller sees the credentials of agents.
    #[must_use]
    pub fn sees_secrets(&self) -> bool {
        self.may(AgentsSecrets)
    }
}

fn forbidden(detail: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, "forbidden", detail)
}

/// Whether the caller may make the request, or the answer to give instead.
pub async fn authorize(app: &App, request: &mut Parts, caller: &Caller) -> Result<(), ApiError> {
    // Nothing was asked of the caller, or there is no such route, which its answer says.
    let (Proof::Token(_) | Proof::TokenOfApiKey { .. } | Proof::ApiKey(_), Some(matched)) =
        (caller.proof, request.extensions.get::<MatchedPath>())
    else {
        return Ok(());
    };
    if auth::needs_credentials(app, matched.as_str()) {
        // They are about all organisations.
        caller.must(RunsRead)?;
        let is_whole = caller.organization().is_default() && caller.grant.workflows.is_none();
        return if is_whole {
            Ok(())
        } else {
            Err(forbidden("The caller may not see the metrics of all organizations"))
        };
    }
    let path = matched.as_str().strip_prefix(&app.config.api.prefix).unwrap_or_default().to_owned();
    let method = if request.method == Method::HEAD { Method::GET } else { request.method.clone() };
    let Some(needs) = needs(&method, &path) else {
        // Another method of a route answers 405 to everybody.
        let is_known = RULES.iter().any(|(_, at, _)| *at == path);
        return if is_known { Ok(()) } else { Err(forbidden("The caller may not do this")) };
    };
    for permission in needs {
        caller.must(*permission)?;
    }
    match &caller.grant.workflows {
        Some(workflows) if !needs.is_empty() => authorize_bound(app, request, caller, &path, workflows).await,
        _ => Ok(()),
    }
}

/// A caller that is bound to workflows may use the routes that name one, or a run of one. What belongs to another
/// cannot be told from what does not exist.
async fn authorize_bound(
    app: &App,
    request: &mut Parts,
    caller: &Caller,
    path: &str,
    workflows: &[String],
) -> Result<(), ApiError> {
    let not_found: fn() -> ApiError = if path.starts_with("/runs/") { runs::not_found } else { workflows::not_found };
    // What is no UTF-8 names nothing.
    let parameters = RawPathParams::from_request_parts(request, &()).await.map_err(|_| not_found())?;
    let named = |name: &str| parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned());
    let (pool, organization) = (app.pool.clone(), caller.organization().clone());
    let workflow = if let Some(name) = named("name") {
        Some(name)
    } else if let Some(id) = named("workflow_id") {
        // What is no id is refused as such.
        let Ok(id) = Uuid::try_parse(&id) else { return Ok(()) };
        db::bounded(async move { db::workflows::name(&pool, &organization, id).await }).await?
    } else if let Some(run_id) = named("run_id") {
        let run_id = Some(run_id).filter(|run_id| !run_id.contains('\0')).ok_or_else(not_found)?;
        db::bounded(async move { db::runs::workflow_name(&pool, &organization, &run_id).await }).await?
    } else {
        let detail = "The API key is bound to workflows, and the route names none";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "key_is_bound", detail));
    };
    if workflow.is_some_and(|workflow| workflows.contains(&workflow)) { Ok(()) } else { Err(not_found()) }
}

/// Roles, permissions and routes as Markdown, for `docs/access.md`.
#[must_use]
pub fn markdown() -> String {
    // A line of a table.
    let row = |cells: Vec<&str>| format!("| {} |\n", cells.join(" | "));
    let mut text = "<!-- Printed by `workflow-api access`, which says what the code does. -->\n\
         # Who may do what\n\n\
         With authentication on. Paths are below `API_PREFIX`; a path needs all its permissions. Health, metrics and the\n\
         documentation are open to all, unless `METRICS_ACCESS` and `ENABLE_DOCS` say otherwise: with\n\
         `METRICS_ACCESS=credentials` the metrics need runs:read in the default organisation.\n\n"
        .to_owned();
    text += &row(["permission"].into_iter().chain(Role::ALL.map(Role::as_str)).collect());
    text += &row(vec!["---"; 1 + Role::ALL.len()]);
    for permission in Permission::ALL {
        let has = Role::ALL.map(|role| if role.permissions().contains(&permission) { "yes" } else { "" });
        text += &row([permission.as_str()].into_iter().chain(has).collect());
    }
    text += "\n";
    text += &row(vec!["route", "needs", "roles"]);
    text += &row(vec!["---"; 3]);
    for (method, path, needs) in &RULES {
        let names: Vec<&str> = needs.iter().map(|permission| permission.as_str()).collect();
        let names = match (names.as_slice(), *path) {
            ([], "/callbacks/{token}") => "its address".to_owned(),
            ([], _) => "an API key".to_owned(),
            (names, _) => names.join(", "),
        };
        text += &row(vec![&format!("{method} `{path}`"), &names, &roles(needs).join(", ")]);
    }
    text
}
