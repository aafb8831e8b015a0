//! Runs as tasks of the extension for calls that take longer.

use http::StatusCode;
use serde_json::{json, value::RawValue};

use super::{
    Failure, McpCall,
    elicitation::input_requests,
    invalid,
    outcome::{ended_result, waits_text},
};
use crate::{
    access::Permission,
    actions::cancel_run::{CancelRunError, cancel_run},
    api::{
        resources::exposed_run::{self, ExposedRun},
        vocabulary::{error::ApiError, json_rpc::RpcError},
    },
    input::{member, text, to_raw},
    mcp::{MISSING_CAPABILITY, TASKS},
    run::State,
};

/// Time after which a client should ask again, in milliseconds.
const POLL_MS: u32 = 1000;

/// Error for a client that has not declared the extension.
fn undeclared() -> Failure {
    let error = RpcError::new(MISSING_CAPABILITY, format!("The client should declare the extension {TASKS}"));
    let required = json!({"requiredCapabilities": {"extensions": {TASKS: {}}}});
    Failure::Rpc((StatusCode::BAD_REQUEST, error.with_data(&required)))
}

impl McpCall {
    /// Refuses a method of the extension unless the client has declared it in this request.
    fn must_have_tasks(&self) -> Result<(), Failure> {
        if self.client.has_tasks { Ok(()) } else { Err(undeclared()) }
    }

    /// Id in the parameters.
    fn task_id(&self) -> Result<String, Failure> {
        member(&self.call.params, "taskId").and_then(text).ok_or_else(|| invalid("`taskId` should be a text"))
    }

    /// The run that the parameters name.
    async fn named_task(&self) -> Result<ExposedRun, Failure> {
        let row = exposed_run::find(&self.app, &self.caller, &self.task_id()?).await;
        let row = row.map_err(|error| match error.code() {
            "run_not_found" => invalid("There is no such task"),
            _ => error.into(),
        })?;
        Ok(ExposedRun::of(&self.app, &self.caller, row).await?)
    }

    /// A run as a task, in a result of that kind.
    pub(super) fn task_result(&self, kind: &str, run: &ExposedRun) -> Box<RawValue> {
        let row = &run.row;
        let is_asked = run.state() == State::Waiting && self.client.has_forms && kind != "task";
        let status = match run.state() {
            State::Waiting if is_asked => "input_required",
            State::Submitted | State::Working | State::Waiting => "working",
            // What failed is a result of the tool; errors of the protocol end no run.
            State::Completed | State::Failed => "completed",
            State::Cancelled => "cancelled",
        };
        let message = match run.state() {
            State::Waiting if !self.client.has_forms => Some(waits_text(run)),
            State::Waiting => Some("The run waits for an answer".to_owned()),
            State::Failed => Some("The run has failed".to_owned()),
            _ => row.error_message.clone(),
        };
        let requests = is_asked.then(|| input_requests(&run.questions));
        let result = (status == "completed" && kind != "task").then(|| ended_result(self.client, run));
        let (task_id, status, message) = (to_raw(&row.run_id), to_raw(status), message.as_deref().map(to_raw));
        let (created, updated, poll) = (to_raw(&row.created_at), to_raw(&row.updated_at), to_raw(&POLL_MS));
        let fixed = [
            ("taskId", &*task_id),
            ("status", &*status),
            ("createdAt", &*created),
            ("lastUpdatedAt", &*updated),
            // Ended runs are kept for days.
            ("ttlMs", RawValue::NULL),
            ("pollIntervalMs", &*poll),
        ];
        let optional = [
            ("statusMessage", message.as_deref()),
            ("inputRequests", requests.as_deref()),
            ("result", result.as_deref()),
        ];
        let optional = optional.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let members: Vec<_> = fixed.into_iter().chain(optional).collect();
        self.client.result(kind, &members)
    }

    pub(super) async fn get_task(&self) -> Result<Box<RawValue>, Failure> {
        self.must_have_tasks()?;
        self.caller.must(Permission::RunsRead)?;
        Ok(self.task_result("complete", &self.named_task().await?))
    }

    pub(super) async fn update_task(&self) -> Result<Box<RawValue>, Failure> {
        self.must_have_tasks()?;
        self.caller.must(Permission::RunsWrite)?;
        let run = self.named_task().await?;
        self.give_answers(&run.row.run_id).await?;
        Ok(self.client.result("complete", &[]))
    }

    /// Cancels the run. One that has ended meanwhile stays as it is.
    pub(super) async fn cancel_task(&self) -> Result<Box<RawValue>, Failure> {
        self.must_have_tasks()?;
        self.caller.must(Permission::RunsWrite)?;
        let run = self.named_task().await?;
        let context = self.caller.context(&self.app);
        match cancel_run(&self.app.pool, &self.app.relay, context, &run.row.run_id, None).await {
            Ok(_) => tracing::info!(target: "api.routes.runs", run_id = run.row.run_id, "Run cancelled"),
            Err(CancelRunError::WrongState(_)) => {}
            Err(error) => return Err(ApiError::from(error).into()),
        }
        Ok(self.client.result("complete", &[]))
    }
}
