//! `POST /runs/bulk`: an action on all runs that a filter matches, a page of them with each request.

use std::time::Duration;

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::read::filter;
use crate::{
    actions::{
        cancel_run,
        retry_run::{self, Retry},
    },
    api::vocabulary::{
        app::App,
        caller::Caller,
        cursor::{ListQuery, ListRequest},
        error::{ApiError, ErrorBody},
        extract::{JsonBody, Query},
        parameters, sets,
    },
    db::{self, list::EntryId},
    input::{FieldError, Node, Object, Read, request_object},
    run::RunStatus,
};

/// Maximum number of runs of a request.
pub const MAX_RUNS: i64 = 100;
/// Time after which no further run is begun with. Handlers have 9.5 s.
const TIME_LIMIT: Duration = Duration::from_secs(5);
/// Length range of a cancellation's reason.
const REASON_CHARS: std::ops::RangeInclusive<usize> = 0..=500;

/// Action on runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Cancel,
    Pause,
    Resume,
    Retry,
}

impl Action {
    fn read(node: &Node<'_>) -> Read<Self> {
        node.parsed(|name| match name {
            "cancel" => Ok(Self::Cancel),
            "pause" => Ok(Self::Pause),
            "resume" => Ok(Self::Resume),
            "retry" => Ok(Self::Retry),
            _ => Err("must be one of cancel, pause, resume, retry".to_owned()),
        })
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Retry => "retry",
        }
    }

    /// Whether a run in this state can be its object.
    fn applies_to(self, status: RunStatus) -> bool {
        match self {
            Self::Cancel => status.is_cancellable(),
            Self::Pause | Self::Resume => !status.is_terminal(),
            Self::Retry => status.is_retryable(),
        }
    }

    /// Whether only paused runs can be its object, or only others; `None`: both.
    fn of_paused(self) -> Option<bool> {
        match self {
            Self::Pause => Some(false),
            Self::Resume => Some(true),
            Self::Cancel | Self::Retry => None,
        }
    }
}

request_object! {
    /// Body of a bulk request.
    #[schema(as = BulkRequest, example = json!({"action": "retry", "dry_run": true}))]
    pub struct BulkBody: deny_unknown_fields {
        /// What is done with each run.
        #[schema(value_type = sets::BulkAction)]
        action: Action = required(Action::read),
        /// Only count the runs, and change nothing.
        dry_run: bool = required(Node::boolean),
        /// Of cancellations: reason, which is stored in each run's `error_message`.
        #[schema(max_length = 500)]
        reason: Option<String> = nullable(|node| node.string(REASON_CHARS)),
    }
}

/// What became of a bulk request.
#[derive(Serialize, ToSchema)]
pub struct BulkResult {
    /// The action.
    #[schema(value_type = sets::BulkAction)]
    action: &'static str,
    /// Whether nothing was changed.
    dry_run: bool,
    /// Number of runs that the filter matched before the request, in a state in which the action is possible.
    total: i64,
    /// Whether `total` is exact; otherwise it is a lower bound.
    total_is_exact: bool,
    /// Number of runs with which it was done; 0 in a dry run.
    done: usize,
    /// Runs that were on this page and with which it was not possible.
    refused: Vec<RefusedRun>,
    /// For the parameter `cursor` of the next request; null if no runs are left, and in a dry run.
    next_cursor: Option<String>,
}

/// Run with which an action was not possible.
#[derive(Serialize, ToSchema)]
pub struct RefusedRun {
    /// Id of the run.
    run_id: String,
    /// Code of the error that the single action would have.
    #[schema(example = "run_wrong_state")]
    code: &'static str,
    /// Reason for people.
    detail: String,
}

/// Change many runs
///
/// Cancels, pauses, resumes or retries the runs that match the filters and are in a state in which this is possible, the
/// latest first: as many as `page_size` says, 100 at most, or fewer after 5 seconds. Each is changed as by its own
/// route, with its own entry in the audit trail. Repeat the request with `next_cursor` until it is null. A dry run tells
/// how many runs it would be.
#[utoipa::path(
    post, path = "/runs/bulk", tag = "runs",
    params(
        ("page_size" = Option<i64>, Query, minimum = 1, description = "Maximum number of runs"),
        ("cursor" = Option<String>, Query, description = "The `next_cursor` of an answer to the same query"),
        ("status" = Option<Vec<sets::RunStatus>>, Query, explode = false, description = "Any of these"),
        ("workflow_id" = Option<String>, Query, description = "Exactly this `workflow_id`"),
        ("workflow_definition_id" = Option<String>, Query, description = "Exactly this `workflow_definition_id`"),
        ("name" = Option<String>, Query, description = "Exactly this `workflow_name`"),
        ("name_prefix" = Option<String>, Query, description = "The beginning of `workflow_name`"),
        ("triggered_by" = Option<String>, Query, description = "Exactly this `triggered_by`"),
        ("trigger_id" = Option<uuid::Uuid>, Query, description = "The runs that this trigger started"),
        ("parent_run_id" = Option<String>, Query, description = "The runs that are steps of this run"),
        parameters::Created,
        parameters::Updated,
    ),
    request_body = BulkBody,
    responses(
        (status = 200, body = BulkResult),
        (status = 400, description = "The cursor belongs to another query", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn change_runs(
    State(app): State<App>,
    caller: Caller,
    query: Query,
    body: JsonBody,
) -> Result<Json<BulkResult>, ApiError> {
    let BulkBody { action, dry_run, reason } = BulkBody::read(&Object::body(body.raw())?)?;
    if query.text("page").is_some() {
        let message = "is not possible here, since pages change with their runs: use `cursor`";
        return Err(FieldError::rule("query.page", message).into());
    }
    let mut parameters = ListQuery::new(&query);
    let mut filter = filter(&mut parameters, caller.organization())?;
    let mut list = ListRequest::read(&app, &parameters, &format!("bulk {}", action.as_str())).await?;
    list.page.size = list.page.size.min(MAX_RUNS);
    let possible = RunStatus::ALL.into_iter().filter(|status| action.applies_to(*status)).map(RunStatus::as_str);
    let is_wanted = |status: &&str| filter.statuses.is_empty() || filter.statuses.iter().any(|wanted| wanted == status);
    filter.statuses = possible.filter(is_wanted).map(str::to_owned).collect();
    filter.is_paused = action.of_paused();
    let mut result = BulkResult {
        action: action.as_str(),
        dry_run,
        total: 0,
        total_is_exact: true,
        done: 0,
        refused: Vec::new(),
        next_cursor: None,
    };
    // No status would mean all of them.
    if filter.statuses.is_empty() {
        return Ok(Json(result));
    }
    let (filter, page) = (&filter, &list.page);
    let mut page = app.reads.read(|mut conn| async move { db::runs::list(&mut conn, filter, page).await }).await?;
    (result.total, result.total_is_exact) = (page.total.count, page.total.is_exact);
    if dry_run {
        return Ok(Json(result));
    }
    let started = app.clock.instant();
    let mut last = None;
    for position in &page.entries.positions {
        if last.is_some() && app.clock.since(started) > TIME_LIMIT {
            // The next request begins with this run.
            page.entries.next = last.or(page.entries.next);
            break;
        }
        last = Some(position.clone());
        let EntryId::Text(run_id) = &position.id else { continue };
        match change(&app, &caller, action, run_id, reason.as_deref()).await {
            Ok(()) => result.done += 1,
            Err(error) if error.status().is_server_error() => return Err(error),
            Err(error) => {
                let (code, detail) = (error.code(), error.detail().to_owned());
                result.refused.push(RefusedRun { run_id: run_id.clone(), code, detail });
            }
        }
    }
    tracing::info!(
        target: "api.routes.runs", action = result.action, runs = result.done, refused = result.refused.len(),
        "Many runs changed"
    );
    result.next_cursor = list.neighbours(&page.entries).1;
    Ok(Json(result))
}

/// Does it with one run.
async fn change(
    app: &App,
    caller: &Caller,
    action: Action,
    run_id: &str,
    reason: Option<&str>,
) -> Result<(), ApiError> {
    let context = caller.context(app);
    match action {
        Action::Cancel => {
            cancel_run::cancel_run(&app.pool, &app.relay, context, run_id, reason).await?;
        }
        Action::Pause | Action::Resume => {
            super::pause::set_paused(app, caller, run_id, action == Action::Pause).await.map(drop)?;
        }
        Action::Retry => {
            let retry = Retry::default();
            retry_run::retry_run(&app.pool, &app.offload, &app.relay, context, run_id, &retry).await?;
        }
    }
    Ok(())
}
