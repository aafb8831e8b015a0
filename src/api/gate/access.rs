//! Authorisation table: the permissions of each route. It decides every request, and is the source of the OpenAPI
//! document and, by `workflow-api access`, of `docs/access.md`.

use axum::extract::{FromRequestParts, MatchedPath, RawPathParams};
use http::{Method, StatusCode, request::Parts};
use uuid::Uuid;

use self::Access::{Address, Credentials, Denied, Metrics, Permissions, Public};
use crate::{
    access::{
        Permission::{
            self, AgentsRead, AgentsWrite, AuditRead, DeadLettersManage, KeysManage, OrganizationsManage, RunsRead,
            RunsWrite, WorkflowsRead, WorkflowsWrite,
        },
        Role,
    },
    api::vocabulary::{
        app::App,
        caller::{Caller, Proof},
        error::ApiError,
        extract::route_below_prefix,
    },
    config::MetricsAccess,
    db,
};

/// Access rule of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// No credentials and no limits. A route at the root.
    Public,
    /// As `METRICS_ACCESS` says, without limits. A route at the root.
    Metrics,
    /// Knowledge of its path, which contains a token.
    Address,
    /// Valid credentials.
    Credentials,
    /// Valid credentials with all of these permissions.
    Permissions(&'static [Permission]),
    /// Denied: the route is missing in the table, which a test detects.
    Denied,
}

/// Rule: a route, at the root or below the prefix, and its access.
type Rule = (Method, &'static str, Access);

/// A route that is missing here is denied to all callers, and fails a test. Further requirements of a route are noted
/// beside it.
const RULES: [Rule; 63] = [
    (Method::GET, "/", Public),
    (Method::GET, "/health", Public),
    (Method::GET, "/health/ready", Public),
    (Method::GET, "/metrics", Metrics),
    (Method::GET, "/openapi.json", Public),
    (Method::GET, "/docs", Public),
    (Method::GET, "/docs/start.js", Public),
    (Method::GET, "/docs/index.html", Public),
    (Method::GET, "/docs/{file}", Public),
    (Method::GET, "/redoc", Public),
    (Method::GET, "/redoc/redoc.standalone.js", Public),
    (Method::GET, "/agents", Permissions(&[AgentsRead])),
    (Method::POST, "/agents", Permissions(&[AgentsWrite])),
    (Method::GET, "/agents/{agent_id}", Permissions(&[AgentsRead])),
    (Method::PUT, "/agents/{agent_id}", Permissions(&[AgentsWrite])),
    (Method::DELETE, "/agents/{agent_id}", Permissions(&[AgentsWrite])),
    (Method::GET, "/agents/{agent_id}/health", Permissions(&[AgentsRead])),
    (Method::GET, "/workflows", Permissions(&[WorkflowsRead])),
    (Method::POST, "/workflows", Permissions(&[WorkflowsWrite])),
    (Method::GET, "/workflows/{workflow_id}", Permissions(&[WorkflowsRead])),
    (Method::PUT, "/workflows/{workflow_id}", Permissions(&[WorkflowsWrite])),
    (Method::DELETE, "/workflows/{workflow_id}", Permissions(&[WorkflowsWrite])),
    (Method::GET, "/workflows/{workflow_id}/versions", Permissions(&[WorkflowsRead])),
    (Method::GET, "/workflows/{workflow_id}/versions/{version}", Permissions(&[WorkflowsRead])),
    (Method::GET, "/workflows/{workflow_id}/versions/{version}/diff/{other}", Permissions(&[WorkflowsRead])),
    (Method::POST, "/workflows/{workflow_id}/rollback", Permissions(&[WorkflowsWrite])),
    (Method::GET, "/workflows/{workflow_id}/graph", Permissions(&[WorkflowsRead])),
    (Method::POST, "/workflows/{workflow_id}/execute", Permissions(&[RunsWrite])),
    (Method::POST, "/workflows/validate", Permissions(&[WorkflowsRead])),
    (Method::GET, "/workflow-names/{name}", Permissions(&[WorkflowsRead])),
    (Method::PUT, "/workflow-names/{name}", Permissions(&[WorkflowsWrite])),
    (Method::POST, "/workflow-names/{name}/execute", Permissions(&[RunsWrite])),
    // With `include_secrets` AgentsSecrets too.
    (Method::GET, "/export", Permissions(&[AgentsRead, WorkflowsRead])),
    (Method::POST, "/import", Permissions(&[AgentsWrite, WorkflowsWrite])),
    (Method::GET, "/runs", Permissions(&[RunsRead])),
    (Method::GET, "/runs/{run_id}", Permissions(&[RunsRead])),
    (Method::GET, "/runs/{run_id}/steps", Permissions(&[RunsRead])),
    (Method::GET, "/runs/{run_id}/logs", Permissions(&[RunsRead])),
    (Method::GET, "/runs/{run_id}/events", Permissions(&[RunsRead])),
    // It lets nobody do more than the caller may.
    (Method::POST, "/runs/{run_id}/events/ticket", Permissions(&[RunsRead])),
    (Method::GET, "/runs/{run_id}/graph", Permissions(&[RunsRead])),
    (Method::POST, "/runs/{run_id}/retry", Permissions(&[RunsWrite])),
    (Method::POST, "/runs/{run_id}/cancel", Permissions(&[RunsWrite])),
    (Method::POST, "/runs/{run_id}/pause", Permissions(&[RunsWrite])),
    (Method::POST, "/runs/{run_id}/resume", Permissions(&[RunsWrite])),
    // It shows addresses by which the run can be made to go on.
    (Method::GET, "/runs/{run_id}/callbacks", Permissions(&[RunsWrite])),
    // Unless the callback wants a role.
    (Method::POST, "/callbacks/{token}", Address),
    (Method::GET, "/api-keys", Permissions(&[KeysManage])),
    (Method::POST, "/api-keys", Permissions(&[KeysManage])),
    (Method::GET, "/api-keys/{key_id}", Permissions(&[KeysManage])),
    (Method::DELETE, "/api-keys/{key_id}", Permissions(&[KeysManage])),
    (Method::GET, "/audit-logs", Permissions(&[AuditRead])),
    (Method::GET, "/audit-logs/export", Permissions(&[AuditRead])),
    (Method::GET, "/audit-logs/verify", Permissions(&[AuditRead])),
    (Method::GET, "/dead-letters", Permissions(&[DeadLettersManage])),
    (Method::GET, "/dead-letters/{dead_letter_id}", Permissions(&[DeadLettersManage])),
    (Method::POST, "/dead-letters/{dead_letter_id}/redrive", Permissions(&[DeadLettersManage, RunsWrite])),
    (Method::DELETE, "/dead-letters/{dead_letter_id}", Permissions(&[DeadLettersManage])),
    (Method::GET, "/organizations", Permissions(&[OrganizationsManage])),
    (Method::POST, "/organizations", Permissions(&[OrganizationsManage])),
    (Method::GET, "/organizations/{organization_id}", Permissions(&[OrganizationsManage])),
    (Method::PUT, "/organizations/{organization_id}", Permissions(&[OrganizationsManage])),
    // For whoever has an API key, as its handler sees to.
    (Method::POST, "/auth/token", Credentials),
];

impl Access {
    /// Access rule for a request.
    #[must_use]
    pub fn of(request: &Parts, prefix: &str) -> Self {
        match request.extensions.get::<MatchedPath>() {
            Some(route) => Self::of_route(&request.method, route.as_str(), prefix),
            None => Self::without_route(request.uri.path(), prefix),
        }
    }

    fn of_route(method: &Method, route: &str, prefix: &str) -> Self {
        let method = if method == Method::HEAD { &Method::GET } else { method };
        let mut rules = RULES.iter().filter(|(_, at, access)| access.below(route, prefix) == Some(at));
        let Some(first) = rules.next() else { return Denied };
        match [first].into_iter().chain(rules).find(|(of, ..)| of == method) {
            Some((.., access)) => *access,
            // Another method is answered 405, to everybody who is let in.
            None if matches!(first.2, Permissions(_)) => Credentials,
            None => first.2,
        }
    }

    /// Access rule for a path without a route, which is answered 404 or with a redirect: that of the public route
    /// above it, if any.
    fn without_route(path: &str, prefix: &str) -> Self {
        let is_below = |at: &str, path: &str| match at.split_once('{') {
            Some((start, _)) => path.starts_with(start),
            None => path == at,
        };
        let open = RULES.iter().find(|(_, at, access)| {
            let is_open = matches!(access, Public | Metrics | Address);
            is_open && access.below(path, prefix).is_some_and(|path| is_below(at, path))
        });
        match open {
            Some((.., access)) => *access,
            None if path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/')) => Credentials,
            None => Public,
        }
    }

    /// The path in the form of the table.
    fn below<'a>(self, path: &'a str, prefix: &str) -> Option<&'a str> {
        if self.requires_admission() { path.strip_prefix(prefix) } else { Some(path) }
    }

    /// Whether the route is subject to the limits.
    #[must_use]
    pub fn requires_admission(self) -> bool {
        !matches!(self, Public | Metrics)
    }

    /// Whether the caller has to be authenticated, with these settings.
    #[must_use]
    pub fn wants_caller(self, metrics: MetricsAccess) -> bool {
        self.requires_admission() || (self == Metrics && metrics == MetricsAccess::Credentials)
    }

    fn permissions(self) -> &'static [Permission] {
        if let Permissions(needs) = self { needs } else { &[] }
    }
}

/// Permissions that a route below the prefix needs; `None` if it is missing in the table.
#[must_use]
pub fn needs(method: &Method, path: &str) -> Option<&'static [Permission]> {
    let rule = RULES.iter().find(|(of, at, access)| of == method && *at == path && access.requires_admission());
    rule.map(|(.., access)| access.permissions())
}

/// Names of the roles that may use a route with these permissions.
#[must_use]
pub fn roles(needs: &[Permission]) -> Vec<&'static str> {
    let has_all = |role: &Role| needs.iter().all(|permission| role.permissions().contains(permission));
    Role::ALL.into_iter().filter(has_all).map(Role::as_str).collect()
}

/// Authorises the request, or returns the answer to send instead.
pub async fn authorize(app: &App, request: &mut Parts, access: Access, caller: &Caller) -> Result<(), ApiError> {
    // The route or the setting requires no credentials.
    if matches!(caller.proof, Proof::Nothing | Proof::Address) {
        return Ok(());
    }
    match access {
        Public | Address | Credentials => Ok(()),
        Denied => Err(ApiError::forbidden("The caller may not do this")),
        Metrics => {
            // Metrics cover all organisations.
            caller.must(RunsRead)?;
            let is_whole = caller.organization().is_default() && caller.grant.workflows.is_none();
            let detail = "The caller may not see the metrics of all organisations";
            if is_whole { Ok(()) } else { Err(ApiError::forbidden(detail)) }
        }
        Permissions(needs) => {
            for permission in needs {
                caller.must(*permission)?;
            }
            match &caller.grant.workflows {
                Some(workflows) => authorize_bound(app, request, caller, workflows).await,
                None => Ok(()),
            }
        }
    }
}

/// Authorises a caller that is bound to workflows: it may use the routes that name one of them, or a run of one.
/// Other workflows look as if they did not exist.
async fn authorize_bound(
    app: &App,
    request: &mut Parts,
    caller: &Caller,
    workflows: &[String],
) -> Result<(), ApiError> {
    let is_run = route_below_prefix(app, request).is_some_and(|route| route.starts_with("/runs/"));
    let not_found = if is_run { ApiError::run_not_found } else { ApiError::workflow_not_found };
    // A path that is not UTF-8 names no object.
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
    // Row of a table.
    let row = |cells: Vec<&str>| format!("| {} |\n", cells.join(" | "));
    let mut text = "<!-- Generated by `workflow-api access`. -->\n\
         # Authorisation: roles, permissions, routes\n\n\
         This applies if authentication is on. Paths are relative to `API_PREFIX`. A route requires all permissions in its\n\
         row. Health, metrics and the documentation require none, unless `METRICS_ACCESS` and `ENABLE_DOCS` restrict them:\n\
         with `METRICS_ACCESS=credentials` the metrics require runs:read in the default organisation.\n\n\
         ## Permissions of each role\n\n"
        .to_owned();
    text += &row(["permission"].into_iter().chain(Role::ALL.map(Role::as_str)).collect());
    text += &row(vec!["---"; 1 + Role::ALL.len()]);
    for permission in Permission::ALL {
        let has = Role::ALL.map(|role| if role.permissions().contains(&permission) { "yes" } else { "" });
        text += &row([permission.as_str()].into_iter().chain(has).collect());
    }
    text += "\n## Routes\n\n";
    text += &row(vec!["route", "required permissions", "roles"]);
    text += &row(vec!["---"; 3]);
    for (method, path, access) in &RULES {
        let names = match access {
            Public | Metrics | Denied => continue,
            Address => "the secret token in the path".to_owned(),
            Credentials => "an API key".to_owned(),
            Permissions(needs) => needs.iter().map(|permission| permission.as_str()).collect::<Vec<_>>().join(", "),
        };
        text += &row(vec![&format!("{method} `{path}`"), &names, &roles(access.permissions()).join(", ")]);
    }
    text
}
