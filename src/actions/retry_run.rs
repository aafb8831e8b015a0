//! Retrying a run that failed or was cancelled.

use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::types::Json;
use uuid::Uuid;

use super::{Change, Context, Entity, start_run::unusable_schema};
use crate::{
    access::{Countable, QuotaExceeded},
    db::{
        self,
        idempotency::ClaimError,
        outbox::Kind,
        runs::{Reopened, RunRow},
    },
    id,
    input::{self, FieldError},
    offload::{Offload, Overloaded},
    outbox::{self, ExecutedRun, Relay},
    run::RunStatus,
    telemetry::catalogue,
    timestamp::Timestamp,
    usage::Limits,
    workflow::{FlowStage, InputSchema, Plan},
};

/// Reason why a run was not retried.
#[derive(Debug, thiserror::Error)]
pub enum RetryRunError {
    /// There is no such run.
    #[error("run not found")]
    NotFound,
    /// The run has neither failed nor was it cancelled.
    #[error("a run in status {0} cannot be retried")]
    WrongState(String),
    /// The run has no stored definition.
    #[error("the run has no workflow definition")]
    WithoutDefinition,
    /// Its definition does not exist.
    #[error("the run's workflow definition does not exist")]
    DefinitionNotFound,
    /// The step to resume from is not on the main path of the workflow.
    #[error("step {0:?} is not on the workflow's main path")]
    NoSuchStep(String),
    /// The new input does not satisfy the definition's schema.
    #[error("the input does not satisfy the workflow's input_schema")]
    InvalidInput(Vec<FieldError>),
    /// The definition keeps changing.
    #[error("the run's definition changed while the input was checked")]
    Changing,
    /// The service is overloaded with checks.
    #[error(transparent)]
    Busy(#[from] Overloaded),
    /// Plan and input together do not fit into a Kafka record.
    #[error("plan and input are too large for a message")]
    TooLarge,
    /// The quota of queued runs is used up.
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
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<&'a Limits>,
}

/// Changes of a run for its retry.
#[derive(Default)]
pub struct Retry {
    /// Step of the main path from which on everything is repeated.
    pub resume_from_step: Option<String>,
    /// Input that replaces the previous one.
    pub input: Option<Box<RawValue>>,
    /// Limits that replace those of the run; empty ones remove them.
    pub limits: Option<Limits>,
}

/// Number of attempts if the definition keeps changing while an input is checked.
const ATTEMPTS: usize = 5;

/// Violations of a new input, and the stamp of the definition whose schema was used.
struct Verdict {
    stamp: String,
    errors: Vec<FieldError>,
}

/// Resets the run to PENDING, pinned to the current content of its definition, and dispatches it again. The executor
/// sees the rows of completed steps and does not repeat them, whatever the input is now, except from `resume_from_step`
/// on.
pub async fn retry_run(
    pool: &db::Pool,
    offload: &Offload,
    relay: &Relay,
    context: Context<'_>,
    run_id: &str,
    retry: &Retry,
) -> Result<RunRow, RetryRunError> {
    for _ in 0..ATTEMPTS {
        // This comes before the run is locked, since it may take long.
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

/// Checks the input against the schema of the run's definition; `None` if there is no definition.
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

/// [`retry_run`] with a checked input.
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
    // This comes before the state check: a repeat finds the run that the first request has restarted.
    context.claim(&mut transaction, run_id).await?;
    let run = db::runs::lock(&mut transaction, context.organization(), run_id).await?.ok_or(RetryRunError::NotFound)?;
    let Some(previous) = RunStatus::parse(&run.status).filter(|status| status.is_retryable()) else {
        return Err(RetryRunError::WrongState(run.status));
    };
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
        // The schema may have changed.
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
    // A retry needs a slot, as a start does; it waits for one, whatever the policy is. Nothing takes its place.
    let keys = match &definition.flow_control {
        Some(flow) => flow.0.keys(&input).map_err(|error| RetryRunError::InvalidInput(vec![error]))?,
        None => None,
    };
    let keys = keys.and_then(|keys| keys.without(FlowStage::Debounce));
    // No transaction waits for a run's row while it holds this quota, so this cannot deadlock.
    context.check_quota(&mut transaction, context.organization(), Countable::QueuedRuns).await??;
    let at = Timestamp::now();
    let event_id = Uuid::now_v7();
    let new_input = retry.input.as_deref();
    let reopened = Reopened {
        version: definition.version,
        event_id,
        resume_from_step,
        input: new_input,
        limits: retry.limits.as_ref(),
        flow: keys.as_ref(),
        at,
    };
    db::runs::reopen(&mut transaction, run_id, &reopened).await?;
    // The message of a held run is written when it is admitted.
    let (mut reservation, mut is_ours) = (None, false);
    if keys.is_none() {
        reservation = relay.reserve(definition.workflow_data.0.get().len() + input.get().len());
        let owner = reservation.as_ref().map(crate::outbox::Reservation::owner);
        is_ours = db::outbox::insert(&mut transaction, run_id, event_id, Kind::Execution, owner, None, None).await?;
    }
    let (previous_status, limits) = (run.status.as_str(), retry.limits.as_ref());
    let changes = input::to_raw(&Changes { previous_status, resume_from_step, input_data: new_input, limits });
    let entity = Entity("run", id::run_entity_id(run_id), run_id);
    context.record(&mut transaction, entity, "retry", Change::to(&changes), at).await?;
    if let Some(reservation) = relay.commit(transaction, (reservation, is_ours), (run_id, event_id)).await? {
        let (correlation_id, organization) = (run.correlation_id.as_deref(), context.organization());
        let (priority, traceparent) = (run.priority, run.traceparent.as_deref());
        let executed = ExecutedRun { run_id, correlation_id, traceparent, priority, organization, is_retry: true };
        relay.execute(reservation, (event_id, None), executed, &definition.workflow_data.0, &input);
    }
    if keys.is_some() {
        relay.admit_soon();
    }
    catalogue::count_transition(previous.as_str(), RunStatus::Pending.as_str(), 1);
    let first = keys.as_ref().and_then(|keys| keys.iter().next());
    Ok(RunRow {
        workflow_version: Some(definition.version),
        status: RunStatus::Pending.as_str().to_owned(),
        error_message: None,
        cancelled_at: None,
        cancelled_by: None,
        completed_at: None,
        paused_at: None,
        // It is a new one, which only the database knows.
        deadline_at: None,
        deadline_missed_at: None,
        updated_at: at,
        input_data: retry.input.clone().map(Json).or(run.input_data),
        limits: retry.limits.map(Json).or(run.limits),
        flow_stage: first.map(|(stage, _)| stage.as_str().to_owned()),
        flow_state: first.map(|_| "queued".to_owned()),
        flow_key: first.map(|(_, key)| key.to_owned()),
        ..run
    })
}
