//! Route table: access rules and limits of each route, by method and path.

use http::Method;

use self::Access::{
    Address, Credentials, Denied, Details, Metrics, OptionalCredentials, Permissions, Public, Signature, Token,
};
use crate::{
    access::Permission::{
        self, AgentsRead, AgentsWrite, AuditRead, DeadLettersManage, KeysManage, OrganizationsManage, RunsRead,
        RunsWrite, WebhooksRead, WebhooksWrite, WorkflowsRead, WorkflowsWrite,
    },
    actions::import::MAX_BYTES as MAX_IMPORT_BYTES,
    api::vocabulary::request_limits::MAX_BODY_BYTES,
    config::MetricsAccess,
};

/// Access rule of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// No credentials and no limits. A route at the root.
    Public,
    /// As `METRICS_ACCESS` says, without limits. A route at the root.
    Metrics,
    /// As `METRICS_ACCESS=credentials` says, without limits. A route at the root.
    Details,
    /// Knowledge of its path, which contains a token.
    Address,
    /// What the trigger of its path requires: a token in the path, or a signature of the body. The handler verifies that, and
    /// credentials of this service have no meaning.
    Signature,
    /// Knowledge of its path and of a token in a header, which is no credential.
    Token,
    /// None or any credentials: the handler decides what a caller without them gets.
    OptionalCredentials,
    /// Valid credentials.
    Credentials,
    /// Valid credentials with all of these permissions.
    Permissions(&'static [Permission]),
    /// Denied: the route is missing in the table, which a test detects.
    Denied,
}

impl Access {
    /// Whether the route is subject to the limits.
    #[must_use]
    pub fn requires_admission(self) -> bool {
        !matches!(self, Public | Metrics | Details)
    }

    /// Whether the caller has to be authenticated, with these settings.
    #[must_use]
    pub fn wants_caller(self, metrics: MetricsAccess) -> bool {
        match self {
            Metrics => metrics == MetricsAccess::Credentials,
            Details => true,
            Token => false,
            _ => self.requires_admission(),
        }
    }

    /// Permissions that it requires.
    #[must_use]
    pub fn permissions(self) -> &'static [Permission] {
        if let Permissions(needs) = self { needs } else { &[] }
    }
}

/// Kind of the object that a path names, if the gate has to find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// No object, or one that only the handler looks up.
    Nothing,
    /// A workflow, by `{workflow_id}`.
    Workflow,
    /// A workflow, by `{name}`.
    WorkflowByName,
    /// A run, by `{run_id}`.
    Run,
    /// A trigger, by `{trigger_id}`.
    Trigger,
    /// A callback, by `{token}`. It is looked up before the body is read: a body without a valid address is not read.
    Callback,
    /// An address for push notifications, by `{push_id}`. It is looked up before the body is read too.
    AgentPush,
}

/// Task of a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunsIn {
    /// A task of its own, which continues when the client disconnects.
    OwnTask,
    /// The task of the connection. The handler only reads, and is dropped when the client disconnects.
    Connection,
}

/// Protocol of a route that is subject to the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The REST API, below the prefix.
    Rest,
    /// Another protocol, at the root.
    Other,
    /// Sessions of the console, at the root.
    Console,
}

/// Rule of a route: its access, its limits and the properties that the gate needs.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a property of its own")]
pub struct Rule {
    /// Access rule.
    pub access: Access,
    /// Kind of the object in its path.
    pub names: Names,
    /// Maximum size of its body.
    pub max_body_bytes: usize,
    /// Whether its body does not matter: it is dropped, whatever its size and type.
    pub ignores_body: bool,
    /// Whether its answers can contain credentials, or addresses that are permissions.
    pub has_secrets: bool,
    /// Whether it accepts the ticket of an event stream as a credential.
    pub takes_ticket: bool,
    /// Whether it accepts the session of the console as a credential.
    pub takes_session: bool,
    /// Task in which its handler runs.
    pub runs_in: RunsIn,
    /// Protocol that it serves.
    pub protocol: Protocol,
    /// Whether it is served while all regular connections are in use.
    on_spare_connections: bool,
}

/// Route table. Paths are at the root for [`Public`], [`Metrics`], [`Details`] and other protocols than
/// [`Protocol::Rest`], else below the prefix. A route that is missing here is denied to all callers, and fails a test. Further requirements of a route are noted beside it.
static RULES: [(Method, &str, Rule); 127] = [
    (Method::GET, "/", Rule::new(Public).in_connection().on_spare_connections()),
    (Method::GET, "/health", Rule::new(Public).in_connection().on_spare_connections()),
    (Method::GET, "/health/live", Rule::new(Public).in_connection().on_spare_connections()),
    (Method::GET, "/health/detailed", Rule::new(Details).on_spare_connections()),
    (Method::GET, "/health/ready", Rule::new(Public).in_connection().on_spare_connections()),
    (Method::GET, "/metrics", Rule::new(Metrics).on_spare_connections()),
    (Method::GET, "/openapi.json", Rule::new(Public)),
    (Method::GET, "/docs", Rule::new(Public)),
    (Method::GET, "/docs/start.js", Rule::new(Public)),
    (Method::GET, "/docs/index.html", Rule::new(Public)),
    (Method::GET, "/docs/asyncapi.json", Rule::new(Public)),
    (Method::GET, "/docs/{file}", Rule::new(Public)),
    (Method::GET, "/redoc", Rule::new(Public)),
    (Method::GET, "/redoc/redoc.standalone.js", Rule::new(Public)),
    (Method::GET, "/console", Rule::new(Public).in_connection()),
    (Method::GET, "/console/{*path}", Rule::new(Public).in_connection()),
    (Method::GET, "/console/assets/{version}/{*file}", Rule::new(Public).in_connection()),
    (Method::GET, "/console/session", Rule::of_console(OptionalCredentials)),
    // A session cannot begin another one, which would extend it without end.
    (Method::POST, "/console/session", Rule::of_console(Credentials).without_session()),
    (Method::DELETE, "/console/session", Rule::of_console(OptionalCredentials)),
    (Method::GET, "/agents", Rule::needs(&[AgentsRead]).with_secrets()),
    (Method::POST, "/agents", Rule::needs(&[AgentsWrite]).with_secrets()),
    (Method::GET, "/agents/{agent_id}", Rule::needs(&[AgentsRead]).with_secrets()),
    (Method::PUT, "/agents/{agent_id}", Rule::needs(&[AgentsWrite]).with_secrets()),
    (Method::DELETE, "/agents/{agent_id}", Rule::needs(&[AgentsWrite]).with_secrets()),
    (Method::GET, "/agents/{agent_id}/health", Rule::needs(&[AgentsRead]).with_secrets()),
    (Method::GET, "/agents/{agent_id}/stats", Rule::needs(&[AgentsRead])),
    (Method::GET, "/workflows", Rule::needs(&[WorkflowsRead])),
    (Method::POST, "/workflows", Rule::needs(&[WorkflowsWrite])),
    (Method::GET, "/workflows/{workflow_id}", Rule::of_workflow(&[WorkflowsRead])),
    (Method::PUT, "/workflows/{workflow_id}", Rule::of_workflow(&[WorkflowsWrite])),
    (Method::DELETE, "/workflows/{workflow_id}", Rule::of_workflow(&[WorkflowsWrite])),
    (Method::GET, "/workflows/{workflow_id}/versions", Rule::of_workflow(&[WorkflowsRead])),
    (Method::GET, "/workflows/{workflow_id}/versions/{version}", Rule::of_workflow(&[WorkflowsRead])),
    (Method::GET, "/workflows/{workflow_id}/versions/{version}/diff/{other}", Rule::of_workflow(&[WorkflowsRead])),
    (Method::POST, "/workflows/{workflow_id}/rollback", Rule::of_workflow(&[WorkflowsWrite])),
    (Method::GET, "/workflows/{workflow_id}/graph", Rule::of_workflow(&[WorkflowsRead])),
    (Method::GET, "/workflows/{workflow_id}/usage", Rule::of_workflow(&[RunsRead])),
    (Method::POST, "/workflows/{workflow_id}/execute", Rule::of_workflow(&[RunsWrite])),
    (Method::POST, "/workflows/validate", Rule::needs(&[WorkflowsRead])),
    (Method::POST, "/workflows/graph", Rule::needs(&[WorkflowsRead])),
    (Method::POST, "/workflows/test", Rule::needs(&[WorkflowsRead])),
    (Method::POST, "/workflows/{workflow_id}/test", Rule::of_workflow(&[WorkflowsRead])),
    (
        Method::POST,
        "/workflows/{workflow_id}/versions/{version}/backtest",
        Rule::of_workflow(&[WorkflowsRead, RunsRead]),
    ),
    (Method::GET, "/workflow-names/{name}", Rule::of_workflow_name(&[WorkflowsRead])),
    (Method::PUT, "/workflow-names/{name}", Rule::of_workflow_name(&[WorkflowsWrite])),
    (Method::POST, "/workflow-names/{name}/execute", Rule::of_workflow_name(&[RunsWrite])),
    // AgentsSecrets too, with `include_secrets`.
    (Method::GET, "/export", Rule::needs(&[AgentsRead, WorkflowsRead]).with_secrets()),
    // RunsWrite too, if the document has triggers.
    (Method::POST, "/import", Rule::needs(&[AgentsWrite, WorkflowsWrite]).with_body(MAX_IMPORT_BYTES)),
    (Method::GET, "/runs", Rule::needs(&[RunsRead]).in_connection()),
    (Method::GET, "/runs/counts", Rule::needs(&[RunsRead])),
    (Method::GET, "/runs/{run_id}", Rule::of_run(&[RunsRead]).in_connection()),
    (Method::GET, "/runs/{run_id}/steps", Rule::of_run(&[RunsRead])),
    (Method::GET, "/runs/{run_id}/logs", Rule::of_run(&[RunsRead])),
    (Method::GET, "/runs/{run_id}/events", Rule::of_run(&[RunsRead]).with_ticket()),
    // A ticket allows no more than its caller may do.
    (Method::POST, "/runs/{run_id}/events/ticket", Rule::of_run(&[RunsRead]).with_secrets()),
    (Method::GET, "/runs/{run_id}/graph", Rule::of_run(&[RunsRead])),
    (Method::POST, "/runs/bulk", Rule::needs(&[RunsRead, RunsWrite])),
    (Method::POST, "/runs/{run_id}/retry", Rule::of_run(&[RunsWrite])),
    (Method::POST, "/runs/{run_id}/cancel", Rule::of_run(&[RunsWrite])),
    (Method::POST, "/runs/{run_id}/pause", Rule::of_run(&[RunsWrite])),
    (Method::POST, "/runs/{run_id}/resume", Rule::of_run(&[RunsWrite])),
    // RunsWrite, since the addresses in the answer resume the run.
    (Method::GET, "/runs/{run_id}/callbacks", Rule::of_run(&[RunsWrite]).with_secrets()),
    (Method::GET, "/callbacks", Rule::needs(&[RunsWrite]).with_secrets()),
    // The callback may require a role besides.
    (Method::POST, "/callbacks/{token}", Rule::of_callback().with_secrets()),
    // A trigger does nothing but start runs.
    (Method::GET, "/triggers", Rule::needs(&[WorkflowsRead])),
    (Method::POST, "/triggers", Rule::needs(&[RunsWrite]).with_secrets()),
    (Method::GET, "/triggers/preview", Rule::needs(&[WorkflowsRead])),
    (Method::GET, "/triggers/{trigger_id}", Rule::of_trigger(&[WorkflowsRead])),
    (Method::PUT, "/triggers/{trigger_id}", Rule::of_trigger(&[RunsWrite])),
    (Method::DELETE, "/triggers/{trigger_id}", Rule::of_trigger(&[RunsWrite])),
    (Method::POST, "/triggers/{trigger_id}/pause", Rule::of_trigger(&[RunsWrite])),
    (Method::POST, "/triggers/{trigger_id}/resume", Rule::of_trigger(&[RunsWrite])),
    (Method::POST, "/triggers/{trigger_id}/fire", Rule::of_trigger(&[RunsWrite])),
    (Method::POST, "/triggers/{trigger_id}/preview", Rule::of_trigger(&[WorkflowsRead])),
    (Method::POST, "/triggers/{trigger_id}/backfills", Rule::of_trigger(&[RunsWrite])),
    (Method::POST, "/triggers/{trigger_id}/backfill", Rule::of_trigger(&[RunsWrite])),
    (Method::GET, "/triggers/{trigger_id}/backfills", Rule::of_trigger(&[WorkflowsRead])),
    (Method::GET, "/triggers/{trigger_id}/backfills/{backfill_id}", Rule::of_trigger(&[WorkflowsRead])),
    (Method::POST, "/triggers/{trigger_id}/backfills/{backfill_id}/stop", Rule::of_trigger(&[RunsWrite])),
    (Method::POST, "/triggers/{trigger_id}/token", Rule::of_trigger(&[RunsWrite]).with_secrets()),
    (Method::POST, "/hooks/{hook_token}", Rule::of_webhook()),
    // Only for triggers that require a signature or credentials of their own.
    (Method::POST, "/hooks/{organization}/{trigger_name}", Rule::of_webhook()),
    (Method::POST, "/agent-pushes/{push_id}", Rule::of_agent_push()),
    (Method::GET, "/api-keys", Rule::needs(&[KeysManage]).with_secrets()),
    (Method::POST, "/api-keys", Rule::needs(&[KeysManage]).with_secrets()),
    (Method::GET, "/api-keys/{key_id}", Rule::needs(&[KeysManage]).with_secrets()),
    (Method::DELETE, "/api-keys/{key_id}", Rule::needs(&[KeysManage]).with_secrets()),
    (Method::GET, "/audit-logs", Rule::needs(&[AuditRead])),
    (Method::GET, "/audit-logs/export", Rule::needs(&[AuditRead])),
    (Method::GET, "/audit-logs/verify", Rule::needs(&[AuditRead])),
    (Method::GET, "/dead-letters", Rule::needs(&[DeadLettersManage])),
    (Method::GET, "/dead-letters/{dead_letter_id}", Rule::needs(&[DeadLettersManage])),
    (Method::POST, "/dead-letters/{dead_letter_id}/redrive", Rule::needs(&[DeadLettersManage, RunsWrite])),
    (Method::DELETE, "/dead-letters/{dead_letter_id}", Rule::needs(&[DeadLettersManage])),
    (Method::GET, "/webhooks", Rule::needs(&[WebhooksRead])),
    (Method::POST, "/webhooks", Rule::needs(&[WebhooksWrite]).with_secrets()),
    (Method::GET, "/webhooks/{webhook_id}", Rule::needs(&[WebhooksRead])),
    (Method::PUT, "/webhooks/{webhook_id}", Rule::needs(&[WebhooksWrite])),
    (Method::PATCH, "/webhooks/{webhook_id}", Rule::needs(&[WebhooksWrite])),
    (Method::DELETE, "/webhooks/{webhook_id}", Rule::needs(&[WebhooksWrite])),
    (Method::POST, "/webhooks/{webhook_id}/rotate-secret", Rule::needs(&[WebhooksWrite]).with_secrets()),
    // Answers of addresses that only EGRESS_ALLOW allows are shown to administrators; the handlers check that.
    (Method::POST, "/webhooks/{webhook_id}/test", Rule::needs(&[WebhooksWrite])),
    (Method::POST, "/webhooks/{webhook_id}/enable", Rule::needs(&[WebhooksWrite])),
    (Method::POST, "/webhooks/{webhook_id}/disable", Rule::needs(&[WebhooksWrite])),
    (Method::POST, "/webhooks/{webhook_id}/recover", Rule::needs(&[WebhooksWrite])),
    (Method::GET, "/webhooks/{webhook_id}/deliveries", Rule::needs(&[WebhooksRead])),
    (Method::GET, "/webhook-deliveries/{delivery_id}", Rule::needs(&[WebhooksRead]).with_secrets()),
    (Method::POST, "/webhook-deliveries/{delivery_id}/redeliver", Rule::needs(&[WebhooksWrite]).with_secrets()),
    (Method::GET, "/organizations", Rule::needs(&[OrganizationsManage])),
    (Method::POST, "/organizations", Rule::needs(&[OrganizationsManage])),
    (Method::GET, "/organizations/{organization_id}", Rule::needs(&[OrganizationsManage])),
    (Method::PUT, "/organizations/{organization_id}", Rule::needs(&[OrganizationsManage])),
    (Method::GET, "/webhook-events", Rule::needs(&[RunsRead])),
    // Only for callers of the default organisation; the handler checks that.
    (Method::GET, "/system/storage", Rule::needs(&[OrganizationsManage])),
    (Method::GET, "/system/processes", Rule::needs(&[OrganizationsManage])),
    (Method::GET, "/system/limits", Rule::needs(&[RunsRead])),
    // WorkflowsWrite too, for views that the organisation sees; the handlers check that.
    (Method::GET, "/views", Rule::needs(&[RunsRead])),
    (Method::POST, "/views", Rule::needs(&[RunsRead])),
    (Method::GET, "/views/{view_id}", Rule::needs(&[RunsRead])),
    (Method::PUT, "/views/{view_id}", Rule::needs(&[RunsRead])),
    (Method::DELETE, "/views/{view_id}", Rule::needs(&[RunsRead])),
    // Without credentials only if the card is public, else RunsWrite; the handler checks that.
    (
        Method::GET,
        "/a2a/{organization}/{workflow}/.well-known/agent-card.json",
        Rule::of_other_protocol(OptionalCredentials),
    ),
    (
        Method::GET,
        "/a2a/{organization}/{workflow}/.well-known/agent.json",
        Rule::of_other_protocol(OptionalCredentials),
    ),
    // RunsRead or RunsWrite, depending on the method in the body; the handlers check that.
    (Method::POST, "/a2a/{organization}/{workflow}", Rule::of_other_protocol(Credentials)),
    (Method::POST, "/mcp", Rule::of_other_protocol(Credentials)),
    // Only for API keys; the handler checks that.
    (Method::POST, "/auth/token", Rule::new(Credentials).with_secrets()),
];

impl Rule {
    const fn new(access: Access) -> Self {
        Self {
            access,
            names: Names::Nothing,
            max_body_bytes: MAX_BODY_BYTES,
            ignores_body: false,
            has_secrets: false,
            takes_ticket: false,
            takes_session: true,
            runs_in: RunsIn::OwnTask,
            protocol: Protocol::Rest,
            on_spare_connections: false,
        }
    }

    const fn needs(permissions: &'static [Permission]) -> Self {
        Self::new(Permissions(permissions))
    }

    const fn of_workflow(permissions: &'static [Permission]) -> Self {
        Self { names: Names::Workflow, ..Self::needs(permissions) }
    }

    const fn of_workflow_name(permissions: &'static [Permission]) -> Self {
        Self { names: Names::WorkflowByName, ..Self::needs(permissions) }
    }

    const fn of_run(permissions: &'static [Permission]) -> Self {
        Self { names: Names::Run, ..Self::needs(permissions) }
    }

    const fn of_trigger(permissions: &'static [Permission]) -> Self {
        Self { names: Names::Trigger, ..Self::needs(permissions) }
    }

    const fn of_callback() -> Self {
        Self { names: Names::Callback, ..Self::new(Address) }
    }

    const fn of_webhook() -> Self {
        Self::new(Signature)
    }

    const fn of_agent_push() -> Self {
        Self { names: Names::AgentPush, ignores_body: true, ..Self::new(Token) }
    }

    const fn with_body(self, max_body_bytes: usize) -> Self {
        Self { max_body_bytes, ..self }
    }

    const fn with_secrets(self) -> Self {
        Self { has_secrets: true, ..self }
    }

    const fn with_ticket(self) -> Self {
        Self { takes_ticket: true, ..self }
    }

    const fn in_connection(self) -> Self {
        Self { runs_in: RunsIn::Connection, ..self }
    }

    const fn of_other_protocol(access: Access) -> Self {
        Self { protocol: Protocol::Other, ..Self::new(access) }.without_session()
    }

    const fn of_console(access: Access) -> Self {
        Self { protocol: Protocol::Console, ..Self::new(access) }
    }

    const fn without_session(self) -> Self {
        Self { takes_session: false, ..self }
    }

    const fn on_spare_connections(self) -> Self {
        Self { on_spare_connections: true, ..self }
    }

    /// Whether its handler may wait for a run on behalf of the client; see `prefer::Patience`.
    #[must_use]
    pub fn may_wait(&self) -> bool {
        self.protocol == Protocol::Other || self.access == Signature
    }

    /// Whether the handler takes the body as it was received, in any content coding.
    #[must_use]
    pub fn takes_any_coding(&self) -> bool {
        self.access == Signature
    }

    /// Paths of all routes in the table.
    pub fn routes(prefix: &str) -> impl Iterator<Item = String> + use<'_> {
        let path = move |(_, at, rule): &(Method, &str, Self)| {
            if rule.is_below_prefix() { format!("{prefix}{at}") } else { (*at).to_owned() }
        };
        RULES.iter().map(path)
    }

    /// Rule for a path without a route.
    #[must_use]
    pub fn without_route(path: &str, prefix: &str) -> Self {
        Self::new(without_route(path, prefix))
    }

    /// Rule for a route with that method.
    #[must_use]
    pub fn of_route(method: &Method, route: &str, prefix: &str) -> Self {
        let method = if method == Method::HEAD { &Method::GET } else { method };
        let mut rules = RULES.iter().filter(|(_, at, rule)| rule.below(route, prefix) == Some(at));
        let Some(first) = rules.next() else { return Self::new(Denied) };
        match [first].into_iter().chain(rules).find(|(of, ..)| of == method) {
            Some((.., rule)) => *rule,
            // Another method is answered 405, to every authenticated caller.
            None if matches!(first.2.access, Permissions(_)) => Self::new(Credentials),
            None => Self::new(first.2.access),
        }
    }

    /// Whether the path in the table is relative to the prefix.
    fn is_below_prefix(&self) -> bool {
        self.access.requires_admission() && self.protocol == Protocol::Rest
    }

    /// The path in the form of the table.
    fn below<'a>(&self, path: &'a str, prefix: &str) -> Option<&'a str> {
        if self.is_below_prefix() { path.strip_prefix(prefix) } else { Some(path) }
    }
}

/// Access rule for a path without a route, which is answered 404 or with a redirect: that of the public route above it,
/// if any.
fn without_route(path: &str, prefix: &str) -> Access {
    let is_below = |at: &str, path: &str| match at.split_once('{') {
        Some((start, _)) => path.starts_with(start),
        None => path == at,
    };
    let open = RULES.iter().find(|(_, at, rule)| {
        let is_open = matches!(rule.access, Public | Metrics | Details | Address | Signature);
        is_open && rule.below(path, prefix).is_some_and(|path| is_below(at, path))
    });
    match open {
        Some((.., rule)) => rule.access,
        None if path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/')) => Credentials,
        None => Public,
    }
}

/// Permissions that a route with admission control needs; `None` if it is missing in the table.
#[must_use]
pub fn needs(method: &Method, route: &str, prefix: &str) -> Option<&'static [Permission]> {
    let rule = RULES.iter().find(|(of, at, rule)| {
        of == method && rule.access.requires_admission() && rule.below(route, prefix) == Some(*at)
    });
    rule.map(|(.., rule)| rule.access.permissions())
}

/// Whether a path is served while all regular connections are in use.
#[must_use]
pub fn is_on_spare_connections(path: &str) -> bool {
    RULES.iter().any(|(_, at, rule)| rule.on_spare_connections && *at == path)
}

/// All routes with their access rules.
pub fn all() -> impl Iterator<Item = (&'static Method, &'static str, Rule)> {
    RULES.iter().map(|(method, path, rule)| (method, *path, *rule))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_declares_the_object_that_its_path_names() {
        for (method, path, rule) in &RULES {
            let named = match rule.names {
                Names::Nothing => None,
                Names::Workflow => Some("{workflow_id}"),
                Names::WorkflowByName => Some("{name}"),
                Names::Run => Some("{run_id}"),
                Names::Trigger => Some("{trigger_id}"),
                Names::Callback => Some("{token}"),
                Names::AgentPush => Some("{push_id}"),
            };
            for parameter in ["{workflow_id}", "{name}", "{run_id}", "{trigger_id}", "{token}", "{push_id}"] {
                assert_eq!(path.contains(parameter), named == Some(parameter), "{method} {path}");
            }
        }
    }
}
