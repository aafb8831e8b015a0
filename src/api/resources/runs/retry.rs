//! Handler for retrying a run.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::wire::RunDetail;
use crate::{
    actions::retry_run::{self, Retry, RetryRunError},
    api::resources::definition::LimitsBody,
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        extract::{OptionalJsonBody, RunId},
        idempotency::{Key, replayed},
        parameters,
    },
    db::idempotency::ClaimError,
    input::{ANY_LENGTH, FieldError, Node, Object, request_object, shorten},
    timestamp::Timestamp,
    usage::Limits,
};

/// Answer to a retry: the run, and members that the UI reads only here.
#[derive(Serialize, ToSchema)]
pub struct RetriedRun {
    #[serde(flatten)]
    run: RunDetail,
    /// Message for people.
    message: &'static str,
    /// The same as `run_id`: a retry continues the same run.
    new_run_id: String,
    /// The same as `run_id`.
    original_run_id: String,
    /// Time of the retry.
    #[schema(value_type = String, format = DateTime)]
    timestamp: Timestamp,
}

request_object! {
    /// Optional body of a retry request.
    #[schema(as = RetryRequest, example = json!({"resume_from_step": null}))]
    pub struct RetryBody {
        /// Step from which everything is repeated, completed or not; earlier steps that are not completed are skipped.
        /// Without it, the run continues after its last completed step.
        resume_from_step: Option<String> = nullable(|node| node.string(ANY_LENGTH)),
        /// Replaces the input of the run. Completed steps are not repeated because of it.
        #[schema(value_type = Option<HashMap<String, Value>>)]
        input_data: Option<Box<RawValue>> = nullable(Node::free_object),
        /// Replaces the limits that the run was started with; an empty object removes them. What the run has used stays
        /// counted.
        #[schema(value_type = Option<LimitsBody>)]
        limits: Option<Limits> = nullable(Limits::read),
    }
}

/// Retry a run
///
/// Starts a failed or cancelled run again, with the current content of its definition. Completed steps are not
/// repeated.
#[utoipa::path(
    post, path = "/runs/{run_id}/retry", tag = "runs",
    params(("run_id" = String, Path), parameters::IdempotencyKey),
    request_body(content = Option<RetryBody>),
    responses(
        (status = 202, body = RetriedRun),
        (status = 409, description = "A request with this key is under way", body = ErrorBody),
        (status = 400, description = "The run has not ended, has completed, or has no definition", body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 422, body = ErrorBody),
        (status = 429, description = "The organisation has reached its quota of queued runs", body = ErrorBody),
    ),
)]
pub async fn retry_run(
    State(app): State<App>,
    caller: Caller,
    RunId(run_id): RunId,
    key: Key,
    body: OptionalJsonBody,
) -> Result<Response, ApiError> {
    let retry = match &body.0 {
        Some(body) => {
            let RetryBody { resume_from_step, input_data, limits } = RetryBody::read(&Object::body(body)?)?;
            Retry { resume_from_step, input: input_data, limits }
        }
        None => Retry::default(),
    };
    let key = key.bound(&format!("retry {run_id}"), &caller, body.fingerprint());
    let context = caller.context(&app).with_key(key.as_ref());
    match retry_run::retry_run(&app.pool, &app.offload, &app.relay, context, &run_id, &retry).await {
        Ok(row) => {
            tracing::info!(target: "api.routes.runs", run_id, "Run retried");
            Ok(retried(RunDetail::open(row.into())))
        }
        Err(RetryRunError::Key(ClaimError::Repeated(_))) => {
            let run = app.runs.find(caller.organization(), &run_id).await?.ok_or_else(ApiError::run_not_found)?;
            Ok(replayed(retried(RunDetail::from(*run))))
        }
        Err(error) => Err(error.into()),
    }
}

fn retried(run: RunDetail) -> Response {
    let (timestamp, message, run_id) = (run.updated_at(), "The run was started again", run.run_id().to_owned());
    let retried = RetriedRun { run, message, new_run_id: run_id.clone(), original_run_id: run_id, timestamp };
    (StatusCode::ACCEPTED, Json(retried)).into_response()
}

impl From<RetryRunError> for ApiError {
    fn from(error: RetryRunError) -> Self {
        match error {
            RetryRunError::NotFound => Self::run_not_found(),
            RetryRunError::WrongState(status) => Self::run_wrong_state(&status, "retried"),
            RetryRunError::WithoutDefinition => Self::bad_request(
                "run_without_definition",
                "The run has no workflow definition to be started again from",
            ),
            RetryRunError::DefinitionNotFound => {
                Self::not_found("workflow_not_found", "The run's workflow definition was not found")
            }
            RetryRunError::NoSuchStep(step) => {
                let text = format!("step '{}' is not on the workflow's main path", shorten(&step));
                FieldError::rule("body.resume_from_step", text).into()
            }
            RetryRunError::InvalidInput(errors) => errors.into(),
            RetryRunError::Changing => {
                Self::unavailable("definition_changing", "The definition is changed too often while it is read")
            }
            RetryRunError::Busy(busy) => busy.into(),
            RetryRunError::TooLarge => {
                let detail = "Definition and input together no longer fit into a Kafka message of 1 MiB";
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", detail)
            }
            RetryRunError::Quota(exceeded) => exceeded.into(),
            RetryRunError::Key(error) => error.into(),
            RetryRunError::Db(error) => error.into(),
        }
    }
}
