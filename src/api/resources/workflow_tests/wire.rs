//! Wire types of tests.

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::{
    api::{
        resources::{usage::SimulatedUsage, workflows::wire::NewWorkflowBody},
        vocabulary::sets,
    },
    executor::{Attempt, End, Report, Shown},
    input::{FieldError, MAX_ERRORS},
    timestamp::Timestamp,
    usage::Totals,
};

/// Mock of a step's answers: at most one of `output`, `template`, `expression` and `mocks`.
#[derive(ToSchema)]
#[schema(as = StepMock, example = json!({
    "template": {"text": "${step.input.text}!"}, "fail": {"times": 2, "code": "http_5xx"}, "delay_seconds": 1.5,
}))]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes what `executor::Mocks::read` reads")]
pub struct MockBody {
    /// The answer, as it is.
    #[schema(value_type = serde_json::Value, required = false)]
    output: (),
    /// The answer, in which references are resolved: `${step.input.…}` is the input of the step, and
    /// `${workflow.input.…}` that of the run.
    #[schema(value_type = serde_json::Value, required = false)]
    template: (),
    /// The answer as an expression of the language of conditions, with the same references.
    #[schema(min_length = 1, example = "{'total': ${step.input.price} * 2}")]
    expression: Option<String>,
    /// Failures before the answer.
    fail: Option<MockFailureBody>,
    /// Virtual time until the answer or the failure of an attempt, in seconds.
    #[schema(minimum = 0, maximum = 315_576_000)]
    delay_seconds: Option<f64>,
    /// For a callback: the subject that answers.
    #[schema(min_length = 1, max_length = 255)]
    answered_by: Option<String>,
    /// Questions that the agent asks before the answer, one after the other.
    #[schema(max_items = 100)]
    questions: Option<Vec<MockQuestionBody>>,
    /// For a sub-workflow: it runs, and these are the mocks of its steps.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    mocks: Option<HashMap<String, serde_json::Value>>,
}

/// Question of an agent.
#[derive(ToSchema)]
#[schema(as = MockQuestion)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes what `executor::Mocks::read` reads")]
pub struct MockQuestionBody {
    /// What the agent says.
    #[schema(min_length = 1, max_length = 10_000)]
    question: String,
    /// Whether the agent needs an authorisation; the default is false.
    auth: Option<bool>,
    /// JSON Schema of the answer.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    answer_schema: Option<HashMap<String, serde_json::Value>>,
    /// The answer; absent: nobody answers.
    #[schema(value_type = serde_json::Value, required = false)]
    answer: (),
    /// Subject that answers.
    #[schema(min_length = 1, max_length = 255)]
    answered_by: Option<String>,
    /// Virtual time until the answer, in seconds.
    #[schema(minimum = 0, maximum = 315_576_000)]
    delay_seconds: Option<f64>,
}

/// Failure of attempts.
#[derive(ToSchema)]
#[schema(as = MockFailure)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes what `executor::Mocks::read` reads")]
pub struct MockFailureBody {
    /// Number of the first attempts of each execution that fail; null: all of them.
    #[schema(minimum = 1, maximum = 1000)]
    times: Option<i64>,
    /// Error code; the default is `http_5xx`.
    code: Option<sets::CallErrorCode>,
    /// Error message.
    #[schema(min_length = 1, max_length = 1000)]
    message: Option<String>,
}

/// Body of a request to test a definition that is not stored.
#[derive(ToSchema)]
#[schema(as = TestDefinitionRequest, example = json!({
    "definition": {
        "name": "hello", "start_step": "pause",
        "steps": {"pause": {"id": "pause", "type": "wait", "wait_config": {"duration_seconds": 1}}},
    },
    "input_data": {},
}))]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes what `Test::of_definition` reads")]
pub struct DefinitionTestBody {
    /// The definition, as for creating a workflow.
    definition: NewWorkflowBody,
    /// Input of the run, as for executing the workflow.
    #[schema(value_type = HashMap<String, Value>)]
    input_data: (),
    /// Mocks of the answers to the steps, by step id.
    mocks: Option<HashMap<String, MockBody>>,
    /// Answer to a step that calls an agent and has no mock; the default is `echo`.
    missing_mocks: Option<sets::MissingMock>,
    /// Time at which the run begins; the default is the present time.
    #[schema(value_type = Option<String>, format = DateTime, example = "2026-02-03T09:00:00Z")]
    start_time: Option<()>,
}

/// What is known before a test is executed.
pub struct Prepared {
    /// Time at which the run begins.
    pub start_time: DateTime<Utc>,
    /// Warnings about definition and agents.
    pub warnings: Vec<FieldError>,
}

/// Result of a test.
#[derive(Serialize, ToSchema)]
#[schema(as = WorkflowTest)]
pub struct TestReport {
    /// How the run ended.
    #[schema(value_type = sets::TestStatus)]
    status: &'static str,
    /// Output of a completed run. More than 64 KiB are omitted.
    #[schema(value_type = Option<Value>)]
    output_data: Option<Box<RawValue>>,
    /// Whether the output is omitted because of its size.
    output_data_omitted: bool,
    /// Reason of a failure, or of an end at a limit of tests.
    error_message: Option<String>,
    /// Code of the failure of the run.
    error_code: Option<&'static str>,
    /// What the calls have used, by the member `usage` of their mocked answers and the prices of the agents. It counts
    /// towards the limits of the workflow.
    usage: SimulatedUsage,
    /// Step of the main chain that failed.
    failed_step_id: Option<String>,
    /// Time at which the run began.
    #[schema(value_type = String, format = DateTime)]
    start_time: Timestamp,
    /// Virtual time that the run took, in milliseconds.
    duration_ms: u64,
    /// Attempts of the steps, in the order of their begin.
    steps: Vec<TestedStep>,
    /// Steps that were not executed.
    not_reached: Vec<String>,
    /// Warnings: mocks that are missing or not used, references without a value, agents that do not exist, and those of
    /// validation.
    warnings: Vec<FieldError>,
}

/// Attempt of a step in a test.
#[derive(Serialize, ToSchema)]
pub struct TestedStep {
    /// Path of the step through blocks, branches and iterations, such as `each/0/check`. `>` precedes the path in a
    /// sub-workflow.
    path: String,
    /// Id of the step.
    step_id: String,
    /// Type of the step.
    #[schema(value_type = Option<sets::StepType>)]
    r#type: Option<&'static str>,
    /// Name of the agent; empty if the step calls none.
    agent_name: String,
    /// Id of the step that contains this branch or iteration.
    parent_step_id: Option<String>,
    /// Name of the branch, or number of the iteration.
    branch_name: Option<String>,
    /// Join policy of the branches.
    #[schema(value_type = Option<sets::JoinPolicy>)]
    join_policy: Option<&'static str>,
    /// Number of the attempt of the step at this path, from 1; 0 if the step failed before an attempt began.
    attempt: u32,
    /// State of the attempt.
    #[schema(value_type = sets::StepStatus)]
    status: &'static str,
    /// Source of the answer; null if the step needs none, or has got none.
    #[schema(value_type = Option<sets::AnswerSource>)]
    answered_from: Option<&'static str>,
    /// Input. More than 64 KiB are omitted, and so is what exceeds 4 MiB of all steps.
    #[schema(value_type = Option<Value>)]
    input_data: Option<Box<RawValue>>,
    /// Whether the input is omitted because of its size.
    input_data_omitted: bool,
    /// Output, with the same limits.
    #[schema(value_type = Option<Value>)]
    output_data: Option<Box<RawValue>>,
    /// Whether the output is omitted because of its size.
    output_data_omitted: bool,
    /// Reason of the failure.
    error_message: Option<String>,
    /// Virtual time from the begin of the run to the begin of the attempt, in milliseconds.
    started_ms: u64,
    /// Virtual time from the begin of the run to the end of the attempt; null if it has not ended.
    ended_ms: Option<u64>,
}

impl TestReport {
    /// Report of an executed test.
    #[must_use]
    pub fn new(report: Report, prepared: Prepared) -> Self {
        let Report { end, output, duration, attempts, not_reached, .. } = report;
        let mut warnings = prepared.warnings;
        warnings.extend(report.warnings);
        warnings.truncate(MAX_ERRORS);
        Self {
            status: end.as_str(),
            output_data: output.value,
            output_data_omitted: output.is_omitted,
            error_message: report.error_message,
            error_code: report.error_code,
            usage: report.usage.into(),
            failed_step_id: report.failed_step_id,
            start_time: prepared.start_time.into(),
            duration_ms: millis(duration),
            steps: attempts.into_iter().map(TestedStep::from).collect(),
            not_reached,
            warnings,
        }
    }

    /// Report of a plan that no executor could execute.
    #[must_use]
    pub fn of_invalid_plan(cause: &str, start_time: DateTime<Utc>, warnings: Vec<FieldError>) -> Self {
        let report = Report {
            end: End::Failed,
            output: Shown::default(),
            error_message: Some(cause.to_owned()),
            error_code: Some("invalid_plan"),
            usage: Totals::default(),
            failed_step_id: None,
            duration: Duration::ZERO,
            attempts: Vec::new(),
            not_reached: Vec::new(),
            warnings: Vec::new(),
        };
        Self::new(report, Prepared { start_time, warnings })
    }
}

impl From<Attempt> for TestedStep {
    fn from(attempt: Attempt) -> Self {
        Self {
            path: attempt.path,
            step_id: attempt.step_id,
            r#type: attempt.kind.map(crate::workflow::StepKind::as_str),
            agent_name: attempt.agent_name,
            parent_step_id: attempt.parent_step_id,
            branch_name: attempt.branch_name,
            join_policy: attempt.join_policy,
            attempt: attempt.attempt,
            status: attempt.status,
            answered_from: attempt.answered_from,
            input_data: attempt.input.value,
            input_data_omitted: attempt.input.is_omitted,
            output_data: attempt.output.value,
            output_data_omitted: attempt.output.is_omitted,
            error_message: attempt.error_message,
            started_ms: millis(attempt.begun),
            ended_ms: attempt.ended.map(millis),
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
