//! Starting a run again that failed or was cancelled.

use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::types::Json;
use uuid::Uuid;

use super::{Change, Context, Entity, start_run::unusable_schema};
use crate::{
    access::{Countable, QuotaExceeded},
    db::{self, idempotency::ClaimError, outbox::Kind, runs::RunRow},
    id,
    input::{self, FieldError},
    offload::{Offload, Overloaded},
    outbox::{self, ExecutedRun, Relay},
    run::RunStatus,
    timestamp::Timestamp,
    workflow::{InputSchema, Plan},
};

/// Why a run was not started again.
#[derive(Debug, thiserror::Error)]
pub enum RetryRunError {
    /// There is no such run.
    #[error("run not found")]
    NotFound,
    /// It has not failed, nor was it cancelled.
    #[error("a run in status {0} cannot be retried")]
    WrongState(String),
    /// It came from no stored definition.
    #[error("the run has no workflow definition")]
    WithoutDefinition,
    /// Its definition does not exist.
    #[error("the run's workflow definition does not exist")]
    DefinitionNotFound,
    /// The step to go on from is not one that the run would come by.
    #[error("step {0:?} is not on the workflow's main path")]
    NoSuchStep(String),
    /// The new input does not satisfy the definition's schema.
    #[error("the input does not satisfy the workflow's input_schema")]
    InvalidInput(Vec<FieldError>),
    /// The definition changes again and again.
    #[error("the run's definition changed while the input was checked")]
    Changing,
    /// Too much is to be checked already.
    #[error(transparent)]
    Busy(#[from] Overloaded),
    /// Plan and input together do not fit into a Kafka record.
    #[error("plan and input are too large for a message")]
    TooLarge,
    /// As many runs of the organisation are queued as may be.
    #[error(transparent)]
    Quota(#[from] QuotaExceeded),
    /// The idempotency key is taken.
    #[error(transparent)]
    Key(#[from] ClaimError),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] db::Error),
}

#[derive(Serialize)]
struct Changes<'a> {
    previous_status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    resume_from_step: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_data: Option<&'a RawValue>,
}

/// What a retry changes of its run.
#[derive(Default)]
pub struct Retry {
    /// The step of the main path from which on everything is repeated.
    pub resume_from_step: Option<String>,
    /// Instead of the input that the run had.
    pub input: Option<Box<RawValue>>,
}

/// Looks at a definition that changes again and again while an input is checked.
const ATTEMPTS: usize = 5;

/// What is wrong with a new input, and the stamp of the definition that says so.
struct Verdict {
    stamp: String,
    errors: Vec<FieldError>,
}

/// Puts the run back to PENDING, pinned to the present content of its definition, and dispatches it again. Steps
/// that are completed are not repeated, for the executor sees their rows, except from `resume_from_step` on, whatever the
/// input is now.
pub async fn retry_run(
    pool: &db::Pool,
    offload: &Offload,
    relay: &Relay,
    context: Context<'_>,
    run_id: &str,
    retry: &Retry,
) -> Result<RunRow, RetryRunError> {
    for _ in 0..ATTEMPTS {
        // Before the run is locked: it may take long.
        let verdict = match &retry.input {
            Some(input) => verdict(pool, offload, context, run_id, input).await?,
            None => None,
        };
        match retry_checked(pool, relay, context, run_id, retry, verdict).await {
            Err(RetryRunError::Changing) => {}
            done => return done,
        }
    }
    Err(RetryRunError::Changing)
}

/// What the schema of the run's definition says of the input; `None` if there is nothing that could say it.
async fn verdict(
    pool: &db::Pool,
    offload: &Offload,
    context: Context<'_>,
    run_id: &str,
    input: &RawValue,
) -> Result<Option<Verdict>, RetryRunError> {
    let organization = context.organization();
    let Some(run) = db::runs::find(pool, organization, run_id).await? else { return Ok(None) };
    let id = run.workflow_definition_id.as_deref().and_then(|id| Uuid::try_parse(id).ok());
    let Some(id) = id else { return Ok(None) };
    let Some(definition) = db::workflows::startable(pool, organization, id).await? else { return Ok(None) };
    let Some(schema) = definition.input_schema else {
        return Ok(Some(Verdict { stamp: definition.stamp, errors: Vec::new() }));
    };
    let input = input.to_owned();
    let checked = offload.run_soon(organization, move || {
        let schema = InputSchema::compile(&schema.0).map_err(|text| unusable_schema(&text))?;
        schema.check(&input)
    });
    Ok(Some(Verdict { stamp: definition.stamp, errors: checked.await?.err().unwrap_or_default() }))
}

/// [`retry_run`], where the input was checked.
async fn retry_checked(
    pool: &db::Pool,
    relay: &Relay,
    context: Context<'_>,
    run_id: &str,
    retry: &Retry,
    verdict: Option<Verdict>,
) -> Result<RunRow, RetryRunError> {
    let resume_from_step = retry.resume_from_step.as_deref();
    let mut transaction = db::begin(pool).await?;
    // Before the state is looked at: a repeat finds the run that the first request has started again.
    context.claim(&mut transaction, run_id).await?;
    let run = db::runs::lock(&mut transaction, context.organization(), run_id).await?.ok_or(RetryRunError::NotFound)?;
    if !RunStatus::parse(&run.status).is_some_and(RunStatus::is_retryable) {
        return Err(RetryRunError::WrongState(run.status));
    }
    let definition_id = run.workflow_definition_id.as_deref().ok_or(RetryRunError::WithoutDefinition)?;
    let definition = match Uuid::try_parse(definition_id) {
        Ok(id) => db::workflows::startable(&mut *transaction, context.organization(), id).await?,
        Err(_) => None,
    };
    let definition = definition.ok_or(RetryRunError::DefinitionNotFound)?;
    if let Some(step) = resume_from_step
        && !Plan::parse(&definition.workflow_data.0).is_ok_and(|plan| plan.main_path().any(|id| id == step))
    {
        return Err(RetryRunError::NoSuchStep(step.to_owned()));
    }
    if retry.input.is_some() {
        // Another schema may say something else.
        let errors = verdict.filter(|verdict| verdict.stamp == definition.stamp).ok_or(RetryRunError::Changing)?.errors;
        if !errors.is_empty() {
            return Err(RetryRunError::InvalidInput(errors));
        }
    }
    let input = match (&retry.input, &run.input_data) {
        (Some(input), _) => input.clone(),
        (None, Some(stored)) if stored.0.get() != "null" => stored.0.clone(),
        _ => input::object_of([]),
    };
    if !outbox::fits_a_record(&definition.workflow_data.0, &input) {
        return Err(RetryRunError::TooLarge);
    }
    // Nobody waits for a run's row while he holds this quota.
    context.check_quota(&mut transaction, context.organization(), Countable::QueuedRuns).await??;
    let at = Timestamp::now();
    let event_id = Uuid::now_v7();
    let new_input = retry.input.as_deref();
    db::runs::reopen(&mut transaction, run_id, definition.version, event_id, resume_from_step, new_input, at).await?;
    let reservation = relay.reserve(definition.workflow_data.0.get().len() + input.get().len());
    let owner = reservation.as_ref().map(crate::outbox::Reservation::owner);
    let is_ours = db::outbox::insert(&mut transaction, run_id, event_id, Kind::Execution, owner, None, None).await?;
    let changes = input::to_raw(&Changes { previous_status: &run.status, resume_from_step, input_data: new_input });
    let entity = Entity("run", id::run_entity_id(run_id), run_id);
    context.record(&mut transaction, entity, "retry", Change::to(&changes), at).await?;
    let committed = db::commit(transaction).await;
    match (reservation, committed) {
        (Some(reservation), Err(error)) => {
            relay.abandon(reservation, event_id, run_id.to_owned());
            return Err(error.into());
        }
        (None, Err(error)) => return Err(error.into()),
        (Some(reservation), Ok(())) if is_ours => {
            let (correlation_id, organization) = (run.correlation_id.as_deref(), context.organization());
            let (priority, traceparent) = (run.priority, run.traceparent.as_deref());
            let executed = ExecutedRun { run_id, correlation_id, traceparent, priority, organization };
            relay.execute(reservation, event_id, executed, &definition.workflow_data.0, &input);
        }
        (_, Ok(())) => {}
    }
    Ok(RunRow {
        status: RunStatus::Pending.as_str().to_owned(),
        error_message: None,
        cancelled_at: None,
        cancelled_by: None,
        completed_at: None,
        paused_at: None,
        updated_at: at,
        input_data: retry.input.clone().map(Json).or(run.input_data),
        ..run
    })
}
